//! Many simulated workers on one thread: each has a connection of its own and echoes what it is given.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::{Buf, Bytes, BytesMut};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use reparto_protocol::{FrameStream, Message, Outcome, Pong, Role, TaskResult, frame_length, limits};

use super::ScaleError;
use super::link::Link;

/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;

/// From this size on a payload goes back in the memory that it came in.
const SHARED_PAYLOAD_BYTES: usize = 8 * 1024;

/// Connections that are looked at between two polls.
const EVENTS: usize = 1_024;

/// Says that the farm ends.
const WAKER: Token = Token(usize::MAX);

/// Simulated workers. They leave when this is dropped.
#[derive(Debug)]
pub(super) struct Farm {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Farm {
    /// Registers so many workers, and has them echo.
    pub(super) fn start(address: SocketAddr, workers: usize) -> Result<Farm, ScaleError> {
        let io = |source| ScaleError::Io { doing: "starting the simulated workers", source };
        let poll = Poll::new().map_err(io)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(io)?);
        let mut rows = Vec::with_capacity(workers);
        for number in 0..workers {
            let mut link = Link::connect(address, Role::Worker)?;
            link.register(&format!("simulated-{number}"))?;
            let (stream, frames) = link.into_parts();
            stream.set_nonblocking(true).map_err(io)?;
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(number), interest).map_err(io)?;
            rows.push(Some(Worker { stream, frames, out: VecDeque::new(), tail: BytesMut::new() }));
        }
        let thread = std::thread::Builder::new().name("simulated-workers".into());
        let thread = thread.spawn(move || work(poll, rows)).map_err(io)?;
        Ok(Farm { waker, thread: Some(thread) })
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // Its own panic was told by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Echoes until it is woken to end. A worker whose connection ends is gone.
fn work(mut poll: Poll, mut workers: Vec<Option<Worker>>) {
    let mut events = Events::with_capacity(EVENTS);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return log::error!("the simulated workers cannot go on: {error}"),
        }
        for event in &events {
            if event.token() == WAKER {
                return;
            }
            let Some(place) = workers.get_mut(event.token().0) else { continue };
            let Some(worker) = place else { continue };
            if let Err(error) = worker.turn(&mut buffer) {
                log::debug!("a simulated worker is gone: {error}");
                *place = None;
            }
        }
    }
}

#[derive(Debug)]
struct Worker {
    stream: TcpStream,
    frames: FrameStream,
    /// To be sent, in order, before `tail`.
    out: VecDeque<Bytes>,
    tail: BytesMut,
}

impl Worker {
    /// Reads all there is, answers it, and writes as much as goes.
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.frames.push(&buffer[..count]);
                    self.answer()?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.flush()
    }

    fn answer(&mut self) -> io::Result<()> {
        let wrong = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        while let Some(frame) = self.frames.next_frame().map_err(wrong)? {
            match Message::decode(&frame.as_frame()).map_err(wrong)? {
                Message::AssignTask(task) => {
                    let outcome = Outcome::Done;
                    let result = TaskResult {
                        id: task.id,
                        outcome,
                        message: "",
                        service_ns: None,
                        payload: task.payload,
                    };
                    let result = Message::TaskResult(result);
                    if task.payload.len() < SHARED_PAYLOAD_BYTES {
                        result.encode(&mut self.tail);
                    } else {
                        result.encode_head(&mut self.tail, task.payload.len());
                        self.out.push_back(self.tail.split().freeze());
                        self.out.push_back(frame.payload());
                    }
                }
                Message::Ping(ping) => Message::Pong(Pong { id: ping.id }).encode(&mut self.tail),
                _ => {}
            }
        }
        self.make_room()
    }

    /// Makes room for the whole of a frame that has begun, instead of growing with it piece by piece. The balancer
    /// is our own, so its word is good enough.
    fn make_room(&mut self) -> io::Result<()> {
        let buffer = self.frames.buffer_mut();
        let length = frame_length(buffer, limits::MAX_MAX_FRAME_BYTES);
        let length = length.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        buffer.reserve(length.unwrap_or(0).saturating_sub(buffer.len()));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.tail.is_empty() {
            self.out.push_back(self.tail.split().freeze());
        }
        while let Some(first) = self.out.front_mut() {
            match self.stream.write(first) {
                Ok(count) => first.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if first.is_empty() {
                self.out.pop_front();
            }
        }
        Ok(())
    }
}
