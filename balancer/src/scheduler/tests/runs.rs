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
    /// Workers that pull; some are clients as well.
    pullers: Vec<Peer>,
    /// Assignments that were made, oldest first, whatever became of them.
    made: VecDeque<(Peer, AssignmentId)>,
    /// Assignments that went to the first way, over all.
    seen: usize,
    /// Of those, the ones that workers asked for.
    pulled: usize,
    /// Some workers are given tasks unasked.
    has_pushed: bool,
}

/// Effects, with all that the dialect of a pull worker is told of an assignment.
#[derive(Debug, Default)]
struct InFull(Vec<(Out, String)>);

impl<'a> Effects<'a> for InFull {
    fn push(&mut self, effect: Effect<'a>) {
        self.0.push((effect.into(), String::new()));
    }

    fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: Assignment<'_>) {
        self.0.push((Out::Assign(peer, assignment), format!("{details:?}")));
    }

    fn count(&self) -> usize {
        self.0.len()
    }
}

impl InFull {
    fn outs(&self) -> Vec<Out> {
        self.0.iter().map(|(out, _)| out.clone()).collect()
    }
}

const ACTIONS: [&str; 3] = ["a", "b", "c"];
static BYTES: [u8; 6000] = [b'x'; 6000];

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
        let (runs, singly) = (World::new(config.clone()), World::new(config));
        let has_pushed = random.bool();
        let (clients, workers, pullers, made) = (Vec::new(), Vec::new(), Vec::new(), VecDeque::new());
        Twins { runs, singly, random, clients, workers, pullers, made, seen: 0, pulled: 0, has_pushed }
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
            service_ns: self
                .random
                .bool()
                .then(|| self.random.u64(..100_000) / [1, 100][self.random.usize(..2)]),
            heartbeats: true,
            held: Vec::new(),
            actions: ACTIONS[..offered].to_vec(),
        };
        self.both(Event::Register { peer, registration });
        self.workers.push(peer);
    }

    /// A worker that pulls comes, and is now and then a client, too.
    fn puller_comes(&mut self) {
        let peer = self.runs.peer();
        self.singly.peer();
        let is_client = self.random.u8(..4) == 0;
        if is_client {
            self.both(Event::ClientJoined { peer });
            self.clients.push((peer, 0));
        }
        self.both(Event::PullerJoined { peer, from: None });
        let offered = if self.random.bool() { 1 } else { self.random.usize(1..=ACTIONS.len()) };
        for action in &ACTIONS[..offered] {
            let limit = (self.random.u8(..8) == 0).then_some(Duration::from_secs(1));
            self.both(Event::Pull { peer, pull: Pull::CanDo { action, limit } });
        }
        self.pullers.push(peer);
    }

    /// Tasks that are announced, and may wait as long as it takes.
    fn announced_tasks_come(&mut self) {
        let Some(at) = (!self.clients.is_empty()).then(|| self.random.usize(..self.clients.len())) else {
            return;
        };
        let action = ACTIONS[self.random.usize(..ACTIONS.len())];
        let (peer, tasks) = self.tasks_of(at);
        let mut effects = InFull::default();
        self.runs.scheduler.announce_all(
            self.runs.now,
            peer,
            action,
            &mut tasks.iter().copied(),
            &mut effects,
        );
        self.runs.scheduler.assert_invariants();
        let mut singly = InFull::default();
        for (id, payload) in tasks {
            let usual = Submission::new(id, action, payload);
            let task = Submission { announced: true, wait: Some(Duration::MAX), ..usual };
            self.singly.scheduler.handle(self.singly.now, Event::Submit { peer, task }, &mut singly);
        }
        self.compare_in_full(&effects, &singly);
    }

    /// A worker that pulls asks, and sleeps when there is no more.
    fn questions_come(&mut self) {
        let Some(peer) = Self::any(&mut self.random, &self.pullers) else { return };
        let (form, count) = (self.random.u8(..3), 1 << self.random.u32(..9));
        let (mut runs, mut singly) = (InFull::default(), InFull::default());
        self.runs.scheduler.pull_all(self.runs.now, peer, (form, count), &mut runs);
        self.runs.scheduler.assert_invariants();
        for _ in 0..count {
            let event = Event::Pull { peer, pull: Pull::Grab { form } };
            self.singly.scheduler.handle(self.singly.now, event, &mut singly);
        }
        self.pulled += assignments(&runs.outs()).len();
        self.compare_in_full(&runs, &singly);
        if runs.0.iter().any(|(out, _)| *out == Out::NoTask(peer)) && self.random.bool() {
            self.both(Event::Pull { peer, pull: Pull::Sleep });
        }
    }

    fn compare_in_full(&mut self, runs: &InFull, singly: &InFull) {
        let at = (0..runs.0.len().max(singly.0.len())).find(|at| runs.0.get(*at) != singly.0.get(*at));
        if let Some(at) = at {
            panic!("effect {at}: in a run {:?}, one by one {:?}", runs.0.get(at), singly.0.get(at));
        }
        self.compare(&runs.outs(), &singly.outs());
    }

    fn a_puller_changes(&mut self) {
        let Some(peer) = Self::any(&mut self.random, &self.pullers) else { return };
        let action = ACTIONS[self.random.usize(..ACTIONS.len())];
        match self.random.u8(..8) {
            0 => self.both(Event::Pull { peer, pull: Pull::CantDo { action } }),
            1 => self.both(Event::Pull { peer, pull: Pull::CanDo { action, limit: None } }),
            2 => {
                let most = [0, self.random.usize(..300), 0];
                self.runs.scheduler.bound_action(action, most);
                self.singly.scheduler.bound_action(action, most);
            }
            3 => {
                self.pullers.retain(|other| *other != peer);
                self.clients.retain(|(other, _)| *other != peer);
                self.both(Event::Gone { peer });
            }
            _ => self.both(Event::Pull { peer, pull: Pull::Sleep }),
        }
    }

    fn any<T: Copy>(random: &mut Rng, all: &[T]) -> Option<T> {
        random.choice(all).copied()
    }

    fn tasks_come(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.random.usize(..self.clients.len());
        let action = ACTIONS[self.random.usize(..ACTIONS.len())];
        let (peer, tasks) = self.tasks_of(at);
        let now = self.runs.now;
        let mut effects = Vec::new();
        self.runs.scheduler.submit_all(now, peer, action, &mut tasks.iter().copied(), &mut effects);
        self.runs.scheduler.assert_invariants();
        let runs: Vec<Out> = effects.into_iter().map(Out::from).collect();
        let submit = |(id, payload)| Event::Submit { peer, task: Submission::new(id, action, payload) };
        let singly: Vec<Out> = tasks.into_iter().flat_map(|task| self.singly.handle(submit(task))).collect();
        self.compare(&runs, &singly);
    }

    /// What a client's next tasks are: its connection, its numbers and payloads.
    fn tasks_of(&mut self, client: usize) -> (Peer, Vec<(u64, Payload<'static>)>) {
        let (peer, last) = &mut self.clients[client];
        let count = 1 << self.random.u32(..9);
        let most_bytes = [0, 64, 200, 6000][self.random.usize(..4)];
        let tasks = (0..count)
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
        (*peer, tasks)
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
        let pulls = self.random.bool();
        let workers = if pulls { &self.pullers } else { &self.workers };
        let Some(peer) = Self::any(&mut self.random, workers) else { return };
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
                self.pullers.retain(|other| *other != peer);
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
        match self.random.u8(..32) {
            0 if self.clients.len() < 5 => self.client_comes(),
            1 | 2 if self.workers.len() < 6 && self.has_pushed => self.worker_comes(),
            3 => self.a_task_comes(),
            4 | 5 => self.something_else_happens(),
            6..=10 => self.tasks_come(),
            11 if self.pullers.len() < 4 => self.puller_comes(),
            12 => self.a_puller_changes(),
            13..=17 => self.announced_tasks_come(),
            18..=23 => self.questions_come(),
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
    let (mut seen, mut pulled) = (0, 0);
    for seed in seeds {
        println!("REPARTO_SIMULATION_SEED={seed}");
        let mut twins = Twins::new(seed);
        for _ in 0..150 {
            twins.step();
        }
        twins.both(Event::Shutdown { grace: Duration::from_millis(5) });
        twins.tasks_come();
        twins.announced_tasks_come();
        twins.questions_come();
        twins.results_come();
        (seen, pulled) = (seen + twins.seen, pulled + twins.pulled);
    }
    assert!(seen > 1000 && pulled > 1000, "so few assignments show nothing: {seen}, {pulled}");
}

/// Takes nothing out of a run.
struct Deaf;

impl<'a> Effects<'a> for Deaf {
    fn push(&mut self, _: Effect<'a>) {}

    fn result_some(&mut self, _: Peer, _: &mut impl Iterator<Item = (u64, Payload<'a>)>) {}

    fn count(&self) -> usize {
        0
    }
}

#[test]
fn tasks_end_with_their_results_though_nobody_takes_them() {
    let mut world = world();
    let (client, worker) = (world.client(), world.worker("w", 3, 3, &["a"]));
    let mut effects = Vec::new();
    let mut tasks = (1..4).map(|id| (id, Payload::new(b"x")));
    world.scheduler.submit_all(world.now, client, "a", &mut tasks, &mut effects);
    let made = assignments(&effects.into_iter().map(Out::from).collect::<Vec<_>>());
    let mut results = made.into_iter().map(|(_, assignment)| (assignment, Payload::new(b"y")));
    world.scheduler.finish_all(world.now, worker, &mut results, &mut Deaf);
    world.scheduler.assert_invariants();
    let totals = world.scheduler.totals();
    assert_eq!((totals.done, totals.queued, totals.running), (3, 0, 0));
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
    let mut announced = (1..4).map(|id| (id, Payload::new(b"x")));
    world.scheduler.announce_all(world.now, peer, "a", &mut announced, &mut effects);
    world.scheduler.pull_all(world.now, peer, (0, 3), &mut effects);
    assert!(effects.is_empty() && announced.next().is_none());
}
