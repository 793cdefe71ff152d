//! What a side-by-side run found.

use std::time::Duration;

use serde::Serialize;

use super::server::Lacking;
use super::{Machine, Scenario, Server};
use crate::raw::Measurement;

/// One server's figures in one round, or their medians.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Tasks answered a second.
    pub tasks_per_second: f64,
    /// Half of the tasks took no longer, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took no longer, in microseconds.
    pub p99_us: f64,
    /// 999 of 1,000 took no longer, in microseconds.
    pub p999_us: f64,
}

impl From<&Measurement> for Figures {
    fn from(measurement: &Measurement) -> Self {
        let round = |value: f64| (value * 10.0).round() / 10.0;
        Figures {
            tasks_per_second: round(measurement.tasks_per_second()),
            p50_us: round(measurement.latency_us(0.5)),
            p99_us: round(measurement.latency_us(0.99)),
            p999_us: round(measurement.latency_us(0.999)),
        }
    }
}

/// The middle value; the mean of the two in the middle when there are two; `None` without any.
///
/// ```
/// assert_eq!(reparto_bench::peers::median(&mut [3.0, 1.0, 2.0]), Some(2.0));
/// assert_eq!(reparto_bench::peers::median(&mut [4.0, 1.0]), Some(2.5));
/// ```
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Ratios of the rounds: their median, the least and the most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// The median over the rounds.
    pub median: f64,
    /// The least of a round.
    pub least: f64,
    /// The most of a round.
    pub most: f64,
}

/// A server in one of its settings, and what it did in each round.
#[derive(Debug, Clone, PartialEq)]
pub struct Contestant {
    /// The server.
    pub server: Server,
    /// Its name, with the setting.
    pub name: &'static str,
    /// A round's figures; `None` where it failed.
    pub rounds: Vec<Option<Figures>>,
}

impl Contestant {
    /// The median over the rounds of each figure by itself.
    pub fn medians(&self) -> Option<Figures> {
        medians(&self.rounds)
    }

    /// This one's figure over another's, round by round.
    pub fn ratio_to(&self, other: &Contestant, figure: fn(&Figures) -> f64) -> Option<Ratio> {
        ratio(&self.rounds, &other.rounds, figure)
    }
}

/// The median over the rounds of each figure by itself. A round that failed is `None`.
pub(crate) fn medians(rounds: &[Option<Figures>]) -> Option<Figures> {
    let of =
        |figure: fn(&Figures) -> f64| median(&mut rounds.iter().flatten().map(figure).collect::<Vec<f64>>());
    Some(Figures {
        tasks_per_second: of(|it| it.tasks_per_second)?,
        p50_us: of(|it| it.p50_us)?,
        p99_us: of(|it| it.p99_us)?,
        p999_us: of(|it| it.p999_us)?,
    })
}

/// One's figure over another's, round by round.
pub(crate) fn ratio(
    rounds: &[Option<Figures>],
    others: &[Option<Figures>],
    figure: fn(&Figures) -> f64,
) -> Option<Ratio> {
    let ratio = |(own, other): (&Option<Figures>, &Option<Figures>)| {
        let (own, other) = (figure(own.as_ref()?), figure(other.as_ref()?));
        (other > 0.0).then_some(own / other)
    };
    let mut ratios: Vec<f64> = rounds.iter().zip(others).filter_map(ratio).collect();
    let median = median(&mut ratios)?;
    Some(Ratio { median, least: *ratios.first()?, most: *ratios.last()? })
}

/// The fastest setting of a server.
pub(super) fn best(contestants: &[Contestant], server: Server) -> Option<&Contestant> {
    let speed = |it: &Contestant| it.medians().map_or(0.0, |it| it.tasks_per_second);
    let own = contestants.iter().filter(|it| it.server == server && it.medians().is_some());
    own.max_by(|a, b| speed(a).total_cmp(&speed(b)))
}

/// A closed loop's scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedReport {
    /// Its shape.
    pub scenario: Scenario,
    /// Everybody who took part.
    pub contestants: Vec<Contestant>,
}

impl ClosedReport {
    /// A server's figures in the setting that was fastest here.
    pub fn best(&self, server: Server) -> Option<&Contestant> {
        best(&self.contestants, server)
    }

    /// Reparto's figure over a peer's.
    pub fn ratio(&self, peer: Server, figure: fn(&Figures) -> f64) -> Option<Ratio> {
        self.ratio_between(Server::Reparto, peer, figure)
    }

    /// One server's figure over another's, each in its fastest setting.
    pub fn ratio_between(&self, of: Server, peer: Server, figure: fn(&Figures) -> f64) -> Option<Ratio> {
        self.best(of)?.ratio_to(self.best(peer)?, figure)
    }
}

/// Reparto through its own client and worker libraries, beside NATS driven raw.
#[derive(Debug, Clone, PartialEq)]
pub struct LibraryReport {
    /// The shape of both.
    pub scenario: Scenario,
    /// Threads of each of Reparto's workers.
    pub worker_threads: u32,
    /// Reparto through its libraries, and NATS raw.
    pub contestants: Vec<Contestant>,
}

/// An open loop at a share of NATS' peak rate.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenLoopReport {
    /// The share of the peak.
    pub share: f64,
    /// Tasks due a second.
    pub rate: f64,
    /// Everybody who took part.
    pub contestants: Vec<Contestant>,
}

/// How a flood of large tasks from one client hurts another's small ones, at one server.
#[derive(Debug, Clone, PartialEq)]
pub struct FloodReport {
    /// The small tasks without the flood.
    pub alone: Contestant,
    /// The small tasks beside it.
    pub flooded: Contestant,
    /// The flood itself.
    pub flood: Contestant,
}

impl FloodReport {
    /// What the flood adds to the small tasks' p99, in microseconds, by the medians.
    pub fn added_p99_us(&self) -> Option<f64> {
        Some(self.flooded.medians()?.p99_us - self.alone.medians()?.p99_us)
    }
}

/// What a run found. The parts that were not asked for are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// The servers and their versions, as `nats 2.9.10`.
    pub versions: Vec<String>,
    /// Programs that were not here.
    pub lacking: Vec<Lacking>,
    /// Rounds of every part.
    pub rounds: usize,
    /// Time that each measured, and that was driven before.
    pub duration: Duration,
    /// Time that was driven before it was measured.
    pub warm_up: Duration,
    /// The closed loops.
    pub closed: Vec<ClosedReport>,
    /// Through Reparto's own libraries.
    pub library: Option<LibraryReport>,
    /// The open loops.
    pub open_loop: Vec<OpenLoopReport>,
    /// The floods.
    pub floods: Vec<FloodReport>,
    /// What failed, for people. A figure that failed is missing in its round.
    pub failures: Vec<String>,
}

impl Report {
    /// The closed loop of this shape, if it was run.
    pub(super) fn closed(&self, connections: usize, window: usize, size: usize) -> Option<&ClosedReport> {
        self.closed.iter().find(|it| it.scenario == Scenario { connections, window, size })
    }

    /// Every turn of Reparto that was asked for gave its figures.
    pub fn is_whole(&self) -> bool {
        let closed = self.closed.iter().flat_map(|it| &it.contestants);
        let others = self.library.iter().flat_map(|it| &it.contestants);
        let open = self.open_loop.iter().flat_map(|it| &it.contestants);
        let floods = self.floods.iter().flat_map(|it| [&it.alone, &it.flooded]);
        let mut reparto =
            closed.chain(others).chain(open).chain(floods).filter(|it| it.server == Server::Reparto);
        reparto.all(|it| it.rounds.iter().all(Option::is_some))
    }

    /// The report for programs, one line of JSON: `scenarios` with each server's medians, and beside it the other
    /// parts that were run.
    ///
    /// # Errors
    /// None is known: every figure is a number.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(&Json {
            scenarios: self.closed.iter().map(|it| ScenarioJson::of(it.scenario, &it.contestants)).collect(),
            libraries: self.library.as_ref().map(|it| ScenarioJson::of(it.scenario, &it.contestants)),
            open_loop: self.open_loop.iter().map(OpenLoopJson::of).collect(),
            flood: self.floods.iter().map(FloodJson::of).collect(),
        })
    }
}

#[derive(Serialize)]
struct Json {
    scenarios: Vec<ScenarioJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    libraries: Option<ScenarioJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    open_loop: Vec<OpenLoopJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flood: Vec<FloodJson>,
}

#[derive(Serialize)]
struct ScenarioJson {
    connections: usize,
    window: usize,
    size: usize,
    servers: ServersJson,
}

impl ScenarioJson {
    fn of(scenario: Scenario, contestants: &[Contestant]) -> ScenarioJson {
        let Scenario { connections, window, size } = scenario;
        ScenarioJson { connections, window, size, servers: ServersJson::of(contestants) }
    }
}

#[derive(Serialize)]
struct OpenLoopJson {
    share_of_nats_peak: f64,
    tasks_due_per_second: f64,
    servers: ServersJson,
}

impl OpenLoopJson {
    fn of(report: &OpenLoopReport) -> OpenLoopJson {
        OpenLoopJson {
            share_of_nats_peak: report.share,
            tasks_due_per_second: report.rate.round(),
            servers: ServersJson::of(&report.contestants),
        }
    }
}

#[derive(Serialize)]
struct FloodJson {
    server: &'static str,
    alone: Option<Figures>,
    flooded: Option<Figures>,
}

impl FloodJson {
    fn of(report: &FloodReport) -> FloodJson {
        let server = report.alone.server.name();
        FloodJson { server, alone: report.alone.medians(), flooded: report.flooded.medians() }
    }
}

/// Each server's medians in its fastest setting. One that is not here is left out.
#[derive(Serialize)]
struct ServersJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    reparto: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reparto_gearman: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nats: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gearmand: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay: Option<Figures>,
}

impl ServersJson {
    fn of(contestants: &[Contestant]) -> ServersJson {
        let of = |server| best(contestants, server)?.medians();
        ServersJson {
            reparto: of(Server::Reparto),
            reparto_gearman: of(Server::RepartoGearman),
            nats: of(Server::Nats),
            gearmand: of(Server::Gearmand),
            relay: of(Server::Relay),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::peers) fn contestant(server: Server, name: &'static str, speeds: &[f64]) -> Contestant {
        let figures = |speed: f64| Figures {
            tasks_per_second: speed,
            p50_us: 1e6 / speed,
            p99_us: 2e6 / speed,
            p999_us: 3e6 / speed,
        };
        let rounds = speeds.iter().map(|speed| (*speed > 0.0).then(|| figures(*speed))).collect();
        Contestant { server, name, rounds }
    }

    pub(in crate::peers) fn report() -> Report {
        let scenario = Scenario { connections: 4, window: 128, size: 64 };
        let contestants = vec![
            contestant(Server::Reparto, "reparto", &[1000.0, 1200.0, 900.0]),
            contestant(Server::Nats, "nats", &[200.0, 200.0, 100.0]),
            contestant(Server::Gearmand, "gearmand -t 1", &[100.0, 300.0, 100.0]),
            contestant(Server::Gearmand, "gearmand", &[250.0, 0.0, 500.0]),
        ];
        let nats = contestant(Server::Nats, "nats", &[200.0, 200.0, 200.0]);
        let reparto = contestant(Server::Reparto, "reparto", &[200.0, 200.0, 200.0]);
        Report {
            machine: Machine::look(),
            versions: vec!["nats 2.9.10".into()],
            lacking: vec![Lacking { program: "haproxy", packages: "haproxy" }],
            rounds: 3,
            duration: Duration::from_secs(2),
            warm_up: Duration::from_millis(300),
            closed: vec![ClosedReport { scenario, contestants: contestants.clone() }],
            library: Some(LibraryReport {
                scenario,
                worker_threads: 1,
                contestants: vec![reparto.clone(), nats.clone()],
            }),
            open_loop: vec![OpenLoopReport {
                share: 0.5,
                rate: 100.0,
                contestants: vec![reparto.clone(), nats],
            }],
            floods: vec![FloodReport { alone: reparto.clone(), flooded: reparto.clone(), flood: reparto }],
            failures: vec!["gearmand: the server closed the connection".into()],
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round_and_of_the_fastest_setting() {
        let report = report();
        let closed = &report.closed[0];
        assert_eq!(closed.best(Server::Gearmand).unwrap().name, "gearmand");
        let ratio = closed.ratio(Server::Nats, |it| it.tasks_per_second).unwrap();
        assert_eq!(ratio, Ratio { median: 6.0, least: 5.0, most: 9.0 });
        let ratio = closed.ratio(Server::Gearmand, |it| it.tasks_per_second).unwrap();
        assert_eq!((ratio.least, ratio.most), (1.8, 4.0), "the round that failed is left out");
        assert_eq!(closed.ratio(Server::Relay, |it| it.p50_us), None);
    }

    #[test]
    fn the_json_has_each_scenario_with_each_servers_medians() {
        let closed_only =
            Report { library: None, open_loop: Vec::new(), floods: Vec::new(), ..report() }.json().unwrap();
        assert_eq!(
            closed_only,
            "{\"scenarios\":[{\"connections\":4,\"window\":128,\"size\":64,\"servers\":{\
             \"reparto\":{\"tasks_per_second\":1000.0,\"p50_us\":1000.0,\"p99_us\":2000.0,\"p999_us\":3000.0},\
             \"nats\":{\"tasks_per_second\":200.0,\"p50_us\":5000.0,\"p99_us\":10000.0,\"p999_us\":15000.0},\
             \"gearmand\":{\"tasks_per_second\":375.0,\"p50_us\":3000.0,\"p99_us\":6000.0,\
             \"p999_us\":9000.0}}}]}"
        );
    }

    #[test]
    fn the_json_has_the_other_parts_beside_the_scenarios() {
        let all: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert!(all["libraries"]["servers"]["nats"]["p50_us"].is_f64());
        assert_eq!(all["open_loop"][0]["share_of_nats_peak"], 0.5);
        assert!(all["flood"][0]["flooded"]["p99_us"].is_f64());
    }
}
