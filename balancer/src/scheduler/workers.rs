//! Workers: registering, finishing tasks, being lost.

use reparto_protocol::{ErrorCode, limits};

use super::choice::Change;
use super::clients::MOST_WAITERS;
use super::ending::THE_LAST_ONE;
use super::task::Place;
use super::worker::Worker;
use super::{
    AssignmentId, Effect, Effects, Finish, Payload, Peer, ProgressKind, Registration, Role, Scheduler,
};

impl Scheduler {
    /// A worker comes, or describes itself anew.
    pub(super) fn register<'a>(
        &mut self,
        peer: Peer,
        registration: &Registration<'_>,
        effects: &mut impl Effects<'a>,
    ) {
        let known = match self.role(peer) {
            Role::Worker(worker) => Some(worker),
            Role::Client(_) | Role::Dual { .. } => return,
            Role::None => None,
        };
        let checked = self.check_registration(known, registration);
        let set = match checked.and_then(|()| self.intern(known, &registration.actions)) {
            Ok(set) => set,
            Err((code, message)) => {
                if let Role::Worker(worker) = self.forget_peer(peer) {
                    self.worker_lost(worker, effects);
                }
                effects.push(Effect::Close { peer, code, message: message.into() });
                return;
            }
        };
        let worker = match known {
            Some(worker) => {
                let old = self.choice.actions(self.workers[worker].group).to_vec();
                self.choice.leave(&mut self.workers, &mut self.actions, worker);
                self.describe(worker, registration, &set);
                for action in old {
                    self.drop_idle_action(action);
                }
                // It may hold more than its threads by now.
                self.arm_check(worker);
                worker
            }
            None => {
                let max_bytes = self.config.max_worker_bytes;
                let mut row = Worker::new(peer, registration.worker_id, max_bytes, self.now);
                row.heartbeats = registration.heartbeats;
                let worker = self.workers.insert(row);
                self.worker_ids.insert(registration.worker_id.into(), worker);
                self.know_peer(peer, Role::Worker(worker));
                self.describe(worker, registration, &set);
                self.arm_check(worker);
                worker
            }
        };
        let window = self.workers[worker].window;
        effects.push(Effect::Acknowledge { peer, request: registration.request, window });
        if self.stopping.is_some() {
            effects.push(Effect::GoAway { peer });
        }
        if known.is_none() {
            // What it holds counts before it is given more.
            for id in &registration.held {
                self.claim(worker, *id, effects);
            }
        }
        self.feed(worker, effects);
    }

    fn check_registration(
        &self,
        known: Option<u32>,
        registration: &Registration<'_>,
    ) -> Result<(), (ErrorCode, String)> {
        let id = registration.worker_id;
        match known {
            Some(worker) if &*self.workers[worker].id != id => Err((
                ErrorCode::BadFrame,
                format!(
                    "worker '{}' may not call itself '{id}' on the same connection",
                    self.workers[worker].id
                ),
            )),
            Some(_) => Ok(()),
            None if self.worker_ids.contains_key(id) => Err((
                ErrorCode::DuplicateWorker,
                format!(
                    "a live worker has the id '{id}' already; give this one another, or wait until that one is gone"
                ),
            )),
            None if self.workers.len() >= self.config.max_workers => Err((
                ErrorCode::Overloaded,
                format!("there are {} workers already, the bound", self.workers.len()),
            )),
            None => Ok(()),
        }
    }

    /// The actions' rows, sorted and each once, begun where they are new. An error when there are too many.
    fn intern(&mut self, known: Option<u32>, names: &[&str]) -> Result<Vec<u32>, (ErrorCode, String)> {
        let mut set = Vec::with_capacity(names.len());
        set.extend(names.iter().map_while(|name| self.action_or_new(name)));
        let refusal = if set.len() < names.len() {
            Some(format!("there are {} action names already, the bound", self.actions.len()))
        } else {
            set.sort_unstable();
            set.dedup();
            let bound = self.config.max_offers;
            let offers = self.choice.offers_after(known.map(|worker| self.workers[worker].group), &set);
            (offers > bound)
                .then(|| format!("workers would offer {offers} actions together, and the bound is {bound}"))
        };
        match refusal {
            None => Ok(set),
            Some(message) => {
                for action in set {
                    self.drop_idle_action(action);
                }
                Err((ErrorCode::Overloaded, message))
            }
        }
    }

    /// Writes down how a worker describes itself, and puts it among those that offer the same.
    fn describe(&mut self, worker: u32, registration: &Registration<'_>, set: &[u32]) {
        let row = &mut self.workers[worker];
        row.threads = registration.threads.clamp(1, limits::MAX_THREADS);
        row.window = registration.window.clamp(row.threads, limits::MAX_WINDOW);
        row.weight = registration.weight.clamp(1, limits::MAX_WEIGHT);
        row.turns_left = row.weight;
        if registration.service_ns.is_some() {
            row.service_ns = registration.service_ns;
        }
        row.settle_room();
        self.choice.join(&mut self.workers, &mut self.actions, worker, set);
    }

    /// A worker takes nothing new, or takes work again.
    pub(super) fn drain<'a>(
        &mut self,
        worker: u32,
        request: u64,
        resume: bool,
        effects: &mut impl Effects<'a>,
    ) {
        let row = &mut self.workers[worker];
        row.draining = !resume;
        let (peer, window) = (row.peer, if resume { row.window } else { 0 });
        effects.push(Effect::Acknowledge { peer, request, window });
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        self.feed(worker, effects);
    }

    // ---- what workers say ----

    /// A worker has done with an assignment.
    #[inline(always)]
    pub(super) fn finished<'a>(
        &mut self,
        worker: u32,
        assignment: AssignmentId,
        finish: Finish<'_>,
        service_ns: Option<u64>,
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        let delivers = finish != Finish::NotRun;
        let row = &mut self.workers[worker];
        let delivered_before = row.finished_at;
        if delivers {
            row.finished_at = self.now;
        }
        if service_ns.is_some() || (row.stalled && delivers) {
            row.service_ns = service_ns.or(row.service_ns);
            row.stalled &= !delivers;
            row.settle_room();
        }
        let task = self.task_of(assignment).filter(|task| self.tasks[*task].place() == Place::Held(worker));
        let mut back_in_queue = None;
        if let Some(task) = task {
            let action = self.tasks[task].action;
            if delivers {
                self.actions[action].queue.effort.add(self.now, delivered_before, 1);
            }
            self.take_back(task, worker);
            self.judge(task, worker, finish, payload, effects);
            back_in_queue = matches!(finish, Finish::Retry(_) | Finish::NotRun).then_some(action);
        }
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        if let Some(action) = back_in_queue {
            self.serve(action, effects);
        }
        self.feed(worker, effects);
    }

    /// Ends a task that came back from its worker, or queues it again.
    fn judge<'a>(
        &mut self,
        task: u32,
        worker: u32,
        finish: Finish<'_>,
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        if finish != Finish::Done && self.tasks.deadline(task) <= self.now {
            // Its worker may have looked at the clock before the timer here came.
            self.workers[worker].failed += 1;
            return self.end_late(task, effects);
        }
        match finish {
            Finish::Done => {
                self.workers[worker].done += 1;
                self.end_done(task, payload, effects);
            }
            Finish::Failed(message) => {
                self.workers[worker].failed += 1;
                let message = message.to_owned().into();
                self.end_failed(task, ErrorCode::WorkerFailed, message, payload, effects);
            }
            Finish::Retry(message) => {
                self.workers[worker].failed += 1;
                self.spend_attempt(task, (worker, message, true), payload, effects);
            }
            Finish::NotRun if self.tasks[task].recalled || self.workers[worker].draining => {
                self.requeue(task, effects);
            }
            // Handed back unasked: that must not go on for ever.
            Finish::NotRun => {
                self.spend_attempt(task, (worker, "handed back unasked", true), payload, effects);
            }
        }
    }

    /// One attempt is used up: the task is queued again, or it was the last. Told are the worker, the reason, and
    /// whether a background task's next attempt is to wait.
    fn spend_attempt<'a>(
        &mut self,
        task: u32,
        (worker, why, backs_off): (u32, &str, bool),
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        if !self.tasks[task].is_wanted() {
            self.drop_task(task);
            return;
        }
        let row = &mut self.tasks[task];
        row.spent = row.spent.saturating_add(1);
        if row.spent < row.max_attempts {
            if !self.put_off(task, worker, why, backs_off, effects) {
                self.requeue(task, effects);
            }
            return;
        }
        let times = if row.spent == 1 { "attempt" } else { "attempts" };
        let message = format!("{} {times} used up{THE_LAST_ONE}{why}", row.spent);
        self.end_failed(task, ErrorCode::AttemptsExhausted, message.into(), payload, effects);
    }

    /// Puts a task that came back at the head of its queue. The caller sees to it that the queue is served.
    pub(super) fn requeue<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) {
        if !self.tasks[task].is_wanted() {
            self.drop_task(task);
            return;
        }
        self.note_requeued(task, effects);
        self.forget_run(task);
        if self.stopping.is_some() {
            let message = "the balancer is shutting down".into();
            self.end_failed(task, ErrorCode::ShuttingDown, message, Payload::EMPTY, effects);
            return;
        }
        self.counts.requeued += 1;
        self.enqueue(task, true);
    }

    /// How far an assignment is, for everyone who waits.
    pub(super) fn progress<'a>(
        &mut self,
        worker: u32,
        assignment: AssignmentId,
        (kind, done, total): (ProgressKind, u64, u64),
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        let Some(task) = self.task_of(assignment) else { return };
        if self.tasks[task].place() != Place::Held(worker) || !self.tasks[task].is_wanted() {
            return;
        }
        if kind == ProgressKind::Report {
            self.tasks.extra_or_new(task).progress = (done, total);
        }
        let tell = |peer, id| Effect::Progress { peer, id, kind, done, total, payload };
        if kind != ProgressKind::Report || self.spend_progress(self.tasks.waiting(task)) {
            self.each_waiter(task, |peer, id| effects.push(tell(peer, id)));
        } else if let Some((peer, id)) = self.first_waiter(task) {
            effects.push(tell(peer, id));
        }
    }

    /// May progress be told to this many beside the first? Else a worker's few bytes again and again could make a
    /// flood of frames.
    fn spend_progress(&mut self, others: u32) -> bool {
        let earned = u32::try_from(self.now.since(self.progress_at).as_micros()).unwrap_or(u32::MAX);
        self.progress_at = self.now;
        self.progress_left = self.progress_left.saturating_add(earned).min(MOST_WAITERS);
        let affordable = others <= self.progress_left;
        if affordable {
            self.progress_left -= others;
        }
        affordable
    }

    /// A worker has given a sign of life.
    #[inline]
    pub(super) fn heard<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) {
        let row = &mut self.workers[worker];
        row.heard_at = self.now;
        if row.asked_at.take().is_some() {
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
            self.feed(worker, effects);
        }
    }

    // ---- losing a worker ----

    /// A worker is lost, and its peer forgotten already: what it held is queued again. Only its oldest tasks, as
    /// many as its threads, can have been running, and so spend an attempt.
    pub(super) fn worker_lost<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) {
        let row = &self.workers[worker];
        let mut touched = self.choice.actions(row.group).to_vec();
        if row.in_flight > 0 {
            self.counts.workers_lost += 1;
        }
        let check = (row.check_at, worker);
        self.checks.remove(&check);
        self.choice.leave(&mut self.workers, &mut self.actions, worker);
        let running = self.workers[worker].threads.min(self.workers[worker].in_flight);
        let why = format!("its worker '{}' was lost", self.workers[worker].id);
        let held: Vec<u32> = self.workers[worker].held.tasks(&self.tasks).collect();
        // It may have described itself anew since, and not offer some of these any more.
        touched.extend(held.iter().map(|task| self.tasks[*task].action));
        // From the newest to the oldest, so that at the heads of their queues they stand in their old order.
        for (age, task) in held.into_iter().enumerate().rev() {
            self.take_back(task, worker);
            if age < running as usize {
                self.spend_attempt(task, (worker, &why, false), Payload::EMPTY, effects);
            } else {
                self.requeue(task, effects);
            }
        }
        let row = self.workers.remove(worker);
        if row.puller.is_some() {
            self.pullers -= 1;
        } else {
            self.worker_ids.remove(&row.id);
        }
        touched.sort_unstable();
        touched.dedup();
        for action in touched {
            self.serve(action, effects);
            self.drop_idle_action(action);
        }
    }
}
