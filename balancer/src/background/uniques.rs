//! Background tasks that are one while they are alive: those of one action and key. Who hands in another one is told
//! the first one's id, once that is durable.
//!
//! This is kept in memory alone, and filled again as tasks come in from the store. It is no idempotency key, which
//! stands for its task also after the task's end.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::scheduler::Peer;
use crate::storage::TaskId;

/// Most tasks that are known. Beyond it tasks are taken in without being compared.
const MOST: usize = 1 << 20;

/// Most that wait for one task to be durable. Beyond it tasks are taken in without being compared.
const MOST_ASKING: usize = 4096;

/// A client's request, by its connection and its own number.
pub(super) type Request = (Peer, u64);

/// What the task of a key is doing.
#[derive(Debug)]
struct Alive {
    action: Arc<str>,
    task: TaskId,
    /// Who is to be told that it is durable; `None` once it is.
    asking: Option<Vec<Request>>,
}

/// What became of a task that was handed in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It is the first, or is not compared.
    Nobody,
    /// This one is alive and durable.
    Durable(TaskId),
    /// Another is alive, and who asks is told once it is durable.
    Asking,
}

/// The tasks that are alive and have a key.
#[derive(Debug, Default)]
pub(super) struct Uniques {
    by_key: HashMap<Box<[u8]>, Vec<Alive>, RandomState>,
    keys: HashMap<TaskId, Box<[u8]>, RandomState>,
}

/// Whether tasks with this key are one. A key that begins with a NUL only tells its worker something.
fn is_compared(key: &[u8]) -> bool {
    key.first().is_some_and(|byte| *byte != 0)
}

impl Uniques {
    /// A task is handed in, which is to have this id if it is the first.
    pub(super) fn meet(&mut self, key: &[u8], action: &Arc<str>, task: TaskId, request: Request) -> Met {
        if !is_compared(key) {
            return Met::Nobody;
        }
        if let Some(alive) =
            self.by_key.get_mut(key).and_then(|all| all.iter_mut().find(|alive| alive.action == *action))
        {
            return match &mut alive.asking {
                None => Met::Durable(alive.task),
                Some(asking) if asking.len() < MOST_ASKING => {
                    asking.push(request);
                    Met::Asking
                }
                Some(_) => Met::Nobody,
            };
        }
        self.add(key, action, task, Some(Vec::new()));
        Met::Nobody
    }

    /// A durable task comes in from the store.
    pub(super) fn found(&mut self, key: &[u8], action: &Arc<str>, task: TaskId) {
        let known = self.by_key.get(key).is_some_and(|all| all.iter().any(|alive| alive.action == *action));
        if is_compared(key) && !known {
            self.add(key, action, task, None);
        }
    }

    fn add(&mut self, key: &[u8], action: &Arc<str>, task: TaskId, asking: Option<Vec<Request>>) {
        if self.keys.len() < MOST {
            self.keys.insert(task, key.into());
            let alive = Alive { action: Arc::clone(action), task, asking };
            self.by_key.entry(key.into()).or_default().push(alive);
        }
    }

    /// A task is durable. Gives who else is to be told.
    pub(super) fn durable(&mut self, task: TaskId) -> Vec<Request> {
        let Some(all) = self.keys.get(&task).and_then(|key| self.by_key.get_mut(key)) else {
            return Vec::new();
        };
        let alive = all.iter_mut().find(|alive| alive.task == task);
        alive.and_then(|alive| alive.asking.take()).unwrap_or_default()
    }

    /// A task has ended, or was not taken. Gives who still waits for it to be durable.
    pub(super) fn over(&mut self, task: TaskId) -> Vec<Request> {
        let Some(key) = self.keys.remove(&task) else { return Vec::new() };
        let Some(all) = self.by_key.get_mut(&key) else { return Vec::new() };
        let at = all.iter().position(|alive| alive.task == task);
        let alive = at.map(|at| all.swap_remove(at));
        if all.is_empty() {
            self.by_key.remove(&key);
        }
        alive.and_then(|alive| alive.asking).unwrap_or_default()
    }

    /// A task of this key, of whichever action, that is alive and durable.
    pub(super) fn task_of(&self, key: &[u8]) -> Option<TaskId> {
        self.by_key.get(key)?.iter().find(|alive| alive.asking.is_none()).map(|alive| alive.task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Peer = Peer { index: 1, generation: 1 };

    fn id(number: u8) -> TaskId {
        TaskId([number; 16])
    }

    #[test]
    fn tasks_of_one_action_and_key_are_one_while_the_first_is_alive() {
        let (mut uniques, a, b): (Uniques, Arc<str>, Arc<str>) = (Uniques::default(), "a".into(), "b".into());
        assert_eq!(uniques.meet(b"k", &a, id(1), (PEER, 1)), Met::Nobody);
        assert_eq!(uniques.meet(b"k", &b, id(2), (PEER, 2)), Met::Nobody, "another action");
        assert_eq!(uniques.meet(b"k", &a, id(3), (PEER, 3)), Met::Asking);
        assert_eq!(uniques.task_of(b"k"), None, "none is durable");
        assert_eq!(uniques.durable(id(1)), [(PEER, 3)]);
        assert_eq!(uniques.meet(b"k", &a, id(4), (PEER, 4)), Met::Durable(id(1)));
        assert_eq!(uniques.task_of(b"k"), Some(id(1)));
        assert_eq!(uniques.over(id(1)), []);
        assert_eq!(uniques.meet(b"k", &a, id(5), (PEER, 5)), Met::Nobody);
        assert_eq!(uniques.meet(b"k", &a, id(6), (PEER, 6)), Met::Asking);
        assert_eq!(uniques.over(id(5)), [(PEER, 6)], "it was not taken");
        uniques.found(b"k", &a, id(7));
        assert_eq!(uniques.meet(b"k", &a, id(8), (PEER, 8)), Met::Durable(id(7)));
        uniques.over(id(7));
        uniques.over(id(2));
        assert!(uniques.by_key.is_empty() && uniques.keys.is_empty());
    }

    #[test]
    fn no_key_and_one_that_only_tells_something_are_not_compared() {
        let (mut uniques, a): (Uniques, Arc<str>) = (Uniques::default(), "a".into());
        for key in [&b""[..], b"\0reducer"] {
            assert_eq!(uniques.meet(key, &a, id(1), (PEER, 1)), Met::Nobody);
            assert_eq!(uniques.meet(key, &a, id(2), (PEER, 2)), Met::Nobody);
        }
        assert!(uniques.keys.is_empty());
    }
}
