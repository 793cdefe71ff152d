//! The demo's child processes: started, waited for, and killed and reaped whatever happens.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::DemoError;

/// Time for a process to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked whether a signal came meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The longest line of a process that is read in one piece, in bytes.
const MAX_LINE_BYTES: u64 = 4_096;
/// Lines of standard error that are kept, the latest.
const MAX_KEPT_LINES: usize = 20;

/// The processes that the demo started. Dropping it kills and reaps those that still run.
pub(super) struct Processes {
    shared: Arc<Shared>,
    program: PathBuf,
}

/// Kills the processes from wherever a signal is caught.
#[derive(Clone)]
pub(super) struct Killer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    children: Mutex<Vec<Process>>,
    /// Everything was killed, and nothing more is to be started.
    ended: AtomicBool,
}

struct Process {
    name: String,
    child: Child,
    /// The latest lines of its standard error.
    errors: Arc<Mutex<VecDeque<String>>>,
}

/// Names a process of [`Processes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessIndex(usize);

impl Processes {
    /// Starts processes of this very program.
    pub(super) fn new() -> Result<Processes, DemoError> {
        let program = std::env::current_exe().map_err(|error| {
            format!("this program's own file cannot be found, to start it again: {error}")
        })?;
        Ok(Processes { shared: Arc::default(), program })
    }

    pub(super) fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.shared))
    }

    /// Starts one, and gives the line with which it says that it is ready through the receiver.
    pub(super) fn start(
        &self,
        name: &str,
        arguments: &[&str],
    ) -> Result<(ProcessIndex, Receiver<String>), DemoError> {
        self.start_with(name, arguments, &[])
    }

    /// As [`start`](Self::start), with variables of its environment.
    pub(super) fn start_with(
        &self,
        name: &str,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Result<(ProcessIndex, Receiver<String>), DemoError> {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The user's own settings are for the user's own balancer.
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"REPARTO_") && variable != "REPARTO_LOG" {
                command.env_remove(variable);
            }
        }
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        // A group of its own: Ctrl-C reaches the demo alone, which then ends the others.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);

        let mut children = locked(&self.shared.children);
        if self.shared.ended.load(Ordering::Acquire) {
            return Err(DemoError::Interrupted);
        }
        let mut child = command.spawn().map_err(|error| {
            let program = self.program.display();
            format!("{name} cannot be started from {program}: {error}; was the program moved or rebuilt meanwhile?")
        })?;
        let (ready, first_line) = sync_channel(1);
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || pass_first_line(output, &ready));
        }
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(output) = child.stderr.take() {
            let errors = Arc::clone(&errors);
            thread::spawn(move || keep_latest_lines(output, &errors));
        }
        children.push(Process { name: name.to_owned(), child, errors });
        Ok((ProcessIndex(children.len() - 1), first_line))
    }

    /// Waits until a process has said that it is ready; gives what it said.
    pub(super) fn ready(
        &self,
        index: ProcessIndex,
        first_line: &Receiver<String>,
    ) -> Result<String, DemoError> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            let got = first_line.recv_timeout(LOOK_EVERY);
            if self.shared.ended.load(Ordering::Acquire) {
                return Err(DemoError::Interrupted);
            }
            match got {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(error) => return Err(self.not_ready(index, error).into()),
            }
        }
    }

    /// Kills one with SIGKILL (where there are no signals, as abruptly) and reaps it.
    pub(super) fn kill(&self, index: ProcessIndex) -> std::io::Result<()> {
        let mut children = locked(&self.shared.children);
        let child = &mut children[index.0].child;
        child.kill()?;
        child.wait().map(|_| ())
    }

    /// Kills and reaps all, without that counting as interrupted.
    pub(super) fn kill_all(&self) {
        self.shared.kill_all();
    }

    /// The operating system's number for it.
    pub(super) fn id(&self, index: ProcessIndex) -> u32 {
        locked(&self.shared.children)[index.0].child.id()
    }

    fn not_ready(&self, index: ProcessIndex, error: RecvTimeoutError) -> String {
        let name = &locked(&self.shared.children)[index.0].name;
        match error {
            RecvTimeoutError::Timeout => format!(
                "{name} was not ready within {} s; try again when the machine is less busy",
                READY_WITHIN.as_secs()
            ),
            RecvTimeoutError::Disconnected => format!("{name} ended before it was ready"),
        }
    }

    /// Says how a process ended, if it has.
    pub(super) fn ended(&self, index: ProcessIndex) -> Option<ExitStatus> {
        locked(&self.shared.children)[index.0].child.try_wait().ok().flatten()
    }

    /// A signal made an end of everything.
    pub(super) fn interrupted(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// The latest lines that the processes wrote to standard error, each with its process's name.
    pub(super) fn errors(&self) -> Vec<String> {
        let children = locked(&self.shared.children);
        let lines = |process: &Process| -> Vec<String> {
            locked(&process.errors).iter().map(|line| format!("{}: {line}", process.name)).collect()
        };
        children.iter().flat_map(lines).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Killer {
    /// Kills and reaps all processes; no further one can be started.
    pub(super) fn kill_all(&self) {
        self.0.end();
    }
}

impl Shared {
    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.kill_all();
    }

    fn kill_all(&self) {
        let mut children = locked(&self.children);
        // Workers first: they would only look for a balancer that is gone.
        for process in children.iter_mut().rev() {
            // One that has ended already cannot be killed, and need not.
            let _ = process.child.kill();
        }
        for process in children.iter_mut() {
            let _ = process.child.wait();
        }
    }
}

/// Passes the first line on, and reads the rest away so that the process is never held up.
fn pass_first_line(output: impl Read, ready: &SyncSender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    let read = (&mut output).take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
    if read.is_ok_and(|bytes| bytes > 0) {
        // Nobody may be waiting any more.
        let _ = ready.send(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    let _ = std::io::copy(&mut output, &mut std::io::sink());
}

fn keep_latest_lines(output: impl Read, kept: &Mutex<VecDeque<String>>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        match (&mut output).take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let mut kept = locked(kept);
                if kept.len() == MAX_KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        }
    }
}

/// A thread that panicked leaves nothing half-done in what is locked here.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
