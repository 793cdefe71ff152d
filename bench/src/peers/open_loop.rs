//! Open loops at shares of the rate that NATS reached in a closed one: who still answers in time?

use super::report::{ClosedReport, Figures, OpenLoopReport, best};
use super::run::Session;
use super::{PeersError, Scenario, Server};
use crate::raw::{Load, Pace};

/// Shares of NATS' peak.
pub(super) const SHARES: [f64; 2] = [0.5, 0.9];

/// Bytes of a payload.
const SIZE: usize = 64;

/// The shape in which NATS is fastest, for runs that did not measure it.
const PEAK: Scenario = Scenario { connections: 4, window: 1024, size: SIZE };

pub(super) fn run(session: &Session<'_>, closed: &[ClosedReport]) -> Result<Vec<OpenLoopReport>, PeersError> {
    let contenders = session.found_of(&[Server::Reparto, Server::Nats]);
    let Some(peak) = peak(session, closed)? else { return Ok(Vec::new()) };
    let mut reports = Vec::new();
    for share in SHARES {
        let rate = peak * share;
        let load = Load { pace: Pace::Rate(rate), ..session.load(PEAK) };
        let contestants = session.rounds(&contenders, |contender| {
            session.measure(contender, PEAK.workers(), &load).map(|it| Figures::from(&it))
        })?;
        reports.push(OpenLoopReport { share, rate, contestants });
    }
    Ok(reports)
}

/// The most tasks a second that NATS answered in any closed loop; without one, it is measured. `None` without NATS.
fn peak(session: &Session<'_>, closed: &[ClosedReport]) -> Result<Option<f64>, PeersError> {
    let speed = |contestants| best(contestants, Server::Nats)?.medians().map(|it| it.tasks_per_second);
    let small = closed.iter().filter(|it| it.scenario.size == SIZE);
    let peak = small.filter_map(|it| speed(&it.contestants)).max_by(f64::total_cmp);
    if peak.is_some() {
        return Ok(peak);
    }
    let load = session.load(PEAK);
    let contestants = session.rounds(&session.found_of(&[Server::Nats]), |contender| {
        session.measure(contender, PEAK.workers(), &load).map(|it| Figures::from(&it))
    })?;
    Ok(speed(&contestants))
}
