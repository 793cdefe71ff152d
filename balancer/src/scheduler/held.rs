//! What a worker holds, in the order in which it was given.
//!
//! Workers mostly end what they hold in about the order in which they were given it. So attempts stand in a ring: what
//! ends at either end is taken out, and what ends between is only passed over, until so much of that has gathered that
//! the ring is gone through once. No row but the ended one's is touched for it, as neighbours' links would be.

use std::collections::VecDeque;

use super::AssignmentId;
use super::task::{Place, Tasks};

/// Ended attempts that may stand between the others, beside as many as those are.
const MOST_ENDED: usize = 64;

/// A ring of no more places than this, which are 32 KiB, is kept when nothing is held any more.
const KEPT_PLACES: usize = 4096;

/// What a worker holds.
#[derive(Debug)]
pub(super) struct Held {
    /// Attempts as they were given, the oldest first; ended ones may stand among them.
    given: VecDeque<AssignmentId>,
    /// Those that have not ended.
    count: usize,
}

/// Whether a worker still has an attempt. No two attempts have the same number.
fn has_not_ended(tasks: &Tasks, assignment: AssignmentId) -> bool {
    tasks
        .get(assignment.task())
        .is_some_and(|task| task.attempt_tag == assignment.tag() && matches!(task.place(), Place::Held(_)))
}

impl Held {
    pub(super) fn new() -> Self {
        Held { given: VecDeque::new(), count: 0 }
    }

    /// Adds an attempt, the newest.
    #[inline]
    pub(super) fn add(&mut self, assignment: AssignmentId) {
        self.given.push_back(assignment);
        self.count += 1;
    }

    /// Takes an attempt out, which is about to end. The rows are those before that.
    #[inline]
    pub(super) fn remove(&mut self, tasks: &Tasks, assignment: AssignmentId) {
        self.count -= 1;
        if self.given.front() == Some(&assignment) {
            self.given.pop_front();
        } else if self.given.back() == Some(&assignment) {
            self.given.pop_back();
        }
        if self.given.len() > self.count || self.count == 0 {
            self.pass_over(tasks, assignment);
        }
    }

    /// Lets go of ended attempts: of those at the ends at once, of the others when they have become many.
    fn pass_over(&mut self, tasks: &Tasks, ending: AssignmentId) {
        let ended = |other: &AssignmentId| *other == ending || !has_not_ended(tasks, *other);
        while self.given.front().is_some_and(ended) {
            self.given.pop_front();
        }
        while self.given.back().is_some_and(ended) {
            self.given.pop_back();
        }
        if self.given.len() > 2 * self.count + MOST_ENDED {
            self.given.retain(|other| !ended(other));
        }
        if self.given.is_empty() && self.given.capacity() > KEPT_PLACES {
            self.given = VecDeque::new();
        }
    }

    /// The tasks, the oldest first.
    pub(super) fn tasks<'t>(&'t self, rows: &'t Tasks) -> impl DoubleEndedIterator<Item = u32> + 't {
        self.given.iter().filter(|given| has_not_ended(rows, **given)).map(|given| given.task())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows and what a worker holds of them.
    struct Bench {
        rows: Tasks,
        held: Held,
        tag: u32,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { rows: Tasks::new(), held: Held::new(), tag: 0 }
        }

        fn give(&mut self) -> AssignmentId {
            self.tag += 1;
            let (index, row) = self.rows.add();
            row.attempt_tag = self.tag;
            row.put(Place::Held(0));
            let assignment = AssignmentId::new(self.tag, index);
            self.held.add(assignment);
            assignment
        }

        fn end(&mut self, assignment: AssignmentId) {
            self.held.remove(&self.rows, assignment);
            self.rows.vacate(assignment.task());
        }

        fn now(&self) -> Vec<u32> {
            self.held.tasks(&self.rows).collect()
        }
    }

    #[test]
    fn what_is_held_stands_in_the_order_it_was_given_however_it_ends() {
        let mut random = fastrand::Rng::with_seed(5);
        for order in 0..3 {
            let (mut bench, mut expected) = (Bench::new(), Vec::new());
            for _ in 0..20_000 {
                if expected.is_empty() || (expected.len() < 500 && random.bool()) {
                    expected.push(bench.give());
                } else {
                    let last = expected.len() - 1;
                    let at = [0, last, random.usize(0..=last)][order];
                    bench.end(expected.remove(at));
                }
                if random.u8(..20) == 0 {
                    assert_eq!(bench.now(), expected.iter().map(|given| given.task()).collect::<Vec<_>>());
                }
                assert!(bench.held.given.len() <= 2 * expected.len() + MOST_ENDED);
            }
        }
    }

    #[test]
    fn one_that_never_ends_does_not_let_the_ended_ones_gather() {
        let mut bench = Bench::new();
        let first = bench.give();
        for _ in 0..1000 {
            let (next, last) = (bench.give(), bench.give());
            bench.end(next);
            assert_eq!(bench.now(), [first.task(), last.task()]);
            bench.end(last);
            assert!(bench.held.given.len() <= 2 + MOST_ENDED, "{}", bench.held.given.len());
        }
        bench.end(first);
        assert!(bench.held.given.is_empty());
    }

    #[test]
    fn a_long_ring_is_freed_once_nothing_is_held() {
        let mut bench = Bench::new();
        let all: Vec<AssignmentId> = (0..3 * KEPT_PLACES).map(|_| bench.give()).collect();
        for assignment in all {
            bench.end(assignment);
        }
        assert!(bench.held.given.capacity() <= KEPT_PLACES, "{}", bench.held.given.capacity());
    }
}
