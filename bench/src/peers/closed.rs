//! The closed loops: every server at every scenario, round after round.

use super::PeersError;
use super::report::{ClosedReport, Figures};
use super::run::Session;

pub(super) fn run(session: &Session<'_>) -> Result<Vec<ClosedReport>, PeersError> {
    let contenders = session.found_of(&session.options.servers);
    let mut reports = Vec::new();
    for scenario in &session.options.scenarios {
        let load = session.load(*scenario);
        let contestants = session.rounds(&contenders, |contender| {
            session.measure(contender, scenario.workers(), &load).map(|it| Figures::from(&it))
        })?;
        reports.push(ClosedReport { scenario: *scenario, contestants });
    }
    Ok(reports)
}
