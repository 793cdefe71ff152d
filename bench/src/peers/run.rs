//! A whole side-by-side run: what it measures, in which order, and what becomes of failures.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::report::{Contestant, Figures, Report};
use super::server::{Contender, Found, find_all};
use super::turns::{self, Turns};
use super::{Machine, PeersError, Scenario, Server, closed, flood, library, open_loop};
use crate::raw::{Load, Measurement, drive};

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
    turns::check(options.rounds, options.duration, options.warm_up)?;
    let machine = Machine::look();
    let (found, lacking) = find_all(&options.servers, &options.program);
    if found.is_empty() {
        let hints: Vec<String> = lacking.iter().map(ToString::to_string).collect();
        return Err(PeersError::Options(format!("none of the servers is here: {}", hints.join("; "))));
    }
    let session = Session { found, options, stop, turns: Turns::new(options.rounds, stop) };
    session.plan();
    let closed = closed::run(&session)?;
    let library = if options.parts.library { library::run(&session)? } else { None };
    let open_loop = if options.parts.open_loop { open_loop::run(&session, &closed)? } else { Vec::new() };
    let floods = if options.parts.flood { flood::run(&session)? } else { Vec::new() };
    let failures = session.turns.finish();
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
        failures,
    })
}

/// What the parts of a run share.
pub(super) struct Session<'a> {
    found: Vec<Found>,
    pub(super) options: &'a Options,
    pub(super) stop: &'a AtomicBool,
    turns: Turns<'a>,
}

impl Session<'_> {
    /// Counts the turns that are to come.
    fn plan(&self) {
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
        self.turns.plan(turns * rounds);
    }

    /// The contenders of these servers that are here.
    pub(super) fn found_of(&self, servers: &[Server]) -> Vec<Found> {
        self.found.iter().filter(|it| servers.contains(&it.contender.server())).cloned().collect()
    }

    /// Gives each of `contenders` its turn in every round, and another one first each time. `turn` measures one.
    pub(super) fn rounds(
        &self,
        contenders: &[Found],
        turn: impl Fn(&Found) -> Result<Figures, PeersError>,
    ) -> Result<Vec<Contestant>, PeersError> {
        let rounds = self.turns.rounds(contenders, |it| it.contender.name(), turn)?;
        let contestants = contenders.iter().zip(rounds);
        Ok(contestants.map(|(it, rounds)| Contestant { rounds, ..contestant(it.contender) }).collect())
    }

    /// Gives one its turn. A failure is noted.
    pub(super) fn attempt<T>(
        &self,
        contender: &Found,
        turn: impl FnOnce() -> Result<T, PeersError>,
    ) -> Result<Option<T>, PeersError> {
        self.turns.attempt(contender.contender.name(), turn)
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
        scenario.load(self.options.warm_up, self.options.duration)
    }
}

pub(super) fn contestant(contender: Contender) -> Contestant {
    Contestant { server: contender.server(), name: contender.name(), rounds: Vec::new() }
}
