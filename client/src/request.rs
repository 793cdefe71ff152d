//! What a client asks of a balancer, borrowed while it is being sent, owned when it must be kept to be sent
//! later or again.

use std::borrow::Cow;
use std::time::Instant;

use reparto_protocol::{
    Cancel, DropTask, FIELD_HEADER_BYTES, Fetch, HEADER_BYTES, ListTasks, Message, RetryTask, Status,
    TaskState,
};

use crate::answer::Expected;
use crate::task_id::TaskId;
use crate::task_request::{Keep, Payload, TaskRequest, millis};

/// Bytes of a field that holds a task's id.
const TASK_ID_FIELD_BYTES: usize = FIELD_HEADER_BYTES + 16;

#[derive(Debug, Clone)]
pub(crate) enum Request<'a> {
    Task(TaskRequest<'a>),
    /// A page of the status report.
    Status {
        offset: u32,
        limit: u32,
    },
    /// The outcome of a task that is kept; if there is none yet, wait for it until a moment.
    Fetch {
        task_id: TaskId,
        wait_until: Option<Instant>,
    },
    /// Something about a task that is kept.
    Ask(Question, TaskId),
    List(ListRequest<'a>),
}

/// What is to be told of a task, or done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Describe,
    Cancel,
    Retry,
    Drop,
}

/// A page of the list of tasks.
#[derive(Debug, Clone)]
pub(crate) struct ListRequest<'a> {
    pub(crate) action: Option<Cow<'a, str>>,
    pub(crate) state: Option<TaskState>,
    pub(crate) since_ms: Option<u64>,
    pub(crate) before: Option<TaskId>,
    pub(crate) limit: u32,
}

impl<'a> Request<'a> {
    pub(crate) fn into_owned(self) -> Request<'static> {
        match self {
            Request::Task(task) => Request::Task(task.into_owned()),
            Request::Status { offset, limit } => Request::Status { offset, limit },
            Request::Fetch { task_id, wait_until } => Request::Fetch { task_id, wait_until },
            Request::Ask(question, task_id) => Request::Ask(question, task_id),
            Request::List(list) => Request::List(ListRequest {
                action: list.action.map(|action| Cow::Owned(action.into_owned())),
                state: list.state,
                since_ms: list.since_ms,
                before: list.before,
                limit: list.limit,
            }),
        }
    }

    /// It does no harm to send it a second time, when the connection was lost before the answer came. A task dropped
    /// twice would be answered as unknown, and one retried twice might get its attempts twice.
    pub(crate) fn may_be_repeated(&self) -> bool {
        match self {
            Request::Task(task) => task.may_be_repeated(),
            Request::Ask(question, _) => matches!(question, Question::Describe | Question::Cancel),
            Request::Status { .. } | Request::Fetch { .. } | Request::List(_) => true,
        }
    }

    /// Only a balancer with a store understands it.
    pub(crate) fn needs_store(&self) -> bool {
        match self {
            Request::Task(task) => task.keep != Keep::No,
            Request::Status { .. } => false,
            Request::Fetch { .. } | Request::Ask(..) | Request::List(_) => true,
        }
    }

    pub(crate) fn expected(&self) -> Expected {
        match self {
            Request::Task(task) => match task.keep {
                Keep::No => Expected::Result,
                Keep::Recorded => Expected::AcceptedThenResult,
                Keep::Background => Expected::Accepted,
            },
            Request::Status { .. } => Expected::Report,
            Request::Fetch { .. } => Expected::ResultOrState,
            Request::Ask(..) => Expected::State,
            Request::List(_) => Expected::List,
        }
    }

    /// It was not sent in time.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        matches!(self, Request::Task(TaskRequest { deadline_at: Some(at), .. }) if *at <= now)
    }

    pub(crate) fn payload(&self) -> Option<&Payload<'a>> {
        match self {
            Request::Task(task) => Some(&task.payload),
            _ => None,
        }
    }

    /// Bytes of the whole frame, header and fields included.
    pub(crate) fn frame_bytes(&self) -> usize {
        let field = |bytes: usize, there: bool| if there { FIELD_HEADER_BYTES + bytes } else { 0 };
        match self {
            Request::Task(task) => task.frame_bytes(),
            Request::Status { .. } => HEADER_BYTES + 2 * field(4, true),
            Request::Fetch { wait_until, .. } => {
                HEADER_BYTES + TASK_ID_FIELD_BYTES + field(8, wait_until.is_some())
            }
            Request::Ask(..) => HEADER_BYTES + TASK_ID_FIELD_BYTES,
            Request::List(list) => {
                HEADER_BYTES
                    + list.action.as_ref().map_or(0, |action| field(action.len(), true))
                    + field(1, list.state.is_some())
                    + field(8, list.since_ms.is_some())
                    + if list.before.is_some() { TASK_ID_FIELD_BYTES } else { 0 }
                    + field(4, true)
            }
        }
    }

    /// The message, without its payload: that is appended by itself.
    pub(crate) fn head(&self, id: u64, now: Instant) -> Message<'_> {
        match self {
            Request::Task(task) => task.head(id, now),
            Request::Status { offset, limit } => {
                Message::Status(Status { id, offset: *offset, limit: *limit })
            }
            Request::Fetch { task_id, wait_until } => {
                // What is left of the time, so that waiting for a connection counts.
                let wait_ms = wait_until.map_or(0, |until| millis(until.saturating_duration_since(now)));
                Message::Fetch(Fetch { id, task_id: task_id.to_bytes(), wait_ms, describe: false })
            }
            Request::Ask(question, task_id) => {
                let task_id = task_id.to_bytes();
                match question {
                    Question::Describe => Message::Fetch(Fetch { id, task_id, wait_ms: 0, describe: true }),
                    Question::Cancel => Message::Cancel(Cancel { id, task_id: Some(task_id), recall: false }),
                    Question::Retry => Message::RetryTask(RetryTask { id, task_id }),
                    Question::Drop => Message::DropTask(DropTask { id, task_id }),
                }
            }
            Request::List(list) => Message::ListTasks(ListTasks {
                id,
                action: list.action.as_deref(),
                state: list.state,
                since_ms: list.since_ms,
                before: list.before.map(TaskId::to_bytes),
                limit: list.limit,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytes::BytesMut;

    use super::*;
    use crate::task_request::KeptOptions;

    #[test]
    fn the_reckoned_frame_size_is_the_encoded_one() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        let task_id = TaskId::from_bytes([7; 16]);
        let mut full = TaskRequest {
            payload: Payload::Slice(b"hola"),
            priority: Some(9),
            deadline: Some(second),
            wait_limit: Some(second),
            key: Some(Cow::Borrowed(b"key")),
            max_attempts: Some(2),
            safe_to_repeat: true,
            ..TaskRequest::new("upper")
        };
        let mut kept = TaskRequest {
            keep: Keep::Background,
            kept_options: Some(Box::new(KeptOptions {
                delay: Some(second),
                delay_until: None,
                start_at: Some(SystemTime::now()),
                backoff: Some(second),
                max_backoff: Some(second),
                idempotency_key: Some(Cow::Borrowed(b"once")),
                idempotency_window: Some(second),
            })),
            ..TaskRequest::new("upper")
        };
        full.start_clocks(now);
        kept.start_clocks(now);
        let list = ListRequest { action: None, state: None, since_ms: None, before: None, limit: 1 };
        let requests = [
            Request::Task(full),
            Request::Task(kept),
            Request::Task(TaskRequest::new("upper")),
            Request::Status { offset: 1, limit: 2 },
            Request::Fetch { task_id, wait_until: Some(now + second) },
            Request::Fetch { task_id, wait_until: None },
            Request::Ask(Question::Describe, task_id),
            Request::Ask(Question::Cancel, task_id),
            Request::Ask(Question::Retry, task_id),
            Request::Ask(Question::Drop, task_id),
            Request::List(list.clone()),
            Request::List(ListRequest {
                action: Some("upper".into()),
                state: Some(TaskState::Dead),
                since_ms: Some(1),
                before: Some(task_id),
                ..list
            }),
        ];
        for request in requests {
            let mut wire = BytesMut::new();
            let payload = request.payload().map_or(&[][..], Payload::as_slice);
            request.head(1, now).encode_head(&mut wire, payload.len());
            assert_eq!(wire.len() + payload.len(), request.frame_bytes(), "{request:?}");
        }
    }
}
