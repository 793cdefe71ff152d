//! Where a background task stands: the states, their numbers and their names.

/// Where a background task stands. The numbers travel, stand in stores, and never change.
///
/// ```
/// use reparto_protocol::TaskState;
/// assert_eq!(TaskState::from_number(5), Some(TaskState::Dead));
/// assert_eq!(TaskState::from_name("dead"), Some(TaskState::Dead));
/// assert!(TaskState::Dead.is_ended());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TaskState {
    /// Not due yet.
    Scheduled = 0,
    /// Waits for a worker.
    Queued = 1,
    /// A worker has it.
    Running = 2,
    /// Ended with a result.
    Done = 3,
    /// Its handler said that it failed for good.
    Failed = 4,
    /// Its attempts are used up.
    Dead = 5,
    /// Somebody cancelled it.
    Cancelled = 6,
    /// Its deadline passed.
    Expired = 7,
}

impl TaskState {
    /// All states, in the order of their numbers.
    pub const ALL: [TaskState; 8] = [
        TaskState::Scheduled,
        TaskState::Queued,
        TaskState::Running,
        TaskState::Done,
        TaskState::Failed,
        TaskState::Dead,
        TaskState::Cancelled,
        TaskState::Expired,
    ];

    /// Whether it has its outcome.
    #[must_use]
    pub fn is_ended(self) -> bool {
        self >= TaskState::Done
    }

    /// The state with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<TaskState> {
        TaskState::ALL.get(usize::from(number)).copied()
    }

    /// The state with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<TaskState> {
        TaskState::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Its name, as it is shown and as commands take it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Scheduled => "scheduled",
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Done => "done",
            TaskState::Failed => "failed",
            TaskState::Dead => "dead",
            TaskState::Cancelled => "cancelled",
            TaskState::Expired => "expired",
        }
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
