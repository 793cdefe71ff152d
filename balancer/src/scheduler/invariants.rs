//! What must hold after every event, checked in full: for tests and the simulation.

use std::collections::HashSet;

use super::choice::{ASLEEP_BUCKET, NO_BUCKET};
use super::pulling::Rest;
use super::slab::{List, NONE};
use super::task::{Place, WaiterLink};
use super::worker::Worker;
use super::{Action, Role, Scheduler};

impl Scheduler {
    /// Panics where the state contradicts itself.
    pub(super) fn assert_invariants(&self) {
        self.assert_tasks_are_in_one_place();
        self.assert_workers_keep_their_credits();
        self.assert_nobody_waits_beside_room();
        self.assert_tables_agree();
    }

    /// True when nothing is left of any task.
    pub(super) fn is_quiet(&self) -> bool {
        self.tasks.len() == 0
            && self.waiters.len() == 0
            && self.keys.is_empty()
            && self.flows.len() == 0
            && self.backlog.is_empty()
            && self.queued == 0
            && self.bytes == 0
            && self.owed == 0
            && self.leaving.is_empty()
            && self.wheel.next().is_none()
            && self.clients.iter().all(|(_, client)| client.numbers.is_empty() && client.bytes == 0)
            && self.workers.iter().all(|(_, worker)| worker.in_flight == 0 && worker.bytes == 0)
    }

    fn assert_tasks_are_in_one_place(&self) {
        let mut held = HashSet::new();
        for (index, worker) in self.workers.iter() {
            for at in worker.held.tasks(&self.tasks) {
                assert!(held.insert(at), "task {at} is held twice");
                assert_eq!(self.tasks[at].place(), Place::Held(index), "task {at} disagrees with its holder");
            }
        }
        let mut queued = 0;
        for (index, task) in self.tasks.iter() {
            match task.place() {
                Place::Held(_) => assert!(held.contains(&index), "task {index} is held by nobody"),
                Place::Queued(_) => {
                    queued += 1;
                    assert!(task.is_wanted(), "task {index} waits, and nobody waits for it");
                }
                Place::Moving => panic!("task {index} is nowhere after an event"),
            }
        }
        assert_eq!(queued, self.queued);
        assert_eq!(queued, self.actions.iter().map(|(_, action)| action.queue.len()).sum::<usize>());
        assert_eq!(held.len(), self.actions.iter().map(|(_, action)| action.running).sum::<usize>());
        assert_eq!(self.bytes, self.tasks.iter().map(|(_, task)| task.payload.len()).sum::<usize>());
    }

    fn assert_workers_keep_their_credits(&self) {
        for (_, worker) in self.workers.iter() {
            let mut count = 0;
            let mut bytes = 0;
            for at in worker.held.tasks(&self.tasks) {
                count += 1;
                bytes += self.tasks[at].payload.len();
            }
            assert_eq!((count, bytes), (worker.in_flight, worker.bytes), "worker '{}'", worker.id);
            let stands = worker.has_room() || worker.may_be_woken();
            assert_eq!(worker.bucket != NO_BUCKET, stands, "worker '{}'", worker.id);
            assert_eq!(worker.bucket == ASLEEP_BUCKET, worker.may_be_woken(), "worker '{}'", worker.id);
            assert!(worker.in_flight <= worker.window || worker.puller.is_none(), "worker '{}'", worker.id);
            let may_stall = worker.in_flight > worker.threads;
            let looked_at = worker.check_at.0 != u64::MAX;
            assert!(looked_at || !(may_stall || worker.heartbeats), "worker '{}'", worker.id);
            assert!(worker.asked_at.is_none() || worker.heartbeats, "worker '{}' is asked", worker.id);
            let rest = worker.puller.as_ref().map(|puller| puller.rest);
            assert!(looked_at || !matches!(rest, Some(Rest::Woken(_))), "nobody sees whether it asks");
        }
    }

    /// No action has both a waiting task and a worker with room, unless waiting tasks are on their way out.
    fn assert_nobody_waits_beside_room(&self) {
        for (_, action) in self.actions.iter() {
            let waits = !action.queue.is_empty();
            assert_eq!(action.in_backlog != NONE, waits);
            let room = self.choice.pick(&action.offers).is_some();
            assert!(
                !(waits && room) || self.stopping.is_some(),
                "'{}' has a waiting task and a worker with room",
                action.name
            );
            self.assert_no_wake_up_is_lost(action);
            let offering =
                self.workers.iter().filter(|(_, w)| self.offers_action(w.group, &action.name)).count();
            assert_eq!(offering, action.offers.workers as usize, "'{}'", action.name);
        }
    }

    /// Where tasks wait and a pull worker that could take one sleeps, as many others as there are tasks have been woken
    /// a moment ago and are about to ask.
    fn assert_no_wake_up_is_lost(&self, action: &Action) {
        let offers = |worker: &Worker| self.offers_action(worker.group, &action.name);
        let sleeps = self.workers.iter().any(|(_, worker)| worker.may_be_woken() && offers(worker));
        let woken = self.workers.iter().filter(|(_, worker)| {
            worker.puller.as_ref().is_some_and(|puller| matches!(puller.rest, Rest::Woken(_)))
                && offers(worker)
        });
        assert!(
            !sleeps || woken.count() >= action.queue.len() || self.stopping.is_some(),
            "'{}' has waiting tasks, and a worker sleeps through it",
            action.name
        );
    }

    fn offers_action(&self, group: u32, name: &str) -> bool {
        self.choice.actions(group).iter().any(|action| &*self.actions[*action].name == name)
    }

    fn assert_tables_agree(&self) {
        let entries: usize = self.clients.iter().map(|(_, client)| client.numbers.len()).sum();
        assert_eq!(entries, self.owed);
        let mut waits = 0;
        for (index, task) in self.tasks.iter() {
            if !task.is_wanted() {
                assert!(self.tasks.waiters(index).is_empty(), "task {index} has others waiting and no first");
                continue;
            }
            waits += 1;
            let mut at = self.tasks.waiters(index).head();
            let first = waits;
            while at != NONE {
                waits += 1;
                assert_eq!(self.waiters[at].task, index);
                at = List::<WaiterLink>::next(&self.waiters, at);
            }
            assert_eq!(waits - first, self.tasks.waiting(index) as usize, "task {index}");
        }
        assert_eq!(waits, self.owed, "someone is owed an answer by no task");
        let pushed = self.workers.iter().filter(|(_, worker)| worker.puller.is_none()).count();
        assert_eq!((self.worker_ids.len(), self.pullers), (pushed, self.workers.len() - pushed));
        let roles = self.peers.iter().map(|row| row.role).chain(self.insiders.values().copied());
        let workers = roles.filter(|role| matches!(role, Role::Worker(_) | Role::Dual { .. })).count();
        assert_eq!(workers, self.workers.len());
        let looked_at = self.workers.iter().filter(|(_, worker)| worker.check_at.0 != u64::MAX).count();
        assert_eq!(self.checks.len(), looked_at);
        for (_, client) in self.clients.iter() {
            let firsts = self
                .tasks
                .iter()
                .filter(|(_, task)| task.is_wanted() && self.clients[task.client].peer == client.peer);
            assert_eq!(client.bytes, firsts.map(|(_, task)| task.payload.len()).sum::<usize>());
        }
    }
}
