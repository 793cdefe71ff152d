//! From effects to packets.

use reparto_protocol::ErrorCode;

use super::decode::PLAIN_FAILURE;
use super::handle::{Handle, number_of_assignment};
use super::packet::{Kind, put, put_error, put_header, put_with_payload};
use super::{Request, Session, key};
use crate::dialect::{Output, Refusal};
use crate::scheduler::{Assignment, AssignmentId, Effect, Payload, ProgressKind, Pulled, StoreAnswer};

use bytes::BufMut;

/// What a text command is answered when all is well.
const OK: &[u8] = b"OK\r\n";

/// The number of a job for its worker, if it was announced by one; else one of its assignment's own.
#[inline]
fn number_or_own(number: u64, assignment: AssignmentId) -> u64 {
    if number == 0 { number_of_assignment(assignment) } else { number }
}

impl Session {
    /// Writes an effect down; [`assign`](Self::assign) does it for assignments.
    pub fn encode(&mut self, effect: Effect<'_>, out: &mut Output) {
        match effect {
            Effect::Created { id, .. } => self.created_some(&mut std::iter::once(id), out),
            Effect::Refused { code, message, .. } => {
                put_error(out.buffer(), name_of(code), &format!("{}: {message}", code.name()));
            }
            Effect::Result { id, payload, .. } => self.result(id, payload, out),
            Effect::Fail { id, code, message, payload, .. } => match Request::of(id) {
                Some(request) => self.not_done(request, id, code, &message, out),
                None => self.failed(id, code, &message, payload, out),
            },
            Effect::Progress { id, kind, done, total, payload, .. } => {
                self.told(id, kind, (done, total), payload, out);
            }
            Effect::NoTask { .. } => put(out.buffer(), Kind::NoJob, &[]),
            Effect::Wake { .. } => put(out.buffer(), Kind::Noop, &[]),
            Effect::Close { code, message, .. } => self.refuse(&Refusal { code, message }, out),
            Effect::Answer { id, answer, .. } => self.store_answer(id, answer, out),
            // A worker whose job nobody wants any more is not told: it has no word for that. It goes on, and what it
            // says then is dropped.
            Effect::CancelAssignment { .. }
            | Effect::Acknowledge { .. }
            | Effect::Ping { .. }
            | Effect::GoAway { .. }
            | Effect::Unwanted { .. }
            | Effect::Assign { .. }
            | Effect::Note { .. }
            | Effect::Claim { .. }
            | Effect::Stopped => {}
        }
    }

    fn created(&self, handle: Handle, out: &mut Output) {
        let (prefix, buffer) = (&*self.shared.prefix, out.buffer());
        put_header(buffer, Kind::JobCreated, handle.len(prefix));
        handle.put(prefix, buffer);
    }

    /// Writes down that jobs were taken, all of whose numbers `ids` gives.
    #[inline]
    pub fn created_some(&mut self, ids: &mut impl Iterator<Item = u64>, out: &mut Output) {
        let head = self.heads.created(&self.shared.prefix);
        for id in ids {
            head.put(id, 0, out.buffer());
        }
    }

    /// Writes down assignments of one function that were asked for in the same form, all that `assignments` gives; as
    /// [`assign`](Self::assign) does each.
    #[inline]
    pub fn assign_pulled<'p>(
        &mut self,
        (action, form): (&str, u8),
        assignments: &mut impl Iterator<Item = Pulled<'p>>,
        out: &mut Output,
    ) {
        if form != 0 {
            return assignments.for_each(|Pulled { assignment, number, payload }| {
                let details = Assignment { number, form, ..Assignment::first(action, payload) };
                self.assign(assignment, &details, out);
            });
        }
        let head = self.heads.assign(&self.shared.prefix, action);
        for Pulled { assignment, number, payload } in assignments {
            let number = number_or_own(number, assignment);
            self.held.push_back((Handle::Number(number), assignment));
            head.put(number, payload.len(), out.buffer());
            out.payload(payload);
        }
    }

    /// Writes down results, all that `results` gives; as [`result`](Self::result) does each.
    #[inline]
    pub fn result_some<'p>(
        &mut self,
        results: &mut impl Iterator<Item = (u64, Payload<'p>)>,
        out: &mut Output,
    ) {
        for (id, payload) in results {
            if Request::of(id).is_some() {
                // It was asked how a job stands, and that has ended.
                self.unknown(id, out);
                continue;
            }
            self.heads.complete(&self.shared.prefix).put(id, payload.len(), out.buffer());
            out.payload(payload);
        }
    }

    /// Writes so many times down that there is no job.
    #[inline]
    pub fn no_task_some(&self, count: usize, out: &mut Output) {
        (0..count).for_each(|_| put_header(out.buffer(), Kind::NoJob, 0));
    }

    /// Writes an assignment down, in the form in which it was asked for.
    #[inline]
    pub fn assign(&mut self, id: AssignmentId, details: &Assignment<'_>, out: &mut Output) {
        let handle = match details.task_id {
            Some(task) => Handle::Task(task),
            None => Handle::Number(number_or_own(details.number, id)),
        };
        self.held.push_back((handle, id));
        let (unique, reducer) = key::parts(details.key);
        let (kind, told) = match details.form {
            0 => (Kind::JobAssign, &[][..]),
            2 if !reducer.is_empty() => (Kind::JobAssignAll, &[unique, reducer][..]),
            // Without a reducer there is no difference, and workers expect the shorter form.
            _ => (Kind::JobAssignUniq, &[unique][..]),
        };
        let (prefix, buffer) = (&*self.shared.prefix, out.buffer());
        let names = handle.len(prefix) + 1 + details.action.len() + 1;
        let told_bytes: usize = told.iter().map(|argument| argument.len() + 1).sum();
        put_header(buffer, kind, names + told_bytes + details.payload.len());
        handle.put(prefix, buffer);
        buffer.put_u8(0);
        for argument in [details.action.as_bytes()].iter().chain(told) {
            buffer.put_slice(argument);
            buffer.put_u8(0);
        }
        out.payload(details.payload);
    }

    /// Writes a result down.
    #[inline]
    pub fn result(&mut self, id: u64, payload: Payload<'_>, out: &mut Output) {
        self.result_some(&mut std::iter::once((id, payload)), out);
    }

    /// A job has failed. Why, only those are told who have asked for exceptions.
    fn failed(&self, id: u64, code: ErrorCode, message: &str, payload: Payload<'_>, out: &mut Output) {
        let handle = Handle::Number(id).text(&self.shared.prefix);
        let has_reason = !payload.is_empty() || message != PLAIN_FAILURE;
        if self.exceptions && code == ErrorCode::WorkerFailed && has_reason {
            let reason = if payload.is_empty() { Payload::new(message.as_bytes()) } else { payload };
            put_with_payload(out, Kind::WorkException, &[&handle], reason);
        } else {
            put(out.buffer(), Kind::WorkFail, &[&handle]);
        }
    }

    fn told(
        &self,
        id: u64,
        kind: ProgressKind,
        (done, total): (u64, u64),
        payload: Payload<'_>,
        out: &mut Output,
    ) {
        let handle = Handle::Number(id).text(&self.shared.prefix);
        match kind {
            ProgressKind::Data => put_with_payload(out, Kind::WorkData, &[&handle], payload),
            ProgressKind::Warning => put_with_payload(out, Kind::WorkWarning, &[&handle], payload),
            ProgressKind::Report => {
                let (done, total) = (done.to_string(), total.to_string());
                put(out.buffer(), Kind::WorkStatus, &[&handle, done.as_bytes(), total.as_bytes()]);
                if !payload.is_empty() {
                    put_with_payload(out, Kind::WorkData, &[&handle], payload);
                }
            }
        }
    }

    // ---- what the store says ----

    fn store_answer(&mut self, id: u64, answer: StoreAnswer<'_>, out: &mut Output) {
        match answer {
            StoreAnswer::Accepted { task, .. } => self.created(Handle::Task(task), out),
            StoreAnswer::Standing { standing, .. } => match Request::of(id) {
                Some(Request::Cancel) => out.buffer().put_slice(OK),
                _ => {
                    self.asked.retain(|(asked, _)| *asked != id);
                    let known = !standing.state.is_ended();
                    let runs = standing.state == reparto_protocol::TaskState::Running;
                    let (done, total) = if known { standing.progress } else { (0, 0) };
                    let handle = Handle::Task(standing.task).text(&self.shared.prefix);
                    let (done, total) = (done.to_string(), total.to_string());
                    let arguments = [&handle[..], flag(known), flag(runs), done.as_bytes(), total.as_bytes()];
                    put(out.buffer(), Kind::StatusRes, &arguments);
                }
            },
            StoreAnswer::List { .. } => {}
        }
    }

    /// What was asked of the store cannot be done.
    fn not_done(&mut self, request: Request, id: u64, code: ErrorCode, message: &str, out: &mut Output) {
        match request {
            Request::Status if code == ErrorCode::StoreUnavailable => {
                self.asked.retain(|(asked, _)| *asked != id);
                put_error(out.buffer(), name_of(code), &format!("{}: {message}", code.name()));
            }
            // Whatever became of it: it is no job any more.
            Request::Status => self.unknown(id, out),
            Request::Cancel => out.buffer().put_slice(b"ERR UNKNOWN_JOB\r\n"),
            Request::Submit => {
                put_error(out.buffer(), name_of(code), &format!("{}: {message}", code.name()));
            }
        }
    }

    /// Answers a question for a background job that has ended, or never was.
    fn unknown(&mut self, id: u64, out: &mut Output) {
        let Some(at) = self.asked.iter().position(|(asked, _)| *asked == id) else { return };
        let (_, task) = self.asked.swap_remove(at);
        let handle = Handle::Task(task).text(&self.shared.prefix);
        put(out.buffer(), Kind::StatusRes, &[&handle, b"0", b"0", b"0", b"0"]);
    }

    /// Writes down why the connection ends.
    pub fn refuse(&self, refusal: &Refusal, out: &mut Output) {
        let Refusal { code, message } = refusal;
        if self.speaks_text {
            let line = format!("ERR {} {message}\r\n", code.name().to_ascii_uppercase());
            out.buffer().put_slice(line.as_bytes());
        } else {
            put_error(out.buffer(), name_of(*code), &format!("{}: {message}", code.name()));
        }
    }
}

/// Yes or no.
pub(super) fn flag(yes: bool) -> &'static [u8] {
    if yes { b"1" } else { b"0" }
}

/// The code of Gearman's that comes nearest.
fn name_of(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::BadFrame => "INVALID_PACKET",
        ErrorCode::PayloadTooLarge => "ARGUMENT_TOO_LARGE",
        ErrorCode::TimedOut => "TIMEOUT",
        ErrorCode::ShuttingDown => "SHUTDOWN",
        _ => "QUEUE_ERROR",
    }
}
