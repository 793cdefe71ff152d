//! Reparto's own protocol, driven raw.

use std::time::Duration;

use bytes::BytesMut;
use reparto_protocol::{
    Actions, Fetch, Frame, FrameError, FrameType, HEADER_BYTES, HeldTasks, Hello, Message, Pong, Register,
    Role, Task, TaskOptions, limits,
};

use super::protocol::ACTION;
use super::{ClientCodec, ClientProtocol, Output, Protocol, RawError, WorkerCodec};

/// Nanoseconds that an echo takes a worker, as it tells the balancer: `cargo bench -p reparto-bench --bench codec -- echo`.
const SERVICE_NS: u64 = 13;

/// Bytes that a worker echoes in a nanosecond, roughly.
const ECHOED_BYTES_PER_NS: u64 = 10;

/// Tasks that a worker holds at most.
const WORKER_WINDOW: u32 = 4096;

/// Reparto's protocol, version 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reparto;

impl ClientProtocol for Reparto {
    fn name(&self) -> &'static str {
        "reparto"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        Box::new(Client::new(size, Way::Foreground))
    }
}

impl Protocol for Reparto {
    fn worker(&self, number: usize, size: usize) -> Box<dyn WorkerCodec> {
        let service_ns = SERVICE_NS + size as u64 / ECHOED_BYTES_PER_NS;
        Box::new(Worker { number, service_ns, ready: false, heads: [0; HEADER_BYTES] })
    }
}

/// When a task is done for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Once its result is there.
    Foreground,
    /// Once it is ACCEPTED, so once it is durable.
    Accepted,
    /// Once its recorded result is there, which is fetched.
    Fetched,
}

/// How long a FETCH waits for the end of its task.
const FETCH_WAITS: Duration = Duration::from_secs(30);

pub(super) struct Client {
    /// A TASK without its payload, whose length counts the payload.
    head: Vec<u8>,
    size: usize,
    way: Way,
    ready: bool,
    /// A FETCH, before it is sent.
    fetch: BytesMut,
}

impl Client {
    pub(super) fn new(size: usize, way: Way) -> Client {
        let options = TaskOptions { background: way != Way::Foreground, ..TaskOptions::default() };
        Client { head: task_head(options, size), size, way, ready: false, fetch: BytesMut::new() }
    }

    /// A task is accepted, and its result is asked for.
    fn ask_for_result(&mut self, frame: &Frame<'_>, output: &mut Output) -> Result<(), RawError> {
        let message = Message::decode(frame).map_err(|error| malformed(error.to_string()))?;
        let Message::Accepted(accepted) = message else {
            return Err(malformed(format!("{} instead of ACCEPTED", frame.kind)));
        };
        let wait_ms = FETCH_WAITS.as_millis() as u64;
        let (id, task_id) = (frame.id, accepted.task_id);
        Message::Fetch(Fetch { id, task_id, wait_ms, describe: false }).encode(&mut self.fetch);
        output.put(&self.fetch);
        self.fetch.clear();
        Ok(())
    }
}

impl ClientCodec for Client {
    fn greet(&mut self, output: &mut Output) {
        hello(Role::Client, output);
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        put_tasks(&mut self.head, ids, output);
    }

    fn read(&mut self, input: &[u8], output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((frame, length)) = parse(&input[taken..])? {
            match frame.kind {
                FrameType::Result if frame.payload.len() != self.size => {
                    return Err(RawError::WrongSize { got: frame.payload.len(), sent: self.size });
                }
                FrameType::Result => done.push(frame.id.wrapping_sub(1)),
                FrameType::Accepted if self.way == Way::Fetched => self.ask_for_result(&frame, output)?,
                FrameType::Accepted => done.push(frame.id.wrapping_sub(1)),
                FrameType::TaskState => {
                    let waited = format!("a task had no result after {FETCH_WAITS:?}");
                    return Err(RawError::Refused(waited));
                }
                FrameType::Welcome => self.ready = true,
                _ => other(&frame, output)?,
            }
            taken += length;
        }
        Ok(taken)
    }
}

struct Worker {
    number: usize,
    service_ns: u64,
    ready: bool,
    heads: [u8; HEADER_BYTES],
}

impl WorkerCodec for Worker {
    fn greet(&mut self, output: &mut Output) {
        hello(Role::Worker, output);
        let register = Register {
            id: 1,
            worker_id: &format!("raw-{}", self.number),
            threads: 1,
            window: WORKER_WINDOW,
            weight: 1,
            service_ns: Some(self.service_ns),
            held: HeldTasks::NONE,
            actions: Actions::new(&[ACTION]),
        };
        send(&Message::Register(register), output);
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn read(&mut self, input: &[u8], output: &mut Output) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((frame, length)) = parse(&input[taken..])? {
            match frame.kind {
                FrameType::AssignTask => {
                    let payload = taken + HEADER_BYTES + frame.fields.len()..taken + length;
                    let rest = (HEADER_BYTES - 4 + payload.len()) as u32;
                    self.heads[..4].copy_from_slice(&rest.to_be_bytes());
                    self.heads[4] = FrameType::TaskResult as u8;
                    self.heads[8..].copy_from_slice(&frame.id.to_be_bytes());
                    output.put(&self.heads);
                    output.put_input(input, payload);
                }
                FrameType::Ack => self.ready = true,
                FrameType::Welcome => {}
                _ => other(&frame, output)?,
            }
            taken += length;
        }
        Ok(taken)
    }
}

/// A TASK without its payload of `size` bytes, whose length counts the payload.
fn task_head(options: TaskOptions<'_>, size: usize) -> Vec<u8> {
    let mut head = BytesMut::new();
    Message::Task(Task { id: 1, action: ACTION, options, payload: b"" }).encode(&mut head);
    let mut head = head.to_vec();
    // A size whose length does not fit is refused by the server, as it would be by any reader.
    let length = u32::try_from(head.len() - 4 + size).unwrap_or(u32::MAX);
    head[..4].copy_from_slice(&length.to_be_bytes());
    head
}

/// Writes a task for each number.
fn put_tasks(head: &mut [u8], ids: &[u64], output: &mut Output) {
    for id in ids {
        // 0 names the connection itself.
        head[8..HEADER_BYTES].copy_from_slice(&(id + 1).to_be_bytes());
        output.put(head);
        output.put_payload(0);
    }
}

fn hello(role: Role, output: &mut Output) {
    let hello = Hello { version: limits::VERSION, role, features: 0, agent: "reparto-bench", token: b"" };
    send(&Message::Hello(hello), output);
}

fn send(message: &Message<'_>, output: &mut Output) {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    output.put(&bytes);
}

// Where it is called its answer stays in registers.
#[inline(always)]
fn parse(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, RawError> {
    let most = limits::MAX_MAX_FRAME_BYTES + limits::RELAY_SLACK_BYTES;
    Frame::parse(input, most).map_err(broken)
}

#[cold]
fn broken(error: FrameError) -> RawError {
    malformed(error.to_string())
}

/// Frames that either side may get beside the work.
fn other(frame: &Frame<'_>, output: &mut Output) -> Result<(), RawError> {
    match Message::decode(frame).map_err(|error| malformed(error.to_string()))? {
        Message::Ping(ping) => send(&Message::Pong(Pong { id: ping.id }), output),
        Message::Error(error) => {
            return Err(RawError::Refused(format!("{:?}: {}", error.code, error.message)));
        }
        Message::GoAway(going) => return Err(RawError::Refused(format!("GOAWAY: {}", going.message))),
        // Nothing here cancels or asks, so the rest carries nothing for us.
        _ => {}
    }
    Ok(())
}

fn malformed(what: String) -> RawError {
    RawError::Malformed { protocol: "reparto", what }
}
