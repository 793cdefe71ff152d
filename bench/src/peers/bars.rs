//! What is wanted of Reparto's speed, and whether a run has it.

use super::report::{Figures, Report, best};
use super::table::{Table, time};
use super::{ClosedReport, Server};

/// Most that a flood may add to another client's p99, in microseconds.
const FLOOD_ADDS_US: f64 = 5_000.0;

/// A bound on a ratio of Reparto's figure to a peer's.
struct Bar {
    connections: usize,
    window: usize,
    size: usize,
    /// Whose figure is meant: Reparto's, or Reparto's with gearmand's clients.
    of: Server,
    peer: Server,
    bound: Bound,
}

enum Bound {
    /// Tasks a second at least this many times the peer's.
    Speed(f64),
    /// p50 at most this many times the peer's.
    P50(f64),
    /// p99 at most this many times the peer's.
    P99(f64),
}

const fn bar(connections: usize, window: usize, size: usize, peer: Server, bound: Bound) -> Bar {
    Bar { connections, window, size, of: Server::Reparto, peer, bound }
}

/// The same, with gearmand's own clients and workers.
const fn gearman_bar(window: usize, bound: Bound) -> Bar {
    Bar { of: Server::RepartoGearman, ..bar(4, window, 64, Server::Gearmand, bound) }
}

const BARS: [Bar; 19] = [
    bar(4, 128, 64, Server::Nats, Bound::Speed(5.0)),
    bar(4, 128, 64, Server::Gearmand, Bound::Speed(4.5)),
    bar(4, 128, 64, Server::Relay, Bound::Speed(0.6)),
    bar(4, 1024, 64, Server::Nats, Bound::Speed(10.0)),
    bar(4, 1024, 64, Server::Gearmand, Bound::Speed(8.0)),
    bar(4, 1024, 64, Server::Relay, Bound::Speed(0.8)),
    bar(4, 16, 64, Server::Nats, Bound::Speed(2.7)),
    bar(4, 16, 64, Server::Gearmand, Bound::Speed(1.7)),
    bar(4, 16, 64, Server::Relay, Bound::Speed(0.85)),
    bar(4, 1, 64, Server::Relay, Bound::P50(1.15)),
    bar(4, 1, 64, Server::Nats, Bound::P99(1.0)),
    bar(1, 1, 64, Server::Relay, Bound::P50(1.15)),
    bar(1, 1, 64, Server::Nats, Bound::P99(1.0)),
    bar(4, 8, 65_536, Server::Gearmand, Bound::Speed(1.0)),
    bar(4, 8, 65_536, Server::Relay, Bound::Speed(1.0)),
    bar(4, 2, 1_000_000, Server::Gearmand, Bound::Speed(1.0)),
    bar(4, 2, 1_000_000, Server::Relay, Bound::Speed(1.0)),
    gearman_bar(128, Bound::Speed(3.0)),
    gearman_bar(1, Bound::P50(0.95)),
];

/// Least speed through the libraries, by NATS' driven raw.
const LIBRARY_SPEED: f64 = 2.0;

/// Most p99.9 in an open loop, by NATS'.
const OPEN_LOOP_P999: f64 = 0.5;

/// The bars that the run has figures for.
pub(super) fn table(report: &Report) -> Table {
    let mut table = Table::new("What is wanted", &["of Reparto", "wanted", "here", "holds"]);
    let mut row = |what: String, wanted: String, here: String, holds: bool| {
        table.rows.push(vec![what, wanted, here, if holds { "yes" } else { "no" }.to_owned()]);
    };
    for bar in &BARS {
        let closed = report.closed(bar.connections, bar.window, bar.size);
        if let Some((what, least, bound, here)) = closed.and_then(|it| bar.judge(it)) {
            let holds = if least { here >= bound } else { here <= bound };
            row(what, wanted(least, bound), format!("{here:.2}"), holds);
        }
    }
    for open in &report.open_loop {
        let here = ratio(&open.contestants, |it| it.p999_us);
        if let Some(here) = here {
            let what = format!("p99.9 over nats's, open loop at {} of its peak", open.share);
            row(what, wanted(false, OPEN_LOOP_P999), format!("{here:.2}"), here <= OPEN_LOOP_P999);
        }
    }
    if let Some(library) = &report.library
        && let Some(here) = ratio(&library.contestants, |it| it.tasks_per_second)
    {
        let what = format!("tasks/s over nats's, {}, through its libraries", library.scenario);
        row(what, wanted(true, LIBRARY_SPEED), format!("{here:.2}"), here >= LIBRARY_SPEED);
    }
    let flood = report.floods.iter().find(|it| it.alone.server == Server::Reparto);
    if let Some(here) = flood.and_then(|it| it.added_p99_us()) {
        let what = "p99 that a flood of 1,000,000-byte tasks adds".to_owned();
        row(what, format!("<= {}", time(FLOOD_ADDS_US)), time(here), here <= FLOOD_ADDS_US);
    }
    table
}

impl Bar {
    /// What it is about, whether its bound is a least one, the bound, and the figure.
    fn judge(&self, closed: &ClosedReport) -> Option<(String, bool, f64, f64)> {
        let (figure, name, least, bound): (fn(&Figures) -> f64, _, _, _) = match self.bound {
            Bound::Speed(bound) => (|it| it.tasks_per_second, "tasks/s", true, bound),
            Bound::P50(bound) => (|it| it.p50_us, "p50", false, bound),
            Bound::P99(bound) => (|it| it.p99_us, "p99", false, bound),
        };
        let here = closed.ratio_between(self.of, self.peer, figure)?.median;
        let whose = if self.of == Server::Reparto { "" } else { ", with its clients" };
        Some((format!("{name} over {}'s{whose}, {}", self.peer, closed.scenario), least, bound, here))
    }
}

fn wanted(least: bool, bound: f64) -> String {
    format!("{} {bound}", if least { ">=" } else { "<=" })
}

/// The median ratio of Reparto's figure to NATS'.
fn ratio(contestants: &[super::Contestant], figure: fn(&Figures) -> f64) -> Option<f64> {
    let (reparto, nats) = (best(contestants, Server::Reparto)?, best(contestants, Server::Nats)?);
    Some(reparto.ratio_to(nats, figure)?.median)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn bars_are_judged_where_there_are_figures_and_left_out_where_not() {
        let table = table(&report());
        let verdicts: Vec<(&str, &str)> =
            table.rows.iter().map(|row| (row[2].as_str(), row[3].as_str())).collect();
        // NATS, gearmand; open loop, libraries, flood.
        assert_eq!(
            verdicts,
            [("6.00", "yes"), ("2.90", "no"), ("1.00", "no"), ("1.00", "no"), ("0.0 us", "yes")]
        );
    }
}
