//! The native dialect: Reparto's own protocol, whose frames and messages are reparto-protocol's.
//!
//! ```text
//!  clients' listener:  HELLO ----------------> client
//!  workers' listener:  HELLO --> REGISTER ---> worker
//! ```

mod decode;
mod encode;
mod runs;
mod status;
#[cfg(test)]
mod tests;

pub(super) use decode::ask_store;
pub use encode::{answer, assign, assign_some, encode, refuse, report, result, result_some};
pub use runs::{Results, Tasks};
pub use status::report as status_report;

use super::{Listener, PeerKind};

/// What a peer has said so far, which says what it may say next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing: HELLO must come.
    New,
    /// HELLO, as a worker: REGISTER must come.
    Unregistered,
    /// HELLO, as a client.
    Client,
    /// HELLO and REGISTER.
    Worker,
}

/// A connection's state in the native dialect.
#[derive(Debug)]
pub struct Session {
    listener: Listener,
    state: State,
}

impl Session {
    /// The state of a connection that has just come to a listener.
    pub fn new(listener: Listener) -> Self {
        Session { listener, state: State::New }
    }

    /// What the peer is, which its listener says.
    #[inline]
    pub fn kind(&self) -> PeerKind {
        if self.listener == Listener::Workers { PeerKind::Worker } else { PeerKind::Client }
    }

    /// Whether HELLO and, from a worker, REGISTER have come.
    #[inline]
    pub fn joined(&self) -> bool {
        matches!(self.state, State::Client | State::Worker)
    }
}
