//! What follows when the store has answered: clients are told, and tasks enter the scheduler's window.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{ErrorCode, TaskState};

use super::waits::Wait;
use super::{
    Keeper, LOOK_AGAIN, Look, Outlet, Pending, Tie, UPKEEP_STEP, describe, envelope, fail, micros, wall_clock,
};
use crate::scheduler::{BackgroundTask, Effect, Event, Payload, Peer, Scheduler, StoreAnswer, Time};
use crate::storage::{
    Answer, Body, Completion, Failure, Operation, Outcome, Page, Query, Reply, StoreError, StoredTask,
    TaskId, ToPublish,
};

impl Keeper {
    pub(super) fn complete<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        completion: Completion,
        out: &mut E,
    ) {
        let Some(pending) = self.pending.remove(&completion.token) else { return };
        let reply = match completion.reply {
            Ok(reply) => reply,
            Err(error) => return self.failed(scheduler, now, pending, &error, out),
        };
        match (pending, reply) {
            (Pending::Claim { id, from }, Reply::Answer(answer)) => {
                self.claimed(scheduler, now, (id, from), answer, out);
            }
            (Pending::Release(task), Reply::Answer(Answer::Noted)) => self.publish_again(&task),
            // It has ended, or was another's already.
            (Pending::Release(_), Reply::Answer(_)) => {}
            (Pending::TakeIn { delivery, task, due, .. }, Reply::Answer(answer)) => {
                self.handed_in(&delivery, &task, due, &answer);
            }
            (Pending::Settle, Reply::Answer(_)) => {}
            (Pending::Sweep, Reply::Answer(answer)) => self.swept(scheduler, now, Ok(answer), out),
            (Pending::Accept { peer, id, task, client }, Reply::Answer(answer)) => {
                self.accepted(scheduler, now, (peer, id, client), task, &answer, out);
            }
            (Pending::Record { task, due, done, owed }, Reply::Answer(answer)) => {
                if let Some(due) = due {
                    self.due_at(due);
                }
                if let Some(owed) = owed.filter(|_| answer == Answer::Recorded) {
                    self.tell_owed(task, &owed, done.as_ref());
                }
                let result = done.filter(|_| answer == Answer::Recorded);
                for number in self.waits.for_task(task) {
                    match &result {
                        Some(result) => self.tell_result(number, result, out),
                        None => self.look(task, Look::Outcome(number), out),
                    }
                }
            }
            (Pending::Cancel { peer, id, task }, Reply::Answer(answer)) => {
                for number in self.waits.for_task(task) {
                    self.look(task, Look::Outcome(number), out);
                }
                self.standing_after(peer, id, task, &answer, out);
            }
            (Pending::Retry { peer, id, task }, Reply::Answer(answer)) => match answer {
                Answer::Noted => self.look(task, Look::Revived { peer, id }, out),
                other => self.standing_after(peer, id, task, &other, out),
            },
            (Pending::Drop { peer, id, stored }, Reply::Answer(answer)) => match answer {
                Answer::Unknown => not_found(out, peer, id),
                _ => self.tell_standing(scheduler, peer, id, &stored, Bytes::new(), out),
            },
            (Pending::TakeDue, Reply::Answer(Answer::Due { tasks, next })) => {
                self.asked_for_due = false;
                if let Some(next) = next {
                    self.due_at(next);
                }
                for stored in tasks {
                    self.enter(scheduler, now, stored, None, out);
                }
            }
            (Pending::Upkeep, Reply::Answer(Answer::Removed { more: true, .. })) => {
                self.upkeep_at = self.upkeep_at.min(now.after(UPKEEP_STEP));
            }
            (Pending::Look(task, look), Reply::Task(stored)) => {
                self.looked(scheduler, now, task, look, stored, out);
            }
            (Pending::History { peer, id, stored }, Reply::History(history)) => {
                let state = self.state_now(scheduler, &stored);
                let description = describe::description(&stored, state, &history);
                self.tell_standing(scheduler, peer, id, &stored, description, out);
            }
            (Pending::List { peer, id }, Reply::Page(page)) => {
                let next = page.next.map(|next| next.to_string());
                let tasks: Vec<(StoredTask, TaskState)> = page
                    .tasks
                    .into_iter()
                    .map(|stored| {
                        let state = self.state_now(scheduler, &stored);
                        (stored, state)
                    })
                    .collect();
                let payload = describe::page(&tasks, next);
                let answer = StoreAnswer::List { payload: Payload::from(&payload) };
                out.push(Effect::Answer { peer, id, answer });
            }
            (Pending::Page, Reply::Page(page)) => self.page(scheduler, now, page, out),
            (Pending::Payload(stored, holder), Reply::Blob(blob)) => {
                self.payload_read(scheduler, now, *stored, holder, blob, out);
            }
            (pending, reply) => log::debug!("{reply:?} is no reply to {pending:?}"),
        }
    }

    fn accepted<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (peer, id, client): (Peer, u64, Tie),
        task: crate::storage::NewTask,
        answer: &Answer,
        out: &mut E,
    ) {
        let (task_id, duplicate) = match answer {
            Answer::SameKey(first) => (*first, true),
            _ => (task.id, false),
        };
        if !duplicate && self.publish_accepted((peer, id, client), &task) {
            return;
        }
        if self.tell_accepted(scheduler, now, (peer, id, client), task_id, duplicate, out) {
            match task.due_at {
                Some(due) => self.due_at(due),
                None => self.enter(scheduler, now, StoredTask::accepted(task), None, out),
            }
        }
    }

    /// Tells a client that its task is accepted. Says whether it is to be run.
    pub(super) fn tell_accepted<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (peer, id, client): (Peer, u64, Tie),
        task: TaskId,
        duplicate: bool,
        out: &mut E,
    ) -> bool {
        let answer = StoreAnswer::Accepted { task: task.0, duplicate };
        out.push(Effect::Answer { peer, id, answer });
        for (peer, id) in self.uniques.durable(task) {
            let answer = StoreAnswer::Accepted { task: task.0, duplicate: true };
            out.push(Effect::Answer { peer, id, answer });
        }
        self.ties -= usize::from(client != Tie::None);
        if client != Tie::None {
            let wait = Wait { peer, id, task, until: None, owns: !duplicate, lasts: true };
            // A new one has not ended, as it has not begun, unless another balancer has had it already.
            self.wait_for(wait, duplicate || self.sharing.is_some(), out);
        }
        if client == Tie::Left && !duplicate {
            self.abandon(scheduler, now, task, out);
            return false;
        }
        !duplicate
    }

    pub(super) fn due_at(&mut self, due: i64) {
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }

    /// After an operation that a client asked for: where the task stands now.
    fn standing_after<E: Outlet>(&mut self, peer: Peer, id: u64, task: TaskId, answer: &Answer, out: &mut E) {
        match answer {
            Answer::Unknown => not_found(out, peer, id),
            _ => self.look(task, Look::Standing { peer, id }, out),
        }
    }

    /// The store could not do something. What it was asked to record is lost only if it has failed for good, and is open
    /// there then.
    fn failed<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        pending: Pending,
        error: &StoreError,
        out: &mut E,
    ) {
        let code = match error {
            StoreError::Invalid { .. } => ErrorCode::BadFrame,
            _ => ErrorCode::StoreUnavailable,
        };
        if let Pending::Accept { client, task, .. } = &pending {
            self.ties -= usize::from(*client != Tie::None);
            self.tell_not_taken(task.id, code, &error.to_string(), out);
        }
        match pending {
            Pending::Accept { peer, id, .. }
            | Pending::Cancel { peer, id, .. }
            | Pending::Retry { peer, id, .. }
            | Pending::Drop { peer, id, .. }
            | Pending::History { peer, id, .. }
            | Pending::List { peer, id } => fail(out, peer, id, code, error.to_string()),
            Pending::Look(task, look) => match look {
                Look::Outcome(number) if error.is_passing() && self.waits.goes_on(number, now) => {
                    if self.unanswered.is_empty() {
                        self.ask_again_at = now.after(LOOK_AGAIN);
                    }
                    self.unanswered.push(number);
                }
                Look::Outcome(number) => {
                    if let Some(wait) = self.waits.remove(number) {
                        fail(out, wait.peer, wait.id, code, error.to_string());
                    }
                }
                Look::Standing { peer, id }
                | Look::Describe { peer, id }
                | Look::Drop { peer, id }
                | Look::Revived { peer, id } => fail(out, peer, id, code, error.to_string()),
                Look::Claim { peer } => {
                    scheduler.handle(now, Event::Unclaimed { peer, id: task.0 }, out);
                }
                // The sweep comes back to it.
                Look::Tell => {}
            },
            Pending::Page => self.walk.page_failed(now),
            Pending::TakeDue => {
                self.asked_for_due = false;
                self.due_at(wall_clock().saturating_add(micros(Duration::from_secs(1))));
            }
            Pending::Payload(stored, holder) if self.sharing.is_some() => {
                self.loading.remove(&stored.task.id);
                self.put_aside(now, *stored, holder);
            }
            Pending::Payload(stored, _) => {
                self.loading.remove(&stored.task.id);
                self.walk.left_behind(stored.task.id, now.after(Duration::from_secs(1)));
            }
            Pending::Record { task, .. } => {
                log::error!("what became of {task} was not recorded: {error}");
                self.tell_unrecorded(task, &error.to_string(), out);
            }
            Pending::Claim { id, from } => self.claim_failed(scheduler, now, (id, from), out),
            Pending::Sweep => self.swept(scheduler, now, Err(error.clone()), out),
            Pending::TakeIn { queue, delivery, .. } => self.hand_in_failed(&queue, *delivery, error),
            Pending::Upkeep
            | Pending::Publish { .. }
            | Pending::Republish
            | Pending::Release(_)
            | Pending::Bury { .. }
            | Pending::Tell { .. }
            | Pending::Settle
            | Pending::Post { .. }
            | Pending::Home { .. } => {}
        }
    }

    /// The store has said what it knows of a task.
    fn looked<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        task: TaskId,
        look: Look,
        stored: Option<Box<StoredTask>>,
        out: &mut E,
    ) {
        match (look, stored) {
            (Look::Tell, Some(stored)) => self.tell_stored(&stored),
            (Look::Tell, None) => {}
            (Look::Outcome(number), stored) => self.tell_outcome(scheduler, now, number, stored, out),
            (Look::Claim { peer }, Some(stored)) if can_be_claimed(&stored) => {
                let is_here = self.loading.contains(&task) || scheduler.background_runs(&task.0).is_some();
                if is_here {
                    scheduler.handle(now, Event::Unclaimed { peer, id: task.0 }, out);
                } else {
                    self.enter(scheduler, now, *stored, Some(peer), out);
                }
            }
            (Look::Claim { peer }, _) => {
                scheduler.handle(now, Event::Unclaimed { peer, id: task.0 }, out);
            }
            (
                Look::Standing { peer, id }
                | Look::Describe { peer, id }
                | Look::Drop { peer, id }
                | Look::Revived { peer, id },
                None,
            ) => not_found(out, peer, id),
            (Look::Standing { peer, id }, Some(stored)) => {
                self.tell_standing(scheduler, peer, id, &stored, Bytes::new(), out);
            }
            (Look::Revived { peer, id }, Some(stored)) => {
                self.tell_standing(scheduler, peer, id, &stored, Bytes::new(), out);
                if self.sharing.is_some() {
                    let (action, priority) = (stored.task.action, stored.task.priority);
                    self.publish_again(&ToPublish { id: task, action, priority });
                } else if stored.state == TaskState::Queued {
                    self.enter(scheduler, now, *stored, None, out);
                }
            }
            (Look::Drop { peer, id }, Some(stored)) => {
                if stored.state.is_ended() {
                    self.request(Operation::Drop { id: task }, Pending::Drop { peer, id, stored });
                } else {
                    self.tell_standing(scheduler, peer, id, &stored, Bytes::new(), out);
                }
            }
            (Look::Describe { peer, id }, Some(stored)) => {
                if let Err(message) = self.query(Query::History(task), Pending::History { peer, id, stored })
                {
                    fail(out, peer, id, ErrorCode::StoreUnavailable, message);
                }
            }
        }
    }

    /// Tells somebody who waits the result that has just been recorded.
    fn tell_result<E: Outlet>(&mut self, number: u64, result: &Bytes, out: &mut E) {
        if let Some(wait) = self.waits.remove(number) {
            out.result(wait.peer, wait.id, Payload::from(result));
        }
    }

    /// Tells somebody who waits how a task has ended, or, when his time is up, where it stands.
    fn tell_outcome<E: Outlet>(
        &mut self,
        scheduler: &Scheduler,
        now: Time,
        number: u64,
        stored: Option<Box<StoredTask>>,
        out: &mut E,
    ) {
        let Some(wait) = self.waits.get(number).copied() else { return };
        let (peer, id) = (wait.peer, wait.id);
        let Some(stored) = stored else {
            self.waits.remove(number);
            return not_found(out, peer, id);
        };
        if stored.state.is_ended() {
            self.waits.remove(number);
            match (&stored.state, &stored.result) {
                (TaskState::Done, Some(Body::Inline(result))) => out.result(peer, id, Payload::from(result)),
                (TaskState::Done, Some(Body::Blob(key))) => {
                    fail(
                        out,
                        peer,
                        id,
                        ErrorCode::Internal,
                        format!("its result {key} is missing from the blobs"),
                    );
                }
                (TaskState::Done, None) => out.result(peer, id, Payload::EMPTY),
                _ => {
                    let (code, message) = describe::failure(&stored);
                    fail(out, peer, id, code, message);
                }
            }
        } else if wait.until.is_none_or(|until| until <= now) && !wait.lasts {
            self.waits.remove(number);
            self.tell_standing(scheduler, peer, id, &stored, Bytes::new(), out);
        }
    }

    /// The state that a task is in by now: the store need not know who has it.
    fn state_now(&self, scheduler: &Scheduler, stored: &StoredTask) -> TaskState {
        match (stored.state, scheduler.background_runs(&stored.task.id.0)) {
            (TaskState::Queued | TaskState::Running, Some(true)) => TaskState::Running,
            (TaskState::Queued | TaskState::Running, Some(false)) => TaskState::Queued,
            (state, _) => state,
        }
    }

    fn tell_standing<E: Outlet>(
        &self,
        scheduler: &Scheduler,
        peer: Peer,
        id: u64,
        stored: &StoredTask,
        payload: Bytes,
        out: &mut E,
    ) {
        let mut standing = describe::standing(stored, self.state_now(scheduler, stored));
        if let Some(job) = scheduler.background_job(&stored.task.id.0) {
            standing.progress = (job.done, job.total);
        }
        let answer = StoreAnswer::Standing { standing, payload: Payload::from(&payload) };
        out.push(Effect::Answer { peer, id, answer });
    }

    // ---- into the window ----

    fn page<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, page: Page, out: &mut E) {
        for stored in page.tasks {
            let id = stored.task.id;
            let skip = match stored.state {
                TaskState::Queued => false,
                TaskState::Running => {
                    scheduler.background_runs(&id.0).is_none() && self.walk.leaves_to_claims(id, now)
                }
                _ => true,
            };
            if !skip && !self.walk.passes_over(id) {
                if stored.state == TaskState::Running && scheduler.background_runs(&id.0).is_none() {
                    // Nobody has named it.
                    self.record(Operation::Requeue { id }, id, None);
                }
                self.enter(scheduler, now, stored, None, out);
            }
        }
        self.walk.page_read(page.next);
    }

    /// Brings a task into the window; without room it stays in the store alone.
    pub(super) fn enter<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        stored: StoredTask,
        holder: Option<Peer>,
        out: &mut E,
    ) {
        let id = stored.task.id;
        if self.stopping || self.loading.contains(&id) || scheduler.background_runs(&id.0).is_some() {
            return;
        }
        let (tasks, bytes) = scheduler.background();
        // While the store has not even taken what has ended, more must not begin to end.
        let has_room = !self.is_behind()
            && tasks + self.loading.len() < self.settings.window_tasks
            && bytes.saturating_add(stored.task.payload.memory()) <= self.settings.window_bytes.max(1 << 20);
        if !has_room && holder.is_none() && tasks > 0 {
            if !self.give_up(id) {
                self.walk.left_behind(id, now);
            }
            return;
        }
        let payload = match &stored.task.payload {
            Body::Inline(payload) => payload.clone(),
            Body::Blob(key) => {
                let query = Query::Blob(key.clone());
                self.loading.insert(id);
                let again = self.sharing.as_ref().map(|_| stored.clone());
                if self.query(query, Pending::Payload(Box::new(stored), holder)).is_err() {
                    self.loading.remove(&id);
                    match again {
                        Some(stored) => self.put_aside(now, stored, holder),
                        None => self.walk.left_behind(id, now.after(Duration::from_millis(50))),
                    }
                }
                return;
            }
        };
        let (key, payload) = envelope::unwrap(payload);
        if self.sharing.is_none() {
            self.uniques.found(&key, &stored.task.action, id);
        }
        let deadline = stored
            .task
            .deadline_at
            .map(|at| Duration::from_micros(u64::try_from(at.saturating_sub(wall_clock())).unwrap_or(0)));
        let task = BackgroundTask {
            id: id.0,
            action: &stored.task.action,
            payload: Payload::from(&payload),
            priority: stored.task.priority,
            deadline,
            max_attempts: stored.task.max_attempts,
            key: &key,
            spent: stored.attempts,
            backoff_first_ms: stored.task.backoff.first_ms,
            backoff_most_ms: stored.task.backoff.most_ms,
            holder,
        };
        scheduler.handle(now, Event::Enter { task }, out);
    }

    fn payload_read<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        mut stored: StoredTask,
        holder: Option<Peer>,
        blob: Option<Bytes>,
        out: &mut E,
    ) {
        let id = stored.task.id;
        if !self.loading.remove(&id) {
            // It was cancelled meanwhile.
            return;
        }
        match blob {
            Some(payload) => {
                stored.task.payload = Body::Inline(payload);
                self.enter(scheduler, now, stored, holder, out);
            }
            None => {
                self.left(id);
                self.uniques.over(id);
                let failure = Failure::new(ErrorCode::Internal, "its payload is missing from the blobs");
                let outcome =
                    Outcome::without_result(id, TaskState::Failed, stored.attempts, wall_clock(), failure);
                self.record(Operation::Finish(outcome), id, None);
            }
        }
    }
}

/// Whether a worker that says that it runs a task may go on with it.
fn can_be_claimed(stored: &StoredTask) -> bool {
    matches!(stored.state, TaskState::Queued | TaskState::Running)
}

fn not_found<E: Outlet>(out: &mut E, peer: Peer, id: u64) {
    fail(out, peer, id, ErrorCode::NotFound, "no background task of this id is known, or not any more");
}
