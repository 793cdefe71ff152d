//! The thread that writes: it gathers what waits into one transaction, and tries that until it works.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::blobs::BlobJob;
use super::{Completion, Query, Reply, Request, Shared, Trouble, body_of, leave_job, lock};
use crate::storage::store::{Answer, Operation, Store, StoreError};
use crate::storage::task::{BlobKey, Body};

/// Operations in one transaction, at most.
const MAX_OPERATIONS: usize = 8192;
/// Bytes of operations after which a transaction takes no more.
const MAX_BYTES: usize = 16 << 20;
/// The first wait after a transaction failed; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest wait.
const LAST_RETRY: Duration = Duration::from_secs(2);

/// What the thread is told.
pub(super) enum Command {
    /// Make these durable.
    Write(Vec<Request>),
    /// Bring everything to where the reading thread sees it, and pass the question on to it.
    SettleFor(u64, Query),
    /// Do what is left, and end.
    Stop,
}

pub(super) struct Writing {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Box<dyn Store>,
    pub(super) commands: Receiver<Command>,
    pub(super) queries: Sender<(u64, Query)>,
    pub(super) written: Sender<Vec<Completion>>,
    pub(super) blob_jobs: Option<Sender<BlobJob>>,
}

/// What one transaction takes from the channel.
#[derive(Default)]
struct Gathered {
    tokens: Vec<u64>,
    operations: Vec<Operation>,
    bytes: usize,
    refused: Vec<Completion>,
    settle_for: Vec<(u64, Query)>,
    stops: bool,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.operations.len() >= MAX_OPERATIONS || self.bytes >= MAX_BYTES
    }

    fn add(&mut self, command: Command) {
        match command {
            Command::Write(requests) => {
                for Request { token, operation } in requests {
                    self.bytes += operation.memory();
                    match operation.check() {
                        Ok(()) => {
                            self.tokens.push(token);
                            self.operations.push(operation);
                        }
                        Err(error) => self.refused.push(Completion { token, reply: Err(error) }),
                    }
                }
            }
            Command::SettleFor(token, query) => self.settle_for.push((token, query)),
            Command::Stop => self.stops = true,
        }
    }
}

impl Writing {
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        let mut gathered = Gathered::default();
        let mut answers = Vec::new();
        let mut wait = None;
        loop {
            match self.next(wait) {
                Ok(command) => gathered.add(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => gathered.stops = true,
            }
            while !gathered.is_full() && !gathered.stops {
                let Ok(command) = self.commands.try_recv() else { break };
                gathered.add(command);
            }
            let done = self.write(&mut gathered, &mut answers);
            let done = done.and_then(|()| self.upkeep());
            match done {
                Ok(next) => wait = next,
                Err(error) => return self.give_up(gathered, error),
            }
            if gathered.stops {
                return self.store.close();
            }
        }
    }

    fn next(&self, wait: Option<Duration>) -> Result<Command, RecvTimeoutError> {
        match wait {
            Some(wait) => self.commands.recv_timeout(wait),
            None => self.commands.recv().map_err(RecvTimeoutError::from),
        }
    }

    /// Makes what was gathered durable and tells so.
    fn write(&mut self, gathered: &mut Gathered, answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        let mut completions = std::mem::take(&mut gathered.refused);
        if !gathered.operations.is_empty() {
            answers.clear();
            let operations = &gathered.operations;
            Self::until_it_works(&self.shared, || self.store.apply(operations, answers))?;
            self.leave_unused_blobs(operations, answers);
            completions.reserve(answers.len());
            for (token, answer) in gathered.tokens.drain(..).zip(answers.drain(..)) {
                completions.push(Completion { token, reply: Ok(Reply::Answer(answer)) });
            }
            gathered.operations.clear();
        }
        self.shared.waiting_bytes.fetch_sub(std::mem::take(&mut gathered.bytes), Ordering::AcqRel);
        if !completions.is_empty() {
            // Nobody may be there to take them any more.
            let _ = self.written.send(completions);
            (self.shared.wake)();
        }
        if !gathered.settle_for.is_empty() {
            Self::until_it_works(&self.shared, || self.store.settle())?;
            for query in gathered.settle_for.drain(..) {
                let _ = self.queries.try_send(query);
            }
        }
        Ok(())
    }

    /// Blobs that were put for what is not recorded, and those of tasks that are gone.
    fn leave_unused_blobs(&self, operations: &[Operation], answers: &[Answer]) {
        let Some(jobs) = &self.blob_jobs else { return };
        let mut unused: Vec<BlobKey> = Vec::new();
        for (operation, answer) in operations.iter().zip(answers) {
            if let Answer::Removed { blobs, .. } = answer {
                unused.extend(blobs.iter().cloned());
            } else if !matches!(answer, Answer::Accepted | Answer::Recorded) {
                unused.extend(body_of(operation).and_then(Body::blob).cloned());
            }
        }
        if !unused.is_empty() && leave_job(jobs, BlobJob::Delete(unused)).is_err() {
            log::warn!("too many blobs to delete at once; the next start removes what is left");
        }
    }

    fn upkeep(&mut self) -> Result<Option<Duration>, StoreError> {
        if self.commands.is_empty() {
            let next = Self::until_it_works(&self.shared, || self.store.upkeep())?;
            self.shared.standbys.store(self.store.standbys(), Ordering::Release);
            Ok(next)
        } else {
            // It is busy, and does a part of it in each transaction.
            Ok(None)
        }
    }

    /// Does something until it works, fails for good, or is to stop.
    fn until_it_works<T>(
        shared: &Shared,
        mut attempt: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut wait = FIRST_RETRY;
        loop {
            match attempt() {
                Ok(done) => {
                    if wait > FIRST_RETRY {
                        log::warn!("the store can be used again");
                        *lock(&shared.trouble) = None;
                    }
                    return Ok(done);
                }
                Err(error) if error.is_passing() && !shared.stopping.load(Ordering::Acquire) => {
                    if wait == FIRST_RETRY {
                        log::error!("{error}; what was taken waits, and is tried again");
                    }
                    Trouble::note(&mut lock(&shared.trouble), error.to_string());
                    thread::sleep(wait);
                    wait = (wait * 2).min(LAST_RETRY);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The store is of no more use: answers all that waits with the reason, and whatever comes until the stop.
    fn give_up(self, mut gathered: Gathered, error: StoreError) -> Result<(), StoreError> {
        log::error!("the store has stopped: {error}");
        let trouble = Trouble { reason: error.to_string(), since: SystemTime::now(), for_good: true };
        *lock(&self.shared.trouble) = Some(trouble);
        *lock(&self.shared.failure) = Some(error.clone());
        self.shared.stopping.store(true, Ordering::Release);
        loop {
            let mut completions = std::mem::take(&mut gathered.refused);
            for token in gathered.tokens.drain(..) {
                completions.push(Completion { token, reply: Err(error.clone()) });
            }
            gathered.operations.clear();
            self.shared.waiting_bytes.fetch_sub(std::mem::take(&mut gathered.bytes), Ordering::AcqRel);
            let _ = self.written.send(completions);
            for query in gathered.settle_for.drain(..) {
                let _ = self.queries.try_send(query);
            }
            (self.shared.wake)();
            if gathered.stops {
                return Err(error);
            }
            match self.commands.recv() {
                Ok(command) => gathered.add(command),
                Err(_) => return Err(error),
            }
        }
    }
}
