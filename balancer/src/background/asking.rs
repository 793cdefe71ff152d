//! What clients ask of the store: tasks to take in, outcomes to wait for, cancels and the like; and what becomes of it when
//! they leave.

use std::sync::Arc;

use reparto_protocol::{ErrorCode, TaskState};

use super::uniques::Met;
use super::waits::Wait;
use super::{Ask, Keeper, Look, NewBackgroundTask, Outlet, Pending, Tie, envelope, fail, micros, wall_clock};
use crate::scheduler::{Effect, Event, Peer, Scheduler, StoreAnswer, Time};
use crate::storage::{
    Backoff, Body, Failure, Filter, IdempotencyKey, NewTask, Operation, Outcome, Query, TaskId,
};

/// Questions that wait for room among the store's.
const MOST_LOOKS: usize = 65_536;
/// Tasks in a page that a client asks for.
const MOST_LISTED: u32 = 1000;

impl Keeper {
    /// A client asks something of the store.
    pub(crate) fn ask<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        peer: Peer,
        ask: Ask,
        out: &mut E,
    ) {
        if self.stopping {
            return fail(out, peer, ask.id(), ErrorCode::ShuttingDown, "the balancer is shutting down");
        }
        // What would have to be written is refused while more of it waits than may.
        if let (Ask::Cancel { id, .. } | Ask::Retry { id, .. }, Some(message)) = (&ask, self.refuses_tasks())
        {
            return fail(out, peer, *id, ErrorCode::StoreUnavailable, message);
        }
        match ask {
            Ask::Submit(task) => self.submit(peer, *task, out),
            Ask::Fetch { id, task, describe: true, .. } => {
                self.look(TaskId(task), Look::Describe { peer, id }, out);
            }
            Ask::Fetch { id, task, wait, .. } => {
                let task = TaskId(task);
                let wait = Wait {
                    peer,
                    id,
                    task,
                    until: (!wait.is_zero()).then(|| now.after(wait)),
                    owns: false,
                    lasts: false,
                };
                // What is held here has not ended, unless it is another balancer's by now; when it does, he is told.
                let may_have_ended = wait.until.is_none()
                    || self.sharing.is_some()
                    || scheduler.background_runs(&task.0).is_none();
                self.wait_for(wait, may_have_ended, out);
            }
            Ask::Cancel { id, task } => self.cancel(scheduler, now, peer, id, TaskId(task), out),
            Ask::Retry { id, task } => {
                let task = TaskId(task);
                self.request(Operation::Revive { id: task }, Pending::Retry { peer, id, task });
            }
            Ask::Drop { id, task } => self.look(TaskId(task), Look::Drop { peer, id }, out),
            Ask::List { id, action, state, since_ms, before, limit } => {
                let since = since_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000));
                let filter = Filter { action: action.map(String::from), state, since };
                let limit = limit.min(MOST_LISTED) as usize;
                let query = Query::List { filter, before: before.map(TaskId), limit };
                if let Err(message) = self.query(query, Pending::List { peer, id }) {
                    fail(out, peer, id, ErrorCode::StoreUnavailable, message);
                }
            }
        }
    }

    fn submit<E: Outlet>(&mut self, peer: Peer, task: NewBackgroundTask, out: &mut E) {
        if let Some(message) = self.refuses_tasks() {
            return fail(out, peer, task.id, ErrorCode::StoreUnavailable, message);
        }
        if let Some(message) = self.bus_is_full() {
            return fail(out, peer, task.id, ErrorCode::StoreUnavailable, message);
        }
        let now = wall_clock();
        let id = self.ids.next(now);
        if self.sharing.is_none() {
            match self.uniques.meet(&task.key, &task.action, id, (peer, task.id)) {
                Met::Nobody => {}
                Met::Durable(first) => {
                    let answer = StoreAnswer::Accepted { task: first.0, duplicate: true };
                    return out.push(Effect::Answer { peer, id: task.id, answer });
                }
                Met::Asking => return,
            }
        }
        let delayed = task.delay.map(|delay| now.saturating_add(micros(delay)));
        let starts = task.start_at_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000));
        let idempotency = (!task.idempotency_key.is_empty()).then(|| {
            let mut key = Vec::with_capacity(task.action.len() + 1 + task.idempotency_key.len());
            key.extend_from_slice(task.action.as_bytes());
            // An action's name may hold any byte but is UTF-8, where this one never stands.
            key.push(0xFF);
            key.extend_from_slice(&task.idempotency_key);
            IdempotencyKey { key: key.into(), until: now.saturating_add(micros(task.idempotency_window)) }
        });
        let stored = NewTask {
            id,
            action: Arc::clone(&task.action),
            payload: Body::Inline(envelope::wrap(&task.key, task.payload)),
            priority: task.priority,
            max_attempts: task.max_attempts,
            created_at: now,
            due_at: delayed.max(starts).filter(|due| *due > now),
            deadline_at: task.deadline.map(|deadline| now.saturating_add(micros(deadline))),
            backoff: Backoff { first_ms: task.backoff_first_ms, most_ms: task.backoff_most_ms },
            idempotency,
            reply: None,
        };
        let kept = stored.clone();
        self.ties += usize::from(task.record);
        let client = if task.record { Tie::Waits } else { Tie::None };
        let pending = Pending::Accept { peer, id: task.id, task: kept, client };
        self.request(Operation::Accept(stored), pending);
    }

    /// Has somebody wait for a task's end. If it may have ended already, the store is asked; he is among those who wait
    /// before that, so that no end is missed.
    pub(super) fn wait_for<E: Outlet>(&mut self, wait: Wait, may_have_ended: bool, out: &mut E) {
        match self.waits.add(wait) {
            Some(number) if may_have_ended => self.look(wait.task, Look::Outcome(number), out),
            Some(_) => {}
            None => {
                let message = "too many wait for background tasks already; ask again later";
                fail(out, wait.peer, wait.id, ErrorCode::QueueFull, message);
            }
        }
    }

    fn cancel<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        peer: Peer,
        id: u64,
        task: TaskId,
        out: &mut E,
    ) {
        self.withdraw(scheduler, now, task, out);
        let attempts = 0;
        let failure = Failure::new(ErrorCode::Cancelled, "cancelled by a client");
        let outcome = Outcome::without_result(task, TaskState::Cancelled, attempts, wall_clock(), failure);
        self.request(Operation::Finish(outcome), Pending::Cancel { peer, id, task });
    }

    /// The task, of whichever action, that is alive and has this key.
    pub(crate) fn task_of_unique(&self, key: &[u8]) -> Option<TaskId> {
        self.uniques.task_of(key)
    }

    /// A task was not taken: those who were to be told that it is durable are told why not.
    pub(super) fn tell_not_taken<E: Outlet>(
        &mut self,
        task: TaskId,
        code: ErrorCode,
        why: &str,
        out: &mut E,
    ) {
        for (peer, id) in self.uniques.over(task) {
            fail(out, peer, id, code, why.to_owned());
        }
    }

    pub(super) fn withdraw<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        task: TaskId,
        out: &mut E,
    ) {
        self.tell_not_taken(task, ErrorCode::Cancelled, "cancelled", out);
        self.loading.remove(&task);
        self.walk.pass_over(task);
        scheduler.handle(now, Event::Withdraw { id: task.0 }, out);
        self.left(task);
    }

    /// A task is not in the scheduler any more.
    pub(super) fn left(&mut self, task: TaskId) {
        if let Some(sharing) = &mut self.sharing {
            sharing.left(task);
        }
    }

    /// A client's connection is over, or it no longer wants what has this number of its own: a foreground task that is
    /// recorded, which the scheduler does not know as the client's.
    pub(crate) fn leave<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (peer, only): (Peer, Option<u64>),
        out: &mut E,
    ) {
        if self.ties > 0 {
            for pending in self.pending.values_mut() {
                if let Pending::Accept { peer: of, id, client: client @ Tie::Waits, .. }
                | Pending::Publish { peer: of, id, client: client @ Tie::Waits, .. } = pending
                    && *of == peer
                    && only.is_none_or(|only| only == *id)
                {
                    *client = Tie::Left;
                }
            }
        }
        let numbers = match only {
            Some(id) => self.waits.find(peer, id).into_iter().collect(),
            None => self.waits.of_peer(peer),
        };
        for number in numbers {
            let owned = self.waits.get(number).filter(|wait| wait.owns).map(|wait| wait.task);
            if only.is_none() {
                self.waits.remove(number);
            }
            if let Some(task) = owned {
                self.abandon(scheduler, now, task, out);
            }
        }
    }

    /// Records a task as cancelled; whoever waits is told.
    pub(super) fn abandon<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        task: TaskId,
        out: &mut E,
    ) {
        self.withdraw(scheduler, now, task, out);
        let failure = Failure::new(ErrorCode::Cancelled, "cancelled by its client");
        let outcome = Outcome::without_result(task, TaskState::Cancelled, 0, wall_clock(), failure);
        self.record(Operation::Finish(outcome), task, None);
    }

    /// Asks the store for a task, now or when it takes another question.
    pub(super) fn look<E: Outlet>(&mut self, task: TaskId, look: Look, out: &mut E) {
        if self.looks.len() < MOST_LOOKS || matches!(look, Look::Outcome(_)) {
            // Those who wait are bounded themselves.
            self.looks.push_back((task, look));
            return;
        }
        let message = "too many questions wait for the store already";
        match look {
            Look::Standing { peer, id }
            | Look::Describe { peer, id }
            | Look::Drop { peer, id }
            | Look::Revived { peer, id } => fail(out, peer, id, ErrorCode::StoreUnavailable, message),
            Look::Outcome(_) | Look::Claim { .. } | Look::Tell => {}
        }
    }
}
