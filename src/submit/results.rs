//! Results on their way out: put in the order of their lines, and written as text or JSON.

use std::collections::VecDeque;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reparto_client::{Accepted, Client, ClientError, CompletionQueue, TaskBuilder, TaskFailure, TaskId};

use crate::client_side::printable;

/// Holds what lines gave back until every earlier line's is there.
#[derive(Debug)]
pub(super) struct Reorder<T> {
    /// The line that is to come out next, from 1.
    next: u64,
    held: VecDeque<Option<T>>,
}

impl<T> Reorder<T> {
    pub(super) fn new() -> Self {
        Reorder { next: 1, held: VecDeque::new() }
    }

    /// Takes what a line gave. Lines run ahead of the next one by no more than the window.
    pub(super) fn put(&mut self, line: u64, outcome: T) {
        let Some(position) = line.checked_sub(self.next) else { return };
        let position = position as usize;
        if self.held.len() <= position {
            self.held.resize_with(position + 1, || None);
        }
        self.held[position] = Some(outcome);
    }

    /// What the next line gave, if it is there.
    pub(super) fn take(&mut self) -> Option<T> {
        let outcome = self.held.front_mut()?.take()?;
        self.held.pop_front();
        self.next += 1;
        Some(outcome)
    }
}

/// A line's record in JSON.
#[derive(serde::Serialize)]
pub(super) struct Record<'a> {
    line: u64,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<TaskId>,
    /// Its idempotency key stood for this task already.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

/// What a line is to give: its task's result, or the id under which the task was accepted.
pub(super) trait LineOutcome: Sized + Send + 'static {
    /// A queue that gives such outcomes back.
    fn queue(client: &Client, capacity: usize) -> CompletionQueue<Self>;

    /// Submits a line's task, or says why it cannot be.
    fn submit(queue: &CompletionQueue<Self>, tag: u64, task: TaskBuilder<'_>) -> Result<(), ClientError>;

    /// Writes it as text, with a line break at its end.
    fn write_text(&self, output: &mut impl Write) -> io::Result<()>;

    /// Enters it in its line's record.
    fn enter<'a>(&'a self, record: &mut Record<'a>);
}

impl LineOutcome for Bytes {
    fn queue(client: &Client, capacity: usize) -> CompletionQueue {
        client.completion_queue(capacity)
    }

    fn submit(queue: &CompletionQueue, tag: u64, task: TaskBuilder<'_>) -> Result<(), ClientError> {
        queue.submit(tag, task)
    }

    /// As it is, and a line break unless it ends with one.
    fn write_text(&self, output: &mut impl Write) -> io::Result<()> {
        output.write_all(self)?;
        if self.ends_with(b"\n") { Ok(()) } else { output.write_all(b"\n") }
    }

    fn enter<'a>(&'a self, record: &mut Record<'a>) {
        match std::str::from_utf8(self) {
            Ok(text) => record.result = Some(text),
            Err(_) => record.result_base64 = Some(STANDARD.encode(self)),
        }
    }
}

impl LineOutcome for Accepted {
    fn queue(client: &Client, capacity: usize) -> CompletionQueue<Accepted> {
        client.accepted_queue(capacity)
    }

    fn submit(queue: &CompletionQueue<Accepted>, tag: u64, task: TaskBuilder<'_>) -> Result<(), ClientError> {
        queue.submit(tag, task)
    }

    fn write_text(&self, output: &mut impl Write) -> io::Result<()> {
        writeln!(output, "{}", self.task_id)
    }

    fn enter<'a>(&'a self, record: &mut Record<'a>) {
        record.status = "accepted";
        record.task_id = Some(self.task_id);
        record.duplicate = self.duplicate;
    }
}

/// Writes an outcome as a JSON object on a line of its own.
pub(super) fn write_json<T: LineOutcome>(
    output: &mut impl Write,
    line: u64,
    outcome: &Result<T, TaskFailure>,
) -> io::Result<()> {
    let mut record = Record {
        line,
        status: "done",
        result: None,
        result_base64: None,
        task_id: None,
        duplicate: false,
        error: None,
        code: None,
    };
    match outcome {
        Ok(given) => given.enter(&mut record),
        Err(failure) => {
            record.status = "error";
            record.error = Some(&failure.message);
            record.code = Some(failure.code.name());
        }
    }
    serde_json::to_writer(&mut *output, &record)?;
    output.write_all(b"\n")
}

/// The sentence that tells a line's failure. What follows a line break in it is indented.
pub(super) fn failure_sentence(line: u64, failure: &TaskFailure) -> String {
    let text = printable(&failure.to_string());
    format!("line {line}: {}", text.trim_end().replace('\n', "\n    "))
}

#[cfg(test)]
mod tests {
    use reparto_client::{ErrorCode, TaskOutcome};

    use super::*;

    fn json(line: u64, outcome: TaskOutcome) -> String {
        let mut output = Vec::new();
        write_json(&mut output, line, &outcome).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn outcomes_come_out_in_the_order_of_their_lines() {
        let mut reorder = Reorder::new();
        let mut out = Vec::new();
        for line in [3, 1, 2, 6, 5, 4] {
            reorder.put(line, line);
            out.extend(std::iter::from_fn(|| reorder.take()));
        }
        assert_eq!(out, [1, 2, 3, 4, 5, 6]);
        assert!(reorder.held.is_empty());
    }

    #[test]
    fn a_json_record_has_what_its_outcome_has_and_nothing_else() {
        assert_eq!(json(1, Ok("15\n".into())), "{\"line\":1,\"status\":\"done\",\"result\":\"15\\n\"}\n");
        let binary = json(2, Ok(vec![0xff, 0x00].into()));
        assert_eq!(binary, "{\"line\":2,\"status\":\"done\",\"result_base64\":\"/wA=\"}\n");
        let failure = TaskFailure::new(ErrorCode::WorkerFailed, "sum: 'x' is not a \"number\"");
        let expected =
            r#"{"line":3,"status":"error","error":"sum: 'x' is not a \"number\"","code":"worker_failed"}"#;
        assert_eq!(json(3, Err(failure)), format!("{expected}\n"));
    }

    #[test]
    fn an_accepted_task_is_recorded_with_its_id() {
        let id = "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7";
        let mut accepted = Accepted { task_id: id.parse().unwrap(), duplicate: false };
        let write = |accepted| {
            let mut output = Vec::new();
            write_json(&mut output, 1, &Ok::<Accepted, _>(accepted)).unwrap();
            String::from_utf8(output).unwrap()
        };
        let expected = format!("{{\"line\":1,\"status\":\"accepted\",\"task_id\":\"{id}\"}}\n");
        assert_eq!(write(accepted), expected);
        accepted.duplicate = true;
        assert!(write(accepted).contains(",\"duplicate\":true}"));
        let mut text = Vec::new();
        accepted.write_text(&mut text).unwrap();
        assert_eq!(text, format!("{id}\n").into_bytes());
    }

    #[test]
    fn a_result_as_text_ends_with_exactly_one_line_break_of_ours() {
        let text = |result: &'static [u8]| {
            let mut output = Vec::new();
            Bytes::from_static(result).write_text(&mut output).unwrap();
            output
        };
        assert_eq!(text(b"15"), b"15\n");
        assert_eq!(text(b"15\n"), b"15\n");
        assert_eq!(text(b""), b"\n");
        assert_eq!(text(b"\xff"), b"\xff\n");
    }

    #[test]
    fn a_failure_names_its_line_and_stays_harmless() {
        let failure = TaskFailure::new(ErrorCode::WorkerFailed, "exit code 2:\n\x1b[2Jcannot open\n");
        let sentence = failure_sentence(7, &failure);
        assert_eq!(sentence, "line 7: worker_failed: exit code 2:\n    \\u{1b}[2Jcannot open");
    }
}
