//! What a balancer answers to a request, and into which value of the caller's it is turned.

use bytes::Bytes;
use reparto_protocol::ErrorCode;

use crate::background::{Accepted, Fetched, TaskStanding};
use crate::error::TaskFailure;

/// An answer that is no ERROR.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// RESULT: a task's result.
    Result(Bytes),
    /// STATUS_REPORT.
    Report(Bytes),
    /// TASK_LIST.
    List(Bytes),
    /// ACCEPTED.
    Accepted(Accepted),
    /// TASK_STATE, and the payload that describes the task.
    State(Box<(TaskStanding, Bytes)>),
}

/// What a request was answered, or why not.
pub(crate) type Replied = Result<Answer, TaskFailure>;

/// Which answers a request may get. Any may get an ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Result,
    /// ACCEPTED comes first, if the task is taken in.
    AcceptedThenResult,
    Accepted,
    Report,
    List,
    State,
    ResultOrState,
}

impl Expected {
    pub(crate) fn takes(self, answer: &Answer) -> bool {
        match answer {
            Answer::Result(_) => {
                matches!(self, Expected::Result | Expected::AcceptedThenResult | Expected::ResultOrState)
            }
            Answer::Accepted(_) => matches!(self, Expected::Accepted | Expected::AcceptedThenResult),
            Answer::Report(_) => self == Expected::Report,
            Answer::List(_) => self == Expected::List,
            Answer::State(_) => matches!(self, Expected::State | Expected::ResultOrState),
        }
    }
}

/// What a caller waits for.
pub(crate) trait FromReply: Sized + Send {
    fn from_reply(reply: Replied) -> Result<Self, TaskFailure>;
}

/// An answer that the books should not have let through.
fn unexpected() -> TaskFailure {
    TaskFailure::new(ErrorCode::Internal, "the balancer answered something else than was asked")
}

impl FromReply for Bytes {
    fn from_reply(reply: Replied) -> Result<Bytes, TaskFailure> {
        match reply? {
            Answer::Result(bytes) | Answer::Report(bytes) | Answer::List(bytes) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }
}

impl FromReply for Accepted {
    fn from_reply(reply: Replied) -> Result<Accepted, TaskFailure> {
        match reply? {
            Answer::Accepted(accepted) => Ok(accepted),
            _ => Err(unexpected()),
        }
    }
}

impl FromReply for TaskStanding {
    fn from_reply(reply: Replied) -> Result<TaskStanding, TaskFailure> {
        match reply? {
            Answer::State(state) => Ok(state.0),
            _ => Err(unexpected()),
        }
    }
}

impl FromReply for Fetched {
    fn from_reply(reply: Replied) -> Result<Fetched, TaskFailure> {
        use ErrorCode::{AttemptsExhausted, Cancelled, Expired, WorkerFailed};
        match reply {
            Ok(Answer::Result(result)) => Ok(Fetched::Ended(Ok(result))),
            Ok(Answer::State(state)) => Ok(Fetched::NotEnded(state.0)),
            Ok(_) => Err(unexpected()),
            // These are how a task ends; every other code says why the question has no answer.
            Err(failure)
                if matches!(failure.code, WorkerFailed | AttemptsExhausted | Cancelled | Expired) =>
            {
                Ok(Fetched::Ended(Err(failure)))
            }
            Err(failure) => Err(failure),
        }
    }
}

/// The payload that describes a task, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Description(pub(crate) Bytes);

impl FromReply for Description {
    fn from_reply(reply: Replied) -> Result<Description, TaskFailure> {
        match reply? {
            Answer::State(state) => Ok(Description(state.1)),
            _ => Err(unexpected()),
        }
    }
}
