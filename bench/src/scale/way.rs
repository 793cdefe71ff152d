//! A task's whole way through the balancer without its sockets: bytes in, dialect, scheduler, dialect, bytes out.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reparto_balancer::dialect::{Context, Listener, Output, Session, Step};
use reparto_balancer::scheduler::{
    Assignment, AssignmentId, Config, Effect, Effects, Payload, Peer, Policy, Scheduler, Time,
};
use reparto_protocol::{
    Actions, Frame, HeldTasks, Hello, Message, Outcome, Register, Role, Task, TaskOptions, TaskResult, limits,
};

const ACTION: &str = "echo";

/// What a worker says that a task takes it, in nanoseconds: so short that it is given as many as its window allows.
const SERVICE_NS: u64 = 100;

/// A connection's session, and what waits to be written to it.
#[derive(Debug)]
struct End {
    session: Session,
    output: Output,
}

/// Clients first, then workers. Carries effects out as the reactor does.
#[derive(Debug, Default)]
struct Ends {
    ends: Vec<End>,
    now: Time,
    effects: usize,
}

impl Ends {
    #[inline]
    fn end(&mut self, peer: Peer) -> Option<&mut End> {
        self.ends.get_mut(peer.index as usize)
    }
}

impl<'a> Effects<'a> for Ends {
    fn push(&mut self, effect: Effect<'a>) {
        self.effects += 1;
        let (Effect::Fail { peer, .. } | Effect::Acknowledge { peer, .. }) = effect else { return };
        if let Some(end) = self.end(peer) {
            end.session.encode(effect, &mut end.output);
        }
    }

    #[inline]
    fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: Assignment<'_>) {
        self.effects += 1;
        let now = self.now;
        if let Some(end) = self.end(peer) {
            end.session.assign(now, assignment, &details, &mut end.output);
        }
    }

    #[inline]
    fn result(&mut self, peer: Peer, id: u64, payload: Payload<'a>) {
        self.effects += 1;
        if let Some(end) = self.end(peer) {
            end.session.result(id, payload, &mut end.output);
        }
    }

    #[inline]
    fn assign_some<'p>(
        &mut self,
        peer: Peer,
        action: &str,
        assignments: &mut impl Iterator<Item = (AssignmentId, Payload<'p>)>,
    ) {
        if let Some(end) = self.end(peer) {
            end.session.assign_some(action, assignments, &mut end.output);
        }
    }

    #[inline]
    fn result_some(&mut self, peer: Peer, results: &mut impl Iterator<Item = (u64, Payload<'a>)>) {
        if let Some(end) = self.end(peer) {
            end.session.result_some(results, &mut end.output);
        }
    }

    fn count(&self) -> usize {
        self.effects
    }
}

/// Clients with a window of tasks each and workers that echo them, driven by hand.
///
/// ```
/// use reparto_bench::scale::WayRig;
/// let mut rig = WayRig::new(4, 2, 128, 64);
/// assert_eq!(rig.round().0, 4 * 128);
/// ```
#[derive(Debug)]
pub struct WayRig {
    context: Context,
    scheduler: Scheduler,
    ends: Ends,
    clients: usize,
    window: usize,
    payload: Vec<u8>,
    /// The clients' latest number for a task.
    id: u64,
}

impl WayRig {
    /// Clients that hand in `window` tasks of `bytes` bytes at once, and workers.
    pub fn new(clients: usize, workers: usize, window: usize, bytes: usize) -> WayRig {
        let address = ([127, 0, 0, 1], 1).into();
        let config = Config::default();
        let context = Context {
            clients: address,
            workers: address,
            max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
            heartbeat: config.heartbeat,
            silence: config.silence,
            policy: Policy::default(),
            has_store: false,
            gearman: Default::default(),
            lines_action: "default".into(),
        };
        let mut rig = WayRig {
            context,
            scheduler: Scheduler::new(config),
            ends: Ends::default(),
            clients,
            window,
            payload: vec![b'x'; bytes],
            id: 0,
        };
        for number in 0..clients + workers {
            let role = if number < clients { Role::Client } else { Role::Worker };
            let listener = if role == Role::Client { Listener::Clients } else { Listener::Workers };
            let session = Session::new(listener, &rig.context, None);
            rig.ends.ends.push(End { session, output: Output::default() });
            let mut wire = BytesMut::new();
            let hello = Hello { version: limits::VERSION, role, features: 0, agent: "", token: &[] };
            Message::Hello(hello).encode(&mut wire);
            if role == Role::Worker {
                let register = Register {
                    id: 1,
                    worker_id: &format!("worker-{number}"),
                    threads: 1,
                    window: 4096,
                    weight: 1,
                    service_ns: Some(SERVICE_NS),
                    held: HeldTasks::NONE,
                    actions: Actions::new(&[ACTION]),
                };
                Message::Register(register).encode(&mut wire);
            }
            rig.take_in(number, &wire.freeze());
            rig.taken_output(number);
        }
        rig
    }

    /// Every client's window of tasks, there and back. Gives how many results came, and the time that the balancer's
    /// part of it took.
    pub fn round(&mut self) -> (usize, Duration) {
        self.ends.now = Time(self.ends.now.0 + 100);
        let first = self.id;
        let tasks: Vec<Bytes> = (0..self.clients).map(|_| self.tasks(first)).collect();
        self.id += self.window as u64;
        let began = Instant::now();
        tasks.iter().enumerate().for_each(|(client, tasks)| self.take_in(client, tasks));
        let mut took = began.elapsed();
        let workers = self.clients..self.ends.ends.len();
        let results: Vec<Bytes> = workers.clone().map(|worker| echo(&self.taken_output(worker))).collect();
        let began = Instant::now();
        workers.zip(&results).for_each(|(worker, results)| self.take_in(worker, results));
        took += began.elapsed();
        let answers = (0..self.clients).map(|client| frames(&self.taken_output(client))).sum();
        (answers, took)
    }

    /// A client's next tasks, on the wire.
    fn tasks(&self, first: u64) -> Bytes {
        let mut wire = BytesMut::new();
        for id in first + 1..=first + self.window as u64 {
            let task = Task { id, action: ACTION, options: TaskOptions::default(), payload: &self.payload };
            Message::Task(task).encode(&mut wire);
        }
        wire.freeze()
    }

    /// What the balancer does with a chunk of bytes.
    #[inline(never)]
    fn take_in(&mut self, number: usize, chunk: &Bytes) {
        let peer = Peer { index: number as u32, generation: 1 };
        let mut from = 0;
        while let Some(end) = self.ends.ends.get_mut(number) {
            let step = end.session.decode(&self.context, peer, chunk, &mut from);
            let now = self.ends.now;
            match step {
                Ok(Step::Event(event) | Step::Answer(_, Some(event))) => {
                    self.scheduler.handle(now, event, &mut self.ends);
                }
                Ok(Step::Tasks(mut tasks)) => {
                    self.scheduler.submit_all(now, peer, tasks.action(), &mut tasks, &mut self.ends);
                    from = tasks.at();
                }
                Ok(Step::Results(mut results)) => {
                    self.scheduler.finish_all(now, peer, &mut results, &mut self.ends);
                    from = results.at();
                }
                Ok(Step::Incomplete) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// What waits for an end, all written.
    fn taken_output(&mut self, number: usize) -> Bytes {
        let Some(end) = self.ends.ends.get_mut(number) else { return Bytes::new() };
        let mut slices = vec![std::io::IoSlice::new(&[]); end.output.pieces()];
        end.output.slices(&mut slices);
        let bytes = Bytes::from(slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>());
        end.output.advance(bytes.len());
        bytes
    }
}

/// The results of assignments, on the wire.
fn echo(mut assignments: &[u8]) -> Bytes {
    let mut wire = BytesMut::new();
    while let Ok(Some((frame, length))) = Frame::parse(assignments, limits::DEFAULT_MAX_FRAME_BYTES) {
        let result = TaskResult {
            id: frame.id,
            outcome: Outcome::Done,
            message: "",
            service_ns: None,
            payload: frame.payload,
        };
        Message::TaskResult(result).encode(&mut wire);
        assignments = &assignments[length..];
    }
    wire.freeze()
}

fn frames(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some((_, length))) = Frame::parse(bytes, limits::DEFAULT_MAX_FRAME_BYTES) {
        count += 1;
        bytes = &bytes[length..];
    }
    count
}
