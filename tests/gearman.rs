//! Programs made for gearmand, as they are, against a balancer with `--gearman`: Debian's `gearman` and `gearadmin`, a
//! client and a worker in C on libgearman, and in Python on the package pygearman.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::{Balancer, Process, wait_until};

/// A balancer that listens for Gearman, too.
struct Server {
    balancer: Balancer,
    host: String,
    port: String,
    data: PathBuf,
}

impl Server {
    fn start() -> Server {
        Server::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Server {
        Server::start_on(support::folder(), flags)
    }

    /// On the data of a former one, or in a folder of its own.
    fn start_on(data: PathBuf, flags: &[&str]) -> Server {
        let mut command =
            support::reparto(["balancer", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"]);
        command.args(["--gearman", "127.0.0.1:0"]).args(flags);
        command.env_remove("REPARTO_BALANCER_NO_DATA").arg("--data").arg(&data);
        let balancer = Balancer::from_command(command);
        let address = balancer.address("gearman");
        let (host, port) = address.split_once(':').unwrap();
        Server { host: host.to_owned(), port: port.to_owned(), balancer, data }
    }

    /// A program of Debian's, with the address and these arguments.
    fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["-h", &self.host, "-p", &self.port]).args(arguments);
        command
    }

    /// What `gearman` prints as a client with this input.
    fn gearman(&self, arguments: &[&str], input: &str) -> String {
        let mut process = start(self.program("gearman", arguments), "gearman-tools");
        process.write(input);
        process.close_input();
        process.end().success_text()
    }

    /// What `gearadmin` prints.
    fn gearadmin(&self, arguments: &[&str]) -> String {
        start(self.program("gearadmin", arguments), "gearman-tools").end().success_text()
    }

    /// A worker of `gearman -w`, which is registered.
    fn worker(&self, function: &str, command: &[&str]) -> Process {
        let arguments = [&["-w", "-f", function, "--"], command].concat();
        let worker = start(self.program("gearman", &arguments), "gearman-tools");
        wait_until("the worker is there", || {
            let status = self.gearadmin(&["--status"]);
            status.lines().any(|line| line.starts_with(&format!("{function}\t")) && !line.ends_with("\t0"))
        });
        worker
    }
}

/// Starts a program of a package that must be there.
fn start(command: Command, package: &str) -> Process {
    let name = command.get_program().to_owned();
    let there = Path::new(&name).is_file()
        || std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|folder| folder.join(&name).is_file());
    assert!(there, "this test needs {}; install {package}, or run scripts/test, which does", name.display());
    Process::start(command)
}

/// The program in C, built once.
fn in_c() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gearman/peer.c");
        let program =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gearman-peer-{}", std::process::id()));
        let built = Command::new("cc").args(["-O1", "-o"]).arg(&program).args([source, "-lgearman"]).output();
        let built = built.expect("this test needs a C compiler; install build-essential");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "cc needs libgearman; install libgearman-dev: {said}");
        program
    })
}

/// The Python of scripts/test, which has the package.
fn in_python(arguments: &[&str]) -> Process {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target/gearman-python");
    let python = std::env::var("REPARTO_GEARMAN_PYTHON").unwrap_or_else(|_| format!("{folder}/bin/python"));
    let mut command = Command::new(&python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gearman/peer.py")).args(arguments);
    start(
        command,
        "pygearman into a virtual environment: python3 -m venv target/gearman-python && \
                    target/gearman-python/bin/pip install pygearman==0.2.6",
    )
}

#[test]
fn the_gearman_command_works_as_client_and_worker() {
    let server = Server::start();
    let worker = server.worker("wc", &["wc", "-l"]);
    assert_eq!(server.gearman(&["-f", "wc"], "a\nb\n").trim(), "2");
    for priority in ["-I", "-L"] {
        assert_eq!(server.gearman(&["-f", "wc", priority], "a\nb\nc\n").trim(), "3");
    }
    assert_eq!(server.gearman(&["-f", "wc", "-u", "order-17"], "a\n").trim(), "1");
    assert_eq!(server.gearman(&["-f", "wc", "-n"], "a\nb\n"), "1\n1\n", "a job a line");
    // In the background: a handle, whose job is done by and by.
    let said = server.gearman(&["-v", "-b", "-f", "wc"], "a\nb\n");
    let handle = said.trim().strip_prefix("Task created: ").unwrap();
    let task = handle.rsplit(':').next().unwrap();
    let result = support::run(["get", task, "--wait", "60s", "--balancer", &server.balancer.clients]);
    assert_eq!(result.success_text().trim(), "2", "any dialect knows a background job by its task id");
    worker.kill();
}

#[test]
fn a_background_job_runs_though_the_balancer_was_killed_before_there_was_a_worker() {
    let server = Server::start();
    let said = server.gearman(&["-v", "-b", "-f", "cat", "-u", "once"], "hola");
    let again = server.gearman(&["-v", "-b", "-f", "cat", "-u", "once"], "hola");
    assert_eq!(said, again, "one that is alive is not taken in twice");
    assert_eq!(server.gearadmin(&["--show-unique-jobs"]), "once\n.\n");
    let task = said.trim().rsplit(':').next().unwrap().to_owned();
    let Server { balancer, data, .. } = server;
    balancer.process.kill();
    let server = Server::start_on(data, &[]);
    wait_until("it is read again", || server.gearadmin(&["--show-unique-jobs"]) == "once\n.\n");
    let once_more = server.gearman(&["-v", "-b", "-f", "cat", "-u", "once"], "hola");
    assert!(once_more.contains(&task), "the unique id is kept with the job: {once_more}");
    let _worker = server.worker("cat", &["cat"]);
    let result = support::run(["get", &task, "--wait", "60s", "--balancer", &server.balancer.clients]);
    assert_eq!(result.success_text(), "hola");
}

#[test]
fn the_gearadmin_command_is_answered() {
    let server = Server::start();
    let worker = server.worker("wc", &["wc", "-l"]);
    assert_eq!(server.gearadmin(&["--status"]), "wc\t0\t0\t1\n.\n");
    assert_eq!(server.gearadmin(&["--priority-status"]), "wc\t0\t0\t0\t1\n.\n");
    assert!(server.gearadmin(&["--workers"]).contains(" 127.0.0.1 - : wc\n"));
    assert_eq!(server.gearadmin(&["--show-jobs"]), ".\n");
    assert_eq!(server.gearadmin(&["--create-function=spare"]).trim(), "OK");
    assert!(server.gearadmin(&["--status"]).contains("spare\t0\t0\t0\n"));
    assert_eq!(server.gearadmin(&["--drop-function=spare"]).trim(), "OK");
    assert_eq!(server.gearadmin(&["--server-version"]).trim(), env!("CARGO_PKG_VERSION"));
    server.gearadmin(&["--server-verbose"]);
    server.gearadmin(&["--getpid"]).trim().parse::<u32>().unwrap();
    worker.kill();
    // A job in the background, which waits, is shown, and is cancelled.
    let said = server.gearman(&["-v", "-b", "-f", "wc"], "a\n");
    let handle = said.trim().strip_prefix("Task created: ").unwrap();
    assert_eq!(server.gearadmin(&["--show-jobs"]), format!("{handle}\t0\t0\t1\n.\n"));
    server.gearadmin(&[&format!("--cancel-job={handle}")]);
    wait_until("it is gone", || server.gearadmin(&["--show-jobs"]) == ".\n");
}

const SEEN_IN_C: &str = "\
do aloh
do aloh
do aloh
data first 
status 1/2
warning careful
data second 
complete strap
data u-17
complete euqinu
failed
exception a reason
many 200
background done
echo ok
";

#[test]
fn a_client_and_a_worker_on_libgearman_see_what_gearmand_would_show_them() {
    let server = Server::start();
    let arguments = |role: &str| {
        let mut command = Command::new(in_c());
        command.args([role, &server.host, &server.port]);
        command
    };
    let mut worker = start(arguments("worker"), "libgearman-dev");
    worker.line_after("ready");
    assert_eq!(start(arguments("client"), "libgearman-dev").end().success_text(), SEEN_IN_C);
    assert!(server.gearadmin(&["--workers"]).contains(" 127.0.0.1 in-c : reverse\n"));
    assert!(!worker.has_ended(), "{}", worker.stderr());
}

#[test]
fn a_client_and_a_worker_on_a_python_package_are_served() {
    let server = Server::start();
    let address = format!("{}:{}", server.host, server.port);
    let mut worker = in_python(&["worker", &address]);
    worker.line_after("ready");
    let said = in_python(&["client", &address]).end().success_text();
    let version = concat!("version OK ", env!("CARGO_PKG_VERSION"));
    let expected = format!(
        "payloads ok\npriorities ok\nfailed\nmany 100\nbackground done\nstatus 0 0 1\n{version}\nping True\n"
    );
    assert_eq!(said, expected);
}

#[test]
fn a_native_client_is_served_by_gearman_workers_and_gearman_clients_by_a_native_worker() {
    let server = Server::start_with(&["--reactors", "2"]);
    let worker = server.worker("count", &["wc", "-l"]);
    let submitted = server.balancer.submit_input(["count"], "a\nb\n".to_owned());
    assert_eq!(submitted.success_text().trim(), "2");
    worker.kill();
    let _native = server.balancer.worker("native");
    assert_eq!(server.gearman(&["-f", "upper"], "hola"), "HOLA");
}
