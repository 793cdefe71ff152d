//! The place where the answer to a request arrives, and its news before that. The connection's reader writes, a
//! handle reads.

use std::sync::{Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

use crate::answer::{FromReply, Replied};
use crate::error::TaskFailure;
use crate::handle::ProgressReport;
use crate::sync::{locked, wait_on, wait_until};
use crate::task_id::TaskId;

/// What may come before the answer.
#[derive(Debug)]
pub(crate) enum Note {
    Progress(ProgressReport),
    /// A task that is recorded as well is durable now.
    Accepted(TaskId),
}

/// The writing side of a [`Cell`], whatever it holds.
pub(crate) trait Mailbox: Send + Sync {
    fn finish(&self, reply: Replied);
    fn tell(&self, note: Note);
}

/// Holds what a request asked for, once it is there.
pub(crate) struct Cell<T = Bytes> {
    state: Mutex<CellState<T>>,
    news: Condvar,
}

struct CellState<T> {
    outcome: Option<Result<T, TaskFailure>>,
    waker: Option<Waker>,
    progress: Option<ProgressReport>,
    reports: u64,
    task_id: Option<TaskId>,
    /// Threads that wait for news; a wake-up costs a system call, and mostly nobody waits yet.
    waiting: usize,
}

impl<T> Default for Cell<T> {
    fn default() -> Self {
        let state =
            CellState { outcome: None, waker: None, progress: None, reports: 0, task_id: None, waiting: 0 };
        Cell { state: Mutex::new(state), news: Condvar::new() }
    }
}

impl<T: FromReply> Mailbox for Cell<T> {
    fn finish(&self, reply: Replied) {
        let outcome = T::from_reply(reply);
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

    fn tell(&self, note: Note) {
        let mut state = locked(&self.state);
        match note {
            Note::Progress(report) => {
                state.progress = Some(report);
                state.reports += 1;
            }
            Note::Accepted(task_id) => state.task_id = Some(task_id),
        }
        let waiting = state.waiting;
        drop(state);
        if waiting > 0 {
            self.news.notify_all();
        }
    }
}

impl<T: Clone> Cell<T> {
    /// Waits until `look` gives something, or until a moment.
    fn wait_for<R>(
        &self,
        until: Option<Instant>,
        mut look: impl FnMut(&mut CellState<T>) -> Option<R>,
    ) -> Option<R> {
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

    pub(crate) fn wait(&self) -> Result<T, TaskFailure> {
        let outcome = self.wait_for(None, |state| state.outcome.clone());
        // Without a time limit the wait ends with an outcome and nothing else.
        outcome.unwrap_or_else(|| Err(TaskFailure::new(ErrorCode::Internal, "no outcome")))
    }

    pub(crate) fn wait_until(&self, until: Option<Instant>) -> Option<Result<T, TaskFailure>> {
        self.wait_for(until, |state| state.outcome.clone())
    }

    pub(crate) fn outcome(&self) -> Option<Result<T, TaskFailure>> {
        locked(&self.state).outcome.clone()
    }

    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Result<T, TaskFailure>> {
        let mut state = locked(&self.state);
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(outcome.clone());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    pub(crate) fn has_ended(&self) -> bool {
        locked(&self.state).outcome.is_some()
    }

    pub(crate) fn progress(&self) -> Option<ProgressReport> {
        locked(&self.state).progress.clone()
    }

    /// Waits for a report after the first `seen`. Gives how many there have been and the latest; no report when the
    /// outcome came instead; `None` when neither came until then.
    pub(crate) fn next_report(
        &self,
        seen: u64,
        until: Option<Instant>,
    ) -> Option<(u64, Option<ProgressReport>)> {
        self.wait_for(until, |state| {
            if state.reports > seen {
                return Some((state.reports, state.progress.clone()));
            }
            state.outcome.as_ref().map(|_| (seen, None))
        })
    }

    /// Waits until the task is durable, or has ended without having been.
    pub(crate) fn wait_task_id(&self) -> Option<TaskId> {
        self.wait_for(None, |state| match (state.task_id, &state.outcome) {
            (None, None) => None,
            (task_id, _) => Some(task_id),
        })
        .flatten()
    }
}
