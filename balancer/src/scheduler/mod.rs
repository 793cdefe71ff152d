//! The scheduler: who runs what, when.
//!
//! A deterministic state machine. It has no sockets, no clock and no threads: events and the time come in as
//! arguments, effects go out as values, and the same events at the same times give the same effects. Every rule on
//! tasks, workers and queues is decided here and nowhere else.
//!
//! ```
//! use reparto_balancer::scheduler::{Config, Effect, Event, Finish, Payload, Peer, Registration, Scheduler, Submission, Time};
//!
//! let (client, worker) = (Peer { index: 0, generation: 1 }, Peer { index: 1, generation: 1 });
//! let mut scheduler = Scheduler::new(Config::default());
//! let mut effects = Vec::new();
//! scheduler.handle(Time(0), Event::ClientJoined { peer: client }, &mut effects);
//! let registration = Registration {
//!     request: 1, worker_id: "w1", threads: 1, window: 1, weight: 1, service_ns: None, actions: vec!["upper"],
//!     heartbeats: true, held: vec![],
//! };
//! scheduler.handle(Time(0), Event::Register { peer: worker, registration }, &mut effects);
//! effects.clear();
//!
//! let task = Submission::new(7, "upper", Payload::new(b"hola"));
//! scheduler.handle(Time(10), Event::Submit { peer: client, task }, &mut effects);
//! let [Effect::Assign { peer, assignment }] = effects[..] else { panic!("{effects:?}") };
//! assert_eq!(peer, worker);
//! assert_eq!(scheduler.assignment(assignment).map(|a| a.payload), Some(Payload::new(b"hola")));
//!
//! effects.clear();
//! let payload = Payload::new(b"HOLA");
//! let finished = Event::Finished { peer: worker, assignment, finish: Finish::Done, service_ns: None, payload };
//! scheduler.handle(Time(20), finished, &mut effects);
//! assert_eq!(effects, [Effect::Result { peer: client, id: 7, payload: Payload::new(b"HOLA") }]);
//! ```
//!
//! # How it is laid out
//!
//! Everything lives in slabs (`slab`) and is known by index, or found by a `table`. A task (`task`) is in
//! exactly one place: in a flow of its action's queue (`queue`), or held by a worker (`worker`, `held`). Workers are chosen
//! by `choice`, actions by `turns`; the timers of tasks stand in a `wheel`, what is due for workers in a small
//! ordered set. The rules themselves are in `clients` (submit, cancel, leave), `workers` (register, finish, lost),
//! `assigning` (queue, assign, feed), `lending` (to other balancers), `watching` (heartbeats, recall), `ending` (answering, expiring, stopping) and
//! `background` (what a store keeps).
//!
//! No event works through what may be a million rows: [`Scheduler::tick`] does a part of it at a time.
//!
//! One invariant carries the speed: after every event, no action has both a waiting task and a worker with room.
//! So a new task either goes straight to a worker or to its queue, and a worker that has finished is the only one
//! that need be fed.

mod api;
mod assigning;
mod background;
mod choice;
mod clients;
mod effects;
mod effort;
mod ending;
mod held;
mod lending;
mod numbers;
mod payload;
mod pulled;
mod pulling;
mod queue;
mod room;
mod runs;
mod slab;
mod status;
mod table;
mod task;
mod turns;
mod watching;
mod wheel;
mod worker;
mod workers;

#[cfg(test)]
mod invariants;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use reparto_protocol::limits;

pub use api::*;
use choice::{Choice, HasOffers, Offers};
use clients::{Client, MOST_WAITERS};
pub use effects::{Effects, Pulled};
pub use ending::{RAN_TOO_LONG, THE_LAST_ONE};
pub use payload::Payload;
use payload::Store;
use pulling::Wish;
use queue::{Flows, Queue};
use slab::{NONE, Slab};
use table::Table;
use task::{Task, Tasks, Waiter};
use wheel::{Step, Wheel};
use worker::Worker;

/// What one call does at most of each kind of work that may pile up without bound (deadlines that pass, workers to
/// be looked at, tasks whose client is gone, tasks to be answered at a shutdown), in steps of about a microsecond.
/// The rest is left to the next call, so that a million of them do not hold up everyone else.
const WORK_A_CALL: usize = 2048;

/// Tasks of a worker that are looked at in a step of work.
const LOOKS_A_STEP: usize = 8;

/// Most tasks that may be configured: rows are known by 32-bit indexes, of which one bit has another use.
const MOST_TASKS: usize = 1 << 30;

/// The state machine. Hand it events with [`handle`](Self::handle), and call [`tick`](Self::tick) when
/// [`next_timer`](Self::next_timer) has come.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    now: Time,
    /// By [`Peer::index`].
    peers: Vec<PeerRow>,
    /// The parts of the balancer itself, which have no such index.
    insiders: BTreeMap<Peer, Role>,
    clients: Slab<Client>,
    workers: Slab<Worker>,
    worker_ids: HashMap<Box<str>, u32, FixedState>,
    /// Those of the workers that pull. Without any, nobody need be woken.
    pullers: usize,
    actions: Slab<Action>,
    action_names: HashTable<u32>,
    /// Actions that have tasks waiting.
    backlog: Vec<u32>,
    tasks: Tasks,
    payloads: Store,
    waiters: Slab<Waiter>,
    /// Tasks that have a key, by action and key.
    keys: Table,
    flows: Flows,
    choice: Choice,
    wheel: Wheel,
    /// When each worker is next looked at.
    checks: BTreeSet<(Time, u32)>,
    hasher: FixedState,
    /// New for every attempt; never 0.
    attempt_tag: u32,
    /// Counts services of queues, to tell which action was served last.
    services: u64,
    /// Tasks that wait, over all actions.
    queued: usize,
    /// Bytes of payload held, over all tasks.
    bytes: usize,
    /// Answers owed, over all clients.
    owed: usize,
    /// To how many beside the first progress may be told now. Grows by one a microsecond, to [`MOST_WAITERS`].
    progress_left: u32,
    progress_at: Time,
    /// The client without a connection whose tasks are the background tasks; [`NONE`] until there was one.
    keeper: u32,
    /// Background tasks, by their ids.
    background: Table,
    /// The keeper's number for its latest task.
    background_number: u64,
    /// The state of the generator behind jitter.
    random_state: u64,
    /// Clients that are gone, and have left something behind.
    leaving: VecDeque<u32>,
    stopping: Option<Stopping>,
    /// [`WORK_A_CALL`]; less in the simulation.
    work_a_call: usize,
    counts: Counts,
}

#[derive(Debug, Clone, Copy)]
struct PeerRow {
    generation: u32,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Unknown, or gone.
    None,
    Client(u32),
    Worker(u32),
    /// A pull worker's, and perhaps a client's as well; [`NONE`] for what it is not.
    Dual {
        client: u32,
        worker: u32,
    },
}

#[derive(Debug)]
struct Action {
    name: Box<str>,
    queue: Queue,
    offers: Offers,
    running: usize,
    /// Its place in the backlog, or [`NONE`].
    in_backlog: u32,
    /// The number of the service that last took from it.
    served: u64,
    /// What was asked for by people: it stays though nobody needs it, and its queue is bounded.
    wish: Option<Box<Wish>>,
}

impl HasOffers for Action {
    #[inline]
    fn offers_mut(&mut self) -> &mut Offers {
        &mut self.offers
    }
}

#[derive(Debug, Clone, Copy)]
struct Stopping {
    /// When the grace is over.
    until: Time,
    /// The grace is over, and what runs is answered too.
    grace_over: bool,
    /// The row of the task to be looked at next; `None` when all have been.
    next_row: Option<u32>,
    /// [`Effect::Stopped`] was said.
    said: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    submitted: u64,
    refused: u64,
    done: u64,
    failed: u64,
    requeued: u64,
    workers_lost: u64,
}

impl Scheduler {
    /// A scheduler without clients, workers or tasks.
    pub fn new(mut config: Config) -> Self {
        config.max_tasks = config.max_tasks.min(MOST_TASKS);
        let hasher = FixedState::with_seed(config.seed);
        Scheduler {
            now: Time(0),
            peers: Vec::new(),
            insiders: BTreeMap::new(),
            clients: Slab::new(),
            workers: Slab::new(),
            worker_ids: HashMap::with_hasher(hasher.clone()),
            pullers: 0,
            actions: Slab::new(),
            action_names: HashTable::new(),
            backlog: Vec::new(),
            tasks: Tasks::new(),
            payloads: Store::new(config.max_bytes),
            waiters: Slab::new(),
            keys: Table::new(),
            flows: Flows::new(config.aging.as_micros().try_into().unwrap_or(u64::MAX), config.seed),
            choice: Choice::new(config.policy),
            wheel: Wheel::new(),
            checks: BTreeSet::new(),
            hasher,
            attempt_tag: 0,
            services: 0,
            queued: 0,
            bytes: 0,
            owed: 0,
            progress_left: MOST_WAITERS,
            progress_at: Time(0),
            keeper: NONE,
            background: Table::new(),
            background_number: 0,
            random_state: config.seed,
            leaving: VecDeque::new(),
            stopping: None,
            work_a_call: WORK_A_CALL,
            counts: Counts::default(),
            config,
        }
    }

    /// Takes an event, and gives what is to be done about it to `effects`.
    ///
    /// Events of peers that are not known, or not any more, are dropped: they are late, not wrong. A `now` before
    /// the latest one counts as the latest one.
    #[inline(always)]
    pub fn handle<'a>(&mut self, now: Time, event: Event<'a>, effects: &mut impl Effects<'a>) {
        self.now = self.now.max(now);
        match event {
            Event::Submit { peer, ref task } => {
                if let Some(client) = self.client_of(peer) {
                    self.submit(client, task, effects);
                }
            }
            Event::Finished { peer, assignment, finish, service_ns, payload } => match self.role(peer) {
                Role::Worker(worker) => {
                    self.finished(worker, assignment, finish, service_ns, payload, effects);
                }
                Role::Dual { worker, .. } => {
                    self.puller_finished(worker, assignment, finish, payload, effects);
                }
                _ => {}
            },
            other => self.handle_other(other, effects),
        }
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// The events that come far less often than tasks and their results.
    #[inline(never)]
    fn handle_other<'a>(&mut self, event: Event<'a>, effects: &mut impl Effects<'a>) {
        match event {
            Event::Submit { .. } | Event::Finished { .. } => {}
            Event::Heard { peer } => {
                if let Role::Worker(worker) = self.role(peer) {
                    self.heard(worker, effects);
                }
            }
            Event::Progress { peer, assignment, kind, done, total, payload } => {
                if let Role::Worker(worker) | Role::Dual { worker, .. } = self.role(peer) {
                    self.progress(worker, assignment, (kind, done, total), payload, effects);
                }
            }
            Event::Cancel { peer, id } => {
                if let Some(client) = self.client_of(peer) {
                    self.cancel(client, id, effects);
                }
            }
            Event::PullerJoined { peer, from } => self.puller_joined(peer, from, effects),
            Event::Pull { peer, pull } => {
                if let Role::Dual { worker, .. } = self.role(peer) {
                    self.pull(worker, pull, effects);
                }
            }
            Event::ClientJoined { peer } => self.client_joined(peer, effects),
            Event::Register { peer, registration } => self.register(peer, &registration, effects),
            Event::Drain { peer, request, resume } => {
                if let Role::Worker(worker) = self.role(peer) {
                    self.drain(worker, request, resume, effects);
                }
            }
            Event::Gone { peer } => match self.forget_peer(peer) {
                Role::Client(client) => self.client_gone(client, effects),
                Role::Worker(worker) => self.worker_lost(worker, effects),
                Role::Dual { client, worker } => {
                    if client != NONE {
                        self.client_gone(client, effects);
                    }
                    self.worker_lost(worker, effects);
                }
                Role::None => {}
            },
            Event::Shutdown { grace } => self.shut_down(grace, effects),
            Event::Enter { ref task } => self.take_in(task, effects),
            Event::Withdraw { ref id } => self.withdraw(id, effects),
            Event::Unclaimed { peer, id } => self.refuse_claim(peer, id, effects),
        }
    }

    /// Does what is due by `now`: deadlines, heartbeats, recalls, what clients have left behind, the end of a
    /// shutdown. The work a call is bounded; where more is due, [`next_timer`](Self::next_timer) says so at once.
    pub fn tick<'a>(&mut self, now: Time, effects: &mut impl Effects<'a>) {
        self.now = self.now.max(now);
        self.expire_due(effects);
        self.check_due_workers(effects);
        self.see_off(effects);
        if self.stopping.is_some() {
            self.go_on_stopping(effects);
            self.stop_if_quiet(effects);
        }
    }

    fn expire_due<'a>(&mut self, effects: &mut impl Effects<'a>) {
        let enough = effects.count() + self.work_a_call;
        for _ in 0..self.work_a_call {
            if effects.count() >= enough {
                return;
            }
            match self.wheel.step(&mut self.tasks, self.now) {
                Step::Due(task) => self.expire(task, effects),
                Step::Moved => {}
                Step::Reached => return,
            }
        }
    }

    fn check_due_workers<'a>(&mut self, effects: &mut impl Effects<'a>) {
        let mut work = self.work_a_call;
        while let Some((at, worker)) =
            self.checks.first().copied().filter(|(at, _)| *at <= self.now && work > 0)
        {
            let before = effects.count();
            self.checks.remove(&(at, worker));
            let looked_at = self.check_worker(worker, effects);
            work = work.saturating_sub(1 + looked_at / LOOKS_A_STEP + effects.count() - before);
        }
    }

    /// When [`tick`](Self::tick) is next needed; `None` when nothing waits for a time.
    pub fn next_timer(&self) -> Option<Time> {
        let stop = self.stopping.filter(|stopping| !stopping.said).map(|stopping| stopping.until);
        let check = self.checks.first().map(|(at, _)| *at);
        let stopping = self.stopping.is_some_and(|stopping| stopping.next_row.is_some());
        let at_once = (stopping || !self.leaving.is_empty()).then_some(self.now);
        [self.wheel.next(), check, stop, at_once].into_iter().flatten().min()
    }

    /// The details of an assignment that a worker holds; `None` when it has ended.
    pub fn assignment(&self, id: AssignmentId) -> Option<Assignment<'_>> {
        self.task_of(id).map(|task| self.details(task))
    }

    /// What a worker must know of a task.
    #[inline(always)]
    fn details(&self, task: u32) -> Assignment<'_> {
        let (row, deadline) = (&self.tasks[task], self.tasks.deadline(task));
        Assignment {
            action: &self.actions[row.action].name,
            payload: self.payloads.get(task, row.payload),
            attempt: row.spent.saturating_add(1),
            deadline: (deadline != Task::NEVER).then_some(deadline),
            key: self.tasks.told_key(task),
            task_id: self.tasks.background(task).map(|background| background.id),
            held: false,
            number: 0,
            form: 0,
        }
    }

    /// The priority of the task of an assignment that a worker holds.
    pub fn priority(&self, id: AssignmentId) -> Option<u8> {
        self.task_of(id).map(|task| self.tasks[task].priority)
    }

    /// The name of a task's present attempt. [`task_of`](Self::task_of) goes the other way.
    #[inline]
    fn assignment_id(&self, task: u32) -> AssignmentId {
        AssignmentId::new(self.tasks[task].attempt_tag, task)
    }

    /// The task of an assignment that is held by a worker now.
    #[inline]
    fn task_of(&self, id: AssignmentId) -> Option<u32> {
        let (tag, index) = (id.tag(), id.task());
        let task = self.tasks.get(index)?;
        (task.attempt_tag == tag && matches!(task.place(), task::Place::Held(_))).then_some(index)
    }

    #[inline]
    fn role(&self, peer: Peer) -> Role {
        match self.peers.get(peer.index as usize) {
            Some(row) if row.generation == peer.generation => row.role,
            None if peer.is_insider() => self.insiders.get(&peer).copied().unwrap_or(Role::None),
            _ => Role::None,
        }
    }

    /// The client that a peer is, if it is one.
    #[inline]
    fn client_of(&self, peer: Peer) -> Option<u32> {
        match self.role(peer) {
            Role::Client(client) | Role::Dual { client, .. } if client != NONE => Some(client),
            _ => None,
        }
    }

    /// Gives a peer a role.
    fn know_peer(&mut self, peer: Peer, role: Role) {
        if peer.is_insider() {
            self.insiders.insert(peer, role);
            return;
        }
        let index = peer.index as usize;
        if index >= self.peers.len() {
            self.peers.resize(index + 1, PeerRow { generation: 0, role: Role::None });
        }
        self.peers[index] = PeerRow { generation: peer.generation, role };
    }

    fn forget_peer(&mut self, peer: Peer) -> Role {
        let role = self.role(peer);
        if role != Role::None && self.insiders.remove(&peer).is_none() {
            self.peers[peer.index as usize].role = Role::None;
        }
        role
    }

    fn find_action(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.action_names.find(hash, |action| &*self.actions[*action].name == name).copied()
    }

    /// The action's row, begun if need be; `None` when there are as many as there may be.
    fn action_or_new(&mut self, name: &str) -> Option<u32> {
        if let Some(action) = self.find_action(name) {
            return Some(action);
        }
        if self.actions.len() >= self.config.max_actions {
            return None;
        }
        let action = self.actions.insert(Action {
            name: name.into(),
            queue: Queue::default(),
            offers: Offers::new(),
            running: 0,
            in_backlog: NONE,
            served: 0,
            wish: None,
        });
        let (actions, hasher) = (&self.actions, &self.hasher);
        let hash_of = |index: &u32| hasher.hash_one(&*actions[*index].name);
        self.action_names.insert_unique(hash_of(&action), action, hash_of);
        Some(action)
    }

    /// Forgets an action that has neither workers nor tasks, if that has not been done already.
    fn drop_idle_action(&mut self, action: u32) {
        let Some(row) = self.actions.get(action) else { return };
        if row.offers.workers > 0 || row.running > 0 || !row.queue.is_empty() || row.wish.is_some() {
            return;
        }
        let hash = self.hasher.hash_one(&*row.name);
        if let Ok(entry) = self.action_names.find_entry(hash, |other| *other == action) {
            entry.remove();
        }
        self.actions.remove(action);
    }
}
