//! Gearman's packets over sockets: clients and workers of this dialect and of the native one with each other, and what
//! must not go wrong between them.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reparto_protocol::{FrameType, Message, Task, TaskOptions};
use support::{PATIENCE, Served, Wire, echo_worker, has_something_to_read, serve, settings, wait_until};

const CAN_DO: u32 = 1;
const CAN_DO_TIMEOUT: u32 = 23;
const PRE_SLEEP: u32 = 4;
const NOOP: u32 = 6;
const SUBMIT_JOB: u32 = 7;
const JOB_CREATED: u32 = 8;
const GRAB_JOB: u32 = 9;
const NO_JOB: u32 = 10;
const JOB_ASSIGN: u32 = 11;
const WORK_STATUS: u32 = 12;
const WORK_COMPLETE: u32 = 13;
const WORK_FAIL: u32 = 14;
const GET_STATUS: u32 = 15;
const ECHO_REQ: u32 = 16;
const ECHO_RES: u32 = 17;
const SUBMIT_JOB_BG: u32 = 18;
const ERROR: u32 = 19;
const STATUS_RES: u32 = 20;
const WORK_EXCEPTION: u32 = 25;
const OPTION_REQ: u32 = 26;
const WORK_DATA: u32 = 28;
const GRAB_JOB_UNIQ: u32 = 30;
const JOB_ASSIGN_UNIQ: u32 = 31;

fn packet(kind: u32, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    [&b"\0REQ"[..], &kind.to_be_bytes(), &size.to_be_bytes(), data].concat()
}

fn job(action: &str, unique: &str, payload: &[u8]) -> Vec<u8> {
    [action.as_bytes(), b"\0", unique.as_bytes(), b"\0", payload].concat()
}

/// A connection that speaks Gearman.
struct Peer(TcpStream);

impl Peer {
    fn connect(served: &Served) -> Peer {
        let stream = TcpStream::connect(served.gearman).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Peer(stream)
    }

    /// A worker for these actions that is awake.
    fn worker(served: &Served, actions: &[&str]) -> Peer {
        let mut peer = Peer::connect(served);
        for action in actions {
            peer.send(CAN_DO, action.as_bytes());
        }
        peer.send(ECHO_REQ, b"there?");
        peer.expect(ECHO_RES);
        peer
    }

    fn send(&mut self, kind: u32, data: &[u8]) {
        self.0.write_all(&packet(kind, data)).unwrap();
    }

    /// The next packet; `None` when the connection has ended.
    fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut header = [0; 12];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                ) =>
            {
                return None;
            }
            Err(error) => panic!("nothing came within {PATIENCE:?}: {error}"),
        }
        assert_eq!(&header[..4], b"\0RES");
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; number(8) as usize];
        self.0.read_exact(&mut data).unwrap();
        Some((number(4), data))
    }

    fn expect(&mut self, kind: u32) -> Vec<u8> {
        let (found, data) = self.receive().unwrap_or_else(|| panic!("the end came before a packet {kind}"));
        assert_eq!(found, kind, "{}", data.escape_ascii());
        data
    }

    /// Submits a job, and gives its handle.
    fn submit(&mut self, action: &str, unique: &str, payload: &[u8]) -> Vec<u8> {
        self.send(SUBMIT_JOB, &job(action, unique, payload));
        self.expect(JOB_CREATED)
    }

    /// Asks for a job until there is one; sleeps as long as there is none. Gives the handle, the action and the payload.
    fn next_job(&mut self) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        loop {
            if self.0.write_all(&packet(GRAB_JOB, b"")).is_err() {
                return None;
            }
            match self.receive()? {
                (JOB_ASSIGN, data) => {
                    let mut parts = data.splitn(3, |byte| *byte == 0).map(<[u8]>::to_vec);
                    return Some((parts.next()?, parts.next()?, parts.next()?));
                }
                (NO_JOB, _) => {
                    if self.0.write_all(&packet(PRE_SLEEP, b"")).is_err() {
                        return None;
                    }
                    match self.receive()? {
                        (NOOP, _) => {}
                        other => panic!("{other:?}"),
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn complete(&mut self, handle: &[u8], payload: &[u8]) {
        let _ = self.0.write_all(&packet(WORK_COMPLETE, &[handle, b"\0", payload].concat()));
    }
}

/// A worker in a thread that gives every payload back until its connection ends. Says how many it has done.
fn gearman_echo(served: &Served, actions: &[&str]) -> (TcpStream, JoinHandle<u64>) {
    let mut worker = Peer::worker(served, actions);
    let socket = worker.0.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        let mut count = 0;
        while let Some((handle, _, payload)) = worker.next_job() {
            count += 1;
            worker.complete(&handle, &payload);
        }
        count
    });
    (socket, thread)
}

/// Payloads that show whether anything on the way looks at them.
fn payloads() -> [Vec<u8>; 4] {
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..8 << 20).map(|at: u32| (at % 251) as u8).collect();
    [Vec::new(), every_byte, b"\0\0\0".to_vec(), large]
}

#[test]
fn a_client_and_a_worker_of_this_dialect_meet() {
    let served = serve(settings());
    let (mut client, mut worker) = (Peer::connect(&served), Peer::worker(&served, &["echo"]));
    worker.send(GRAB_JOB, b"");
    worker.expect(NO_JOB);
    worker.send(PRE_SLEEP, b"");
    let handle = client.submit("echo", "order-1", b"hola");
    assert!(handle.starts_with(b"H:"), "{}", handle.escape_ascii());
    worker.expect(NOOP);
    worker.send(GRAB_JOB_UNIQ, b"");
    let assigned = worker.expect(JOB_ASSIGN_UNIQ);
    assert_eq!(assigned, [&handle[..], b"\0echo\0order-1\0hola"].concat(), "both have the same handle");
    worker.send(WORK_STATUS, &[&handle[..], b"\x001\x004"].concat());
    worker.send(WORK_DATA, &[&handle[..], b"\0part"].concat());
    assert_eq!(client.expect(WORK_STATUS), [&handle[..], b"\x001\x004"].concat());
    assert_eq!(client.expect(WORK_DATA), [&handle[..], b"\0part"].concat());
    client.send(GET_STATUS, &handle);
    assert_eq!(client.expect(STATUS_RES), [&handle[..], b"\x001\x001\x001\x004"].concat());
    worker.complete(&handle, b"HOLA");
    assert_eq!(client.expect(WORK_COMPLETE), [&handle[..], b"\0HOLA"].concat());
    client.send(GET_STATUS, &handle);
    assert_eq!(client.expect(STATUS_RES), [&handle[..], b"\x000\x000\x000\x000"].concat());
}

#[test]
fn jobs_of_one_unique_id_share_a_run_and_each_who_waits_gets_the_result() {
    let served = serve(settings());
    let (mut first, mut second) = (Peer::connect(&served), Peer::connect(&served));
    let handles = [
        first.submit("echo", "u", b"one"),
        first.submit("echo", "u", b"two"),
        second.submit("echo", "u", b"three"),
    ];
    let mut worker = Peer::worker(&served, &["echo"]);
    let (handle, _, payload) = worker.next_job().unwrap();
    assert_eq!(payload, b"one");
    worker.send(GRAB_JOB, b"");
    worker.expect(NO_JOB);
    worker.complete(&handle, b"done");
    for (client, handle) in [(0, 0), (0, 1), (1, 2)] {
        let client = if client == 0 { &mut first } else { &mut second };
        assert_eq!(client.expect(WORK_COMPLETE), [&handles[handle][..], b"\0done"].concat());
    }
    // A dash stands for the payload.
    for payload in [b"same", b"same", b"else"] {
        first.submit("echo", "-", payload);
    }
    for expected in [b"same", b"else"] {
        let (handle, _, payload) = worker.next_job().unwrap();
        assert_eq!(payload, expected);
        worker.complete(&handle, &payload);
    }
    let results: Vec<Vec<u8>> = (0..3).map(|_| first.expect(WORK_COMPLETE)).collect();
    assert_eq!(results.iter().filter(|result| result.ends_with(b"same")).count(), 2);
}

#[test]
fn failures_exceptions_and_a_limit_on_a_run_end_a_job_and_the_worker_goes_on() {
    let served = serve(settings());
    let (mut client, mut curious) = (Peer::connect(&served), Peer::connect(&served));
    curious.send(OPTION_REQ, b"exceptions");
    assert_eq!(curious.expect(27), b"exceptions");
    let mut worker = Peer::worker(&served, &["echo"]);
    worker.send(CAN_DO_TIMEOUT, b"slow\x001000");
    for (client, exception) in [(&mut client, WORK_FAIL), (&mut curious, WORK_EXCEPTION)] {
        let submitted = client.submit("echo", "", b"x");
        let (handle, ..) = worker.next_job().unwrap();
        worker.send(WORK_EXCEPTION, &[&handle[..], b"\0why"].concat());
        let expected = if exception == WORK_FAIL { submitted } else { [&submitted[..], b"\0why"].concat() };
        assert_eq!(client.expect(exception), expected);
    }
    let submitted = client.submit("echo", "", b"x");
    let (handle, ..) = worker.next_job().unwrap();
    worker.send(WORK_FAIL, &handle);
    assert_eq!(client.expect(WORK_FAIL), submitted);

    let submitted = client.submit("slow", "", b"x");
    let (slow, ..) = worker.next_job().unwrap();
    assert_eq!(client.expect(WORK_FAIL), submitted, "it may run for a second");
    client.submit("echo", "", b"y");
    let (next, _, payload) = worker.next_job().unwrap();
    assert_eq!(payload, b"y", "the worker is given more");
    worker.complete(&slow, b"too late");
    worker.complete(&next, b"in time");
    assert!(client.expect(WORK_COMPLETE).ends_with(b"\0in time"));
    worker.complete(&slow, b"once more");
    assert!(worker.expect(ERROR).starts_with(b"JOB_NOT_FOUND\0"));
}

#[test]
fn native_clients_reach_gearman_workers_whatever_the_payload() {
    let served = serve(settings());
    let (socket, worker) = gearman_echo(&served, &["echo"]);
    let mut client = Wire::client(&served);
    for (id, payload) in (1..).zip(payloads()) {
        client.round_trip(id, &payload);
    }
    // Something that fails, and many at once.
    for id in 100..1100 {
        client.send(&support::task(id, b"many"));
    }
    for _ in 0..1000 {
        client.expect(FrameType::Result);
    }
    socket.shutdown(Shutdown::Both).unwrap();
    assert_eq!(worker.join().unwrap(), 1004);
}

#[test]
fn gearman_clients_reach_native_workers_whatever_the_payload() {
    let served = serve(settings());
    let worker = echo_worker(&served, "native");
    let mut client = Peer::connect(&served);
    for payload in payloads() {
        let handle = client.submit("echo", "unique", &payload);
        let result = client.expect(WORK_COMPLETE);
        assert!(result == [&handle[..], b"\0", &payload].concat(), "another payload came back");
    }
    served.stop();
    assert_eq!(worker.join().unwrap(), 4);
}

#[test]
fn one_connection_may_be_a_client_and_a_worker() {
    let served = serve(settings());
    let mut peer = Peer::worker(&served, &["echo"]);
    let handle = peer.submit("echo", "", b"to myself");
    let (assigned, _, payload) = peer.next_job().unwrap();
    assert_eq!(assigned, handle);
    peer.complete(&assigned, &payload);
    assert_eq!(peer.expect(WORK_COMPLETE), [&handle[..], b"\0to myself"].concat());
}

#[test]
fn without_a_store_a_background_job_is_refused_and_the_connection_lives() {
    let served = serve(settings());
    let mut client = Peer::connect(&served);
    client.send(SUBMIT_JOB_BG, &job("echo", "", b"x"));
    let error = client.expect(ERROR);
    assert!(error.starts_with(b"QUEUE_ERROR\0") && error.ends_with(b"(--store)"), "{}", error.escape_ascii());
    client.send(ECHO_REQ, b"still there?");
    assert_eq!(client.expect(ECHO_RES), b"still there?");
}

fn text(address: SocketAddr, commands: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(commands.as_bytes()).unwrap();
    let mut said = Vec::new();
    let mut bytes = [0; 4096];
    let last = format!("OK {}\n", env!("CARGO_PKG_VERSION"));
    while !said.ends_with(last.as_bytes()) {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the end came after {}", said.escape_ascii());
        said.extend_from_slice(&bytes[..count]);
    }
    String::from_utf8(said).unwrap()
}

#[test]
fn text_commands_are_answered_in_their_order_on_the_same_port() {
    let served = serve(settings());
    let mut client = Peer::connect(&served);
    let _worker = Peer::worker(&served, &["f"]);
    let handle = String::from_utf8(client.submit("f", "u1", b"x")).unwrap();
    let commands = format!(
        "status\r\nprioritystatus\nshow jobs\nshow unique jobs\ncancel job {handle}\nmaxqueue f 1\nverbose x\n\
         version\r\n"
    );
    let said = text(served.gearman, &commands);
    let jobs = format!("f\t1\t0\t1\n.\nf\t0\t1\t0\t1\n.\n{handle}\t0\t0\t0\n.\nu1\n.\nOK\r\nOK\r\nOK ");
    assert!(said.starts_with(&jobs), "{said}");
    assert_eq!(client.expect(WORK_FAIL), handle.as_bytes());
    client.submit("f", "", b"x");
    client.send(SUBMIT_JOB, &job("f", "", b"one more"));
    assert!(client.expect(ERROR).starts_with(b"QUEUE_ERROR\0queue_full"));
    let workers = text(served.gearman, "workers\nversion\n");
    assert!(workers.contains(" 127.0.0.1 - : f\n"), "{workers}");
}

#[test]
fn the_text_command_shutdown_stops_the_balancer_in_good_order() {
    let mut served = serve(settings());
    let mut stream = TcpStream::connect(served.gearman).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"shutdown graceful\r\n").unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"OK\r\n");
    served.wait();
}

#[test]
fn a_worker_killed_under_load_loses_nothing() {
    const JOBS: usize = 5_000;
    let served = serve(settings());
    let mut client = Peer::connect(&served);
    let mut sender = Peer(client.0.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        for number in 0..JOBS {
            sender.send(SUBMIT_JOB, &job("echo", "", number.to_string().as_bytes()));
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let has_died = Arc::new(AtomicBool::new(false));
    // Workers that die with a job in hand, one after the other, beside one that lives.
    let killed = {
        let (stop, has_died, address) = (Arc::clone(&stop), Arc::clone(&has_died), served.gearman);
        std::thread::spawn(move || {
            // Nobody dies of the same job twice, so no job uses up its attempts.
            let mut died_of = std::collections::HashSet::new();
            while !stop.load(Ordering::Relaxed) {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut worker = Peer(stream);
                worker.send(CAN_DO, b"echo");
                for number in 0..10 {
                    worker.send(GRAB_JOB, b"");
                    let Some((JOB_ASSIGN, data)) = worker.receive() else { break };
                    let mut parts = data.splitn(3, |byte| *byte == 0);
                    let (handle, _, payload) =
                        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
                    if number < 9 || !died_of.insert(payload.to_vec()) {
                        worker.complete(handle, payload);
                    } else {
                        has_died.store(true, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            died_of.len()
        })
    };
    let since = std::time::Instant::now();
    while !has_died.load(Ordering::Relaxed) {
        assert!(since.elapsed() < PATIENCE, "nobody has died with a job in hand");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (socket, living) = gearman_echo(&served, &["echo"]);
    let mut answers = vec![0; JOBS];
    let mut left = JOBS;
    while left > 0 {
        match client.receive().unwrap() {
            (JOB_CREATED, _) => {}
            (WORK_COMPLETE, data) => {
                let text = data.splitn(2, |byte| *byte == 0).nth(1).unwrap();
                answers[String::from_utf8_lossy(text).parse::<usize>().unwrap()] += 1;
                left -= 1;
            }
            other => panic!("{other:?}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    sending.join().unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    living.join().unwrap();
    assert!(killed.join().unwrap() > 0, "none died with a job in hand");
    assert!(answers.iter().all(|count| *count == 1), "a job was answered twice, or never");
}

#[test]
fn ten_thousand_sleeps_and_wake_ups_under_random_arrival_lose_none() {
    const CYCLES: u64 = 10_000;
    let served = serve(settings());
    let wake_ups = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let mut worker = Peer::worker(&served, &["echo"]);
            let (socket, wake_ups) = (worker.0.try_clone().unwrap(), Arc::clone(&wake_ups));
            let thread = std::thread::spawn(move || {
                loop {
                    worker.send(GRAB_JOB, b"");
                    match worker.receive() {
                        Some((JOB_ASSIGN, data)) => {
                            let mut parts = data.splitn(3, |byte| *byte == 0);
                            let (handle, _, payload) =
                                (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
                            worker.complete(handle, payload);
                        }
                        Some((NO_JOB, _)) => {
                            worker.send(PRE_SLEEP, b"");
                            let Some((NOOP, _)) = worker.receive() else { return };
                            wake_ups.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => return,
                    }
                }
            });
            (socket, thread)
        })
        .collect();
    let mut client = Peer::connect(&served);
    let mut random = fastrand::Rng::with_seed(3);
    // A lost wake-up would leave a job without an answer, and the client waiting for ever.
    while wake_ups.load(Ordering::Relaxed) < CYCLES {
        let jobs = random.usize(1..4);
        for _ in 0..jobs {
            client.send(SUBMIT_JOB, &job("echo", "", b"x"));
        }
        let mut left = jobs;
        while left > 0 {
            match client.receive().unwrap() {
                (JOB_CREATED, _) => {}
                (WORK_COMPLETE, _) => left -= 1,
                other => panic!("{other:?}"),
            }
        }
        if random.u8(..50) == 0 {
            std::thread::sleep(Duration::from_micros(random.u64(..500)));
        }
    }
    for (socket, thread) in threads {
        socket.shutdown(Shutdown::Both).unwrap();
        let _ = thread.join();
    }
}

#[test]
fn ten_thousand_malformed_packets_end_only_their_own_connections() {
    let served = serve(settings());
    let mut good = Peer::connect(&served);
    let (socket, worker) = gearman_echo(&served, &["echo"]);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let packets: Vec<Vec<u8>> = vec![
        packet(SUBMIT_JOB, &job("nobody's", "", b"x")),
        packet(CAN_DO, b"neither"),
        packet(CAN_DO_TIMEOUT, b"neither\x001000"),
        packet(GRAB_JOB, b""),
        packet(PRE_SLEEP, b""),
        packet(WORK_COMPLETE, b"H:x:1\0data"),
        packet(WORK_STATUS, b"H:x:1\x001\x002"),
        packet(GET_STATUS, b"H:x:1"),
        packet(OPTION_REQ, b"exceptions"),
        packet(ECHO_REQ, b"echo"),
        packet(SUBMIT_JOB_BG, &job("nobody's", "u", b"x")),
        b"status\r\n".to_vec(),
        b"show jobs\r\n".to_vec(),
    ];
    let mut sent = 0;
    while sent < 10_000 {
        let mut stream = TcpStream::connect(served.gearman).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..random.usize(1..6) {
            let mut bytes = packets[random.usize(..packets.len())].clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..3) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes[at] ^= 1 << random.u8(..8),
                    _ => bytes.insert(at, random.u8(..)),
                }
            }
            sent += 1;
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
        if random.u8(..10) == 0 {
            // It waits for the end that the balancer makes.
            let _ = stream.shutdown(Shutdown::Write);
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
        }
        drop(stream);
        if sent % 500 < 5 {
            let handle = good.submit("echo", "", b"still served");
            assert_eq!(good.expect(WORK_COMPLETE), [&handle[..], b"\0still served"].concat());
        }
    }
    wait_until("nothing of them stays behind", || {
        text(served.gearman, "status\nversion\n").starts_with("echo\t0\t0\t1\n.\n")
    });
    socket.shutdown(Shutdown::Both).unwrap();
    worker.join().unwrap();
}

#[test]
fn a_native_task_with_a_deadline_is_answered_though_its_gearman_worker_is_not_done() {
    let served = serve(settings());
    let mut worker = Peer::worker(&served, &["echo"]);
    let mut client = Wire::client(&served);
    // A task that has expired before its worker got it is handed in again, with more time.
    let handle = (0..9).find_map(|doublings| {
        let options = TaskOptions { deadline_ms: Some(100 << doublings), ..TaskOptions::default() };
        client.send(&Message::Task(Task { id: 1, action: "echo", options, payload: b"x" }));
        loop {
            worker.send(GRAB_JOB, b"");
            match worker.receive().unwrap() {
                (JOB_ASSIGN, data) => break data.split(|byte| *byte == 0).next().map(<[u8]>::to_vec),
                (NO_JOB, _) if has_something_to_read(&client) => {
                    assert_eq!(client.expect_error().1, "expired");
                    break None;
                }
                (kind, _) => assert_eq!(kind, NO_JOB),
            }
        }
    });
    assert_eq!(client.expect_error().1, "expired");
    worker.complete(&handle.unwrap(), b"late");
    client.send(&support::task(2, b"y"));
    let (handle, ..) = worker.next_job().unwrap();
    worker.complete(&handle, b"in time");
    assert_eq!(client.expect(FrameType::Result).as_frame().payload, b"in time");
}

#[test]
fn sleeping_workers_of_several_actions_are_woken_for_each_of_them() {
    let served = serve(settings());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let mut worker = Peer::worker(&served, &["a", "b", "c"]);
            let (socket, seen) = (worker.0.try_clone().unwrap(), Arc::clone(&seen));
            let thread = std::thread::spawn(move || {
                while let Some((handle, action, payload)) = worker.next_job() {
                    seen.lock().unwrap().push(action);
                    worker.complete(&handle, &payload);
                }
            });
            (socket, thread)
        })
        .collect();
    let mut client = Peer::connect(&served);
    for round in 0..200 {
        for action in ["a", "b", "c"] {
            client.send(SUBMIT_JOB, &job(action, "", format!("{round}").as_bytes()));
        }
        let mut left = 3;
        while left > 0 {
            left -= usize::from(client.receive().unwrap().0 == WORK_COMPLETE);
        }
    }
    for (socket, thread) in threads {
        socket.shutdown(Shutdown::Both).unwrap();
        thread.join().unwrap();
    }
    let seen = seen.lock().unwrap();
    assert!([b"a", b"b", b"c"].iter().all(|action| seen.iter().filter(|a| a == action).count() == 200));
}

#[test]
fn tasks_to_which_native_clients_have_given_one_number_are_told_apart_by_their_worker() {
    let served = serve(settings());
    let mut worker = Peer::worker(&served, &["echo"]);
    let mut clients = [Wire::client(&served), Wire::client(&served)];
    for (client, payload) in clients.iter_mut().zip([b"of a", b"of b"]) {
        client.send(&support::task(1, payload));
    }
    let jobs = [worker.next_job().unwrap(), worker.next_job().unwrap()];
    assert_ne!(jobs[0].0, jobs[1].0, "a handle of its own for each");
    for (handle, _, payload) in jobs.iter().rev() {
        worker.complete(handle, payload);
    }
    for (client, payload) in clients.iter_mut().zip([b"of a", b"of b"]) {
        assert_eq!(client.expect(FrameType::Result).as_frame().payload, payload);
    }
    served.stop();
}

#[test]
fn a_client_that_closes_its_connection_with_its_job_has_heard_that_it_was_taken() {
    let served = serve(settings());
    for round in 0..500 {
        let mut client = Peer::connect(&served);
        client.send(ECHO_REQ, b"there?");
        client.expect(ECHO_RES);
        client.send(SUBMIT_JOB, &job("echo", "", b"x"));
        // Together with its job, and up to 50 us after it.
        let sent = Instant::now();
        while sent.elapsed() < Duration::from_nanos(100 * round) {}
        client.0.shutdown(Shutdown::Write).unwrap();
        client.expect(JOB_CREATED);
        assert_eq!(client.receive(), None);
    }
    served.stop();
}
