//! A task's row: what is known of it, where it is, and who waits for it.

use super::api::Time;
use super::background::Background;
use super::payload::Kept;
use super::slab::{Link, List, NONE};
use super::wheel::NO_SLOT;

/// The list that a task's place gives it: its flow's queue, or what its worker holds, the oldest first.
#[derive(Debug)]
pub(super) struct PlaceLink;

/// The list of all tasks of one action and priority that wait, the oldest first.
#[derive(Debug)]
pub(super) struct AgeLink;

/// The list of a slot of the timing wheel.
#[derive(Debug)]
pub(super) struct TimerLink;

/// The list of those who wait for one task beside the first.
#[derive(Debug)]
pub(super) struct WaiterLink;

/// Where a task is. It is in exactly one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere yet, or on its way from one place to the next.
    Moving,
    /// In this flow's queue.
    Queued(u32),
    /// At this worker.
    Held(u32),
}

/// Set in a task's place where the index is a worker's.
const HELD_BIT: u32 = 1 << 31;

/// A task.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) payload: Kept,
    /// The first waiter's own number for it.
    pub(super) client_id: u64,
    /// When it must have ended; [`Task::NEVER`] when it need not.
    pub(super) deadline: Time,
    /// When it was first queued or assigned; waiting counts from here.
    pub(super) since: Time,
    /// When its timer fires, in the wheel's ticks.
    pub(super) timer_tick: u64,
    /// What few tasks have.
    pub(super) extra: Option<Box<Extra>>,
    pub(super) link: Link,
    pub(super) timer: Link,
    pub(super) age: Link,
    /// Its [`Place`], in four bytes: a worker's index with [`HELD_BIT`], a flow's without, or [`NONE`].
    place: u32,
    /// The first waiter, or [`NONE`]: then nobody waits, and it only keeps its place at a worker.
    pub(super) client: u32,
    pub(super) action: u32,
    /// Tells this attempt from every other one that had the same row.
    pub(super) attempt_tag: u32,
    pub(super) timer_slot: u16,
    pub(super) priority: u8,
    /// Attempts used up.
    pub(super) spent: u8,
    pub(super) max_attempts: u8,
    /// Its worker was asked to hand it back.
    pub(super) recalled: bool,
}

/// What few tasks have.
#[derive(Debug)]
pub(super) struct Extra {
    /// Tasks of one action and key that meet share one run; empty for none.
    pub(super) key: Box<[u8]>,
    /// Waiters beside the first.
    pub(super) waiters: List<WaiterLink>,
    /// How many they are.
    pub(super) waiting: u32,
    /// What background tasks have. They have no key and no waiters.
    pub(super) background: Option<Background>,
    /// When its present run ends if its worker has set a limit; [`Task::NEVER`] otherwise.
    pub(super) run_until: Time,
    /// How much its worker has last said is done, and of how much.
    pub(super) progress: (u64, u64),
}

impl Extra {
    /// Nothing beside what every task has.
    pub(super) fn new() -> Self {
        Extra {
            key: Box::default(),
            waiters: List::new(),
            waiting: 0,
            background: None,
            run_until: Task::NEVER,
            progress: (0, 0),
        }
    }
}

/// Someone who waits for a task beside the first.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) task: u32,
    pub(super) client: u32,
    pub(super) client_id: u64,
    pub(super) link: Link,
}

super::slab::linked!(Task, PlaceLink, link);
super::slab::linked!(Task, AgeLink, age);
super::slab::linked!(Waiter, WaiterLink, link);

impl Task {
    /// The deadline of a task that has none.
    pub(super) const NEVER: Time = Time(u64::MAX);

    /// Where it is.
    #[inline]
    pub(super) fn place(&self) -> Place {
        match self.place {
            NONE => Place::Moving,
            held if held & HELD_BIT != 0 => Place::Held(held & !HELD_BIT),
            flow => Place::Queued(flow),
        }
    }

    /// Writes down where it is now.
    #[inline]
    pub(super) fn put(&mut self, place: Place) {
        self.place = match place {
            Place::Moving => NONE,
            Place::Held(worker) => worker | HELD_BIT,
            Place::Queued(flow) => flow,
        };
    }

    /// What few tasks have, begun if need be.
    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_with(|| Box::new(Extra::new()))
    }

    /// When it must have ended at its worker, for its own deadline's sake or for the limit on its run.
    pub(super) fn ends_by(&self) -> Time {
        self.extra.as_ref().map_or(self.deadline, |extra| self.deadline.min(extra.run_until))
    }

    pub(super) fn key(&self) -> &[u8] {
        self.extra.as_ref().map_or(&[], |extra| &extra.key)
    }

    /// The key that a worker is told.
    pub(super) fn told_key(&self) -> &[u8] {
        self.extra.as_ref().map_or(&[], |extra| match &extra.background {
            Some(background) => &background.key,
            None => &extra.key,
        })
    }

    pub(super) fn background(&self) -> Option<&Background> {
        self.extra.as_ref()?.background.as_ref()
    }

    pub(super) fn background_mut(&mut self) -> Option<&mut Background> {
        self.extra.as_mut()?.background.as_mut()
    }

    /// The waiters beside the first.
    pub(super) fn waiters(&self) -> List<WaiterLink> {
        self.extra.as_ref().map_or(List::new(), |extra| extra.waiters)
    }

    /// How many wait beside the first.
    pub(super) fn waiting(&self) -> u32 {
        self.extra.as_ref().map_or(0, |extra| extra.waiting)
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.client != NONE
    }

    /// A row to start from, that of a task without a payload which nobody waits for.
    ///
    /// Rows are filled in where they stand in their slab: a row that is put together elsewhere and then moved there
    /// makes the processor wait for its small parts.
    pub(super) const BLANK: Task = Task {
        payload: Kept::NOTHING,
        client_id: 0,
        deadline: Task::NEVER,
        since: Time(0),
        timer_tick: 0,
        extra: None,
        link: Link::new(),
        timer: Link::new(),
        age: Link::new(),
        place: NONE,
        client: NONE,
        action: NONE,
        attempt_tag: 0,
        timer_slot: NO_SLOT,
        priority: 0,
        spent: 0,
        max_attempts: 1,
        recalled: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_what_it_was_put_to() {
        let mut task = Task::BLANK;
        assert_eq!(task.place(), Place::Moving);
        for place in [Place::Queued(0), Place::Held(0), Place::Queued(1 << 30), Place::Held(7), Place::Moving]
        {
            task.put(place);
            assert_eq!(task.place(), place);
        }
    }

    #[test]
    fn a_row_takes_no_more_than_104_bytes() {
        assert!(size_of::<Option<Task>>() <= 104, "{}", size_of::<Option<Task>>());
    }
}
