//! The store in PostgreSQL, for balancers that share one database.
//!
//! The tables are the embedded store's, and written at once: a commit takes all that waits, in a few statements.
//!
//! **One leads.** The leader holds an advisory lock for as long as its connection lives; others wait for it. A lock
//! alone does not keep a leader that was cut off from writing: so each leader has an epoch of its own, and every
//! transaction begins with an update of the row in `leader` that finds it only under that epoch. It fails with
//! [`StoreError::Fenced`] once another leads, and while it runs no other can begin to.
//!
//! **A commit whose answer is lost** may have happened or not. The same update counts the batches, so when the
//! operations come again the count says which it was: then they are written, or the answers that were kept are given.

mod batch;
mod joining;
mod listener;
mod reader;
mod schema;
mod session;
mod shared;
mod sweep;
mod tables;

use std::time::{Duration, Instant};

use postgres::Transaction;
use uuid::Uuid;

use self::batch::{Batch, BatchError, Writer, is_about_tables};
use self::joining::Lock;
pub use self::listener::{Heard, Hearing, Listener};
use self::reader::PostgresReader;
use self::session::{Address, Session, Statements};
pub use self::shared::{ShareSettings, SharedPostgresStore};
use self::tables::{columns, read_task, size, task_id, uuid};
use super::store::{Answer, MAX_PAGE, MAX_PAGE_BYTES, Operation, Store, StoreError, StoreReader};
use super::task::{TaskId, TaskState};

/// How often an idle leader looks whether it still leads, and whether the database is there.
const LOOK: Duration = Duration::from_secs(1);
/// Who leads, and how many wait for the lock. A lock's key is shown there in two halves.
const LOOK_AROUND: &str = "SELECT epoch, (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND (classid::bigint << 32) | objid::bigint = $1) FROM leader";
/// Has the server end a leader's session of which nothing was heard for so long. A leader that hangs, or whose machine
/// stands still, keeps its connection, which the system answers for; the lock must not wait for it. PostgreSQL knows
/// this from version 14 on.
const END_WHEN_SILENT: &str = "SELECT set_config('idle_session_timeout', '15s', false) \
     WHERE EXISTS (SELECT 1 FROM pg_settings WHERE name = 'idle_session_timeout')";

/// Why a balancer does not lead yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standby {
    /// Another balancer leads; this one takes over when it is gone.
    Waiting {
        /// The other: its process and where it connects from.
        leader: String,
    },
    /// The database cannot be reached.
    Unreachable {
        /// Why.
        reason: String,
    },
}

/// A batch that may be committed, though no answer came.
struct Pending {
    answers: Vec<Answer>,
    walked: Option<TaskId>,
}

/// A session of the database server, by what identifies it there.
struct Backend {
    process: i32,
    started: std::time::SystemTime,
}

/// The store in a PostgreSQL database, of the one balancer that leads. See this module's first lines.
pub struct PostgresStore {
    address: Address,
    session: Option<Session>,
    /// The session that holds the lock, or that did until it was lost.
    backend: Backend,
    lock_key: i64,
    epoch: i64,
    /// Batches committed, by all leaders.
    batch: i64,
    pending: Option<Pending>,
    /// How far the walk over ended tasks has come; `None` for its beginning.
    walked: Option<TaskId>,
    /// When it was last seen that this balancer leads; `None` once something went wrong.
    seen_leading: Option<Instant>,
    /// Other balancers that wait for the lock.
    standbys: usize,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PostgresStore")
            .field("place", &self.address.place)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Waits until this balancer leads, brings the tables up to this release's version, and returns the store;
    /// `None` when `goes_on` said false before that.
    ///
    /// `url` is `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. With `?options=-csearch_path%3DSCHEMA` the tables stand
    /// in a schema of their own, which has its own leader. `report` is told why it has to wait, whenever that changes.
    /// `goes_on` is asked at least once a second, except while a connection is made.
    ///
    /// # Errors
    ///
    /// [`StoreError::Open`] when waiting would not help, as with a wrong password; [`StoreError::Newer`] when a later
    /// release has written the tables. A database that is away is waited for.
    pub fn lead(
        url: &str,
        report: impl FnMut(&Standby),
        goes_on: impl FnMut() -> bool,
    ) -> Result<Option<PostgresStore>, StoreError> {
        let address = Address::parse(url)?;
        joining::until_it_works(report, goes_on, |tell, goes_on| try_to_lead(&address, tell, goes_on))
    }

    /// The number of this leadership; each is greater than those before it.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Makes sure that there is a connection, and that it holds the lock under our epoch.
    fn connect(&mut self) -> Result<(), StoreError> {
        if self.session.as_ref().is_some_and(|session| !session.client.is_closed()) {
            return Ok(());
        }
        self.session = None;
        let mut session = self.address.connect_again()?;
        let error = |error: postgres::Error| self.address.error(&error);
        let client = &mut session.client;
        let mut has_lock = Lock::Alone.try_to_take(client, self.lock_key).map_err(error)?;
        let current: i64 = client.query_one("SELECT epoch FROM leader", &[]).map_err(error)?.get(0);
        if current != self.epoch {
            return Err(StoreError::Fenced { ours: self.epoch, current });
        }
        if !has_lock {
            // Our own lost session may hold it, until the server notices that it is lost.
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE pid = $1 AND backend_start = $2";
            client.execute(end, &[&self.backend.process, &self.backend.started]).map_err(error)?;
            has_lock = Lock::Alone.try_to_take(client, self.lock_key).map_err(error)?;
        }
        if !has_lock {
            let reason = format!("{}: another session holds the lock of the leader", self.address.place);
            return Err(StoreError::Unavailable { reason });
        }
        client.batch_execute(END_WHEN_SILENT).map_err(error)?;
        self.backend = backend(client).map_err(error)?;
        self.session = Some(session);
        Ok(())
    }

    /// One transaction. The answers are kept until its commit is known to have happened.
    fn transaction(&mut self, operations: &[Operation]) -> Result<Vec<Answer>, StoreError> {
        self.connect()?;
        let address = self.address.clone();
        match self.write(operations) {
            Ok(answers) => {
                self.batch += 1;
                Ok(answers)
            }
            Err(Failed::Fenced(current)) => Err(StoreError::Fenced { ours: self.epoch, current }),
            Err(Failed::Counted(batch)) => Err(StoreError::Corrupt {
                place: address.place,
                reason: format!("its leader's batch is {batch}, and {} was written last", self.batch),
            }),
            Err(Failed::Batch(error)) => Err(error.at(&address)),
        }
    }

    fn write(&mut self, operations: &[Operation]) -> Result<Vec<Answer>, Failed<i64>> {
        let Some(Session { client, statements }) = &mut self.session else { return Ok(Vec::new()) };
        let mut transaction = client.transaction()?;
        let count = statements
            .get(&mut transaction, "UPDATE leader SET batch = batch + 1 WHERE epoch = $1 AND batch = $2")?;
        if transaction.execute(&count, &[&self.epoch, &self.batch])? == 0 {
            let row = transaction.query_one("SELECT epoch, batch FROM leader", &[])?;
            let (epoch, batch): (i64, i64) = (row.get(0), row.get(1));
            if epoch != self.epoch {
                return Err(Failed::Fenced(epoch));
            }
            // Committed after all, when its answer was lost.
            return match self.pending.take().filter(|_| batch == self.batch + 1) {
                Some(pending) => {
                    self.walked = pending.walked;
                    Ok(pending.answers)
                }
                None => Err(Failed::Counted(batch)),
            };
        }
        let mut walked = self.walked;
        let answers = answer_all(&mut transaction, statements, operations, &mut walked)?;
        self.pending = Some(Pending { answers, walked });
        transaction.commit()?;
        self.walked = walked;
        Ok(self.pending.take().map(|pending| pending.answers).unwrap_or_default())
    }
}

/// Answers operations in their order, in a transaction that only this balancer writes in.
fn answer_all(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    operations: &[Operation],
    walked: &mut Option<TaskId>,
) -> Result<Vec<Answer>, BatchError> {
    let mut answers = Vec::with_capacity(operations.len());
    let mut rest = operations;
    while let Some(first) = rest.first() {
        if is_about_tables(first) {
            answers.push(change_tables(transaction, statements, first, walked)?);
            rest = &rest[1..];
            continue;
        }
        let end = rest.iter().position(is_about_tables).unwrap_or(rest.len());
        let (run, others) = rest.split_at(end);
        let mut batch = Batch::read(transaction, statements, run, Writer::Leader)?;
        answers.extend(run.iter().map(|operation| batch.answer(operation)));
        batch.write(transaction, statements)?;
        rest = others;
    }
    Ok(answers)
}

/// Why a transaction was given up.
enum Failed<Other> {
    Batch(BatchError),
    /// What we write under is not ours any more; whose it is.
    Fenced(Other),
    /// Somebody else has counted a batch under it.
    Counted(i64),
}

impl<Other> From<postgres::Error> for Failed<Other> {
    fn from(error: postgres::Error) -> Self {
        Failed::Batch(BatchError::Postgres(error))
    }
}

impl<Other> From<BatchError> for Failed<Other> {
    fn from(error: BatchError) -> Self {
        Failed::Batch(error)
    }
}

impl BatchError {
    /// What it means for the store at an address.
    fn at(self, address: &Address) -> StoreError {
        let place = address.place.clone();
        match self {
            BatchError::Postgres(error) => address.error(&error),
            BatchError::Damaged(column) => damaged(address, column),
            BatchError::Changed => StoreError::Unavailable {
                reason: format!("{place}: somebody else has changed a task that was to be written"),
            },
        }
    }
}

fn damaged(address: &Address, column: &str) -> StoreError {
    let reason = format!("a row has a value in '{column}' that Reparto never writes");
    StoreError::Corrupt { place: address.place.clone(), reason }
}

fn backend(client: &mut postgres::Client) -> Result<Backend, postgres::Error> {
    let row = client
        .query_one("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()", &[])?;
    Ok(Backend { process: row.get(0), started: row.get(1) })
}

/// Waits for the lock on one connection; `None` when it is not to go on.
fn try_to_lead(
    address: &Address,
    tell: &mut dyn FnMut(Standby),
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Option<PostgresStore>, StoreError> {
    let Some((mut session, lock_key)) = joining::join(address, Lock::Alone, tell, goes_on)? else {
        return Ok(None);
    };
    let error = |error: postgres::Error| address.error(&error);
    let client = &mut session.client;
    client.batch_execute(END_WHEN_SILENT).map_err(error)?;
    let lead = "UPDATE leader SET epoch = epoch + 1, since = now(), \
                holder = 'process ' || $1 || ' at ' || coalesce(host(inet_client_addr()), 'the database''s host') \
                RETURNING epoch, batch";
    let row = client.query_one(lead, &[&std::process::id().to_string()]).map_err(error)?;
    let (epoch, batch) = (row.get(0), row.get(1));
    let backend = backend(client).map_err(error)?;
    Ok(Some(PostgresStore {
        address: address.clone(),
        session: Some(session),
        backend,
        lock_key,
        epoch,
        batch,
        pending: None,
        walked: None,
        seen_leading: Some(Instant::now()),
        standbys: 0,
    }))
}

/// Does an operation that is about the tables as a whole.
fn change_tables(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    operation: &Operation,
    walked: &mut Option<TaskId>,
) -> Result<Answer, BatchError> {
    match operation {
        Operation::TakeDue { now, limit } => take_due(transaction, statements, *now, *limit),
        Operation::RemoveEnded { before, limit } => {
            remove_ended(transaction, statements, *before, *limit, walked)
        }
        Operation::RemoveKeys { now, limit } => {
            let remove = statements.get(
                transaction,
                "DELETE FROM idempotency_keys WHERE key IN \
                 (SELECT key FROM idempotency_keys WHERE until <= $1 ORDER BY until LIMIT $2)",
            )?;
            let count = transaction.execute(&remove, &[now, &as_limit(*limit)])? as usize;
            Ok(Answer::Removed { count, more: count == *limit && *limit > 0, blobs: Vec::new() })
        }
        // Claims and the like are for those who share.
        _ => Ok(Answer::Noted),
    }
}

fn as_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn take_due(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    now: i64,
    limit: usize,
) -> Result<Answer, BatchError> {
    let select = statements.get(
        transaction,
        concat!(
            "SELECT ", columns!(), " FROM (SELECT *, sum(", size!(), ") OVER (ORDER BY due_at, id) - ", size!(),
            " AS before FROM (SELECT * FROM tasks WHERE state = 0 AND due_at <= $1 ORDER BY due_at, id LIMIT $2) \
             AS due) AS sized WHERE before < $3 ORDER BY due_at, id"
        ),
    )?;
    let most = as_limit(limit.min(MAX_PAGE));
    let mut tasks = Vec::new();
    for row in transaction.query(&select, &[&now, &most, &(MAX_PAGE_BYTES as i64)])? {
        tasks.push(read_task(&row)?);
    }
    if !tasks.is_empty() {
        let ids: Vec<Uuid> = tasks.iter().map(|stored| uuid(stored.task.id)).collect();
        let update = statements.get(transaction, "UPDATE tasks SET state = 1 WHERE id = ANY($1)")?;
        transaction.execute(&update, &[&ids])?;
        for stored in &mut tasks {
            stored.state = TaskState::Queued;
        }
    }
    let next = statements
        .get(transaction, "SELECT due_at FROM tasks WHERE state = 0 ORDER BY due_at, id LIMIT 1")?;
    let next = transaction.query_opt(&next, &[])?.and_then(|row| row.get(0));
    Ok(Answer::Due { tasks, next })
}

/// A step of the walk over old tasks, in the order of their ids: none ended before it was made.
fn remove_ended(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    before: i64,
    limit: usize,
    walked: &mut Option<TaskId>,
) -> Result<Answer, BatchError> {
    let select = statements.get(
        transaction,
        "SELECT id, ended_at, payload_blob, result_blob FROM tasks WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3",
    )?;
    let from = uuid(walked.unwrap_or(TaskId([0; 16])));
    // A millisecond more, since ids know no microseconds.
    let to = uuid(TaskId::first_at(before.saturating_add(1000)));
    let rows = transaction.query(&select, &[&from, &to, &as_limit(limit)])?;
    let (mut old, mut blobs) = (Vec::new(), Vec::new());
    for row in &rows {
        if row.get::<_, Option<i64>>(1).is_some_and(|ended_at| ended_at < before) {
            old.push(row.get::<_, Uuid>(0));
            for column in [2, 3] {
                blobs.extend(tables::blob(row.get(column))?);
            }
        }
    }
    batch::delete_tasks(transaction, statements, &old)?;
    let is_end = rows.len() < limit || limit == 0;
    *walked = rows.last().filter(|_| !is_end).map(|row| task_id(row.get(0)));
    Ok(Answer::Removed { count: old.len(), more: walked.is_some(), blobs })
}

impl Store for PostgresStore {
    fn apply(&mut self, operations: &[Operation], answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        if !operations.is_empty() {
            let done = self.transaction(operations);
            if done.is_err() {
                self.seen_leading = None;
            }
            answers.append(&mut done?);
        }
        Ok(())
    }

    /// Nothing is written behind; it sees to it that a leader without work notices when it leads no longer.
    fn upkeep(&mut self) -> Result<Option<Duration>, StoreError> {
        let since = self.seen_leading.map_or(LOOK, |at| at.elapsed());
        if since < LOOK {
            return Ok(Some(LOOK.saturating_sub(since)));
        }
        self.seen_leading = None;
        self.connect()?;
        let Some(Session { client, statements }) = &mut self.session else { return Ok(Some(LOOK)) };
        let look = statements
            .get(client, LOOK_AROUND)
            .and_then(|look| client.query_one(&look, &[&self.lock_key]))
            .map_err(|error| self.address.error(&error))?;
        let (current, standbys): (i64, i64) = (look.get(0), look.get(1));
        if current != self.epoch {
            return Err(StoreError::Fenced { ours: self.epoch, current });
        }
        self.standbys = usize::try_from(standbys).unwrap_or(0);
        self.seen_leading = Some(Instant::now());
        Ok(Some(LOOK))
    }

    fn standbys(&self) -> usize {
        self.standbys
    }

    /// Nothing is to be done: what was answered stands in the tables.
    fn settle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn StoreReader>, StoreError> {
        Ok(Box::new(PostgresReader::new(self.address.clone())))
    }

    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        match self.session.take() {
            Some(session) => session.client.close().map_err(|error| self.address.error(&error)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
