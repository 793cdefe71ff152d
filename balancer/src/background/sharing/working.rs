//! The keeper's work where it shares: from the bus through the store into the scheduler, and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{AHEAD, LOOK, SWEEP, SWEPT, Sharing};
use reparto_protocol::limits;

use crate::background::{Assigned, Keeper, Look, Outlet, Pending, Tie, wall_clock};
use crate::bus::{BusEvent, Tag};
use crate::scheduler::{AssignmentId, Event, Peer, Scheduler, Time};
use crate::storage::{Answer, Heard, NewTask, Operation, StoreError, StoredTask, TaskId, ToPublish};

impl Keeper {
    /// Whether another task may be taken in, as far as the bus is concerned. The reason if not.
    pub(in crate::background) fn bus_is_full(&self) -> Option<String> {
        let bus = &self.sharing.as_ref()?.bus;
        if bus.has_room() {
            return None;
        }
        let status = bus.status();
        let why = status.trouble.map_or_else(String::new, |(reason, _)| format!(": {reason}"));
        Some(format!(
            "{} tasks wait to be published and no more are taken until some are{why}",
            status.unconfirmed
        ))
    }

    /// Publishes a task that was accepted; its client is told once that is confirmed. Says whether it is to be published.
    pub(in crate::background) fn publish_accepted(
        &mut self,
        (peer, id, client): (Peer, u64, Tie),
        task: &NewTask,
    ) -> bool {
        if self.sharing.is_none() || task.due_at.is_some() {
            return false;
        }
        let to_publish = ToPublish { id: task.id, action: task.action.clone(), priority: task.priority };
        self.publish(&to_publish, Pending::Publish { peer, id, task: task.id, client });
        true
    }

    fn publish(&mut self, task: &ToPublish, pending: Pending) {
        let token = self.token(pending);
        if let Some(sharing) = &mut self.sharing {
            sharing.publish(token, task);
        }
    }

    /// Takes what has come from the bus and from other balancers, and does what is due.
    pub(in crate::background) fn share<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        for event in sharing.take_events() {
            self.take_bus_event(scheduler, now, event, out);
        }
        self.end_posted(scheduler, now, out);
        self.take_arrived(scheduler, now, out);
        self.hear(scheduler, now, out);
        self.bring_in_delayed(scheduler, now, out);
        if self.stopping {
            return self.go_on_travelling(scheduler, now, out);
        }
        self.look_at_room(scheduler, now, out);
        self.take_in();
        self.sweep(now);
    }

    fn take_bus_event<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        event: BusEvent,
        out: &mut E,
    ) {
        let is_lost = matches!(event, BusEvent::Unroutable(_));
        match event {
            BusEvent::Counted { token, messages, consumers } => {
                self.queue_counted(scheduler, now, token, (messages, consumers), out);
            }
            BusEvent::Confirmed(token) | BusEvent::Unroutable(token) => match self.pending.remove(&token) {
                Some(Pending::Publish { peer, id, task, client }) => {
                    self.tell_accepted(scheduler, now, (peer, id, client), task, false, out);
                }
                Some(Pending::Bury { tag }) => {
                    if let Some(sharing) = &mut self.sharing {
                        sharing.bus.take(tag);
                    }
                }
                Some(Pending::Tell { id }) => self.told(id),
                Some(Pending::Post { assignment }) => self.posted(scheduler, now, assignment, out),
                Some(Pending::Home { lender }) if is_lost => {
                    self.lender_is_gone(scheduler, now, &lender, out);
                }
                Some(Pending::Home { .. }) => {}
                Some(Pending::Republish) | None => {}
                Some(other) => log::debug!("a confirmation is no reply to {other:?}"),
            },
            BusEvent::Delivered(delivery) => {
                if let Some(sharing) = &mut self.sharing {
                    sharing.delivered(now, delivery);
                }
            }
            BusEvent::Lost => {
                if let Some(sharing) = &mut self.sharing {
                    sharing.connection_lost();
                }
            }
        }
    }

    /// Takes what other balancers have told.
    fn hear<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let Some(sharing) = &self.sharing else { return };
        let mut heard: Vec<Heard> = sharing.heard.heard.try_iter().collect();
        if sharing.heard.missed.swap(false, Ordering::AcqRel) {
            heard.push(Heard::Gap);
        }
        for heard in heard {
            match heard {
                Heard::Ended(ids) => {
                    ids.into_iter().for_each(|id| self.ended_elsewhere(scheduler, now, id, out))
                }
                Heard::Gap => {
                    for number in self.waits.all() {
                        if let Some(task) = self.waits.get(number).map(|wait| wait.task) {
                            self.look(task, Look::Outcome(number), out);
                        }
                    }
                }
            }
        }
    }

    /// A task has ended at another balancer, or by its hand: whoever waits is told, and it runs here no longer.
    fn ended_elsewhere<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, id: TaskId, out: &mut E) {
        for number in self.waits.for_task(id) {
            self.look(id, Look::Outcome(number), out);
        }
        if self.sharing.as_ref().is_some_and(|sharing| sharing.held.contains_key(&id)) {
            self.withdraw(scheduler, now, id, out);
        }
    }

    // ---- how much is here ----

    fn look_at_room<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        if self.sharing.as_ref().is_none_or(|sharing| now < sharing.look_at) {
            return;
        }
        let takes = self.takes_in();
        let Some(sharing) = &mut self.sharing else { return };
        sharing.look_at = now.after(LOOK);
        sharing.look_at_intakes(now, takes);
        let too_many = sharing.look(now, &scheduler.room_ahead(AHEAD));
        for (action, keep) in too_many {
            self.hand_back(scheduler, now, &action, keep, out);
        }
        self.look_at_posts(scheduler, now, out);
        self.look_at_travel(scheduler, now, out);
    }

    /// The scheduler has given a task to a worker that is a part of this balancer.
    pub(in crate::background) fn assigned(
        &mut self,
        scheduler: &Scheduler,
        now: Time,
        assignment: AssignmentId,
        task: Assigned,
    ) {
        if self.is_others(task.peer) {
            let priority = scheduler.priority(assignment).unwrap_or(limits::DEFAULT_PRIORITY);
            self.lend_out(now, assignment, task, priority);
        } else {
            self.post(now, assignment, &task);
        }
    }

    /// Nobody wants a task any more that such a worker was given.
    pub(in crate::background) fn assignment_withdrawn<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (peer, assignment): (Peer, AssignmentId),
        out: &mut E,
    ) {
        if self.is_others(peer) {
            self.withdraw_lent(scheduler, now, assignment, out);
        } else {
            self.withdraw_post(scheduler, now, (peer, assignment), out);
        }
    }

    fn is_others(&self, peer: Peer) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.travel.is_others(peer))
    }

    /// Gives tasks of an action that wait here back to the bus, the newest first, until so many are left.
    fn hand_back<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        action: &str,
        keep: usize,
        out: &mut E,
    ) {
        let Some(sharing) = &self.sharing else { return };
        let here = sharing.held.iter().filter(|(_, held)| &*held.action == action && held.owner.is_some());
        let here = here.filter(|(id, _)| scheduler.background_runs(&id.0) == Some(false));
        let mut waiting: Vec<(TaskId, u8)> = here.map(|(id, held)| (*id, held.priority)).collect();
        waiting.sort_unstable();
        let all = sharing.courses.get(action).map_or(0, |course| course.held);
        let most = all.saturating_sub(keep).min(SWEPT);
        for (id, priority) in waiting.into_iter().rev().take(most) {
            self.withdraw(scheduler, now, id, out);
            self.release(ToPublish { id, action: action.into(), priority });
        }
    }

    /// A task that this balancer owns is not in the scheduler any more, and is left to whoever claims it. Says whether
    /// it is so: without a bus nothing is.
    pub(in crate::background) fn give_up(&mut self, id: TaskId) -> bool {
        let Some(held) = self.sharing.as_ref().and_then(|sharing| sharing.held.get(&id)) else {
            return false;
        };
        self.release(ToPublish { id, action: Arc::clone(&held.action), priority: held.priority });
        true
    }

    /// Gives a task that is not in the scheduler back to the bus.
    fn release(&mut self, task: ToPublish) {
        if let Some(sharing) = &mut self.sharing {
            sharing.left(task.id);
        }
        self.request(Operation::Release { id: task.id }, Pending::Release(task));
    }

    // ---- claims ----

    /// Has the store claim tasks whose messages have come, as many as there is room for.
    pub(in crate::background) fn claim_what_waits(&mut self) {
        if self.stopping || self.is_behind() || self.failure().is_some() {
            return;
        }
        while let Some((id, tag)) = self.sharing.as_mut().and_then(|sharing| sharing.next_to_claim()) {
            self.request(
                Operation::Claim { id, named: false },
                Pending::Claim { id, from: Claimant::Bus(tag) },
            );
        }
    }

    /// A worker that comes back has named a task that is not known here.
    pub(in crate::background) fn claim_for(&mut self, peer: Peer, id: TaskId) {
        self.request(
            Operation::Claim { id, named: true },
            Pending::Claim { id, from: Claimant::Worker(peer) },
        );
    }

    /// The store has answered a claim.
    pub(in crate::background) fn claimed<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (id, from): (TaskId, Claimant),
        answer: Answer,
        out: &mut E,
    ) {
        if let (Claimant::Bus(tag), Some(sharing)) = (from, &mut self.sharing) {
            sharing.bus.take(tag);
        }
        let is_here = scheduler.background_runs(&id.0).is_some() || self.loading.contains(&id);
        match (answer, from) {
            (Answer::Claimed { task, owner }, _) if !is_here => {
                self.own_number(scheduler, now, owner, out);
                if let Some(sharing) = &mut self.sharing {
                    sharing.owned(&task, owner);
                }
                let holder = match from {
                    Claimant::Bus(_) => None,
                    Claimant::Worker(peer) => Some(peer),
                };
                self.enter(scheduler, now, *task, holder, out);
            }
            (answer, from) => {
                if !is_here && let Some(sharing) = &mut self.sharing {
                    sharing.left(id);
                }
                log::trace!("{id} is not claimed: {answer:?}");
                if let Claimant::Worker(peer) = from {
                    scheduler.handle(now, Event::Unclaimed { peer, id: id.0 }, out);
                }
            }
        }
    }

    /// The store could not claim.
    pub(in crate::background) fn claim_failed<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (id, from): (TaskId, Claimant),
        out: &mut E,
    ) {
        if let Some(sharing) = &mut self.sharing {
            sharing.left(id);
            if let Claimant::Bus(tag) = from {
                sharing.bus.give_back(tag);
            }
        }
        if let Claimant::Worker(peer) = from {
            scheduler.handle(now, Event::Unclaimed { peer, id: id.0 }, out);
        }
    }

    /// Under another number than before, what was held before is not this balancer's any more.
    fn own_number<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, owner: i64, out: &mut E) {
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.owner.replace(owner).is_none_or(|was| was == owner) {
            return;
        }
        for id in sharing.lost(owner) {
            self.withdraw(scheduler, now, id, out);
        }
    }

    fn bring_in_delayed<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        while let Some(sharing) = &mut self.sharing
            && sharing.delayed.front().is_some_and(|(at, _, _)| *at <= now)
            && let Some((_, task, holder)) = sharing.delayed.pop_front()
        {
            // It may have been cancelled, or lost, meanwhile.
            if sharing.held.contains_key(&task.task.id) {
                self.enter(scheduler, now, *task, holder, out);
            }
        }
    }

    // ---- what lies between the balancers ----

    fn sweep(&mut self, now: Time) {
        let due = self.next_due.is_some_and(|due| due <= wall_clock());
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.is_sweeping || (now < sharing.sweep_at && !due) {
            return;
        }
        (sharing.is_sweeping, sharing.sweep_at) = (true, now.after(SWEEP));
        let limit = if sharing.bus.has_room() { SWEPT } else { 0 };
        self.next_due = None;
        self.request(Operation::Sweep { now: wall_clock(), limit }, Pending::Sweep);
    }

    /// The store has swept.
    pub(in crate::background) fn swept<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        answer: Result<Answer, StoreError>,
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        sharing.is_sweeping = false;
        let Ok(Answer::Swept { owner, to_publish, expired, owed, next_due, more }) = answer else { return };
        if more && sharing.bus.has_room() {
            sharing.sweep_at = now;
        }
        if let Some(due) = next_due {
            self.due_at(due);
        }
        self.own_number(scheduler, now, owner, out);
        for task in to_publish {
            self.publish(&task, Pending::Republish);
        }
        for id in expired {
            self.ended_elsewhere(scheduler, now, id, out);
        }
        self.tell_what_is_owed(owed, out);
    }

    /// A task was released, revived, or otherwise left to whoever claims it.
    pub(in crate::background) fn publish_again(&mut self, task: &ToPublish) {
        self.publish(task, Pending::Republish);
    }

    /// A task that was to be brought in and could not be.
    pub(in crate::background) fn put_aside(&mut self, now: Time, stored: StoredTask, holder: Option<Peer>) {
        if let Some(sharing) = &mut self.sharing {
            sharing.delay(now, Box::new(stored), holder);
        }
    }
}

/// Who claims a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::background) enum Claimant {
    /// Its message was delivered.
    Bus(Tag),
    /// A worker has named it.
    Worker(Peer),
}

impl Sharing {
    /// Whether what is published can be confirmed now.
    pub(in crate::background) fn confirms(&self) -> bool {
        self.bus.status().trouble.is_none()
    }

    /// Whether all that was published is confirmed.
    pub(in crate::background) fn is_quiet(&self) -> bool {
        self.bus.status().unconfirmed == 0
    }
}
