//! Lines with bytes alone: what each asks for, how it is answered, and what becomes of lines that are none.

use std::time::Duration;

use super::*;
use crate::background::Ask;
use crate::dialect::{OwnedEvent, OwnedRegistration};
use crate::scheduler::{Policy, Standing};

const PEER: Peer = Peer { index: 7, generation: 3 };

fn context() -> Context {
    Context {
        clients: ([127, 0, 0, 1], 8888).into(),
        workers: ([127, 0, 0, 1], 8889).into(),
        max_frame_bytes: 64 * 1024,
        heartbeat: Duration::from_secs(5),
        silence: Duration::from_secs(15),
        policy: Policy::default(),
        has_store: true,
        lines_action: "default".into(),
        gearman: std::sync::Arc::default(),
    }
}

/// A connection without a socket: what it said is what the scheduler would hear of it.
struct Talk {
    session: Session,
    kept: Vec<u8>,
    out: Output,
    said: Vec<Said>,
}

#[derive(Debug, PartialEq)]
enum Said {
    Joined,
    Event(OwnedEvent),
    Ask(Ask),
    Status(u64),
    Full,
    End,
}

impl Talk {
    fn new() -> Talk {
        Talk { session: Session::new(), kept: Vec::new(), out: Output::default(), said: Vec::new() }
    }

    /// Takes bytes in as the reactor does.
    fn hears(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !self.kept.is_empty() {
            let length = self.session.frame_bytes(&context(), &self.kept, rest);
            if self.kept.len() >= length {
                let frame = Bytes::from(std::mem::take(&mut self.kept));
                assert_eq!(self.decode(&frame), frame.len(), "a line is taken whole");
                break;
            }
            if rest.is_empty() {
                return;
            }
            let taken = (length - self.kept.len()).min(rest.len());
            self.kept.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
        }
        let chunk = Bytes::copy_from_slice(rest);
        let taken = self.decode(&chunk);
        if taken < chunk.len() {
            assert!(self.session.frame_bytes(&context(), &chunk[taken..], &[]) > chunk.len() - taken);
        }
        self.kept.extend_from_slice(&chunk[taken..]);
        assert!(self.kept.len() <= 64 * 1024, "{} bytes are kept", self.kept.len());
    }

    fn decode(&mut self, chunk: &Bytes) -> usize {
        let mut from = 0;
        loop {
            let said =
                match self.session.decode(&context(), PEER, chunk, &mut from).expect("lines end nothing") {
                    Step::Incomplete => return from,
                    Step::Nothing => continue,
                    Step::Event(Event::ClientJoined { peer: PEER }) => Said::Joined,
                    Step::Owned(event) => Said::Event(*event),
                    Step::Ask(ask) => Said::Ask(ask),
                    Step::Answer(Answer::Status { id, .. }, None) => Said::Status(id),
                    Step::Answer(answer, None) => {
                        self.session.answer(&answer, &mut self.out);
                        continue;
                    }
                    Step::Full => Said::Full,
                    Step::End => Said::End,
                    other => panic!("{other:?}"),
                };
            let over = matches!(said, Said::Full | Said::End);
            self.said.push(said);
            if over {
                return chunk.len();
            }
        }
    }

    /// What it has said since the last look.
    fn said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    /// The tasks among that: the number, action and payload of each.
    fn tasks(&mut self) -> Vec<(u64, String, Bytes)> {
        let task = |said| match said {
            Said::Event(OwnedEvent::Submit(task)) => Some((task.id, task.action.into(), task.payload)),
            _ => None,
        };
        self.said().into_iter().filter_map(task).collect()
    }

    fn result(&mut self, id: u64, payload: &[u8]) {
        self.session.result(id, Payload::new(payload), &mut self.out);
    }

    fn fails(&mut self, id: u64, message: &'static str) {
        let (code, message) = (ErrorCode::WorkerFailed, message.into());
        let effect = Effect::Fail { peer: PEER, id, code, message, payload: Payload::EMPTY };
        self.session.encode(effect, &mut self.out);
    }

    fn store_says(&mut self, id: u64, answer: StoreAnswer<'_>) {
        self.session.encode(Effect::Answer { peer: PEER, id, answer }, &mut self.out);
    }

    fn assigns(&mut self, id: u64, action: &str, payload: &[u8]) {
        let details = Assignment::first(action, Payload::new(payload));
        self.session.assign(AssignmentId(id), &details, &mut self.out);
    }

    /// What was written to it since the last look.
    fn reads(&mut self) -> String {
        let mut slices = vec![std::io::IoSlice::new(&[]); self.out.pieces()];
        self.out.slices(&mut slices);
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.out.advance(bytes.len());
        String::from_utf8(bytes).expect("lines are text")
    }
}

fn submitted(talk: &mut Talk, line: &str) -> (u64, String, Bytes) {
    talk.hears(format!("{line}\n").as_bytes());
    let mut tasks = talk.tasks();
    assert_eq!((tasks.len(), talk.reads()), (1, String::new()), "{line}");
    tasks.remove(0)
}

const UUID: &str = "01a1fae9-bf00-7bc4-8fb6-b7b3892ac894";

fn uuid() -> [u8; 16] {
    *uuid::Uuid::parse_str(UUID).expect("an id").as_bytes()
}

fn standing(state: reparto_protocol::TaskState) -> StoreAnswer<'static> {
    let standing = Standing {
        task: uuid(),
        state,
        attempts: 1,
        created_at_ms: 0,
        due_at_ms: None,
        ended_at_ms: None,
        progress: (0, 0),
    };
    StoreAnswer::Standing { standing, payload: Payload::EMPTY }
}

// ---- whatever the form ----

#[test]
fn any_split_of_the_stream_asks_for_the_same() {
    let long = "x".repeat(3000);
    let json = format!(
        "{{\"id\":1,\"action\":\"a\",\"payload\":\"\\u00f1\"}}\r\n\n{{\"id\":2,\"action\":\"b\",\"payload\":\"{long}\"}}\nno\n"
    );
    let words = format!("upper hola \r\n\nbg a {long}\nñ\nhelp\n");
    let pipes = format!("TASK|1|a\\nb\nTASK|2|{long}\nTASK\n");
    let worker = "REGISTER|w\nTASK_RESULT|1|x\n".to_owned();
    for stream in [json, words, pipes, worker] {
        let mut whole = Talk::new();
        whole.hears(stream.as_bytes());
        let (said, read) = (whole.said(), whole.reads());
        assert!(!said.is_empty());
        for piece in [1, 2, 3, 7, 100, 2999, 3001] {
            let mut talk = Talk::new();
            stream.as_bytes().chunks(piece).for_each(|chunk| talk.hears(chunk));
            assert_eq!((talk.said(), talk.reads()), (said_again(&said), read.clone()), "pieces of {piece}");
        }
    }
}

fn said_again(said: &[Said]) -> Vec<Said> {
    said.iter()
        .map(|said| match said {
            Said::Joined => Said::Joined,
            Said::Event(event) => Said::Event(event.clone()),
            Said::Ask(ask) => Said::Ask(ask.clone()),
            Said::Status(id) => Said::Status(*id),
            Said::Full => Said::Full,
            Said::End => Said::End,
        })
        .collect()
}

#[test]
fn a_line_that_is_too_long_is_passed_over_with_one_error_and_the_next_is_read() {
    for (first, next) in [
        ("{\"id\":1,\"action\":\"a\"}\n", "{\"id\":2,\"action\":\"a\"}\n"),
        ("upper a\n", "upper b\n"),
        ("TASK|1|a\n", "TASK|2|b\n"),
    ] {
        for piece in [1000, 64 * 1024 - 1, 64 * 1024, 200_000] {
            let mut talk = Talk::new();
            talk.hears(first.as_bytes());
            let id = talk.tasks()[0].0;
            talk.result(id, b"");
            talk.reads();
            let mut stream = vec![b'x'; 150_000];
            stream.push(b'\n');
            stream.chunks(piece).for_each(|chunk| talk.hears(chunk));
            let read = talk.reads();
            assert_eq!(read.lines().count(), 1, "{read}");
            assert!(read.contains("payload_too_large") && read.contains("65536"), "{read}");
            talk.hears(next.as_bytes());
            assert_eq!(talk.tasks().len(), 1);
        }
    }
}

#[test]
fn a_line_that_is_not_utf8_gets_one_error_and_the_next_is_read() {
    for (first, next) in
        [("{\"id\":1}\n", "{\"id\":2,\"action\":\"a\"}\n"), ("", "a\n"), ("TASK|9\n", "TASK|1|\n")]
    {
        let mut talk = Talk::new();
        talk.hears(first.as_bytes());
        talk.reads();
        talk.hears(b"abc\xff\n");
        let read = talk.reads();
        assert_eq!(read.lines().count(), 1);
        assert!(read.contains("bad_frame") && read.contains("not UTF-8, from its byte 4"), "{read}");
        talk.hears(next.as_bytes());
        assert_eq!(talk.tasks().len(), 1);
    }
}

#[test]
fn nothing_that_comes_ends_a_connection_or_goes_without_an_answer() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let streams = [
        "{\"id\":1,\"action\":\"a\",\"payload\":\"x\"}\n{\"id\":[2],\"data\":{\"a\":1},\"background\":true}\n{\"fetch\":\"9\"}\n",
        "upper hola\nbg a b\nget 01a1fae9-bf00-7bc4-8fb6-b7b3892ac894\nhelp\n",
        "TASK|1|a\\n\nTASK|2|\\x41|b\n",
        "REGISTER|w|a,b|4\nTASK_RESULT|1|x\nERROR|2|y\nREGISTER|w\n",
    ];
    for _ in 0..10_000 {
        let mut bytes = streams[random.usize(..streams.len())].as_bytes().to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            match random.u8(..3) {
                0 => bytes[at] = random.u8(..),
                1 => bytes.insert(at, random.u8(..)),
                _ => drop(bytes.remove(at)),
            }
        }
        let mut talk = Talk::new();
        bytes.chunks(random.usize(1..80)).for_each(|chunk| talk.hears(chunk));
        for said in talk.said() {
            match said {
                Said::Event(OwnedEvent::Submit(task)) => talk.result(task.id, b"r"),
                Said::Ask(ask) => talk.fails(ask.id(), "no"),
                Said::Status(id) => talk.session.report(id, &Bytes::from_static(b"{}"), &mut talk.out),
                _ => {}
            }
        }
        assert!(talk.session.is_settled(), "{:?}", bytes.escape_ascii().to_string());
    }
}

#[test]
fn a_connection_keeps_the_form_of_its_first_line() {
    let mut talk = Talk::new();
    talk.hears(b"\n  \nupper a\n");
    assert_eq!(talk.tasks().len(), 1);
    let (_, action, payload) = submitted(&mut talk, "TASK|1|b");
    assert_eq!((&*action, &payload[..]), ("TASK|1|b", &b""[..]));
    let mut talk = Talk::new();
    talk.hears(b"TASK|1|b\n");
    assert_eq!(talk.tasks().len(), 1);
    talk.hears(b"REGISTER|w\n");
    assert!(talk.reads().contains("cannot be a worker's; use another"));
}

#[test]
fn who_does_not_read_its_answers_is_not_read_from() {
    for line in ["{\"action\":\"a\"}\n", "a\n", "TASK|1|\n"] {
        let mut talk = Talk::new();
        talk.hears(line.repeat(20_000).as_bytes());
        let said = talk.said();
        assert_eq!(said.last(), Some(&Said::Full), "{line}");
        assert!(said.len() <= 16_386 && talk.session.is_full());
        talk.result(1, b"");
        assert!(!talk.session.is_full());
    }
}

// ---- JSON ----

#[test]
fn a_request_with_a_payload_gets_its_result() {
    let mut talk = Talk::new();
    let (id, action, payload) = submitted(&mut talk, r#"{"id": 1, "action": "upper", "payload": "hola"}"#);
    assert_eq!((&*action, &payload[..]), ("upper", &b"hola"[..]));
    talk.result(id, b"HOLA");
    assert_eq!(talk.reads(), "{\"id\":1,\"status\":\"done\",\"result\":{\"ok\":true,\"data\":\"HOLA\"}}\n");
    let (id, ..) = submitted(&mut talk, r#"{"id": "x\n", "action": "upper"}"#);
    talk.fails(id, "not \"today\"\n");
    assert_eq!(
        talk.reads(),
        "{\"id\":\"x\\n\",\"status\":\"error\",\"result\":{\"ok\":false,\"error\":\"not \\\"today\\\"\\n\",\"code\":\"worker_failed\"}}\n"
    );
}

#[test]
fn a_request_with_data_gets_itself_and_its_output() {
    let mut talk = Talk::new();
    let (id, action, payload) = submitted(&mut talk, r#"{"id": 1, "action": "greet", "data": "Antonio"}"#);
    assert_eq!((&*action, &payload[..]), ("greet", &b"Antonio"[..]));
    talk.result(id, "Hola, Antonio".as_bytes());
    let input = r#"{"id": 1, "action": "greet", "data": "Antonio"}"#;
    assert_eq!(
        talk.reads(),
        format!("{{\"id\":1,\"status\":\"ok\",\"input\":{input},\"output\":\"Hola, Antonio\"}}\n")
    );
    for (result, output) in [
        (&b"[1,\n 2]"[..], "\"output\":[1,  2]"),
        (b"{\"a\": \"b\"}", "\"output\":{\"a\": \"b\"}"),
        (b"{no}", "\"output\":\"{no}\""),
        (b"15", "\"output\":\"15\""),
        (b"\xff", "\"output_base64\":\"/w==\""),
    ] {
        let (id, ..) = submitted(&mut talk, input);
        talk.result(id, result);
        let read = talk.reads();
        assert!(read.contains(output) && read.lines().count() == 1, "{read}");
        assert!(serde_json::from_str::<serde_json::Value>(&read).is_ok(), "{read}");
    }
    let (id, ..) = submitted(&mut talk, input);
    talk.fails(id, "no");
    assert_eq!(
        talk.reads(),
        format!(
            "{{\"id\":1,\"status\":\"error\",\"input\":{input},\"error\":\"no\",\"code\":\"worker_failed\"}}\n"
        )
    );
}

#[test]
fn payloads_are_the_text_of_strings_and_the_json_of_everything_else() {
    let mut talk = Talk::new();
    for (value, bytes) in [
        (r#""a\u00f1\n\"\\""#, "a\u{f1}\n\"\\"),
        ("\"\"", ""),
        ("{\"a\": [1, 2]}", "{\"a\": [1, 2]}"),
        ("-1.50", "-1.50"),
        ("true", "true"),
        ("null", ""),
    ] {
        let (.., payload) =
            submitted(&mut talk, &format!("{{\"id\":1,\"action\":\"a\",\"payload\":{value}}}"));
        assert_eq!(payload, bytes, "{value}");
    }
    let (.., payload) = submitted(&mut talk, r#"{"action":"a","payload_base64":"AP/+"}"#);
    assert_eq!(&payload[..], b"\x00\xff\xfe");
    let (_, action, _) = submitted(&mut talk, r#"{"data":1}"#);
    assert_eq!(action, "default");
}

#[test]
fn every_byte_value_comes_back_in_json() {
    let all: Vec<u8> = (0..=255).collect();
    let mut talk = Talk::new();
    let (id, ..) = submitted(&mut talk, r#"{"id":1,"action":"a"}"#);
    talk.result(id, &all);
    let read: serde_json::Value = serde_json::from_str(&talk.reads()).expect("JSON");
    let text = read["result"]["data_base64"].as_str().expect("a text");
    let (.., payload) = submitted(&mut talk, &format!("{{\"action\":\"a\",\"payload_base64\":\"{text}\"}}"));
    assert_eq!(&payload[..], all);
    let (id, ..) = submitted(&mut talk, r#"{"id":1,"action":"a"}"#);
    talk.result(id, &all[..128]);
    let read: serde_json::Value = serde_json::from_str(&talk.reads()).expect("JSON");
    assert_eq!(read["result"]["data"].as_str().map(str::as_bytes), Some(&all[..128]));
}

#[test]
fn a_request_keeps_what_it_asks_for() {
    let mut talk = Talk::new();
    talk.hears(
        b"{\"action\":\"a\",\"priority\":9,\"deadline_ms\":1500,\"wait_ms\":7,\"max_attempts\":1,\"key\":\"k\",\"other\":0}\n",
    );
    let Some(Said::Event(OwnedEvent::Submit(task))) = talk.said().pop() else { panic!("no task") };
    assert_eq!((task.priority, task.max_attempts, &task.key[..]), (9, 1, &b"k"[..]));
    assert_eq!(
        (task.deadline, task.wait),
        (Some(Duration::from_millis(1500)), Some(Duration::from_millis(7)))
    );
}

#[test]
fn background_tasks_are_accepted_and_fetched_by_their_ids() {
    let mut talk = Talk::new();
    talk.hears(
        b"{\"id\":1,\"action\":\"a\",\"payload\":\"x\",\"background\":true,\"idempotency_key\":\"k\"}\n",
    );
    let Some(Said::Ask(Ask::Submit(task))) = talk.said().pop() else { panic!("it is kept") };
    assert_eq!((&*task.action, &task.payload[..], &task.idempotency_key[..]), ("a", &b"x"[..], &b"k"[..]));
    talk.store_says(task.id, StoreAnswer::Accepted { task: uuid(), duplicate: false });
    assert_eq!(talk.reads(), format!("{{\"id\":1,\"status\":\"accepted\",\"task_id\":\"{UUID}\"}}\n"));
    let fetch = |talk: &mut Talk| {
        talk.hears(format!("{{\"id\":2,\"fetch\":\"{UUID}\",\"wait_ms\":50}}\n").as_bytes());
        let Some(Said::Ask(Ask::Fetch { id, task, wait, .. })) = talk.said().pop() else {
            panic!("no fetch")
        };
        assert_eq!((task, wait), (uuid(), Duration::from_millis(50)));
        id
    };
    let id = fetch(&mut talk);
    talk.store_says(id, standing(reparto_protocol::TaskState::Running));
    assert_eq!(
        talk.reads(),
        format!("{{\"id\":2,\"status\":\"running\",\"task_id\":\"{UUID}\",\"attempts\":1}}\n")
    );
    let id = fetch(&mut talk);
    talk.result(id, b"X");
    let result = "\"result\":{\"ok\":true,\"data\":\"X\"}";
    assert_eq!(talk.reads(), format!("{{\"id\":2,\"status\":\"done\",\"task_id\":\"{UUID}\",{result}}}\n"));
    talk.hears(b"{\"fetch\":\"none\"}\n");
    assert!(talk.reads().contains("the task's id is none"));
}

#[test]
fn a_wrong_request_is_told_what_is_wrong_by_its_id_where_it_has_one() {
    let mut talk = Talk::new();
    talk.hears(b"{\"id\":1,\"action\":\"a\"}\n");
    let id = talk.tasks()[0].0;
    talk.result(id, b"");
    talk.reads();
    for (line, id, part) in [
        ("{\"id\":1", "null", "EOF"),
        ("hola", "null", "it is no object"),
        ("[]", "null", "it is no object"),
        ("{\"id\":7,\"priority\":\"high\"}", "7", "expected u8"),
        ("{\"id\":7}", "7", "neither an action nor a payload"),
        ("{\"id\":7,\"action\":\"\"}", "7", "there is no action"),
        ("{\"id\":7,\"action\":\"a\",\"payload\":\"\\ud800\"}", "7", ""),
        ("{\"id\":7,\"action\":\"a\",\"payload_base64\":\"?\"}", "7", "payload_base64"),
        ("{\"id\":7,\"action\":1}", "7", "expected a string"),
    ] {
        talk.hears(format!("{line}\n").as_bytes());
        let read = talk.reads();
        let json: serde_json::Value =
            serde_json::from_str(&read).unwrap_or_else(|_| panic!("{line}: {read}"));
        assert_eq!(json["id"].to_string(), id, "{line}: {read}");
        assert_eq!(json["result"]["code"], "bad_frame", "{line}: {read}");
        assert!(json["result"]["error"].as_str().is_some_and(|error| error.contains(part)), "{line}: {read}");
    }
    talk.hears(format!("{{\"id\":\"{}\",\"action\":\"a\"}}\n", "x".repeat(300)).as_bytes());
    assert!(talk.reads().contains("over the bound of 255"));
    let junk = "x".repeat(60_000);
    talk.hears(format!("{{\"action\":\"a\",\"data\":\"\",\"junk\":\"{junk}\"}}\n").as_bytes());
    assert_eq!(talk.tasks().len(), 1, "it is within the bound");
}

#[test]
fn requests_that_are_to_be_repeated_are_bounded_by_their_bytes() {
    let mut talk = Talk::new();
    let line = format!("{{\"action\":\"a\",\"data\":\"{}\"}}\n", "x".repeat(60_000));
    for _ in 0..30 {
        talk.hears(line.as_bytes());
    }
    let said = talk.said();
    assert!(said.contains(&Said::Full) && said.len() < 40, "{}", said.len());
}

// ---- pipes ----

#[test]
fn a_client_of_pipes_has_its_results_by_its_own_ids() {
    let mut talk = Talk::new();
    let (first, action, payload) = submitted(&mut talk, r"TASK|7|a|b\nc\\\x00");
    assert_eq!((&*action, &payload[..]), ("default", &b"a|b\nc\\\0"[..]));
    let (second, ..) = submitted(&mut talk, "TASK|eight|");
    talk.result(second, b"");
    talk.result(first, b"x\ny|\xff");
    assert_eq!(talk.reads(), "RESULT|eight|\nRESULT|7|x\\ny|\\xff\n");
    let (id, ..) = submitted(&mut talk, "TASK|9|x");
    talk.fails(id, "one\ntwo");
    assert_eq!(talk.reads(), "ERROR|9|worker_failed|one\\ntwo\n");
    for (line, said) in [
        ("TASK|7", "ERROR|7|bad_frame|write TASK|task_id|data\n"),
        ("HOLA|7", "ERROR||bad_frame|'HOLA' is no line of a client's; write TASK|task_id|data\n"),
        (
            r"TASK|7|\q",
            "ERROR|7|bad_frame|'\\\\q' is no escape; write \\\\\\\\ for a backslash, \\\\n, \\\\r, or \\\\x and two hexadecimal digits\n",
        ),
    ] {
        talk.hears(format!("{line}\n").as_bytes());
        assert_eq!(talk.reads(), said);
    }
}

#[test]
fn a_worker_of_pipes_registers_is_given_tasks_and_answers_them() {
    let mut talk = Talk::new();
    talk.hears(b"REGISTER|ana\r\n");
    let registration =
        OwnedRegistration { worker_id: "ana".into(), threads: 1, actions: vec!["default".into()] };
    assert_eq!(talk.said(), [Said::Event(OwnedEvent::Register(registration))]);
    talk.session.encode(Effect::Acknowledge { peer: PEER, request: 0, window: 1 }, &mut talk.out);
    talk.assigns(1 << 32, "default", b"a\nb");
    assert_eq!(talk.reads(), "ACK|ana\nASSIGN_TASK|4294967296|a\\nb\n");
    talk.hears(b"TASK_RESULT|4294967296|x|\\xff\n");
    let done = OwnedEvent::Done { assignment: AssignmentId(1 << 32), payload: b"x|\xff"[..].into() };
    assert_eq!(talk.said(), [Said::Event(done)]);
    for line in ["TASK_RESULT|4294967296|again", "TASK_RESULT|-1|x", "ERROR|x|y"] {
        talk.hears(format!("{line}\n").as_bytes());
        let read = talk.reads();
        assert!(read.starts_with("ERROR||not_found|this worker has no task '"), "{read}");
    }
    talk.assigns(5, "default", b"");
    talk.hears(b"ERROR|5|no luck\n");
    let failed =
        OwnedEvent::Failed { assignment: AssignmentId(5), message: "no luck".into(), payload: Bytes::new() };
    assert_eq!((talk.said(), talk.reads()), (vec![Said::Event(failed)], "ASSIGN_TASK|5|\n".to_owned()));
    talk.hears(b"TASK|1|x\n");
    assert!(talk.reads().contains("'TASK' is no line of a worker's"));
}

#[test]
fn a_worker_of_several_actions_learns_which_it_is_by_the_tasks_id() {
    let mut talk = Talk::new();
    talk.hears(b"REGISTER|ana|upper, wc|4\n");
    let actions = vec!["upper".into(), "wc".into()];
    let registration = OwnedRegistration { worker_id: "ana".into(), threads: 4, actions };
    assert_eq!(talk.said(), [Said::Event(OwnedEvent::Register(registration))]);
    talk.assigns(9, "wc", b"x");
    assert_eq!(talk.reads(), "ASSIGN_TASK|9/wc|x\n");
    talk.hears(b"TASK_RESULT|9/wc|1\n");
    assert_eq!(talk.said().len(), 1);
}

#[test]
fn a_wrong_registration_is_told_and_another_may_follow() {
    for wrong in ["REGISTER|", "REGISTER|w|a|0", "REGISTER|w|a|x", "REGISTER|w|a,,b", "REGISTER|w|a|1|x"] {
        let mut talk = Talk::new();
        talk.hears(format!("{wrong}\n").as_bytes());
        assert!(talk.reads().starts_with("ERROR||bad_frame|"), "{wrong}");
        talk.hears(b"TASK_RESULT|1|x\n");
        assert!(talk.reads().contains("first"), "{wrong}");
        talk.hears(b"REGISTER|w\n");
        assert_eq!(talk.said().len(), 1, "{wrong}");
    }
}

// ---- plain words ----

#[test]
fn answers_to_words_come_in_the_order_asked() {
    let mut talk = Talk::new();
    talk.hears("upper hola mundo\nupper  ñ \nnothing\nbad \\q\nwc\n".as_bytes());
    let tasks = talk.tasks();
    let asked: Vec<(&str, &[u8])> = tasks.iter().map(|(_, action, bytes)| (&**action, &bytes[..])).collect();
    let expected: [(&str, &[u8]); 4] =
        [("upper", b"hola mundo"), ("upper", " ñ ".as_bytes()), ("nothing", b""), ("wc", b"")];
    assert_eq!(asked, expected);
    talk.result(tasks[3].0, b"0\n1");
    talk.fails(tasks[2].0, "gone");
    talk.result(tasks[1].0, b"two");
    assert_eq!((talk.reads(), talk.out.weight() > 0), (String::new(), true), "they wait for the first");
    talk.result(tasks[0].0, b"one");
    let read = talk.reads();
    assert_eq!(read.lines().take(3).collect::<Vec<_>>(), ["one", "two", "error: worker_failed gone"]);
    assert!(
        read.contains("\nerror: bad_frame '\\\\q' is no escape;") && read.ends_with("\n0\\n1\n"),
        "{read}"
    );
    assert_eq!(talk.out.weight(), 0);
}

#[test]
fn words_hand_over_and_get_background_tasks_and_name_the_actions() {
    let mut talk = Talk::new();
    talk.hears(format!("bg upper hola\nget {UUID}\nget x\nhelp\nquit\nupper x\n").as_bytes());
    let said = talk.said();
    let [
        Said::Joined,
        Said::Ask(Ask::Submit(task)),
        Said::Ask(Ask::Fetch { id, .. }),
        Said::Status(help),
        Said::End,
    ] = &said[..]
    else {
        panic!("{said:?}")
    };
    assert_eq!((&*task.action, &task.payload[..]), ("upper", &b"hola"[..]));
    let report = Bytes::from_static(b"{\"actions\":[{\"name\":\"upper\"},{\"name\":\"wc\"}]}");
    talk.session.report(*help, &report, &mut talk.out);
    assert!(!talk.session.is_settled());
    talk.store_says(task.id, StoreAnswer::Accepted { task: uuid(), duplicate: false });
    talk.store_says(*id, standing(reparto_protocol::TaskState::Queued));
    assert_eq!(
        talk.reads(),
        format!(
            "accepted {UUID}\nerror: not_ended the task is queued; ask again\n\
             error: bad_frame write: get TASK_ID, with an id as 'accepted' gave it\n\
             actions: upper wc; write ACTION PAYLOAD, bg ACTION PAYLOAD, get TASK_ID, help, or quit\n"
        )
    );
    assert!(talk.session.is_settled());
}

#[test]
fn answers_that_wait_for_an_earlier_one_are_bounded_by_their_bytes() {
    let mut talk = Talk::new();
    talk.hears("a\n".repeat(20).as_bytes());
    let large = vec![b'x'; 1 << 20];
    for id in 2..=20 {
        talk.result(id, &large);
    }
    assert!(talk.out.weight() <= (16 << 20) + 1000);
    talk.result(1, b"first");
    let read = talk.reads();
    assert_eq!(read.lines().count(), 20, "each has its answer");
    assert_eq!(
        read.lines().filter(|line| line.starts_with("error: overloaded its answer of 1048577")).count(),
        4
    );
}

// ---- upstreams ----

fn upstream(place: &str) -> Talk {
    let upstream: Upstream = place.parse().expect("an upstream");
    Talk { session: Session::upstream(Arc::new(upstream), &context()), ..Talk::new() }
}

/// A server that was asked once, and gave this answer: how its task ended.
fn answered(line: &str) -> OwnedEvent {
    let mut talk = upstream("lines://h:1");
    talk.assigns(7, "a", b"x");
    talk.hears(format!("{line}\n").as_bytes());
    let mut said = talk.said();
    assert_eq!(said.len(), 1, "{line}: {said:?}");
    let Some(Said::Event(event)) = said.pop() else { panic!("{line}") };
    event
}

#[test]
fn an_upstream_is_registered_and_asked_in_json() {
    let mut talk = upstream("lines://h:1?actions=greet,bye");
    let Some(OwnedEvent::Register(registration)) = talk.session.opening() else { panic!("it registers") };
    assert_eq!((&*registration.worker_id, registration.threads), ("lines://h:1", 1));
    assert_eq!(registration.actions, ["greet".into(), "bye".into()]);
    talk.assigns(1 << 40, "greet", "Ana\n".as_bytes());
    assert_eq!(talk.reads(), "{\"id\":1,\"action\":\"greet\",\"payload\":\"Ana\\n\",\"data\":\"Ana\\n\"}\n");
    let mut talk = upstream("lines://h:1?member=data");
    let Some(OwnedEvent::Register(registration)) = talk.session.opening() else { panic!("it registers") };
    assert_eq!(registration.actions, ["default".into()]);
    for (payload, data) in [
        (&b"{\"a\":\n1}"[..], "\"data\":{\"a\": 1}"),
        (b"\xff", "\"data_base64\":\"/w==\""),
        (b"5", "\"data\":\"5\""),
    ] {
        talk.assigns(1, "a", payload);
        let read = talk.reads();
        assert!(read.contains(data) && !read.contains("payload") && read.lines().count() == 1, "{read}");
    }
}

#[test]
fn results_are_found_however_a_server_writes_them() {
    for (line, result) in [
        (r#"{"id":1,"status":"done","result":{"ok":true,"data":"X\n"}}"#, &b"X\n"[..]),
        (r#"{"id":1,"status":"ok","input":{"data":"x"},"output":"X"}"#, b"X"),
        (r#"{"id":1,"status":"ok","output":{"a": [1]}}"#, br#"{"a": [1]}"#),
        (r#"{"id":"1","result":"X"}"#, b"X"),
        (r#"{"id":1.0,"result":{"sum": 3}}"#, br#"{"sum": 3}"#),
        (r#"{"id":1,"result":7}"#, b"7"),
        (r#"{"id":1,"result":{"ok":true,"data_base64":"/w=="}}"#, b"\xff"),
        (r#"{"output_base64":"AA=="}"#, b"\0"),
        (r#"{"data":"X"}"#, b"X"),
        (r#"{"payload":"X"}"#, b"X"),
        (r#"{"a":1}"#, br#"{"a":1}"#),
        (r#"{"error":null,"result":"X"}"#, b"X"),
    ] {
        let payload = Bytes::copy_from_slice(result);
        assert_eq!(answered(line), OwnedEvent::Done { assignment: AssignmentId(7), payload }, "{line}");
    }
}

#[test]
fn failures_are_found_however_a_server_writes_them() {
    for (line, reason) in [
        (r#"{"id":1,"status":"error","result":{"ok":false,"error":"no","code":"x"}}"#, "no"),
        (r#"{"id":1,"status":"error","input":{},"error":"no"}"#, "no"),
        (r#"{"ok":false,"error":{"code":7}}"#, r#"{"code":7}"#),
        (r#"{"error":"no"}"#, "no"),
        (r#"{"status":"failed"}"#, r#"{"status":"failed"}"#),
        ("hola", "the server's answer is no JSON object"),
        ("[]", "the server's answer is no JSON object"),
        (r#"{"output_base64":"?"}"#, "the server's answer cannot be read"),
    ] {
        let OwnedEvent::Failed { assignment: AssignmentId(7), message, .. } = answered(line) else {
            panic!("{line} is a failure")
        };
        assert!(message.starts_with(reason), "{line}: {message}");
    }
    let OwnedEvent::Failed { message, .. } = answered(&format!(r#"{{"error":"{}"}}"#, "ñ".repeat(4000)))
    else {
        panic!("a failure")
    };
    assert_eq!(message.len(), limits::MAX_MESSAGE_BYTES);
}

#[test]
fn a_server_that_repeats_ids_is_opened_to_its_threads_and_may_answer_in_any_order() {
    let mut talk = upstream("lines://h:1?threads=3");
    talk.hears(b"welcome to the server\n");
    assert_eq!((talk.said(), talk.reads()), (vec![], String::new()), "it was asked nothing");
    talk.assigns(10, "a", b"");
    talk.hears(b"{\"id\":1,\"output\":\"\"}\n");
    let said = talk.said();
    let [Said::Event(OwnedEvent::Register(again)), Said::Event(OwnedEvent::Done { .. })] = &said[..] else {
        panic!("{said:?}")
    };
    assert_eq!(again.threads, 3);
    for id in 11..14 {
        talk.assigns(id, "a", b"");
    }
    talk.hears(b"{\"id\":3,\"output\":\"\"}\n{\"id\":2,\"output\":\"\"}\n{\"id\":4,\"output\":\"\"}\n");
    let ends: Vec<u64> = talk
        .said()
        .into_iter()
        .filter_map(|said| match said {
            Said::Event(OwnedEvent::Done { assignment, .. }) => Some(assignment.0),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [12, 11, 13]);
}

#[test]
fn an_answer_that_cannot_be_told_to_be_of_one_question_ends_the_connection() {
    for line in ["{\"output\":\"\"}\n", "{\"id\":99,\"output\":\"\"}\n", "hola\n", "\u{fffd}\n"] {
        let mut talk = upstream("lines://h:1?threads=3");
        talk.assigns(1, "a", b"");
        talk.assigns(2, "a", b"");
        talk.reads();
        let chunk = Bytes::copy_from_slice(line.as_bytes());
        let refusal = talk.session.decode(&context(), PEER, &chunk, &mut 0).expect_err(line);
        assert_eq!(refusal.code, ErrorCode::BadFrame);
        talk.session.refuse(&refusal, &mut talk.out);
        assert_eq!(talk.reads(), "", "a server is told nothing");
    }
}

#[test]
fn an_answer_that_is_too_long_fails_its_task_alone() {
    let mut talk = upstream("lines://h:1");
    talk.assigns(1, "a", b"");
    talk.hears(&vec![b'x'; 100_000]);
    talk.hears(b"xx\n");
    let said = talk.said();
    assert!(matches!(&said[..], [Said::Event(OwnedEvent::Failed { .. })]), "{said:?}");
    talk.assigns(2, "a", b"");
    talk.hears(b"{\"output\":\"X\"}\n");
    assert_eq!(talk.said().len(), 1);
}

#[test]
fn what_an_upstream_is_may_be_written_in_one_way() {
    let upstream: Upstream =
        "lines://[::1]:9001/?threads=4&actions=a,b&member=payload".parse().expect("an upstream");
    assert_eq!((&*upstream.host, upstream.port, upstream.threads), ("::1", 9001, 4));
    assert_eq!((upstream.actions.len(), upstream.member), (2, Member::Payload));
    assert_eq!(upstream.name(), "lines://[::1]:9001");
    for (wrong, reason) in [
        ("127.0.0.1:9001", "no upstream"),
        ("http://h:1", "does not begin with lines://"),
        ("lines://h", "no port"),
        ("lines://h:0", "no port"),
        ("lines://:1", "no upstream"),
        ("lines://h:1/x", "more than a host and a port"),
        ("lines://me@h:1", "more than a host and a port"),
        ("lines://h:1?threads=0", "threads must be"),
        ("lines://h:1?actions=", "must have 1 to 255 bytes"),
        ("lines://h:1?actions=a,,b", "must have 1 to 255 bytes"),
        ("lines://h:1?member=x", "member must be"),
        ("lines://h:1?colour=red", "'colour' is not known"),
    ] {
        let error = wrong.parse::<Upstream>().expect_err(wrong);
        assert!(error.contains(reason), "{wrong}: {error}");
    }
}
