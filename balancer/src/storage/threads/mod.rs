//! The threads between whoever runs the tasks and the stores: nothing here blocks the caller.
//!
//! ```text
//!   try_submit --> writing thread --> Store::apply: everything that waits goes into one transaction
//!        |             ^      \
//!        |  large      |       +--> completions, wake --> the caller
//!        +--------> blob threads   /
//!                      ^          /
//!   try_query --> reading thread +   (large results are fetched by a blob thread)
//! ```
//!
//! What was taken is answered by exactly one [`Completion`], once it is durable. At a bound, `try_submit` says so
//! and takes nothing more. While the store is away the same transaction is tried again and again, so all that was
//! taken becomes durable when it is back.

mod blobs;
mod reading;
mod writing;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};

use self::blobs::{BlobJob, BlobThread};
use self::writing::{Command, Writing};
use super::blob::BlobStore;
use super::store::{Answer, Filter, Operation, Page, Store, StoreError};
use super::task::{BlobKey, Body, FailedAttempt, StoredTask, TaskId};

/// Questions that may wait or be answered and not taken yet.
const MAX_QUERIES: usize = 1024;
/// Answers to questions that may wait to be taken: a page has up to 8 MiB, so not many.
const MAX_READ_COMPLETIONS: usize = 32;

/// An operation and the caller's own number for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Echoed in the completion.
    pub token: u64,
    /// What is to be made durable.
    pub operation: Operation,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// One task. A large result comes with it; a large payload stays a key.
    Fetch(TaskId),
    /// Tasks that have not ended, oldest first.
    OpenTasks {
        /// Where the page before ended.
        after: Option<TaskId>,
        /// Tasks a page, at most.
        limit: usize,
        /// The page has all that was answered before it was asked for.
        settled: bool,
    },
    /// Tasks that match, newest first. The first page has all that was answered before it was asked for.
    List {
        /// Which.
        filter: Filter,
        /// Where the page before ended.
        before: Option<TaskId>,
        /// Tasks a page, at most.
        limit: usize,
    },
    /// A task's failed attempts.
    History(TaskId),
    /// A blob's bytes.
    Blob(BlobKey),
}

/// What a request or a query came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A request's answer: it is durable.
    Answer(Answer),
    /// To [`Query::Fetch`]; `None` when there is no such task.
    Task(Option<Box<StoredTask>>),
    /// To [`Query::OpenTasks`] and [`Query::List`].
    Page(Page),
    /// To [`Query::History`].
    History(Vec<FailedAttempt>),
    /// To [`Query::Blob`]; `None` when there is no such blob.
    Blob(Option<bytes::Bytes>),
}

/// The end of a request or a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The caller's number.
    pub token: u64,
    /// What came of it. An error other than [`StoreError::Invalid`] says that nothing is known to be durable.
    pub reply: Result<Reply, StoreError>,
}

/// Bounds and limits of the storage threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageSettings {
    /// Requests taken whose completion has not been taken back, at most.
    pub max_waiting: usize,
    /// Bytes of requests that are not durable yet, at most. A single larger one is taken when nothing else waits.
    pub max_waiting_bytes: usize,
    /// Payloads and results of more bytes go to the blob store.
    pub blob_threshold: usize,
    /// Threads that read and write blobs.
    pub blob_threads: usize,
    /// Blobs that no task names are removed at the start when they are older than this.
    pub sweep_age: Duration,
}

impl Default for StorageSettings {
    fn default() -> Self {
        StorageSettings {
            max_waiting: 65_536,
            max_waiting_bytes: 64 << 20,
            blob_threshold: 256 << 10,
            blob_threads: 2,
            sweep_age: Duration::from_secs(3600),
        }
    }
}

/// Why nothing, or not all, was taken. A client is told `store_unavailable` and this sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As much waits as may.
    #[error("the store has {waiting} operations to write and takes no more until some are done{}", because(.trouble))]
    Full {
        /// Operations that wait.
        waiting: usize,
        /// Why they do, if it is not the load alone.
        trouble: Option<String>,
    },
    /// The store failed for good, or is stopping.
    #[error("the store takes nothing any more{}", because(.trouble))]
    Stopped {
        /// Why, if it failed.
        trouble: Option<String>,
    },
}

fn because(trouble: &Option<String>) -> String {
    trouble.as_ref().map_or_else(String::new, |trouble| format!(": {trouble}"))
}

/// How the storage threads do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StorageStatus {
    /// Requests taken and not durable yet, or not taken back.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
    /// Those among them whose payload or result is yet to be put into the blob store, and their bytes.
    pub blobs_waiting: (usize, usize),
    /// Other balancers that wait to lead.
    pub standbys: usize,
    /// Why the store cannot be used; `None` when it can.
    pub trouble: Option<Trouble>,
    /// Why the blob store cannot be used; `None` when it can.
    pub blob_trouble: Option<Trouble>,
}

/// Why a store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What it says, the last time that it was tried.
    pub reason: String,
    /// When it was first seen.
    pub since: SystemTime,
    /// It is tried no more.
    pub for_good: bool,
}

impl Trouble {
    /// Notes that something cannot be used, and says whether that is new.
    fn note(place: &mut Option<Trouble>, reason: String) -> bool {
        match place {
            Some(trouble) => {
                trouble.reason = reason;
                false
            }
            None => {
                *place = Some(Trouble { reason, since: SystemTime::now(), for_good: false });
                true
            }
        }
    }
}

/// What all threads share.
struct Shared {
    settings: StorageSettings,
    /// Requests taken whose completion has not been taken back.
    waiting: AtomicUsize,
    /// Bytes of requests that are not durable yet.
    waiting_bytes: AtomicUsize,
    queries: AtomicUsize,
    stopping: AtomicBool,
    /// Of those, the ones for the blob store, and their bytes.
    blobs_waiting: AtomicUsize,
    blobs_waiting_bytes: AtomicUsize,
    standbys: AtomicUsize,
    trouble: Mutex<Option<Trouble>>,
    blob_trouble: Mutex<Option<Trouble>>,
    /// Why the store has stopped for good.
    failure: Mutex<Option<StoreError>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    fn trouble(&self) -> Option<String> {
        let reason = |trouble: &Mutex<Option<Trouble>>| lock(trouble).as_ref().map(|it| it.reason.clone());
        reason(&self.trouble).or_else(|| reason(&self.blob_trouble))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A text that a panicking thread was about to replace is as good as another.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store at work on its own threads.
///
/// Dropping it stops the threads without waiting for them; [`stop`](Self::stop) waits.
pub struct Storage {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    queries: Option<Sender<(u64, Query)>>,
    blob_jobs: Option<(Sender<BlobJob>, Receiver<BlobJob>)>,
    blobs: Option<Arc<dyn BlobStore>>,
    written: Receiver<Vec<Completion>>,
    answered: Receiver<Completion>,
    writing: Option<JoinHandle<Result<(), StoreError>>>,
    others: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Storage").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Storage {
    /// Starts the threads. `wake` is called from them whenever there are completions to take; it must not block.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when a thread or a second connection cannot be had.
    pub fn start(
        store: Box<dyn Store>,
        blobs: Option<Arc<dyn BlobStore>>,
        settings: StorageSettings,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Storage, StoreError> {
        let reader = store.reader()?;
        // Each message is at least one request or query, and those are counted, so no channel is ever full.
        let (commands, commands_in) = bounded(settings.max_waiting + MAX_QUERIES + 1);
        let (queries, queries_in) = bounded(MAX_QUERIES);
        // Vectors of completions; their number is bounded by that of the requests.
        let (written_out, written) = unbounded();
        let (answered_out, answered) = bounded(MAX_READ_COMPLETIONS);
        let shared = Arc::new(Shared {
            settings,
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            queries: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            blobs_waiting: AtomicUsize::new(0),
            blobs_waiting_bytes: AtomicUsize::new(0),
            standbys: AtomicUsize::new(0),
            trouble: Mutex::new(None),
            blob_trouble: Mutex::new(None),
            failure: Mutex::new(None),
            wake: Box::new(wake),
        });
        let blob_jobs = blobs.as_ref().map(|_| bounded(2 * shared.settings.max_waiting + 2 * MAX_QUERIES));
        let mut others = Vec::new();
        if let (Some(blobs), Some((jobs_out, jobs))) = (&blobs, &blob_jobs) {
            for number in 0..shared.settings.blob_threads.max(1) {
                let thread = BlobThread {
                    shared: Arc::clone(&shared),
                    blobs: Arc::clone(blobs),
                    jobs: jobs.clone(),
                    commands: commands.clone(),
                    written: written_out.clone(),
                    answered: answered_out.clone(),
                };
                others.push(spawn(&format!("blobs-{number}"), move || thread.run())?);
            }
            // The first job, so that it does not delay the start.
            let _ = jobs_out.try_send(BlobJob::Sweep(store.reader()?));
        }
        let writing = Writing {
            shared: Arc::clone(&shared),
            store,
            commands: commands_in,
            queries: queries.clone(),
            written: written_out,
            blob_jobs: blob_jobs.as_ref().map(|(jobs, _)| jobs.clone()),
        };
        let writing = spawn("storage", move || writing.run())?;
        let reading = reading::Reading {
            shared: Arc::clone(&shared),
            reader,
            queries: queries_in,
            answered: answered_out,
            blob_jobs: blob_jobs.as_ref().map(|(jobs, _)| jobs.clone()),
        };
        others.push(spawn("storage-reader", move || reading.run())?);
        Ok(Storage {
            shared,
            commands,
            queries: Some(queries),
            blob_jobs,
            blobs,
            written,
            answered,
            writing: Some(writing),
            others,
        })
    }

    /// Takes as many requests from the front of `requests` as there is room for, and leaves the others.
    ///
    /// Requests on one task keep their order, except that one with a payload or a result for the blob store is
    /// overtaken by those behind it: wait for its completion before the next on that task.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] when some are left.
    pub fn try_submit(&self, requests: &mut Vec<Request>) -> Result<(), SubmitError> {
        if requests.is_empty() {
            return Ok(());
        }
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped { trouble: self.shared.trouble() });
        }
        let (count, bytes, has_large) = self.room(requests);
        if count > 0 {
            let left = requests.split_off(count);
            let taken = std::mem::replace(requests, left);
            self.shared.waiting.fetch_add(count, Ordering::AcqRel);
            self.shared.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
            self.hand_over(taken, has_large)?;
        }
        if requests.is_empty() {
            return Ok(());
        }
        let waiting = self.shared.waiting.load(Ordering::Acquire);
        Err(SubmitError::Full { waiting, trouble: self.shared.trouble() })
    }

    /// How many more requests it takes at most, as far as their number goes.
    #[must_use]
    pub fn room_for_requests(&self) -> usize {
        self.shared.settings.max_waiting.saturating_sub(self.shared.waiting.load(Ordering::Acquire))
    }

    /// How many requests there is room for, their bytes, and whether one of them is for the blob store.
    fn room(&self, requests: &[Request]) -> (usize, usize, bool) {
        let settings = &self.shared.settings;
        let waiting = self.shared.waiting.load(Ordering::Acquire);
        let waiting_bytes = self.shared.waiting_bytes.load(Ordering::Acquire);
        let (mut count, mut bytes, mut has_large) = (0, 0, false);
        for request in requests.iter().take(settings.max_waiting.saturating_sub(waiting)) {
            let memory = request.operation.memory();
            let is_alone = waiting_bytes + bytes == 0;
            if waiting_bytes + bytes + memory > settings.max_waiting_bytes && !is_alone {
                break;
            }
            count += 1;
            bytes += memory;
            has_large |= is_large(&request.operation, settings.blob_threshold);
        }
        (count, bytes, has_large)
    }

    fn hand_over(&self, mut taken: Vec<Request>, has_large: bool) -> Result<(), SubmitError> {
        let stopped = |_| SubmitError::Stopped { trouble: self.shared.trouble() };
        if let Some((jobs, _)) = self.blob_jobs.as_ref().filter(|_| has_large) {
            let threshold = self.shared.settings.blob_threshold;
            let (large, small) =
                taken.into_iter().partition::<Vec<_>, _>(|request| is_large(&request.operation, threshold));
            taken = small;
            for request in large {
                self.shared.blobs_waiting.fetch_add(1, Ordering::AcqRel);
                self.shared.blobs_waiting_bytes.fetch_add(request.operation.memory(), Ordering::AcqRel);
                jobs.try_send(BlobJob::Put(Box::new(request))).map_err(|error| stopped(error.is_full()))?;
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        self.commands.try_send(Command::Write(taken)).map_err(|error| stopped(error.is_full()))
    }

    /// Takes a question.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] when as many wait as may, or the threads have ended.
    pub fn try_query(&self, token: u64, query: Query) -> Result<(), SubmitError> {
        let stopped = || SubmitError::Stopped { trouble: self.shared.trouble() };
        let Some(queries) = &self.queries else { return Err(stopped()) };
        let waiting = self.shared.queries.fetch_add(1, Ordering::AcqRel);
        let full = SubmitError::Full { waiting, trouble: self.shared.trouble() };
        if waiting >= MAX_QUERIES {
            self.shared.queries.fetch_sub(1, Ordering::AcqRel);
            return Err(full);
        }
        let is_first_page = matches!(
            query,
            Query::List { before: None, .. } | Query::OpenTasks { settled: true, .. } | Query::History(_)
        );
        let sent = if is_first_page {
            self.commands.try_send(Command::SettleFor(token, query)).map_err(|error| error.is_full())
        } else {
            queries.try_send((token, query)).map_err(|error| error.is_full())
        };
        sent.map_err(|is_full| {
            self.shared.queries.fetch_sub(1, Ordering::AcqRel);
            if is_full { full } else { stopped() }
        })
    }

    /// Takes all completions there are, in any order between different tokens.
    pub fn take_completions(&self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        while let Ok(mut some) = self.written.try_recv() {
            completions.append(&mut some);
        }
        self.shared.waiting.fetch_sub(completions.len() - before, Ordering::AcqRel);
        let before = completions.len();
        completions.extend(self.answered.try_iter());
        self.shared.queries.fetch_sub(completions.len() - before, Ordering::AcqRel);
    }

    /// How it does.
    #[must_use]
    pub fn status(&self) -> StorageStatus {
        StorageStatus {
            waiting: self.shared.waiting.load(Ordering::Acquire),
            waiting_bytes: self.shared.waiting_bytes.load(Ordering::Acquire),
            blobs_waiting: (
                self.shared.blobs_waiting.load(Ordering::Acquire),
                self.shared.blobs_waiting_bytes.load(Ordering::Acquire),
            ),
            standbys: self.shared.standbys.load(Ordering::Acquire),
            trouble: lock(&self.shared.trouble).clone(),
            blob_trouble: lock(&self.shared.blob_trouble).clone(),
        }
    }

    /// Why the store cannot be used now, or the blob store; `None` when both can.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// Why the store has stopped for good; `None` while it has not.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        // Asked often, so without a lock as long as all is well.
        if !self.shared.stopping.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.shared.failure).clone()
    }

    /// Makes all that was taken durable, closes the store, and returns the completions that were left. Questions
    /// that are not answered yet are not.
    ///
    /// # Errors
    ///
    /// What kept the store from being closed; what was durable is all the same.
    pub fn stop(mut self) -> Result<Vec<Completion>, StoreError> {
        self.shared.stopping.store(true, Ordering::Release);
        // Large ones first, as they go to the writing thread yet.
        if let Some((jobs, _)) = &self.blob_jobs {
            for _ in 0..self.shared.settings.blob_threads.max(1) {
                let _ = jobs.send(BlobJob::Stop);
            }
        }
        let reading = self.others.pop();
        let mut completions = Vec::new();
        for blobs in std::mem::take(&mut self.others) {
            self.await_end(&blobs, &mut completions);
            ended("blobs", blobs.join());
        }
        let _ = self.commands.send(Command::Stop);
        let closed = match self.writing.take().map(JoinHandle::join) {
            Some(Ok(closed)) => closed,
            Some(Err(_)) => Err(StoreError::unavailable("its thread panicked")),
            None => Ok(()),
        };
        self.queries = None;
        if let Some(reading) = reading {
            self.await_end(&reading, &mut completions);
            ended("storage-reader", reading.join());
        }
        if let (Some((_, jobs)), Some(blobs)) = (&self.blob_jobs, &self.blobs) {
            // What the last transactions left to delete.
            for job in jobs.try_iter() {
                if let BlobJob::Delete(keys) = job {
                    blobs::delete_all(&**blobs, &keys);
                }
            }
        }
        self.take_completions(&mut completions);
        closed.map(|()| completions)
    }

    /// Takes completions until a thread has ended, as it may wait for them to be taken.
    fn await_end(&self, thread: &JoinHandle<()>, completions: &mut Vec<Completion>) {
        while !thread.is_finished() {
            self.take_completions(completions);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if self.writing.is_some() {
            self.shared.stopping.store(true, Ordering::Release);
            if let Some((jobs, _)) = &self.blob_jobs {
                for _ in 0..self.shared.settings.blob_threads.max(1) {
                    let _ = jobs.try_send(BlobJob::Stop);
                }
            }
            let _ = self.commands.try_send(Command::Stop);
        }
    }
}

fn ended(name: &str, joined: thread::Result<()>) {
    if joined.is_err() {
        log::error!("the thread {name} panicked");
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StoreError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(StoreError::unavailable)
}

/// The payload or the result that an operation brings.
fn body_of(operation: &Operation) -> Option<&Body> {
    match operation {
        Operation::Accept(task) => Some(&task.payload),
        Operation::Finish(outcome) => Some(&outcome.result),
        _ => None,
    }
}

fn is_large(operation: &Operation, threshold: usize) -> bool {
    matches!(body_of(operation), Some(Body::Inline(bytes)) if bytes.len() > threshold)
}

/// Leaves a job with the blob threads, or says in the log what is lost by not being able to.
fn leave_job(jobs: &Sender<BlobJob>, job: BlobJob) -> Result<(), BlobJob> {
    jobs.try_send(job).map_err(|error| match error {
        TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
    })
}

#[cfg(test)]
mod tests;
