//! The id of a task that the balancer keeps.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The id of a task that the balancer keeps: a UUID, the same on every connection and balancer.
///
/// ```
/// use reparto_client::TaskId;
/// let id: TaskId = "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7".parse()?;
/// assert_eq!(id.to_string(), "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7");
/// assert_eq!(TaskId::from_bytes(id.to_bytes()), id);
/// assert!("a task".parse::<TaskId>().is_err());
/// # Ok::<(), reparto_client::BadTaskId>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId([u8; 16]);

/// A text is not a task's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a task's id; one looks like 0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7")]
pub struct BadTaskId {
    /// The text, cut after 64 characters.
    pub text: String,
}

impl TaskId {
    /// The id with these bytes, as they travel.
    pub fn from_bytes(bytes: [u8; 16]) -> TaskId {
        TaskId(bytes)
    }

    /// Its bytes, as they travel.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Uuid::from_bytes(self.0).hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

impl FromStr for TaskId {
    type Err = BadTaskId;

    fn from_str(text: &str) -> Result<TaskId, BadTaskId> {
        let uuid =
            Uuid::try_parse(text.trim()).map_err(|_| BadTaskId { text: text.chars().take(64).collect() })?;
        Ok(TaskId(uuid.into_bytes()))
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TaskId, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
