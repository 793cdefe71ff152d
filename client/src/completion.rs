//! Completion queues: the outcomes of many tasks, taken by one thread as they come.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::background::Accepted;
use crate::client::TaskBuilder;
use crate::completer::Completer;
use crate::error::{ClientError, TaskFailure};
use crate::shared::{Owner, WhenFull};
use crate::sync::{locked, wait_on, wait_until};
use crate::task_request::Keep;

/// A task of a [`CompletionQueue`] that has ended, or, if `T` is [`Accepted`], was taken in or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion<T = Bytes> {
    /// What the caller named the task when it was submitted.
    pub tag: u64,
    /// How it ended.
    pub outcome: Result<T, TaskFailure>,
}

/// Takes in many tasks and gives their outcomes back as they come, in batches: the fastest way to have
/// thousands of tasks in flight, without a handle for each.
///
/// At most `capacity` tasks are submitted and not yet received, so memory stays bounded when the receiver is
/// slow. It may be shared between threads: some that submit, some that receive.
///
/// Made by [`Client::completion_queue`](crate::Client::completion_queue), it gives results. Made by
/// [`Client::accepted_queue`](crate::Client::accepted_queue), as a `CompletionQueue<Accepted>`, it hands in background
/// tasks and gives their ids.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = reparto_client::Client::connect(["127.0.0.1:8888"])?;
/// let queue = client.completion_queue(1_000);
/// for number in 0..1_000u64 {
///     queue.try_submit(number, client.task("fib").payload(number.to_string()))?;
/// }
/// queue.close();
/// while let Some(completion) = queue.recv() {
///     println!("{}: {:?}", completion.tag, completion.outcome);
/// }
/// # Ok(())
/// # }
/// ```
pub struct CompletionQueue<T = Bytes> {
    pub(crate) owner: Arc<Owner>,
    pub(crate) inner: Arc<QueueInner<T>>,
}

pub(crate) struct QueueInner<T> {
    state: Mutex<QueueState<T>>,
    arrived: Condvar,
    room: Condvar,
    capacity: usize,
}

struct QueueState<T> {
    ready: VecDeque<Completion<T>>,
    /// Submitted and not yet received.
    outstanding: usize,
    receivers_waiting: usize,
    submitters_waiting: usize,
    closed: bool,
}

impl<T> QueueInner<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        QueueInner {
            state: Mutex::new(QueueState {
                ready: VecDeque::new(),
                outstanding: 0,
                receivers_waiting: 0,
                submitters_waiting: 0,
                closed: false,
            }),
            arrived: Condvar::new(),
            room: Condvar::new(),
            capacity: capacity.max(1),
        }
    }

    /// Hands over outcomes whose places were reserved when their tasks were submitted.
    pub(crate) fn push_all(&self, completions: &mut Vec<Completion<T>>) {
        let mut state = locked(&self.state);
        state.ready.extend(completions.drain(..));
        let waiting = state.receivers_waiting;
        drop(state);
        if waiting > 0 {
            self.arrived.notify_all();
        }
    }

    fn reserve(&self, blocking: bool) -> Result<(), ClientError> {
        let mut state = locked(&self.state);
        loop {
            if state.closed {
                return Err(ClientError::QueueClosed);
            }
            if state.outstanding < self.capacity {
                state.outstanding += 1;
                return Ok(());
            }
            if !blocking {
                return Err(ClientError::Full { what: "the completion queue", limit: self.capacity });
            }
            state.submitters_waiting += 1;
            state = wait_on(&self.room, state);
            state.submitters_waiting -= 1;
        }
    }

    /// Gives back `places`; wakes whoever can go on.
    fn release(&self, state: &mut QueueState<T>, places: usize) {
        state.outstanding -= places;
        if state.submitters_waiting > 0 && places > 0 {
            self.room.notify_all();
        }
        if state.closed && state.outstanding == 0 && state.receivers_waiting > 0 {
            self.arrived.notify_all();
        }
    }

    fn receive(&self, until: Option<Instant>, batch: &mut Vec<Completion<T>>, most: usize) -> Received {
        let mut state = locked(&self.state);
        loop {
            if !state.ready.is_empty() {
                let places = most.min(state.ready.len());
                batch.extend(state.ready.drain(..places));
                self.release(&mut state, places);
                return Received::Some;
            }
            if state.closed && state.outstanding == 0 {
                return Received::Ended;
            }
            state.receivers_waiting += 1;
            let over;
            (state, over) = match until {
                None => (wait_on(&self.arrived, state), false),
                Some(until) => wait_until(&self.arrived, state, until),
            };
            state.receivers_waiting -= 1;
            if over && state.ready.is_empty() {
                return Received::Nothing;
            }
        }
    }
}

enum Received {
    Some,
    Nothing,
    Ended,
}

impl CompletionQueue {
    /// Hands in a task under a name of the caller's own. Blocks while the queue or the client is at its bound,
    /// so another thread must receive.
    ///
    /// # Errors
    /// As [`TaskBuilder::submit`]; [`ClientError::QueueClosed`] after [`close`](Self::close).
    pub fn submit(&self, tag: u64, task: TaskBuilder<'_>) -> Result<(), ClientError> {
        self.hand_in(task, WhenFull::Wait, |queue| Completer::Queue(queue, tag))
    }

    /// As [`submit`](Self::submit), but never blocks.
    ///
    /// # Errors
    /// [`ClientError::Full`] when the queue or the client is at its bound, and what `submit` says.
    pub fn try_submit(&self, tag: u64, task: TaskBuilder<'_>) -> Result<(), ClientError> {
        self.hand_in(task, WhenFull::Refuse, |queue| Completer::Queue(queue, tag))
    }
}

impl CompletionQueue<Accepted> {
    /// Hands in a background task under a name of the caller's own. Blocks while the queue or the client is at its
    /// bound, so another thread must receive.
    ///
    /// # Errors
    /// As [`TaskBuilder::submit_background`]; [`ClientError::QueueClosed`] after [`close`](Self::close).
    pub fn submit(&self, tag: u64, task: TaskBuilder<'_>) -> Result<(), ClientError> {
        let task = task.keep(Keep::Background);
        self.hand_in(task, WhenFull::Wait, |queue| Completer::AcceptedQueue(queue, tag))
    }

    /// As [`submit`](Self::submit), but never blocks.
    ///
    /// # Errors
    /// [`ClientError::Full`] when the queue or the client is at its bound, and what `submit` says.
    pub fn try_submit(&self, tag: u64, task: TaskBuilder<'_>) -> Result<(), ClientError> {
        let task = task.keep(Keep::Background);
        self.hand_in(task, WhenFull::Refuse, |queue| Completer::AcceptedQueue(queue, tag))
    }
}

impl<T> CompletionQueue<T> {
    fn hand_in(
        &self,
        task: TaskBuilder<'_>,
        when_full: WhenFull,
        completer: impl FnOnce(Arc<QueueInner<T>>) -> Completer,
    ) -> Result<(), ClientError> {
        self.inner.reserve(when_full == WhenFull::Wait)?;
        let handed_in = task.hand_in(completer(Arc::clone(&self.inner)), when_full);
        if handed_in.is_err() {
            self.inner.release(&mut locked(&self.inner.state), 1);
        }
        handed_in.map(|_| ())
    }

    /// Puts in an outcome of the caller's own, so that what failed before it was submitted comes out by the
    /// same way as everything else. Blocks while the queue is at its bound.
    ///
    /// # Errors
    /// [`ClientError::QueueClosed`] after [`close`](Self::close).
    pub fn push(&self, tag: u64, outcome: Result<T, TaskFailure>) -> Result<(), ClientError> {
        self.inner.reserve(true)?;
        self.inner.push_all(&mut vec![Completion { tag, outcome }]);
        Ok(())
    }

    /// Blocks until a task has ended, and gives its outcome. `None` once the queue is closed and everything was
    /// received; without [`close`](Self::close) it waits for tasks yet to be submitted.
    pub fn recv(&self) -> Option<Completion<T>> {
        let mut one = Vec::with_capacity(1);
        self.inner.receive(None, &mut one, 1);
        one.pop()
    }

    /// As [`recv`](Self::recv), and `None` as well after this long without an outcome.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Completion<T>> {
        let mut one = Vec::with_capacity(1);
        self.inner.receive(Instant::now().checked_add(timeout), &mut one, 1);
        one.pop()
    }

    /// Blocks until some task has ended, and appends every outcome that is there to `batch`: at most
    /// `capacity`. `false` once the queue is closed and everything was received.
    pub fn recv_batch(&self, batch: &mut Vec<Completion<T>>) -> bool {
        matches!(self.inner.receive(None, batch, usize::MAX), Received::Some)
    }

    /// As [`recv_batch`](Self::recv_batch), but waits at most this long, and then gives `true` with nothing
    /// appended.
    pub fn recv_batch_timeout(&self, batch: &mut Vec<Completion<T>>, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        !matches!(self.inner.receive(until, batch, usize::MAX), Received::Ended)
    }

    /// Takes no more tasks. What was submitted still comes out.
    pub fn close(&self) {
        let mut state = locked(&self.inner.state);
        state.closed = true;
        drop(state);
        self.inner.arrived.notify_all();
        self.inner.room.notify_all();
    }

    /// Outcomes that can be received without waiting.
    pub fn ready(&self) -> usize {
        locked(&self.inner.state).ready.len()
    }

    /// Tasks submitted and not yet received.
    pub fn outstanding(&self) -> usize {
        locked(&self.inner.state).outstanding
    }

    /// The most tasks that may be submitted and not yet received.
    pub fn capacity(&self) -> usize {
        self.inner.capacity
    }
}

impl<T> fmt::Debug for CompletionQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = locked(&self.inner.state);
        f.debug_struct("CompletionQueue")
            .field("capacity", &self.inner.capacity)
            .field("outstanding", &state.outstanding)
            .field("ready", &state.ready.len())
            .field("connected", &locked(&self.owner.shared.state).is_connected())
            .finish_non_exhaustive()
    }
}
