//! Where background tasks are kept, and how many of them the scheduler holds.

use std::path::PathBuf;
use std::time::Duration;

use crate::storage::Durability;

/// Where background tasks are kept, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// The data folder.
    pub folder: PathBuf,
    /// When a task counts as durable.
    pub durability: Durability,
    /// How long what has ended is kept.
    pub keep_results: Duration,
    /// Payloads and results of more bytes become files of their own.
    pub blob_threshold: usize,
    /// Most tasks that the scheduler holds of those that are open; the others stay in the store alone.
    pub window_tasks: usize,
    /// Most bytes of their payloads.
    pub window_bytes: usize,
    /// After a start, time that workers have to name what they still run. What nobody names is run again.
    pub claim_time: Duration,
}

impl StoreSettings {
    /// The usual settings, for a folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        StoreSettings {
            folder: folder.into(),
            durability: Durability::Fsync,
            keep_results: Duration::from_secs(7 * 24 * 3600),
            blob_threshold: 256 << 10,
            window_tasks: 131_072,
            window_bytes: 256 << 20,
            claim_time: Duration::from_secs(15),
        }
    }
}
