//! Rows of the tables: reading them, and the statements that bring many in at once.

use std::borrow::Cow;

use bytes::Bytes;
use postgres::Row;
use reparto_protocol::ErrorCode;
use uuid::Uuid;

use crate::storage::task::{
    Backoff, BlobKey, Body, FailedAttempt, Failure, MAX_ERROR_LEN, NewTask, StoredTask, TaskId, TaskState,
};

/// The columns that [`read_task`] reads, in its order.
macro_rules! columns {
    () => {
        "id, action, state, priority, max_attempts, attempts, created_at, ended_at, payload, result, error_code, \
         error, due_at, deadline_at, backoff_first_ms, backoff_most_ms, payload_blob, result_blob, reply"
    };
}
pub(super) use columns;

/// The same, without payloads and results that are longer than a list can show.
macro_rules! short_columns {
    () => {
        "id, action, state, priority, max_attempts, attempts, created_at, ended_at, \
         CASE WHEN octet_length(payload) <= 4096 THEN payload END, \
         CASE WHEN octet_length(result) <= 4096 THEN result END, error_code, error, due_at, deadline_at, \
         backoff_first_ms, backoff_most_ms, payload_blob, result_blob, reply"
    };
}
pub(super) use short_columns;

/// About what a row of [`columns`] takes in memory.
macro_rules! size {
    () => {
        "(400 + coalesce(octet_length(payload), 0) + coalesce(octet_length(result), 0) \
         + coalesce(octet_length(error), 0))"
    };
}
pub(super) use size;

/// About what a row of [`short_columns`] takes in memory, at most.
macro_rules! short_size {
    () => {
        "(400 + least(coalesce(octet_length(payload), 0), 4096) + least(coalesce(octet_length(result), 0), 4096) \
         + coalesce(octet_length(error), 0))"
    };
}
pub(super) use short_size;

/// A row holds a value that Reparto never writes.
#[derive(Debug)]
pub(super) struct Damaged(pub(super) &'static str);

/// An id as PostgreSQL has it.
pub(super) fn uuid(id: TaskId) -> Uuid {
    Uuid::from_bytes(id.0)
}

/// An id as we have it.
pub(super) fn task_id(id: Uuid) -> TaskId {
    TaskId(id.into_bytes())
}

/// A state from its number.
pub(super) fn state(number: i16) -> Result<TaskState, Damaged> {
    u8::try_from(number).ok().and_then(TaskState::from_number).ok_or(Damaged("state"))
}

fn small(number: i16, column: &'static str) -> Result<u8, Damaged> {
    u8::try_from(number).map_err(|_| Damaged(column))
}

/// A blob's key from its text.
pub(super) fn blob(text: Option<&str>) -> Result<Option<BlobKey>, Damaged> {
    text.map(|text| BlobKey::new(text).ok_or(Damaged("blob"))).transpose()
}

fn body(row: &Row, inline: usize, key: usize) -> Result<Option<Body>, Damaged> {
    if let Some(key) = blob(row.get(key))? {
        return Ok(Some(Body::Blob(key)));
    }
    Ok(row.get::<_, Option<&[u8]>>(inline).map(|bytes| Body::Inline(Bytes::copy_from_slice(bytes))))
}

fn failure(code: Option<i32>, message: Option<&str>) -> Result<Option<Failure>, Damaged> {
    let Some(code) = code else { return Ok(None) };
    let code = u16::try_from(code).map_err(|_| Damaged("error_code"))?;
    Ok(Some(Failure::new(ErrorCode::from_number(code), message.unwrap_or_default())))
}

/// Reads a row that begins with [`columns`].
pub(super) fn read_task(row: &Row) -> Result<StoredTask, Damaged> {
    let state = state(row.get(2))?;
    let millis = |column: usize| u32::try_from(row.get::<_, i64>(column)).map_err(|_| Damaged("backoff"));
    let task = NewTask {
        id: task_id(row.get(0)),
        action: row.get::<_, &str>(1).into(),
        payload: body(row, 8, 16)?.unwrap_or_default(),
        priority: small(row.get(3), "priority")?,
        max_attempts: small(row.get(4), "max_attempts")?,
        created_at: row.get(6),
        due_at: row.get(12),
        deadline_at: row.get(13),
        backoff: Backoff { first_ms: millis(14)?, most_ms: millis(15)? },
        idempotency: None,
        reply: row.get::<_, Option<&str>>(18).map(Into::into),
    };
    let result = body(row, 9, 17)?;
    Ok(StoredTask {
        task,
        state,
        attempts: small(row.get(5), "attempts")?,
        ended_at: row.get(7),
        result: if state == TaskState::Done { Some(result.unwrap_or_default()) } else { None },
        failure: failure(row.get(10), row.get(11))?,
    })
}

/// Reads a row of task, attempt, failed_at, worker, error_code, error.
pub(super) fn read_attempt(row: &Row) -> Result<FailedAttempt, Damaged> {
    Ok(FailedAttempt {
        id: task_id(row.get(0)),
        attempts: small(row.get(1), "attempt")?,
        at: row.get(2),
        worker: row.get::<_, &str>(3).into(),
        failure: failure(Some(row.get(4)), Some(row.get(5)))?.ok_or(Damaged("error_code"))?,
    })
}

/// The wall clock, in microseconds since 1970.
pub(super) fn wall_clock() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// An error's text, cut to what is kept, and without the one character that PostgreSQL cannot keep.
pub(super) fn error_text(text: &str) -> Cow<'_, str> {
    let mut end = text.len().min(MAX_ERROR_LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    storable(&text[..end])
}

/// A text in which the character 0, which PostgreSQL refuses in texts, has been replaced.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{FFFD}")) } else { Cow::Borrowed(text) }
}
