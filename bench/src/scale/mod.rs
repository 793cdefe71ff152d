//! What Reparto costs as the work grows: more workers, more waiting tasks, more idle connections, larger payloads.
//!
//! Two kinds of figures. *Decisions* are timed inside a [`Scheduler`](reparto_balancer::scheduler::Scheduler)
//! without sockets ([`SchedulerRig`]): choosing among many workers, submitting to a long queue. Everything else is
//! asked of a balancer that runs as a process of its own: what goes through it, and how much memory it has
//! resident (which only Linux tells).
//!
//! [`run`] measures all of it and gives a [`Report`], with the bars that Reparto is held to.

mod decisions;
mod farm;
mod link;
mod memory;
mod place;
mod report;
mod rig;
mod traffic;
mod way;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::load::LoadError;

pub use report::{Bar, ChoiceRow, IdleRow, PayloadRow, QueueRow, Report, SubmitRow, WorkersRow};
pub use rig::SchedulerRig;
pub use way::{Speech, WayRig};

use place::Place;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `reparto` program, which is started as `reparto balancer`.
    pub program: PathBuf,
    /// Fewer sizes and shorter times: under a minute in all.
    pub quick: bool,
    /// Ends the run early when it becomes true; the report has what was measured until then.
    pub stop: Arc<AtomicBool>,
    /// Tell on standard error, if that is a terminal, what is being measured.
    pub live: bool,
}

impl Options {
    /// Everything, in full.
    pub fn new(program: impl Into<PathBuf>) -> Options {
        Options { program: program.into(), quick: false, stop: Arc::default(), live: false }
    }
}

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScaleError {
    /// The balancer's process does not start, or does not say where it listens.
    #[error("the balancer cannot be started as `{program} balancer`: {reason}")]
    Start {
        /// The program.
        program: String,
        /// What happened.
        reason: String,
    },
    /// A connection to the balancer fails.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The balancer answers something else than it should.
    #[error("{doing}: the balancer answered {answer}")]
    Answer {
        /// What was being done.
        doing: &'static str,
        /// What came.
        answer: String,
    },
    /// Load could not be put on.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The sizes that are measured.
#[derive(Debug, Clone)]
struct Sizes {
    /// Workers inside a scheduler.
    choices: &'static [u32],
    /// Tasks that wait inside a scheduler.
    submits: &'static [usize],
    /// Workers registered with a balancer.
    workers: &'static [usize],
    /// Tasks that wait in a balancer.
    queued: &'static [usize],
    /// Connections that say nothing.
    idle: &'static [usize],
    /// Bytes of a payload.
    payloads: &'static [usize],
    /// How long each load runs.
    duration: Duration,
    /// Batches of which the median is taken, for decisions, at least.
    batches: usize,
}

const FULL: Sizes = Sizes {
    choices: &[1, 10, 100, 1_000, 10_000],
    submits: &[0, 1_000, 10_000, 100_000, 1_000_000],
    workers: &[1, 10, 100, 1_000, 2_000],
    queued: &[10_000, 100_000, 1_000_000],
    idle: &[10, 100, 1_000, 10_000, 20_000],
    payloads: &[0, 64, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20],
    duration: Duration::from_secs(3),
    batches: 303,
};

const QUICK: Sizes = Sizes {
    choices: &[10, 1_000, 10_000],
    submits: &[0, 1_000_000],
    workers: &[1, 100, 1_000],
    queued: &[100_000, 1_000_000],
    idle: &[100, 5_000],
    payloads: &[0, 64, 64 << 10, 1 << 20, 8 << 20],
    duration: Duration::from_millis(700),
    batches: 51,
};

/// Measures, and gives what it found. Blocks meanwhile: some two minutes in full.
///
/// It raises this process's limit on open files, which every idle connection needs one of, as far as it may.
///
/// # Errors
/// As [`ScaleError`].
pub fn run(options: &Options) -> Result<Report, ScaleError> {
    let sizes = if options.quick { &QUICK } else { &FULL };
    measure(options, sizes, || Place::start(&options.program))
}

fn measure(
    options: &Options,
    sizes: &Sizes,
    start: impl Fn() -> Result<Place, ScaleError>,
) -> Result<Report, ScaleError> {
    let files = reparto_balancer::reactor::raise_open_files_limit();
    let progress = Progress::new(options);
    let mut report = Report::new(options.quick);

    progress.tell("choosing among workers");
    report.choices = decisions::choices(sizes, &options.stop);
    progress.tell("submitting to a long queue");
    report.submits = decisions::submits(sizes, &options.stop);
    for workers in progress.each(sizes.workers, "workers registered") {
        report.workers.push(traffic::workers(&start()?, *workers, sizes.duration, &options.stop)?);
    }
    progress.tell("memory of waiting tasks");
    if progress.goes_on() {
        report.queued = memory::queued(&start()?, sizes.queued, &options.stop)?;
    }
    progress.tell("memory of idle connections");
    if progress.goes_on() {
        report.idle = memory::idle(&start()?, sizes.idle, files, &options.stop)?;
    }
    for bytes in progress.each(sizes.payloads, "bytes of payload") {
        report.payloads.push(traffic::payload(&start()?, *bytes, sizes.duration, &options.stop)?);
    }
    report.interrupted = !progress.goes_on();
    report.judge();
    Ok(report)
}

/// Says what is being measured, and knows whether to go on.
struct Progress<'a> {
    line: ProgressBar,
    stop: &'a AtomicBool,
}

impl<'a> Progress<'a> {
    fn new(options: &'a Options) -> Self {
        let line = if options.live { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let line = match ProgressStyle::with_template("{elapsed} {spinner} measuring: {msg}") {
            Ok(style) => line.with_style(style),
            Err(_) => line, // The library's own look serves as well.
        };
        if !line.is_hidden() {
            line.enable_steady_tick(Duration::from_millis(200));
        }
        Progress { line, stop: &options.stop }
    }

    fn tell(&self, what: &str) {
        self.line.set_message(what.to_owned());
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// The sizes one by one, as long as the run goes on.
    fn each(&self, sizes: &'static [usize], what: &'static str) -> impl Iterator<Item = &'static usize> {
        sizes.iter().take_while(|_| self.goes_on()).inspect(move |size| self.tell(&format!("{size} {what}")))
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}

#[cfg(test)]
mod tests;
