//! What can go wrong: before a task is handed in, while a balancer is looked for, and with the task itself.

use std::fmt;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

/// How a task ended when it gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct TaskFailure {
    /// Why, for programs. [`ErrorCode::ConnectionLost`] is said by this library, every other code by the balancer
    /// (or by this library for a task that never left it: `cancelled`, `expired`, `payload_too_large`).
    pub code: ErrorCode,
    /// Why, for people.
    pub message: String,
    /// What the worker's handler gave beside the sentence; mostly empty.
    pub payload: Bytes,
}

impl TaskFailure {
    /// A failure without a payload.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        TaskFailure { code, message: message.into(), payload: Bytes::new() }
    }
}

/// How a task ended: the result's bytes, or why there is none.
pub type TaskOutcome = Result<Bytes, TaskFailure>;

/// Why a task, or a question to the balancer, could not be handed in.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The builder was given no address.
    #[error("no balancer's address was given; name at least one, such as 127.0.0.1:8888")]
    NoAddress,
    /// None of the addresses led to a balancer.
    #[error(transparent)]
    NoBalancer(#[from] ConnectError),
    /// The task's frame would be larger than the balancer takes.
    #[error(
        "payload_too_large: a payload of {payload_bytes} bytes makes a frame of {frame_bytes} bytes, and the balancer \
         takes at most {limit_bytes}; send less in one task, or raise the balancer's limit"
    )]
    PayloadTooLarge {
        /// Bytes of the payload.
        payload_bytes: usize,
        /// Bytes of the whole frame, header and fields included.
        frame_bytes: usize,
        /// The balancer's limit for a frame, in bytes.
        limit_bytes: usize,
    },
    /// A part of a task, or a setting, is out of its range.
    #[error("{what} {why}")]
    Invalid {
        /// Which one: `the action`, `the priority`, ...
        what: &'static str,
        /// What is wrong with it, as words that end the sentence.
        why: String,
    },
    /// A bound on what may be in flight is reached; said only by the `try_` forms, the others wait.
    #[error("{what} has reached its bound of {limit}; wait for tasks to end")]
    Full {
        /// What is full.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The completion queue was closed for new tasks.
    #[error("the completion queue is closed and takes no more tasks")]
    QueueClosed,
    /// The balancer's status report, or what it tells of tasks, could not be read.
    #[error("the balancer's answer could not be read: {0}")]
    BadReport(String),
    /// The balancer answered the question with an error, or the connection was lost.
    #[error(transparent)]
    Refused(#[from] TaskFailure),
}

impl ClientError {
    /// Why, for programs: what the balancer said, or the code that comes nearest.
    pub fn code(&self) -> ErrorCode {
        match self {
            ClientError::Refused(failure) => failure.code,
            ClientError::PayloadTooLarge { .. } => ErrorCode::PayloadTooLarge,
            ClientError::NoBalancer(_) | ClientError::NoAddress => ErrorCode::ConnectionLost,
            ClientError::Invalid { .. } => ErrorCode::BadFrame,
            ClientError::Full { .. } => ErrorCode::QueueFull,
            ClientError::QueueClosed => ErrorCode::Cancelled,
            ClientError::BadReport(_) => ErrorCode::Internal,
        }
    }

    /// The same as a task's failure, for callers who report both alike.
    pub fn into_failure(self) -> TaskFailure {
        let code = self.code();
        if let ClientError::Refused(failure) = self {
            return failure;
        }
        let message = self.to_string();
        let name = format!("{code}: ");
        TaskFailure::new(code, message.strip_prefix(&name).unwrap_or(&message))
    }
}

/// No balancer could be reached: every address that was tried, and what happened there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    /// One entry an address, in the order in which they were tried.
    pub attempts: Vec<ConnectAttempt>,
}

/// One address that was tried in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectAttempt {
    /// The address, as it was given.
    pub address: String,
    /// What happened.
    pub failure: ConnectFailure,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, attempt) in self.attempts.iter().enumerate() {
            let begin = if position == 0 { "no balancer at " } else { ", nor at " };
            write!(f, "{begin}{} ({})", attempt.address, attempt.failure)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

/// Why an address led to no balancer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// The address is not a host and a port, or the host's name is not known.
    #[error("the address could not be resolved: {0}")]
    Resolve(String),
    /// Nobody answers there, or the connection broke.
    #[error("{0}")]
    Io(std::io::ErrorKind),
    /// Someone took the connection and did not say WELCOME in time.
    #[error("it took the connection, but did not greet within {0} ms")]
    NoGreeting(u128),
    /// It closed the connection instead of greeting.
    #[error("it closed the connection instead of greeting")]
    Closed,
    /// It greets, but not in Reparto's protocol.
    #[error("it does not speak Reparto's protocol: {0}")]
    Protocol(String),
    /// It is a balancer, and will not have this client.
    #[error("it refused: {code}: {message}")]
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
}

impl ConnectFailure {
    /// Trying again will not help: the client itself is not wanted.
    pub(crate) fn is_final(&self) -> bool {
        use ErrorCode::{Forbidden, Unauthorized, UnsupportedVersion};
        matches!(self, ConnectFailure::Refused { code: Unauthorized | Forbidden | UnsupportedVersion, .. })
    }
}

impl From<std::io::Error> for ConnectFailure {
    fn from(error: std::io::Error) -> Self {
        ConnectFailure::Io(error.kind())
    }
}
