//! A whole side-by-side run: what it measures, in which order, and what becomes of failures.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::report::{Contestant, Figures, Report};
use super::server::{Contender, Found, find_all};
use super::{Machine, PeersError, Scenario, Server, closed, flood, library, open_loop};
use crate::raw::{Load, Measurement, drive};

/// Most rounds.
pub(crate) const MAX_ROUNDS: usize = 1_000;

/// Longest time that one measures, and shortest.
pub(crate) const DURATIONS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(3_600);

/// Most failures that are kept for people.
pub(crate) const MAX_FAILURES: usize = 50;

/// What is measured beside the closed loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Reparto through its own libraries, beside NATS raw.
    pub library: bool,
    /// Open loops at shares of NATS' peak rate.
    pub open_loop: bool,
    /// A flood of large tasks beside small ones.
    pub flood: bool,
}

impl Parts {
    /// All of them.
    pub const ALL: Parts = Parts { library: true, open_loop: true, flood: true };
    /// None of them.
    pub const NONE: Parts = Parts { library: false, open_loop: false, flood: false };
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `reparto` program, whose balancer is measured.
    pub program: PathBuf,
    /// The servers.
    pub servers: Vec<Server>,
    /// The closed loops.
    pub scenarios: Vec<Scenario>,
    /// What else.
    pub parts: Parts,
    /// Rounds, 1 to 1,000.
    pub rounds: usize,
    /// Time that each turn of a server measures, 10 ms to an hour.
    pub duration: Duration,
    /// Time that is driven before it is measured.
    pub warm_up: Duration,
}

impl Options {
    /// Everything, in seven rounds of two seconds.
    pub fn new(program: impl Into<PathBuf>) -> Options {
        Options {
            program: program.into(),
            servers: Server::ALL.to_vec(),
            scenarios: Scenario::ALL.to_vec(),
            parts: Parts::ALL,
            rounds: 7,
            duration: Duration::from_secs(2),
            warm_up: Duration::from_millis(300),
        }
    }

    /// Everything, so short that it takes less than two minutes: good for a look, not for a figure.
    pub fn quick(program: impl Into<PathBuf>) -> Options {
        Options {
            rounds: 3,
            duration: Duration::from_millis(250),
            warm_up: Duration::from_millis(50),
            ..Options::new(program)
        }
    }
}

/// Runs it. Progress is shown on standard error while that is a terminal. Raising `stop` ends it early.
///
/// A server that is not here is left out, and one that fails lacks a figure; the report says so.
///
/// # Errors
/// Options out of their range, no server at all, and [`PeersError::Interrupted`].
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Report, PeersError> {
    if !(1..=MAX_ROUNDS).contains(&options.rounds) {
        let sentence = format!("there are {} rounds, but there must be 1 to {MAX_ROUNDS}", options.rounds);
        return Err(PeersError::Options(sentence));
    }
    if !DURATIONS.contains(&options.duration) || options.warm_up > *DURATIONS.end() {
        return Err(PeersError::Options(
            "a round lasts 10 ms to an hour, and its warm-up no more than an hour".into(),
        ));
    }
    let machine = Machine::look();
    let (found, lacking) = find_all(&options.servers, &options.program);
    if found.is_empty() {
        let hints: Vec<String> = lacking.iter().map(ToString::to_string).collect();
        return Err(PeersError::Options(format!("none of the servers is here: {}", hints.join("; "))));
    }
    let mut session = Session { found, options, stop, bar: progress_bar(), failures: Vec::new() };
    session.plan();
    let closed = closed::run(&mut session)?;
    let library = if options.parts.library { library::run(&mut session)? } else { None };
    let open_loop = if options.parts.open_loop { open_loop::run(&mut session, &closed)? } else { Vec::new() };
    let floods = if options.parts.flood { flood::run(&mut session)? } else { Vec::new() };
    session.bar.finish_and_clear();
    let mut versions: Vec<String> = Vec::new();
    for it in &session.found {
        let program = match it.contender {
            Contender::HaProxy => "HAProxy",
            Contender::Nginx => "nginx",
            other => other.server().name(),
        };
        let version = format!("{program} {}", it.version);
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    Ok(Report {
        machine,
        versions,
        lacking,
        rounds: options.rounds,
        duration: options.duration,
        warm_up: options.warm_up,
        closed,
        library,
        open_loop,
        floods,
        failures: session.failures,
    })
}

/// What shows how far a run is, on standard error where that is a terminal.
pub(crate) fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left: {msg}") {
        bar.set_style(style);
    }
    bar
}

/// What the parts of a run share.
pub(super) struct Session<'a> {
    found: Vec<Found>,
    pub(super) options: &'a Options,
    pub(super) stop: &'a AtomicBool,
    bar: ProgressBar,
    failures: Vec<String>,
}

impl Session<'_> {
    /// Counts the turns that are to come.
    fn plan(&mut self) {
        let Options { rounds, scenarios, parts, .. } = self.options;
        let two = self.found_of(&[Server::Reparto, Server::Nats]).len();
        let mut turns = scenarios.len() * self.found.len();
        if parts.library {
            turns += two;
        }
        if parts.open_loop {
            turns += open_loop::SHARES.len() * two;
        }
        if parts.flood {
            turns += 2 * self.found_of(&flood::SERVERS).len();
        }
        self.bar.set_length((turns * rounds) as u64);
    }

    /// The contenders of these servers that are here.
    pub(super) fn found_of(&self, servers: &[Server]) -> Vec<Found> {
        self.found.iter().filter(|it| servers.contains(&it.contender.server())).cloned().collect()
    }

    /// Gives each of `contenders` its turn in every round, and another one first each time. `turn` measures one.
    pub(super) fn rounds(
        &mut self,
        contenders: &[Found],
        turn: impl Fn(&Session<'_>, &Found) -> Result<Figures, PeersError>,
    ) -> Result<Vec<Contestant>, PeersError> {
        let mut contestants: Vec<Contestant> = contenders.iter().map(|it| contestant(it.contender)).collect();
        for round in 0..self.options.rounds {
            for place in 0..contenders.len() {
                let index = (place + round) % contenders.len();
                let figures = self.attempt(&contenders[index], &turn)?;
                contestants[index].rounds.push(figures);
            }
        }
        Ok(contestants)
    }

    /// Gives one its turn. A failure is noted.
    pub(super) fn attempt<T>(
        &mut self,
        contender: &Found,
        turn: impl Fn(&Session<'_>, &Found) -> Result<T, PeersError>,
    ) -> Result<Option<T>, PeersError> {
        self.bar.set_message(contender.contender.name());
        let outcome = turn(self, contender);
        self.bar.inc(1);
        if self.stop.load(Ordering::Relaxed) {
            return Err(PeersError::Interrupted);
        }
        match outcome {
            Ok(it) => Ok(Some(it)),
            Err(PeersError::Interrupted) => Err(PeersError::Interrupted),
            Err(error) => {
                if self.failures.len() < MAX_FAILURES {
                    self.failures.push(error.to_string());
                }
                Ok(None)
            }
        }
    }

    /// Starts a server with its workers, drives the load, and stops it.
    pub(super) fn measure(
        &self,
        contender: &Found,
        workers: usize,
        load: &Load,
    ) -> Result<Measurement, PeersError> {
        let failed = PeersError::raw(contender.contender.name());
        let running = contender.start(workers, load.size)?;
        let driven = drive(contender.contender.protocol(), running.clients, load, self.stop);
        // A worker that failed is why the clients got nothing, so it is named first.
        match (running.stop(), driven) {
            (Err(error), Err(_)) => Err(failed(error)),
            (_, driven) => driven.map_err(failed),
        }
    }

    /// A load of the shape of a scenario.
    pub(super) fn load(&self, scenario: Scenario) -> Load {
        Load {
            connections: scenario.connections,
            window: scenario.window,
            size: scenario.size,
            warm_up: self.options.warm_up,
            duration: self.options.duration,
            ..Load::default()
        }
    }
}

pub(super) fn contestant(contender: Contender) -> Contestant {
    Contestant { server: contender.server(), name: contender.name(), rounds: Vec::new() }
}
