//! The process groups of the commands that run now.

use std::collections::HashSet;
use std::process::Child;
use std::sync::Mutex;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::lock;

/// All of them, so that a process that must end at once can end them first.
static LIVE: Mutex<Option<HashSet<Pid>>> = Mutex::new(None);

/// A command's group, named after the command's own process. The number is nobody else's until the command is
/// reaped, so reap it after the last signal and before this is dropped.
pub(super) struct Group(Pid);

impl Group {
    pub(super) fn of(child: &Child) -> Group {
        let pid = Pid::from_child(child);
        lock(&LIVE).get_or_insert_default().insert(pid);
        Group(pid)
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It fails when nobody is left in the group, which is what is wanted.
        let _ = kill_process_group(self.0, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        lock(&LIVE).get_or_insert_default().remove(&self.0);
    }
}

/// Kills every command that runs now, with all that it started. For a process that is about to end without
/// waiting for its tasks.
pub fn kill_all() {
    for pid in lock(&LIVE).get_or_insert_default().iter() {
        let _ = kill_process_group(*pid, Signal::KILL);
    }
}
