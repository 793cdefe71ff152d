//! What goes into the scheduler and what comes out of it: events, effects, and the names they use for things.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use reparto_protocol::{ErrorCode, TaskState, limits};

use super::payload::Payload;

/// A moment, in microseconds since an origin that the caller chose. It never runs backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// The moment `duration` later; the end of time when that is beyond it.
    #[must_use]
    pub fn after(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A connection, as the caller numbers them: a small index that is used again, and a generation that is not.
///
/// The scheduler keeps a row an index, so indexes should be dense. An event whose generation is not the row's
/// present one is late, and is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// Which row.
    pub index: u32,
    /// Which of those that had the row.
    pub generation: u32,
}

impl Peer {
    /// The first index of the balancer's own parts, which no connection has.
    const FIRST_INSIDER: u32 = 1 << 31;

    /// A part of the balancer itself that stands in the scheduler as a client or a worker. It has no connection; what is
    /// said to it goes to whoever it belongs to.
    #[must_use]
    pub const fn insider(number: u16) -> Peer {
        Peer { index: Peer::FIRST_INSIDER + number as u32, generation: 1 }
    }

    /// Whether it is one.
    #[inline]
    #[must_use]
    pub const fn is_insider(self) -> bool {
        self.index >= Peer::FIRST_INSIDER
    }
}

/// One attempt at one task: a slab index and a generation that is new for every attempt. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentId(pub u64);

impl AssignmentId {
    /// The attempt with this tag at the task in this row.
    #[inline]
    pub(super) fn new(tag: u32, task: u32) -> AssignmentId {
        AssignmentId(u64::from(tag) << 32 | u64::from(task))
    }

    /// The task's row.
    #[inline]
    pub(super) fn task(self) -> u32 {
        self.0 as u32
    }

    /// What no other attempt at any task has.
    #[inline]
    pub(super) fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A task as a client hands it in.
#[derive(Debug, Clone)]
pub struct Submission<'a> {
    /// The client's own number for it, alone among what it has in flight.
    pub id: u64,
    /// What to do.
    pub action: &'a str,
    /// What to do it with.
    pub payload: Payload<'a>,
    /// 0 to 9, higher goes first; more counts as 9.
    pub priority: u8,
    /// Time within which it must end.
    pub deadline: Option<Duration>,
    /// Time that it may wait for its first assignment; `None` for the deadline's or, without one, the default.
    pub wait: Option<Duration>,
    /// Tasks of one action and key that meet share one run, which has the payload and the options of the first,
    /// its deadline and wait included; empty for none. At most 32,768 may join one.
    pub key: &'a [u8],
    /// Attempts before it is dead, at least 1.
    pub max_attempts: u8,
    /// Its client is told first whether it was taken, with [`Effect::Created`] or [`Effect::Refused`].
    pub announced: bool,
}

impl<'a> Submission<'a> {
    /// A task with the usual options.
    pub fn new(id: u64, action: &'a str, payload: Payload<'a>) -> Self {
        Submission {
            id,
            action,
            payload,
            priority: limits::DEFAULT_PRIORITY,
            deadline: None,
            wait: None,
            key: &[],
            max_attempts: limits::DEFAULT_MAX_ATTEMPTS,
            announced: false,
        }
    }
}

/// A background task's id, a UUID.
pub type BackgroundId = [u8; 16];

/// A background task as it comes from its store. The store has it until its end is noted, whatever happens here.
#[derive(Debug, Clone)]
pub struct BackgroundTask<'a> {
    /// Its id. A task that is held here already is not taken in again.
    pub id: BackgroundId,
    /// What to do.
    pub action: &'a str,
    /// What to do it with.
    pub payload: Payload<'a>,
    /// 0 to 9, higher goes first; more counts as 9.
    pub priority: u8,
    /// Time within which it must end.
    pub deadline: Option<Duration>,
    /// Attempts before it is dead, at least 1.
    pub max_attempts: u8,
    /// What its worker is told as its key; empty for none. Background tasks do not share runs.
    pub key: &'a [u8],
    /// Attempts used up.
    pub spent: u8,
    /// Time before the second attempt, in milliseconds; it doubles with every further one. 0 for at once.
    pub backoff_first_ms: u32,
    /// Longest time between two attempts, in milliseconds.
    pub backoff_most_ms: u32,
    /// The worker that has it already, as [`Effect::Claim`] said. If it has left, the task is queued.
    pub holder: Option<Peer>,
}

/// What a store must be told of a background task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note<'a> {
    /// A worker has had it for a second.
    Started,
    /// It waits again, at no cost, after it was said to have started.
    Requeued,
    /// An attempt has failed, and another follows. With a delay the task is the store's alone until then, and comes
    /// back as an [`Event::Enter`]; without one it is queued already.
    Retry {
        /// The worker that had it.
        worker: Box<str>,
        /// Why it failed.
        message: Box<str>,
        /// How long the next attempt waits.
        delay: Option<Duration>,
    },
    /// It has ended.
    Ended {
        /// How: an ended state.
        state: TaskState,
        /// Why it has no result.
        failure: Option<(ErrorCode, Cow<'static, str>)>,
        /// The result, or what a failure carries.
        payload: Payload<'a>,
    },
    /// It was not taken in: there are as many action names as there may be. It may be handed in again later.
    Refused,
}

/// Where a background task stands, for a client. Times are milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which task.
    pub task: BackgroundId,
    /// Where it stands.
    pub state: TaskState,
    /// Attempts used.
    pub attempts: u8,
    /// When it was taken in.
    pub created_at_ms: u64,
    /// When its next attempt may begin, if it waits for that.
    pub due_at_ms: Option<u64>,
    /// When it ended.
    pub ended_at_ms: Option<u64>,
    /// How much its worker has last said is done, and of how much; both 0 when that is not known.
    pub progress: (u64, u64),
}

/// What a store says to a client, beside results and failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreAnswer<'a> {
    /// A task is durable.
    Accepted {
        /// Its id.
        task: BackgroundId,
        /// Its idempotency key stood for it already.
        duplicate: bool,
    },
    /// Where a task stands.
    Standing {
        /// Where.
        standing: Standing,
        /// All that is known of it, as JSON, or nothing.
        payload: Payload<'a>,
    },
    /// A page of tasks, as JSON.
    List {
        /// The page.
        payload: Payload<'a>,
    },
}

/// A worker as it describes itself. Numbers out of their range count as the nearest one within.
#[derive(Debug, Clone)]
pub struct Registration<'a> {
    /// Its own number for the request, repeated by [`Effect::Acknowledge`].
    pub request: u64,
    /// Its id, alone among the living.
    pub worker_id: &'a str,
    /// Tasks that it runs at once, 1 to [`limits::MAX_THREADS`].
    pub threads: u32,
    /// Tasks that it holds at most, `threads` to [`limits::MAX_WINDOW`].
    pub window: u32,
    /// Its share under the policy `weighted`, 1 to [`limits::MAX_WEIGHT`].
    pub weight: u32,
    /// Mean time that a task takes one of its threads, in nanoseconds.
    pub service_ns: Option<u64>,
    /// It answers [`Effect::Ping`], so that it is lost when it is silent; counts in its first registration. Without it
    /// is lost only when its connection ends.
    pub heartbeats: bool,
    /// What it can do. Repeated names count once.
    pub actions: Vec<&'a str>,
    /// Background tasks that it still holds from an earlier connection. They count in its first registration.
    pub held: Vec<BackgroundId>,
}

/// What a pull worker says: one that asks for its tasks one by one, and sleeps when there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull<'a> {
    /// What it calls itself. Several may have the same name.
    Name(&'a str),
    /// It can do this. A run of it that takes longer than `limit` is ended as expired.
    CanDo {
        /// The action.
        action: &'a str,
        /// How long a run may take.
        limit: Option<Duration>,
    },
    /// It cannot do this any more.
    CantDo {
        /// The action.
        action: &'a str,
    },
    /// It can do nothing any more.
    Reset,
    /// It asks for one task, and is answered at once: with an assignment, or with [`Effect::NoTask`].
    Grab {
        /// Given back in the assignment's details, for the dialect's own use.
        form: u8,
    },
    /// It sleeps until it is told [`Effect::Wake`], which comes at once where a task waits for it.
    Sleep,
}

/// What kind of news [`Event::Progress`] brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProgressKind {
    /// How far it is. The latest counts, so some may be left out.
    #[default]
    Report,
    /// A part of what comes out. None is left out.
    Data,
    /// A warning. None is left out.
    Warning,
}

/// How an attempt ended at its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish<'a> {
    /// Done; the payload is the result.
    Done,
    /// Failed for good, and why.
    Failed(&'a str),
    /// Failed, and why; another attempt may do better.
    Retry(&'a str),
    /// Not begun, and handed back; costs no attempt when it was recalled or the worker drains, and one otherwise.
    NotRun,
}

/// Something happened outside.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A client's connection is ready to submit.
    ClientJoined {
        /// Its connection.
        peer: Peer,
    },
    /// A client hands in a task.
    Submit {
        /// Who.
        peer: Peer,
        /// What.
        task: Submission<'a>,
    },
    /// A client no longer wants a task. One that has ended, or never was, is no error.
    Cancel {
        /// Who.
        peer: Peer,
        /// The client's number for the task.
        id: u64,
    },
    /// A worker comes, or one that is there describes itself anew.
    Register {
        /// Who.
        peer: Peer,
        /// How it describes itself.
        registration: Registration<'a>,
    },
    /// A worker takes nothing new, or takes work again.
    Drain {
        /// Who.
        peer: Peer,
        /// Its own number for the request, repeated by [`Effect::Acknowledge`].
        request: u64,
        /// Takes work again.
        resume: bool,
    },
    /// A worker has done with an assignment.
    Finished {
        /// Who.
        peer: Peer,
        /// Which.
        assignment: AssignmentId,
        /// How it ended.
        finish: Finish<'a>,
        /// The worker's mean time a task, in nanoseconds, when it tells.
        service_ns: Option<u64>,
        /// The result, or what a failure carries.
        payload: Payload<'a>,
    },
    /// A worker says how far an assignment is.
    Progress {
        /// Who.
        peer: Peer,
        /// Which.
        assignment: AssignmentId,
        /// What this is.
        kind: ProgressKind,
        /// How much is done.
        done: u64,
        /// How much there is to do; 0 when not known.
        total: u64,
        /// Anything it gives on the way.
        payload: Payload<'a>,
    },
    /// A connection is a pull worker's, perhaps beside being a client's.
    PullerJoined {
        /// Its connection.
        peer: Peer,
        /// Where it comes from, for people.
        from: Option<IpAddr>,
    },
    /// A pull worker says something.
    Pull {
        /// Who.
        peer: Peer,
        /// What.
        pull: Pull<'a>,
    },
    /// Bytes came from a worker, so it lives. Told once a read, whatever came in it.
    Heard {
        /// Who.
        peer: Peer,
    },
    /// A connection is over.
    Gone {
        /// Whose.
        peer: Peer,
    },
    /// Stop: answer what waits with `shutting_down`, give what runs `grace` to end, then say [`Effect::Stopped`].
    Shutdown {
        /// Time for what runs.
        grace: Duration,
    },
    /// A background task comes from its store.
    Enter {
        /// What.
        task: BackgroundTask<'a>,
    },
    /// A background task is not to be run any more, and its store knows: it was cancelled.
    Withdraw {
        /// Which.
        id: BackgroundId,
    },
    /// Nobody wants a task that a worker has named: the answer to [`Effect::Claim`] where it is not
    /// [`Event::Enter`].
    Unclaimed {
        /// Who named it.
        peer: Peer,
        /// Which.
        id: BackgroundId,
    },
}

impl<'a> Event<'a> {
    /// A worker has done this assignment, with this result; how long it took, it does not say.
    #[inline]
    #[must_use]
    pub fn done(peer: Peer, (assignment, payload): (AssignmentId, Payload<'a>)) -> Self {
        Event::Finished { peer, assignment, finish: Finish::Done, service_ns: None, payload }
    }
}

/// Something to be done outside. Carry effects out in their order, before the next event is handed in: an
/// assignment's details are there until then at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<'a> {
    /// Hand a task to a worker; [`Scheduler::assignment`](super::Scheduler::assignment) has its details.
    Assign {
        /// To whom.
        peer: Peer,
        /// Which.
        assignment: AssignmentId,
    },
    /// Tell a worker that an assignment's result is not wanted any more.
    CancelAssignment {
        /// Whom.
        peer: Peer,
        /// Which.
        assignment: AssignmentId,
        /// Only hand it back if it has not begun.
        recall: bool,
    },
    /// A task's result, for its client.
    Result {
        /// For whom.
        peer: Peer,
        /// The client's number for the task.
        id: u64,
        /// The result.
        payload: Payload<'a>,
    },
    /// A task's failure, for its client.
    Fail {
        /// For whom.
        peer: Peer,
        /// The client's number for the task.
        id: u64,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: Cow<'static, str>,
        /// What the failure carries.
        payload: Payload<'a>,
    },
    /// How far a task is, for its client. May be dropped for one that does not read. Where many share a task and
    /// its worker reports very often, some reports reach only the first of them.
    Progress {
        /// For whom.
        peer: Peer,
        /// The client's number for the task.
        id: u64,
        /// What this is. Data and warnings are not dropped.
        kind: ProgressKind,
        /// How much is done.
        done: u64,
        /// How much there is to do; 0 when not known.
        total: u64,
        /// Anything that came with it.
        payload: Payload<'a>,
    },
    /// A task that asked to be announced was taken; its answer follows.
    Created {
        /// For whom.
        peer: Peer,
        /// The client's number for the task.
        id: u64,
    },
    /// A task that asked to be announced was not taken; no answer follows.
    Refused {
        /// For whom.
        peer: Peer,
        /// The client's number for the task.
        id: u64,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: Cow<'static, str>,
    },
    /// Nothing waits for a pull worker that asked for a task.
    NoTask {
        /// For whom.
        peer: Peer,
    },
    /// Wake a pull worker that sleeps: a task may be there when it asks. None is kept for it.
    Wake {
        /// Whom.
        peer: Peer,
    },
    /// A worker's registration or drain is in force.
    Acknowledge {
        /// Whose.
        peer: Peer,
        /// Its own number for the request.
        request: u64,
        /// Tasks that it will be given at most.
        window: u32,
    },
    /// Ask a worker that has been silent whether it is there. It is given nothing new until it is heard.
    Ping {
        /// Whom.
        peer: Peer,
    },
    /// Tell a peer that no new work comes or is taken on its connection.
    GoAway {
        /// Whom.
        peer: Peer,
    },
    /// End a connection, telling why. [`Event::Gone`] need not follow: the scheduler has forgotten it already.
    Close {
        /// Whose.
        peer: Peer,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: Cow<'static, str>,
    },
    /// Tell a background task's store.
    Note {
        /// Which task.
        id: BackgroundId,
        /// Attempts that it has used.
        attempts: u8,
        /// What.
        note: Note<'a>,
    },
    /// What the store says to a client who asked. It goes the way of effects, and is never the scheduler's own.
    Answer {
        /// For whom.
        peer: Peer,
        /// The client's number for the request.
        id: u64,
        /// What.
        answer: StoreAnswer<'a>,
    },
    /// A worker has named a background task that is not known here. To be answered with [`Event::Enter`], with this
    /// worker as its holder, or [`Event::Unclaimed`].
    Claim {
        /// The worker.
        peer: Peer,
        /// Which task.
        id: BackgroundId,
    },
    /// Tell a worker that a task that it has named is not wanted.
    Unwanted {
        /// Whom.
        peer: Peer,
        /// Which task.
        id: BackgroundId,
    },
    /// After [`Event::Shutdown`]: every task has had its answer. Flush what is to be sent, and end.
    Stopped,
}

/// An assignment's details, for the dialect that writes it down.
#[derive(Debug, Clone, Copy)]
pub struct Assignment<'a> {
    /// What to do.
    pub action: &'a str,
    /// What to do it with.
    pub payload: Payload<'a>,
    /// Which attempt it is, from 1.
    pub attempt: u8,
    /// When it must have ended, if it must.
    pub deadline: Option<Time>,
    /// Its key; empty for none.
    pub key: &'a [u8],
    /// Its id, if it is a background task.
    pub task_id: Option<BackgroundId>,
    /// Its worker has it already.
    pub held: bool,
    /// For a pull worker: the number by which the task was announced, which no other task has. 0 for others, and for tasks
    /// that were not announced.
    pub number: u64,
    /// For a pull worker: the form of its [`Pull::Grab`].
    pub form: u8,
}

impl<'a> Assignment<'a> {
    /// The first attempt at a task with the usual options.
    #[inline]
    pub fn first(action: &'a str, payload: Payload<'a>) -> Self {
        Assignment {
            action,
            payload,
            attempt: 1,
            deadline: None,
            key: &[],
            task_id: None,
            held: false,
            number: 0,
            form: 0,
        }
    }
}

/// How a worker is chosen for a task. Whatever the policy, free threads anywhere fill before any worker is
/// given a task to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Each in turn.
    RoundRobin,
    /// The one with the least in flight relative to its threads.
    #[default]
    LeastLoaded,
    /// Each in turn, as many times as its weight.
    Weighted,
}

/// What to do with a task whose action no worker offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownAction {
    /// It waits for a worker, as long as it may wait for its first assignment.
    #[default]
    Wait,
    /// It is answered `unknown_action` at once.
    Reject,
}

/// The scheduler's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// How a worker is chosen.
    pub policy: Policy,
    /// What becomes of a task that nobody can run.
    pub unknown_action: UnknownAction,
    /// Most tasks held, over all actions, waiting or assigned.
    pub max_tasks: usize,
    /// Most bytes of payload held, over all actions.
    pub max_bytes: usize,
    /// Most bytes of payload in flight to one worker; one task is always let through.
    pub max_worker_bytes: usize,
    /// Most action names known at once.
    pub max_actions: usize,
    /// Most workers registered at once.
    pub max_workers: usize,
    /// Most actions offered at once, over all workers, where workers that offer the same ones count once.
    pub max_offers: usize,
    /// Waiting this long makes up for one level of priority.
    pub aging: Duration,
    /// A task that asks for no other time waits this long for its first assignment.
    pub default_wait: Duration,
    /// A worker that has been silent this long is asked whether it is there.
    pub heartbeat: Duration,
    /// A worker that has been silent this long is lost.
    pub silence: Duration,
    /// Seeds the hashing of ids, so that no peer can choose ids that collide.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            policy: Policy::default(),
            unknown_action: UnknownAction::default(),
            max_tasks: 4_000_000,
            max_bytes: 1 << 30,
            max_worker_bytes: 64 << 20,
            max_actions: 65_536,
            max_workers: 65_536,
            max_offers: 4_194_304,
            aging: Duration::from_secs(5),
            default_wait: limits::DEFAULT_WAIT,
            heartbeat: limits::DEFAULT_HEARTBEAT,
            silence: limits::DEFAULT_SILENCE,
            seed: 0,
        }
    }
}

/// What a worker is doing, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WorkerStatus {
    /// Its id.
    pub id: String,
    /// Tasks that it runs at once.
    pub threads: u32,
    /// Tasks that it holds at most.
    pub window: u32,
    /// Its share under the policy `weighted`.
    pub weight: u32,
    /// Tasks that it holds now.
    pub in_flight: u32,
    /// Assignments that it has done.
    pub done: u64,
    /// Assignments that it said failed.
    pub failed: u64,
    /// Its mean time a task, in nanoseconds, if it told.
    pub service_ns: Option<u64>,
    /// It takes nothing new.
    pub draining: bool,
    /// What it can do.
    pub actions: Vec<String>,
    /// Microseconds since it registered.
    pub connected_us: u64,
    /// Its connection's index.
    #[serde(skip)]
    pub connection: u32,
    /// Where it comes from, if it is a pull worker and that is known.
    #[serde(skip)]
    pub from: Option<IpAddr>,
}

/// How a task stands, for somebody who knows its number or its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobStatus {
    /// A worker has it.
    pub runs: bool,
    /// How much its worker has last said is done.
    pub done: u64,
    /// And of how much.
    pub total: u64,
    /// How many wait for it on their connections.
    pub waiting: u32,
}

/// A task that is held, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTask<'a> {
    /// The connection of the first who waits, and his number for it.
    pub submitted: (Peer, u64),
    /// Its id, if it is a background task.
    pub task_id: Option<BackgroundId>,
    /// Attempts used.
    pub attempts: u8,
    /// Its key; empty for none.
    pub key: &'a [u8],
}

/// How an action is doing, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ActionStatus {
    /// Its name.
    pub name: String,
    /// Workers that offer it.
    pub workers: usize,
    /// Tasks that wait.
    pub queued: usize,
    /// Tasks that workers hold.
    pub running: usize,
    /// Of those that wait, how many have a high, the usual, and a low priority.
    #[serde(skip)]
    pub queued_by_class: [usize; 3],
}

/// What the scheduler has done and holds, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Totals {
    /// Clients there now.
    pub clients: usize,
    /// Workers there now.
    pub workers: usize,
    /// Actions known now.
    pub actions: usize,
    /// Tasks that wait now.
    pub queued: usize,
    /// Tasks that workers hold now.
    pub running: usize,
    /// Bytes of payload held now.
    pub bytes: usize,
    /// Tasks taken since the start.
    pub submitted: u64,
    /// Tasks refused since the start.
    pub refused: u64,
    /// Tasks that ended with a result.
    pub done: u64,
    /// Tasks that ended with an error after they were taken.
    pub failed: u64,
    /// Assignments that came back because their worker was lost or handed them back.
    pub requeued: u64,
    /// Workers lost with work in hand, or silent too long.
    pub workers_lost: u64,
}
