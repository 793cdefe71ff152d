//! Reparto's background tasks, driven raw: handed in until they are accepted, or until their results are fetched.

use std::time::Duration;

use bytes::BytesMut;
use reparto_protocol::{Fetch, FrameType, Message, Role, TaskOptions};

use super::reparto::{hello, malformed, other, parse, put_tasks, task_head};
use super::{ClientCodec, ClientProtocol, Output, RawError};

/// Background tasks: one is done for its client once it is ACCEPTED, so once it is durable.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepartoBackground;

/// Background tasks whose results are fetched: one is done for its client once its recorded result is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepartoFetched;

/// How long a FETCH waits for the end of its task.
const FETCH_WAITS: Duration = Duration::from_secs(30);

impl ClientProtocol for RepartoBackground {
    fn name(&self) -> &'static str {
        "reparto"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        Box::new(Client::new(size, false))
    }
}

impl ClientProtocol for RepartoFetched {
    fn name(&self) -> &'static str {
        "reparto"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        Box::new(Client::new(size, true))
    }
}

struct Client {
    /// A TASK without its payload, whose length counts the payload.
    head: Vec<u8>,
    size: usize,
    fetches: bool,
    ready: bool,
    /// A FETCH, before it is sent.
    fetch: BytesMut,
}

impl Client {
    fn new(size: usize, fetches: bool) -> Client {
        let options = TaskOptions { background: true, ..TaskOptions::default() };
        Client { head: task_head(options, size), size, fetches, ready: false, fetch: BytesMut::new() }
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
                FrameType::Accepted if self.fetches => {
                    let message = Message::decode(&frame).map_err(|error| malformed(error.to_string()))?;
                    let Message::Accepted(accepted) = message else {
                        return Err(malformed(format!("{} instead of ACCEPTED", frame.kind)));
                    };
                    let wait_ms = FETCH_WAITS.as_millis() as u64;
                    let (id, task_id) = (frame.id, accepted.task_id);
                    Message::Fetch(Fetch { id, task_id, wait_ms, describe: false }).encode(&mut self.fetch);
                    output.put(&self.fetch);
                    self.fetch.clear();
                }
                FrameType::Accepted => done.push(frame.id.wrapping_sub(1)),
                FrameType::Result if frame.payload.len() != self.size => {
                    return Err(RawError::WrongSize { got: frame.payload.len(), sent: self.size });
                }
                FrameType::Result => done.push(frame.id.wrapping_sub(1)),
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
