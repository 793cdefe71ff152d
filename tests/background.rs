//! Background tasks with real processes: whatever moment the balancer is killed at, what it has accepted ends once.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use reparto_protocol::{
    Fetch, FrameStream, FrameType, Hello, Message, OwnedFrame, Role, Task, TaskOptions, limits,
};
use support::{Balancer, folder, reparto};

/// How long a test waits for anything, whatever the machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client made of a plain socket.
struct Wire {
    stream: TcpStream,
    frames: FrameStream,
}

impl Wire {
    fn connect(balancer: &Balancer) -> Wire {
        let stream = TcpStream::connect(&balancer.clients).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut wire = Wire { stream, frames: FrameStream::new(limits::DEFAULT_MAX_FRAME_BYTES) };
        let features = limits::FEATURE_BACKGROUND;
        wire.send(&Message::Hello(Hello {
            version: 1,
            role: Role::Client,
            features,
            agent: "test",
            token: &[],
        }));
        let welcome = wire.receive().unwrap();
        let Ok(Message::Welcome(welcome)) = Message::decode(&welcome.as_frame()) else {
            panic!("{welcome:?}")
        };
        assert_eq!(welcome.features, limits::FEATURE_BACKGROUND);
        wire
    }

    fn send(&mut self, message: &Message<'_>) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame; `None` when the connection has ended.
    fn receive(&mut self) -> Option<OwnedFrame> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 64 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.frames.push(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came within {PATIENCE:?}: {error}"),
            }
        }
    }

    fn submit(&mut self, id: u64, payload: &[u8]) {
        let options = TaskOptions { background: true, max_attempts: Some(20), ..TaskOptions::default() };
        self.send(&Message::Task(Task { id, action: "upper", options, payload }));
    }

    /// The ACCEPTED that comes next: the TASK's number and the task's id; `None` when the connection has ended.
    fn accepted(&mut self) -> Option<(u64, [u8; 16])> {
        let frame = self.receive()?;
        let Ok(Message::Accepted(accepted)) = Message::decode(&frame.as_frame()) else { panic!("{frame:?}") };
        Some((accepted.id, accepted.task_id))
    }

    fn result(&mut self, id: u64, task_id: [u8; 16]) -> Vec<u8> {
        self.send(&Message::Fetch(Fetch { id, task_id, wait_ms: 100_000, describe: false }));
        let frame = self.receive().unwrap();
        assert_eq!((frame.as_frame().kind, frame.as_frame().id), (FrameType::Result, id));
        frame.as_frame().payload.to_vec()
    }
}

fn start(data: &Path, clients: &str, workers: &str) -> Balancer {
    support::wait_for("the addresses and the folder are free again", || {
        let mut command = reparto(["balancer", "--clients", clients, "--workers", workers, "--data"]);
        command.arg(data).env_remove("REPARTO_BALANCER_NO_DATA");
        let mut process = support::Process::start(command);
        support::wait_until("it serves or cannot", || process.stdout().contains('\n') || process.has_ended());
        if process.has_ended() {
            return None;
        }
        let addresses = process.line_after("ready clients=");
        let (clients, workers) = addresses.split_once(" workers=")?;
        Some(Balancer { clients: clients.to_owned(), workers: workers.to_owned(), process })
    })
}

fn payload(id: u64) -> Vec<u8> {
    format!("task {id}").into_bytes()
}

#[test]
fn a_balancer_killed_at_any_moment_loses_nothing_that_it_has_accepted() {
    let data = folder();
    let mut balancer = start(&data, "127.0.0.1:0", "127.0.0.1:0");
    let mut tasks = Vec::new();
    let _worker = balancer.worker("worker");
    for round in 0..4u64 {
        let mut client = Wire::connect(&balancer);
        let ids = round * 1000..(round + 1) * 1000;
        for id in ids.clone() {
            client.submit(id + 1, &payload(id + 1));
        }
        // Killed while some are accepted and some are not, some run and some are recorded.
        for _ in 0..300 * (round + 1).min(3) {
            tasks.push(client.accepted().unwrap());
        }
        let (clients, workers) = (balancer.clients.clone(), balancer.workers.clone());
        balancer.process.kill();
        while let Some(accepted) = client.accepted() {
            tasks.push(accepted);
        }
        balancer = start(&data, &clients, &workers);
    }
    assert!(tasks.len() >= 300, "only {} were accepted", tasks.len());
    let mut client = Wire::connect(&balancer);
    for (number, (id, task)) in (1..).zip(&tasks) {
        assert_eq!(client.result(number, *task), payload(*id).to_ascii_uppercase());
    }
}

#[test]
fn a_balancer_that_is_stopped_leaves_what_waits_to_the_next_one() {
    let data = folder();
    let balancer = start(&data, "127.0.0.1:0", "127.0.0.1:0");
    let mut client = Wire::connect(&balancer);
    for id in 1..=20 {
        client.submit(id, &payload(id));
    }
    let tasks: Vec<_> = (1..=20).map(|_| client.accepted().unwrap()).collect();
    let (clients, workers) = (balancer.clients.clone(), balancer.workers.clone());
    balancer.process.signal(rustix::process::Signal::TERM);
    let ended = balancer.process.end();
    assert_eq!(ended.code, Some(0));
    let balancer = start(&data, &clients, &workers);
    let _worker = balancer.worker("worker");
    let mut client = Wire::connect(&balancer);
    for (id, task) in tasks {
        assert_eq!(client.result(id, task), payload(id).to_ascii_uppercase());
    }
}

/// More than the scheduler holds at once.
const MANY: u64 = 150_000;

#[test]
fn a_balancer_killed_with_many_tasks_queued_serves_again_and_all_of_them_end() {
    let data = folder();
    let balancer = start(&data, "127.0.0.1:0", "127.0.0.1:0");
    let input = support::numbers(0..MANY as u32);
    let ids = balancer.submit_input(["upper", "--background", "--lines", "-"], input).success_text();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len() as u64, MANY);
    let (clients, workers) = (balancer.clients.clone(), balancer.workers.clone());
    balancer.process.kill();
    let balancer = start(&data, &clients, &workers);
    let _worker = balancer.worker("worker");
    let run = |arguments: &[&str]| {
        support::run(arguments.iter().chain(&["--balancer", &balancer.clients])).success_text()
    };
    for number in [0, MANY / 2, MANY - 1] {
        let id = ids[usize::try_from(number).unwrap()];
        assert_eq!(run(&["get", id, "--wait", "100s"]), number.to_string());
    }
    for state in ["queued", "running"] {
        support::wait_until("none is open", || {
            run(&["tasks", "--state", state, "--limit", "1"]) == "no tasks\n"
        });
    }
    assert_eq!(balancer.status().totals.done, MANY);
}
