//! Messages: what each frame says, typed. They borrow from the buffer that the frame stands in.

mod decode;
mod encode;

use crate::error::{ErrorCode, FrameError};
use crate::field::{Fields, Tag};
use crate::limits;
use crate::state::TaskState;

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It submits tasks.
    Client,
    /// It runs them.
    Worker,
}

/// HELLO: the first frame of a peer. Its token is left out when it is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The version that the peer speaks.
    pub version: u16,
    /// What it opened the connection for.
    pub role: Role,
    /// Features that it has, a bit each; no bit has a meaning yet.
    pub features: u64,
    /// Name and version of its software, for people; may be empty.
    pub agent: &'a str,
    /// A shared secret, where the balancer asks for one; may be empty.
    pub token: &'a [u8],
}

impl std::fmt::Debug for Hello<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("version", &self.version)
            .field("role", &self.role)
            .field("features", &self.features)
            .field("agent", &self.agent)
            .field("token", &format_args!("{} bytes", self.token.len()))
            .finish()
    }
}

/// WELCOME: the balancer's answer to HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// The version that both will speak.
    pub version: u16,
    /// Features that the balancer has, a bit each: [`limits::FEATURE_BACKGROUND`].
    pub features: u64,
    /// Largest frame that the balancer takes, in bytes, header included.
    pub max_frame_bytes: u32,
    /// Silence after which a PING is due, in milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which the balancer takes a worker for lost, in milliseconds.
    pub silence_ms: u32,
    /// Name and version of the balancer's software, for people; may be empty.
    pub agent: &'a str,
}

/// The actions of a REGISTER, as they stand in its payload. They were checked when it was decoded.
#[derive(Clone, Copy)]
pub struct Actions<'a>(ActionList<'a>);

#[derive(Clone, Copy)]
enum ActionList<'a> {
    Encoded(&'a [u8]),
    Names(&'a [&'a str]),
}

impl<'a> Actions<'a> {
    /// Actions to be sent, at most [`limits::MAX_ACTIONS_PER_WORKER`]. A frame with more is refused by its reader.
    pub fn new(names: &'a [&'a str]) -> Self {
        Actions(ActionList::Names(names))
    }

    /// The actions' names, in the order they were sent.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let (encoded, names): (&[u8], &[&str]) = match self.0 {
            ActionList::Encoded(bytes) => (bytes, &[]),
            ActionList::Names(names) => (&[], names),
        };
        // What is no action here was passed over when the frame was decoded, too.
        let decoded = Fields::new(encoded)
            .filter_map(Result::ok)
            .filter(|field| field.tag == Tag::Action)
            .filter_map(|field| decode::action_of(field).ok());
        decoded.chain(names.iter().copied())
    }

    fn decode(payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut count = 0;
        for field in Fields::new(payload) {
            let field = field?;
            if field.tag == Tag::Action {
                decode::action_of(field)?;
                count += 1;
                if count > limits::MAX_ACTIONS_PER_WORKER {
                    return Err(FrameError::Repeated { tag: Tag::Action });
                }
            }
        }
        Ok(Actions(ActionList::Encoded(payload)))
    }
}

/// The background tasks that a REGISTER names as still held, as they stand in its payload. They were checked when it
/// was decoded.
#[derive(Clone, Copy)]
pub struct HeldTasks<'a>(HeldList<'a>);

#[derive(Clone, Copy)]
enum HeldList<'a> {
    Encoded(&'a [u8]),
    Ids(&'a [[u8; 16]]),
}

impl<'a> HeldTasks<'a> {
    /// None.
    pub const NONE: HeldTasks<'static> = HeldTasks(HeldList::Ids(&[]));

    /// Tasks to be named, at most [`limits::MAX_HELD_TASKS`]. A frame with more is refused by its reader.
    pub fn new(ids: &'a [[u8; 16]]) -> Self {
        HeldTasks(HeldList::Ids(ids))
    }

    /// The tasks' ids, in the order they were sent.
    pub fn iter(self) -> impl Iterator<Item = [u8; 16]> + 'a {
        let (encoded, ids): (&'a [u8], &'a [[u8; 16]]) = match self.0 {
            HeldList::Encoded(bytes) => (bytes, &[]),
            HeldList::Ids(ids) => (&[], ids),
        };
        // What is no id here was passed over when the frame was decoded, too.
        let decoded = Fields::new(encoded)
            .filter_map(Result::ok)
            .filter(|field| field.tag == Tag::TaskId)
            .filter_map(|field| field.id().ok());
        decoded.chain(ids.iter().copied())
    }

    fn decode(payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut count = 0;
        for field in Fields::new(payload) {
            let field = field?;
            if field.tag == Tag::TaskId {
                field.id()?;
                count += 1;
                if count > limits::MAX_HELD_TASKS {
                    return Err(FrameError::Repeated { tag: Tag::TaskId });
                }
            }
        }
        Ok(if count == 0 { HeldTasks::NONE } else { HeldTasks(HeldList::Encoded(payload)) })
    }
}

impl PartialEq for HeldTasks<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for HeldTasks<'_> {}

impl std::fmt::Debug for HeldTasks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Actions<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Actions<'_> {}

impl std::fmt::Debug for Actions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// REGISTER: a worker says who it is and what it can do; again, when that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register<'a> {
    /// The worker's own number for this request; its ACK repeats it.
    pub id: u64,
    /// The worker's id, alone among the living.
    pub worker_id: &'a str,
    /// Tasks that it runs at once, at least 1.
    pub threads: u32,
    /// Tasks that it holds at most.
    pub window: u32,
    /// Its share under the policy `weighted`, at least 1.
    pub weight: u32,
    /// Mean time that a task takes one of its threads, in nanoseconds; `None` when not known yet.
    pub service_ns: Option<u64>,
    /// What it can do.
    pub actions: Actions<'a>,
    /// Background tasks that it still holds from an earlier connection.
    pub held: HeldTasks<'a>,
}

/// ACK: a REGISTER or DRAIN is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The request's number.
    pub id: u64,
    /// Tasks that the balancer will let this worker hold at most.
    pub window: u32,
}

/// What a client may ask for beside the action. `None` leaves it to the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskOptions<'a> {
    /// 0 to 9, higher goes first.
    pub priority: Option<u8>,
    /// Time within which the task must end, in milliseconds from its arrival.
    pub deadline_ms: Option<u64>,
    /// Time that it may wait for its first assignment, in milliseconds.
    pub wait_ms: Option<u64>,
    /// Tasks of one action and key that meet in the balancer share one run. An empty key is none.
    pub key: Option<&'a [u8]>,
    /// Attempts before the task is dead, at least 1.
    pub max_attempts: Option<u8>,
    /// It outlives its client, and its result is kept.
    pub background: bool,
    /// It lives with its client, and its result is kept as well.
    pub record: bool,
    /// Time before it may begin, in milliseconds from its arrival. This and what follows is for tasks that are kept.
    pub delay_ms: Option<u64>,
    /// When it may begin, in milliseconds since 1970, UTC. With a delay as well the later moment counts.
    pub start_at_ms: Option<u64>,
    /// Time before its second attempt, in milliseconds; it doubles with every further one.
    pub backoff_first_ms: Option<u32>,
    /// The longest time between two attempts, in milliseconds.
    pub backoff_most_ms: Option<u32>,
    /// Within its window the same key of the same action stands for the same task. An empty key is none.
    pub idempotency_key: Option<&'a [u8]>,
    /// How long the key stands for the task, in milliseconds.
    pub idempotency_ms: Option<u64>,
}

/// TASK: a client's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task<'a> {
    /// The client's own number, not 0, alone among what it has in flight on this connection.
    pub id: u64,
    /// What to do.
    pub action: &'a str,
    /// How.
    pub options: TaskOptions<'a>,
    /// What to do it with.
    pub payload: &'a [u8],
}

/// ACCEPTED: a background task is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The TASK's number.
    pub id: u64,
    /// The task's id, a UUID.
    pub task_id: [u8; 16],
    /// Its idempotency key stands for this task already, and nothing new was taken in.
    pub duplicate: bool,
}

/// ASSIGN_TASK: a task for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssignTask<'a> {
    /// The balancer's number of this attempt, never 0; its TASK_RESULT repeats it.
    pub id: u64,
    /// What to do.
    pub action: &'a str,
    /// Which attempt this is, from 1. Travels only when it is not the first.
    pub attempt: u8,
    /// Time that is left for it, in milliseconds, when it has a deadline.
    pub deadline_ms: Option<u64>,
    /// The task's key, when it has one.
    pub key: Option<&'a [u8]>,
    /// A durable task's id.
    pub task_id: Option<[u8; 16]>,
    /// The worker has it already, as it said in its REGISTER; the payload is left out.
    pub held: bool,
    /// What to do it with.
    pub payload: &'a [u8],
}

/// How an attempt ended at its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done; the payload is the result.
    Done,
    /// Failed for good.
    Failed,
    /// Failed, and another attempt may do better.
    Retry,
    /// Not begun, and handed back; costs no attempt.
    NotRun,
}

/// TASK_RESULT: what became of an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskResult<'a> {
    /// The assignment's number.
    pub id: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed, for people; empty when it did not.
    pub message: &'a str,
    /// The worker's mean time a task, in nanoseconds, when it has changed much since it was last told.
    pub service_ns: Option<u64>,
    /// The result; for a failure, what the handler gave beside the sentence.
    pub payload: &'a [u8],
}

/// RESULT: a task's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskDone<'a> {
    /// The TASK's number.
    pub id: u64,
    /// What the worker gave.
    pub payload: &'a [u8],
}

/// PROGRESS: how far a task is. From the worker by the assignment's number, to the client by the task's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The assignment's or task's number.
    pub id: u64,
    /// How much is done.
    pub done: u64,
    /// How much there is to do; 0 when that is not known.
    pub total: u64,
    /// Anything that the handler gives on the way; may be empty.
    pub payload: &'a [u8],
}

/// CANCEL: stop a task. From a client by the task's number, to a worker by the assignment's; or by a background task's
/// id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel {
    /// The task's or assignment's number; with a `task_id` the number of this request, which its answer repeats, and
    /// 0 to a worker.
    pub id: u64,
    /// The background task, if that is what is meant.
    pub task_id: Option<[u8; 16]>,
    /// To a worker: hand it back if it has not begun, and let it run on if it has.
    pub recall: bool,
}

/// DRAIN: the worker takes nothing new, or takes work again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// The worker's own number for this request; its ACK repeats it.
    pub id: u64,
    /// Takes work again.
    pub resume: bool,
}

/// GOAWAY: no new work on this connection; it will close when what is in flight has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoAway<'a> {
    /// Why, for people.
    pub message: &'a str,
}

/// PING: are you there? Answered with a PONG of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Any number.
    pub id: u64,
}

/// PONG: the answer to a PING.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// The PING's number.
    pub id: u64,
}

/// ERROR: a task failed, or, with id 0, the connection did and will close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorMessage<'a> {
    /// The task's number, or 0.
    pub id: u64,
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// What went wrong, for people.
    pub message: &'a str,
    /// What a failed handler gave beside the sentence; may be empty.
    pub payload: &'a [u8],
}

/// STATUS: what is the balancer doing? Workers and actions come a page at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The asker's number, repeated by the report.
    pub id: u64,
    /// Workers and actions to pass over.
    pub offset: u32,
    /// Workers and actions to give at most; the balancer may give fewer.
    pub limit: u32,
}

/// STATUS_REPORT: the answer to STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusReport<'a> {
    /// The STATUS' number.
    pub id: u64,
    /// A JSON object; docs/PROTOCOL.md says what stands in it.
    pub payload: &'a [u8],
}

/// FETCH: ask for a background task's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// The asker's number, not 0, repeated by the answer.
    pub id: u64,
    /// The task's id, as ACCEPTED gave it.
    pub task_id: [u8; 16],
    /// Time to wait for the outcome, in milliseconds; 0 answers at once.
    pub wait_ms: u64,
    /// Answer with TASK_STATE and all that is known of the task, ended or not.
    pub describe: bool,
}

/// TASK_STATE: where a background task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStanding<'a> {
    /// The request's number.
    pub id: u64,
    /// The task's id.
    pub task_id: [u8; 16],
    /// Where it stands.
    pub state: TaskState,
    /// Attempts that it has used.
    pub attempts: u8,
    /// When it was taken in, in milliseconds since 1970, UTC.
    pub created_at_ms: u64,
    /// When its next attempt may begin, if it waits for that.
    pub due_at_ms: Option<u64>,
    /// When it ended, if it has.
    pub ended_at_ms: Option<u64>,
    /// A JSON object, if the request asked for one; docs/PROTOCOL.md says what stands in it.
    pub payload: &'a [u8],
}

/// LIST_TASKS: which background tasks are there? The newest come first, a page at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListTasks<'a> {
    /// The asker's number, not 0, repeated by the answer.
    pub id: u64,
    /// Only this action's.
    pub action: Option<&'a str>,
    /// Only those in this state.
    pub state: Option<TaskState>,
    /// Only those taken in then or later, in milliseconds since 1970, UTC.
    pub since_ms: Option<u64>,
    /// Go on where the page before ended: its `next`.
    pub before: Option<[u8; 16]>,
    /// Tasks to give at most; the balancer may give fewer.
    pub limit: u32,
}

/// TASK_LIST: the answer to LIST_TASKS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskList<'a> {
    /// The request's number.
    pub id: u64,
    /// A JSON object; docs/PROTOCOL.md says what stands in it.
    pub payload: &'a [u8],
}

/// RETRY_TASK: give a dead task all its attempts anew. Answered with TASK_STATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryTask {
    /// The asker's number, not 0, repeated by the answer.
    pub id: u64,
    /// The task's id.
    pub task_id: [u8; 16],
}

/// DROP_TASK: forget an ended task, its result and its history. Answered with TASK_STATE, as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropTask {
    /// The asker's number, not 0, repeated by the answer.
    pub id: u64,
    /// The task's id.
    pub task_id: [u8; 16],
}

/// Any frame, understood.
///
/// ```
/// use bytes::BytesMut;
/// use reparto_protocol::{Frame, Message, Task, TaskOptions};
/// let task = Message::Task(Task { id: 7, action: "upper", options: TaskOptions::default(), payload: b"hola" });
/// let mut wire = BytesMut::new();
/// task.encode(&mut wire);
/// let (frame, length) = Frame::parse(&wire, 1024)?.expect("a whole frame was just written");
/// assert_eq!(length, wire.len());
/// assert_eq!(Message::decode(&frame)?, task);
/// # Ok::<(), reparto_protocol::FrameError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the struct of its name.
pub enum Message<'a> {
    Hello(Hello<'a>),
    Welcome(Welcome<'a>),
    GoAway(GoAway<'a>),
    Ping(Ping),
    Pong(Pong),
    Error(ErrorMessage<'a>),
    Status(Status),
    StatusReport(StatusReport<'a>),
    Task(Task<'a>),
    Accepted(Accepted),
    Result(TaskDone<'a>),
    Progress(Progress<'a>),
    Cancel(Cancel),
    Fetch(Fetch),
    TaskState(TaskStanding<'a>),
    ListTasks(ListTasks<'a>),
    TaskList(TaskList<'a>),
    RetryTask(RetryTask),
    DropTask(DropTask),
    Register(Register<'a>),
    Ack(Ack),
    AssignTask(AssignTask<'a>),
    TaskResult(TaskResult<'a>),
    Drain(Drain),
}

/// TASK: outlives its client.
const FLAG_BACKGROUND: u8 = 0x01;
/// TASK: lives with its client, and is kept.
const FLAG_RECORD: u8 = 0x02;
/// ACCEPTED: the key stands for this task already.
const FLAG_DUPLICATE: u8 = 0x01;
/// FETCH: answer with TASK_STATE in any case, and with all that is known.
const FLAG_DESCRIBE: u8 = 0x01;
/// ASSIGN_TASK: the worker has it already.
const FLAG_HELD: u8 = 0x01;
/// TASK_RESULT: how the attempt ended, in the lowest two bits.
const OUTCOME_MASK: u8 = 0x03;
/// CANCEL: hand back what has not begun.
const FLAG_RECALL: u8 = 0x01;
/// DRAIN: take work again.
const FLAG_RESUME: u8 = 0x01;
