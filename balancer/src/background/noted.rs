//! What the scheduler says about background tasks, kept until the event at hand is over.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::TaskState;

use crate::scheduler::{Effect, Effects, Note, Peer};
use crate::storage::{Failure, TaskId};

/// What the scheduler has said about a background task, kept until the event at hand is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Noted {
    Started(TaskId),
    Requeued(TaskId),
    Refused(TaskId),
    Retry { id: TaskId, attempts: u8, worker: Box<str>, message: Box<str>, delay: Option<Duration> },
    Ended { id: TaskId, attempts: u8, state: TaskState, failure: Option<Failure>, payload: Bytes },
    Claim { peer: Peer, id: TaskId },
}

impl Noted {
    /// What an effect says, if it is the keeper's.
    pub(crate) fn of(effect: &Effect<'_>) -> Option<Noted> {
        Some(match effect {
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
