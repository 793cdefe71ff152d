//! Peers made of a plain socket and reparto-protocol, and a balancer in a thread, for the tests beside this folder.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test file uses its part of this.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use reparto_balancer::{Balancer, BalancerError, Handle, Settings};
use reparto_protocol::{
    Actions, FrameStream, FrameType, HeldTasks, Hello, Message, Outcome, OwnedFrame, Pong, Register, Role,
    Task, TaskOptions, TaskResult,
};

/// How long a test waits for anything, whatever the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A balancer that serves in a thread of its own, and is stopped with the test.
pub struct Served {
    pub clients: SocketAddr,
    pub workers: SocketAddr,
    /// Where lines are spoken.
    pub lines: SocketAddr,
    pub gearman: SocketAddr,
    pub handle: Handle,
    thread: Option<JoinHandle<Result<(), BalancerError>>>,
}

/// With how many reactors: what the other files test with one, those that have a number in their name test once more.
pub fn reactors() -> usize {
    match env!("CARGO_CRATE_NAME") {
        "two_reactors" => 2,
        "four_reactors" | "four_reactors_memory" => 4,
        _ => 1,
    }
}

/// Settings for tests: any ports, no patience with those who linger, and all of it with those who stand still for a while,
/// who are neither asked whether they are there nor lost.
pub fn settings() -> Settings {
    let any_port = ([127, 0, 0, 1], 0).into();
    let mut settings = Settings {
        clients: any_port,
        workers: any_port,
        lines: vec![any_port],
        gearman: Some(any_port),
        reactors: reactors(),
        grace: Duration::from_millis(200),
        linger: Duration::from_millis(500),
        ..Settings::default()
    };
    settings.scheduler.heartbeat = 10 * PATIENCE;
    settings.scheduler.silence = 20 * PATIENCE;
    settings
}

pub fn serve(settings: Settings) -> Served {
    let balancer = Balancer::bind(settings).unwrap();
    let (clients, workers) = (balancer.clients_addr(), balancer.workers_addr());
    let lines = balancer.lines_addrs()[0];
    let gearman = balancer.gearman_addr().unwrap_or(clients);
    let handle = balancer.handle();
    let thread = Some(std::thread::spawn(move || balancer.run()));
    Served { clients, workers, lines, gearman, handle, thread }
}

impl Served {
    /// Stops it and waits until it has.
    pub fn stop(mut self) {
        self.handle.shutdown();
        self.wait();
    }

    /// Waits until it has stopped.
    pub fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection that speaks frames.
pub struct Wire {
    pub stream: TcpStream,
    frames: FrameStream,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Wire { stream, frames: FrameStream::new(64 << 20) }
    }

    /// The same connection once more, to send from another thread.
    pub fn sender(&self) -> Wire {
        Wire { stream: self.stream.try_clone().unwrap(), frames: FrameStream::new(1024) }
    }

    /// A connection that has said HELLO and was welcomed.
    pub fn hello(address: SocketAddr, role: Role) -> Wire {
        let mut wire = Wire::connect(address);
        wire.send(&hello(role));
        let welcome = wire.expect(FrameType::Welcome);
        assert!(matches!(Message::decode(&welcome.as_frame()), Ok(Message::Welcome(_))));
        wire
    }

    pub fn client(served: &Served) -> Wire {
        Wire::hello(served.clients, Role::Client)
    }

    /// A worker that is registered.
    pub fn worker(served: &Served, id: &str, threads: u32) -> Wire {
        let mut wire = Wire::hello(served.workers, Role::Worker);
        wire.send(&register(id, threads));
        wire.expect(FrameType::Ack);
        wire
    }

    pub fn send(&mut self, message: &Message<'_>) {
        self.try_send(message).unwrap();
    }

    pub fn try_send(&mut self, message: &Message<'_>) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.stream.write_all(&bytes)
    }

    /// The next frame; `None` when the connection has ended.
    pub fn receive(&mut self) -> Option<OwnedFrame> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 64 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.frames.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came within {PATIENCE:?}: {error}"),
            }
        }
    }

    /// The next frame but PINGs, which must be of a type.
    pub fn expect(&mut self, kind: FrameType) -> OwnedFrame {
        loop {
            let frame = self.receive().unwrap_or_else(|| panic!("the connection ended before {kind}"));
            let found = frame.as_frame();
            if found.kind == FrameType::Ping && kind != FrameType::Ping {
                self.send(&Message::Pong(Pong { id: found.id }));
                continue;
            }
            assert_eq!(found.kind, kind, "{:?}", Message::decode(&found));
            return frame;
        }
    }

    /// The next ERROR's id, code and sentence.
    pub fn expect_error(&mut self) -> (u64, String, String) {
        let frame = self.expect(FrameType::Error);
        let Ok(Message::Error(error)) = Message::decode(&frame.as_frame()) else { panic!("no ERROR") };
        (error.id, error.code.name().to_owned(), error.message.to_owned())
    }

    /// Waits for the connection's end; frames before it are passed over.
    pub fn expect_end(&mut self) {
        while self.receive().is_some() {}
    }

    /// Submits a task and waits for its result.
    pub fn round_trip(&mut self, id: u64, payload: &[u8]) {
        self.send(&task(id, payload));
        let result = self.expect(FrameType::Result);
        assert_eq!(result.as_frame().id, id);
        assert!(result.as_frame().payload == payload, "another payload came back");
    }
}

pub fn hello(role: Role) -> Message<'static> {
    Message::Hello(Hello { version: 1, role, features: 0, agent: "test", token: &[] })
}

pub fn register(id: &str, threads: u32) -> Message<'_> {
    let actions = Actions::new(&["echo"]);
    let window = 1024.max(threads);
    Message::Register(Register {
        id: 1,
        worker_id: id,
        threads,
        window,
        weight: 1,
        service_ns: None,
        held: HeldTasks::NONE,
        actions,
    })
}

pub fn task(id: u64, payload: &[u8]) -> Message<'_> {
    Message::Task(Task { id, action: "echo", options: TaskOptions::default(), payload })
}

pub fn done(id: u64, payload: &[u8]) -> Message<'_> {
    Message::TaskResult(TaskResult { id, outcome: Outcome::Done, message: "", service_ns: None, payload })
}

/// A worker in a thread, which gives every payload back until its connection ends.
pub fn echo_worker(served: &Served, id: &str) -> JoinHandle<u64> {
    let mut wire = Wire::worker(served, id, 64);
    std::thread::spawn(move || {
        let mut count = 0;
        while let Some(frame) = wire.receive() {
            let frame = frame.as_frame();
            let sent = match frame.kind {
                FrameType::AssignTask => {
                    count += 1;
                    wire.try_send(&done(frame.id, frame.payload))
                }
                FrameType::Ping => wire.try_send(&Message::Pong(Pong { id: frame.id })),
                _ => Ok(()),
            };
            if sent.is_err() {
                break;
            }
        }
        count
    })
}

/// Whether something has come that was not read, or the end.
pub fn has_something_to_read(wire: &Wire) -> bool {
    wire.stream.set_nonblocking(true).unwrap();
    let seen = wire.stream.peek(&mut [0]);
    wire.stream.set_nonblocking(false).unwrap();
    !seen.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Asks again until it is so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "{what} has not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}
