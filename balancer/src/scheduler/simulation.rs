//! Days of faults in seconds: random clients and workers that join, crash, hang, cancel, drain and change their
//! minds, all from one seed.
//!
//! After every step the scheduler's invariants are checked, and the outside keeps its own books: what each client
//! is owed, what each worker holds. When a seed fails, it is printed, and `REPARTO_SIMULATION_SEED=N` replays it
//! alone; `REPARTO_SIMULATION_SEEDS=N` runs another number of seeds.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use reparto_protocol::ErrorCode;

use super::*;

const SEEDS: u64 = 3_000;
const STEPS: usize = 400;
const ACTIONS: [&str; 4] = ["a", "b", "c", "d"];

/// A worker as the outside sees it.
#[derive(Debug, Default)]
struct SimWorker {
    id: String,
    window: u32,
    /// Assignments that it has not answered, the oldest first.
    holds: Vec<AssignmentId>,
    /// It neither answers nor gives a sign of life.
    hangs: bool,
    draining: bool,
    /// It hands back what is recalled.
    recalls: bool,
}

struct Simulation {
    random: Rng,
    scheduler: Scheduler,
    now: Time,
    generations: Vec<u32>,
    free_rows: Vec<u32>,
    /// What each client is owed an answer for.
    clients: BTreeMap<Peer, BTreeSet<u64>>,
    workers: BTreeMap<Peer, SimWorker>,
    assignments_seen: HashSet<AssignmentId>,
    next_id: u64,
    stopped: bool,
    /// Folds everything that came out, to compare two runs.
    trace: u64,
    max_tasks: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let policies = [Policy::RoundRobin, Policy::LeastLoaded, Policy::Weighted];
        let max_tasks = random.usize(5..200);
        let config = Config {
            policy: policies[random.usize(..3)],
            unknown_action: if random.u8(..4) == 0 { UnknownAction::Reject } else { UnknownAction::Wait },
            max_tasks,
            max_bytes: random.usize(1_000..200_000),
            max_worker_bytes: random.usize(100..20_000),
            max_actions: random.usize(2..6),
            max_workers: 12,
            aging: Duration::from_millis(random.u64(1..10_000)),
            seed,
            ..Config::default()
        };
        let mut scheduler = Scheduler::new(config);
        scheduler.work_a_call = 1 << random.u32(..8);
        Simulation {
            random,
            scheduler,
            now: Time(0),
            generations: Vec::new(),
            free_rows: Vec::new(),
            clients: BTreeMap::new(),
            workers: BTreeMap::new(),
            assignments_seen: HashSet::new(),
            next_id: 1,
            stopped: false,
            trace: 0,
            max_tasks,
        }
    }

    fn run(mut self) -> u64 {
        for _ in 0..STEPS {
            self.step();
        }
        if self.random.u8(..3) == 0 {
            let grace = Duration::from_secs(self.random.u64(..20));
            self.handle(Event::Shutdown { grace });
            self.finish_everything();
            assert!(self.stopped, "a shutdown ends");
        } else {
            self.finish_everything();
        }
        self.settle();
        self.trace
    }

    fn step(&mut self) {
        match self.random.u8(..100) {
            0..4 => self.client_joins(),
            4..5 => self.client_leaves(),
            5..10 => self.worker_registers(),
            10..12 => self.worker_leaves(),
            12..14 => self.worker_hangs_or_wakes(),
            14..17 => self.worker_drains_or_resumes(),
            17..19 => self.worker_changes(),
            19..55 => self.submits(),
            55..60 => self.cancels(),
            60..63 => self.tells_progress(),
            63..90 => self.answers(),
            90..92 => self.tells_nonsense(),
            _ => self.time_passes(),
        }
    }

    // ---- what may happen ----

    fn client_joins(&mut self) {
        if self.clients.len() < 8 {
            let peer = self.peer();
            self.clients.insert(peer, BTreeSet::new());
            self.handle(Event::ClientJoined { peer });
        }
    }

    fn client_leaves(&mut self) {
        if let Some(peer) = self.any_client() {
            self.clients.remove(&peer);
            self.handle(Event::Gone { peer });
            self.free_rows.push(peer.index);
        }
    }

    fn worker_registers(&mut self) {
        let id = format!("w{}", self.random.u8(..10));
        let taken = self.workers.values().any(|worker| worker.id == id);
        let peer = self.peer();
        if !taken {
            let recalls = self.random.bool();
            self.workers.insert(peer, SimWorker { id: id.clone(), recalls, ..SimWorker::default() });
        }
        self.register(peer, &id);
        assert_eq!(self.workers.contains_key(&peer), self.known_worker(peer));
        if taken {
            self.free_rows.push(peer.index);
        }
    }

    fn worker_changes(&mut self) {
        if let Some(peer) = self.any_worker(|_| true) {
            let id = self.workers[&peer].id.clone();
            self.register(peer, &id);
        }
    }

    fn register(&mut self, peer: Peer, id: &str) {
        let threads = self.random.u32(1..5);
        let window = threads + self.random.u32(..20);
        if let Some(worker) = self.workers.get_mut(&peer) {
            worker.window = worker.window.max(window);
        }
        let actions = ACTIONS.into_iter().filter(|_| self.random.bool()).collect();
        let registration = Registration {
            request: 1,
            worker_id: id,
            threads,
            window,
            weight: self.random.u32(1..6),
            service_ns: self.random.bool().then(|| 1 << self.random.u32(..24)),
            actions,
        };
        self.handle(Event::Register { peer, registration });
    }

    fn worker_leaves(&mut self) {
        if let Some(peer) = self.any_worker(|_| true) {
            self.workers.remove(&peer);
            self.handle(Event::Gone { peer });
            self.free_rows.push(peer.index);
        }
    }

    fn worker_hangs_or_wakes(&mut self) {
        if let Some(peer) = self.any_worker(|_| true) {
            self.workers.entry(peer).and_modify(|worker| worker.hangs = !worker.hangs);
        }
    }

    fn worker_drains_or_resumes(&mut self) {
        if let Some(peer) = self.any_worker(|_| true) {
            let worker = self.workers.entry(peer).or_default();
            worker.draining = !worker.draining;
            let resume = !worker.draining;
            self.handle(Event::Drain { peer, request: 1, resume });
        }
    }

    fn submits(&mut self) {
        for _ in 0..self.random.u8(1..6) {
            let Some(peer) = self.any_client() else { return };
            let duplicate = self.random.u8(..30) == 0;
            let id = match self.clients[&peer].first() {
                Some(id) if duplicate => *id,
                _ => self.next_id,
            };
            self.next_id += 1;
            let bytes = if self.random.u8(..10) == 0 { 1 << self.random.u32(..16) } else { 10 };
            let action = ACTIONS[self.random.usize(..ACTIONS.len())];
            let mut task = Submission::new(id, action, Bytes::from(vec![0; bytes]));
            task.priority = self.random.u8(..10);
            task.max_attempts = self.random.u8(1..5);
            if self.random.u8(..4) == 0 {
                task.deadline = Some(Duration::from_millis(1 << self.random.u32(..18)));
            }
            if self.random.u8(..4) == 0 {
                task.wait = Some(Duration::from_millis(1 << self.random.u32(..18)));
            }
            if self.random.u8(..4) == 0 {
                task.key = [&b"k"[..], b"l"][self.random.usize(..2)];
            }
            let owed_before = self.clients.entry(peer).or_default().contains(&id);
            if owed_before {
                // Refused as a duplicate: one more answer than is owed comes for this number.
                let answers = self.handle_and_keep(Event::Submit { peer, task });
                assert!(matches!(
                    answers[..],
                    [Effect::Fail { code: ErrorCode::DuplicateTask | ErrorCode::ShuttingDown, .. }]
                ));
            } else {
                self.clients.entry(peer).or_default().insert(id);
                self.handle(Event::Submit { peer, task });
            }
        }
    }

    fn cancels(&mut self) {
        let Some(peer) = self.any_client() else { return };
        let owed: Vec<u64> = self.clients[&peer].iter().copied().collect();
        let id = if owed.is_empty() { 0 } else { owed[self.random.usize(..owed.len())] };
        self.handle(Event::Cancel { peer, id });
        assert!(!self.clients[&peer].contains(&id), "a cancelled task is answered at once");
    }

    fn tells_progress(&mut self) {
        if let Some(peer) = self.any_worker(|worker| !worker.hangs && !worker.holds.is_empty()) {
            let assignment = self.workers[&peer].holds[0];
            let payload = Bytes::new();
            self.handle(Event::Progress { peer, assignment, done: 1, total: 2, payload });
        }
    }

    fn answers(&mut self) {
        for _ in 0..self.random.u8(1..8) {
            let working = |worker: &SimWorker| !worker.hangs && !worker.holds.is_empty();
            let Some(peer) = self.any_worker(working) else { return };
            let at = self.random.usize(..self.workers[&peer].holds.len());
            let finish = match self.random.u8(..20) {
                0 => Finish::Failed("failed"),
                1 => Finish::Retry("not now"),
                2 => Finish::NotRun,
                _ => Finish::Done,
            };
            self.answer(peer, at, finish);
        }
    }

    fn answer(&mut self, peer: Peer, at: usize, finish: Finish<'_>) {
        let Some(worker) = self.workers.get_mut(&peer) else { return };
        let assignment = worker.holds.remove(at);
        self.handle(Event::Heard { peer });
        let service_ns = (self.random.u8(..10) == 0).then(|| 1 << self.random.u32(..24));
        let payload = Bytes::from_static(b"result");
        self.handle(Event::Finished { peer, assignment, finish, service_ns, payload });
    }

    /// Answers to assignments that were never made, or to another worker.
    fn tells_nonsense(&mut self) {
        let Some(peer) = self.any_worker(|_| true) else { return };
        let other = self.workers.values().find_map(|worker| worker.holds.first()).copied();
        let assignment = match other {
            Some(id) if self.random.bool() && !self.workers[&peer].holds.contains(&id) => id,
            _ => AssignmentId(self.random.u64(..)),
        };
        let finish = Finish::Done;
        self.handle(Event::Finished { peer, assignment, finish, service_ns: None, payload: Bytes::new() });
    }

    fn time_passes(&mut self) {
        let reach = 1 << self.random.u32(..25);
        let end = Time(self.now.0 + self.random.u64(..reach));
        while let Some(at) = self.scheduler.next_timer().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let alive: Vec<Peer> =
                self.workers.iter().filter(|(_, worker)| !worker.hangs).map(|(peer, _)| *peer).collect();
            for peer in alive {
                self.handle(Event::Heard { peer });
            }
            self.tick();
        }
        self.now = end;
    }

    /// Ticks until nothing is due any more, which takes no more calls than there can be work.
    fn tick(&mut self) {
        for _ in 0..100_000 {
            let mut effects = Vec::new();
            self.scheduler.tick(self.now, &mut effects);
            self.carry_out(effects);
            if self.scheduler.next_timer().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("a timer is due again and again at one moment");
    }

    /// Every worker wakes up and answers, and time passes, until all is quiet.
    fn finish_everything(&mut self) {
        for worker in self.workers.values_mut() {
            worker.hangs = false;
        }
        for _ in 0..50 {
            let peers: Vec<Peer> = self.workers.keys().copied().collect();
            for peer in peers {
                while self.workers.get(&peer).is_some_and(|worker| !worker.holds.is_empty()) {
                    self.answer(peer, 0, Finish::Done);
                }
            }
            self.now = Time(self.now.0 + 10_000_000);
            let alive: Vec<Peer> = self.workers.keys().copied().collect();
            for peer in alive {
                self.handle(Event::Heard { peer });
            }
            self.tick();
        }
    }

    /// What still waits has no worker and no end to its waiting: its clients cancel it. Then nothing is left.
    fn settle(&mut self) {
        let owed: Vec<(Peer, u64)> =
            self.clients.iter().flat_map(|(peer, ids)| ids.iter().map(|id| (*peer, *id))).collect();
        for (peer, id) in owed {
            self.handle(Event::Cancel { peer, id });
        }
        assert!(self.clients.values().all(BTreeSet::is_empty), "someone is still owed an answer");
        self.tick();
        assert!(self.scheduler.is_quiet(), "something is left: {:?}", self.scheduler.totals());
        let peers: Vec<Peer> = self.clients.keys().chain(self.workers.keys()).copied().collect();
        for peer in peers {
            self.handle(Event::Gone { peer });
        }
        self.tick();
        let totals = self.scheduler.totals();
        assert_eq!((totals.clients, totals.workers, totals.actions), (0, 0, 0));
        assert_eq!(self.scheduler.next_timer(), None);
    }

    // ---- the books ----

    fn handle(&mut self, event: Event<'_>) {
        let effects = self.handle_and_keep(event);
        self.carry_out(effects);
    }

    fn handle_and_keep(&mut self, event: Event<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.scheduler.handle(self.now, event, &mut effects);
        effects
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.trace = self.trace.rotate_left(5) ^ self.scheduler.hasher.hash_one(format!("{effect:?}"));
            self.note(effect);
        }
        self.scheduler.assert_invariants();
        assert!(self.scheduler.tasks.len() <= self.max_tasks + self.max_tasks / 16);
    }

    fn note(&mut self, effect: Effect) {
        match effect {
            Effect::Assign { peer, assignment } => {
                assert!(self.assignments_seen.insert(assignment), "an assignment's id is new");
                let worker = self.workers.get_mut(&peer).expect("a task is given to a worker that is there");
                worker.holds.push(assignment);
                assert!(!worker.draining, "a draining worker is given a task");
                assert!(worker.holds.len() <= worker.window as usize, "a worker is over its window");
            }
            Effect::CancelAssignment { peer, assignment, recall } => {
                let worker = self.workers.get_mut(&peer).expect("a cancel is for a worker that is there");
                let at = worker.holds.iter().position(|held| *held == assignment);
                let at = at.expect("a cancel is for what the worker holds");
                if recall && worker.recalls && !worker.hangs {
                    worker.holds.remove(at);
                    let (finish, payload) = (Finish::NotRun, Bytes::new());
                    self.handle(Event::Finished { peer, assignment, finish, service_ns: None, payload });
                }
            }
            Effect::Result { peer, id, payload } => {
                assert_eq!(payload, b"result"[..]);
                self.answered(peer, id);
            }
            Effect::Fail { peer, id, .. } => self.answered(peer, id),
            Effect::Progress { peer, id, .. } => {
                assert!(self.clients[&peer].contains(&id), "progress comes before the answer");
            }
            Effect::Close { peer, .. } => {
                if self.workers.remove(&peer).is_some() {
                    self.free_rows.push(peer.index);
                }
            }
            Effect::Stopped => {
                assert!(!std::mem::replace(&mut self.stopped, true), "it stops once");
                assert!(self.clients.values().all(BTreeSet::is_empty), "it stops when all are answered");
            }
            Effect::Acknowledge { .. } | Effect::Ping { .. } | Effect::GoAway { .. } => {}
        }
    }

    fn answered(&mut self, peer: Peer, id: u64) {
        let owed = self.clients.get_mut(&peer).expect("an answer is for a client that is there");
        assert!(owed.remove(&id), "task {id} has a second answer, or one that nobody asked for");
    }

    fn known_worker(&self, peer: Peer) -> bool {
        matches!(self.scheduler.role(peer), Role::Worker(_))
    }

    fn peer(&mut self) -> Peer {
        let index = self.free_rows.pop().unwrap_or_else(|| {
            self.generations.push(0);
            (self.generations.len() - 1) as u32
        });
        self.generations[index as usize] += 1;
        Peer { index, generation: self.generations[index as usize] }
    }

    fn any_client(&mut self) -> Option<Peer> {
        let peers: Vec<Peer> = self.clients.keys().copied().collect();
        (!peers.is_empty()).then(|| peers[self.random.usize(..peers.len())])
    }

    fn any_worker(&mut self, fits: impl Fn(&SimWorker) -> bool) -> Option<Peer> {
        let peers: Vec<Peer> =
            self.workers.iter().filter(|(_, worker)| fits(worker)).map(|(peer, _)| *peer).collect();
        (!peers.is_empty()).then(|| peers[self.random.usize(..peers.len())])
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn whatever_happens_every_task_ends_once_and_nothing_is_left() {
    let only = number_from_environment("REPARTO_SIMULATION_SEED");
    let seeds = number_from_environment("REPARTO_SIMULATION_SEEDS").unwrap_or(SEEDS);
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        let run = std::panic::catch_unwind(|| Simulation::new(seed).run());
        assert!(run.is_ok(), "seed {seed} failed; replay it with REPARTO_SIMULATION_SEED={seed}");
    }
}

#[test]
fn one_seed_gives_one_history() {
    for seed in 0..20 {
        assert_eq!(Simulation::new(seed).run(), Simulation::new(seed).run(), "seed {seed}");
    }
}
