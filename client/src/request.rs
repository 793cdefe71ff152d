//! What a client asks of a balancer, borrowed while it is being sent, owned when it must be kept to be sent
//! later or again.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reparto_protocol::{FIELD_HEADER_BYTES, HEADER_BYTES, Message, Status, Task, TaskOptions, limits};

use crate::error::ClientError;

/// A task's payload: shared memory, or a slice that is copied when the task is handed in.
#[derive(Debug, Clone)]
pub(crate) enum Payload<'a> {
    Shared(Bytes),
    Slice(&'a [u8]),
}

impl Payload<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Shared(bytes) => bytes,
            Payload::Slice(bytes) => bytes,
        }
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Payload::Shared(bytes) => bytes.clone(),
            Payload::Slice(bytes) => Bytes::copy_from_slice(bytes),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct TaskRequest<'a> {
    pub(crate) action: Cow<'a, str>,
    pub(crate) payload: Payload<'a>,
    pub(crate) priority: Option<u8>,
    pub(crate) deadline: Option<Duration>,
    /// When the task must have ended, reckoned from the moment it was handed in.
    pub(crate) deadline_at: Option<Instant>,
    pub(crate) wait_limit: Option<Duration>,
    pub(crate) key: Option<Cow<'a, [u8]>>,
    pub(crate) max_attempts: Option<u8>,
    pub(crate) safe_to_repeat: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Request<'a> {
    Task(TaskRequest<'a>),
    /// A page of the status report.
    Status {
        offset: u32,
        limit: u32,
    },
}

impl<'a> Request<'a> {
    pub(crate) fn into_owned(self) -> Request<'static> {
        match self {
            Request::Status { offset, limit } => Request::Status { offset, limit },
            Request::Task(task) => Request::Task(TaskRequest {
                action: Cow::Owned(task.action.into_owned()),
                payload: Payload::Shared(task.payload.to_bytes()),
                key: task.key.map(|key| Cow::Owned(key.into_owned())),
                priority: task.priority,
                deadline: task.deadline,
                deadline_at: task.deadline_at,
                wait_limit: task.wait_limit,
                max_attempts: task.max_attempts,
                safe_to_repeat: task.safe_to_repeat,
            }),
        }
    }

    pub(crate) fn may_be_repeated(&self) -> bool {
        match self {
            Request::Task(task) => task.safe_to_repeat,
            Request::Status { .. } => true,
        }
    }

    /// It was not sent in time.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        matches!(self, Request::Task(TaskRequest { deadline_at: Some(at), .. }) if *at <= now)
    }

    pub(crate) fn payload(&self) -> Option<&Payload<'a>> {
        match self {
            Request::Task(task) => Some(&task.payload),
            Request::Status { .. } => None,
        }
    }

    /// Bytes of the whole frame, header and fields included.
    pub(crate) fn frame_bytes(&self) -> usize {
        let number_bytes = |bytes: usize, there: bool| if there { FIELD_HEADER_BYTES + bytes } else { 0 };
        match self {
            Request::Status { .. } => HEADER_BYTES + 2 * number_bytes(4, true),
            Request::Task(task) => {
                HEADER_BYTES
                    + FIELD_HEADER_BYTES
                    + task.action.len()
                    + number_bytes(1, task.priority.is_some())
                    + number_bytes(8, task.deadline.is_some())
                    + number_bytes(8, task.wait_limit.is_some())
                    + task.key.as_ref().map_or(0, |key| FIELD_HEADER_BYTES + key.len())
                    + number_bytes(1, task.max_attempts.is_some())
                    + task.payload.as_slice().len()
            }
        }
    }

    /// The message, without its payload: that is appended by itself.
    pub(crate) fn head(&self, id: u64, now: Instant) -> Message<'_> {
        match self {
            Request::Status { offset, limit } => {
                Message::Status(Status { id, offset: *offset, limit: *limit })
            }
            Request::Task(task) => Message::Task(Task {
                id,
                action: &task.action,
                options: TaskOptions {
                    priority: task.priority,
                    // What is left of the time, so that waiting for a connection counts.
                    deadline_ms: task.deadline_at.map(|at| millis(at.saturating_duration_since(now)).max(1)),
                    wait_ms: task.wait_limit.map(millis),
                    key: task.key.as_deref(),
                    max_attempts: task.max_attempts,
                    ..TaskOptions::default()
                },
                payload: &[],
            }),
        }
    }
}

impl TaskRequest<'_> {
    /// Checks every part against the protocol's limits, so that a mistake is told here and costs no connection.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let wrong = |what, why: String| Err(ClientError::Invalid { what, why });
        if self.action.is_empty() {
            return wrong("the action", "is empty; name what the task asks for, such as \"upper\"".into());
        }
        let bytes = self.action.len();
        if bytes > limits::MAX_ACTION_BYTES {
            return wrong("the action", format!("is {bytes} bytes long, over {}", limits::MAX_ACTION_BYTES));
        }
        if let Some(priority) = self.priority.filter(|priority| *priority > limits::MAX_PRIORITY) {
            return wrong("the priority", format!("is {priority}, over {}", limits::MAX_PRIORITY));
        }
        if self.max_attempts == Some(0) {
            return wrong("the number of attempts", "is 0; at least one is needed".into());
        }
        if let Some(key) = &self.key
            && !(1..=limits::MAX_KEY_BYTES).contains(&key.len())
        {
            return wrong(
                "the key",
                format!("is {} bytes long, not 1 to {}", key.len(), limits::MAX_KEY_BYTES),
            );
        }
        for (what, time) in [("the deadline", self.deadline), ("the wait limit", self.wait_limit)] {
            if time.is_some_and(|time| time > limits::MAX_TIME) {
                let days = limits::MAX_TIME.as_secs() / (24 * 3600);
                return wrong(what, format!("is over {days} days"));
            }
        }
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn the_reckoned_frame_size_is_the_encoded_one() {
        let second = Duration::from_secs(1);
        let full = Request::Task(TaskRequest {
            action: "upper".into(),
            payload: Payload::Slice(b"hola"),
            priority: Some(9),
            deadline: Some(second),
            deadline_at: Some(Instant::now() + second),
            wait_limit: Some(second),
            key: Some(Cow::Borrowed(b"key")),
            max_attempts: Some(2),
            safe_to_repeat: true,
        });
        let mut bare = full.clone();
        if let Request::Task(task) = &mut bare {
            (task.priority, task.deadline, task.deadline_at) = (None, None, None);
            (task.wait_limit, task.key, task.max_attempts) = (None, None, None);
        }
        for request in [full, bare, Request::Status { offset: 1, limit: 2 }] {
            let mut wire = BytesMut::new();
            let payload = request.payload().map_or(&[][..], Payload::as_slice);
            request.head(1, Instant::now()).encode_head(&mut wire, payload.len());
            assert_eq!(wire.len() + payload.len(), request.frame_bytes());
        }
    }
}
