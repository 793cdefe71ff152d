//! A whole run: what it measures, in which order, and what becomes of failures.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::disk::Disk;
use super::peer::{Found, find_all};
use super::report::Report;
use super::{Peer, accept, bus, foreground, life, restart};
use crate::peers::error::PeersError;
use crate::peers::turns::{self, Rounds, Turns};
use crate::peers::{Figures, Machine, Scenario};
use crate::raw::Load;

/// Most tasks of a life or a restart.
const MAX_TASKS: u64 = 50_000_000;

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Tasks handed in until they are acknowledged, at every peer.
    Accept,
    /// Tasks handed in, run and recorded.
    Life,
    /// The same through RabbitMQ and PostgreSQL, beside RabbitMQ alone.
    Bus,
    /// Foreground tasks, with the store on and off.
    Foreground,
    /// A balancer killed with tasks in its store, and started again.
    Restart,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 5] = [Part::Accept, Part::Life, Part::Bus, Part::Foreground, Part::Restart];
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `reparto` program, whose balancer is measured.
    pub program: PathBuf,
    /// What to measure.
    pub parts: Vec<Part>,
    /// At whom tasks are handed in.
    pub peers: Vec<Peer>,
    /// Rounds, 1 to 1,000.
    pub rounds: usize,
    /// Time that each turn measures, 10 ms to an hour.
    pub duration: Duration,
    /// Time that is driven before it is measured.
    pub warm_up: Duration,
    /// Tasks whose whole life is measured, in each round.
    pub life_tasks: u64,
    /// Tasks that go through RabbitMQ and PostgreSQL, and messages through RabbitMQ alone, in each round.
    pub bus_tasks: u64,
    /// Tasks in the store when the balancer is killed.
    pub restart_tasks: u64,
    /// Where the temporary folders are made.
    pub folder: PathBuf,
}

impl Options {
    /// Everything, in five rounds of a second.
    pub fn new(program: impl Into<PathBuf>) -> Options {
        Options {
            program: program.into(),
            parts: Part::ALL.to_vec(),
            peers: Peer::ALL.to_vec(),
            rounds: 5,
            duration: Duration::from_secs(1),
            warm_up: Duration::from_millis(300),
            life_tasks: 500_000,
            bus_tasks: 100_000,
            restart_tasks: 1_000_000,
            folder: std::env::temp_dir(),
        }
    }

    /// Everything, so short that it takes about two minutes: good for a look, not for a figure.
    pub fn quick(program: impl Into<PathBuf>) -> Options {
        Options {
            rounds: 2,
            duration: Duration::from_millis(250),
            warm_up: Duration::from_millis(50),
            life_tasks: 50_000,
            bus_tasks: 20_000,
            restart_tasks: 100_000,
            ..Options::new(program)
        }
    }
}

/// Runs it. Progress is shown on standard error while that is a terminal. Raising `stop` ends it early.
///
/// A server that is not here is left out, and one that fails lacks a figure; the report says so. Whatever happens,
/// servers are ended by their process ids and their folders removed.
///
/// # Errors
/// Options out of their range, a folder on a file system in memory, and [`PeersError::Interrupted`].
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Report, PeersError> {
    check(options)?;
    let machine = Machine::look();
    let disk = Disk::look(&options.folder)?;
    let (found, mut lacking) = find_all(&options.peers, &options.program);
    if options.parts.contains(&Part::Bus) {
        let also = bus::lacking().into_iter().filter(|it| !lacking.contains(it)).collect::<Vec<_>>();
        lacking.extend(also);
    }
    let mut versions: Vec<String> = found.iter().map(|it| it.version.clone()).collect();
    versions.dedup();
    let session = Session { found, options, stop, turns: Turns::new(options.rounds, stop) };
    session.plan();
    let wanted = |part| options.parts.contains(&part);
    // Before the others, which leave the disk something to do.
    let foreground = if wanted(Part::Foreground) { foreground::run(&session)? } else { Vec::new() };
    let accept = if wanted(Part::Accept) { accept::run(&session)? } else { Vec::new() };
    let life = if wanted(Part::Life) { life::run(&session)? } else { Vec::new() };
    let bus = if wanted(Part::Bus) { bus::run(&session)? } else { None };
    let restart = if wanted(Part::Restart) { restart::run(&session)? } else { None };
    let failures = session.turns.finish();
    Ok(Report {
        machine,
        disk,
        versions,
        lacking,
        rounds: options.rounds,
        duration: options.duration,
        warm_up: options.warm_up,
        accept,
        life,
        bus,
        foreground,
        restart,
        failures,
        parts: options.parts.clone(),
    })
}

fn check(options: &Options) -> Result<(), PeersError> {
    turns::check(options.rounds, options.duration, options.warm_up)?;
    let tasks = [options.life_tasks, options.bus_tasks, options.restart_tasks];
    if tasks.iter().any(|it| !(1..=MAX_TASKS).contains(it)) {
        return Err(PeersError::Options(format!("there must be 1 to {MAX_TASKS} tasks")));
    }
    Ok(())
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
        let turns = |part: &Part| match part {
            Part::Accept => accept::SCENARIOS.len() * self.found.len() * self.options.rounds,
            Part::Life => life::Way::ALL.len() * self.options.rounds,
            // Engines come up in a turn of its own.
            Part::Bus => 1 + 2 * self.options.rounds,
            Part::Foreground => 2 * foreground::PAIRS * self.options.rounds,
            Part::Restart => 1,
        };
        self.turns.plan(self.options.parts.iter().map(turns).sum());
    }

    /// The peers that are here.
    pub(super) fn found(&self) -> Vec<Found> {
        self.found.clone()
    }

    /// Gives each of `contenders` its turn in every round, and another one first each time.
    pub(super) fn rounds<T>(
        &self,
        contenders: &[T],
        name: impl Fn(&T) -> &'static str,
        turn: impl Fn(&T) -> Result<Figures, PeersError>,
    ) -> Result<Rounds, PeersError> {
        self.turns.rounds(contenders, name, turn)
    }

    /// Gives one its turn. A failure is noted.
    pub(super) fn attempt<T>(
        &self,
        name: &'static str,
        turn: impl FnOnce() -> Result<T, PeersError>,
    ) -> Result<Option<T>, PeersError> {
        self.turns.attempt(name, turn)
    }

    /// A load of the shape of a scenario.
    pub(super) fn load(&self, scenario: Scenario) -> Load {
        scenario.load(self.options.warm_up, self.options.duration)
    }
}

/// The name of a peer, for [`Session::rounds`].
pub(super) fn peer_name(found: &Found) -> &'static str {
    Peer::name(found.peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_their_range_are_refused() {
        let refused = |options: Options| check(&options).unwrap_err().to_string();
        let usual = || Options::new("reparto");
        assert!(refused(Options { rounds: 0, ..usual() }).contains("1 to 1000"));
        assert!(refused(Options { restart_tasks: 0, ..usual() }).contains("tasks"));
        assert!(check(&usual()).is_ok());
    }
}
