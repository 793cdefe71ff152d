//! What the keeper gives to the store to be made durable, and what of it the store has not taken yet.
//!
//! A store takes so much and no more. What it does not take waits here, in order and bounded; while it does, nothing new
//! begins that would have to be recorded. A store that has failed for good takes nothing any more: then everybody who
//! waits for it is told.

use std::collections::VecDeque;

use reparto_protocol::ErrorCode;

use super::{Keeper, Outlet, Pending, Tie, fail};
use crate::scheduler::{Scheduler, Time};
use crate::storage::{Operation, Request, Storage, StoreError, SubmitError, TaskId};

/// Records that wait to be written because the store takes no more, in bytes. Beyond it outcomes are left out: their
/// tasks stay open in the store, and run again.
const MOST_HELD_BACK_BYTES: usize = 256 << 20;
/// New tasks among them: those of a burst wait while the store writes what it has. Beyond it they are refused.
const MOST_HELD_BACK_TASKS: usize = 65_536;
/// Bytes held back beyond which new tasks are refused.
const HELD_BACK_BYTES_FOR_TASKS: usize = 64 << 20;
/// Requests that were held back and are given to the store together; what it does not take of them goes back.
const HANDED_OVER_AT_ONCE: usize = 256;

/// Requests on their way to the store, in order.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Said since the last hand-over.
    new: Vec<Request>,
    /// What the store took no more of, to be written before those.
    held_back: VecDeque<Request>,
    /// Bytes of what is held back.
    bytes: usize,
    /// New tasks in what is held back.
    tasks: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, request: Request) {
        self.new.push(request);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.new.is_empty() && self.held_back.is_empty()
    }

    /// What is held back: how many requests, and their bytes.
    pub(super) fn held_back(&self) -> (usize, usize) {
        (self.held_back.len(), self.bytes)
    }

    /// Whether the record of so many bytes more may wait here.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= MOST_HELD_BACK_BYTES
    }

    /// Whether so much waits that new tasks are refused.
    fn is_full_for_tasks(&self) -> bool {
        self.tasks >= MOST_HELD_BACK_TASKS
            || self.bytes >= HELD_BACK_BYTES_FOR_TASKS
            || self.new.len() >= MOST_HELD_BACK_TASKS
    }

    /// Gives the store as much as it takes.
    fn hand_to(&mut self, storage: &Storage) -> Result<(), SubmitError> {
        let mut outcome = Ok(());
        while outcome.is_ok() && !self.held_back.is_empty() {
            let count = storage.room_for_requests().min(self.held_back.len()).min(HANDED_OVER_AT_ONCE);
            let mut batch: Vec<Request> = self.held_back.drain(..count).collect();
            let before = sizes(&batch);
            outcome = storage.try_submit(&mut batch);
            let after = sizes(&batch);
            self.bytes -= before.0 - after.0;
            self.tasks -= before.1 - after.1;
            let taken_whole = batch.is_empty() && count > 0;
            while let Some(request) = batch.pop() {
                self.held_back.push_front(request);
            }
            if !taken_whole {
                break;
            }
        }
        if self.held_back.is_empty() {
            outcome = storage.try_submit(&mut self.new);
        }
        outcome
    }

    /// Holds back what the store did not take.
    fn hold_back(&mut self) {
        let (bytes, tasks) = sizes(&self.new);
        self.bytes += bytes;
        self.tasks += tasks;
        self.held_back.extend(self.new.drain(..));
    }

    /// Takes the new tasks out of what is held back.
    fn take_new_tasks(&mut self) -> Vec<Request> {
        if self.tasks == 0 {
            return Vec::new();
        }
        let (tasks, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.held_back).into_iter().partition(is_new_task);
        self.held_back = others.into();
        (self.bytes, self.tasks) = (self.held_back.iter().map(|request| request.operation.memory()).sum(), 0);
        tasks
    }

    /// Takes everything.
    fn take_all(&mut self) -> impl Iterator<Item = Request> + use<> {
        let Outgoing { new, held_back, .. } = std::mem::take(self);
        held_back.into_iter().chain(new)
    }
}

/// The bytes of requests, and how many of them are new tasks.
fn sizes(requests: &[Request]) -> (usize, usize) {
    let bytes = requests.iter().map(|request| request.operation.memory()).sum();
    (bytes, requests.iter().filter(|request| is_new_task(request)).count())
}

fn is_new_task(request: &Request) -> bool {
    matches!(request.operation, Operation::Accept(_))
}

impl Keeper {
    /// Gives the store what it is to make durable, in order. What it does not take now waits here.
    pub(super) fn hand_over<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let Some(storage) = &self.storage else { return };
        let outcome = self.outgoing.hand_to(storage);
        if storage.failure().is_some() {
            let refused = outcome.map_or_else(|error| error.to_string(), |()| self.trouble());
            return self.give_up_requests(scheduler, now, &refused, out);
        }
        if self.outgoing.is_empty() {
            return;
        }
        // A store that only has much to do takes them in a moment.
        let refused = match outcome {
            Err(error @ SubmitError::Stopped { .. }) => Some(error.to_string()),
            _ => storage.trouble().map(|_| self.trouble()),
        };
        self.outgoing.hold_back();
        if let Some(refused) = refused {
            self.refuse_held_back(&refused, out);
        }
    }

    /// Refuses the new tasks among what is held back.
    fn refuse_held_back<E: Outlet>(&mut self, why: &str, out: &mut E) {
        for request in self.outgoing.take_new_tasks() {
            match self.pending.remove(&request.token) {
                Some(Pending::Accept { peer, id, task, client }) => {
                    self.ties -= usize::from(client != Tie::None);
                    fail(out, peer, id, ErrorCode::StoreUnavailable, why.to_owned());
                    self.tell_not_taken(task.id, ErrorCode::StoreUnavailable, why, out);
                }
                Some(Pending::TakeIn { delivery, .. }) => self.hand_back_delivery(delivery.tag),
                _ => {}
            }
        }
    }

    /// Whether the store has not taken yet all that it was to be given.
    pub(super) fn is_behind(&self) -> bool {
        !self.outgoing.held_back.is_empty()
    }

    /// Why no new task is taken in now, if that is so.
    pub(super) fn refuses_tasks(&self) -> Option<String> {
        if !self.is_behind() {
            return None;
        }
        let has_trouble = self.storage.as_ref().is_some_and(|storage| storage.trouble().is_some());
        (self.outgoing.is_full_for_tasks() || has_trouble).then(|| self.trouble())
    }

    /// The store takes nothing any more, for good. Clients are told; what was to be recorded is open there.
    fn give_up_requests<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        refused: &str,
        out: &mut E,
    ) {
        let mut unrecorded = 0;
        for request in self.outgoing.take_all() {
            match self.pending.remove(&request.token) {
                Some(Pending::Accept { peer, id, task, client }) => {
                    self.ties -= usize::from(client != Tie::None);
                    fail(out, peer, id, ErrorCode::StoreUnavailable, refused.to_owned());
                    self.tell_not_taken(task.id, ErrorCode::StoreUnavailable, refused, out);
                }
                Some(
                    Pending::Cancel { peer, id, .. }
                    | Pending::Retry { peer, id, .. }
                    | Pending::Drop { peer, id, .. },
                ) => fail(out, peer, id, ErrorCode::StoreUnavailable, refused.to_owned()),
                Some(Pending::Record { task, .. }) => {
                    unrecorded += 1;
                    self.tell_unrecorded(task, refused, out);
                }
                Some(Pending::Claim { id, from }) => {
                    self.claim_failed(scheduler, now, (id, from), out);
                }
                Some(Pending::TakeIn { delivery, .. }) => self.hand_back_delivery(delivery.tag),
                // Nobody waits for these, or they are the bus's.
                Some(
                    Pending::TakeDue
                    | Pending::Upkeep
                    | Pending::Look(..)
                    | Pending::History { .. }
                    | Pending::List { .. }
                    | Pending::Page
                    | Pending::Payload(..)
                    | Pending::Publish { .. }
                    | Pending::Republish
                    | Pending::Release(_)
                    | Pending::Sweep
                    | Pending::Bury { .. }
                    | Pending::Tell { .. }
                    | Pending::Settle
                    | Pending::Post { .. }
                    | Pending::Home { .. },
                )
                | None => {}
            }
        }
        if unrecorded > 0 {
            log::error!("what became of {unrecorded} background tasks is not recorded; they will run again");
        }
    }

    /// Tells those who wait for a task's end that it could not be recorded.
    pub(super) fn tell_unrecorded<E: Outlet>(&mut self, task: TaskId, why: &str, out: &mut E) {
        for number in self.waits.for_task(task) {
            if let Some(wait) = self.waits.remove(number) {
                fail(out, wait.peer, wait.id, ErrorCode::StoreUnavailable, why.to_owned());
            }
        }
    }

    /// Why the store has stopped for good; `None` while it has not.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.storage.as_ref().and_then(Storage::failure)
    }

    /// Why the store takes no new task now.
    fn trouble(&self) -> String {
        let status = self.storage.as_ref().map(Storage::status).unwrap_or_default();
        let why = self.storage.as_ref().and_then(Storage::trouble);
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        format!(
            "the store has {} operations to write and takes no more until some are done{why}",
            status.waiting
        )
    }
}
