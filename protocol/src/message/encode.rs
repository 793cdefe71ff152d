//! Messages into frames.

use byteorder::{BigEndian, ByteOrder};
use bytes::{BufMut, BytesMut};

use super::{
    AssignTask, FLAG_BACKGROUND, FLAG_DESCRIBE, FLAG_DUPLICATE, FLAG_HELD, FLAG_RECALL, FLAG_RECORD,
    FLAG_RESUME, ListTasks, Message, Outcome, Register, Role, Task, TaskDone, TaskStanding,
};
use crate::error::FrameError;
use crate::field::{self, Tag};
use crate::frame::{Frame, FrameType, HEADER_BYTES, HeadWriter, LENGTH_BYTES, header};
use crate::limits;

impl<'a> Message<'a> {
    /// Appends the whole frame, unchecked: what the message must not say is left for the reader to refuse.
    ///
    /// Sentences and agents over their limits are cut at a character. Names, keys and tokens over theirs are cut
    /// one byte beyond the limit, and of too many actions one too many is sent, so that the reader refuses the
    /// frame instead of taking it for another name's; numbers are sent as they are, an empty key is left out. A
    /// payload past 4 GiB is announced as 4 GiB, which is over every limit. Where the values are not your own,
    /// [`try_encode`](Self::try_encode) refuses here what would be refused there.
    pub fn encode(&self, out: &mut BytesMut) {
        let payload = self.payload();
        self.encode_head(out, payload.len());
        out.put_slice(payload);
    }

    /// Appends the whole frame if a reader with the limit `max_frame_bytes` (header included) will take it.
    ///
    /// # Errors
    /// What the reader would have said: a frame that is too long, or whatever [`Message::decode`] refuses.
    /// `out` is then as it was.
    ///
    /// ```
    /// use bytes::BytesMut;
    /// use reparto_protocol::{ErrorCode, Message, Task, TaskOptions};
    /// let key = [b'k'; 300];
    /// let options = TaskOptions { key: Some(&key), ..TaskOptions::default() };
    /// let task = Message::Task(Task { id: 1, action: "upper", options, payload: b"hola" });
    /// let mut wire = BytesMut::new();
    /// assert_eq!(task.try_encode(&mut wire, 1024).map_err(|error| error.code()), Err(ErrorCode::BadFrame));
    /// assert!(wire.is_empty());
    /// ```
    pub fn try_encode(&self, out: &mut BytesMut, max_frame_bytes: u32) -> Result<(), FrameError> {
        let payload = self.payload();
        self.try_encode_head(out, payload.len(), max_frame_bytes)?;
        out.put_slice(payload);
        Ok(())
    }

    /// [`encode_head`](Self::encode_head), checked like [`try_encode`](Self::try_encode).
    ///
    /// # Errors
    /// As [`try_encode`](Self::try_encode); `out` is then as it was.
    pub fn try_encode_head(
        &self,
        out: &mut BytesMut,
        payload_bytes: usize,
        max_frame_bytes: u32,
    ) -> Result<(), FrameError> {
        let start = out.len();
        self.encode_head(out, payload_bytes);
        let checked = check_head(&out[start..], max_frame_bytes);
        if checked.is_err() {
            out.truncate(start);
        }
        checked
    }

    /// Appends header and fields only, for a payload of `payload_bytes` that travels behind them by itself.
    ///
    /// A REGISTER's payload is its actions and the tasks that it names, which this writes; `payload_bytes` is ignored for it.
    #[inline]
    pub fn encode_head(&self, out: &mut BytesMut, payload_bytes: usize) {
        match self {
            Message::Task(m) => encode_task(m, out, payload_bytes),
            Message::AssignTask(m) => m.encode_head(out, payload_bytes),
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
            Message::Result(m) => m.encode_head(out, payload_bytes),
            Message::Hello(m) => {
                let head = HeadWriter::begin(out, FrameType::Hello, 0, 0);
                put_magic(out, m.version);
                field::put_u8(out, Tag::Role, if m.role == Role::Client { 1 } else { 2 });
                field::put_u64(out, Tag::Features, m.features);
                put_agent(out, m.agent);
                if !m.token.is_empty() {
                    field::put_name(out, Tag::Token, m.token, limits::MAX_TOKEN_BYTES);
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
                let flags = if m.duplicate { FLAG_DUPLICATE } else { 0 };
                put_task_id_alone(out, FrameType::Accepted, flags, m.id, &m.task_id);
            }
            Message::RetryTask(m) => put_task_id_alone(out, FrameType::RetryTask, 0, m.id, &m.task_id),
            Message::DropTask(m) => put_task_id_alone(out, FrameType::DropTask, 0, m.id, &m.task_id),
            Message::TaskState(m) => encode_task_standing(m, out, payload_bytes),
            Message::ListTasks(m) => encode_list_tasks(m, out),
            Message::TaskList(m) => {
                HeadWriter::begin(out, FrameType::TaskList, 0, m.id).end(out, payload_bytes);
            }
            Message::Fetch(m) => {
                let flags = if m.describe { FLAG_DESCRIBE } else { 0 };
                let head = HeadWriter::begin(out, FrameType::Fetch, flags, m.id);
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
                let head = HeadWriter::begin(out, FrameType::Cancel, flags, m.id);
                if let Some(task_id) = m.task_id {
                    field::put_bytes(out, Tag::TaskId, &task_id, 16);
                }
                head.end(out, 0);
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
            Message::TaskState(m) => m.payload,
            Message::TaskList(m) => m.payload,
            _ => &[],
        }
    }
}

/// Reads back a frame that lacks at most its payload.
fn check_head(written: &[u8], max_frame_bytes: u32) -> Result<(), FrameError> {
    let length = u64::from(BigEndian::read_u32(&written[..LENGTH_BYTES])) + LENGTH_BYTES as u64;
    if length > u64::from(max_frame_bytes) {
        return Err(FrameError::TooLong { bytes: length, limit: max_frame_bytes });
    }
    let fields_end = HEADER_BYTES + usize::from(BigEndian::read_u16(&written[6..8]));
    let kind = FrameType::from_byte(written[4]).ok_or(FrameError::UnknownType(written[4]))?;
    let frame = Frame {
        kind,
        flags: written[5],
        id: BigEndian::read_u64(&written[8..HEADER_BYTES]),
        fields: &written[HEADER_BYTES..fields_end],
        payload: &written[fields_end..],
    };
    Message::decode(&frame).map(|_| ())
}

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

fn put_action(out: &mut BytesMut, action: &str) {
    field::put_name(out, Tag::Action, action.as_bytes(), limits::MAX_ACTION_BYTES);
}

fn put_key(out: &mut BytesMut, key: Option<&[u8]>) {
    if let Some(key) = key.filter(|key| !key.is_empty()) {
        field::put_name(out, Tag::Key, key, limits::MAX_KEY_BYTES);
    }
}

fn put_task_id_alone(out: &mut BytesMut, kind: FrameType, flags: u8, id: u64, task_id: &[u8; 16]) {
    let head = HeadWriter::begin(out, kind, flags, id);
    field::put_bytes(out, Tag::TaskId, task_id, 16);
    head.end(out, 0);
}

fn encode_task_standing(m: &TaskStanding<'_>, out: &mut BytesMut, payload_bytes: usize) {
    let head = HeadWriter::begin(out, FrameType::TaskState, 0, m.id);
    field::put_bytes(out, Tag::TaskId, &m.task_id, 16);
    field::put_u8(out, Tag::State, m.state as u8);
    field::put_u8(out, Tag::Attempts, m.attempts);
    field::put_u64(out, Tag::CreatedAtMs, m.created_at_ms);
    if let Some(ms) = m.due_at_ms {
        field::put_u64(out, Tag::DueAtMs, ms);
    }
    if let Some(ms) = m.ended_at_ms {
        field::put_u64(out, Tag::EndedAtMs, ms);
    }
    head.end(out, payload_bytes);
}

fn encode_list_tasks(m: &ListTasks<'_>, out: &mut BytesMut) {
    let head = HeadWriter::begin(out, FrameType::ListTasks, 0, m.id);
    if let Some(action) = m.action {
        put_action(out, action);
    }
    if let Some(state) = m.state {
        field::put_u8(out, Tag::State, state as u8);
    }
    if let Some(ms) = m.since_ms {
        field::put_u64(out, Tag::SinceMs, ms);
    }
    if let Some(before) = m.before {
        field::put_bytes(out, Tag::TaskId, &before, 16);
    }
    field::put_u32(out, Tag::Limit, m.limit);
    head.end(out, 0);
}

fn encode_task(m: &Task<'_>, out: &mut BytesMut, payload_bytes: usize) {
    let mut flags = if m.options.background { FLAG_BACKGROUND } else { 0 };
    if m.options.record {
        flags |= FLAG_RECORD;
    }
    let head = HeadWriter::begin(out, FrameType::Task, flags, m.id);
    put_action(out, m.action);
    if let Some(priority) = m.options.priority {
        field::put_u8(out, Tag::Priority, priority);
    }
    if let Some(ms) = m.options.deadline_ms {
        field::put_u64(out, Tag::DeadlineMs, ms);
    }
    if let Some(ms) = m.options.wait_ms {
        field::put_u64(out, Tag::WaitMs, ms);
    }
    put_key(out, m.options.key);
    if let Some(attempts) = m.options.max_attempts {
        field::put_u8(out, Tag::MaxAttempts, attempts);
    }
    if m.options.background || m.options.record {
        put_kept_options(m, out);
    }
    head.end(out, payload_bytes);
}

/// The options that only tasks have that are kept.
fn put_kept_options(m: &Task<'_>, out: &mut BytesMut) {
    if let Some(ms) = m.options.delay_ms {
        field::put_u64(out, Tag::DelayMs, ms);
    }
    if let Some(ms) = m.options.start_at_ms {
        field::put_u64(out, Tag::StartAtMs, ms);
    }
    if let Some(ms) = m.options.backoff_first_ms {
        field::put_u32(out, Tag::BackoffFirstMs, ms);
    }
    if let Some(ms) = m.options.backoff_most_ms {
        field::put_u32(out, Tag::BackoffMostMs, ms);
    }
    if let Some(key) = m.options.idempotency_key.filter(|key| !key.is_empty()) {
        field::put_name(out, Tag::IdempotencyKey, key, limits::MAX_IDEMPOTENCY_KEY_BYTES);
    }
    if let Some(ms) = m.options.idempotency_ms {
        field::put_u64(out, Tag::IdempotencyMs, ms);
    }
}

impl TaskDone<'_> {
    /// Appends a RESULT's header, for a payload of `payload_bytes` that follows by itself; as
    /// [`Message::encode_head`] does.
    #[inline]
    pub fn encode_head(&self, out: &mut BytesMut, payload_bytes: usize) {
        out.put_u128(header((FrameType::Result, 0, self.id), 0, payload_bytes));
    }
}

impl AssignTask<'_> {
    /// Appends an ASSIGN_TASK's header and fields, for a payload of `payload_bytes` that follows by itself; as
    /// [`Message::encode_head`] does. The commonest form, an action and nothing else, takes a shorter way.
    #[inline]
    pub fn encode_head(&self, out: &mut BytesMut, payload_bytes: usize) {
        let bare = self.attempt == 1 && self.deadline_ms.is_none() && self.key.is_none();
        let action = self.action.as_bytes();
        if !bare || self.task_id.is_some() || self.held || action.len() > limits::MAX_ACTION_BYTES {
            return encode_assign_task(self, out, payload_bytes);
        }
        let fields_bytes = (field::FIELD_HEADER_BYTES + action.len()) as u16;
        let header = header((FrameType::AssignTask, 0, self.id), fields_bytes, payload_bytes);
        out.put_u128(header);
        out.put_slice(&[Tag::Action as u8, 0, action.len() as u8]);
        out.put_slice(action);
    }
}

fn encode_assign_task(m: &AssignTask<'_>, out: &mut BytesMut, payload_bytes: usize) {
    let flags = if m.held { FLAG_HELD } else { 0 };
    let head = HeadWriter::begin(out, FrameType::AssignTask, flags, m.id);
    put_action(out, m.action);
    if m.attempt != 1 {
        field::put_u8(out, Tag::Attempt, m.attempt);
    }
    if let Some(ms) = m.deadline_ms {
        field::put_u64(out, Tag::DeadlineMs, ms);
    }
    put_key(out, m.key);
    if let Some(task_id) = m.task_id {
        field::put_bytes(out, Tag::TaskId, &task_id, 16);
    }
    head.end(out, payload_bytes);
}

fn encode_register(m: &Register<'_>, out: &mut BytesMut) {
    let head = HeadWriter::begin(out, FrameType::Register, 0, m.id);
    field::put_name(out, Tag::WorkerId, m.worker_id.as_bytes(), limits::MAX_WORKER_ID_BYTES);
    field::put_u32(out, Tag::Threads, m.threads);
    field::put_u32(out, Tag::Window, m.window);
    field::put_u32(out, Tag::Weight, m.weight);
    if let Some(service_ns) = m.service_ns {
        field::put_u64(out, Tag::ServiceNs, service_ns);
    }
    // One too many is sent too, so that the reader refuses what it would otherwise know only in part.
    let actions = || m.actions.iter().take(limits::MAX_ACTIONS_PER_WORKER + 1);
    let held = || m.held.iter().take(limits::MAX_HELD_TASKS + 1);
    let action_bytes: usize = actions()
        .map(|action| field::FIELD_HEADER_BYTES + action.len().min(limits::MAX_ACTION_BYTES + 1))
        .sum();
    let held_bytes = held().count() * (field::FIELD_HEADER_BYTES + 16);
    head.end(out, action_bytes + held_bytes);
    for action in actions() {
        put_action(out, action);
    }
    for task_id in held() {
        field::put_bytes(out, Tag::TaskId, &task_id, 16);
    }
}
