//! Memory, measured: it stays flat beneath thousands of announced frames, and an idle connection costs little.
//! Alone in its file, since it measures the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::BytesMut;
use reparto_balancer::reactor::raise_open_files_limit;
use reparto_protocol::{Role, TaskOptions};
use support::{PATIENCE, Served, Wire, echo_worker, hello, serve, settings};

const CONNECTIONS: usize = 2000;

/// Bytes of this process that are in memory.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A connection that was welcomed, and holds no memory of this process but the balancer's.
fn bare_client(served: &Served) -> TcpStream {
    let mut stream = TcpStream::connect(served.clients).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = BytesMut::new();
    hello(Role::Client).encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut welcome = [0; 256];
    stream.read_exact(&mut welcome[..u32::from_be_bytes(length) as usize]).unwrap();
    stream
}

#[test]
fn memory_stays_flat_whatever_is_announced_and_idle_connections_cost_little() {
    raise_open_files_limit();
    let served = serve(settings());
    let _worker = echo_worker(&served, "w1");
    let mut client = Wire::client(&served);
    for id in 1..=100 {
        client.round_trip(id, &[1; 1000]);
    }
    let empty = resident_bytes();
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| bare_client(&served)).collect();
    client.round_trip(1, b"x");
    let idle = resident_bytes();
    let each = idle.saturating_sub(empty) / CONNECTIONS;
    println!("an idle connection: {each} bytes");
    assert!(each <= 1024, "an idle connection costs {each} bytes");

    // The head of a task whose payload would have 16 MiB less a little, then a byte from time to time.
    let announced = (16 << 20) - 64;
    let mut head = BytesMut::new();
    let task =
        reparto_protocol::Task { id: 1, action: "echo", options: TaskOptions::default(), payload: &[] };
    reparto_protocol::Message::Task(task).encode_head(&mut head, announced);
    for stream in &mut streams {
        stream.write_all(&head).unwrap();
    }
    for round in 0..20 {
        for stream in &mut streams {
            stream.write_all(&[round]).unwrap();
        }
        client.round_trip(u64::from(round) + 1, b"others are served");
    }
    let announcing = resident_bytes();
    let grown = announcing.saturating_sub(idle);
    println!("{CONNECTIONS} announced frames: {grown} bytes");
    assert!(grown < 8 << 20, "{CONNECTIONS} announcements of 16 MiB took {grown} bytes");
    drop(streams);
    client.round_trip(1, b"and after");

    // The same of those from whom a large task has come already, whose word is believed to a degree.
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS / 4).map(|_| bare_client(&served)).collect();
    let mut large = BytesMut::new();
    let payload = [7; 40_000];
    let task = reparto_protocol::Task { payload: &payload, ..task };
    reparto_protocol::Message::Task(task).encode(&mut large);
    let mut result = Vec::new();
    for stream in &mut streams {
        stream.write_all(&large).unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        result.resize(u32::from_be_bytes(length) as usize, 0);
        stream.read_exact(&mut result).unwrap();
        assert!(result.ends_with(&payload));
    }
    let known = resident_bytes();
    for stream in &mut streams {
        stream.write_all(&head).unwrap();
    }
    client.round_trip(1, b"others are served");
    let grown = resident_bytes().saturating_sub(known);
    println!("{} announced by known connections: {grown} bytes", streams.len());
    assert!(grown < 8 << 20, "{} announcements of 16 MiB took {grown} bytes", streams.len());
    drop(streams);
    served.stop();
}
