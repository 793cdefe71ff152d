//! The walk over what is open in the store: which tasks are still to be brought into the scheduler's window.

use std::collections::HashSet;
use std::time::Duration;

use super::{Keeper, Pending};
use crate::scheduler::{Scheduler, Time};
use crate::storage::{MAX_PAGE, Query, TaskId};

/// Pages are asked for once there is room for so many tasks, or for a sixteenth of the window if that is less.
const LEAST_PAGE: usize = 1024;

/// How far the walk is.
///
/// It goes over the open tasks by their ids. What is left out behind it, because there was no room or it was not yet
/// to be run, is remembered by the smallest of those ids alone; when the walk has come to the end, it goes on from there.
#[derive(Debug)]
pub(super) struct Walk {
    /// There may be more from behind the cursor.
    active: bool,
    cursor: Option<TaskId>,
    /// The next page is the first of a walk, which must see all that was accepted before.
    first: bool,
    reading: bool,
    /// The smallest id that was left out behind the cursor.
    low: Option<TaskId>,
    /// Nothing is asked for before.
    not_before: Time,
    /// Tasks that have ended or were put off while a page was read, which may still show them as waiting.
    passed_over: HashSet<TaskId>,
    /// Until then tasks that were running are left to the workers that come back.
    claim_time: Duration,
    claims_until: Option<Time>,
    /// The smallest id among them.
    claimable: Option<TaskId>,
}

impl Walk {
    pub(super) fn new(claim_time: Duration) -> Walk {
        Walk {
            active: true,
            cursor: None,
            first: true,
            reading: false,
            low: None,
            not_before: Time(0),
            passed_over: HashSet::new(),
            claim_time,
            claims_until: None,
            claimable: None,
        }
    }

    /// A task stays in the store alone, and is to be found by the walk, not before a moment.
    pub(super) fn left_behind(&mut self, task: TaskId, not_before: Time) {
        self.low = Some(self.low.map_or(task, |low| low.min(task)));
        self.not_before = self.not_before.max(not_before);
    }

    /// What is being read may be wrong about this task.
    pub(super) fn pass_over(&mut self, task: TaskId) {
        if self.reading {
            self.passed_over.insert(task);
        }
    }

    pub(super) fn passes_over(&self, task: TaskId) -> bool {
        self.passed_over.contains(&task)
    }

    /// A task that was running: is it left for its worker to name? It is come back to afterwards.
    pub(super) fn leaves_to_claims(&mut self, task: TaskId, now: Time) -> bool {
        let until = *self.claims_until.get_or_insert(now.after(self.claim_time));
        if now >= until {
            return false;
        }
        self.claimable = Some(self.claimable.map_or(task, |least| least.min(task)));
        true
    }

    /// A page has come; `next` is where the one after it begins.
    pub(super) fn page_read(&mut self, next: Option<TaskId>) {
        self.reading = false;
        self.passed_over.clear();
        self.first = false;
        match next {
            Some(next) => self.cursor = Some(next),
            None => self.active = false,
        }
    }

    /// A page could not be had.
    pub(super) fn page_failed(&mut self, now: Time) {
        self.reading = false;
        self.passed_over.clear();
        self.not_before = now.after(Duration::from_secs(1));
    }

    /// Begins anew where something was left out, once the end is reached.
    fn turn_back(&mut self, now: Time) {
        if self.claims_until.is_some_and(|until| now >= until)
            && let Some(least) = self.claimable.take()
        {
            self.left_behind(least, now);
        }
        if !self.active
            && !self.reading
            && let Some(low) = self.low.take()
        {
            self.cursor = Some(TaskId(u128::from_be_bytes(low.0).saturating_sub(1).to_be_bytes()));
            (self.active, self.first) = (true, true);
        }
    }

    /// When there is next something to do that depends on the time alone.
    pub(super) fn next_time(&self, now: Time) -> Option<Time> {
        let claims = self.claims_until.filter(|_| self.claimable.is_some());
        let waits = (self.active || self.low.is_some()) && !self.reading && self.not_before > now;
        [claims, waits.then_some(self.not_before)].into_iter().flatten().min()
    }
}

impl Keeper {
    /// Asks for the next page of what is open, if there is room for it.
    pub(super) fn walk_on(&mut self, scheduler: &Scheduler, now: Time) {
        self.walk.turn_back(now);
        let may_read = self.walk.active && !self.walk.reading && now >= self.walk.not_before;
        if self.stopping || self.is_behind() || !may_read {
            return;
        }
        let (tasks, bytes) = scheduler.background();
        let room = self.settings.window_tasks.saturating_sub(tasks + self.loading.len());
        let least = LEAST_PAGE.min(self.settings.window_tasks.div_ceil(16));
        if room < least || bytes > self.settings.window_bytes / 2 {
            return;
        }
        let query =
            Query::OpenTasks { after: self.walk.cursor, limit: room.min(MAX_PAGE), settled: self.walk.first };
        match self.query(query, Pending::Page) {
            Ok(()) => {
                self.walk.reading = true;
                // What is on its way to the store may not be seen by the reader yet.
                for pending in self.pending.values() {
                    if let Pending::Record { task, .. } = pending {
                        self.walk.pass_over(*task);
                    }
                }
            }
            Err(_) => self.walk.not_before = now.after(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> TaskId {
        TaskId([number; 16])
    }

    #[test]
    fn the_walk_turns_back_to_the_first_that_was_left_behind() {
        let mut walk = Walk::new(Duration::from_secs(15));
        walk.left_behind(id(7), Time(0));
        walk.left_behind(id(5), Time(0));
        walk.page_read(Some(id(9)));
        walk.turn_back(Time(1));
        assert_eq!((walk.active, walk.cursor, walk.first), (true, Some(id(9)), false));
        walk.page_read(None);
        assert!(!walk.active);
        walk.turn_back(Time(1));
        assert!(walk.active && walk.first && walk.cursor < Some(id(5)) && walk.cursor > Some(id(4)));
        walk.page_read(None);
        walk.turn_back(Time(1));
        assert!(!walk.active, "nothing is left behind");
    }

    #[test]
    fn what_was_running_is_come_back_to_once_workers_have_had_their_time() {
        let mut walk = Walk::new(Duration::from_secs(15));
        assert!(walk.leaves_to_claims(id(3), Time(1_000_000)));
        walk.page_read(None);
        walk.turn_back(Time(15_999_999));
        assert!(!walk.active);
        assert_eq!(walk.next_time(Time(2_000_000)), Some(Time(16_000_000)));
        walk.turn_back(Time(16_000_000));
        assert!(walk.active && walk.cursor < Some(id(3)));
        assert!(!walk.leaves_to_claims(id(3), Time(16_000_000)));
    }
}
