//! A short run of the crash harness: processes are killed under load, and nothing is lost or doubled. Longer ones are run
//! by hand; docs/RELIABILITY.md says how.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::reparto;

/// The harness, with a folder of its own for what it leaves when something is wrong.
fn crash(arguments: &[&str]) -> Command {
    let mut command = reparto(["bench", "crash"]);
    command.args(arguments).env("TMPDIR", support::folder());
    command
}

/// What a run that found nothing wrong has seen.
fn good_report(arguments: &[&str]) -> serde_json::Value {
    let output = crash(arguments).output().unwrap();
    let (report, story) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{report}\n{story}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["violations"], serde_json::json!([]));
    report
}

#[test]
fn whatever_is_killed_nothing_accepted_is_lost_or_doubled() {
    let report = good_report(&["--seed", "3", "--for", "15s", "--json"]);
    let count = |name: &str| report["tasks"][name].as_u64().unwrap_or(0);
    assert!(count("accepted") > 0 && count("ended: done") > 0, "{report}");
    assert!(report["kills"].as_u64().unwrap() > 0, "{report}");
    let ended = ["done", "failed", "dead", "cancelled", "expired"];
    let ended: u64 = ended.iter().map(|state| count(&format!("ended: {state}"))).sum();
    // A task with a key is accepted twice and ends once.
    assert!(ended <= count("accepted") && ended * 2 >= count("accepted"), "{report}");
}

#[test]
fn nor_is_what_travels_between_balancers_or_comes_and_goes_over_plain_amqp() {
    let report = good_report(&["--engines", "--rate", "150", "--seed", "2", "--for", "20s", "--json"]);
    for name in [
        "accepted",
        "ended: done",
        "answered on the connection",
        "foreground results that came from another balancer",
        "outcomes told in a queue",
    ] {
        assert!(report["tasks"][name].as_u64().is_some_and(|count| count > 0), "{name}: {report}");
    }
    assert!(report["kills"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_run_that_cannot_be_is_refused() {
    for arguments in [["--for", "soon"], ["--rate", "0"], ["--seeds", "0"]] {
        let output = crash(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
