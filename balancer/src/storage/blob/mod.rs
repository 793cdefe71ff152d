//! Payloads and results that are too large for a row: a row keeps the key, a [`BlobStore`] the bytes.
//!
//! A blob is durable before the row that names it, and goes after the row is gone. What a crash leaves between is
//! named by no row, and [`sweep`] removes it.

#[cfg(test)]
mod conformance;
mod file;
mod s3;

use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use self::file::FileBlobs;
pub use self::s3::S3Blobs;
use super::store::{StoreError, StoreReader};
use super::task::{BlobKey, StoredTask};

/// A blob as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its key.
    pub key: BlobKey,
    /// When it was put, by the blob store's clock.
    pub put_at: SystemTime,
}

/// Keeps blobs by key. Used from several threads at once.
pub trait BlobStore: Send + Sync {
    /// Makes a blob durable under a key that is new.
    ///
    /// # Errors
    ///
    /// [`BlobError::Unavailable`]; nothing is there under the key then, or all of it.
    fn put(&self, key: &BlobKey, bytes: &[u8]) -> Result<(), BlobError>;

    /// Reads a blob; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`BlobError::Unavailable`].
    fn get(&self, key: &BlobKey) -> Result<Option<Bytes>, BlobError>;

    /// Removes a blob; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`BlobError::Unavailable`].
    fn delete(&self, key: &BlobKey) -> Result<(), BlobError>;

    /// Shows every blob to `visit`, in any order; those put or deleted meanwhile may be among them or not. It stops
    /// when `visit` returns false.
    ///
    /// # Errors
    ///
    /// [`BlobError::Unavailable`].
    fn visit(&self, visit: &mut dyn FnMut(BlobInfo) -> bool) -> Result<(), BlobError>;
}

/// Why a blob store cannot do what it is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// It cannot be opened.
    #[error("cannot open the blob store {place}: {reason}")]
    Open {
        /// The folder or address.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// It can do nothing now; it may later.
    #[error("the blob store {place} cannot be used now: {reason}")]
    Unavailable {
        /// The folder or address.
        place: String,
        /// What it says.
        reason: String,
    },
}

/// Why a sweep ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SweepError {
    /// The blobs cannot be had.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The tasks cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Removes blobs that no task names and that were put more than `age` ago. Returns how many.
///
/// The age spares those whose row is about to be written, here or by another balancer.
///
/// # Errors
///
/// [`SweepError`] says which store failed; what was removed until then is removed.
pub fn sweep(
    blobs: &dyn BlobStore,
    reader: &mut dyn StoreReader,
    age: Duration,
    mut goes_on: impl FnMut() -> bool,
) -> Result<usize, SweepError> {
    let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut removed = 0;
    let mut failed = None;
    blobs.visit(&mut |info| {
        // A key that no task can have is not ours to remove.
        let Some(id) = info.key.task().filter(|_| info.put_at <= before) else { return goes_on() };
        let is_named = |stored: StoredTask| stored.blobs().any(|key| *key == info.key);
        let swept = reader.fetch(id).map_err(SweepError::from).and_then(|found| {
            if !found.is_some_and(is_named) {
                blobs.delete(&info.key)?;
                removed += 1;
            }
            Ok(())
        });
        failed = swept.err();
        failed.is_none() && goes_on()
    })?;
    failed.map_or(Ok(removed), Err)
}
