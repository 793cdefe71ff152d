//! Shell commands as handlers: payload on standard input, standard output as the result.
//!
//! Each task runs `sh -c COMMAND` in a process group of its own, so that everything it starts can be ended with
//! it: with SIGTERM, and two seconds later with SIGKILL, when the time is over, the output too large, or the task
//! cancelled. What the command leaves running when it ends is ended the same way.
//!
//! The command finds in its environment `REPARTO_ACTION`, `REPARTO_ATTEMPT` (from 1) and, when the task has one
//! that an environment can carry (no NUL byte), `REPARTO_KEY`.
//!
//! | the command | the task |
//! |---|---|
//! | ends with 0 | is done; its standard output is the result |
//! | ends with 75 (`EX_TEMPFAIL`) | is tried again, as long as it has attempts |
//! | ends with another code, or by a signal | failed, with the code and the last 2 KiB of standard error as the sentence, and with its standard output |
//! | runs longer than [`Exec::timeout`], or writes more than [`Exec::max_output_bytes`] | failed, and the command is ended |
//!
//! It need not read its input. Its input and output flow at the same time, whatever their size.

mod group;
mod pipes;

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, never, select};
use reparto_protocol::limits;
use rustix::process::Signal;

use crate::task::{Task, TaskError};
use group::Group;
use pipes::Report;

pub use group::kill_all;

/// What a command may take unless told otherwise. A task's run has no limit of its own, so without one a command
/// that hangs would keep its thread for ever.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);

/// What a command may write unless told otherwise: the default frame, less 64 KiB for what goes around it.
pub const DEFAULT_MAX_OUTPUT_BYTES: usize = limits::DEFAULT_MAX_FRAME_BYTES as usize - 64 * 1024;

/// Between SIGTERM and SIGKILL, and between the command's end and that of what it left running.
const PATIENCE: Duration = Duration::from_secs(2);
/// The code by which a command asks to be tried again: EX_TEMPFAIL of sysexits.
const TEMPORARY_FAILURE: i32 = 75;

/// A command to run for each task.
///
/// ```
/// use reparto_worker::{Task, exec::Exec};
/// let count = Exec::new("wc -c");
/// let result = count.run(&Task::detached("count", "hello"))?;
/// assert_eq!(result.trim_ascii(), b"5");
///
/// let fails = Exec::new("echo 'no such thing' >&2; exit 3");
/// let error = fails.run(&Task::detached("fails", "")).unwrap_err();
/// assert_eq!(error.to_string(), "the command failed with exit code 3: no such thing");
/// # Ok::<(), reparto_worker::TaskError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Exec {
    command: String,
    timeout: Option<Duration>,
    max_output_bytes: usize,
}

impl Exec {
    /// A command for `sh -c`, with the default limits.
    pub fn new(command: impl Into<String>) -> Exec {
        Exec {
            command: command.into(),
            timeout: Some(DEFAULT_TIMEOUT),
            max_output_bytes: DEFAULT_MAX_OUTPUT_BYTES,
        }
    }

    /// Time that the command may take; `None` for as long as it likes. One hour without it.
    #[must_use]
    pub fn timeout(mut self, timeout: Option<Duration>) -> Exec {
        self.timeout = timeout;
        self
    }

    /// Bytes that the command may write to standard output. 16 MiB less 64 KiB without it.
    #[must_use]
    pub fn max_output_bytes(mut self, bytes: usize) -> Exec {
        self.max_output_bytes = bytes;
        self
    }

    /// Runs the command for one task.
    ///
    /// # Errors
    /// Final: the command failed, took too long, wrote too much, or was cancelled. Retryable: it exited with 75,
    /// or could not be started.
    pub fn run(&self, task: &Task) -> Result<Bytes, TaskError> {
        let mut child = self.spawn(task).map_err(cannot_start)?;
        let group = Group::of(&child);
        let reports =
            pipes::attach(&mut child, task.payload(), self.max_output_bytes).map_err(cannot_start)?;
        let mut watch = Watch::new(self, task);
        watch.until_ended(&reports, &group, task);
        // Whatever is left of the group must not outlive the task; the command itself is not reaped yet, so the
        // group's number cannot be another's.
        group.signal(Signal::KILL);
        // Nothing here is left to do about a child that cannot be waited for.
        let status = if watch.exited { child.wait().ok() } else { None };
        drop(group);
        self.outcome(watch, status)
    }

    fn spawn(&self, task: &Task) -> std::io::Result<Child> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("REPARTO_ACTION", task.action()).env("REPARTO_ATTEMPT", task.attempt().to_string());
        match task.key() {
            Some(key) if !key.contains(&0) => {
                command.env("REPARTO_KEY", std::os::unix::ffi::OsStrExt::from_bytes(key) as &std::ffi::OsStr)
            }
            _ => command.env_remove("REPARTO_KEY"),
        };
        command.spawn()
    }

    fn outcome(&self, watch: Watch, status: Option<ExitStatus>) -> Result<Bytes, TaskError> {
        let output = Bytes::from(watch.output.unwrap_or_default());
        let tail = watch.complaint.unwrap_or_default();
        let message = match watch.cause {
            Some(Cause::Cancelled) => return Err("cancelled".into()),
            Some(Cause::Expired) => return Err("expired: its deadline passed while the command ran".into()),
            Some(Cause::TimedOut) => {
                let seconds = self.timeout.unwrap_or_default().as_secs_f64();
                with_tail(format!("the command did not end within {seconds} s and was stopped"), &tail)
            }
            Some(Cause::TooMuch) => {
                let most = self.max_output_bytes;
                return Err(format!("the command wrote more than {most} bytes and was stopped").into());
            }
            None | Some(Cause::LeftOver) => match status {
                Some(status) if status.success() => return Ok(output),
                Some(status) if status.code() == Some(TEMPORARY_FAILURE) => {
                    let message =
                        with_tail("the command asked to be tried again (exit code 75)".into(), &tail);
                    return Err(TaskError::retryable(message).with_payload(output));
                }
                Some(status) => with_tail(format!("the command failed with {}", described(status)), &tail),
                None => "the command's end could not be seen".to_owned(),
            },
        };
        Err(TaskError::failed(message).with_payload(output))
    }
}

fn cannot_start(error: std::io::Error) -> TaskError {
    TaskError::retryable(format!("the command could not be started: {error}"))
}

fn with_tail(message: String, tail: &[u8]) -> String {
    match String::from_utf8_lossy(tail).trim() {
        "" => message,
        tail => format!("{message}: {tail}"),
    }
}

/// How a command ended, in words.
fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(126), _) => "exit code 126 (found, but it cannot be executed)".to_owned(),
        (Some(127), _) => "exit code 127 (command not found)".to_owned(),
        (Some(code @ 129..=192), _) => {
            format!("exit code {code} (as shells say of signal {})", named(code - 128))
        }
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {}", named(signal)),
        (None, None) => "an unknown status".to_owned(),
    }
}

fn named(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL, perhaps for want of memory",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        _ => return signal.to_string(),
    };
    format!("{signal}, {name}")
}

/// Why a command is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Cancelled,
    Expired,
    TimedOut,
    TooMuch,
    /// The command has ended, but something that it started still holds its output open.
    LeftOver,
}

/// How far the end is.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// It may run, until then.
    Running(Option<Instant>),
    /// SIGTERM was sent; SIGKILL follows then.
    Terminating(Instant),
    /// SIGKILL was sent; then it is not waited for any more.
    Killed(Instant),
}

/// What is known of a command while it runs.
struct Watch {
    phase: Phase,
    /// What it means when the time of [`Phase::Running`] is over.
    overdue: Cause,
    cause: Option<Cause>,
    exited: bool,
    output: Option<Vec<u8>>,
    complaint: Option<Vec<u8>>,
}

impl Watch {
    fn new(exec: &Exec, task: &Task) -> Watch {
        let timeout = exec.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (until, overdue) = match (timeout, task.deadline()) {
            (Some(timeout), Some(deadline)) if timeout <= deadline => (Some(timeout), Cause::TimedOut),
            (Some(timeout), None) => (Some(timeout), Cause::TimedOut),
            (_, deadline) => (deadline, Cause::Expired),
        };
        Watch {
            phase: Phase::Running(until),
            overdue,
            cause: None,
            exited: false,
            output: None,
            complaint: None,
        }
    }

    /// Waits until the command has ended and all its output is here, and makes it end when it must.
    fn until_ended(&mut self, reports: &Receiver<Report>, group: &Group, task: &Task) {
        let cancelled = task.cancellation().channel();
        let nothing = never();
        while !(self.exited && self.output.is_some() && self.complaint.is_some()) {
            let cancelled = if self.cause.is_none() { &cancelled } else { &nothing };
            let limit = match self.phase {
                Phase::Running(None) => Duration::MAX,
                Phase::Running(Some(until)) | Phase::Terminating(until) | Phase::Killed(until) => {
                    until.saturating_duration_since(Instant::now())
                }
            };
            select! {
                recv(reports) -> report => match report {
                    Ok(report) => self.take(report, group),
                    // Each thread reports before it ends, so they are all gone: nothing more can come.
                    Err(_) => return,
                },
                recv(cancelled) -> _ => self.end(Cause::Cancelled, group),
                default(limit) => if !self.advance(group) { return },
            }
        }
    }

    fn take(&mut self, report: Report, group: &Group) {
        match report {
            Report::Exited => {
                self.exited = true;
                if let Phase::Running(_) = self.phase {
                    self.overdue = Cause::LeftOver;
                    self.phase = Phase::Running(Some(Instant::now() + PATIENCE));
                }
            }
            Report::Output(bytes) => self.output = Some(bytes),
            Report::TooMuch => {
                self.output = Some(Vec::new());
                self.end(Cause::TooMuch, group);
            }
            Report::Complaint(bytes) => self.complaint = Some(bytes),
        }
    }

    fn end(&mut self, cause: Cause, group: &Group) {
        if self.cause.is_none() {
            self.cause = Some(cause);
            group.signal(Signal::TERM);
            self.phase = Phase::Terminating(Instant::now() + PATIENCE);
        }
    }

    /// Does what the phase's end asks for. Gives false when nothing is left to try.
    fn advance(&mut self, group: &Group) -> bool {
        match self.phase {
            Phase::Running(_) => self.end(self.overdue, group),
            Phase::Terminating(_) => {
                group.signal(Signal::KILL);
                self.phase = Phase::Killed(Instant::now() + PATIENCE);
            }
            Phase::Killed(_) => {
                // Something left the group (setsid) and holds the pipes; their threads end when it does.
                log::warn!("a command's process left its group and holds its output open");
                return false;
            }
        }
        true
    }
}
