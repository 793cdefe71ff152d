//! RabbitMQ over TLS: `--bus amqps://...`, which a `reparto` built with `--features amqps` knows. nginx, which speaks TLS with
//! a certificate of this test's own, stands before RabbitMQ.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use reparto_client::{Client, Fetched};
use support::sharing::Shared;
use support::{Balancer, PATIENCE, Process, folder, wait_until};

/// nginx before RabbitMQ, with TLS.
struct Tls {
    process: Process,
    port: u16,
    /// Who trusts it trusts nginx.
    certificate: PathBuf,
}

impl Tls {
    fn start(rabbitmq: &str) -> Tls {
        let home = folder();
        let (certificate, key) = (home.join("certificate.pem"), home.join("key.pem"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=127.0.0.1",
        ]);
        openssl.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
        let output = openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output();
        let output = output.expect("this test needs openssl; install it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let conf = format!(
            "include /etc/nginx/modules-enabled/*stream*.conf;\nevents {{}}\nstream {{ server {{\n\
             listen 127.0.0.1:{port} ssl;\nssl_certificate {};\nssl_certificate_key {};\nproxy_pass {rabbitmq};\n}} }}\n",
            certificate.display(),
            key.display()
        );
        std::fs::write(home.join("nginx.conf"), conf).unwrap();
        let mut command = Command::new("nginx");
        let own = format!("daemon off; pid {}; user root;", home.join("pid").display());
        command.arg("-c").arg(home.join("nginx.conf")).args(["-e", "stderr", "-g", &own]);
        let process = Process::start(command);
        wait_until("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Tls { process, port, certificate }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // Its workers end with it, which they would not if it were killed.
        self.process.signal(rustix::process::Signal::TERM);
        wait_until("nginx has ended", || self.process.has_ended());
    }
}

fn command(shared: &Shared, trusted: &Path) -> Command {
    let mut command = shared.command("127.0.0.1:0", "127.0.0.1:0");
    // Where OpenSSL looks for the certificates that it trusts.
    command.env("SSL_CERT_FILE", trusted);
    command
}

#[test]
fn balancers_share_their_work_over_tls_and_one_that_does_not_trust_the_certificate_says_so() {
    let mut shared = Shared::start();
    let (user, place) = shared.bus.split_once('@').unwrap();
    let (user, place) = (user.trim_start_matches("amqp://").to_owned(), place.to_owned());
    let tls = Tls::start(&place);
    shared.bus = format!("amqps://{user}@127.0.0.1:{}", tls.port);
    let [first, second] = [(); 2].map(|()| Balancer::from_command(command(&shared, &tls.certificate)));
    let _worker = second.worker("ana");
    let client = Client::connect([first.clients.clone()]).unwrap();
    // In the background, and in the foreground: both go over RabbitMQ to where the worker is.
    let id = client.task("upper").payload("hola").submit_background().unwrap().wait().unwrap().task_id;
    match client.fetch(id, PATIENCE).unwrap().wait() {
        Ok(Fetched::Ended(Ok(result))) => assert_eq!(result, "HOLA"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.task("upper").payload("y").submit().unwrap().wait().unwrap(), "Y");

    let nobody = folder().join("nobody.pem");
    std::fs::write(&nobody, "").unwrap();
    let third = Process::start(command(&shared, &nobody));
    wait_until("it says what is wrong", || {
        let said = third.stderr();
        said.contains("certificate verify failed") && said.contains("amqps://127.0.0.1")
    });
    assert!(!third.stderr().contains(&user), "{}", third.stderr());
}
