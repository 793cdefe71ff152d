//! Where settings come from: flags go before REPARTO_ variables, variables before the file, and what is wrong in
//! any of them is named.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use support::{Balancer, Process, folder, reparto, run, wait_until};

fn file(text: &str) -> PathBuf {
    let path = folder().join("balancer.toml");
    std::fs::write(&path, text).unwrap();
    path
}

const FREE_PORTS: &str = "clients = \"127.0.0.1:0\"\nworkers = \"127.0.0.1:0\"\n";

#[test]
fn a_flag_goes_before_a_variable_and_a_variable_before_the_file() {
    let file = file(&format!("{FREE_PORTS}policy = \"weighted\"\n"));
    let start = |flags: &[&str], variable: Option<&str>| {
        let mut command = reparto(["balancer", "--config", file.to_str().unwrap()]);
        command.args(flags);
        if let Some(policy) = variable {
            command.env("REPARTO_BALANCER_POLICY", policy);
        }
        Balancer::from_command(command).status().policy
    };
    assert_eq!(start(&[], None), "weighted");
    assert_eq!(start(&[], Some("round_robin")), "round_robin");
    assert_eq!(start(&["--policy", "least_loaded"], Some("round_robin")), "least_loaded");
}

#[test]
fn the_file_can_be_named_by_a_variable() {
    let mut command = reparto(["balancer"]);
    command.env("REPARTO_CONFIG", file(&format!("{FREE_PORTS}policy = \"weighted\"\n")));
    assert_eq!(Balancer::from_command(command).status().policy, "weighted");
}

#[test]
fn workers_and_clients_find_their_balancer_by_variables() {
    let balancer = Balancer::start();
    let mut command = reparto(["worker"]);
    command.env("REPARTO_WORKER_BALANCER", &balancer.workers).env("REPARTO_WORKER_ID", "from-a-variable");
    let mut worker = Process::start(command);
    assert_eq!(worker.line_after("ready id="), "from-a-variable");
    let mut command = reparto(["submit", "upper", "hola"]);
    command.env("REPARTO_BALANCER", &balancer.clients);
    assert_eq!(Process::start(command).end().success_text(), "HOLA");
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_place() {
    let cases = [
        ("colour = \"blue\"\n", "colour"),
        ("policy = \"random\"\n", "random"),
        ("grace = \"soon\"\n", "soon"),
        ("max_frame = \"16 sheets\"\n", "sheets"),
        ("clients = \n", "line 1"),
    ];
    for (text, named) in cases {
        let path = file(text);
        let sentence = run(["balancer", "--config", path.to_str().unwrap()]).failure(2);
        assert!(sentence.contains(named) && sentence.contains(path.to_str().unwrap()), "{text}: {sentence}");
    }
    let sentence = run(["balancer", "--config", "/nowhere/at/all.toml"]).failure(2);
    assert!(sentence.contains("/nowhere/at/all.toml"), "{sentence}");
}

#[test]
fn a_wrong_variable_is_named() {
    let mut command = reparto(["balancer"]);
    command.env("REPARTO_BALANCER_GRACE", "soon");
    let sentence = Process::start(command).end().failure(2);
    assert!(sentence.contains("soon") && sentence.contains("--grace"), "{sentence}");
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named() {
    let balancer = Balancer::start();
    let sentence = run(["balancer", "--workers", "127.0.0.1:0", "--clients", &balancer.clients]).failure(1);
    assert!(sentence.contains(&balancer.clients), "{sentence}");
    let sentence = run(["balancer", "--clients", "no address"]).failure(2);
    assert!(sentence.contains("'no address'") && sentence.contains("127.0.0.1:8888"), "{sentence}");
}

#[test]
fn a_full_queue_refuses_what_is_over_it_and_keeps_the_rest() {
    let balancer = Balancer::start_with(&["--max-tasks", "5"]);
    let submit = balancer.submitting(["upper", "--lines", "-", "--json"]);
    submit.write("a\nb\nc\nd\ne\nf\ng\n");
    wait_until("all are taken or refused", || {
        let totals = balancer.status().totals;
        totals.queued == 5 && totals.refused == 2
    });
    let _worker = balancer.worker("one");
    let records = submit.end().records();
    let done = records.iter().filter(|record| record["status"] == "done").count();
    let refused = records.iter().filter(|record| record["code"] == "queue_full").count();
    assert_eq!((done, refused), (5, 2), "{records:?}");
}
