//! Handles: what a caller has in hand while a task runs, or while an answer is on its way.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cell::Cell;
use crate::error::{TaskFailure, TaskOutcome};
use crate::shared::Owner;
use crate::task_id::TaskId;

/// How far a task is, as its worker last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressReport {
    /// How much is done, in whatever unit the worker counts.
    pub done: u64,
    /// How much there is to do; 0 when that is not known.
    pub total: u64,
    /// What the worker gave on the way; mostly empty.
    pub payload: Bytes,
}

/// A task that was handed in.
///
/// Wait for it with [`wait`](Self::wait), look with [`try_result`](Self::try_result), or `.await` it: it is a
/// [`Future`] and needs no runtime of a certain kind. Every way may be used more than once, and gives the same
/// outcome again.
///
/// Dropping the handle does **not** cancel the task; it runs on, and its result is thrown away. Call
/// [`cancel`](Self::cancel) to stop it. As long as a handle lives its client's connection stays open, even
/// when every [`Client`](crate::Client) was dropped.
#[must_use = "dropping a handle does not cancel its task; wait for it, or cancel it"]
pub struct TaskHandle {
    pub(crate) owner: Arc<Owner>,
    pub(crate) cell: Arc<Cell>,
    pub(crate) id: u64,
    pub(crate) reports_seen: u64,
}

impl TaskHandle {
    /// Blocks until the task has ended.
    ///
    /// # Errors
    /// The task's failure, as the balancer told it; `connection_lost` when the connection ended first and the
    /// task was not marked safe to repeat.
    pub fn wait(&self) -> TaskOutcome {
        self.cell.wait()
    }

    /// Blocks until the task has ended, at most this long. `None` when it has not; it runs on then.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<TaskOutcome> {
        self.cell.wait_until(Instant::now().checked_add(timeout))
    }

    /// The outcome, if the task has ended. Never blocks.
    pub fn try_result(&self) -> Option<TaskOutcome> {
        self.cell.outcome()
    }

    /// Asks for the task to be stopped, wherever it is. The outcome still comes, and is mostly `cancelled`; a
    /// task that ended meanwhile keeps its own. Does not block, and does nothing for a task that has ended.
    pub fn cancel(&self) {
        self.owner.shared.cancel(self.id);
    }

    /// The latest progress that the task's worker reported, if it reported any.
    pub fn progress(&self) -> Option<ProgressReport> {
        self.cell.progress()
    }

    /// Blocks until a report arrives that this method has not given yet, and gives the latest one. `None` once
    /// the task has ended. Reports that come faster than they are taken are passed over.
    pub fn next_progress(&mut self) -> Option<ProgressReport> {
        self.next_report(None)
    }

    /// As [`next_progress`](Self::next_progress), and `None` as well after this long without a report.
    pub fn next_progress_timeout(&mut self, timeout: Duration) -> Option<ProgressReport> {
        self.next_report(Instant::now().checked_add(timeout))
    }

    fn next_report(&mut self, until: Option<Instant>) -> Option<ProgressReport> {
        let (reports, report) = self.cell.next_report(self.reports_seen, until)?;
        self.reports_seen = reports;
        report
    }

    /// For a task that is [recorded](crate::TaskBuilder::recorded): blocks until it is durable, and gives the id by
    /// which its outcome can be fetched later, by anyone. `None` once it has ended without having been durable.
    ///
    /// For a task that is not recorded it blocks until the task has ended.
    pub fn wait_task_id(&self) -> Option<TaskId> {
        self.cell.wait_task_id()
    }
}

impl Future for TaskHandle {
    type Output = TaskOutcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<TaskOutcome> {
        self.cell.poll(context)
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("ended", &self.cell.has_ended()).finish_non_exhaustive()
    }
}

/// An answer of the balancer's that is on its way.
///
/// Used like a [`TaskHandle`]: wait for it, look whether it is there, or `.await` it, more than once if you like. Any
/// number may be under way at a time, up to [`max_in_flight`](crate::ClientBuilder::max_in_flight). Dropping it takes
/// nothing back of what was asked.
#[must_use = "what was asked is known to be done only once the reply is there; wait for it"]
pub struct Reply<T> {
    pub(crate) _owner: Arc<Owner>,
    pub(crate) cell: Arc<Cell<T>>,
}

impl<T: Clone> Reply<T> {
    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// What the balancer said instead; `connection_lost` when the connection ended first and the question may not be
    /// asked twice.
    pub fn wait(&self) -> Result<T, TaskFailure> {
        self.cell.wait()
    }

    /// As [`wait`](Self::wait), at most this long; `None` when the answer has not come.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<T, TaskFailure>> {
        self.cell.wait_until(Instant::now().checked_add(timeout))
    }

    /// The answer, if it is there. Never blocks.
    pub fn try_result(&self) -> Option<Result<T, TaskFailure>> {
        self.cell.outcome()
    }
}

impl<T: Clone> Future for Reply<T> {
    type Output = Result<T, TaskFailure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.cell.poll(context)
    }
}

impl<T: Clone> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("answered", &self.cell.has_ended()).finish_non_exhaustive()
    }
}
