//! What a store knows of a task: its id, its options, where it stands, and how it ended.
//!
//! Times are microseconds since 1970, UTC, as `i64`; ids are 16 bytes. Both are the same in every store.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

pub use reparto_protocol::TaskState;

/// Longest name of an action, in bytes.
pub const MAX_ACTION_LEN: usize = 255;
/// Longest idempotency key, in bytes.
pub const MAX_KEY_LEN: usize = 1024;
/// Longest text of an error that is kept, in bytes; a longer one is cut.
pub const MAX_ERROR_LEN: usize = 16 * 1024;
/// Longest [`NewTask::reply`], in bytes.
pub const MAX_REPLY_LEN: usize = 4096;
/// Longest key of a blob, in bytes.
pub const MAX_BLOB_KEY_LEN: usize = 255;

/// A task's id: a UUIDv7, so ids grow with the time at which they were made. It is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub [u8; 16]);

impl TaskId {
    /// The smallest id that can have been made at `at`, in microseconds since 1970, or later.
    #[must_use]
    pub fn first_at(at: i64) -> TaskId {
        let millis = (at / 1000).clamp(0, (1 << 48) - 1);
        TaskId(((millis as u128) << 80).to_be_bytes())
    }

    /// When it was made, in microseconds since 1970, to the millisecond.
    #[must_use]
    pub fn made_at(self) -> i64 {
        ((u128::from_be_bytes(self.0) >> 80) as i64) * 1000
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(formatter)
    }
}

/// A text is not a task's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a task id: a task id is a UUID, such as 0193a5c4-7d5e-7000-8000-000000000001")]
pub struct NotATaskId(String);

impl FromStr for TaskId {
    type Err = NotATaskId;

    fn from_str(text: &str) -> Result<Self, NotATaskId> {
        uuid::Uuid::try_parse(text).map(|id| TaskId(id.into_bytes())).map_err(|_| {
            let shown: String = text.chars().take(60).collect();
            NotATaskId(shown)
        })
    }
}

/// Makes ids that grow, also within a millisecond and when the clock is set back.
#[derive(Debug)]
pub struct TaskIds {
    last: u128,
}

/// The bits of a UUID that are its version and its variant.
const FIXED_BITS: u128 = (0xF << 76) | (0b11 << 62);
/// Version 7 and the variant of RFC 9562.
const VERSION_7: u128 = (0x7 << 76) | (0b10 << 62);

impl TaskIds {
    /// A maker of ids, without a past.
    #[must_use]
    pub fn new() -> Self {
        TaskIds { last: 0 }
    }

    /// The next id at `now`, in microseconds since 1970.
    ///
    /// A new millisecond begins at a random number; within one the ids count up.
    pub fn next(&mut self, now: i64) -> TaskId {
        let millis = (now / 1000).clamp(0, (1 << 48) - 1) as u128;
        if millis > self.last >> 80 {
            // The lowest 62 bits begin below a quarter of their range, so counting up cannot reach their end.
            let random = uuid::Uuid::new_v4().as_u128() & !(0b1111 << 60);
            self.last = (millis << 80) | (random & ((1 << 80) - 1) & !FIXED_BITS) | VERSION_7;
        } else {
            self.last += 1;
        }
        TaskId(self.last.to_be_bytes())
    }
}

impl Default for TaskIds {
    fn default() -> Self {
        Self::new()
    }
}

/// Names a blob in the blob store: small letters, digits, `-` and `.`, up to [`MAX_BLOB_KEY_LEN`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobKey(Arc<str>);

impl BlobKey {
    /// A key from its text; `None` when it is not one.
    #[must_use]
    pub fn new(text: &str) -> Option<BlobKey> {
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        let fits = (1..=MAX_BLOB_KEY_LEN).contains(&text.len()) && !text.starts_with('.');
        (fits && text.bytes().all(plain)).then(|| BlobKey(text.into()))
    }

    /// A new key for a task's payload or result. Each call makes another, so that a second result of a task,
    /// which will be dropped, does not overwrite the first.
    #[must_use]
    pub fn for_task(task: TaskId, what: BlobKind) -> BlobKey {
        let number = uuid::Uuid::new_v4().as_u128() as u64;
        let what = match what {
            BlobKind::Payload => "payload",
            BlobKind::Result => "result",
        };
        BlobKey(format!("{task}.{what}.{number:016x}").into())
    }

    /// A key that no blob has, to ask a store whether it answers.
    #[must_use]
    pub(super) fn probe() -> BlobKey {
        BlobKey("probe".into())
    }

    /// The task that it belongs to, if [`for_task`](Self::for_task) made it.
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        self.0.split('.').next()?.parse().ok()
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a blob is to its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobKind {
    /// What it was handed in with.
    Payload,
    /// What came out.
    Result,
}

/// A payload or a result: small ones stand in the row, large ones in the blob store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// In the row.
    Inline(Bytes),
    /// In the blob store, under this key.
    Blob(BlobKey),
}

impl Body {
    /// The key, if it is in the blob store.
    #[must_use]
    pub fn blob(&self) -> Option<&BlobKey> {
        match self {
            Body::Inline(_) => None,
            Body::Blob(key) => Some(key),
        }
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        match self {
            Body::Inline(bytes) => bytes.len(),
            Body::Blob(key) => key.as_str().len(),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Body::Inline(Bytes::new())
    }
}

/// How long a retry waits. The store only keeps it; who runs the task reckons with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    /// Before the second attempt, in milliseconds; 0 for at once. It doubles with every further one.
    pub first_ms: u32,
    /// The longest wait, in milliseconds.
    pub most_ms: u32,
}

/// The same key within its window stands for the same task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key, up to [`MAX_KEY_LEN`] bytes. Who makes it sees to it that those of different clients differ.
    pub key: Bytes,
    /// When its window ends.
    pub until: i64,
}

/// A background task as it is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// Its id, which no other task had.
    pub id: TaskId,
    /// What to do.
    pub action: Arc<str>,
    /// What to do it with.
    pub payload: Body,
    /// 0 to 9, higher goes first.
    pub priority: u8,
    /// Attempts before it is dead.
    pub max_attempts: u8,
    /// When it was taken in.
    pub created_at: i64,
    /// When it may begin; `None` for at once.
    pub due_at: Option<i64>,
    /// When it expires.
    pub deadline_at: Option<i64>,
    /// How long its retries wait.
    pub backoff: Backoff,
    /// What keeps it from being accepted twice.
    pub idempotency: Option<IdempotencyKey>,
    /// Where its outcome is owed to, in words of whoever hands it in, up to [`MAX_REPLY_LEN`] bytes. Gone once that is
    /// settled ([`Operation::Settle`](super::Operation::Settle)). Only a store that balancers share keeps it.
    pub reply: Option<Arc<str>>,
}

impl NewTask {
    /// A task with the usual options.
    #[must_use]
    pub fn new(id: TaskId, action: &str, payload: impl Into<Bytes>, created_at: i64) -> Self {
        NewTask {
            id,
            action: action.into(),
            payload: Body::Inline(payload.into()),
            priority: reparto_protocol::limits::DEFAULT_PRIORITY,
            max_attempts: reparto_protocol::limits::DEFAULT_MAX_ATTEMPTS,
            created_at,
            due_at: None,
            deadline_at: None,
            backoff: Backoff::default(),
            idempotency: None,
            reply: None,
        }
    }
}

/// Why an attempt or a task failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its stable code.
    pub code: ErrorCode,
    /// A sentence; cut at [`MAX_ERROR_LEN`] bytes.
    pub message: String,
}

impl Failure {
    /// A failure with its sentence.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

/// How a task ended. The first one of a task is recorded, later ones are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Which task.
    pub id: TaskId,
    /// An ended state.
    pub state: TaskState,
    /// Attempts that it used.
    pub attempts: u8,
    /// When.
    pub at: i64,
    /// What came out; empty unless it is done.
    pub result: Body,
    /// Why it is not done.
    pub failure: Option<Failure>,
}

impl Outcome {
    /// It ended with a result.
    #[must_use]
    pub fn done(id: TaskId, attempts: u8, at: i64, result: impl Into<Bytes>) -> Self {
        let result = Body::Inline(result.into());
        Outcome { id, state: TaskState::Done, attempts, at, result, failure: None }
    }

    /// It ended without a result.
    #[must_use]
    pub fn without_result(id: TaskId, state: TaskState, attempts: u8, at: i64, failure: Failure) -> Self {
        Outcome { id, state, attempts, at, result: Body::default(), failure: Some(failure) }
    }
}

/// One attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Which task.
    pub id: TaskId,
    /// Attempts used with this one: 1 for the first.
    pub attempts: u8,
    /// When it failed.
    pub at: i64,
    /// The worker that had it; empty when that is not known.
    pub worker: Arc<str>,
    /// Why.
    pub failure: Failure,
}

/// A task as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTask {
    /// As it was accepted. A task that ended other than dead has lost an inline payload; `idempotency` is never
    /// filled in; `due_at` is that of its next attempt.
    pub task: NewTask,
    /// Where it stands.
    pub state: TaskState,
    /// Attempts used.
    pub attempts: u8,
    /// When it ended.
    pub ended_at: Option<i64>,
    /// What came out.
    pub result: Option<Body>,
    /// Why it, or its last attempt, failed.
    pub failure: Option<Failure>,
}

impl StoredTask {
    /// A task that was accepted, and nothing more.
    #[must_use]
    pub fn accepted(task: NewTask) -> Self {
        let state = if task.due_at.is_some() { TaskState::Scheduled } else { TaskState::Queued };
        StoredTask { task, state, attempts: 0, ended_at: None, result: None, failure: None }
    }

    /// About what it takes in memory, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let result = self.result.as_ref().map_or(0, Body::memory);
        let failure = self.failure.as_ref().map_or(0, |failure| failure.message.len());
        size_of::<StoredTask>() + self.task.action.len() + self.task.payload.memory() + result + failure
    }

    /// The blobs that belong to it.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobKey> {
        self.task.payload.blob().into_iter().chain(self.result.as_ref().and_then(Body::blob))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_within_a_millisecond_and_when_the_clock_is_set_back() {
        let mut ids = TaskIds::new();
        let mut last = TaskId([0; 16]);
        for now in [1_000_000, 1_000_000, 1_000_999, 2_000_000, 1_500_000, 2_000_001, 3_000_000] {
            let id = ids.next(now);
            assert!(id > last, "{id} after {last}");
            assert!(id >= TaskId::first_at(now));
            let uuid = uuid::Uuid::from_bytes(id.0);
            assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
            last = id;
        }
        assert_eq!(last.made_at(), 3_000_000);
    }

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = TaskIds::new().next(1_700_000_000_000_000);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(
            "nonsense".parse::<TaskId>().unwrap_err().to_string().contains("'nonsense' is not a task id")
        );
    }

    #[test]
    fn a_blob_key_names_its_task_and_no_folder() {
        let id = TaskIds::new().next(1_700_000_000_000_000);
        let key = BlobKey::for_task(id, BlobKind::Result);
        assert_eq!(key.task(), Some(id));
        assert_eq!(BlobKey::new(key.as_str()), Some(key));
        for wrong in ["", "../x", "a/b", ".hidden", "A", &"x".repeat(256)] {
            assert_eq!(BlobKey::new(wrong), None, "{wrong}");
        }
    }
}
