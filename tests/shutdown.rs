//! Stopping a balancer: at once when it is idle, in good order under load, and what clients and workers make of it.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use rustix::process::Signal;
use support::{Balancer, Process, folder, wait_for, wait_until};

/// Longer than any test waits: a balancer that ends in a test has not waited for its grace to pass.
const LONG_GRACE: &str = "1h";

#[test]
fn an_idle_balancer_stops_at_once_whoever_is_connected() {
    for signal in [Signal::TERM, Signal::INT] {
        let balancer = Balancer::start_with(&["--grace", LONG_GRACE]);
        let _worker = balancer.worker("one");
        let _client = reparto_client::Client::connect([balancer.clients.clone()]).unwrap();
        balancer.process.signal(signal);
        balancer.process.end().success();
    }
}

#[test]
fn under_load_running_tasks_end_and_waiting_ones_are_answered_shutting_down() {
    let balancer = Balancer::start_with(&["--grace", LONG_GRACE]);
    let go = folder().join("go");
    let hold = format!("hold=while [ ! -e '{}' ]; do sleep 0.01; done; cat", go.display());
    let _worker = balancer.worker_with(&["--id", "one", "--threads", "2", "--exec", &hold]);
    let submit = balancer.submitting(["hold", "--lines", "-", "--json"]);
    submit.write("x\n".repeat(60));
    let before = wait_for("work is under way, and more waits", || {
        let totals = balancer.status().totals;
        (totals.submitted == 60 && totals.running >= 2).then_some(totals)
    });
    balancer.process.signal(Signal::TERM);
    // Nobody new is taken any more, which shows that the signal has been seen.
    wait_until("it stops", || std::net::TcpStream::connect(&balancer.clients).is_err());
    std::fs::write(&go, "").unwrap();
    balancer.process.end().success();
    let ended = submit.end();
    let records = ended.records();
    let lines: Vec<u64> = records.iter().map(|record| record["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, (1..=60).collect::<Vec<_>>());
    let done = records.iter().filter(|record| record["status"] == "done").count() as u64;
    let refused = records.iter().filter(|record| record["code"] == "shutting_down").count() as u64;
    assert_eq!(done + refused, 60, "{records:?}");
    assert!(
        done >= before.done + before.running && refused > 0,
        "{done} done, {refused} refused: {before:?}"
    );
    assert_eq!(ended.code, Some(1));
}

#[test]
fn a_task_that_outlasts_the_grace_is_answered_shutting_down() {
    let balancer = Balancer::start_with(&["--grace", "300ms"]);
    let _worker = balancer.worker("one");
    let submit = balancer.submitting(["sleep", "600000"]);
    balancer.wait_until_busy("one");
    balancer.process.signal(Signal::TERM);
    balancer.process.end().success();
    let sentence = submit.end().failure(1);
    assert!(sentence.contains("shutting_down"), "{sentence}");
}

#[test]
fn a_second_signal_ends_the_balancer_at_once() {
    let balancer = Balancer::start_with(&["--grace", LONG_GRACE]);
    let _worker = balancer.worker("one");
    let _submit = balancer.submitting(["sleep", "600000"]);
    balancer.wait_until_busy("one");
    balancer.process.signal(Signal::TERM);
    // Nobody new is taken while it stops, which shows that the first signal has been seen.
    wait_until("it stops", || std::net::TcpStream::connect(&balancer.clients).is_err());
    balancer.process.signal(Signal::TERM);
    assert_eq!(balancer.process.end().code, Some(130));
}

/// A balancer that goes for good while lines still come: each that was submitted has one outcome, and submit says
/// where it stopped.
#[test]
fn lines_without_end_stop_with_their_balancer_and_each_that_was_submitted_has_one_outcome() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let mut pipe = std::process::Command::new("sh");
    let submit = format!(
        "yes x | '{}' submit --balancer {} echo --lines - --json --window 64",
        env!("CARGO_BIN_EXE_reparto"),
        balancer.clients
    );
    let submit = Process::start({
        pipe.args(["-c", &submit]);
        pipe
    });
    wait_until("work is under way", || balancer.status().totals.done >= 500);
    balancer.process.signal(Signal::TERM);
    balancer.process.end().success();
    let ended = submit.end();
    let records = ended.records();
    assert!(records.len() >= 500);
    for (line, record) in (1..).zip(&records) {
        assert_eq!(record["line"], line);
        let code = record["code"].as_str();
        assert!(
            record["result"] == "x" || matches!(code, Some("shutting_down" | "connection_lost")),
            "{record}"
        );
    }
    let sentence = ended.failure(3);
    assert!(sentence.contains("stopped after line"), "{sentence}");
}

#[test]
fn a_worker_outlives_its_balancer_and_registers_with_the_next() {
    let balancer = Balancer::start();
    let mut worker = balancer.worker("one");
    let (clients, workers) = (balancer.clients.clone(), balancer.workers.clone());
    balancer.process.signal(Signal::TERM);
    balancer.process.end().success();
    wait_until("the worker has noticed", || worker.stderr().contains(&workers));
    let next = Balancer::start_again(&clients, &workers);
    wait_until("the worker is there again", || next.worker_status("one").is_some());
    assert_eq!(next.submit(["upper", "hola"]).success_text(), "HOLA");
    assert!(!worker.has_ended());
}

#[test]
fn a_second_signal_ends_a_worker_at_once_with_its_commands() {
    let balancer = Balancer::start();
    let file = support::folder().join("pid");
    let long = format!("long=trap '' TERM; echo $$ > '{}'; while :; do sleep 1; done", file.display());
    let mut worker = balancer.worker_with(&["--id", "one", "--grace", LONG_GRACE, "--exec", &long]);
    let _submit = balancer.submitting(["long", ""]);
    let shell = support::pid_from(&file);
    worker.signal(Signal::TERM);
    wait_until("it drains", || balancer.worker_status("one").is_none_or(|worker| worker.draining));
    assert!(!worker.has_ended());
    worker.signal(Signal::TERM);
    assert_eq!(worker.end().code, Some(130));
    wait_until("its command is gone", || !support::runs(shell));
}
