//! The data that the demo's `sha256` tasks digest: the files under the current folder, or made-up data.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Files taken at most.
const MAX_FILES: usize = 500;
/// The largest file taken, in bytes.
const MAX_FILE_BYTES: u64 = 256 << 10;
/// Bytes of all files together at most; they stay in memory.
const MAX_TOTAL_BYTES: usize = 16 << 20;
/// Names of files and folders looked at, so that a home folder does not hold the demo up.
const MAX_ENTRIES: usize = 20_000;
/// Pieces of data made up where there are no files, and the longest of them in bytes.
const MADE_UP_PIECES: usize = 64;
const MAX_MADE_UP_BYTES: usize = 64 << 10;

/// Something to digest, and the digest that is right for it.
pub(super) struct Document {
    pub(super) content: Bytes,
    /// Computed in this process: 64 hexadecimal digits.
    pub(super) digest: Bytes,
}

/// What there is to digest; at least one document.
pub(super) struct Documents {
    pub(super) all: Vec<Document>,
    /// There were no files, so the data is made up.
    pub(super) made_up: bool,
}

impl Documents {
    /// Reads the files under `folder`, without hidden ones, build folders and symbolic links. What cannot be
    /// read is passed over. Where nothing is found, the data comes from `random`.
    pub(super) fn gather(folder: &Path, random: &mut fastrand::Rng) -> Documents {
        let mut all = Vec::new();
        let mut total_bytes = 0;
        for path in file_names(folder) {
            if all.len() == MAX_FILES {
                break;
            }
            let Some(content) = read(&path) else { continue };
            if content.is_empty() || total_bytes + content.len() > MAX_TOTAL_BYTES {
                continue;
            }
            total_bytes += content.len();
            all.push(Document::new(content));
        }
        let made_up = all.is_empty();
        if made_up {
            all = (0..MADE_UP_PIECES).map(|_| Document::made_up(random)).collect();
        }
        Documents { all, made_up }
    }

    /// Bytes of all together.
    pub(super) fn bytes(&self) -> u64 {
        self.all.iter().map(|document| document.content.len() as u64).sum()
    }
}

impl Document {
    fn new(content: Vec<u8>) -> Document {
        let mut digest = String::with_capacity(64);
        for byte in Sha256::digest(&content) {
            // Writing to a String cannot fail.
            let _ = write!(digest, "{byte:02x}");
        }
        Document { content: content.into(), digest: digest.into() }
    }

    fn made_up(random: &mut fastrand::Rng) -> Document {
        let mut content = vec![0; random.usize(1..=MAX_MADE_UP_BYTES)];
        random.fill(&mut content);
        Document::new(content)
    }
}

/// The names of regular files, folder by folder and in the order of the alphabet, so that the same folder gives
/// the same tasks.
fn file_names(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut inner = Vec::new();
        for entry in entries.flatten() {
            looked_at += 1;
            if looked_at > MAX_ENTRIES {
                return files;
            }
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") || name == "target" {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => inner.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
        inner.sort_unstable_by(|a, b| b.cmp(a));
        folders.extend(inner);
    }
    files.sort_unstable();
    files
}

/// A file's content; `None` for one that cannot be read, or is too large.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    // The file may grow while it is read, so the length is not taken on trust.
    File::open(path).ok()?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= MAX_FILE_BYTES).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_packages_own_files_are_found_without_the_hidden_and_the_built_ones() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let names = file_names(folder);
        assert!(names.iter().any(|name| name.ends_with("src/main.rs")));
        let beneath = |name: &PathBuf| name.strip_prefix(folder).unwrap().to_owned();
        assert!(
            !names.iter().map(beneath).any(|name| name.starts_with("target") || name.starts_with(".git"))
        );
        let documents = Documents::gather(folder, &mut fastrand::Rng::with_seed(1));
        assert!(!documents.made_up && documents.all.len() <= MAX_FILES);
    }

    #[test]
    fn where_there_are_no_files_the_data_is_made_up_and_its_digest_right() {
        let nowhere = Path::new("/no such folder, surely");
        let documents = Documents::gather(nowhere, &mut fastrand::Rng::with_seed(1));
        assert!(documents.made_up);
        assert_eq!(documents.all.len(), MADE_UP_PIECES);
        assert_eq!(
            Document::new(b"abc".to_vec()).digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
