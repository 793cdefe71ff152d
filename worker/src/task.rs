//! What a handler sees: the task, the ways it can fail, and the flag that says nobody waits for it any more.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::actions::Action;
use crate::link::Link;
use crate::lock;

/// A task in a handler's hands.
///
/// Cheap to look at: the payload shares the memory that it was read into.
#[derive(Debug)]
pub struct Task {
    pub(crate) id: u64,
    pub(crate) action: Arc<Action>,
    pub(crate) payload: Bytes,
    pub(crate) attempt: u8,
    pub(crate) deadline: Option<Instant>,
    pub(crate) key: Option<Bytes>,
    pub(crate) task_id: Option<[u8; 16]>,
    pub(crate) cancellation: Cancellation,
    pub(crate) link: Option<Arc<Link>>,
}

impl Task {
    /// A task that came from nowhere, to try a handler out. Its progress goes nowhere too.
    ///
    /// ```
    /// use reparto_worker::{Task, builtin};
    /// let result = builtin::sum(&Task::detached("sum", "1,2,3,4,5"))?;
    /// assert_eq!(result, "15");
    /// # Ok::<(), reparto_worker::TaskError>(())
    /// ```
    pub fn detached(action: &str, payload: impl Into<Bytes>) -> Task {
        Task {
            id: 0,
            action: Arc::new(Action::without_handler(action)),
            payload: payload.into(),
            attempt: 1,
            deadline: None,
            key: None,
            task_id: None,
            cancellation: Cancellation::default(),
            link: None,
        }
    }

    /// What is asked for.
    pub fn action(&self) -> &str {
        self.action.name()
    }

    /// What to do it with, up to the balancer's largest frame (16 MiB unless configured).
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Which attempt this is, from 1. Execution is at-least-once: an earlier attempt may have done part of the
    /// work, or all of it.
    pub fn attempt(&self) -> u8 {
        self.attempt
    }

    /// When the task must have ended, if it must. The balancer cancels it then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The key that the client gave, 1 to 255 bytes.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// A durable task's id, a UUID: the same in every attempt.
    pub fn task_id(&self) -> Option<[u8; 16]> {
        self.task_id
    }

    /// Whether nobody waits for the result any more. A handler that runs long should ask now and then, and
    /// return anything when it is so.
    pub fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled()
    }

    /// The task's cancellation, to wait on, or to hand to another thread.
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Tells the client how far the task is; `total` is 0 when that is not known.
    ///
    /// Each call is a frame of its own. It waits while the balancer does not read.
    pub fn progress(&self, done: u64, total: u64) {
        if let Some(link) = &self.link {
            // Without a payload the frame is far below any limit.
            let _ = link.progress(self.id, done, total, Bytes::new());
        }
    }

    /// As [`progress`](Self::progress), with bytes for the client, such as a first part of the result.
    ///
    /// # Errors
    /// A final error when `bytes` does not fit in the balancer's largest frame.
    pub fn progress_with(&self, done: u64, total: u64, bytes: impl Into<Bytes>) -> Result<(), TaskError> {
        match &self.link {
            Some(link) => link.progress(self.id, done, total, bytes.into()),
            None => Ok(()),
        }
    }
}

/// Why a task failed, and whether another attempt may do better.
///
/// A string becomes a final error, so that `Err("no such file".into())` and `?` on such a result just work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// Failed for good: the client gets `worker_failed` with this sentence.
    #[error("{message}")]
    Final {
        /// Why, for people; cut at 4 KiB.
        message: String,
        /// Anything for the client beside it.
        payload: Bytes,
    },
    /// Failed, and another attempt may do better; the balancer makes one, as long as the task has attempts left.
    #[error("{message}")]
    Retryable {
        /// Why, for people; cut at 4 KiB.
        message: String,
        /// Anything for the client beside it, should this have been the last attempt.
        payload: Bytes,
    },
}

impl TaskError {
    /// A failure for good.
    pub fn failed(message: impl Into<String>) -> TaskError {
        TaskError::Final { message: message.into(), payload: Bytes::new() }
    }

    /// A failure that another attempt may mend.
    pub fn retryable(message: impl Into<String>) -> TaskError {
        TaskError::Retryable { message: message.into(), payload: Bytes::new() }
    }

    /// The same failure, with bytes for the client.
    #[must_use]
    pub fn with_payload(mut self, bytes: impl Into<Bytes>) -> TaskError {
        match &mut self {
            TaskError::Final { payload, .. } | TaskError::Retryable { payload, .. } => {
                *payload = bytes.into()
            }
        }
        self
    }
}

impl From<String> for TaskError {
    fn from(message: String) -> Self {
        TaskError::failed(message)
    }
}

impl From<&str> for TaskError {
    fn from(message: &str) -> Self {
        TaskError::failed(message)
    }
}

/// Says when nobody waits for a task's result any more: its client cancelled it or left, its deadline passed,
/// the balancer was lost, or the worker stops and its grace is over.
///
/// Clones are the same cancellation.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<CancellationState>);

#[derive(Debug, Default)]
struct CancellationState {
    reason: AtomicU8,
    /// There once somebody waits. Dropping the sender wakes whoever does.
    signal: Mutex<Option<Signal>>,
}

#[derive(Debug)]
struct Signal {
    _sender: Sender<Infallible>,
    receiver: Receiver<Infallible>,
}

/// Why a task was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CancelReason {
    /// Nobody wants its result.
    Unwanted = 1,
    /// The worker leaves; the task should run elsewhere.
    Stopping = 2,
}

impl Cancellation {
    /// Whether it has happened.
    pub fn is_cancelled(&self) -> bool {
        self.0.reason.load(Ordering::Acquire) != 0
    }

    /// Waits until it has happened, and no longer than `limit`. Gives whether it has.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        self.is_cancelled() || self.channel().recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }

    /// A channel that is disconnected once it has happened, to select on.
    pub(crate) fn channel(&self) -> Receiver<Infallible> {
        let mut signal = lock(&self.0.signal);
        if self.is_cancelled() {
            return bounded(0).1;
        }
        let signal = signal.get_or_insert_with(|| {
            let (sender, receiver) = bounded(0);
            Signal { _sender: sender, receiver }
        });
        signal.receiver.clone()
    }

    /// Makes it happen. The first reason stays.
    pub(crate) fn cancel(&self, reason: CancelReason) {
        let first = self.0.reason.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            lock(&self.0.signal).take();
        }
    }

    /// Whether the two are the same cancellation, and so one run of one task.
    pub(crate) fn is_same(&self, other: &Cancellation) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the worker's end, and not the balancer, made it happen.
    pub(crate) fn is_stopping(&self) -> bool {
        self.0.reason.load(Ordering::Acquire) == CancelReason::Stopping as u8
    }

    /// Makes this one ready for the next task: in place when nobody else has it, which is the usual case.
    pub(crate) fn renew(&mut self) {
        match Arc::get_mut(&mut self.0) {
            Some(state) => *state = CancellationState::default(),
            None => *self = Cancellation::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_task_is_cancelled() {
        let cancellation = Cancellation::default();
        let waiter = std::thread::spawn({
            let cancellation = cancellation.clone();
            move || cancellation.wait_timeout(Duration::from_secs(60))
        });
        cancellation.cancel(CancelReason::Unwanted);
        assert!(waiter.join().unwrap());
        assert!(cancellation.wait_timeout(Duration::from_secs(60)), "it stays cancelled");
    }

    #[test]
    fn waiting_ends_when_its_time_is_over() {
        assert!(!Cancellation::default().wait_timeout(Duration::from_millis(1)));
    }

    #[test]
    fn a_cancellation_that_a_handler_kept_is_not_used_again() {
        let mut cancellation = Cancellation::default();
        let kept = cancellation.clone();
        kept.cancel(CancelReason::Unwanted);
        cancellation.renew();
        assert!(kept.is_cancelled() && !cancellation.is_cancelled());
    }

    #[test]
    fn the_first_reason_stays() {
        let cancellation = Cancellation::default();
        cancellation.cancel(CancelReason::Unwanted);
        cancellation.cancel(CancelReason::Stopping);
        assert!(!cancellation.is_stopping());
    }

    #[test]
    fn a_string_is_a_final_error() {
        assert_eq!(TaskError::from("no"), TaskError::failed("no"));
    }
}
