//! Runs: tasks that a client hands in together, and results that a worker gives together.
//!
//! Under load tasks come hundreds at a time, most of them alike: one client's, one action's, with room at one worker
//! for many of them. Taken as a run, what is true of all of them is looked up once, and the rows of client, worker and
//! action stay at hand. To the letter nothing else happens than if each had come as an [`Event`](super::Event) of its
//! own: the same effects in the same order. Whatever is out of the ordinary goes the ordinary way.

use foldhash::fast::FixedState;

use super::choice::{Change, Pick};
use super::clients::{Client, Wait};
use super::held::Held;
use super::numbers::Numbers;
use super::payload::{BLOCK_BYTES, Store};
use super::slab::Slab;
use super::task::{Place, Task, Tasks, Waiter};
use super::watching::STALL;
use super::worker::Worker;
use super::{AssignmentId, Effects, Finish, Payload, Peer, Role, Scheduler, Submission, Time, limits};

/// How far a part of a run went.
#[derive(Debug)]
pub(super) enum Went<T> {
    /// All of it is done.
    Through,
    /// So far; what is common is to be looked up anew.
    OnePart,
    /// To one that must go the ordinary way.
    To(T),
}

/// A task of a run: its client's number for it, and its payload.
pub(super) type Handed<'p> = (u64, Payload<'p>);

/// A result of a run.
type Given<'a> = (AssignmentId, Payload<'a>);

/// The task of a worker's result, if there is nothing about it that is out of the ordinary.
#[inline(always)]
fn usual_task(tasks: &Tasks, worker: u32, assignment: AssignmentId) -> Option<&Task> {
    tasks
        .get(assignment.task())
        .filter(|task| task.attempt_tag == assignment.tag() && task.is_held_by(worker) && task.is_usual())
}

/// Tasks of a run, each taken in as it is asked for. Ends before the first that must go the ordinary way.
pub(super) struct TakenIn<'s, 'p, I> {
    tasks: &'s mut I,
    /// What rows have in common: client, action and time.
    blank: (u32, u32, Time),
    /// Tasks that may be taken in, and bytes of payload.
    most: (usize, usize),
    /// What is left of these.
    left: (usize, usize),
    pub(super) rows: &'s mut Tasks,
    payloads: &'s mut Store,
    client: &'s mut Client,
    /// Where it ended.
    pub(super) went: Option<Went<Handed<'p>>>,
}

impl<'s, 'p, I: Iterator<Item = Handed<'p>>> TakenIn<'s, 'p, I> {
    /// Those of `tasks` for which there is room.
    #[inline]
    pub(super) fn new(
        tasks: &'s mut I,
        blank: (u32, u32, Time),
        most: (usize, usize),
        (rows, payloads): (&'s mut Tasks, &'s mut Store),
        client: &'s mut Client,
    ) -> Self {
        TakenIn { tasks, blank, most, left: most, rows, payloads, client, went: None }
    }

    /// Takes the next one in: its number, its payload and its row, which has no place yet.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<(Handed<'p>, u32, &mut Task)> {
        if self.went.is_some() {
            return None;
        }
        let Some((id, payload)) = self.tasks.next() else {
            self.went = Some(Went::Through);
            return None;
        };
        let bytes = payload.len();
        let fits = self.left.0 > 0 && bytes <= self.left.1 && bytes <= BLOCK_BYTES;
        let added = if fits { self.client.numbers.put_at_once(id, || self.rows.add()) } else { None };
        let Some((task, row)) = added else {
            self.went = Some(Went::To((id, payload)));
            return None;
        };
        let (client, action, now) = self.blank;
        row.payload = self.payloads.keep(task, payload);
        (row.client, row.client_id) = (client, id);
        (row.action, row.since) = (action, now);
        row.priority = limits::DEFAULT_PRIORITY;
        row.max_attempts = limits::DEFAULT_MAX_ATTEMPTS;
        self.left = (self.left.0 - 1, self.left.1 - bytes);
        Some(((id, payload), task, row))
    }

    /// How many were taken in, and their bytes of payload; and where it ended.
    #[inline]
    pub(super) fn end(self) -> ((usize, usize), Went<Handed<'p>>) {
        let taken = (self.most.0 - self.left.0, self.most.1 - self.left.1);
        self.client.bytes += taken.1;
        (taken, self.went.unwrap_or(Went::OnePart))
    }
}

/// Tasks of a run, each given to the same worker as it is asked for. Ends when the worker is no longer next for one.
struct HandedOver<'s, 'p, I> {
    taken: TakenIn<'s, 'p, I>,
    attempt_tag: &'s mut u32,
    worker_index: u32,
    worker: &'s mut Worker,
    /// At how many bytes of payload its place must be found anew.
    most_bytes: usize,
}

impl<'p, I: Iterator<Item = Handed<'p>>> Iterator for HandedOver<'_, 'p, I> {
    type Item = (AssignmentId, Payload<'p>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let ((_, payload), task, row) = self.taken.take()?;
        *self.attempt_tag = self.attempt_tag.checked_add(1).unwrap_or(1);
        row.attempt_tag = *self.attempt_tag;
        row.put(Place::Held(self.worker_index));
        let assignment = AssignmentId::new(*self.attempt_tag, task);
        self.worker.held.add(assignment);
        self.worker.bytes += payload.len();
        if self.taken.left.0 == 0 || self.worker.bytes >= self.most_bytes {
            self.taken.went = Some(Went::OnePart);
        }
        Some((assignment, payload))
    }
}

/// Results of a worker for one client's tasks of one action, each of which ends as it is asked for. Ends before the
/// first result that is not such a one.
struct Ended<'s, 'a, I> {
    /// The first one, until it is asked for.
    first: Option<Given<'a>>,
    results: &'s mut I,
    /// The worker, the client and the action.
    of: (u32, u32, u32),
    held: &'s mut Held,
    rows: &'s mut Tasks,
    payloads: &'s mut Store,
    numbers: &'s mut Numbers,
    waiters: &'s Slab<Waiter>,
    hasher: &'s FixedState,
    count: usize,
    bytes: usize,
    /// Where it ended.
    went: Option<Went<Given<'a>>>,
}

impl<'a, I: Iterator<Item = Given<'a>>> Iterator for Ended<'_, 'a, I> {
    type Item = (u64, Payload<'a>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.went.is_some() {
            return None;
        }
        let given = match self.first.take() {
            Some(first) => Some(first),
            None => self.results.next(),
        };
        let Some((assignment, payload)) = given else {
            self.went = Some(Went::Through);
            return None;
        };
        let (worker, client, action) = self.of;
        let is_theirs = |task: &&Task| task.client == client && task.action == action;
        let Some(task) = usual_task(self.rows, worker, assignment).filter(is_theirs) else {
            self.went = Some(Went::To((assignment, payload)));
            return None;
        };
        let (id, kept) = (task.client_id, task.payload);
        let task = assignment.task();
        self.held.remove(self.rows, assignment);
        let (rows, waiters) = (&*self.rows, self.waiters);
        let id_of = |entry| super::clients::client_id_of(rows, waiters, entry);
        self.numbers.remove(self.hasher, id, Wait::First(task).entry(), id_of);
        self.rows.vacate(task);
        self.payloads.release(kept);
        (self.count, self.bytes) = (self.count + 1, self.bytes + kept.len());
        Some((id, payload))
    }
}

impl Scheduler {
    /// Takes tasks of one action with the usual options, as [`handle`](Self::handle) takes an
    /// [`Event::Submit`](super::Event::Submit) for each: the client's number for it, and its payload.
    ///
    /// ```
    /// use reparto_balancer::scheduler::{Config, Effect, Event, Payload, Peer, Scheduler, Time};
    /// let (mut scheduler, mut effects) = (Scheduler::new(Config::default()), Vec::new());
    /// let peer = Peer { index: 0, generation: 1 };
    /// scheduler.handle(Time(0), Event::ClientJoined { peer }, &mut effects);
    /// let mut tasks = [1, 2, 3].into_iter().map(|id| (id, Payload::new(b"hola")));
    /// scheduler.submit_all(Time(1), peer, "upper", &mut tasks, &mut effects);
    /// assert_eq!(scheduler.totals().queued, 3);
    /// ```
    pub fn submit_all<'a, 'p>(
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
            match self.submit_some(client, action, tasks, effects) {
                Went::Through => break,
                Went::OnePart => {}
                Went::To((id, payload)) => {
                    self.submit(client, &Submission::new(id, action, payload), effects);
                }
            }
        }
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// Takes results, as [`handle`](Self::handle) takes an [`Event::Finished`](super::Event::Finished) for each, done
    /// and without a service time.
    pub fn finish_all<'a>(
        &mut self,
        now: Time,
        peer: Peer,
        results: &mut impl Iterator<Item = (AssignmentId, Payload<'a>)>,
        effects: &mut impl Effects<'a>,
    ) {
        self.now = self.now.max(now);
        let (worker, pulls) = match self.role(peer) {
            Role::Worker(worker) => (worker, false),
            Role::Dual { worker, .. } => (worker, true),
            _ => return results.for_each(drop),
        };
        loop {
            match self.finish_some(worker, results, effects) {
                Went::Through => break,
                Went::OnePart => {}
                Went::To((assignment, payload)) if pulls => {
                    self.puller_finished(worker, assignment, Finish::Done, payload, effects);
                }
                Went::To((assignment, payload)) => {
                    self.finished(worker, assignment, Finish::Done, None, payload, effects);
                }
            }
        }
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// Gives the tasks at the head of a run to one worker, as many as it is next for.
    #[inline]
    fn submit_some<'a, 'p>(
        &mut self,
        client: u32,
        action: &str,
        tasks: &mut impl Iterator<Item = Handed<'p>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Handed<'p>> {
        match self.next_for(client, action) {
            Some((index, pick)) => self.hand_over_some((client, index), pick, tasks, effects),
            None => tasks.next().map_or(Went::Through, Went::To),
        }
    }

    /// Where nothing waits and nothing else is unusual: the action of a client's tasks, and the worker that is next.
    #[inline]
    fn next_for(&self, client: u32, action: &str) -> Option<(u32, Pick)> {
        let index = self.clients[client].last_action;
        let row = self.actions.get(index)?;
        let is_plain = self.stopping.is_none() && row.wish.is_none() && row.queue.is_empty();
        if !is_plain || &*row.name != action {
            return None;
        }
        Some((index, self.choice.pick(&row.offers)?))
    }

    #[inline]
    fn hand_over_some<'a, 'p>(
        &mut self,
        (client, action): (u32, u32),
        pick: Pick,
        tasks: &mut impl Iterator<Item = Handed<'p>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Handed<'p>> {
        // Where several groups offer the action, each in its turn, the next task may be another group's.
        let takes_turns = self.choice.takes_turns(&self.actions[action].offers);
        let (room, room_bytes) = self.room_left();
        let (worker, client_row) = (&mut self.workers[pick.worker], &mut self.clients[client]);
        let (in_flight, blank) = (worker.in_flight, (client, action, self.now));
        let rows = (&mut self.tasks, &mut self.payloads);
        let (in_a_row, most_bytes) = worker.in_a_row();
        let most = (room.min(if takes_turns { 1 } else { in_a_row as usize }), room_bytes);
        let mut given = HandedOver {
            taken: TakenIn::new(tasks, blank, most, rows, client_row),
            attempt_tag: &mut self.attempt_tag,
            worker_index: pick.worker,
            worker: &mut *worker,
            most_bytes,
        };
        let peer = given.worker.peer;
        effects.assign_some(peer, &self.actions[action].name, &mut given);
        let ((count, bytes), went) = given.taken.end();
        worker.in_flight += count as u32;
        let outgrew = in_flight <= worker.threads && worker.in_flight > worker.threads;
        let stall_at = self.now.after(STALL);
        let look = outgrew && stall_at < worker.check_at;
        self.bytes += bytes;
        self.owed += count;
        self.counts.submitted += count as u64;
        self.actions[action].running += count;
        if look {
            self.set_check(pick.worker, stall_at);
        }
        if count > 0 {
            self.choice.picked(&mut self.actions, pick);
            self.choice.update(&mut self.workers, &mut self.actions, pick.worker, Change::Assigned);
        }
        went
    }

    /// Ends the tasks at the head of a worker's results, as long as nothing waits for the room that they leave.
    #[inline]
    fn finish_some<'a>(
        &mut self,
        worker: u32,
        results: &mut impl Iterator<Item = Given<'a>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Given<'a>> {
        let row = &mut self.workers[worker];
        // One that pulls is given nothing for what it has done. If it had all that it may have, it may have to be woken.
        let is_fed = if row.puller.is_none() { self.queued > 0 } else { !row.takes_another() };
        if is_fed || self.stopping.is_some() || row.stalled {
            return results.next().map_or(Went::Through, Went::To);
        }
        let (mut count, mut bytes) = (0, 0);
        let mut went = results.next().map_or(Went::Through, Went::To);
        while let Went::To(first) = went {
            let Some(task) = usual_task(&self.tasks, worker, first.0).filter(|task| task.is_wanted()) else {
                break;
            };
            let (client, action) = (task.client, task.action);
            let (client_row, action_row) = (&mut self.clients[client], &mut self.actions[action]);
            if client_row.gone || action_row.offers.workers == 0 {
                break;
            }
            let peer = client_row.peer;
            let mut ended = Ended {
                first: Some(first),
                results: &mut *results,
                of: (worker, client, action),
                held: &mut row.held,
                rows: &mut self.tasks,
                payloads: &mut self.payloads,
                numbers: &mut client_row.numbers,
                waiters: &self.waiters,
                hasher: &self.hasher,
                count: 0,
                bytes: 0,
                went: None,
            };
            effects.result_some(peer, &mut ended);
            // They have ended, whoever is there to be told.
            ended.by_ref().for_each(drop);
            (count, bytes) = (count + ended.count, bytes + ended.bytes);
            action_row.running -= ended.count;
            action_row.queue.effort.add(self.now, row.finished_at, ended.count as u64);
            row.finished_at = self.now;
            client_row.bytes -= ended.bytes;
            went = ended.went.unwrap_or(Went::Through);
        }
        if count > 0 {
            row.in_flight -= count as u32;
            row.bytes -= bytes;
            row.done += count as u64;
            self.bytes -= bytes;
            self.owed -= count;
            self.counts.done += count as u64;
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        }
        went
    }
}
