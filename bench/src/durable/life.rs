//! The whole life of background tasks: accepted, run by a worker, recorded, each step durable.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reparto_client::Client;

use super::peer::{Balancer, Store};
use super::report::LifeReport;
use super::run::{Options, Session};
use crate::peers::error::PeersError;
use crate::peers::process::Folder;
use crate::peers::{Figures, Scenario};
use crate::raw::{ClientProtocol, Load, Reparto, RepartoBackground, RepartoFetched, Workers, drive};

/// How tasks are handed in.
pub(super) const SCENARIO: Scenario = Scenario { connections: 4, window: 1024, size: 64 };

/// How often the balancer is asked how many tasks have ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long nothing may end while tasks are open.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a client follows its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all: what is ACCEPTED is the balancer's.
    WalksAway,
    /// It waits for each one's result.
    Fetches,
}

impl Way {
    pub(super) const ALL: [Way; 2] = [Way::WalksAway, Way::Fetches];

    pub(super) fn name(self) -> &'static str {
        match self {
            Way::WalksAway => "handed in, run, recorded",
            Way::Fetches => "the same, and each result fetched",
        }
    }

    fn protocol(self) -> &'static dyn ClientProtocol {
        match self {
            Way::WalksAway => &RepartoBackground,
            Way::Fetches => &RepartoFetched,
        }
    }
}

pub(super) fn run(session: &Session<'_>) -> Result<Vec<LifeReport>, PeersError> {
    let ways: Vec<(Way, &str)> = Way::ALL.iter().map(|way| (*way, "fsync")).collect();
    let rounds = session.rounds(
        &ways,
        |(way, _)| way.name(),
        |(way, durability)| measure(session.options, session.stop, *way, durability),
    )?;
    let tasks = session.options.life_tasks;
    Ok(ways
        .iter()
        .zip(rounds)
        .map(|((way, _), rounds)| LifeReport { way: way.name(), tasks, rounds })
        .collect())
}

/// Tasks a second, from the first one handed in until the last one is recorded. Latencies are those of the client.
fn measure(
    options: &Options,
    stop: &AtomicBool,
    way: Way,
    durability: &'static str,
) -> Result<Figures, PeersError> {
    let failed = PeersError::raw("reparto");
    let data = Folder::new_in(&options.folder)?;
    let balancer = Balancer::start(&options.program, &options.folder, Store::In(data.path(), durability))?;
    let workers =
        Workers::connect(&Reparto, balancer.workers, SCENARIO.workers(), SCENARIO.size).map_err(&failed)?;
    let began = Instant::now();
    let driven = hand_in(way.protocol(), balancer.clients, options.life_tasks, stop)?;
    wait_until_recorded(balancer.clients, options.life_tasks, stop)?;
    let seconds = began.elapsed().as_secs_f64();
    workers.stop().map_err(&failed)?;
    Ok(Figures { tasks_per_second: (options.life_tasks as f64 / seconds).round(), ..driven })
}

/// Hands in so many tasks as quickly as the balancer takes them.
pub(super) fn hand_in(
    protocol: &dyn ClientProtocol,
    clients: SocketAddr,
    tasks: u64,
    stop: &AtomicBool,
) -> Result<Figures, PeersError> {
    let connections = SCENARIO.connections as u64;
    let load = |connections: usize, tasks: u64, first_client: usize| Load {
        connections,
        window: SCENARIO.window,
        size: SCENARIO.size,
        duration: Duration::from_secs(3_600),
        tasks,
        first_client,
        ..Load::default()
    };
    let failed = PeersError::raw(protocol.name());
    let most = load(SCENARIO.connections, tasks / connections, 0);
    let driven = drive(protocol, clients, &most, stop).map_err(&failed)?;
    if !tasks.is_multiple_of(connections) {
        drive(protocol, clients, &load(1, tasks % connections, SCENARIO.connections), stop)
            .map_err(&failed)?;
    }
    Ok(Figures::from(&driven))
}

/// Waits until so many tasks have ended, each recorded.
///
/// The store writes in order, so once one more task is accepted, everything that had ended before is durable.
pub(super) fn wait_until_recorded(
    clients: SocketAddr,
    tasks: u64,
    stop: &AtomicBool,
) -> Result<(), PeersError> {
    let library = |error: &dyn std::fmt::Display| PeersError::Library(error.to_string());
    let client = Client::connect([clients.to_string()]).map_err(|error| library(&error))?;
    let (mut ended, mut since) = (0, Instant::now());
    while ended < tasks {
        if stop.load(Ordering::Relaxed) {
            return Err(PeersError::Interrupted);
        }
        let totals = client.status().map_err(|error| library(&error))?.totals;
        if totals.failed > 0 {
            return Err(PeersError::Library(format!("{} tasks failed", totals.failed)));
        }
        if totals.done > ended {
            (ended, since) = (totals.done, Instant::now());
        } else if since.elapsed() > PATIENCE {
            return Err(PeersError::Library(format!("{ended} of {tasks} tasks ended, and then no more")));
        }
        if ended < tasks {
            thread::sleep(LOOK_EVERY);
        }
    }
    accept_one(&client)
}

/// Hands one task in, and waits until it is accepted.
pub(super) fn accept_one(client: &Client) -> Result<(), PeersError> {
    let library = |error: &dyn std::fmt::Display| PeersError::Library(error.to_string());
    let accepted =
        client.task("echo").payload("last").submit_background().map_err(|error| library(&error))?;
    accepted.wait().map(|_| ()).map_err(|error| library(&error))
}
