//! Tasks over real sockets: there and back, large and small, refused, and answered when the balancer stops.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use reparto_balancer::{Balancer, BalancerError, Settings};
use reparto_protocol::{
    Cancel, Drain, Fetch, FrameType, Message, Ping, Progress, Role, Status, Task, TaskOptions,
};
use support::{Wire, done, echo_worker, hello, register, serve, settings, task};

#[test]
fn a_task_goes_to_a_worker_and_its_result_comes_back() {
    let served = serve(settings());
    let mut worker = Wire::worker(&served, "w1", 1);
    let mut client = Wire::client(&served);
    let options = TaskOptions { key: Some(b"k"), deadline_ms: Some(60_000), ..TaskOptions::default() };
    client.send(&Message::Task(Task { id: 42, action: "echo", options, payload: b"hola" }));
    let assigned = worker.expect(FrameType::AssignTask);
    let Ok(Message::AssignTask(assigned)) = Message::decode(&assigned.as_frame()) else { panic!("decodes") };
    assert_eq!((assigned.action, assigned.payload, assigned.key), ("echo", &b"hola"[..], Some(&b"k"[..])));
    assert!(assigned.deadline_ms.is_some_and(|ms| (1..=60_000).contains(&ms)));
    let half = Message::Progress(Progress { id: assigned.id, done: 1, total: 2, payload: b"half" });
    worker.send(&half);
    let progress = client.expect(FrameType::Progress);
    assert_eq!((progress.as_frame().id, progress.as_frame().payload), (42, &b"half"[..]));
    worker.send(&done(assigned.id, b"HOLA"));
    let result = client.expect(FrameType::Result);
    assert_eq!((result.as_frame().id, result.as_frame().payload), (42, &b"HOLA"[..]));
    served.stop();
}

#[test]
fn many_tasks_in_flight_each_come_back_once() {
    let served = serve(settings());
    let workers = [echo_worker(&served, "w1"), echo_worker(&served, "w2")];
    let mut client = Wire::client(&served);
    let mut sender = client.sender();
    let count = 20_000;
    let sending = std::thread::spawn(move || {
        for id in 1..=count {
            sender.send(&task(id, &[id as u8; 64]));
        }
    });
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        let result = client.expect(FrameType::Result);
        let result = result.as_frame();
        assert_eq!(result.payload, [result.id as u8; 64]);
        assert!(seen.insert(result.id), "{} came twice", result.id);
    }
    sending.join().unwrap();
    served.stop();
    let done: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert_eq!(done, count);
}

#[test]
fn a_large_payload_goes_there_and_back() {
    let served = serve(settings());
    let _worker = echo_worker(&served, "w1");
    let mut client = Wire::client(&served);
    let payload: Vec<u8> = (0..8 << 20).map(|index: u32| (index % 251) as u8).collect();
    client.round_trip(1, &payload);
    for (id, size) in [(2, 0), (3, 4095), (4, 4096), (5, 20_000), (6, 300_000), (7, 64)] {
        client.round_trip(id, &payload[..size]);
    }
    served.stop();
}

#[test]
fn a_second_worker_with_a_live_id_is_refused_by_name() {
    let served = serve(settings());
    let mut first = Wire::worker(&served, "same", 1);
    let mut second = Wire::hello(served.workers, Role::Worker);
    second.send(&register("same", 1));
    let (id, code, _) = second.expect_error();
    assert_eq!((id, code.as_str()), (0, "duplicate_worker"));
    second.expect_end();
    let mut client = Wire::client(&served);
    client.send(&task(1, b"still here"));
    let assigned = first.expect(FrameType::AssignTask);
    first.send(&done(assigned.as_frame().id, b"yes"));
    client.expect(FrameType::Result);
    drop(first);
    support::wait_until("the id is free again", || {
        let mut again = Wire::hello(served.workers, Role::Worker);
        again.send(&register("same", 1));
        again.receive().is_some_and(|frame| frame.as_frame().kind == FrameType::Ack)
    });
    served.stop();
}

#[test]
fn a_lost_workers_task_goes_to_another() {
    let served = serve(settings());
    let mut first = Wire::worker(&served, "w1", 1);
    let mut client = Wire::client(&served);
    client.send(&task(1, b"x"));
    first.expect(FrameType::AssignTask);
    let mut second = Wire::worker(&served, "w2", 1);
    drop(first);
    let assigned = second.expect(FrameType::AssignTask);
    let Ok(Message::AssignTask(assigned)) = Message::decode(&assigned.as_frame()) else { panic!("decodes") };
    assert_eq!((assigned.attempt, assigned.payload), (2, &b"x"[..]));
    second.send(&done(assigned.id, b"y"));
    client.expect(FrameType::Result);
    served.stop();
}

#[test]
fn a_cancel_reaches_the_worker_that_runs_the_task() {
    let served = serve(settings());
    let mut worker = Wire::worker(&served, "w1", 1);
    let mut client = Wire::client(&served);
    client.send(&Message::Cancel(Cancel { id: 99, task_id: None, recall: false }));
    client.send(&task(1, b"x"));
    let assigned = worker.expect(FrameType::AssignTask);
    client.send(&Message::Cancel(Cancel { id: 1, task_id: None, recall: false }));
    let cancel = worker.expect(FrameType::Cancel);
    assert_eq!(cancel.as_frame().id, assigned.as_frame().id);
    assert_eq!(client.expect_error().1, "cancelled");
    served.stop();
}

#[test]
fn what_is_asked_of_the_balancer_itself_is_answered() {
    let served = serve(settings());
    let mut worker = Wire::worker(&served, "w1", 3);
    worker.send(&Message::Drain(Drain { id: 8, resume: false }));
    assert_eq!(worker.expect(FrameType::Ack).as_frame().id, 8);
    worker.send(&Message::Ping(Ping { id: 9 }));
    assert_eq!(worker.expect(FrameType::Pong).as_frame().id, 9);
    let mut client = Wire::client(&served);
    client.send(&Message::Status(Status { id: 5, offset: 0, limit: 10 }));
    let report = client.expect(FrameType::StatusReport);
    assert_eq!(report.as_frame().id, 5);
    let report: serde_json::Value = serde_json::from_slice(report.as_frame().payload).unwrap();
    assert_eq!(report["workers"][0]["id"], "w1");
    assert_eq!(report["workers"][0]["draining"], true);
    client.send(&Message::Fetch(Fetch { id: 6, task_id: [1; 16], wait_ms: 0, describe: false }));
    let (id, code, _) = client.expect_error();
    assert_eq!((id, code.as_str()), (6, "store_unavailable"));
    let options = TaskOptions { background: true, ..TaskOptions::default() };
    client.send(&Message::Task(Task { id: 7, action: "echo", options, payload: b"" }));
    let (id, code, _) = client.expect_error();
    assert_eq!((id, code.as_str()), (7, "store_unavailable"));
    served.stop();
}

#[test]
fn a_peer_at_the_wrong_listener_is_told_where_to_go() {
    let served = serve(settings());
    let mut lost = Wire::connect(served.clients);
    lost.send(&hello(Role::Worker));
    let (id, _, message) = lost.expect_error();
    assert_eq!(id, 0);
    assert!(message.contains(&served.workers.to_string()), "{message}");
    lost.expect_end();
    served.stop();
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_try() {
    let served = serve(settings());
    let taken = Balancer::bind(Settings { clients: served.clients, ..settings() });
    let Err(error @ BalancerError::Listen { .. }) = taken else { panic!("the port is taken") };
    let text = error.to_string();
    assert!(text.contains(&served.clients.to_string()) && text.contains("--clients 127.0.0.1:0"), "{text}");
    served.stop();
}

#[test]
fn stopping_under_load_answers_every_task_in_flight_once() {
    let mut served = serve(settings());
    let workers = [echo_worker(&served, "w1"), echo_worker(&served, "w2")];
    let mut stuck = Wire::worker(&served, "stuck", 2);
    // It is accepted before the clients, who are welcomed.
    let mut idle = Wire::connect(served.clients);
    let mut clients: Vec<Wire> = (0..4).map(|_| Wire::client(&served)).collect();
    let in_flight = 3000;
    for client in &mut clients {
        for id in 1..=in_flight {
            client.send(&task(id, &[1; 64]));
        }
    }
    // Some are at the worker that never answers, so stopping needs its whole grace.
    stuck.expect(FrameType::AssignTask);
    served.handle.shutdown();
    for client in &mut clients {
        let (mut answers, mut going) = (BTreeSet::new(), false);
        while let Some(frame) = client.receive() {
            let frame = frame.as_frame();
            match frame.kind {
                FrameType::Result | FrameType::Error => {
                    assert!(answers.insert(frame.id), "task {} is answered twice", frame.id);
                }
                FrameType::GoAway => going = true,
                other => panic!("{other} came"),
            }
        }
        // What had not been read when the balancer stopped was never taken; what was read is the beginning.
        assert!(going, "the client is told");
        let answered = answers.len() as u64;
        assert_eq!(answers.last().copied().unwrap_or(0), answered, "no task in flight is without an answer");
    }
    idle.expect(FrameType::GoAway);
    idle.expect_end();
    served.wait();
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn stopping_with_nothing_to_do_is_quick_and_frees_the_ports() {
    let served = serve(Settings { grace: Duration::from_secs(600), ..settings() });
    let (clients, workers) = (served.clients, served.workers);
    let mut client = Wire::client(&served);
    let stopping = std::thread::spawn(move || served.stop());
    client.expect(FrameType::GoAway);
    drop(client);
    stopping.join().unwrap();
    // Another test may have been given one of them for a moment.
    support::wait_until("the ports are free", || {
        Balancer::bind(Settings { clients, workers, ..Settings::default() }).is_ok()
    });
}
