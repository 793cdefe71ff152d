//! What a worker tells its owner about its connections.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ConnectionError;

/// Something happened to a worker's connection, told to [`WorkerBuilder::on_event`](crate::WorkerBuilder::on_event).
///
/// Displayed it is a sentence for people.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The worker is registered there and takes tasks.
    Registered {
        /// The balancer's address, as it was given.
        balancer: String,
        /// Tasks that the balancer will let it hold at most.
        window: u32,
    },
    /// There was no registration. Another try follows.
    Refused {
        /// The balancer's address, as it was given.
        balancer: String,
        /// Why.
        error: Arc<ConnectionError>,
        /// Time until the next try.
        retry_in: Duration,
    },
    /// The worker was registered and no longer is. Another try follows.
    Lost {
        /// The balancer's address, as it was given.
        balancer: String,
        /// Why.
        error: Arc<ConnectionError>,
        /// Time until the next try.
        retry_in: Duration,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Registered { balancer, .. } => write!(f, "registered with the balancer at {balancer}"),
            Event::Refused { balancer, error, .. } => {
                write!(f, "not registered with the balancer at {balancer}: {error}")
            }
            Event::Lost { balancer, error, .. } => write!(f, "lost the balancer at {balancer}: {error}"),
        }
    }
}
