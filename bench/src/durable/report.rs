//! What a run found.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::disk::Disk;
use super::{Part, Peer, bars, foreground};
use crate::peers::report::{medians, ratio};
use crate::peers::table::{self, cell, count, time};
use crate::peers::{Figures, Lacking, Machine, Ratio, Scenario, Table};

/// A peer, and what it did in each round.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The peer.
    pub peer: Peer,
    /// A round's figures; `None` where it failed.
    pub rounds: Vec<Option<Figures>>,
}

/// Tasks handed in, in one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct AcceptReport {
    /// The shape.
    pub scenario: Scenario,
    /// Every peer that is here.
    pub rows: Vec<Row>,
}

impl AcceptReport {
    fn row(&self, peer: Peer) -> Option<&Row> {
        self.rows.iter().find(|row| row.peer == peer)
    }

    /// Reparto's tasks a second, each one synced, over a peer's.
    pub fn ratio(&self, peer: Peer) -> Option<Ratio> {
        ratio(&self.row(Peer::RepartoFsync)?.rounds, &self.row(peer)?.rounds, |it| it.tasks_per_second)
    }
}

/// The whole life of tasks, followed in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct LifeReport {
    /// What is counted.
    pub way: &'static str,
    /// Tasks of each round.
    pub tasks: u64,
    /// Tasks a second from the first handed in to the last recorded, and the latencies that the client saw.
    pub rounds: Vec<Option<Figures>>,
}

/// The whole life of tasks through RabbitMQ and PostgreSQL, and as many messages through RabbitMQ alone.
#[derive(Debug, Clone, PartialEq)]
pub struct BusReport {
    /// Tasks, and messages, of each round.
    pub tasks: u64,
    /// Tasks a second from the first handed in to the last recorded.
    pub reparto: Vec<Option<Figures>>,
    /// Messages a second from the first published to the last consumed and acknowledged.
    pub alone: Vec<Option<Figures>>,
}

impl BusReport {
    /// Reparto's tasks a second over RabbitMQ's messages.
    pub fn ratio(&self) -> Option<Ratio> {
        ratio(&self.reparto, &self.alone, |it| it.tasks_per_second)
    }
}

/// A balancer killed and started again.
#[derive(Debug, Clone, PartialEq)]
pub struct RestartReport {
    /// Tasks in its store.
    pub tasks: u64,
    /// From its start until it said that it is ready.
    pub ready: Duration,
    /// From its start until a new task was accepted.
    pub serves: Duration,
    /// From the workers' coming until every task was recorded as ended.
    pub all_ended: Duration,
    /// Tasks that were still open then.
    pub open_tasks: u64,
}

/// What a run found. The parts that were not asked for are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Where the data was.
    pub disk: Disk,
    /// The servers and their versions.
    pub versions: Vec<String>,
    /// Programs that were not here.
    pub lacking: Vec<Lacking>,
    /// Rounds of every part.
    pub rounds: usize,
    /// Time that each turn measured.
    pub duration: Duration,
    /// Time that was driven before it was measured.
    pub warm_up: Duration,
    /// Tasks handed in.
    pub accept: Vec<AcceptReport>,
    /// Whole lives.
    pub life: Vec<LifeReport>,
    /// Through RabbitMQ and PostgreSQL; `None` where one is not here, or it was not asked for.
    pub bus: Option<BusReport>,
    /// Foreground tasks: the rounds with the store on, and with it off.
    pub foreground: Vec<Vec<Option<Figures>>>,
    /// The restart; `None` when it failed or was not asked for.
    pub restart: Option<RestartReport>,
    /// What failed, for people. A figure that failed is missing in its round.
    pub failures: Vec<String>,
    /// What was asked for.
    pub parts: Vec<Part>,
}

impl Report {
    /// Foreground tasks a second with the store on over those with it off.
    pub fn foreground_ratio(&self) -> Option<Ratio> {
        let [on, off] = self.foreground.as_slice() else { return None };
        ratio(on, off, |it| it.tasks_per_second)
    }

    /// Everything of Reparto that was asked for gave its figures.
    pub fn is_whole(&self) -> bool {
        let reparto = [Peer::RepartoFsync, Peer::RepartoInterval];
        let accept = self.accept.iter().flat_map(|it| &it.rows).filter(|row| reparto.contains(&row.peer));
        let mut rounds = accept
            .map(|row| &row.rounds)
            .chain(self.life.iter().map(|it| &it.rounds))
            .chain(self.bus.iter().map(|it| &it.reparto))
            .chain(&self.foreground);
        let restarted = self.restart.is_some() || !self.parts.contains(&Part::Restart);
        restarted && rounds.all(|it| it.iter().all(Option::is_some))
    }

    /// The tables, in the order of the run, and at last what is wanted of them.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables: Vec<Table> = self.accept.iter().map(accept).collect();
        if !self.life.is_empty() {
            tables.push(life(&self.life));
        }
        tables.extend(self.bus.as_ref().map(bus));
        if let [on, off] = self.foreground.as_slice() {
            tables.push(foreground_table(on, off, self.foreground_ratio()));
        }
        tables.extend(self.restart.as_ref().map(restart));
        let wanted = bars::table(self);
        if !wanted.rows.is_empty() {
            tables.push(wanted);
        }
        tables
    }

    /// The report for programs, one line of JSON: the medians of every part that was run, and the bars.
    ///
    /// # Errors
    /// None is known: every figure is a number.
    pub fn json(&self) -> serde_json::Result<String> {
        let peers = |rows: &[Row]| -> Map<String, Value> {
            rows.iter().map(|row| (row.peer.key().to_owned(), json!(medians(&row.rounds)))).collect()
        };
        let accept = self.accept.iter().map(|it| {
            let Scenario { connections, window, size } = it.scenario;
            json!({ "connections": connections, "window": window, "size": size, "peers": peers(&it.rows) })
        });
        let life = self
            .life
            .iter()
            .map(|it| json!({ "way": it.way, "tasks": it.tasks, "figures": medians(&it.rounds) }));
        let bus = self.bus.as_ref().map(|it| {
            json!({
                "tasks": it.tasks,
                "reparto": medians(&it.reparto),
                "rabbitmq_alone": medians(&it.alone),
                "reparto_over_alone": it.ratio().map(|it| it.median),
            })
        });
        let foreground = match self.foreground.as_slice() {
            [on, off] => json!({
                "store_on": medians(on),
                "store_off": medians(off),
                "on_over_off": self.foreground_ratio().map(|it| it.median),
            }),
            _ => Value::Null,
        };
        let restart = self.restart.as_ref().map(|it| RestartJson {
            tasks: it.tasks,
            ready_s: it.ready.as_secs_f64(),
            serves_s: it.serves.as_secs_f64(),
            all_ended_s: it.all_ended.as_secs_f64(),
            open_tasks: it.open_tasks,
        });
        serde_json::to_string(&json!({
            "file_system": self.disk.file_system,
            "synced_write_us": (self.disk.sync_us * 10.0).round() / 10.0,
            "accept": accept.collect::<Vec<Value>>(),
            "life": life.collect::<Vec<Value>>(),
            "bus": bus,
            "foreground": foreground,
            "restart": restart,
            "bars": bars::judged(self),
            "lacking": self.lacking.iter().map(|it| it.program).collect::<Vec<_>>(),
            "failures": self.failures,
        }))
    }
}

#[derive(Serialize)]
struct RestartJson {
    tasks: u64,
    ready_s: f64,
    serves_s: f64,
    all_ended_s: f64,
    open_tasks: u64,
}

fn accept(report: &AcceptReport) -> Table {
    let headings = ["server", "accepted/s", "p50", "p99", "reparto's, fsync, over"];
    let mut table = Table::new(format!("Handed in, {}", report.scenario), &headings);
    for row in &report.rows {
        let over = report.ratio(row.peer).filter(|_| row.peer != Peer::RepartoFsync);
        let mut cells = figures(row.peer.name(), medians(&row.rounds));
        cells.push(table::ratio(over));
        table.rows.push(cells);
    }
    table
}

fn life(reports: &[LifeReport]) -> Table {
    let tasks = reports.first().map_or(0, |it| it.tasks);
    let title = format!("The whole life of {} tasks, fsync, each step durable", count(tasks as f64));
    let mut table = Table::new(title, &["reparto", "tasks/s", "p50", "p99"]);
    for report in reports {
        table.rows.push(figures(report.way, medians(&report.rounds)));
    }
    table
}

fn bus(report: &BusReport) -> Table {
    let title = format!("{} of them through RabbitMQ and PostgreSQL", count(report.tasks as f64));
    let mut table = Table::new(title, &["server", "tasks/s", "p50", "p99", "reparto's over"]);
    let reparto = "reparto: handed in, run, recorded";
    let alone = "rabbitmq alone: published, consumed";
    for (name, rounds, over) in [(reparto, &report.reparto, None), (alone, &report.alone, report.ratio())] {
        let mut cells = figures(name, medians(rounds));
        cells.push(table::ratio(over));
        table.rows.push(cells);
    }
    table
}

fn foreground_table(on: &[Option<Figures>], off: &[Option<Figures>], ratio: Option<Ratio>) -> Table {
    let title = format!("Foreground tasks, {}, with the store on and off", foreground::SCENARIO);
    let mut table = Table::new(title, &["reparto", "tasks/s", "p50", "p99", "on over off"]);
    for (name, rounds, over) in [("store on", on, ratio), ("store off", off, None)] {
        let mut cells = figures(name, medians(rounds));
        cells.push(table::ratio(over));
        table.rows.push(cells);
    }
    table
}

fn restart(report: &RestartReport) -> Table {
    let title =
        format!("Killed (SIGKILL) with {} tasks in its store, started again", count(report.tasks as f64));
    let mut table = Table::new(title, &["reparto", "figure"]);
    let us = |duration: Duration| time(duration.as_secs_f64() * 1e6);
    let rate = report.tasks as f64 / report.all_ended.as_secs_f64().max(1e-9);
    for (what, figure) in [
        ("it says that it is ready, after", us(report.ready)),
        ("it has accepted another task, after", us(report.serves)),
        ("once workers are there, all have ended after", us(report.all_ended)),
        ("which is, tasks/s", count(rate)),
        ("tasks that are still open then", report.open_tasks.to_string()),
    ] {
        table.rows.push(vec![what.to_owned(), figure]);
    }
    table
}

/// A name, and its medians.
fn figures(name: &str, medians: Option<Figures>) -> Vec<String> {
    let of = |figure: fn(&Figures) -> f64| medians.as_ref().map(figure);
    vec![
        name.to_owned(),
        cell(of(|it| it.tasks_per_second), count),
        cell(of(|it| it.p50_us), time),
        cell(of(|it| it.p99_us), time),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::durable::accept::SCENARIOS;

    fn rounds(speeds: &[f64]) -> Vec<Option<Figures>> {
        let figures = |speed: f64| Figures {
            tasks_per_second: speed,
            p50_us: 1e6 / speed,
            p99_us: 2e6 / speed,
            p999_us: 3e6 / speed,
        };
        speeds.iter().map(|speed| (*speed > 0.0).then(|| figures(*speed))).collect()
    }

    pub(in crate::durable) fn report() -> Report {
        let rows = vec![
            Row { peer: Peer::RepartoFsync, rounds: rounds(&[300.0, 310.0, 290.0]) },
            Row { peer: Peer::JetStream, rounds: rounds(&[300.0, 300.0, 500.0]) },
            Row { peer: Peer::Gearmand, rounds: rounds(&[1.0, 0.0, 1.0]) },
        ];
        Report {
            machine: Machine::look(),
            disk: Disk { folder: "/var/tmp".into(), file_system: "ext4".into(), sync_us: 123.4 },
            versions: vec!["nats-server 2.9.10".into()],
            lacking: vec![Lacking { program: "beanstalkd", packages: "beanstalkd" }],
            rounds: 3,
            duration: Duration::from_secs(1),
            warm_up: Duration::from_millis(300),
            accept: SCENARIOS.iter().map(|it| AcceptReport { scenario: *it, rows: rows.clone() }).collect(),
            life: vec![LifeReport {
                way: "all",
                tasks: 500_000,
                rounds: rounds(&[150_000.0, 90_000.0, 110_000.0]),
            }],
            bus: Some(BusReport {
                tasks: 50_000,
                reparto: rounds(&[10_000.0, 8_000.0, 12_000.0]),
                alone: rounds(&[30_000.0, 32_000.0, 24_000.0]),
            }),
            foreground: vec![rounds(&[95.0, 97.0, 99.0]), rounds(&[100.0, 100.0, 100.0])],
            restart: Some(RestartReport {
                tasks: 1_000_000,
                ready: Duration::from_secs(1),
                serves: Duration::from_secs(6),
                all_ended: Duration::from_secs(4),
                open_tasks: 0,
            }),
            failures: vec!["gearmand: the server closed the connection".into()],
            parts: Part::ALL.to_vec(),
        }
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        let tables = report().tables();
        assert_eq!(tables.len(), 7);
        for table in &tables {
            assert!(!table.rows.is_empty(), "{}", table.title);
            for row in &table.rows {
                assert_eq!(row.len(), table.headings.len(), "{}", table.title);
            }
        }
        let handed_in = tables[0].plain();
        assert!(handed_in.contains("1.00x (0.58 to 1.03)"), "{handed_in}");
    }

    #[test]
    fn the_json_has_the_medians_of_every_part() {
        let all: Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(all["accept"][1]["window"], 1024);
        assert_eq!(all["accept"][0]["peers"]["jetstream"]["tasks_per_second"], 300.0);
        assert_eq!(all["life"][0]["figures"]["tasks_per_second"], 110_000.0);
        assert_eq!(all["bus"]["rabbitmq_alone"]["tasks_per_second"], 30_000.0);
        assert_eq!(all["foreground"]["on_over_off"], 0.97);
        assert_eq!(all["restart"]["serves_s"], 6.0);
        assert_eq!(all["lacking"][0], "beanstalkd");
    }

    #[test]
    fn a_run_is_whole_when_all_of_reparto_was_measured() {
        assert!(report().is_whole());
        assert!(!Report { restart: None, ..report() }.is_whole());
        let mut lame = report();
        lame.life[0].rounds[0] = None;
        assert!(!lame.is_whole());
    }
}
