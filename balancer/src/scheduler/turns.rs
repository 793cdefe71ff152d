//! Which action a worker is to serve, of those that it offers and that have tasks waiting.
//!
//! The action whose oldest task ranks highest says which priority is served; among the actions whose next tasks are
//! of that priority, the one that was served longest ago goes first. [`NextTurn`] finds one such action by looking at
//! all of them once; [`Turns`] finds one after the other for a worker that takes many tasks.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use reparto_protocol::limits::MAX_PRIORITY;

const PRIORITIES: usize = MAX_PRIORITY as usize + 1;

/// What an action's turn depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Of its oldest task; the smaller goes first.
    pub(super) rank: i128,
    /// Of its next task.
    pub(super) priority: u8,
    /// The number of the service that last took from it.
    pub(super) served: u64,
    pub(super) action: u32,
}

/// Says which priority is served: the first one's. Of equal ranks the higher priority goes first.
type ByRank = (i128, Reverse<u8>, u32);

/// Says which action of one priority is served: the first one.
type ByService = (u64, u32, i128);

impl Turn {
    fn by_rank(self) -> ByRank {
        (self.rank, Reverse(self.priority), self.action)
    }

    fn by_service(self) -> ByService {
        (self.served, self.action, self.rank)
    }
}

/// The action whose turn it is, found by looking at each once.
#[derive(Debug, Default)]
pub(super) struct NextTurn {
    oldest: Option<ByRank>,
    first: [Option<ByService>; PRIORITIES],
}

impl NextTurn {
    pub(super) fn add(&mut self, turn: Turn) {
        let oldest = self.oldest.get_or_insert(turn.by_rank());
        *oldest = turn.by_rank().min(*oldest);
        let first = self.first[usize::from(turn.priority)].get_or_insert(turn.by_service());
        *first = turn.by_service().min(*first);
    }

    pub(super) fn action(&self) -> Option<u32> {
        let (_, Reverse(priority), _) = self.oldest?;
        self.first[usize::from(priority)].map(|(_, action, _)| action)
    }
}

/// All actions that have a turn to come.
#[derive(Debug, Default)]
pub(super) struct Turns {
    by_rank: BTreeSet<ByRank>,
    by_service: [BTreeSet<ByService>; PRIORITIES],
}

impl Turns {
    /// Adds an action, which must not be among them.
    pub(super) fn add(&mut self, turn: Turn) {
        self.by_rank.insert(turn.by_rank());
        self.by_service[usize::from(turn.priority)].insert(turn.by_service());
    }

    /// Takes out the action whose turn it is.
    pub(super) fn take_next(&mut self) -> Option<u32> {
        let (_, Reverse(priority), _) = *self.by_rank.first()?;
        let (_, action, rank) = self.by_service[usize::from(priority)].pop_first()?;
        self.by_rank.remove(&(rank, Reverse(priority), action));
        Some(action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_at_all_and_one_after_the_other_find_the_same_actions() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut left: Vec<Turn> = (0..random.u32(1..50))
                .map(|action| Turn {
                    rank: random.i128(0..20),
                    priority: random.u8(..4),
                    served: random.u64(..10),
                    action,
                })
                .collect();
            let mut turns = Turns::default();
            left.iter().for_each(|turn| turns.add(*turn));
            while !left.is_empty() {
                let mut next = NextTurn::default();
                left.iter().for_each(|turn| next.add(*turn));
                let action = turns.take_next();
                assert_eq!(action, next.action(), "seed {seed}");
                left.retain(|turn| Some(turn.action) != action);
            }
            assert_eq!(turns.take_next(), None);
        }
    }
}
