//! Workers that are killed, hang, leave in good order, or come with another's id: no task is lost, and none is
//! answered twice.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use rustix::process::Signal;
use serde_json::Value;
use support::{Balancer, Ended, folder, numbers, wait_until};

/// The records of all lines, which must be there once each, in order.
#[track_caller]
fn one_record_a_line(ended: &Ended, lines: usize) -> Vec<Value> {
    let records = ended.records();
    let numbers: Vec<u64> = records.iter().map(|record| record["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=lines as u64).collect::<Vec<_>>());
    records
}

#[test]
fn a_worker_killed_under_load_costs_no_task_its_answer() {
    let balancer = Balancer::start();
    // From the fortieth on, tasks wait at a gate.
    let go = folder().join("go");
    let step = format!(
        "step=n=$(cat); [ $n -lt 40 ] || while [ ! -e '{}' ]; do sleep 0.01; done; printf $n",
        go.display()
    );
    let worker = |id| balancer.worker_with(&["--id", id, "--threads", "2", "--exec", &step]);
    let (victim, _other) = (worker("victim"), worker("other"));
    let submit = balancer.submitting(["step", "--lines", "-", "--json"]);
    submit.write(numbers(0..200));
    wait_until("some is done, and work is under way", || {
        let status = balancer.status();
        let is_busy = status.workers.iter().any(|worker| worker.id == "victim" && worker.in_flight > 0);
        status.totals.done >= 40 && is_busy
    });
    victim.kill();
    std::fs::write(&go, "").unwrap();
    let ended = submit.end();
    for (number, record) in one_record_a_line(&ended, 200).iter().enumerate() {
        assert_eq!(record["result"], number.to_string(), "{record}");
    }
    assert_eq!(ended.code, Some(0));
    let totals = balancer.status().totals;
    assert_eq!((totals.done, totals.failed, totals.workers_lost), (200, 0, 1));
    assert!(totals.requeued >= 1, "{totals:?}");
}

#[test]
fn a_task_that_kills_its_worker_is_given_up_after_three_attempts_and_its_neighbours_live() {
    let balancer = Balancer::start();
    // The command's parent is the worker.
    let action = r#"act=if [ "$(cat)" = poison ]; then kill -9 $PPID; else printf done; fi"#;
    let start = |number: usize| {
        balancer.worker_with(&["--id", &format!("worker-{number}"), "--threads", "1", "--exec", action])
    };
    let mut lines = vec!["harmless"; 60];
    lines[20] = "poison";
    let submit = balancer.submitting(["act", "--lines", "-", "--json"]);
    submit.write(lines.join("\n"));
    wait_until("the tasks wait", || balancer.status().totals.queued >= 59);
    for number in 0..3 {
        let mut worker = start(number);
        wait_until("the task has killed its worker", || worker.has_ended());
    }
    let _last = start(3);
    let ended = submit.end();
    for (line, record) in (1..).zip(one_record_a_line(&ended, 60)) {
        if line == 21 {
            assert_eq!(record["code"], "attempts_exhausted", "{record}");
        } else {
            assert_eq!(record["result"], "done", "{record}");
        }
    }
    assert_eq!(ended.code, Some(1));
    assert_eq!(balancer.status().totals.workers_lost, 3);
}

#[test]
fn a_worker_that_hangs_is_lost_after_the_silence_and_may_come_back() {
    let balancer = Balancer::start_with(&["--heartbeat", "1s", "--silence", "12s"]);
    let hangs = balancer.worker("hangs");
    assert_eq!(balancer.submit(["upper", "hola"]).success_text(), "HOLA");
    hangs.freeze();
    let submit = balancer.submitting(["upper", "again"]);
    wait_until("the silent worker is lost", || balancer.worker_status("hangs").is_none());
    let other = balancer.worker("other");
    assert_eq!(submit.end().success_text(), "AGAIN");
    hangs.signal(Signal::CONT);
    wait_until("it has come back", || balancer.worker_status("hangs").is_some());
    other.kill();
    assert_eq!(balancer.submit(["upper", "back"]).success_text(), "BACK");
}

#[test]
fn a_second_worker_with_a_live_id_is_refused_and_serves_when_the_first_is_gone() {
    let balancer = Balancer::start();
    let first = balancer.worker("same");
    let mut second = balancer.unregistered_worker(&["--id", "same"]);
    wait_until("the second is refused", || second.stderr().contains("duplicate_worker"));
    let sentence = second.stderr();
    assert!(sentence.contains("same") && sentence.contains(&balancer.workers), "{sentence}");
    assert!(!second.has_ended() && second.stdout().is_empty());
    first.kill();
    assert_eq!(second.line_after("ready id="), "same");
    assert_eq!(balancer.submit(["upper", "hola"]).success_text(), "HOLA");
}

#[test]
fn a_worker_told_to_stop_finishes_what_it_has_and_costs_no_task_an_attempt() {
    let balancer = Balancer::start();
    let worker = |id| {
        balancer.worker_with(&[
            "--id",
            id,
            "--threads",
            "2",
            "--exec",
            "attempt=sleep 0.03; printf $REPARTO_ATTEMPT",
        ])
    };
    let (leaves, _stays) = (worker("leaves"), worker("stays"));
    let submit = balancer.submitting(["attempt", "--lines", "-"]);
    submit.write("x\n".repeat(200));
    wait_until("work is under way", || {
        balancer.worker_status("leaves").is_some_and(|worker| worker.done > 2 && worker.in_flight > 0)
    });
    leaves.signal(Signal::TERM);
    assert_eq!(leaves.end().code, Some(0));
    wait_until("it is gone", || balancer.worker_status("leaves").is_none());
    assert_eq!(submit.end().success_text(), "1\n".repeat(200));
    let totals = balancer.status().totals;
    assert_eq!((totals.done, totals.failed, totals.workers_lost), (200, 0, 0));
}

#[test]
fn a_task_that_outlasts_the_grace_of_its_worker_runs_again_elsewhere() {
    let balancer = Balancer::start();
    let go = folder().join("go");
    let patient =
        format!("patient=while [ ! -e '{}' ]; do sleep 0.01; done; printf $REPARTO_ATTEMPT", go.display());
    let worker =
        |id| balancer.worker_with(&["--id", id, "--threads", "1", "--grace", "100ms", "--exec", &patient]);
    let leaves = worker("leaves");
    let submit = balancer.submitting(["patient", ""]);
    balancer.wait_until_busy("leaves");
    leaves.signal(Signal::TERM);
    assert_eq!(leaves.end().code, Some(0));
    let _stays = worker("stays");
    balancer.wait_until_busy("stays");
    std::fs::write(&go, "").unwrap();
    assert_eq!(submit.end().success_text(), "2");
}
