//! Pull workers: they ask for their tasks one by one, and sleep when there are none.
//!
//! Such a worker has a credit only in the moment in which it asks, and its question is answered at once. So it never
//! has room between two events, and a task that only such workers can run waits in its queue until one of them asks.
//! What must not happen is that it waits while one of them sleeps: a wake-up reserves nothing, so whoever was woken may
//! find that another was faster, may have left, or may not answer at all. The rule is therefore a count:
//!
//! *Where an action has tasks waiting, either none of the workers that could take one sleeps, or as many have been woken
//! and are about to ask as there are tasks.*
//!
//! Each task that is queued wakes one worker, the longest asleep. A worker that was woken and stops being about to ask,
//! in whatever way, has another one woken for each action that it leaves waiting: it took a task of another action, it
//! cannot do that any more, it is gone, or it has not asked within 20 ms. One that goes to sleep while a task waits for
//! it is woken at once. A wake-up too many costs a question; one too few would cost a task its life.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use reparto_protocol::ErrorCode;

use super::choice::Change;
use super::slab::NONE;
use super::task::Task;
use super::watching::STALL;
use super::worker::Worker;
use super::{Assignment, AssignmentId, Effect, Effects, Finish, Payload, Peer, Pull, Role, Scheduler, Time};

/// Tasks that a pull worker may have asked for and not answered.
const MOST_PULLED: u32 = 1024;

/// Actions that a pull worker may offer: each that comes or goes costs as much as it has.
const MOST_ABILITIES: usize = 512;

/// Bytes of a pull worker's name that are kept.
const NAME_BYTES: usize = 255;

/// What a worker has that asks for its tasks one by one.
#[derive(Debug)]
pub(super) struct Puller {
    pub(super) rest: Rest,
    /// How long a run may take, for the actions that have a limit.
    pub(super) limits: Vec<(u32, Duration)>,
    /// Where it comes from, for people.
    pub(super) from: Option<IpAddr>,
}

/// Whether a pull worker asks by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// It does, when it has done what it has.
    Awake,
    /// It waits to be woken.
    Asleep,
    /// It was woken then, and is about to ask.
    Woken(Time),
    /// It was woken, and has not asked for so long that others must.
    Overdue,
}

/// What people have asked for an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wish {
    /// It is known though nobody needs it.
    pub(super) kept: bool,
    /// Tasks that there may be of it, waiting or running, when another one of high, usual, low priority comes; 0 for
    /// any number.
    pub(super) most: [usize; 3],
}

/// Whether a task's priority is high (0), usual (1) or low (2).
pub(super) fn class_of(priority: u8) -> usize {
    match priority.cmp(&reparto_protocol::limits::DEFAULT_PRIORITY) {
        std::cmp::Ordering::Greater => 0,
        std::cmp::Ordering::Equal => 1,
        std::cmp::Ordering::Less => 2,
    }
}

impl Scheduler {
    // ---- coming, and saying what one can do ----

    /// A connection is a pull worker's.
    pub(super) fn puller_joined<'a>(
        &mut self,
        peer: Peer,
        from: Option<IpAddr>,
        effects: &mut impl Effects<'a>,
    ) {
        let client = match self.role(peer) {
            Role::None => NONE,
            Role::Client(client) => client,
            Role::Worker(_) | Role::Dual { .. } => return,
        };
        if self.workers.len() >= self.config.max_workers {
            let message = format!("there are {} workers already, the bound", self.workers.len());
            if client != NONE {
                self.forget_peer(peer);
                self.client_gone(client, effects);
            }
            effects.push(Effect::Close { peer, code: ErrorCode::Overloaded, message: message.into() });
            return;
        }
        let mut row = Worker::new(peer, "-", self.config.max_worker_bytes, self.now);
        row.puller = Some(Box::new(Puller { rest: Rest::Awake, limits: Vec::new(), from }));
        (row.threads, row.window, row.heartbeats) = (MOST_PULLED, MOST_PULLED, false);
        row.settle_room();
        let worker = self.workers.insert(row);
        self.pullers += 1;
        self.know_peer(peer, Role::Dual { client, worker });
        self.choice.join(&mut self.workers, &mut self.actions, worker, &[]);
    }

    /// A pull worker says something.
    pub(super) fn pull<'a>(&mut self, worker: u32, pull: Pull<'_>, effects: &mut impl Effects<'a>) {
        match pull {
            Pull::Grab { form } => self.grab(worker, form, effects),
            Pull::Sleep => self.sleep(worker, effects),
            Pull::Name(name) => {
                self.workers[worker].id = reparto_protocol::cut(name, NAME_BYTES).into();
            }
            Pull::CanDo { action, limit } => self.can_do(worker, action, limit, effects),
            Pull::CantDo { action } => self.cant_do(worker, action, effects),
            Pull::Reset => {
                if let Some(puller) = &mut self.workers[worker].puller {
                    puller.limits.clear();
                }
                self.offer(worker, &[], effects);
            }
        }
    }

    fn can_do<'a>(
        &mut self,
        worker: u32,
        name: &str,
        limit: Option<Duration>,
        effects: &mut impl Effects<'a>,
    ) {
        let mut offered = self.offered_by(worker);
        let known = self.find_action(name).filter(|action| offered.contains(action));
        if known.is_none() {
            let refusal = if offered.len() >= MOST_ABILITIES {
                Some(format!("a worker that asks for its tasks may offer {MOST_ABILITIES} actions"))
            } else {
                self.may_offer_too(worker, name).err()
            };
            if let Some(message) = refusal {
                return self.close_puller(worker, message.into(), effects);
            }
        }
        let Some(action) = self.action_or_new(name) else { return };
        if let Some(puller) = &mut self.workers[worker].puller {
            puller.limits.retain(|(other, _)| *other != action);
            puller.limits.extend(limit.map(|limit| (action, limit)));
        }
        if known.is_none() {
            let at = offered.binary_search(&action).unwrap_or_else(|at| at);
            offered.insert(at, action);
            self.offer(worker, &offered, effects);
        }
    }

    /// Whether there is room for one more action that this worker offers.
    fn may_offer_too(&mut self, worker: u32, name: &str) -> Result<(), String> {
        let Some(action) = self.action_or_new(name) else {
            return Err(format!("there are {} action names already, the bound", self.actions.len()));
        };
        let group = self.workers[worker].group;
        let mut set = self.choice.actions(group).to_vec();
        let at = set.binary_search(&action).unwrap_or_else(|at| at);
        set.insert(at, action);
        let (offers, bound) = (self.choice.offers_after(Some(group), &set), self.config.max_offers);
        if offers > bound {
            self.drop_idle_action(action);
            return Err(format!("workers would offer {offers} actions together, and the bound is {bound}"));
        }
        Ok(())
    }

    fn cant_do<'a>(&mut self, worker: u32, name: &str, effects: &mut impl Effects<'a>) {
        let mut offered = self.offered_by(worker);
        let Some(action) = self.find_action(name) else { return };
        if let Ok(at) = offered.binary_search(&action) {
            offered.remove(at);
            if let Some(puller) = &mut self.workers[worker].puller {
                puller.limits.retain(|(other, _)| *other != action);
            }
            self.offer(worker, &offered, effects);
        }
    }

    fn offered_by(&self, worker: u32) -> Vec<u32> {
        self.choice.actions(self.workers[worker].group).to_vec()
    }

    /// A pull worker offers these actions from now on.
    fn offer<'a>(&mut self, worker: u32, set: &[u32], effects: &mut impl Effects<'a>) {
        let old = self.offered_by(worker);
        self.choice.leave(&mut self.workers, &mut self.actions, worker);
        self.choice.join(&mut self.workers, &mut self.actions, worker, set);
        let left: Vec<u32> = old.into_iter().filter(|action| set.binary_search(action).is_err()).collect();
        for action in left {
            if matches!(self.rest_of(worker), Some(Rest::Woken(_))) {
                self.rouse(action, 1, effects);
            }
            self.drop_idle_action(action);
        }
        self.wake_if_needed(worker, effects);
    }

    fn close_puller<'a>(&mut self, worker: u32, message: Cow<'static, str>, effects: &mut impl Effects<'a>) {
        let peer = self.workers[worker].peer;
        if let Role::Dual { client, .. } = self.forget_peer(peer)
            && client != NONE
        {
            self.client_gone(client, effects);
        }
        self.worker_lost(worker, effects);
        effects.push(Effect::Close { peer, code: ErrorCode::Overloaded, message });
    }

    // ---- asking, and sleeping ----

    pub(super) fn rest_of(&self, worker: u32) -> Option<Rest> {
        self.workers[worker].puller.as_ref().map(|puller| puller.rest)
    }

    /// Changes whether a pull worker asks by itself. Gives what it was.
    fn set_rest(&mut self, worker: u32, rest: Rest) -> Option<Rest> {
        let puller = self.workers[worker].puller.as_mut()?;
        let old = std::mem::replace(&mut puller.rest, rest);
        if old == Rest::Asleep || rest == Rest::Asleep {
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        }
        Some(old)
    }

    /// A pull worker asks for a task.
    pub(super) fn grab<'a>(&mut self, worker: u32, form: u8, effects: &mut impl Effects<'a>) {
        let was_woken = matches!(self.set_rest(worker, Rest::Awake), Some(Rest::Woken(_)));
        let task = self.next_for_puller(worker);
        match task {
            Some(task) => self.hand_over_pulled(task, worker, form, effects),
            None => effects.push(Effect::NoTask { peer: self.workers[worker].peer }),
        }
        if was_woken && self.queued > 0 {
            let taken = task.map(|task| self.tasks[task].action);
            self.pass_on(worker, taken, effects);
        }
    }

    fn next_for_puller(&mut self, worker: u32) -> Option<u32> {
        if self.queued == 0 || self.stopping.is_some() || !self.workers[worker].takes_another() {
            return None;
        }
        let group = self.workers[worker].group;
        let action = match *self.choice.actions(group) {
            [action] => action,
            _ => self.next_action(group)?,
        };
        self.take(action)
    }

    /// Gives a task, which is nowhere, to the pull worker that has asked.
    pub(super) fn hand_over_pulled<'a>(
        &mut self,
        task: u32,
        worker: u32,
        form: u8,
        effects: &mut impl Effects<'a>,
    ) {
        let action = self.tasks[task].action;
        let limit = self.workers[worker].puller.as_ref().and_then(|puller| {
            puller.limits.iter().find(|(limited, _)| *limited == action).map(|(_, limit)| *limit)
        });
        if let Some(limit) = limit {
            self.tasks.extra_or_new(task).run_until = self.now.after(limit);
        }
        let peer = self.move_to(task, worker);
        if limit.is_some() && self.tasks.background(task).is_none() {
            self.wheel.clear(&mut self.tasks, task);
            let ends_by = self.tasks.ends_by(task);
            self.wheel.set(&mut self.tasks, task, ends_by);
        }
        let assignment = self.assignment_id(task);
        let number = self.tasks[task].announced_number();
        effects.assign(peer, assignment, Assignment { number, form, ..self.details(task) });
    }

    /// A task's run is over without an end: what its worker had set as its limit does not count for the next.
    pub(super) fn forget_run(&mut self, task: u32) {
        let Some(extra) = self.tasks.extra_mut(task) else { return };
        extra.progress = (0, 0);
        if std::mem::replace(&mut extra.run_until, Task::NEVER) != Task::NEVER {
            let deadline = self.tasks.deadline(task);
            self.wheel.clear(&mut self.tasks, task);
            if deadline != Task::NEVER || self.tasks.background(task).is_some() {
                self.wheel.set(&mut self.tasks, task, deadline);
            }
        }
    }

    /// A pull worker has done with an assignment.
    #[inline(never)]
    pub(super) fn puller_finished<'a>(
        &mut self,
        worker: u32,
        assignment: AssignmentId,
        finish: Finish<'_>,
        payload: Payload<'a>,
        effects: &mut impl Effects<'a>,
    ) {
        let had_all_it_may = !self.workers[worker].takes_another();
        self.finished(worker, assignment, finish, None, payload, effects);
        if had_all_it_may {
            // It may sleep, and not have been woken for that.
            self.wake_if_needed(worker, effects);
        }
    }

    /// A pull worker goes to sleep.
    fn sleep<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) {
        self.set_rest(worker, Rest::Asleep);
        self.wake_if_needed(worker, effects);
    }

    /// Wakes a pull worker that sleeps while a task waits that it could take.
    fn wake_if_needed<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) {
        if self.queued > 0 && self.stopping.is_none() && self.workers[worker].may_be_woken() {
            let group = self.workers[worker].group;
            if self.next_action(group).is_some() {
                self.wake(worker, effects);
            }
        }
    }

    /// Wakes pull workers for an action's waiting tasks: so many, or as many as sleep.
    #[inline]
    pub(super) fn rouse<'a>(&mut self, action: u32, count: usize, effects: &mut impl Effects<'a>) {
        // What waits when all stops is answered, and given to nobody.
        if self.pullers == 0 || self.stopping.is_some() {
            return;
        }
        for _ in 0..count {
            let Some(row) = self.actions.get(action).filter(|row| !row.queue.is_empty()) else { return };
            let Some(pick) = self.choice.pick_asleep(&row.offers) else { return };
            self.choice.picked(&mut self.actions, pick);
            self.wake(pick.worker, effects);
        }
    }

    #[inline(never)]
    fn wake<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) {
        self.set_rest(worker, Rest::Woken(self.now));
        if self.workers[worker].check_at == Time(u64::MAX) {
            self.set_check(worker, self.now.after(STALL));
        }
        effects.push(Effect::Wake { peer: self.workers[worker].peer });
    }

    /// A pull worker that was woken is not about to ask any more: others are woken for what it leaves waiting, of every
    /// action but the one of which it has taken a task.
    fn pass_on<'a>(&mut self, worker: u32, taken: Option<u32>, effects: &mut impl Effects<'a>) {
        let mut waiting = Vec::new();
        self.each_turn(self.workers[worker].group, |turn| waiting.push(turn.action));
        for action in waiting.into_iter().filter(|action| Some(*action) != taken) {
            self.rouse(action, 1, effects);
        }
    }

    /// Has a pull worker that was woken asked in time? Says how many tasks were looked at.
    pub(super) fn check_puller<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) -> usize {
        self.workers[worker].check_at = Time(u64::MAX);
        let Some(Rest::Woken(at)) = self.rest_of(worker) else { return 0 };
        let due = at.after(STALL);
        if due > self.now {
            self.set_check(worker, due);
        } else {
            self.set_rest(worker, Rest::Overdue);
            self.pass_on(worker, None, effects);
        }
        0
    }

    // ---- what people ask for ----

    /// Has an action be known from now on though nobody needs it. Says whether there was room for it.
    pub fn keep_action(&mut self, name: &str) -> bool {
        let Some(action) = self.action_or_new(name) else { return false };
        self.actions[action].wish.get_or_insert_default().kept = true;
        true
    }

    /// Forgets an action, unless workers offer it or tasks of it run or wait: `None` for one that is not known.
    pub fn drop_action(&mut self, name: &str) -> Option<bool> {
        let action = self.find_action(name)?;
        let row = &mut self.actions[action];
        let in_use = row.offers.workers > 0 || row.running > 0 || !row.queue.is_empty();
        if !in_use {
            row.wish = None;
            self.drop_idle_action(action);
        }
        Some(!in_use)
    }

    /// Bounds the tasks of an action that is known, for new ones of high, usual and low priority; 0 for no bound.
    pub fn bound_action(&mut self, name: &str, most: [usize; 3]) {
        if let Some(action) = self.find_action(name) {
            let wish = self.actions[action].wish.get_or_insert_default();
            wish.most = most;
            if **wish == Wish::default() {
                self.actions[action].wish = None;
                self.drop_idle_action(action);
            }
        }
    }

    /// Whether an action's queue may have another task of this priority, by what people have asked for.
    #[inline]
    pub(super) fn check_queue_limit(
        &self,
        action: u32,
        priority: u8,
    ) -> Result<(), (ErrorCode, Cow<'static, str>)> {
        let row = &self.actions[action];
        let Some(wish) = &row.wish else { return Ok(()) };
        let (held, most) = (row.queue.len() + row.running, wish.most[class_of(priority)]);
        if most == 0 || held < most {
            return Ok(());
        }
        let message = format!("there are {held} tasks of '{}', and its bound was set to {most}", row.name);
        Err((ErrorCode::QueueFull, message.into()))
    }
}
