//! Background tasks: how they come in from a store and go back to it, and what workers still hold of them.
//!
//! The scheduler holds a part of those that are open; the store has all of them. One comes in as
//! [`Event::Enter`](super::Event::Enter), and whatever the store must know of it goes out as an
//! [`Effect::Note`](super::Effect::Note). Inside it is a task like any other, whose client is one without a
//! connection: so background tasks take turns with clients as if they were one more.
//!
//! Such a task always has a timer: in a queue for its deadline, at a worker for the moment at which it counts as
//! running for long, which the store is then told. Tasks that end sooner cost the store one write less.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::time::Duration;

use reparto_protocol::{ErrorCode, TaskState, limits};

use super::choice::Change;
use super::clients::Client;
use super::slab::NONE;
use super::task::{Extra, Place, Tasks};
use super::{BackgroundId, BackgroundTask, Effect, Effects, Note, Payload, Peer, Role, Scheduler};

/// The store is told that a task runs once a worker has had it for this long. After a crash of the balancer such a
/// task waits for its worker to come back, and others are given out at once.
const LONG: Duration = Duration::from_secs(1);

/// What is known of a background task beside what every task has.
#[derive(Debug)]
pub(super) struct Background {
    pub(super) id: BackgroundId,
    backoff_first_ms: u32,
    backoff_most_ms: u32,
    /// The store knows that it runs.
    started: bool,
    /// What its worker is told as its key.
    pub(super) key: Box<[u8]>,
}

impl Scheduler {
    /// How many background tasks are held here, and their bytes of payload.
    pub fn background(&self) -> (usize, usize) {
        let bytes = self.clients.get(self.keeper).map_or(0, |keeper| keeper.bytes);
        (self.background.len(), bytes)
    }

    /// Whether a background task is held here: `Some(true)` for one that a worker has.
    pub fn background_runs(&self, id: &BackgroundId) -> Option<bool> {
        let task = self.find_background(id)?;
        Some(matches!(self.tasks[task].place(), Place::Held(_)))
    }

    pub(super) fn find_background(&self, id: &BackgroundId) -> Option<u32> {
        let same = |task: &u32| self.tasks.background(*task).is_some_and(|background| background.id == *id);
        self.background.find(self.hasher.hash_one(id), same)
    }

    /// The client without a connection to whom background tasks belong.
    fn keeper(&mut self) -> u32 {
        if self.keeper == NONE {
            let peer = Peer { index: NONE, generation: 0 };
            // Gone, so that nobody tries to tell it anything.
            self.keeper = self.clients.insert(Client::new(peer, true));
        }
        self.keeper
    }

    /// Takes a background task in: to the worker that holds it, to one with room, or into its queue.
    pub(super) fn take_in<'a>(&mut self, task: &BackgroundTask<'_>, effects: &mut impl Effects<'a>) {
        if self.stopping.is_some() || self.find_background(&task.id).is_some() {
            return;
        }
        let Some(action) = self.action_or_new(task.action) else {
            effects.push(Effect::Note { id: task.id, attempts: task.spent, note: Note::Refused });
            return;
        };
        let keeper = self.keeper();
        self.background_number += 1;
        let (number, bytes) = (self.background_number, task.payload.len());
        let (index, row) = self.tasks.add();
        row.payload = self.payloads.keep(index, task.payload);
        (row.client, row.client_id) = (keeper, number);
        (row.action, row.since) = (action, self.now);
        row.priority = task.priority.min(limits::MAX_PRIORITY);
        (row.spent, row.max_attempts) = (task.spent, task.max_attempts.max(1));
        if let Some(deadline) = task.deadline {
            self.tasks.set_deadline(index, self.now.after(deadline));
        }
        let background = Background {
            id: task.id,
            backoff_first_ms: task.backoff_first_ms,
            backoff_most_ms: task.backoff_most_ms,
            started: task.holder.is_some(),
            key: task.key.into(),
        };
        self.tasks.set_extra(index, Some(Extra { background: Some(background), ..Extra::new() }));
        let deadline = self.tasks.deadline(index);
        self.bytes += bytes;
        self.clients[keeper].bytes += bytes;
        self.enter(keeper, number, index);
        let (tasks, hasher) = (&self.tasks, &self.hasher);
        self.background.insert(index, |task| hasher.hash_one(id_of(tasks, *task)));
        self.wheel.set(&mut self.tasks, index, deadline);
        match task.holder.map(|peer| self.role(peer)) {
            Some(Role::Worker(worker)) => self.adopt(index, worker, effects),
            _ => self.place_background(index, effects),
        }
    }

    fn place_background<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) {
        let action = self.tasks[task].action;
        // Its holder has left meanwhile, and nobody knows what became of it there.
        self.note_requeued(task, effects);
        if self.actions[action].queue.is_empty()
            && let Some(pick) = self.choice.pick(&self.actions[action].offers)
        {
            self.assign(task, pick, effects);
        } else {
            self.enqueue(task, false);
            self.rouse(action, 1, effects);
        }
    }

    /// Sets the timer of a task that has been given to a worker.
    pub(super) fn arm_background(&mut self, task: u32) {
        let Some(background) = self.tasks.background(task) else { return };
        let ends_by = self.tasks.ends_by(task);
        let at = if background.started { ends_by } else { ends_by.min(self.now.after(LONG)) };
        self.wheel.clear(&mut self.tasks, task);
        self.wheel.set(&mut self.tasks, task, at);
    }

    /// A timer has come. Says whether it was not the deadline's.
    pub(super) fn runs_for_long<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) -> bool {
        let (ends_by, spent, place) =
            (self.tasks.ends_by(task), self.tasks[task].spent, self.tasks[task].place());
        if ends_by <= self.now {
            return false;
        }
        let Some(background) = self.tasks.background_mut(task) else { return false };
        if matches!(place, Place::Held(_)) && !background.started {
            background.started = true;
            let id = background.id;
            effects.push(Effect::Note { id, attempts: spent, note: Note::Started });
        }
        self.wheel.set(&mut self.tasks, task, ends_by);
        true
    }

    // ---- what the store must know ----

    /// A task is queued again, which the store need only know if it thinks that it runs.
    pub(super) fn note_requeued<'a>(&mut self, task: u32, effects: &mut impl Effects<'a>) {
        let spent = self.tasks[task].spent;
        let Some(background) = self.tasks.background_mut(task) else { return };
        if std::mem::replace(&mut background.started, false) {
            let id = background.id;
            effects.push(Effect::Note { id, attempts: spent, note: Note::Requeued });
        }
    }

    /// A task has ended with a result.
    pub(super) fn note_done<'a>(&self, task: u32, payload: Payload<'a>, effects: &mut impl Effects<'a>) {
        let row = &self.tasks[task];
        let Some(background) = self.tasks.background(task).filter(|_| row.is_wanted()) else { return };
        let note = Note::Ended { state: TaskState::Done, failure: None, payload };
        effects.push(Effect::Note { id: background.id, attempts: row.spent.saturating_add(1), note });
    }

    /// A task has ended with an error. What a shutdown ends goes on after it.
    pub(super) fn note_failed<'a>(
        &self,
        task: u32,
        code: ErrorCode,
        message: Cow<'static, str>,
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        let row = &self.tasks[task];
        let Some(background) = self.tasks.background(task).filter(|_| row.is_wanted()) else { return };
        let (state, attempts) = match code {
            ErrorCode::WorkerFailed => (TaskState::Failed, row.spent.saturating_add(1)),
            ErrorCode::AttemptsExhausted => (TaskState::Dead, row.spent),
            ErrorCode::Expired => (TaskState::Expired, row.spent),
            _ => return,
        };
        let note = Note::Ended { state, failure: Some((code, message)), payload };
        effects.push(Effect::Note { id: background.id, attempts, note });
    }

    /// An attempt at a task, which is nowhere, has failed, and another follows: the store is told, and keeps the
    /// task until that is due. Says whether it does; else the task is to be queued at once.
    pub(super) fn put_off<'a>(
        &mut self,
        task: u32,
        worker: u32,
        why: &str,
        backs_off: bool,
        effects: &mut impl Effects<'a>,
    ) -> bool {
        let spent = self.tasks[task].spent;
        let random = self.random();
        let Some(background) = self.tasks.background_mut(task) else { return false };
        background.started = false;
        let id = background.id;
        let (first, most) = (background.backoff_first_ms, background.backoff_most_ms);
        let delay = if backs_off { backoff(first, most, spent, random) } else { Duration::ZERO };
        let delay = Some(delay).filter(|delay| !delay.is_zero());
        let worker = self.workers[worker].id.clone();
        let note = Note::Retry { worker, message: why.into(), delay };
        effects.push(Effect::Note { id, attempts: spent, note });
        if delay.is_none() && self.stopping.is_none() {
            return false;
        }
        self.release_waiters(task);
        self.drop_task(task);
        true
    }

    /// The next number of the scheduler's own generator (Steele, Lea, Flood: "Fast splittable pseudorandom number
    /// generators", OOPSLA 2014).
    fn random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random_state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    // ---- leaving ----

    /// A background task is not to be run any more, and the store knows.
    pub(super) fn withdraw<'a>(&mut self, id: &BackgroundId, effects: &mut impl Effects<'a>) {
        if let Some(task) = self.find_background(id) {
            self.release_waiters(task);
            self.abandon(task, effects);
        }
    }

    /// A shutdown leaves a background task to the store. Says whether the task is one. Its worker goes on with it,
    /// and names it when it comes back.
    pub(super) fn leave_to_store(&mut self, task: u32) -> bool {
        if self.tasks.background(task).is_none() {
            return false;
        }
        self.release_waiters(task);
        match self.tasks[task].place() {
            Place::Queued(_) => {
                self.unqueue(task);
                self.drop_task(task);
            }
            Place::Held(_) | Place::Moving => {
                self.wheel.clear(&mut self.tasks, task);
                self.remove_key(task);
                self.tasks.set_extra(task, None);
            }
        }
        true
    }

    /// Takes a background task out of the table of them.
    pub(super) fn forget_background(&mut self, task: u32) {
        if self.tasks.background(task).is_none() {
            return;
        }
        let (tasks, hasher) = (&self.tasks, &self.hasher);
        let hash_of = |task: &u32| hasher.hash_one(id_of(tasks, *task));
        self.background.remove(hash_of(&task), |other| *other == task, hash_of);
    }

    // ---- workers that come back ----

    /// A worker that has just registered names a task that it still holds.
    pub(super) fn claim<'a>(&mut self, worker: u32, id: BackgroundId, effects: &mut impl Effects<'a>) {
        let peer = self.workers[worker].peer;
        let Some(task) = self.find_background(&id) else {
            effects.push(Effect::Claim { peer, id });
            return;
        };
        match self.tasks[task].place() {
            Place::Queued(_) => {
                self.unqueue(task);
                self.adopt(task, worker, effects);
            }
            Place::Held(holder) if holder == worker => {}
            Place::Held(_) | Place::Moving => effects.push(Effect::Unwanted { peer, id }),
        }
    }

    /// Nobody wants a task that a worker has named.
    pub(super) fn refuse_claim<'a>(&mut self, peer: Peer, id: BackgroundId, effects: &mut impl Effects<'a>) {
        if matches!(self.role(peer), Role::Worker(_)) {
            effects.push(Effect::Unwanted { peer, id });
        }
    }

    /// A worker has a task, which is nowhere, already. That may be more than its credits.
    fn adopt<'a>(&mut self, task: u32, worker: u32, effects: &mut impl Effects<'a>) {
        let peer = self.hold(task, worker);
        self.arm_background(task);
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        let details = super::Assignment { held: true, ..self.details(task) };
        effects.assign(peer, self.assignment_id(task), details);
    }
}

fn id_of(tasks: &Tasks, task: u32) -> BackgroundId {
    tasks.background(task).map_or([0; 16], |background| background.id)
}

/// How long the attempt after `spent` others waits: twice as long each time, and of that a random half to the whole.
fn backoff(first_ms: u32, most_ms: u32, spent: u8, random: u64) -> Duration {
    let doublings = u32::from(spent.saturating_sub(1)).min(32);
    let whole = (u64::from(first_ms) << doublings).min(u64::from(most_ms.max(first_ms))) * 1000;
    let half = whole / 2;
    Duration::from_micros(half + random % (whole - half + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_doubles_up_to_its_limit_and_varies_by_half() {
        for random in [0, 1, u64::MAX / 3, u64::MAX] {
            for (spent, most) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (255, 1000)] {
                let wait = backoff(100, 1000, spent, random);
                assert!(wait >= Duration::from_millis(most / 2), "{spent}: {wait:?}");
                assert!(wait <= Duration::from_millis(most), "{spent}: {wait:?}");
            }
            assert_eq!(backoff(0, 1000, 3, random), Duration::ZERO);
            assert!(backoff(5000, 10, 1, random) >= Duration::from_millis(2500), "the first is the least");
            assert!(backoff(u32::MAX, u32::MAX, 255, random) <= Duration::from_millis(u32::MAX.into()));
        }
    }
}
