//! Where answers go: a handle's cell, a completion queue, a callback.

use std::sync::Arc;

use bytes::Bytes;

use crate::answer::{FromReply, Replied};
use crate::background::Accepted;
use crate::cell::Mailbox;
use crate::completion::{Completion, QueueInner};
use crate::error::TaskOutcome;

/// Where an answer goes.
pub(crate) enum Completer {
    Cell(Arc<dyn Mailbox>),
    Queue(Arc<QueueInner<Bytes>>, u64),
    AcceptedQueue(Arc<QueueInner<Accepted>>, u64),
    Callback(Box<dyn FnOnce(TaskOutcome) + Send>),
}

/// Answers found under the lock, to be handed over after it.
pub(crate) type Finished = Vec<(Completer, Replied)>;

/// Hands answers over, those of one queue that stand together in one go. Call it without the lock.
pub(crate) fn deliver(finished: Finished) {
    let (mut results, mut accepted) = (Batch::default(), Batch::default());
    for (completer, reply) in finished {
        match completer {
            Completer::Cell(cell) => cell.finish(reply),
            Completer::Queue(queue, tag) => results.add(queue, tag, reply),
            Completer::AcceptedQueue(queue, tag) => accepted.add(queue, tag, reply),
            Completer::Callback(callback) => {
                let call = std::panic::AssertUnwindSafe(|| callback(Bytes::from_reply(reply)));
                if std::panic::catch_unwind(call).is_err() {
                    log::error!("a completion callback panicked; its task's outcome is lost");
                }
            }
        }
    }
    results.flush();
    accepted.flush();
}

/// Outcomes of one queue, gathered so that its lock is taken once for all of them.
struct Batch<T> {
    queue: Option<Arc<QueueInner<T>>>,
    completions: Vec<Completion<T>>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Batch { queue: None, completions: Vec::new() }
    }
}

impl<T: FromReply> Batch<T> {
    fn add(&mut self, queue: Arc<QueueInner<T>>, tag: u64, reply: Replied) {
        if self.queue.as_ref().is_some_and(|other| !Arc::ptr_eq(other, &queue)) {
            self.flush();
        }
        self.completions.push(Completion { tag, outcome: T::from_reply(reply) });
        self.queue.get_or_insert(queue);
    }

    fn flush(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.push_all(&mut self.completions);
        }
    }
}
