//! A task's whole way through the balancer without its sockets: bytes in, dialect, scheduler, dialect, bytes out.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use reparto_balancer::dialect::{Context, Listener, Output, Session, Step};
use reparto_balancer::scheduler::{
    Assignment, AssignmentId, Config, Effect, Effects, Payload, Peer, Policy, Pulled, Scheduler, Time,
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
        let (Effect::Fail { peer, .. }
        | Effect::Acknowledge { peer, .. }
        | Effect::Created { peer, .. }
        | Effect::Refused { peer, .. }
        | Effect::NoTask { peer }
        | Effect::Wake { peer }) = effect
        else {
            return;
        };
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

    #[inline]
    fn created_some(&mut self, peer: Peer, ids: &mut impl Iterator<Item = u64>) {
        if let Some(end) = self.end(peer) {
            end.session.created_some(ids, &mut end.output);
        }
    }

    #[inline]
    fn assign_pulled<'p>(
        &mut self,
        peer: Peer,
        alike: (&str, u8),
        assignments: &mut impl Iterator<Item = Pulled<'p>>,
    ) {
        if let Some(end) = self.end(peer) {
            end.session.assign_pulled(alike, assignments, &mut end.output);
        }
    }

    #[inline]
    fn no_task_some(&mut self, peer: Peer, count: usize) {
        if let Some(end) = self.end(peer) {
            end.session.no_task_some(count, &mut end.output);
        }
    }

    fn count(&self) -> usize {
        self.effects
    }
}

/// What the clients and workers of a rig speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// Reparto's own protocol: workers are given all that they may hold.
    Native,
    /// Gearman's: workers ask for each task, as many times as they answer.
    Gearman,
}

/// Clients with a window of tasks each and workers that echo them, driven by hand.
///
/// ```
/// use reparto_bench::scale::WayRig;
/// use reparto_bench::scale::Speech;
/// for speech in [Speech::Native, Speech::Gearman] {
///     let mut rig = WayRig::new(speech, (4, 2), 128, 64);
///     assert_eq!(rig.round().0, 4 * 128);
/// }
/// ```
#[derive(Debug)]
pub struct WayRig {
    speech: Speech,
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
    /// Clients that hand in `window` tasks of `bytes` bytes at once, and workers: so many of each.
    pub fn new(speech: Speech, (clients, workers): (usize, usize), window: usize, bytes: usize) -> WayRig {
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
            lines_action: "default".into(),
            gearman: Default::default(),
        };
        let mut rig = WayRig {
            speech,
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
            let listener = match (speech, role) {
                (Speech::Gearman, _) => Listener::Gearman,
                (Speech::Native, Role::Client) => Listener::Clients,
                (Speech::Native, Role::Worker) => Listener::Workers,
            };
            let session = Session::new(listener, &rig.context, None);
            rig.ends.ends.push(End { session, output: Output::default() });
            let greeting = match speech {
                Speech::Native => native_greeting(role, number),
                Speech::Gearman if role == Role::Worker => gearman_packet(CAN_DO, ACTION.as_bytes()),
                Speech::Gearman => Bytes::new(),
            };
            rig.take_in(number, &greeting);
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
        if self.speech == Speech::Gearman {
            let grab = gearman_packet(GRAB_JOB, b"").repeat(self.clients * self.window / workers.len());
            let grabs = Bytes::from(grab);
            let began = Instant::now();
            workers.clone().for_each(|worker| self.take_in(worker, &grabs));
            took += began.elapsed();
        }
        let echo = if self.speech == Speech::Native { native_echo } else { gearman_echo };
        let results: Vec<Bytes> = workers.clone().map(|worker| echo(&self.taken_output(worker))).collect();
        let began = Instant::now();
        workers.zip(&results).for_each(|(worker, results)| self.take_in(worker, results));
        took += began.elapsed();
        let count = if self.speech == Speech::Native { native_results } else { gearman_results };
        let answers = (0..self.clients).map(|client| count(&self.taken_output(client))).sum();
        (answers, took)
    }

    /// A client's next tasks, on the wire.
    fn tasks(&self, first: u64) -> Bytes {
        if self.speech == Speech::Gearman {
            let data = [ACTION.as_bytes(), b"\0\0", &self.payload].concat();
            return gearman_packet(SUBMIT_JOB, &data).repeat(self.window).into();
        }
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
                Ok(Step::Jobs(mut jobs)) => {
                    self.scheduler.announce_all(now, peer, jobs.action(), &mut jobs, &mut self.ends);
                    from = jobs.at();
                    self.ends.ends[number].session.jobs_taken(&jobs);
                }
                Ok(Step::Grabs(mut grabs)) => {
                    self.scheduler.pull_all(now, peer, grabs.take(), &mut self.ends);
                    from = grabs.at();
                }
                Ok(Step::JobResults(mut results)) => {
                    self.scheduler.finish_all(now, peer, &mut results, &mut self.ends);
                    from = results.at();
                    self.ends.ends[number].session.results_taken(results);
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

/// What a native client or worker says first.
fn native_greeting(role: Role, number: usize) -> Bytes {
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
    wire.freeze()
}

/// The results of assignments, on the wire.
fn native_echo(mut assignments: &[u8]) -> Bytes {
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

fn native_results(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some((_, length))) = Frame::parse(bytes, limits::DEFAULT_MAX_FRAME_BYTES) {
        count += 1;
        bytes = &bytes[length..];
    }
    count
}

const CAN_DO: u32 = 1;
const SUBMIT_JOB: u32 = 7;
const GRAB_JOB: u32 = 9;
const JOB_ASSIGN: u32 = 11;
const WORK_COMPLETE: u32 = 13;

fn gearman_packet(kind: u32, data: &[u8]) -> Bytes {
    let mut wire = BytesMut::new();
    wire.put_slice(b"\0REQ");
    wire.put_u32(kind);
    wire.put_u32(data.len() as u32);
    wire.put_slice(data);
    wire.freeze()
}

/// The packets in what a server has sent: the kind and the data of each.
fn gearman_packets(mut bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        let ([_, _, _, _, k0, k1, k2, k3, s0, s1, s2, s3], rest) = bytes.split_first_chunk::<12>()?;
        let data = rest.get(..u32::from_be_bytes([*s0, *s1, *s2, *s3]) as usize)?;
        bytes = &rest[data.len()..];
        Some((u32::from_be_bytes([*k0, *k1, *k2, *k3]), data))
    })
}

/// The results of assignments, on the wire.
fn gearman_echo(assignments: &[u8]) -> Bytes {
    let mut wire = BytesMut::new();
    for (_, data) in gearman_packets(assignments).filter(|(kind, _)| *kind == JOB_ASSIGN) {
        let mut arguments = data.splitn(3, |byte| *byte == 0);
        if let (Some(handle), _, Some(payload)) = (arguments.next(), arguments.next(), arguments.next()) {
            wire.extend_from_slice(&gearman_packet(WORK_COMPLETE, &[handle, b"\0", payload].concat()));
        }
    }
    wire.freeze()
}

fn gearman_results(bytes: &[u8]) -> usize {
    gearman_packets(bytes).filter(|(kind, _)| *kind == WORK_COMPLETE).count()
}
