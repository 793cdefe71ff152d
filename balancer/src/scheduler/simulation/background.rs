//! Background tasks under faults: workers that crash, hang and come back, a balancer that restarts with its store
//! kept, tasks that are cancelled, put off and claimed; all from one seed.
//!
//! The store is modelled as it promises to be: what it was told is kept. After
//! every step the scheduler's invariants hold; at the end every task that was accepted has exactly one outcome, and
//! nobody has used more attempts than it had.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;

use super::super::*;
use reparto_protocol::TaskState;

const SEEDS: u64 = 300;
const STEPS: usize = 300;

/// What must happen at least once in so many seeds.
const MUST_BE_SEEN: [&str; 10] = [
    "done",
    "failed",
    "dead",
    "cancelled",
    "expired",
    "put off",
    "tried again at once",
    "restarted",
    "claimed",
    "not wanted",
];

/// A task as the store has it.
#[derive(Debug)]
struct Stored {
    max_attempts: u8,
    attempts: u8,
    deadline: Option<Time>,
    due: Option<Time>,
    runs: bool,
    end: Option<TaskState>,
}

#[derive(Debug, Default)]
struct SimWorker {
    peer: Option<Peer>,
    /// What it has, and the number that its balancer awaits it by.
    holds: BTreeMap<BackgroundId, Option<AssignmentId>>,
}

struct Simulation {
    random: Rng,
    seed: u64,
    scheduler: Scheduler,
    now: Time,
    peers: u32,
    store: BTreeMap<BackgroundId, Stored>,
    workers: Vec<SimWorker>,
    seen: BTreeSet<&'static str>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let random = Rng::with_seed(seed);
        Simulation {
            random,
            seed,
            scheduler: Scheduler::new(Config { seed, ..Config::default() }),
            now: Time(0),
            peers: 0,
            store: BTreeMap::new(),
            workers: (0..4).map(|_| SimWorker::default()).collect(),
            seen: BTreeSet::new(),
        }
    }

    fn run(mut self) -> BTreeSet<&'static str> {
        for _ in 0..STEPS {
            self.step();
        }
        // In the end there are workers that do all there is.
        self.workers.iter_mut().for_each(|worker| *worker = SimWorker::default());
        self.restart();
        for index in 0..4 {
            self.register(index);
        }
        for _ in 0..10_000 {
            if self.store.values().all(|task| task.end.is_some()) {
                break;
            }
            self.advance(Duration::from_secs(60));
            self.bring_in_due();
            for index in 0..4 {
                while let Some(id) = self.workers[index].holds.keys().next().copied() {
                    assert!(self.workers[index].holds[&id].is_some(), "a worker that is there is awaited");
                    self.answer(index, id, Finish::Done);
                }
            }
        }
        for (id, task) in &self.store {
            assert!(task.end.is_some(), "{id:?} has no end: {task:?}");
            assert!(task.attempts <= task.max_attempts, "{task:?}");
        }
        assert_eq!(self.scheduler.background(), (0, 0));
        self.seen
    }

    fn step(&mut self) {
        match self.random.u8(..100) {
            0..30 => self.accept(),
            30..40 => self.bring_in_due(),
            40..50 => {
                let index = self.random.usize(..4);
                self.register(index);
            }
            50..54 => self.disconnect(),
            54..56 => self.crash_worker(),
            56..58 => self.restart(),
            58..62 => self.cancel(),
            62..85 => self.some_answer(),
            _ => {
                let reach = 1 << self.random.u32(..24);
                let time = Duration::from_micros(self.random.u64(..reach));
                self.advance(time);
            }
        }
    }

    // ---- what may happen ----

    fn accept(&mut self) {
        let id = self.random.u128(..).to_be_bytes();
        let deadline = (self.random.u8(..6) == 0)
            .then(|| self.now.after(Duration::from_millis(self.random.u64(..20_000))));
        let due = (self.random.u8(..5) == 0)
            .then(|| self.now.after(Duration::from_millis(self.random.u64(..5000))));
        let max_attempts = self.random.u8(1..4);
        self.store.insert(id, Stored { max_attempts, attempts: 0, deadline, due, runs: false, end: None });
        if due.is_none() {
            self.enter(id, None);
        }
    }

    fn enter(&mut self, id: BackgroundId, holder: Option<Peer>) {
        let stored = &self.store[&id];
        let task = BackgroundTask {
            id,
            action: "a",
            payload: Payload::new(b"x"),
            priority: self.random.u8(..10),
            deadline: stored.deadline.map(|deadline| deadline.since(self.now)),
            max_attempts: stored.max_attempts,
            key: b"",
            spent: stored.attempts,
            backoff_first_ms: if self.random.bool() { 0 } else { 1 << self.random.u32(..12) },
            backoff_most_ms: 10_000,
            holder,
        };
        self.handle(Event::Enter { task });
    }

    /// What is due, and what the window has lost sight of, comes in: as the walk over the store would do it.
    fn bring_in_due(&mut self) {
        let now = self.now;
        let open: Vec<BackgroundId> = self
            .store
            .iter()
            .filter(|(_, task)| task.end.is_none() && task.due.is_none_or(|due| due <= now) && !task.runs)
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            if let Some(task) = self.store.get_mut(&id) {
                task.due = None;
            }
            self.enter(id, None);
        }
    }

    fn register(&mut self, index: usize) {
        if self.workers[index].peer.is_some() {
            return;
        }
        self.peers += 1;
        let peer = Peer { index: self.peers, generation: 1 };
        self.workers[index].peer = Some(peer);
        let name = format!("w{index}");
        let registration = Registration {
            request: 1,
            worker_id: &name,
            threads: self.random.u32(1..4),
            window: 8,
            weight: 1,
            service_ns: self.random.bool().then_some(1000),
            heartbeats: true,
            held: self.workers[index].holds.keys().copied().collect(),
            actions: vec!["a"],
        };
        self.handle(Event::Register { peer, registration });
    }

    /// A connection is lost, and the worker goes on.
    fn disconnect(&mut self) {
        let index = self.random.usize(..4);
        if let Some(peer) = self.workers[index].peer.take() {
            self.workers[index].holds.values_mut().for_each(|awaited| *awaited = None);
            self.handle(Event::Gone { peer });
        }
    }

    fn crash_worker(&mut self) {
        let index = self.random.usize(..4);
        if let Some(peer) = std::mem::take(&mut self.workers[index]).peer {
            self.handle(Event::Gone { peer });
        }
    }

    /// The balancer is killed, and starts anew with what the store has.
    fn restart(&mut self) {
        self.seen.insert("restarted");
        self.scheduler = Scheduler::new(Config { seed: self.seed, ..Config::default() });
        for worker in &mut self.workers {
            worker.peer = None;
            worker.holds.values_mut().for_each(|awaited| *awaited = None);
        }
        // Workers come back first, sometimes.
        if self.random.bool() {
            for index in 0..4 {
                self.register(index);
            }
        }
        // Nobody is waited for any longer.
        self.store.values_mut().for_each(|task| task.runs = false);
        self.bring_in_due();
    }

    fn cancel(&mut self) {
        let open: Vec<BackgroundId> =
            self.store.iter().filter(|(_, task)| task.end.is_none()).map(|(id, _)| *id).collect();
        if !open.is_empty() {
            let id = open[self.random.usize(..open.len())];
            self.handle(Event::Withdraw { id });
            self.end(id, TaskState::Cancelled);
        }
    }

    fn some_answer(&mut self) {
        let index = self.random.usize(..4);
        let held: Vec<BackgroundId> = self.workers[index].holds.keys().copied().collect();
        if !held.is_empty() {
            let finish = match self.random.u8(..10) {
                0 => Finish::Failed("failed"),
                1..4 => Finish::Retry("not now"),
                _ => Finish::Done,
            };
            let id = held[self.random.usize(..held.len())];
            self.answer(index, id, finish);
        }
    }

    /// A worker ends a task; without a connection that awaits it, it keeps it.
    fn answer(&mut self, index: usize, id: BackgroundId, finish: Finish<'_>) {
        let (Some(peer), Some(Some(assignment))) =
            (self.workers[index].peer, self.workers[index].holds.get(&id).copied())
        else {
            return;
        };
        self.workers[index].holds.remove(&id);
        self.handle(Event::Heard { peer });
        let payload = Payload::new(b"r");
        self.handle(Event::Finished { peer, assignment, finish, service_ns: None, payload });
    }

    fn advance(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some(at) = self.scheduler.next_timer().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            for index in 0..4 {
                if let Some(peer) = self.workers[index].peer {
                    self.handle(Event::Heard { peer });
                }
            }
            let mut effects = Vec::new();
            self.scheduler.tick(self.now, &mut effects);
            self.carry_out(effects);
        }
        self.now = end;
    }

    // ---- carrying out ----

    fn handle(&mut self, event: Event<'_>) {
        let mut effects = Vec::new();
        self.scheduler.handle(self.now, event, &mut effects);
        self.carry_out(effects);
    }

    fn worker_of(&mut self, peer: Peer) -> &mut SimWorker {
        self.workers.iter_mut().find(|worker| worker.peer == Some(peer)).expect("a worker that is there")
    }

    fn carry_out(&mut self, effects: Vec<Effect<'_>>) {
        self.scheduler.assert_invariants();
        let mut replies = Vec::new();
        for effect in effects {
            match effect {
                Effect::Assign { peer, assignment } => {
                    let details = self.scheduler.assignment(assignment).expect("its details are there");
                    let id = details.task_id.expect("all are background tasks");
                    let attempt = details.attempt;
                    let stored = &self.store[&id];
                    // A task may run that has ended meanwhile; but not with more attempts than it has.
                    assert!(attempt <= stored.max_attempts, "attempt {attempt} of {stored:?}");
                    self.worker_of(peer).holds.insert(id, Some(assignment));
                }
                Effect::CancelAssignment { peer, assignment, recall: false } => {
                    let worker = self.worker_of(peer);
                    let id = worker.holds.iter().find(|(_, awaited)| **awaited == Some(assignment));
                    let id = *id.expect("a cancel is for what is held").0;
                    worker.holds.remove(&id);
                    replies.push((peer, Some(assignment), id));
                }
                Effect::Claim { peer, id } => replies.push((peer, None, id)),
                Effect::Unwanted { peer, id } => {
                    self.seen.insert("not wanted");
                    self.worker_of(peer).holds.remove(&id);
                }
                Effect::Note { id, attempts, note } => self.note(id, attempts, note),
                Effect::Ping { .. }
                | Effect::Acknowledge { .. }
                | Effect::GoAway { .. }
                | Effect::CancelAssignment { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        for (peer, assignment, id) in replies {
            match assignment {
                Some(assignment) => self.handle(Event::Finished {
                    peer,
                    assignment,
                    finish: Finish::NotRun,
                    service_ns: None,
                    payload: Payload::EMPTY,
                }),
                None if self.store[&id].end.is_none() && self.store[&id].due.is_none() => {
                    self.seen.insert("claimed");
                    self.enter(id, Some(peer));
                }
                None => self.handle(Event::Unclaimed { peer, id }),
            }
        }
    }

    fn note(&mut self, id: BackgroundId, attempts: u8, note: Note<'_>) {
        let now = self.now;
        let stored = self.store.get_mut(&id).expect("only accepted tasks are told of");
        match note {
            Note::Started => stored.runs = stored.end.is_none(),
            Note::Requeued => stored.runs = false,
            Note::Refused => panic!("there is room"),
            Note::Retry { delay, .. } => {
                self.seen.insert(if delay.is_some() { "put off" } else { "tried again at once" });
                stored.runs = false;
                if stored.end.is_none() {
                    stored.attempts = stored.attempts.max(attempts);
                    stored.due = delay.map(|delay| now.after(delay));
                }
            }
            Note::Ended { state, .. } => {
                if state == TaskState::Expired {
                    assert!(stored.deadline.is_some_and(|deadline| deadline <= now), "before its time");
                }
                if state == TaskState::Dead {
                    assert_eq!(attempts, stored.max_attempts);
                }
                self.end(id, state);
            }
        }
    }

    /// Records an end. As the store is told at once here, the scheduler never gives a task a second one.
    fn end(&mut self, id: BackgroundId, state: TaskState) {
        let stored = self.store.get_mut(&id).expect("only accepted tasks end");
        assert_eq!(stored.end, None, "it ends a second time, as {state}");
        (stored.end, stored.runs) = (Some(state), false);
        self.seen.insert(state.name());
    }
}

#[test]
fn whatever_happens_every_background_task_that_was_accepted_has_one_end() {
    let only = super::number_from_environment("REPARTO_SIMULATION_SEED");
    let seeds = super::number_from_environment("REPARTO_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let mut seen = BTreeSet::new();
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        match std::panic::catch_unwind(|| Simulation::new(seed).run()) {
            Ok(happened) => seen.extend(happened),
            Err(_) => panic!("seed {seed} failed; replay it with REPARTO_SIMULATION_SEED={seed}"),
        }
    }
    if only.is_none() && seeds >= 100 {
        let unseen: Vec<&str> = MUST_BE_SEEN.into_iter().filter(|what| !seen.contains(what)).collect();
        assert!(unseen.is_empty(), "in {seeds} seeds these have never happened: {unseen:?}");
    }
}
