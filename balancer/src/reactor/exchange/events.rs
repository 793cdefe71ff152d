//! Events on their way from a front reactor to the scheduler.

use std::net::IpAddr;
use std::time::Duration;

use super::Batch;
use super::parts::{Part, Parts, Text};
use crate::background::Ask;
use crate::dialect::Asked;
use crate::scheduler::{
    AssignmentId, BackgroundId, Event, Finish, Peer, ProgressKind, Pull, Registration, Submission,
};

/// Rows whose memory an emptied batch keeps.
const KEPT_ROWS: usize = 32 * 1024;

/// What a front says.
#[derive(Debug)]
pub(crate) enum Said<'a> {
    /// An event for the scheduler.
    Event(Event<'a>),
    /// A client asks something of the store.
    Ask {
        /// Who.
        peer: Peer,
        /// What.
        ask: &'a Ask,
    },
    /// A peer asks for something that is looked up where the scheduler is.
    Asked {
        /// Who.
        peer: Peer,
        /// Its number for the question.
        id: u64,
        /// What.
        asked: &'a Asked,
    },
}

/// Events, in their order, and their peers as the scheduler knows them.
#[derive(Debug, Default)]
pub(crate) struct EventBatch {
    rows: Vec<Row>,
    parts: Parts,
    /// The actions of all registrations.
    actions: Vec<Text>,
    /// The tasks that all registrations name.
    held: Vec<BackgroundId>,
    /// What peers ask that is looked up where the scheduler is.
    asked: Vec<Asked>,
    /// What clients ask of the store.
    asks: Vec<Ask>,
    /// Bytes of payload in `asks`.
    ask_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Row {
    ClientJoined {
        peer: Peer,
    },
    Submit {
        peer: Peer,
        task: TaskRow,
    },
    Cancel {
        peer: Peer,
        id: u64,
    },
    Register {
        peer: Peer,
        registration: RegistrationRow,
    },
    Drain {
        peer: Peer,
        request: u64,
        resume: bool,
    },
    Finished {
        peer: Peer,
        assignment: AssignmentId,
        finish: FinishRow,
        service_ns: Option<u64>,
        payload: Part,
    },
    PullerJoined {
        peer: Peer,
        from: Option<IpAddr>,
    },
    Pull {
        peer: Peer,
        pull: PullRow,
    },
    Progress {
        peer: Peer,
        assignment: AssignmentId,
        kind: ProgressKind,
        done: u64,
        total: u64,
        payload: Part,
    },
    Heard {
        peer: Peer,
    },
    Gone {
        peer: Peer,
    },
    Shutdown {
        grace: Duration,
    },
    Asked {
        peer: Peer,
        id: u64,
        at: u32,
    },
    Ask {
        peer: Peer,
        at: u32,
    },
}

#[derive(Debug, Clone, Copy)]
struct TaskRow {
    id: u64,
    action: Text,
    payload: Part,
    key: Part,
    deadline: Option<Duration>,
    wait: Option<Duration>,
    priority: u8,
    max_attempts: u8,
    announced: bool,
}

#[derive(Debug, Clone, Copy)]
struct RegistrationRow {
    request: u64,
    worker_id: Text,
    threads: u32,
    window: u32,
    weight: u32,
    service_ns: Option<u64>,
    heartbeats: bool,
    /// From where to where its actions stand.
    actions: (u32, u32),
    /// The same of the tasks that it names.
    held: (u32, u32),
}

#[derive(Debug, Clone, Copy)]
enum PullRow {
    Name(Text),
    CanDo { action: Text, limit: Option<Duration> },
    CantDo { action: Text },
    Reset,
    Grab { form: u8 },
    Sleep,
}

#[derive(Debug, Clone, Copy)]
enum FinishRow {
    Done,
    Failed(Text),
    Retry(Text),
    NotRun,
}

/// Whom an event is from; `None` for the one that is from nobody.
pub(super) fn peer_of(event: &Event<'_>) -> Option<Peer> {
    match *event {
        Event::ClientJoined { peer }
        | Event::Submit { peer, .. }
        | Event::Cancel { peer, .. }
        | Event::Register { peer, .. }
        | Event::Drain { peer, .. }
        | Event::Finished { peer, .. }
        | Event::Progress { peer, .. }
        | Event::PullerJoined { peer, .. }
        | Event::Pull { peer, .. }
        | Event::Heard { peer }
        | Event::Gone { peer } => Some(peer),
        // What the store says is said where the scheduler is.
        Event::Shutdown { .. } | Event::Enter { .. } | Event::Withdraw { .. } | Event::Unclaimed { .. } => {
            None
        }
    }
}

impl EventBatch {
    /// Adds an event.
    #[inline]
    pub(crate) fn push(&mut self, event: &Event<'_>) {
        let row = match *event {
            Event::Submit { peer, ref task } => Row::Submit {
                peer,
                task: TaskRow {
                    id: task.id,
                    action: self.parts.add_text(task.action),
                    payload: self.parts.add_payload(task.payload),
                    key: self.parts.add(task.key),
                    deadline: task.deadline,
                    wait: task.wait,
                    priority: task.priority,
                    max_attempts: task.max_attempts,
                    announced: task.announced,
                },
            },
            Event::Finished { peer, assignment, finish, service_ns, payload } => Row::Finished {
                peer,
                assignment,
                finish: match finish {
                    Finish::Done => FinishRow::Done,
                    Finish::Failed(why) => FinishRow::Failed(self.parts.add_text(why)),
                    Finish::Retry(why) => FinishRow::Retry(self.parts.add_text(why)),
                    Finish::NotRun => FinishRow::NotRun,
                },
                service_ns,
                payload: self.parts.add_payload(payload),
            },
            ref other => self.rare_row(other),
        };
        self.rows.push(row);
    }

    /// The row of an event that comes far less often than tasks and their results.
    fn rare_row(&mut self, event: &Event<'_>) -> Row {
        match *event {
            Event::ClientJoined { peer } => Row::ClientJoined { peer },
            Event::Cancel { peer, id } => Row::Cancel { peer, id },
            Event::Register { peer, ref registration } => {
                Row::Register { peer, registration: self.registration_row(registration) }
            }
            Event::Drain { peer, request, resume } => Row::Drain { peer, request, resume },
            Event::Progress { peer, assignment, kind, done, total, payload } => {
                let payload = self.parts.add_payload(payload);
                Row::Progress { peer, assignment, kind, done, total, payload }
            }
            Event::PullerJoined { peer, from } => Row::PullerJoined { peer, from },
            Event::Pull { peer, pull } => Row::Pull { peer, pull: self.pull_row(pull) },
            // Two have rows of their own in `push`, and what the store says is said where the scheduler is: those
            // come here never.
            Event::Submit { peer, .. }
            | Event::Finished { peer, .. }
            | Event::Unclaimed { peer, .. }
            | Event::Heard { peer } => Row::Heard { peer },
            Event::Enter { .. } | Event::Withdraw { .. } => {
                Row::Heard { peer: Peer { index: u32::MAX, generation: 0 } }
            }
            Event::Gone { peer } => Row::Gone { peer },
            Event::Shutdown { grace } => Row::Shutdown { grace },
        }
    }

    fn pull_row(&mut self, pull: Pull<'_>) -> PullRow {
        match pull {
            Pull::Name(name) => PullRow::Name(self.parts.add_text(name)),
            Pull::CanDo { action, limit } => PullRow::CanDo { action: self.parts.add_text(action), limit },
            Pull::CantDo { action } => PullRow::CantDo { action: self.parts.add_text(action) },
            Pull::Reset => PullRow::Reset,
            Pull::Grab { form } => PullRow::Grab { form },
            Pull::Sleep => PullRow::Sleep,
        }
    }

    fn pull(&self, row: PullRow) -> Pull<'_> {
        match row {
            PullRow::Name(name) => Pull::Name(self.parts.text(name)),
            PullRow::CanDo { action, limit } => Pull::CanDo { action: self.parts.text(action), limit },
            PullRow::CantDo { action } => Pull::CantDo { action: self.parts.text(action) },
            PullRow::Reset => Pull::Reset,
            PullRow::Grab { form } => Pull::Grab { form },
            PullRow::Sleep => Pull::Sleep,
        }
    }

    fn registration_row(&mut self, registration: &Registration<'_>) -> RegistrationRow {
        let first = self.actions.len() as u32;
        let first_held = self.held.len() as u32;
        self.held.extend_from_slice(&registration.held);
        for action in &registration.actions {
            let text = self.parts.add_text(action);
            self.actions.push(text);
        }
        RegistrationRow {
            request: registration.request,
            worker_id: self.parts.add_text(registration.worker_id),
            threads: registration.threads,
            window: registration.window,
            weight: registration.weight,
            service_ns: registration.service_ns,
            heartbeats: registration.heartbeats,
            actions: (first, self.actions.len() as u32),
            held: (first_held, self.held.len() as u32),
        }
    }

    /// Adds a question.
    pub(crate) fn ask_about(&mut self, peer: Peer, id: u64, asked: Asked) {
        self.rows.push(Row::Asked { peer, id, at: self.asked.len() as u32 });
        self.asked.push(asked);
    }

    /// Adds what a client asks of the store.
    pub(crate) fn ask(&mut self, peer: Peer, ask: Ask) {
        self.rows.push(Row::Ask { peer, at: self.asks.len() as u32 });
        self.ask_bytes += ask.payload_bytes();
        self.asks.push(ask);
    }

    /// What stands at a place; `None` beyond the end.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<Said<'_>> {
        Some(Said::Event(match *self.rows.get(at)? {
            Row::Submit { peer, ref task } => Event::Submit {
                peer,
                task: Submission {
                    id: task.id,
                    action: self.parts.text(task.action),
                    payload: self.parts.payload(task.payload),
                    priority: task.priority,
                    deadline: task.deadline,
                    wait: task.wait,
                    key: self.parts.get(task.key),
                    max_attempts: task.max_attempts,
                    announced: task.announced,
                },
            },
            Row::Finished { peer, assignment, finish, service_ns, payload } => Event::Finished {
                peer,
                assignment,
                finish: match finish {
                    FinishRow::Done => Finish::Done,
                    FinishRow::Failed(why) => Finish::Failed(self.parts.text(why)),
                    FinishRow::Retry(why) => Finish::Retry(self.parts.text(why)),
                    FinishRow::NotRun => Finish::NotRun,
                },
                service_ns,
                payload: self.parts.payload(payload),
            },
            Row::ClientJoined { peer } => Event::ClientJoined { peer },
            Row::Cancel { peer, id } => Event::Cancel { peer, id },
            Row::Register { peer, ref registration } => {
                Event::Register { peer, registration: self.registration(registration) }
            }
            Row::Drain { peer, request, resume } => Event::Drain { peer, request, resume },
            Row::Progress { peer, assignment, kind, done, total, payload } => {
                Event::Progress { peer, assignment, kind, done, total, payload: self.parts.payload(payload) }
            }
            Row::PullerJoined { peer, from } => Event::PullerJoined { peer, from },
            Row::Pull { peer, pull } => Event::Pull { peer, pull: self.pull(pull) },
            Row::Heard { peer } => Event::Heard { peer },
            Row::Gone { peer } => Event::Gone { peer },
            Row::Shutdown { grace } => Event::Shutdown { grace },
            Row::Ask { peer, at } => return Some(Said::Ask { peer, ask: &self.asks[at as usize] }),
            Row::Asked { peer, id, at } => {
                return Some(Said::Asked { peer, id, asked: &self.asked[at as usize] });
            }
        }))
    }

    fn registration(&self, row: &RegistrationRow) -> Registration<'_> {
        let (first, end) = row.actions;
        let (first_held, end_held) = row.held;
        Registration {
            request: row.request,
            worker_id: self.parts.text(row.worker_id),
            threads: row.threads,
            window: row.window,
            weight: row.weight,
            service_ns: row.service_ns,
            heartbeats: row.heartbeats,
            held: self.held[first_held as usize..end_held as usize].to_vec(),
            actions: self.actions[first as usize..end as usize]
                .iter()
                .map(|action| self.parts.text(*action))
                .collect(),
        }
    }
}

impl Batch for EventBatch {
    #[inline]
    fn size(&self) -> (usize, usize) {
        (self.rows.len(), self.parts.len() + self.ask_bytes)
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.rows.shrink_to(KEPT_ROWS);
        self.actions.clear();
        self.actions.shrink_to(KEPT_ROWS);
        self.held.clear();
        self.held.shrink_to(KEPT_ROWS);
        self.asked.clear();
        self.asked.shrink_to(KEPT_ROWS);
        self.asks.clear();
        self.asks.shrink_to(KEPT_ROWS);
        self.ask_bytes = 0;
        self.parts.clear();
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
