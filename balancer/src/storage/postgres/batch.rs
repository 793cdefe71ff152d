//! What a batch of operations does: looked at in memory over the rows that it touches, then written in few statements.
//!
//! One statement reads the rows of all tasks that are not new; the operations are answered in order as each finds its
//! task; then each task is written once, as it is after the last of them. A leader holds the leader's row, so nobody else
//! changes a task meanwhile; of balancers that share, each locks the rows that it reads, in the order of their ids. Each
//! update says all the same in which state it expects its row.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use postgres::Transaction;
use postgres::binary_copy::BinaryCopyInWriter;
use postgres::types::Type;
use uuid::Uuid;

use super::session::Statements;
use super::tables::{self, Damaged, error_text, storable, uuid, wall_clock};
use crate::storage::store::{Answer, Operation};
use crate::storage::task::{BlobKey, Body, FailedAttempt, Failure, NewTask, Outcome, TaskId, TaskState};

/// Rows from which on they are copied in, and not inserted. Against an insert from arrays a COPY was seen to take a
/// fifth less time with 4,096 rows, and the same with 64.
const COPIED_ROWS: usize = 16;

/// Why a batch could not be written.
#[derive(Debug)]
pub(super) enum BatchError {
    Postgres(postgres::Error),
    Damaged(&'static str),
    /// A row was not as it had been read: somebody else has changed it.
    Changed,
}

impl From<postgres::Error> for BatchError {
    fn from(error: postgres::Error) -> Self {
        BatchError::Postgres(error)
    }
}

impl From<Damaged> for BatchError {
    fn from(Damaged(column): Damaged) -> Self {
        BatchError::Damaged(column)
    }
}

/// Who writes a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// The one that leads; it owns whatever there is.
    Leader,
    /// One of those that share, by its number. It changes what it owns, accepts, and cancels.
    Sharing {
        id: i64,
        /// The batch may have been committed before, under another number.
        again: bool,
    },
}

impl Writer {
    fn id(self) -> Option<i64> {
        match self {
            Writer::Leader => None,
            Writer::Sharing { id, .. } => Some(id),
        }
    }
}

/// A task while the batch is looked at.
struct Task<'a> {
    /// Handed in by this batch, so that it has no row yet.
    new: Option<&'a NewTask>,
    /// The state of its row.
    was: TaskState,
    state: TaskState,
    attempts: u8,
    due_at: Option<i64>,
    /// Which of those that share holds it.
    owner: Option<i64>,
    /// It is to be published.
    freed: bool,
    /// Why its last attempt failed, if this batch says it.
    failure: Option<&'a Failure>,
    /// How it ended, if this batch says it.
    outcome: Option<&'a Outcome>,
    /// The blobs of its row.
    blobs: [Option<BlobKey>; 2],
    changed: bool,
    dropped: bool,
}

impl<'a> Task<'a> {
    fn new(task: &'a NewTask, owner: Option<i64>) -> Self {
        let state = if task.due_at.is_some() { TaskState::Scheduled } else { TaskState::Queued };
        Task {
            new: Some(task),
            was: state,
            state,
            attempts: 0,
            due_at: task.due_at,
            owner,
            freed: false,
            failure: None,
            outcome: None,
            blobs: [None, None],
            changed: false,
            dropped: false,
        }
    }

    fn step(&mut self, state: TaskState) {
        self.state = state;
        self.changed = true;
    }

    /// It is nobody's: to be published if it is queued.
    fn free(&mut self) {
        self.owner = None;
        self.freed = true;
    }

    fn blobs(&self) -> Vec<BlobKey> {
        let payload = self.new.map_or_else(|| self.blobs[0].clone(), |task| task.payload.blob().cloned());
        let result =
            self.outcome.map_or_else(|| self.blobs[1].clone(), |outcome| outcome.result.blob().cloned());
        payload.into_iter().chain(result).collect()
    }
}

/// A run of operations that concern single tasks.
pub(super) struct Batch<'a> {
    writer: Writer,
    tasks: HashMap<TaskId, Task<'a>>,
    /// New tasks, in their order.
    accepted: Vec<TaskId>,
    /// What each key of the batch stands for, and until when.
    keys: HashMap<&'a Bytes, (TaskId, i64)>,
    new_keys: BTreeMap<&'a Bytes, (TaskId, i64)>,
    attempts: Vec<&'a FailedAttempt>,
}

impl<'a> Batch<'a> {
    /// Reads what the operations are about.
    pub(super) fn read(
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
        operations: &'a [Operation],
        writer: Writer,
    ) -> Result<Self, BatchError> {
        let mut batch = Batch {
            writer,
            tasks: HashMap::new(),
            accepted: Vec::new(),
            keys: HashMap::new(),
            new_keys: BTreeMap::new(),
            attempts: Vec::new(),
        };
        let new: std::collections::HashSet<TaskId> = operations.iter().filter_map(accepted_id).collect();
        let mut ids: Vec<Uuid> =
            operations.iter().filter_map(concerned_id).filter(|id| !new.contains(id)).map(uuid).collect();
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            let select = match writer {
                Writer::Leader => {
                    "SELECT id, state, attempts, due_at, payload_blob, result_blob, NULL::bigint FROM tasks \
                     WHERE id = ANY($1)"
                }
                Writer::Sharing { .. } => {
                    "SELECT id, state, attempts, due_at, payload_blob, result_blob, owner FROM tasks \
                     WHERE id = ANY($1) ORDER BY id FOR UPDATE"
                }
            };
            let select = statements.get(transaction, select)?;
            for row in transaction.query(&select, &[&ids])? {
                let state = tables::state(row.get(1))?;
                let task = Task {
                    new: None,
                    was: state,
                    state,
                    attempts: u8::try_from(row.get::<_, i16>(2)).map_err(|_| Damaged("attempts"))?,
                    due_at: row.get(3),
                    owner: row.get(6),
                    freed: false,
                    failure: None,
                    outcome: None,
                    blobs: [tables::blob(row.get(4))?, tables::blob(row.get(5))?],
                    changed: false,
                    dropped: false,
                };
                batch.tasks.insert(tables::task_id(row.get(0)), task);
            }
        }
        let keys: HashMap<&[u8], &'a Bytes> =
            operations.iter().filter_map(key_of).map(|key| (&key[..], key)).collect();
        if !keys.is_empty() {
            if writer != Writer::Leader {
                lock_keys(transaction, statements, &keys)?;
            }
            let select = statements
                .get(transaction, "SELECT key, task, until FROM idempotency_keys WHERE key = ANY($1)")?;
            let wanted: Vec<&[u8]> = keys.keys().copied().collect();
            for row in transaction.query(&select, &[&wanted])? {
                if let Some(key) = keys.get(row.get::<_, &[u8]>(0)) {
                    batch.keys.insert(key, (tables::task_id(row.get(1)), row.get(2)));
                }
            }
        }
        Ok(batch)
    }

    /// Answers an operation, and remembers what it changes.
    pub(super) fn answer(&mut self, operation: &'a Operation) -> Answer {
        match operation {
            Operation::Accept(task) => self.accept(task),
            Operation::Start { id } => self.change_own(*id, |task| task.step(TaskState::Running)),
            Operation::Requeue { id } => self.change_own(*id, |task| task.step(TaskState::Queued)),
            Operation::Release { id } => self.change_own(*id, |task| {
                task.step(TaskState::Queued);
                task.free();
            }),
            Operation::Retry { attempt, due_at } => {
                let answer = self.change_own(attempt.id, |task| {
                    task.step(if due_at.is_some() { TaskState::Scheduled } else { TaskState::Queued });
                    task.attempts = attempt.attempts;
                    task.due_at = *due_at;
                    task.failure = Some(&attempt.failure);
                    if due_at.is_some() {
                        task.free();
                    }
                });
                if answer == Answer::Noted {
                    self.attempts.push(attempt);
                }
                answer
            }
            Operation::Finish(outcome) => {
                let end = |task: &mut Task<'a>| {
                    task.step(outcome.state);
                    task.attempts = outcome.attempts;
                    task.outcome = Some(outcome);
                    task.owner = None;
                };
                // Whoever has it, a client may cancel it anywhere.
                let answer = match outcome.state {
                    TaskState::Cancelled => self.change(outcome.id, end),
                    _ => self.change_own(outcome.id, end),
                };
                if answer == Answer::Noted { Answer::Recorded } else { answer }
            }
            Operation::Revive { id } => match self.tasks.get_mut(id).filter(|task| !task.dropped) {
                Some(task) if task.state == TaskState::Dead => {
                    task.step(TaskState::Queued);
                    task.free();
                    task.attempts = 0;
                    let outcome = task.outcome.take();
                    task.failure = outcome.and_then(|outcome| outcome.failure.as_ref()).or(task.failure);
                    Answer::Noted
                }
                Some(task) => Answer::NotNow(task.state),
                None => Answer::Unknown,
            },
            Operation::Drop { id } => match self.tasks.get_mut(id).filter(|task| !task.dropped) {
                Some(task) if task.state.is_ended() => {
                    task.dropped = true;
                    Answer::Removed { count: 1, more: false, blobs: task.blobs() }
                }
                Some(task) => Answer::NotNow(task.state),
                None => Answer::Unknown,
            },
            // Those that are about the tables are done to the tables; see `is_about_tables`.
            Operation::TakeDue { .. }
            | Operation::RemoveEnded { .. }
            | Operation::RemoveKeys { .. }
            | Operation::Claim { .. }
            | Operation::Settle { .. }
            | Operation::Sweep { .. } => Answer::Noted,
        }
    }

    fn accept(&mut self, task: &'a NewTask) -> Answer {
        if let Some(key) = &task.idempotency {
            if let Some((first, _)) = self.keys.get(&key.key).filter(|(_, until)| *until > task.created_at) {
                return Answer::SameKey(*first);
            }
            self.keys.insert(&key.key, (task.id, key.until));
            self.new_keys.insert(&key.key, (task.id, key.until));
        }
        if self.tasks.insert(task.id, Task::new(task, self.writer.id())).is_none() {
            self.accepted.push(task.id);
        }
        Answer::Accepted
    }

    /// Changes a task that has not ended and is the writer's own.
    fn change_own(&mut self, id: TaskId, change: impl FnOnce(&mut Task<'a>)) -> Answer {
        let me = self.writer.id();
        match self.tasks.get(&id) {
            Some(task) if !task.dropped && !task.state.is_ended() && task.owner != me => Answer::Elsewhere,
            _ => self.change(id, change),
        }
    }

    /// Changes a task that has not ended.
    fn change(&mut self, id: TaskId, change: impl FnOnce(&mut Task<'a>)) -> Answer {
        match self.tasks.get_mut(&id).filter(|task| !task.dropped) {
            None => Answer::Unknown,
            Some(task) if task.state.is_ended() => Answer::AlreadyEnded(task.state),
            Some(task) => {
                change(task);
                Answer::Noted
            }
        }
    }

    /// The tasks that end with this batch.
    pub(super) fn ended(&self) -> impl Iterator<Item = TaskId> {
        let ended = self.tasks.iter().filter(|(_, task)| task.outcome.is_some());
        ended.map(|(id, _)| *id)
    }

    /// Writes what was remembered.
    pub(super) fn write(
        &self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
    ) -> Result<(), BatchError> {
        self.insert_tasks(transaction, statements)?;
        let changed: Vec<(&TaskId, &Task<'a>)> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.new.is_none() && task.changed && !task.dropped)
            .collect();
        let (ended, open): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|(_, task)| task.outcome.is_some());
        write_ended(transaction, statements, &ended, self.writer.id())?;
        write_open(transaction, statements, &open, self.writer.id())?;
        self.insert_attempts(transaction, statements)?;
        self.insert_keys(transaction, statements)?;
        let dropped: Vec<Uuid> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.dropped && task.new.is_none())
            .map(|(id, _)| uuid(*id))
            .collect();
        delete_tasks(transaction, statements, &dropped)?;
        Ok(())
    }

    fn insert_tasks(
        &self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
    ) -> Result<(), BatchError> {
        let rows: Vec<NewRow<'_>> = self
            .accepted
            .iter()
            .filter_map(|id| self.tasks.get(id))
            .filter(|task| !task.dropped)
            .filter_map(|task| NewRow::of(task, self.writer.id()))
            .collect();
        let again = matches!(self.writer, Writer::Sharing { again: true, .. });
        if rows.len() < COPIED_ROWS || again {
            for row in &rows {
                let insert = statements.get(
                    transaction,
                    "INSERT INTO tasks (id, created_at, ended_at, due_at, deadline_at, backoff_first_ms, \
                     backoff_most_ms, error_code, state, priority, max_attempts, attempts, action, payload, result, \
                     payload_blob, result_blob, error, publisher, reply) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, \
                     $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) ON CONFLICT (id) DO NOTHING",
                )?;
                transaction.execute(&insert, &row.values())?;
            }
            return Ok(());
        }
        let copy = statements.get(
            transaction,
            "COPY tasks (id, created_at, ended_at, due_at, deadline_at, backoff_first_ms, backoff_most_ms, error_code, \
             state, priority, max_attempts, attempts, action, payload, result, payload_blob, result_blob, error, \
             publisher, reply) FROM STDIN BINARY",
        )?;
        let mut writer = BinaryCopyInWriter::new(transaction.copy_in(&copy)?, &NEW_ROW);
        for row in &rows {
            writer.write(&row.values())?;
        }
        writer.finish()?;
        Ok(())
    }

    fn insert_attempts(
        &self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
    ) -> Result<(), BatchError> {
        let is_kept = |id: TaskId| self.tasks.get(&id).is_some_and(|task| !task.dropped);
        let attempts: Vec<&FailedAttempt> =
            self.attempts.iter().copied().filter(|attempt| is_kept(attempt.id)).collect();
        if attempts.is_empty() {
            return Ok(());
        }
        let insert = statements.get(
            transaction,
            "INSERT INTO failed_attempts (task, attempt, failed_at, worker, error_code, error) \
             SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::text[], $5::integer[], $6::text[]) \
             ON CONFLICT DO NOTHING",
        )?;
        let ids: Vec<Uuid> = attempts.iter().map(|attempt| uuid(attempt.id)).collect();
        let numbers: Vec<i16> = attempts.iter().map(|attempt| i16::from(attempt.attempts)).collect();
        let times: Vec<i64> = attempts.iter().map(|attempt| attempt.at).collect();
        let workers: Vec<Cow<'_, str>> = attempts.iter().map(|attempt| storable(&attempt.worker)).collect();
        let codes: Vec<i32> = attempts.iter().map(|attempt| code(&attempt.failure)).collect();
        let errors: Vec<Cow<'_, str>> =
            attempts.iter().map(|attempt| error_text(&attempt.failure.message)).collect();
        transaction.execute(&insert, &[&ids, &numbers, &times, &workers, &codes, &errors])?;
        Ok(())
    }

    fn insert_keys(
        &self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
    ) -> Result<(), BatchError> {
        if self.new_keys.is_empty() {
            return Ok(());
        }
        let insert = statements.get(
            transaction,
            "INSERT INTO idempotency_keys (key, task, until) \
             SELECT * FROM unnest($1::bytea[], $2::uuid[], $3::bigint[]) \
             ON CONFLICT (key) DO UPDATE SET task = excluded.task, until = excluded.until",
        )?;
        let keys: Vec<&[u8]> = self.new_keys.keys().map(|key| &key[..]).collect();
        let ids: Vec<Uuid> = self.new_keys.values().map(|(id, _)| uuid(*id)).collect();
        let ends: Vec<i64> = self.new_keys.values().map(|(_, until)| *until).collect();
        transaction.execute(&insert, &[&keys, &ids, &ends])?;
        Ok(())
    }
}

/// Keeps balancers that share from accepting one key twice: each waits here for those before it to commit.
fn lock_keys(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    keys: &HashMap<&[u8], &Bytes>,
) -> Result<(), postgres::Error> {
    let mut locks: Vec<i64> = keys.keys().map(|key| lock_of(key)).collect();
    // In one order for all, so that nobody waits for one who waits for him.
    locks.sort_unstable();
    locks.dedup();
    let lock =
        statements.get(transaction, "SELECT pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) AS k")?;
    transaction.execute(&lock, &[&locks])?;
    Ok(())
}

/// The number of a key's lock: the same at every balancer (FNV-1a). Keys that share one only wait for each other.
fn lock_of(key: &[u8]) -> i64 {
    let hash = key.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    i64::from_ne_bytes(hash.to_ne_bytes())
}

/// Whether an operation reads or changes rows that it does not name, so that those before it must be written first.
pub(super) fn is_about_tables(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::TakeDue { .. }
            | Operation::RemoveEnded { .. }
            | Operation::RemoveKeys { .. }
            | Operation::Claim { .. }
            | Operation::Settle { .. }
            | Operation::Sweep { .. }
    )
}

/// Removes tasks and their history.
pub(super) fn delete_tasks(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    ids: &[Uuid],
) -> Result<(), postgres::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    for sql in ["DELETE FROM tasks WHERE id = ANY($1)", "DELETE FROM failed_attempts WHERE task = ANY($1)"] {
        let delete = statements.get(transaction, sql)?;
        transaction.execute(&delete, &[&ids])?;
    }
    Ok(())
}

fn accepted_id(operation: &Operation) -> Option<TaskId> {
    match operation {
        Operation::Accept(task) => Some(task.id),
        _ => None,
    }
}

fn concerned_id(operation: &Operation) -> Option<TaskId> {
    match operation {
        Operation::Start { id }
        | Operation::Requeue { id }
        | Operation::Release { id }
        | Operation::Revive { id }
        | Operation::Drop { id } => Some(*id),
        Operation::Retry { attempt, .. } => Some(attempt.id),
        Operation::Finish(outcome) => Some(outcome.id),
        _ => None,
    }
}

fn key_of(operation: &Operation) -> Option<&Bytes> {
    match operation {
        Operation::Accept(task) => task.idempotency.as_ref().map(|key| &key.key),
        _ => None,
    }
}

fn code(failure: &Failure) -> i32 {
    i32::from(failure.code.number())
}

fn inline(body: &Body) -> Option<&[u8]> {
    match body {
        Body::Inline(bytes) => Some(bytes),
        Body::Blob(_) => None,
    }
}

/// How a result stands in its two columns.
fn result_of(outcome: Option<&Outcome>) -> (Option<&[u8]>, Option<&str>) {
    match outcome.filter(|outcome| outcome.state == TaskState::Done) {
        Some(outcome) => (inline(&outcome.result), outcome.result.blob().map(BlobKey::as_str)),
        None => (None, None),
    }
}

/// The types of [`NewRow::values`].
const NEW_ROW: [Type; 20] = [
    Type::UUID,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT4,
    Type::INT2,
    Type::INT2,
    Type::INT2,
    Type::INT2,
    Type::TEXT,
    Type::BYTEA,
    Type::BYTEA,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::INT8,
    Type::TEXT,
];

/// A new task's row, in the columns' order.
struct NewRow<'a> {
    id: Uuid,
    created_at: i64,
    ended_at: Option<i64>,
    due_at: Option<i64>,
    deadline_at: Option<i64>,
    backoff_first_ms: i64,
    backoff_most_ms: i64,
    error_code: Option<i32>,
    state: i16,
    priority: i16,
    max_attempts: i16,
    attempts: i16,
    action: &'a str,
    payload: Option<&'a [u8]>,
    result: Option<&'a [u8]>,
    payload_blob: Option<&'a str>,
    result_blob: Option<&'a str>,
    error: Option<Cow<'a, str>>,
    publisher: Option<i64>,
    reply: Option<Cow<'a, str>>,
}

impl<'a> NewRow<'a> {
    fn of(task: &'a Task<'_>, publisher: Option<i64>) -> Option<Self> {
        let new = task.new?;
        let failure = task.outcome.map_or(task.failure, |outcome| outcome.failure.as_ref());
        let keeps_payload = !task.state.is_ended() || task.state == TaskState::Dead;
        let (result, result_blob) = result_of(task.outcome);
        Some(NewRow {
            id: uuid(new.id),
            created_at: new.created_at,
            ended_at: task.outcome.map(|outcome| outcome.at),
            due_at: task.due_at,
            deadline_at: new.deadline_at,
            backoff_first_ms: i64::from(new.backoff.first_ms),
            backoff_most_ms: i64::from(new.backoff.most_ms),
            error_code: failure.map(code),
            state: task.state as i16,
            priority: i16::from(new.priority),
            max_attempts: i16::from(new.max_attempts),
            attempts: i16::from(task.attempts),
            action: &new.action,
            payload: inline(&new.payload).filter(|_| keeps_payload),
            result,
            payload_blob: new.payload.blob().map(BlobKey::as_str),
            result_blob,
            error: failure.map(|failure| error_text(&failure.message)),
            publisher,
            reply: new.reply.as_deref().map(storable),
        })
    }

    fn values(&self) -> [&(dyn postgres::types::ToSql + Sync); 20] {
        [
            &self.id,
            &self.created_at,
            &self.ended_at,
            &self.due_at,
            &self.deadline_at,
            &self.backoff_first_ms,
            &self.backoff_most_ms,
            &self.error_code,
            &self.state,
            &self.priority,
            &self.max_attempts,
            &self.attempts,
            &self.action,
            &self.payload,
            &self.result,
            &self.payload_blob,
            &self.result_blob,
            &self.error,
            &self.publisher,
            &self.reply,
        ]
    }
}

/// Records outcomes, each in a row that stands as it was read. Where one is owed to somebody, its writer undertakes to
/// tell it; that of a cancelled task, which may be anybody's, is left to the sweep.
fn write_ended(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    tasks: &[(&TaskId, &Task<'_>)],
    writer: Option<i64>,
) -> Result<(), BatchError> {
    if tasks.is_empty() {
        return Ok(());
    }
    let update = statements.get(
        transaction,
        "UPDATE tasks SET state = ended.state, attempts = ended.attempts, ended_at = ended.at, due_at = ended.due_at, \
         owner = NULL, publisher = CASE WHEN ended.state <> 6 THEN $11::bigint END, result = ended.result, result_blob = ended.result_blob, error_code = ended.code, error = ended.error, \
         payload = CASE WHEN ended.state = 5 THEN payload END \
         FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[], \
         $7::bytea[], $8::text[], $9::integer[], $10::text[]) \
         AS ended (id, was, state, attempts, at, due_at, result, result_blob, code, error) \
         WHERE tasks.id = ended.id AND tasks.state = ended.was",
    )?;
    let ids: Vec<Uuid> = tasks.iter().map(|(id, _)| uuid(**id)).collect();
    let was: Vec<i16> = tasks.iter().map(|(_, task)| task.was as i16).collect();
    let states: Vec<i16> = tasks.iter().map(|(_, task)| task.state as i16).collect();
    let attempts: Vec<i16> = tasks.iter().map(|(_, task)| i16::from(task.attempts)).collect();
    let times: Vec<Option<i64>> = tasks.iter().map(|(_, task)| task.outcome.map(|ended| ended.at)).collect();
    let due: Vec<Option<i64>> = tasks.iter().map(|(_, task)| task.due_at).collect();
    let results: Vec<Option<&[u8]>> = tasks.iter().map(|(_, task)| result_of(task.outcome).0).collect();
    let blobs: Vec<Option<&str>> = tasks.iter().map(|(_, task)| result_of(task.outcome).1).collect();
    let failures: Vec<Option<&Failure>> =
        tasks.iter().map(|(_, task)| task.outcome.and_then(|ended| ended.failure.as_ref())).collect();
    let codes: Vec<Option<i32>> = failures.iter().map(|failure| failure.map(code)).collect();
    let errors: Vec<Option<Cow<'_, str>>> =
        failures.iter().map(|failure| failure.map(|failure| error_text(&failure.message))).collect();
    let updated = transaction.execute(
        &update,
        &[&ids, &was, &states, &attempts, &times, &due, &results, &blobs, &codes, &errors, &writer],
    )?;
    as_many(updated, tasks.len())
}

/// Writes tasks that go on, each in a row that stands as it was read.
fn write_open(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    tasks: &[(&TaskId, &Task<'_>)],
    writer: Option<i64>,
) -> Result<(), BatchError> {
    if tasks.is_empty() {
        return Ok(());
    }
    let update = statements.get(
        transaction,
        "UPDATE tasks SET state = open.state, attempts = open.attempts, due_at = open.due_at, ended_at = NULL, \
         error_code = coalesce(open.code, error_code), \
         error = CASE WHEN open.code IS NULL THEN tasks.error ELSE open.error END, owner = open.owner, \
         publisher = CASE WHEN open.freed THEN $10 ELSE publisher END, \
         published_at = CASE WHEN open.freed THEN $11 ELSE published_at END \
         FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::smallint[], $5::bigint[], $6::integer[], \
         $7::text[], $8::bigint[], $9::boolean[]) \
         AS open (id, was, state, attempts, due_at, code, error, owner, freed) \
         WHERE tasks.id = open.id AND tasks.state = open.was",
    )?;
    let ids: Vec<Uuid> = tasks.iter().map(|(id, _)| uuid(**id)).collect();
    let was: Vec<i16> = tasks.iter().map(|(_, task)| task.was as i16).collect();
    let states: Vec<i16> = tasks.iter().map(|(_, task)| task.state as i16).collect();
    let attempts: Vec<i16> = tasks.iter().map(|(_, task)| i16::from(task.attempts)).collect();
    let due: Vec<Option<i64>> = tasks.iter().map(|(_, task)| task.due_at).collect();
    let codes: Vec<Option<i32>> = tasks.iter().map(|(_, task)| task.failure.map(code)).collect();
    let errors: Vec<Option<Cow<'_, str>>> =
        tasks.iter().map(|(_, task)| task.failure.map(|failure| error_text(&failure.message))).collect();
    let owners: Vec<Option<i64>> = tasks.iter().map(|(_, task)| task.owner).collect();
    let freed: Vec<bool> = tasks.iter().map(|(_, task)| task.freed).collect();
    let now = wall_clock();
    let updated = transaction.execute(
        &update,
        &[&ids, &was, &states, &attempts, &due, &codes, &errors, &owners, &freed, &writer, &now],
    )?;
    as_many(updated, tasks.len())
}

fn as_many(updated: u64, wanted: usize) -> Result<(), BatchError> {
    if usize::try_from(updated) == Ok(wanted) { Ok(()) } else { Err(BatchError::Changed) }
}
