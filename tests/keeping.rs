//! `reparto submit --background`, `get`, `cancel`, `tasks` and `dead` against a real balancer that keeps tasks.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::slice;

use support::{Balancer, Ended, Process, folder, reparto, run, wait_for, wait_until};

/// A balancer with a data folder of its own, and a worker whose action `wait` runs until a file is there, and whose
/// action `again` asks for another attempt each time.
struct Kept {
    balancer: Balancer,
    files: PathBuf,
}

impl Kept {
    fn start() -> Kept {
        let files = folder();
        let balancer = start(&files.join("data"), "127.0.0.1:0", "127.0.0.1:0");
        Kept { balancer, files }
    }

    fn worker(&self) -> Process {
        let wait = format!("wait=while [ ! -e '{}' ]; do sleep 0.01; done; cat", self.gate().display());
        let flags = ["--id", "ana", "--threads", "2", "--builtin", "--exec", &wait];
        let again = "again=echo the disk is busy >&2; exit 75";
        self.balancer.worker_with(&[&flags[..], &["--exec", again]].concat())
    }

    /// The file that `wait` waits for.
    fn gate(&self) -> PathBuf {
        self.files.join("go")
    }

    fn open(&self) {
        std::fs::write(self.gate(), "").unwrap();
    }

    /// Runs a command of a client to its end.
    fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ended {
        let mut command = reparto(arguments);
        command.args(["--balancer", &self.balancer.clients]);
        Process::start(command).end()
    }

    /// Hands a task over, and gives its id.
    fn submit<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        let all = ["submit".into(), "--background".into()].into_iter().chain(arguments);
        let id = self.run(all).success_text();
        assert_eq!((id.len(), id.ends_with('\n')), (37, true), "an id alone: {id:?}");
        id.trim().to_owned()
    }

    fn records<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Vec<serde_json::Value> {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.records()
    }

    fn state(&self, id: &str) -> String {
        let record = &self.records(["dead", "show", id, "--json"])[0];
        record["state"].as_str().unwrap().to_owned()
    }

    fn wait_for_state(&self, id: &str, state: &str) {
        wait_until(&format!("{id} is {state}"), || self.state(id) == state);
    }
}

/// A balancer that keeps tasks. For a moment the folder may still be locked, and a connection of another test may have
/// one of the ports, so it is tried again.
fn start(data: &Path, clients: &str, workers: &str) -> Balancer {
    wait_for("the addresses and the folder are free", || {
        let mut command = reparto(["balancer", "--clients", clients, "--workers", workers, "--data"]);
        command.arg(data).env_remove("REPARTO_BALANCER_NO_DATA");
        let mut process = Process::start(command);
        wait_until("it serves or cannot", || process.stdout().contains('\n') || process.has_ended());
        if process.has_ended() {
            return None;
        }
        let addresses = process.line_after("ready clients=");
        let (clients, workers) = addresses.split_once(" workers=")?;
        Some(Balancer { clients: clients.to_owned(), workers: workers.to_owned(), process })
    })
}

#[test]
fn a_background_task_prints_its_id_alone_and_get_prints_its_result_alone() {
    let kept = Kept::start();
    let _worker = kept.worker();
    let id = kept.submit(["upper", "hola"]);
    assert_eq!(kept.run(["get", &id, "--wait", "60s"]).success_text(), "HOLA");
    assert_eq!(kept.run(["get", &id]).success_text(), "HOLA", "a second time, and without waiting");
}

#[test]
fn with_lines_the_ids_come_one_a_line_in_their_order_and_with_json_as_records() {
    let kept = Kept::start();
    let _worker = kept.worker();
    let submit = |flags: &[&str], input: &str| {
        let arguments = ["upper", "--background", "--lines", "-"].iter().chain(flags);
        kept.balancer.submit_input(arguments, input)
    };
    let ids = submit(&[], "one\ntwo\nthree\n").success_text();
    let ids: Vec<&str> = ids.lines().collect();
    for (id, result) in ids.iter().zip(["ONE", "TWO", "THREE"]) {
        assert_eq!(kept.run(["get", id, "--wait", "60s"]).success_text(), result);
    }
    assert_eq!(ids.len(), 3);

    let keyed = ["--json", "--idempotency-key", "import"];
    let (first, second) = (submit(&keyed, "a\nb\n").records(), submit(&keyed, "a\nb\nc\n").records());
    assert_eq!((first.len(), second.len()), (2, 3));
    for (line, (first, second)) in (1..).zip(first.iter().zip(&second)) {
        let id = first["task_id"].as_str().unwrap();
        assert_eq!(*first, serde_json::json!({"line": line, "status": "accepted", "task_id": id}));
        assert_eq!((&second["task_id"], &second["duplicate"]), (&id.into(), &true.into()));
    }
    assert_eq!(second[2].get("duplicate"), None);
}

#[test]
fn get_tells_by_its_exit_code_what_has_not_ended_what_failed_and_what_is_not_known() {
    let kept = Kept::start();
    let _worker = kept.worker();
    let waits = kept.submit(["wait", "slow"]);
    let sentence = kept.run(["get", &waits]).failure(4);
    assert!(sentence.contains(&waits) && sentence.contains("not ended yet"), "{sentence}");
    kept.run(["get", &waits, "--wait", "50ms"]).failure(4);
    kept.open();
    assert_eq!(kept.run(["get", &waits, "--wait", "60s"]).success_text(), "slow");

    let fails = kept.submit(["sum", "1,x"]);
    let sentence = kept.run(["get", &fails, "--wait", "60s"]).failure(1);
    assert!(sentence.contains("worker_failed") && sentence.contains("'x'"), "{sentence}");

    let sentence = kept.run(["get", "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7"]).failure(5);
    assert!(sentence.contains("not_found") && sentence.contains("--keep-results"), "{sentence}");
    let sentence = kept.run(["get", "hola"]).failure(2);
    assert!(sentence.contains("'hola' is not a task's id"), "{sentence}");
}

#[test]
fn a_result_outlives_the_balancer_that_was_killed() {
    let kept = Kept::start();
    let ids = [kept.submit(["upper", "one"]), kept.submit(["upper", "two"])];
    let (clients, workers) = (kept.balancer.clients.clone(), kept.balancer.workers.clone());
    let Kept { balancer, files } = kept;
    balancer.process.kill();
    let kept = Kept { balancer: start(&files.join("data"), &clients, &workers), files };
    let _worker = kept.worker();
    for (id, result) in ids.iter().zip(["ONE", "TWO"]) {
        assert_eq!(kept.run(["get", id, "--wait", "60s"]).success_text(), result);
    }
}

#[test]
fn a_delayed_task_is_scheduled_and_can_be_cancelled_by_its_id() {
    let kept = Kept::start();
    let _worker = kept.worker();
    let delayed = kept.submit(["upper", "x", "--delay", "1h"]);
    let at = kept.submit(["upper", "x", "--at", "2100-01-01T00:00:00Z"]);
    for id in [&delayed, &at] {
        assert_eq!(kept.state(id), "scheduled");
    }
    kept.run(["cancel", &delayed, &at]).success();
    let sentence = kept.run(["get", &delayed]).failure(1);
    assert!(sentence.contains("cancelled"), "{sentence}");
    kept.run(["cancel", &delayed]).success();

    let done = kept.submit(["upper", "x", "--at", "2020-01-01"]);
    kept.wait_for_state(&done, "done");
    let sentence = kept.run(["cancel", &done]).failure(1);
    assert!(sentence.contains("had ended before: it is done"), "{sentence}");
    kept.run(["cancel", "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7"]).failure(5);
}

#[test]
fn the_same_idempotency_key_gives_the_first_tasks_id() {
    let kept = Kept::start();
    let first = kept.submit(["upper", "x", "--idempotency-key", "once"]);
    assert_eq!(kept.submit(["upper", "y", "--idempotency-key", "once"]), first);
    assert_ne!(kept.submit(["upper", "x"]), first);
}

#[test]
fn a_task_whose_result_is_printed_can_be_recorded_as_well() {
    let kept = Kept::start();
    let _worker = kept.worker();
    assert_eq!(kept.run(["submit", "upper", "not kept"]).success_text(), "NOT KEPT");
    assert_eq!(kept.run(["submit", "--record", "upper", "hola"]).success_text(), "HOLA");
    let records = kept.records(["tasks", "--json"]);
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((&records[0]["action"], &records[0]["state"]), (&"upper".into(), &"done".into()));
    let id = records[0]["id"].as_str().unwrap();
    assert_eq!(kept.run(["get", id]).success_text(), "HOLA");
    assert_eq!(kept.run(["submit", "--record", "--background", "upper", "x"]).code, Some(2));
}

#[test]
fn tasks_are_listed_the_newest_first_and_filtered() {
    let kept = Kept::start();
    let first = kept.submit(["nobody", "x"]);
    let second = kept.submit(["upper", "x", "--delay", "1h"]);
    let ids = |arguments: &[&str]| -> Vec<String> {
        let records = kept.records(["tasks", "--json"].iter().chain(arguments));
        records.iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&[]), [&second[..], &first[..]]);
    assert_eq!(ids(&["--limit", "1"]), slice::from_ref(&second));
    assert_eq!(ids(&["--action", "nobody"]), slice::from_ref(&first));
    assert_eq!(ids(&["--state", "scheduled"]), slice::from_ref(&second));
    assert_eq!(ids(&["--since", "1h"]).len(), 2);
    assert_eq!(ids(&["--since", "2100-01-01"]).len(), 0);
    let table = kept.run(["tasks"]).success_text();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("TASK") && lines[0].contains("ATTEMPTS"), "{table}");
    assert!(lines[1].starts_with(&second) && lines[1].contains("scheduled"), "{table}");
    assert!(lines[2].starts_with(&first) && lines[2].contains("queued"), "{table}");
    assert!(kept.run(["tasks", "--limit", "1"]).success_text().contains("there are more"));
    assert_eq!(kept.run(["tasks", "--action", "other"]).success_text(), "no tasks\n");
    let sentence = kept.run(["tasks", "--state", "asleep"]).failure(2);
    assert!(sentence.contains("asleep") && sentence.contains("scheduled"), "{sentence}");
}

#[test]
fn a_dead_task_is_listed_with_its_history_retried_and_dropped() {
    let kept = Kept::start();
    let _worker = kept.worker();
    let id = kept.submit(["again", "x", "--attempts", "2", "--backoff", "10ms"]);
    let sentence = kept.run(["get", &id, "--wait", "60s"]).failure(1);
    assert!(sentence.contains("attempts_exhausted"), "{sentence}");
    let listed = kept.records(["dead", "list", "--json"]);
    assert_eq!((listed.len(), listed[0]["id"].as_str()), (1, Some(&id[..])));
    let shown = kept.run(["dead", "show", &id]).success_text();
    for part in ["state       dead", "attempts    2 of 2", "attempt 1", "at ana", "the disk is busy"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    assert_eq!(kept.run(["dead", "retry", &id]).success_text(), format!("{id}\n"));
    kept.wait_for_state(&id, "dead");
    assert_eq!(kept.run(["dead", "retry", "--all", "--action", "again"]).success_text(), format!("{id}\n"));
    kept.wait_for_state(&id, "dead");
    assert_eq!(kept.run(["dead", "drop", "--all", "--action", "other"]).success_text(), "");

    let done = kept.submit(["upper", "x"]);
    kept.wait_for_state(&done, "done");
    for command in ["retry", "drop"] {
        let sentence = kept.run(["dead", command, &done]).failure(1);
        assert!(sentence.contains(&format!("{done} is done, not dead")), "{sentence}");
    }
    assert_eq!(kept.run(["dead", "drop", &id]).success_text(), format!("{id}\n"));
    for command in ["show", "retry", "drop"] {
        kept.run(["dead", command, &id]).failure(5);
    }
    kept.run(["get", &id]).failure(5);
    assert_eq!(kept.run(["dead", "list"]).success_text(), "no tasks\n");
    kept.run(["dead", "retry"]).failure(2);
}

#[test]
fn a_balancer_without_a_store_is_told_with_what_to_do() {
    let balancer = Balancer::start();
    let id = "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7";
    let commands: [&[&str]; 7] = [
        &["submit", "--background", "upper", "x"],
        &["submit", "--background", "upper", "--lines", "-"],
        &["get", id],
        &["cancel", id],
        &["tasks"],
        &["dead", "list"],
        &["dead", "retry", id],
    ];
    for arguments in commands {
        let sentence = run(arguments.iter().chain(&["--balancer", &balancer.clients])).failure(1);
        assert!(
            sentence.contains("--no-data") && sentence.contains("--data DIR"),
            "{arguments:?}: {sentence}"
        );
    }
}

#[test]
fn options_that_need_a_background_task_say_so() {
    let cases: [&[&str]; 4] = [
        &["submit", "upper", "x", "--delay", "1s"],
        &["submit", "upper", "x", "--idempotency-key", "k"],
        &["submit", "upper", "x", "--background", "--key", "k"],
        &["submit", "upper", "x", "--background", "--wait", "1s"],
    ];
    for arguments in cases {
        let sentence = run(arguments).failure(2);
        assert!(sentence.contains("--background"), "{arguments:?}: {sentence}");
    }
    let sentence = run(["submit", "--background", "upper", "x", "--at", "soon"]).failure(2);
    assert!(sentence.contains("2026-11-20T18:00"), "{sentence}");
    let long = "k".repeat(240);
    let arguments = ["submit", "--background", "upper", "--lines", "-", "--idempotency-key", &long];
    let sentence = run(arguments).failure(2);
    assert!(sentence.contains("240 bytes") && sentence.contains("234"), "{sentence}");
}
