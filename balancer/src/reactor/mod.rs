//! The reactor: a mio event loop over every connection, around one scheduler; or several loops that share the
//! connections, around one scheduler all the same.
//!
//! A turn of the loop, which every connection that has something to say goes through at most once:
//!
//! ```text
//!            +---------------------- poll: until a socket, a timer or the handle says something
//!            v
//!      +-----------+   ready   +------------------------------------------------+
//!      |  events   |---------->| read once, 256 KiB at most, into one buffer    |
//!      +-----------+   list    |   decode a frame -> event -> scheduler         |
//!            ^                 |                     effects -> encode -> output |
//!            |                 |   ... until no whole frame is left             |
//!            |                 +------------------------------------------------+
//!            |                        | next connection, 1 MiB a turn at most
//!            |                        v
//!            |                 +--------------+     +-------------------------------------+
//!            +-----------------|  deadlines,  |---->| flush each touched connection:      |
//!                              |  timers      |     | one vectored write                  |
//!                              +--------------+     +-------------------------------------+
//! ```
//!
//! So batches come from load by themselves: one task in flight is read, assigned and written in one turn, and a
//! thousand that came together leave in one write a connection. A connection that has more to say than a turn
//! takes goes to the end of the ready list, so nobody waits for a flood longer than for a turn of each. Of those that
//! become ready together clients come before workers, so that a worker that asks finds their tasks.
//!
//! # What is bounded
//!
//! Every bound is in [`Settings`]. A peer that does not read is no longer read from (a client, past
//! `output_soft_bytes`), then closed (`output_hard_bytes`, `max_output_bytes`, `write_timeout`). Workers are read
//! from all the same: a worker that writes a result before it reads on would otherwise wait for us while we wait
//! for it, and what it can be sent is bounded by its credits. Incomplete frames share `max_incomplete_bytes`;
//! past it, whoever holds the most of it is closed, so that small frames are not hurt by large ones.
//!
//! # Where things are
//!
//! `net` holds the connections; `listener` accepts, `reading` reads and decodes, `effects` carries out what the
//! scheduler wants, `writing` flushes and closes, `upstreams` connects out, and `turn` puts them in order. The `Reactor` of `turn` is a `Net`
//! and a `decider`: an event goes to the decider, which gives its effects to the net as they come.
//!
//! # Several reactors
//!
//! The decider of the only reactor is the scheduler. Of several, the first's is a `hub` around the scheduler, and
//! each other one's is a `front`, a mailbox on the way to it. What they hand each other is in `exchange`, the bounds
//! that hold over all of them in `totals`, and `starting` puts them together and runs their threads. No reactor ever
//! waits for another: where a mailbox is full, whoever would fill it takes nothing more in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::Waker;

mod connection;
mod deadlines;
mod decider;
mod effects;
mod error;
pub(crate) mod exchange;
mod front;
mod hub;
mod large;
mod listener;
mod net;
mod read_buffer;
mod reading;
mod settings;
mod slab;
mod starting;
mod totals;
mod turn;
mod upstreams;
mod writing;

pub use error::BalancerError;
pub use settings::{MOST_REACTORS, Settings, raise_open_files_limit};

use crate::background::OpenedStore;
#[cfg(doc)]
use crate::background::StoreSettings;
use starting::Reactors;

/// A balancer that listens, and serves once [`run`](Self::run) is called.
#[derive(Debug)]
pub struct Balancer {
    clients: SocketAddr,
    workers: SocketAddr,
    lines: Box<[SocketAddr]>,
    gearman: Option<SocketAddr>,
    handle: Handle,
    reactors: Reactors,
}

impl Balancer {
    /// Opens the store, if there is to be one, and listens for clients and for workers. Those who connect are served
    /// once [`run`](Self::run) is called.
    ///
    /// Where another balancer leads the store, it waits until this one does; [`bind_with`](Self::bind_with) leaves
    /// the waiting to the caller.
    ///
    /// # Errors
    /// A setting that makes no sense, a store that cannot be opened, or an address that cannot be listened on.
    pub fn bind(settings: Settings) -> Result<Balancer, BalancerError> {
        settings.check()?;
        let store = match &settings.store {
            Some(store) => store.open(|_| {}, || true)?,
            None => None,
        };
        starting::bind(settings, store)
    }

    /// Listens for clients and for workers, with a store that was opened by [`StoreSettings::open`], or with none.
    ///
    /// # Errors
    /// A setting that makes no sense, or an address that cannot be listened on.
    pub fn bind_with(mut settings: Settings, store: Option<OpenedStore>) -> Result<Balancer, BalancerError> {
        settings.check()?;
        if store.is_none() {
            settings.store = None;
        }
        starting::bind(settings, store)
    }

    /// Where clients connect, with the port that was picked.
    pub fn clients_addr(&self) -> SocketAddr {
        self.clients
    }

    /// Where workers connect, with the port that was picked.
    pub fn workers_addr(&self) -> SocketAddr {
        self.workers
    }

    /// Where clients and workers connect that speak lines, with the ports that were picked.
    pub fn lines_addrs(&self) -> &[SocketAddr] {
        &self.lines
    }

    /// Where Gearman's clients and workers connect, if they may, with the port that was picked.
    pub fn gearman_addr(&self) -> Option<SocketAddr> {
        self.gearman
    }

    /// A handle to stop it with, from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until a handle says stop, and everything is answered and flushed.
    ///
    /// # Errors
    /// The operating system's event queue fails, or one of several reactors does; or another balancer has taken over,
    /// and this one was stopped in good order because of that.
    pub fn run(self) -> Result<(), BalancerError> {
        self.reactors.run()
    }
}

/// Stops a balancer, from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    waker: Arc<Waker>,
    shutdown: Arc<AtomicBool>,
}

impl Handle {
    /// Asks the balancer to stop: it accepts nobody any more, tells every peer, lets what runs end within its
    /// grace, answers the rest `shutting_down`, and returns from [`Balancer::run`]. Asking again changes nothing.
    pub fn shutdown(&self) {
        self.shutdown.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            log::error!("the balancer could not be woken to stop: {error}");
        }
    }

    /// Whether it was asked to stop.
    fn asked(&self) -> bool {
        self.shutdown.load(Ordering::Acquire)
    }
}
