//! The data folder, and the lock that keeps a second balancer out of it.

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::store::StoreError;

/// The file whose lock stands for the folder's. It holds the process id of who has it.
const LOCK_FILE: &str = "lock";

/// A data folder that is ours until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if it is not there, and locks it. On Unix what is new is readable by its owner alone.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] when another process has it, [`StoreError::Open`] when it cannot be made or locked.
    pub fn lock(path: &Path) -> Result<DataFolder, StoreError> {
        let fail = |what: &str, error: std::io::Error| StoreError::Open {
            place: path.display().to_string(),
            reason: format!("{what}: {error}. Name a folder that this user may write with --data DIR"),
        };
        make_folder(path).map_err(|error| fail("cannot make the data folder", error))?;
        let file = path.join(LOCK_FILE);
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(|error| fail("cannot open its lock file", error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse {
                    folder: path.display().to_string(),
                    holder: fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()),
                });
            }
            Err(TryLockError::Error(error)) => return Err(fail("cannot lock it", error)),
        }
        let note = (|| {
            lock.set_len(0)?;
            writeln!(lock, "{}", std::process::id())
        })();
        note.map_err(|error| fail("cannot write its lock file", error))?;
        Ok(DataFolder { path: path.to_path_buf(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(unix)]
pub(super) fn make_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
pub(super) fn make_folder(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_on_a_folder_is_refused_with_a_sentence_that_says_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = DataFolder::lock(&path).unwrap();
        let error = DataFolder::lock(&path).unwrap_err();
        assert_eq!(
            error,
            StoreError::InUse { folder: path.display().to_string(), holder: Some(std::process::id()) }
        );
        assert!(error.to_string().contains("in use by another balancer (process "), "{error}");
        drop(first);
        DataFolder::lock(&path).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataFolder::lock(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("cannot make the data folder") && error.contains("--data DIR"), "{error}");
    }
}
