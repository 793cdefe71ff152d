//! The store in PostgreSQL for balancers that work side by side, over a bus that carries the work between them.
//!
//! The tables are those of [`PostgresStore`](super::PostgresStore); here many write, and each row says whose it is. A
//! balancer has a number, new at each start, and a lease that each of its transactions and an idle look renew. It
//! changes only what it owns, beside what it accepts and cancels. One that let its lease run out is *fenced* by any
//! other, which frees what it owned; when it comes back it finds that, and goes on under a new number, owning nothing.
//!
//! A row's `owner` holds the task; while nobody does, its `publisher` has undertaken that a message for it is on the bus.
//! What a fenced balancer owned or had undertaken, whoever sweeps undertakes anew. So nothing is lost between the two,
//! whatever dies when; a message too many does no harm, since a task is claimed once.
//!
//! **A commit whose answer is lost** is known by the count of batches in the balancer's own row, as the leader's is.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use postgres::Transaction;

use super::batch::{Batch, BatchError, Writer, is_about_tables};
use super::joining::{self, Lock};
use super::listener::{self, Hearing};
use super::reader::PostgresReader;
use super::session::{Address, Session, Statements};
use super::sweep::{self, Sweeping};
use super::{Failed, Pending, Standby, change_tables};
use crate::storage::store::{Answer, Operation, Store, StoreError, StoreReader};
use crate::storage::task::TaskId;

/// How balancers share a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareSettings {
    /// How long a balancer that is not heard of keeps what it owns. Renewed five times as often.
    pub lease: Duration,
    /// How long after that its running tasks are left to workers that come back and name them.
    pub claim_time: Duration,
    /// A task that nobody has claimed for this long is published again, and then each time it has waited twice as long:
    /// a message that the bus has lost is so replaced. Where tasks only wait for workers it costs a message too many
    /// each time, of which a balancer publishes at most 1,000 in half a second.
    pub publish_again: Duration,
}

impl Default for ShareSettings {
    fn default() -> Self {
        ShareSettings {
            lease: Duration::from_secs(10),
            claim_time: Duration::from_secs(15),
            publish_again: Duration::from_secs(30),
        }
    }
}

/// The store in a PostgreSQL database that balancers share. See this module's first lines.
pub struct SharedPostgresStore {
    address: Address,
    settings: ShareSettings,
    session: Option<Session>,
    lock_key: i64,
    installation: Arc<str>,
    /// Our number, which the listener knows us by, too.
    id: Arc<AtomicI64>,
    /// Batches committed under that number.
    batch: i64,
    pending: Option<Pending>,
    /// The present batch may have been committed under a number that is gone.
    again: bool,
    walked: Option<TaskId>,
    sweeping: Sweeping,
    renewed_at: Instant,
    /// Since when the database has answered without a break.
    in_touch_since: Option<Instant>,
}

impl std::fmt::Debug for SharedPostgresStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SharedPostgresStore")
            .field("place", &self.address.place)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Under the number that we had: nobody is known by it any more.
struct Nobody;

impl SharedPostgresStore {
    /// Joins the balancers that share a database, brings the tables up to this release's version, and returns the
    /// store; `None` when `goes_on` said false before that. Waits while a balancer leads there that does not share.
    ///
    /// `url`, `report` and `goes_on` are as for [`PostgresStore::lead`](super::PostgresStore::lead).
    ///
    /// # Errors
    ///
    /// As for [`PostgresStore::lead`](super::PostgresStore::lead).
    pub fn join(
        url: &str,
        settings: &ShareSettings,
        report: impl FnMut(&Standby),
        goes_on: impl FnMut() -> bool,
    ) -> Result<Option<SharedPostgresStore>, StoreError> {
        let address = Address::parse(url)?;
        let join = |tell: &mut dyn FnMut(Standby), goes_on: &mut dyn FnMut() -> bool| {
            try_to_join(&address, settings, tell, goes_on)
        };
        joining::until_it_works(report, goes_on, join)
    }

    /// Names the balancers that share these tables, the same for all of them and for no others.
    #[must_use]
    pub fn installation(&self) -> Arc<str> {
        Arc::clone(&self.installation)
    }

    /// What is needed to hear of tasks that ended at other balancers.
    #[must_use]
    pub fn hearing(&self) -> Hearing {
        Hearing::new(self.address.clone(), self.lock_key, Arc::clone(&self.id))
    }

    fn id(&self) -> i64 {
        self.id.load(Ordering::Acquire)
    }

    /// Makes sure that there is a connection, and that nobody leads alone.
    fn connect(&mut self) -> Result<(), StoreError> {
        if self.session.as_ref().is_some_and(|session| !session.client.is_closed()) {
            return Ok(());
        }
        (self.session, self.in_touch_since) = (None, None);
        let mut session = self.address.connect_again()?;
        let shares = Lock::Shared
            .try_to_take(&mut session.client, self.lock_key)
            .map_err(|error| self.address.error(&error))?;
        if !shares {
            let reason = format!("{}: a balancer without --bus leads there now", self.address.place);
            return Err(StoreError::Unavailable { reason });
        }
        (self.session, self.in_touch_since) = (Some(session), Some(Instant::now()));
        Ok(())
    }

    /// Goes on under a new number: those who share have given up on the one that we had.
    fn begin_anew(&mut self) -> Result<(), StoreError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let id = register(session, &self.settings).map_err(|error| self.address.error(&error))?;
        log::warn!(
            "{}: the lease has run out, and others have what this balancer held; it goes on as number {id}",
            self.address.place
        );
        self.id.store(id, Ordering::Release);
        self.batch = 0;
        self.again = self.pending.take().is_some();
        self.renewed_at = Instant::now();
        Ok(())
    }

    fn transaction(&mut self, operations: &[Operation]) -> Result<Vec<Answer>, StoreError> {
        self.connect()?;
        let address = self.address.clone();
        match self.write(operations) {
            Ok(answers) => {
                self.batch += 1;
                self.again = false;
                self.renewed_at = Instant::now();
                Ok(answers)
            }
            Err(Failed::Fenced(Nobody)) => {
                self.begin_anew()?;
                Err(StoreError::Unavailable { reason: format!("{}: the lease has run out", address.place) })
            }
            Err(Failed::Counted(batch)) => Err(StoreError::Corrupt {
                place: address.place,
                reason: format!("this balancer's batch is {batch}, and {} was written last", self.batch),
            }),
            Err(Failed::Batch(error)) => Err(error.at(&address)),
        }
    }

    fn write(&mut self, operations: &[Operation]) -> Result<Vec<Answer>, Failed<Nobody>> {
        let id = self.id();
        // Whether others' leases can have run out while the database was away, and they not have renewed them yet.
        let may_fence = self.in_touch_since.is_some_and(|since| since.elapsed() >= self.settings.lease);
        let Some(Session { client, statements }) = &mut self.session else { return Ok(Vec::new()) };
        let mut transaction = client.transaction()?;
        let count = statements.get(
            &mut transaction,
            "UPDATE balancers SET batch = batch + 1, lease_until = now() + $3 * interval '1 microsecond' \
             WHERE id = $1 AND batch = $2 AND NOT fenced",
        )?;
        let lease = micros(self.settings.lease);
        if transaction.execute(&count, &[&id, &self.batch, &lease])? == 0 {
            let row = transaction.query_opt("SELECT batch, fenced FROM balancers WHERE id = $1", &[&id])?;
            let Some((batch, fenced)) = row.map(|row| (row.get::<_, i64>(0), row.get::<_, bool>(1))) else {
                return Err(Failed::Fenced(Nobody));
            };
            // Committed after all, when its answer was lost.
            if batch == self.batch + 1
                && let Some(pending) = self.pending.take()
            {
                self.walked = pending.walked;
                return Ok(pending.answers);
            }
            return Err(if fenced { Failed::Fenced(Nobody) } else { Failed::Counted(batch) });
        }
        let mut work = Work {
            writer: Writer::Sharing { id, again: self.again },
            walked: self.walked,
            sweeping: self.sweeping.clone(),
            settings: &self.settings,
            may_fence,
            ended: Vec::new(),
        };
        let answers = work.answer_all(&mut transaction, statements, operations)?;
        listener::tell(&mut transaction, statements, self.lock_key, id, &work.ended)?;
        let (walked, sweeping) = (work.walked, work.sweeping);
        self.pending = Some(Pending { answers, walked });
        // A step of the sweep that turns out to be lost is done again by the next walk.
        self.sweeping = sweeping;
        transaction.commit()?;
        self.walked = walked;
        Ok(self.pending.take().map(|pending| pending.answers).unwrap_or_default())
    }
}

/// What a transaction does.
struct Work<'s> {
    writer: Writer,
    walked: Option<TaskId>,
    sweeping: Sweeping,
    settings: &'s ShareSettings,
    may_fence: bool,
    /// Tasks that end in it, of which other balancers are told.
    ended: Vec<TaskId>,
}

impl Work<'_> {
    fn answer_all(
        &mut self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
        operations: &[Operation],
    ) -> Result<Vec<Answer>, BatchError> {
        let Writer::Sharing { id, .. } = self.writer else { return Ok(Vec::new()) };
        let mut answers = Vec::with_capacity(operations.len());
        let mut rest = operations;
        while let Some(first) = rest.first() {
            let is_claim = |operation: &Operation| matches!(operation, Operation::Claim { .. });
            let settles = |operation: &Operation| matches!(operation, Operation::Settle { .. });
            let end = match first {
                Operation::Claim { .. } => rest.iter().position(|operation| !is_claim(operation)),
                Operation::Settle { .. } => rest.iter().position(|operation| !settles(operation)),
                Operation::Sweep { .. } => Some(1),
                about_tables if is_about_tables(about_tables) => Some(1),
                _ => rest.iter().position(is_about_tables),
            };
            let (run, others) = rest.split_at(end.unwrap_or(rest.len()));
            match first {
                Operation::Claim { .. } => {
                    answers.append(&mut sweep::claim(transaction, statements, id, run)?);
                }
                Operation::Settle { .. } => {
                    answers.append(&mut sweep::settle(transaction, statements, run)?);
                }
                Operation::Sweep { now, limit } => {
                    let answer = self.sweeping.step(
                        transaction,
                        statements,
                        (id, self.settings),
                        self.may_fence,
                        (*now, *limit),
                    )?;
                    if let Answer::Swept { expired, .. } = &answer {
                        self.ended.extend(expired);
                    }
                    answers.push(answer);
                }
                about_tables if is_about_tables(about_tables) => {
                    answers.push(change_tables(transaction, statements, about_tables, &mut self.walked)?);
                }
                _ => {
                    let mut batch = Batch::read(transaction, statements, run, self.writer)?;
                    answers.extend(run.iter().map(|operation| batch.answer(operation)));
                    batch.write(transaction, statements)?;
                    self.ended.extend(batch.ended());
                }
            }
            rest = others;
        }
        Ok(answers)
    }
}

impl Store for SharedPostgresStore {
    fn apply(&mut self, operations: &[Operation], answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        if !operations.is_empty() {
            answers.append(&mut self.transaction(operations)?);
        }
        Ok(())
    }

    /// Nothing is written behind; it sees to it that the lease of a balancer without work does not run out.
    fn upkeep(&mut self) -> Result<Option<Duration>, StoreError> {
        let every = self.settings.lease / 5;
        self.connect()?;
        let since = self.renewed_at.elapsed();
        if since < every {
            return Ok(Some(every - since));
        }
        let (id, lease) = (self.id(), micros(self.settings.lease));
        let Some(Session { client, statements }) = &mut self.session else { return Ok(Some(every)) };
        let renew = "UPDATE balancers SET lease_until = now() + $2 * interval '1 microsecond' \
                     WHERE id = $1 AND NOT fenced";
        let renewed = statements.get(client, renew).and_then(|renew| client.execute(&renew, &[&id, &lease]));
        if renewed.map_err(|error| self.address.error(&error))? == 0 {
            self.begin_anew()?;
        }
        self.renewed_at = Instant::now();
        Ok(Some(every))
    }

    /// Nothing is to be done: what was answered stands in the tables.
    fn settle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn StoreReader>, StoreError> {
        Ok(Box::new(PostgresReader::new(self.address.clone())))
    }

    /// What it holds is left to the others at once.
    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        let id = self.id();
        let Some(mut session) = self.session.take() else { return Ok(()) };
        session
            .client
            .execute("UPDATE balancers SET fenced = true, lease_until = now() WHERE id = $1", &[&id])
            .and_then(|_| session.client.close())
            .map_err(|error| self.address.error(&error))
    }
}

pub(super) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn try_to_join(
    address: &Address,
    settings: &ShareSettings,
    tell: &mut dyn FnMut(Standby),
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Option<SharedPostgresStore>, StoreError> {
    let Some((mut session, lock_key)) = joining::join(address, Lock::Shared, tell, goes_on)? else {
        return Ok(None);
    };
    let error = |error: postgres::Error| address.error(&error);
    let installation: String =
        session.client.query_one("SELECT name FROM installation", &[]).map_err(error)?.get(0);
    let id = register(&mut session, settings).map_err(error)?;
    Ok(Some(SharedPostgresStore {
        address: address.clone(),
        settings: settings.clone(),
        session: Some(session),
        lock_key,
        installation: installation.into(),
        id: Arc::new(AtomicI64::new(id)),
        batch: 0,
        pending: None,
        again: false,
        walked: None,
        sweeping: Sweeping::new(),
        renewed_at: Instant::now(),
        in_touch_since: Some(Instant::now()),
    }))
}

/// Gives a balancer its number.
fn register(session: &mut Session, settings: &ShareSettings) -> Result<i64, postgres::Error> {
    let insert = "INSERT INTO balancers (holder, lease_until) \
                  VALUES ('process ' || $1 || ' at ' || coalesce(host(inet_client_addr()), 'the database''s host'), \
                  now() + $2 * interval '1 microsecond') RETURNING id";
    let row =
        session.client.query_one(insert, &[&std::process::id().to_string(), &micros(settings.lease)])?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests;
