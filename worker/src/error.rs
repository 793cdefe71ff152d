//! What can go wrong beside the tasks themselves: a setting that cannot be, and a connection that ended.

use std::io;
use std::time::Duration;

use reparto_protocol::{ErrorCode, FrameError, limits};

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The id is empty or too long.
    #[error("a worker's id has 1 to {most} bytes, this one has {bytes}", most = limits::MAX_WORKER_ID_BYTES)]
    Id {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A balancer's address is not of the form HOST:PORT.
    #[error("'{address}' is not an address of the form HOST:PORT, such as 127.0.0.1:8889")]
    Address {
        /// What was given.
        address: String,
    },
    /// A balancer was given twice; it would refuse the second connection, since both have one worker's id.
    #[error("the balancer {address} is given twice; give each one once")]
    DuplicateBalancer {
        /// Its address.
        address: String,
    },
    /// More balancers than a worker connects to.
    #[error("{count} balancers are given, and a worker connects to {most} at most", most = crate::MAX_BALANCERS)]
    BalancerCount {
        /// How many were given.
        count: usize,
    },
    /// A number is out of its range.
    #[error("{what} must be 1 to {most}, not {value}")]
    Range {
        /// Which number.
        what: &'static str,
        /// What was given.
        value: u64,
        /// The most that it may be.
        most: u64,
    },
    /// No actions, or more than the protocol can carry.
    #[error("a worker offers 1 to {most} actions, not {count}", most = limits::MAX_ACTIONS_PER_WORKER)]
    ActionCount {
        /// How many were given.
        count: usize,
    },
    /// An action's name is empty or too long.
    #[error("an action's name has 1 to {most} bytes, this one has {bytes}", most = limits::MAX_ACTION_BYTES)]
    ActionName {
        /// Its length in bytes.
        bytes: usize,
    },
}

/// Why [`Worker::run`](crate::Worker::run) or a change while it runs could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A setting that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system gives no more threads.
    #[error("no thread could be started for {purpose}: {source}; ask for fewer threads or raise the limit")]
    Thread {
        /// What for.
        purpose: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why there is no connection to a balancer, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The name has no address.
    #[error("its address could not be found: {0}")]
    Resolve(io::Error),
    /// Nobody accepts there.
    #[error("it could not be reached: {0}")]
    Connect(io::Error),
    /// It accepted, and did not greet in time.
    #[error("it did not answer HELLO within {} s; is that the balancer's address for workers?", .0.as_secs())]
    NoWelcome(Duration),
    /// It said no, or ended the connection and said why.
    #[error("it says {code}: {message}")]
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
    /// It is going away and has closed the connection.
    #[error("it went away: {0}")]
    GoneAway(String),
    /// It closed the connection without a word.
    #[error("it closed the connection")]
    Closed,
    /// Nothing came for too long.
    #[error("it was silent for {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// It took nothing of what was sent for too long.
    #[error("it has not read for {} s", .0.as_secs_f64())]
    NotReading(Duration),
    /// It makes answers faster than it reads them.
    #[error("it leaves {bytes} bytes of answers unread, over the limit of {limit}")]
    Unread {
        /// How many are waiting.
        bytes: usize,
        /// How many may.
        limit: usize,
    },
    /// What it sent is not a frame, or not one that may come here.
    #[error("it broke the protocol: {0}")]
    Protocol(#[from] FrameError),
    /// It gave more tasks than the worker's window.
    #[error("it gave {held} tasks to a worker whose window is {window}")]
    OverWindow {
        /// Tasks held.
        held: usize,
        /// Tasks that may be held.
        window: usize,
    },
    /// It gave more bytes of payload than a worker holds.
    #[error("it gave {bytes} bytes of payload that wait to be run, over the limit of {limit}")]
    OverBytes {
        /// Bytes that wait.
        bytes: usize,
        /// Bytes that may.
        limit: usize,
    },
    /// The names of the actions do not fit in its largest frame.
    #[error("the names of the actions make a frame of {bytes} bytes, over its limit of {limit}; offer fewer")]
    RegisterTooLarge {
        /// Bytes of the frame.
        bytes: usize,
        /// Its limit.
        limit: u32,
    },
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// The worker left by its own will.
    #[error("the worker left")]
    Left,
}

impl ConnectionError {
    /// The code for the ERROR frame that tells the balancer, when it is the balancer's doing.
    pub(crate) fn code_to_tell(&self) -> Option<ErrorCode> {
        match self {
            ConnectionError::Protocol(error) => Some(error.code()),
            ConnectionError::OverWindow { .. } | ConnectionError::OverBytes { .. } => {
                Some(ErrorCode::Overloaded)
            }
            _ => None,
        }
    }
}
