//! Ten thousand malformed streams: each ends its own connection at worst, and nothing of it stays behind.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};

use bytes::BytesMut;
use reparto_protocol::{
    Actions, Cancel, Drain, Fetch, FrameType, HeldTasks, Message, Outcome, Ping, Progress, Register, Role,
    Status, Task, TaskOptions, TaskResult,
};
use support::{Wire, echo_worker, hello, serve, settings, wait_until};

fn stream_of(messages: &[Message<'_>]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for message in messages {
        message.encode(&mut bytes);
    }
    bytes.to_vec()
}

/// What a client and a worker might say, on actions that nobody else uses.
fn streams(clients: SocketAddr, workers: SocketAddr) -> [(SocketAddr, Vec<u8>); 2] {
    let options = TaskOptions { key: Some(b"key"), priority: Some(3), ..TaskOptions::default() };
    let client = [
        hello(Role::Client),
        Message::Task(Task { id: 1, action: "nobody's", options, payload: &[1; 100] }),
        Message::Status(Status { id: 2, offset: 0, limit: 1 }),
        Message::Cancel(Cancel { id: 1, task_id: None, recall: false }),
        Message::Fetch(Fetch { id: 3, task_id: [9; 16], wait_ms: 5, describe: false }),
        Message::Ping(Ping { id: 4 }),
    ];
    let worker = [
        hello(Role::Worker),
        Message::Register(Register {
            id: 1,
            worker_id: "malformed",
            threads: 4,
            window: 8,
            weight: 1,
            service_ns: Some(1),
            held: HeldTasks::NONE,
            actions: Actions::new(&["never asked for", "neither"]),
        }),
        Message::TaskResult(TaskResult {
            id: 1 << 32,
            outcome: Outcome::Failed,
            message: "no",
            service_ns: Some(9),
            payload: &[2; 50],
        }),
        Message::Progress(Progress { id: 1 << 32, done: 1, total: 2, payload: b"p" }),
        Message::Drain(Drain { id: 2, resume: false }),
    ];
    [(clients, stream_of(&client)), (workers, stream_of(&worker))]
}

/// Changes, removes, repeats or adds bytes; the HELLO is spared half of the time, so that what follows is seen.
fn mutate(random: &mut fastrand::Rng, stream: &[u8]) -> Vec<u8> {
    let mut bytes = stream.to_vec();
    let hello_bytes = 4 + u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let from = if random.bool() { 0 } else { hello_bytes };
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(from..bytes.len());
        match random.u8(..4) {
            0 => bytes[at] = random.u8(..),
            1 => bytes[at] ^= 1 << random.u8(..8),
            2 => drop(bytes.drain(at..random.usize(at..bytes.len().min(at + 20)))),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
    bytes
}

#[test]
fn malformed_streams_end_their_own_connections_at_worst() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let served = serve(settings());
    let _worker = echo_worker(&served, "healthy");
    let mut healthy = Wire::client(&served);
    let streams = streams(served.clients, served.workers);
    for round in 0..10_000u64 {
        let (address, stream) = &streams[random.usize(..2)];
        let mut peer = TcpStream::connect(address).unwrap();
        // It may be closed while we are still writing.
        let _ = peer.write_all(&mutate(&mut random, stream));
        let _ = peer.shutdown(if random.bool() { Shutdown::Write } else { Shutdown::Both });
        if round % 100 == 0 {
            healthy.round_trip(round + 1, b"healthy");
        }
    }
    wait_until("nothing of them is left", || {
        healthy.send(&Message::Status(Status { id: 1, offset: 0, limit: 10 }));
        let report = healthy.expect(FrameType::StatusReport);
        let report: serde_json::Value = serde_json::from_slice(report.as_frame().payload).unwrap();
        let totals = &report["totals"];
        totals["clients"] == 1 && totals["workers"] == 1 && totals["queued"] == 0 && totals["running"] == 0
    });
    healthy.round_trip(1, b"healthy");
    served.stop();
}
