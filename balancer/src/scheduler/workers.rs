//! Workers: registering, being given tasks, finishing them, being lost; heartbeats and recalls.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{ErrorCode, limits};

use super::choice::{Change, Pick};
use super::clients::MOST_WAITERS;
use super::slab::{List, NONE};
use super::task::{Place, PlaceLink, Task};
use super::worker::Worker;
use super::{AssignmentId, Effect, Finish, Peer, Registration, Role, Scheduler, Time};

/// A worker that holds more than its threads and has delivered nothing for this long is asked to hand back what
/// another worker is free to run.
const STALL: Duration = Duration::from_millis(20);

/// A worker is looked at no oftener than this, whatever heartbeat is set.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// A look at a worker that comes this much late means that the balancer itself stood still, so that nobody could be
/// heard.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// Tasks recalled at most each time a stalled worker is looked at.
const RECALLS_A_CHECK: usize = 256;

/// How long a stalled worker is left alone for each task that was looked at. So looking through what it holds again
/// and again takes a thousandth of the time that passes.
const PAUSE_A_LOOK: Duration = Duration::from_micros(100);

impl Scheduler {
    /// A worker comes, or describes itself anew.
    pub(super) fn register(
        &mut self,
        peer: Peer,
        registration: &Registration<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let known = match self.role(peer) {
            Role::Worker(worker) => Some(worker),
            Role::Client(_) => return,
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
                worker
            }
            None => {
                let max_bytes = self.config.max_worker_bytes;
                let row = Worker::new(peer, registration.worker_id, max_bytes, self.now);
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
    pub(super) fn drain(&mut self, worker: u32, request: u64, resume: bool, effects: &mut Vec<Effect>) {
        let row = &mut self.workers[worker];
        row.draining = !resume;
        let (peer, window) = (row.peer, if resume { row.window } else { 0 });
        effects.push(Effect::Acknowledge { peer, request, window });
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        self.feed(worker, effects);
    }

    // ---- assigning ----

    /// Puts a task, which is nowhere, into its queue.
    pub(super) fn enqueue(&mut self, task: u32, first: bool) {
        let index = self.tasks[task].action;
        let action = &mut self.actions[index];
        if first {
            self.flows.push_front(&mut action.queue, &mut self.tasks, task);
        } else {
            self.flows.push_back(&mut action.queue, &mut self.tasks, task);
        }
        self.queued += 1;
        if action.in_backlog == NONE {
            action.in_backlog = self.backlog.len() as u32;
            self.backlog.push(index);
        }
    }

    /// Takes a task out of its queue.
    pub(super) fn unqueue(&mut self, task: u32) {
        let action = self.tasks[task].action;
        self.flows.remove(&mut self.actions[action].queue, &mut self.tasks, task);
        self.note_unqueued(action);
    }

    fn note_unqueued(&mut self, index: u32) {
        self.queued -= 1;
        let action = &mut self.actions[index];
        if action.queue.is_empty() {
            let at = std::mem::replace(&mut action.in_backlog, NONE);
            self.backlog.swap_remove(at as usize);
            if let Some(moved) = self.backlog.get(at as usize) {
                self.actions[*moved].in_backlog = at;
            }
        }
    }

    /// Gives a task, which is nowhere, to the worker picked for it.
    #[inline]
    pub(super) fn assign(&mut self, task: u32, pick: Pick, effects: &mut Vec<Effect>) {
        self.choice.picked(&mut self.actions, pick);
        self.hand_over(task, pick.worker, effects);
    }

    fn hand_over(&mut self, task: u32, worker: u32, effects: &mut Vec<Effect>) {
        self.attempt_tag = self.attempt_tag.checked_add(1).unwrap_or(1);
        let row = &mut self.tasks[task];
        row.attempt_tag = self.attempt_tag;
        row.put(Place::Held(worker));
        row.recalled = false;
        let (bytes, deadline, action) = (row.payload.len(), row.deadline, row.action);
        if row.timer_slot != super::wheel::NO_SLOT || deadline != Task::NEVER {
            // The limit on its waiting is met; its deadline stays.
            self.wheel.clear(&mut self.tasks, task);
            if deadline != Task::NEVER {
                self.wheel.set(&mut self.tasks, task, deadline);
            }
        }
        let row = &mut self.workers[worker];
        debug_assert!(row.has_room(), "worker '{}' is given a task over its credits", row.id);
        row.held.push_back(&mut self.tasks, task);
        row.in_flight += 1;
        row.bytes += bytes;
        let peer = row.peer;
        self.actions[action].running += 1;
        if row.in_flight == row.threads + 1 {
            let stall_at = self.now.after(STALL);
            if stall_at < self.workers[worker].check_at {
                self.set_check(worker, stall_at);
            }
        }
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Assigned);
        let assignment = AssignmentId(u64::from(self.attempt_tag) << 32 | u64::from(task));
        effects.push(Effect::Assign { peer, assignment });
    }

    /// Takes a task from its worker; it is nowhere then.
    fn take_back(&mut self, task: u32, worker: u32) {
        let row = &mut self.workers[worker];
        row.held.remove(&mut self.tasks, task);
        row.in_flight -= 1;
        let task = &mut self.tasks[task];
        row.bytes -= task.payload.len();
        task.put(Place::Moving);
        self.actions[task.action].running -= 1;
    }

    /// Gives an action's waiting tasks to workers while any has room.
    fn serve(&mut self, action: u32, effects: &mut Vec<Effect>) {
        if self.stopping.is_some() {
            return;
        }
        while let Some(row) = self.actions.get(action).filter(|row| !row.queue.is_empty()) {
            let Some(pick) = self.choice.pick(&row.offers) else { return };
            let Some(task) = self.take(action) else { return };
            self.assign(task, pick, effects);
        }
    }

    /// Takes an action's next task out of its queue.
    fn take(&mut self, action: u32) -> Option<u32> {
        let row = &mut self.actions[action];
        let task = self.flows.take(&mut row.queue, &mut self.tasks)?;
        self.services += 1;
        row.served = self.services;
        self.note_unqueued(action);
        Some(task)
    }

    /// Gives a worker waiting tasks while it has room.
    pub(super) fn feed(&mut self, worker: u32, effects: &mut Vec<Effect>) {
        while self.queued > 0 && self.stopping.is_none() && self.workers[worker].has_room() {
            let Some(action) = self.next_action(self.workers[worker].group) else { return };
            let Some(task) = self.take(action) else { return };
            self.hand_over(task, worker, effects);
        }
    }

    /// Of the actions that a group offers and that have tasks waiting, the one to serve: by priority and age, and
    /// among those whose next tasks are of one priority, the one not served for longest.
    fn next_action(&self, group: u32) -> Option<u32> {
        let offered = self.choice.actions(group);
        if let [action] = offered {
            return (!self.actions[*action].queue.is_empty()).then_some(*action);
        }
        let scan_backlog = self.backlog.len() < offered.len();
        let candidates = if scan_backlog { &self.backlog[..] } else { offered };
        let candidates = candidates.iter().copied().filter(|action| {
            !self.actions[*action].queue.is_empty()
                && (!scan_backlog || offered.binary_search(action).is_ok())
        });
        let mut oldest = None;
        let mut by_priority = [(NONE, u64::MAX); reparto_protocol::limits::MAX_PRIORITY as usize + 1];
        for action in candidates {
            let row = &self.actions[action];
            let Some(next) = self.flows.peek(&row.queue, &self.tasks) else { continue };
            if oldest.is_none_or(|(rank, _)| next.rank < rank) {
                oldest = Some((next.rank, next.priority));
            }
            let longest = &mut by_priority[usize::from(next.priority)];
            if row.served < longest.1 {
                *longest = (action, row.served);
            }
        }
        oldest.map(|(_, priority)| by_priority[usize::from(priority)].0)
    }

    // ---- what workers say ----

    /// A worker has done with an assignment.
    pub(super) fn finished(
        &mut self,
        worker: u32,
        assignment: AssignmentId,
        finish: Finish<'_>,
        service_ns: Option<u64>,
        payload: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let delivers = finish != Finish::NotRun;
        let row = &mut self.workers[worker];
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
    fn judge(
        &mut self,
        task: u32,
        worker: u32,
        finish: Finish<'_>,
        payload: Bytes,
        effects: &mut Vec<Effect>,
    ) {
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
                self.spend_attempt(task, message, payload, effects);
            }
            Finish::NotRun if self.tasks[task].recalled || self.workers[worker].draining => {
                self.requeue(task, effects);
            }
            // Handed back unasked: that must not go on for ever.
            Finish::NotRun => self.spend_attempt(task, "handed back unasked", payload, effects),
        }
    }

    /// One attempt is used up: the task is queued again, or it was the last.
    fn spend_attempt(&mut self, task: u32, why: &str, payload: Bytes, effects: &mut Vec<Effect>) {
        if !self.tasks[task].is_wanted() {
            self.drop_task(task);
            return;
        }
        let row = &mut self.tasks[task];
        row.spent = row.spent.saturating_add(1);
        if row.spent < row.max_attempts {
            self.requeue(task, effects);
            return;
        }
        let times = if row.spent == 1 { "attempt" } else { "attempts" };
        let message = format!("{} {times} used up; the last one: {why}", row.spent);
        self.end_failed(task, ErrorCode::AttemptsExhausted, message.into(), payload, effects);
    }

    /// Puts a task that came back at the head of its queue. The caller sees to it that the queue is served.
    fn requeue(&mut self, task: u32, effects: &mut Vec<Effect>) {
        if !self.tasks[task].is_wanted() {
            self.drop_task(task);
            return;
        }
        if self.stopping.is_some() {
            let message = "the balancer is shutting down".into();
            self.end_failed(task, ErrorCode::ShuttingDown, message, Bytes::new(), effects);
            return;
        }
        self.counts.requeued += 1;
        self.enqueue(task, true);
    }

    /// How far an assignment is, for everyone who waits.
    pub(super) fn progress(
        &mut self,
        worker: u32,
        assignment: AssignmentId,
        (done, total): (u64, u64),
        payload: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let Some(task) = self.task_of(assignment) else { return };
        if self.tasks[task].place() != Place::Held(worker) {
            return;
        }
        let tell = |peer, id| Effect::Progress { peer, id, done, total, payload: payload.clone() };
        if self.spend_progress(self.tasks[task].waiting()) {
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
    pub(super) fn heard(&mut self, worker: u32, effects: &mut Vec<Effect>) {
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
    pub(super) fn worker_lost(&mut self, worker: u32, effects: &mut Vec<Effect>) {
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
        let mut held = Vec::with_capacity(self.workers[worker].in_flight as usize);
        let mut at = self.workers[worker].held.head();
        while at != NONE {
            held.push(at);
            // It may have described itself anew since, and not offer this any more.
            touched.push(self.tasks[at].action);
            at = List::<PlaceLink>::next(&self.tasks, at);
        }
        // From the newest to the oldest, so that at the heads of their queues they stand in their old order.
        for (age, task) in held.into_iter().enumerate().rev() {
            self.take_back(task, worker);
            if age < running as usize {
                self.spend_attempt(task, &why, Bytes::new(), effects);
            } else {
                self.requeue(task, effects);
            }
        }
        let row = self.workers.remove(worker);
        self.worker_ids.remove(&row.id);
        touched.sort_unstable();
        touched.dedup();
        for action in touched {
            self.serve(action, effects);
            self.drop_idle_action(action);
        }
    }

    // ---- what is due for workers ----

    /// When it is next to be looked at: when it will have been silent for a heartbeat, when it will be lost, or when
    /// it may have stalled.
    fn arm_check(&mut self, worker: u32) {
        let row = &self.workers[worker];
        let heartbeat = self.config.heartbeat;
        let mut at = row.heard_at.after(heartbeat);
        if at <= self.now {
            at = self.now.after(heartbeat);
        }
        if let Some(asked_at) = row.asked_at {
            at = at.min(row.heard_at.after(self.config.silence).max(asked_at.after(self.patience())));
        }
        if row.in_flight > row.threads {
            let stalled_at = row.finished_at.after(STALL);
            let stalled_at = if stalled_at > self.now { stalled_at } else { self.now.after(STALL) };
            at = at.min(stalled_at.max(row.recall_at));
        }
        self.set_check(worker, at.max(self.now.after(LEAST_PAUSE)));
    }

    /// How long a worker has to answer when it was asked whether it is there.
    fn patience(&self) -> Duration {
        self.config.silence.saturating_sub(self.config.heartbeat)
    }

    fn set_check(&mut self, worker: u32, at: Time) {
        let row = &mut self.workers[worker];
        self.checks.remove(&(row.check_at, worker));
        row.check_at = at;
        self.checks.insert((at, worker));
    }

    /// Is the worker silent, or does it sit on tasks that others could run? Says how many tasks were looked at.
    pub(super) fn check_worker(&mut self, worker: u32, effects: &mut Vec<Effect>) -> usize {
        let patience = self.patience();
        let row = &mut self.workers[worker];
        let check_at = std::mem::replace(&mut row.check_at, Time(u64::MAX));
        if self.now.since(check_at) >= STOOD_STILL {
            // What the worker has said meanwhile may wait to be read.
            row.asked_at = None;
        }
        let (peer, silent_for) = (row.peer, self.now.since(row.heard_at));
        match row.asked_at {
            Some(at) if silent_for >= self.config.silence && self.now.since(at) >= patience => {
                return self.lose_silent(worker, silent_for, effects);
            }
            None if silent_for >= self.config.heartbeat => {
                row.asked_at = Some(self.now);
                effects.push(Effect::Ping { peer });
                self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
            }
            _ => {}
        }
        let row = &self.workers[worker];
        let stalled = row.in_flight > row.threads && self.now.since(row.finished_at) >= STALL;
        let looked_at = if stalled && self.now >= row.recall_at { self.recall(worker, effects) } else { 0 };
        self.arm_check(worker);
        looked_at
    }

    /// Says how many tasks it held.
    fn lose_silent(&mut self, worker: u32, silent_for: Duration, effects: &mut Vec<Effect>) -> usize {
        let row = &self.workers[worker];
        let (peer, held) = (row.peer, row.in_flight as usize);
        let message = format!("worker '{}' was silent for {} ms", row.id, silent_for.as_millis());
        self.forget_peer(peer);
        self.worker_lost(worker, effects);
        effects.push(Effect::Close { peer, code: ErrorCode::TimedOut, message: message.into() });
        held
    }

    /// Asks a worker that delivers nothing to hand back what it has not begun and another is free to run. Says how
    /// many tasks were looked at.
    fn recall(&mut self, worker: u32, effects: &mut Vec<Effect>) -> usize {
        let is_free =
            |action: &u32| self.choice.pick(&self.actions[*action].offers).is_some_and(|pick| pick.free);
        if !self.choice.actions(self.workers[worker].group).iter().any(is_free) {
            return 0;
        }
        let peer = self.workers[worker].peer;
        let not_begun = (self.workers[worker].in_flight - self.workers[worker].threads) as usize;
        let (mut looked_at, mut recalled) = (0, 0);
        let mut at = self.workers[worker].held.tail();
        while at != NONE && looked_at < not_begun && recalled < RECALLS_A_CHECK {
            looked_at += 1;
            let task = &self.tasks[at];
            if !task.recalled && is_free(&task.action) {
                let assignment = AssignmentId(u64::from(task.attempt_tag) << 32 | u64::from(at));
                effects.push(Effect::CancelAssignment { peer, assignment, recall: true });
                self.tasks[at].recalled = true;
                recalled += 1;
            }
            at = List::<PlaceLink>::previous(&self.tasks, at);
        }
        let row = &mut self.workers[worker];
        row.recall_at = self.now.after(STALL.max(PAUSE_A_LOOK * looked_at as u32));
        if recalled > 0 {
            row.stalled = true;
            row.settle_room();
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        }
        looked_at
    }
}
