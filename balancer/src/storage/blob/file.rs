//! Blobs as files in a folder: a file is written under another name, synced, renamed, and its folder synced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{BlobError, BlobInfo, BlobStore};
use crate::storage::folder::make_folder;
use crate::storage::task::BlobKey;

/// Where files stand until they are whole.
const UNFINISHED: &str = "unfinished";
/// Folders that the files are spread over, so that none gets too large to be read in one go.
const FOLDERS: u8 = 64;

/// What is unfinished for this long was left by a crash: writing a blob takes no such time.
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);

/// Blobs in a folder. Balancers may share it, since no two of them write a blob of the same key.
#[derive(Debug)]
pub struct FileBlobs {
    folder: PathBuf,
}

impl FileBlobs {
    /// Makes the folder if it is not there, and removes what a crash left unfinished an hour ago or earlier.
    ///
    /// # Errors
    ///
    /// [`BlobError::Open`] when it cannot be made or written.
    pub fn open(folder: &Path) -> Result<FileBlobs, BlobError> {
        let prepare = || {
            let unfinished = folder.join(UNFINISHED);
            make_folder(&unfinished)?;
            remove_left(&unfinished, SystemTime::now())?;
            for number in 0..FOLDERS {
                make_folder(&folder.join(folder_name(number)))?;
            }
            sync_folder(folder)
        };
        prepare().map_err(|error: io::Error| BlobError::Open {
            place: folder.display().to_string(),
            reason: format!("{error}. Name a folder that this user may write"),
        })?;
        Ok(FileBlobs { folder: folder.to_path_buf() })
    }

    fn folder_of(&self, key: &BlobKey) -> PathBuf {
        let sum = key.as_str().bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        self.folder.join(folder_name(sum % FOLDERS))
    }

    fn path_of(&self, key: &BlobKey) -> PathBuf {
        self.folder_of(key).join(key.as_str())
    }

    fn failed(&self, error: io::Error) -> BlobError {
        BlobError::Unavailable { place: self.folder.display().to_string(), reason: error.to_string() }
    }
}

/// Removes files that have not been written to for so long that nobody can be about to finish them.
fn remove_left(folder: &Path, now: SystemTime) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let file = file?;
        match file.metadata().and_then(|metadata| metadata.modified()) {
            Ok(written) if now.duration_since(written).is_ok_and(|age| age >= UNFINISHED_AGE) => {
                if let Err(error) = fs::remove_file(file.path()) {
                    log::warn!("{} cannot be removed: {error}", file.path().display());
                }
            }
            // Another balancer has just finished it, or is about to.
            _ => {}
        }
    }
    Ok(())
}

fn folder_name(number: u8) -> String {
    format!("{number:02}")
}

/// Makes a folder's new names survive a power failure.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Elsewhere a folder cannot be opened as a file, and the file system's own journal has to do.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

impl BlobStore for FileBlobs {
    fn put(&self, key: &BlobKey, bytes: &[u8]) -> Result<(), BlobError> {
        let unfinished = self.folder.join(UNFINISHED).join(key.as_str());
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            drop(file);
            fs::rename(&unfinished, self.path_of(key))?;
            sync_folder(&self.folder_of(key))
        };
        write().map_err(|error: io::Error| {
            // Either may be there; neither is of use.
            let _ = fs::remove_file(&unfinished);
            let _ = fs::remove_file(self.path_of(key));
            self.failed(error)
        })
    }

    fn get(&self, key: &BlobKey) -> Result<Option<Bytes>, BlobError> {
        match fs::read(self.path_of(key)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn delete(&self, key: &BlobKey) -> Result<(), BlobError> {
        match fs::remove_file(self.path_of(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn visit(&self, visit: &mut dyn FnMut(BlobInfo) -> bool) -> Result<(), BlobError> {
        for number in 0..FOLDERS {
            let files =
                fs::read_dir(self.folder.join(folder_name(number))).map_err(|error| self.failed(error))?;
            for file in files {
                let file = file.map_err(|error| self.failed(error))?;
                let Some(key) = file.file_name().to_str().and_then(BlobKey::new) else { continue };
                let put_at = match file.metadata().and_then(|metadata| metadata.modified()) {
                    Ok(put_at) => put_at,
                    // Deleted meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(self.failed(error)),
                };
                if !visit(BlobInfo { key, put_at }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::storage::blob::conformance::{BlobFixture, blob_conformance};

    struct Folder(TempDir);

    impl BlobFixture for Folder {
        fn open(&self) -> Box<dyn BlobStore> {
            Box::new(FileBlobs::open(self.0.path()).unwrap())
        }
    }

    fn folder() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    blob_conformance!(super::tests::folder);

    #[test]
    fn what_a_crash_left_unfinished_is_removed_once_nobody_can_be_about_to_finish_it() {
        let folder = folder();
        drop(folder.open());
        let unfinished = folder.0.path().join(UNFINISHED);
        let file = unfinished.join("half");
        fs::write(&file, "half").unwrap();
        drop(folder.open());
        assert!(file.exists(), "another balancer may be writing it");
        remove_left(&unfinished, SystemTime::now() + UNFINISHED_AGE).unwrap();
        assert!(!file.exists());
    }
}
