//! Proof by killing: real processes under load, killed at random moments, and then every promise looked at.
//!
//! A [`run`] starts balancers and workers as processes of their own. Clients hand in foreground, recorded and background
//! tasks of many sizes, with delays, deadlines, retries, idempotency keys and cancels; some of the tasks fail, some
//! panic, some kill their worker. Meanwhile processes are killed, frozen and stopped at moments drawn from a seed, and
//! started again. When that is over and everything runs, it must hold that
//!
//! - every accepted task has exactly one recorded outcome, and it is the right one: each task's number says what it is
//!   to end with;
//! - an outcome is the same whenever it is fetched, also after one more SIGKILL;
//! - one idempotency key stands for one task;
//! - what a CANCEL was answered is what is recorded, and so is what a client was told on its connection;
//! - every foreground task got one answer, or its connection ended; a client without the library counts the frames;
//! - with engines: every task that was published as JSON and confirmed has its outcome told where its message says, the
//!   recorded one, and is one task however often its message came;
//! - nothing is kept that nobody may have handed in, and nothing stays open;
//! - no balancer ended by itself.
//!
//! Nothing here depends on how fast the machine is: what is waited for is that all goes on, not that it is quick.

mod amqp;
mod books;
mod check;
mod clients;
mod faults;
mod plan;
mod process;
mod report;
mod stage;
mod story;
mod wire;
mod worker;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use reparto_client::Client;

pub use amqp::{AmqpWorkerOptions, work_over_amqp};
pub use books::Violation;
pub use report::Report;
pub use worker::{WorkerOptions, work};

use crate::engines::{self, Engines};
use amqp::Publisher;
use books::Books;
use clients::{Lane, Shared};
use plan::{ACTIONS, LOCAL_ACTIONS, Setting};
use stage::{Addresses, Stage};
use wire::Wire;

/// Workers of a run, at every balancer.
const WORKERS: usize = 3;
/// With engines: those that know only AMQP.
const AMQP_WORKERS: usize = 2;
/// Tasks that may wait to be published. Who hands in waits beyond it.
const MOST_TO_PUBLISH: usize = 10_000;
/// Threads that hand tasks in through the library.
const LANES: usize = 16;
/// Connections that they share.
const CONNECTIONS: usize = 5;
/// Time for everything to run again once faults are over: engines take theirs.
const SETTLE_WITHIN: Duration = Duration::from_secs(180);
/// The client library looks for a lost balancer so long.
const RECONNECT_FOR: Duration = Duration::from_secs(600);
/// How often it is told how far a run is.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What to try.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `reparto` program.
    pub program: PathBuf,
    /// Decides what tasks there are and what befalls the processes.
    pub seed: u64,
    /// How long faults go on.
    pub faults_for: Duration,
    /// Tasks a second, all clients together, as far as the machine gets.
    pub rate: u32,
    /// Two balancers with PostgreSQL, RabbitMQ and S3, which are killed as well.
    pub engines: bool,
    /// Keeps logs and data also if all is well.
    pub keep: bool,
    /// Ends the run early when it becomes true.
    pub stop: Arc<AtomicBool>,
    /// Tells on standard error how far it is.
    pub live: bool,
}

impl Options {
    /// The usual run of a seed: embedded, 30 seconds.
    pub fn new(program: impl Into<PathBuf>, seed: u64) -> Options {
        Options {
            program: program.into(),
            seed,
            faults_for: Duration::from_secs(30),
            rate: 1_000,
            engines: false,
            keep: false,
            stop: Arc::default(),
            live: false,
        }
    }

    fn setting(&self) -> Setting {
        if self.engines { Setting::Engines } else { Setting::Embedded }
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Why a run came to no end. It says nothing about the promises.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrashError {
    /// The run was ended early.
    #[error("interrupted")]
    Interrupted,
    /// A process cannot be started.
    #[error("{name} cannot be started: {source}")]
    Start {
        /// Which one.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// Processes do not get ready.
    #[error("not everything runs again after {waited:?}:\n{words}")]
    NotReady {
        /// How long it was waited.
        waited: Duration,
        /// What the processes said last.
        words: String,
    },
    /// The run's folder, or a port, cannot be had.
    #[error("{what}: {source}")]
    Machine {
        /// What was to be had.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Engines cannot be brought up.
    #[error("{0}")]
    Engines(String),
    /// A question that a run needs answered was not.
    #[error("the list of tasks cannot be had: {0}")]
    List(String),
}

/// A folder for a run, removed with it unless it is kept.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    is_kept: bool,
}

impl Folder {
    fn new(seed: u64) -> Result<Folder, CrashError> {
        let failed = |source| CrashError::Machine { what: "a temporary folder cannot be made", source };
        let name = format!("reparto-crash-{seed}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Not create_dir_all: a folder that is there already may be somebody else's.
        std::fs::create_dir(&path).map_err(failed)?;
        Ok(Folder { path, is_kept: false })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed stays in the temporary folder, which does no harm.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// A port that a balancer can have again and again: below those that the system gives to connections.
fn free_port(random: &mut Rng) -> Result<String, CrashError> {
    let mut failed = None;
    for _ in 0..200 {
        let address = format!("127.0.0.1:{}", random.u16(10_000..30_000));
        match TcpListener::bind(&address) {
            Ok(_) => return Ok(address),
            Err(error) => failed = Some(error),
        }
    }
    let source = failed.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
    Err(CrashError::Machine { what: "no free port is found", source })
}

/// Runs a seed to its end, and says what it saw.
///
/// # Errors
/// The run could not be carried out; what is wrong with Reparto itself stands in the report.
pub fn run(options: &Options) -> Result<Report, CrashError> {
    let began = Instant::now();
    let mut folder = Folder::new(options.seed)?;
    let mut stage = set_up(options, &folder.path, began)?;
    let addresses = stage.1.clone();
    let stage = &mut stage.0;
    let shared = Arc::new(Shared {
        books: Books::new((options.setting(), options.seed), began),
        numbers: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        rate: f64::from(options.rate) / LANES as f64,
    });
    stage.settle(SETTLE_WITHIN, || options.stops())?;
    if options.stops() {
        return Err(CrashError::Interrupted);
    }

    let faults_began = Instant::now();
    let rabbitmq = stage.engines.as_ref().and_then(|engines| engines.variable("REPARTO_RABBITMQ_URL"));
    let threads = start_clients(options.seed, &shared, &addresses, rabbitmq)?;
    let until = faults_began + options.faults_for;
    let played = play(options, stage, &shared, until);
    shared.stop.store(true, Ordering::Release);
    let faults_for = faults_began.elapsed();
    played?;
    stage.settle(SETTLE_WITHIN, || options.stops())?;
    for thread in threads {
        while !thread.is_finished() && !options.stops() {
            stage.look()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() && thread.join().is_err() {
            shared.books.violate(None, "a client's thread panicked");
        }
    }
    look_at_all(options, stage, &shared.books, &addresses)?;
    if options.stops() {
        return Err(CrashError::Interrupted);
    }
    for trouble in &stage.troubles {
        shared.books.violate(None, trouble.clone());
    }
    let mut report = report(options, stage, &shared.books, &folder.path, (faults_for, began.elapsed()));
    if options.keep || !report.is_good() {
        folder.is_kept = true;
        report.folder = Some(folder.path.clone());
    }
    Ok(report)
}

/// Makes the processes, and engines where they are wanted.
fn set_up(options: &Options, folder: &Path, began: Instant) -> Result<(Stage, Vec<Addresses>), CrashError> {
    let start = || Engines::start(&folder.join("engines"), &engines::ALL);
    let engines = options.engines.then(start).transpose().map_err(CrashError::Engines)?;
    let variables = engines.as_ref().map(Engines::balancer_variables).transpose();
    let variables = variables.map_err(CrashError::Engines)?.unwrap_or_default();
    let mut random = Rng::new();
    let balancers = if options.engines { 2 } else { 1 };
    let address = |random: &mut Rng| {
        Ok::<_, CrashError>(Addresses { clients: free_port(random)?, workers: free_port(random)? })
    };
    let addresses: Vec<Addresses> = (0..balancers).map(|_| address(&mut random)).collect::<Result<_, _>>()?;
    let mut members = Vec::new();
    for (number, address) in (1..).zip(&addresses) {
        members.push(stage::balancer(number, address, options, options.seed, folder, &variables));
    }
    for number in 1..=WORKERS {
        // The last one offers only the first action.
        let actions = if number == WORKERS { &ACTIONS[..1] } else { &ACTIONS };
        members.push(stage::worker(number, actions, &addresses, options, folder));
    }
    if options.engines {
        for (index, action) in LOCAL_ACTIONS.iter().enumerate() {
            let at = &addresses[index..=index];
            members.push(stage::worker(WORKERS + 1 + index, &[action], at, options, folder));
        }
        for number in 1..=AMQP_WORKERS {
            members.push(stage::amqp_worker(number, options, folder, &variables));
        }
    }
    Ok((Stage::new(options, members, engines, began), addresses))
}

fn connect(addresses: &[Addresses], first: usize) -> Result<Client, CrashError> {
    let mut addresses: Vec<String> = addresses.iter().map(|address| address.clients.clone()).collect();
    let count = addresses.len().max(1);
    addresses.rotate_left(first % count);
    let give_up_at = Instant::now() + SETTLE_WITHIN;
    loop {
        let client = Client::builder()
            .balancers(&addresses)
            .agent("reparto-crash")
            .reconnect_for(RECONNECT_FOR)
            .connect();
        match client {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > give_up_at => {
                return Err(CrashError::NotReady { waited: SETTLE_WITHIN, words: error.to_string() });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn start_clients(
    seed: u64,
    shared: &Arc<Shared>,
    addresses: &[Addresses],
    rabbitmq: Option<&str>,
) -> Result<Vec<JoinHandle<()>>, CrashError> {
    let mut threads = Vec::new();
    let (to_publish, plans) = crossbeam_channel::bounded(MOST_TO_PUBLISH);
    let to_publish = rabbitmq.map(|url| {
        let publisher = Publisher::new(Arc::clone(shared), url.to_owned(), plans);
        threads.push(std::thread::spawn(move || publisher.run()));
        to_publish
    });
    let clients: Vec<Client> =
        (0..CONNECTIONS).map(|first| connect(addresses, first)).collect::<Result<_, _>>()?;
    for number in 0..LANES {
        let lane = Lane {
            shared: Arc::clone(shared),
            client: clients[number % clients.len()].clone(),
            other: clients[(number + 1) % clients.len()].clone(),
            to_publish: to_publish.clone(),
            random: Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(number as u64)),
        };
        threads.push(std::thread::spawn(move || lane.run()));
    }
    let wire = Wire {
        shared: Arc::clone(shared),
        addresses: addresses.iter().map(|address| address.clients.clone()).collect(),
        random: Rng::with_seed(seed),
    };
    threads.push(std::thread::spawn(move || wire.run()));
    Ok(threads)
}

fn play(options: &Options, stage: &mut Stage, shared: &Shared, until: Instant) -> Result<(), CrashError> {
    while Instant::now() < until && !options.stops() {
        stage.play(until.min(Instant::now() + TELL_EVERY), || options.stops())?;
        tell(options, stage, &shared.books, "under way");
    }
    if options.stops() { Err(CrashError::Interrupted) } else { Ok(()) }
}

fn tell(options: &Options, stage: &Stage, books: &Books, what: &str) {
    if !options.live {
        return;
    }
    let counts = books.counts();
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    eprintln!(
        "seed {}: {what}; {} accepted, {} of them not ended yet, {} answered on their connections, {} kills{}",
        options.seed,
        count("accepted"),
        books.open().len(),
        count("answered on the connection"),
        stage.kills(),
        if books.has_violations() { "; SOMETHING IS WRONG" } else { "" },
    );
}

/// All ends are awaited, and looked at again, also after one more SIGKILL.
fn look_at_all(
    options: &Options,
    stage: &mut Stage,
    books: &Books,
    addresses: &[Addresses],
) -> Result<(), CrashError> {
    tell(options, stage, books, "faults are over");
    std::thread::scope(|scope| {
        let client = connect(addresses, 0)?;
        // Workers die by some of the tasks, so processes are looked after all the time.
        let looked = scope.spawn(move || {
            if !check::wait_for_ends(books, &client, || options.stops()) {
                return Ok(());
            }
            check::list(books, &client)?;
            check::fetch_again(books, &client);
            Ok(())
        });
        while !looked.is_finished() {
            stage.look()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        looked
            .join()
            .unwrap_or_else(|_| Err("the thread that looks panicked".into()))
            .map_err(CrashError::List)
    })?;
    tell(options, stage, books, "everything has ended");
    stage.restart_balancers();
    stage.settle(SETTLE_WITHIN, || options.stops())?;
    let client = connect(addresses, 1)?;
    check::fetch_again(books, &client);
    check::list(books, &client).map_err(CrashError::List)
}

fn report(
    options: &Options,
    stage: &Stage,
    books: &Books,
    folder: &Path,
    (faults_for, took): (Duration, Duration),
) -> Report {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let runs = story::runs(folder);
    let mut violations = books.violations();
    story::tell(&mut violations, books, &runs, &stage.story);
    let reactors = if options.seed.is_multiple_of(3) { "2 reactors" } else { "1 reactor" };
    let durability = if options.seed % 4 == 1 { "interval:50ms" } else { "fsync" };
    let setting = if options.engines {
        let workers = WORKERS + LOCAL_ACTIONS.len();
        format!(
            "2 balancers ({reactors}), PostgreSQL, RabbitMQ, S3; {workers} workers, {AMQP_WORKERS} that know only AMQP"
        )
    } else {
        format!("embedded store ({durability}), 1 balancer ({reactors}), {WORKERS} workers")
    };
    Report {
        seed: options.seed,
        faults_for_s: faults_for.as_secs_f64(),
        took_s: took.as_secs_f64(),
        setting,
        tasks: books.counts(),
        faults: stage.counts.clone(),
        kills: stage.kills(),
        starts: stage.starts(),
        runs: runs.values().map(|runs| runs.iter().filter(|run| run.is_begin).count() as u64).sum(),
        begun_again: runs.values().filter(|runs| runs.iter().filter(|run| run.is_begin).count() > 1).count()
            as u64,
        longest_outage_ms: millis(books.longest_outage()),
        slowest_start_ms: millis(stage.slowest_start()),
        violations,
        folder: None,
    }
}
