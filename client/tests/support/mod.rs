//! A balancer for tests: a listener on a free port whose connections follow a script.

#![allow(dead_code)] // Each test file uses a part of it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use reparto_client::{Client, ClientBuilder, ErrorCode};
use reparto_protocol::{
    Accepted, ErrorMessage, FrameStream, FrameType, Message, OwnedFrame, Progress, TaskDone, TaskStanding,
    TaskState, Welcome, limits,
};

/// Long enough for any machine; reached only by a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A client that has as long to be welcomed as a test waits.
pub(crate) fn client() -> ClientBuilder {
    Client::builder().connect_timeout(PATIENCE)
}

pub(crate) struct FakeBalancer {
    pub(crate) address: String,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl FakeBalancer {
    /// Runs `script` for every connection, each on a thread of its own, with the connection's number from 0.
    pub(crate) fn start(script: impl Fn(Peer, usize) + Send + Sync + 'static) -> FakeBalancer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, count) = (Arc::new(script), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, number) = (Arc::clone(&script), count.fetch_add(1, Ordering::SeqCst));
                std::thread::spawn(move || script(Peer::new(stream), number));
            }
        });
        FakeBalancer { address, connections }
    }

    /// Answers every task with its payload.
    pub(crate) fn echo() -> FakeBalancer {
        FakeBalancer::start(|mut peer, _| {
            peer.welcome();
            peer.echo_until_closed();
        })
    }
}

/// An address where nobody listens.
pub(crate) fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    frames: FrameStream,
    output: BytesMut,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer { stream, frames: FrameStream::new(limits::DEFAULT_MAX_FRAME_BYTES), output: BytesMut::new() }
    }

    /// The next frame; `None` when the client is gone.
    pub(crate) fn next(&mut self) -> Option<OwnedFrame> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.frames.push(&bytes[..read]),
            }
        }
    }

    /// The id and payload of the next TASK; answers nothing.
    pub(crate) fn next_task(&mut self) -> Option<(u64, bytes::Bytes)> {
        loop {
            let frame = self.next()?;
            if frame.as_frame().kind == FrameType::Task {
                return Some((frame.as_frame().id, frame.payload()));
            }
        }
    }

    pub(crate) fn send(&mut self, message: Message<'_>) {
        self.output.clear();
        message.encode(&mut self.output);
        let _ = self.stream.write_all(&self.output);
    }

    pub(crate) fn welcome(&mut self) {
        self.welcome_with(limits::DEFAULT_MAX_FRAME_BYTES, 5_000, 15_000);
    }

    /// As a balancer with a store.
    pub(crate) fn welcome_with_store(&mut self) {
        self.greet(limits::FEATURE_BACKGROUND, limits::DEFAULT_MAX_FRAME_BYTES, 5_000, 15_000);
    }

    pub(crate) fn welcome_with(&mut self, max_frame_bytes: u32, heartbeat_ms: u32, silence_ms: u32) {
        self.greet(0, max_frame_bytes, heartbeat_ms, silence_ms);
    }

    fn greet(&mut self, features: u64, max_frame_bytes: u32, heartbeat_ms: u32, silence_ms: u32) {
        let hello = self.next().expect("a client says HELLO");
        assert!(matches!(Message::decode(&hello.as_frame()).unwrap(), Message::Hello(_)));
        self.send(Message::Welcome(Welcome {
            version: limits::VERSION,
            features,
            max_frame_bytes,
            heartbeat_ms,
            silence_ms,
            agent: "fake",
        }));
    }

    pub(crate) fn result(&mut self, id: u64, payload: &[u8]) {
        self.send(Message::Result(TaskDone { id, payload }));
    }

    pub(crate) fn error(&mut self, id: u64, code: ErrorCode, message: &str) {
        self.send(Message::Error(ErrorMessage { id, code, message, payload: b"" }));
    }

    pub(crate) fn accepted(&mut self, id: u64, task_id: [u8; 16], duplicate: bool) {
        self.send(Message::Accepted(Accepted { id, task_id, duplicate }));
    }

    /// Where a task stands, with what describes it.
    pub(crate) fn standing(&mut self, id: u64, task_id: [u8; 16], state: TaskState, payload: &[u8]) {
        self.send(Message::TaskState(TaskStanding {
            id,
            task_id,
            state,
            attempts: 1,
            created_at_ms: 1_790_000_000_000,
            due_at_ms: None,
            ended_at_ms: state.is_ended().then_some(1_790_000_001_000),
            payload,
        }));
    }

    pub(crate) fn progress(&mut self, id: u64, done: u64, total: u64) {
        self.send(Message::Progress(Progress { id, done, total, payload: b"" }));
    }

    pub(crate) fn echo_until_closed(&mut self) {
        while let Some((id, payload)) = self.next_task() {
            self.result(id, &payload);
        }
    }

    /// Stays until the client closes the connection.
    pub(crate) fn hold(&mut self) {
        while self.next().is_some() {}
    }
}
