//! beanstalkd's protocol, driven raw: jobs put into a tube, each answered once the server has it.

use std::collections::VecDeque;

use super::protocol::{ACTION, put_payloads};
use super::{ClientCodec, ClientProtocol, Output, RawError};

/// Longest line of an answer, which has no bound of its own in the protocol.
const MAX_LINE_BYTES: usize = 1024;

/// beanstalkd's protocol.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beanstalk;

impl ClientProtocol for Beanstalk {
    fn name(&self) -> &'static str {
        "beanstalkd"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        // Priority, delay in seconds, seconds that a worker has for it, and its bytes.
        let head = format!("put 1024 0 60 {size}\r\n").into_bytes();
        Box::new(Client { head, asked: VecDeque::new(), ready: false })
    }
}

struct Client {
    /// The line before a job.
    head: Vec<u8>,
    /// Jobs without an answer: answers come in the order of the jobs.
    asked: VecDeque<u64>,
    ready: bool,
}

impl ClientCodec for Client {
    fn greet(&mut self, output: &mut Output) {
        output.put(format!("use {ACTION}\r\n").as_bytes());
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        put_payloads(&self.head, b"\r\n", ids.len(), output);
        self.asked.extend(ids);
    }

    fn read(&mut self, input: &[u8], _output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let Some(end) = rest.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n') else {
                let too_long = rest.len() >= MAX_LINE_BYTES;
                return if too_long { Err(malformed("a line that does not end".into())) } else { Ok(taken) };
            };
            let line = rest[..end].trim_ascii_end();
            if line.starts_with(b"INSERTED ") {
                done.push(self.asked.pop_front().ok_or(RawError::Unasked(0))?);
            } else if line.starts_with(b"USING ") {
                self.ready = true;
            } else if line.is_ascii() && !line.is_empty() {
                return Err(RawError::Refused(String::from_utf8_lossy(line).into_owned()));
            } else {
                return Err(malformed(format!("the line '{}'", line.escape_ascii())));
            }
            taken += end + 1;
        }
    }
}

fn malformed(what: String) -> RawError {
    RawError::Malformed { protocol: "beanstalkd", what }
}
