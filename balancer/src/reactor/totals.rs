//! What all reactors hold together, so that the bounds hold over all of them.
//!
//! Each reactor counts its own, and tells the others once a turn. So a bound is kept without a shared counter that
//! every read and write would touch; it can be passed by what the reactors take in during one turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::exchange::Bell;
use crate::dialect::Listener;

/// What each reactor holds, by its number.
#[derive(Debug)]
pub(super) struct Totals {
    reactors: Vec<Held>,
}

/// What a reactor holds.
#[derive(Debug)]
struct Held {
    /// Connections by the kind of their listener, those on their way to it included.
    connections: [AtomicUsize; Listener::KINDS],
    /// Bytes of unwritten output.
    output: AtomicUsize,
    /// Bytes of unfinished frames.
    incomplete: AtomicUsize,
    bell: Arc<Bell>,
}

/// What the others hold, as one reactor knows it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Others {
    /// Bytes of unwritten output.
    pub(super) output: usize,
    /// Bytes of unfinished frames.
    pub(super) incomplete: usize,
}

impl Totals {
    /// For reactors that are woken with these.
    pub(super) fn new(bells: &[Arc<Bell>]) -> Totals {
        let held = |bell: &Arc<Bell>| Held {
            connections: Default::default(),
            output: AtomicUsize::new(0),
            incomplete: AtomicUsize::new(0),
            bell: Arc::clone(bell),
        };
        Totals { reactors: bells.iter().map(held).collect() }
    }

    /// How many reactors there are.
    pub(super) fn reactors(&self) -> usize {
        self.reactors.len()
    }

    /// Connections of all reactors.
    pub(super) fn connections(&self) -> usize {
        let counts = self.reactors.iter().flat_map(|held| &held.connections);
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The reactor that has the fewest connections of a kind; of equals the one with the fewest at all, then the
    /// first. So clients and workers are each spread evenly, whoever leaves.
    pub(super) fn least_busy(&self, listener: Listener) -> usize {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let least = self.reactors.iter().enumerate().min_by_key(|(_, held)| {
            let all: usize = held.connections.iter().map(count).sum();
            (count(&held.connections[listener.kind()]), all)
        });
        least.map_or(0, |(number, _)| number)
    }

    /// A connection belongs to a reactor from here on.
    pub(super) fn begin(&self, number: usize, listener: Listener) {
        self.reactors[number].connections[listener.kind()].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection of a reactor is over.
    pub(super) fn end(&self, number: usize, listener: Listener) {
        self.reactors[number].connections[listener.kind()].fetch_sub(1, Ordering::Relaxed);
    }

    /// A reactor tells what it holds, and learns what the others hold.
    pub(super) fn exchange(&self, number: usize, output: usize, incomplete: usize) -> Others {
        // In one order for all, so that of two who tell at the same time one at least learns of the other.
        self.reactors[number].output.store(output, Ordering::SeqCst);
        self.reactors[number].incomplete.store(incomplete, Ordering::SeqCst);
        let mut others = Others::default();
        for (_, held) in self.reactors.iter().enumerate().filter(|(other, _)| *other != number) {
            others.output += held.output.load(Ordering::SeqCst);
            others.incomplete += held.incomplete.load(Ordering::SeqCst);
        }
        others
    }

    /// Wakes those that hold their share, at least, of unfinished frames, which all together are `bytes`.
    pub(super) fn wake_holders(&self, bytes: usize) {
        for held in &self.reactors {
            if held.incomplete.load(Ordering::SeqCst).saturating_mul(self.reactors.len()) >= bytes {
                held.bell.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(reactors: usize) -> Totals {
        let bells: Vec<Arc<Bell>> = (0..reactors).map(|_| Arc::new(Bell::new(None))).collect();
        Totals::new(&bells)
    }

    #[test]
    fn clients_and_workers_are_each_spread_evenly_whoever_leaves() {
        let totals = totals(2);
        let come = |listener| {
            let number = totals.least_busy(listener);
            totals.begin(number, listener);
            number
        };
        let places: Vec<usize> = (0..4).map(|_| come(Listener::Clients)).collect();
        assert_eq!(places, [0, 1, 0, 1]);
        assert_eq!([come(Listener::Workers), come(Listener::Workers)], [0, 1]);
        totals.end(1, Listener::Clients);
        totals.end(1, Listener::Clients);
        assert_eq!(come(Listener::Workers), 1, "it has fewer of both together");
        assert_eq!([come(Listener::Clients), come(Listener::Clients)], [1, 1]);
        assert_eq!(totals.connections(), 7);
    }

    #[test]
    fn each_learns_what_the_others_hold() {
        let totals = totals(3);
        totals.exchange(0, 10, 1);
        totals.exchange(2, 30, 3);
        let others = totals.exchange(1, 20, 2);
        assert_eq!((others.output, others.incomplete), (40, 4));
    }
}
