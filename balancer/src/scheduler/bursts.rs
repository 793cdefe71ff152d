//! Bursts: tasks of one client and action that come in the same moment and take next to no time.
//!
//! Under `least_loaded` free threads fill first, wherever they are. For a task of a hundred nanoseconds that is a bad
//! bargain: the first task of a burst would wake one worker and the second another, each with a write of its own, and
//! what came together would come back in pieces. So such a burst stays with the worker that its first task went to, as
//! long as what that one has makes no difference ([`Worker::alike`](super::worker::Worker)). The next burst begins with
//! whoever is least loaded.

use super::choice::Pick;
use super::{Peer, Policy, Scheduler, Time};

/// Where a client's latest task of short ones went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Burst {
    at: Time,
    client: u32,
    action: u32,
    worker: u32,
    peer: Peer,
}

impl Scheduler {
    /// The worker that is next for a client's task of an action, if one has room.
    #[inline]
    pub(super) fn pick_for(&self, client: u32, action: u32) -> Option<Pick> {
        self.goes_on_at(client, action).or_else(|| self.choice.pick(&self.actions[action].offers))
    }

    #[inline]
    fn goes_on_at(&self, client: u32, action: u32) -> Option<Pick> {
        let burst = self.burst.as_ref()?;
        if (burst.at, burst.client, burst.action) != (self.now, client, action) {
            return None;
        }
        // It may be another worker's row by now.
        let row = self.workers.get(burst.worker).filter(|row| row.peer == burst.peer)?;
        if !row.keeps_bursts() || row.in_flight >= row.alike || !row.has_room() {
            return None;
        }
        self.choice.pick_this(&self.actions[action].offers, burst.worker, row)
    }

    /// A client's task of an action went to this worker.
    #[inline]
    pub(super) fn note_burst(&mut self, client: u32, action: u32, worker: u32) {
        let row = &self.workers[worker];
        if row.keeps_bursts() && self.config.policy == Policy::LeastLoaded {
            self.burst = Some(Burst { at: self.now, client, action, worker, peer: row.peer });
        }
    }
}
