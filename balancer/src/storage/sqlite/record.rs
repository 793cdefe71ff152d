//! The records of the journal: operations as bytes, many of them in one packed row.
//!
//! A row begins with the format's number. A record is its kind (u8), the length of its body (u32), the task's id
//! (16 bytes) and the body; numbers are little-endian. What is written here is read again after a crash, perhaps
//! by a later release: kinds and layouts are only ever added.

use bytes::{Buf, BufMut, Bytes};
use reparto_protocol::ErrorCode;

use crate::storage::task::{
    Backoff, BlobKey, Body, FailedAttempt, Failure, IdempotencyKey, MAX_ERROR_LEN, NewTask, Outcome, TaskId,
    TaskState,
};

/// The first byte of a row.
const FORMAT: u8 = 1;
/// Bytes before a record's body.
const HEAD: usize = 1 + 4 + 16;

const HAS_DUE: u8 = 1;
const HAS_DEADLINE: u8 = 1 << 1;
const HAS_BACKOFF: u8 = 1 << 2;
const HAS_KEY: u8 = 1 << 3;
const HAS_BLOB: u8 = 1 << 4;
const HAS_FAILURE: u8 = 1 << 5;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Accept = 1,
    Start = 2,
    Queue = 3,
    Retry = 4,
    Finish = 5,
    Revive = 6,
    Drop = 7,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Accept, Kind::Start, Kind::Queue, Kind::Retry, Kind::Finish, Kind::Revive, Kind::Drop];
}

/// Bytes are not records.
#[derive(Debug)]
pub(super) struct Damaged;

/// A row being written.
#[derive(Debug)]
pub(super) struct RowWriter {
    bytes: Vec<u8>,
    count: usize,
    last: Option<TaskId>,
}

impl RowWriter {
    pub(super) fn new() -> Self {
        RowWriter { bytes: vec![FORMAT], count: 0, last: None }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The task of the last record.
    pub(super) fn last(&self) -> Option<TaskId> {
        self.last
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }

    /// Writes one record and returns where it begins.
    fn record(&mut self, kind: Kind, id: TaskId, body: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let start = self.bytes.len();
        self.bytes.put_u8(kind as u8);
        self.bytes.put_u32_le(0);
        self.bytes.put_slice(&id.0);
        body(&mut self.bytes);
        let len = (self.bytes.len() - start - HEAD) as u32;
        self.bytes[start + 1..start + 5].copy_from_slice(&len.to_le_bytes());
        self.count += 1;
        self.last = Some(id);
        start as u32
    }

    pub(super) fn plain(&mut self, kind: Kind, id: TaskId) -> u32 {
        self.record(kind, id, |_| ())
    }

    pub(super) fn accept(&mut self, task: &NewTask) -> u32 {
        self.record(Kind::Accept, task.id, |out| {
            let mut flags = 0;
            flags |= if task.due_at.is_some() { HAS_DUE } else { 0 };
            flags |= if task.deadline_at.is_some() { HAS_DEADLINE } else { 0 };
            flags |= if task.backoff != Backoff::default() { HAS_BACKOFF } else { 0 };
            flags |= if task.idempotency.is_some() { HAS_KEY } else { 0 };
            flags |= if task.payload.blob().is_some() { HAS_BLOB } else { 0 };
            out.put_u8(flags);
            out.put_u8(task.priority);
            out.put_u8(task.max_attempts);
            out.put_i64_le(task.created_at);
            put_text(out, &task.action);
            if let Some(at) = task.due_at {
                out.put_i64_le(at);
            }
            if let Some(at) = task.deadline_at {
                out.put_i64_le(at);
            }
            if flags & HAS_BACKOFF != 0 {
                out.put_u32_le(task.backoff.first_ms);
                out.put_u32_le(task.backoff.most_ms);
            }
            if let Some(key) = &task.idempotency {
                put_bytes(out, &key.key);
                out.put_i64_le(key.until);
            }
            put_body(out, &task.payload);
        })
    }

    pub(super) fn retry(&mut self, attempt: &FailedAttempt, due_at: Option<i64>) -> u32 {
        self.record(Kind::Retry, attempt.id, |out| {
            out.put_u8(if due_at.is_some() { HAS_DUE } else { 0 });
            out.put_u8(attempt.attempts);
            out.put_i64_le(attempt.at);
            if let Some(at) = due_at {
                out.put_i64_le(at);
            }
            put_text(out, &attempt.worker);
            put_failure(out, &attempt.failure);
        })
    }

    pub(super) fn finish(&mut self, outcome: &Outcome) -> u32 {
        self.record(Kind::Finish, outcome.id, |out| {
            let mut flags = 0;
            flags |= if outcome.result.blob().is_some() { HAS_BLOB } else { 0 };
            flags |= if outcome.failure.is_some() { HAS_FAILURE } else { 0 };
            out.put_u8(flags);
            out.put_u8(outcome.state as u8);
            out.put_u8(outcome.attempts);
            out.put_i64_le(outcome.at);
            if let Some(failure) = &outcome.failure {
                put_failure(out, failure);
            }
            put_body(out, &outcome.result);
        })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_failure(out: &mut Vec<u8>, failure: &Failure) {
    out.put_u16_le(failure.code.number());
    put_text(out, cut(&failure.message));
}

fn put_body(out: &mut Vec<u8>, body: &Body) {
    match body {
        Body::Inline(bytes) => put_bytes(out, bytes),
        Body::Blob(key) => put_text(out, key.as_str()),
    }
}

/// An error's text, cut to what is kept.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_ERROR_LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One record in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Where it begins in the row.
    pub(super) offset: u32,
    pub(super) kind: Kind,
    pub(super) id: TaskId,
}

/// The records of a row, in order. Ends after the first damaged one.
pub(super) struct Records<'a> {
    row: &'a Bytes,
    at: usize,
}

impl<'a> Records<'a> {
    /// # Errors
    ///
    /// [`Damaged`] when the row has another format.
    pub(super) fn of(row: &'a Bytes) -> Result<Self, Damaged> {
        if row.first() == Some(&FORMAT) { Ok(Records { row, at: 1 }) } else { Err(Damaged) }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.row.len() {
            return None;
        }
        let found = head(self.row, self.at);
        self.at = found.as_ref().map_or(self.row.len(), |(_, end)| *end);
        Some(found.map(|(record, _)| record))
    }
}

/// The record that begins at `at`, and where it ends.
fn head(row: &[u8], at: usize) -> Result<(Record, usize), Damaged> {
    let bytes = row.get(at..).ok_or(Damaged)?;
    let (head, body) = bytes.split_first_chunk::<HEAD>().ok_or(Damaged)?;
    let kind = *Kind::ALL.get(usize::from(head[0]).wrapping_sub(1)).ok_or(Damaged)?;
    let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if len > body.len() {
        return Err(Damaged);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&head[5..]);
    Ok((Record { offset: at as u32, kind, id: TaskId(id) }, at + HEAD + len))
}

/// The body of the record at `offset`, which must be of this kind.
fn body(row: &[u8], offset: u32, kind: Kind) -> Result<(TaskId, &[u8]), Damaged> {
    let at = offset as usize;
    let (record, end) = head(row, at)?;
    if record.kind == kind { Ok((record.id, &row[at + HEAD..end])) } else { Err(Damaged) }
}

/// A payload or a result where it stands in the row.
#[derive(Debug, Clone, Copy)]
pub(super) enum BodyRef<'a> {
    Inline(&'a [u8]),
    Blob(&'a str),
}

impl<'a> BodyRef<'a> {
    fn to_body(self, row: &Bytes) -> Result<Body, Damaged> {
        match self {
            BodyRef::Inline(bytes) => Ok(Body::Inline(row.slice_ref(bytes))),
            BodyRef::Blob(key) => BlobKey::new(key).map(Body::Blob).ok_or(Damaged),
        }
    }

    pub(super) fn inline(self) -> Option<&'a [u8]> {
        match self {
            BodyRef::Inline(bytes) => Some(bytes),
            BodyRef::Blob(_) => None,
        }
    }

    pub(super) fn blob(self) -> Option<&'a str> {
        match self {
            BodyRef::Inline(_) => None,
            BodyRef::Blob(key) => Some(key),
        }
    }
}

/// A failure where it stands in the row.
#[derive(Debug, Clone, Copy)]
pub(super) struct FailureRef<'a> {
    /// Its code's number.
    pub(super) code: u16,
    pub(super) message: &'a str,
}

impl FailureRef<'_> {
    fn to_failure(self) -> Failure {
        Failure { code: ErrorCode::from_number(self.code), message: self.message.to_owned() }
    }
}

/// A task where it stands in the row: writing a million of them behind allocates nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct AcceptRef<'a> {
    pub(super) id: TaskId,
    pub(super) action: &'a str,
    pub(super) payload: BodyRef<'a>,
    pub(super) priority: u8,
    pub(super) max_attempts: u8,
    pub(super) created_at: i64,
    due_at: Option<i64>,
    pub(super) deadline_at: Option<i64>,
    pub(super) backoff: Backoff,
    /// The idempotency key, and when its window ends.
    pub(super) key: Option<(&'a [u8], i64)>,
}

impl<'a> AcceptRef<'a> {
    pub(super) fn read(row: &'a [u8], offset: u32) -> Result<Self, Damaged> {
        let (id, mut from) = body(row, offset, Kind::Accept)?;
        let flags = from.try_get_u8()?;
        let priority = from.try_get_u8()?;
        let max_attempts = from.try_get_u8()?;
        let created_at = from.try_get_i64_le()?;
        let action = get_text(&mut from)?;
        let due_at = (flags & HAS_DUE != 0).then(|| from.try_get_i64_le()).transpose()?;
        let deadline_at = (flags & HAS_DEADLINE != 0).then(|| from.try_get_i64_le()).transpose()?;
        let backoff = if flags & HAS_BACKOFF != 0 {
            Backoff { first_ms: from.try_get_u32_le()?, most_ms: from.try_get_u32_le()? }
        } else {
            Backoff::default()
        };
        let key =
            if flags & HAS_KEY != 0 { Some((get_bytes(&mut from)?, from.try_get_i64_le()?)) } else { None };
        let payload = get_body(&mut from, flags)?;
        Ok(AcceptRef {
            id,
            action,
            payload,
            priority,
            max_attempts,
            created_at,
            due_at,
            deadline_at,
            backoff,
            key,
        })
    }
}

/// An outcome where it stands in the row.
#[derive(Debug, Clone, Copy)]
pub(super) struct FinishRef<'a> {
    id: TaskId,
    state: TaskState,
    attempts: u8,
    pub(super) at: i64,
    result: BodyRef<'a>,
    pub(super) failure: Option<FailureRef<'a>>,
}

impl<'a> FinishRef<'a> {
    pub(super) fn read(row: &'a [u8], offset: u32) -> Result<Self, Damaged> {
        let (id, mut from) = body(row, offset, Kind::Finish)?;
        let flags = from.try_get_u8()?;
        let state =
            TaskState::from_number(from.try_get_u8()?).filter(|state| state.is_ended()).ok_or(Damaged)?;
        let attempts = from.try_get_u8()?;
        let at = from.try_get_i64_le()?;
        let failure = (flags & HAS_FAILURE != 0).then(|| get_failure(&mut from)).transpose()?;
        let result = get_body(&mut from, flags)?;
        Ok(FinishRef { id, state, attempts, at, result, failure })
    }

    /// What came out, if anything can have.
    pub(super) fn result(&self) -> Option<BodyRef<'a>> {
        (self.state == TaskState::Done).then_some(self.result)
    }
}

/// Reads a task back. Its payload is a part of the row's memory.
pub(super) fn read_accept(row: &Bytes, offset: u32) -> Result<NewTask, Damaged> {
    let task = AcceptRef::read(row, offset)?;
    Ok(NewTask {
        id: task.id,
        action: task.action.into(),
        payload: task.payload.to_body(row)?,
        priority: task.priority,
        max_attempts: task.max_attempts,
        created_at: task.created_at,
        due_at: task.due_at,
        deadline_at: task.deadline_at,
        backoff: task.backoff,
        idempotency: task.key.map(|(key, until)| IdempotencyKey { key: row.slice_ref(key), until }),
        reply: None,
    })
}

/// Why the attempt of the record at `offset` failed.
pub(super) fn read_retry_failure(row: &[u8], offset: u32) -> Result<FailureRef<'_>, Damaged> {
    let (_, mut from) = body(row, offset, Kind::Retry)?;
    let flags = from.try_get_u8()?;
    let numbers = if flags & HAS_DUE != 0 { 1 + 8 + 8 } else { 1 + 8 };
    from = from.get(numbers..).ok_or(Damaged)?;
    get_text(&mut from)?;
    get_failure(&mut from)
}

/// Reads a failed attempt back, and when the next one is due.
pub(super) fn read_retry(row: &[u8], offset: u32) -> Result<(FailedAttempt, Option<i64>), Damaged> {
    let (id, mut from) = body(row, offset, Kind::Retry)?;
    let flags = from.try_get_u8()?;
    let attempts = from.try_get_u8()?;
    let at = from.try_get_i64_le()?;
    let due_at = (flags & HAS_DUE != 0).then(|| from.try_get_i64_le()).transpose()?;
    let worker = get_text(&mut from)?.into();
    let failure = get_failure(&mut from)?.to_failure();
    Ok((FailedAttempt { id, attempts, at, worker, failure }, due_at))
}

/// Reads an outcome back. Its result is a part of the row's memory.
pub(super) fn read_finish(row: &Bytes, offset: u32) -> Result<Outcome, Damaged> {
    let FinishRef { id, state, attempts, at, result, failure } = FinishRef::read(row, offset)?;
    let failure = failure.map(FailureRef::to_failure);
    Ok(Outcome { id, state, attempts, at, result: result.to_body(row)?, failure })
}

fn get_bytes<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], Damaged> {
    let len = from.try_get_u32_le()? as usize;
    let (bytes, rest) = from.split_at_checked(len).ok_or(Damaged)?;
    *from = rest;
    Ok(bytes)
}

fn get_text<'a>(from: &mut &'a [u8]) -> Result<&'a str, Damaged> {
    std::str::from_utf8(get_bytes(from)?).map_err(|_| Damaged)
}

fn get_failure<'a>(from: &mut &'a [u8]) -> Result<FailureRef<'a>, Damaged> {
    Ok(FailureRef { code: from.try_get_u16_le()?, message: get_text(from)? })
}

fn get_body<'a>(from: &mut &'a [u8], flags: u8) -> Result<BodyRef<'a>, Damaged> {
    if flags & HAS_BLOB == 0 {
        get_bytes(from).map(BodyRef::Inline)
    } else {
        get_text(from).map(BodyRef::Blob)
    }
}

impl From<bytes::TryGetError> for Damaged {
    fn from(_: bytes::TryGetError) -> Self {
        Damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::task::TaskIds;

    fn full_row() -> (Bytes, NewTask, FailedAttempt, Outcome) {
        let id = TaskIds::new().next(1_700_000_000_000_000);
        let mut task = NewTask::new(id, "thumbnail", "payload", 17);
        task.due_at = Some(18);
        task.deadline_at = Some(-19);
        task.backoff = Backoff { first_ms: 20, most_ms: 21 };
        task.idempotency = Some(IdempotencyKey { key: "key".into(), until: 22 });
        let attempt = FailedAttempt {
            id,
            attempts: 2,
            at: 23,
            worker: "ana".into(),
            failure: Failure::new(ErrorCode::WorkerFailed, "bad luck"),
        };
        let mut outcome = Outcome::without_result(
            id,
            TaskState::Dead,
            3,
            24,
            Failure::new(ErrorCode::AttemptsExhausted, "three times"),
        );
        outcome.result = Body::Blob(BlobKey::new("some-key").unwrap());
        let mut row = RowWriter::new();
        row.accept(&task);
        row.retry(&attempt, Some(25));
        row.finish(&outcome);
        row.plain(Kind::Drop, id);
        (row.into_bytes(), task, attempt, outcome)
    }

    #[test]
    fn every_record_reads_back_as_it_was_written() {
        let (row, task, attempt, outcome) = full_row();
        let records: Vec<Record> = Records::of(&row).unwrap().map(Result::unwrap).collect();
        assert_eq!(
            records.iter().map(|record| record.kind).collect::<Vec<_>>(),
            [Kind::Accept, Kind::Retry, Kind::Finish, Kind::Drop]
        );
        assert!(records.iter().all(|record| record.id == task.id));
        assert_eq!(read_accept(&row, records[0].offset).unwrap(), task);
        assert_eq!(read_retry(&row, records[1].offset).unwrap(), (attempt, Some(25)));
        assert_eq!(read_finish(&row, records[2].offset).unwrap(), outcome);
    }

    #[test]
    fn a_damaged_row_is_an_error_and_no_panic() {
        let (row, ..) = full_row();
        for cut in 0..row.len() {
            read_all(&row.slice(..cut));
        }
        for at in 0..row.len() {
            for bit in 0..8 {
                let mut bytes = row.to_vec();
                bytes[at] ^= 1 << bit;
                read_all(&bytes.into());
            }
        }
    }

    fn read_all(row: &Bytes) {
        let Ok(records) = Records::of(row) else { return };
        for record in records.map_while(Result::ok) {
            let _ = read_accept(row, record.offset);
            let _ = read_retry(row, record.offset);
            let _ = read_finish(row, record.offset);
        }
    }

    #[test]
    fn a_long_error_is_cut_between_two_characters() {
        let text = format!("x{}", "ñ".repeat(MAX_ERROR_LEN));
        assert_eq!(cut(&text).len(), MAX_ERROR_LEN - 1);
    }
}
