//! Background tasks through real sockets: accepted, run, recorded, fetched; and a balancer that ends in between.

use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use reparto_balancer::{Settings, StoreSettings};
use reparto_protocol::{
    Cancel, DropTask, Fetch, FrameType, HeldTasks, ListTasks, Message, Outcome, Register, RetryTask, Role,
    Task, TaskOptions, TaskResult, TaskState, limits,
};
use serde_json::Value;
use support::{Served, Wire, done, echo_worker, register, serve, settings};

mod support;

const BACKGROUND: TaskOptions<'static> = TaskOptions {
    priority: None,
    deadline_ms: None,
    wait_ms: None,
    key: None,
    max_attempts: None,
    background: true,
    record: false,
    delay_ms: None,
    start_at_ms: None,
    backoff_first_ms: None,
    backoff_most_ms: None,
    idempotency_key: None,
    idempotency_ms: None,
};

/// As long as it takes.
const LONG_MS: u64 = 60_000;

fn with_store(folder: &Path) -> Settings {
    let mut store = StoreSettings::new(folder);
    store.claim_time = Duration::from_secs(2);
    Settings { store: Some(store), ..settings() }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn submit(client: &mut Wire, id: u64, options: TaskOptions<'_>, payload: &[u8]) {
    client.send(&Message::Task(Task { id, action: "echo", options, payload }));
}

/// Waits for the ACCEPTED of a TASK: the task's id, and whether it was known.
fn accepted(client: &mut Wire, id: u64) -> ([u8; 16], bool) {
    let frame = client.expect(FrameType::Accepted);
    let Ok(Message::Accepted(accepted)) = Message::decode(&frame.as_frame()) else { panic!("decodes") };
    assert_eq!(accepted.id, id);
    (accepted.task_id, accepted.duplicate)
}

fn submit_accepted(client: &mut Wire, id: u64, options: TaskOptions<'_>, payload: &[u8]) -> [u8; 16] {
    submit(client, id, options, payload);
    accepted(client, id).0
}

fn ask(client: &mut Wire, id: u64, task_id: [u8; 16], wait_ms: u64) {
    client.send(&Message::Fetch(Fetch { id, task_id, wait_ms, describe: false }));
}

fn result(client: &mut Wire, id: u64, task_id: [u8; 16]) -> Vec<u8> {
    ask(client, id, task_id, LONG_MS);
    let frame = client.expect(FrameType::Result);
    assert_eq!(frame.as_frame().id, id);
    frame.as_frame().payload.to_vec()
}

/// Waits for a TASK_STATE: the state and the attempts.
fn state(client: &mut Wire, id: u64) -> (TaskState, u8) {
    let frame = client.expect(FrameType::TaskState);
    let Ok(Message::TaskState(standing)) = Message::decode(&frame.as_frame()) else { panic!("decodes") };
    assert_eq!(standing.id, id);
    (standing.state, standing.attempts)
}

fn describe(client: &mut Wire, id: u64, task_id: [u8; 16]) -> Value {
    client.send(&Message::Fetch(Fetch { id, task_id, wait_ms: 0, describe: true }));
    let frame = client.expect(FrameType::TaskState);
    serde_json::from_slice(frame.as_frame().payload).expect("JSON")
}

fn list(client: &mut Wire, state: Option<TaskState>, before: Option<[u8; 16]>, limit: u32) -> Value {
    let list = ListTasks { id: 77, action: None, state, since_ms: None, before, limit };
    client.send(&Message::ListTasks(list));
    serde_json::from_slice(client.expect(FrameType::TaskList).as_frame().payload).expect("JSON")
}

/// The next assignment: its number, its attempt, its task's id, whether the worker is said to hold it.
fn assigned(worker: &mut Wire) -> (u64, u8, [u8; 16], bool) {
    let frame = worker.expect(FrameType::AssignTask);
    let Ok(Message::AssignTask(task)) = Message::decode(&frame.as_frame()) else { panic!("decodes") };
    (task.id, task.attempt, task.task_id.expect("a background task has an id"), task.held)
}

fn answer(worker: &mut Wire, id: u64, outcome: Outcome, message: &str) {
    worker.send(&Message::TaskResult(TaskResult { id, outcome, message, service_ns: None, payload: b"" }));
}

fn restart(served: Served, folder: &Path) -> Served {
    served.stop();
    serve(with_store(folder))
}

/// More tasks than the store takes at once, and fewer than may wait for it.
const BURST: u64 = 100_000;

#[test]
fn a_burst_of_more_tasks_than_the_store_takes_at_once_is_accepted_as_a_whole() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let mut burst = BytesMut::new();
    for id in 1..=BURST {
        Message::Task(Task { id, action: "echo", options: BACKGROUND, payload: b"x" }).encode(&mut burst);
    }
    let mut sender = client.sender();
    let sending = thread::spawn(move || sender.stream.write_all(&burst));
    for id in 1..=BURST {
        accepted(&mut client, id);
    }
    sending.join().expect("no panic").expect("all is sent");
    served.stop();
}

#[test]
fn a_task_is_accepted_run_recorded_and_fetched_by_anyone_at_any_time() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let task = submit_accepted(&mut client, 1, BACKGROUND, b"hola");
    ask(&mut client, 2, task, 0);
    assert_eq!(state(&mut client, 2), (TaskState::Queued, 0));
    ask(&mut client, 3, task, LONG_MS);
    let _worker = echo_worker(&served, "w");
    let frame = client.expect(FrameType::Result);
    assert_eq!((frame.as_frame().id, frame.as_frame().payload), (3, b"hola".as_slice()));
    drop(client);
    let mut other = Wire::client(&served);
    assert_eq!(result(&mut other, 1, task), b"hola");
    ask(&mut other, 2, [9; 16], 0);
    let (id, code, _) = other.expect_error();
    assert_eq!((id, code.as_str()), (2, "not_found"));
}

#[test]
fn without_a_store_background_tasks_are_refused_by_name() {
    let served = serve(settings());
    let mut client = Wire::client(&served);
    submit(&mut client, 1, BACKGROUND, b"");
    let (id, code, _) = client.expect_error();
    assert_eq!((id, code.as_str()), (1, "store_unavailable"));
}

#[test]
fn a_second_balancer_on_the_same_folder_says_so() {
    let folder = folder();
    let _served = serve(with_store(folder.path()));
    let error =
        reparto_balancer::Balancer::bind(with_store(folder.path())).expect_err("the folder is in use");
    assert!(error.to_string().contains("is in use by another balancer"), "{error}");
}

#[test]
fn what_was_accepted_outlives_the_balancer_and_so_does_its_result() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let tasks: Vec<_> =
        (1..=50).map(|id| submit_accepted(&mut client, id, BACKGROUND, &[id as u8])).collect();
    let served = restart(served, folder.path());
    let worker = echo_worker(&served, "w");
    let mut client = Wire::client(&served);
    for (number, task) in (1..).zip(&tasks) {
        assert_eq!(result(&mut client, number, *task), [number as u8]);
    }
    let served = restart(served, folder.path());
    worker.join().expect("the worker saw the end");
    let mut client = Wire::client(&served);
    for (number, task) in (1..).zip(&tasks) {
        assert_eq!(result(&mut client, number, *task), [number as u8]);
    }
}

#[test]
fn a_failed_attempt_is_tried_again_and_the_history_is_kept_until_it_is_dead() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let (mut client, mut worker) = (Wire::client(&served), Wire::worker(&served, "w", 1));
    let options = TaskOptions { backoff_first_ms: Some(20), max_attempts: Some(3), ..BACKGROUND };
    let task = submit_accepted(&mut client, 1, options, b"x");
    for attempt in 1..=3 {
        let (id, seen, of, _) = assigned(&mut worker);
        assert_eq!((seen, of), (attempt, task));
        answer(&mut worker, id, Outcome::Retry, "the disk is busy");
    }
    ask(&mut client, 2, task, LONG_MS);
    let (_, code, message) = client.expect_error();
    assert_eq!(code, "attempts_exhausted");
    assert!(message.contains("the disk is busy"), "{message}");
    let known = describe(&mut client, 3, task);
    assert_eq!((known["state"].as_str(), known["attempts"].as_u64()), (Some("dead"), Some(3)));
    let failed = known["failed_attempts"].as_array().expect("a list");
    assert_eq!(failed.len(), 2);
    assert_eq!((failed[0]["worker"].as_str(), failed[0]["attempt"].as_u64()), (Some("w"), Some(1)));

    client.send(&Message::RetryTask(RetryTask { id: 4, task_id: task }));
    let (state_after, _) = state(&mut client, 4);
    assert!(matches!(state_after, TaskState::Queued | TaskState::Running), "{state_after}");
    let (id, attempt, _, _) = assigned(&mut worker);
    assert_eq!(attempt, 1);
    worker.send(&done(id, b"at last"));
    assert_eq!(result(&mut client, 5, task), b"at last");
    client.send(&Message::DropTask(DropTask { id: 6, task_id: task }));
    assert_eq!(state(&mut client, 6).0, TaskState::Done);
    ask(&mut client, 7, task, 0);
    assert_eq!(client.expect_error().1, "not_found");
}

#[test]
fn the_same_idempotency_key_gives_the_first_tasks_id_and_runs_nothing_twice() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let options = TaskOptions { idempotency_key: Some(b"invoice 17"), ..BACKGROUND };
    submit(&mut client, 1, options, b"x");
    let (task, known) = accepted(&mut client, 1);
    assert!(!known);
    submit(&mut client, 2, options, b"y");
    assert_eq!(accepted(&mut client, 2), (task, true));
    let served = restart(served, folder.path());
    let mut client = Wire::client(&served);
    submit(&mut client, 3, options, b"z");
    assert_eq!(accepted(&mut client, 3), (task, true));
    let action = Task { id: 4, action: "other", options, payload: b"" };
    client.send(&Message::Task(action));
    assert!(!accepted(&mut client, 4).1, "another action's key is another key");
    let worker = echo_worker(&served, "w");
    assert_eq!(result(&mut client, 5, task), b"x");
    served.stop();
    assert_eq!(worker.join().expect("it has ended"), 1, "it ran once");
}

#[test]
fn a_cancelled_task_is_told_to_its_worker_and_to_those_who_wait() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let (mut client, mut worker) = (Wire::client(&served), Wire::worker(&served, "w", 1));
    let task = submit_accepted(&mut client, 1, BACKGROUND, b"x");
    let (assignment, ..) = assigned(&mut worker);
    let mut waiter = Wire::client(&served);
    ask(&mut waiter, 1, task, LONG_MS);
    client.send(&Message::Cancel(Cancel { id: 2, task_id: Some(task), recall: false }));
    assert_eq!(state(&mut client, 2).0, TaskState::Cancelled);
    assert_eq!(worker.expect(FrameType::Cancel).as_frame().id, assignment);
    assert_eq!(waiter.expect_error().1, "cancelled");
    worker.send(&done(assignment, b"too late"));
    ask(&mut client, 3, task, 0);
    assert_eq!(client.expect_error().1, "cancelled");
    client.send(&Message::Cancel(Cancel { id: 4, task_id: Some([1; 16]), recall: false }));
    assert_eq!(client.expect_error().1, "not_found");
}

#[test]
fn a_delayed_task_waits_for_its_time_also_over_a_restart() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let far = TaskOptions { delay_ms: Some(limits::MAX_TIME.as_millis() as u64), ..BACKGROUND };
    let never = submit_accepted(&mut client, 1, far, b"far");
    let soon = TaskOptions { delay_ms: Some(300), ..BACKGROUND };
    let task = submit_accepted(&mut client, 2, soon, b"soon");
    ask(&mut client, 3, never, 0);
    assert_eq!(state(&mut client, 3).0, TaskState::Scheduled);
    // This one may be due by now.
    ask(&mut client, 4, task, 0);
    assert!(matches!(state(&mut client, 4).0, TaskState::Scheduled | TaskState::Queued));
    let served = restart(served, folder.path());
    let _worker = echo_worker(&served, "w");
    let mut client = Wire::client(&served);
    assert_eq!(result(&mut client, 1, task), b"soon");
    ask(&mut client, 2, never, 0);
    assert_eq!(state(&mut client, 2).0, TaskState::Scheduled);
}

#[test]
fn a_deadline_ends_a_task_that_nobody_runs() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let options = TaskOptions { deadline_ms: Some(100), ..BACKGROUND };
    let task = submit_accepted(&mut client, 1, options, b"x");
    ask(&mut client, 2, task, LONG_MS);
    assert_eq!(client.expect_error().1, "expired");
}

#[test]
fn large_payloads_and_results_pass_through_the_blob_store() {
    let folder = folder();
    let mut settings = with_store(folder.path());
    settings.store = settings.store.map(|store| StoreSettings { blob_threshold: 10_000, ..store });
    let served = serve(settings);
    let mut client = Wire::client(&served);
    let payload: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let task = submit_accepted(&mut client, 1, BACKGROUND, &payload);
    let served = restart(served, folder.path());
    let _worker = echo_worker(&served, "w");
    let mut client = Wire::client(&served);
    assert!(result(&mut client, 2, task) == payload, "another payload came back");
}

#[test]
fn a_queue_far_larger_than_the_window_runs_to_its_end_and_lists_in_pages() {
    let folder = folder();
    let mut settings = with_store(folder.path());
    settings.store = settings.store.map(|store| StoreSettings { window_tasks: 64, ..store });
    let served = serve(settings);
    let mut client = Wire::client(&served);
    let all = 3000;
    for id in 1..=all {
        submit(&mut client, id, BACKGROUND, &id.to_be_bytes());
    }
    let tasks: Vec<_> = (1..=all)
        .map(|_| {
            let frame = client.expect(FrameType::Accepted);
            let Ok(Message::Accepted(accepted)) = Message::decode(&frame.as_frame()) else {
                panic!("decodes")
            };
            (accepted.id, accepted.task_id)
        })
        .collect();
    let (mut listed, mut before) = (0, None);
    loop {
        let page = list(&mut client, Some(TaskState::Queued), before, 500);
        let rows = page["tasks"].as_array().expect("a list");
        assert!(rows.len() <= 500);
        listed += rows.len();
        let Some(next) = page["next"].as_str() else { break };
        let bytes: Vec<u8> = (0..32)
            .step_by(2)
            .map(|at| u8::from_str_radix(&next.replace('-', "")[at..at + 2], 16).expect("a UUID"))
            .collect();
        before = bytes.try_into().ok();
    }
    assert_eq!(listed as u64, all);
    let worker = echo_worker(&served, "w");
    for (id, task) in &tasks {
        assert_eq!(result(&mut client, *id, *task), id.to_be_bytes());
    }
    served.stop();
    assert_eq!(worker.join().expect("it has ended"), all, "each ran once");
}

#[test]
fn a_worker_that_comes_back_goes_on_with_what_it_holds_and_it_costs_no_attempt() {
    let folder = folder();
    let mut settings = with_store(folder.path());
    settings.store =
        settings.store.map(|store| StoreSettings { claim_time: Duration::from_secs(60), ..store });
    let served = serve(settings.clone());
    let mut client = Wire::client(&served);
    let task = submit_accepted(&mut client, 1, BACKGROUND, b"long");
    let mut worker = Wire::worker(&served, "w", 1);
    assigned(&mut worker);
    // Once the store knows that it runs, it is left to its worker after a restart.
    support::wait_until("the task is known to run", || {
        let known = rusqlite_state(folder.path(), &task);
        known == Some(TaskState::Running as u8)
    });
    served.stop();
    worker.expect_end();

    let served = serve(settings);
    let mut client = Wire::client(&served);
    let mut other = Wire::worker(&served, "other", 1);
    let mut worker = Wire::hello(served.workers, Role::Worker);
    let Message::Register(usual) = register("w", 1) else { unreachable!() };
    let held = [task, [5; 16]];
    worker.send(&Message::Register(Register { held: HeldTasks::new(&held), ..usual }));
    worker.expect(FrameType::Ack);
    let mut said = [worker.receive().expect("an answer"), worker.receive().expect("another")];
    said.sort_by_key(|frame| frame.as_frame().kind as u8);
    let Ok(Message::Cancel(unknown)) = Message::decode(&said[0].as_frame()) else { panic!("{said:?}") };
    assert_eq!((unknown.id, unknown.task_id), (0, Some([5; 16])));
    let Ok(Message::AssignTask(again)) = Message::decode(&said[1].as_frame()) else { panic!("{said:?}") };
    assert_eq!((again.task_id, again.held, again.attempt), (Some(task), true, 1));
    worker.send(&done(again.id, b"late"));
    assert_eq!(result(&mut client, 1, task), b"late");
    assert_eq!(describe(&mut client, 2, task)["attempts"], 1);
    // The other worker was given nothing.
    let next = submit_accepted(&mut client, 3, BACKGROUND, b"next");
    let (_, _, first, _) = assigned_by_either(&mut other, &mut worker);
    assert_eq!(first, next);
}

#[test]
fn a_task_that_two_workers_name_goes_on_at_one_and_is_refused_to_the_other_also_while_its_payload_is_read() {
    let folder = folder();
    let mut settings = with_store(folder.path());
    settings.store =
        settings.store.map(|store| StoreSettings { claim_time: Duration::from_secs(60), ..store });
    let served = serve(settings.clone());
    let mut client = Wire::client(&served);
    // So large that it is a blob, which takes the balancer a moment to read.
    let task = submit_accepted(&mut client, 1, BACKGROUND, &vec![7; 4 << 20]);
    let mut worker = Wire::worker(&served, "w", 1);
    assigned(&mut worker);
    support::wait_until("the task is known to run", || {
        rusqlite_state(folder.path(), &task) == Some(TaskState::Running as u8)
    });
    served.stop();

    let served = serve(settings);
    let mut workers = ["w", "x"].map(|id| (id, Wire::hello(served.workers, Role::Worker)));
    let held = [task];
    for (id, worker) in &mut workers {
        let Message::Register(usual) = register(id, 1) else { unreachable!() };
        worker.send(&Message::Register(Register { held: HeldTasks::new(&held), ..usual }));
    }
    // Both stay connected until both are answered: what the first holds is given to the other once it is gone.
    let mut said = workers.each_mut().map(|(_, worker)| {
        worker.expect(FrameType::Ack);
        worker.receive().expect("an answer to what it named").as_frame().kind
    });
    said.sort_by_key(|kind| *kind as u8);
    assert_eq!(said, [FrameType::Cancel, FrameType::AssignTask]);
}

/// The next assignment of two workers, of which one is given it.
fn assigned_by_either(one: &mut Wire, other: &mut Wire) -> (u64, u8, [u8; 16], bool) {
    for wire in [&mut *one, &mut *other] {
        wire.stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a time");
    }
    let mut turn = 0;
    loop {
        let wire = if turn % 2 == 0 { &mut *one } else { &mut *other };
        turn += 1;
        let mut byte = [0; 1];
        if matches!(wire.stream.peek(&mut byte), Ok(count) if count > 0) {
            wire.stream.set_read_timeout(Some(support::PATIENCE)).expect("a time");
            return assigned(wire);
        }
    }
}

/// What the tables say of a task's state, once it stands in them.
fn rusqlite_state(folder: &Path, task: &[u8; 16]) -> Option<u8> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(folder.join("reparto.sqlite"), flags).ok()?;
    connection.query_row("SELECT state FROM tasks WHERE id = ?", [task.as_slice()], |row| row.get(0)).ok()
}

#[test]
fn what_ran_and_is_named_by_nobody_runs_again_after_a_while_and_costs_no_attempt() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let task = submit_accepted(&mut client, 1, BACKGROUND, b"long");
    let mut worker = Wire::worker(&served, "w", 1);
    assigned(&mut worker);
    support::wait_until("the task is known to run", || {
        rusqlite_state(folder.path(), &task) == Some(TaskState::Running as u8)
    });
    let served = restart(served, folder.path());
    let mut worker = Wire::worker(&served, "another", 1);
    let (id, attempt, of, held) = assigned(&mut worker);
    assert_eq!((attempt, of, held), (1, task, false));
    worker.send(&done(id, b"again"));
    let mut client = Wire::client(&served);
    assert_eq!(result(&mut client, 1, task), b"again");
}

#[test]
fn a_recorded_foreground_task_is_accepted_and_answered_and_its_client_leaving_cancels_it() {
    let folder = folder();
    let served = serve(with_store(folder.path()));
    let mut client = Wire::client(&served);
    let record = TaskOptions { background: false, record: true, ..BACKGROUND };
    submit(&mut client, 1, record, b"one");
    let (task, _) = accepted(&mut client, 1);
    let mut worker = Wire::worker(&served, "w", 1);
    let (id, ..) = assigned(&mut worker);
    worker.send(&done(id, b"ONE"));
    let frame = client.expect(FrameType::Result);
    assert_eq!((frame.as_frame().id, frame.as_frame().payload), (1, b"ONE".as_slice()));
    let mut other = Wire::client(&served);
    assert_eq!(result(&mut other, 1, task), b"ONE");

    submit(&mut client, 2, record, b"two");
    let (left, _) = accepted(&mut client, 2);
    let (id, ..) = assigned(&mut worker);
    drop(client);
    assert_eq!(worker.expect(FrameType::Cancel).as_frame().id, id);
    ask(&mut other, 2, left, LONG_MS);
    assert_eq!(other.expect_error().1, "cancelled");
    submit(&mut other, 3, record, b"three");
    let (third, _) = accepted(&mut other, 3);
    other.send(&Message::Cancel(Cancel { id: 3, task_id: None, recall: false }));
    let (id, code, _) = other.expect_error();
    assert_eq!((id, code.as_str()), (3, "cancelled"));
    ask(&mut other, 4, third, 0);
    assert_eq!(other.expect_error().1, "cancelled");
}
