//! Balancers that keep tasks in PostgreSQL and S3, with real engines and real processes: a hot standby takes over, an
//! engine goes away and comes back, and nothing that was accepted is lost.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use reparto_client::{Accepted, Client, ErrorCode, Fetched, Reply, TaskId};
use rustix::process::Signal;
use support::engines::Engines;
use support::{Balancer, PATIENCE, Process, accepted, folder, hand_in, reparto, wait_for, wait_until};

/// A balancer's command with these stores, not started yet.
fn command(engines: &Engines, flags: &[&str]) -> Command {
    let mut command = reparto(["balancer", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"]);
    command.args(["--store", engines.postgres_url()]).args(flags);
    command.env_remove("REPARTO_BALANCER_NO_DATA");
    if flags.iter().any(|flag| flag.starts_with("s3://")) {
        engines.with_s3_key(&mut command);
    } else if !flags.contains(&"--blobs") {
        command.arg("--blobs").arg(format!("file:{}", folder().display()));
    }
    command
}

/// A client that finds the leader among these, however long one is to be waited for.
fn client(balancers: &[&str]) -> Client {
    Client::builder().balancers(balancers.iter().copied()).reconnect_for(PATIENCE).connect().unwrap()
}

/// Fetches a result, from whichever balancer leads by then.
#[track_caller]
fn fetch(client: &Client, task: TaskId) -> String {
    for _ in 0..100 {
        match client.fetch(task, PATIENCE).unwrap().wait() {
            Ok(Fetched::Ended(outcome)) => return String::from_utf8(outcome.unwrap().to_vec()).unwrap(),
            Ok(Fetched::NotEnded(standing)) => panic!("{task} has not ended: {standing:?}"),
            Err(failure) if failure.code == ErrorCode::ConnectionLost => {}
            Err(failure) => panic!("{task}: {failure}"),
        }
    }
    panic!("the connection is lost again and again");
}

/// An engine's line in the status report: its state, and how many operations wait for it.
fn engine(client: &Client, role: &str) -> (String, u64) {
    let engines = client.status().unwrap().engines;
    let engine = engines.into_iter().find(|engine| engine.role == role).unwrap();
    assert_eq!(engine.state == "ok", engine.since_ms.is_none(), "{engine:?}");
    (engine.state, engine.waiting)
}

fn wait_for_state(client: &Client, role: &str, state: &str) {
    wait_until(&format!("the {role} is {state}"), || engine(client, role).0 == state);
}

/// Asks the database by hand.
fn psql(engines: &Engines, sql: &str) -> String {
    let mut command = Command::new("psql");
    command.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-d", engines.postgres_url(), "-c", sql]);
    let output = command.output().expect("this test needs psql; install it (Debian: postgresql-client)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The command line of a process, as anybody can see it.
fn title(process: &Process) -> String {
    let pid = process.pid().as_raw_nonzero().to_string();
    let output = Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_standby_takes_over_from_a_killed_leader_and_gives_out_all_that_it_accepted() {
    let engines = Engines::start(&["postgres"]);
    let blobs = format!("file:{}", folder().display());
    let leader = Balancer::from_command(command(&engines, &["--blobs", &blobs]));
    let (clients, workers) = (leader.clients.clone(), leader.workers.clone());

    // On the leader's own addresses: it can listen there only once the leader is gone.
    let mut standby = reparto(["balancer", "--clients", &clients, "--workers", &workers]);
    standby.args(["--store", engines.postgres_url(), "--blobs", &blobs]);
    standby.env_remove("REPARTO_BALANCER_NO_DATA");
    let mut standby = Process::start(standby);
    let leads = format!("standing by: process {}", leader.process.pid().as_raw_nonzero());
    wait_until("it says who leads", || standby.stderr().contains(&leads));
    let client = client(&[&clients]);
    wait_until("the leader knows of it", || {
        let engines = client.status().unwrap().engines;
        engines.iter().any(|engine| engine.role == "store" && engine.standbys == 1)
    });
    assert!(!standby.has_ended() && standby.stdout().is_empty(), "{}", standby.stderr());

    let _worker = leader.worker("ana");
    let replies: Vec<_> = (0..3000).map(|number| hand_in(&client, &format!("task {number}"))).collect();
    let first: Vec<TaskId> = replies[..1000].iter().map(accepted).collect();
    leader.process.kill();
    standby.line_after("ready clients=");
    wait_until("it says that it leads", || standby.stderr().contains("leads now"));
    let mut tasks: Vec<(usize, TaskId)> = first.into_iter().enumerate().collect();
    for (number, reply) in replies.iter().enumerate().skip(1000) {
        match reply.wait_timeout(PATIENCE).expect("an answer") {
            Ok(accepted) => tasks.push((number, accepted.task_id)),
            Err(failure) => assert_eq!(failure.code, ErrorCode::ConnectionLost, "{failure}"),
        }
    }
    for (number, task) in tasks {
        assert_eq!(fetch(&client, task), format!("TASK {number}"));
    }
}

#[test]
fn an_engine_comes_back_where_it_was_though_somebody_has_its_port_for_a_moment() {
    let engines = Engines::start(&["postgres"]);
    engines.kill("postgres");
    let (_, port) = engines.postgres_url().rsplit_once(':').unwrap();
    let port: u16 = port.split('/').next().unwrap().parse().unwrap();
    // As a process that was killed may have, until all of it is gone.
    let taken = wait_for("the port is free", || TcpListener::bind(("127.0.0.1", port)).ok());
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        drop(taken);
    });
    engines.up("postgres");
    assert_eq!(psql(&engines, "SELECT 1"), "1");
}

#[test]
fn a_standby_that_is_told_to_stop_does() {
    let engines = Engines::start(&["postgres"]);
    let leader = Balancer::from_command(command(&engines, &[]));
    let standby = Process::start(command(&engines, &[]));
    wait_until("it stands by", || standby.stderr().contains("standing by"));
    standby.signal(Signal::TERM);
    let ended = standby.end();
    assert_eq!((ended.code, ended.stdout.len()), (Some(0), 0), "{}", ended.stderr);
    // So does one that waits for a database that is away.
    drop(leader);
    engines.down("postgres");
    let waiting = Process::start(command(&engines, &[]));
    wait_until("it waits", || waiting.stderr().contains("waiting for the database"));
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.end().code, Some(0));
}

#[test]
fn a_leader_that_is_no_longer_the_leader_stops_and_says_why() {
    let engines = Engines::start(&["postgres"]);
    let leader = Balancer::from_command(command(&engines, &[]));
    let _worker = leader.worker("ana");
    let client = client(&[&leader.clients]);
    accepted(&hand_in(&client, "hola"));
    // As another balancer does when it takes over.
    psql(&engines, "UPDATE leader SET epoch = epoch + 1");
    let ended = leader.process.end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("another balancer has taken over (epoch 2, ours was 1)"),
        "{}",
        ended.stderr
    );
}

#[test]
fn while_postgresql_is_away_foreground_tasks_go_on_and_what_was_taken_is_done_afterwards() {
    let engines = Engines::start(&["postgres"]);
    let balancer = Balancer::from_command(command(&engines, &["--blob-threshold", "16MiB"]));
    let _worker = balancer.worker("ana");
    let client = client(&[&balancer.clients]);
    let before: Vec<_> = (0..500).map(|number| hand_in(&client, &format!("before {number}"))).collect();
    let fetched = accepted(&before[0]);
    engines.kill("postgres");
    let waits = client.fetch(fetched, PATIENCE).unwrap();
    wait_for_state(&client, "store", "unreachable");
    let small: Vec<_> = (0..500).map(|number| hand_in(&client, &format!("during {number}"))).collect();
    for number in 0..100 {
        let result = client.submit("upper", format!("foreground {number}")).unwrap().wait().unwrap();
        assert_eq!(result, format!("FOREGROUND {number}"));
    }
    // What waits is bounded by 64 MiB; these are more.
    let large = "x".repeat(8 << 20);
    let large: Vec<_> = (0..16).map(|_| hand_in(&client, &large)).collect();
    let refused = |reply: &&Reply<Accepted>| match reply.wait_timeout(PATIENCE) {
        Some(Err(failure)) => {
            assert_eq!(failure.code, ErrorCode::StoreUnavailable, "{failure}");
            assert!(failure.message.contains("takes no more"), "{failure}");
            true
        }
        _ => false,
    };
    assert!(refused(&large.last().unwrap()), "the last one finds no room");
    let (state, waiting) = engine(&client, "store");
    assert_eq!(state, "unreachable");
    assert!(waiting >= 500, "{waiting}");

    engines.up("postgres");
    wait_for_state(&client, "store", "ok");
    for (number, reply) in before.iter().enumerate() {
        assert_eq!(fetch(&client, accepted(reply)), format!("BEFORE {number}"));
    }
    for (number, reply) in small.iter().enumerate() {
        assert_eq!(fetch(&client, accepted(reply)), format!("DURING {number}"));
    }
    let taken = large.iter().filter(|reply| !refused(reply)).count();
    assert!((4..=8).contains(&taken), "{taken} of 8 MiB found room in 64 MiB");
    let outcome = waits.wait_timeout(PATIENCE).expect("an answer").expect("it is waited on");
    assert!(matches!(outcome, Fetched::Ended(Ok(_))), "{outcome:?}");
    assert_eq!(fetch(&client, accepted(&hand_in(&client, "after"))), "AFTER");
    let count = psql(&engines, "SELECT count(*) FROM task_results WHERE state <> 'done'");
    assert_eq!(count, "0");
}

#[test]
fn while_the_s3_server_is_away_small_tasks_go_on_and_large_results_wait_for_it() {
    let engines = Engines::start(&["postgres", "s3"]);
    let blobs = engines.s3_url().to_owned();
    let gate = folder().join("go");
    let wait =
        format!("large=while [ ! -e '{}' ]; do sleep 0.01; done; head -c 400000 /dev/zero", gate.display());
    let balancer = Balancer::from_command(command(&engines, &["--blobs", &blobs]));
    let _worker = balancer.worker_with(&["--id", "ana", "--threads", "2", "--builtin", "--exec", &wait]);
    let client = client(&[&balancer.clients]);
    let large = |length: usize| {
        let reply = client.task("upper").payload("x".repeat(length)).submit_background().unwrap();
        reply.wait_timeout(PATIENCE).expect("an answer").map(|accepted| accepted.task_id)
    };
    let before = large(300_000).unwrap();
    let result = client.task("large").payload("").submit_background().unwrap();
    let result = accepted(&result);
    assert_eq!(fetch(&client, before).len(), 300_000);

    engines.kill("s3");
    let refused = large(300_000).unwrap_err();
    assert_eq!(refused.code, ErrorCode::StoreUnavailable, "{refused}");
    wait_for_state(&client, "blobs", "unreachable");
    assert_eq!(engine(&client, "store").0, "ok");
    assert_eq!(fetch(&client, accepted(&hand_in(&client, "small"))), "SMALL");
    assert_eq!(client.submit("upper", "foreground").unwrap().wait().unwrap(), "FOREGROUND");
    std::fs::write(&gate, "").unwrap();
    wait_until("the large result waits", || engine(&client, "blobs").1 > 0);

    engines.up("s3");
    assert_eq!(fetch(&client, result).len(), 400_000);
    wait_for_state(&client, "blobs", "ok");
    assert_eq!(fetch(&client, large(300_000).unwrap()).len(), 300_000);
}

#[test]
fn results_are_read_with_psql_and_go_when_they_were_to_be_kept_no_longer() {
    let engines = Engines::start(&["postgres", "s3"]);
    let blobs = engines.s3_url().to_owned();
    let flags = ["--blobs", &blobs, "--blob-threshold", "1KiB", "--keep-results", "20s"];
    let balancer = Balancer::from_command(command(&engines, &flags));
    let _worker = balancer.worker("ana");
    let client = client(&[&balancer.clients]);
    let small = accepted(&hand_in(&client, "hola"));
    let large = accepted(&hand_in(&client, &"y".repeat(2000)));
    assert_eq!((fetch(&client, small), fetch(&client, large).len()), ("HOLA".to_owned(), 2000));
    let select = "SELECT action, task, state, convert_from(result, 'UTF8'), result_blob IS NULL, \
                  finished_at <= now() FROM task_results ORDER BY task";
    let rows = psql(&engines, select);
    assert_eq!(rows, format!("upper|{small}|done|HOLA|t|t\nupper|{large}|done||f|t"));

    wait_until("both are gone", || psql(&engines, "SELECT count(*) FROM tasks") == "0");
    let failure = client.fetch(small, Duration::ZERO).unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::NotFound);
}

#[test]
fn a_password_is_seen_nowhere() {
    let engines = Engines::start(&["postgres"]);
    let url = engines.postgres_url().to_owned();
    let password = url.split_once("reparto:").unwrap().1.split_once('@').unwrap().0;
    let mut flags = command(&engines, &[]);
    flags.env("REPARTO_LOG", "debug");
    let leader = Balancer::from_command(flags);
    let title = title(&leader.process);
    assert!(
        title.contains("balancer") && title.contains("--clients") && !title.contains(password),
        "{title}"
    );
    let standby = Process::start(command(&engines, &[]));
    wait_until("it stands by", || standby.stderr().contains("standing by"));
    let status = support::run(["status", "--balancer", &leader.clients]).success_text();
    assert!(status.contains("store    postgres://reparto:***@127.0.0.1:"), "{status}");
    let json = support::run(["status", "--json", "--balancer", &leader.clients]).success_text();
    let help = {
        let mut command = reparto(["balancer", "--help"]);
        command.env("REPARTO_BALANCER_STORE", &url);
        Process::start(command).end().success_text()
    };
    engines.down("postgres");
    wait_until("the leader says so", || leader.process.stderr().contains("what was taken waits"));
    let file = folder().join("balancer.toml");
    std::fs::write(&file, format!("store = \"{url}\nno_data = false\n")).unwrap();
    let wrong_file = support::run(["balancer", "--config", file.to_str().unwrap()]).failure(2);
    let wrong_url = support::run(["balancer", "--store", &url.replace("postgres", "mysql")]).failure(2);
    let both = support::run(["balancer", "--store", &url, "--no-data"]).failure(2);
    for said in
        [&leader.process.stderr(), &standby.stderr(), &status, &json, &help, &wrong_file, &wrong_url, &both]
    {
        assert!(!said.contains(password), "{said}");
    }
}
