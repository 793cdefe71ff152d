//! What every store can do: [`Store`] makes operations durable, [`StoreReader`] answers questions beside it.

use std::fmt;
use std::sync::Arc;

use super::task::{
    BlobKey, FailedAttempt, MAX_ACTION_LEN, MAX_KEY_LEN, MAX_REPLY_LEN, NewTask, Outcome, StoredTask, TaskId,
    TaskState,
};

/// Most tasks in one page of an answer.
pub const MAX_PAGE: usize = 4096;
/// Bytes of tasks after which a page ends early.
pub const MAX_PAGE_BYTES: usize = 8 << 20;

/// Longest payload or result that can stand in a row, in bytes. Far smaller ones go to the blob store.
pub const MAX_INLINE_LEN: usize = 64 << 20;

/// One change of what is stored, or one step of its upkeep.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // accepting is what there is most of; a box for it would be one more allocation
pub enum Operation {
    /// Take a task in. Answered by [`Answer::Accepted`] or [`Answer::SameKey`].
    Accept(NewTask),
    /// A worker has it; state `running`. Costs no attempt by itself, so it may be left out for short tasks.
    Start {
        /// Which task.
        id: TaskId,
    },
    /// It waits for a worker again, at no cost: it was handed back, or nobody named it after a restart.
    Requeue {
        /// Which task.
        id: TaskId,
    },
    /// An attempt failed, and another follows.
    Retry {
        /// What happened.
        attempt: FailedAttempt,
        /// When the next attempt may begin; `None` for at once.
        due_at: Option<i64>,
    },
    /// Record how it ended, if nothing has been recorded yet. Also cancels and expires.
    Finish(Outcome),
    /// A dead task gets all its attempts anew.
    Revive {
        /// Which task.
        id: TaskId,
    },
    /// Forget an ended task and its history.
    Drop {
        /// Which task.
        id: TaskId,
    },
    /// Scheduled tasks whose time has come become queued, those due longest first.
    TakeDue {
        /// The present moment.
        now: i64,
        /// How many at most; [`MAX_PAGE`] whatever it says.
        limit: usize,
    },
    /// Remove tasks that ended before a moment. A small step of a long walk, to be asked for again and again.
    RemoveEnded {
        /// The moment.
        before: i64,
        /// Rows to look at, at most.
        limit: usize,
    },
    /// Remove idempotency keys whose window has ended.
    RemoveKeys {
        /// The present moment.
        now: i64,
        /// How many at most.
        limit: usize,
    },
    /// Make a queued task this balancer's own, if it is no other's. Only a store that balancers share knows owners; it
    /// answers [`Answer::Claimed`] or [`Answer::Elsewhere`].
    Claim {
        /// Which task.
        id: TaskId,
        /// A worker of this balancer's has named it, so it may be running, and an owner that is dead may be left.
        named: bool,
    },
    /// A task of this balancer's is nobody's again, and is to be published. Of a store that balancers share alone.
    Release {
        /// Which task.
        id: TaskId,
    },
    /// An ended task's outcome was told to whom it was owed ([`NewTask::reply`]), or nobody is there to be told. Of a
    /// store that balancers share alone.
    Settle {
        /// Which task.
        id: TaskId,
    },
    /// Look after what lies between the balancers, a step at a time: what has become due, has expired, or belongs to a
    /// balancer that is dead. Of a store that balancers share alone; answered by [`Answer::Swept`].
    Sweep {
        /// The present moment.
        now: i64,
        /// Tasks to be published, at most.
        limit: usize,
    },
}

impl Operation {
    /// About what it takes in memory, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Operation>()
            + match self {
                Operation::Accept(task) => {
                    task.payload.memory()
                        + task.idempotency.as_ref().map_or(0, |key| key.key.len())
                        + task.reply.as_ref().map_or(0, |reply| reply.len())
                }
                Operation::Retry { attempt, .. } => attempt.failure.message.len() + attempt.worker.len(),
                Operation::Finish(outcome) => {
                    outcome.result.memory() + outcome.failure.as_ref().map_or(0, |why| why.message.len())
                }
                _ => 0,
            }
    }

    /// Whether it can be stored at all.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] names what is too long or makes no sense.
    pub fn check(&self) -> Result<(), StoreError> {
        let invalid = |reason: String| Err(StoreError::Invalid { reason });
        match self {
            Operation::Accept(task) if task.action.len() > MAX_ACTION_LEN => invalid(format!(
                "the action's name has {} bytes, and {MAX_ACTION_LEN} is the limit",
                task.action.len()
            )),
            Operation::Accept(task) if task.action.contains('\0') => invalid(
                "the action's name has a character 0 in it, which not every store can keep".to_owned(),
            ),
            Operation::Accept(task) if key_len(task) > MAX_KEY_LEN => invalid(format!(
                "the idempotency key has {} bytes, and {MAX_KEY_LEN} is the limit",
                key_len(task)
            )),
            Operation::Accept(NewTask { reply: Some(reply), .. }) if reply.len() > MAX_REPLY_LEN => {
                invalid(format!("where to reply has {} bytes, and {MAX_REPLY_LEN} is the limit", reply.len()))
            }
            Operation::Accept(NewTask { payload: body, .. })
            | Operation::Finish(Outcome { result: body, .. })
                if body.memory() > MAX_INLINE_LEN =>
            {
                invalid(format!(
                    "{} bytes are too many for a row, and {MAX_INLINE_LEN} is the limit; a blob store takes more",
                    body.memory()
                ))
            }
            Operation::Finish(outcome) if !outcome.state.is_ended() => {
                invalid(format!("'{}' is no way to end", outcome.state))
            }
            Operation::Retry { attempt, .. } if attempt.worker.len() > MAX_ACTION_LEN => invalid(format!(
                "the worker's id has {} bytes, and {MAX_ACTION_LEN} is the limit",
                attempt.worker.len()
            )),
            _ => Ok(()),
        }
    }
}

fn key_len(task: &NewTask) -> usize {
    task.idempotency.as_ref().map_or(0, |key| key.key.len())
}

/// What became of an operation. It is given only once the operation is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The task is the store's now.
    Accepted,
    /// Nothing was taken in: within its window the key stands for this task.
    SameKey(TaskId),
    /// Noted.
    Noted,
    /// The outcome is recorded.
    Recorded,
    /// Nothing was changed: the task has ended, and this is how.
    AlreadyEnded(TaskState),
    /// Nothing was changed: the task is in this state, which the operation does not fit.
    NotNow(TaskState),
    /// Nothing was changed: no such task is known.
    Unknown,
    /// These are due, and queued now.
    Due {
        /// The tasks.
        tasks: Vec<StoredTask>,
        /// When the next one is due, if there is one; not after now if there are more.
        next: Option<i64>,
    },
    /// The task is this balancer's now.
    Claimed {
        /// The task.
        task: Box<StoredTask>,
        /// The number under which this balancer holds it.
        owner: i64,
    },
    /// Nothing was changed: the task is another balancer's, or nobody's to have now.
    Elsewhere,
    /// What a step of looking after things has found.
    Swept {
        /// The number under which this balancer holds tasks. Another than before: those that it held are not its any
        /// more.
        owner: i64,
        /// Tasks that are to be published now.
        to_publish: Vec<ToPublish>,
        /// Tasks that have expired.
        expired: Vec<TaskId>,
        /// Ended tasks whose outcome is still owed to somebody ([`NewTask::reply`]), which this balancer has
        /// undertaken to tell.
        owed: Vec<TaskId>,
        /// When the next task is due, if there is one.
        next_due: Option<i64>,
        /// There may be more to publish at once.
        more: bool,
    },
    /// So much is gone.
    Removed {
        /// Tasks or keys.
        count: usize,
        /// Whether there may be more, so that the next step should come soon.
        more: bool,
        /// Blobs that nothing names any more.
        blobs: Vec<BlobKey>,
    },
}

/// A task that waits for a balancer to claim it: what must be known to publish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToPublish {
    /// Which task.
    pub id: TaskId,
    /// Its action.
    pub action: Arc<str>,
    /// Its priority.
    pub priority: u8,
}

/// Which tasks to list. The default is all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only this action's.
    pub action: Option<String>,
    /// Only those in this state.
    pub state: Option<TaskState>,
    /// Only those whose id was made then or later.
    pub since: Option<i64>,
}

/// A part of a long answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The tasks, perhaps none even though there are more pages.
    pub tasks: Vec<StoredTask>,
    /// Where the next page goes on; `None` at the end.
    pub next: Option<TaskId>,
}

/// A store that one thread drives.
///
/// Whoever calls it sees to it that ids are new and grow (see [`TaskIds`](super::TaskIds)), and that an operation
/// on a task comes after the one that accepts it, be it in the same call.
pub trait Store: Send {
    /// Makes operations durable, all in one transaction, and pushes one answer for each, in order.
    ///
    /// # Errors
    ///
    /// After [`StoreError::Unavailable`] nothing is known to be durable; the caller calls again with the same
    /// operations until it works, and with no others before. After any other error the store is of no more use.
    fn apply(&mut self, operations: &[Operation], answers: &mut Vec<Answer>) -> Result<(), StoreError>;

    /// Does a bounded part of what can wait, such as writing behind, and returns how long the next part can wait;
    /// `None` when there is nothing to do. Called when no operation waits.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    fn upkeep(&mut self) -> Result<Option<std::time::Duration>, StoreError>;

    /// Brings everything into the state in which [`StoreReader::list`], `open_tasks` and `history` see it.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    fn settle(&mut self) -> Result<(), StoreError>;

    /// Other balancers that wait to lead, as far as was seen at the last [`upkeep`](Self::upkeep).
    fn standbys(&self) -> usize {
        0
    }

    /// Another view of the same tasks, for another thread, which never waits for this one's disk.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when no further connection can be had.
    fn reader(&self) -> Result<Box<dyn StoreReader>, StoreError>;

    /// Settles, and closes what is open. Nothing is lost without it; the next start is quicker with it.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// Answers questions. Sees what is durable, and nothing that is not.
pub trait StoreReader: Send {
    /// One task, as it is now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    fn fetch(&mut self, id: TaskId) -> Result<Option<StoredTask>, StoreError>;

    /// Tasks that have not ended, oldest first, from behind `after`; what was accepted since the last
    /// [`Store::settle`] may be missing.
    ///
    /// # Errors
    ///
    /// As [`fetch`](Self::fetch).
    fn open_tasks(&mut self, after: Option<TaskId>, limit: usize) -> Result<Page, StoreError>;

    /// Tasks that match, newest first, from before `before`; payloads and results of more than 4 KiB are left out.
    /// What was accepted since the last [`Store::settle`] may be missing.
    ///
    /// # Errors
    ///
    /// As [`fetch`](Self::fetch).
    fn list(&mut self, filter: &Filter, before: Option<TaskId>, limit: usize) -> Result<Page, StoreError>;

    /// A task's failed attempts in order; what failed since the last [`Store::settle`] may be missing.
    ///
    /// # Errors
    ///
    /// As [`fetch`](Self::fetch).
    fn history(&mut self, id: TaskId) -> Result<Vec<FailedAttempt>, StoreError>;
}

/// Why a store cannot do what it is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It can do nothing now; it may later.
    #[error("the store cannot be written or read now: {reason}")]
    Unavailable {
        /// What the engine says.
        reason: String,
    },
    /// It cannot be opened.
    #[error("cannot open {place}: {reason}")]
    Open {
        /// The file, folder or address.
        place: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Another process has the data folder.
    #[error(
        "the data folder {folder} is in use by another balancer{}; stop that one, or give this one a folder of its \
         own with --data DIR",
        process(.holder)
    )]
    InUse {
        /// Which folder.
        folder: String,
        /// The other's process id, if it is known.
        holder: Option<u32>,
    },
    /// A later release of Reparto has written it.
    #[error(
        "{place} has tables of version {found}, and this reparto knows them up to version {known}; run the reparto \
         that wrote it, or a later one"
    )]
    Newer {
        /// The file or address.
        place: String,
        /// The version found.
        found: i64,
        /// The latest version known.
        known: i64,
    },
    /// What is stored makes no sense.
    #[error(
        "{place} is damaged: {reason}. Restore it from a backup, or set it aside and start with an empty folder"
    )]
    Corrupt {
        /// The file or address.
        place: String,
        /// What was found.
        reason: String,
    },
    /// Another balancer leads; this one may write no more.
    #[error("another balancer has taken over (epoch {current}, ours was {ours})")]
    Fenced {
        /// The epoch under which this one led.
        ours: i64,
        /// The present one.
        current: i64,
    },
    /// The operation itself makes no sense.
    #[error("cannot be stored: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
}

impl StoreError {
    /// Whether the same call may work later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, StoreError::Unavailable { .. })
    }

    pub(super) fn unavailable(reason: impl fmt::Display) -> Self {
        StoreError::Unavailable { reason: reason.to_string() }
    }
}

fn process(holder: &Option<u32>) -> String {
    holder.map_or_else(String::new, |id| format!(" (process {id})"))
}

#[cfg(test)]
pub(crate) mod testing {
    //! What stores that are only played need.

    use super::*;

    /// A reader of a store in which there is nothing.
    #[derive(Debug)]
    pub(crate) struct Nothing;

    impl StoreReader for Nothing {
        fn fetch(&mut self, _: TaskId) -> Result<Option<StoredTask>, StoreError> {
            Ok(None)
        }
        fn open_tasks(&mut self, _: Option<TaskId>, _: usize) -> Result<Page, StoreError> {
            Ok(Page { tasks: vec![], next: None })
        }
        fn list(&mut self, _: &Filter, _: Option<TaskId>, _: usize) -> Result<Page, StoreError> {
            Ok(Page { tasks: vec![], next: None })
        }
        fn history(&mut self, _: TaskId) -> Result<Vec<FailedAttempt>, StoreError> {
            Ok(vec![])
        }
    }
}
