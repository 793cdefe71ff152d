//! The scheduler's effects on their way to a front reactor, with what else the first has to tell it.

use std::borrow::Cow;

use bytes::Bytes;
use mio::net::TcpStream;
use reparto_protocol::ErrorCode;

use super::Batch;
use super::parts::{Part, Parts, Text};
use crate::dialect::Listener;
use crate::scheduler::{
    Assignment, AssignmentId, BackgroundId, Effect, Peer, ProgressKind, Standing, StoreAnswer, Time,
};

/// Rows whose memory an emptied batch keeps.
const KEPT_ROWS: usize = 32 * 1024;

/// What a front is told.
#[derive(Debug)]
pub(crate) enum Told<'a> {
    /// An assignment, with its details.
    Assign(Peer, AssignmentId, Assignment<'a>),
    /// Any other effect.
    Effect(Effect<'a>),
    /// A page of the status report, for one who asked.
    Report(Peer, u64, Bytes),
}

/// Effects, in their order, and their peers as the front knows them; connections to look after; and how far the
/// balancer is in stopping. The connections come before the effects, the stopping after them.
#[derive(Debug, Default)]
pub(crate) struct EffectBatch {
    rows: Vec<Row>,
    parts: Parts,
    messages: Vec<Cow<'static, str>>,
    standings: Vec<Standing>,
    /// New connections, and the listeners they came to.
    pub(crate) connections: Vec<(TcpStream, Listener)>,
    /// The balancer stops.
    pub(crate) stopping: bool,
    /// The scheduler has stopped: nothing follows.
    pub(crate) stopped: bool,
}

#[derive(Debug, Clone, Copy)]
enum Row {
    Assign { peer: Peer, assignment: AssignmentId, details: AssignmentRow },
    CancelAssignment { peer: Peer, assignment: AssignmentId, recall: bool },
    Result { peer: Peer, id: u64, payload: Part },
    Fail { peer: Peer, id: u64, code: ErrorCode, message: u32, payload: Part },
    Progress { peer: Peer, id: u64, kind: ProgressKind, done: u64, total: u64, payload: Part },
    Created { peer: Peer, id: u64 },
    Refused { peer: Peer, id: u64, code: ErrorCode, message: u32 },
    NoTask { peer: Peer },
    Wake { peer: Peer },
    Acknowledge { peer: Peer, request: u64, window: u32 },
    Ping { peer: Peer },
    GoAway { peer: Peer },
    Close { peer: Peer, code: ErrorCode, message: u32 },
    Unwanted { peer: Peer, id: BackgroundId },
    Answer { peer: Peer, id: u64, answer: AnswerRow },
    Stopped,
    Report { peer: Peer, id: u64, report: Part },
}

#[derive(Debug, Clone, Copy)]
enum AnswerRow {
    Accepted {
        task: BackgroundId,
        duplicate: bool,
    },
    /// By its place in the batch's list of them.
    Standing {
        at: u32,
        payload: Part,
    },
    List {
        payload: Part,
    },
}

#[derive(Debug, Clone, Copy)]
struct AssignmentRow {
    action: Text,
    payload: Part,
    key: Part,
    /// Its id, if it is a background task; else nothing.
    task_id: Part,
    deadline: Option<Time>,
    /// For a pull worker.
    number: u64,
    attempt: u8,
    held: bool,
    form: u8,
}

/// Whom an effect is for; `None` for the one that is for nobody.
#[inline]
pub(crate) fn peer_mut<'a>(effect: &'a mut Effect<'_>) -> Option<&'a mut Peer> {
    match effect {
        Effect::Assign { peer, .. }
        | Effect::CancelAssignment { peer, .. }
        | Effect::Result { peer, .. }
        | Effect::Fail { peer, .. }
        | Effect::Progress { peer, .. }
        | Effect::Created { peer, .. }
        | Effect::Refused { peer, .. }
        | Effect::NoTask { peer }
        | Effect::Wake { peer }
        | Effect::Acknowledge { peer, .. }
        | Effect::Ping { peer }
        | Effect::GoAway { peer }
        | Effect::Unwanted { peer, .. }
        | Effect::Answer { peer, .. }
        | Effect::Close { peer, .. } => Some(peer),
        // A claim names a worker, and is for the keeper.
        Effect::Note { .. } | Effect::Claim { .. } | Effect::Stopped => None,
    }
}

impl EffectBatch {
    /// Adds an assignment with its details.
    #[inline]
    pub(crate) fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: &Assignment<'_>) {
        let details = AssignmentRow {
            action: self.parts.add_text(details.action),
            payload: self.parts.add_payload(details.payload),
            key: self.parts.add(details.key),
            task_id: self.parts.add(details.task_id.as_ref().map_or(&[], |id| id.as_slice())),
            deadline: details.deadline,
            number: details.number,
            attempt: details.attempt,
            held: details.held,
            form: details.form,
        };
        self.rows.push(Row::Assign { peer, assignment, details });
    }

    /// Adds an effect. An [`Effect::Assign`] has no details, and is left out: [`assign`](Self::assign) adds those.
    #[inline]
    pub(crate) fn push(&mut self, effect: Effect<'_>) {
        let row = match effect {
            Effect::Result { peer, id, payload } => {
                Row::Result { peer, id, payload: self.parts.add_payload(payload) }
            }
            Effect::Assign { .. } => return,
            other => self.rare_row(other),
        };
        self.rows.push(row);
    }

    /// The row of an effect that comes far less often than assignments and results.
    #[inline(never)]
    fn rare_row(&mut self, effect: Effect<'_>) -> Row {
        match effect {
            Effect::CancelAssignment { peer, assignment, recall } => {
                Row::CancelAssignment { peer, assignment, recall }
            }
            Effect::Fail { peer, id, code, message, payload } => {
                let message = self.add_message(message);
                Row::Fail { peer, id, code, message, payload: self.parts.add_payload(payload) }
            }
            Effect::Progress { peer, id, kind, done, total, payload } => {
                Row::Progress { peer, id, kind, done, total, payload: self.parts.add_payload(payload) }
            }
            Effect::Created { peer, id } => Row::Created { peer, id },
            Effect::Refused { peer, id, code, message } => {
                Row::Refused { peer, id, code, message: self.add_message(message) }
            }
            Effect::NoTask { peer } => Row::NoTask { peer },
            Effect::Wake { peer } => Row::Wake { peer },
            Effect::Acknowledge { peer, request, window } => Row::Acknowledge { peer, request, window },
            Effect::Ping { peer } => Row::Ping { peer },
            Effect::GoAway { peer } => Row::GoAway { peer },
            Effect::Close { peer, code, message } => {
                Row::Close { peer, code, message: self.add_message(message) }
            }
            Effect::Unwanted { peer, id } => Row::Unwanted { peer, id },
            Effect::Answer { peer, id, answer } => Row::Answer { peer, id, answer: self.answer_row(answer) },
            // The two with a peer have rows of their own in `push`, and come here never.
            Effect::Result { .. }
            | Effect::Assign { .. }
            | Effect::Note { .. }
            | Effect::Claim { .. }
            | Effect::Stopped => Row::Stopped,
        }
    }

    fn answer_row(&mut self, answer: StoreAnswer<'_>) -> AnswerRow {
        match answer {
            StoreAnswer::Accepted { task, duplicate } => AnswerRow::Accepted { task, duplicate },
            StoreAnswer::Standing { standing, payload } => {
                self.standings.push(standing);
                let at = (self.standings.len() - 1) as u32;
                AnswerRow::Standing { at, payload: self.parts.add_payload(payload) }
            }
            StoreAnswer::List { payload } => AnswerRow::List { payload: self.parts.add_payload(payload) },
        }
    }

    fn answer(&self, row: AnswerRow) -> StoreAnswer<'_> {
        match row {
            AnswerRow::Accepted { task, duplicate } => StoreAnswer::Accepted { task, duplicate },
            AnswerRow::Standing { at, payload } => StoreAnswer::Standing {
                standing: self.standings[at as usize],
                payload: self.parts.payload(payload),
            },
            AnswerRow::List { payload } => StoreAnswer::List { payload: self.parts.payload(payload) },
        }
    }

    fn add_message(&mut self, message: Cow<'static, str>) -> u32 {
        self.messages.push(message);
        (self.messages.len() - 1) as u32
    }

    /// Adds a page of the status report for one who asked.
    pub(crate) fn report(&mut self, peer: Peer, id: u64, report: Bytes) {
        let report = self.parts.share(report);
        self.rows.push(Row::Report { peer, id, report });
    }

    /// What stands at a place; `None` beyond the end.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<Told<'_>> {
        Some(Told::Effect(match *self.rows.get(at)? {
            Row::Assign { peer, assignment, ref details } => {
                let details = Assignment {
                    action: self.parts.text(details.action),
                    payload: self.parts.payload(details.payload),
                    attempt: details.attempt,
                    deadline: details.deadline,
                    key: self.parts.get(details.key),
                    task_id: self.parts.get(details.task_id).try_into().ok(),
                    held: details.held,
                    number: details.number,
                    form: details.form,
                };
                return Some(Told::Assign(peer, assignment, details));
            }
            Row::Result { peer, id, payload } => {
                Effect::Result { peer, id, payload: self.parts.payload(payload) }
            }
            Row::CancelAssignment { peer, assignment, recall } => {
                Effect::CancelAssignment { peer, assignment, recall }
            }
            Row::Fail { peer, id, code, message, payload } => {
                let (message, payload) = (self.message(message), self.parts.payload(payload));
                Effect::Fail { peer, id, code, message, payload }
            }
            Row::Progress { peer, id, kind, done, total, payload } => {
                Effect::Progress { peer, id, kind, done, total, payload: self.parts.payload(payload) }
            }
            Row::Created { peer, id } => Effect::Created { peer, id },
            Row::Refused { peer, id, code, message } => {
                Effect::Refused { peer, id, code, message: self.message(message) }
            }
            Row::NoTask { peer } => Effect::NoTask { peer },
            Row::Wake { peer } => Effect::Wake { peer },
            Row::Acknowledge { peer, request, window } => Effect::Acknowledge { peer, request, window },
            Row::Ping { peer } => Effect::Ping { peer },
            Row::GoAway { peer } => Effect::GoAway { peer },
            Row::Close { peer, code, message } => {
                Effect::Close { peer, code, message: self.message(message) }
            }
            Row::Unwanted { peer, id } => Effect::Unwanted { peer, id },
            Row::Answer { peer, id, answer } => Effect::Answer { peer, id, answer: self.answer(answer) },
            Row::Stopped => Effect::Stopped,
            Row::Report { peer, id, report } => {
                return Some(Told::Report(peer, id, self.parts.payload(report).to_bytes()));
            }
        }))
    }

    fn message(&self, at: u32) -> Cow<'static, str> {
        self.messages[at as usize].clone()
    }
}

impl Batch for EffectBatch {
    #[inline]
    fn size(&self) -> (usize, usize) {
        (self.rows.len(), self.parts.len())
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.rows.shrink_to(KEPT_ROWS);
        self.messages.clear();
        self.messages.shrink_to(KEPT_ROWS);
        self.standings.clear();
        self.standings.shrink_to(KEPT_ROWS);
        self.parts.clear();
        self.connections.clear();
        self.stopping = false;
        self.stopped = false;
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.connections.is_empty() && !self.stopping && !self.stopped
    }
}
