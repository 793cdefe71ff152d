//! Load on a running balancer, through Reparto's own client library.
//!
//! Two ways to put it on. In a *closed loop* every connection keeps a window of tasks in flight, and hands in a
//! new one when an answer comes: it finds out how much goes through. In an *open loop* tasks fall due at a fixed
//! rate, whether answers come or not, and latency counts from the moment a task was due: it finds out how long
//! users wait, and a stall is seen in full instead of being hidden by the tasks that were not handed in
//! meanwhile.
//!
//! [`run`] gives a [`Report`], which writes itself as a table, as JSON and, with [`Report::plot`], as a picture.

mod drive;
mod live;
mod plot;
mod record;
mod report;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reparto_client::{Client, ClientError, ConnectError};

pub use plot::PlotError;
pub use report::{LatencyPoint, Report, ThroughputPoint};

use drive::{Connection, Outcome};
use record::Recorder;

/// Most connections of one run. Each costs this process four threads or five.
pub const MAX_CONNECTIONS: usize = 1_000;

/// Most tasks in flight on one connection.
pub const MAX_WINDOW: usize = 1_000_000;

/// Longest run: a day.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// Highest rate of an open loop, in tasks a second.
pub const MAX_RATE: f64 = 1e8;

/// Time for what is in flight at the end to be answered, unless [`Options::drain`] says otherwise.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// A lost balancer is looked for this long; then the run is over.
const RECONNECT_FOR: Duration = Duration::from_secs(10);

/// How tasks are handed in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As many at once as the window has room for, a new one for every answer.
    Closed,
    /// At this many tasks a second over all connections, whether answers come or not. Above 0, at most
    /// [`MAX_RATE`].
    Open(f64),
}

/// What to do in a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the tasks ask for.
    pub action: String,
    /// What every task carries.
    pub payload: Bytes,
    /// Balancers' addresses for clients. Connections are spread over them; each turns to the others when its own
    /// is lost.
    pub balancers: Vec<String>,
    /// How tasks are handed in.
    pub pace: Pace,
    /// Connections, 1 to [`MAX_CONNECTIONS`].
    pub connections: usize,
    /// Tasks in flight on a connection at most, 1 to [`MAX_WINDOW`]. In an open loop tasks that are due beyond it
    /// wait here, and their waiting counts.
    pub window: usize,
    /// How long tasks are handed in, up to [`MAX_DURATION`].
    pub duration: Duration,
    /// How long answers are waited for after that.
    pub drain: Duration,
    /// Ends the run early when it becomes true; the report tells what was done until then.
    pub stop: Arc<AtomicBool>,
    /// Show a line with what happens on standard error, if that is a terminal.
    pub live: bool,
}

impl Options {
    /// A closed loop of one connection with one task in flight, for ten seconds.
    pub fn new(action: impl Into<String>, payload: impl Into<Bytes>, balancers: Vec<String>) -> Options {
        Options {
            action: action.into(),
            payload: payload.into(),
            balancers,
            pace: Pace::Closed,
            connections: 1,
            window: 1,
            duration: Duration::from_secs(10),
            drain: DEFAULT_DRAIN,
            stop: Arc::default(),
            live: false,
        }
    }

    fn check(&self) -> Result<(), LoadError> {
        let wrong = |what, why: String| Err(LoadError::Invalid { what, why });
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            let why = format!("is {}, but must be 1 to {MAX_CONNECTIONS}", self.connections);
            return wrong("the number of connections", why);
        }
        if !(1..=MAX_WINDOW).contains(&self.window) {
            return wrong("the window", format!("is {}, but must be 1 to {MAX_WINDOW}", self.window));
        }
        if self.duration.is_zero() || self.duration > MAX_DURATION {
            return wrong(
                "the duration",
                format!("is {:?}, but must be above 0, and a day at most", self.duration),
            );
        }
        match self.pace {
            Pace::Open(rate) if !(rate > 0.0 && rate <= MAX_RATE) => wrong(
                "the rate",
                format!("is {rate} tasks a second, but must be above 0 and at most {MAX_RATE}"),
            ),
            _ => Ok(()),
        }
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// An option is out of its range.
    #[error("{what} {why}")]
    Invalid {
        /// Which one.
        what: &'static str,
        /// What is wrong with it, as words that end the sentence.
        why: String,
    },
    /// No balancer could be reached.
    #[error(transparent)]
    NoBalancer(ConnectError),
    /// The tasks cannot be handed in: their action or payload is refused before it is sent.
    #[error("the tasks cannot be handed in: {0}")]
    Refused(ClientError),
    /// The system gives no threads.
    #[error("a thread for a connection cannot be started: {0}; use fewer connections")]
    Thread(std::io::Error),
}

/// Puts load on, until the time is over, [`Options::stop`] says so, or the balancer is lost, and tells what
/// happened. Blocks meanwhile.
///
/// ```no_run
/// use std::time::Duration;
/// use reparto_bench::load::{self, Options, Pace};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let balancers = vec!["127.0.0.1:8888".to_owned()];
/// let options = Options {
///     pace: Pace::Open(1_000.0),
///     duration: Duration::from_secs(5),
///     window: 1_000,
///     ..Options::new("echo", "hola", balancers)
/// };
/// let report = load::run(&options)?;
/// println!("{} tasks, p99 {} us", report.tasks, report.p99_us);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`LoadError`]. Tasks that fail are no error here; the report counts them.
pub fn run(options: &Options) -> Result<Report, LoadError> {
    options.check()?;
    let clients = connect(options)?;
    let run = Run {
        options,
        began: Instant::now(),
        recorders: (0..clients.len().min(MAX_RECORDERS))
            .map(|_| Mutex::new(Recorder::new(options)))
            .collect(),
        over: AtomicBool::new(false),
        fatal: Mutex::new(None),
    };
    let outcomes = run.drive(&clients)?;
    let elapsed = run.began.elapsed();
    let fatal = run.fatal.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lost = match fatal {
        Some(Fatal::Refused(error)) => return Err(LoadError::Refused(error)),
        Some(Fatal::Lost(error)) => Some(error.to_string()),
        None => None,
    };
    let recorders = run.recorders.into_iter();
    let recorders = recorders.map(|r| r.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
    let interrupted = options.stop.load(Ordering::Acquire);
    Ok(Report::new(options, recorders.collect(), &outcomes, elapsed, interrupted, lost))
}

/// Histograms kept, however many connections there are: they are large.
const MAX_RECORDERS: usize = 16;

/// Why a run ended before its time.
enum Fatal {
    /// The balancer was lost, and not found again.
    Lost(ConnectError),
    /// A task could not be handed in at all.
    Refused(ClientError),
}

/// What the threads of a run share.
struct Run<'a> {
    options: &'a Options,
    began: Instant,
    recorders: Vec<Mutex<Recorder>>,
    /// No new tasks, for whatever reason.
    over: AtomicBool,
    fatal: Mutex<Option<Fatal>>,
}

impl Run<'_> {
    fn drive(&self, clients: &[Client]) -> Result<Vec<Outcome>, LoadError> {
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut failed = None;
            for (index, client) in clients.iter().enumerate() {
                let connection = Connection::new(self, client, index);
                let drive = move || match self.options.pace {
                    Pace::Closed => connection.closed(),
                    Pace::Open(rate) => connection.open(rate),
                };
                match std::thread::Builder::new().name(format!("load-{index}")).spawn_scoped(scope, drive) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        self.over.store(true, Ordering::Release);
                        failed = Some(error);
                        break;
                    }
                }
            }
            let driving = || threads.iter().any(|thread| !thread.is_finished());
            if self.options.live {
                live::show(self, clients, driving);
            }
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let outcomes = joined.collect();
            failed.map_or(Ok(outcomes), |error| Err(LoadError::Thread(error)))
        })
    }

    /// No new tasks are wanted.
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.options.stop.load(Ordering::Relaxed)
    }

    /// Ends the run; the first reason stands.
    fn end(&self, reason: Fatal) {
        let mut fatal = self.fatal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        fatal.get_or_insert(reason);
        self.over.store(true, Ordering::Release);
    }
}

/// Connects every connection before the clock starts, and checks that the balancer will take the payload.
fn connect(options: &Options) -> Result<Vec<Client>, LoadError> {
    let count = options.balancers.len();
    let connect = |index: usize| {
        let from = if count == 0 { 0 } else { index % count };
        let (later, first) = options.balancers.split_at(from);
        let client = Client::builder()
            .balancers(first.iter().chain(later).map(String::as_str))
            .agent(concat!("reparto-load/", env!("CARGO_PKG_VERSION")))
            .reconnect_for(RECONNECT_FOR)
            .max_in_flight(options.window)
            .connect();
        let client = client.map_err(|error| match error {
            ClientError::NoBalancer(error) => LoadError::NoBalancer(error),
            other => LoadError::Refused(other),
        })?;
        let most = client.max_payload_bytes(&options.action);
        if options.payload.len() > most {
            let why = format!("has {} bytes, and the balancer takes at most {most}", options.payload.len());
            return Err(LoadError::Invalid { what: "the payload", why });
        }
        Ok(client)
    };
    (0..options.connections).map(connect).collect()
}

#[cfg(test)]
mod tests;
