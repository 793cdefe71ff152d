//! The rules, one by one, with time moved by hand.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

use super::*;

mod background;
mod bounds;
mod end;
mod order;
mod pulling;
mod runs;
mod tasks;
mod workers;

/// A scheduler, a clock, and what came out last.
struct World {
    scheduler: Scheduler,
    now: Time,
    peers: u32,
}

/// What came out, shortened to what tests ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Out {
    Assign(Peer, AssignmentId),
    Cancel(Peer, AssignmentId),
    Recall(Peer, AssignmentId),
    Result(Peer, u64, Bytes),
    Fail(Peer, u64, ErrorCode),
    Progress(Peer, u64, u64),
    Ack(Peer, u64),
    Ping(Peer),
    GoAway(Peer),
    Close(Peer, ErrorCode),
    Note(BackgroundId, u8, String),
    Claim(Peer, BackgroundId),
    Unwanted(Peer, BackgroundId),
    Created(Peer, u64),
    Refused(Peer, u64, ErrorCode),
    NoTask(Peer),
    Wake(Peer),
    Stopped,
}

impl From<Effect<'_>> for Out {
    fn from(effect: Effect<'_>) -> Out {
        match effect {
            Effect::Assign { peer, assignment } => Out::Assign(peer, assignment),
            Effect::CancelAssignment { peer, assignment, recall: false } => Out::Cancel(peer, assignment),
            Effect::CancelAssignment { peer, assignment, recall: true } => Out::Recall(peer, assignment),
            Effect::Result { peer, id, payload } => Out::Result(peer, id, payload.to_bytes()),
            Effect::Fail { peer, id, code, .. } => Out::Fail(peer, id, code),
            Effect::Progress { peer, id, done, .. } => Out::Progress(peer, id, done),
            Effect::Acknowledge { peer, request, .. } => Out::Ack(peer, request),
            Effect::Ping { peer } => Out::Ping(peer),
            Effect::GoAway { peer } => Out::GoAway(peer),
            Effect::Close { peer, code, .. } => Out::Close(peer, code),
            Effect::Note { id, attempts, note } => Out::Note(id, attempts, in_short(note)),
            Effect::Claim { peer, id } => Out::Claim(peer, id),
            Effect::Unwanted { peer, id } => Out::Unwanted(peer, id),
            Effect::Created { peer, id } => Out::Created(peer, id),
            Effect::Refused { peer, id, code, .. } => Out::Refused(peer, id, code),
            Effect::NoTask { peer } => Out::NoTask(peer),
            Effect::Wake { peer } => Out::Wake(peer),
            Effect::Answer { .. } => unreachable!("the store is not here"),
            Effect::Stopped => Out::Stopped,
        }
    }
}

/// What a store is told, in words.
fn in_short(note: Note<'_>) -> String {
    match note {
        Note::Started => "started".into(),
        Note::Requeued => "requeued".into(),
        Note::Refused => "refused".into(),
        Note::Retry { worker, message, delay: None } => format!("retry at once, {worker}: {message}"),
        Note::Retry { worker, message, .. } => format!("retry later, {worker}: {message}"),
        Note::Ended { state, failure: None, payload } => {
            format!("{state} {}", String::from_utf8_lossy(payload.as_slice()))
        }
        Note::Ended { state, failure: Some((code, message)), .. } => format!("{state} {code}: {message}"),
    }
}

/// A worker that says no more of itself than it must.
fn plain<'a>(worker_id: &'a str, threads: u32, window: u32, actions: &[&'a str]) -> Registration<'a> {
    Registration {
        request: 1,
        worker_id,
        threads,
        window,
        weight: 1,
        service_ns: None,
        heartbeats: true,
        held: Vec::new(),
        actions: actions.to_vec(),
    }
}

impl World {
    fn new(config: Config) -> Self {
        World { scheduler: Scheduler::new(config), now: Time(1_000_000), peers: 0 }
    }

    fn handle(&mut self, event: Event<'_>) -> Vec<Out> {
        let mut effects = Vec::new();
        self.scheduler.handle(self.now, event, &mut effects);
        self.scheduler.assert_invariants();
        effects.into_iter().map(Out::from).collect()
    }

    /// Moves time on, stopping at every timer on the way.
    fn pass(&mut self, duration: Duration) -> Vec<Out> {
        let end = self.now.after(duration);
        let mut effects = Vec::new();
        while let Some(at) = self.scheduler.next_timer().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.scheduler.tick(self.now, &mut effects);
            self.scheduler.assert_invariants();
        }
        self.now = end;
        effects.into_iter().map(Out::from).collect()
    }

    /// One tick at the present moment.
    fn tick(&mut self) -> Vec<Out> {
        let mut effects = Vec::new();
        self.scheduler.tick(self.now, &mut effects);
        self.scheduler.assert_invariants();
        effects.into_iter().map(Out::from).collect()
    }

    /// Something is left to do at the present moment.
    fn more_is_due(&self) -> bool {
        self.scheduler.next_timer().is_some_and(|at| at <= self.now)
    }

    fn peer(&mut self) -> Peer {
        self.peers += 1;
        Peer { index: self.peers - 1, generation: 1 }
    }

    fn client(&mut self) -> Peer {
        let peer = self.peer();
        assert_eq!(self.handle(Event::ClientJoined { peer }), []);
        peer
    }

    /// A worker that may hold `room` tasks.
    fn worker(&mut self, id: &str, threads: u32, room: u32, actions: &[&str]) -> Peer {
        self.worker_and_out(id, threads, room, actions).0
    }

    fn worker_and_out(&mut self, id: &str, threads: u32, room: u32, actions: &[&str]) -> (Peer, Vec<Out>) {
        let peer = self.peer();
        let mut out = self.register(peer, id, threads, room, actions);
        assert_eq!(out.remove(0), Out::Ack(peer, 1));
        (peer, out)
    }

    fn register(&mut self, peer: Peer, id: &str, threads: u32, room: u32, actions: &[&str]) -> Vec<Out> {
        let service_ns = (room > threads).then_some(1);
        let registration = Registration { service_ns, ..plain(id, threads, room, actions) };
        self.handle(Event::Register { peer, registration })
    }

    fn submit(&mut self, peer: Peer, id: u64, action: &str) -> Vec<Out> {
        self.handle(Event::Submit { peer, task: Submission::new(id, action, Payload::new(b"x")) })
    }

    fn submit_with<'a>(&mut self, peer: Peer, id: u64, change: impl FnOnce(&mut Submission<'a>)) -> Vec<Out> {
        let mut task = Submission::new(id, "a", Payload::new(b"x"));
        change(&mut task);
        self.handle(Event::Submit { peer, task })
    }

    /// Submits a task that goes straight to a worker.
    fn assigned(&mut self, client: Peer, id: u64) -> (Peer, AssignmentId) {
        match self.submit(client, id, "a")[..] {
            [Out::Assign(worker, assignment)] => (worker, assignment),
            ref other => panic!("not assigned: {other:?}"),
        }
    }

    fn finish(&mut self, (peer, assignment): (Peer, AssignmentId), finish: Finish<'_>) -> Vec<Out> {
        let payload = Payload::new(b"result");
        self.handle(Event::Finished { peer, assignment, finish, service_ns: None, payload })
    }

    fn gone(&mut self, peer: Peer) -> Vec<Out> {
        self.handle(Event::Gone { peer })
    }
}

fn world() -> World {
    World::new(Config::default())
}

fn result() -> Bytes {
    Bytes::from_static(b"result")
}

fn assignments(out: &[Out]) -> Vec<(Peer, AssignmentId)> {
    out.iter()
        .filter_map(|out| match out {
            Out::Assign(peer, assignment) => Some((*peer, *assignment)),
            _ => None,
        })
        .collect()
}

const SECOND: Duration = Duration::from_secs(1);
