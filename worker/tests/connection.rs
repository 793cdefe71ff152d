//! A worker's life with its balancers: registering, heartbeats, losing and finding them, draining and leaving.

#![allow(clippy::unwrap_used)] // A panic is a failed test, in helpers too.

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reparto_protocol::{AssignTask, Cancel, ErrorCode, Message, Outcome, Ping};
use reparto_worker::{Actions, ConfigError, ConnectionError, Event, Task, Worker, builtin};
use support::{Balancer, Gate, PATIENCE, Running, assignment, wait_until};

type Seen = Arc<Mutex<Vec<String>>>;

fn told(seen: &Seen, sentence: &str) -> bool {
    seen.lock().unwrap().iter().any(|event| event.contains(sentence))
}

#[test]
fn a_worker_registers_with_all_that_it_is() {
    let balancer = Balancer::start();
    let _worker = Running::start(
        balancer
            .worker()
            .id("it")
            .threads(3)
            .window(50)
            .weight(7)
            .action("b", |_: &Task| Ok(Bytes::new()))
            .action("a", |_: &Task| Ok(Bytes::new())),
    );
    let registered = balancer.greet().registration();
    assert_eq!((registered.id.as_str(), registered.threads, registered.window), ("it", 3, 50));
    assert_eq!((registered.weight, registered.service_ns), (7, None));
    assert_eq!(registered.actions, ["a", "b"]);
}

#[test]
fn a_worker_without_an_id_gives_itself_one_that_no_other_has() {
    let build = || Worker::builder().actions(builtin::actions()).build().unwrap();
    assert_ne!(build().id(), build().id());
}

#[test]
fn settings_that_cannot_be_are_refused_with_a_sentence() {
    let good = || Worker::builder().actions(builtin::actions());
    let cases = [
        (Worker::builder(), "a worker offers 1 to 1024 actions, not 0"),
        (good().threads(0), "threads must be 1 to 65536, not 0"),
        (good().window(2_000_000), "window must be 1 to 1048576, not 2000000"),
        (good().weight(1001), "weight must be 1 to 1000, not 1001"),
        (good().id(""), "a worker's id has 1 to 255 bytes, this one has 0"),
        (good().balancer("here"), "'here' is not an address of the form HOST:PORT, such as 127.0.0.1:8889"),
        (good().balancer("a:1").balancer("a:1"), "the balancer a:1 is given twice; give each one once"),
        (
            good().action("x".repeat(256), |_: &Task| Ok(Bytes::new())),
            "an action's name has 1 to 255 bytes, this one has 256",
        ),
    ];
    for (builder, sentence) in cases {
        let error: ConfigError = builder.build().err().expect("it cannot be built");
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn a_lost_balancer_is_registered_with_again_and_told_what_is_known() {
    let balancer = Balancer::start();
    let seen = Seen::default();
    let _worker = Running::start(balancer.worker().actions(builtin::actions()).on_event({
        let seen = Arc::clone(&seen);
        move |event| seen.lock().unwrap().push(event.to_string())
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "echo", "x");
    let service_ns = connection.answer().service_ns;
    assert!(service_ns.is_some());
    drop(connection);
    let mut connection = balancer.greet();
    let registered = connection.registration();
    assert_eq!(registered.service_ns, service_ns);
    connection.ack(registered.request);
    connection.assign(2, "echo", "y");
    assert_eq!(connection.answer().payload, "y");
    assert!(told(&seen, "lost the balancer at"));
    assert_eq!(seen.lock().unwrap().iter().filter(|event| event.starts_with("registered")).count(), 2);
}

#[test]
fn losing_the_balancer_cancels_what_runs_and_drops_what_waits() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().threads(1).actions(builtin::actions()).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    for id in 1..=5 {
        connection.assign(id, "wait", "");
    }
    gate.wait_for(1);
    drop(connection);
    // The gate stays shut: the one thread is free again only because its task was cancelled.
    let mut connection = balancer.accept();
    connection.assign(9, "echo", "again");
    let answer = connection.answer();
    assert_eq!((answer.id, &answer.payload[..]), (9, &b"again"[..]));
    connection.sync();
}

#[test]
fn a_duplicate_id_is_told_and_tried_again_until_the_old_one_is_gone() {
    let balancer = Balancer::start();
    let seen = Seen::default();
    let _worker = Running::start(balancer.worker().actions(builtin::actions()).on_event({
        let seen = Arc::clone(&seen);
        move |event| {
            if let Event::Refused { error, .. } = event {
                let duplicate =
                    matches!(**error, ConnectionError::Refused { code: ErrorCode::DuplicateWorker, .. });
                assert!(duplicate, "{error}");
            }
            seen.lock().unwrap().push(event.to_string());
        }
    }));
    for _ in 0..2 {
        let mut connection = balancer.greet();
        connection.registration();
        connection.refuse(ErrorCode::DuplicateWorker, "a live worker has the id 'w'");
    }
    balancer.accept();
    wait_until("the refusal was told", || told(&seen, "duplicate_worker: a live worker has the id 'w'"));
    wait_until("it registered in the end", || told(&seen, "registered with"));
}

#[test]
fn a_balancer_that_is_not_there_yet_is_found_when_it_comes() {
    let address = Balancer::start().address();
    let seen = Seen::default();
    let _worker = Running::start(
        Worker::builder().balancer(address.to_string()).actions(builtin::actions()).on_event({
            let seen = Arc::clone(&seen);
            move |event| seen.lock().unwrap().push(event.to_string())
        }),
    );
    wait_until("the failure was told", || told(&seen, "it could not be reached"));
}

#[test]
fn after_goaway_what_is_held_is_finished_and_the_worker_comes_back() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let seen = Seen::default();
    let worker = balancer.worker().threads(1).on_event({
        let seen = Arc::clone(&seen);
        move |event| seen.lock().unwrap().push(event.to_string())
    });
    let _worker = Running::start(worker.action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "wait", "");
    connection.assign(2, "wait", "");
    gate.wait_for(1);
    connection.go_away("a new version comes");
    connection.sync();
    gate.open();
    for id in 1..=2 {
        let answer = connection.answer();
        assert_eq!((answer.id, answer.outcome), (id, Outcome::Done));
    }
    drop(connection);
    balancer.accept();
    assert!(told(&seen, "it went away: a new version comes"));
}

#[test]
fn a_ping_is_answered_while_every_thread_is_busy() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().threads(1).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "wait", "");
    gate.wait_for(1);
    connection.sync();
    gate.open();
    connection.answer();
}

#[test]
fn a_worker_that_has_nothing_to_say_sends_a_ping() {
    let mut balancer = Balancer::start();
    balancer.welcome.heartbeat_ms = 50;
    let _worker = Running::start(balancer.worker().actions(builtin::actions()));
    let mut connection = balancer.accept();
    for _ in 0..3 {
        let frame = connection.next();
        assert!(matches!(Message::decode(&frame.as_frame()).unwrap(), Message::Ping(_)));
    }
}

#[test]
fn a_balancer_that_falls_silent_is_lost() {
    let mut balancer = Balancer::start();
    balancer.welcome.heartbeat_ms = 50;
    balancer.welcome.silence_ms = 3_000;
    let seen = Seen::default();
    let _worker = Running::start(balancer.worker().actions(builtin::actions()).on_event({
        let seen = Arc::clone(&seen);
        move |event| seen.lock().unwrap().push(event.to_string())
    }));
    let silent = balancer.accept();
    balancer.greet();
    assert!(told(&seen, "it was silent for 3 s"));
    drop(silent);
}

#[test]
fn a_balancer_that_answers_pings_is_kept_while_it_only_reads() {
    let mut balancer = Balancer::start();
    balancer.welcome.heartbeat_ms = 100;
    balancer.welcome.silence_ms = 12_000;
    let stop = Arc::new(AtomicBool::new(false));
    let _worker = Running::start(balancer.worker().action("chatter", {
        let stop = Arc::clone(&stop);
        move |task: &Task| {
            // The worker is never quiet, so only its not hearing anything makes it ask.
            while !stop.load(Ordering::SeqCst) && !task.is_cancelled() {
                task.progress(1, 2);
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok("through".into())
        }
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "chatter", "");
    let (mut pings, began) = (0, Instant::now());
    while pings < 2 || began.elapsed() < Duration::from_secs(13) {
        let frame = connection.next();
        if let Message::Ping(Ping { id }) = Message::decode(&frame.as_frame()).unwrap() {
            connection.send(&Message::Pong(reparto_protocol::Pong { id }));
            pings += 1;
        }
    }
    stop.store(true, Ordering::SeqCst);
    loop {
        let frame = connection.next();
        if let Message::TaskResult(result) = Message::decode(&frame.as_frame()).unwrap() {
            assert_eq!(result.payload, b"through");
            break;
        }
    }
}

#[test]
fn more_tasks_than_the_window_end_the_connection_with_a_named_error() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().threads(1).window(4).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    for id in 1..=5 {
        connection.queue(&assignment(id, "wait", b""));
    }
    connection.flush();
    let frame = connection.next();
    let Message::Error(error) = Message::decode(&frame.as_frame()).unwrap() else {
        panic!("an ERROR should come")
    };
    assert_eq!((error.id, error.code), (0, ErrorCode::Overloaded));
    assert_eq!(error.message, "it gave 5 tasks to a worker whose window is 4");
    connection.expect_end();
}

#[test]
fn bytes_that_are_no_frame_end_the_connection_with_a_named_error() {
    for bytes in [&[0, 0, 0, 1][..], &[0, 0, 0, 12, 0xEE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0xFF; 16]] {
        let balancer = Balancer::start();
        let _worker = Running::start(balancer.worker().actions(builtin::actions()));
        let mut connection = balancer.accept();
        connection.stream.write_all(bytes).unwrap();
        let frame = connection.next();
        let Message::Error(error) = Message::decode(&frame.as_frame()).unwrap() else {
            panic!("an ERROR should come")
        };
        assert!(matches!(error.code, ErrorCode::BadFrame | ErrorCode::PayloadTooLarge), "{error:?}");
        connection.expect_end();
        balancer.accept();
    }
}

#[test]
fn actions_change_without_a_new_connection() {
    let balancer = Balancer::start();
    let worker = Running::start(balancer.worker().action("old", |_: &Task| Ok("old".into())));
    let mut connection = balancer.accept();
    worker.handle.set_actions(Actions::new().with("new", |_: &Task| Ok("new".into()))).unwrap();
    let registered = connection.registration();
    assert_eq!((registered.id.as_str(), registered.actions), ("w", vec!["new".to_owned()]));
    // It was assigned before the balancer read the REGISTER.
    connection.assign(1, "old", "");
    assert_eq!(connection.answer().payload, "old");
    connection.ack(registered.request);
    connection.assign(2, "new", "");
    assert_eq!(connection.answer().payload, "new");
    connection.assign(3, "old", "");
    assert_eq!(connection.answer().outcome, Outcome::Retry);
    assert!(worker.handle.set_actions(Actions::new()).is_err());
}

#[test]
fn a_drained_worker_finishes_what_it_has_and_comes_back_on_resume() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let worker = Running::start(balancer.worker().threads(1).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "wait", "");
    connection.assign(2, "wait", "");
    gate.wait_for(1);
    worker.handle.drain();
    let (request, resume) = connection.drain();
    assert!(!resume);
    connection.ack(request);
    gate.open();
    for id in 1..=2 {
        let answer = connection.answer();
        assert_eq!((answer.id, answer.outcome), (id, Outcome::Done));
    }
    worker.handle.resume();
    let (request, resume) = connection.drain();
    assert!(resume);
    connection.ack(request);
    connection.assign(3, "wait", "");
    assert_eq!(connection.answer().id, 3);
}

#[test]
fn a_worker_that_is_drained_says_so_at_its_next_balancer_too() {
    let balancer = Balancer::start();
    let worker = Running::start(balancer.worker().actions(builtin::actions()));
    let mut connection = balancer.accept();
    worker.handle.drain();
    connection.drain();
    drop(connection);
    assert!(!balancer.accept().drain().1);
}

#[test]
fn a_stopping_worker_finishes_what_runs_hands_back_the_rest_and_leaves() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let mut worker = Running::start(balancer.worker().threads(1).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    for id in 1..=4 {
        connection.assign(id, "wait", "");
    }
    gate.wait_for(1);
    connection.sync();
    worker.handle.stop(PATIENCE);
    let (request, resume) = connection.drain();
    assert!(!resume);
    for id in 2..=4 {
        let answer = connection.answer();
        assert_eq!((answer.id, answer.outcome), (id, Outcome::NotRun));
    }
    // One that was on its way.
    connection.assign(5, "wait", "");
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome), (5, Outcome::NotRun));
    gate.open();
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome), (1, Outcome::Done));
    // It stays until the balancer has seen that it leaves, so that nothing can be on its way.
    connection.sync();
    connection.ack(request);
    connection.expect_end();
    drop(connection);
    worker.join();
}

#[test]
fn what_outlives_the_grace_is_cancelled_and_tried_elsewhere() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let mut worker = Running::start(balancer.worker().action("wait", {
        let gate = gate.clone();
        move |task: &Task| if gate.pass(task) { Ok(Bytes::new()) } else { Err("cancelled".into()) }
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "wait", "");
    gate.wait_for(1);
    worker.handle.stop(Duration::from_millis(50));
    let (request, _) = connection.drain();
    connection.ack(request);
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome), (1, Outcome::Retry));
    assert_eq!(answer.message, "the worker was stopped before the task had ended");
    drop(connection);
    worker.join();
}

#[test]
fn a_handler_that_never_returns_does_not_keep_the_worker_from_ending() {
    let balancer = Balancer::start();
    let (gate, release) = (Gate::default(), Arc::new(AtomicBool::new(false)));
    let mut worker = Running::start(balancer.worker().action("stuck", {
        let (gate, release) = (gate.clone(), Arc::clone(&release));
        move |task: &Task| {
            gate.open();
            gate.pass(task);
            while !release.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(Bytes::new())
        }
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "stuck", "");
    gate.wait_for(1);
    worker.handle.stop(Duration::ZERO);
    worker.join();
    release.store(true, Ordering::SeqCst);
}

#[test]
fn a_worker_without_a_balancer_stops_at_once() {
    let address = Balancer::start().address();
    let mut worker =
        Running::start(Worker::builder().balancer(address.to_string()).actions(builtin::actions()));
    worker.handle.stop(Duration::from_secs(3600));
    worker.join();
}

#[test]
fn a_callback_that_panics_does_not_end_the_connection() {
    let balancer = Balancer::start();
    let _worker =
        Running::start(balancer.worker().actions(builtin::actions()).on_event(|_| panic!("a bad callback")));
    let mut connection = balancer.accept();
    connection.assign(1, "echo", "x");
    assert_eq!(connection.answer().payload, "x");
}

#[test]
fn a_background_task_outlives_its_connection_and_its_result_goes_to_the_next_one() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let handler = {
        let gate = gate.clone();
        move |task: &Task| {
            let opened = gate.pass(task);
            assert!(opened || task.payload() != &b"wanted"[..], "it was cancelled");
            Ok(Bytes::from_static(b"late"))
        }
    };
    let _worker = Running::start(balancer.worker().threads(3).action("long", handler));
    let mut connection = balancer.accept();
    let assign = |id, task_id: Option<[u8; 16]>, held, payload: &'static [u8]| {
        let (action, attempt) = ("long", 1);
        let (deadline_ms, key) = (None, None);
        Message::AssignTask(AssignTask { id, action, attempt, deadline_ms, key, task_id, held, payload })
    };
    connection.send(&assign(1, Some([1; 16]), false, b"wanted"));
    connection.send(&assign(2, Some([2; 16]), false, b"unwanted"));
    connection.send(&assign(3, None, false, b"foreground"));
    gate.wait_for(3);
    drop(connection);

    let mut connection = balancer.greet();
    let frame = connection.next();
    let Ok(Message::Register(register)) = Message::decode(&frame.as_frame()) else { panic!("no REGISTER") };
    let mut held: Vec<_> = register.held.iter().collect();
    held.sort_unstable();
    assert_eq!(held, [[1; 16], [2; 16]], "what runs for a client that is gone is not named");
    connection.ack(register.id);
    connection.send(&assign(7, Some([1; 16]), true, b""));
    connection.send(&Message::Cancel(Cancel { id: 0, task_id: Some([2; 16]), recall: false }));
    connection.send(&assign(8, Some([9; 16]), true, b""));
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome), (8, Outcome::Retry), "{answer:?}");
    gate.open();
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome, &answer.payload[..]), (7, Outcome::Done, &b"late"[..]));
    connection.sync();
}
