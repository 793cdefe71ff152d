//! Tasks that the balancer keeps: taken in, fetched, described, listed, cancelled, and the dead ones retried or
//! dropped.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reparto_protocol::TaskState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::answer::Description;
use crate::client::Client;
use crate::error::{ClientError, TaskOutcome};
use crate::handle::Reply;
use crate::request::{ListRequest, Question, Request};
use crate::shared::WhenFull;
use crate::task_id::TaskId;
use crate::task_request::{check_action, check_time, unix_millis};

/// Tasks asked for at once by [`Client::tasks`]; the balancer gives no more.
const PAGE_TASKS: u32 = 1_000;

/// A background task is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// By which it is known from now on, on any connection.
    pub task_id: TaskId,
    /// Its idempotency key stands for this task already: nothing new was taken in.
    pub duplicate: bool,
}

/// What [`Client::fetch`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The task has ended: with a result, or with `worker_failed`, `attempts_exhausted`, `cancelled` or `expired`.
    Ended(TaskOutcome),
    /// It has not, in the time given.
    NotEnded(TaskStanding),
}

/// Where a task stands that the balancer keeps. Times are in milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStanding {
    /// The task.
    pub task_id: TaskId,
    /// Where it stands.
    pub state: TaskState,
    /// Attempts that it has used.
    pub attempts: u8,
    /// When it was taken in.
    pub created_at_ms: u64,
    /// When its next attempt may begin, if it waits for that.
    pub due_at_ms: Option<u64>,
    /// When it ended, if it has.
    pub ended_at_ms: Option<u64>,
}

/// All that the balancer tells of a task. Times are in milliseconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDescription {
    /// The task.
    pub id: TaskId,
    /// What it asks for.
    pub action: String,
    /// Where it stands.
    #[serde(with = "state_name")]
    pub state: TaskState,
    /// 0 to 9; higher goes first.
    #[serde(default)]
    pub priority: u8,
    /// Attempts that it has used.
    #[serde(default)]
    pub attempts: u8,
    /// Attempts that it has in all.
    #[serde(default)]
    pub max_attempts: u8,
    /// When it was taken in.
    pub created_at_ms: u64,
    /// When its next attempt may begin, if it waits for that.
    #[serde(default)]
    pub due_at_ms: Option<u64>,
    /// By when it must have ended.
    #[serde(default)]
    pub deadline_at_ms: Option<u64>,
    /// When it ended, if it has.
    #[serde(default)]
    pub ended_at_ms: Option<u64>,
    /// Of its outcome, or of the last attempt that failed: why, for programs.
    #[serde(default)]
    pub code: Option<String>,
    /// The same for people.
    #[serde(default)]
    pub error: Option<String>,
    /// The last attempts that were followed by another; `None` in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<Vec<FailedAttempt>>,
}

/// An attempt that gave no result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FailedAttempt {
    /// Which one, from 1.
    pub attempt: u8,
    /// When it ended, in milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// The worker's id.
    pub worker: Option<String>,
    /// Why, for programs.
    pub code: Option<String>,
    /// Why, for people.
    pub error: Option<String>,
}

/// A state as its name.
mod state_name {
    use reparto_protocol::TaskState;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(state: &TaskState, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(state.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TaskState, D::Error> {
        let name = String::deserialize(deserializer)?;
        TaskState::from_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("'{name}' is not a state known here")))
    }
}

/// Which tasks to list; all by default.
///
/// ```
/// use reparto_client::{TaskFilter, TaskState};
/// let dead = TaskFilter::new().action("thumbnail").state(TaskState::Dead);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct TaskFilter {
    action: Option<String>,
    state: Option<TaskState>,
    since: Option<SystemTime>,
}

impl TaskFilter {
    /// All tasks.
    pub fn new() -> TaskFilter {
        TaskFilter::default()
    }

    /// Only those of this action.
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    /// Only those in this state.
    pub fn state(mut self, state: TaskState) -> Self {
        self.state = Some(state);
        self
    }

    /// Only those taken in then or later.
    pub fn since(mut self, moment: SystemTime) -> Self {
        self.since = Some(moment);
        self
    }
}

/// A page of the list of tasks, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskPage {
    /// The tasks; there may be none although more pages follow.
    pub tasks: Vec<TaskDescription>,
    /// Where the next page begins; `None` when this is the last one.
    pub next: Option<TaskId>,
}

/// Tasks that the balancer keeps. A balancer without a store answers each of these with `store_unavailable`.
impl Client {
    /// Asks for the outcome of a task, and waits for it at the balancer up to `wait` (at most 366 days; zero asks how
    /// it stands now). Any client may ask, at any time until the outcome is removed. When the connection is lost the
    /// question is asked again on the next one.
    ///
    /// A balancer lets 16,384 of them wait for one connection; one more ends with `queue_full`.
    ///
    /// ```no_run
    /// # fn example(client: &reparto_client::Client, id: reparto_client::TaskId)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// use reparto_client::Fetched;
    /// use std::time::Duration;
    /// match client.fetch(id, Duration::from_secs(30))?.wait()? {
    ///     Fetched::Ended(Ok(result)) => println!("{} bytes", result.len()),
    ///     Fetched::Ended(Err(failure)) => println!("{failure}"),
    ///     Fetched::NotEnded(standing) => println!("still {}", standing.state),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a wait that is too long. The reply ends with `not_found` where nothing is known by
    /// that id, or not any more.
    pub fn fetch(&self, task_id: TaskId, wait: Duration) -> Result<Reply<Fetched>, ClientError> {
        check_time("the wait", Some(wait))?;
        let wait_until = if wait.is_zero() { None } else { Instant::now().checked_add(wait) };
        self.ask(Request::Fetch { task_id, wait_until }, WhenFull::Wait)
    }

    /// All that the balancer knows of a task, ended or not, with the history of its attempts. Blocks until it is there.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `not_found` where nothing is known by that id, and with `connection_lost`;
    /// [`ClientError::BadReport`] when the answer makes no sense.
    pub fn describe(&self, task_id: TaskId) -> Result<TaskDescription, ClientError> {
        let request = Request::Ask(Question::Describe, task_id);
        let Description(bytes) = self.ask(request, WhenFull::Wait)?.wait()?;
        read_json(&bytes)
    }

    /// Cancels a task that has not ended, whoever handed it in. The reply comes once that is durable: its state is
    /// `cancelled`, or the one in which the task had ended before. When the connection is lost it is asked again on the
    /// next one.
    ///
    /// # Errors
    /// The reply ends with `not_found` where nothing is known by that id.
    pub fn cancel_task(&self, task_id: TaskId) -> Result<Reply<TaskStanding>, ClientError> {
        self.ask(Request::Ask(Question::Cancel, task_id), WhenFull::Wait)
    }

    /// Gives a dead task all its attempts anew. The reply's state is `queued`; a task that is not dead is left as it
    /// is, and its state says so. Not asked again by itself when the connection is lost.
    ///
    /// # Errors
    /// The reply ends with `not_found` where nothing is known by that id.
    pub fn retry_task(&self, task_id: TaskId) -> Result<Reply<TaskStanding>, ClientError> {
        self.ask(Request::Ask(Question::Retry, task_id), WhenFull::Wait)
    }

    /// Has a task forgotten that has ended, with its result and its history. The reply's state is the one that it was
    /// in; a task that has not ended is left as it is. Not asked again by itself when the connection is lost.
    ///
    /// # Errors
    /// The reply ends with `not_found` where nothing is known by that id.
    pub fn drop_task(&self, task_id: TaskId) -> Result<Reply<TaskStanding>, ClientError> {
        self.ask(Request::Ask(Question::Drop, task_id), WhenFull::Wait)
    }

    /// One page of the list of tasks: the newest, or those before where another page ended, at most `limit` of them,
    /// and never more than 1,000. Blocks until it is there. [`tasks`](Self::tasks) asks for page after page by itself.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for an action that cannot be one; [`ClientError::Refused`];
    /// [`ClientError::BadReport`] when the answer makes no sense.
    pub fn list_tasks(
        &self,
        filter: &TaskFilter,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<TaskPage, ClientError> {
        if let Some(action) = &filter.action {
            check_action(action)?;
        }
        let request = Request::List(ListRequest {
            action: filter.action.as_deref().map(Cow::Borrowed),
            state: filter.state,
            since_ms: filter.since.map(unix_millis),
            before,
            limit,
        });
        let bytes: Bytes = self.ask(request, WhenFull::Wait)?.wait()?;
        read_json(&bytes)
    }

    /// The tasks that the filter lets through, the newest first. Pages are asked for as they are needed, so those that
    /// come meanwhile are not among them, and what changes meanwhile is seen as it is when its page is made.
    ///
    /// ```no_run
    /// # fn example(client: &reparto_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use reparto_client::{TaskFilter, TaskState};
    /// for task in client.tasks(TaskFilter::new().state(TaskState::Dead)) {
    ///     let task = task?;
    ///     println!("{} {}: {}", task.id, task.action, task.error.unwrap_or_default());
    ///     client.retry_task(task.id)?.wait()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn tasks(&self, filter: TaskFilter) -> Tasks<'_> {
        Tasks { client: self, filter, page: VecDeque::new(), next: Next::First }
    }
}

fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::BadReport(error.to_string()))
}

/// The tasks that a filter lets through; made by [`Client::tasks`]. It ends with the first error.
#[must_use]
pub struct Tasks<'a> {
    client: &'a Client,
    filter: TaskFilter,
    page: VecDeque<TaskDescription>,
    next: Next,
}

/// Which page to ask for.
enum Next {
    First,
    Before(TaskId),
    None,
}

impl Iterator for Tasks<'_> {
    type Item = Result<TaskDescription, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(task) = self.page.pop_front() {
                return Some(Ok(task));
            }
            let before = match self.next {
                Next::First => None,
                Next::Before(id) => Some(id),
                Next::None => return None,
            };
            match self.client.list_tasks(&self.filter, before, PAGE_TASKS) {
                Ok(page) => {
                    // Each page begins further back, or a balancer could keep this going for ever.
                    self.next = match page.next {
                        Some(next) if before.is_none_or(|before| next < before) => Next::Before(next),
                        _ => Next::None,
                    };
                    self.page = page.tasks.into();
                }
                Err(error) => {
                    self.next = Next::None;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl fmt::Debug for Tasks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("filter", &self.filter).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read_with_keys_left_out_and_with_keys_not_known() {
        let text = r#"{"id":"0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7","action":"upper","state":"dead",
            "created_at_ms":5,"ended_at_ms":null,"colour":"red","failed_attempts":[{"attempt":1,"shade":2}]}"#;
        let task: TaskDescription = read_json(text.as_bytes()).unwrap();
        assert_eq!((task.state, task.created_at_ms, task.ended_at_ms), (TaskState::Dead, 5, None));
        assert_eq!(task.failed_attempts.unwrap()[0].attempt, 1);
    }

    #[test]
    fn a_state_that_is_not_known_is_told() {
        let text =
            r#"{"id":"0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7","action":"x","state":"odd","created_at_ms":5}"#;
        let error = read_json::<TaskDescription>(text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("'odd' is not a state known here"), "{error}");
    }
}
