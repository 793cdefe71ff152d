//! Frames into messages: which fields a frame may have, of which form, and what stands in for one that is not there.

use super::{
    Accepted, Ack, Actions, AssignTask, Cancel, Drain, DropTask, ErrorMessage, FLAG_BACKGROUND,
    FLAG_DESCRIBE, FLAG_DUPLICATE, FLAG_HELD, FLAG_RECALL, FLAG_RECORD, FLAG_RESUME, Fetch, GoAway,
    HeldTasks, Hello, ListTasks, Message, OUTCOME_MASK, Outcome, Ping, Pong, Progress, Register, RetryTask,
    Role, Status, StatusReport, Task, TaskDone, TaskList, TaskOptions, TaskResult, TaskStanding, Welcome,
};
use crate::error::{ErrorCode, FrameError};
use crate::field::{Field, Fields, Tag};
use crate::frame::{Frame, FrameType};
use crate::limits;
use crate::state::TaskState;

impl<'a> Message<'a> {
    /// Understands a frame. Allocates nothing; unknown flags and unknown optional fields are passed over.
    ///
    /// # Errors
    /// A field that is missing, repeated, of a wrong length, not UTF-8, out of its range, or that must be
    /// understood and is not; the id 0 where an id is needed; a HELLO or WELCOME of another version.
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
            FrameType::Accepted => {
                let (task_id, _) = required_task_id(frame)?;
                let duplicate = frame.flags & FLAG_DUPLICATE != 0;
                Message::Accepted(Accepted { id: needed_id(frame)?, task_id, duplicate })
            }
            FrameType::Fetch => {
                let (task_id, wait_ms) = required_task_id(frame)?;
                let describe = frame.flags & FLAG_DESCRIBE != 0;
                Message::Fetch(Fetch { id: needed_id(frame)?, task_id, wait_ms, describe })
            }
            FrameType::TaskState => Message::TaskState(decode_task_standing(frame)?),
            FrameType::ListTasks => Message::ListTasks(decode_list_tasks(frame)?),
            FrameType::TaskList => {
                only_skippable(frame)?;
                Message::TaskList(TaskList { id: needed_id(frame)?, payload: frame.payload })
            }
            FrameType::RetryTask => {
                let (task_id, _) = required_task_id(frame)?;
                Message::RetryTask(RetryTask { id: needed_id(frame)?, task_id })
            }
            FrameType::DropTask => {
                let (task_id, _) = required_task_id(frame)?;
                Message::DropTask(DropTask { id: needed_id(frame)?, task_id })
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
                let task_id = maybe_task_id(frame)?;
                Message::Cancel(Cancel { id, task_id, recall: frame.flags & FLAG_RECALL != 0 })
            }
            FrameType::Drain => {
                only_skippable(frame)?;
                Message::Drain(Drain { id, resume: frame.flags & FLAG_RESUME != 0 })
            }
        })
    }
}

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

pub(super) fn action_of<'a>(field: Field<'a>) -> Result<&'a str, FrameError> {
    field.text(1, limits::MAX_ACTION_BYTES)
}

fn message_of<'a>(field: Field<'a>) -> Result<&'a str, FrameError> {
    field.text(0, limits::MAX_MESSAGE_BYTES)
}

fn time_of(field: Field<'_>) -> Result<u64, FrameError> {
    let ms = field.u64()?;
    ranged(field, ms, 0, limits::MAX_TIME.as_millis() as u64)
}

fn moment_of(field: Field<'_>) -> Result<u64, FrameError> {
    let ms = field.u64()?;
    ranged(field, ms, 0, limits::MAX_MOMENT_MS)
}

fn state_of(field: Field<'_>) -> Result<TaskState, FrameError> {
    let number = field.u8()?;
    TaskState::from_number(number).ok_or(FrameError::FieldRange { tag: field.tag, value: number.into() })
}

/// Checks the MAGIC field, which must come first, and gives the version. In another version what follows may
/// have another form, so nothing else is looked at before.
fn version_of(frame: &Frame<'_>) -> Result<u16, FrameError> {
    let Some(Ok(first)) = Fields::new(frame.fields).next() else { return Err(FrameError::BadMagic) };
    if first.tag != Tag::Magic || first.value.len() != 6 || first.value[..4] != limits::MAGIC.to_be_bytes() {
        return Err(FrameError::BadMagic);
    }
    match u16::from_be_bytes([first.value[4], first.value[5]]) {
        limits::VERSION => Ok(limits::VERSION),
        other => Err(FrameError::UnsupportedVersion(other)),
    }
}

/// A frame's id where 0 would make its answer look like one for the connection.
fn needed_id(frame: &Frame<'_>) -> Result<u64, FrameError> {
    if frame.id == 0 { Err(FrameError::NoId { frame: frame.kind }) } else { Ok(frame.id) }
}

/// A u32 field within a range.
fn number_of(field: Field<'_>, least: u32, most: u32) -> Result<u32, FrameError> {
    let value = field.u32()?;
    ranged(field, value.into(), least.into(), most.into())?;
    Ok(value)
}

fn decode_hello<'a>(frame: &Frame<'a>) -> Result<Hello<'a>, FrameError> {
    let version = version_of(frame)?;
    let (mut magic, mut role, mut features, mut agent, mut token) = (None, None, None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::Magic => once(&mut magic, field, ()),
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
        Tag::Token => once(&mut token, field, field.bytes(0, limits::MAX_TOKEN_BYTES)?),
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
    let (mut magic, mut features, mut max_frame) = (None, None, None);
    let (mut heartbeat, mut silence, mut agent) = (None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::Magic => once(&mut magic, field, ()),
        Tag::Features => once(&mut features, field, field.u64()?),
        Tag::MaxFrame => {
            let bytes = number_of(field, limits::MIN_MAX_FRAME_BYTES, limits::MAX_MAX_FRAME_BYTES)?;
            once(&mut max_frame, field, bytes)
        }
        Tag::HeartbeatMs => once(&mut heartbeat, field, number_of(field, 1, u32::MAX)?),
        Tag::SilenceMs => once(&mut silence, field, number_of(field, 1, u32::MAX)?),
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
    each_field(frame, |field| match field.tag {
        Tag::WorkerId => once(&mut worker_id, field, field.text(1, limits::MAX_WORKER_ID_BYTES)?),
        Tag::Threads => once(&mut threads, field, number_of(field, 1, limits::MAX_THREADS)?),
        Tag::Window => once(&mut window, field, number_of(field, 1, limits::MAX_WINDOW)?),
        Tag::Weight => once(&mut weight, field, number_of(field, 1, limits::MAX_WEIGHT)?),
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
        held: HeldTasks::decode(frame.payload)?,
    })
}

fn decode_task<'a>(frame: &Frame<'a>) -> Result<Task<'a>, FrameError> {
    let mut action = None;
    let background = frame.flags & FLAG_BACKGROUND != 0;
    let record = frame.flags & FLAG_RECORD != 0;
    let mut options = TaskOptions { background, record, ..TaskOptions::default() };
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
        Tag::DelayMs if background || record => once(&mut options.delay_ms, field, time_of(field)?),
        Tag::StartAtMs if background || record => once(&mut options.start_at_ms, field, moment_of(field)?),
        Tag::BackoffFirstMs if background || record => {
            once(&mut options.backoff_first_ms, field, field.u32()?)
        }
        Tag::BackoffMostMs if background || record => once(&mut options.backoff_most_ms, field, field.u32()?),
        Tag::IdempotencyKey if background || record => {
            let key = field.bytes(1, limits::MAX_IDEMPOTENCY_KEY_BYTES)?;
            once(&mut options.idempotency_key, field, key)
        }
        Tag::IdempotencyMs if background || record => {
            once(&mut options.idempotency_ms, field, time_of(field)?)
        }
        _ => Ok(()),
    })?;
    let action = action.ok_or_else(|| missing(frame, Tag::Action))?;
    Ok(Task { id: needed_id(frame)?, action, options, payload: frame.payload })
}

fn decode_assign_task<'a>(frame: &Frame<'a>) -> Result<AssignTask<'a>, FrameError> {
    let (mut action, mut attempt, mut deadline_ms, mut key, mut task_id) = (None, None, None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::Action => once(&mut action, field, action_of(field)?),
        Tag::Attempt => {
            let value = field.u8()?;
            ranged(field, value.into(), 1, u8::MAX.into())?;
            once(&mut attempt, field, value)
        }
        Tag::DeadlineMs => once(&mut deadline_ms, field, time_of(field)?),
        Tag::Key => once(&mut key, field, field.bytes(1, limits::MAX_KEY_BYTES)?),
        Tag::TaskId => once(&mut task_id, field, field.id()?),
        _ => Ok(()),
    })?;
    Ok(AssignTask {
        id: needed_id(frame)?,
        action: action.ok_or_else(|| missing(frame, Tag::Action))?,
        attempt: attempt.unwrap_or(1),
        deadline_ms,
        key,
        task_id,
        held: frame.flags & FLAG_HELD != 0,
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

fn maybe_task_id(frame: &Frame<'_>) -> Result<Option<[u8; 16]>, FrameError> {
    let mut task_id = None;
    each_field(frame, |field| match field.tag {
        Tag::TaskId => once(&mut task_id, field, field.id()?),
        _ => Ok(()),
    })?;
    Ok(task_id)
}

fn decode_task_standing<'a>(frame: &Frame<'a>) -> Result<TaskStanding<'a>, FrameError> {
    let (mut task_id, mut state, mut attempts) = (None, None, None);
    let (mut created, mut due, mut ended) = (None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::TaskId => once(&mut task_id, field, field.id()?),
        Tag::State => once(&mut state, field, state_of(field)?),
        Tag::Attempts => once(&mut attempts, field, field.u8()?),
        Tag::CreatedAtMs => once(&mut created, field, moment_of(field)?),
        Tag::DueAtMs => once(&mut due, field, moment_of(field)?),
        Tag::EndedAtMs => once(&mut ended, field, moment_of(field)?),
        _ => Ok(()),
    })?;
    Ok(TaskStanding {
        id: needed_id(frame)?,
        task_id: task_id.ok_or_else(|| missing(frame, Tag::TaskId))?,
        state: state.ok_or_else(|| missing(frame, Tag::State))?,
        attempts: attempts.unwrap_or(0),
        created_at_ms: created.ok_or_else(|| missing(frame, Tag::CreatedAtMs))?,
        due_at_ms: due,
        ended_at_ms: ended,
        payload: frame.payload,
    })
}

fn decode_list_tasks<'a>(frame: &Frame<'a>) -> Result<ListTasks<'a>, FrameError> {
    let (mut action, mut state, mut since, mut before, mut limit) = (None, None, None, None, None);
    each_field(frame, |field| match field.tag {
        Tag::Action => once(&mut action, field, action_of(field)?),
        Tag::State => once(&mut state, field, state_of(field)?),
        Tag::SinceMs => once(&mut since, field, moment_of(field)?),
        Tag::TaskId => once(&mut before, field, field.id()?),
        Tag::Limit => once(&mut limit, field, field.u32()?),
        _ => Ok(()),
    })?;
    let limit = limit.unwrap_or(u32::MAX);
    Ok(ListTasks { id: needed_id(frame)?, action, state, since_ms: since, before, limit })
}
