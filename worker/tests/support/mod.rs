//! A balancer for tests: it accepts workers, sends what a test tells it to, and shows what comes back.
#![allow(dead_code, unreachable_pub)] // Each test file uses its part, and it is a module of each.
#![allow(clippy::unwrap_used)] // A panic is a failed test, in helpers too.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reparto_protocol::{
    Ack, AssignTask, Cancel, ErrorCode, ErrorMessage, FrameStream, FrameType, GoAway, Message, Outcome,
    OwnedFrame, Ping, Welcome, limits,
};
use reparto_worker::{Task, Worker, WorkerBuilder, WorkerHandle};

/// However slow the machine is, what should come has come by then.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Listens for workers.
pub struct Balancer {
    listener: TcpListener,
    pub welcome: Welcome<'static>,
}

/// A REGISTER, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub request: u64,
    pub id: String,
    pub threads: u32,
    pub window: u32,
    pub weight: u32,
    pub service_ns: Option<u64>,
    pub actions: Vec<String>,
}

/// A TASK_RESULT, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub id: u64,
    pub outcome: Outcome,
    pub message: String,
    pub service_ns: Option<u64>,
    pub payload: Bytes,
}

impl Balancer {
    pub fn start() -> Balancer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let welcome = Welcome {
            version: limits::VERSION,
            features: 0,
            max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
            heartbeat_ms: 60_000,
            silence_ms: 180_000,
            agent: "test",
        };
        Balancer { listener, welcome }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// A worker's settings that lead here.
    pub fn worker(&self) -> WorkerBuilder {
        Worker::builder().id("w").balancer(self.address().to_string()).threads(2)
    }

    /// The next worker's connection, after HELLO and WELCOME.
    pub fn greet(&self) -> Connection {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let frames = FrameStream::new(limits::MAX_MAX_FRAME_BYTES);
        let mut connection = Connection { stream, frames, out: BytesMut::new() };
        let hello = connection.next();
        assert!(matches!(Message::decode(&hello.as_frame()).unwrap(), Message::Hello(_)));
        connection.send(&Message::Welcome(self.welcome));
        connection
    }

    /// The next worker's connection, registered.
    pub fn accept(&self) -> Connection {
        let mut connection = self.greet();
        let registered = connection.registration();
        connection.ack(registered.request);
        connection
    }
}

/// A worker's connection, seen from the balancer.
pub struct Connection {
    pub stream: TcpStream,
    frames: FrameStream,
    out: BytesMut,
}

impl Connection {
    pub fn send(&mut self, message: &Message<'_>) {
        self.queue(message);
        self.flush();
    }

    /// Gathers a frame, to be sent in one write with others.
    pub fn queue(&mut self, message: &Message<'_>) {
        message.encode(&mut self.out);
    }

    pub fn flush(&mut self) {
        self.stream.write_all(&self.out).unwrap();
        self.out.clear();
    }

    pub fn ack(&mut self, id: u64) {
        self.send(&Message::Ack(Ack { id, window: limits::DEFAULT_WINDOW }));
    }

    pub fn assign(&mut self, id: u64, action: &str, payload: &str) {
        self.send(&assignment(id, action, payload.as_bytes()));
    }

    pub fn cancel(&mut self, id: u64, recall: bool) {
        self.send(&Message::Cancel(Cancel { id, task_id: None, recall }));
    }

    pub fn go_away(&mut self, message: &str) {
        self.send(&Message::GoAway(GoAway { message }));
    }

    pub fn refuse(&mut self, code: ErrorCode, message: &str) {
        self.send(&Message::Error(ErrorMessage { id: 0, code, message, payload: b"" }));
    }

    /// The next frame, or `None` at the end of the connection.
    pub fn try_next(&mut self) -> Option<OwnedFrame> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 64 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.frames.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    pub fn next(&mut self) -> OwnedFrame {
        self.try_next().expect("the worker should not have closed the connection")
    }

    pub fn registration(&mut self) -> Registered {
        // With a short heartbeat a worker may ask whether anybody is there before it registers.
        let frame = loop {
            let frame = self.next();
            if frame.as_frame().kind != FrameType::Ping {
                break frame;
            }
        };
        match Message::decode(&frame.as_frame()).unwrap() {
            Message::Register(register) => Registered {
                request: register.id,
                id: register.worker_id.to_owned(),
                threads: register.threads,
                window: register.window,
                weight: register.weight,
                service_ns: register.service_ns,
                actions: register.actions.iter().map(str::to_owned).collect(),
            },
            other => panic!("a REGISTER should come, not {other:?}"),
        }
    }

    pub fn answer(&mut self) -> Answer {
        let frame = self.next();
        match Message::decode(&frame.as_frame()).unwrap() {
            Message::TaskResult(result) => Answer {
                id: result.id,
                outcome: result.outcome,
                message: result.message.to_owned(),
                service_ns: result.service_ns,
                payload: frame.payload(),
            },
            other => panic!("a TASK_RESULT should come, not {other:?}"),
        }
    }

    /// The request's number and whether it is a resume.
    pub fn drain(&mut self) -> (u64, bool) {
        let frame = self.next();
        match Message::decode(&frame.as_frame()).unwrap() {
            Message::Drain(drain) => (drain.id, drain.resume),
            other => panic!("a DRAIN should come, not {other:?}"),
        }
    }

    /// Asks whether the worker is there and waits until it says so: what was sent before has been read.
    pub fn sync(&mut self) {
        self.send(&Message::Ping(Ping { id: 77 }));
        let frame = self.next();
        match Message::decode(&frame.as_frame()).unwrap() {
            Message::Pong(pong) => assert_eq!(pong.id, 77),
            other => panic!("a PONG should come, not {other:?}"),
        }
    }

    /// Nothing more comes, and the worker closes.
    pub fn expect_end(&mut self) {
        if let Some(frame) = self.try_next() {
            panic!("the connection should end, and this came: {:?}", Message::decode(&frame.as_frame()));
        }
    }
}

pub fn assignment<'a>(id: u64, action: &'a str, payload: &'a [u8]) -> Message<'a> {
    Message::AssignTask(AssignTask {
        id,
        action,
        attempt: 1,
        deadline_ms: None,
        key: None,
        task_id: None,
        held: false,
        payload,
    })
}

/// A worker that runs in the background, and is stopped at the test's end.
pub struct Running {
    pub handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(builder: WorkerBuilder) -> Running {
        let worker = builder.build().unwrap();
        let handle = worker.handle();
        Running { handle, thread: Some(std::thread::spawn(move || worker.run().unwrap())) }
    }

    /// Waits until `run` has returned.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop(Duration::ZERO);
        if let Some(thread) = self.thread.take() {
            // A failed test is told by its own panic.
            let _ = thread.join();
        }
    }
}

/// A door that handlers wait at, and a count of those that have come.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Gate {
    /// Counts the caller, and waits until the gate is open or the task is cancelled. Gives whether it opened.
    pub fn pass(&self, task: &Task) -> bool {
        let (state, changed) = &*self.0;
        let mut guard = state.lock().unwrap();
        guard.1 += 1;
        changed.notify_all();
        while !guard.0 && !task.is_cancelled() {
            guard = changed.wait_timeout(guard, Duration::from_millis(5)).unwrap().0;
        }
        guard.0
    }

    pub fn open(&self) {
        self.0.0.lock().unwrap().0 = true;
        self.0.1.notify_all();
    }

    /// Waits until `count` callers have come.
    pub fn wait_for(&self, count: usize) {
        let (state, changed) = &*self.0;
        let guard = state.lock().unwrap();
        let (guard, _) = changed.wait_timeout_while(guard, PATIENCE, |state| state.1 < count).unwrap();
        assert!(guard.1 >= count, "{count} handlers should have begun, and {} have", guard.1);
    }
}

/// Waits until a condition holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
