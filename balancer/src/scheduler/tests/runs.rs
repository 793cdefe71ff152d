//! Tasks and results taken as runs: nothing else happens than if each had come alone.

use std::collections::VecDeque;

use fastrand::Rng;

use super::*;

/// Two schedulers that are told the same, the one in runs and the other one by one.
struct Twins {
    runs: World,
    singly: World,
    random: Rng,
    clients: Vec<(Peer, u64)>,
    workers: Vec<Peer>,
    /// Assignments that were made, oldest first, whatever became of them.
    made: VecDeque<(Peer, AssignmentId)>,
    /// Assignments that went to the first way, over all.
    seen: usize,
}

const ACTIONS: [&str; 3] = ["a", "b", "c"];
const BYTES: [u8; 6000] = [b'x'; 6000];

impl Twins {
    fn new(seed: u64) -> Twins {
        let mut random = Rng::with_seed(seed);
        let policies = [Policy::RoundRobin, Policy::LeastLoaded, Policy::Weighted];
        let mut config = Config { policy: policies[random.usize(..3)], ..Config::default() };
        if random.u8(..3) == 0 {
            (config.max_tasks, config.max_bytes) = (random.usize(100..2000), random.usize(10_000..200_000));
        }
        if random.bool() {
            config.unknown_action = UnknownAction::Reject;
        }
        let (clients, workers, made) = (Vec::new(), Vec::new(), VecDeque::new());
        let (runs, singly) = (World::new(config.clone()), World::new(config));
        Twins { runs, singly, random, clients, workers, made, seen: 0 }
    }

    /// Both have said the same.
    fn compare(&mut self, runs: &[Out], singly: &[Out]) {
        if let Some(at) = (0..runs.len().max(singly.len())).find(|at| runs.get(*at) != singly.get(*at)) {
            panic!("effect {at}: in a run {:?}, one by one {:?}", runs.get(at), singly.get(at));
        }
        self.made.extend(assignments(runs));
        self.seen += assignments(runs).len();
        assert_eq!(self.runs.scheduler.totals(), self.singly.scheduler.totals());
        assert_eq!(self.runs.scheduler.next_timer(), self.singly.scheduler.next_timer());
    }

    fn both(&mut self, event: Event<'_>) {
        let runs = self.runs.handle(event.clone());
        let singly = self.singly.handle(event);
        self.compare(&runs, &singly);
    }

    fn client_comes(&mut self) {
        let peer = self.runs.peer();
        self.singly.peer();
        self.both(Event::ClientJoined { peer });
        self.clients.push((peer, 0));
    }

    fn worker_comes(&mut self) {
        let peer = self.runs.peer();
        self.singly.peer();
        let threads = self.random.u32(1..4);
        let offered = self.random.usize(1..=ACTIONS.len());
        let registration = Registration {
            request: 1,
            worker_id: &format!("worker-{}", peer.index),
            threads,
            window: threads + self.random.u32(..300),
            weight: self.random.u32(1..4),
            service_ns: self.random.bool().then(|| self.random.u64(..100_000)),
            heartbeats: true,
            held: Vec::new(),
            actions: ACTIONS[..offered].to_vec(),
        };
        self.both(Event::Register { peer, registration });
        self.workers.push(peer);
    }

    fn any<T: Copy>(random: &mut Rng, all: &[T]) -> Option<T> {
        random.choice(all).copied()
    }

    fn tasks_come(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.random.usize(..self.clients.len());
        let (peer, last) = &mut self.clients[at];
        let action = ACTIONS[self.random.usize(..ACTIONS.len())];
        let count = 1 << self.random.u32(..9);
        let most_bytes = [0, 64, 200, 6000][self.random.usize(..4)];
        let tasks: Vec<(u64, Payload<'_>)> = (0..count)
            .map(|_| {
                *last += 1;
                // Now and then a number that is taken, or far away.
                let id = match self.random.u8(..50) {
                    0 => (*last).saturating_sub(self.random.u64(..20)).max(1),
                    1 => *last + (self.random.u64(1..4) << 40),
                    _ => *last,
                };
                (id, Payload::new(&BYTES[..self.random.usize(..=most_bytes)]))
            })
            .collect();
        let (peer, now) = (*peer, self.runs.now);
        let mut effects = Vec::new();
        self.runs.scheduler.submit_all(now, peer, action, &mut tasks.iter().copied(), &mut effects);
        self.runs.scheduler.assert_invariants();
        let runs: Vec<Out> = effects.into_iter().map(Out::from).collect();
        let submit = |(id, payload)| Event::Submit { peer, task: Submission::new(id, action, payload) };
        let singly: Vec<Out> = tasks.into_iter().flat_map(|task| self.singly.handle(submit(task))).collect();
        self.compare(&runs, &singly);
    }

    /// A task with options that tasks in a run do not have.
    fn a_task_comes(&mut self) {
        let Some(at) = (!self.clients.is_empty()).then(|| self.random.usize(..self.clients.len())) else {
            return;
        };
        let (peer, last) = &mut self.clients[at];
        *last += 1;
        let (peer, mut task) = (*peer, Submission::new(*last, "a", Payload::new(b"x")));
        match self.random.u8(..3) {
            0 => task.deadline = Some(Duration::from_millis(self.random.u64(1..2000))),
            1 => task.key = b"key",
            _ => task.priority = self.random.u8(..10),
        }
        self.both(Event::Submit { peer, task });
    }

    fn results_come(&mut self) {
        let Some(peer) = Self::any(&mut self.random, &self.workers) else { return };
        let most = 1 << self.random.u32(..9);
        let mut results = Vec::new();
        for _ in 0..self.made.len() {
            let Some((worker, assignment)) = self.made.pop_front() else { break };
            if worker == peer && results.len() < most {
                results.push(assignment);
                // Now and then one comes twice, and one is another's or nobody's.
                match self.random.u8(..60) {
                    0 => results.push(assignment),
                    1 => results.push(AssignmentId(assignment.0.wrapping_add(1 << self.random.u32(..64)))),
                    _ => {}
                }
            } else {
                self.made.push_back((worker, assignment));
            }
        }
        let payload = Payload::new(b"result");
        let mut effects = Vec::new();
        let mut run = results.iter().map(|assignment| (*assignment, payload));
        self.runs.scheduler.finish_all(self.runs.now, peer, &mut run, &mut effects);
        self.runs.scheduler.assert_invariants();
        let runs: Vec<Out> = effects.into_iter().map(Out::from).collect();
        let mut singly = Vec::new();
        for assignment in results {
            let finish = Finish::Done;
            let event = Event::Finished { peer, assignment, finish, service_ns: None, payload };
            singly.extend(self.singly.handle(event));
        }
        self.compare(&runs, &singly);
    }

    fn something_else_happens(&mut self) {
        match self.random.u8(..8) {
            0 if !self.workers.is_empty() => {
                let peer = self.workers.swap_remove(self.random.usize(..self.workers.len()));
                self.both(Event::Gone { peer });
            }
            1 if self.clients.len() > 1 => {
                let (peer, _) = self.clients.swap_remove(self.random.usize(..self.clients.len()));
                self.both(Event::Gone { peer });
            }
            2 => {
                if let Some((peer, last)) = Self::any(&mut self.random, &self.clients) {
                    let id = last.saturating_sub(self.random.u64(..50));
                    self.both(Event::Cancel { peer, id });
                }
            }
            3 => {
                if let Some(peer) = Self::any(&mut self.random, &self.workers) {
                    let resume = self.random.bool();
                    self.both(Event::Drain { peer, request: 2, resume });
                }
            }
            4 => {
                if let Some(peer) = Self::any(&mut self.random, &self.workers) {
                    self.both(Event::Heard { peer });
                }
            }
            _ => {
                let time = Duration::from_micros(1 << self.random.u32(..24));
                let (runs, singly) = (self.runs.pass(time), self.singly.pass(time));
                self.compare(&runs, &singly);
            }
        }
    }

    fn step(&mut self) {
        match self.random.u8(..20) {
            0 if self.clients.len() < 5 => self.client_comes(),
            1 | 2 if self.workers.len() < 6 => self.worker_comes(),
            3 => self.a_task_comes(),
            4 | 5 => self.something_else_happens(),
            6..=12 => self.tasks_come(),
            _ => self.results_come(),
        }
    }
}

#[test]
fn a_run_does_what_its_events_would_do_one_by_one() {
    let seeds = match std::env::var("REPARTO_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("REPARTO_SIMULATION_SEED is a number")],
        Err(_) => (0..150).collect::<Vec<u64>>(),
    };
    let mut seen = 0;
    for seed in seeds {
        println!("REPARTO_SIMULATION_SEED={seed}");
        let mut twins = Twins::new(seed);
        for _ in 0..150 {
            twins.step();
        }
        twins.both(Event::Shutdown { grace: Duration::from_millis(5) });
        twins.tasks_come();
        twins.results_come();
        seen += twins.seen;
    }
    assert!(seen > 1000, "so few assignments show nothing: {seen}");
}

#[test]
fn a_run_of_a_peer_that_is_not_known_is_dropped_whole() {
    let mut world = world();
    let peer = world.peer();
    let mut effects = Vec::new();
    let mut tasks = (1..4).map(|id| (id, Payload::new(b"x")));
    world.scheduler.submit_all(world.now, peer, "a", &mut tasks, &mut effects);
    let mut results = (1..4).map(|id| (AssignmentId(id), Payload::new(b"x")));
    world.scheduler.finish_all(world.now, peer, &mut results, &mut effects);
    assert!(effects.is_empty() && tasks.next().is_none() && results.next().is_none());
}
