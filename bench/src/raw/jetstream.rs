//! NATS JetStream, driven raw: messages published into a stream that is kept in files, each acknowledged by the server.
//!
//! A publish's reply subject is its number, under the client's inbox, and so one that was used before. Client libraries
//! take a new one each time, which costs the server more.

use std::ops::Range;

use super::nats::{self, END, MAX_LINE_BYTES, Operation};
use super::{ClientCodec, ClientProtocol, Output, RawError};

/// The stream, and the one subject that it keeps.
const STREAM: &str = "bench";

/// Digits of a publish's number, which the server repeats in the subject of its answer.
const ID_DIGITS: usize = 10;

/// NATS with a stream in files.
#[derive(Debug, Clone, Copy, Default)]
pub struct JetStream;

impl ClientProtocol for JetStream {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn client(&self, number: usize, size: usize) -> Box<dyn ClientCodec> {
        let inbox = format!("_INBOX.{number}.");
        let before = format!("PUB {STREAM} {inbox}");
        let head = format!("{before}{} {size}\r\n", "0".repeat(ID_DIGITS)).into_bytes();
        let id = before.len()..before.len() + ID_DIGITS;
        Box::new(Client { inbox, head, id, ready: false })
    }

    fn overhead_bytes(&self) -> usize {
        2 * MAX_LINE_BYTES
    }
}

struct Client {
    /// Its subjects begin so.
    inbox: String,
    /// A PUB's line.
    head: Vec<u8>,
    /// Where in it the digits of the publish's number stand.
    id: Range<usize>,
    ready: bool,
}

impl ClientCodec for Client {
    fn greet(&mut self, output: &mut Output) {
        nats::greet(&format!("SUB {}* 1", self.inbox), output);
        // Every client asks for the same stream, which the server then has once. Its answer has no number.
        let stream = format!(
            r#"{{"name":"{STREAM}","subjects":["{STREAM}"],"storage":"file","retention":"limits","num_replicas":1}}"#
        );
        let request = format!("PUB $JS.API.STREAM.CREATE.{STREAM} {}made {}\r\n", self.inbox, stream.len());
        output.put(request.as_bytes());
        output.put(stream.as_bytes());
        output.put(END);
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        for id in ids {
            let mut rest = *id;
            for digit in self.head[self.id.clone()].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            output.put(&self.head);
            output.put_payload(0);
            output.put(END);
        }
    }

    fn read(&mut self, input: &[u8], output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((operation, length)) = nats::parse(&input[taken..])? {
            match operation {
                Operation::Message { subject, payload, .. } => {
                    if payload.starts_with(br#"{"error""#) || contains(payload, br#","error":"#) {
                        return Err(RawError::Refused(String::from_utf8_lossy(payload).into_owned()));
                    }
                    if subject.ends_with(b".made") {
                        self.ready = true;
                    } else {
                        done.push(number(subject)?);
                    }
                }
                Operation::Ping => output.put(b"PONG\r\n"),
                Operation::Pong | Operation::Nothing => {}
            }
            taken += length;
        }
        Ok(taken)
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The number at the end of an answer's subject.
fn number(subject: &[u8]) -> Result<u64, RawError> {
    let digits = subject.len().checked_sub(ID_DIGITS).and_then(|from| subject.get(from..));
    let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
        nats::malformed(format!("an answer to '{}', which nobody asked", subject.escape_ascii()))
    })
}
