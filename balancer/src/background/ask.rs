//! What clients ask of the store, as it goes from a dialect to the keeper, perhaps from one reactor to another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{TaskState, limits};

/// A request that the store has a part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Take a task in.
    Submit(Box<NewBackgroundTask>),
    /// What became of a task?
    Fetch {
        /// The client's number for the request.
        id: u64,
        /// Which task.
        task: [u8; 16],
        /// How long to wait for its end.
        wait: Duration,
        /// All that is known, at once.
        describe: bool,
    },
    /// Cancel a task.
    Cancel {
        /// The client's number for the request.
        id: u64,
        /// Which task.
        task: [u8; 16],
    },
    /// Give a dead task its attempts anew.
    Retry {
        /// The client's number for the request.
        id: u64,
        /// Which task.
        task: [u8; 16],
    },
    /// Forget an ended task.
    Drop {
        /// The client's number for the request.
        id: u64,
        /// Which task.
        task: [u8; 16],
    },
    /// List tasks, the newest first.
    List {
        /// The client's number for the request.
        id: u64,
        /// Only this action's.
        action: Option<Box<str>>,
        /// Only those in this state.
        state: Option<TaskState>,
        /// Only those taken in then or later, in milliseconds since 1970.
        since_ms: Option<u64>,
        /// Where the page before ended.
        before: Option<[u8; 16]>,
        /// Tasks to give at most.
        limit: u32,
    },
}

/// A task for the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackgroundTask {
    /// The client's number for it.
    pub id: u64,
    /// It lives with its client, who is told its end.
    pub record: bool,
    /// What to do.
    pub action: Arc<str>,
    /// What to do it with.
    pub payload: Bytes,
    /// 0 to 9, higher goes first.
    pub priority: u8,
    /// Attempts before it is dead.
    pub max_attempts: u8,
    /// Time within which it must end.
    pub deadline: Option<Duration>,
    /// Time before it may begin.
    pub delay: Option<Duration>,
    /// When it may begin, in milliseconds since 1970.
    pub start_at_ms: Option<u64>,
    /// Time before its second attempt, in milliseconds.
    pub backoff_first_ms: u32,
    /// Longest time between two attempts, in milliseconds.
    pub backoff_most_ms: u32,
    /// What keeps it from being taken in twice; empty for nothing.
    pub idempotency_key: Bytes,
    /// How long that key stands for it.
    pub idempotency_window: Duration,
    /// What its worker is told as its key; empty for none. Tasks of one action and key are one while they are alive,
    /// unless the key begins with a NUL.
    pub key: Bytes,
}

impl NewBackgroundTask {
    /// A task with the usual options.
    pub fn new(id: u64, action: impl Into<Arc<str>>, payload: Bytes) -> Self {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        NewBackgroundTask {
            id,
            record: false,
            action: action.into(),
            payload,
            priority: limits::DEFAULT_PRIORITY,
            max_attempts: limits::DEFAULT_MAX_ATTEMPTS,
            deadline: None,
            delay: None,
            start_at_ms: None,
            backoff_first_ms: millis(limits::DEFAULT_BACKOFF_FIRST),
            backoff_most_ms: millis(limits::DEFAULT_BACKOFF_MOST),
            idempotency_key: Bytes::new(),
            idempotency_window: limits::DEFAULT_IDEMPOTENCY,
            key: Bytes::new(),
        }
    }
}

impl Ask {
    /// The client's number for the request.
    pub fn id(&self) -> u64 {
        match self {
            Ask::Submit(task) => task.id,
            Ask::Fetch { id, .. }
            | Ask::Cancel { id, .. }
            | Ask::Retry { id, .. }
            | Ask::Drop { id, .. }
            | Ask::List { id, .. } => *id,
        }
    }

    /// Bytes of payload that it brings.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Ask::Submit(task) => task.payload.len() + task.key.len(),
            _ => 0,
        }
    }
}
