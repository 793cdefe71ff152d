//! Peers that go to the bounds: slow, silent, greedy or deaf. Each is held to them, and the others are served.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use bytes::BytesMut;
use reparto_balancer::Settings;
use reparto_balancer::reactor::raise_open_files_limit;
use reparto_protocol::{FrameType, Message, Ping, Role, Status, limits};
use support::{
    Served, Wire, done, echo_worker, has_something_to_read, hello, serve, settings, task, wait_until,
};

/// Bounds so small that a test can reach them.
fn tight() -> Settings {
    Settings {
        max_frame_bytes: limits::MIN_MAX_FRAME_BYTES,
        output_soft_bytes: 64 << 10,
        output_hard_bytes: 2 << 20,
        ..settings()
    }
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    bytes.to_vec()
}

#[test]
fn half_a_frame_and_silence_ends() {
    let served = serve(Settings { frame_timeout: Duration::from_secs(5), ..settings() });
    let _worker = echo_worker(&served, "w1");
    let mut healthy = Wire::client(&served);
    let half = encoded(&task(1, &[1; 1000]));
    let mut slow = Wire::client(&served);
    slow.stream.write_all(&half[..500]).unwrap();
    let mut mute = Wire::connect(served.clients);
    let mut shy = Wire::hello(served.workers, Role::Worker);
    healthy.round_trip(1, b"x");
    for peer in [&mut slow, &mut mute, &mut shy] {
        let (id, code, message) = peer.expect_error();
        assert_eq!((id, code.as_str()), (0, "timed_out"), "{message}");
        peer.expect_end();
    }
    healthy.round_trip(2, b"an idle client may stay");
    served.stop();
}

#[test]
fn a_frame_that_comes_byte_by_byte_within_its_time_is_taken() {
    let served = serve(settings());
    let _worker = echo_worker(&served, "w1");
    let mut client = Wire::client(&served);
    for byte in encoded(&task(1, b"slowly")) {
        client.stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(client.expect(FrameType::Result).as_frame().payload, b"slowly");
    served.stop();
}

#[test]
fn of_many_unfinished_frames_the_largest_is_given_up_first() {
    let served = serve(Settings { max_incomplete_bytes: 1 << 20, max_frame_bytes: 1 << 20, ..settings() });
    let _worker = echo_worker(&served, "w1");
    let large = encoded(&task(1, &vec![1; 1_000_000]));
    let mut small: Vec<Wire> = (0..20).map(|_| Wire::client(&served)).collect();
    let begun = encoded(&task(2, &[2; 2000]));
    for client in &mut small {
        client.stream.write_all(&begun[..1000]).unwrap();
    }
    let mut greedy: Vec<Wire> = (0..3).map(|_| Wire::client(&served)).collect();
    for client in &mut greedy {
        // One that is closed early need not take it all.
        let _ = client.stream.write_all(&large[..700_000]);
    }
    // Any two are too much. Only when that has been seen to can the last one, if it is left, go on by itself.
    wait_until("two are refused", || {
        greedy.iter().filter(|client| has_something_to_read(client)).count() >= 2
    });
    let mut refused = 0;
    for mut client in greedy {
        let _ = client.stream.write_all(&large[700_000..]);
        let frame = client.receive().unwrap();
        match Message::decode(&frame.as_frame()) {
            Ok(Message::Error(error)) => {
                assert_eq!(error.code.name(), "overloaded");
                refused += 1;
            }
            Ok(Message::Result(result)) => assert_eq!(result.payload.len(), 1_000_000),
            other => panic!("{other:?}"),
        }
    }
    assert!(refused >= 1, "three of them do not fit");
    for client in &mut small {
        client.stream.write_all(&begun[1000..]).unwrap();
        assert_eq!(client.expect(FrameType::Result).as_frame().payload, [2; 2000]);
    }
    served.stop();
}

#[test]
fn one_connection_too_many_is_told_so() {
    let served = serve(Settings { max_connections: 3, ..settings() });
    let _worker = echo_worker(&served, "w1");
    let mut client = Wire::client(&served);
    let other = Wire::client(&served);
    let mut refused = Wire::connect(served.clients);
    let (id, code, message) = refused.expect_error();
    assert_eq!((id, code.as_str()), (0, "overloaded"));
    assert!(message.contains('3'), "{message}");
    refused.expect_end();
    client.round_trip(1, b"x");
    drop(other);
    wait_until("there is room again", || {
        let mut again = Wire::connect(served.clients);
        again.try_send(&hello(Role::Client)).is_ok()
            && again.receive().is_some_and(|frame| frame.as_frame().kind == FrameType::Welcome)
    });
    served.stop();
}

#[test]
fn a_frame_over_the_limit_is_refused_as_soon_as_its_length_is_there() {
    let served = serve(tight());
    let mut client = Wire::client(&served);
    client.stream.write_all(&(limits::MIN_MAX_FRAME_BYTES).to_be_bytes()).unwrap();
    let (id, code, _) = client.expect_error();
    assert_eq!((id, code.as_str()), (0, "payload_too_large"));
    client.expect_end();
    served.stop();
}

/// A client that sends tasks and reads nothing.
struct Deaf {
    wire: Wire,
    id: u64,
    /// What is left of the frame that is being sent.
    rest: Vec<u8>,
}

impl Deaf {
    fn new(served: &Served) -> Deaf {
        let wire = Wire::client(served);
        wire.stream.set_nonblocking(true).unwrap();
        Deaf { wire, id: 0, rest: Vec::new() }
    }

    /// Sends about a megabyte, or as much of it as is taken now. Says how many bytes that was.
    fn send(&mut self) -> io::Result<usize> {
        let mut taken = 0;
        while taken < 1 << 20 {
            if self.rest.is_empty() {
                self.id += 1;
                self.rest = encoded(&task(self.id, &[1; 10_000]));
            }
            match self.wire.stream.write(&self.rest) {
                Ok(count) => {
                    self.rest.drain(..count);
                    taken += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }
}

#[test]
fn a_client_that_never_reads_is_no_longer_read_from_and_others_are_served() {
    let output_hard_bytes = 512 << 20;
    let write_timeout = Duration::from_secs(3600);
    let served = serve(Settings { write_timeout, output_hard_bytes, ..tight() });
    let _worker = echo_worker(&served, "w1");
    let mut healthy = Wire::client(&served);
    let mut deaf = Deaf::new(&served);
    let (mut id, mut in_vain, mut sent) = (0, 0, 0);
    wait_until("nothing more is read from it", || {
        let taken = deaf.send().unwrap();
        sent += taken;
        in_vain = if taken == 0 { in_vain + 1 } else { 0 };
        // Each is a turn of the balancer at least, in which it would read 256 KiB from one that it reads from. So
        // as many as this would empty what the kernel keeps for a connection.
        for _ in 0..20 {
            id += 1;
            healthy.round_trip(id, b"served all the same");
        }
        in_vain == 10
    });
    assert!(sent < output_hard_bytes, "it was read from until {sent} bytes waited for it");
    served.stop();
}

#[test]
fn a_client_that_never_reads_is_closed_when_its_time_is_up() {
    let served =
        serve(Settings { write_timeout: Duration::from_secs(3), output_hard_bytes: 512 << 20, ..tight() });
    let _worker = echo_worker(&served, "w1");
    let mut healthy = Wire::client(&served);
    let mut deaf = Deaf::new(&served);
    let mut id = 0;
    wait_until("it is closed", || {
        id += 1;
        healthy.round_trip(id, b"served all the same");
        deaf.send().is_err()
    });
    healthy.round_trip(u64::MAX, b"and after");
    served.stop();
}

#[test]
fn output_past_its_bound_closes_the_connection() {
    let served = serve(tight());
    let mut worker = Wire::worker(&served, "w1", 1000);
    let mut deaf = Wire::client(&served);
    let tasks = 400;
    for id in 1..=tasks {
        deaf.send(&task(id, b"x"));
    }
    let large = vec![7; 100_000];
    // All are assigned at once. When the client is closed, those that are left are cancelled.
    for _ in 0..tasks {
        let frame = worker.receive().unwrap();
        match frame.as_frame().kind {
            FrameType::AssignTask => worker.send(&done(frame.as_frame().id, &large)),
            FrameType::Cancel => break,
            other => panic!("{other} came"),
        }
    }
    let mut results = 0;
    while deaf.receive().is_some() {
        results += 1;
    }
    assert!(results < tasks, "all {results} results were kept for one who did not read");
    served.stop();
}

#[test]
fn a_client_that_reads_late_gets_everything() {
    let served = serve(Settings { output_hard_bytes: 256 << 20, ..tight() });
    let _worker = echo_worker(&served, "w1");
    let mut client = Wire::client(&served);
    let mut sender = client.sender();
    let tasks = 3000;
    let sending = std::thread::spawn(move || {
        for id in 1..=tasks {
            sender.send(&task(id, &[1; 10_000]));
        }
    });
    let mut other = Wire::client(&served);
    for id in 1..=50 {
        other.round_trip(id, b"meanwhile");
    }
    for _ in 0..tasks {
        assert_eq!(client.expect(FrameType::Result).as_frame().payload.len(), 10_000);
    }
    sending.join().unwrap();
    served.stop();
}

#[test]
fn a_worker_that_never_reads_holds_nobody_else_up() {
    let served = serve(Settings { write_timeout: Duration::from_secs(15), ..settings() });
    let deaf = Wire::worker(&served, "deaf", 1000);
    let mut client = Wire::client(&served);
    let tasks = 300;
    for id in 1..=tasks {
        client.send(&task(id, &[1; 100_000]));
    }
    let _worker = echo_worker(&served, "w1");
    let mut other = Wire::client(&served);
    other.round_trip(1, b"x");
    // Closed for not reading, it gives its tasks back, and they are run elsewhere.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..tasks {
        seen.insert(client.expect(FrameType::Result).as_frame().id);
    }
    assert_eq!(seen.len() as u64, tasks);
    drop(deaf);
    served.stop();
}

#[test]
fn a_flood_of_questions_is_answered_in_turns() {
    let served = serve(tight());
    let _worker = echo_worker(&served, "w1");
    let mut healthy = Wire::client(&served);
    let mut asker = Wire::client(&served);
    let mut sender = asker.sender();
    let questions = 5000;
    let sending = std::thread::spawn(move || {
        for id in 1..=questions {
            sender.send(&Message::Status(Status { id, offset: 0, limit: 10 }));
        }
        sender.send(&Message::Ping(Ping { id: 77 }));
    });
    healthy.round_trip(1, b"x");
    for id in 1..=questions {
        assert_eq!(asker.expect(FrameType::StatusReport).as_frame().id, id);
    }
    sending.join().unwrap();
    healthy.round_trip(2, b"x");
    served.stop();
}

#[test]
fn a_flooding_client_does_not_starve_another() {
    let served = serve(settings());
    let _worker = echo_worker(&served, "w1");
    let mut flood = Wire::client(&served);
    let mut sender = flood.sender();
    let sending = std::thread::spawn(move || {
        let mut id = 0;
        let mut batch = BytesMut::new();
        loop {
            batch.clear();
            for _ in 0..1000 {
                id += 1;
                task(id, &[1; 64]).encode(&mut batch);
            }
            if sender.stream.write_all(&batch).is_err() {
                return;
            }
        }
    });
    let closing = flood.sender();
    let reading = std::thread::spawn(move || flood.expect_end());
    let mut small = Wire::client(&served);
    for id in 1..=100 {
        small.round_trip(id, b"small");
    }
    closing.stream.shutdown(std::net::Shutdown::Both).unwrap();
    sending.join().unwrap();
    reading.join().unwrap();
    served.stop();
}

#[test]
fn two_thousand_idle_connections_are_held_while_others_work() {
    raise_open_files_limit();
    let served = serve(settings());
    let _worker = echo_worker(&served, "w1");
    let mut idle: Vec<Wire> = (0..2000).map(|_| Wire::client(&served)).collect();
    let mut client = Wire::client(&served);
    for id in 1..=100 {
        client.round_trip(id, b"x");
    }
    for wire in idle.iter_mut().step_by(100) {
        wire.round_trip(1, b"not forgotten");
    }
    drop(idle);
    served.stop();
}
