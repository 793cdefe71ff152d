//! The NATS protocol, driven raw: request and reply, with the workers in one queue group.
//!
//! As every client library of NATS does it, a client subscribes to all subjects under an inbox of its own, and each
//! request has a new one of them to be replied to. (One reply subject for all requests would cost the server less,
//! since it would find its subscriber in a cache; nobody's requests look so.)

use std::ops::Range;

use memchr::memchr;

use super::protocol::{ACTION, MIN_PAYLOAD_BYTES, count_up};
use super::{ClientCodec, ClientProtocol, Output, Protocol, RawError, WorkerCodec};

/// Longest line, which has no bound of its own in the protocol; INFO is the longest that there is.
pub(super) const MAX_LINE_BYTES: usize = 16 * 1024;

/// Digits of a request's own part of its reply subject.
const TOKEN_DIGITS: usize = 10;

/// Ends every line and every payload.
pub(super) const END: &[u8; 2] = b"\r\n";

/// The NATS protocol.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nats;

impl ClientProtocol for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn client(&self, number: usize, size: usize) -> Box<dyn ClientCodec> {
        let inbox = format!("_INBOX.{number}");
        let before = format!("PUB {ACTION} {inbox}.");
        let head = format!("{before}{} {size}\r\n", "0".repeat(TOKEN_DIGITS)).into_bytes();
        let token = before.len()..before.len() + TOKEN_DIGITS;
        Box::new(Client { inbox, head, token, size, ready: false })
    }

    fn overhead_bytes(&self) -> usize {
        2 * MAX_LINE_BYTES
    }
}

impl Protocol for Nats {
    fn worker(&self, _number: usize, _size: usize) -> Box<dyn WorkerCodec> {
        Box::new(Worker { ready: false })
    }
}

struct Client {
    inbox: String,
    /// A PUB's line.
    head: Vec<u8>,
    /// Where in it the request's own part of the reply subject stands, in digits.
    token: Range<usize>,
    size: usize,
    ready: bool,
}

impl ClientCodec for Client {
    fn greet(&mut self, output: &mut Output) {
        greet(&format!("SUB {}.* 1", self.inbox), output);
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        for id in ids {
            count_up(&mut self.head[self.token.clone()]);
            output.put(&self.head);
            output.put(&id.to_be_bytes());
            output.put_payload(MIN_PAYLOAD_BYTES);
            output.put(END);
        }
    }

    fn read(&mut self, input: &[u8], output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((operation, length)) = parse(&input[taken..])? {
            match operation {
                Operation::Message { payload, .. } => {
                    let Some(id) = payload.first_chunk().filter(|_| payload.len() == self.size) else {
                        return Err(RawError::WrongSize { got: payload.len(), sent: self.size });
                    };
                    done.push(u64::from_be_bytes(*id));
                }
                Operation::Ping => output.put(b"PONG\r\n"),
                Operation::Pong => self.ready = true,
                Operation::Nothing => {}
            }
            taken += length;
        }
        Ok(taken)
    }
}

struct Worker {
    ready: bool,
}

impl WorkerCodec for Worker {
    fn greet(&mut self, output: &mut Output) {
        greet(&format!("SUB {ACTION} workers 1"), output);
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn read(&mut self, input: &[u8], output: &mut Output) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((operation, length)) = parse(&input[taken..])? {
            taken += length;
            match operation {
                Operation::Message { reply: Some(reply), size, payload, .. } => {
                    output.put(b"PUB ");
                    output.put(reply);
                    output.put(b" ");
                    output.put(size);
                    output.put(END);
                    let payload_end = taken - END.len();
                    output.put_input(input, payload_end - payload.len()..payload_end);
                    output.put(END);
                }
                Operation::Message { reply: None, .. } => {
                    return Err(malformed("a request without a reply subject".into()));
                }
                Operation::Ping => output.put(b"PONG\r\n"),
                Operation::Pong => self.ready = true,
                Operation::Nothing => {}
            }
        }
        Ok(taken)
    }
}

pub(super) fn greet(subscribe: &str, output: &mut Output) {
    let options = r#"{"verbose":false,"pedantic":false,"tls_required":false,"name":"reparto-bench","lang":"raw","version":"1"}"#;
    // The PONG comes when all before it is in force.
    output.put(format!("CONNECT {options}\r\n{subscribe}\r\nPING\r\n").as_bytes());
}

pub(super) enum Operation<'a> {
    Message { subject: &'a [u8], reply: Option<&'a [u8]>, size: &'a [u8], payload: &'a [u8] },
    Ping,
    Pong,
    Nothing,
}

/// The operation at the beginning of `input`, once it is whole, and its length.
#[inline(always)]
pub(super) fn parse(input: &[u8]) -> Result<Option<(Operation<'_>, usize)>, RawError> {
    let Some(line_end) = memchr(b'\n', &input[..input.len().min(MAX_LINE_BYTES)]) else {
        let too_long = input.len() >= MAX_LINE_BYTES;
        return if too_long { Err(malformed("a line that does not end".into())) } else { Ok(None) };
    };
    let line = input[..line_end].trim_ascii_end();
    let after_line = line_end + 1;
    if let Some(arguments) = line.strip_prefix(b"MSG ") {
        let mut rest = arguments;
        let mut next = || next_word(&mut rest);
        let (subject, number, third, fourth) = (next(), next(), next(), next());
        let (subject, reply, size) = match (subject, number, third, fourth) {
            (Some(subject), Some(_), Some(size), None) => (subject, None, size),
            (Some(subject), Some(_), Some(reply), Some(size)) => (subject, Some(reply), size),
            _ => return Err(unknown(line)),
        };
        let bytes = std::str::from_utf8(size).ok().and_then(|digits| digits.parse::<u32>().ok());
        let payload_end = after_line + bytes.ok_or_else(|| unknown(line))? as usize;
        if input.len() < payload_end + END.len() {
            return Ok(None);
        }
        let payload = &input[after_line..payload_end];
        return Ok(Some((Operation::Message { subject, reply, size, payload }, payload_end + END.len())));
    }
    let operation = match line {
        b"PING" => Operation::Ping,
        b"PONG" => Operation::Pong,
        b"+OK" => Operation::Nothing,
        line if line.starts_with(b"INFO ") => Operation::Nothing,
        line => match line.strip_prefix(b"-ERR ") {
            Some(reason) => return Err(RawError::Refused(String::from_utf8_lossy(reason).into_owned())),
            None => return Err(unknown(line)),
        },
    };
    Ok(Some((operation, after_line)))
}

/// Takes the next word off a line.
#[inline]
fn next_word<'a>(line: &mut &'a [u8]) -> Option<&'a [u8]> {
    let start = line.iter().position(|byte| *byte != b' ')?;
    let rest = &line[start..];
    let end = memchr(b' ', rest).unwrap_or(rest.len());
    *line = &rest[end..];
    Some(&rest[..end])
}

fn unknown(line: &[u8]) -> RawError {
    let beginning = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
    malformed(format!("the line '{}'", beginning.escape_default()))
}

pub(super) fn malformed(what: String) -> RawError {
    RawError::Malformed { protocol: "nats", what }
}
