//! Handing in: tasks acknowledged a second, once durable as each server understands it.

use super::report::{AcceptReport, Row};
use super::run::{Session, peer_name};
use crate::peers::error::PeersError;
use crate::peers::{Figures, Scenario};
use crate::raw::drive;

/// The shapes in which tasks are handed in.
pub(super) const SCENARIOS: [Scenario; 2] =
    [Scenario { connections: 4, window: 64, size: 64 }, Scenario { connections: 4, window: 1024, size: 64 }];

pub(super) fn run(session: &Session<'_>) -> Result<Vec<AcceptReport>, PeersError> {
    let found = session.found();
    let mut reports = Vec::new();
    for scenario in SCENARIOS {
        let load = session.load(scenario);
        let rounds = session.rounds(&found, peer_name, |found| {
            let failed = PeersError::raw(found.peer.name());
            let running = found.start(&session.options.folder)?;
            let driven = drive(found.peer.protocol(), running.clients, &load, session.stop);
            driven.map(|it| Figures::from(&it)).map_err(failed)
        })?;
        let rows = found.iter().zip(rounds).map(|(it, rounds)| Row { peer: it.peer, rounds }).collect();
        reports.push(AcceptReport { scenario, rows });
    }
    Ok(reports)
}
