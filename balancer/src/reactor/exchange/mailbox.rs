//! Mailboxes: a bounded channel of batches from one reactor to another, and the bells that wake who sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use mio::Waker;

use super::Batch;

/// Batches that may be under way to one reactor from another.
const BATCHES: usize = 4;

/// Wakes a reactor that may be asleep, and spares the wake-up when it is not.
#[derive(Debug)]
pub(crate) struct Bell {
    /// None where tests turn the reactors by hand.
    waker: Option<Arc<Waker>>,
    asleep: AtomicBool,
}

impl Bell {
    pub(crate) fn new(waker: Option<Arc<Waker>>) -> Bell {
        Bell { waker, asleep: AtomicBool::new(false) }
    }

    /// Its reactor is about to sleep. It must look once more for what may have come before it does.
    pub(crate) fn lie_down(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    /// Its reactor is awake.
    pub(crate) fn get_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Wakes its reactor if it sleeps. To be rung after what it is to see has been sent.
    pub(crate) fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Has its reactor turn once more, whatever it is doing.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &self.waker
            && let Err(error) = waker.wake()
        {
            log::error!("a reactor could not be woken: {error}");
        }
    }
}

/// What became of a batch that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Nothing waits here any more.
    All,
    /// The mailbox is full; its reader rings when it has taken something.
    Full,
    /// Its reader is gone.
    Closed,
}

/// The sending end, with the batch that is being filled.
#[derive(Debug)]
pub(crate) struct Outbox<B> {
    /// What is to be sent next.
    pub(crate) batch: B,
    /// `None` once it is closed.
    to: Option<Sender<B>>,
    used: Receiver<B>,
    reader: Arc<Bell>,
    wants_room: Arc<AtomicBool>,
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Inbox<B> {
    from: Receiver<B>,
    used: Sender<B>,
    writer: Arc<Bell>,
    wants_room: Arc<AtomicBool>,
}

/// A mailbox, and whom to wake at either end.
pub(crate) fn mailbox<B: Batch>(writer: &Arc<Bell>, reader: &Arc<Bell>) -> (Outbox<B>, Inbox<B>) {
    let (to, from) = bounded(BATCHES);
    let (give_back, used) = bounded(BATCHES);
    let wants_room = Arc::new(AtomicBool::new(false));
    let outbox = Outbox {
        batch: B::default(),
        to: Some(to),
        used,
        reader: Arc::clone(reader),
        wants_room: Arc::clone(&wants_room),
    };
    (outbox, Inbox { from, used: give_back, writer: Arc::clone(writer), wants_room })
}

impl<B: Batch> Outbox<B> {
    /// Sends what has gathered, if there is anything, and wakes the reader if it sleeps. Never waits.
    pub(crate) fn post(&mut self) -> Sent {
        if self.batch.is_empty() {
            return Sent::All;
        }
        let Some(to) = &self.to else { return Sent::Closed };
        let mut batch = std::mem::take(&mut self.batch);
        // When it is full that is said before it is tried again, lest the reader take the last one in between.
        for again in [true, false] {
            match to.try_send(batch) {
                Ok(()) => {
                    self.reader.ring();
                    self.batch = self.used.try_recv().unwrap_or_default();
                    return Sent::All;
                }
                Err(TrySendError::Disconnected(_)) => return Sent::Closed,
                Err(TrySendError::Full(unsent)) => batch = unsent,
            }
            if again {
                self.wants_room.store(true, Ordering::SeqCst);
            }
        }
        self.batch = batch;
        Sent::Full
    }

    /// Whether so much waits that nothing should be added that can wait.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.batch.is_full()
    }
}

impl<B> Drop for Outbox<B> {
    /// The reader finds the mailbox closed, and is woken to see it.
    fn drop(&mut self) {
        self.to = None;
        self.reader.wake();
    }
}

impl<B: Batch> Inbox<B> {
    /// Takes the oldest batch; `Ok(None)` when there is none now.
    ///
    /// # Errors
    /// The writer is gone, and everything it sent has been taken.
    pub(crate) fn take(&self) -> Result<Option<B>, Closed> {
        match self.from.try_recv() {
            Ok(batch) => {
                if self.wants_room.swap(false, Ordering::SeqCst) {
                    self.writer.ring();
                }
                Ok(Some(batch))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Closed),
        }
    }

    /// Gives an emptied batch back, to be filled again.
    pub(crate) fn give_back(&self, mut batch: B) {
        batch.clear();
        // Where there is no room for it, there are batches enough.
        let _ = self.used.try_send(batch);
    }

    /// Whether there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.from.is_empty()
    }

    /// Batches that may be taken now.
    pub(crate) fn len(&self) -> usize {
        self.from.len()
    }
}

/// The other end of a mailbox is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;
