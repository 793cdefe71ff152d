//! Pipes: fields with `|` between them, for clients and for workers.
//!
//! ```text
//!  client: TASK|task_id|data                        <- RESULT|task_id|result   ERROR|task_id|code|reason
//!  worker: REGISTER|worker_id|action,action|threads <- ACK|worker_id
//!          <- ASSIGN_TASK|task_id|data              TASK_RESULT|task_id|result  ERROR|task_id|reason
//! ```

use std::collections::{HashMap, HashSet};

use bytes::BufMut;
use foldhash::fast::RandomState;
use reparto_protocol::{ErrorCode, limits};

use super::escape::{escape, escape_payload};
use super::{Line, Wrong, check_action, failed, message_of, wrong};
use crate::dialect::{Context, Output, OwnedEvent, OwnedRegistration, OwnedTask, Step};
use crate::scheduler::{Assignment, AssignmentId, Payload};

/// Longest id that a client may give a task, in bytes.
const MOST_ID_BYTES: usize = 255;

/// Whether a first line is one of pipes: a word in capitals, and a pipe.
pub(super) fn is_pipe(line: &str) -> bool {
    line.split_once('|').is_some_and(|(word, _)| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    })
}

/// Writes down that something failed.
pub(super) fn error_line(id: &str, code: ErrorCode, reason: &str, out: &mut Output) {
    let out = out.buffer();
    out.put_slice(b"ERROR|");
    out.put_slice(id.as_bytes());
    out.put_slice(b"|");
    out.put_slice(code.name().as_bytes());
    out.put_slice(b"|");
    escape(reason.as_bytes(), out);
    out.put_slice(b"\n");
}

/// A client: what its tasks are called that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// By our own numbers, which begin at 1.
    ids: HashMap<u64, Box<str>, RandomState>,
    last: u64,
}

impl Client {
    /// Lines that are not answered.
    pub(super) fn pending(&self) -> usize {
        self.ids.len()
    }

    /// A number for a line that does not say what it is called.
    pub(super) fn stranger(&mut self) -> u64 {
        self.number("")
    }

    fn number(&mut self, id: &str) -> u64 {
        self.last += 1;
        self.ids.insert(self.last, id.into());
        self.last
    }

    /// Takes a line.
    pub(super) fn take<'a>(&mut self, context: &Context, line: Line<'a>) -> Step<'a> {
        let (word, rest) = line.text.split_once('|').unwrap_or((line.text, ""));
        if word != "TASK" {
            if line.text.is_empty() {
                return Step::Nothing;
            }
            let message = match word {
                "REGISTER" => "this connection has sent tasks, and cannot be a worker's; use another".into(),
                _ => format!("'{}' is no line of a client's; write TASK|task_id|data", shown(word)),
            };
            return failed(self.stranger(), wrong(message));
        }
        let (id, data) = match rest.split_once('|') {
            Some((id, data)) => (id, Some(data)),
            None => (rest, None),
        };
        if id.len() > MOST_ID_BYTES {
            let message = format!("the task's id has {} bytes, over the bound of {MOST_ID_BYTES}", id.len());
            return failed(self.stranger(), wrong(message));
        }
        let number = self.number(id);
        let Some(data) = data else { return failed(number, wrong("write TASK|task_id|data")) };
        match line.part(data).unescaped() {
            Ok(payload) => {
                let task = OwnedTask::new(number, &*context.lines_action, payload);
                Step::Owned(Box::new(OwnedEvent::Submit(task)))
            }
            Err(sentence) => failed(number, wrong(sentence)),
        }
    }

    /// Writes a result down.
    pub(super) fn result(&mut self, number: u64, payload: Payload<'_>, out: &mut Output) {
        let Some(id) = self.ids.remove(&number) else { return };
        out.buffer().put_slice(b"RESULT|");
        out.buffer().put_slice(id.as_bytes());
        out.buffer().put_slice(b"|");
        escape_payload(payload, out);
        out.buffer().put_slice(b"\n");
    }

    /// Writes a failure down.
    pub(super) fn fail(&mut self, number: u64, code: ErrorCode, message: &str, out: &mut Output) {
        let Some(id) = self.ids.remove(&number) else { return };
        error_line(&id, code, message, out);
    }
}

/// A worker: what it holds, by the numbers of its assignments, which are as many as its threads at most.
#[derive(Debug)]
pub(super) struct Worker {
    id: Box<str>,
    /// It offers several actions, so its tasks' ids name theirs.
    several_actions: bool,
    holds: HashSet<u64, RandomState>,
}

impl Worker {
    /// A worker whose registration could not be read.
    pub(super) fn stranger() -> Worker {
        Worker { id: "".into(), several_actions: false, holds: HashSet::default() }
    }

    /// A worker as its line describes it, and the step that registers it.
    pub(super) fn register<'a>(context: &Context, line: &str) -> Result<(Worker, Step<'a>), Wrong> {
        let registration = registration(context, line)?;
        let worker = Worker {
            id: registration.worker_id.clone(),
            several_actions: registration.actions.len() > 1,
            holds: HashSet::default(),
        };
        Ok((worker, Step::Owned(Box::new(OwnedEvent::Register(registration)))))
    }

    /// Takes a line.
    pub(super) fn take<'a>(&mut self, context: &Context, line: Line<'a>) -> Step<'a> {
        let (word, rest) = line.text.split_once('|').unwrap_or((line.text, ""));
        match word {
            "TASK_RESULT" | "ERROR" if !self.id.is_empty() => self.finished(word == "ERROR", line, rest),
            "REGISTER" => match Worker::register(context, line.text) {
                Ok((worker, step)) => {
                    // What it holds it holds on to.
                    self.id = worker.id;
                    self.several_actions = worker.several_actions;
                    step
                }
                Err(wrong) => failed(0, wrong),
            },
            "" => Step::Nothing,
            _ if self.id.is_empty() => {
                failed(0, wrong("write REGISTER|worker_id|action,action|threads first"))
            }
            _ => {
                let word = shown(word);
                failed(
                    0,
                    wrong(format!("'{word}' is no line of a worker's; write TASK_RESULT|task_id|result")),
                )
            }
        }
    }

    /// An assignment has ended.
    fn finished<'a>(&mut self, is_error: bool, line: Line<'a>, rest: &'a str) -> Step<'a> {
        let Some((id, data)) = rest.split_once('|') else {
            return failed(0, wrong("write TASK_RESULT|task_id|result, or ERROR|task_id|reason"));
        };
        let digits = id.split_once('/').map_or(id, |(digits, _)| digits);
        let Some(assignment) = digits.parse().ok().filter(|number| self.holds.remove(number)) else {
            let message = format!("this worker has no task '{}'", shown(id));
            return failed(0, (ErrorCode::NotFound, message.into()));
        };
        let assignment = AssignmentId(assignment);
        let event = match (line.part(data).unescaped(), is_error) {
            (Ok(payload), false) => OwnedEvent::Done { assignment, payload },
            (Ok(reason), true) => {
                let message = message_of(&String::from_utf8_lossy(&reason));
                OwnedEvent::Failed { assignment, message, payload: Default::default() }
            }
            (Err(sentence), _) => {
                let message = format!("its worker's answer cannot be read: {sentence}").into();
                OwnedEvent::Failed { assignment, message, payload: Default::default() }
            }
        };
        Step::Owned(Box::new(event))
    }

    /// Writes down that it is registered.
    pub(super) fn acknowledge(&self, out: &mut Output) {
        out.buffer().put_slice(b"ACK|");
        out.buffer().put_slice(self.id.as_bytes());
        out.buffer().put_slice(b"\n");
    }

    /// Writes an assignment down.
    pub(super) fn assign(&mut self, id: AssignmentId, details: &Assignment<'_>, out: &mut Output) {
        self.holds.insert(id.0);
        out.buffer().put_slice(format!("ASSIGN_TASK|{}", id.0).as_bytes());
        if self.several_actions {
            out.buffer().put_slice(b"/");
            out.buffer().put_slice(details.action.as_bytes());
        }
        out.buffer().put_slice(b"|");
        escape_payload(details.payload, out);
        out.buffer().put_slice(b"\n");
    }
}

/// What `REGISTER|worker_id|action,action|threads` says.
fn registration(context: &Context, line: &str) -> Result<OwnedRegistration, Wrong> {
    let mut fields = line.split('|').skip(1);
    let worker_id = fields.next().unwrap_or_default();
    let (actions, threads) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    if fields.next().is_some() {
        return Err(wrong("write REGISTER|worker_id|action,action|threads"));
    }
    if worker_id.is_empty() || worker_id.len() > limits::MAX_WORKER_ID_BYTES {
        let bound = limits::MAX_WORKER_ID_BYTES;
        return Err(wrong(format!(
            "the worker's id has {} bytes, and must have 1 to {bound}",
            worker_id.len()
        )));
    }
    let actions: Vec<Box<str>> = match actions {
        "" => vec![(*context.lines_action).into()],
        names => names
            .split(',')
            .map(|name| check_action(name.trim()).map(Box::from))
            .collect::<Result<_, Wrong>>()?,
    };
    if actions.len() > limits::MAX_ACTIONS_PER_WORKER {
        let bound = limits::MAX_ACTIONS_PER_WORKER;
        return Err(wrong(format!("{} actions are over the bound of {bound}", actions.len())));
    }
    let threads = match threads {
        "" => 1,
        number => {
            number.parse().ok().filter(|threads| (1..=limits::MAX_THREADS).contains(threads)).ok_or_else(
                || wrong(format!("'{}' threads: must be 1 to {}", shown(number), limits::MAX_THREADS)),
            )?
        }
    };
    Ok(OwnedRegistration { worker_id: worker_id.into(), threads, actions })
}

/// The beginning of a text, as far as it helps to find it.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}
