//! A temporary folder for what the demo's balancers keep, removed at the end.

use std::path::{Path, PathBuf};

use super::DemoError;

/// A folder of its own. Dropping it removes it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Result<Folder, DemoError> {
        let name = format!("reparto-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        // Not create_dir_all: a folder that is there already may be somebody else's.
        std::fs::create_dir(&path)
            .map_err(|error| format!("the temporary folder {} cannot be made: {error}", path.display()))?;
        Ok(Folder(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays in the temporary folder, which does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
