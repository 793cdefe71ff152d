//! Peers that mean harm, or know no better, against a real balancer: unfinished frames, announced giants, and bytes
//! that are no frames. Others are served meanwhile, and memory stays bounded.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use bytes::BytesMut;
use reparto_protocol::{ErrorCode, FrameStream, Hello, Message, Role, Task, TaskOptions, Welcome, limits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Balancer, PATIENCE, folder, wait_until};

const CONNECTIONS: usize = 2_000;
/// What the balancer may take with all of them, in KiB. What they announce would be 32 GiB.
const MAX_RESIDENT_KIB: u64 = 300 * 1024;

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn encoded(message: Message<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    bytes.to_vec()
}

fn hello(role: Role) -> Vec<u8> {
    encoded(Message::Hello(Hello {
        version: limits::VERSION,
        role,
        features: 0,
        agent: "hostile",
        token: b"",
    }))
}

fn task(action: &str) -> Vec<u8> {
    encoded(Message::Task(Task { id: 1, action, options: TaskOptions::default(), payload: b"hola" }))
}

/// A TASK that announces as many bytes as a frame may have, and sends next to none of them.
fn giant_task() -> Vec<u8> {
    let mut bytes = task("upper");
    bytes[..4].copy_from_slice(&(limits::DEFAULT_MAX_FRAME_BYTES - 4).to_be_bytes());
    bytes
}

/// Reads until the balancer closes the connection, and gives the code and sentence of the ERROR that came last.
fn last_error(mut stream: TcpStream) -> Option<(ErrorCode, String)> {
    let mut frames = FrameStream::new(limits::DEFAULT_MAX_FRAME_BYTES);
    let mut buffer = [0; 4096];
    let mut last = None;
    // A connection that is closed with bytes of ours unread may end with a reset, after the ERROR.
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        frames.push(&buffer[..count]);
        while let Some(frame) = frames.next_frame().unwrap() {
            last = match Message::decode(&frame.as_frame()).unwrap() {
                Message::Error(error) if error.id == 0 => Some((error.code, error.message.to_owned())),
                _ => None,
            };
        }
    }
    last
}

fn resident_kib(balancer: &Balancer) -> u64 {
    let pid = balancer.process.pid().as_raw_nonzero().to_string();
    let output = Command::new("ps").args(["-o", "rss=", "-p", &pid]).output();
    let output = output.expect("these tests need the command ps; install it (Debian: procps)");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[track_caller]
fn assert_serves_within_its_memory(balancer: &Balancer) {
    assert_eq!(balancer.submit(["upper", "hola"]).success_text(), "HOLA");
    let resident = resident_kib(balancer);
    assert!(resident < MAX_RESIDENT_KIB, "the balancer takes {resident} KiB");
}

/// Every connection is an open file, in this process and in the balancer, which inherits the limit.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let room = getrlimit(Resource::Nofile).current.is_none_or(|files| files > CONNECTIONS as u64 + 200);
    assert!(room, "this test needs {CONNECTIONS} open files and more; raise the hard limit (ulimit -Hn)");
}

#[test]
fn two_thousand_connections_that_announce_giants_neither_fill_memory_nor_keep_others_waiting() {
    raise_open_files_limit();
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(&balancer.clients)).collect();
    let opening = [hello(Role::Client), giant_task()].concat();
    for stream in &mut streams {
        stream.write_all(&opening).unwrap();
    }
    wait_until("all have been greeted", || balancer.status().totals.clients as usize > CONNECTIONS);
    // First a byte from time to time, then as much as the balancer takes before it ends those who send it.
    for bytes in [1, 1, 1, 64 * 1024, 1] {
        for stream in &mut streams {
            let _ = stream.write_all(&vec![b'x'; bytes]);
        }
        assert_serves_within_its_memory(&balancer);
    }
    drop(streams);
    wait_until("they are gone", || balancer.status().totals.clients < 10);
    assert_serves_within_its_memory(&balancer);
}

#[test]
fn half_a_frame_and_silence_end_after_thirty_seconds_with_a_reason_and_nobody_waits_for_them() {
    let balancer = Balancer::start();
    let _worker = balancer.worker("one");
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let openings = [
        (&balancer.clients, Vec::new()),
        (&balancer.clients, half(&hello(Role::Client))),
        (&balancer.clients, [hello(Role::Client), half(&task("upper"))].concat()),
        (&balancer.workers, half(&hello(Role::Worker))),
        (&balancer.workers, [hello(Role::Worker), half(&task("upper"))].concat()),
    ];
    let streams = openings.map(|(address, bytes)| {
        let mut stream = connect(address);
        stream.write_all(&bytes).unwrap();
        stream
    });
    assert_serves_within_its_memory(&balancer);
    for stream in streams {
        let (code, sentence) = last_error(stream).expect("the connection ends with a reason");
        assert_eq!(code, ErrorCode::TimedOut, "{sentence}");
        assert!(!sentence.is_empty());
    }
    assert_serves_within_its_memory(&balancer);
}

#[test]
fn a_thousand_malformed_streams_end_their_own_connections_alone_and_each_is_told_why() {
    let balancer = Balancer::start();
    let go = folder().join("go");
    let hold = format!("hold=while [ ! -e '{}' ]; do sleep 0.01; done; cat", go.display());
    let worker = balancer.worker_with(&["--id", "one", "--threads", "2", "--builtin", "--exec", &hold]);
    // It is under way while all the others fail.
    let honest = balancer.submitting(["hold", "still here"]);
    balancer.wait_until_busy("one");

    let with_header = |header: [u8; 16]| [hello(Role::Client), header.to_vec()].concat();
    let welcome = Message::Welcome(Welcome {
        version: limits::VERSION,
        features: 0,
        max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
        heartbeat_ms: 1,
        silence_ms: 1,
        agent: "not you",
    });
    let bad = ErrorCode::BadFrame;
    let cases: [(&str, Vec<u8>, ErrorCode); 8] = [
        ("another protocol", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec(), ErrorCode::PayloadTooLarge),
        ("a task before HELLO", task("upper"), bad),
        ("another role", hello(Role::Worker), bad),
        ("a second HELLO", [hello(Role::Client), hello(Role::Client)].concat(), bad),
        ("an unknown type", with_header([0, 0, 0, 12, 0xEE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), bad),
        ("no room for its header", with_header([0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), bad),
        ("fields past its end", with_header([0, 0, 0, 12, 0x10, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 1]), bad),
        ("what only the balancer sends", [hello(Role::Client), encoded(welcome)].concat(), bad),
    ];
    for round in 0..125 {
        let streams = cases.clone().map(|(what, bytes, code)| {
            let mut stream = connect(&balancer.clients);
            stream.write_all(&bytes).unwrap();
            (what, stream, code)
        });
        for (what, stream, expected) in streams {
            let (code, sentence) = last_error(stream).unwrap_or_else(|| panic!("{what} was not told why"));
            assert!(code == expected && !sentence.is_empty(), "{what} in round {round}: {code}, {sentence}");
        }
    }
    assert_serves_within_its_memory(&balancer);
    std::fs::write(&go, "").unwrap();
    assert_eq!(honest.end().success_text(), "still here");
    assert_eq!(worker.stderr(), "", "the worker has noticed nothing");
}
