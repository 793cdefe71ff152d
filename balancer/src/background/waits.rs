//! Those who wait for a background task's end: found by task, by connection and by time, and bounded.

use std::collections::{BTreeSet, HashMap, HashSet};

use foldhash::fast::RandomState;

use crate::scheduler::{Peer, Time};
use crate::storage::TaskId;

/// Most that wait on one connection.
const MOST_OF_A_PEER: usize = 16_384;
/// Most that wait at all.
const MOST: usize = 262_144;

/// Somebody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) peer: Peer,
    /// The client's number for the request.
    pub(super) id: u64,
    pub(super) task: TaskId,
    /// Until when; `None` once that is over.
    pub(super) until: Option<Time>,
    /// The task lives with this client's connection.
    pub(super) owns: bool,
    /// However long it takes.
    pub(super) lasts: bool,
}

#[derive(Debug, Default)]
pub(super) struct Waits {
    next: u64,
    waits: HashMap<u64, Wait, RandomState>,
    by_task: HashMap<TaskId, Vec<u64>, RandomState>,
    by_peer: HashMap<Peer, HashSet<u64, RandomState>, RandomState>,
    by_time: BTreeSet<(Time, u64)>,
}

impl Waits {
    /// Adds one and gives its number; `None` when as many wait as may.
    pub(super) fn add(&mut self, wait: Wait) -> Option<u64> {
        let of_peer = self.by_peer.entry(wait.peer).or_default();
        if of_peer.len() >= MOST_OF_A_PEER || self.waits.len() >= MOST {
            if of_peer.is_empty() {
                self.by_peer.remove(&wait.peer);
            }
            return None;
        }
        self.next += 1;
        of_peer.insert(self.next);
        self.by_task.entry(wait.task).or_default().push(self.next);
        if let Some(until) = wait.until {
            self.by_time.insert((until, self.next));
        }
        self.waits.insert(self.next, wait);
        Some(self.next)
    }

    pub(super) fn get(&self, number: u64) -> Option<&Wait> {
        self.waits.get(&number)
    }

    /// Whether he waits on, and not only for an answer.
    pub(super) fn goes_on(&self, number: u64, now: Time) -> bool {
        self.waits.get(&number).is_some_and(|wait| wait.lasts || wait.until.is_some_and(|until| until > now))
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Wait> {
        let wait = self.waits.remove(&number)?;
        if let Some(of_task) = self.by_task.get_mut(&wait.task) {
            of_task.retain(|other| *other != number);
            if of_task.is_empty() {
                self.by_task.remove(&wait.task);
            }
        }
        if let Some(of_peer) = self.by_peer.get_mut(&wait.peer) {
            of_peer.remove(&number);
            if of_peer.is_empty() {
                self.by_peer.remove(&wait.peer);
            }
        }
        if let Some(until) = wait.until {
            self.by_time.remove(&(until, number));
        }
        Some(wait)
    }

    /// The numbers of those who wait for a task.
    pub(super) fn for_task(&self, task: TaskId) -> Vec<u64> {
        self.by_task.get(&task).cloned().unwrap_or_default()
    }

    /// Who waits for a task with this number of its own on this connection.
    pub(super) fn find(&self, peer: Peer, id: u64) -> Option<u64> {
        let mut numbers = self.by_peer.get(&peer)?.iter();
        numbers.find(|number| self.waits.get(number).is_some_and(|wait| wait.id == id)).copied()
    }

    /// The numbers of those who wait on a connection.
    pub(super) fn of_peer(&self, peer: Peer) -> Vec<u64> {
        self.by_peer.get(&peer).into_iter().flatten().copied().collect()
    }

    /// The numbers of all who wait.
    pub(super) fn all(&self) -> Vec<u64> {
        self.waits.keys().copied().collect()
    }

    /// When the first one's time is up.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the time off one whose time is up, and gives its number.
    pub(super) fn take_due(&mut self, now: Time) -> Option<u64> {
        let (at, number) = self.by_time.first().copied().filter(|(at, _)| *at <= now)?;
        self.by_time.remove(&(at, number));
        if let Some(wait) = self.waits.get_mut(&number) {
            wait.until = None;
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Peer = Peer { index: 1, generation: 1 };

    fn wait(id: u64, task: u8, until: Option<u64>) -> Wait {
        Wait { peer: PEER, id, task: TaskId([task; 16]), until: until.map(Time), owns: false, lasts: false }
    }

    #[test]
    fn who_waits_is_found_by_task_by_connection_and_by_time() {
        let mut waits = Waits::default();
        let first = waits.add(wait(1, 7, Some(100))).expect("there is room");
        let second = waits.add(wait(2, 7, None)).expect("there is room");
        assert_eq!(waits.for_task(TaskId([7; 16])), [first, second]);
        assert_eq!(waits.find(PEER, 2), Some(second));
        assert_eq!((waits.take_due(Time(99)), waits.next_time()), (None, Some(Time(100))));
        assert_eq!((waits.take_due(Time(100)), waits.next_time()), (Some(first), None));
        assert_eq!(waits.remove(first).map(|wait| wait.id), Some(1));
        assert_eq!(waits.of_peer(PEER), [second]);
        waits.remove(second);
        assert!(waits.by_peer.is_empty() && waits.by_task.is_empty() && waits.by_time.is_empty());
    }

    #[test]
    fn those_who_wait_on_a_connection_are_bounded() {
        let mut waits = Waits::default();
        for id in 0..MOST_OF_A_PEER as u64 {
            assert!(waits.add(wait(id, 7, None)).is_some());
        }
        assert_eq!(waits.add(wait(1, 7, None)), None);
        let other = Peer { index: 2, generation: 1 };
        assert!(waits.add(Wait { peer: other, ..wait(1, 7, None) }).is_some());
    }
}
