//! Where the temporary folders are, and what a synced write costs there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::peers::error::PeersError;
use crate::peers::median;
use crate::peers::process::Folder;

/// File systems that keep everything in memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// Synced writes that are timed.
const WRITES: u64 = 200;

/// Bytes of each.
const WRITE_BYTES: usize = 4096;

/// A folder's file system.
#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    /// The folder in which the temporary ones are made.
    pub folder: PathBuf,
    /// The file system's type, or `unknown`.
    pub file_system: String,
    /// What a write of 4 KiB at the end of a file took with its fsync, the median, in microseconds.
    pub sync_us: f64,
}

impl Disk {
    /// Looks at it, and times some writes.
    pub(super) fn look(folder: &Path) -> Result<Disk, PeersError> {
        let canonical = fs::canonicalize(folder).map_err(PeersError::file(folder, "looking for it"))?;
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let file_system = file_system(&mounts, &canonical).unwrap_or("unknown").to_owned();
        if IN_MEMORY.contains(&file_system.as_str()) {
            return Err(PeersError::Options(format!(
                "{} is on a {file_system}, in memory, where syncing is free and says nothing about a disk; name a \
                 folder on a disk with --folder",
                folder.display()
            )));
        }
        let sync_us = sync_us(folder)?;
        Ok(Disk { folder: folder.to_owned(), file_system, sync_us })
    }
}

/// The type of the file system that a path is on, from the lines of /proc/self/mounts.
fn file_system<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mount = |line: &'a str| {
        let mut words = line.split(' ').skip(1);
        // Spaces in the names of folders are written so.
        let place = PathBuf::from(words.next()?.replace("\\040", " "));
        path.starts_with(&place).then_some((place.components().count(), words.next()?))
    };
    // Of those mounted at the same place the last one is seen.
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

fn sync_us(folder: &Path) -> Result<f64, PeersError> {
    let folder = Folder::new_in(folder)?;
    let path = folder.path().join("written");
    let write = || -> std::io::Result<Vec<f64>> {
        let file = File::create(&path)?;
        let bytes = [b'x'; WRITE_BYTES];
        let mut times = Vec::new();
        for number in 0..WRITES {
            let began = Instant::now();
            file.write_all_at(&bytes, number * WRITE_BYTES as u64)?;
            file.sync_data()?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    };
    let mut times = write().map_err(PeersError::file(&path, "writing and syncing"))?;
    Ok(median(&mut times).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str =
        "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/a\\040b xfs rw 0 0\n";

    #[test]
    fn a_folder_is_on_the_file_system_that_is_mounted_nearest() {
        let of = |path: &str| file_system(MOUNTS, Path::new(path));
        assert_eq!(of("/home/ana"), Some("ext4"));
        assert_eq!(of("/tmp/x"), Some("tmpfs"));
        assert_eq!(of("/tmpfolder"), Some("ext4"));
        assert_eq!(of("/tmp/a b/c"), Some("xfs"));
        assert_eq!(file_system("", Path::new("/")), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_system_in_memory_is_refused() {
        let memory = Path::new("/dev/shm");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        if file_system(&mounts, memory) == Some("tmpfs") {
            let error = Disk::look(memory).unwrap_err().to_string();
            assert!(error.contains("syncing is free") && error.contains("--folder"), "{error}");
        }
    }

    #[test]
    fn a_synced_write_takes_some_time() {
        let folder = std::env::current_dir().unwrap();
        assert!(sync_us(&folder).unwrap() > 0.0);
    }
}
