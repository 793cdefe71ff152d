//! Events whose parts a dialect had to put together: unescaped, joined, or looked up.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::limits;

use crate::scheduler::{AssignmentId, Event, Finish, Payload, Peer, Registration, Submission};

/// An event that owns its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnedEvent {
    /// [`Event::Submit`].
    Submit(OwnedTask),
    /// [`Event::Register`].
    Register(OwnedRegistration),
    /// [`Event::Finished`], with a result.
    Done {
        /// Which assignment.
        assignment: AssignmentId,
        /// The result.
        payload: Bytes,
    },
    /// [`Event::Finished`], failed for good.
    Failed {
        /// Which assignment.
        assignment: AssignmentId,
        /// Why.
        message: Box<str>,
        /// What the failure carries.
        payload: Bytes,
    },
}

/// A [`Submission`] that owns its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedTask {
    /// The session's number for it.
    pub id: u64,
    /// What to do.
    pub action: Box<str>,
    /// What to do it with.
    pub payload: Bytes,
    /// 0 to 9, higher goes first.
    pub priority: u8,
    /// Time within which it must end.
    pub deadline: Option<Duration>,
    /// Time that it may wait for its first assignment.
    pub wait: Option<Duration>,
    /// Its key; empty for none.
    pub key: Bytes,
    /// Attempts before it is dead.
    pub max_attempts: u8,
    /// Its client is told first whether it was taken.
    pub announced: bool,
}

impl OwnedTask {
    /// A task with the usual options.
    pub fn new(id: u64, action: impl Into<Box<str>>, payload: Bytes) -> Self {
        OwnedTask {
            id,
            action: action.into(),
            payload,
            priority: limits::DEFAULT_PRIORITY,
            deadline: None,
            wait: None,
            key: Bytes::new(),
            max_attempts: limits::DEFAULT_MAX_ATTEMPTS,
            announced: false,
        }
    }
}

/// A [`Registration`] that owns its parts, of a worker without heartbeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRegistration {
    /// Its id.
    pub worker_id: Box<str>,
    /// Tasks that it runs at once, and holds at most.
    pub threads: u32,
    /// What it can do.
    pub actions: Vec<Box<str>>,
}

impl OwnedEvent {
    /// The event, as one of this connection's.
    pub fn event(&self, peer: Peer) -> Event<'_> {
        match self {
            OwnedEvent::Submit(task) => Event::Submit {
                peer,
                task: Submission {
                    id: task.id,
                    action: &task.action,
                    payload: Payload::from(&task.payload),
                    priority: task.priority,
                    deadline: task.deadline,
                    wait: task.wait,
                    key: &task.key,
                    max_attempts: task.max_attempts,
                    announced: task.announced,
                },
            },
            OwnedEvent::Register(registration) => Event::Register {
                peer,
                registration: Registration {
                    request: 0,
                    worker_id: &registration.worker_id,
                    threads: registration.threads,
                    window: registration.threads,
                    weight: 1,
                    service_ns: None,
                    heartbeats: false,
                    actions: registration.actions.iter().map(|action| &**action).collect(),
                    held: Vec::new(),
                },
            },
            OwnedEvent::Done { assignment, payload } => Event::Finished {
                peer,
                assignment: *assignment,
                finish: Finish::Done,
                service_ns: None,
                payload: Payload::from(payload),
            },
            OwnedEvent::Failed { assignment, message, payload } => Event::Finished {
                peer,
                assignment: *assignment,
                finish: Finish::Failed(message),
                service_ns: None,
                payload: Payload::from(payload),
            },
        }
    }
}
