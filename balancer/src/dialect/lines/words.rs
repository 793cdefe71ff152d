//! Plain words, for people at a terminal and the shortest scripts: one answer a line, in the order asked.
//!
//! ```text
//!  upper hola        <- HOLA               bg upper hola  <- accepted TASK_ID
//!  nothing           <- error: CODE reason get TASK_ID    <- HOLA
//!  help              <- actions: upper ... quit
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use reparto_protocol::ErrorCode;
use serde::Deserialize;
use uuid::Uuid;

use super::escape::{escape, escape_payload};
use super::{Line, Wrong, check_action, failed, wrong};
use crate::background::{Ask, NewBackgroundTask};
use crate::dialect::native::ask_store;
use crate::dialect::{Answer, Context, Output, OwnedEvent, OwnedTask, Step};
use crate::scheduler::{Payload, StoreAnswer};

/// Most lines that are not answered yet. It is small, since answers wait for those before them.
const MOST_PENDING: usize = 1024;

/// Most bytes of answers that wait for those before them.
const MOST_HELD_BYTES: usize = 16 << 20;

/// How long `get` waits for a task's end.
const GET_WAIT: Duration = Duration::from_secs(30);

/// Actions that `help` names at most.
const MOST_NAMED: u32 = 1000;

/// Writes down that something failed.
pub(super) fn error_line(code: ErrorCode, message: &str, out: &mut BytesMut) {
    named_error(code.name(), message, out);
}

fn named_error(name: &str, message: &str, out: &mut BytesMut) {
    out.put_slice(b"error: ");
    out.put_slice(name.as_bytes());
    out.put_slice(b" ");
    escape(message.as_bytes(), out);
    out.put_slice(b"\n");
}

/// A client: the answers that it waits for, in their order.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// The oldest line's first: its answer, if that has come before it may go.
    answers: VecDeque<Option<Bytes>>,
    /// Lines that were answered before the oldest that was not. A line's number is its place among all, from 1.
    answered: u64,
    /// Bytes of answers that wait.
    held: usize,
}

impl Client {
    /// Lines that are not answered.
    pub(super) fn pending(&self) -> usize {
        self.answers.len()
    }

    /// Whether as many wait as may.
    pub(super) fn is_full(&self) -> bool {
        self.pending() >= MOST_PENDING
    }

    /// A number for a line, which will be answered in its turn.
    pub(super) fn ask(&mut self) -> u64 {
        self.answers.push_back(None);
        self.answered + self.answers.len() as u64
    }

    /// Takes a line.
    pub(super) fn take<'a>(&mut self, context: &Context, line: Line<'a>) -> Step<'a> {
        let (word, rest) = line.text.split_once(' ').unwrap_or((line.text, ""));
        match word {
            "" if line.text.trim_ascii().is_empty() => Step::Nothing,
            "quit" if rest.is_empty() => Step::End,
            "help" if rest.is_empty() => {
                let id = self.ask();
                Step::Answer(Answer::Status { id, offset: 0, limit: MOST_NAMED }, None)
            }
            "get" => {
                let id = self.ask();
                match Uuid::parse_str(rest.trim_ascii()) {
                    Ok(task) => {
                        let task = *task.as_bytes();
                        ask_store(context, Ask::Fetch { id, task, wait: GET_WAIT, describe: false })
                    }
                    Err(_) => failed(id, wrong("write: get TASK_ID, with an id as 'accepted' gave it")),
                }
            }
            "bg" => {
                let id = self.ask();
                let (action, payload) = rest.split_once(' ').unwrap_or((rest, ""));
                match task(id, line.part(payload), action) {
                    Ok(task) => {
                        let task = NewBackgroundTask::new(id, task.action, task.payload);
                        ask_store(context, Ask::Submit(Box::new(task)))
                    }
                    Err(wrong) => failed(id, wrong),
                }
            }
            action => {
                let id = self.ask();
                match task(id, line.part(rest), action) {
                    Ok(task) => Step::Owned(Box::new(OwnedEvent::Submit(task))),
                    Err(wrong) => failed(id, wrong),
                }
            }
        }
    }

    /// Writes a result down.
    pub(super) fn result(&mut self, id: u64, payload: Payload<'_>, out: &mut Output) {
        if self.is_next(id) {
            escape_payload(payload, out);
            out.buffer().put_slice(b"\n");
            return self.went(out);
        }
        let mut line = BytesMut::with_capacity(payload.len() + 1);
        escape(payload.as_slice(), &mut line);
        line.put_slice(b"\n");
        self.answer(id, line, out);
    }

    /// Writes a failure down.
    pub(super) fn fail(&mut self, id: u64, code: ErrorCode, message: &str, out: &mut Output) {
        let mut line = BytesMut::new();
        error_line(code, message, &mut line);
        self.answer(id, line, out);
    }

    /// Writes down what the store says.
    pub(super) fn store_answer(&mut self, id: u64, answer: StoreAnswer<'_>, out: &mut Output) {
        let mut line = BytesMut::new();
        match answer {
            StoreAnswer::Accepted { task, .. } => {
                line.put_slice(format!("accepted {}\n", Uuid::from_bytes(task)).as_bytes());
            }
            StoreAnswer::Standing { standing, .. } => {
                let message = format!("the task is {}; ask again", standing.state.name());
                named_error("not_ended", &message, &mut line);
            }
            // Lists are not asked for.
            StoreAnswer::List { .. } => line.put_slice(b"\n"),
        }
        self.answer(id, line, out);
    }

    /// Writes down which actions there are.
    pub(super) fn report(&mut self, id: u64, report: &Bytes, out: &mut Output) {
        #[derive(Deserialize)]
        struct Report {
            actions: Vec<Action>,
        }
        #[derive(Deserialize)]
        struct Action {
            name: String,
        }
        let mut line = BytesMut::from(&b"actions:"[..]);
        if let Ok(report) = serde_json::from_slice::<Report>(report) {
            for action in report.actions {
                line.put_slice(b" ");
                escape(action.name.as_bytes(), &mut line);
            }
        }
        line.put_slice(b"; write ACTION PAYLOAD, bg ACTION PAYLOAD, get TASK_ID, help, or quit\n");
        self.answer(id, line, out);
    }

    fn is_next(&self, id: u64) -> bool {
        id == self.answered + 1 && !self.answers.is_empty()
    }

    /// A line's answer has come: it goes out, if all before it have, or waits.
    fn answer(&mut self, id: u64, line: BytesMut, out: &mut Output) {
        if self.is_next(id) {
            out.buffer().put_slice(&line);
            return self.went(out);
        }
        let slot = id.checked_sub(self.answered + 1).and_then(|at| self.answers.get_mut(at as usize));
        let Some(slot) = slot.filter(|slot| slot.is_none()) else { return };
        let mut line = line;
        if self.held + line.len() > MOST_HELD_BYTES {
            let message = format!(
                "its answer of {} bytes came before those to earlier lines, and {} bytes of such wait already",
                line.len(),
                self.held
            );
            line.clear();
            error_line(ErrorCode::Overloaded, &message, &mut line);
        }
        self.held += line.len();
        out.keep_beside(line.len());
        *slot = Some(line.freeze());
    }

    /// The oldest line's answer went out, and with it those that have waited for it.
    fn went(&mut self, out: &mut Output) {
        self.answers.pop_front();
        self.answered += 1;
        while let Some(Some(line)) = self.answers.front_mut() {
            let line = std::mem::take(line);
            self.held -= line.len();
            out.drop_beside(line.len());
            out.payload(Payload::from(&line));
            self.answers.pop_front();
            self.answered += 1;
        }
    }
}

fn task(id: u64, payload: Line<'_>, action: &str) -> Result<OwnedTask, Wrong> {
    let action = check_action(action)?;
    Ok(OwnedTask::new(id, action, payload.unescaped().map_err(wrong)?))
}
