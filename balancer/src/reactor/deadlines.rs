//! When to look at a connection again. One lazy entry a connection, however often its own deadlines change.
//!
//! A connection's deadlines (HELLO, a whole frame, a write's progress, a closing's end) move with every read
//! and write. So the heap only holds the moment when it must next be looked at; what is due is found out then.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::scheduler::{Peer, Time};

/// Nothing is planned.
pub(super) const NEVER: Time = Time(u64::MAX);

/// The connections to be looked at, soonest first.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<(Time, Peer)>>,
}

impl Deadlines {
    /// Plans to look at a connection at `at`, unless `planned`, which is what it has in the heap, is as soon.
    pub(super) fn plan(&mut self, peer: Peer, planned: &mut Time, at: Time) {
        if at < *planned {
            *planned = at;
            self.heap.push(Reverse((at, peer)));
        }
    }

    /// When the next one is to be looked at.
    pub(super) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one that is to be looked at by `now`, with the moment that was planned. It is out of date when the
    /// connection has planned another since.
    pub(super) fn take_due(&mut self, now: Time) -> Option<(Time, Peer)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_only_for_a_sooner_moment() {
        let mut deadlines = Deadlines::default();
        let peer = Peer { index: 3, generation: 1 };
        let mut planned = NEVER;
        deadlines.plan(peer, &mut planned, Time(50));
        deadlines.plan(peer, &mut planned, Time(60));
        deadlines.plan(peer, &mut planned, Time(50));
        assert_eq!((planned, deadlines.heap.len()), (Time(50), 1));
        deadlines.plan(peer, &mut planned, Time(40));
        assert_eq!((planned, deadlines.next()), (Time(40), Some(Time(40))));
        assert_eq!(deadlines.take_due(Time(39)), None);
        assert_eq!(deadlines.take_due(Time(55)), Some((Time(40), peer)));
        assert_eq!(deadlines.take_due(Time(55)), Some((Time(50), peer)));
        assert_eq!(deadlines.take_due(Time(55)), None);
    }
}
