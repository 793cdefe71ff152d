//! A worker and a client in Python, written from docs/PROTOCOL.md alone, against the real balancer.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::{Balancer, Process};

/// The peer, with arguments.
fn python(arguments: &[&str]) -> Command {
    let there = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(
        there,
        "this test needs python3, 3.8 or later, its standard library alone; install it and run it again"
    );
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/reparto_peer.py")).args(arguments);
    command
}

#[test]
fn the_python_peer_finds_every_promise_of_the_protocol_page_kept() {
    let balancer = Balancer::start_with(&["--heartbeat", "1s"]);
    let peer = Process::start(python(&["selftest", &balancer.clients, &balancer.workers]));
    let said = peer.end().success_text();
    assert!(said.contains("rules hold"), "{said}");
}

#[test]
fn a_python_client_is_served_by_a_worker_of_ours_and_ours_by_a_python_worker() {
    let balancer = Balancer::start();
    let worker = balancer.worker("ours");
    let client = Process::start(python(&["client", &balancer.clients, "greet", "Ana"]));
    assert_eq!(client.end().success_text(), "Hello, Ana!");
    worker.kill();
    let mut worker = Process::start(python(&["worker", &balancer.workers, "--id", "theirs"]));
    worker.line_after("ready id=theirs");
    let input = support::numbers(0..1_000);
    assert_eq!(balancer.submit_input(["echo", "--lines", "-"], input.clone()).success_text(), input);
}
