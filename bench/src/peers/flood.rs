//! Fairness: one client floods the server with large tasks, and another's small ones are timed, without the flood
//! and beside it.

use std::thread;
use std::time::Duration;

use super::report::{Contestant, Figures, FloodReport};
use super::run::{Session, contestant};
use super::server::Found;
use super::{PeersError, Server};
use crate::raw::{Load, Pace, RawError, drive};

/// Servers for which it is measured: a relay gives each client connections of its own, to workers of its own.
pub(super) const SERVERS: [Server; 3] = [Server::Reparto, Server::Nats, Server::Gearmand];

/// Workers that serve both clients.
const WORKERS: usize = 2;

/// Small tasks that are due a second. An open loop, so that a stall is not hidden.
const SMALL_PER_SECOND: f64 = 1_000.0;

/// Bytes of a small task.
const SMALL: usize = 64;

/// Bytes of a large one.
const LARGE: usize = 1_000_000;

/// Large tasks in flight.
const LARGE_WINDOW: usize = 16;

/// Shortest time that is measured, so that a p99 has some tasks beyond it.
const LEAST_DURATION: Duration = Duration::from_secs(1);

pub(super) fn run(session: &Session<'_>) -> Result<Vec<FloodReport>, PeersError> {
    let contenders = session.found_of(&SERVERS);
    let empty = |found: &Found| contestant(found.contender);
    let mut reports: Vec<FloodReport> = contenders
        .iter()
        .map(|it| FloodReport { alone: empty(it), flooded: empty(it), flood: empty(it) })
        .collect();
    for round in 0..session.options.rounds {
        for place in 0..contenders.len() {
            let index = (place + round) % contenders.len();
            let (contender, report) = (&contenders[index], &mut reports[index]);
            let alone = session.attempt(contender, || measure(session, contender, false))?;
            let flooded = session.attempt(contender, || measure(session, contender, true))?;
            report.alone.rounds.push(alone.map(|(small, _)| small));
            report.flooded.rounds.push(flooded.map(|(small, _)| small));
            report.flood.rounds.push(flooded.and_then(|(_, large)| large));
        }
    }
    Ok(fastest_flood(reports))
}

/// Keeps one setting of each server: the one whose p99 beside the flood is the least.
fn fastest_flood(mut reports: Vec<FloodReport>) -> Vec<FloodReport> {
    let p99 = |it: &Contestant| it.medians().map_or(f64::INFINITY, |it| it.p99_us);
    reports.sort_by(|a, b| {
        a.alone.server.cmp(&b.alone.server).then(p99(&a.flooded).total_cmp(&p99(&b.flooded)))
    });
    reports.dedup_by_key(|it| it.alone.server);
    reports
}

/// The small tasks' figures, and the flood's.
fn measure(
    session: &Session<'_>,
    contender: &Found,
    flooded: bool,
) -> Result<(Figures, Option<Figures>), PeersError> {
    let failed = PeersError::raw(contender.contender.name());
    let duration = session.options.duration.max(LEAST_DURATION);
    let warm_up = session.options.warm_up;
    let small = Load {
        connections: 1,
        size: SMALL,
        pace: Pace::Rate(SMALL_PER_SECOND),
        warm_up,
        duration,
        ..Load::default()
    };
    let large = Load {
        connections: 1,
        window: LARGE_WINDOW,
        size: LARGE,
        warm_up,
        duration,
        pace: Pace::Window,
        first_client: 1,
        tasks: u64::MAX,
    };
    let running = contender.start(WORKERS, LARGE)?;
    let protocol = contender.contender.protocol();
    let (small, large) = thread::scope(|scope| {
        let flood = flooded.then(|| scope.spawn(|| drive(protocol, running.clients, &large, session.stop)));
        let small = drive(protocol, running.clients, &small, session.stop);
        let panicked = || Err(RawError::Load("the flood's thread panicked".into()));
        (small, flood.map(|it| it.join().unwrap_or_else(|_| panicked())).transpose())
    });
    let stopped = running.stop();
    let small = small.map_err(&failed)?;
    let large = large.map_err(&failed)?;
    stopped.map_err(&failed)?;
    Ok((Figures::from(&small), large.as_ref().map(Figures::from)))
}
