//! The native dialect's rules, with bytes alone.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reparto_protocol::{
    Actions, AssignTask, Cancel, Drain, ErrorCode, Fetch, FrameStream, HeldTasks, Hello, Message, Outcome,
    Ping, Pong, Progress, Register, Role, Status, Task, TaskOptions, TaskResult, limits,
};

use super::*;
use crate::dialect::{Context, Output, Refusal, Step};
use crate::scheduler::{
    Assignment, AssignmentId, Config, Effect, Payload, Peer, Policy, ProgressKind, Registration, Scheduler,
    Submission, Time,
};

const PEER: Peer = Peer { index: 7, generation: 3 };

fn context() -> Context {
    Context {
        clients: ([127, 0, 0, 1], 8888).into(),
        workers: ([127, 0, 0, 1], 8889).into(),
        max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
        heartbeat: Duration::from_secs(5),
        silence: Duration::from_secs(15),
        policy: Policy::default(),
        has_store: false,
        gearman: Default::default(),
        lines_action: "default".into(),
    }
}

fn wire(messages: &[Message<'_>]) -> Bytes {
    let mut wire = BytesMut::new();
    for message in messages {
        message.encode(&mut wire);
    }
    wire.freeze()
}

fn hello(role: Role) -> Message<'static> {
    Message::Hello(Hello { version: 1, role, features: 0, agent: "test", token: &[] })
}

fn register(actions: &'static [&'static str]) -> Message<'static> {
    Message::Register(Register {
        id: 1,
        worker_id: "w1",
        threads: 2,
        window: 8,
        weight: 3,
        service_ns: Some(1000),
        held: HeldTasks::NONE,
        actions: Actions::new(actions),
    })
}

fn task(id: u64, payload: &[u8]) -> Message<'_> {
    Message::Task(Task { id, action: "echo", options: TaskOptions::default(), payload })
}

/// Decodes all of a stream that is cut into pieces, as the reactor would, and says what came of it in words.
fn decode_in_pieces(listener: Listener, stream: &[u8], piece: usize) -> (Vec<String>, Option<Refusal>) {
    let mut session = Session::new(listener);
    let (mut seen, mut buffer) = (Vec::new(), Vec::new());
    for chunk in stream.chunks(piece.max(1)) {
        buffer.extend_from_slice(chunk);
        let whole = Bytes::from(std::mem::take(&mut buffer));
        let mut from = 0;
        loop {
            match session.decode(&context(), PEER, &whole, &mut from) {
                Ok(Step::Incomplete) => break,
                Ok(Step::Tasks(mut tasks)) => {
                    let events = std::iter::from_fn(|| tasks.next_event(PEER));
                    seen.extend(events.map(|event| format!("{:?}", Step::Event(event))));
                    assert!(tasks.at() > from, "a run has one task at least");
                    from = tasks.at();
                }
                Ok(Step::Results(mut results)) => {
                    let events = std::iter::from_fn(|| results.next_event(PEER));
                    seen.extend(events.map(|event| format!("{:?}", Step::Event(event))));
                    assert!(results.at() > from, "a run has one result at least");
                    from = results.at();
                }
                Ok(step) => seen.push(format!("{step:?}")),
                Err(refusal) => return (seen, Some(refusal)),
            }
        }
        buffer.extend_from_slice(&whole[from..]);
        if let Err(refusal) = session.frame_bytes(&context(), &buffer) {
            return (seen, Some(refusal));
        }
    }
    (seen, None)
}

fn refusal_of(listener: Listener, messages: &[Message<'_>]) -> Refusal {
    decode_in_pieces(listener, &wire(messages), usize::MAX).1.expect("the last frame is refused")
}

/// The messages in an output, as a peer would read them, in words.
fn read_back(output: &Output) -> Vec<String> {
    let mut slices = [std::io::IoSlice::new(&[]); 64];
    let (count, _) = output.slices(&mut slices);
    let mut stream = FrameStream::new(limits::DEFAULT_MAX_FRAME_BYTES);
    slices[..count].iter().for_each(|slice| stream.push(slice));
    let mut seen = Vec::new();
    while let Some(frame) = stream.next_frame().expect("our own frames") {
        seen.push(format!("{:?}", Message::decode(&frame.as_frame()).expect("our own messages")));
    }
    seen
}

#[test]
fn any_split_of_the_stream_decodes_the_same() {
    let large = vec![5; 20_000];
    let options = TaskOptions {
        priority: Some(9),
        deadline_ms: Some(1500),
        wait_ms: Some(100),
        key: Some(b"k"),
        max_attempts: Some(1),
        ..TaskOptions::default()
    };
    let client = wire(&[
        hello(Role::Client),
        task(1, b"one"),
        Message::Task(Task { id: 2, action: "upper", options, payload: &large }),
        Message::Cancel(Cancel { id: 1, task_id: None, recall: false }),
        Message::Ping(Ping { id: 5 }),
        Message::Pong(Pong { id: 0 }),
        Message::Status(Status { id: 9, offset: 1, limit: 10 }),
        Message::Fetch(Fetch { id: 3, task_id: [1; 16], wait_ms: 0, describe: false }),
    ]);
    let worker = wire(&[
        hello(Role::Worker),
        Message::Ping(Ping { id: 1 }),
        register(&["echo", "upper"]),
        Message::TaskResult(TaskResult {
            id: 77,
            outcome: Outcome::Retry,
            message: "later",
            service_ns: Some(5),
            payload: &large,
        }),
        Message::Progress(Progress { id: 77, done: 1, total: 2, payload: b"half" }),
        Message::Drain(Drain { id: 4, resume: true }),
    ]);
    for (listener, stream, frames) in [(Listener::Clients, client, 8), (Listener::Workers, worker, 6)] {
        let (whole, refusal) = decode_in_pieces(listener, &stream, usize::MAX);
        assert_eq!((whole.len(), refusal), (frames, None));
        for piece in [1, 2, 3, 15, 16, 17, 64, 1000, 20_000] {
            assert_eq!(
                decode_in_pieces(listener, &stream, piece),
                (whole.clone(), None),
                "pieces of {piece}"
            );
        }
    }
}

#[test]
fn a_task_keeps_what_its_client_asked_for() {
    let options = TaskOptions { priority: Some(9), deadline_ms: Some(1500), ..TaskOptions::default() };
    let stream =
        wire(&[hello(Role::Client), Message::Task(Task { id: 2, action: "upper", options, payload: b"x" })]);
    let (seen, _) = decode_in_pieces(Listener::Clients, &stream, usize::MAX);
    for part in ["Submit", "upper", "priority: 9", "deadline: Some(1.5s)", "wait: None", "max_attempts: 3"] {
        assert!(seen[1].contains(part), "{part} is not in {}", seen[1]);
    }
}

#[test]
fn a_frame_out_of_order_is_named() {
    let task_result = || {
        let outcome = Outcome::Done;
        Message::TaskResult(TaskResult { id: 1, outcome, message: "", service_ns: None, payload: b"" })
    };
    for (listener, messages, said) in [
        (Listener::Clients, vec![task(1, b"")], "TASK may not come before HELLO"),
        (
            Listener::Clients,
            vec![hello(Role::Client), hello(Role::Client)],
            "HELLO may not come twice on a connection",
        ),
        (
            Listener::Clients,
            vec![hello(Role::Client), task_result()],
            "TASK_RESULT may not come from a client",
        ),
        (Listener::Workers, vec![Message::Ping(Ping { id: 1 })], "PING may not come before HELLO"),
        (
            Listener::Workers,
            vec![hello(Role::Worker), task_result()],
            "TASK_RESULT may not come before REGISTER",
        ),
        (Listener::Workers, vec![hello(Role::Worker), task(1, b"")], "TASK may not come from a worker"),
    ] {
        let refusal = refusal_of(listener, &messages);
        assert_eq!((refusal.code, &*refusal.message), (ErrorCode::BadFrame, said));
    }
}

#[test]
fn a_peer_at_the_wrong_listener_is_told_the_right_address() {
    let refusal = refusal_of(Listener::Clients, &[hello(Role::Worker)]);
    assert!(refusal.message.contains("workers connect to 127.0.0.1:8889"), "{}", refusal.message);
    let refusal = refusal_of(Listener::Workers, &[hello(Role::Client)]);
    assert!(refusal.message.contains("clients connect to 127.0.0.1:8888"), "{}", refusal.message);
}

#[test]
fn another_version_is_refused_by_its_code() {
    let mut stream = wire(&[hello(Role::Client)]).to_vec();
    let magic = stream.windows(4).position(|bytes| bytes == b"RPTO").expect("the magic number");
    stream[magic + 5] = 2;
    let (_, refusal) = decode_in_pieces(Listener::Clients, &stream, usize::MAX);
    assert_eq!(refusal.map(|refusal| refusal.code), Some(ErrorCode::UnsupportedVersion));
}

#[test]
fn a_stranger_may_not_begin_a_large_frame() {
    let session = Session::new(Listener::Clients);
    let header = (limits::MIN_MAX_FRAME_BYTES + 1).to_be_bytes();
    let refusal = session.frame_bytes(&context(), &header).expect_err("a HELLO is small");
    assert_eq!(refusal.code, ErrorCode::PayloadTooLarge);
}

#[test]
fn background_tasks_and_fetches_are_answered_that_there_is_no_store() {
    let options = TaskOptions { background: true, ..TaskOptions::default() };
    let stream = wire(&[
        hello(Role::Client),
        Message::Task(Task { id: 4, action: "echo", options, payload: b"" }),
        Message::Fetch(Fetch { id: 5, task_id: [0; 16], wait_ms: 0, describe: false }),
    ]);
    let (seen, refusal) = decode_in_pieces(Listener::Clients, &stream, usize::MAX);
    assert_eq!(refusal, None);
    assert!(seen[1].contains("Failed { id: 4, code: StoreUnavailable"), "{}", seen[1]);
    assert!(seen[2].contains("Failed { id: 5, code: StoreUnavailable"), "{}", seen[2]);
}

#[test]
fn payloads_of_middle_size_do_not_hold_the_buffer_they_came_in() {
    let mut session = Session::new(Listener::Workers);
    let start = wire(&[hello(Role::Worker), register(&["echo"])]);
    let mut from = 0;
    session.decode(&context(), PEER, &start, &mut from).expect("HELLO");
    session.decode(&context(), PEER, &start, &mut from).expect("REGISTER");
    for (size, shared) in [(64, false), (8 * 1024, false), (64 * 1024, true)] {
        let payload = vec![1; size];
        let outcome = Outcome::Done;
        let stream = wire(&[Message::TaskResult(TaskResult {
            id: 1,
            outcome,
            message: "",
            service_ns: None,
            payload: &payload,
        })]);
        let step = session.decode(&context(), PEER, &stream, &mut 0).expect("a result");
        let Step::Results(mut results) = step else { panic!("{step:?}") };
        let (_, payload) = results.next().expect("one result");
        assert_eq!(stream.as_ptr_range().contains(&payload.to_bytes().as_ptr()), shared, "{size} bytes");
    }
}

#[test]
fn every_effect_is_written_as_its_frame() {
    let mut output = Output::default();
    let payload = Bytes::from_static(b"data");
    let large = Bytes::from(vec![3; 100_000]);
    let assignment = Assignment {
        action: "upper",
        payload: Payload::from(&payload),
        attempt: 2,
        deadline: Some(Time(2_000_500)),
        key: b"k",
        task_id: None,
        held: false,
        number: 0,
        form: 0,
    };
    let id = AssignmentId(5);
    assign(Time(1_000_000), id, &assignment, &mut output);
    for effect in [
        Effect::CancelAssignment { peer: PEER, assignment: id, recall: true },
        Effect::Result { peer: PEER, id: 9, payload: Payload::from(&large) },
        Effect::Fail {
            peer: PEER,
            id: 10,
            code: ErrorCode::WorkerFailed,
            message: "no".into(),
            payload: Payload::from(&payload),
        },
        Effect::Progress {
            peer: PEER,
            id: 9,
            kind: ProgressKind::Report,
            done: 1,
            total: 2,
            payload: Payload::from(&payload),
        },
        Effect::Acknowledge { peer: PEER, request: 3, window: 8 },
        Effect::Ping { peer: PEER },
        Effect::GoAway { peer: PEER },
        Effect::Close { peer: PEER, code: ErrorCode::DuplicateWorker, message: "taken".into() },
    ] {
        encode(effect, &mut output);
    }
    let seen = read_back(&output);
    let assigned = AssignTask {
        id: 5,
        action: "upper",
        attempt: 2,
        deadline_ms: Some(1001),
        key: Some(b"k"),
        task_id: None,
        held: false,
        payload: b"data",
    };
    assert_eq!(seen[0], format!("{:?}", Message::AssignTask(assigned)));
    assert_eq!(seen[1], format!("{:?}", Message::Cancel(Cancel { id: 5, task_id: None, recall: true })));
    let done = reparto_protocol::TaskDone { id: 9, payload: &large };
    assert_eq!(seen[2], format!("{:?}", Message::Result(done)));
    assert!(seen[3].contains("id: 10, code: WorkerFailed, message: \"no\""), "{}", seen[3]);
    assert!(seen[4].contains("done: 1, total: 2"), "{}", seen[4]);
    assert!(seen[5].contains("Ack { id: 3, window: 8 }"), "{}", seen[5]);
    assert!(seen[6].contains("Ping"), "{}", seen[6]);
    assert!(seen[7].contains("GoAway"), "{}", seen[7]);
    assert!(seen[8].contains("id: 0, code: DuplicateWorker"), "{}", seen[8]);
    assert_eq!(seen.len(), 9);
}

#[test]
fn a_status_report_is_a_page_of_at_most_a_thousand_rows() {
    let mut scheduler = Scheduler::new(Config::default());
    for index in 0..1100 {
        let peer = Peer { index, generation: 1 };
        let worker_id = format!("w{index}");
        let registration = Registration {
            request: 1,
            worker_id: &worker_id,
            threads: 1,
            window: 1,
            weight: 1,
            service_ns: None,
            heartbeats: true,
            held: Vec::new(),
            actions: vec!["echo", "upper"],
        };
        let event = crate::scheduler::Event::Register { peer, registration };
        scheduler.handle(Time(0), event, &mut Vec::new());
    }
    let mut seen = std::collections::BTreeSet::new();
    for (offset, rows) in [(0, 1000), (1000, 100), (1100, 0), (u32::MAX, 0)] {
        let mut output = Output::default();
        let page = status_report(&context(), Time(5_000_000), &scheduler, &[], (offset, u32::MAX));
        report(6, &page, &mut output);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let (count, _) = output.slices(&mut slices);
        let mut stream = FrameStream::new(limits::DEFAULT_MAX_FRAME_BYTES);
        slices[..count].iter().for_each(|slice| stream.push(slice));
        let frame = stream.next_frame().expect("our own frame").expect("a whole one");
        let report: serde_json::Value = serde_json::from_slice(&frame.payload()).expect("JSON");
        let workers = report["workers"].as_array().expect("a list");
        assert_eq!(workers.len(), rows, "from {offset}");
        seen.extend(workers.iter().map(|worker| worker["id"].to_string()));
        assert_eq!(report["workers_total"], 1100);
        assert_eq!(report["actions_total"], 2);
        assert_eq!(report["uptime_ms"], 5000);
        assert_eq!(report["policy"], "least_loaded");
        assert_eq!(report["totals"]["workers"], 1100);
    }
    assert_eq!(seen.len(), 1100, "every worker stands in one page");
}

#[test]
fn mutated_streams_end_in_a_named_error_or_in_steps() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let stream =
        wire(&[hello(Role::Client), task(1, b"one"), task(2, &[7; 300]), Message::Ping(Ping { id: 3 })]);
    for _ in 0..20_000 {
        let mut bytes = stream.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(..=bytes.len()));
        let piece = random.usize(1..=bytes.len().max(1));
        if let (_, Some(refusal)) = decode_in_pieces(Listener::Clients, &bytes, piece) {
            assert!(!refusal.message.is_empty() && refusal.code.number() != 0);
        }
    }
}

#[test]
fn a_submission_without_options_is_the_usual_one() {
    let stream = wire(&[hello(Role::Client), task(3, b"p")]);
    let (seen, _) = decode_in_pieces(Listener::Clients, &stream, usize::MAX);
    let task = Submission::new(3, "echo", Payload::new(b"p"));
    let event = crate::scheduler::Event::Submit { peer: PEER, task };
    assert_eq!(seen[1], format!("{:?}", Step::Event(event)));
}
