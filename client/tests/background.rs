//! Tasks that the balancer keeps, against a balancer that follows a script.

#![allow(clippy::unwrap_used)] // A panic here is a failed test, in its helpers too.

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reparto_client::{
    Accepted, Client, ClientError, Completion, ErrorCode, Fetched, TaskFilter, TaskId, TaskState,
};
use reparto_protocol::{FrameType, Message, OwnedFrame, TaskList};

use support::{FakeBalancer, PATIENCE, Peer};

mod support;

const ID: [u8; 16] = [7; 16];
const SECOND: Duration = Duration::from_secs(1);

fn connect(balancer: &FakeBalancer) -> Client {
    support::client().balancer(&balancer.address[..]).reconnect_for(PATIENCE).connect().unwrap()
}

/// A balancer with a store that hands every frame to `answer`.
fn answering(answer: impl Fn(&mut Peer, Message<'_>) + Send + Sync + 'static) -> FakeBalancer {
    FakeBalancer::start(move |mut peer, _| {
        peer.welcome_with_store();
        while let Some(frame) = peer.next() {
            answer(&mut peer, Message::decode(&frame.as_frame()).unwrap());
        }
    })
}

fn id_of(number: u8) -> TaskId {
    TaskId::from_bytes([number; 16])
}

#[test]
fn a_background_task_is_accepted_with_its_id_and_the_handle_can_be_awaited_more_than_once() {
    let balancer = answering(|peer, message| {
        let Message::Task(task) = message else { panic!("{message:?}") };
        assert!(task.options.background && !task.options.record);
        peer.accepted(task.id, ID, task.payload == b"again");
    });
    let client = connect(&balancer);
    assert!(client.has_store());
    let reply = client.task("upper").payload("hola").submit_background().unwrap();
    let accepted = Accepted { task_id: TaskId::from_bytes(ID), duplicate: false };
    assert_eq!(reply.wait(), Ok(accepted));
    assert_eq!(reply.try_result(), Some(Ok(accepted)));
    let again = client.task("upper").payload("again").submit_background().unwrap().wait().unwrap();
    assert!(again.duplicate);
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn every_option_of_a_background_task_reaches_the_balancer() {
    let (tell, told) = mpsc::channel();
    let balancer = answering(move |peer, message| {
        let Message::Task(task) = message else { panic!("{message:?}") };
        let options = task.options;
        let key = options.idempotency_key.map(<[u8]>::to_vec);
        tell.send((options.delay_ms, options.start_at_ms, key, format!("{options:?}"))).unwrap();
        peer.accepted(task.id, ID, false);
    });
    let client = connect(&balancer);
    let task = client.task("report").priority(7).max_attempts(5).deadline(1_000 * SECOND);
    let task = task.delay(100 * SECOND).start_at(UNIX_EPOCH + 5 * SECOND).backoff(2 * SECOND);
    let task = task.max_backoff(60 * SECOND).idempotency_key("once").idempotency_window(90 * SECOND);
    task.submit_background().unwrap().wait().unwrap();
    let (delay_ms, start_at_ms, key, options) = told.recv().unwrap();
    assert!((1..=100_000).contains(&delay_ms.unwrap()), "{delay_ms:?}");
    assert_eq!((start_at_ms, key), (Some(5_000), Some(b"once".to_vec())));
    for part in [
        "priority: Some(7)",
        "max_attempts: Some(5)",
        "backoff_first_ms: Some(2000)",
        "backoff_most_ms: Some(60000)",
        "idempotency_ms: Some(90000)",
    ] {
        assert!(options.contains(part), "{options}");
    }
}

#[test]
fn options_that_have_no_use_are_refused_before_anything_is_sent() {
    let balancer = answering(|_, message| panic!("{message:?} was sent"));
    let client = connect(&balancer);
    let invalid = |error: ClientError| assert!(matches!(error, ClientError::Invalid { .. }), "{error:?}");
    invalid(client.task("x").delay(SECOND).submit().unwrap_err());
    invalid(client.task("x").key("k").submit_background().unwrap_err());
    invalid(client.task("").submit_background().unwrap_err());
    invalid(client.fetch(id_of(1), Duration::MAX).unwrap_err());
    invalid(client.list_tasks(&TaskFilter::new().action(""), None, 1).unwrap_err());
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn an_accepted_queue_gives_the_ids_of_many_tasks_by_their_tags() {
    let balancer = answering(|peer, message| {
        let Message::Task(task) = message else { panic!("{message:?}") };
        let number: u8 = std::str::from_utf8(task.payload).unwrap().parse().unwrap();
        match number {
            13 => peer.error(task.id, ErrorCode::StoreUnavailable, "the disk is full"),
            _ => peer.accepted(task.id, [number; 16], false),
        }
    });
    let client = connect(&balancer);
    let queue = client.accepted_queue(200);
    for number in 0..200u64 {
        queue.try_submit(number, client.task("echo").payload(number.to_string())).unwrap();
    }
    queue.close();
    let mut batch: Vec<Completion<Accepted>> = Vec::new();
    while queue.recv_batch(&mut batch) {}
    assert_eq!(batch.len(), 200);
    for completion in batch {
        match completion.tag {
            13 => assert_eq!(completion.outcome.unwrap_err().code, ErrorCode::StoreUnavailable),
            tag => assert_eq!(completion.outcome.unwrap().task_id, id_of(tag as u8)),
        }
    }
}

#[test]
fn a_lost_submit_is_sent_again_only_with_an_idempotency_key_or_when_it_is_said_to_be_safe() {
    let received = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&received);
    let balancer = FakeBalancer::start(move |mut peer, connection| {
        peer.welcome_with_store();
        let mut count = 0;
        while let Some((id, payload)) = peer.next_task() {
            seen.lock().unwrap().push(payload);
            count += 1;
            match connection {
                0 if count == 3 => return,
                0 => {}
                _ => peer.accepted(id, ID, true),
            }
        }
    });
    let client = connect(&balancer);
    let bare = client.task("echo").payload("bare").submit_background().unwrap();
    let keyed = client.task("echo").payload("keyed").idempotency_key("k").submit_background().unwrap();
    let safe = client.task("echo").payload("safe").safe_to_repeat(true).submit_background().unwrap();
    assert_eq!(bare.wait().unwrap_err().code, ErrorCode::ConnectionLost);
    assert!(keyed.wait().unwrap().duplicate);
    assert_eq!(safe.wait().unwrap().task_id, TaskId::from_bytes(ID));
    let received: Vec<Bytes> = received.lock().unwrap().clone();
    assert_eq!(received, ["bare", "keyed", "safe", "keyed", "safe"].map(Bytes::from));
    assert_eq!(balancer.connections.load(Ordering::SeqCst), 2);
}

#[test]
fn a_fetch_tells_results_failures_and_what_has_not_ended_apart() {
    let balancer = answering(|peer, message| {
        let Message::Fetch(fetch) = message else { panic!("{message:?}") };
        assert!(!fetch.describe);
        let (id, sentence) = (fetch.id, "told");
        match fetch.task_id[0] {
            0 => peer.result(id, b"HOLA"),
            1 => peer.error(id, ErrorCode::WorkerFailed, sentence),
            2 => peer.error(id, ErrorCode::AttemptsExhausted, sentence),
            3 => peer.error(id, ErrorCode::Cancelled, sentence),
            4 => peer.error(id, ErrorCode::Expired, sentence),
            5 => peer.error(id, ErrorCode::NotFound, sentence),
            _ => peer.standing(id, fetch.task_id, TaskState::Running, b""),
        }
    });
    let client = connect(&balancer);
    let fetch = |number| client.fetch(id_of(number), Duration::ZERO).unwrap().wait();
    assert_eq!(fetch(0), Ok(Fetched::Ended(Ok("HOLA".into()))));
    use ErrorCode::{AttemptsExhausted, Cancelled, Expired, WorkerFailed};
    for (number, code) in (1..).zip([WorkerFailed, AttemptsExhausted, Cancelled, Expired]) {
        let Ok(Fetched::Ended(Err(failure))) = fetch(number) else { panic!("{code}") };
        assert_eq!((failure.code, &failure.message[..]), (code, "told"));
    }
    assert_eq!(fetch(5).unwrap_err().code, ErrorCode::NotFound);
    let Ok(Fetched::NotEnded(standing)) = fetch(6) else { panic!() };
    assert_eq!((standing.state, standing.task_id), (TaskState::Running, id_of(6)));
}

#[test]
fn a_fetch_that_waits_is_asked_again_on_the_next_connection_for_the_time_that_is_left() {
    let (tell, told) = mpsc::channel();
    let balancer = FakeBalancer::start(move |mut peer, connection| {
        peer.welcome_with_store();
        let frame = peer.next().unwrap();
        let Message::Fetch(fetch) = Message::decode(&frame.as_frame()).unwrap() else { panic!() };
        tell.send(fetch.wait_ms).unwrap();
        if connection > 0 {
            peer.result(fetch.id, b"found");
            peer.hold();
        }
    });
    let client = connect(&balancer);
    let reply = client.fetch(id_of(1), 600 * SECOND).unwrap();
    assert_eq!(reply.wait(), Ok(Fetched::Ended(Ok("found".into()))));
    let (first, second) = (told.recv().unwrap(), told.recv().unwrap());
    assert!(first <= 600_000 && second <= first && second > 0, "{first} {second}");
}

#[test]
fn cancel_retry_and_drop_go_by_task_id_and_tell_where_the_task_stands() {
    let balancer = answering(|peer, message| match message {
        Message::Cancel(cancel) => {
            let task_id = cancel.task_id.unwrap();
            peer.standing(cancel.id, task_id, TaskState::Cancelled, b"");
        }
        Message::RetryTask(retry) => peer.standing(retry.id, retry.task_id, TaskState::Queued, b""),
        Message::DropTask(drop) if drop.task_id[0] == 9 => {
            peer.error(drop.id, ErrorCode::NotFound, "no task has that id");
        }
        Message::DropTask(drop) => peer.standing(drop.id, drop.task_id, TaskState::Dead, b""),
        other => panic!("{other:?}"),
    });
    let client = connect(&balancer);
    let standing = client.cancel_task(id_of(1)).unwrap().wait().unwrap();
    assert_eq!((standing.state, standing.ended_at_ms.is_some()), (TaskState::Cancelled, true));
    assert_eq!(client.retry_task(id_of(2)).unwrap().wait().unwrap().state, TaskState::Queued);
    assert_eq!(client.drop_task(id_of(3)).unwrap().wait().unwrap().state, TaskState::Dead);
    assert_eq!(client.drop_task(id_of(9)).unwrap().wait().unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn of_lost_requests_cancel_is_sent_again_and_retry_and_drop_are_not() {
    let balancer = FakeBalancer::start(|mut peer, connection| {
        peer.welcome_with_store();
        if connection == 0 {
            for _ in 0..3 {
                peer.next().unwrap();
            }
            return;
        }
        while let Some(frame) = peer.next() {
            let Message::Cancel(cancel) = Message::decode(&frame.as_frame()).unwrap() else { panic!() };
            peer.standing(cancel.id, ID, TaskState::Cancelled, b"");
        }
    });
    let client = connect(&balancer);
    let cancel = client.cancel_task(id_of(1)).unwrap();
    let (retry, drop) = (client.retry_task(id_of(2)).unwrap(), client.drop_task(id_of(3)).unwrap());
    assert_eq!(retry.wait().unwrap_err().code, ErrorCode::ConnectionLost);
    assert_eq!(drop.wait().unwrap_err().code, ErrorCode::ConnectionLost);
    assert_eq!(cancel.wait().unwrap().state, TaskState::Cancelled);
}

fn description(number: u8) -> String {
    format!(
        r#"{{"id":"{}","action":"upper","state":"dead","priority":4,"attempts":3,"max_attempts":3,
            "created_at_ms":1,"due_at_ms":null,"deadline_at_ms":null,"ended_at_ms":9,
            "code":"attempts_exhausted","error":"the disk is busy"}}"#,
        id_of(number)
    )
}

#[test]
fn a_task_is_described_with_its_history() {
    let balancer = answering(|peer, message| {
        let Message::Fetch(fetch) = message else { panic!("{message:?}") };
        assert!(fetch.describe);
        let text = description(1);
        let text = format!(
            r#"{},"failed_attempts":[{{"attempt":1,"at_ms":5,"worker":"one","code":"worker_failed","error":"busy"}}]}}"#,
            text.strip_suffix('}').unwrap()
        );
        let text = if fetch.task_id[0] == 1 { text } else { "{}".into() };
        peer.standing(fetch.id, fetch.task_id, TaskState::Dead, text.as_bytes());
    });
    let client = connect(&balancer);
    let task = client.describe(id_of(1)).unwrap();
    assert_eq!((task.id, task.state, task.attempts), (id_of(1), TaskState::Dead, 3));
    assert_eq!(task.error.as_deref(), Some("the disk is busy"));
    let history = task.failed_attempts.unwrap();
    assert_eq!((history.len(), history[0].worker.as_deref()), (1, Some("one")));
    assert!(matches!(client.describe(id_of(2)), Err(ClientError::BadReport(_))));
}

/// Answers with the pages that begin at ids 9, 6 and 3; the second is empty.
fn page(frame: &OwnedFrame) -> (u64, String) {
    let Message::ListTasks(list) = Message::decode(&frame.as_frame()).unwrap() else { panic!() };
    assert_eq!((list.action, list.state, list.since_ms), (Some("upper"), Some(TaskState::Dead), Some(5_000)));
    let tasks =
        |numbers: &[u8]| numbers.iter().map(|number| description(*number)).collect::<Vec<_>>().join(",");
    let (tasks, next) = match list.before.map(|id| id[0]) {
        None => (tasks(&[9, 8, 7]), format!("\"{}\"", id_of(7))),
        Some(7) => (String::new(), format!("\"{}\"", id_of(4))),
        Some(4) => (tasks(&[3]), "null".into()),
        other => panic!("there is no page at {other:?}"),
    };
    (list.id, format!(r#"{{"tasks":[{tasks}],"next":{next}}}"#))
}

#[test]
fn a_list_is_walked_page_by_page_to_its_end() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome_with_store();
        while let Some(frame) = peer.next() {
            let (id, json) = page(&frame);
            peer.send(Message::TaskList(TaskList { id, payload: json.as_bytes() }));
        }
    });
    let client = connect(&balancer);
    let since = UNIX_EPOCH + 5 * SECOND;
    let filter = TaskFilter::new().action("upper").state(TaskState::Dead).since(since);
    let ids: Vec<TaskId> = client.tasks(filter.clone()).map(|task| task.unwrap().id).collect();
    assert_eq!(ids, [9, 8, 7, 3].map(id_of));
    let page = client.list_tasks(&filter, Some(id_of(4)), 10).unwrap();
    assert_eq!((page.tasks.len(), page.next), (1, None));
}

#[test]
fn a_balancer_that_gives_the_same_page_for_ever_ends_the_list() {
    let balancer = answering(|peer, message| {
        let Message::ListTasks(list) = message else { panic!("{message:?}") };
        let json = format!(r#"{{"tasks":[],"next":"{}"}}"#, id_of(5));
        peer.send(Message::TaskList(TaskList { id: list.id, payload: json.as_bytes() }));
    });
    let client = connect(&balancer);
    assert_eq!(client.tasks(TaskFilter::new()).count(), 0);
}

#[test]
fn a_balancer_without_a_store_is_not_sent_what_it_may_not_understand() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        while let Some(frame) = peer.next() {
            match Message::decode(&frame.as_frame()).unwrap() {
                Message::Task(task) => peer.result(task.id, b"foreground"),
                other => panic!("{other:?} was sent"),
            }
        }
    });
    let client = connect(&balancer);
    assert!(client.is_connected() && !client.has_store());
    let codes = [
        client.task("x").submit_background().unwrap().wait().unwrap_err().code,
        client.task("x").recorded(true).submit().unwrap().wait().unwrap_err().code,
        client.fetch(id_of(1), SECOND).unwrap().wait().unwrap_err().code,
        client.cancel_task(id_of(1)).unwrap().wait().unwrap_err().code,
        client.retry_task(id_of(1)).unwrap().wait().unwrap_err().code,
        client.describe(id_of(1)).unwrap_err().code(),
        client.list_tasks(&TaskFilter::new(), None, 1).unwrap_err().code(),
    ];
    assert_eq!(codes, [ErrorCode::StoreUnavailable; 7]);
    assert_eq!(client.submit("x", "").unwrap().wait().unwrap(), "foreground");
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn what_waits_for_a_connection_ends_when_the_next_balancer_has_no_store() {
    let balancer = FakeBalancer::start(|mut peer, connection| {
        if connection == 0 {
            peer.welcome_with_store();
            peer.next();
        } else {
            peer.welcome();
            peer.hold();
        }
    });
    let client = connect(&balancer);
    let failure = client.fetch(id_of(1), 600 * SECOND).unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::StoreUnavailable);
}

#[test]
fn a_recorded_task_has_its_id_before_its_result() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let balancer = answering(move |peer, message| {
        let Message::Task(task) = message else { panic!("{message:?}") };
        assert!(task.options.record && !task.options.background);
        peer.accepted(task.id, ID, false);
        gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        peer.result(task.id, b"HOLA");
    });
    let client = connect(&balancer);
    let task = client.task("upper").payload("hola").recorded(true).submit().unwrap();
    assert_eq!(task.wait_task_id(), Some(TaskId::from_bytes(ID)));
    assert_eq!(task.try_result(), None);
    go.send(()).unwrap();
    assert_eq!(task.wait().unwrap(), "HOLA");
    assert_eq!(task.wait_task_id(), Some(TaskId::from_bytes(ID)));
}

#[test]
fn a_background_task_that_was_sent_and_is_too_late_to_be_sent_again_is_in_doubt_and_not_expired() {
    let (address, connection) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connection = std::thread::spawn(move || listener.accept().unwrap().0);
        (address, connection)
    };
    let client = std::thread::spawn(move || {
        support::client().balancer(address).reconnect_for(PATIENCE).connect().unwrap()
    });
    let mut peer = Peer::new(connection.join().unwrap());
    peer.welcome_with_store();
    let client = client.join().unwrap();
    let task = client.task("upper").idempotency_key("k").deadline(SECOND).submit_background().unwrap();
    peer.next_task().unwrap();
    // It was read, and perhaps taken in; nobody listens any more.
    drop(peer);
    assert_eq!(task.wait().unwrap_err().code, ErrorCode::ConnectionLost);
}

#[test]
fn a_recorded_task_whose_cancel_was_not_answered_is_not_said_to_be_cancelled() {
    // The balancer may have gone before it read the CANCEL, and the task, which is durable, may run after all.
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome_with_store();
        let (id, _) = peer.next_task().unwrap();
        peer.accepted(id, ID, false);
        while peer.next().is_some_and(|frame| frame.as_frame().kind != FrameType::Cancel) {}
    });
    let client = connect(&balancer);
    let recorded = client.task("upper").recorded(true).submit().unwrap();
    assert_eq!(recorded.wait_task_id(), Some(TaskId::from_bytes(ID)));
    recorded.cancel();
    assert_eq!(recorded.wait().unwrap_err().code, ErrorCode::ConnectionLost);
}

#[test]
fn an_answer_of_the_wrong_kind_is_dropped_and_the_right_one_still_counts() {
    let balancer = answering(|peer, message| match message {
        Message::Task(task) => {
            peer.result(task.id, b"no");
            peer.standing(task.id, ID, TaskState::Done, b"");
            peer.accepted(task.id, ID, false);
        }
        Message::Fetch(fetch) => {
            peer.accepted(fetch.id, ID, false);
            peer.result(fetch.id, b"yes");
        }
        other => panic!("{other:?}"),
    });
    let client = connect(&balancer);
    let accepted = client.task("x").submit_background().unwrap().wait().unwrap();
    assert_eq!(accepted.task_id, TaskId::from_bytes(ID));
    assert_eq!(client.fetch(id_of(1), SECOND).unwrap().wait(), Ok(Fetched::Ended(Ok("yes".into()))));
}

#[test]
fn a_start_time_before_1970_is_at_once() {
    let balancer = answering(|peer, message| {
        let Message::Task(task) = message else { panic!("{message:?}") };
        assert_eq!(task.options.start_at_ms, Some(0));
        peer.accepted(task.id, ID, false);
    });
    let client = connect(&balancer);
    let long_ago: SystemTime = UNIX_EPOCH - SECOND;
    client.task("x").start_at(long_ago).submit_background().unwrap().wait().unwrap();
}
