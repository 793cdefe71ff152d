//! Tasks and their outcomes, against a balancer that follows a script.

#![allow(clippy::unwrap_used)] // A panic here is a failed test, in its helpers too.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::Duration;

use reparto_client::{Client, ClientError, ErrorCode};
use reparto_protocol::{FrameType, Message};

use support::{FakeBalancer, PATIENCE, Peer};

mod support;

fn connect(balancer: &FakeBalancer) -> Client {
    support::client().balancer(&balancer.address[..]).connect().unwrap()
}

#[test]
fn a_task_comes_back_with_its_result() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    assert_eq!(client.submit("echo", "hola").unwrap().wait().unwrap(), "hola");
    assert_eq!(client.submit("echo", "").unwrap().wait().unwrap(), "");
    assert_eq!(client.in_flight(), 0);
    assert_eq!(balancer.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn every_option_reaches_the_balancer() {
    let (tell, told) = mpsc::channel();
    let balancer = FakeBalancer::start(move |mut peer, _| {
        peer.welcome();
        let frame = peer.next().unwrap();
        let Message::Task(task) = Message::decode(&frame.as_frame()).unwrap() else { panic!() };
        tell.send((
            task.action.to_owned(),
            task.options.key.map(<[u8]>::to_vec),
            format!("{:?}", task.options),
        ))
        .unwrap();
        peer.result(task.id, b"");
    });
    let client = connect(&balancer);
    let task = client.task("resize").payload("x").priority(9).key("k").max_attempts(2);
    let task = task.deadline(Duration::from_secs(100)).wait_limit(Duration::from_secs(7));
    task.submit().unwrap().wait().unwrap();
    let (action, key, options) = told.recv().unwrap();
    assert_eq!((action.as_str(), key.as_deref()), ("resize", Some(&b"k"[..])));
    for part in ["priority: Some(9)", "wait_ms: Some(7000)", "max_attempts: Some(2)", "deadline_ms: Some("] {
        assert!(options.contains(part), "{options}");
    }
}

#[test]
fn answers_in_any_order_find_their_tasks() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        let tasks: Vec<_> = (0..100).map(|_| peer.next_task().unwrap()).collect();
        for (id, payload) in tasks.into_iter().rev() {
            peer.result(id, &payload);
        }
        peer.hold();
    });
    let client = connect(&balancer);
    let handles: Vec<_> = (0..100).map(|n| client.submit("echo", n.to_string()).unwrap()).collect();
    for (number, handle) in handles.iter().enumerate() {
        assert_eq!(handle.wait().unwrap(), number.to_string());
    }
}

#[test]
fn many_threads_share_one_connection() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for round in 0..20 {
                    let texts: Vec<String> = (0..50).map(|n| format!("{thread}/{round}/{n}")).collect();
                    let handles: Vec<_> =
                        texts.iter().map(|text| client.submit("echo", text.clone()).unwrap()).collect();
                    for (text, handle) in texts.iter().zip(&handles) {
                        assert_eq!(handle.wait().unwrap(), text.as_str());
                    }
                }
            });
        }
    });
    assert_eq!(balancer.connections.load(Ordering::SeqCst), 1);
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn large_payloads_travel_whole_among_small_ones() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    let sizes = [0, 10, 9_000, 3_000_000, 17, 200_000, 8_192, 131_072, 5];
    let handles: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(number, size)| client.submit("echo", vec![number as u8; *size]).unwrap())
        .collect();
    for (number, (size, handle)) in sizes.iter().zip(&handles).enumerate() {
        assert!(handle.wait().unwrap() == vec![number as u8; *size], "the payload of {size} bytes");
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn a_handle_is_a_future_that_needs_no_runtime() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    let answer = block_on(async {
        let (one, other) = (client.submit("echo", "1").unwrap(), client.submit("echo", "2").unwrap());
        (other.await.unwrap(), one.await.unwrap())
    });
    assert_eq!(answer, ("2".into(), "1".into()));
}

#[test]
fn a_failed_task_tells_code_message_and_payload() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        let (id, _) = peer.next_task().unwrap();
        peer.send(Message::Error(reparto_protocol::ErrorMessage {
            id,
            code: ErrorCode::WorkerFailed,
            message: "sum: 'x' is not a number",
            payload: b"details",
        }));
        peer.hold();
    });
    let failure = connect(&balancer).submit("sum", "1,x").unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::WorkerFailed);
    assert_eq!(failure.to_string(), "worker_failed: sum: 'x' is not a number");
    assert_eq!(failure.payload, "details");
}

#[test]
fn cancel_reaches_the_balancer_and_the_outcome_still_comes() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        let (id, _) = peer.next_task().unwrap();
        loop {
            let frame = peer.next().expect("the client says CANCEL");
            if let Message::Cancel(cancel) = Message::decode(&frame.as_frame()).unwrap() {
                assert_eq!(cancel.id, id);
                peer.error(id, ErrorCode::Cancelled, "cancelled by its client");
                return peer.hold();
            }
        }
    });
    let client = connect(&balancer);
    let task = client.submit("sleep", "100000").unwrap();
    assert_eq!(task.try_result(), None);
    assert_eq!(task.wait_timeout(Duration::from_millis(1)), None);
    task.cancel();
    task.cancel();
    assert_eq!(task.wait().unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(task.try_result().unwrap().unwrap_err().code, ErrorCode::Cancelled);
}

#[test]
fn progress_is_told_until_the_task_ends() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let balancer = FakeBalancer::start(move |mut peer, _| {
        peer.welcome();
        let (id, _) = peer.next_task().unwrap();
        for done in 1..=3 {
            peer.progress(id, done, 3);
            gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        peer.result(id, b"done");
        peer.hold();
    });
    let client = connect(&balancer);
    let mut task = client.submit("long", "").unwrap();
    for done in 1..=3 {
        let report = task.next_progress().unwrap();
        assert_eq!((report.done, report.total), (done, 3));
        assert_eq!(task.progress(), Some(report));
        assert_eq!(task.next_progress_timeout(Duration::from_millis(1)), None);
        go.send(()).unwrap();
    }
    assert_eq!(task.next_progress(), None);
    assert_eq!(task.wait().unwrap(), "done");
}

#[test]
fn a_payload_over_the_balancers_limit_is_refused_here_naming_both_sizes() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome_with(200_000, 5_000, 15_000);
        peer.echo_until_closed();
    });
    let client = connect(&balancer);
    let most = client.max_payload_bytes("echo");
    let error = client.submit("echo", vec![0; most + 1]).unwrap_err();
    assert!(matches!(error, ClientError::PayloadTooLarge { limit_bytes: 200_000, frame_bytes: 200_001, .. }));
    assert!(error.to_string().contains("200000") && error.to_string().contains(&(most + 1).to_string()));
    assert_eq!(client.submit("echo", vec![0; most]).unwrap().wait().unwrap().len(), most);
}

#[test]
fn options_out_of_their_range_are_refused_with_a_sentence() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    let long = "x".repeat(256);
    let day = Duration::from_secs(24 * 3600);
    for (task, what) in [
        (client.task(""), "the action"),
        (client.task(&long), "the action"),
        (client.task("echo").priority(10), "the priority"),
        (client.task("echo").max_attempts(0), "the number of attempts"),
        (client.task("echo").key(""), "the key"),
        (client.task("echo").key(&long), "the key"),
        (client.task("echo").deadline(367 * day), "the deadline"),
        (client.task("echo").wait_limit(Duration::MAX), "the wait limit"),
    ] {
        let error = task.submit().unwrap_err();
        assert!(error.to_string().starts_with(what), "{error}");
    }
}

/// Answers every task with its payload, once it may.
fn held_echo(gate: mpsc::Receiver<()>) -> FakeBalancer {
    let gate = std::sync::Mutex::new(gate);
    FakeBalancer::start(move |mut peer: Peer, _| {
        peer.welcome();
        while let Some((id, payload)) = peer.next_task() {
            let _ = gate.lock().unwrap().recv_timeout(PATIENCE);
            peer.result(id, &payload);
        }
    })
}

#[test]
fn at_the_bound_try_submit_refuses_and_submit_waits_for_room() {
    let (open, gate) = mpsc::channel();
    let balancer = held_echo(gate);
    let client = support::client().balancer(&balancer.address[..]).max_in_flight(2).connect().unwrap();
    let (one, two) = (client.submit("echo", "1").unwrap(), client.submit("echo", "2").unwrap());
    assert!(matches!(client.task("echo").payload("3").try_submit(), Err(ClientError::Full { limit: 2, .. })));
    let (started, has_started) = mpsc::channel();
    let waiting = std::thread::spawn({
        let client = client.clone();
        move || {
            started.send(()).unwrap();
            client.submit("echo", "3").unwrap().wait().unwrap()
        }
    });
    has_started.recv().unwrap();
    assert_eq!(client.in_flight(), 2);
    drop(open);
    assert_eq!(waiting.join().unwrap(), "3");
    assert_eq!((one.wait().unwrap(), two.wait().unwrap()), ("1".into(), "2".into()));
}

#[test]
fn a_peer_that_does_not_read_fills_the_buffer_only_to_its_bound() {
    let (close, closed) = mpsc::channel::<()>();
    let closed = std::sync::Mutex::new(closed);
    let balancer = FakeBalancer::start(move |mut peer, _| {
        peer.welcome();
        let _ = closed.lock().unwrap().recv_timeout(PATIENCE);
    });
    let client =
        support::client().balancer(&balancer.address[..]).max_buffered_bytes(1 << 20).connect().unwrap();
    let mut taken = 0;
    let error = loop {
        match client.task("echo").payload(vec![0; 100_000]).try_submit() {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 10_000, "no bound held");
    };
    assert!(matches!(error, ClientError::Full { limit: 1_048_576, .. }), "{error}");
    drop(close);
}

#[test]
fn a_completion_queue_gives_every_outcome_once_under_its_tag() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    let queue = client.completion_queue(100);
    let mut seen = HashSet::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for tag in 0..5_000u64 {
                let text = tag.to_string();
                queue.submit(tag, client.task("echo").payload_slice(text.as_bytes())).unwrap();
            }
            queue.push(5_000, Ok("5000".into())).unwrap();
            queue.close();
        });
        let mut batch = Vec::new();
        while queue.recv_batch(&mut batch) {
            for completion in batch.drain(..) {
                assert_eq!(completion.outcome.unwrap(), completion.tag.to_string());
                assert!(seen.insert(completion.tag));
            }
        }
    });
    assert_eq!(seen.len(), 5_001);
    assert!(matches!(queue.submit(1, client.task("echo")), Err(ClientError::QueueClosed)));
    assert_eq!(queue.recv(), None);
}

#[test]
fn a_completion_queue_holds_no_more_than_its_capacity() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    let queue = client.completion_queue(2);
    queue.try_submit(1, client.task("echo")).unwrap();
    queue.try_submit(2, client.task("echo")).unwrap();
    assert!(matches!(queue.try_submit(3, client.task("echo")), Err(ClientError::Full { limit: 2, .. })));
    assert!(queue.recv().is_some());
    queue.try_submit(3, client.task("echo")).unwrap();
    assert!(queue.recv_timeout(PATIENCE).is_some());
    assert!(queue.recv().is_some());
    assert_eq!((queue.outstanding(), queue.ready()), (0, 0));
    assert_eq!(queue.recv_timeout(Duration::from_millis(1)), None);
}

#[test]
fn a_refused_task_gives_its_place_in_the_queue_back() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    let queue = client.completion_queue(1);
    assert!(queue.submit(1, client.task("")).is_err());
    queue.try_submit(2, client.task("echo")).unwrap();
    assert_eq!(queue.recv().unwrap().tag, 2);
}

#[test]
fn a_callback_is_called_with_the_outcome_and_its_panic_hurts_nobody() {
    let balancer = FakeBalancer::echo();
    let client = connect(&balancer);
    client.task("echo").submit_with(|_| panic!("a callback that panics, on purpose")).unwrap();
    let (tell, told) = mpsc::channel();
    client.task("echo").payload("x").submit_with(move |outcome| tell.send(outcome).unwrap()).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap().unwrap(), "x");
}

#[test]
fn a_ping_is_answered() {
    let (tell, told) = mpsc::channel();
    let balancer = FakeBalancer::start(move |mut peer, _| {
        peer.welcome();
        peer.send(Message::Ping(reparto_protocol::Ping { id: 77 }));
        while let Some(frame) = peer.next() {
            if frame.as_frame().kind == FrameType::Pong {
                tell.send(frame.as_frame().id).unwrap();
            }
        }
    });
    let client = connect(&balancer);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 77);
    drop(client);
}

#[test]
fn a_handle_keeps_the_connection_after_its_client_was_dropped() {
    let (open, gate) = mpsc::channel();
    let balancer = held_echo(gate);
    let client = connect(&balancer);
    let task = client.submit("echo", "still here").unwrap();
    drop(client);
    open.send(()).unwrap();
    assert_eq!(task.wait().unwrap(), "still here");
}

#[test]
fn the_status_report_is_collected_page_by_page() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        while let Some(frame) = peer.next() {
            let Message::Status(status) = Message::decode(&frame.as_frame()).unwrap() else { continue };
            let to = (status.offset + status.limit.min(1000)).min(2500);
            let workers: Vec<String> = (status.offset..to)
                .map(|n| format!(r#"{{"id":"w{n}","threads":2,"service_ns":null,"actions":["echo"]}}"#))
                .collect();
            let report = format!(
                r#"{{"version":"0.1.0","policy":"least_loaded","totals":{{"workers":2500,"from_the_future":1}},
                    "workers":[{}],"actions":[],"workers_total":2500,"actions_total":0}}"#,
                workers.join(",")
            );
            let payload = report.as_bytes();
            peer.send(Message::StatusReport(reparto_protocol::StatusReport { id: status.id, payload }));
        }
    });
    let status = connect(&balancer).status().unwrap();
    assert_eq!((status.workers.len(), status.totals.workers), (2500, 2500));
    assert_eq!((&status.workers[2499].id[..], status.workers[7].threads), ("w2499", 2));
}

#[test]
fn a_status_report_that_is_not_one_is_a_named_error() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        let id = peer.next().unwrap().as_frame().id;
        peer.send(Message::StatusReport(reparto_protocol::StatusReport { id, payload: b"{]" }));
        peer.hold();
    });
    assert!(matches!(connect(&balancer).status(), Err(ClientError::BadReport(_))));
}
