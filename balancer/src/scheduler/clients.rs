//! Clients: submitting, cancelling, leaving; and the bounds on what they may have waiting.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::time::Duration;

use reparto_protocol::{ErrorCode, limits};

use super::numbers::Numbers;
use super::slab::{Link, NONE, Slab};
use super::task::{Extra, Place, Task, Tasks, Waiter};
use super::{Effect, Effects, Payload, Peer, Role, Scheduler, Submission, UnknownAction};

/// Among a client's numbers, an entry with this bit is a waiter's row, one without a task's.
const WAITER_BIT: u32 = 1 << 31;

/// The part of the bounds that is kept for clients that have little waiting, so that one that floods the queue
/// does not shut the others out. It comes on top of the bounds.
const RESERVE_PART: usize = 16;

/// A client has little waiting below this part of the bounds.
const LITTLE_PART: usize = 64;

/// How many may wait for one task beside the first: all of them are answered in one go when it ends.
pub(super) const MOST_WAITERS: u32 = 32_768;

/// Entries of a client that is gone looked at together.
const ENTRIES_AT_ONCE: usize = 64;

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) peer: Peer,
    /// What it waits for, by its own numbers: tasks whose first waiter it is, and waiters' rows.
    pub(super) numbers: Numbers,
    /// Bytes of payload of the tasks whose first waiter it is.
    pub(super) bytes: usize,
    /// The action of its latest task, which its next one likely has too.
    pub(super) last_action: u32,
    /// Its connection is over: it is told nothing more, and what it has left behind is taken out by and by.
    pub(super) gone: bool,
}

impl Client {
    pub(super) fn new(peer: Peer, gone: bool) -> Self {
        Client { peer, numbers: Numbers::new(), bytes: 0, last_action: NONE, gone }
    }
}

/// What a client waits for by one of its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    First(u32),
    Beside(u32),
}

impl Wait {
    fn of(entry: u32) -> Wait {
        if entry & WAITER_BIT == 0 { Wait::First(entry) } else { Wait::Beside(entry & !WAITER_BIT) }
    }

    /// How it stands among a client's numbers. [`of`](Self::of) goes the other way.
    #[inline]
    pub(super) fn entry(self) -> u32 {
        match self {
            Wait::First(task) => task,
            Wait::Beside(waiter) => waiter | WAITER_BIT,
        }
    }
}

pub(super) fn client_id_of(tasks: &Tasks, waiters: &Slab<Waiter>, entry: u32) -> u64 {
    match Wait::of(entry) {
        Wait::First(task) => tasks[task].client_id,
        Wait::Beside(waiter) => waiters[waiter].client_id,
    }
}

impl Scheduler {
    pub(super) fn client_joined<'a>(&mut self, peer: Peer, effects: &mut impl Effects<'a>) {
        let worker = match self.role(peer) {
            Role::None => NONE,
            Role::Dual { client: NONE, worker } => worker,
            _ => return,
        };
        let client = self.clients.insert(Client::new(peer, false));
        let role = if worker == NONE { Role::Client(client) } else { Role::Dual { client, worker } };
        self.know_peer(peer, role);
        if self.stopping.is_some() {
            effects.push(Effect::GoAway { peer });
        }
    }

    /// Takes a task in: to a worker with room, or else into its queue; or refuses it.
    #[inline]
    pub(super) fn submit<'a>(
        &mut self,
        client: u32,
        submission: &Submission<'_>,
        effects: &mut impl Effects<'a>,
    ) {
        self.submit_after(client, submission, 0, effects);
    }

    /// The same, of a task of which so many attempts were spent elsewhere.
    #[inline(never)]
    pub(super) fn submit_after<'a>(
        &mut self,
        client: u32,
        submission: &Submission<'_>,
        spent: u8,
        effects: &mut impl Effects<'a>,
    ) {
        let (action, shared) = match self.admit(client, submission) {
            Ok(admitted) => admitted,
            Err((code, message)) => {
                self.counts.refused += 1;
                let (peer, id) = (self.clients[client].peer, submission.id);
                effects.push(if submission.announced {
                    Effect::Refused { peer, id, code, message }
                } else {
                    Effect::Fail { peer, id, code, message, payload: Payload::EMPTY }
                });
                return;
            }
        };
        self.counts.submitted += 1;
        if submission.announced {
            effects.push(Effect::Created { peer: self.clients[client].peer, id: submission.id });
        }
        if let Some(task) = shared {
            self.wait_beside(task, client, submission.id);
            return;
        }
        let bytes = submission.payload.len();
        let (task, row) = self.tasks.add();
        row.payload = self.payloads.keep(task, submission.payload);
        (row.client, row.client_id) = (client, submission.id);
        (row.action, row.since) = (action, self.now);
        row.priority = submission.priority.min(limits::MAX_PRIORITY);
        (row.spent, row.max_attempts) = (spent, submission.max_attempts.max(1));
        row.announced = submission.announced;
        if let Some(deadline) = submission.deadline {
            self.tasks.set_deadline(task, self.now.after(deadline));
        }
        if !submission.key.is_empty() {
            let extra = Extra { key: submission.key.into(), ..Extra::new() };
            self.tasks.set_extra(task, Some(extra));
        }
        self.bytes += bytes;
        self.clients[client].bytes += bytes;
        self.enter(client, submission.id, task);
        if !submission.key.is_empty() {
            self.enter_key(task);
        }
        self.place_new(task, submission.wait, effects);
    }

    /// Gives a new task to a worker, or queues it.
    fn place_new<'a>(&mut self, task: u32, wait: Option<Duration>, effects: &mut impl Effects<'a>) {
        let action = self.tasks[task].action;
        // Where tasks wait, no worker has room: that holds after every event.
        if self.actions[action].queue.is_empty()
            && let Some(pick) = self.choice.pick(&self.actions[action].offers)
        {
            self.assign(task, pick, effects);
            return;
        }
        let deadline = self.tasks.deadline(task);
        let wait = wait.or((deadline == Task::NEVER).then_some(self.config.default_wait));
        let until = wait.map_or(deadline, |wait| deadline.min(self.now.after(wait)));
        if until != Task::NEVER {
            self.wheel.set(&mut self.tasks, task, until);
        }
        self.enqueue(task, false);
        self.rouse(action, 1, effects);
    }

    /// Checks a task against the rules and bounds, and finds its action and the task that it joins, if it does.
    fn admit(
        &mut self,
        client: u32,
        submission: &Submission<'_>,
    ) -> Result<(u32, Option<u32>), (ErrorCode, Cow<'static, str>)> {
        if self.stopping.is_some() {
            return Err((ErrorCode::ShuttingDown, "the balancer is shutting down".into()));
        }
        if self.find_wait(client, submission.id).is_some() {
            let message = format!("this connection already has a task {} in flight", submission.id);
            return Err((ErrorCode::DuplicateTask, message.into()));
        }
        self.check_bounds(client, submission.payload.len())?;
        let last = self.clients[client].last_action;
        let known = match self.actions.get(last) {
            Some(row) if &*row.name == submission.action => Some(last),
            _ => self.find_action(submission.action),
        };
        let served = known.is_some_and(|action| self.actions[action].offers.workers > 0);
        if !served && self.config.unknown_action == UnknownAction::Reject {
            let message = format!("no worker offers the action '{}'", submission.action);
            return Err((ErrorCode::UnknownAction, message.into()));
        }
        if let Some(action) = known {
            self.check_queue_limit(action, submission.priority)?;
        }
        let action = match known {
            Some(action) => action,
            None => self.action_or_new(submission.action).ok_or_else(|| {
                let message = format!("there are {} action names already, the bound", self.actions.len());
                (ErrorCode::QueueFull, message.into())
            })?,
        };
        self.clients[client].last_action = action;
        let shared = if submission.key.is_empty() { None } else { self.find_key(action, submission.key) };
        if shared.is_some_and(|task| self.tasks.waiting(task) >= MOST_WAITERS) {
            let message = format!("{MOST_WAITERS} others wait for the task of this key, the bound");
            return Err((ErrorCode::QueueFull, message.into()));
        }
        Ok((action, shared))
    }

    fn check_bounds(&self, client: u32, bytes: usize) -> Result<(), (ErrorCode, Cow<'static, str>)> {
        let (held, held_bytes) = (self.tasks.len() + self.waiters.len(), self.bytes + bytes);
        let (mut max_tasks, mut max_bytes) = (self.config.max_tasks, self.config.max_bytes);
        if held < max_tasks && held_bytes <= max_bytes {
            return Ok(());
        }
        let row = &self.clients[client];
        if row.numbers.len() < max_tasks / LITTLE_PART && row.bytes + bytes < max_bytes / LITTLE_PART {
            max_tasks += max_tasks / RESERVE_PART;
            max_bytes += max_bytes / RESERVE_PART;
        }
        if held >= max_tasks {
            let message = format!("the balancer holds {held} tasks, and its bound is {max_tasks}");
            return Err((ErrorCode::QueueFull, message.into()));
        }
        if held_bytes > max_bytes {
            let message = format!(
                "the balancer holds {} bytes of payload, and with this task's {bytes} would pass its bound of {max_bytes}",
                self.bytes
            );
            return Err((ErrorCode::QueueFull, message.into()));
        }
        Ok(())
    }

    /// Tasks, and bytes of payload, that may yet be taken in. Beyond these bounds there is a reserve for clients that have
    /// little, which is not seen to here.
    #[inline]
    pub(super) fn room_left(&self) -> (usize, usize) {
        let Some(bytes) = self.config.max_bytes.checked_sub(self.bytes) else { return (0, 0) };
        (self.config.max_tasks.saturating_sub(self.tasks.len() + self.waiters.len()), bytes)
    }

    /// A client no longer wants a task.
    pub(super) fn cancel<'a>(&mut self, client: u32, id: u64, effects: &mut impl Effects<'a>) {
        let Some(wait) = self.find_wait(client, id) else { return };
        self.remove_entry(client, id);
        let peer = self.clients[client].peer;
        let message = "cancelled by its client".into();
        effects.push(Effect::Fail { peer, id, code: ErrorCode::Cancelled, message, payload: Payload::EMPTY });
        self.counts.failed += 1;
        self.stop_waiting(wait, effects);
    }

    /// A client's connection is over: nobody waits for its tasks any more. What it leaves behind is seen to a
    /// part at a time, so that a million tasks do not hold up everyone else.
    pub(super) fn client_gone<'a>(&mut self, client: u32, effects: &mut impl Effects<'a>) {
        self.clients[client].gone = true;
        self.leaving.push_back(client);
        self.see_off(effects);
    }

    /// Takes out a part of what clients that are gone have left behind.
    pub(super) fn see_off<'a>(&mut self, effects: &mut impl Effects<'a>) {
        let mut work = self.work_a_call;
        while work > 0 {
            let Some(client) = self.leaving.front().copied() else { return };
            let entries = self.clients[client].numbers.some(work.min(ENTRIES_AT_ONCE));
            if entries.is_empty() {
                self.leaving.pop_front();
                self.clients.remove(client);
            }
            work -= entries.len().max(1);
            for entry in entries {
                self.leave_behind(client, Wait::of(entry), effects);
            }
        }
    }

    /// A client that is gone does not wait for this any more, if it still did: leaving one task may have made it
    /// the first who waits for it, by another entry.
    fn leave_behind<'a>(&mut self, client: u32, wait: Wait, effects: &mut impl Effects<'a>) {
        let waiting = match wait {
            Wait::First(task) => self.tasks.get(task).map(|row| (row.client, row.client_id)),
            Wait::Beside(waiter) => self.waiters.get(waiter).map(|row| (row.client, row.client_id)),
        };
        if let Some((_, id)) = waiting.filter(|(who, _)| *who == client) {
            self.remove_entry(client, id);
            self.counts.failed += 1;
            self.stop_waiting(wait, effects);
        }
    }

    /// One waiter less, whose entry is gone already. A task that nobody waits for any more is taken out of its
    /// queue, or, at a worker, cancelled there.
    fn stop_waiting<'a>(&mut self, wait: Wait, effects: &mut impl Effects<'a>) {
        let task = match wait {
            Wait::Beside(waiter) => {
                let task = self.waiters[waiter].task;
                self.remove_waiter(waiter);
                task
            }
            Wait::First(task) => {
                let bytes = self.tasks[task].payload.len();
                let client = self.tasks[task].client;
                self.clients[client].bytes -= bytes;
                self.tasks[task].client = NONE;
                self.promote_waiter(task);
                task
            }
        };
        if !self.tasks[task].is_wanted() {
            self.abandon(task, effects);
        }
    }

    /// Makes the next waiter the first, if there is one.
    fn promote_waiter(&mut self, task: u32) {
        let waiter = self.tasks.waiters(task).head();
        if waiter == NONE {
            return;
        }
        let (client, client_id) = (self.waiters[waiter].client, self.waiters[waiter].client_id);
        let queued = matches!(self.tasks[task].place(), Place::Queued(_));
        if queued {
            self.unqueue(task);
        }
        self.remove_entry(client, client_id);
        self.remove_waiter(waiter);
        let row = &mut self.tasks[task];
        // It was announced to somebody else, by another number.
        (row.client, row.client_id, row.announced) = (client, client_id, false);
        self.clients[client].bytes += row.payload.len();
        self.enter(client, client_id, task);
        if queued {
            self.enqueue(task, false);
        }
    }

    /// Enters a client's number for a task whose first waiter it is, or, with the bit, for a waiter's row.
    pub(super) fn enter(&mut self, client: u32, id: u64, entry: u32) {
        self.owed += 1;
        let (tasks, waiters) = (&self.tasks, &self.waiters);
        debug_assert_eq!(client_id_of(tasks, waiters, entry), id);
        let id_of = |entry| client_id_of(tasks, waiters, entry);
        self.clients[client].numbers.insert(&self.hasher, entry, id_of);
    }

    pub(super) fn find_wait(&self, client: u32, id: u64) -> Option<Wait> {
        let id_of = |entry| client_id_of(&self.tasks, &self.waiters, entry);
        self.clients[client].numbers.find(&self.hasher, id, id_of).map(Wait::of)
    }

    /// Takes a client's number out. The row it stands for must still be there.
    pub(super) fn remove_entry(&mut self, client: u32, id: u64) {
        if let Some(wait) = self.find_wait(client, id) {
            self.remove_row(client, id, wait);
        }
    }

    /// The same, where it is known what the number stands for, so that no row need be looked at.
    #[inline]
    pub(super) fn remove_row(&mut self, client: u32, id: u64, wait: Wait) {
        let (tasks, waiters) = (&self.tasks, &self.waiters);
        let id_of = |entry| client_id_of(tasks, waiters, entry);
        if self.clients[client].numbers.remove(&self.hasher, id, wait.entry(), id_of) {
            self.owed -= 1;
        }
    }

    // ---- waiters beside the first, and keys ----

    fn wait_beside(&mut self, task: u32, client: u32, client_id: u64) {
        let waiter = self.waiters.insert(Waiter { task, client, client_id, link: Link::new() });
        if let Some(extra) = self.tasks.extra_mut(task) {
            extra.waiters.push_back(&mut self.waiters, waiter);
            extra.waiting += 1;
        }
        self.enter(client, client_id, Wait::Beside(waiter).entry());
    }

    /// Removes a waiter's row; its client's entry is the caller's.
    pub(super) fn remove_waiter(&mut self, waiter: u32) {
        let task = self.waiters[waiter].task;
        if let Some(extra) = self.tasks.extra_mut(task) {
            extra.waiters.remove(&mut self.waiters, waiter);
            extra.waiting -= 1;
        }
        self.waiters.remove(waiter);
    }

    /// A task of this action and key that someone still waits for.
    pub(super) fn find_key(&self, action: u32, key: &[u8]) -> Option<u32> {
        let same = |task: &u32| self.tasks[*task].action == action && self.tasks.key(*task) == key;
        self.keys.find(self.hasher.hash_one((action, key)), same)
    }

    fn enter_key(&mut self, task: u32) {
        let (tasks, hasher) = (&self.tasks, &self.hasher);
        let hash_of = |task: &u32| hasher.hash_one((tasks[*task].action, tasks.key(*task)));
        self.keys.insert(task, hash_of);
    }

    /// Takes a task's key out, so that no one joins it any more, or its id, if it is a background task.
    pub(super) fn remove_key(&mut self, task: u32) {
        self.forget_background(task);
        if self.tasks.key(task).is_empty() {
            return;
        }
        let (tasks, hasher) = (&self.tasks, &self.hasher);
        let hash_of = |task: &u32| hasher.hash_one((tasks[*task].action, tasks.key(*task)));
        self.keys.remove(hash_of(&task), |other| *other == task, hash_of);
    }
}
