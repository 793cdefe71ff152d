//! Load on a balancer in this process: that it counts right, ends when it should, and hides nothing.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use reparto_balancer::scheduler::{Config, UnknownAction};
use reparto_balancer::{Balancer, BalancerError, Handle, Settings};
use reparto_worker::{Task, TaskError, Worker, WorkerHandle, builtin};

use super::*;

/// However slow the machine is, what should come has come by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// A balancer with one worker, both stopped at the end.
struct Place {
    clients: SocketAddr,
    balancer: (Handle, JoinHandle<Result<(), BalancerError>>),
    worker: WorkerHandle,
    working: JoinHandle<()>,
}

impl Place {
    fn start() -> Place {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let scheduler = Config { unknown_action: UnknownAction::Reject, ..Config::default() };
        let settings = Settings { clients: any_port, workers: any_port, scheduler, ..Settings::default() };
        let balancer = Balancer::bind(settings).unwrap();
        let (clients, workers) = (balancer.clients_addr(), balancer.workers_addr());
        let handle = balancer.handle();
        let serving = std::thread::spawn(move || balancer.run());

        let never = |task: &Task| {
            while !task.cancellation().wait_timeout(PATIENCE) {}
            Err(TaskError::from("given up"))
        };
        let worker = Worker::builder()
            .balancer(workers.to_string())
            .threads(2)
            .actions(builtin::actions())
            .action("never", never)
            .build()
            .unwrap();
        let worker_handle = worker.handle();
        let working = std::thread::spawn(move || worker.run().unwrap());
        let place = Place { clients, balancer: (handle, serving), worker: worker_handle, working };
        let client = Client::connect([clients.to_string()]).unwrap();
        let until = Instant::now() + PATIENCE;
        while client.status().unwrap().totals.workers == 0 {
            assert!(Instant::now() < until, "the worker should have registered");
            std::thread::sleep(Duration::from_millis(5));
        }
        place
    }

    fn options(&self, action: &str, payload: &'static str) -> Options {
        let balancers = vec![self.clients.to_string()];
        Options {
            duration: Duration::from_millis(300),
            drain: PATIENCE,
            ..Options::new(action, payload, balancers)
        }
    }

    fn stop(self) {
        self.worker.stop(Duration::ZERO);
        self.working.join().unwrap();
        self.balancer.0.shutdown();
        self.balancer.1.join().unwrap().unwrap();
    }
}

#[test]
fn a_closed_loop_answers_every_task_and_draws_what_it_found() {
    let place = Place::start();
    let options = Options { connections: 3, window: 16, ..place.options("echo", "hola") };
    let report = run(&options).unwrap();
    assert!(report.is_good(), "{report:?}");
    assert_eq!((report.pace, report.failed, report.unanswered), ("closed", 0, 0));
    assert!(report.p50_us <= report.p99_us && report.p99_us <= report.max_us);
    let in_intervals: f64 = report.throughput.iter().map(|point| point.tasks_per_second).sum();
    assert!(in_intervals > 0.0);

    let svg = report.svg().unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("microseconds") && svg.contains("throughput over time"));
    let (mut table, mut json) = (Vec::new(), Vec::new());
    report.write_table(&mut table).unwrap();
    report.write_json(&mut json).unwrap();
    let table = String::from_utf8(table).unwrap();
    assert!(table.contains("closed loop, 16 in flight each") && table.contains("p99.9 us"), "{table}");
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["tasks"], json["done"]);
    place.stop();
}

#[test]
fn an_open_loop_hands_in_what_is_due_and_no_more() {
    let place = Place::start();
    let options =
        Options { pace: Pace::Open(500.0), connections: 2, window: 100, ..place.options("upper", "hola") };
    let report = run(&options).unwrap();
    // 0.3 s at 500 a second, from the first at 0 on.
    assert_eq!((report.tasks, report.done, report.rate), (150, 150, Some(500.0)));
    place.stop();
}

#[test]
fn an_open_loop_counts_the_wait_of_tasks_that_were_due_while_the_window_was_full() {
    let place = Place::start();
    let pace = Pace::Open(100.0);
    let options = Options { pace, window: 1, ..place.options("sleep", "50") };
    let report = run(&options).unwrap();
    assert_eq!((report.tasks, report.done), (30, 30));
    // One at a time, 50 ms each and one due every 10 ms: the last one waited for those before it.
    assert!(report.max_us > 1_000_000.0, "{}", report.max_us);
    place.stop();
}

#[test]
fn tasks_that_fail_are_counted_by_code() {
    let place = Place::start();
    let report = run(&place.options("sum", "1,x")).unwrap();
    assert!(!report.is_good());
    assert_eq!(report.errors.keys().copied().collect::<Vec<_>>(), ["worker_failed"]);
    assert_eq!(report.errors["worker_failed"], report.tasks);
    assert!(report.error_examples["worker_failed"].contains("'x'"), "{report:?}");
    assert!(matches!(report.svg(), Err(PlotError::Empty)));

    let report = run(&place.options("unheard-of", "")).unwrap();
    assert_eq!(report.errors["unknown_action"], report.tasks);
    place.stop();
}

#[test]
fn tasks_without_an_answer_are_told_and_count_with_the_time_they_were_waited_for() {
    let place = Place::start();
    let drain = Duration::from_millis(200);
    // Time enough to hand in all four, whatever the machine does.
    let duration = Duration::from_secs(3);
    let report = run(&Options { window: 4, drain, duration, ..place.options("never", "") }).unwrap();
    assert_eq!((report.tasks, report.done, report.unanswered), (4, 0, 4));
    assert!(report.p50_us > 190_000.0, "{}", report.p50_us);

    let drain = Duration::from_secs(3);
    let options = Options { pace: Pace::Open(100.0), window: 4, drain, ..place.options("never", "") };
    let report = run(&options).unwrap();
    assert_eq!((report.unanswered, report.not_handed_in), (4, 26));
    assert_eq!(report.tasks, 30);
    place.stop();
}

#[test]
fn a_run_that_is_stopped_early_still_reports() {
    let place = Place::start();
    let options = Options { duration: MAX_DURATION, ..place.options("echo", "hola") };
    let stop = Arc::clone(&options.stop);
    let running = std::thread::spawn(move || run(&options).unwrap());
    let client = Client::connect([place.clients.to_string()]).unwrap();
    let until = Instant::now() + PATIENCE;
    while client.status().unwrap().totals.done < 10 {
        assert!(Instant::now() < until, "tasks should be done");
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Release);
    let report = running.join().unwrap();
    assert!(report.interrupted && report.is_good() && report.done >= 10, "{report:?}");
    place.stop();
}

#[test]
fn a_run_whose_balancer_is_lost_ends_and_says_so() {
    let place = Place::start();
    let options = Options { duration: MAX_DURATION, ..place.options("echo", "hola") };
    let running = std::thread::spawn(move || run(&options).unwrap());
    let client = Client::connect([place.clients.to_string()]).unwrap();
    let until = Instant::now() + PATIENCE;
    while client.status().unwrap().totals.done < 10 {
        assert!(Instant::now() < until, "tasks should be done");
        std::thread::sleep(Duration::from_millis(5));
    }
    place.stop();
    let report = running.join().unwrap();
    assert!(report.balancer_lost.is_some() && report.done >= 10, "{report:?}");
}

#[test]
fn options_out_of_their_range_and_balancers_that_are_not_there_are_named() {
    let options = Options::new("echo", "", vec!["127.0.0.1:1".into()]);
    let wrong = |options: Options| run(&options).unwrap_err().to_string();
    assert!(wrong(Options { connections: 0, ..options.clone() }).contains("the number of connections is 0"));
    assert!(wrong(Options { window: 0, ..options.clone() }).contains("the window is 0"));
    assert!(wrong(Options { duration: Duration::ZERO, ..options.clone() }).contains("the duration"));
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(wrong(Options { pace: Pace::Open(rate), ..options.clone() }).contains("the rate is"));
    }
    assert!(matches!(run(&options), Err(LoadError::NoBalancer(_))));
}

#[test]
fn a_payload_that_the_balancer_would_not_take_is_refused_before_the_run() {
    let place = Place::start();
    let payload = Bytes::from(vec![b'x'; 17 << 20]);
    let error = run(&Options { payload, ..place.options("echo", "") }).unwrap_err();
    assert!(error.to_string().starts_with("the payload has 17825792 bytes"), "{error}");
    place.stop();
}
