//! Small measurements of a balancer in this process: that every part measures something, and adds it up right.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use reparto_balancer::{Balancer, BalancerError, Handle, Settings};

use super::*;

/// A balancer in this process, stopped when it is dropped.
#[derive(Debug)]
pub(super) struct InProcess {
    pub(super) clients: SocketAddr,
    pub(super) workers: SocketAddr,
    handle: Handle,
    serving: Option<JoinHandle<Result<(), BalancerError>>>,
}

impl InProcess {
    fn start() -> InProcess {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let grace = Duration::ZERO;
        let settings = Settings { clients: any_port, workers: any_port, grace, ..Settings::default() };
        let balancer = Balancer::bind(settings).unwrap();
        let (clients, workers) = (balancer.clients_addr(), balancer.workers_addr());
        let handle = balancer.handle();
        let serving = Some(std::thread::spawn(move || balancer.run()));
        InProcess { clients, workers, handle, serving }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(serving) = self.serving.take() {
            // A failed test is told by its own panic.
            let _ = serving.join();
        }
    }
}

const SMALL: Sizes = Sizes {
    choices: &[10, 50],
    submits: &[0, 1_000],
    workers: &[1, 20],
    queued: &[100, 2_000],
    idle: &[10, 50],
    payloads: &[0, 64, 100_000, 1 << 20],
    duration: Duration::from_millis(100),
    batches: 3,
};

fn options() -> Options {
    Options::new("not started")
}

#[test]
fn every_part_is_measured_and_no_task_fails() {
    let report = measure(&options(), &SMALL, || Ok(Place::in_process(InProcess::start()))).unwrap();
    assert!(report.is_good() && !report.interrupted, "{report:?}");
    assert_eq!(report.choices.len(), 3 * SMALL.choices.len());
    assert!(report.choices.iter().all(|row| row.submit_ns > 0.0 && row.step_ns > 0.0));
    assert_eq!(report.submits.len(), SMALL.submits.len());
    assert_eq!(report.workers.iter().map(|row| row.workers).collect::<Vec<_>>(), SMALL.workers);
    assert!(report.workers.iter().all(|row| row.tasks_per_second > 0.0 && row.one_at_a_time_p50_us > 0.0));
    assert_eq!(report.queued.iter().map(|row| row.queued).collect::<Vec<_>>(), SMALL.queued);
    assert_eq!(report.idle.iter().map(|row| row.connections).collect::<Vec<_>>(), SMALL.idle);
    assert_eq!(report.payloads.iter().map(|row| row.bytes).collect::<Vec<_>>(), SMALL.payloads);
    assert!(report.payloads.iter().all(|row| row.tasks_per_second > 0.0), "{:?}", report.payloads);

    let (mut table, mut json) = (Vec::new(), Vec::new());
    report.write_table(&mut table).unwrap();
    report.write_json(&mut json).unwrap();
    let table = String::from_utf8(table).unwrap();
    for heading in
        ["choosing", "submitting", "workers registered", "tasks that wait", "idle", "payload bytes"]
    {
        assert!(table.contains(heading), "{heading} should stand in {table}");
    }
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["payloads"].as_array().map(Vec::len), Some(SMALL.payloads.len()));
}

#[test]
fn no_more_connections_are_opened_than_files_may_be_and_the_report_says_so() {
    let place = Place::in_process(InProcess::start());
    let rows = memory::idle(&place, &[5, 50, 100], Some(74), &AtomicBool::new(false)).unwrap();
    let counts: Vec<_> = rows.iter().map(|row| (row.wanted, row.connections)).collect();
    assert_eq!(counts, [(5, 5), (50, 10)]);
    let mut table = Vec::new();
    Report { idle: rows, ..Report::default() }.write_table(&mut table).unwrap();
    assert!(String::from_utf8(table).unwrap().contains("instead of 50"));
}

#[test]
fn a_run_that_is_stopped_gives_what_it_has() {
    let options = options();
    options.stop.store(true, Ordering::Relaxed);
    let report = measure(&options, &SMALL, || unreachable!("nothing is started any more")).unwrap();
    assert!(report.interrupted && report.workers.is_empty());
}

#[test]
fn figures_are_held_against_their_bars() {
    let choice = |workers, submit_ns| ChoiceRow { policy: "weighted", workers, submit_ns, step_ns: 0.0 };
    let queued = QueueRow { queued: 1_000_000, resident_bytes_each: Some(150.0), taken_in_per_second: 1.0 };
    let idle = IdleRow { wanted: 20_000, connections: 20_000, resident_bytes_each: Some(900.0) };
    let submit = |queued, submit_ns| SubmitRow { queued, submit_ns };
    let mut report = Report {
        choices: vec![choice(10, 100.0), choice(10_000, 140.0)],
        submits: vec![submit(0, 100.0), submit(1_000_000, 151.0)],
        queued: vec![queued],
        idle: vec![idle],
        ..Report::default()
    };
    report.judge();
    let verdicts: Vec<_> = report.bars.iter().map(|bar| (bar.measured, bar.holds)).collect();
    assert_eq!(verdicts, [(1.4, true), (1.51, false), (150.0, true), (900.0, false)]);
}
