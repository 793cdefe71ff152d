//! What clients are told of a stored task: where it stands, and the JSON that describes it.

use bytes::Bytes;
use reparto_protocol::{ErrorCode, TaskState};
use serde_json::{Value, json};

use crate::scheduler::Standing;
use crate::storage::{FailedAttempt, StoredTask};

/// Failed attempts that are told of, the last ones.
const MOST_ATTEMPTS: usize = 256;

fn ms(at: i64) -> u64 {
    u64::try_from(at / 1000).unwrap_or(0)
}

/// Where a task stands, in the state that it is in by now.
pub(super) fn standing(stored: &StoredTask, state: TaskState) -> Standing {
    Standing {
        task: stored.task.id.0,
        state,
        attempts: stored.attempts,
        created_at_ms: ms(stored.task.created_at),
        due_at_ms: stored.task.due_at.filter(|_| state == TaskState::Scheduled).map(ms),
        ended_at_ms: stored.ended_at.map(ms),
        progress: (0, 0),
    }
}

fn object(stored: &StoredTask, state: TaskState) -> Value {
    let standing = standing(stored, state);
    json!({
        "id": stored.task.id.to_string(),
        "action": &*stored.task.action,
        "state": state.name(),
        "priority": stored.task.priority,
        "attempts": stored.attempts,
        "max_attempts": stored.task.max_attempts,
        "created_at_ms": standing.created_at_ms,
        "due_at_ms": standing.due_at_ms,
        "deadline_at_ms": stored.task.deadline_at.map(ms),
        "ended_at_ms": standing.ended_at_ms,
        "code": stored.failure.as_ref().map(|failure| failure.code.name()),
        "error": stored.failure.as_ref().map(|failure| &failure.message),
    })
}

/// All that is known of a task.
pub(super) fn description(stored: &StoredTask, state: TaskState, history: &[FailedAttempt]) -> Bytes {
    let mut object = object(stored, state);
    let last = &history[history.len().saturating_sub(MOST_ATTEMPTS)..];
    object["failed_attempts"] = last
        .iter()
        .map(|attempt| {
            json!({
                "attempt": attempt.attempts,
                "at_ms": ms(attempt.at),
                "worker": &*attempt.worker,
                "code": attempt.failure.code.name(),
                "error": attempt.failure.message,
            })
        })
        .collect();
    Bytes::from(object.to_string())
}

/// A page of tasks, with where the next one begins.
pub(super) fn page(tasks: &[(StoredTask, TaskState)], next: Option<String>) -> Bytes {
    let tasks: Vec<Value> = tasks.iter().map(|(stored, state)| object(stored, *state)).collect();
    Bytes::from(json!({ "tasks": tasks, "next": next }).to_string())
}

/// The code and the sentence of a task that ended without a result.
pub(super) fn failure(stored: &StoredTask) -> (ErrorCode, String) {
    let code = match stored.state {
        TaskState::Failed => ErrorCode::WorkerFailed,
        TaskState::Dead => ErrorCode::AttemptsExhausted,
        TaskState::Cancelled => ErrorCode::Cancelled,
        TaskState::Expired => ErrorCode::Expired,
        _ => ErrorCode::Internal,
    };
    let message = stored.failure.as_ref().map_or_else(String::new, |failure| failure.message.clone());
    (code, message)
}
