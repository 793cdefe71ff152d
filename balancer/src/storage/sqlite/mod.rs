//! The embedded store: SQLite in the data folder.
//!
//! A commit writes one packed row into the table `journal`, whatever it holds, since that is all that must be on the
//! disk before an answer is given. The indexed tables are written behind, within later commits: most tasks have
//! ended by then and are written once, in their final state. What the tables do not say yet is also in memory, in
//! the [`overlay`], so at each moment journal and tables together are the truth on disk, and overlay and tables
//! together the same truth for readers.
//!
//! A row of the journal is deleted in the transaction that writes the last of what it says, so a crash leaves a
//! journal that is replayed into the overlay at the next start. Since a task is written as it is by then, which may
//! be later than the row that is being deleted, replay may see a record whose effect the tables have already; each
//! record therefore carries absolute values, and changes only a task that is in a state for it.

mod overlay;
mod reader;
mod record;
mod schema;
mod staging;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, params};

use self::overlay::Overlay;
use self::reader::SqliteReader;
use self::record::{AcceptRef, Kind, Records, RowWriter};
use self::staging::{Keys, Stage};
use self::tables::{RowWriting, WriteError};
use super::durability::Durability;
use super::folder::DataFolder;
use super::store::{Answer, Operation, Store, StoreError, StoreReader};
use super::task::{BlobKey, TaskId};

/// The database's file in the data folder.
pub const DATABASE_FILE: &str = "reparto.sqlite";

/// Records that may wait in the journal to be written behind; a commit beyond that also writes twice what it adds.
/// A burst of this many tasks costs only the journal.
const LAG_RECORDS: usize = 524_288;
/// Records beyond which those of ended tasks are written behind at once: they need be written but once, and while
/// few wait, what is known of them stays in the processor's caches.
const ENDED_LAG_RECORDS: usize = 32_768;
/// The same in bytes.
const LAG_BYTES: usize = 64 << 20;
/// Records written behind in one go when nothing else is to be done.
const UPKEEP_RECORDS: usize = 4096;
/// Records written behind in one transaction when all of them are to be.
const SETTLE_RECORDS: usize = 65_536;
/// How long a record waits before it is written behind though there is room: most tasks end sooner.
const UPKEEP_AGE: Duration = Duration::from_secs(2);
/// Records staged, or looked at, while readers wait.
const LOCKED_RECORDS: usize = 64;

/// How much a transaction writes behind.
#[derive(Debug, Clone, Copy)]
enum Behind {
    /// What the journal has beyond the lag, up to `most` records or twice what the transaction adds.
    Lag { most: usize },
    /// What has waited long enough, up to [`UPKEEP_RECORDS`].
    Aged,
    /// Everything, up to [`SETTLE_RECORDS`].
    All,
}

/// Numbers about the store's work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SqliteCounts {
    /// Transactions.
    pub commits: u64,
    /// Records put into the journal.
    pub records: u64,
    /// Records whose effect was written into the tables.
    pub written_behind: u64,
}

/// The embedded store. See this module's first lines.
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
    place: String,
    durability: Durability,
    /// Records that may wait to be written behind.
    lag_records: usize,
    overlay: Arc<RwLock<Overlay>>,
    /// The row of the journal that is being filled.
    writer: RowWriter,
    /// Its number.
    next_row: i64,
    keys: Keys,
    /// How far the walk over ended tasks has come; `None` for its beginning.
    walked: Option<TaskId>,
    /// What has become of the operations of a call that did not end well, so that they are not staged again.
    staged: Vec<Answer>,
    /// The answers of [`Operation::TakeDue`] once the tables' part is in them, by their place.
    due: Vec<(usize, Answer)>,
    synced_at: Instant,
    /// Something was committed since the last sync.
    unsynced: bool,
    counts: SqliteCounts,
    /// Ours as long as the store lives; the last field, so that it is given up last.
    _folder: DataFolder,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Locks the folder, opens the database in it, and replays what a crash left in the journal.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] when another process has the folder, [`StoreError::Open`], [`StoreError::Newer`] and
    /// [`StoreError::Corrupt`] as they say.
    pub fn open(folder: &Path, durability: Durability) -> Result<SqliteStore, StoreError> {
        let folder = DataFolder::lock(folder)?;
        let path = folder.path().join(DATABASE_FILE);
        Self::open_in(folder, &path, durability)
    }

    /// Opens a database's file of any name in a folder that is locked.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_in(
        folder: DataFolder,
        path: &Path,
        durability: Durability,
    ) -> Result<SqliteStore, StoreError> {
        let path = path.to_path_buf();
        let connection = schema::open(&path)?;
        let mut store = SqliteStore {
            connection,
            place: path.display().to_string(),
            path,
            durability,
            lag_records: LAG_RECORDS,
            overlay: Arc::default(),
            writer: RowWriter::new(),
            next_row: 1,
            keys: Keys::default(),
            walked: None,
            staged: Vec::new(),
            due: Vec::new(),
            synced_at: Instant::now(),
            unsynced: false,
            counts: SqliteCounts::default(),
            _folder: folder,
        };
        store.replay()?;
        store.settle()?;
        if let Durability::Interval(_) = durability {
            store.set_synchronous("NORMAL")?;
        }
        Ok(store)
    }

    /// Lets fewer or more records wait to be written behind than the usual 524,288, which take some 150 MiB.
    /// Fewer take less memory, and more of the tasks are then written twice: once open, once ended.
    #[must_use]
    pub fn with_lag(mut self, records: usize) -> Self {
        self.lag_records = records;
        self
    }

    /// What the store has done since it was opened.
    #[must_use]
    pub fn counts(&self) -> SqliteCounts {
        self.counts
    }

    fn sqlite(&self, error: rusqlite::Error) -> StoreError {
        schema::running(&self.place, &error)
    }

    fn damaged(&self) -> StoreError {
        StoreError::Corrupt {
            place: self.place.clone(),
            reason: "a record of its journal cannot be read".into(),
        }
    }

    fn set_synchronous(&self, value: &str) -> Result<(), StoreError> {
        self.connection.pragma_update(None, "synchronous", value).map_err(|error| self.sqlite(error))
    }

    /// Brings the journal into the overlay. It is no larger than the lag and a commit.
    fn replay(&mut self) -> Result<(), StoreError> {
        let rows: Vec<(i64, Vec<u8>)> = {
            let read = || {
                let mut select =
                    self.connection.prepare("SELECT number, records FROM journal ORDER BY number")?;
                let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect::<rusqlite::Result<_>>()
            };
            read().map_err(|error| self.sqlite(error))?
        };
        for (number, bytes) in rows {
            let bytes = Bytes::from(bytes);
            let mut overlay = write(&self.overlay);
            let records: Result<Vec<_>, _> = Records::of(&bytes).and_then(Iterator::collect);
            let records = records.map_err(|_| self.damaged())?;
            // Rows follow one another without gaps, as the overlay finds them by their number.
            if self.next_row > 1 && number != self.next_row {
                return Err(self.damaged());
            }
            let last = records.last().map(|record| record.id);
            overlay.push_row(number, bytes.clone(), records.len(), last);
            overlay.committed = number;
            self.next_row = number + 1;
            for record in records {
                staging::replay(&self.connection, &mut overlay, &mut self.keys, number, &bytes, record)
                    .map_err(|error| self.write_error(error))?;
            }
        }
        Ok(())
    }

    fn write_error(&self, error: WriteError) -> StoreError {
        match error {
            WriteError::Sqlite(error) => self.sqlite(error),
            WriteError::Damaged => self.damaged(),
        }
    }

    fn begin(&self) -> Result<(), StoreError> {
        let begin = || self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([]);
        begin().map(|_| ()).map_err(|error| self.sqlite(error))
    }

    /// Gives up the transaction, after an error in it. The overlay forgets that it wrote anything behind.
    fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            log::warn!("{}: cannot roll back: {error}", self.place);
        }
        for entry in read(&self.overlay).tasks.iter() {
            entry.written.store(0, Ordering::Relaxed);
        }
    }

    /// Makes a row of the journal of what has been staged so far.
    fn end_row(&mut self) {
        if self.writer.count() == 0 {
            return;
        }
        let full = std::mem::replace(&mut self.writer, RowWriter::new());
        let (count, last) = (full.count(), full.last());
        write(&self.overlay).push_row(self.next_row, full.into_bytes(), count, last);
        self.next_row += 1;
    }

    /// Looks at each operation, answers it, and writes its record.
    fn stage(&mut self, operations: &[Operation]) -> Result<(), StoreError> {
        for chunk in operations[self.staged.len()..].chunks(LOCKED_RECORDS) {
            let mut rest = chunk;
            while let Some(operation) = rest.first() {
                if staging::reads_records(operation) {
                    self.end_row();
                }
                let mut overlay = write(&self.overlay);
                let mut stage = Stage {
                    connection: &self.connection,
                    overlay: &mut overlay,
                    keys: &mut self.keys,
                    writer: &mut self.writer,
                    row: self.next_row,
                };
                let staged = stage.all(rest, &mut self.staged);
                drop(overlay);
                rest = &rest[staged.map_err(|error| self.write_error(error))?..];
            }
        }
        self.end_row();
        Ok(())
    }

    /// Writes all rows that are not on disk yet into the journal.
    fn write_journal(&self) -> Result<u64, StoreError> {
        let overlay = read(&self.overlay);
        let mut records = 0;
        let mut write = || {
            let mut insert = self.connection.prepare_cached(
                "INSERT OR REPLACE INTO journal (number, count, records) VALUES (?1, ?2, ?3)",
            )?;
            for number in overlay.committed + 1..self.next_row {
                let Some((bytes, count)) = overlay.row_of(number) else { continue };
                insert.execute(params![number, count as i64, &bytes[..]])?;
                records += count as u64;
            }
            Ok(())
        };
        write().map_err(|error| self.sqlite(error))?;
        Ok(records)
    }

    /// Writes the oldest rows of the journal into the tables: whole rows, until `enough` says so. Returns how many.
    fn write_behind(
        &self,
        mut enough: impl FnMut(&Overlay, usize, usize) -> bool,
    ) -> Result<usize, StoreError> {
        let overlay = read(&self.overlay);
        let (mut rows, mut records, mut last) = (0, 0, 0);
        let mut writing = None;
        while let Some((number, bytes, count, _)) = overlay.row(rows) {
            if enough(&overlay, rows, records) {
                break;
            }
            if writing.is_none() {
                writing = Some(RowWriting::new(&self.connection).map_err(|error| self.sqlite(error))?);
            }
            if let Some(writing) = &mut writing {
                write_row(&overlay, writing, bytes).map_err(|error| self.write_error(error))?;
            }
            rows += 1;
            records += count;
            last = number;
        }
        if rows > 0 {
            let delete =
                || self.connection.prepare_cached("DELETE FROM journal WHERE number <= ?1")?.execute([last]);
            delete().map_err(|error| self.sqlite(error))?;
        }
        Ok(rows)
    }

    /// Ends the transaction.
    fn commit(&mut self) -> Result<(), StoreError> {
        let commit = || self.connection.prepare_cached("COMMIT")?.execute([]);
        commit().map_err(|error| self.sqlite(error))?;
        self.counts.commits += 1;
        self.unsynced = self.durability != Durability::Fsync;
        Ok(())
    }

    /// Syncs if the interval has passed. What was committed is committed: if this fails, it is tried again.
    fn sync_if_due(&mut self) {
        let Durability::Interval(interval) = self.durability else { return };
        if self.unsynced
            && self.synced_at.elapsed() >= interval
            && let Err(error) = self.sync()
        {
            log::error!("{}: cannot sync, and will try again: {error}", self.place);
        }
    }

    /// Makes all that was committed survive a power failure: a commit that is synced also syncs those before it.
    fn sync(&mut self) -> Result<(), StoreError> {
        self.set_synchronous("FULL")?;
        let sync =
            || self.connection.prepare_cached("UPDATE syncs SET count = count + 1")?.execute([]).map(|_| ());
        let synced = sync().map_err(|error| self.sqlite(error));
        self.set_synchronous("NORMAL")?;
        synced?;
        self.synced_at = Instant::now();
        self.unsynced = false;
        Ok(())
    }

    /// After a commit: readers may see what is durable, and what stands in the tables is forgotten here.
    fn committed(&mut self, rows: usize, records: u64) {
        self.counts.records += records;
        write(&self.overlay).committed = self.next_row - 1;
        for _ in 0..rows {
            let Some((number, bytes)) = write(&self.overlay).pop_row() else { break };
            let Ok(records) = Records::of(&bytes) else { continue };
            let mut records = records.map_while(Result::ok).peekable();
            while records.peek().is_some() {
                let mut overlay = write(&self.overlay);
                for record in records.by_ref().take(LOCKED_RECORDS) {
                    self.counts.written_behind += 1;
                    overlay.forget(record.id, number);
                }
            }
            self.keys.retain(|_, (_, _, row)| *row > number);
        }
    }

    /// What an operation does to the tables themselves, within the transaction.
    fn change_tables(&mut self, operations: &[Operation]) -> Result<(), StoreError> {
        for (place, operation) in operations.iter().enumerate() {
            match operation {
                Operation::RemoveEnded { before, limit } => {
                    self.staged[place] = self.remove_ended(*before, *limit)?;
                }
                Operation::RemoveKeys { now, limit } => {
                    self.staged[place] = self.remove_keys(*now, *limit)?
                }
                Operation::TakeDue { now, limit } => {
                    let overlay = read(&self.overlay);
                    // Taken from what was staged, so that a second try of the transaction begins there again.
                    let mut answer = self.staged[place].clone();
                    staging::take_due_rows(&self.connection, &overlay, *now, *limit, &mut answer)
                        .map_err(|error| self.sqlite(error))?;
                    self.due.push((place, answer));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How much a transaction writes behind: see [`Behind`]. Returns the rows of the journal that are done with.
    fn write_part_behind(&self, behind: Behind) -> Result<usize, StoreError> {
        let (mut records, mut bytes) = {
            let overlay = read(&self.overlay);
            (overlay.records(), overlay.bytes())
        };
        self.write_behind(|overlay, rows, written| {
            let Some((_, row, count, since)) = overlay.row(rows) else { return true };
            let enough = match behind {
                Behind::Lag { most } => {
                    let is_over = records > self.lag_records || bytes > LAG_BYTES;
                    let has_ended = records > ENDED_LAG_RECORDS && overlay.has_ended(rows);
                    written >= most || !(is_over || has_ended)
                }
                Behind::Aged => written >= UPKEEP_RECORDS || since.elapsed() < UPKEEP_AGE,
                Behind::All => written >= SETTLE_RECORDS,
            };
            records -= count;
            bytes -= row.len();
            enough
        })
    }

    /// One transaction: what the operations ask for, and a part of what is to be written behind.
    fn transaction(&mut self, operations: &[Operation], behind: Behind) -> Result<(), StoreError> {
        self.begin()?;
        self.due.clear();
        let mut write = || {
            self.stage(operations)?;
            let records = self.write_journal()?;
            self.change_tables(operations)?;
            let added = usize::try_from(records).unwrap_or(usize::MAX);
            let behind = match behind {
                Behind::Lag { most } => Behind::Lag { most: most.max(added.saturating_mul(2)) },
                other => other,
            };
            let rows = self.write_part_behind(behind)?;
            self.commit()?;
            Ok((rows, records))
        };
        match write() {
            Ok((rows, records)) => {
                self.committed(rows, records);
                for (place, answer) in self.due.drain(..) {
                    self.staged[place] = answer;
                }
                self.sync_if_due();
                Ok(())
            }
            Err(error) => {
                self.roll_back();
                Err(error)
            }
        }
    }

    /// A step of the walk over old tasks. They stand in the order of their ids, and none ended before it was made.
    fn remove_ended(&mut self, before: i64, limit: usize) -> Result<Answer, StoreError> {
        let removed = {
            let overlay = read(&self.overlay);
            remove_ended(&self.connection, &overlay, self.walked, before, limit)
        };
        let (count, walked, blobs) = removed.map_err(|error| self.sqlite(error))?;
        self.walked = walked;
        Ok(Answer::Removed { count, more: walked.is_some(), blobs })
    }

    fn remove_keys(&self, now: i64, limit: usize) -> Result<Answer, StoreError> {
        let remove = || {
            self.connection
                .prepare_cached(
                    "DELETE FROM idempotency_keys WHERE key IN \
                     (SELECT key FROM idempotency_keys WHERE until <= ?1 ORDER BY until LIMIT ?2)",
                )?
                .execute(params![now, limit as i64])
        };
        let count = remove().map_err(|error| self.sqlite(error))?;
        Ok(Answer::Removed { count, more: count == limit && limit > 0, blobs: Vec::new() })
    }
}

/// Writes what a row of the journal says into the tables. Each task is written as it is by now.
fn write_row(overlay: &Overlay, writing: &mut RowWriting<'_>, row: &Bytes) -> Result<(), WriteError> {
    for record in Records::of(row)? {
        let record = record?;
        let Some(entry) = overlay.tasks.get(record.id) else { continue };
        if record.kind == Kind::Retry && !entry.dropped {
            writing.attempt(&record::read_retry(row, record.offset)?.0)?;
        }
        if record.kind != Kind::Accept {
            if !entry.is_written() {
                writing.update(record.id, overlay, entry)?;
            }
        } else {
            let task = AcceptRef::read(row, record.offset)?;
            if let Some((key, until)) = task.key {
                writing.key(key, record.id, until)?;
            }
            if !entry.is_written() && !entry.dropped {
                writing.insert(&task, overlay, entry)?;
            }
        }
        entry.set_written();
    }
    Ok(())
}

/// One step of the walk: how many were removed, where the walk goes on, and the blobs that nothing names any more.
fn remove_ended(
    connection: &Connection,
    overlay: &Overlay,
    after: Option<TaskId>,
    before: i64,
    limit: usize,
) -> rusqlite::Result<(usize, Option<TaskId>, Vec<BlobKey>)> {
    let mut select = connection.prepare_cached(
        "SELECT id, ended_at, payload_blob, result_blob FROM tasks WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3",
    )?;
    let from = after.unwrap_or(TaskId([0; 16]));
    // A millisecond more, since ids know no microseconds.
    let to = TaskId::first_at(before.saturating_add(1000));
    let mut rows = select.query(params![from.0, to.0, limit as i64])?;
    let (mut seen, mut last, mut old, mut blobs) = (0, None, Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let id = tables::read_id(row, 0)?;
        seen += 1;
        last = Some(id);
        let is_old = row.get::<_, Option<i64>>(1)?.is_some_and(|ended_at| ended_at < before);
        if is_old && !overlay.tasks.contains(id) {
            old.push(id);
            for column in [2, 3] {
                blobs.extend(row.get_ref(column)?.as_str_or_null()?.and_then(BlobKey::new));
            }
        }
    }
    drop(rows);
    let mut delete = connection.prepare_cached("DELETE FROM tasks WHERE id = ?1")?;
    let mut delete_attempts = connection.prepare_cached("DELETE FROM failed_attempts WHERE task = ?1")?;
    for id in &old {
        delete.execute([id.0])?;
        delete_attempts.execute([id.0])?;
    }
    Ok((old.len(), last.filter(|_| seen == limit), blobs))
}

/// A lock that a panicking thread left is as good as before: what stands under it is changed in whole steps.
fn read(overlay: &RwLock<Overlay>) -> RwLockReadGuard<'_, Overlay> {
    overlay.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(overlay: &RwLock<Overlay>) -> RwLockWriteGuard<'_, Overlay> {
    overlay.write().unwrap_or_else(PoisonError::into_inner)
}

impl Store for SqliteStore {
    fn apply(&mut self, operations: &[Operation], answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        self.transaction(operations, Behind::Lag { most: 1 })?;
        answers.append(&mut self.staged);
        Ok(())
    }

    fn upkeep(&mut self) -> Result<Option<Duration>, StoreError> {
        self.sync_if_due();
        let oldest = |overlay: &Overlay| overlay.row(0).map(|(_, _, _, since)| since.elapsed());
        let age = oldest(&read(&self.overlay));
        if age.is_some_and(|age| age >= UPKEEP_AGE) {
            self.transaction(&[], Behind::Aged)?;
        }
        let behind = oldest(&read(&self.overlay)).map(|age| UPKEEP_AGE.saturating_sub(age));
        let sync = match self.durability {
            Durability::Interval(interval) if self.unsynced => {
                Some(interval.saturating_sub(self.synced_at.elapsed()))
            }
            _ => None,
        };
        Ok([behind, sync].into_iter().flatten().min())
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        while read(&self.overlay).records() > 0 {
            self.transaction(&[], Behind::All)?;
        }
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn StoreReader>, StoreError> {
        let connection = schema::open_reader(&self.path)?;
        Ok(Box::new(SqliteReader::new(connection, self.place.clone(), Arc::clone(&self.overlay))))
    }

    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        self.settle()?;
        if self.unsynced {
            self.sync()?;
        }
        let SqliteStore { connection, place, _folder, .. } = *self;
        connection.close().map_err(|(_, error)| schema::running(&place, &error))
    }
}

#[cfg(test)]
mod tests;
