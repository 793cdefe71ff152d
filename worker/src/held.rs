//! Background tasks that outlive a connection: they go on running when it is lost, and are named to the balancer when
//! it is back, which says of each whether it is still wanted.
//!
//! A task is kept here from the end of the connection that it came by until its result is handed to another, or the
//! balancer says that it is not wanted. There are never more than ran at once, as without a connection none begins.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use reparto_protocol::Outcome;

use crate::link::Link;
use crate::lock;
use crate::task::{CancelReason, Cancellation};

/// Results that are kept for a balancer that is away, in bytes. One more is left out, and its task runs again.
const MAX_RESULT_BYTES: usize = 256 * 1024 * 1024;

/// How a task has ended that could not be told yet.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
    pub(crate) payload: Bytes,
}

#[derive(Debug)]
struct Entry {
    cancellation: Cancellation,
    /// The number by which the present connection's balancer awaits it.
    awaited: Option<u64>,
    ended: Option<Ended>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<[u8; 16], Entry>,
    link: Weak<Link>,
}

/// What is kept for one balancer.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<State>);

impl Held {
    /// The connection at which tasks are awaited from now on.
    pub(crate) fn set_link(&self, link: &Arc<Link>) {
        lock(&self.0).link = Arc::downgrade(link);
    }

    /// The connection is over.
    pub(crate) fn release(&self) {
        let mut state = lock(&self.0);
        state.link = Weak::new();
        state.entries.values_mut().for_each(|entry| entry.awaited = None);
    }

    /// A task runs whose connection is over.
    pub(crate) fn keep(&self, task: [u8; 16], cancellation: Cancellation) {
        let entry = Entry { cancellation, awaited: None, ended: None };
        lock(&self.0).entries.insert(task, entry);
    }

    /// What to name to the balancer.
    pub(crate) fn ids(&self) -> Vec<[u8; 16]> {
        lock(&self.0).entries.keys().copied().collect()
    }

    /// Whether nothing of it runs.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.0).entries.values().all(|entry| entry.ended.is_some())
    }

    /// The balancer awaits a task by this number. Gives its end, if it has ended; an error if it is not here.
    pub(crate) fn await_it(&self, task: [u8; 16], id: u64) -> Result<Option<Ended>, ()> {
        let mut state = lock(&self.0);
        let entry = state.entries.get_mut(&task).ok_or(())?;
        let Some(ended) = entry.ended.take() else {
            entry.awaited = Some(id);
            return Ok(None);
        };
        state.entries.remove(&task);
        Ok(Some(ended))
    }

    /// The balancer does not want a task any more.
    pub(crate) fn forget(&self, task: [u8; 16]) {
        if let Some(entry) = lock(&self.0).entries.remove(&task) {
            entry.cancellation.cancel(CancelReason::Unwanted);
        }
    }

    /// Cancels the task that is awaited by this number, if there is one. It is answered when it has ended.
    pub(crate) fn cancel_awaited(&self, id: u64) {
        for entry in lock(&self.0).entries.values().filter(|entry| entry.awaited == Some(id)) {
            entry.cancellation.cancel(CancelReason::Unwanted);
        }
    }

    /// Cancels whatever runs.
    pub(crate) fn cancel_all(&self, reason: CancelReason) {
        lock(&self.0).entries.values().for_each(|entry| entry.cancellation.cancel(reason));
    }

    /// A run of a task that may be kept here has ended. It is told to the balancer, if that awaits it, or kept until it
    /// does. What is kept may be another run of the same task, given anew since this one was no longer wanted: then its
    /// end counts, and not this one's.
    pub(crate) fn end(&self, task: [u8; 16], run: &Cancellation, ended: Ended) {
        let awaited = {
            let mut state = lock(&self.0);
            if !state.entries.get(&task).is_some_and(|entry| entry.cancellation.is_same(run)) {
                return;
            }
            let kept: usize =
                state.entries.values().filter_map(|entry| Some(entry.ended.as_ref()?.payload.len())).sum();
            if kept.saturating_add(ended.payload.len()) > MAX_RESULT_BYTES {
                state.entries.remove(&task);
                return;
            }
            let link = state.link.upgrade();
            let Some(entry) = state.entries.get_mut(&task) else { return };
            entry.ended = Some(ended.clone());
            link.zip(entry.awaited)
        };
        if let Some((link, id)) = awaited
            && link.tell(id, &ended)
        {
            lock(&self.0).entries.remove(&task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> Ended {
        Ended { outcome: Outcome::Done, message: String::new(), payload: Bytes::from_static(b"result") }
    }

    #[test]
    fn a_result_is_kept_until_it_is_awaited_and_given_once() {
        let (held, run) = (Held::default(), Cancellation::default());
        held.keep([1; 16], run.clone());
        assert!(!held.is_idle());
        held.end([1; 16], &run, ended());
        assert!(held.is_idle());
        assert_eq!(held.ids(), [[1; 16]]);
        assert_eq!(held.await_it([1; 16], 7).expect("it is here").expect("it has ended").payload, "result");
        assert!(held.await_it([1; 16], 8).is_err() && held.ids().is_empty());
    }

    #[test]
    fn what_is_not_wanted_is_cancelled_and_forgotten() {
        let (held, cancellation) = (Held::default(), Cancellation::default());
        held.keep([1; 16], cancellation.clone());
        held.forget([1; 16]);
        assert!(cancellation.is_cancelled());
        held.end([1; 16], &cancellation, ended());
        assert!(held.ids().is_empty(), "nobody is told");
    }

    #[test]
    fn the_end_of_a_run_that_was_given_up_is_not_taken_for_the_end_of_a_later_run_of_the_same_task() {
        let (held, first, second) = (Held::default(), Cancellation::default(), Cancellation::default());
        held.keep([1; 16], first.clone());
        held.forget([1; 16]);
        held.keep([1; 16], second.clone());
        // Its handler has been asked to stop, and returns late, with whatever it says then.
        held.end([1; 16], &first, Ended { outcome: Outcome::Failed, ..ended() });
        assert!(held.await_it([1; 16], 7).expect("the second run is here").is_none());
        held.end([1; 16], &second, ended());
        assert_eq!(held.await_it([1; 16], 8).map(|end| end.map(|end| end.outcome)), Ok(Some(Outcome::Done)));
    }

    #[test]
    fn what_is_awaited_by_a_number_is_cancelled_by_it_until_the_connection_is_over() {
        let (held, cancellation) = (Held::default(), Cancellation::default());
        held.keep([1; 16], cancellation.clone());
        assert!(held.await_it([1; 16], 7).expect("it is here").is_none());
        held.release();
        held.cancel_awaited(7);
        assert!(!cancellation.is_cancelled());
        assert!(held.await_it([1; 16], 8).expect("it is here").is_none());
        held.cancel_awaited(8);
        assert!(cancellation.is_cancelled());
    }
}
