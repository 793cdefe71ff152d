//! Where background tasks are kept, and how many of them the scheduler holds.

use std::path::PathBuf;
use std::time::Duration;

use super::places::{BlobPlace, StorePlace};
use super::sharing::SharingSettings;
use crate::storage::{DATABASE_FILE, Durability};

/// The folder for large payloads and results, in the data folder.
const BLOBS_FOLDER: &str = "blobs";

/// Where background tasks are kept, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// Where tasks and their results are kept.
    pub store: StorePlace,
    /// Where payloads and results are kept that are too large for a row.
    pub blobs: BlobPlace,
    /// When a task counts as durable, in the embedded store; others always wait for the disk.
    pub durability: Durability,
    /// How long what has ended is kept.
    pub keep_results: Duration,
    /// Payloads and results of more bytes go to the blob store.
    pub blob_threshold: usize,
    /// Most tasks that the scheduler holds of those that are open; the others stay in the store alone.
    pub window_tasks: usize,
    /// Most bytes of their payloads.
    pub window_bytes: usize,
    /// After a start, time that workers have to name what they still run. What nobody names is run again.
    pub claim_time: Duration,
    /// How the work is shared with other balancers, if it is. The store is then [`StorePlace::Postgres`], and the blobs
    /// are where all of these balancers reach them.
    pub sharing: Option<SharingSettings>,
}

impl StoreSettings {
    /// The usual settings: the embedded store and a folder for what is large, both in a data folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        StoreSettings {
            store: StorePlace::Sqlite(folder.join(DATABASE_FILE)),
            blobs: BlobPlace::File(folder.join(BLOBS_FOLDER)),
            durability: Durability::Fsync,
            keep_results: Duration::from_secs(7 * 24 * 3600),
            blob_threshold: 256 << 10,
            window_tasks: 131_072,
            window_bytes: 256 << 20,
            claim_time: Duration::from_secs(15),
            sharing: None,
        }
    }
}
