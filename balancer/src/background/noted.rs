//! What the scheduler says about background tasks, and to the balancer's own parts among its clients and workers, kept
//! until the event at hand is over.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{ErrorCode, TaskState};

use crate::scheduler::{Assignment, AssignmentId, BackgroundId, Effect, Effects, Note, Peer, Time};
use crate::storage::{Failure, TaskId};

/// A task that a worker was given which is a part of the balancer itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) peer: Peer,
    pub(crate) action: Arc<str>,
    pub(crate) payload: Bytes,
    pub(crate) attempt: u8,
    pub(crate) deadline: Option<Time>,
    pub(crate) task_id: Option<BackgroundId>,
}

/// How a task has ended whose client is a part of the balancer itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    /// With a result.
    Done(Bytes),
    /// Without.
    Failed { code: ErrorCode, message: String, payload: Bytes },
}

/// What the scheduler has said about a background task, or to a part of the balancer itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Noted {
    Started(TaskId),
    Requeued(TaskId),
    Refused(TaskId),
    Retry {
        id: TaskId,
        attempts: u8,
        worker: Box<str>,
        message: Box<str>,
        delay: Option<Duration>,
    },
    Ended {
        id: TaskId,
        attempts: u8,
        state: TaskState,
        failure: Option<Failure>,
        payload: Bytes,
    },
    Claim {
        peer: Peer,
        id: TaskId,
    },
    Assigned(AssignmentId, Box<Assigned>),
    /// Nobody wants what it was given any more.
    Withdrawn {
        peer: Peer,
        assignment: AssignmentId,
    },
    /// It is asked whether it is there.
    Asked {
        peer: Peer,
    },
    Answered {
        id: u64,
        answered: Answered,
    },
    Progress {
        id: u64,
        done: u64,
        total: u64,
        payload: Bytes,
    },
}

impl Noted {
    /// A worker that is a part of the balancer itself is given a task.
    pub(crate) fn assigned(peer: Peer, assignment: AssignmentId, details: &Assignment<'_>) -> Noted {
        let Assignment { action, payload, attempt, deadline, task_id, .. } = *details;
        let payload = payload.to_bytes();
        let task = Assigned { peer, action: action.into(), payload, attempt, deadline, task_id };
        Noted::Assigned(assignment, Box::new(task))
    }

    /// What an effect says that is the keeper's, or said to a part of the balancer itself.
    pub(crate) fn of(effect: &Effect<'_>) -> Option<Noted> {
        Some(match effect {
            Effect::CancelAssignment { peer, assignment, recall: false } => {
                Noted::Withdrawn { peer: *peer, assignment: *assignment }
            }
            Effect::Ping { peer } => Noted::Asked { peer: *peer },
            Effect::Result { id, payload, .. } => {
                Noted::Answered { id: *id, answered: Answered::Done(payload.to_bytes()) }
            }
            Effect::Fail { id, code, message, payload, .. } => {
                let (message, payload) = (message.clone().into_owned(), payload.to_bytes());
                Noted::Answered { id: *id, answered: Answered::Failed { code: *code, message, payload } }
            }
            Effect::Progress { id, done, total, payload, .. } => {
                Noted::Progress { id: *id, done: *done, total: *total, payload: payload.to_bytes() }
            }
            Effect::Claim { peer, id } => Noted::Claim { peer: *peer, id: TaskId(*id) },
            Effect::Note { id, attempts, note } => {
                let (id, attempts) = (TaskId(*id), *attempts);
                match note {
                    Note::Started => Noted::Started(id),
                    Note::Requeued => Noted::Requeued(id),
                    Note::Refused => Noted::Refused(id),
                    Note::Retry { worker, message, delay } => Noted::Retry {
                        id,
                        attempts,
                        worker: worker.clone(),
                        message: message.clone(),
                        delay: *delay,
                    },
                    Note::Ended { state, failure, payload } => Noted::Ended {
                        id,
                        attempts,
                        state: *state,
                        failure: failure
                            .as_ref()
                            .map(|(code, message)| Failure::new(*code, message.clone().into_owned())),
                        payload: if *state == TaskState::Done { payload.to_bytes() } else { Bytes::new() },
                    },
                }
            }
            _ => return None,
        })
    }
}

/// Takes effects, and gives back what the scheduler has noted among them.
pub(crate) trait Outlet: for<'a> Effects<'a> {
    /// The oldest note that was not taken.
    fn take_note(&mut self) -> Option<Noted>;
}
