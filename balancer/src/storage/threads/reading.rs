//! The thread that answers questions, beside the one that writes.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::blobs::BlobJob;
use super::{Completion, Query, Reply, Shared, leave_job};
use crate::storage::store::{StoreError, StoreReader};
use crate::storage::task::{Body, StoredTask};

pub(super) struct Reading {
    pub(super) shared: Arc<Shared>,
    pub(super) reader: Box<dyn StoreReader>,
    pub(super) queries: Receiver<(u64, Query)>,
    pub(super) answered: Sender<Completion>,
    pub(super) blob_jobs: Option<Sender<BlobJob>>,
}

impl Reading {
    pub(super) fn run(mut self) {
        while let Ok((token, query)) = self.queries.recv() {
            let Some(reply) = self.answer(token, query) else { continue };
            // Waits while the caller has many to take; nobody may be there any more.
            if self.answered.send(Completion { token, reply }).is_err() {
                return;
            }
            (self.shared.wake)();
        }
    }

    /// The reply; `None` when a blob thread gives it.
    fn answer(&mut self, token: u64, query: Query) -> Option<Result<Reply, StoreError>> {
        Some(match query {
            Query::Fetch(id) => match self.reader.fetch(id) {
                Ok(Some(stored)) => return self.with_result(token, Box::new(stored)),
                other => other.map(|_| Reply::Task(None)),
            },
            Query::OpenTasks { after, limit, .. } => self.reader.open_tasks(after, limit).map(Reply::Page),
            Query::List { filter, before, limit } => {
                self.reader.list(&filter, before, limit).map(Reply::Page)
            }
            Query::History(id) => self.reader.history(id).map(Reply::History),
            Query::Blob(key) => return self.leave(BlobJob::Get(token, key)),
        })
    }

    fn with_result(&self, token: u64, stored: Box<StoredTask>) -> Option<Result<Reply, StoreError>> {
        match &stored.result {
            Some(Body::Blob(_)) => self.leave(BlobJob::Complete(token, stored)),
            _ => Some(Ok(Reply::Task(Some(stored)))),
        }
    }

    fn leave(&self, job: BlobJob) -> Option<Result<Reply, StoreError>> {
        let Some(jobs) = &self.blob_jobs else {
            return Some(Err(StoreError::unavailable("this balancer was started without its blob store")));
        };
        leave_job(jobs, job)
            .err()
            .map(|_| Err(StoreError::unavailable("too many blobs are to be read or written")))
    }
}
