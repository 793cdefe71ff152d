//! What stands in the journal and not yet in the tables, in memory: the tables' rows and this together are the truth.
//!
//! The storage thread alone changes it; readers look a task up here first and in the tables then. It is bounded by
//! what may wait in the journal.

use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use hashbrown::HashTable;

use super::record::{self, Damaged};
use crate::storage::task::{Body, StoredTask, TaskId, TaskState};

/// Where a record stands in the journal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location {
    /// The row's number.
    pub(super) row: i64,
    /// Where in the row the record begins.
    pub(super) offset: u32,
}

/// A task that the journal has news of.
#[derive(Debug)]
pub(super) struct Entry {
    /// The record that accepted it; `None` once its row stands in the tables.
    pub(super) accepted: Option<Location>,
    /// The record of its outcome. It counts only while `state` is an ended one.
    pub(super) ended: Option<Location>,
    /// The record of its last failed attempt.
    pub(super) failed: Option<Location>,
    /// The journal's row that changed it last.
    pub(super) changed: i64,
    /// `changed` as it was when its row in the tables was last written.
    pub(super) written: AtomicI64,
    pub(super) due_at: Option<i64>,
    pub(super) state: TaskState,
    /// Its state before the row `changed`: what readers are told while that row is not durable.
    before: TaskState,
    pub(super) attempts: u8,
    /// It is to be removed from the tables.
    pub(super) dropped: bool,
}

impl Entry {
    pub(super) fn new(
        accepted: Option<Location>,
        state: TaskState,
        attempts: u8,
        due_at: Option<i64>,
    ) -> Self {
        Entry {
            accepted,
            ended: None,
            failed: None,
            changed: accepted.map_or(0, |location| location.row),
            written: AtomicI64::new(0),
            due_at,
            state,
            before: state,
            attempts,
            dropped: false,
        }
    }

    /// Moves it to another state, by a record of this row of the journal.
    pub(super) fn change(&mut self, row: i64, state: TaskState) {
        if self.changed < row {
            self.before = self.state;
            self.changed = row;
        }
        self.state = state;
    }

    /// Whether its row in the tables says all that is known.
    pub(super) fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed) == self.changed
    }

    pub(super) fn set_written(&self) {
        self.written.store(self.changed, Ordering::Relaxed);
    }
}

/// Where a task stands, be it known from here or from the tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current {
    pub(super) state: TaskState,
    pub(super) attempts: u8,
    pub(super) due_at: Option<i64>,
}

/// Where a step takes a task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) state: TaskState,
    /// Attempts used from now on; `None` for as many as before.
    pub(super) attempts: Option<u8>,
}

/// A record and the row that it stands in.
pub(super) type Found = (Bytes, u32);

/// What is known of one task beyond its row in the tables, or without one.
#[derive(Debug)]
pub(super) struct View {
    pub(super) accepted: Option<Found>,
    pub(super) ended: Option<Found>,
    pub(super) failed: Option<Found>,
    pub(super) state: TaskState,
    pub(super) attempts: u8,
    pub(super) due_at: Option<i64>,
    pub(super) dropped: bool,
}

impl View {
    /// The task: what the journal accepted, or else `row`, with all that has come since. `None` when it was
    /// dropped, or when there is neither.
    pub(super) fn over(&self, row: Option<StoredTask>) -> Result<Option<StoredTask>, Damaged> {
        let base = match &self.accepted {
            Some((bytes, offset)) => {
                let mut task = record::read_accept(bytes, *offset)?;
                task.idempotency = None;
                Some(StoredTask::accepted(task))
            }
            None => row,
        };
        let Some(mut stored) = base.filter(|_| !self.dropped) else { return Ok(None) };
        stored.state = self.state;
        stored.attempts = self.attempts;
        stored.task.due_at = self.due_at;
        if let Some((bytes, offset)) = &self.failed {
            stored.failure = Some(record::read_retry(bytes, *offset)?.0.failure);
        }
        if !self.state.is_ended() {
            stored.ended_at = None;
            stored.result = None;
        } else if let Some((bytes, offset)) = &self.ended {
            let outcome = record::read_finish(bytes, *offset)?;
            stored.ended_at = Some(outcome.at);
            stored.result = (outcome.state == TaskState::Done).then_some(outcome.result);
            stored.failure = outcome.failure;
            if self.state != TaskState::Dead && stored.task.payload.blob().is_none() {
                stored.task.payload = Body::default();
            }
        }
        Ok(Some(stored))
    }
}

/// Entries by their tasks' ids.
///
/// They stand in the order in which their tasks were accepted, more or less, and so do those that are looked up one
/// after the other; the table that finds them is small. That spares most of the cache misses of a plain map.
#[derive(Debug, Default)]
pub(super) struct Entries {
    places: HashTable<u32>,
    slots: Vec<(TaskId, Option<Entry>)>,
    free: Vec<u32>,
    hasher: foldhash::fast::RandomState,
}

impl Entries {
    fn place(&self, id: TaskId) -> Option<usize> {
        let hash = self.hasher.hash_one(id);
        self.places.find(hash, |place| self.slots[*place as usize].0 == id).map(|place| *place as usize)
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Entry> {
        self.place(id).and_then(|place| self.slots[place].1.as_ref())
    }

    pub(super) fn contains(&self, id: TaskId) -> bool {
        self.place(id).is_some()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|(_, entry)| entry.as_ref())
    }

    /// Its entry, made by `new` if there is none.
    pub(super) fn get_or_insert(&mut self, id: TaskId, new: impl FnOnce() -> Entry) -> &mut Entry {
        let Entries { places, slots, free, hasher } = self;
        let place = places
            .entry(
                hasher.hash_one(id),
                |place| slots[*place as usize].0 == id,
                |place| hasher.hash_one(slots[*place as usize].0),
            )
            .or_insert_with(|| free.pop().unwrap_or(slots.len() as u32));
        let place = *place.get() as usize;
        if place == slots.len() {
            slots.push((id, None));
        }
        slots[place].0 = id;
        slots[place].1.get_or_insert_with(new)
    }

    /// Removes an entry if `is_done` says so, and returns it.
    fn remove_if(&mut self, id: TaskId, is_done: impl FnOnce(&mut Entry) -> bool) -> Option<Entry> {
        let slots = &mut self.slots;
        let hash = self.hasher.hash_one(id);
        let found = self.places.find_entry(hash, |place| slots[*place as usize].0 == id).ok()?;
        let place = *found.get();
        let slot = &mut slots[place as usize].1;
        if !slot.as_mut().is_some_and(is_done) {
            return None;
        }
        let removed = slot.take();
        found.remove();
        self.free.push(place);
        if self.places.is_empty() {
            // All in order again, and no memory kept for a load that has passed.
            self.slots = Vec::new();
            self.free = Vec::new();
        }
        removed
    }
}

/// A row of the journal.
#[derive(Debug)]
struct Row {
    number: i64,
    bytes: Bytes,
    /// Its records.
    count: usize,
    /// The task of the last one.
    last: Option<TaskId>,
    since: Instant,
}

/// See the file's first lines.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    rows: VecDeque<Row>,
    /// Bytes of all rows.
    bytes: usize,
    /// Records of all rows.
    records: usize,
    pub(super) tasks: Entries,
    /// The scheduled ones among them, by the time at which they are due.
    due: BTreeSet<(i64, TaskId)>,
    /// The last row that is durable.
    pub(super) committed: i64,
}

impl Overlay {
    pub(super) fn records(&self) -> usize {
        self.records
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push_row(&mut self, number: i64, bytes: Bytes, count: usize, last: Option<TaskId>) {
        self.bytes += bytes.len();
        self.records += count;
        self.rows.push_back(Row { number, bytes, count, last, since: Instant::now() });
    }

    /// The row at this place of the queue: its number, its bytes, its records, and since when it is there.
    pub(super) fn row(&self, place: usize) -> Option<(i64, &Bytes, usize, Instant)> {
        self.rows.get(place).map(|row| (row.number, &row.bytes, row.count, row.since))
    }

    /// Whether the task of the last record in the row at this place has ended. As tasks end in about the order in
    /// which they came, those before it mostly have, too.
    pub(super) fn has_ended(&self, place: usize) -> bool {
        let last = self.rows.get(place).and_then(|row| row.last);
        last.and_then(|id| self.tasks.get(id)).is_none_or(|entry| entry.state.is_ended())
    }

    /// The row with this number, and how many records it has.
    pub(super) fn row_of(&self, number: i64) -> Option<(&Bytes, usize)> {
        let first = self.rows.front()?.number;
        let place = usize::try_from(number - first).ok()?;
        self.rows.get(place).map(|row| (&row.bytes, row.count))
    }

    /// Takes the oldest row out, once all it says stands in the tables.
    pub(super) fn pop_row(&mut self) -> Option<(i64, Bytes)> {
        let row = self.rows.pop_front()?;
        self.bytes -= row.bytes.len();
        self.records -= row.count;
        Some((row.number, row.bytes))
    }

    fn find(&self, location: Option<Location>) -> Option<Found> {
        let location = location?;
        self.row_of(location.row).map(|(bytes, _)| (bytes.clone(), location.offset))
    }

    /// The row that a record stands in, and where it begins there.
    pub(super) fn record_at(&self, location: Option<Location>) -> Option<(&[u8], u32)> {
        let location = location?;
        self.row_of(location.row).map(|(bytes, _)| (&bytes[..], location.offset))
    }

    /// All that is known of a task, durable or not.
    pub(super) fn latest(&self, entry: &Entry) -> View {
        View {
            accepted: self.find(entry.accepted),
            ended: self.find(entry.ended),
            failed: self.find(entry.failed),
            state: entry.state,
            attempts: entry.attempts,
            due_at: entry.due_at,
            dropped: entry.dropped,
        }
    }

    /// What is durable of a task; `None` when the tables know all of it.
    pub(super) fn durable(&self, id: TaskId) -> Option<View> {
        let entry = self.tasks.get(id)?;
        let is_durable = |location: &Location| location.row <= self.committed;
        if entry.accepted.is_some_and(|location| !is_durable(&location)) {
            return None;
        }
        let mut view = self.latest(entry);
        if entry.changed > self.committed {
            view.state = entry.before;
            view.dropped = false;
            view.ended = self.find(entry.ended.filter(is_durable));
            view.failed = self.find(entry.failed.filter(is_durable));
        }
        Some(view)
    }

    /// A task was accepted, by the record that `write` writes. Nothing is written for an id that is known.
    pub(super) fn accept(&mut self, id: TaskId, due_at: Option<i64>, write: impl FnOnce() -> Location) {
        let state = if due_at.is_some() { TaskState::Scheduled } else { TaskState::Queued };
        let due = &mut self.due;
        self.tasks.get_or_insert(id, || {
            if let Some(at) = due_at {
                due.insert((at, id));
            }
            Entry::new(Some(write()), state, 0, due_at)
        });
    }

    /// An attempt failed, and another follows.
    pub(super) fn retry(
        &mut self,
        id: TaskId,
        current: &Current,
        at: Location,
        attempts: u8,
        due_at: Option<i64>,
    ) {
        let state = if due_at.is_some() { TaskState::Scheduled } else { TaskState::Queued };
        let entry = self.changing(id, current, at.row, state);
        entry.attempts = attempts;
        entry.due_at = due_at;
        entry.failed = Some(at);
        if let Some(at) = due_at {
            self.due.insert((at, id));
        }
    }

    /// It ended.
    pub(super) fn finish(
        &mut self,
        id: TaskId,
        current: &Current,
        at: Location,
        state: TaskState,
        attempts: u8,
    ) {
        let entry = self.changing(id, current, at.row, state);
        entry.attempts = attempts;
        entry.ended = Some(at);
    }

    /// It moves on.
    pub(super) fn step(&mut self, id: TaskId, current: &Current, row: i64, target: Target) {
        let entry = self.changing(id, current, row, target.state);
        entry.attempts = target.attempts.unwrap_or(entry.attempts);
    }

    /// It is to be removed.
    pub(super) fn drop_task(&mut self, id: TaskId, current: &Current, row: i64) {
        self.changing(id, current, row, current.state).dropped = true;
    }

    /// A record is about it, and changes nothing.
    pub(super) fn touch(&mut self, id: TaskId, current: &Current, row: i64) {
        self.changing(id, current, row, current.state);
    }

    fn changing(&mut self, id: TaskId, current: &Current, row: i64, state: TaskState) -> &mut Entry {
        if let Some(at) = current.due_at.filter(|_| current.state == TaskState::Scheduled) {
            self.due.remove(&(at, id));
        }
        let new = || Entry::new(None, current.state, current.attempts, current.due_at);
        let entry = self.tasks.get_or_insert(id, new);
        entry.change(row, state);
        entry
    }

    /// All that the row `row` and those before it say stands in the tables: forgets what is not needed any more.
    pub(super) fn forget(&mut self, id: TaskId, row: i64) {
        let gone = self.tasks.remove_if(id, |entry| {
            if entry.changed <= row {
                return true;
            }
            for location in [&mut entry.accepted, &mut entry.ended, &mut entry.failed] {
                *location = location.filter(|location| location.row > row);
            }
            false
        });
        if let Some(at) =
            gone.filter(|entry| entry.state == TaskState::Scheduled).and_then(|entry| entry.due_at)
        {
            self.due.remove(&(at, id));
        }
    }

    /// Scheduled tasks in the order in which they are due.
    pub(super) fn due(&self) -> impl Iterator<Item = (i64, TaskId)> {
        self.due.iter().copied()
    }
}
