//! Rows of the tables: reading and writing them.

use bytes::Bytes;
use reparto_protocol::ErrorCode;
use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};

use super::overlay::{Entry, Overlay};
use super::record::{self, AcceptRef, BodyRef, Damaged, FailureRef, FinishRef};
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
        reply: None,
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
                 ended_at, payload, result, backoff_first_ms, backoff_most_ms) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
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
    pub(super) fn insert(
        &mut self,
        task: &AcceptRef<'_>,
        overlay: &Overlay,
        entry: &Entry,
    ) -> Result<(), WriteError> {
        let ended = ended(overlay, entry)?;
        let failure = failure(overlay, entry, ended.as_ref())?;
        let result = ended.and_then(|outcome| outcome.result());
        let keeps_payload = !entry.state.is_ended() || entry.state == TaskState::Dead;
        let payload = task.payload.inline().filter(|_| keeps_payload);
        let ended_at = ended.map(|outcome| outcome.at);
        let is_plain = entry.due_at.is_none()
            && task.deadline_at.is_none()
            && failure.is_none()
            && task.payload.blob().is_none()
            && result.is_none_or(|result| result.blob().is_none());
        if is_plain {
            self.insert_plain.execute(params![
                task.id.0,
                task.action,
                entry.state as u8,
                task.priority,
                task.max_attempts,
                entry.attempts,
                task.created_at,
                ended_at,
                payload,
                result.and_then(BodyRef::inline),
                task.backoff.first_ms,
                task.backoff.most_ms,
            ])?;
            return Ok(());
        }
        self.insert_full.execute(params![
            task.id.0,
            task.action,
            entry.state as u8,
            task.priority,
            task.max_attempts,
            entry.attempts,
            task.created_at,
            ended_at,
            payload,
            result.and_then(BodyRef::inline),
            failure.map(|failure| failure.code),
            failure.map(|failure| failure.message),
            entry.due_at,
            task.deadline_at,
            task.backoff.first_ms,
            task.backoff.most_ms,
            task.payload.blob(),
            result.and_then(BodyRef::blob),
        ])?;
        Ok(())
    }

    /// Brings a task's row up to what the journal says.
    pub(super) fn update(&mut self, id: TaskId, overlay: &Overlay, entry: &Entry) -> Result<(), WriteError> {
        if entry.dropped {
            self.delete.execute([id.0])?;
            self.delete_attempts.execute([id.0])?;
            return Ok(());
        }
        if !entry.state.is_ended() {
            self.update_open.execute(params![id.0, entry.state as u8, entry.attempts, entry.due_at])?;
            if let Some(failure) = failure(overlay, entry, None)? {
                self.update_failed.execute(params![id.0, failure.code, failure.message])?;
            }
            return Ok(());
        }
        // Without its outcome's record its row says already how it ended.
        if let Some(outcome) = ended(overlay, entry)? {
            let result = outcome.result();
            self.update_ended.execute(params![
                id.0,
                entry.state as u8,
                entry.attempts,
                outcome.at,
                result.and_then(BodyRef::inline),
                result.and_then(BodyRef::blob),
                outcome.failure.map(|failure| failure.code),
                outcome.failure.map(|failure| failure.message),
            ])?;
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

/// How a task that has ended did so, if the journal says it.
fn ended<'a>(overlay: &'a Overlay, entry: &Entry) -> Result<Option<FinishRef<'a>>, Damaged> {
    let record = overlay.record_at(entry.ended).filter(|_| entry.state.is_ended());
    record.map(|(row, offset)| FinishRef::read(row, offset)).transpose()
}

/// Why a task, or its last attempt, failed, if the journal says it.
fn failure<'a>(
    overlay: &'a Overlay,
    entry: &Entry,
    ended: Option<&FinishRef<'a>>,
) -> Result<Option<FailureRef<'a>>, Damaged> {
    if let Some(outcome) = ended {
        return Ok(outcome.failure);
    }
    overlay.record_at(entry.failed).map(|(row, offset)| record::read_retry_failure(row, offset)).transpose()
}
