//! `reparto submit` against a real balancer and real workers: results, payloads of every kind, exit codes,
//! deadlines and cancelling.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use rustix::process::Signal;
use support::{Balancer, Process, folder, pid_from, reparto, run, runs, wait_until};

#[test]
fn the_quick_start_prints_hola() {
    let balancer = Balancer::start();
    let _workers = [balancer.worker("one"), balancer.worker("two")];
    assert_eq!(balancer.submit(["upper", "hola"]).success_text(), "HOLA");
}

#[test]
fn every_built_in_action_gives_what_its_name_says() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let cases = [
        ("echo", "as it is", "as it is"),
        ("upper", "señal", "SEÑAL"),
        ("reverse", "año", "oña"),
        ("sleep", "1", "slept 1 ms"),
        ("fib", "90", "2880067194370816120"),
        ("sum", "1,2,3,4,5", "15"),
        ("greet", "Ana", "Hello, Ana!"),
        ("sha256", "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("wc", "one two\nthree\n", "2 3 14"),
    ];
    for (action, payload, result) in cases {
        assert_eq!(balancer.submit([action, payload]).success_text(), result, "{action} of {payload:?}");
    }
}

#[test]
fn a_payload_of_any_bytes_and_size_comes_back_from_echo_as_it_was() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let every_byte: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let large: Vec<u8> =
        (0..8u32 << 20).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for payload in [b"from standard input\n".to_vec(), Vec::new(), every_byte, large] {
        let result = balancer.submit_input(["echo"], payload.clone()).success();
        assert!(result == payload, "{} bytes came back as {} others", payload.len(), result.len());
    }
    assert_eq!(balancer.submit(["echo", ""]).success(), b"");
}

#[test]
fn a_payload_over_the_frame_limit_is_refused_with_the_limit() {
    let balancer = Balancer::start_with(&["--max-frame", "1MiB"]);
    let _worker = balancer.worker("one");
    let sentence = balancer.submit_input(["echo"], vec![b'x'; 1 << 20]).failure(1);
    assert!(sentence.contains("payload_too_large"), "{sentence}");
    assert_eq!(balancer.submit_input(["wc"], vec![b'x'; 1_000_000]).success_text(), "0 1 1000000");
}

#[test]
fn one_line_that_fails_is_told_in_json_beside_the_one_that_succeeds() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let ended = balancer.submit_input(["sum", "--lines", "-", "--json"], "1,2,3,4,5\n1,x\n");
    let records = ended.records();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0], serde_json::json!({"line": 1, "status": "done", "result": "15"}));
    assert_eq!((&records[1]["line"], &records[1]["code"]), (&2.into(), &"worker_failed".into()));
    let sentence = records[1]["error"].as_str().unwrap();
    assert!(sentence.contains("'x'") && sentence.contains("not a whole number"), "{sentence}");
    assert_eq!(ended.code, Some(1));
}

#[test]
fn without_json_a_failed_line_is_told_on_standard_error_with_its_number() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let ended = balancer.submit_input(["sum", "--lines", "-"], "1,1\n1,x\n2,2");
    assert_eq!(ended.stdout, b"2\n4\n");
    let sentence = ended.failure(1);
    assert!(sentence.contains("line 2: worker_failed") && sentence.contains("'x'"), "{sentence}");
}

#[test]
fn a_result_that_is_not_text_is_base64_in_json() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let ended = balancer.submit_input(["echo", "--lines", "-", "--json"], b"\xff\x00\n");
    assert_eq!(ended.records(), [serde_json::json!({"line": 1, "status": "done", "result_base64": "/wA="})]);
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    let missing = folder().join("missing");
    let missing = missing.to_str().unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&["submit"], "<ACTION>"),
        (&["submit", "echo", "x", "--lines", "-"], "--lines"),
        (&["submit", "echo", "x", "--priority", "10"], "10"),
        (&["submit", "echo", "x", "--deadline", "5"], "no unit"),
        (&["submit", "echo", "--lines", missing], missing),
        (&["balancer", "--policy", "random"], "least_loaded"),
        (&["worker", "--threads", "none"], "--threads"),
        (&["worker", "--exec", "count"], "count='xargs wc -l'"),
        (&["frobnicate"], "frobnicate"),
    ];
    for (arguments, named) in cases {
        let sentence = run(arguments).failure(2);
        assert!(sentence.contains(named), "{arguments:?} says: {sentence}");
    }
}

#[test]
fn without_a_balancer_the_exit_code_is_3_and_the_sentence_names_the_address_and_what_to_try() {
    // Nobody serves port 1 of this machine.
    let nobody = "127.0.0.1:1";
    let id = "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7";
    let cases: [&[&str]; 8] = [
        &["submit", "echo", "x"],
        &["submit", "echo", "--lines", "-"],
        &["status"],
        &["repl"],
        &["get", id],
        &["cancel", id],
        &["tasks"],
        &["dead", "list"],
    ];
    for arguments in cases {
        let sentence = run(arguments.iter().chain(&["--balancer", nobody])).failure(3);
        assert!(
            sentence.contains(nobody) && sentence.contains("reparto balancer"),
            "{arguments:?}: {sentence}"
        );
    }
}

#[test]
fn the_workers_address_given_to_a_client_is_recognised() {
    let balancer = Balancer::start();
    let sentence = run(["submit", "echo", "x", "--balancer", &balancer.workers]).failure(3);
    assert!(sentence.contains(&balancer.workers) && sentence.contains("for clients"), "{sentence}");
}

#[test]
fn of_several_balancers_the_first_that_answers_serves() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let arguments = ["submit", "upper", "x", "--balancer", "127.0.0.1:1", "--balancer", &balancer.clients];
    assert_eq!(run(arguments).success_text(), "X");
}

#[test]
fn a_deadline_ends_a_running_task_and_frees_its_worker() {
    let balancer = Balancer::start();
    let _worker = balancer.worker_with(&["--id", "one", "--threads", "1"]);
    let sentence = balancer.submit(["sleep", "60000", "--deadline", "300ms"]).failure(1);
    assert!(sentence.contains("expired"), "{sentence}");
    // With one thread, this runs only once the sleep has been stopped.
    assert_eq!(balancer.submit(["upper", "free"]).success_text(), "FREE");
}

#[test]
fn an_action_that_nobody_offers_waits_for_a_worker() {
    let balancer = Balancer::start();
    let waiting = balancer.submitting(["upper", "later"]);
    wait_until("the task waits", || balancer.status().totals.queued == 1);
    let _worker = balancer.worker("one");
    assert_eq!(waiting.end().success_text(), "LATER");
}

#[test]
fn an_action_that_nobody_offers_expires_with_its_wait_or_is_rejected_at_once_if_so_configured() {
    let balancer = Balancer::start();
    let sentence = balancer.submit(["nothing", "x", "--wait", "200ms"]).failure(1);
    assert!(sentence.contains("expired"), "{sentence}");
    let strict = Balancer::start_with(&["--unknown-action", "reject"]);
    let sentence = strict.submit(["nothing", "x"]).failure(1);
    assert!(sentence.contains("unknown_action") && sentence.contains("nothing"), "{sentence}");
}

#[test]
fn of_waiting_tasks_the_higher_priority_runs_first() {
    // No priority rises while the test runs.
    let balancer = Balancer::start_with(&["--aging", "1h"]);
    let order = folder().join("order");
    let note = format!("note=cat >> '{}'", order.display());
    let hold = format!("hold=while [ ! -e '{}.go' ]; do sleep 0.01; done", order.display());
    let _worker = balancer.worker_with(&["--id", "one", "--threads", "1", "--exec", &note, "--exec", &hold]);
    let held = balancer.submitting(["hold", ""]);
    balancer.wait_until_busy("one");
    let mut tasks = Vec::new();
    for (queued, (priority, name)) in (1..).zip([("1", "low "), ("9", "high "), ("5", "middle ")]) {
        tasks.push(balancer.submitting(["note", name, "--priority", priority]));
        wait_until("the task waits", || balancer.status().totals.queued == queued);
    }
    std::fs::write(format!("{}.go", order.display()), "").unwrap();
    for task in tasks.into_iter().chain([held]) {
        task.end().success();
    }
    assert_eq!(std::fs::read_to_string(&order).unwrap(), "high middle low ");
}

#[test]
fn tasks_of_one_key_share_a_run() {
    let balancer = Balancer::start();
    let runs = folder().join("runs");
    let once = format!(
        "once=echo run >> '{0}'; while [ ! -e '{0}.go' ]; do sleep 0.01; done; cat '{0}'",
        runs.display()
    );
    let _worker = balancer.worker_with(&["--id", "one", "--threads", "4", "--exec", &once]);
    let tasks: Vec<Process> = (0..3).map(|_| balancer.submitting(["once", "", "--key", "same"])).collect();
    wait_until("all have been taken", || balancer.status().totals.submitted == 3);
    std::fs::write(format!("{}.go", runs.display()), "").unwrap();
    for task in tasks {
        assert_eq!(task.end().success_text(), "run\n");
    }
}

#[test]
fn interrupting_submit_cancels_its_task_with_everything_the_command_started() {
    let balancer = Balancer::start();
    let files = folder();
    let (shell, grandchild) = (files.join("shell"), files.join("grandchild"));
    let long = format!(
        "long=echo $$ > '{}'; sleep 600 & echo $! > '{}'; wait",
        shell.display(),
        grandchild.display()
    );
    let _worker = balancer.worker_with(&["--id", "one", "--threads", "1", "--exec", &long, "--builtin"]);
    let submit = balancer.submitting(["long", ""]);
    let started = [pid_from(&shell), pid_from(&grandchild)];
    assert!(started.iter().all(|pid| runs(*pid)));
    submit.signal(Signal::INT);
    assert_ne!(submit.end().code, Some(0));
    wait_until("the command and what it started are gone", || started.iter().all(|pid| !runs(*pid)));
    assert_eq!(balancer.submit(["upper", "free"]).success_text(), "FREE");
}

#[test]
fn every_subcommand_explains_itself_with_an_example() {
    let subcommands =
        ["balancer", "worker", "submit", "get", "cancel", "tasks", "dead", "repl", "status", "demo"];
    for subcommand in subcommands {
        let help = Process::start(reparto([subcommand, "--help"])).end().success_text();
        assert!(help.contains("Example") && help.contains(&format!("reparto {subcommand}")), "{help}");
    }
    let help = run(["--help"]).success_text();
    for subcommand in subcommands {
        assert!(help.contains(subcommand), "{help}");
    }
}
