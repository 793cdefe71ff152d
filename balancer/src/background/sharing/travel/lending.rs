//! What is lent: looking for hosts, handing tasks over, and taking back what comes of them.

use std::collections::HashSet;
use std::sync::Arc;

use reparto_protocol::{ErrorCode, cut, limits};

use super::wire::{Letter, Said, Task};
use super::{AWAY, BACK, Lent, MOST_ACTIONS, MOST_LENT, MOST_UNTAKEN, SILENT, SOON, WAITED, WITHIN};
use crate::background::{Assigned, Keeper, Outlet, Pending};
use crate::scheduler::{AssignmentId, Event, Finish, Payload, ProgressKind, Registration, Scheduler, Time};

impl Keeper {
    /// Asks, for the actions of which tasks wait here, whether anybody consumes their queues.
    pub(super) fn look_for_hosts(&mut self, scheduler: &Scheduler, now: Time) {
        let Some(sharing) = &mut self.sharing else { return };
        if !sharing.bus.has_room() || !sharing.travel.looking.is_empty() {
            return;
        }
        sharing.travel.turn = sharing.travel.turn.wrapping_add(MOST_ACTIONS);
        let turn = sharing.travel.turn;
        let actions: Vec<Arc<str>> =
            scheduler.waiting_actions(now, WAITED, turn, MOST_ACTIONS).into_iter().map(Arc::from).collect();
        for action in actions {
            // What has just found room here is not to be sent to ourselves.
            if sharing.travel.doors.contains_key(&action) {
                continue;
            }
            self.token += 1;
            let queue = sharing.travel_queue(&action);
            sharing.bus.count(self.token, queue);
            sharing.travel.looking.insert(self.token, action);
        }
    }

    /// So many messages are in an action's queue, and so many consumers have room for them.
    pub(in crate::background::sharing) fn queue_counted<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        token: u64,
        (messages, consumers): (u32, u32),
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        let Some(action) = sharing.travel.looking.remove(&token) else { return };
        if consumers == 0 || self.stopping {
            return;
        }
        let travel = &mut sharing.travel;
        let untaken =
            travel.lent.values().filter(|lent| lent.host.is_none() && lent.action == action).count();
        let waiting = untaken.max(usize::try_from(messages).unwrap_or(usize::MAX));
        let most = MOST_UNTAKEN.saturating_sub(waiting);
        if most == 0 {
            return;
        }
        let others = travel.others;
        if !std::mem::replace(&mut travel.has_registered, true) {
            let registration = Registration {
                request: 0,
                worker_id: "other balancers",
                threads: MOST_LENT,
                window: MOST_LENT,
                weight: 1,
                service_ns: None,
                heartbeats: true,
                actions: Vec::new(),
                held: Vec::new(),
            };
            scheduler.handle(now, Event::Register { peer: others, registration }, out);
        }
        if scheduler.lend(now, others, &action, (WAITED, most), out) > 0 {
            // There may be more of it soon.
            sharing.look_at = sharing.look_at.min(now.after(SOON));
        }
    }

    /// The scheduler has lent a task: it is put into its action's queue.
    pub(in crate::background) fn lend_out(
        &mut self,
        now: Time,
        assignment: AssignmentId,
        task: Assigned,
        priority: u8,
    ) {
        let token = self.token(Pending::Republish);
        let Some(sharing) = &mut self.sharing else { return };
        let queue = sharing.travel_queue(&task.action);
        let lent = Lent { action: Arc::clone(&task.action), since: now, host: None };
        let task = Task {
            number: assignment.0,
            lender: Arc::clone(&sharing.travel.inbox),
            action: task.action,
            priority,
            attempt: task.attempt,
            deadline: task.deadline.map(|deadline| deadline.since(now)),
            payload: task.payload,
        };
        sharing.bus.publish(token, task.message(queue, WITHIN));
        sharing.travel.lent.insert(assignment, lent);
    }

    /// A host says something about a task that is lent, or was.
    pub(super) fn heard_of_lent<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        host: &Arc<str>,
        assignment: AssignmentId,
        said: Said,
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        let Some(lent) = sharing.travel.lent.get_mut(&assignment) else {
            // Nobody here waits for it any more.
            if said == Said::Taken {
                self.write_cancel(host, assignment);
            }
            return;
        };
        sharing.travel.heard.insert(Arc::clone(host), now);
        let peer = sharing.travel.others;
        let too_large;
        let event = match &said {
            Said::Taken => {
                lent.host = Some(Arc::clone(host));
                scheduler.lent_is_taken(now, assignment);
                return;
            }
            Said::Progress { done, total, payload } => {
                let (done, total) = (*done, *total);
                // Parts and warnings, which only Gearman's workers send, travel as reports.
                let kind = ProgressKind::Report;
                Event::Progress { peer, assignment, kind, done, total, payload: payload.into() }
            }
            Said::Done(result) if result.len() > self.max_payload => {
                let (bytes, most) = (result.len(), self.max_payload);
                too_large =
                    format!("its result has {bytes} bytes, and {most} is the limit here (--max-frame)");
                let (finish, payload) = (Finish::Failed(&too_large), Payload::EMPTY);
                Event::Finished { peer, assignment, finish, service_ns: None, payload }
            }
            Said::Done(result) => {
                let (finish, payload) = (Finish::Done, result.into());
                Event::Finished { peer, assignment, finish, service_ns: None, payload }
            }
            Said::Failed { code, message, payload } => {
                let finish = match code {
                    ErrorCode::WorkerFailed | ErrorCode::PayloadTooLarge => Finish::Failed(message),
                    ErrorCode::AttemptsExhausted => Finish::Retry(message),
                    // It was not run there.
                    _ => return self.comes_back(scheduler, now, assignment, out),
                };
                Event::Finished { peer, assignment, finish, service_ns: None, payload: payload.into() }
            }
            Said::Cancel => return,
        };
        if !matches!(said, Said::Progress { .. }) {
            sharing.travel.lent.remove(&assignment);
        }
        scheduler.handle(now, event, out);
    }

    /// A host has named all that it has of ours.
    pub(super) fn host_is_alive<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        host: &Arc<str>,
        numbers: &[u64],
        out: &mut E,
    ) {
        let named: HashSet<AssignmentId> = numbers.iter().copied().map(AssignmentId).collect();
        let Some(sharing) = &mut self.sharing else { return };
        sharing.travel.heard.insert(Arc::clone(host), now);
        let is_its = |lent: &Lent| lent.host.as_ref() == Some(host);
        let lent = &sharing.travel.lent;
        let mut forgotten: Vec<AssignmentId> =
            lent.iter().filter(|(id, lent)| is_its(lent) && !named.contains(id)).map(|(id, _)| *id).collect();
        forgotten.sort_unstable();
        let unwanted: Vec<AssignmentId> = named.iter().filter(|id| !lent.contains_key(id)).copied().collect();
        for assignment in named {
            self.heard_of_lent(scheduler, now, host, assignment, Said::Taken, out);
        }
        for assignment in unwanted {
            self.write_cancel(host, assignment);
        }
        // Its answer would have come before.
        for assignment in forgotten {
            self.is_lost(
                scheduler,
                now,
                assignment,
                "the balancer that had it does not have it any more",
                out,
            );
        }
    }

    /// Takes back what nobody took, and what its host has been silent about for too long.
    pub(super) fn look_at_lent<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let Some(sharing) = &self.sharing else { return };
        let travel = &sharing.travel;
        let is_away = now >= travel.well_at.after(AWAY);
        let heard = |host: &Arc<str>| travel.heard.get(host).copied().unwrap_or_default();
        let (mut back, mut lost) = (Vec::new(), Vec::new());
        for (assignment, lent) in &travel.lent {
            match &lent.host {
                None if is_away || now >= lent.since.after(WITHIN).after(BACK) => back.push(*assignment),
                Some(_) if is_away => lost.push((*assignment, "RabbitMQ, over which it was lent, is away")),
                // Nobody is heard while RabbitMQ is away.
                Some(host) if now >= heard(host).max(travel.well_since).after(SILENT) => {
                    lost.push((*assignment, "the balancer that had it is silent"));
                }
                _ => {}
            }
        }
        back.sort_unstable();
        lost.sort_unstable();
        // The oldest comes to stand at the head of its queue.
        for assignment in back.into_iter().rev() {
            self.comes_back(scheduler, now, assignment, out);
        }
        for (assignment, why) in lost {
            self.is_lost(scheduler, now, assignment, why, out);
        }
        let Some(sharing) = &mut self.sharing else { return };
        // Of hosts that have nothing of ours nothing is kept: each start of a balancer is another one.
        let hosts: HashSet<&Arc<str>> =
            sharing.travel.lent.values().filter_map(|lent| lent.host.as_ref()).collect();
        sharing.travel.heard.retain(|host, _| hosts.contains(host));
    }

    fn comes_back<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        assignment: AssignmentId,
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.travel.lent.remove(&assignment).is_some() {
            scheduler.lent_comes_back(now, sharing.travel.others, assignment, out);
        }
    }

    fn is_lost<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        assignment: AssignmentId,
        why: &str,
        out: &mut E,
    ) {
        let finish = Finish::Retry(cut(why, limits::MAX_MESSAGE_BYTES));
        self.end_lent(scheduler, now, (assignment, finish), out);
    }

    /// A task is lent no more, and what was to become of it its host has not said. Gives what was known of it.
    fn end_lent<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (assignment, finish): (AssignmentId, Finish<'_>),
        out: &mut E,
    ) -> Option<Lent> {
        let travel = &mut self.sharing.as_mut()?.travel;
        let lent = travel.lent.remove(&assignment)?;
        let (peer, payload) = (travel.others, Payload::EMPTY);
        scheduler.handle(now, Event::Finished { peer, assignment, finish, service_ns: None, payload }, out);
        Some(lent)
    }

    /// Nobody here wants a lent task any more.
    pub(in crate::background) fn withdraw_lent<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        assignment: AssignmentId,
        out: &mut E,
    ) {
        let lent = self.end_lent(scheduler, now, (assignment, Finish::NotRun), out);
        if let Some(host) = lent.and_then(|lent| lent.host) {
            self.write_cancel(&host, assignment);
        }
    }

    fn write_cancel(&mut self, host: &Arc<str>, assignment: AssignmentId) {
        let token = self.token(Pending::Republish);
        let Some(sharing) = &mut self.sharing else { return };
        let from = Arc::clone(&sharing.travel.inbox);
        sharing.write(token, host, Letter::About { from, number: assignment.0, said: Said::Cancel });
    }
}
