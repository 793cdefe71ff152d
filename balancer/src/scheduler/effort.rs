//! How long an action's tasks keep a worker, and so how much of its queue a client takes at a turn.
//!
//! Turns of few tasks are fair where a task takes long. Where it takes less than a microsecond, they only shuffle the
//! tasks of all clients into each other, and each worker's batch of results goes out in as many small pieces as there
//! are clients. So a turn is worth a stretch of time, within bounds.

use super::api::Time;

/// What a client may take at a turn at least, in bytes of cost; so it is while nothing is known.
pub(super) const LEAST_TURN: u64 = 8 * 1024;

/// The same at most.
const MOST_TURN: u64 = 32 * 1024;

/// What a task costs beside its payload, in bytes: a client of small tasks gets some 40 in the shortest turn.
pub(super) const TASK_COST: u64 = 128;

/// Between these bounds a turn keeps one worker for as long as this, in microseconds.
const TURN_US: u64 = 250;

/// With fewer tasks than this nothing is known.
const LEAST_TASKS: u64 = 64;

/// With so many, older ones begin to count less.
const MANY_TASKS: u64 = 4096;

/// Longer than this a worker may have had nothing to do between two results, in microseconds. Such a stretch counts as
/// this much.
const LONGEST_US: u64 = 10_000;

/// What is known of an action's tasks.
#[derive(Debug, Default)]
pub(super) struct Effort {
    /// Time that passed at workers until they gave these tasks' results, in microseconds.
    busy_us: u64,
    tasks: u64,
    /// When the last result came.
    at: Time,
    /// What a turn has beyond [`LEAST_TURN`].
    more: u64,
}

impl Effort {
    /// A worker has given the results of `tasks`, and its last ones before at `before`.
    ///
    /// What comes in the same moment counts as if it had come together: the turn changes only as time goes on.
    #[inline]
    pub(super) fn add(&mut self, now: Time, before: Time, tasks: u64) {
        if self.at != now {
            self.at = now;
            self.settle();
        }
        let passed = u64::try_from(now.since(before).as_micros()).unwrap_or(LONGEST_US);
        self.busy_us += passed.min(LONGEST_US);
        self.tasks += tasks;
    }

    fn settle(&mut self) {
        if self.tasks < LEAST_TASKS {
            return;
        }
        let worth = (TURN_US * self.tasks / self.busy_us.max(1)).saturating_mul(TASK_COST);
        self.more = worth.clamp(LEAST_TURN, MOST_TURN) - LEAST_TURN;
        if self.tasks >= MANY_TASKS {
            (self.busy_us, self.tasks) = (self.busy_us / 2, self.tasks / 2);
        }
    }

    /// What a client may take at a turn, in bytes of cost.
    #[inline]
    pub(super) fn turn(&self) -> u64 {
        LEAST_TURN + self.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that gives `batches` of so many results, each after so many microseconds.
    fn after(effort: &mut Effort, batches: u64, tasks: u64, us: u64) -> u64 {
        for _ in 0..batches {
            let before = effort.at;
            effort.add(Time(before.0 + us), before, tasks);
        }
        effort.turn()
    }

    #[test]
    fn a_turn_is_short_while_nothing_is_known_and_where_tasks_take_long() {
        let mut effort = Effort::default();
        assert_eq!(effort.turn(), LEAST_TURN);
        assert_eq!(after(&mut effort, 60, 1, 1), LEAST_TURN);
        assert_eq!(after(&mut Effort::default(), 200, 1, 100), LEAST_TURN);
        assert_eq!(after(&mut Effort::default(), 200, 1, u64::from(u32::MAX)), LEAST_TURN);
    }

    #[test]
    fn a_turn_of_short_tasks_is_worth_a_quarter_of_a_millisecond_within_bounds() {
        let turn = after(&mut Effort::default(), 100, 100, 200);
        assert!((124 * TASK_COST..=125 * TASK_COST).contains(&turn), "{turn}");
        assert_eq!(after(&mut Effort::default(), 100, 100, 20), MOST_TURN);
        // Time that does not move at all.
        assert_eq!(after(&mut Effort::default(), 100, 100, 0), LEAST_TURN);
    }

    #[test]
    fn tasks_that_begin_to_take_long_make_turns_short_at_once_and_the_other_way_round_soon() {
        let mut effort = Effort::default();
        assert_eq!(after(&mut effort, 1000, 100, 20), MOST_TURN);
        assert_eq!(after(&mut effort, 5, 1, 10_000), LEAST_TURN);
        after(&mut effort, 10_000, 1, 10_000);
        assert_eq!(after(&mut effort, 400, 100, 20), MOST_TURN);
    }

    #[test]
    fn results_that_come_one_by_one_in_a_moment_count_as_if_they_had_come_together() {
        let (mut together, mut one_by_one) = (Effort::default(), Effort::default());
        for moment in 1..500 {
            let (now, before) = (Time(moment * 30), Time((moment - 1) * 30));
            together.add(now, before, 70);
            one_by_one.add(now, before, 1);
            for _ in 1..70 {
                one_by_one.add(now, now, 1);
                assert_eq!(one_by_one.turn(), together.turn());
            }
        }
        assert!(together.turn() > LEAST_TURN);
    }
}
