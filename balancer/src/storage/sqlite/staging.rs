//! What an operation does: to which tasks, with what answer, and what the journal says of it.

use bytes::Bytes;
use hashbrown::HashMap;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::overlay::{Current, Location, Overlay, Target};
use super::record::{self, Kind, Record, RowWriter};
use super::tables::{self, COLUMNS, WriteError};
use crate::storage::store::{Answer, MAX_PAGE, MAX_PAGE_BYTES, Operation};
use crate::storage::task::{BlobKey, NewTask, StoredTask, TaskId, TaskState};

/// Idempotency keys that the table does not have yet: the task, the window's end, and the journal's row.
pub(super) type Keys = HashMap<Bytes, (TaskId, i64, i64)>;

/// Looks at operations in order, with the overlay locked.
pub(super) struct Stage<'a> {
    pub(super) connection: &'a Connection,
    pub(super) overlay: &'a mut Overlay,
    pub(super) keys: &'a mut Keys,
    pub(super) writer: &'a mut RowWriter,
    /// The number of the row that `writer` becomes.
    pub(super) row: i64,
}

/// Whether an operation reads records, so that all those before it must stand in whole rows.
pub(super) fn reads_records(operation: &Operation) -> bool {
    matches!(operation, Operation::TakeDue { .. } | Operation::Drop { .. })
}

impl Stage<'_> {
    /// Stages operations up to the next one that [`reads_records`], the first excepted. Returns how many.
    pub(super) fn all(
        &mut self,
        operations: &[Operation],
        answers: &mut Vec<Answer>,
    ) -> Result<usize, WriteError> {
        for (place, operation) in operations.iter().enumerate() {
            if place > 0 && reads_records(operation) {
                return Ok(place);
            }
            let answer = self.one(operation)?;
            answers.push(answer);
        }
        Ok(operations.len())
    }

    fn one(&mut self, operation: &Operation) -> Result<Answer, WriteError> {
        match operation {
            Operation::Accept(task) => self.accept(task),
            Operation::Start { id } => self.plain(Kind::Start, *id),
            Operation::Requeue { id } => self.plain(Kind::Queue, *id),
            Operation::Revive { id } => self.plain(Kind::Revive, *id),
            Operation::Drop { id } => self.drop_task(*id),
            Operation::Retry { attempt, due_at } => {
                let Some(current) = self.current(attempt.id)? else { return Ok(Answer::Unknown) };
                if current.state.is_ended() {
                    return Ok(Answer::AlreadyEnded(current.state));
                }
                let location = Location { row: self.row, offset: self.writer.retry(attempt, *due_at) };
                self.overlay.retry(attempt.id, &current, location, attempt.attempts, *due_at);
                Ok(Answer::Noted)
            }
            Operation::Finish(outcome) => {
                let Some(current) = self.current(outcome.id)? else { return Ok(Answer::Unknown) };
                if current.state.is_ended() {
                    return Ok(Answer::AlreadyEnded(current.state));
                }
                let location = Location { row: self.row, offset: self.writer.finish(outcome) };
                self.overlay.finish(outcome.id, &current, location, outcome.state, outcome.attempts);
                Ok(Answer::Recorded)
            }
            Operation::TakeDue { now, limit } => self.take_due(*now, *limit),
            // Done to the tables themselves, in the same transaction.
            Operation::RemoveEnded { .. } | Operation::RemoveKeys { .. } => Ok(Answer::Noted),
            // Nobody else can have a task of this store's.
            Operation::Claim { .. }
            | Operation::Release { .. }
            | Operation::Settle { .. }
            | Operation::Sweep { .. } => Ok(Answer::Noted),
        }
    }

    fn accept(&mut self, task: &NewTask) -> Result<Answer, WriteError> {
        if let Some(key) = &task.idempotency {
            if let Some(first) = self.holder(&key.key, task.created_at)? {
                return Ok(Answer::SameKey(first));
            }
            // A copy, since the key may be a part of a much larger buffer.
            self.keys.insert(Bytes::copy_from_slice(&key.key), (task.id, key.until, self.row));
        }
        let (writer, row) = (&mut *self.writer, self.row);
        self.overlay.accept(task.id, task.due_at, || Location { row, offset: writer.accept(task) });
        Ok(Answer::Accepted)
    }

    /// The task that an idempotency key stands for at `now`.
    fn holder(&self, key: &[u8], now: i64) -> Result<Option<TaskId>, WriteError> {
        if let Some((task, until, _)) = self.keys.get(key) {
            return Ok((*until > now).then_some(*task));
        }
        let mut select = self
            .connection
            .prepare_cached("SELECT task FROM idempotency_keys WHERE key = ?1 AND until > ?2")?;
        Ok(select.query_row(params![key, now], |row| tables::read_id(row, 0)).optional()?)
    }

    /// An operation that has nothing to say but the task's id.
    fn plain(&mut self, kind: Kind, id: TaskId) -> Result<Answer, WriteError> {
        let Some(current) = self.current(id)? else { return Ok(Answer::Unknown) };
        let Some(target) = plain_target(kind, current.state) else {
            let is_late = current.state.is_ended() && kind != Kind::Revive;
            let state = current.state;
            return Ok(if is_late { Answer::AlreadyEnded(state) } else { Answer::NotNow(state) });
        };
        self.writer.plain(kind, id);
        self.overlay.step(id, &current, self.row, target);
        Ok(Answer::Noted)
    }

    fn drop_task(&mut self, id: TaskId) -> Result<Answer, WriteError> {
        let Some(current) = self.current(id)? else { return Ok(Answer::Unknown) };
        if !current.state.is_ended() {
            return Ok(Answer::NotNow(current.state));
        }
        let stored = self.stored(id)?;
        let blobs: Vec<BlobKey> = stored.iter().flat_map(StoredTask::blobs).cloned().collect();
        self.writer.plain(Kind::Drop, id);
        self.overlay.drop_task(id, &current, self.row);
        Ok(Answer::Removed { count: 1, more: false, blobs })
    }

    /// Takes what is due of the tasks in the overlay; [`take_due_rows`] does the tables' part.
    fn take_due(&mut self, now: i64, limit: usize) -> Result<Answer, WriteError> {
        let most = limit.min(MAX_PAGE);
        let due: Vec<TaskId> =
            self.overlay.due().take_while(|(at, _)| *at <= now).take(most).map(|(_, id)| id).collect();
        // All is read before anything changes, so that an error leaves nothing half taken.
        let (mut found, mut memory) = (Vec::new(), 0);
        for id in due {
            if memory > MAX_PAGE_BYTES {
                break;
            }
            let (stored, current) = (self.stored(id)?, self.current(id)?);
            memory += stored.as_ref().map_or(0, StoredTask::memory);
            found.push((id, stored, current));
        }
        let mut tasks = Vec::new();
        for (id, stored, current) in found {
            let Some(current) = current else { continue };
            self.writer.plain(Kind::Queue, id);
            self.overlay.step(id, &current, self.row, Target { state: TaskState::Queued, attempts: None });
            tasks.extend(stored.map(|stored| StoredTask { state: TaskState::Queued, ..stored }));
        }
        let next = self.overlay.due().next().map(|(at, _)| at);
        Ok(Answer::Due { tasks, next })
    }

    fn current(&self, id: TaskId) -> Result<Option<Current>, WriteError> {
        current(self.connection, self.overlay, id)
    }

    /// The whole task as of now. All its records must stand in whole rows.
    fn stored(&self, id: TaskId) -> Result<Option<StoredTask>, WriteError> {
        let view = self.overlay.tasks.get(id).map(|entry| self.overlay.latest(entry));
        let row = match &view {
            Some(view) if view.accepted.is_some() => None,
            _ => tables::select_task(self.connection, id)?,
        };
        match view {
            Some(view) => Ok(view.over(row)?),
            None => Ok(row),
        }
    }
}

/// Where a task stands; `None` when it is unknown or dropped.
fn current(connection: &Connection, overlay: &Overlay, id: TaskId) -> Result<Option<Current>, WriteError> {
    if let Some(entry) = overlay.tasks.get(id) {
        let current = Current { state: entry.state, attempts: entry.attempts, due_at: entry.due_at };
        return Ok((!entry.dropped).then_some(current));
    }
    let mut select = connection.prepare_cached("SELECT state, attempts, due_at FROM tasks WHERE id = ?1")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Current { state: tables::read_state(row, 0)?, attempts: row.get(1)?, due_at: row.get(2)? })
    };
    Ok(select.query_row([id.0], read).optional()?)
}

/// Where a plain record takes a task that is in this state; `None` when it does not fit.
fn plain_target(kind: Kind, state: TaskState) -> Option<Target> {
    match kind {
        Kind::Start if !state.is_ended() => Some(Target { state: TaskState::Running, attempts: None }),
        Kind::Queue if !state.is_ended() => Some(Target { state: TaskState::Queued, attempts: None }),
        Kind::Revive if state == TaskState::Dead => {
            Some(Target { state: TaskState::Queued, attempts: Some(0) })
        }
        _ => None,
    }
}

/// Does what a record of the journal says, if the task is in a state for it.
pub(super) fn replay(
    connection: &Connection,
    overlay: &mut Overlay,
    keys: &mut Keys,
    row: i64,
    bytes: &Bytes,
    record: Record,
) -> Result<(), WriteError> {
    let Record { offset, kind, id } = record;
    let location = Location { row, offset };
    if kind == Kind::Accept {
        let task = record::read_accept(bytes, offset)?;
        if let Some(key) = task.idempotency {
            keys.insert(key.key, (id, key.until, row));
        }
        overlay.accept(id, task.due_at, || location);
        return Ok(());
    }
    let Some(current) = current(connection, overlay, id)? else { return Ok(()) };
    let has_ended = current.state.is_ended();
    match kind {
        Kind::Retry => {
            let (attempt, due_at) = record::read_retry(bytes, offset)?;
            if has_ended {
                // The history may lack it all the same.
                overlay.touch(id, &current, row);
            } else {
                overlay.retry(id, &current, location, attempt.attempts, due_at);
            }
        }
        Kind::Finish if !has_ended => {
            let outcome = record::read_finish(bytes, offset)?;
            overlay.finish(id, &current, location, outcome.state, outcome.attempts);
        }
        Kind::Drop if has_ended => overlay.drop_task(id, &current, row),
        _ => {
            if let Some(target) = plain_target(kind, current.state) {
                overlay.step(id, &current, row, target);
            }
        }
    }
    Ok(())
}

/// Takes what is due of the tasks in the tables that the overlay has no news of, and adds them to the answer.
///
/// They are changed in the tables at once, in the transaction that is open.
pub(super) fn take_due_rows(
    connection: &Connection,
    overlay: &Overlay,
    now: i64,
    limit: usize,
    answer: &mut Answer,
) -> rusqlite::Result<()> {
    let Answer::Due { tasks, next } = answer else { return Ok(()) };
    let most = limit.min(MAX_PAGE);
    let mut memory: usize = tasks.iter().map(StoredTask::memory).sum();
    let mut select = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tasks WHERE state = 0 ORDER BY due_at, id"))?;
    let mut rows = select.query([])?;
    let mut taken = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, due_at) = (tables::read_id(row, 0)?, row.get::<_, Option<i64>>(12)?.unwrap_or(now));
        if overlay.tasks.contains(id) {
            continue;
        }
        if due_at > now || tasks.len() >= most || memory > MAX_PAGE_BYTES {
            *next = Some(next.map_or(due_at, |other| other.min(due_at)));
            break;
        }
        let mut stored = tables::read_task(row)?;
        stored.state = TaskState::Queued;
        memory += stored.memory();
        taken.push(id);
        tasks.push(stored);
    }
    drop(rows);
    let mut update = connection.prepare_cached("UPDATE tasks SET state = 1 WHERE id = ?1")?;
    for id in taken {
        update.execute([id.0])?;
    }
    tasks.sort_by_key(|stored| (stored.task.due_at, stored.task.id));
    Ok(())
}
