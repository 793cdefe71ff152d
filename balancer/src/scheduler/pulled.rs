//! Runs for workers that pull: tasks that are announced and wait in their queue, and questions for one task each that
//! come together.
//!
//! As with other runs ([`runs`](super::runs), which sees to results, too), to the letter nothing else happens than if
//! each had come as an [`Event`](super::Event) of its own, and what is out of the ordinary goes the ordinary way.

use std::time::Duration;

use super::choice::Change;
use super::payload::{BLOCK_BYTES, Store};
use super::pulling::Rest;
use super::queue::{Flows, Queue};
use super::runs::{Handed, TakenIn, Went};
use super::task::{Place, Tasks};
use super::worker::Worker;
use super::{
    AssignmentId, Effects, Payload, Peer, Pulled, Role, Scheduler, Submission, Time, UnknownAction, limits,
};

/// Tasks of a run, each put into its queue as its number is asked for. Ends before the first that must go the ordinary
/// way.
struct QueuedUp<'s, 'p, I> {
    taken: TakenIn<'s, 'p, I>,
    flow: u32,
    flows: &'s mut Flows,
    queue: &'s mut Queue,
}

impl<'p, I: Iterator<Item = Handed<'p>>> Iterator for QueuedUp<'_, 'p, I> {
    type Item = u64;

    #[inline(always)]
    fn next(&mut self) -> Option<u64> {
        let ((id, _), task, row) = self.taken.take()?;
        row.announced = true;
        self.flows.push_back_in(self.flow, self.queue, self.taken.rows, task);
        Some(id)
    }
}

/// Tasks of one action, each taken out of its queue and given to the same pull worker as it is asked for. Ends when as
/// many were given as the worker has asked for, when it may have no more, and behind the first that must go the ordinary
/// way.
struct Given<'s> {
    /// Questions that are not answered.
    left: usize,
    worker_index: u32,
    worker: &'s mut Worker,
    rows: &'s mut Tasks,
    payloads: &'s Store,
    flows: &'s mut Flows,
    queue: &'s mut Queue,
    attempt_tag: &'s mut u32,
    /// One that was taken, and is nowhere.
    unusual: Option<u32>,
}

impl<'s> Iterator for Given<'s> {
    type Item = Pulled<'s>;

    #[inline(always)]
    fn next(&mut self) -> Option<Pulled<'s>> {
        if self.left == 0 || self.unusual.is_some() || !self.worker.takes_another() {
            return None;
        }
        let task = self.flows.take(self.queue, self.rows)?;
        self.left -= 1;
        let row = &mut self.rows[task];
        if !row.is_usual() || row.spent > 0 {
            self.unusual = Some(task);
            return None;
        }
        *self.attempt_tag = self.attempt_tag.checked_add(1).unwrap_or(1);
        row.attempt_tag = *self.attempt_tag;
        row.put(Place::Held(self.worker_index));
        row.recalled = false;
        let (number, kept) = (row.announced_number(), row.payload);
        let assignment = AssignmentId::new(*self.attempt_tag, task);
        self.worker.held.add(assignment);
        self.worker.in_flight += 1;
        self.worker.bytes += kept.len();
        Some(Pulled { assignment, number, payload: self.payloads.get(task, kept) })
    }
}

impl Scheduler {
    /// Takes tasks of one action that are to be announced and may wait as long as it takes, with the usual options
    /// otherwise, as [`handle`](Self::handle) takes an [`Event::Submit`](super::Event::Submit) for each: the client's
    /// number for it, and its payload.
    ///
    /// ```
    /// use reparto_balancer::scheduler::{Config, Effect, Event, Payload, Peer, Scheduler, Time};
    /// let (mut scheduler, mut effects) = (Scheduler::new(Config::default()), Vec::new());
    /// let peer = Peer { index: 0, generation: 1 };
    /// scheduler.handle(Time(0), Event::ClientJoined { peer }, &mut effects);
    /// let mut tasks = [1, 2].into_iter().map(|id| (id, Payload::new(b"hola")));
    /// scheduler.announce_all(Time(1), peer, "upper", &mut tasks, &mut effects);
    /// assert_eq!(effects, [Effect::Created { peer, id: 1 }, Effect::Created { peer, id: 2 }]);
    /// ```
    pub fn announce_all<'a, 'p>(
        &mut self,
        now: Time,
        peer: Peer,
        action: &str,
        tasks: &mut impl Iterator<Item = (u64, Payload<'p>)>,
        effects: &mut impl Effects<'a>,
    ) {
        self.now = self.now.max(now);
        let Some(client) = self.client_of(peer) else { return tasks.for_each(drop) };
        loop {
            match self.queue_up_some(client, action, tasks, effects) {
                Went::Through => break,
                Went::OnePart => {}
                Went::To((id, payload)) => {
                    let usual = Submission::new(id, action, payload);
                    let task = Submission { wait: Some(Duration::MAX), announced: true, ..usual };
                    self.submit(client, &task, effects);
                }
            }
        }
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// A pull worker asks so many times for a task, as [`handle`](Self::handle) takes a
    /// [`Pull::Grab`](super::Pull::Grab) of this form so many times.
    pub fn pull_all<'a>(
        &mut self,
        now: Time,
        peer: Peer,
        (form, count): (u8, usize),
        effects: &mut impl Effects<'a>,
    ) {
        self.now = self.now.max(now);
        let Role::Dual { worker, .. } = self.role(peer) else { return };
        let mut left = count;
        while left > 0 {
            left -= self.give_some(worker, (form, left), effects);
        }
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// Puts the tasks at the head of a run into their queue, as long as there is nothing else to be done about them.
    #[inline]
    fn queue_up_some<'a, 'p>(
        &mut self,
        client: u32,
        action: &str,
        tasks: &mut impl Iterator<Item = Handed<'p>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Handed<'p>> {
        let Some(next) = tasks.next() else { return Went::Through };
        let Some(index) = self.only_queues(client, action) else { return Went::To(next) };
        let (most, most_bytes) = self.room_left();
        let (client_row, row) = (&mut self.clients[client], &mut self.actions[index]);
        let (id, payload) = next;
        let fits = most > 0 && payload.len() <= most_bytes.min(BLOCK_BYTES);
        if !fits || !client_row.numbers.takes_at_once(id) {
            return Went::To(next);
        }
        let flow = self.flows.flow_of(&mut row.queue, (client, index, limits::DEFAULT_PRIORITY));
        let peer = client_row.peer;
        let (blank, rows) = ((client, index, self.now), (&mut self.tasks, &mut self.payloads));
        let mut tasks = std::iter::once(next).chain(tasks);
        let mut queued = QueuedUp {
            taken: TakenIn::new(&mut tasks, blank, (most, most_bytes), rows, client_row),
            flow,
            flows: &mut self.flows,
            queue: &mut row.queue,
        };
        effects.created_some(peer, &mut queued);
        let ((count, bytes), went) = queued.taken.end();
        self.bytes += bytes;
        self.owed += count;
        self.counts.submitted += count as u64;
        self.note_queued(index, count);
        went
    }

    /// The action of a client's tasks, if all that is to be done about another one is to queue it: nobody has room for
    /// it or must be woken, and nothing else is unusual. That stays so while more of them are queued.
    #[inline]
    fn only_queues(&self, client: u32, action: &str) -> Option<u32> {
        let index = self.clients[client].last_action;
        let row = self.actions.get(index)?;
        let offers = &row.offers;
        let is_served = offers.workers > 0 || self.config.unknown_action == UnknownAction::Wait;
        let is_plain = self.stopping.is_none() && row.wish.is_none() && is_served && &*row.name == action;
        let waits = !row.queue.is_empty() || self.choice.pick(offers).is_none();
        let wakes = self.pullers > 0 && self.choice.pick_asleep(offers).is_some();
        (is_plain && waits && !wakes).then_some(index)
    }

    /// Answers some of a pull worker's questions, at least one of so many. Says how many.
    #[inline]
    fn give_some<'a>(
        &mut self,
        worker: u32,
        (form, count): (u8, usize),
        effects: &mut impl Effects<'a>,
    ) -> usize {
        let Some(action) = self.only_action(worker) else {
            self.grab(worker, form, effects);
            return 1;
        };
        let (worker_row, row) = (&mut self.workers[worker], &mut self.actions[action]);
        let peer = worker_row.peer;
        let waiting = row.queue.len();
        if waiting == 0 || self.stopping.is_some() || !worker_row.takes_another() {
            // So it is for all of them, as nothing changes in between.
            effects.no_task_some(peer, count);
            return count;
        }
        let mut given = Given {
            left: count,
            worker_index: worker,
            worker: &mut *worker_row,
            rows: &mut self.tasks,
            payloads: &self.payloads,
            flows: &mut self.flows,
            queue: &mut row.queue,
            attempt_tag: &mut self.attempt_tag,
            unusual: None,
        };
        effects.assign_pulled(peer, (&row.name, form), &mut given);
        let (answered, unusual) = (count - given.left, given.unusual);
        let taken = waiting - row.queue.len();
        self.services += taken as u64;
        row.served = self.services;
        row.running += taken - usize::from(unusual.is_some());
        self.note_unqueued(action, taken);
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Assigned);
        if let Some(task) = unusual {
            self.hand_over_pulled(task, worker, form, effects);
        }
        answered
    }

    /// The only action that a pull worker offers, if nothing about the worker is unusual: it was awake, and runs have no
    /// limit.
    #[inline]
    fn only_action(&self, worker: u32) -> Option<u32> {
        let is_plain = self.rest_of(worker) == Some(Rest::Awake);
        let has_limits = self.workers[worker].puller.as_ref().is_some_and(|puller| !puller.limits.is_empty());
        match *self.choice.actions(self.workers[worker].group) {
            [action] if is_plain && !has_limits => Some(action),
            _ => None,
        }
    }
}
