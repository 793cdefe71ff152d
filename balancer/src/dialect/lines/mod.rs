//! Lines of text, so that netcat and a ten-line script are clients; docs/LINES.md is the contract.
//!
//! ```text
//!                          | {"id": 1, "action": "upper", "payload": "hola"}   JSON lines   (json)
//!  the first line decides -+ TASK|7|hola     REGISTER|ana|upper|4              pipes        (pipes)
//!                          | upper hola                                        plain words  (words)
//!
//!  a server that the balancer connects to, and that answers JSON lines: upstream
//! ```
//!
//! A connection keeps its form. This file finds lines, and passes over those that are too long without keeping them; a
//! form makes one step of each line, and one line of each answer. What a line asks for has a number here, by which its
//! answer finds what the line called itself.

mod escape;
mod json;
mod pipes;
#[cfg(test)]
mod tests;
mod upstream;
mod words;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use reparto_protocol::{ErrorCode, limits};

pub use upstream::{Member, Upstream};

use super::{Answer, Context, Output, OwnedEvent, PeerKind, Refusal, Step};
use crate::scheduler::{Assignment, AssignmentId, Effect, Event, Payload, Peer, StoreAnswer};

/// Most lines of a connection that are not answered yet; it is not read from while there are as many.
const MOST_PENDING: usize = 16_384;

/// A connection's state in the form that it speaks.
#[derive(Debug)]
pub struct Session {
    form: Form,
    /// A line that is too long is passed over: bytes are thrown away up to its end.
    skipping: bool,
}

#[derive(Debug)]
enum Form {
    /// No line has come.
    Unknown,
    Json(json::Client),
    Words(words::Client),
    Pipes(pipes::Client),
    PipeWorker(pipes::Worker),
    Upstream(upstream::Worker),
}

/// A line, and the chunk that it lies in.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    text: &'a str,
    chunk: &'a Bytes,
}

impl<'a> Line<'a> {
    /// Another part of the same chunk.
    fn part(self, text: &'a str) -> Line<'a> {
        Line { text, chunk: self.chunk }
    }

    /// The bytes that the text stands for, unescaped; shared with the chunk where they stand there as they are.
    fn unescaped(self) -> Result<Bytes, String> {
        Ok(match escape::unescape(self.text)? {
            Cow::Borrowed(bytes) => self.chunk.slice_ref(bytes),
            Cow::Owned(bytes) => bytes.into(),
        })
    }
}

/// Why a line cannot be met.
type Wrong = (ErrorCode, Cow<'static, str>);

fn wrong(message: impl Into<Cow<'static, str>>) -> Wrong {
    (ErrorCode::BadFrame, message.into())
}

/// The step that answers a line with an error.
fn failed<'a>(id: u64, (code, message): Wrong) -> Step<'a> {
    Step::Answer(Answer::Failed { id, code, message }, None)
}

/// An action's name, if it may be one.
fn check_action(name: &str) -> Result<&str, Wrong> {
    match name.len() {
        0 => Err(wrong("there is no action")),
        1..=limits::MAX_ACTION_BYTES => Ok(name),
        more => Err(wrong(format!(
            "the action's name has {more} bytes, over the bound of {}",
            limits::MAX_ACTION_BYTES
        ))),
    }
}

impl Default for Session {
    fn default() -> Self {
        Session::new()
    }
}

impl Session {
    /// The state of a connection that has just come.
    pub fn new() -> Self {
        Session { form: Form::Unknown, skipping: false }
    }

    /// The state of a connection to an upstream.
    pub fn upstream(upstream: Arc<Upstream>, context: &Context) -> Self {
        let worker = upstream::Worker::new(upstream, &context.lines_action);
        Session { form: Form::Upstream(worker), skipping: false }
    }

    /// What the scheduler must hear when the balancer's own connection is there.
    pub fn opening(&self) -> Option<OwnedEvent> {
        match &self.form {
            Form::Upstream(worker) => Some(worker.opening()),
            _ => None,
        }
    }

    /// What the peer is, which its first line says.
    pub fn kind(&self) -> PeerKind {
        match self.form {
            Form::Unknown => PeerKind::Unknown,
            Form::Json(_) | Form::Words(_) | Form::Pipes(_) => PeerKind::Client,
            Form::PipeWorker(_) | Form::Upstream(_) => PeerKind::Worker,
        }
    }

    /// A client that has closed its sending side has its answers all the same; a worker is gone.
    pub fn half_close(&mut self) -> Option<&'static [u8]> {
        match self.form {
            Form::PipeWorker(_) | Form::Upstream(_) => None,
            _ => Some(b"\n"),
        }
    }

    /// Whether every line is answered.
    pub fn is_settled(&self) -> bool {
        match &self.form {
            Form::Unknown | Form::PipeWorker(_) | Form::Upstream(_) => true,
            Form::Json(client) => client.pending() == 0,
            Form::Words(client) => client.pending() == 0,
            Form::Pipes(client) => client.pending() == 0,
        }
    }

    /// Whether as many lines wait to be answered as may.
    pub fn is_full(&self) -> bool {
        match &self.form {
            Form::Unknown | Form::PipeWorker(_) | Form::Upstream(_) => false,
            Form::Json(client) => client.is_full(),
            Form::Words(client) => client.is_full(),
            Form::Pipes(client) => client.pending() >= MOST_PENDING,
        }
    }

    /// The length of the line that begins with `kept` and goes on with `rest`, its end included. A line that is too long
    /// is as long as what is there of it.
    pub fn frame_bytes(&self, context: &Context, kept: &[u8], rest: &[u8]) -> usize {
        let most = most_bytes(context);
        if kept.last() == Some(&b'\n') {
            return kept.len();
        }
        match line_end(rest) {
            Some(at) => kept.len() + at + 1,
            None if kept.len() + rest.len() > most => kept.len() + rest.len(),
            None => most + 1,
        }
    }

    /// Takes the line that begins at `from` in `chunk`.
    #[inline(never)]
    pub fn decode<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        from: &mut usize,
    ) -> Result<Step<'a>, Refusal> {
        if self.is_full() {
            return Ok(Step::Full);
        }
        let begun = *from;
        let rest = &chunk[begun..];
        let most = most_bytes(context);
        let Some(end) = line_end(rest) else {
            if !self.skipping && rest.len() <= most {
                return Ok(Step::Incomplete);
            }
            *from = chunk.len();
            let too_long = !std::mem::replace(&mut self.skipping, true);
            return match (too_long, rest.is_empty()) {
                (true, _) => self.reject(too_long_for(most)),
                (false, false) => Ok(Step::Nothing),
                (false, true) => Ok(Step::Incomplete),
            };
        };
        *from = begun + end + 1;
        if std::mem::take(&mut self.skipping) {
            return Ok(Step::Nothing);
        }
        if end >= most {
            return self.reject(too_long_for(most));
        }
        let line = &rest[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = match std::str::from_utf8(line) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("the line is not UTF-8, from its byte {} on", error.valid_up_to() + 1);
                return self.reject(wrong(message));
            }
        };
        let step = self.take(context, peer, Line { text, chunk })?;
        let again = match &step {
            Step::Event(Event::ClientJoined { .. }) => true,
            Step::Owned(event) => {
                matches!(self.form, Form::Upstream(_)) && matches!(**event, OwnedEvent::Register(_))
            }
            _ => false,
        };
        if again {
            // What the line says comes next.
            *from = begun;
        }
        Ok(step)
    }

    fn take<'a>(&mut self, context: &Context, peer: Peer, line: Line<'a>) -> Result<Step<'a>, Refusal> {
        Ok(match &mut self.form {
            Form::Unknown => self.begin(context, peer, line),
            Form::Json(client) => client.take(context, line),
            Form::Words(client) => client.take(context, line),
            Form::Pipes(client) => client.take(context, line),
            Form::PipeWorker(worker) => worker.take(context, line),
            Form::Upstream(worker) => return worker.take(line),
        })
    }

    /// The first line decides which form this is.
    fn begin<'a>(&mut self, context: &Context, peer: Peer, line: Line<'a>) -> Step<'a> {
        if line.text.trim_ascii().is_empty() {
            return Step::Nothing;
        }
        if line.text.starts_with("REGISTER|") {
            return match pipes::Worker::register(context, line.text) {
                Ok((worker, registered)) => {
                    self.form = Form::PipeWorker(worker);
                    registered
                }
                Err((code, message)) => {
                    // It may try again; the answer is a pipe's.
                    self.form = Form::PipeWorker(pipes::Worker::stranger());
                    failed(0, (code, message))
                }
            };
        }
        self.form = if line.text.trim_ascii_start().starts_with('{') {
            Form::Json(json::Client::default())
        } else if pipes::is_pipe(line.text) {
            Form::Pipes(pipes::Client::default())
        } else {
            Form::Words(words::Client::default())
        };
        Step::Event(Event::ClientJoined { peer })
    }

    /// A line that cannot even be looked at.
    fn reject<'a>(&mut self, wrong: Wrong) -> Result<Step<'a>, Refusal> {
        let id = match &mut self.form {
            Form::Unknown | Form::PipeWorker(_) => 0,
            Form::Json(client) => client.stranger(),
            Form::Words(client) => client.ask(),
            Form::Pipes(client) => client.stranger(),
            Form::Upstream(worker) => return worker.unreadable(&wrong.1),
        };
        Ok(failed(id, wrong))
    }

    /// Writes down an effect that concerns this connection.
    pub fn encode(&mut self, effect: Effect<'_>, out: &mut Output) {
        match effect {
            Effect::Result { id, payload, .. } => self.result(id, payload, out),
            Effect::Fail { id, code, message, .. } => self.fail(id, code, &message, out),
            Effect::Answer { id, answer, .. } => self.store_answer(id, answer, out),
            Effect::Acknowledge { .. } => {
                if let Form::PipeWorker(worker) = &mut self.form {
                    worker.acknowledge(out);
                }
            }
            Effect::Close { code, message, .. } => self.refuse(&Refusal { code, message }, out),
            // There are no lines for these: a worker is not asked whether it is there, nor told what is not wanted any
            // more, and a client is not told how far a task is.
            Effect::Assign { .. }
            | Effect::CancelAssignment { .. }
            | Effect::Progress { .. }
            | Effect::Created { .. }
            | Effect::Refused { .. }
            | Effect::NoTask { .. }
            | Effect::Wake { .. }
            | Effect::Ping { .. }
            | Effect::GoAway { .. }
            | Effect::Unwanted { .. }
            | Effect::Note { .. }
            | Effect::Claim { .. }
            | Effect::Stopped => {}
        }
    }

    /// Writes down an assignment to this connection.
    pub fn assign(&mut self, id: AssignmentId, details: &Assignment<'_>, out: &mut Output) {
        match &mut self.form {
            Form::PipeWorker(worker) => worker.assign(id, details, out),
            Form::Upstream(worker) => worker.assign(id, details, out),
            Form::Unknown | Form::Json(_) | Form::Words(_) | Form::Pipes(_) => {}
        }
    }

    /// Writes down a result for this connection.
    pub fn result(&mut self, id: u64, payload: Payload<'_>, out: &mut Output) {
        match &mut self.form {
            Form::Json(client) => client.result(id, payload, out),
            Form::Words(client) => client.result(id, payload, out),
            Form::Pipes(client) => client.result(id, payload, out),
            Form::Unknown | Form::PipeWorker(_) | Form::Upstream(_) => {}
        }
    }

    fn fail(&mut self, id: u64, code: ErrorCode, message: &str, out: &mut Output) {
        match &mut self.form {
            Form::Json(client) => client.fail(id, code, message, out),
            Form::Words(client) => client.fail(id, code, message, out),
            Form::Pipes(client) => client.fail(id, code, message, out),
            Form::PipeWorker(_) => pipes::error_line("", code, message, out),
            Form::Unknown => words::error_line(code, message, out.buffer()),
            Form::Upstream(_) => {}
        }
    }

    fn store_answer(&mut self, id: u64, answer: StoreAnswer<'_>, out: &mut Output) {
        match &mut self.form {
            Form::Json(client) => client.store_answer(id, answer, out),
            Form::Words(client) => client.store_answer(id, answer, out),
            // They ask nothing of the store.
            Form::Pipes(_) | Form::PipeWorker(_) | Form::Upstream(_) | Form::Unknown => {}
        }
    }

    /// Writes down an answer.
    pub fn answer(&mut self, answer: &Answer, out: &mut Output) {
        match answer {
            Answer::Failed { id, code, message } => self.fail(*id, *code, message, out),
            // Not asked for by lines, but for the status, whose report comes by itself.
            Answer::Welcome
            | Answer::Pong(_)
            | Answer::Status { .. }
            | Answer::Raw(_)
            | Answer::Question(_) => {}
        }
    }

    /// Writes down what a page of the status report says.
    pub fn report(&mut self, id: u64, report: &Bytes, out: &mut Output) {
        if let Form::Words(client) = &mut self.form {
            client.report(id, report, out);
        }
    }

    /// Writes down why the connection ends.
    pub fn refuse(&mut self, refusal: &Refusal, out: &mut Output) {
        let (code, message) = (refusal.code, &*refusal.message);
        match &self.form {
            Form::Json(_) => json::error_line("null", code, message, out),
            Form::Pipes(_) | Form::PipeWorker(_) => pipes::error_line("", code, message, out),
            Form::Words(_) | Form::Unknown => words::error_line(code, message, out.buffer()),
            // A server is told nothing.
            Form::Upstream(_) => {}
        }
    }
}

/// Why a task failed, cut to the length that every dialect can pass on.
fn message_of(text: &str) -> Box<str> {
    let mut end = text.len().min(limits::MAX_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

/// The longest line taken, its end included, in bytes.
fn most_bytes(context: &Context) -> usize {
    usize::try_from(context.max_frame_bytes).unwrap_or(usize::MAX)
}

fn too_long_for(most: usize) -> Wrong {
    (ErrorCode::PayloadTooLarge, format!("the line is longer than {most} bytes").into())
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}
