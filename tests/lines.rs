//! `reparto submit --lines`: files of any size through workers and balancers that are killed and started again.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use support::{Balancer, Process, numbers, wait_until};

/// A worker that hangs is not lost before the test kills it.
const PATIENT: [&str; 4] = ["--heartbeat", "5m", "--silence", "10m"];

/// Feeds `rounds` chunks of lines. In each a worker without work is made to hang, is given some, is killed with it in hand,
/// and another one comes.
fn feed_while_workers_die(balancer: &Balancer, submit: &Process, rounds: u32, chunk: u32) {
    let mut workers = vec![("first-0".to_owned(), balancer.worker("first-0"))];
    workers.push(("first-1".to_owned(), balancer.worker("first-1")));
    let wait_until_answered = |lines: u32| {
        wait_until("every line is answered", || {
            let totals = balancer.status().totals;
            totals.submitted == u64::from(lines) && totals.queued + totals.running == 0
        });
    };
    for round in 0..rounds {
        // No answer of any worker is on its way then, so what the victim is given is lost with it.
        wait_until_answered(round * chunk);
        let (id, victim) = workers.remove(0);
        victim.freeze();
        submit.write(numbers(round * chunk..(round + 1) * chunk));
        wait_until("nothing is left but what it holds", || {
            let status = balancer.status();
            let in_flight =
                status.workers.iter().find(|worker| worker.id == id).map(|worker| worker.in_flight);
            let left = status.totals.queued + status.totals.running;
            in_flight.is_some_and(|held| held > 0 && held == left)
        });
        victim.kill();
        let id = format!("worker-{round}");
        let worker = balancer.worker(&id);
        workers.push((id, worker));
    }
    // Those that are left may go once everything has come back.
    wait_until_answered(rounds * chunk);
}

#[test]
fn twenty_thousand_lines_come_back_in_order_while_workers_are_killed_beneath() {
    let balancer = Balancer::start_with(&PATIENT);
    let submit = balancer.submitting(["echo", "--lines", "-"]);
    feed_while_workers_die(&balancer, &submit, 8, 2_500);
    let totals = balancer.status().totals;
    assert!(totals.requeued >= 8 && totals.workers_lost >= 8, "{totals:?}");
    assert!(submit.end().success_text() == numbers(0..20_000), "lines are missing, doubled or out of order");
}

#[test]
fn as_completed_the_same_lines_come_back_once_each() {
    let balancer = Balancer::start_with(&PATIENT);
    let submit = balancer.submitting(["echo", "--lines", "-", "--as-completed"]);
    feed_while_workers_die(&balancer, &submit, 2, 2_500);
    let result = submit.end().success_text();
    let mut lines: Vec<u32> = result.lines().map(|line| line.parse().unwrap()).collect();
    lines.sort_unstable();
    assert!(lines == (0..5_000).collect::<Vec<_>>(), "lines are missing or doubled");
}

#[test]
fn as_completed_a_slow_line_does_not_hold_back_the_others() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let mut submit = balancer.submitting(["sleep", "--lines", "-", "--as-completed"]);
    submit.write("60000\n1\n2\n");
    assert_eq!(submit.line_after("slept 1"), " ms");
    assert_eq!(submit.line_after("slept 2"), " ms");
}

#[test]
fn no_more_lines_are_in_flight_than_the_window() {
    let balancer = Balancer::start();
    let submit = balancer.submitting(["echo", "--lines", "-", "--window", "10"]);
    submit.write(numbers(0..100));
    wait_until("the window is full", || balancer.status().totals.submitted == 10);
    let _worker = balancer.worker("one");
    assert_eq!(submit.end().success_text(), numbers(0..100));
}

#[test]
fn lines_from_a_file_need_no_last_line_break_and_may_be_empty() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let file = support::folder().join("lines");
    std::fs::write(&file, "one\n\r\ntwo\r\nlast").unwrap();
    let result = balancer.submit(["upper", "--lines", file.to_str().unwrap()]).success_text();
    assert_eq!(result, "ONE\n\nTWO\nLAST\n");
}

#[test]
fn a_reader_that_leaves_ends_submit_in_good_order() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let mut pipe = std::process::Command::new("sh");
    let submit =
        format!("'{}' submit --balancer {} echo --lines -", env!("CARGO_BIN_EXE_reparto"), balancer.clients);
    pipe.args(["-c", &format!("yes | {{ {submit}; echo \"exit $?\" >&2; }} | head -n 2")]);
    let ended = Process::start(pipe).end();
    assert_eq!(ended.stdout, b"y\ny\n");
    assert_eq!(ended.stderr, "exit 0\n");
    wait_until("nothing is left of it", || {
        let totals = balancer.status().totals;
        totals.queued + totals.running == 0
    });
}

#[test]
fn lines_in_flight_end_with_connection_lost_when_the_balancer_is_killed() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let submit = balancer.submitting(["sleep", "--lines", "-", "--json"]);
    submit.write("60000\n60000\n");
    wait_until("both run", || balancer.status().totals.running == 2);
    balancer.process.kill();
    let ended = submit.end();
    let records = ended.records();
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record["code"] == "connection_lost"), "{records:?}");
    assert_ne!(ended.code, Some(0));
}

#[test]
fn lines_that_may_be_repeated_outlive_a_balancer_that_is_killed_and_comes_back() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let submit = balancer.submitting(["sleep", "--lines", "-", "--repeat-safe"]);
    submit.write("20\n".repeat(200));
    wait_until("some are done", || balancer.status().totals.done >= 10);
    let (clients, workers) = (balancer.clients.clone(), balancer.workers.clone());
    balancer.process.kill();
    let _balancer = Balancer::start_again(&clients, &workers);
    assert_eq!(submit.end().success_text(), "slept 20 ms\n".repeat(200));
}
