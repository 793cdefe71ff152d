//! Threads that put, read and delete blobs, since a blob store may be slow or far away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::writing::Command;
use super::{Completion, Reply, Request, Shared, Trouble, lock};
use crate::storage::blob::{self, BlobError, BlobStore};
use crate::storage::store::{Operation, StoreError, StoreReader};
use crate::storage::task::{BlobKey, BlobKind, Body, StoredTask, TaskId};

/// How long a result that could not be put waits.
const RETRY: Duration = Duration::from_millis(500);

/// How often a blob store that cannot be used is tried when nothing else is to be done with it.
const PROBE: Duration = Duration::from_secs(1);

/// What a thread is told.
pub(super) enum BlobJob {
    /// Put what the request brings, and pass it on with the key. In a box, since the queue may be long.
    Put(Box<Request>),
    /// Read a blob.
    Get(u64, BlobKey),
    /// Read a task's result, and answer with the task.
    Complete(u64, Box<StoredTask>),
    /// Delete blobs that nothing names.
    Delete(Vec<BlobKey>),
    /// Remove what a crash left.
    Sweep(Box<dyn StoreReader>),
    /// End.
    Stop,
}

pub(super) struct BlobThread {
    pub(super) shared: Arc<Shared>,
    pub(super) blobs: Arc<dyn BlobStore>,
    pub(super) jobs: Receiver<BlobJob>,
    pub(super) commands: Sender<Command>,
    pub(super) written: Sender<Vec<Completion>>,
    pub(super) answered: Sender<Completion>,
}

impl BlobThread {
    pub(super) fn run(self) {
        loop {
            let job = match self.next() {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.noting(self.blobs.get(&BlobKey::probe()));
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match job {
                BlobJob::Put(request) => self.put(*request),
                BlobJob::Get(token, key) => {
                    let read = self.noting(self.blobs.get(&key));
                    self.answer(token, read.map(Reply::Blob));
                }
                BlobJob::Complete(token, stored) => self.complete(token, stored),
                BlobJob::Delete(keys) => delete_all(&*self.blobs, &keys),
                BlobJob::Sweep(mut reader) => {
                    let goes_on = || !self.shared.stopping.load(Ordering::Acquire);
                    match blob::sweep(&*self.blobs, &mut *reader, self.shared.settings.sweep_age, goes_on) {
                        Ok(0) => {}
                        Ok(removed) => log::info!("removed {removed} blobs that no task names"),
                        Err(error) => log::warn!("cannot look for blobs that no task names: {error}"),
                    }
                }
                BlobJob::Stop => return,
            }
        }
    }

    /// The next job. While the blob store cannot be used, it is waited for no longer than until it is to be tried again:
    /// otherwise nobody would find out that it is back when nothing is to be put or read.
    fn next(&self) -> Result<BlobJob, RecvTimeoutError> {
        let in_trouble = lock(&self.shared.blob_trouble).is_some();
        if in_trouble {
            self.jobs.recv_timeout(PROBE)
        } else {
            self.jobs.recv().map_err(RecvTimeoutError::from)
        }
    }

    fn put(&self, mut request: Request) {
        let before = request.operation.memory();
        let put = self.put_body(&mut request.operation);
        self.shared.blobs_waiting.fetch_sub(1, Ordering::AcqRel);
        self.shared.blobs_waiting_bytes.fetch_sub(before, Ordering::AcqRel);
        match put {
            Ok(()) => {
                let after = request.operation.memory();
                self.shared.waiting_bytes.fetch_sub(before.saturating_sub(after), Ordering::AcqRel);
                // There is room for every request that was taken.
                let _ = self.commands.send(Command::Write(vec![request]));
            }
            Err(error) => {
                self.shared.waiting_bytes.fetch_sub(before, Ordering::AcqRel);
                let _ = self.written.send(vec![Completion { token: request.token, reply: Err(error) }]);
                (self.shared.wake)();
            }
        }
    }

    /// Puts a payload or a result and leaves its key in its place. A result is tried until it works.
    fn put_body(&self, operation: &mut Operation) -> Result<(), StoreError> {
        let (id, kind, body): (TaskId, _, &mut Body) = match operation {
            Operation::Accept(task) => (task.id, BlobKind::Payload, &mut task.payload),
            Operation::Finish(outcome) => (outcome.id, BlobKind::Result, &mut outcome.result),
            _ => return Ok(()),
        };
        let Body::Inline(bytes) = body else { return Ok(()) };
        let key = BlobKey::for_task(id, kind);
        loop {
            match self.noting(self.blobs.put(&key, bytes)) {
                Ok(()) => {
                    *body = Body::Blob(key);
                    return Ok(());
                }
                Err(_) if kind == BlobKind::Result && !self.shared.stopping.load(Ordering::Acquire) => {
                    thread::sleep(RETRY);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn complete(&self, token: u64, mut stored: Box<StoredTask>) {
        let Some(Body::Blob(key)) = &stored.result else {
            return self.answer(token, Ok(Reply::Task(Some(stored))));
        };
        let reply = match self.noting(self.blobs.get(key)) {
            Ok(Some(bytes)) => {
                stored.result = Some(Body::Inline(bytes));
                Ok(Reply::Task(Some(stored)))
            }
            Ok(None) => Err(StoreError::Corrupt {
                place: format!("the result of task {}", stored.task.id),
                reason: format!("the blob store has no blob {key}"),
            }),
            Err(error) => Err(error),
        };
        self.answer(token, reply);
    }

    fn answer(&self, token: u64, reply: Result<Reply, StoreError>) {
        // Waits while the caller has many to take; nobody may be there any more.
        if self.answered.send(Completion { token, reply }).is_ok() {
            (self.shared.wake)();
        }
    }

    /// Remembers for the status whether the blob store can be used.
    fn noting<T>(&self, done: Result<T, BlobError>) -> Result<T, StoreError> {
        let mut trouble = lock(&self.shared.blob_trouble);
        match done {
            Ok(done) => {
                if trouble.take().is_some() {
                    log::warn!("the blob store can be used again");
                }
                Ok(done)
            }
            Err(error) => {
                if Trouble::note(&mut trouble, error.to_string()) {
                    log::error!("{error}; what needs it waits, or is refused");
                }
                Err(StoreError::unavailable(error))
            }
        }
    }
}

/// Deletes blobs; one that cannot be is removed by a later start.
pub(super) fn delete_all(blobs: &dyn BlobStore, keys: &[BlobKey]) {
    for key in keys {
        if let Err(error) = blobs.delete(key) {
            log::warn!("cannot delete the blob {key}, which a later start will: {error}");
        }
    }
}
