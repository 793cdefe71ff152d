//! A task's handle: the place where its outcome and its progress arrive, and the ways to wait for them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{TaskFailure, TaskOutcome};
use crate::shared::Owner;
use crate::sync::{locked, wait_on, wait_until};

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

/// Where a task's news arrive. The connection's reader writes, the handle reads.
#[derive(Default)]
pub(crate) struct TaskCell {
    state: Mutex<CellState>,
    news: Condvar,
}

#[derive(Default)]
struct CellState {
    outcome: Option<TaskOutcome>,
    waker: Option<Waker>,
    progress: Option<ProgressReport>,
    reports: u64,
    /// Threads that wait for news; a wake-up costs a system call, and mostly nobody waits yet.
    waiting: usize,
}

impl TaskCell {
    pub(crate) fn finish(&self, outcome: TaskOutcome) {
        let mut state = locked(&self.state);
        state.outcome = Some(outcome);
        let (waker, waiting) = (state.waker.take(), state.waiting);
        drop(state);
        if waiting > 0 {
            self.news.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn report(&self, report: ProgressReport) {
        let mut state = locked(&self.state);
        state.progress = Some(report);
        state.reports += 1;
        let waiting = state.waiting;
        drop(state);
        if waiting > 0 {
            self.news.notify_all();
        }
    }

    /// Waits until `look` gives something, or until a moment.
    fn wait_for<T>(
        &self,
        until: Option<Instant>,
        mut look: impl FnMut(&mut CellState) -> Option<T>,
    ) -> Option<T> {
        let mut state = locked(&self.state);
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            state.waiting += 1;
            let over;
            (state, over) = match until {
                None => (wait_on(&self.news, state), false),
                Some(until) => wait_until(&self.news, state, until),
            };
            state.waiting -= 1;
            if over {
                return look(&mut state);
            }
        }
    }

    pub(crate) fn wait(&self) -> TaskOutcome {
        let outcome = self.wait_for(None, |state| state.outcome.clone());
        // Without a time limit the wait ends with an outcome and nothing else.
        outcome.unwrap_or_else(|| Err(TaskFailure::new(reparto_protocol::ErrorCode::Internal, "no outcome")))
    }
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
    pub(crate) cell: Arc<TaskCell>,
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
        self.cell.wait_for(Instant::now().checked_add(timeout), |state| state.outcome.clone())
    }

    /// The outcome, if the task has ended. Never blocks.
    pub fn try_result(&self) -> Option<TaskOutcome> {
        locked(&self.cell.state).outcome.clone()
    }

    /// Asks for the task to be stopped, wherever it is. The outcome still comes, and is mostly `cancelled`; a
    /// task that ended meanwhile keeps its own. Does not block, and does nothing for a task that has ended.
    pub fn cancel(&self) {
        self.owner.shared.cancel(self.id);
    }

    /// The latest progress that the task's worker reported, if it reported any.
    pub fn progress(&self) -> Option<ProgressReport> {
        locked(&self.cell.state).progress.clone()
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
        let seen = self.reports_seen;
        let (reports, report) = self.cell.wait_for(until, |state| {
            if state.reports > seen {
                return Some((state.reports, state.progress.clone()));
            }
            state.outcome.as_ref().map(|_| (seen, None))
        })?;
        self.reports_seen = reports;
        report
    }
}

impl Future for TaskHandle {
    type Output = TaskOutcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<TaskOutcome> {
        let mut state = locked(&self.cell.state);
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(outcome.clone());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("ended", &self.try_result().is_some()).finish_non_exhaustive()
    }
}
