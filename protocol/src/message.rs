//! Messages: what each frame says, typed. They borrow from the buffer that the frame stands in.

use bytes::{BufMut, BytesMut};

use crate::error::{ErrorCode, FrameError};
use crate::field::{self, Field, Fields, Tag};
use crate::frame::{Frame, FrameType, HeadWriter};
use crate::limits;

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It submits tasks.
    Client,
    /// It runs them.
    Worker,
}

/// HELLO: the first frame of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// WELCOME: the balancer's answer to HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// The version that both will speak.
    pub version: u16,
    /// Features that the balancer has, a bit each; no bit has a meaning yet.
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
    /// Actions to be sent. At most [`limits::MAX_ACTIONS_PER_WORKER`] of them are.
    pub fn new(names: &'a [&'a str]) -> Self {
        Actions(ActionList::Names(names))
    }

    /// The actions' names, in the order they were sent.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let (encoded, names): (&[u8], &[&str]) = match self.0 {
            ActionList::Encoded(bytes) => (bytes, &[]),
            ActionList::Names(names) => (&[], names),
        };
        let decoded = Fields::new(encoded).filter_map(|field| field.ok().and_then(|f| action_of(f).ok()));
        decoded.chain(names.iter().copied())
    }

    fn decode(payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut count = 0;
        for field in Fields::new(payload) {
            let field = field?;
            if field.tag == Tag::Action {
                action_of(field)?;
                count += 1;
            }
        }
        if count > limits::MAX_ACTIONS_PER_WORKER {
            return Err(FrameError::Repeated { tag: Tag::Action });
        }
        Ok(Actions(ActionList::Encoded(payload)))
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
    /// Tasks of one action and key that meet in the balancer share one run.
    pub key: Option<&'a [u8]>,
    /// Attempts before the task is dead, at least 1.
    pub max_attempts: Option<u8>,
    /// It outlives its client, and its result is kept.
    pub background: bool,
}

/// TASK: a client's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task<'a> {
    /// The client's own number, alone among what it has in flight on this connection.
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
}

/// ASSIGN_TASK: a task for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssignTask<'a> {
    /// The balancer's number of this attempt; its TASK_RESULT repeats it.
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

/// CANCEL: stop a task. From a client by the task's number, to a worker by the assignment's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel {
    /// The task's or assignment's number.
    pub id: u64,
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
    /// The asker's number, repeated by the answer.
    pub id: u64,
    /// The task's id, as ACCEPTED gave it.
    pub task_id: [u8; 16],
    /// Time to wait for the outcome, in milliseconds; 0 answers at once.
    pub wait_ms: u64,
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
    Register(Register<'a>),
    Ack(Ack),
    AssignTask(AssignTask<'a>),
    TaskResult(TaskResult<'a>),
    Drain(Drain),
}

/// TASK: outlives its client.
const FLAG_BACKGROUND: u8 = 0x01;
/// TASK_RESULT: how the attempt ended, in the lowest two bits.
const OUTCOME_MASK: u8 = 0x03;
/// CANCEL: hand back what has not begun.
const FLAG_RECALL: u8 = 0x01;
/// DRAIN: take work again.
const FLAG_RESUME: u8 = 0x01;

impl<'a> Message<'a> {
    /// Understands a frame. Allocates nothing; unknown flags and unknown optional fields are passed over.
    ///
    /// # Errors
    /// A field that is missing, repeated, of a wrong length, not UTF-8, out of its range, or that must be
    /// understood and is not.
    pub fn decode(frame: &Frame<'a>) -> Result<Message<'a>, FrameError> {
        let id = frame.id;
        Ok(match frame.kind {
            FrameType::Task => Message::Task(decode_task(frame)?),
            FrameType::TaskResult => Message::TaskResult(decode_task_result(frame)?),
            FrameType::AssignTask => Message::AssignTask(decode_assign_task(frame)?),
            FrameType::Result => {
                only_skippable(frame)?;
                Message::Result(TaskDone { id, payload: frame.payload })
            }
            FrameType::Hello => Message::Hello(decode_hello(frame)?),
            FrameType::Welcome => Message::Welcome(decode_welcome(frame)?),
            FrameType::Register => Message::Register(decode_register(frame)?),
            FrameType::Error => Message::Error(decode_error(frame)?),
            FrameType::Progress => Message::Progress(decode_progress(frame)?),
            FrameType::GoAway => {
                let mut message = None;
                each_field(frame, |field| match field.tag {
                    Tag::Message => once(&mut message, field, message_of(field)?),
                    _ => Ok(()),
                })?;
                Message::GoAway(GoAway { message: message.unwrap_or("") })
            }
            FrameType::Ack => {
                let mut window = None;
                each_field(frame, |field| match field.tag {
                    Tag::Window => once(&mut window, field, field.u32()?),
                    _ => Ok(()),
                })?;
                Message::Ack(Ack { id, window: window.unwrap_or(0) })
            }
            FrameType::Accepted => Message::Accepted(Accepted { id, task_id: required_task_id(frame)?.0 }),
            FrameType::Fetch => {
                let (task_id, wait_ms) = required_task_id(frame)?;
                Message::Fetch(Fetch { id, task_id, wait_ms })
            }
            FrameType::Status => decode_status(frame)?,
            FrameType::StatusReport => {
                only_skippable(frame)?;
                Message::StatusReport(StatusReport { id, payload: frame.payload })
            }
            FrameType::Ping => {
                only_skippable(frame)?;
                Message::Ping(Ping { id })
            }
            FrameType::Pong => {
                only_skippable(frame)?;
                Message::Pong(Pong { id })
            }
            FrameType::Cancel => {
                only_skippable(frame)?;
                Message::Cancel(Cancel { id, recall: frame.flags & FLAG_RECALL != 0 })
            }
            FrameType::Drain => {
                only_skippable(frame)?;
                Message::Drain(Drain { id, resume: frame.flags & FLAG_RESUME != 0 })
            }
        })
    }

    /// Appends the whole frame.
    ///
    /// Text and keys over their limits are cut; numbers are sent as they are.
    pub fn encode(&self, out: &mut BytesMut) {
        let payload = self.payload();
        self.encode_head(out, payload.len());
        out.put_slice(payload);
    }

    /// Appends header and fields only, for a payload of `payload_bytes` that travels behind them by itself.
    ///
    /// A REGISTER's payload is its actions, which this writes; `payload_bytes` is ignored for it.
    #[inline]
    pub fn encode_head(&self, out: &mut BytesMut, payload_bytes: usize) {
        match self {
            Message::Task(m) => encode_task(m, out, payload_bytes),
            Message::AssignTask(m) => encode_assign_task(m, out, payload_bytes),
            Message::TaskResult(m) => {
                let flags = match m.outcome {
                    Outcome::Done => 0,
                    Outcome::Failed => 1,
                    Outcome::Retry => 2,
                    Outcome::NotRun => 3,
                };
                let head = HeadWriter::begin(out, FrameType::TaskResult, flags, m.id);
                if !m.message.is_empty() {
                    field::put_text(out, Tag::Message, m.message, limits::MAX_MESSAGE_BYTES);
                }
                if let Some(service_ns) = m.service_ns {
                    field::put_u64(out, Tag::ServiceNs, service_ns);
                }
                head.end(out, payload_bytes);
            }
            Message::Result(m) => HeadWriter::begin(out, FrameType::Result, 0, m.id).end(out, payload_bytes),
            Message::Hello(m) => {
                let head = HeadWriter::begin(out, FrameType::Hello, 0, 0);
                put_magic(out, m.version);
                field::put_u8(out, Tag::Role, if m.role == Role::Client { 1 } else { 2 });
                field::put_u64(out, Tag::Features, m.features);
                put_agent(out, m.agent);
                if !m.token.is_empty() {
                    field::put_bytes(out, Tag::Token, m.token, limits::MAX_KEY_BYTES);
                }
                head.end(out, 0);
            }
            Message::Welcome(m) => {
                let head = HeadWriter::begin(out, FrameType::Welcome, 0, 0);
                put_magic(out, m.version);
                field::put_u64(out, Tag::Features, m.features);
                field::put_u32(out, Tag::MaxFrame, m.max_frame_bytes);
                field::put_u32(out, Tag::HeartbeatMs, m.heartbeat_ms);
                field::put_u32(out, Tag::SilenceMs, m.silence_ms);
                put_agent(out, m.agent);
                head.end(out, 0);
            }
            Message::Register(m) => encode_register(m, out),
            Message::Ack(m) => {
                let head = HeadWriter::begin(out, FrameType::Ack, 0, m.id);
                field::put_u32(out, Tag::Window, m.window);
                head.end(out, 0);
            }
            Message::Accepted(m) => {
                let head = HeadWriter::begin(out, FrameType::Accepted, 0, m.id);
                field::put_bytes(out, Tag::TaskId, &m.task_id, 16);
                head.end(out, 0);
            }
            Message::Fetch(m) => {
                let head = HeadWriter::begin(out, FrameType::Fetch, 0, m.id);
                field::put_bytes(out, Tag::TaskId, &m.task_id, 16);
                if m.wait_ms != 0 {
                    field::put_u64(out, Tag::WaitMs, m.wait_ms);
                }
                head.end(out, 0);
            }
            Message::Progress(m) => {
                let head = HeadWriter::begin(out, FrameType::Progress, 0, m.id);
                field::put_u64(out, Tag::Done, m.done);
                field::put_u64(out, Tag::Total, m.total);
                head.end(out, payload_bytes);
            }
            Message::GoAway(m) => {
                let head = HeadWriter::begin(out, FrameType::GoAway, 0, 0);
                field::put_text(out, Tag::Message, m.message, limits::MAX_MESSAGE_BYTES);
                head.end(out, 0);
            }
            Message::Error(m) => {
                let head = HeadWriter::begin(out, FrameType::Error, 0, m.id);
                field::put_u16(out, Tag::Code, m.code.number());
                field::put_text(out, Tag::Message, m.message, limits::MAX_MESSAGE_BYTES);
                head.end(out, payload_bytes);
            }
            Message::Status(m) => {
                let head = HeadWriter::begin(out, FrameType::Status, 0, m.id);
                field::put_u32(out, Tag::Offset, m.offset);
                field::put_u32(out, Tag::Limit, m.limit);
                head.end(out, 0);
            }
            Message::StatusReport(m) => {
                HeadWriter::begin(out, FrameType::StatusReport, 0, m.id).end(out, payload_bytes);
            }
            Message::Ping(m) => HeadWriter::begin(out, FrameType::Ping, 0, m.id).end(out, 0),
            Message::Pong(m) => HeadWriter::begin(out, FrameType::Pong, 0, m.id).end(out, 0),
            Message::Cancel(m) => {
                let flags = if m.recall { FLAG_RECALL } else { 0 };
                HeadWriter::begin(out, FrameType::Cancel, flags, m.id).end(out, 0);
            }
            Message::Drain(m) => {
                let flags = if m.resume { FLAG_RESUME } else { 0 };
                HeadWriter::begin(out, FrameType::Drain, flags, m.id).end(out, 0);
            }
        }
    }

    /// What travels behind the fields, for the messages that carry something for the other end.
    fn payload(&self) -> &'a [u8] {
        match self {
            Message::Task(m) => m.payload,
            Message::AssignTask(m) => m.payload,
            Message::TaskResult(m) => m.payload,
            Message::Result(m) => m.payload,
            Message::Progress(m) => m.payload,
            Message::Error(m) => m.payload,
            Message::StatusReport(m) => m.payload,
            _ => &[],
        }
    }
}

// ---- decoding ----

/// Sets a field's place, which must still be empty.
#[inline]
fn once<T>(place: &mut Option<T>, field: Field<'_>, value: T) -> Result<(), FrameError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(FrameError::Repeated { tag: field.tag }),
    }
}

#[inline]
fn each_field<'a>(
    frame: &Frame<'a>,
    mut take: impl FnMut(Field<'a>) -> Result<(), FrameError>,
) -> Result<(), FrameError> {
    for field in Fields::new(frame.fields) {
        take(field?)?;
    }
    Ok(())
}

/// Checks the fields of a frame that needs none.
#[inline]
fn only_skippable(frame: &Frame<'_>) -> Result<(), FrameError> {
    each_field(frame, |_| Ok(()))
}

fn missing(frame: &Frame<'_>, tag: Tag) -> FrameError {
    FrameError::Missing { frame: frame.kind, tag }
}

fn ranged(field: Field<'_>, value: u64, least: u64, most: u64) -> Result<u64, FrameError> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(FrameError::FieldRange { tag: field.tag, value })
    }
}

fn action_of<'a>(field: Field<'a>) -> Result<&'a str, FrameError> {
    field.text(1, limits::MAX_ACTION_BYTES)
}

fn message_of<'a>(field: Field<'a>) -> Result<&'a str, FrameError> {
    field.text(0, limits::MAX_MESSAGE_BYTES)
}

fn time_of(field: Field<'_>) -> Result<u64, FrameError> {
    let ms = field.u64()?;
    ranged(field, ms, 0, limits::MAX_TIME.as_millis() as u64)
}

/// The version in the MAGIC field, which must come first.
fn version_of(frame: &Frame<'_>) -> Result<u16, FrameError> {
    let Some(Ok(first)) = Fields::new(frame.fields).next() else { return Err(FrameError::BadMagic) };
    if first.tag != Tag::Magic || first.value.len() != 6 || first.value[..4] != limits::MAGIC.to_be_bytes() {
        return Err(FrameError::BadMagic);
    }
    Ok(u16::from_be_bytes([first.value[4], first.value[5]]))
}

fn decode_hello<'a>(frame: &Frame<'a>) -> Result<Hello<'a>, FrameError> {
    let version = version_of(frame)?;
    let (mut role, mut features, mut agent, mut token) = (None, None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::Role => {
            let value = match field.u8()? {
                1 => Role::Client,
                2 => Role::Worker,
                other => return Err(FrameError::FieldRange { tag: Tag::Role, value: other.into() }),
            };
            once(&mut role, field, value)
        }
        Tag::Features => once(&mut features, field, field.u64()?),
        Tag::Agent => once(&mut agent, field, field.text(0, limits::MAX_AGENT_BYTES)?),
        Tag::Token => once(&mut token, field, field.bytes(0, limits::MAX_KEY_BYTES)?),
        _ => Ok(()),
    })?;
    Ok(Hello {
        version,
        role: role.ok_or_else(|| missing(frame, Tag::Role))?,
        features: features.unwrap_or(0),
        agent: agent.unwrap_or(""),
        token: token.unwrap_or(&[]),
    })
}

fn decode_welcome<'a>(frame: &Frame<'a>) -> Result<Welcome<'a>, FrameError> {
    let version = version_of(frame)?;
    let (mut features, mut max_frame, mut heartbeat, mut silence, mut agent) = (None, None, None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::Features => once(&mut features, field, field.u64()?),
        Tag::MaxFrame => once(&mut max_frame, field, field.u32()?),
        Tag::HeartbeatMs => once(&mut heartbeat, field, field.u32()?),
        Tag::SilenceMs => once(&mut silence, field, field.u32()?),
        Tag::Agent => once(&mut agent, field, field.text(0, limits::MAX_AGENT_BYTES)?),
        _ => Ok(()),
    })?;
    Ok(Welcome {
        version,
        features: features.unwrap_or(0),
        max_frame_bytes: max_frame.ok_or_else(|| missing(frame, Tag::MaxFrame))?,
        heartbeat_ms: heartbeat.ok_or_else(|| missing(frame, Tag::HeartbeatMs))?,
        silence_ms: silence.ok_or_else(|| missing(frame, Tag::SilenceMs))?,
        agent: agent.unwrap_or(""),
    })
}

fn decode_register<'a>(frame: &Frame<'a>) -> Result<Register<'a>, FrameError> {
    let (mut worker_id, mut threads, mut window, mut weight, mut service) = (None, None, None, None, None);
    let number = |field: Field<'a>, least: u32, most: u32| -> Result<u32, FrameError> {
        let value = field.u32()?;
        ranged(field, value.into(), least.into(), most.into()).map(|_| value)
    };
    each_field(frame, |field| match field.tag {
        Tag::WorkerId => once(&mut worker_id, field, field.text(1, limits::MAX_WORKER_ID_BYTES)?),
        Tag::Threads => once(&mut threads, field, number(field, 1, limits::MAX_THREADS)?),
        Tag::Window => once(&mut window, field, number(field, 1, limits::MAX_WINDOW)?),
        Tag::Weight => once(&mut weight, field, number(field, 1, limits::MAX_WEIGHT)?),
        Tag::ServiceNs => once(&mut service, field, field.u64()?),
        _ => Ok(()),
    })?;
    let threads = threads.unwrap_or(1);
    Ok(Register {
        id: frame.id,
        worker_id: worker_id.ok_or_else(|| missing(frame, Tag::WorkerId))?,
        threads,
        window: window.unwrap_or(limits::DEFAULT_WINDOW).max(threads),
        weight: weight.unwrap_or(1),
        service_ns: service,
        actions: Actions::decode(frame.payload)?,
    })
}

fn decode_task<'a>(frame: &Frame<'a>) -> Result<Task<'a>, FrameError> {
    let mut action = None;
    let mut options =
        TaskOptions { background: frame.flags & FLAG_BACKGROUND != 0, ..TaskOptions::default() };
    each_field(frame, |field| match field.tag {
        Tag::Action => once(&mut action, field, action_of(field)?),
        Tag::Priority => {
            let value = field.u8()?;
            ranged(field, value.into(), 0, limits::MAX_PRIORITY.into())?;
            once(&mut options.priority, field, value)
        }
        Tag::DeadlineMs => once(&mut options.deadline_ms, field, time_of(field)?),
        Tag::WaitMs => once(&mut options.wait_ms, field, time_of(field)?),
        Tag::Key => once(&mut options.key, field, field.bytes(1, limits::MAX_KEY_BYTES)?),
        Tag::MaxAttempts => {
            let value = field.u8()?;
            ranged(field, value.into(), 1, u8::MAX.into())?;
            once(&mut options.max_attempts, field, value)
        }
        _ => Ok(()),
    })?;
    let action = action.ok_or_else(|| missing(frame, Tag::Action))?;
    Ok(Task { id: frame.id, action, options, payload: frame.payload })
}

fn decode_assign_task<'a>(frame: &Frame<'a>) -> Result<AssignTask<'a>, FrameError> {
    let (mut action, mut attempt, mut deadline_ms, mut key, mut task_id) = (None, None, None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::Action => once(&mut action, field, action_of(field)?),
        Tag::Attempt => once(&mut attempt, field, field.u8()?),
        Tag::DeadlineMs => once(&mut deadline_ms, field, time_of(field)?),
        Tag::Key => once(&mut key, field, field.bytes(1, limits::MAX_KEY_BYTES)?),
        Tag::TaskId => once(&mut task_id, field, field.id()?),
        _ => Ok(()),
    })?;
    Ok(AssignTask {
        id: frame.id,
        action: action.ok_or_else(|| missing(frame, Tag::Action))?,
        attempt: attempt.unwrap_or(1),
        deadline_ms,
        key,
        task_id,
        payload: frame.payload,
    })
}

fn decode_task_result<'a>(frame: &Frame<'a>) -> Result<TaskResult<'a>, FrameError> {
    let (mut message, mut service_ns) = (None, None);
    each_field(frame, |field| match field.tag {
        Tag::Message => once(&mut message, field, message_of(field)?),
        Tag::ServiceNs => once(&mut service_ns, field, field.u64()?),
        _ => Ok(()),
    })?;
    let outcome = match frame.flags & OUTCOME_MASK {
        0 => Outcome::Done,
        1 => Outcome::Failed,
        2 => Outcome::Retry,
        _ => Outcome::NotRun,
    };
    let message = message.unwrap_or("");
    Ok(TaskResult { id: frame.id, outcome, message, service_ns, payload: frame.payload })
}

fn decode_error<'a>(frame: &Frame<'a>) -> Result<ErrorMessage<'a>, FrameError> {
    let (mut code, mut message) = (None, None);
    each_field(frame, |field| match field.tag {
        Tag::Code => once(&mut code, field, ErrorCode::from_number(field.u16()?)),
        Tag::Message => once(&mut message, field, message_of(field)?),
        _ => Ok(()),
    })?;
    Ok(ErrorMessage {
        id: frame.id,
        code: code.ok_or_else(|| missing(frame, Tag::Code))?,
        message: message.unwrap_or(""),
        payload: frame.payload,
    })
}

fn decode_progress<'a>(frame: &Frame<'a>) -> Result<Progress<'a>, FrameError> {
    let (mut done, mut total) = (None, None);
    each_field(frame, |field| match field.tag {
        Tag::Done => once(&mut done, field, field.u64()?),
        Tag::Total => once(&mut total, field, field.u64()?),
        _ => Ok(()),
    })?;
    let (done, total) = (done.unwrap_or(0), total.unwrap_or(0));
    Ok(Progress { id: frame.id, done, total, payload: frame.payload })
}

fn decode_status<'a>(frame: &Frame<'a>) -> Result<Message<'a>, FrameError> {
    let (mut offset, mut limit) = (None, None);
    each_field(frame, |field| match field.tag {
        Tag::Offset => once(&mut offset, field, field.u32()?),
        Tag::Limit => once(&mut limit, field, field.u32()?),
        _ => Ok(()),
    })?;
    let (offset, limit) = (offset.unwrap_or(0), limit.unwrap_or(u32::MAX));
    Ok(Message::Status(Status { id: frame.id, offset, limit }))
}

fn required_task_id(frame: &Frame<'_>) -> Result<([u8; 16], u64), FrameError> {
    let (mut task_id, mut wait_ms) = (None, None);
    each_field(frame, |field| match field.tag {
        Tag::TaskId => once(&mut task_id, field, field.id()?),
        Tag::WaitMs => once(&mut wait_ms, field, time_of(field)?),
        _ => Ok(()),
    })?;
    Ok((task_id.ok_or_else(|| missing(frame, Tag::TaskId))?, wait_ms.unwrap_or(0)))
}

// ---- encoding ----

fn put_magic(out: &mut BytesMut, version: u16) {
    let [a, b, c, d] = limits::MAGIC.to_be_bytes();
    let [e, f] = version.to_be_bytes();
    field::put_bytes(out, Tag::Magic, &[a, b, c, d, e, f], 6);
}

fn put_agent(out: &mut BytesMut, agent: &str) {
    if !agent.is_empty() {
        field::put_text(out, Tag::Agent, agent, limits::MAX_AGENT_BYTES);
    }
}

fn encode_task(m: &Task<'_>, out: &mut BytesMut, payload_bytes: usize) {
    let flags = if m.options.background { FLAG_BACKGROUND } else { 0 };
    let head = HeadWriter::begin(out, FrameType::Task, flags, m.id);
    field::put_text(out, Tag::Action, m.action, limits::MAX_ACTION_BYTES);
    if let Some(priority) = m.options.priority {
        field::put_u8(out, Tag::Priority, priority);
    }
    if let Some(ms) = m.options.deadline_ms {
        field::put_u64(out, Tag::DeadlineMs, ms);
    }
    if let Some(ms) = m.options.wait_ms {
        field::put_u64(out, Tag::WaitMs, ms);
    }
    if let Some(key) = m.options.key {
        field::put_bytes(out, Tag::Key, key, limits::MAX_KEY_BYTES);
    }
    if let Some(attempts) = m.options.max_attempts {
        field::put_u8(out, Tag::MaxAttempts, attempts);
    }
    head.end(out, payload_bytes);
}

fn encode_assign_task(m: &AssignTask<'_>, out: &mut BytesMut, payload_bytes: usize) {
    let head = HeadWriter::begin(out, FrameType::AssignTask, 0, m.id);
    field::put_text(out, Tag::Action, m.action, limits::MAX_ACTION_BYTES);
    if m.attempt != 1 {
        field::put_u8(out, Tag::Attempt, m.attempt);
    }
    if let Some(ms) = m.deadline_ms {
        field::put_u64(out, Tag::DeadlineMs, ms);
    }
    if let Some(key) = m.key {
        field::put_bytes(out, Tag::Key, key, limits::MAX_KEY_BYTES);
    }
    if let Some(task_id) = m.task_id {
        field::put_bytes(out, Tag::TaskId, &task_id, 16);
    }
    head.end(out, payload_bytes);
}

fn encode_register(m: &Register<'_>, out: &mut BytesMut) {
    let head = HeadWriter::begin(out, FrameType::Register, 0, m.id);
    field::put_text(out, Tag::WorkerId, m.worker_id, limits::MAX_WORKER_ID_BYTES);
    field::put_u32(out, Tag::Threads, m.threads);
    field::put_u32(out, Tag::Window, m.window);
    field::put_u32(out, Tag::Weight, m.weight);
    if let Some(service_ns) = m.service_ns {
        field::put_u64(out, Tag::ServiceNs, service_ns);
    }
    let payload_bytes: usize = m
        .actions
        .iter()
        .take(limits::MAX_ACTIONS_PER_WORKER)
        .map(|action| field::FIELD_HEADER_BYTES + field::cut(action, limits::MAX_ACTION_BYTES).len())
        .sum();
    head.end(out, payload_bytes);
    for action in m.actions.iter().take(limits::MAX_ACTIONS_PER_WORKER) {
        field::put_text(out, Tag::Action, action, limits::MAX_ACTION_BYTES);
    }
}
