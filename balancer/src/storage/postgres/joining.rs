//! How a balancer comes to a database: it waits until that is there and the lock is free, and brings the tables up to this
//! release's version.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use super::session::{Address, Session};
use super::{Standby, schema};
use crate::storage::store::StoreError;

/// How long a standby waits for the lock before it looks whether it is to go on.
const LOCK_WAIT: &str = "500ms";
/// How long it waits for a database that cannot be reached.
const UNREACHABLE_WAIT: Duration = Duration::from_secs(1);
/// How often it looks meanwhile whether it is to go on.
const CANCEL_STEP: Duration = Duration::from_millis(50);

/// Whose lock is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// The one leader's.
    Alone,
    /// One of those who share.
    Shared,
}

impl Lock {
    /// A statement that waits for it.
    fn waiting(self) -> &'static str {
        match self {
            Lock::Alone => "SELECT pg_advisory_lock($1)",
            Lock::Shared => "SELECT pg_advisory_lock_shared($1)",
        }
    }

    /// A statement that takes it if it is free.
    fn trying(self) -> &'static str {
        match self {
            Lock::Alone => "SELECT pg_try_advisory_lock($1)",
            Lock::Shared => "SELECT pg_try_advisory_lock_shared($1)",
        }
    }

    /// Takes it if it is free, and says whether it was.
    pub(super) fn try_to_take(self, client: &mut Client, key: i64) -> Result<bool, postgres::Error> {
        client.query_one(self.trying(), &[&key]).map(|row| row.get(0))
    }
}

/// Tries until it works, fails for good, or is not to go on. `report` is told why it waits, whenever that changes.
pub(super) fn until_it_works<T>(
    mut report: impl FnMut(&Standby),
    mut goes_on: impl FnMut() -> bool,
    mut attempt: impl FnMut(&mut dyn FnMut(Standby), &mut dyn FnMut() -> bool) -> Result<Option<T>, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut told = None;
    let mut tell = |standby: Standby| {
        if told.as_ref() != Some(&standby) {
            report(&standby);
            told = Some(standby);
        }
    };
    while goes_on() {
        match attempt(&mut tell, &mut goes_on) {
            Err(StoreError::Unavailable { reason }) => tell(Standby::Unreachable { reason }),
            done => return done,
        }
        let since = Instant::now();
        while since.elapsed() < UNREACHABLE_WAIT && goes_on() {
            std::thread::sleep(CANCEL_STEP);
        }
    }
    Ok(None)
}

/// Opens a connection that holds the lock, with the tables up to date; `None` when it is not to go on. Gives the lock's
/// key with it.
pub(super) fn join(
    address: &Address,
    lock: Lock,
    tell: &mut dyn FnMut(Standby),
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Option<(Session, i64)>, StoreError> {
    let mut session = address.connect()?;
    let error = |error: postgres::Error| address.error(&error);
    let client = &mut session.client;
    let key = schema::lock_key(client, address)?;
    client.batch_execute(&format!("SET lock_timeout = '{LOCK_WAIT}'")).map_err(error)?;
    loop {
        match client.execute(lock.waiting(), &[&key]) {
            Ok(_) => break,
            Err(failed) if failed.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
            Err(failed) => return Err(error(failed)),
        }
        tell(Standby::Waiting { leader: leader(client, lock) });
        if !goes_on() {
            return Ok(None);
        }
    }
    client.batch_execute("SET lock_timeout = '5s'").map_err(error)?;
    schema::migrate(client, address)?;
    if client.query_one("SHOW fsync", &[]).map_err(error)?.get::<_, &str>(0) == "off" {
        log::warn!("{} runs with fsync off: a power failure there may lose what was accepted", address.place);
    }
    Ok(Some((session, key)))
}

/// Who leads, for people.
fn leader(client: &mut Client, lock: Lock) -> String {
    // Before the first leader has made the table, nobody is known.
    let holder = client
        .query_one("SELECT holder FROM leader", &[])
        .map_or_else(|_| "another balancer".to_owned(), |row| row.get(0));
    match lock {
        Lock::Alone => holder,
        // Those who share do not keep each other out.
        Lock::Shared => format!("{holder}, without --bus"),
    }
}
