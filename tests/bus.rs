//! Two balancers that share their work over RabbitMQ and PostgreSQL, with real engines and real processes: whatever is
//! accepted at one ends once, at either, whoever is killed or away meanwhile.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use reparto_client::{Client, ErrorCode, Fetched, TaskId};
use support::sharing::Shared;
use support::{Balancer, PATIENCE, Process, accepted, folder, hand_in, reparto, wait_until};

/// A client of one balancer, or of the first of several that it reaches.
fn client(balancers: &[&Balancer]) -> Client {
    let addresses = balancers.iter().map(|balancer| balancer.clients.clone());
    Client::builder().balancers(addresses).reconnect_for(PATIENCE).connect().unwrap()
}

/// A message that the bus has lost is found by a walk each half minute, once it is half a minute old.
const END_PATIENCE: Duration = PATIENCE.saturating_mul(4);

/// A task's result, once there is one.
#[track_caller]
fn fetch(client: &Client, task: TaskId) -> String {
    fetch_or(client, task, &|| String::new())
}

/// The same; `explain` says what is known when there is none in time.
#[track_caller]
fn fetch_or(client: &Client, task: TaskId, explain: &dyn Fn() -> String) -> String {
    for _ in 0..200 {
        match client.fetch(task, END_PATIENCE).unwrap().wait() {
            Ok(Fetched::Ended(outcome)) => return String::from_utf8(outcome.unwrap().to_vec()).unwrap(),
            Ok(Fetched::NotEnded(standing)) => panic!("{task} has not ended: {standing:?}\n{}", explain()),
            // Its balancer was killed, or the database was away.
            Err(failure)
                if matches!(failure.code, ErrorCode::ConnectionLost | ErrorCode::StoreUnavailable) =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(failure) => panic!("{task}: {failure}"),
        }
    }
    panic!("{task} cannot be fetched");
}

/// Hands in tasks at a balancer for as long as `while_this` runs, and gives those that were accepted with what they are.
fn under_load(client: &Client, while_this: impl FnOnce()) -> Vec<(TaskId, String)> {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let mut replies = Vec::new();
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) && number < 20_000 {
                for _ in 0..20 {
                    let payload = format!("task {number}");
                    // While there is no connection nothing can be handed in.
                    if let Ok(reply) =
                        client.task("upper").payload(payload.clone()).max_attempts(20).submit_background()
                    {
                        replies.push((reply, payload));
                    }
                    number += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            replies
        });
        std::thread::sleep(Duration::from_millis(500));
        while_this();
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let replies = loading.join().unwrap();
        let accepted = replies.into_iter().filter_map(|(reply, payload)| {
            match reply.wait_timeout(PATIENCE).expect("an answer") {
                Ok(accepted) => Some((accepted.task_id, payload)),
                Err(failure) => {
                    let fits = [ErrorCode::ConnectionLost, ErrorCode::StoreUnavailable];
                    assert!(fits.contains(&failure.code), "{failure}");
                    None
                }
            }
        });
        accepted.collect()
    })
}

/// Each of these tasks ends with its own result, at whichever balancer one asks.
fn all_end(shared: &Shared, clients: &[&Client], tasks: &[(TaskId, String)]) {
    assert!(tasks.len() > 100, "there was no load: {}", tasks.len());
    let open = "SELECT state, owner, publisher, count(*), min(id::text) FROM tasks WHERE state <= 2 GROUP BY 1, 2, 3";
    let explain = || format!("{}\n{}", shared.psql(open), shared.psql("SELECT * FROM balancers"));
    for (number, (task, payload)) in tasks.iter().enumerate() {
        let result = fetch_or(clients[number % clients.len()], *task, &explain);
        assert_eq!(result, payload.to_uppercase(), "{task}");
    }
}

#[test]
fn a_task_accepted_at_one_balancer_runs_at_another_and_can_be_fetched_and_cancelled_at_either() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let (at_first, at_second) = (client(&[&first]), client(&[&second]));
    // Nobody at the first has a worker.
    let replies: Vec<_> =
        (0..300).map(|number| (hand_in(&at_first, &format!("t{number}")), number)).collect();
    let tasks: Vec<_> = replies.iter().map(|(reply, number)| (accepted(reply), *number)).collect();
    // Right after ACCEPTED it is known everywhere, and whoever waits is woken.
    let waiting = at_first.fetch(tasks[0].0, PATIENCE).unwrap();
    assert!(matches!(
        at_second.fetch(tasks[299].0, Duration::ZERO).unwrap().wait(),
        Ok(Fetched::NotEnded(_))
    ));
    let _worker = second.worker("ana");
    assert!(matches!(waiting.wait(), Ok(Fetched::Ended(Ok(result))) if &result[..] == b"T0"));
    for (task, number) in tasks {
        assert_eq!(fetch(&at_first, task), format!("T{number}"));
    }

    // A delay waits in the database; a payload beyond the threshold in the blob store.
    let delayed = at_first.task("upper").payload("soon").delay(Duration::from_millis(300));
    let delayed = accepted(&delayed.submit_background().unwrap());
    let large = "x".repeat(1 << 20);
    let large_task = accepted(&at_second.task("upper").payload(large.clone()).submit_background().unwrap());
    assert_eq!(fetch(&at_first, delayed), "SOON");
    assert_eq!(fetch(&at_first, large_task), large.to_uppercase());

    // One key, two balancers.
    let keyed = |client: &Client| {
        let reply = client.task("upper").payload("once").idempotency_key("once").submit_background().unwrap();
        reply.wait_timeout(PATIENCE).unwrap().unwrap()
    };
    let (one, two) = (keyed(&at_first), keyed(&at_second));
    assert_eq!((one.task_id, one.duplicate, two.duplicate), (two.task_id, false, true));
}

#[test]
fn a_running_task_is_cancelled_and_a_dead_one_retried_from_another_balancer() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let (at_first, at_second) = (client(&[&first]), client(&[&second]));
    let gate = folder().join("go");
    let wait = format!("wait=while [ ! -e '{}' ]; do sleep 0.01; done; cat", gate.display());
    let again = format!("again=[ -e '{}' ] && cat && exit 0; echo busy >&2; exit 75", gate.display());
    let _worker = second.worker_with(&["--id", "ana", "--threads", "2", "--exec", &wait, "--exec", &again]);
    let submit = |action: &str| {
        let task = at_first.task(action).payload("x").max_attempts(2).backoff(Duration::from_millis(10));
        accepted(&task.submit_background().unwrap())
    };
    let waits = submit("wait");
    second.wait_until_busy("ana");
    at_first.cancel_task(waits).unwrap().wait().unwrap();
    match at_second.fetch(waits, PATIENCE).unwrap().wait() {
        Ok(Fetched::Ended(Err(failure))) => assert_eq!(failure.code, ErrorCode::Cancelled),
        other => panic!("{other:?}"),
    }
    wait_until("its worker is told", || {
        second.worker_status("ana").is_some_and(|worker| worker.in_flight == 0)
    });

    let dies = submit("again");
    match at_first.fetch(dies, PATIENCE).unwrap().wait() {
        Ok(Fetched::Ended(Err(failure))) => assert_eq!(failure.code, ErrorCode::AttemptsExhausted),
        other => panic!("{other:?}"),
    }
    std::fs::write(&gate, "").unwrap();
    at_first.retry_task(dies).unwrap().wait().unwrap();
    assert_eq!(fetch(&at_first, dies), "x");
}

#[test]
fn all_that_a_killed_balancer_had_ends_at_the_other() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let both = client(&[&first, &second]);
    let _workers = [first.worker("ana"), second.worker("luis"), second.worker("eva")];
    let mut first = Some(first);
    let tasks = under_load(&both, || first.take().unwrap().process.kill());
    all_end(&shared, &[&both], &tasks);
    assert_eq!(
        shared.psql("SELECT count(*) FROM tasks WHERE state <= 2 AND owner IS NULL AND state <> 1"),
        "0"
    );
}

#[test]
fn rabbitmq_may_be_killed_and_come_back_and_nothing_that_was_accepted_is_lost() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let (at_first, at_second) = (client(&[&first]), client(&[&second]));
    let _workers = [first.worker("ana"), second.worker("luis")];
    let tasks = under_load(&at_first, || {
        shared.engines.kill("rabbitmq");
        std::thread::sleep(Duration::from_millis(500));
        // A foreground task does not need it.
        let foreground = at_second.task("upper").payload("here").submit().unwrap().wait().unwrap();
        assert_eq!(&foreground[..], b"HERE");
        shared.engines.up("rabbitmq");
    });
    all_end(&shared, &[&at_first, &at_second], &tasks);
}

#[test]
fn postgresql_may_be_killed_and_come_back_and_nothing_that_was_accepted_is_lost() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let (at_first, at_second) = (client(&[&first]), client(&[&second]));
    let _workers = [first.worker("ana"), second.worker("luis")];
    let tasks = under_load(&at_first, || {
        shared.engines.kill("postgres");
        let foreground = at_second.task("upper").payload("here").submit().unwrap().wait().unwrap();
        assert_eq!(&foreground[..], b"HERE");
        std::thread::sleep(Duration::from_secs(1));
        shared.engines.up("postgres");
    });
    all_end(&shared, &[&at_first, &at_second], &tasks);
}

#[test]
fn balancers_with_two_reactors_share_their_work() {
    let shared = Shared::start();
    let flags = ["--reactors", "2"];
    let (first, second) = (shared.balancer_with(&flags), shared.balancer_with(&flags));
    let clients = [&first, &first, &second, &second].map(|balancer| client(&[balancer]));
    let _workers = [first.worker("ana"), second.worker("luis"), second.worker("eva")];
    let replies: Vec<_> =
        (0..400).map(|number| (hand_in(&clients[number % 4], &format!("t{number}")), number)).collect();
    // Nobody at the first offers it: these travel.
    let _wc = second.worker_with(&["--id", "juan", "--exec", "shout=tr a-z A-Z"]);
    let foreground: Vec<_> = (0..100)
        .map(|number| clients[number % 2].task("shout").payload(format!("f{number}")).submit().unwrap())
        .collect();
    for (number, handle) in foreground.into_iter().enumerate() {
        assert_eq!(handle.wait().unwrap(), format!("F{number}"));
    }
    for (reply, number) in replies {
        assert_eq!(fetch(&clients[(number + 1) % 4], accepted(&reply)), format!("T{number}"));
    }
}

#[test]
fn what_is_large_goes_through_a_bucket_from_one_balancer_to_another() {
    let shared = Shared::start_with_s3();
    let (first, second) = (shared.balancer(), shared.balancer());
    let (at_first, at_second) = (client(&[&first]), client(&[&second]));
    let _worker = second.worker("ana");
    let payloads: Vec<String> = (0..8).map(|number| format!("{number}x").repeat(300_000)).collect();
    let replies: Vec<_> = payloads.iter().map(|payload| hand_in(&at_first, payload)).collect();
    for (reply, payload) in replies.iter().zip(&payloads) {
        let task = accepted(reply);
        for client in [&at_first, &at_second] {
            assert!(fetch(client, task) == payload.to_uppercase(), "{task} has another result");
        }
    }
    assert_eq!(
        shared.psql("SELECT count(*) FROM tasks WHERE payload_blob IS NOT NULL AND result_blob IS NOT NULL"),
        "8"
    );
}

/// nginx with docs/nginx.conf, before these balancers instead of those in it.
struct Nginx {
    process: Process,
    clients: String,
    workers: String,
}

impl Nginx {
    fn start(balancers: &[&Balancer]) -> Nginx {
        let ports = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        let whole = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/nginx.conf");
        let mut conf = std::fs::read_to_string(whole).unwrap();
        for (host, balancer) in ["10.0.0.5", "10.0.0.6"].iter().zip(balancers) {
            conf = conf.replace(&format!("{host}:8888"), &balancer.clients);
            conf = conf.replace(&format!("{host}:8889"), &balancer.workers);
        }
        for (port, address) in ["8888", "8889"].iter().zip(ports) {
            conf = conf.replace(&format!("listen {port};"), &format!("listen {address};"));
        }
        let home = folder();
        std::fs::write(home.join("nginx.conf"), conf).unwrap();
        let mut command = Command::new("nginx");
        let own = format!("daemon off; pid {}; user root;", home.join("pid").display());
        command.arg("-c").arg(home.join("nginx.conf")).args(["-e", "stderr", "-g", &own]);
        let process = Process::start(command);
        let [clients, workers] = ports.map(|address| address.to_string());
        wait_until("nginx listens", || std::net::TcpStream::connect(&workers).is_ok());
        Nginx { process, clients, workers }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it, which they would not if it were killed.
        self.process.signal(rustix::process::Signal::TERM);
        wait_until("nginx has ended", || self.process.has_ended());
    }
}

#[test]
fn nginx_stands_before_two_balancers_of_which_one_is_killed() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let nginx = Nginx::start(&[&first, &second]);
    let workers: Vec<Process> = ["ana", "luis", "eva", "juan"]
        .map(|id| Process::start(reparto(["worker", "--balancer", &nginx.workers, "--id", id])))
        .into();
    let client =
        Client::builder().balancers([nginx.clients.clone()]).reconnect_for(PATIENCE).connect().unwrap();
    let replies: Vec<_> = (0..200).map(|number| (hand_in(&client, &format!("t{number}")), number)).collect();
    let tasks: Vec<_> = replies.iter().map(|(reply, number)| (accepted(reply), *number)).collect();
    first.process.kill();
    for (task, number) in tasks {
        assert_eq!(fetch(&client, task), format!("T{number}"));
    }
    let foreground = client.task("upper").payload("hola").safe_to_repeat(true).submit().unwrap();
    assert_eq!(&foreground.wait().unwrap()[..], b"HOLA");
    drop(workers);
}

#[test]
fn what_a_bus_needs_is_said_at_the_start() {
    let bus = "amqp://ana:secret@127.0.0.1:1";
    let store = "postgres://ana:secret@127.0.0.1:1/tasks";
    let start = |flags: &[&str]| {
        let mut command = reparto(["balancer", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"]);
        command.args(flags).env_remove("REPARTO_BALANCER_NO_DATA");
        let sentence = Process::start(command).end().failure(2);
        assert!(!sentence.contains("secret"), "{sentence}");
        sentence
    };
    assert!(start(&["--bus", bus]).contains("--store postgres://"));
    assert!(start(&["--bus", bus, "--store", store]).contains("--blobs"));
    assert!(start(&["--bus", bus, "--no-data"]).contains("--store postgres://"));
    let wrong = start(&["--bus", "http://ana:secret@x", "--store", store, "--blobs", "file:x"]);
    assert!(wrong.contains("amqp://USER:PASSWORD@HOST:PORT/VHOST"), "{wrong}");
}
