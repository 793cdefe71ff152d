//! The tables and their versions.

use postgres::{Client, GenericClient};

use super::session::{Address, describe};
use crate::storage::store::StoreError;

/// How each version of the tables is made from the one before. Only ever added to.
const MIGRATIONS: [&str; 3] = [FIRST, SHARED, REPLIES];

const FIRST: &str = "
    CREATE TABLE tasks (
        id               uuid PRIMARY KEY,
        created_at       bigint NOT NULL,
        ended_at         bigint,
        due_at           bigint,
        deadline_at      bigint,
        backoff_first_ms bigint NOT NULL DEFAULT 0,
        backoff_most_ms  bigint NOT NULL DEFAULT 0,
        error_code       integer,
        state            smallint NOT NULL,
        priority         smallint NOT NULL,
        max_attempts     smallint NOT NULL,
        attempts         smallint NOT NULL,
        action           text NOT NULL,
        payload          bytea,
        result           bytea,
        payload_blob     text,
        result_blob      text,
        error            text
    );
    ALTER TABLE tasks ALTER COLUMN payload SET STORAGE EXTERNAL, ALTER COLUMN result SET STORAGE EXTERNAL;
    CREATE INDEX open_tasks ON tasks (id) WHERE state <= 2;
    CREATE INDEX failed_tasks ON tasks (state, id) WHERE state >= 4;
    CREATE INDEX due_tasks ON tasks (due_at, id) WHERE state = 0;
    CREATE TABLE failed_attempts (
        task       uuid NOT NULL,
        attempt    smallint NOT NULL,
        failed_at  bigint NOT NULL,
        worker     text NOT NULL,
        error_code integer NOT NULL,
        error      text NOT NULL,
        PRIMARY KEY (task, attempt, failed_at)
    );
    CREATE TABLE idempotency_keys (
        key   bytea PRIMARY KEY,
        task  uuid NOT NULL,
        until bigint NOT NULL
    );
    CREATE INDEX idempotency_windows ON idempotency_keys (until);
    CREATE TABLE leader (
        one    smallint PRIMARY KEY CHECK (one = 1),
        epoch  bigint NOT NULL,
        batch  bigint NOT NULL,
        holder text NOT NULL,
        since  timestamptz NOT NULL
    );
    INSERT INTO leader VALUES (1, 0, 0, 'nobody', now());
    CREATE TABLE states (state smallint PRIMARY KEY, name text NOT NULL);
    INSERT INTO states VALUES (0, 'scheduled'), (1, 'queued'), (2, 'running'), (3, 'done'), (4, 'failed'),
                              (5, 'dead'), (6, 'cancelled'), (7, 'expired');
    CREATE VIEW task_results AS
        SELECT action, id AS task, name AS state, result, result_blob, error,
               to_timestamp(ended_at / 1000000.0) AS finished_at
        FROM tasks JOIN states USING (state) WHERE state >= 3;
";

/// For balancers that work side by side. `owner` holds a task, `publisher` has undertaken that it is on the bus.
const SHARED: &str = "
    ALTER TABLE tasks ADD COLUMN owner bigint, ADD COLUMN publisher bigint, ADD COLUMN published_at bigint;
    CREATE INDEX deadlines ON tasks (deadline_at) WHERE state <= 1 AND deadline_at IS NOT NULL;
    CREATE TABLE balancers (
        id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        holder      text NOT NULL,
        since       timestamptz NOT NULL DEFAULT now(),
        lease_until timestamptz NOT NULL,
        batch       bigint NOT NULL DEFAULT 0,
        fenced      boolean NOT NULL DEFAULT false,
        swept       boolean NOT NULL DEFAULT false
    );
    CREATE TABLE installation (one smallint PRIMARY KEY CHECK (one = 1), name text NOT NULL);
    INSERT INTO installation VALUES (1, left(md5(random()::text || clock_timestamp()::text), 8));
";

/// For tasks whose outcome is told to a queue: `reply` says which, until that is done. Of such a task that has ended,
/// `publisher` has undertaken to tell it.
const REPLIES: &str = "
    ALTER TABLE tasks ADD COLUMN reply text;
    CREATE INDEX replies ON tasks (id) WHERE reply IS NOT NULL AND state >= 3;
";

/// The version of the tables that this release writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the tables up to our version, all in one transaction. The caller holds the lock of the leader.
pub(super) fn migrate(client: &mut Client, address: &Address) -> Result<(), StoreError> {
    let place = &address.place;
    let open = |error: postgres::Error| {
        let (reason, is_lost) = (describe(&error), error.code().is_none());
        if is_lost { address.error(&error) } else { StoreError::Open { place: place.clone(), reason } }
    };
    let mut transaction = client.transaction().map_err(open)?;
    // Balancers that work side by side may come to this all at once.
    transaction
        .execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('reparto migrates ' || current_schema(), 0))",
            &[],
        )
        .map_err(open)?;
    let found = transaction
        .query_one("SELECT to_regclass('reparto_version')::text, to_regclass('tasks')::text", &[])
        .map_err(open)?;
    let version: i64 = match (found.get::<_, Option<&str>>(0), found.get::<_, Option<&str>>(1)) {
        (Some(_), _) => {
            transaction.query_one("SELECT version FROM reparto_version", &[]).map_err(open)?.get(0)
        }
        (None, None) => {
            let make = "CREATE TABLE reparto_version (version bigint NOT NULL); \
                        INSERT INTO reparto_version VALUES (0)";
            transaction.batch_execute(make).map_err(open)?;
            0
        }
        (None, Some(_)) => {
            return Err(StoreError::Open {
                place: place.clone(),
                reason:
                    "another program has a table 'tasks' there; give Reparto a database of its own, or a \
                         schema with ?options=-csearch_path%3DSCHEMA at the end of the URL"
                        .to_owned(),
            });
        }
    };
    if version > VERSION {
        return Err(StoreError::Newer { place: place.clone(), found: version, known: VERSION });
    }
    let done = usize::try_from(version).unwrap_or(0);
    for migration in &MIGRATIONS[done..] {
        transaction.batch_execute(migration).map_err(open)?;
    }
    if version < VERSION {
        transaction.execute("UPDATE reparto_version SET version = $1", &[&VERSION]).map_err(open)?;
    }
    transaction.commit().map_err(open)
}

/// The number of the lock that the leader holds: one for each schema of a database.
pub(super) fn lock_key(client: &mut impl GenericClient, address: &Address) -> Result<i64, StoreError> {
    let row = client
        .query_one("SELECT hashtextextended('reparto ' || current_schema(), 0)", &[])
        .map_err(|error| address.error(&error))?;
    row.get::<_, Option<i64>>(0).ok_or_else(|| StoreError::Open {
        place: address.place.clone(),
        reason: "the schema that the URL's search_path names does not exist; make it with CREATE SCHEMA"
            .to_owned(),
    })
}
