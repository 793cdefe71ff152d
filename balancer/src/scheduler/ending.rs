//! Endings: a task's one answer to each who waits for it, expiry, and the scheduler's own end.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

use super::slab::{List, NONE};
use super::task::{Place, Task, WaiterLink};
use super::{AssignmentId, Effect, Peer, Scheduler, Stopping, Time};

impl Scheduler {
    /// Ends a task, which is nowhere, with its result.
    #[inline]
    pub(super) fn end_done(&mut self, task: u32, payload: Bytes, effects: &mut Vec<Effect>) {
        if let Some((peer, id)) = self.only_waiter(task) {
            self.counts.done += 1;
            effects.push(Effect::Result { peer, id, payload });
        } else {
            let counts = &mut self.counts.done;
            let mut answered = 0;
            let push = |peer, id| {
                answered += 1;
                effects.push(Effect::Result { peer, id, payload: payload.clone() });
            };
            each_waiter(&self.tasks, &self.waiters, &self.clients, task, push);
            *counts += answered;
        }
        self.release_waiters(task);
        self.drop_task(task);
    }

    /// Ends a task, which is nowhere, with an error.
    pub(super) fn end_failed(
        &mut self,
        task: u32,
        code: ErrorCode,
        message: Cow<'static, str>,
        payload: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        self.answer_failed(task, code, message, payload, effects);
        self.drop_task(task);
    }

    /// Tells everyone who waits that the task failed; then nobody waits.
    fn answer_failed(
        &mut self,
        task: u32,
        code: ErrorCode,
        message: Cow<'static, str>,
        payload: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let mut answered = 0;
        self.each_waiter(task, |peer, id| {
            answered += 1;
            effects.push(Effect::Fail { peer, id, code, message: message.clone(), payload: payload.clone() });
        });
        self.counts.failed += answered;
        self.release_waiters(task);
    }

    /// The only one who waits, if it is only one.
    #[inline]
    fn only_waiter(&self, task: u32) -> Option<(Peer, u64)> {
        let row = &self.tasks[task];
        (row.client != NONE && row.waiters().is_empty())
            .then(|| (self.clients[row.client].peer, row.client_id))
    }

    /// Calls `take` with each who waits for a task: its connection and its own number.
    pub(super) fn each_waiter(&self, task: u32, take: impl FnMut(Peer, u64)) {
        each_waiter(&self.tasks, &self.waiters, &self.clients, task, take);
    }

    /// Nobody waits for a task any more.
    fn release_waiters(&mut self, task: u32) {
        let (client, id) = (self.tasks[task].client, self.tasks[task].client_id);
        if client == NONE {
            return;
        }
        self.remove_entry(client, id);
        self.clients[client].bytes -= self.tasks[task].payload.len();
        loop {
            let waiter = self.tasks[task].waiters().head();
            if waiter == NONE {
                break;
            }
            let (client, id) = (self.waiters[waiter].client, self.waiters[waiter].client_id);
            self.remove_entry(client, id);
            self.remove_waiter(waiter);
        }
        self.tasks[task].client = NONE;
    }

    /// Forgets a task that nobody waits for and that is nowhere.
    pub(super) fn drop_task(&mut self, task: u32) {
        self.wheel.clear(&mut self.tasks, task);
        self.remove_key(task);
        let row = self.tasks.remove(task);
        debug_assert_eq!(row.place, Place::Moving, "a task that ends is nowhere");
        self.bytes -= row.payload.len();
        let action = &self.actions[row.action];
        if action.offers.workers == 0 {
            self.drop_idle_action(row.action);
        }
    }

    /// Nobody waits for a task any more: out of its queue, or cancelled at its worker, where it keeps its place
    /// until the worker answers.
    pub(super) fn abandon(&mut self, task: u32, effects: &mut Vec<Effect>) {
        match self.tasks[task].place {
            Place::Queued(_) => {
                self.unqueue(task);
                self.drop_task(task);
            }
            Place::Held(worker) => {
                self.wheel.clear(&mut self.tasks, task);
                self.remove_key(task);
                let peer = self.workers[worker].peer;
                let row = &mut self.tasks[task];
                row.extra = None;
                let assignment = AssignmentId(u64::from(row.attempt_tag) << 32 | u64::from(task));
                effects.push(Effect::CancelAssignment { peer, assignment, recall: false });
            }
            Place::Moving => {}
        }
    }

    /// A task's timer has come: its deadline, or the end of its waiting.
    pub(super) fn expire(&mut self, task: u32, effects: &mut Vec<Effect>) {
        let row = &self.tasks[task];
        let waited = self.now.since(row.since).as_millis();
        let message = match row.place {
            _ if row.deadline <= self.now => format!("its deadline passed after {waited} ms"),
            _ if self.actions[row.action].offers.workers == 0 => {
                format!("no worker offered '{}' within {waited} ms", self.actions[row.action].name)
            }
            _ => format!("no worker had room for it within {waited} ms"),
        };
        self.answer_failed(task, ErrorCode::Expired, message.into(), Bytes::new(), effects);
        self.abandon(task, effects);
    }

    // ---- the end ----

    /// Answers what waits, and gives what runs `grace` to end.
    pub(super) fn shut_down(&mut self, grace: Duration, effects: &mut Vec<Effect>) {
        let until = self.now.after(grace);
        if let Some(stopping) = &mut self.stopping {
            stopping.until = stopping.until.min(until);
            return;
        }
        self.stopping = Some(Stopping { until, said: false });
        effects.extend(self.clients.iter().map(|(_, client)| Effect::GoAway { peer: client.peer }));
        effects.extend(self.workers.iter().map(|(_, worker)| Effect::GoAway { peer: worker.peer }));
        let waiting: Vec<u32> = self
            .tasks
            .iter()
            .filter(|(_, task)| matches!(task.place, Place::Queued(_)))
            .map(|(task, _)| task)
            .collect();
        for task in waiting {
            self.answer_shutting_down(task, effects);
        }
    }

    /// Says that everything has ended, once nobody waits or the grace is over.
    pub(super) fn stop_if_quiet(&mut self, effects: &mut Vec<Effect>) {
        let Some(stopping) = self.stopping.filter(|stopping| !stopping.said) else { return };
        let wanted = |(_, task): &(u32, &Task)| task.is_wanted();
        if self.now >= stopping.until {
            let running: Vec<u32> = self.tasks.iter().filter(wanted).map(|(task, _)| task).collect();
            for task in running {
                self.answer_shutting_down(task, effects);
            }
        } else if self.owed > 0 {
            return;
        }
        self.stopping = Some(Stopping { said: true, until: Time(u64::MAX) });
        effects.push(Effect::Stopped);
    }

    fn answer_shutting_down(&mut self, task: u32, effects: &mut Vec<Effect>) {
        let message = "the balancer is shutting down".into();
        self.answer_failed(task, ErrorCode::ShuttingDown, message, Bytes::new(), effects);
        self.abandon(task, effects);
    }
}

fn each_waiter(
    tasks: &super::Slab<Task>,
    waiters: &super::Slab<super::Waiter>,
    clients: &super::Slab<super::Client>,
    task: u32,
    mut take: impl FnMut(Peer, u64),
) {
    let row = &tasks[task];
    if row.client == NONE {
        return;
    }
    take(clients[row.client].peer, row.client_id);
    let mut at = row.waiters().head();
    while at != NONE {
        let waiter = &waiters[at];
        take(clients[waiter.client].peer, waiter.client_id);
        at = List::<WaiterLink>::next(waiters, at);
    }
}
