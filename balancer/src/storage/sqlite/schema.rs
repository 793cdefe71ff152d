//! The tables and their versions, how a database is opened, and what SQLite's errors mean.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::storage::store::StoreError;

/// What is written into the file's header, so that tools can tell whose it is: `Rprt`.
const APPLICATION_ID: i64 = 0x5270_7274;

/// How each version of the tables is made from the one before. Only ever added to.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE tasks (
        number           INTEGER PRIMARY KEY,
        id               BLOB NOT NULL UNIQUE,
        action           TEXT NOT NULL,
        state            INTEGER NOT NULL,
        priority         INTEGER NOT NULL,
        max_attempts     INTEGER NOT NULL,
        attempts         INTEGER NOT NULL,
        created_at       INTEGER NOT NULL,
        ended_at         INTEGER,
        payload          BLOB,
        result           BLOB,
        error_code       INTEGER,
        error            TEXT,
        due_at           INTEGER,
        deadline_at      INTEGER,
        backoff_first_ms INTEGER NOT NULL DEFAULT 0,
        backoff_most_ms  INTEGER NOT NULL DEFAULT 0,
        payload_blob     TEXT,
        result_blob      TEXT
    );
    CREATE INDEX open_tasks ON tasks (id) WHERE state <= 2;
    CREATE INDEX failed_tasks ON tasks (state, id) WHERE state >= 4;
    CREATE INDEX due_tasks ON tasks (due_at, id) WHERE state = 0;
    CREATE TABLE failed_attempts (
        task       BLOB NOT NULL,
        attempt    INTEGER NOT NULL,
        failed_at  INTEGER NOT NULL,
        worker     TEXT NOT NULL,
        error_code INTEGER NOT NULL,
        error      TEXT NOT NULL,
        PRIMARY KEY (task, attempt, failed_at)
    ) WITHOUT ROWID;
    CREATE TABLE idempotency_keys (
        key   BLOB PRIMARY KEY,
        task  BLOB NOT NULL,
        until INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX idempotency_windows ON idempotency_keys (until);
    CREATE TABLE journal (
        number  INTEGER PRIMARY KEY,
        count   INTEGER NOT NULL,
        records BLOB NOT NULL
    );
    CREATE TABLE syncs (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL);
    INSERT INTO syncs VALUES (1, 0);
    CREATE TABLE states (state INTEGER PRIMARY KEY, name TEXT NOT NULL);
    INSERT INTO states VALUES (0, 'scheduled'), (1, 'queued'), (2, 'running'), (3, 'done'), (4, 'failed'),
                              (5, 'dead'), (6, 'cancelled'), (7, 'expired');
    CREATE VIEW task_results AS
        SELECT action, id AS task, name AS state, result, result_blob, error,
               datetime(ended_at / 1000000, 'unixepoch') AS finished_at
        FROM tasks JOIN states USING (state) WHERE state >= 3;
"];

/// The version of the tables that this release writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Bytes of the write-ahead log after which it is copied into the database.
const WAL_BYTES: i64 = 32 << 20;
/// Bytes a page. Larger ones make a commit of many tasks cheaper, and a commit of one dearer.
const PAGE_BYTES: i64 = 8192;
/// Memory for pages of the connection that writes, in KiB.
const CACHE_KIB: i64 = 32 << 10;
/// How long a connection waits for another's lock. Ours hold none for long; a person with the sqlite3 command may.
const BUSY: Duration = Duration::from_secs(5);

/// Opens the database for writing, makes it if it is not there, and brings its tables up to our version.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let place = path.display().to_string();
    let connection = Connection::open(path).map_err(|error| opening(&place, &error))?;
    prepare(&connection, &place)?;
    Ok(connection)
}

/// Opens it for reading only, beside the one that writes.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(StoreError::unavailable)?;
    connection.busy_timeout(BUSY).map_err(StoreError::unavailable)?;
    Ok(connection)
}

fn prepare(connection: &Connection, place: &str) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| opening(place, &error);
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(failed)?;
    let application: i64 =
        connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(failed)?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(StoreError::Open {
            place: place.to_owned(),
            reason: "this is another program's database; name another folder or file".to_owned(),
        });
    }
    if version > VERSION {
        return Err(StoreError::Newer { place: place.to_owned(), found: version, known: VERSION });
    }
    connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)).map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(failed)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_BYTES / PAGE_BYTES).map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", 2 * WAL_BYTES).map_err(failed)?;
    migrate(connection, version).map_err(failed)
}

/// Brings the tables from `version` to ours, all in one transaction.
fn migrate(connection: &Connection, version: i64) -> rusqlite::Result<()> {
    let done = usize::try_from(version).unwrap_or(0);
    if done >= MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    for migration in &MIGRATIONS[done..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

fn opening(place: &str, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { place: place.to_owned(), reason: error.to_string() }
        }
        _ => StoreError::Open { place: place.to_owned(), reason: error.to_string() },
    }
}

/// What an error means once the database is open.
pub(super) fn running(place: &str, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { place: place.to_owned(), reason: error.to_string() }
        }
        _ => StoreError::unavailable(error),
    }
}
