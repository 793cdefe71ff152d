//! What becomes of tasks: their results, failures, cancels and hand-backs, one rule a test.

#![allow(clippy::unwrap_used)] // A panic is a failed test, in helpers too.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{AssignTask, Message, Outcome};
use reparto_worker::{Task, TaskError, builtin};
use support::{Balancer, Gate, PATIENCE, Running, assignment};

#[test]
fn a_task_is_answered_with_its_handlers_result() {
    let balancer = Balancer::start();
    let _worker = Running::start(balancer.worker().actions(builtin::actions()));
    let mut connection = balancer.accept();
    connection.assign(7, "sum", "1,2,3,4,5");
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome, &answer.payload[..]), (7, Outcome::Done, &b"15"[..]));
    assert_eq!(answer.message, "");
}

#[test]
fn a_final_error_fails_the_task_and_a_retryable_one_asks_for_another_attempt() {
    let balancer = Balancer::start();
    let _worker = Running::start(
        balancer
            .worker()
            .action("final", |_: &Task| Err(TaskError::failed("never").with_payload("a")))
            .action("retry", |_: &Task| Err(TaskError::retryable("not now").with_payload("b"))),
    );
    let mut connection = balancer.accept();
    for (action, outcome, message, payload) in
        [("final", Outcome::Failed, "never", "a"), ("retry", Outcome::Retry, "not now", "b")]
    {
        connection.assign(1, action, "");
        let answer = connection.answer();
        assert_eq!(
            (answer.outcome, answer.message.as_str(), &answer.payload[..]),
            (outcome, message, payload.as_bytes())
        );
    }
}

#[test]
fn a_panic_is_a_failed_task_and_its_thread_lives_on() {
    let balancer = Balancer::start();
    let _worker = Running::start(
        balancer
            .worker()
            .threads(1)
            .action("panic", |task: &Task| panic!("cannot do {:?}", task.payload()))
            .action("ok", |_: &Task| Ok(Bytes::new())),
    );
    let mut connection = balancer.accept();
    for id in 1..=3 {
        connection.assign(id, "panic", "x");
        let answer = connection.answer();
        assert_eq!((answer.id, answer.outcome), (id, Outcome::Failed));
        assert_eq!(answer.message, "the handler of 'panic' panicked: cannot do b\"x\"");
    }
    connection.assign(4, "ok", "");
    assert_eq!(connection.answer().outcome, Outcome::Done);
}

#[test]
fn a_handler_sees_all_that_was_assigned() {
    let balancer = Balancer::start();
    let _worker = Running::start(balancer.worker().action("look", |task: &Task| {
        let left = task.deadline().map(|deadline| deadline > std::time::Instant::now());
        let seen = format!(
            "{} {} {:?} {:?} {:?} {left:?}",
            task.action(),
            task.attempt(),
            task.payload(),
            task.key(),
            task.task_id().map(|id| id[0]),
        );
        Ok(seen.into())
    }));
    let mut connection = balancer.accept();
    connection.send(&Message::AssignTask(AssignTask {
        id: 1,
        action: "look",
        attempt: 3,
        deadline_ms: Some(3_600_000),
        key: Some(b"k"),
        task_id: Some([9; 16]),
        held: false,
        payload: b"p",
    }));
    assert_eq!(connection.answer().payload, "look 3 b\"p\" Some([107]) Some(9) Some(true)");
}

#[test]
fn a_task_whose_deadline_passed_before_it_began_is_not_run_and_handed_back() {
    let balancer = Balancer::start();
    let _worker =
        Running::start(balancer.worker().action("run", |_: &Task| panic!("it should not have been run")));
    let mut connection = balancer.accept();
    connection.send(&Message::AssignTask(AssignTask {
        id: 1,
        action: "run",
        attempt: 1,
        deadline_ms: Some(0),
        key: None,
        task_id: None,
        held: false,
        payload: b"",
    }));
    let answer = connection.answer();
    // What it ends as is the balancer's to say.
    assert_eq!(answer.outcome, Outcome::NotRun);
}

#[test]
fn a_cancelled_task_that_runs_is_told_and_still_answered() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().action("wait", {
        let gate = gate.clone();
        move |task: &Task| {
            gate.pass(task);
            if task.is_cancelled() { Err("stopped".into()) } else { Ok(Bytes::new()) }
        }
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "wait", "");
    gate.wait_for(1);
    connection.cancel(1, false);
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome, answer.message.as_str()), (1, Outcome::Failed, "stopped"));
}

#[test]
fn a_cancelled_task_that_has_not_begun_is_handed_back_at_once() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().threads(1).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    for id in 1..=3 {
        connection.assign(id, "wait", "");
    }
    gate.wait_for(1);
    connection.cancel(3, false);
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome), (3, Outcome::NotRun));
    gate.open();
    assert_eq!(connection.answer().id, 1);
    assert_eq!(connection.answer().id, 2);
}

#[test]
fn a_recall_takes_back_what_has_not_begun_and_leaves_what_has() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().threads(1).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "wait", "");
    gate.wait_for(1);
    connection.assign(2, "wait", "");
    connection.cancel(1, true);
    connection.cancel(2, true);
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome), (2, Outcome::NotRun));
    connection.sync();
    gate.open();
    let answer = connection.answer();
    assert_eq!((answer.id, answer.outcome, &answer.payload[..]), (1, Outcome::Done, &b"true"[..]));
}

#[test]
fn a_cancel_for_a_task_that_is_not_there_is_passed_over() {
    let balancer = Balancer::start();
    let _worker = Running::start(balancer.worker().actions(builtin::actions()));
    let mut connection = balancer.accept();
    connection.cancel(99, false);
    connection.cancel(99, true);
    connection.sync();
}

#[test]
fn ten_thousand_tasks_over_four_threads_are_each_answered_once() {
    const TASKS: u64 = 10_000;
    const WINDOW: u64 = 500;
    let balancer = Balancer::start();
    let worker = balancer.worker().threads(4).window(WINDOW as u32).actions(builtin::actions());
    let _worker = Running::start(worker);
    let mut connection = balancer.accept();
    let mut answers = HashMap::new();
    let mut sent = 0;
    while (answers.len() as u64) < TASKS {
        while sent < TASKS && sent - (answers.len() as u64) < WINDOW {
            connection.queue(&assignment(sent + 1, "echo", sent.to_string().as_bytes()));
            sent += 1;
        }
        connection.flush();
        let answer = connection.answer();
        assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
        assert_eq!(answer.payload, (answer.id - 1).to_string());
        assert!(answers.insert(answer.id, ()).is_none(), "{} was answered twice", answer.id);
    }
    connection.sync();
}

#[test]
fn a_slow_task_holds_no_other_while_a_thread_is_free() {
    const QUICK: u64 = 200;
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().threads(2).actions(builtin::actions()).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    for round in 0..20 {
        // All in one read, the slow one somewhere among them.
        let base = 1000 * (round + 1);
        for id in 0..QUICK {
            let action = if id == round * 10 { "wait" } else { "echo" };
            connection.queue(&assignment(base + id, action, b""));
        }
        connection.flush();
        if round > 0 {
            // The gate is open by now.
            for _ in 0..QUICK {
                connection.answer();
            }
            continue;
        }
        for _ in 1..QUICK {
            let answer = connection.answer();
            assert_ne!(answer.id, base, "the slow task cannot have ended");
        }
        gate.open();
        assert_eq!(connection.answer().id, base);
    }
}

#[test]
fn a_result_does_not_wait_for_the_slow_task_behind_it() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let _worker = Running::start(balancer.worker().threads(1).actions(builtin::actions()).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    // Many quick ones first, so that results are gathered; then, in the same read, a quick and a slow one.
    for id in 1..=100 {
        connection.queue(&assignment(id, "echo", b""));
    }
    connection.queue(&assignment(101, "wait", b""));
    connection.flush();
    for _ in 1..=100 {
        assert!(connection.answer().id <= 100);
    }
    gate.open();
    assert_eq!(connection.answer().id, 101);
}

#[test]
fn progress_reaches_the_balancer_before_the_result() {
    let balancer = Balancer::start();
    let _worker = Running::start(balancer.worker().action("steps", |task: &Task| {
        task.progress(1, 2);
        task.progress_with(2, 2, "half")?;
        Ok("whole".into())
    }));
    let mut connection = balancer.accept();
    connection.assign(5, "steps", "");
    for (done, payload) in [(1, &b""[..]), (2, b"half")] {
        let frame = connection.next();
        let Message::Progress(progress) = Message::decode(&frame.as_frame()).unwrap() else {
            panic!("progress should come")
        };
        assert_eq!((progress.id, progress.done, progress.total, progress.payload), (5, done, 2, payload));
    }
    assert_eq!(connection.answer().payload, "whole");
}

#[test]
fn a_result_larger_than_the_balancers_frame_is_a_failed_task_that_says_so() {
    let mut balancer = Balancer::start();
    balancer.welcome.max_frame_bytes = 256 * 1024;
    let _worker = Running::start(
        balancer
            .worker()
            .action("large", |task: &Task| Ok(vec![0; task.payload().len() * 1024].into()))
            .action("report", |task: &Task| {
                task.progress_with(1, 1, vec![0; 300 * 1024])?;
                Ok(Bytes::new())
            }),
    );
    let mut connection = balancer.accept();
    connection.assign(1, "large", &"x".repeat(200));
    assert_eq!(connection.answer().payload.len(), 200 * 1024);
    connection.assign(2, "large", &"x".repeat(300));
    let answer = connection.answer();
    assert_eq!((answer.outcome, answer.payload.len()), (Outcome::Failed, 0));
    assert_eq!(answer.message, "the result has 307200 bytes, too many for a frame of 262144 bytes");
    connection.assign(3, "report", "");
    assert_eq!(connection.answer().outcome, Outcome::Failed);
}

#[test]
fn the_mean_service_time_is_told_with_the_first_result_and_again_when_it_changed_much() {
    let balancer = Balancer::start();
    let worker = balancer.worker().threads(1).actions(builtin::actions());
    let mut worker = Running::start(worker);
    let mut connection = balancer.greet();
    let registered = connection.registration();
    assert_eq!(registered.service_ns, None);
    connection.ack(registered.request);
    connection.assign(1, "sleep", "200");
    let told = connection.answer().service_ns.expect("it was never told before");
    assert!(told >= 200_000_000, "{told} ns for a task of 200 ms");
    // Enough quick ones to bring the mean down by a quarter again and again.
    let mut tellings = Vec::new();
    for id in 2..=200 {
        connection.assign(id, "echo", "");
        tellings.extend(connection.answer().service_ns);
    }
    assert!(tellings.last().is_some_and(|last| *last < told), "{told} and then {tellings:?}");
    assert!(tellings.len() < 199, "it is not told with every task");
    worker.handle.stop(Duration::ZERO);
    drop(connection);
    worker.join();
}

#[test]
fn large_payloads_and_results_pass_unchanged() {
    let balancer = Balancer::start();
    let _worker = Running::start(balancer.worker().actions(builtin::actions()));
    let mut connection = balancer.accept();
    let payload: Vec<u8> =
        (0..8 * 1024 * 1024u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    connection.send(&assignment(1, "echo", &payload));
    assert!(connection.answer().payload == payload);
}

#[test]
fn threads_wait_while_the_balancer_does_not_read_and_nothing_is_lost() {
    const TASKS: u64 = 64;
    const SIZE: usize = 1024 * 1024;
    let balancer = Balancer::start();
    let ended = Arc::new(AtomicUsize::new(0));
    let _worker = Running::start(balancer.worker().threads(2).window(100).action("make", {
        let ended = Arc::clone(&ended);
        move |_: &Task| {
            ended.fetch_add(1, Ordering::SeqCst);
            Ok(vec![b'x'; SIZE].into())
        }
    }));
    let mut connection = balancer.accept();
    for id in 1..=TASKS {
        connection.queue(&assignment(id, "make", b""));
    }
    connection.flush();
    support::wait_until("some were run", || ended.load(Ordering::SeqCst) > 4);
    let mut ids: Vec<u64> = (0..TASKS).map(|_| connection.answer().id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=TASKS).collect::<Vec<_>>());
}

#[test]
fn an_action_that_is_not_offered_is_answered_with_its_name() {
    let balancer = Balancer::start();
    let _worker = Running::start(balancer.worker().actions(builtin::actions()));
    let mut connection = balancer.accept();
    connection.assign(1, "nonsense", "");
    let answer = connection.answer();
    assert_eq!(
        (answer.outcome, answer.message.as_str()),
        (Outcome::Retry, "this worker does not offer 'nonsense'")
    );
}

#[test]
fn several_balancers_are_served_at_once_and_none_starves() {
    let balancers = [Balancer::start(), Balancer::start(), Balancer::start()];
    let mut builder = balancers[0].worker().threads(1).window(2000).actions(builtin::actions());
    for balancer in &balancers[1..] {
        builder = builder.balancer(balancer.address().to_string());
    }
    let worker = Running::start(builder);
    let order = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for (index, balancer) in balancers.iter().enumerate() {
            let order = Arc::clone(&order);
            scope.spawn(move || {
                let mut connection = balancer.accept();
                for id in 1..=1000 {
                    connection.queue(&assignment(id, "echo", b""));
                }
                connection.flush();
                for _ in 1..=1000 {
                    connection.answer();
                }
                order.lock().unwrap().push(index);
            });
        }
    });
    assert_eq!(order.lock().unwrap().len(), 3);
    drop(worker);
}

#[test]
fn more_threads_take_up_tasks_that_wait_and_fewer_run_fewer() {
    let balancer = Balancer::start();
    let gate = Gate::default();
    let worker = Running::start(balancer.worker().threads(1).action("wait", {
        let gate = gate.clone();
        move |task: &Task| Ok(format!("{}", gate.pass(task)).into())
    }));
    let mut connection = balancer.accept();
    for id in 1..=4 {
        connection.assign(id, "wait", "");
    }
    gate.wait_for(1);
    worker.handle.set_threads(4).unwrap();
    let registered = connection.registration();
    assert_eq!(registered.threads, 4);
    connection.ack(registered.request);
    gate.wait_for(4);
    worker.handle.set_threads(1).unwrap();
    let registered = connection.registration();
    assert_eq!(registered.threads, 1);
    connection.ack(registered.request);
    gate.open();
    for _ in 1..=4 {
        assert_eq!(connection.answer().outcome, Outcome::Done);
    }
    for id in 5..=50 {
        connection.assign(id, "wait", "");
        assert_eq!(connection.answer().id, id);
    }
    assert!(worker.handle.set_threads(0).is_err() && worker.handle.set_threads(5000).is_err());
}

#[test]
fn cancelling_wakes_a_handler_that_waits_on_its_cancellation() {
    let balancer = Balancer::start();
    let _worker = Running::start(balancer.worker().action("doze", |task: &Task| {
        task.progress(0, 0);
        if task.cancellation().wait_timeout(PATIENCE) { Err("woken".into()) } else { Ok(Bytes::new()) }
    }));
    let mut connection = balancer.accept();
    connection.assign(1, "doze", "");
    connection.next();
    connection.cancel(1, false);
    assert_eq!(connection.answer().message, "woken");
}
