//! `reparto status` and `reparto repl`: what people see of a running balancer, and what scripts read.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::{Balancer, Ended, Process, reparto, run, wait_until};

/// Runs `reparto repl` with what is typed coming from a pipe.
fn repl(balancer: &Balancer, typed: &str) -> Ended {
    let process = Process::start(reparto(["repl", "--balancer", &balancer.clients]));
    process.write(typed);
    process.end()
}

#[test]
fn status_shows_workers_and_actions_with_their_load() {
    let balancer = Balancer::start();
    let _workers = [balancer.worker("first"), balancer.worker("second")];
    for _ in 0..3 {
        balancer.submit(["upper", "hola"]).success();
    }
    balancer.submit(["sum", "1,x"]).failure(1);
    let table = run(["status", "--balancer", &balancer.clients]).success_text();
    for shown in [
        &balancer.clients,
        "least_loaded",
        "WORKER",
        "first",
        "second",
        "ACTION",
        "upper",
        "3 done",
        "1 failed",
    ] {
        assert!(table.contains(shown), "'{shown}' is not in\n{table}");
    }
}

#[test]
fn status_in_json_has_every_field_that_the_protocol_page_names() {
    let balancer = Balancer::start_with(&["--policy", "weighted"]);
    let _worker = balancer.worker_with(&["--id", "one", "--threads", "3", "--window", "64", "--weight", "7"]);
    balancer.submit(["upper", "hola"]).success();
    let _running = balancer.submitting(["sleep", "600000"]);
    balancer.wait_until_busy("one");
    let text = run(["status", "--json", "--balancer", &balancer.clients]).success_text();
    assert_eq!(text.lines().count(), 1);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["policy"], "weighted");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["uptime_ms"].is_u64());
    let totals = &report["totals"];
    let expected = [
        ("workers", 1),
        ("queued", 0),
        ("running", 1),
        ("bytes", 6),
        ("submitted", 2),
        ("refused", 0),
        ("done", 1),
        ("failed", 0),
        ("requeued", 0),
        ("workers_lost", 0),
    ];
    for (name, number) in expected {
        assert_eq!(totals[name], number, "{name} in {totals}");
    }
    // The one whose task runs, this one, and perhaps a former one that has just left.
    assert!(totals["clients"].as_u64().unwrap() >= 2, "{totals}");
    let worker = &report["workers"][0];
    for (name, number) in
        [("threads", 3), ("window", 64), ("weight", 7), ("in_flight", 1), ("done", 1), ("failed", 0)]
    {
        assert_eq!(worker[name], number, "{name} in {worker}");
    }
    assert_eq!((&worker["id"], &worker["draining"]), (&"one".into(), &false.into()));
    assert!(worker["service_ns"].is_u64() && worker["connected_us"].is_u64(), "{worker}");
    assert!(worker["actions"].as_array().unwrap().contains(&"sha256".into()), "{worker}");
    let actions = report["actions"].as_array().unwrap();
    let sleep = actions.iter().find(|action| action["name"] == "sleep").unwrap();
    assert_eq!(*sleep, serde_json::json!({"name": "sleep", "workers": 1, "queued": 0, "running": 1}));
    assert_eq!((&report["workers_total"], &report["actions_total"]), (&1.into(), &totals["actions"]));
}

#[test]
fn status_without_workers_says_how_to_start_one() {
    let balancer = Balancer::start();
    let table = run(["status", "--balancer", &balancer.clients]).success_text();
    assert!(table.contains("reparto worker"), "{table}");
}

#[test]
fn a_watched_status_comes_again_and_again() {
    let balancer = Balancer::start();
    let status =
        Process::start(reparto(["status", "--json", "--watch", "0.1", "--balancer", &balancer.clients]));
    wait_until("it has come three times", || status.stdout().lines().count() >= 3);
}

#[test]
fn the_repl_runs_what_is_typed_until_it_is_told_to_leave() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    for leave in ["salir", "exit", "quit"] {
        let ended = repl(&balancer, &format!("upper hola\nsum 1,2,3,4,5\n{leave}\nupper never\n"));
        assert_eq!(ended.success_text(), "HOLA\n15\n");
    }
    assert_eq!(
        repl(&balancer, "greet Ana").success_text(),
        "Hello, Ana!\n",
        "the end of the input ends it too"
    );
}

#[test]
fn a_task_that_fails_in_the_repl_is_told_and_the_next_one_runs() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let ended = repl(&balancer, "sum 1,x\nupper hola\nsalir\n");
    assert_eq!(ended.stdout, b"HOLA\n");
    let sentence = ended.failure(1);
    assert!(sentence.contains("worker_failed") && sentence.contains("'x'"), "{sentence}");
}

#[test]
fn the_repl_shows_the_status() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let shown = repl(&balancer, "status\nsalir\n").success_text();
    assert!(shown.contains("WORKER") && shown.contains("one"), "{shown}");
}
