//! Why a balancer cannot start, or cannot go on.

use std::io;
use std::net::SocketAddr;

/// Why a balancer cannot start, or cannot go on. Its text says what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BalancerError {
    /// A listener cannot be had.
    #[error("cannot listen for {who} on {address}: {source}{}", hint(source, who))]
    Listen {
        /// `clients` or `workers`.
        who: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// A setting makes no sense, by itself or beside another.
    #[error("the setting {name} {reason}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What is wrong with it, as words that end the sentence.
        reason: String,
    },
    /// The store for background tasks cannot be opened.
    #[error("{0}")]
    Store(#[from] crate::storage::StoreError),
    /// The operating system's event queue failed.
    #[error("the event queue failed: {0}")]
    Poll(#[source] io::Error),
    /// A reactor's thread cannot be started.
    #[error("the thread of reactor {number} cannot be started: {source}. With fewer --reactors it may be")]
    Thread {
        /// Which, from 1.
        number: usize,
        /// What the operating system says.
        source: io::Error,
    },
    /// A reactor has ended before its time, and the balancer with it.
    #[error("reactor {number} has failed: {reason}")]
    Reactor {
        /// Which, from 1, the one with the scheduler.
        number: usize,
        /// How it ended.
        reason: String,
    },
}

fn hint(source: &io::Error, who: &str) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                ". Is another balancer running? Stop it, or try another port, such as --{who} 127.0.0.1:0"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(". No interface of this machine has that address; try --{who} 0.0.0.0:PORT")
        }
        io::ErrorKind::PermissionDenied => {
            format!(". Ports below 1024 need privileges; try a higher --{who} port")
        }
        _ => String::new(),
    }
}
