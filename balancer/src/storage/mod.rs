//! Durable tasks and results: what a background task is handed to before its client is told ACCEPTED.
//!
//! - [`Store`] takes operations and makes them durable in one transaction; [`StoreReader`] answers questions.
//! - [`SqliteStore`] is the embedded one, in the data folder; [`PostgresStore`] is for balancers of which one leads, and
//!   [`SharedPostgresStore`] for balancers that work side by side.
//! - [`BlobStore`] keeps what is too large for a row: [`FileBlobs`] in a folder, [`S3Blobs`] in a bucket.
//! - [`Storage`] drives them on threads of their own, so that its caller never waits for a disk.
//!
//! Nothing here knows the scheduler or a connection.

mod blob;
#[cfg(test)]
mod conformance;
mod durability;
mod folder;
mod postgres;
mod sqlite;
mod store;
mod task;
mod threads;

pub use blob::{BlobError, BlobInfo, BlobStore, FileBlobs, S3Blobs, SweepError, sweep};
pub use durability::{Durability, NotADurability};
pub use folder::DataFolder;
pub use postgres::{Heard, Hearing, Listener, PostgresStore, ShareSettings, SharedPostgresStore, Standby};
pub use sqlite::{DATABASE_FILE, SqliteCounts, SqliteStore};
#[cfg(test)]
pub(crate) use store::testing;
pub use store::{
    Answer, Filter, MAX_INLINE_LEN, MAX_PAGE, MAX_PAGE_BYTES, Operation, Page, Store, StoreError,
    StoreReader, ToPublish,
};
pub use task::{
    Backoff, BlobKey, BlobKind, Body, FailedAttempt, Failure, IdempotencyKey, MAX_ACTION_LEN,
    MAX_BLOB_KEY_LEN, MAX_ERROR_LEN, MAX_KEY_LEN, MAX_REPLY_LEN, NewTask, NotATaskId, Outcome, StoredTask,
    TaskId, TaskIds, TaskState,
};
pub use threads::{
    Completion, Query, Reply, Request, Storage, StorageSettings, StorageStatus, SubmitError, Trouble,
};
