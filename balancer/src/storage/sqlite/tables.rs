//! Rows of the tables: reading and writing them.

use bytes::Bytes;
use reparto_protocol::ErrorCode;
use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};

use super::overlay::View;
use super::record::{self, Damaged};
use crate::storage::task::{
    Backoff, BlobKey, Body, FailedAttempt, Failure, NewTask, StoredTask, TaskId, TaskState,
};

/// The columns that [`read_task`] reads, in its order.
pub(super) const COLUMNS: &str = "id, action, state, priority, max_attempts, attempts, created_at, ended_at, \
     payload, result, error_code, error, due_at, deadline_at, backoff_first_ms, backoff_most_ms, payload_blob, \
     result_blob";

/// The same, without payloads and results that are longer than a list can show.
pub(super) const SHORT_COLUMNS: &str = "id, action, state, priority, max_attempts, attempts, created_at, ended_at, \
     iif(length(payload) <= 4096, payload, NULL), iif(length(result) <= 4096, result, NULL), error_code, error, \
     due_at, deadline_at, backoff_first_ms, backoff_most_ms, payload_blob, result_blob";

fn wrong(column: usize, kind: Type) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "a value that Reparto never writes".to_owned(), kind)
}

pub(super) fn read_id(row: &Row<'_>, column: usize) -> rusqlite::Result<TaskId> {
    row.get(column).map(TaskId)
}

pub(super) fn read_state(row: &Row<'_>, column: usize) -> rusqlite::Result<TaskState> {
    TaskState::from_number(row.get(column)?).ok_or_else(|| wrong(column, Type::Integer))
}

fn read_failure(row: &Row<'_>, code: usize, message: usize) -> rusqlite::Result<Option<Failure>> {
    let Some(number) = row.get::<_, Option<u16>>(code)? else { return Ok(None) };
    let message = row.get::<_, Option<String>>(message)?.unwrap_or_default();
    Ok(Some(Failure { code: ErrorCode::from_number(number), message }))
}

fn read_body(row: &Row<'_>, inline: usize, blob: usize) -> rusqlite::Result<Option<Body>> {
    if let Some(key) = row.get_ref(blob)?.as_str_or_null()? {
        return BlobKey::new(key).map(|key| Some(Body::Blob(key))).ok_or_else(|| wrong(blob, Type::Text));
    }
    Ok(row.get_ref(inline)?.as_blob_or_null()?.map(|bytes| Body::Inline(Bytes::copy_from_slice(bytes))))
}

/// Reads a row of [`COLUMNS`].
pub(super) fn read_task(row: &Row<'_>) -> rusqlite::Result<StoredTask> {
    let state = read_state(row, 2)?;
    let task = NewTask {
        id: read_id(row, 0)?,
        action: row.get_ref(1)?.as_str()?.into(),
        payload: read_body(row, 8, 16)?.unwrap_or_default(),
        priority: row.get(3)?,
        max_attempts: row.get(4)?,
        created_at: row.get(6)?,
        due_at: row.get(12)?,
        deadline_at: row.get(13)?,
        backoff: Backoff { first_ms: row.get(14)?, most_ms: row.get(15)? },
        idempotency: None,
    };
    let result = read_body(row, 9, 17)?;
    Ok(StoredTask {
        task,
        state,
        attempts: row.get(5)?,
        ended_at: row.get(7)?,
        result: if state == TaskState::Done { Some(result.unwrap_or_default()) } else { None },
        failure: read_failure(row, 10, 11)?,
    })
}

/// One task's row.
pub(super) fn select_task(connection: &Connection, id: TaskId) -> rusqlite::Result<Option<StoredTask>> {
    let mut select = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM tasks WHERE id = ?1"))?;
    select.query_row([id.0], read_task).optional()
}

/// Reads a row of `failed_attempts`: task, attempt, failed_at, worker, error_code, error.
pub(super) fn read_attempt(row: &Row<'_>) -> rusqlite::Result<FailedAttempt> {
    Ok(FailedAttempt {
        id: read_id(row, 0)?,
        attempts: row.get(1)?,
        at: row.get(2)?,
        worker: row.get_ref(3)?.as_str()?.into(),
        failure: read_failure(row, 4, 5)?.ok_or_else(|| wrong(4, Type::Null))?,
    })
}

/// Why a row could not be written.
#[derive(Debug)]
pub(super) enum WriteError {
    Sqlite(rusqlite::Error),
    Damaged,
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        WriteError::Sqlite(error)
    }
}

impl From<Damaged> for WriteError {
    fn from(_: Damaged) -> Self {
        WriteError::Damaged
    }
}

/// The statements with which what the journal says goes into the tables.
pub(super) struct RowWriting<'a> {
    insert_plain: CachedStatement<'a>,
    insert_full: CachedStatement<'a>,
    update_open: CachedStatement<'a>,
    update_failed: CachedStatement<'a>,
    update_ended: CachedStatement<'a>,
    delete: CachedStatement<'a>,
    delete_attempts: CachedStatement<'a>,
    insert_attempt: CachedStatement<'a>,
    insert_key: CachedStatement<'a>,
}

impl<'a> RowWriting<'a> {
    pub(super) fn new(connection: &'a Connection) -> rusqlite::Result<Self> {
        Ok(RowWriting {
            insert_plain: connection.prepare_cached(
                "INSERT OR IGNORE INTO tasks (id, action, state, priority, max_attempts, attempts, created_at, \
                 ended_at, payload, result) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?,
            insert_full: connection.prepare_cached(&format!(
                "INSERT OR IGNORE INTO tasks ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
                 ?13, ?14, ?15, ?16, ?17, ?18)"
            ))?,
            update_open: connection.prepare_cached(
                "UPDATE tasks SET state = ?2, attempts = ?3, due_at = ?4, ended_at = NULL WHERE id = ?1",
            )?,
            update_failed: connection
                .prepare_cached("UPDATE tasks SET error_code = ?2, error = ?3 WHERE id = ?1")?,
            update_ended: connection.prepare_cached(
                "UPDATE tasks SET state = ?2, attempts = ?3, ended_at = ?4, result = ?5, result_blob = ?6, \
                 error_code = ?7, error = ?8, payload = iif(?2 = 5, payload, NULL) WHERE id = ?1",
            )?,
            delete: connection.prepare_cached("DELETE FROM tasks WHERE id = ?1")?,
            delete_attempts: connection.prepare_cached("DELETE FROM failed_attempts WHERE task = ?1")?,
            insert_attempt: connection.prepare_cached(
                "INSERT OR IGNORE INTO failed_attempts (task, attempt, failed_at, worker, error_code, error) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?,
            insert_key: connection
                .prepare_cached("INSERT OR REPLACE INTO idempotency_keys (key, task, until) VALUES (?1, ?2, ?3)")?,
        })
    }

    /// Writes a task that has no row yet, as it is now.
    pub(super) fn insert(&mut self, stored: &StoredTask) -> rusqlite::Result<()> {
        let task = &stored.task;
        let plain = task.due_at.is_none()
            && task.deadline_at.is_none()
            && task.backoff == Backoff::default()
            && stored.failure.is_none();
        let keeps_payload = !stored.state.is_ended() || stored.state == TaskState::Dead;
        let payload = inline(&task.payload).filter(|_| keeps_payload);
        let result = stored.result.as_ref().and_then(inline);
        let payload_blob = task.payload.blob().map(BlobKey::as_str);
        let result_blob = stored.result.as_ref().and_then(Body::blob).map(BlobKey::as_str);
        let action: &str = &task.action;
        if plain && payload_blob.is_none() && result_blob.is_none() {
            self.insert_plain.execute(params![
                task.id.0,
                action,
                stored.state as u8,
                task.priority,
                task.max_attempts,
                stored.attempts,
                task.created_at,
                stored.ended_at,
                payload,
                result,
            ])?;
            return Ok(());
        }
        self.insert_full.execute(params![
            task.id.0,
            action,
            stored.state as u8,
            task.priority,
            task.max_attempts,
            stored.attempts,
            task.created_at,
            stored.ended_at,
            payload,
            result,
            stored.failure.as_ref().map(|failure| failure.code.number()),
            stored.failure.as_ref().map(|failure| failure.message.as_str()),
            task.due_at,
            task.deadline_at,
            task.backoff.first_ms,
            task.backoff.most_ms,
            payload_blob,
            result_blob,
        ])?;
        Ok(())
    }

    /// Brings a task's row up to what the journal says.
    pub(super) fn update(&mut self, id: TaskId, view: &View) -> Result<(), WriteError> {
        if view.dropped {
            self.delete.execute([id.0])?;
            self.delete_attempts.execute([id.0])?;
            return Ok(());
        }
        if let Some((row, offset)) = view.ended.as_ref().filter(|_| view.state.is_ended()) {
            let outcome = record::read_finish(row, *offset)?;
            let result = Some(&outcome.result).filter(|_| outcome.state == TaskState::Done);
            self.update_ended.execute(params![
                id.0,
                view.state as u8,
                view.attempts,
                outcome.at,
                result.and_then(inline),
                result.and_then(Body::blob).map(BlobKey::as_str),
                outcome.failure.as_ref().map(|failure| failure.code.number()),
                outcome.failure.as_ref().map(|failure| failure.message.as_str()),
            ])?;
            return Ok(());
        }
        if view.state.is_ended() {
            // It ended in a record before these, and its row says so already.
            return Ok(());
        }
        self.update_open.execute(params![id.0, view.state as u8, view.attempts, view.due_at])?;
        if let Some((row, offset)) = &view.failed {
            let failure = record::read_retry(row, *offset)?.0.failure;
            self.update_failed.execute(params![id.0, failure.code.number(), failure.message])?;
        }
        Ok(())
    }

    /// Adds to a task's history.
    pub(super) fn attempt(&mut self, attempt: &FailedAttempt) -> rusqlite::Result<()> {
        self.insert_attempt.execute(params![
            attempt.id.0,
            attempt.attempts,
            attempt.at,
            attempt.worker.as_ref(),
            attempt.failure.code.number(),
            attempt.failure.message,
        ])?;
        Ok(())
    }

    /// Notes what a key stands for.
    pub(super) fn key(&mut self, key: &[u8], task: TaskId, until: i64) -> rusqlite::Result<()> {
        self.insert_key.execute(params![key, task.0, until])?;
        Ok(())
    }
}

fn inline(body: &Body) -> Option<&[u8]> {
    match body {
        Body::Inline(bytes) => Some(bytes),
        Body::Blob(_) => None,
    }
}
