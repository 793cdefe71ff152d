//! From effects and answers to the native dialect's frames.

use bytes::Bytes;
use reparto_protocol::{
    Accepted, Ack, AlikeHeads, AssignTask, Cancel, ErrorMessage, GoAway, Message, Ping, Pong, Progress,
    StatusReport, TaskDone, TaskList, TaskStanding, Welcome, limits,
};

use crate::dialect::{Answer, Context, Output, Refusal};
use crate::scheduler::{Assignment, AssignmentId, Effect, Payload, StoreAnswer, Time};

const AGENT: &str = concat!("reparto-balancer/", env!("CARGO_PKG_VERSION"));

const GOING: &str = "the balancer is shutting down; what is in flight will be answered";

/// Writes an effect down; [`assign`] does it for [`Effect::Assign`].
#[inline]
pub fn encode(effect: Effect<'_>, out: &mut Output) {
    match effect {
        Effect::Result { id, payload, .. } => result(id, payload, out),
        Effect::Fail { id, code, message, payload, .. } => {
            put(&Message::Error(ErrorMessage { id, code, message: &message, payload: &[] }), payload, out);
        }
        Effect::Progress { id, done, total, payload, .. } => {
            put(&Message::Progress(Progress { id, done, total, payload: &[] }), payload, out);
        }
        Effect::CancelAssignment { assignment, recall, .. } => {
            put_bare(&Message::Cancel(Cancel { id: assignment.0, task_id: None, recall }), out);
        }
        Effect::Acknowledge { request, window, .. } => {
            put_bare(&Message::Ack(Ack { id: request, window }), out);
        }
        Effect::Ping { .. } => put_bare(&Message::Ping(Ping { id: 0 }), out),
        Effect::GoAway { .. } => put_bare(&Message::GoAway(GoAway { message: GOING }), out),
        Effect::Close { code, message, .. } => refuse(&Refusal { code, message }, out),
        Effect::Answer { id, answer, .. } => store_answer(id, answer, out),
        Effect::Unwanted { id, .. } => {
            put_bare(&Message::Cancel(Cancel { id: 0, task_id: Some(id), recall: false }), out);
        }
        // The last ones are for dialects whose tasks are announced and whose workers pull.
        Effect::Assign { .. }
        | Effect::Note { .. }
        | Effect::Claim { .. }
        | Effect::Stopped
        | Effect::Created { .. }
        | Effect::Refused { .. }
        | Effect::NoTask { .. }
        | Effect::Wake { .. } => {}
    }
}

/// Writes an answer down; [`report`] does it for [`Answer::Status`].
pub fn answer(context: &Context, answer: &Answer, out: &mut Output) {
    match answer {
        Answer::Welcome => put_bare(
            &Message::Welcome(Welcome {
                version: limits::VERSION,
                features: if context.has_store { limits::FEATURE_BACKGROUND } else { 0 },
                max_frame_bytes: context.max_frame_bytes,
                heartbeat_ms: u32::try_from(context.heartbeat.as_millis()).unwrap_or(u32::MAX),
                silence_ms: u32::try_from(context.silence.as_millis()).unwrap_or(u32::MAX),
                agent: AGENT,
            }),
            out,
        ),
        Answer::Pong(id) => put_bare(&Message::Pong(Pong { id: *id }), out),
        Answer::Status { .. } | Answer::Raw(_) | Answer::Question(_) => {}
        Answer::Failed { id, code, message } => {
            put_bare(&Message::Error(ErrorMessage { id: *id, code: *code, message, payload: &[] }), out);
        }
    }
}

/// Writes a page of the status report down.
pub fn report(id: u64, report: &Bytes, out: &mut Output) {
    put(&Message::StatusReport(StatusReport { id, payload: &[] }), Payload::from(report), out);
}

/// Writes down what the store says.
fn store_answer(id: u64, answer: StoreAnswer<'_>, out: &mut Output) {
    match answer {
        StoreAnswer::Accepted { task, duplicate } => {
            put_bare(&Message::Accepted(Accepted { id, task_id: task, duplicate }), out);
        }
        StoreAnswer::Standing { standing, payload } => {
            let message = TaskStanding {
                id,
                task_id: standing.task,
                state: standing.state,
                attempts: standing.attempts,
                created_at_ms: standing.created_at_ms,
                due_at_ms: standing.due_at_ms,
                ended_at_ms: standing.ended_at_ms,
                payload: &[],
            };
            put(&Message::TaskState(message), payload, out);
        }
        StoreAnswer::List { payload } => put(&Message::TaskList(TaskList { id, payload: &[] }), payload, out),
    }
}

/// Writes down why the connection ends.
pub fn refuse(refusal: &Refusal, out: &mut Output) {
    let (code, message) = (refusal.code, &*refusal.message);
    put_bare(&Message::Error(ErrorMessage { id: 0, code, message, payload: &[] }), out);
}

/// Writes an assignment down.
#[inline]
pub fn assign(now: Time, id: AssignmentId, assignment: &Assignment<'_>, out: &mut Output) {
    let message = AssignTask {
        id: id.0,
        action: assignment.action,
        attempt: assignment.attempt,
        deadline_ms: assignment.deadline.map(|deadline| milliseconds_left(now, deadline)),
        key: Some(assignment.key).filter(|key| !key.is_empty()),
        task_id: assignment.task_id,
        held: assignment.held,
        payload: &[],
    };
    let payload = if assignment.held { Payload::EMPTY } else { assignment.payload };
    message.encode_head(out.buffer(), payload.len());
    out.payload(payload);
}

/// Writes a result down.
#[inline]
pub fn result(id: u64, payload: Payload<'_>, out: &mut Output) {
    TaskDone { id, payload: &[] }.encode_head(out.buffer(), payload.len());
    out.payload(payload);
}

/// Writes down assignments of first attempts at tasks of one action with the usual options, as [`assign`] does each.
#[inline]
pub fn assign_some<'p>(
    action: &str,
    assignments: &mut impl Iterator<Item = (AssignmentId, Payload<'p>)>,
    out: &mut Output,
) {
    // It was read from a frame, which has a name of an action or is none.
    let Some(heads) = AlikeHeads::assign_task(action) else { return };
    for (id, payload) in assignments {
        heads.put(id.0, payload.len(), out.buffer());
        out.payload(payload);
    }
}

/// Writes down results, as [`result`] does each.
#[inline]
pub fn result_some<'p>(results: &mut impl Iterator<Item = (u64, Payload<'p>)>, out: &mut Output) {
    let heads = AlikeHeads::result();
    for (id, payload) in results {
        heads.put(id, payload.len(), out.buffer());
        out.payload(payload);
    }
}

/// Rounded up, so that a task with time left is never told that it has none.
fn milliseconds_left(now: Time, deadline: Time) -> u64 {
    u64::try_from(deadline.since(now).as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[inline]
fn put(message: &Message<'_>, payload: Payload<'_>, out: &mut Output) {
    message.encode_head(out.buffer(), payload.len());
    out.payload(payload);
}

#[inline]
fn put_bare(message: &Message<'_>, out: &mut Output) {
    message.encode_head(out.buffer(), 0);
}
