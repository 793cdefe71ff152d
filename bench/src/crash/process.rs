//! The processes of a run: started, killed, frozen, told to leave, and started again, each with a log of its own.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Bytes of a log that are told, from its end.
const TAIL_BYTES: u64 = 4_000;

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Balancer,
    Worker,
}

/// One process that is started again and again.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) role: Role,
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    folder: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// When it said that it is ready; empty until then.
    ready: Arc<OnceLock<Instant>>,
    started: Instant,
    /// When it is to be started again, if it does not run.
    pub(super) start_at: Option<Instant>,
    /// When it goes on, if it is frozen.
    pub(super) thaw_at: Option<Instant>,
    /// It was killed, or asked to leave.
    pub(super) is_to_end: bool,
    /// The slowest start, from the process's begin until it was ready.
    pub(super) slowest_start: Duration,
    is_start_counted: bool,
    pub(super) starts: u64,
}

impl Member {
    pub(super) fn new(
        name: impl Into<String>,
        role: Role,
        program: &Path,
        folder: &Path,
        arguments: Vec<String>,
        variables: Vec<(String, String)>,
    ) -> Member {
        let name = name.into();
        Member {
            folder: folder.to_owned(),
            log: folder.join(format!("{name}.log")),
            name,
            role,
            program: program.to_owned(),
            arguments,
            variables,
            child: None,
            ready: Arc::default(),
            started: Instant::now(),
            start_at: Some(Instant::now()),
            thaw_at: None,
            is_to_end: false,
            slowest_start: Duration::ZERO,
            is_start_counted: false,
            starts: 0,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// It has said that it is ready, since it was started last.
    pub(super) fn is_ready(&mut self) -> bool {
        let Some(at) = self.ready.get().copied().filter(|_| self.child.is_some()) else { return false };
        if !self.is_start_counted {
            self.is_start_counted = true;
            self.slowest_start = self.slowest_start.max(at.saturating_duration_since(self.started));
        }
        true
    }

    /// Starts it.
    pub(super) fn start(&mut self) -> std::io::Result<()> {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        writeln!(log, "--- {} start", super::worker::unix_ms())?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.folder);
        // What the user set up for a balancer of their own is not what is tried.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("REPARTO_") && name != "REPARTO_LOG") {
                command.env_remove(name);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        // A worker ends when this pipe does.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.try_clone()?);
        // A group of its own: Ctrl-C reaches the harness alone, which then ends the others.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        self.ready = Arc::default();
        self.started = Instant::now();
        if let Some(output) = child.stdout.take() {
            let ready = Arc::clone(&self.ready);
            std::thread::spawn(move || watch(output, &ready, log));
        }
        self.child = Some(child);
        (self.start_at, self.thaw_at, self.is_to_end) = (None, None, false);
        self.is_start_counted = false;
        self.starts += 1;
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It fails for one that has just ended, which is looked at next.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Ends it with SIGKILL, frozen or not.
    pub(super) fn kill(&mut self) {
        self.is_to_end = true;
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            // What was killed ends; reaping it frees its locks and ports for the next.
            let _ = child.wait();
        }
        self.thaw_at = None;
    }

    /// Asks it to leave in good order.
    pub(super) fn ask_to_leave(&mut self) {
        self.is_to_end = true;
        self.signal(Signal::TERM);
    }

    pub(super) fn freeze_until(&mut self, thaw_at: Instant) {
        self.signal(Signal::STOP);
        self.thaw_at = Some(thaw_at);
    }

    pub(super) fn thaw(&mut self) {
        self.signal(Signal::CONT);
        self.thaw_at = None;
    }

    /// How it ended, if it has since the last look.
    pub(super) fn take_end(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        self.thaw_at = None;
        Some(status)
    }

    /// The end of its log, of what it wrote since its last start.
    pub(super) fn last_words(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
        let since = text.rfind("--- ").and_then(|at| text[at..].find('\n').map(|line| at + line + 1));
        text[since.unwrap_or(0)..].trim().to_owned()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes down what a process says, and notes when it says that it is ready.
fn watch(output: impl Read, ready: &OnceLock<Instant>, mut log: File) {
    let mut lines = BufReader::new(output);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        if line.starts_with(b"ready ") {
            let _ = ready.set(Instant::now());
        }
        let _ = log.write_all(&line);
        line.clear();
    }
}
