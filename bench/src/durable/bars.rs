//! What is wanted of durable tasks, and whether a run has it.

use serde::Serialize;

use super::{Part, Peer, Report};
use crate::peers::report::medians;
use crate::peers::table::{Table, count, time};

/// Least of Reparto's acknowledged tasks a second, each one synced, by a peer's: tasks in flight on each connection,
/// the peer, and the ratio.
const ACCEPTED: [(usize, Peer, f64); 5] = [
    (1024, Peer::JetStream, 1.0),
    (64, Peer::JetStream, 0.75),
    (64, Peer::RabbitMq, 3.0),
    (64, Peer::Beanstalkd, 30.0),
    (64, Peer::Gearmand, 150.0),
];

/// Least tasks a second over their whole life.
const LIVES: f64 = 100_000.0;

/// Least of RabbitMQ's own messages a second, published and consumed, that whole lives through it have.
const THROUGH_THE_BUS: f64 = 1.0 / 3.0;

/// Least of the foreground's speed that is left with the store on.
const FOREGROUND: f64 = 0.95;

/// Longest time until a balancer that was killed accepts tasks again, in microseconds.
const SERVES_US: f64 = 5e6;

/// A bar, and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Judged {
    what: String,
    wanted: String,
    here: String,
    holds: bool,
}

/// The bars that the run has figures for.
pub(super) fn judged(report: &Report) -> Vec<Judged> {
    let mut all = Vec::new();
    for (window, peer, least) in ACCEPTED {
        let accept = report.accept.iter().find(|it| it.scenario.window == window);
        if let Some((accept, ratio)) = accept.and_then(|it| Some((it, it.ratio(peer)?))) {
            all.push(Judged {
                what: format!("accepted/s, fsync, over {}'s, {}", peer.name(), accept.scenario),
                wanted: format!(">= {least}"),
                here: format!("{:.2}", ratio.median),
                holds: ratio.median >= least,
            });
        }
    }
    if let Some(figures) = report.life.first().and_then(|it| medians(&it.rounds)) {
        all.push(Judged {
            what: "whole lives a second, fsync".to_owned(),
            wanted: format!(">= {}", count(LIVES)),
            here: count(figures.tasks_per_second),
            holds: figures.tasks_per_second >= LIVES,
        });
    }
    if let Some(ratio) = report.bus.as_ref().and_then(|it| it.ratio()) {
        all.push(Judged {
            what: "whole lives/s through RabbitMQ and PostgreSQL, over RabbitMQ alone".to_owned(),
            wanted: format!(">= {THROUGH_THE_BUS:.2}"),
            here: format!("{:.2}", ratio.median),
            holds: ratio.median >= THROUGH_THE_BUS,
        });
    }
    if let Some(ratio) = report.foreground_ratio() {
        all.push(Judged {
            what: "foreground tasks/s, store on over off".to_owned(),
            wanted: format!(">= {FOREGROUND}"),
            here: format!("{:.2}", ratio.median),
            holds: ratio.median >= FOREGROUND,
        });
    }
    if let Some(restart) = report.restart.as_ref().filter(|_| report.parts.contains(&Part::Restart)) {
        let serves_us = restart.serves.as_secs_f64() * 1e6;
        all.push(Judged {
            what: format!("killed with {} tasks, accepts again", count(restart.tasks as f64)),
            wanted: format!("<= {}", time(SERVES_US)),
            here: time(serves_us),
            holds: serves_us <= SERVES_US,
        });
        all.push(Judged {
            what: "of them never ended".to_owned(),
            wanted: "0".to_owned(),
            here: restart.open_tasks.to_string(),
            holds: restart.open_tasks == 0,
        });
    }
    all
}

/// The same as a table.
pub(super) fn table(report: &Report) -> Table {
    let mut table = Table::new("What is wanted", &["of Reparto", "wanted", "here", "holds"]);
    for bar in judged(report) {
        table.rows.push(vec![
            bar.what,
            bar.wanted,
            bar.here,
            if bar.holds { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn bars_are_judged_where_there_are_figures_and_left_out_where_not() {
        let verdicts: Vec<(String, bool)> =
            judged(&report()).into_iter().map(|it| (it.here, it.holds)).collect();
        let wanted = [
            ("1.00", true),
            ("1.00", true),
            ("295.00", true),
            ("110,000", true),
            ("0.33", true),
            ("0.97", true),
            ("6.00 s", false),
            ("0", true),
        ];
        assert_eq!(verdicts, wanted.map(|(here, holds)| (here.to_owned(), holds)));
    }
}
