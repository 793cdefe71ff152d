//! What can go wrong between a raw driver and a server.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Why a raw client or worker could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RawError {
    /// The server does not take the connection.
    #[error("cannot connect to {address}: {source}; does the server listen there?")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A socket or thread failed.
    #[error("{what} failed: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server said nothing although answers were due.
    #[error("the server said nothing for {0:?} although answers were due")]
    Silent(Duration),
    /// The server answered with an error of its own.
    #[error("the server refused: {0}")]
    Refused(String),
    /// Bytes that the protocol does not know.
    #[error("the server sent what {protocol} does not know: {what}")]
    Malformed {
        /// The protocol's name.
        protocol: &'static str,
        /// What came.
        what: String,
    },
    /// A result of the wrong size.
    #[error("a result has {got} bytes, but its task had {sent}")]
    WrongSize {
        /// Bytes of the result's payload.
        got: usize,
        /// Bytes of the task's payload.
        sent: usize,
    },
    /// An answer for a task that is not in flight.
    #[error("an answer came for task {0}, which is not in flight: it was answered twice, or never sent")]
    Unasked(u64),
    /// A frame larger than any that was sent.
    #[error("the server sent a frame of more than {limit} bytes, more than was ever sent to it")]
    TooLong {
        /// Bytes that a frame can have.
        limit: usize,
    },
    /// A load that cannot be driven.
    #[error("{0}")]
    Load(String),
    /// The caller's flag was raised.
    #[error("interrupted")]
    Interrupted,
}

impl RawError {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> RawError {
        move |source| RawError::Io { what, source }
    }
}
