//! The worker of a run, as a process of its own: does what payloads say, and writes down what it began and how that
//! ended, so that a failure can be told with its history.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reparto_worker::{Task, TaskError, Worker};

use super::plan::{Deed, Order, result};

/// What a cancelled handler says. It must never be what a task ends with.
pub(super) const CANCELLED_WORDS: &str = "the handler was cancelled";
/// What tasks that fail say.
pub(super) const FAILED_WORDS: &str = "it fails for good";
/// What a handler panics with.
pub(super) const PANIC_WORDS: &str = "the handler falls over";
/// A cancelled handler takes its time, so that its end meets what came after.
const CANCELLED_FOR: Duration = Duration::from_millis(150);
/// Time for what runs to end once the worker is asked to leave.
const GRACE: Duration = Duration::from_secs(2);
/// How often a worker looks whether it is to leave.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a worker of a crash run is set up.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Every balancer's address for workers.
    pub balancers: Vec<String>,
    /// Its id.
    pub id: String,
    /// Tasks run at once.
    pub threads: u32,
    /// The actions that it offers.
    pub actions: Vec<String>,
    /// Where it writes down what it runs.
    pub log: PathBuf,
}

/// Runs the worker until `stop` or the end of its standard input, by which it notices that its harness is gone.
///
/// # Errors
/// A sentence: the log cannot be written, or the worker cannot run.
pub fn work(options: &WorkerOptions, stop: &Arc<AtomicBool>) -> Result<(), String> {
    let log = Arc::new(open_log(&options.log)?);
    let mut builder = Worker::builder().id(&options.id).threads(options.threads);
    for balancer in &options.balancers {
        builder = builder.balancer(balancer);
    }
    for action in &options.actions {
        let log = Arc::clone(&log);
        builder = builder.action(action, move |task: &Task| run(task, &log));
    }
    let worker = builder.build().map_err(|error| error.to_string())?;
    let handle = worker.handle();
    stop_with_the_harness(stop);
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        while !stop.load(Ordering::Acquire) {
            std::thread::sleep(LOOK_EVERY);
        }
        handle.stop(GRACE);
    });
    worker.run().map_err(|error| error.to_string())
}

/// Has `stop` set when standard input ends, on which nothing is ever written: it ends when the harness does.
pub(super) fn stop_with_the_harness(stop: &Arc<AtomicBool>) {
    let gone = Arc::clone(stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        gone.store(true, Ordering::Release);
    });
}

/// Opens what runs are written down in.
pub(super) fn open_log(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

fn run(task: &Task, log: &File) -> Result<Bytes, TaskError> {
    let Some(order) = Order::read(task.payload()) else {
        return Err("the payload is damaged".into());
    };
    note(log, "begin", &order, task.attempt());
    if !order.runs_for.is_zero() && task.cancellation().wait_timeout(order.runs_for) {
        std::thread::sleep(CANCELLED_FOR);
        note(log, "cancelled", &order, task.attempt());
        return Err(CANCELLED_WORDS.into());
    }
    note(log, "end", &order, task.attempt());
    let right = || result(task.payload(), order.result_bytes);
    match order.deed {
        Deed::Succeed => Ok(right()),
        Deed::RetryThenSucceed if task.attempt() > 2 => Ok(right()),
        Deed::Fail => Err(FAILED_WORDS.into()),
        Deed::RetryThenSucceed | Deed::AlwaysRetry => {
            Err(TaskError::retryable(format!("attempt {} asks for another", task.attempt())))
        }
        // The handler's panic is what is tried here.
        Deed::Panic => panic!("{PANIC_WORDS}"),
        Deed::KillWorker => die(),
    }
}

/// Ends this process as SIGKILL does.
pub(super) fn die() -> ! {
    #[cfg(unix)]
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

/// Writes a line down at once, since the process may be killed at any moment.
pub(super) fn note(mut log: &File, what: &str, order: &Order, attempt: u8) {
    let line = format!("{} {what} {} {attempt}\n", unix_ms(), order.number);
    // Only a failure's story is the poorer for a line that is missing.
    let _ = log.write_all(line.as_bytes());
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
