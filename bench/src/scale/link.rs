//! A plain blocking connection to a balancer, as a client or a worker.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use reparto_protocol::{
    Actions, FrameStream, HeldTasks, Hello, Message, OwnedFrame, Ping, Pong, Register, Role, limits,
};

use super::ScaleError;

/// Longer than a balancer that works takes for anything asked here.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes read at once. Few, since there are many connections.
const READ_BYTES: usize = 4 * 1024;

/// The action that simulated workers offer.
pub(super) const ACTION: &str = "echo";

/// A connection that has greeted.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    frames: FrameStream,
    out: BytesMut,
}

impl Link {
    /// Connects, and greets.
    pub(super) fn connect(address: SocketAddr, role: Role) -> Result<Link, ScaleError> {
        let doing = "connecting to the balancer";
        let io = |source| ScaleError::Io { doing, source };
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
        let frames = FrameStream::new(limits::MAX_MAX_FRAME_BYTES);
        let mut link = Link { stream, frames, out: BytesMut::new() };
        let hello = Hello { version: limits::VERSION, role, features: 0, agent: "reparto-bench", token: b"" };
        link.queue(&Message::Hello(hello));
        link.flush(doing)?;
        link.expect(doing, |message| matches!(message, Message::Welcome(_)))?;
        Ok(link)
    }

    /// Registers as a worker of one thread that is so quick that it may hold many tasks.
    pub(super) fn register(&mut self, id: &str) -> Result<(), ScaleError> {
        let doing = "registering a worker";
        self.queue(&Message::Register(Register {
            id: 1,
            worker_id: id,
            threads: 1,
            window: limits::DEFAULT_WINDOW,
            weight: 1,
            service_ns: Some(1_000),
            held: HeldTasks::NONE,
            actions: Actions::new(&[ACTION]),
        }));
        self.flush(doing)?;
        self.expect(doing, |message| matches!(message, Message::Ack(_)))
    }

    /// Gathers a frame, to be sent with others.
    pub(super) fn queue(&mut self, message: &Message<'_>) {
        message.encode(&mut self.out);
    }

    /// Bytes gathered and not yet sent.
    pub(super) fn gathered(&self) -> usize {
        self.out.len()
    }

    /// Sends what was gathered.
    pub(super) fn flush(&mut self, doing: &'static str) -> Result<(), ScaleError> {
        let sent = self.stream.write_all(&self.out);
        self.out.clear();
        sent.map_err(|source| ScaleError::Io { doing, source })
    }

    /// Waits until the balancer has taken in everything sent before.
    pub(super) fn sync(&mut self, doing: &'static str) -> Result<(), ScaleError> {
        const NUMBER: u64 = 77;
        self.queue(&Message::Ping(Ping { id: NUMBER }));
        self.flush(doing)?;
        self.expect(doing, |message| matches!(message, Message::Pong(Pong { id: NUMBER })))
    }

    /// Hands the socket over, with what came and is not read yet.
    pub(super) fn into_parts(self) -> (TcpStream, FrameStream) {
        (self.stream, self.frames)
    }

    /// Reads until a message comes that fits; only PINGs may come before it.
    fn expect(&mut self, doing: &'static str, fits: impl Fn(&Message<'_>) -> bool) -> Result<(), ScaleError> {
        let wrong = |answer: String| Err(ScaleError::Answer { doing, answer });
        loop {
            let frame = self.next(doing)?;
            match Message::decode(&frame.as_frame()) {
                Ok(message) if fits(&message) => return Ok(()),
                Ok(Message::Ping(Ping { id })) => {
                    self.queue(&Message::Pong(Pong { id }));
                    self.flush(doing)?;
                }
                Ok(Message::Error(error)) => return wrong(format!("{}: {}", error.code, error.message)),
                Ok(_) => return wrong(format!("{} instead", frame.as_frame().kind)),
                Err(error) => return wrong(format!("what cannot be read: {error}")),
            }
        }
    }

    fn next(&mut self, doing: &'static str) -> Result<OwnedFrame, ScaleError> {
        loop {
            let frame = self.frames.next_frame();
            let frame =
                frame.map_err(|error| ScaleError::Answer { doing, answer: format!("no frame: {error}") })?;
            if let Some(frame) = frame {
                return Ok(frame);
            }
            let mut buffer = [0; READ_BYTES];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    let answer = "by closing the connection".to_owned();
                    return Err(ScaleError::Answer { doing, answer });
                }
                Ok(count) => self.frames.push(&buffer[..count]),
                Err(source) => return Err(ScaleError::Io { doing, source }),
            }
        }
    }
}
