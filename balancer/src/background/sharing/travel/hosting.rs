//! What is hosted: tasks that other balancers have lent, taken in while there is room, and answered to where they came
//! from.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use reparto_protocol::{ErrorCode, cut};

use super::super::Sharing;
use super::wire::{Letter, Said, Task};
use super::{ALIVE, AtDoor, Guest};
use crate::background::{Answered, Keeper, Outlet, Pending};
use crate::bus::Delivery;
use crate::scheduler::{Event, Payload, RAN_TOO_LONG, Scheduler, Submission, THE_LAST_ONE, Time};

/// How long a task that was lent to this balancer waits for a worker here. There was one when it came.
const WAIT: std::time::Duration = std::time::Duration::from_secs(5);
/// How long a lent task that has come waits for room, before it goes back for others to take.
const AT_DOOR: std::time::Duration = std::time::Duration::from_millis(200);
/// Messages on their way to a door, at least and at most: more than there is room for, lest each short task wait for the
/// one before it to be acknowledged.
const LEAST_PREFETCHED: usize = 16;
const MOST_PREFETCHED: usize = 64;
/// Longest reason that travels, in bytes.
const MOST_REASON: usize = 4000;

impl Sharing {
    /// Opens the doors of the actions that there is room for, and closes the others.
    pub(super) fn look_at_doors(&mut self, scheduler: &Scheduler) {
        let room: HashMap<&str, usize> =
            scheduler.free_room().into_iter().filter(|(_, room)| *room > 0).collect();
        let waited_at: HashSet<Arc<str>> =
            self.travel.at_doors.iter().map(|task| Arc::clone(&task.action)).collect();
        let is_open = |action: &Arc<str>| room.contains_key(&**action) || waited_at.contains(action);
        let closed: Vec<Arc<str>> =
            self.travel.doors.keys().filter(|action| !is_open(action)).cloned().collect();
        closed.iter().for_each(|action| self.close_door(action));
        for (action, room) in room {
            if !self.travel.doors.contains_key(action) {
                self.next_consumer += 1;
                let prefetch = u16::try_from(room.clamp(LEAST_PREFETCHED, MOST_PREFETCHED)).unwrap_or(1);
                self.bus.begin(self.next_consumer, self.travel_queue(action), prefetch);
                self.travel.doors.insert(action.into(), self.next_consumer);
            }
        }
    }

    fn close_door(&mut self, action: &str) {
        if let Some(consumer) = self.travel.doors.remove(action) {
            self.bus.end(consumer);
        }
    }

    /// Lets nothing in any more.
    pub(in crate::background::sharing) fn close_doors(&mut self) {
        for (_, consumer) in self.travel.doors.drain() {
            self.bus.end(consumer);
        }
        for task in self.travel.at_doors.drain(..) {
            self.bus.give_back(task.delivery.tag);
        }
    }

    /// A lent task has come. It waits for room for a moment.
    pub(super) fn at_door(&mut self, now: Time, delivery: Delivery) {
        let mut doors = self.travel.doors.iter();
        match doors.find(|(_, consumer)| **consumer == delivery.consumer) {
            Some((action, _)) => {
                let action = Arc::clone(action);
                self.travel.at_doors.push_back(AtDoor { since: now, action, delivery });
            }
            None => self.bus.give_back(delivery.tag),
        }
    }
}

impl Keeper {
    /// Takes in the lent tasks that there is room for; those that have found none go back to their queue, for others.
    pub(super) fn let_in<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let waiting = self.sharing.as_ref().map_or(0, |sharing| sharing.travel.at_doors.len());
        for _ in 0..waiting {
            let Some(sharing) = &mut self.sharing else { return };
            let Some(task) = sharing.travel.at_doors.pop_front() else { return };
            if scheduler.has_room_for(&task.action) {
                self.welcome(scheduler, now, &task, out);
            } else if now >= task.since.after(AT_DOOR) {
                sharing.close_door(&task.action);
                sharing.bus.give_back(task.delivery.tag);
            } else {
                sharing.travel.at_doors.push_back(task);
            }
        }
    }

    pub(super) fn welcome<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        arrived: &AtDoor,
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        sharing.bus.take(arrived.delivery.tag);
        let Some(task) = Task::read(&arrived.delivery) else {
            return log::warn!("a message in the queue of '{}' is no task, and is dropped", arrived.action);
        };
        let travel = &mut sharing.travel;
        let origin = (Arc::clone(&task.lender), task.number);
        if travel.by_origin.contains_key(&origin) {
            // Its message has come twice.
            return;
        }
        if task.payload.len() > self.max_payload {
            // No balancer with this limit can run it, and its lender would lend it again and again.
            let (bytes, most) = (task.payload.len(), self.max_payload);
            let message =
                format!("it has {bytes} bytes, and {most} is the limit (--max-frame) where it was lent to");
            let said = Said::Failed { code: ErrorCode::PayloadTooLarge, message, payload: Bytes::new() };
            return self.write_home(&task.lender, task.number, said);
        }
        travel.next_guest += 1;
        let id = travel.next_guest;
        travel.guests.insert(id, Guest { lender: Arc::clone(&task.lender), number: task.number });
        travel.by_origin.insert(origin, id);
        let peer = travel.guests_of;
        if !std::mem::replace(&mut travel.has_joined, true) {
            scheduler.handle(now, Event::ClientJoined { peer }, out);
        }
        self.write_home(&task.lender, task.number, Said::Taken);
        let submission = Submission {
            priority: task.priority,
            deadline: task.deadline,
            wait: Some(WAIT),
            ..Submission::new(id, &task.action, Payload::from(&task.payload))
        };
        scheduler.host(now, peer, submission, task.attempt, out);
    }

    /// Says something to a task's lender.
    fn write_home(&mut self, lender: &Arc<str>, number: u64, said: Said) {
        let token = self.token(Pending::Home { lender: Arc::clone(lender) });
        let Some(sharing) = &mut self.sharing else { return };
        let from = Arc::clone(&sharing.travel.inbox);
        sharing.write(token, lender, Letter::About { from, number, said });
    }

    /// A hosted task has ended.
    pub(in crate::background) fn guest_has_ended(&mut self, id: u64, answered: Answered) {
        let Some(sharing) = &mut self.sharing else { return };
        let Some(Guest { lender, number }) = sharing.travel.guests.remove(&id) else { return };
        sharing.travel.by_origin.remove(&(Arc::clone(&lender), number));
        let said = match answered {
            Answered::Done(result) => Said::Done(result),
            Answered::Failed { code, message, payload } => {
                // It has run, so it must not come back to its lender as if it had not.
                let has_run = code == ErrorCode::Expired && message == RAN_TOO_LONG;
                let code = if has_run { ErrorCode::WorkerFailed } else { code };
                // How many attempts there were its lender says.
                let why = message.split_once(THE_LAST_ONE).filter(|_| code == ErrorCode::AttemptsExhausted);
                let message = why.map_or(&*message, |(_, why)| why);
                Said::Failed { code, message: cut(message, MOST_REASON).to_owned(), payload }
            }
        };
        self.write_home(&lender, number, said);
    }

    /// A hosted task's worker says how far it is. That may be left out.
    pub(in crate::background) fn guest_goes_on(
        &mut self,
        id: u64,
        (done, total): (u64, u64),
        payload: Bytes,
    ) {
        let Some(sharing) = &self.sharing else { return };
        let Some(guest) = sharing.travel.guests.get(&id).filter(|_| sharing.bus.has_room()) else { return };
        let (lender, number) = (Arc::clone(&guest.lender), guest.number);
        self.write_home(&lender, number, Said::Progress { done, total, payload });
    }

    /// A lender does not want its task any more.
    pub(super) fn guest_is_cancelled<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        origin: (Arc<str>, u64),
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        if let Some(id) = sharing.travel.by_origin.get(&origin) {
            let peer = sharing.travel.guests_of;
            scheduler.handle(now, Event::Cancel { peer, id: *id }, out);
        }
    }

    /// A lender is gone, and with it all who wait for its tasks.
    pub(in crate::background::sharing) fn lender_is_gone<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        lender: &Arc<str>,
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        let travel = &mut sharing.travel;
        let its: Vec<u64> =
            travel.guests.iter().filter(|(_, guest)| guest.lender == *lender).map(|(id, _)| *id).collect();
        for id in its {
            if let Some(guest) = travel.guests.remove(&id) {
                travel.by_origin.remove(&(guest.lender, guest.number));
            }
            scheduler.handle(now, Event::Cancel { peer: travel.guests_of, id }, out);
        }
    }

    /// Tells each lender which of its tasks are here.
    pub(super) fn say_alive(&mut self, now: Time) {
        let Some(sharing) = &mut self.sharing else { return };
        if now < sharing.travel.alive_at || !sharing.bus.has_room() {
            return;
        }
        sharing.travel.alive_at = now.after(ALIVE);
        let mut of: HashMap<Arc<str>, Vec<u64>> = HashMap::new();
        for guest in sharing.travel.guests.values() {
            of.entry(Arc::clone(&guest.lender)).or_default().push(guest.number);
        }
        for (lender, numbers) in of {
            let token = self.token(Pending::Home { lender: Arc::clone(&lender) });
            let Some(sharing) = &mut self.sharing else { return };
            let from = Arc::clone(&sharing.travel.inbox);
            sharing.write(token, &lender, Letter::Alive { from, numbers });
        }
    }
}
