//! Lines of text with real processes: the scripts of docs/LINES.md as they stand there, and servers as upstreams.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Balancer, PATIENCE, Process, folder, reparto, wait_until};

const ANY_PORT: [&str; 2] = ["--lines", "127.0.0.1:0"];

/// A script of docs/LINES.md, written into a folder. Its first line is a comment with its name.
fn script(folder: &Path, name: &str, most_lines: usize) -> PathBuf {
    let page = include_str!("../docs/LINES.md");
    let begins = format!("```python\n# {name} ");
    let (_, rest) = page.split_once(&begins).unwrap_or_else(|| panic!("{name} is not in docs/LINES.md"));
    let (body, _) = rest.split_once("\n```").unwrap();
    let text = format!("# {name} {body}\n");
    assert!(text.lines().count() <= most_lines, "{name} has {} lines", text.lines().count());
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn python(script: &Path, arguments: &[&str]) -> Process {
    let mut command = Command::new("python3");
    command.arg(script).args(arguments).env("PYTHONIOENCODING", "utf-8");
    Process::start(command)
}

/// Runs a script against a balancer's lines.
fn run(balancer: &Balancer, script: &Path) -> String {
    let lines = balancer.lines();
    let (host, port) = lines.rsplit_once(':').unwrap();
    python(script, &[host, port]).end().success_text()
}

struct Lines {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Lines {
    fn connect(balancer: &Balancer) -> Lines {
        let stream = TcpStream::connect(balancer.lines()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Lines { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the connection has ended: {line}");
        line.pop();
        line
    }

    fn asks(&mut self, line: &str) -> String {
        self.say(&format!("{line}\n"));
        self.hear()
    }
}

#[test]
fn the_clients_of_the_page_are_served_by_a_worker_of_ours() {
    let folder = folder();
    let balancer = Balancer::start_with(&ANY_PORT);
    let _worker = balancer.worker("ours");
    let said = run(&balancer, &script(&folder, "json_client.py", 15));
    assert_eq!(said, "HOLA\nMAÑANA\nTWO\nLINES\n");
    let said = run(&balancer, &script(&folder, "word_client.py", 15));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["HOLA", "amor"]);
    assert!(lines[2].starts_with("error: store_unavailable "), "{said}");
    assert!(lines[3].starts_with("error: worker_failed sum: 'x' "), "{said}");
}

#[test]
fn the_pipe_worker_of_the_page_serves_the_pipe_client_of_the_page_and_ours() {
    let folder = folder();
    let balancer = Balancer::start_with(&ANY_PORT);
    let lines = balancer.lines();
    let (host, port) = lines.rsplit_once(':').unwrap();
    let mut worker = python(&script(&folder, "pipe_worker.py", 15), &[host, port, "ana"]);
    assert_eq!(worker.line_after("ACK|"), "ana");
    let said = run(&balancer, &script(&folder, "pipe_client.py", 15));
    assert_eq!(said, "RESULT 0 HOLA\nRESULT 1 A|B\nRESULT 2 TWO\nLINES\nRESULT 3 C:\\NEW\n");
    let input: String = (0..2_000).map(|number| format!("line {number}\n")).collect();
    let back = balancer.submit_input(["default", "--lines", "-"], input.clone()).success_text();
    assert!(back == input.to_uppercase());
    let status = balancer.worker_status("ana").unwrap();
    assert_eq!((status.threads, status.done), (1, 2_004));
}

#[test]
fn background_tasks_are_handed_over_and_fetched_in_words_and_in_json() {
    let data = folder();
    let mut command = reparto(["balancer", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"]);
    command.args(ANY_PORT).arg("--data").arg(&data).env_remove("REPARTO_BALANCER_NO_DATA");
    let balancer = Balancer::from_command(command);
    let mut words = Lines::connect(&balancer);
    let accepted = words.asks("bg upper hola");
    let id = accepted.strip_prefix("accepted ").unwrap().to_owned();
    let mut json = Lines::connect(&balancer);
    let said = json.asks(&format!(r#"{{"id":1,"fetch":"{id}"}}"#));
    assert!(said.starts_with(r#"{"id":1,"status":"queued","task_id":""#), "{said}");
    let _worker = balancer.worker("ours");
    assert_eq!(words.asks(&format!("get {id}")), "HOLA");
    let said = json.asks(&format!(r#"{{"id":2,"fetch":"{id}"}}"#));
    let result = r#""result":{"ok":true,"data":"HOLA"}"#;
    assert_eq!(said, format!(r#"{{"id":2,"status":"done","task_id":"{id}",{result}}}"#));
    let line = r#"{"id":3,"action":"sum","payload":"x","background":true,"idempotency_key":"k"}"#;
    let said = json.asks(line);
    let (_, id) = said.split_once(r#""status":"accepted","task_id":""#).unwrap();
    let id = id.strip_suffix("\"}").unwrap().to_owned();
    assert!(json.asks(line).ends_with(&format!(r#""task_id":"{id}","duplicate":true}}"#)));
    let said = json.asks(&format!(r#"{{"id":4,"fetch":"{id}","wait_ms":60000}}"#));
    assert!(said.contains(r#""status":"error""#) && said.contains(r#""code":"worker_failed""#), "{said}");
    assert!(words.asks(&format!("get {id}")).starts_with("error: worker_failed "));
    assert!(words.asks("get 01a1fae9-bf00-7bc4-8fb6-b7b3892ac894").starts_with("error: not_found "));
}

/// A server of the page, at a port.
fn server(script: &Path, port: &str) -> (Process, String) {
    let mut server = python(script, &[port]);
    let port = server.line_after("listening on ");
    (server, port)
}

/// A balancer with these servers as its upstreams, which are connected.
fn with_upstreams(ports: &[String], options: &str) -> Balancer {
    let upstreams: Vec<String> =
        ports.iter().map(|port| format!("lines://127.0.0.1:{port}{options}")).collect();
    let mut flags = vec!["--lines", "127.0.0.1:0", "--lines-action", "greet"];
    upstreams.iter().for_each(|upstream| flags.extend(["--upstream", upstream]));
    let balancer = Balancer::start_with(&flags);
    wait_until("the upstreams are connected", || balancer.status().workers.len() == ports.len());
    balancer
}

/// How many of the greetings came from which server.
fn by_server(greetings: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for greeting in greetings {
        let (_, port) = greeting.rsplit_once(" from ").unwrap_or_else(|| panic!("{greeting}"));
        *counts.entry(port.to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn three_servers_of_the_page_share_tasks_evenly_and_one_that_is_killed_loses_nothing() {
    let folder = folder();
    let path = script(&folder, "servers.py", 30);
    let (mut servers, ports): (Vec<Process>, Vec<String>) = (0..3).map(|_| server(&path, "0")).unzip();
    let balancer = with_upstreams(&ports, "");
    let mut client = Lines::connect(&balancer);
    assert!(
        client.asks(r#"{"id":1,"action":"greet","data":"Ana"}"#).contains(r#""output":"Hola, Ana, from "#)
    );
    let names: String = (0..300).map(|number| format!("name {number}\n")).collect();
    // Whoever is free gets the next: a hundred each, but for what the machine makes one of them wait.
    wait_until("they are shared evenly", || {
        let said = balancer.submit_input(["greet", "--lines", "-"], names.clone()).success_text();
        let counts = by_server(said.lines().map(str::to_owned));
        counts.len() == 3 && counts.values().all(|count| *count >= 60)
    });
    let mut submit = balancer.submitting(["greet", "--lines", "-"]);
    let names: Vec<String> = (0..3_000).map(|number| format!("name {number}")).collect();
    submit.write(names.join("\n") + "\n");
    wait_until("some are answered", || submit.stdout().lines().count() > 100);
    servers.remove(0).kill();
    submit.close_input();
    let said = submit.end().success_text();
    assert_eq!(said.lines().count(), 3_000);
    for (name, greeting) in names.iter().zip(said.lines()) {
        assert!(greeting.starts_with(&format!("Hola, {name}, from ")), "{name}: {greeting}");
    }
    assert_eq!(balancer.status().workers.len(), 2);
    // It comes back at its port, and is connected to again by itself.
    let _again = server(&path, &ports[0]);
    wait_until("it is connected again", || balancer.status().workers.len() == 3);
}

#[test]
fn a_server_is_asked_several_things_at_once_only_if_it_repeats_ids() {
    let folder = folder();
    let path = folder.join("slow.py");
    // Each answers in the order asked, and says how many questions have come before its answer.
    std::fs::write(
        &path,
        r#"
import json, socket, sys, threading, time
listener = socket.create_server(("127.0.0.1", 0))
print("listening on", listener.getsockname()[1], flush=True)
sock, _ = listener.accept()
lines, seen, answered = sock.makefile("rw"), [], 0
def read():
    for line in lines:
        seen.append(json.loads(line))
threading.Thread(target=read, daemon=True).start()
while True:
    time.sleep(0.02)
    if len(seen) > answered:
        request = seen[answered]
        answer = {"result": str(len(seen) - answered)}
        if sys.argv[1] == "repeats":
            answer["id"] = request["id"]
        answered += 1
        sock.sendall(json.dumps(answer).encode() + b"\n")
"#,
    )
    .unwrap();
    for (how, most) in [("repeats", 4), ("does not", 1)] {
        let mut server = python(&path, &[how]);
        let port = server.line_after("listening on ");
        let balancer = with_upstreams(&[port], "?threads=4&member=payload");
        let names: String = (0..40).map(|number| format!("{number}\n")).collect();
        let said = balancer.submit_input(["greet", "--lines", "-"], names).success_text();
        let at_once: Vec<u32> = said.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!((at_once.len(), at_once.iter().max()), (40, Some(&most)), "{how}: {at_once:?}");
    }
}

#[test]
fn an_upstream_that_is_not_there_yet_is_connected_to_when_it_comes() {
    let folder = folder();
    let path = script(&folder, "servers.py", 30);
    let (first, port) = server(&path, "0");
    first.kill();
    let upstream = format!("lines://localhost:{port}?actions=hello,bye");
    let balancer =
        Balancer::start_with(&["--lines", "127.0.0.1:0", "--upstream", &upstream, "--grace", "100ms"]);
    let mut client = Lines::connect(&balancer);
    client.say("hello Ana\n");
    let _server = server(&path, &port);
    assert_eq!(client.hear(), format!("Hola, Ana, from {port}"));
    let worker = balancer.status().workers.remove(0);
    assert_eq!(
        (worker.id, worker.actions),
        (format!("lines://localhost:{port}"), vec!["hello".into(), "bye".into()])
    );
}

#[test]
fn what_cannot_be_an_upstream_or_an_address_is_refused_at_the_start() {
    for (flags, said) in [
        (vec!["--upstream", "9001"], "no upstream"),
        (vec!["--upstream", "http://127.0.0.1:9001"], "it does not begin with lines://"),
        (vec!["--upstream", "lines://127.0.0.1:9001?threads=0"], "threads must be 1 to 65536"),
        (vec!["--upstream", "lines://a:1", "--upstream", "lines://a:1?actions=x"], "names lines://a:1 twice"),
        (vec!["--lines", "nowhere"], "--lines 'nowhere' is no address"),
        (vec!["--lines-action", ""], "lines_action"),
    ] {
        let mut all = vec!["balancer", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"];
        all.extend(flags);
        let error = support::run(all).failure(2);
        assert!(error.contains(said), "{error}");
    }
}
