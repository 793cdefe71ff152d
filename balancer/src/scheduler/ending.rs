//! Endings: a task's one answer to each who waits for it, expiry, and the scheduler's own end.

use std::borrow::Cow;
use std::time::Duration;

use reparto_protocol::ErrorCode;

use super::clients::Wait;
use super::slab::{List, NONE};
use super::task::{Place, Task, WaiterLink};
use super::{Effect, Effects, Payload, Peer, Scheduler, Stopping, Time};

/// What is said of a task that its worker has had for longer than it allows.
pub const RAN_TOO_LONG: &str = "it ran longer than its worker allows for this action";

/// Stands between how many attempts a task has used up and why the last one failed.
pub const THE_LAST_ONE: &str = "; the last one: ";

/// Rows of tasks looked at for each that is answered, as a shutdown goes through them; to pass one over is cheap.
const ROWS_A_STEP: usize = 16;

impl Scheduler {
    /// Ends a task, which is nowhere, with its result.
    #[inline]
    pub(super) fn end_done<'a>(&mut self, task: u32, payload: Payload<'a>, effects: &mut impl Effects<'a>) {
        self.each_waiter(task, |peer, id| effects.result(peer, id, payload));
        if self.tasks.extra(task).is_some() {
            self.note_done(task, payload, effects);
        }
        self.counts.done += self.release_waiters(task);
        self.drop_task(task);
    }

    /// Ends a task, which is nowhere, with an error.
    pub(super) fn end_failed<'a>(
        &mut self,
        task: u32,
        code: ErrorCode,
        message: Cow<'static, str>,
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        self.answer_failed(task, code, message, payload, effects);
        self.drop_task(task);
    }

    /// Tells everyone who waits that the task failed; then nobody waits.
    fn answer_failed<'a>(
        &mut self,
        task: u32,
        code: ErrorCode,
        message: Cow<'static, str>,
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        self.each_waiter(task, |peer, id| {
            effects.push(Effect::Fail { peer, id, code, message: message.clone(), payload });
        });
        self.note_failed(task, code, message, payload, effects);
        self.counts.failed += self.release_waiters(task);
    }

    /// The first one who waits, if it is there.
    #[inline]
    pub(super) fn first_waiter(&self, task: u32) -> Option<(Peer, u64)> {
        let row = &self.tasks[task];
        let client = row.is_wanted().then(|| &self.clients[row.client])?;
        (!client.gone).then_some((client.peer, row.client_id))
    }

    /// Calls `take` with each who waits for a task and is there: its connection and its own number.
    #[inline]
    pub(super) fn each_waiter(&self, task: u32, mut take: impl FnMut(Peer, u64)) {
        let mut visit = |client: u32, id| {
            let client = &self.clients[client];
            if !client.gone {
                take(client.peer, id);
            }
        };
        let row = &self.tasks[task];
        if !row.is_wanted() {
            return;
        }
        visit(row.client, row.client_id);
        let mut at = self.tasks.waiters(task).head();
        while at != NONE {
            let waiter = &self.waiters[at];
            visit(waiter.client, waiter.client_id);
            at = List::<WaiterLink>::next(&self.waiters, at);
        }
    }

    /// Nobody waits for a task any more. Says how many did.
    #[inline]
    pub(super) fn release_waiters(&mut self, task: u32) -> u64 {
        let (client, id) = (self.tasks[task].client, self.tasks[task].client_id);
        if client == NONE {
            return 0;
        }
        let mut released = 1;
        self.remove_row(client, id, Wait::First(task));
        self.clients[client].bytes -= self.tasks[task].payload.len();
        loop {
            let waiter = self.tasks.waiters(task).head();
            if waiter == NONE {
                break;
            }
            let (client, id) = (self.waiters[waiter].client, self.waiters[waiter].client_id);
            self.remove_row(client, id, Wait::Beside(waiter));
            self.remove_waiter(waiter);
            released += 1;
        }
        self.tasks[task].client = NONE;
        released
    }

    /// Forgets a task that nobody waits for and that is nowhere.
    #[inline]
    pub(super) fn drop_task(&mut self, task: u32) {
        if self.tasks.extra(task).is_some() {
            self.remove_key(task);
        }
        self.wheel.clear(&mut self.tasks, task);
        let row = &self.tasks[task];
        debug_assert_eq!(row.place(), Place::Moving, "a task that ends is nowhere");
        let action = row.action;
        let payload = row.payload;
        self.tasks.vacate(task);
        self.bytes -= payload.len();
        self.payloads.release(payload);
        if self.actions[action].offers.workers == 0 {
            self.drop_idle_action(action);
        }
    }

    /// Nobody waits for a task any more: out of its queue, or cancelled at its worker, where it keeps its place
    /// until the worker answers.
    pub(super) fn abandon<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) {
        match self.tasks[task].place() {
            Place::Queued(_) => {
                self.unqueue(task);
                self.drop_task(task);
            }
            Place::Held(worker) => {
                self.wheel.clear(&mut self.tasks, task);
                self.remove_key(task);
                self.tasks.set_extra(task, None);
                let (peer, assignment) = (self.workers[worker].peer, self.assignment_id(task));
                effects.push(Effect::CancelAssignment { peer, assignment, recall: false });
            }
            Place::Moving => {}
        }
    }

    /// A task's timer has come: its deadline, or the end of its waiting.
    pub(super) fn expire<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) {
        if self.runs_for_long(task, effects) {
            return;
        }
        let row = &self.tasks[task];
        let waited = self.now.since(row.since).as_millis();
        let message = match row.place() {
            _ if self.tasks.deadline(task) <= self.now => self.late(task),
            Place::Held(_) => RAN_TOO_LONG.into(),
            _ if self.actions[row.action].offers.workers == 0 => {
                format!("no worker offered '{}' within {waited} ms", self.actions[row.action].name)
            }
            _ => format!("no worker had room for it within {waited} ms"),
        };
        self.answer_failed(task, ErrorCode::Expired, message.into(), Payload::EMPTY, effects);
        self.abandon(task, effects);
    }

    /// Cancels the task that a client at this connection waits for by this number, for everybody who waits. Says whether
    /// there was one.
    pub fn cancel_job<'a>(
        &mut self,
        now: Time,
        (connection, number): (u32, u64),
        effects: &mut impl Effects<'a>,
    ) -> bool {
        self.now = self.now.max(now);
        let Some(task) = self.job_row(connection, number) else { return false };
        let message = "cancelled by an operator".into();
        self.answer_failed(task, ErrorCode::Cancelled, message, Payload::EMPTY, effects);
        self.abandon(task, effects);
        true
    }

    /// Ends a task, which is nowhere, and whose deadline has passed.
    pub(super) fn end_late<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) {
        let message = self.late(task).into();
        self.end_failed(task, ErrorCode::Expired, message, Payload::EMPTY, effects);
    }

    fn late(&self, task: u32) -> String {
        format!("its deadline passed after {} ms", self.now.since(self.tasks[task].since).as_millis())
    }

    // ---- the end ----

    /// Answers what waits, and gives what runs `grace` to end.
    pub(super) fn shut_down<'a>(&mut self, grace: Duration, effects: &mut impl Effects<'a>) {
        let until = self.now.after(grace);
        if let Some(stopping) = &mut self.stopping {
            stopping.until = stopping.until.min(until);
            return;
        }
        self.stopping = Some(Stopping { until, grace_over: false, next_row: Some(0), said: false });
        let clients = self.clients.iter().filter(|(_, client)| !client.gone).map(|(_, client)| client.peer);
        let workers = self.workers.iter().map(|(_, worker)| worker.peer);
        clients.chain(workers).for_each(|peer| effects.push(Effect::GoAway { peer }));
        self.go_on_stopping(effects);
    }

    /// Answers a part of what is to be answered: first what waits, and once the grace is over what runs, too.
    pub(super) fn go_on_stopping<'a>(&mut self, effects: &mut impl Effects<'a>) {
        let Some(mut stopping) = self.stopping.filter(|stopping| !stopping.said) else { return };
        if self.now >= stopping.until && !stopping.grace_over {
            (stopping.grace_over, stopping.next_row) = (true, Some(0));
        }
        let enough = effects.count() + self.work_a_call;
        for _ in 0..self.work_a_call * ROWS_A_STEP {
            let Some(row) = stopping.next_row.filter(|_| effects.count() < enough) else { break };
            stopping.next_row = (row < self.tasks.rows()).then_some(row + 1);
            let ends = |task: &Task| stopping.grace_over || matches!(task.place(), Place::Queued(_));
            if self.tasks.get(row).is_some_and(|task| task.is_wanted() && ends(task)) {
                self.answer_shutting_down(row, effects);
            }
        }
        self.stopping = Some(stopping);
    }

    /// Says that everything has ended, once nobody waits any more.
    pub(super) fn stop_if_quiet<'a>(&mut self, effects: &mut impl Effects<'a>) {
        if let Some(stopping) = &mut self.stopping
            && self.owed == 0
            && !stopping.said
        {
            (stopping.said, stopping.next_row) = (true, None);
            effects.push(Effect::Stopped);
        }
    }

    fn answer_shutting_down<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) {
        if self.leave_to_store(task) {
            return;
        }
        let message = "the balancer is shutting down".into();
        self.answer_failed(task, ErrorCode::ShuttingDown, message, Payload::EMPTY, effects);
        self.abandon(task, effects);
    }
}
