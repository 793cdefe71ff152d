//! Lines of text over sockets: every form, beside native clients and workers, and what becomes of peers that leave.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use reparto_balancer::Settings;
use reparto_protocol::{Actions, FrameType, HeldTasks, Message, Outcome, Register, Role, Status, TaskResult};
use support::{PATIENCE, Served, Wire, done, echo_worker, serve, settings, task, wait_until};

/// A connection that speaks lines.
struct Lines {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Lines {
    fn connect(address: SocketAddr) -> Lines {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Lines { stream, reader }
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// The next line, without its end; `None` when the connection has ended.
    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.strip_suffix('\n').expect("a whole line").to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("nothing came within {PATIENCE:?}: {error}"),
        }
    }

    fn asks(&mut self, line: &str) -> String {
        self.say(format!("{line}\n"));
        self.hear().expect("an answer")
    }

    /// No more will be said.
    fn ends(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// What the status report says of a number.
fn total(served: &Served, name: &str) -> u64 {
    let mut wire = Wire::client(served);
    wire.send(&Message::Status(Status { id: 1, offset: 0, limit: 0 }));
    let report = wire.expect(FrameType::StatusReport);
    let report: serde_json::Value = serde_json::from_slice(report.as_frame().payload).unwrap();
    report["totals"][name].as_u64().unwrap()
}

/// A native worker that holds what it is given until it is told to go on.
fn holding_worker(served: &Served) -> Wire {
    Wire::worker(served, "holding", 1000)
}

#[test]
fn each_form_of_client_is_served_by_a_native_worker() {
    let served = serve(settings());
    let _worker = echo_worker(&served, "w");
    let mut json = Lines::connect(served.lines);
    assert_eq!(
        json.asks(r#"{"id": 1, "action": "echo", "payload": "hola"}"#),
        r#"{"id":1,"status":"done","result":{"ok":true,"data":"hola"}}"#
    );
    let input = r#"{"id": "a", "action": "echo", "data": {"b": [1]}}"#;
    assert_eq!(
        json.asks(input),
        format!(r#"{{"id":"a","status":"ok","input":{input},"output":{{"b": [1]}}}}"#)
    );
    let mut words = Lines::connect(served.lines);
    assert_eq!(words.asks("echo hola mundo"), "hola mundo");
    assert_eq!(words.asks("echo"), "");
    assert!(words.asks("help").starts_with("actions: echo; write ACTION PAYLOAD"));
    words.say("echo one\nquit\necho two\n");
    assert_eq!((words.hear().as_deref(), words.hear()), (Some("one"), None));
    served.stop();
}

#[test]
fn a_pipe_client_and_a_pipe_worker_meet_at_the_action_of_lines_that_name_none() {
    let served = serve(Settings { lines_action: "echo".into(), ..settings() });
    let mut worker = Lines::connect(served.lines);
    assert_eq!(worker.asks("REGISTER|ana"), "ACK|ana");
    let mut client = Lines::connect(served.lines);
    client.say("TASK|7|a|b\\n\n");
    let line = worker.hear().unwrap();
    let fields: Vec<&str> = line.splitn(3, '|').collect();
    let ["ASSIGN_TASK", id, "a|b\\n"] = fields[..] else { panic!("{line}") };
    worker.say(format!("TASK_RESULT|{id}|c\\\\\n"));
    assert_eq!(client.hear().unwrap(), r"RESULT|7|c\\");
    let mut native = Wire::client(&served);
    native.send(&task(1, b"\xff\x00\n"));
    let line = worker.hear().unwrap();
    let fields: Vec<&str> = line.splitn(3, '|').collect();
    let ["ASSIGN_TASK", id, "\\xff\0\\n"] = fields[..] else { panic!("{line}") };
    worker.say(format!("TASK_RESULT|{id}|\\x00\\xfe\n"));
    assert_eq!(native.expect(FrameType::Result).as_frame().payload, b"\x00\xfe");
    client.say("TASK|8|x\n");
    let line = worker.hear().unwrap();
    worker.say(format!("ERROR|{}|no luck\n", line.split('|').nth(1).unwrap()));
    assert_eq!(client.hear().unwrap(), "ERROR|8|worker_failed|no luck");
    let mut second = Lines::connect(served.lines);
    let refused = second.asks("REGISTER|ana");
    assert!(refused.starts_with("ERROR||duplicate_worker|"), "{refused}");
    assert_eq!(second.hear(), None);
    served.stop();
}

#[test]
fn a_client_that_closed_only_its_sending_side_gets_all_its_answers_and_then_the_end() {
    let served = serve(settings());
    let mut worker = holding_worker(&served);
    // The last line has no end.
    for (lines, answers) in [
        ("echo a\necho b", vec!["a", "b"]),
        (
            "{\"id\":1,\"action\":\"echo\",\"payload\":\"a\"}",
            vec![r#"{"id":1,"status":"done","result":{"ok":true,"data":"a"}}"#],
        ),
    ] {
        let mut client = Lines::connect(served.lines);
        client.say(lines);
        client.ends();
        let assigned: Vec<_> = answers.iter().map(|_| worker.expect(FrameType::AssignTask)).collect();
        for frame in assigned.iter().rev() {
            worker.send(&done(frame.as_frame().id, frame.as_frame().payload));
        }
        for answer in answers {
            assert_eq!(client.hear().as_deref(), Some(answer));
        }
        assert_eq!(client.hear(), None);
    }
    let mut silent = Lines::connect(served.lines);
    silent.ends();
    assert_eq!(silent.hear(), None);
    served.stop();
}

#[test]
fn a_client_that_is_reset_after_it_closed_its_sending_side_is_gone() {
    let served = serve(settings());
    let mut worker = holding_worker(&served);
    let mut client = Lines::connect(served.lines);
    client.say("echo a\n");
    client.ends();
    let assigned = worker.expect(FrameType::AssignTask);
    wait_until("it is a client", || total(&served, "clients") == 2);
    socket2::SockRef::from(&client.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    // The question itself comes from a client.
    wait_until("it is gone", || total(&served, "clients") == 1);
    assert_eq!(worker.expect(FrameType::Cancel).as_frame().id, assigned.as_frame().id);
    served.stop();
}

#[test]
fn payloads_of_8_mib_and_every_byte_value_pass_through_every_form() {
    let served = serve(Settings { lines_action: "echo".into(), ..settings() });
    let _worker = echo_worker(&served, "w");
    let large = "ñ\\".repeat(8 * 1024 * 1024 / 3);
    let mut json = Lines::connect(served.lines);
    let answer = json.asks(&serde_json::json!({"id": 1, "action": "echo", "payload": large}).to_string());
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["result"]["data"].as_str().unwrap() == large);
    let escaped = large.replace('\\', "\\\\");
    let mut pipes = Lines::connect(served.lines);
    assert!(pipes.asks(&format!("TASK|1|{escaped}")) == format!("RESULT|1|{escaped}"));
    let mut words = Lines::connect(served.lines);
    assert!(words.asks(&format!("echo {escaped}")) == escaped);
    let every: String = (0..=255).map(|byte| format!("\\x{byte:02x}")).collect();
    let back = pipes.asks(&format!("TASK|2|{every}"));
    let expected = pipes.asks(&format!("TASK|2|{}", back.strip_prefix("RESULT|2|").unwrap()));
    assert_eq!(back, expected);
    assert!(back.contains("\\n") && back.contains("\\\\") && back.ends_with("\\xfe\\xff"), "{back}");
    served.stop();
}

#[test]
fn a_line_over_the_bound_costs_one_error_and_the_next_is_answered() {
    let served = serve(Settings { max_frame_bytes: 128 << 10, ..settings() });
    let _worker = echo_worker(&served, "w");
    let mut client = Lines::connect(served.lines);
    assert_eq!(client.asks("echo a"), "a");
    client.say(vec![b'x'; 3 << 20]);
    client.say("\necho b\n");
    assert_eq!(client.hear().unwrap(), "error: payload_too_large the line is longer than 131072 bytes");
    assert_eq!(client.hear().unwrap(), "b");
    served.stop();
}

#[test]
fn more_lines_than_may_wait_are_answered_one_after_the_other() {
    let served = serve(settings());
    let _worker = echo_worker(&served, "w");
    for (line, answer) in [
        ("echo N", "N"),
        (
            r#"{"id":N,"action":"echo","payload":"x"}"#,
            r#"{"id":N,"status":"done","result":{"ok":true,"data":"x"}}"#,
        ),
    ] {
        let mut client = Lines::connect(served.lines);
        let mut sender = client.stream.try_clone().unwrap();
        let all: String = (0..40_000).map(|n| line.replace('N', &n.to_string()) + "\n").collect();
        let writing = std::thread::spawn(move || {
            sender.write_all(all.as_bytes()).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut answers: Vec<String> = std::iter::from_fn(|| client.hear()).collect();
        let mut expected: Vec<String> = (0..40_000).map(|n| answer.replace('N', &n.to_string())).collect();
        if line.starts_with('{') {
            answers.sort_unstable();
            expected.sort_unstable();
        }
        assert!(answers == expected, "{} answers", answers.len());
        writing.join().unwrap();
    }
    served.stop();
}

/// A worker of pipes that gives everything back, and ends after `most` answers.
fn pipe_worker(address: SocketAddr, id: &str, most: usize) -> std::thread::JoinHandle<()> {
    let mut worker = Lines::connect(address);
    assert_eq!(worker.asks(&format!("REGISTER|{id}|echo|8")), format!("ACK|{id}"));
    std::thread::spawn(move || {
        for _ in 0..most {
            let Some(line) = worker.hear() else { return };
            let answer = line.replacen("ASSIGN_TASK", "TASK_RESULT", 1) + "\n";
            if worker.stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_pipe_worker_that_dies_under_load_loses_nothing() {
    let served = serve(settings());
    let doomed = pipe_worker(served.lines, "doomed", 500);
    let _steady = pipe_worker(served.lines, "steady", usize::MAX);
    let mut native = Wire::client(&served);
    let mut lines = Lines::connect(served.lines);
    for id in 1..=2000 {
        native.send(&task(id, id.to_string().as_bytes()));
        lines.say(format!("echo {id}\n"));
    }
    let mut seen = vec![false; 2001];
    for _ in 0..2000 {
        let frame = native.expect(FrameType::Result);
        let id = frame.as_frame().id;
        assert_eq!(frame.as_frame().payload, id.to_string().as_bytes());
        assert!(!std::mem::replace(&mut seen[id as usize], true), "{id} is answered twice");
    }
    for id in 1..=2000 {
        assert_eq!(lines.hear(), Some(id.to_string()));
    }
    // It has died by now, unless it got so little time that the other was faster.
    served.stop();
    doomed.join().unwrap();
}

#[test]
fn a_worker_of_lines_is_not_asked_whether_it_is_there() {
    let mut settings = settings();
    settings.scheduler.heartbeat = std::time::Duration::from_millis(20);
    settings.scheduler.silence = std::time::Duration::from_millis(60);
    let served = serve(settings);
    let mut worker = Lines::connect(served.lines);
    assert_eq!(worker.asks("REGISTER|ana|echo"), "ACK|ana");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut client = Lines::connect(served.lines);
    client.say("echo x\n");
    assert!(worker.hear().unwrap().starts_with("ASSIGN_TASK|"));
    served.stop();
}

#[test]
fn a_failed_task_is_told_with_its_code() {
    let served = serve(settings());
    let mut worker = Wire::hello(served.workers, Role::Worker);
    let register = Register {
        id: 1,
        worker_id: "w",
        threads: 4,
        window: 4,
        weight: 1,
        service_ns: None,
        held: HeldTasks::NONE,
        actions: Actions::new(&["fail"]),
    };
    worker.send(&Message::Register(register));
    worker.expect(FrameType::Ack);
    let mut client = Lines::connect(served.lines);
    client.say("fail x\n");
    let id = worker.expect(FrameType::AssignTask).as_frame().id;
    let outcome = Outcome::Failed;
    worker.send(&Message::TaskResult(TaskResult {
        id,
        outcome,
        message: "no\nluck",
        service_ns: None,
        payload: b"",
    }));
    assert_eq!(client.hear().unwrap(), r"error: worker_failed no\nluck");
    assert!(client.asks("bg fail x").starts_with("error: store_unavailable "));
    served.stop();
}

#[test]
fn malformed_lines_end_no_connection_and_one_too_many_is_told() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let served = serve(Settings { max_connections: 8, ..settings() });
    let _worker = echo_worker(&served, "healthy");
    let mut healthy = Wire::client(&served);
    let mut peers: Vec<(Lines, &str)> = [
        r#"{"id":1,"action":"echo","payload":"x"}"#,
        "echo hola",
        "TASK|1|a",
        "REGISTER|malformed|never asked for",
    ]
    .map(|line| (Lines::connect(served.lines), line))
    .into();
    for (peer, line) in &mut peers {
        peer.asks(if line.starts_with("TASK") { "TASK|1" } else { line });
    }
    for round in 0..10_000 {
        let (peer, line) = &mut peers[random.usize(..4)];
        let mut bytes = line.as_bytes().to_vec();
        for _ in 0..random.usize(..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(b' '..);
        }
        // So it is no text, whatever else it is.
        let at = random.usize(..bytes.len());
        bytes[at] = 0xff;
        bytes.push(b'\n');
        peer.say(&bytes);
        let answer = peer.hear().expect("it lives on");
        assert!(answer.contains("bad_frame"), "{answer}");
        if round % 1000 == 0 {
            healthy.round_trip(round + 1, b"healthy");
        }
    }
    let _more: Vec<Lines> = (0..2).map(|_| Lines::connect(served.lines)).collect();
    let mut last = Lines::connect(served.lines);
    assert!(last.hear().unwrap().starts_with("error: overloaded 8 connections are open"));
    drop(peers);
    wait_until("nothing of them is left", || {
        healthy.send(&Message::Status(Status { id: 1, offset: 0, limit: 0 }));
        let report = healthy.expect(FrameType::StatusReport);
        let report: serde_json::Value = serde_json::from_slice(report.as_frame().payload).unwrap();
        let totals = &report["totals"];
        totals["clients"] == 1 && totals["workers"] == 1 && totals["queued"] == 0 && totals["running"] == 0
    });
    served.stop();
}

#[test]
fn whole_lines_behind_a_long_one_are_answered_though_the_next_is_not_whole() {
    let served = serve(settings());
    let _worker = echo_worker(&served, "w");
    let mut lines = Lines::connect(served.lines);
    let long = "x".repeat(100_000);
    for _ in 0..3 {
        // Two pieces, so that the line is put together.
        lines.say(format!("echo {long}"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        lines.say("\n");
        assert_eq!(lines.hear().as_deref(), Some(&*long));
        lines.say("echo a\necho b\necho c");
        assert_eq!((lines.hear().as_deref(), lines.hear().as_deref()), (Some("a"), Some("b")));
        lines.say("\n");
        assert_eq!(lines.hear().as_deref(), Some("c"));
    }
    served.stop();
}
