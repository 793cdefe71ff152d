//! A task's row: what is known of it, where it is, and who waits for it.

use std::ops::{Index, IndexMut};

use super::api::Time;
use super::background::Background;
use super::payload::Kept;
use super::slab::{Link, Links, List, NONE, Slab};
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

/// A task: what all of them need, in one line of the processor's cache.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Task {
    pub(super) payload: Kept,
    /// The first waiter's own number for it.
    pub(super) client_id: u64,
    /// When it was first queued or assigned; waiting counts from here.
    pub(super) since: Time,
    link: Link,
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
    /// Its first waiter was told that it was taken, by a number that no other task has.
    pub(super) announced: bool,
    /// It has a deadline or an [`Extra`], or had one.
    is_special: bool,
}

/// What a task needs that waits, or has a timer. It stands beside the rows, so that tasks that go straight to a worker
/// leave it alone; it is as [`More::BLANK`], but for the tick, where it is not in use.
#[derive(Debug)]
struct More {
    /// When it must have ended; [`Task::NEVER`] when it need not.
    deadline: Time,
    /// When its timer fires, in the wheel's ticks.
    timer_tick: u64,
    extra: Option<Box<Extra>>,
    timer: Link,
    age: Link,
}

impl More {
    const BLANK: More =
        More { deadline: Task::NEVER, timer_tick: 0, extra: None, timer: Link::new(), age: Link::new() };
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

super::slab::linked!(Waiter, WaiterLink, link);

/// All tasks, by their index.
#[derive(Debug)]
pub(super) struct Tasks {
    rows: Slab<Task>,
    /// As long as there are rows, in use or not.
    more: Vec<More>,
}

impl Tasks {
    pub(super) fn new() -> Self {
        Tasks { rows: Slab::new(), more: Vec::new() }
    }

    /// How many there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows, in use or not: more than any index in use.
    pub(super) fn rows(&self) -> u32 {
        self.rows.rows()
    }

    /// Adds a task without a payload which nobody waits for, to be filled in where it stands: a row that is put
    /// together elsewhere and then moved there makes the processor wait for its small parts.
    #[inline(always)]
    pub(super) fn add(&mut self) -> (u32, &mut Task) {
        let (index, row) = self.rows.add(Task::BLANK);
        if index as usize == self.more.len() {
            self.more.push(More::BLANK);
        }
        (index, row)
    }

    /// Empties a row, which must stand in no list.
    #[inline(always)]
    pub(super) fn vacate(&mut self, index: u32) {
        if self.rows[index].is_special {
            let more = &mut self.more[index as usize];
            (more.deadline, more.extra) = (Task::NEVER, None);
        }
        self.rows.vacate(index);
        if self.rows.rows() == 0 {
            self.more = Vec::new();
        }
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Task> {
        self.rows.get(index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Task)> {
        self.rows.iter()
    }

    /// When a task must have ended; [`Task::NEVER`] when it need not.
    #[inline]
    pub(super) fn deadline(&self, index: u32) -> Time {
        if self.rows[index].is_special { self.more[index as usize].deadline } else { Task::NEVER }
    }

    pub(super) fn set_deadline(&mut self, index: u32, deadline: Time) {
        self.rows[index].is_special = true;
        self.more[index as usize].deadline = deadline;
    }

    /// What few tasks have.
    #[inline]
    pub(super) fn extra(&self, index: u32) -> Option<&Extra> {
        if self.rows[index].is_special { self.more[index as usize].extra.as_deref() } else { None }
    }

    pub(super) fn extra_mut(&mut self, index: u32) -> Option<&mut Extra> {
        if self.rows[index].is_special { self.more[index as usize].extra.as_deref_mut() } else { None }
    }

    pub(super) fn set_extra(&mut self, index: u32, extra: Option<Extra>) {
        self.rows[index].is_special = true;
        self.more[index as usize].extra = extra.map(Box::new);
    }

    /// What few tasks have, begun if need be.
    pub(super) fn extra_or_new(&mut self, index: u32) -> &mut Extra {
        self.rows[index].is_special = true;
        self.more[index as usize].extra.get_or_insert_with(|| Box::new(Extra::new()))
    }

    /// When a task must have ended at its worker, for its own deadline's sake or for the limit on its run.
    pub(super) fn ends_by(&self, index: u32) -> Time {
        let run_until = self.extra(index).map_or(Task::NEVER, |extra| extra.run_until);
        self.deadline(index).min(run_until)
    }

    /// The key that a task's worker is told.
    pub(super) fn told_key(&self, index: u32) -> &[u8] {
        self.extra(index).map_or(&[], |extra| match &extra.background {
            Some(background) => &background.key,
            None => &extra.key,
        })
    }

    /// Tasks of one action and key that meet share one run; empty for none.
    pub(super) fn key(&self, index: u32) -> &[u8] {
        self.extra(index).map_or(&[], |extra| &extra.key)
    }

    pub(super) fn background(&self, index: u32) -> Option<&Background> {
        self.extra(index)?.background.as_ref()
    }

    pub(super) fn background_mut(&mut self, index: u32) -> Option<&mut Background> {
        self.extra_mut(index)?.background.as_mut()
    }

    /// The waiters beside the first.
    #[inline]
    pub(super) fn waiters(&self, index: u32) -> List<WaiterLink> {
        self.extra(index).map_or(List::new(), |extra| extra.waiters)
    }

    /// How many wait beside the first.
    pub(super) fn waiting(&self, index: u32) -> u32 {
        self.extra(index).map_or(0, |extra| extra.waiting)
    }

    /// When a task's timer fires, in the wheel's ticks, if it is set.
    pub(super) fn timer_tick(&self, index: u32) -> u64 {
        self.more[index as usize].timer_tick
    }

    pub(super) fn set_timer_tick(&mut self, index: u32, tick: u64) {
        self.more[index as usize].timer_tick = tick;
    }
}

impl Index<u32> for Tasks {
    type Output = Task;
    #[inline]
    fn index(&self, index: u32) -> &Task {
        &self.rows[index]
    }
}

impl IndexMut<u32> for Tasks {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Task {
        &mut self.rows[index]
    }
}

impl Links<PlaceLink> for Tasks {
    fn link(&self, index: u32) -> &Link {
        &self.rows[index].link
    }

    fn link_mut(&mut self, index: u32) -> &mut Link {
        &mut self.rows[index].link
    }
}

impl Links<AgeLink> for Tasks {
    fn link(&self, index: u32) -> &Link {
        &self.more[index as usize].age
    }

    fn link_mut(&mut self, index: u32) -> &mut Link {
        &mut self.more[index as usize].age
    }
}

impl Links<TimerLink> for Tasks {
    fn link(&self, index: u32) -> &Link {
        &self.more[index as usize].timer
    }

    fn link_mut(&mut self, index: u32) -> &mut Link {
        &mut self.more[index as usize].timer
    }
}

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

    /// Whether a worker has it.
    #[inline]
    pub(super) fn is_held_by(&self, worker: u32) -> bool {
        self.place == worker | HELD_BIT
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.client != NONE
    }

    /// The number by which it was announced; 0 if it was not.
    #[inline]
    pub(super) fn announced_number(&self) -> u64 {
        if self.announced { self.client_id } else { 0 }
    }

    /// Whether it has neither a deadline nor an [`Extra`], and no timer is set.
    #[inline]
    pub(super) fn is_usual(&self) -> bool {
        !self.is_special && self.timer_slot == NO_SLOT
    }

    /// A row to start from.
    const BLANK: Task = Task {
        payload: Kept::NOTHING,
        client_id: 0,
        since: Time(0),
        link: Link::new(),
        place: NONE,
        client: NONE,
        action: NONE,
        attempt_tag: 0,
        timer_slot: NO_SLOT,
        priority: 0,
        spent: 0,
        max_attempts: 1,
        recalled: false,
        announced: false,
        is_special: false,
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
    fn a_row_takes_one_line_of_the_cache_and_40_bytes_beside_it() {
        assert_eq!((size_of::<Option<Task>>(), size_of::<More>()), (64, 40));
    }

    #[test]
    fn what_an_ended_task_had_is_not_there_for_the_next_one_in_its_row() {
        let mut tasks = Tasks::new();
        let (index, _) = tasks.add();
        tasks.set_deadline(index, Time(7));
        let extra = Extra { key: b"key"[..].into(), waiters: List::new(), waiting: 3, ..Extra::new() };
        tasks.set_extra(index, Some(extra));
        assert_eq!(
            (tasks.deadline(index), tasks.key(index), tasks.waiting(index)),
            (Time(7), &b"key"[..], 3)
        );
        assert!(!tasks[index].is_usual());
        tasks.vacate(index);
        assert_eq!(tasks.add().0, index);
        assert_eq!((tasks.deadline(index), tasks.key(index)), (Task::NEVER, &b""[..]));
        tasks.set_deadline(index, Time(9));
        assert!(tasks.extra(index).is_none());
        assert!(!tasks[index].is_usual());
    }
}
