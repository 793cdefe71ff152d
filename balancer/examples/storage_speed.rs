//! How much a background task costs a store: time and CPU time, for accepting and for a whole life.
//!
//! `cargo run --release -p reparto-balancer --example storage_speed [TASKS] [BATCH] [fsync|interval:50ms|postgres://...]`
//!
//! The tasks stay in the PostgreSQL database that is named: give it one that can be dropped, or a schema.

use std::time::{Duration, Instant};

use reparto_balancer::storage::{
    Answer, Durability, NewTask, Operation, Outcome, PostgresStore, Request, SqliteStore, Storage,
    StorageSettings, Store, TaskId, TaskIds,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let tasks: usize = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let batch: usize = arguments.next().map_or(Ok(4096), |text| text.parse())?;
    let kind = arguments.next().unwrap_or_else(|| "fsync".to_owned());
    if kind.starts_with("postgres") {
        return postgres(&kind, tasks, batch);
    }
    let durability: Durability = kind.parse()?;
    println!("{tasks} tasks of 64 bytes, {batch} a batch, {durability}");
    for whole_life in [false, true] {
        let folder = tempfile::tempdir()?;
        let mut store = SqliteStore::open(folder.path(), durability)?;
        let (started, cpu) = (Instant::now(), cpu_time()?);
        let slowest = run(&mut store, tasks, batch, whole_life)?;
        let (took, spent) = (started.elapsed(), cpu_time()? - cpu);
        let what = if whole_life { "whole lives" } else { "accepted" };
        report(what, tasks, took, spent);
        println!("  slowest commit {:.1} ms, {:?}", slowest.as_secs_f64() * 1e3, store.counts());
        let (started, cpu) = (Instant::now(), cpu_time()?);
        store.settle()?;
        report("  the rest written behind", tasks, started.elapsed(), cpu_time()? - cpu);
        if !whole_life {
            drop(store);
            restart(folder.path(), durability, tasks)?;
        }
    }
    through_threads(tasks, batch, durability)
}

/// The same in PostgreSQL, whose own CPU time is not told.
fn postgres(url: &str, tasks: usize, batch: usize) -> Result<(), Failure> {
    println!("{tasks} tasks of 64 bytes, {batch} a batch, PostgreSQL");
    for whole_life in [false, true] {
        let store = PostgresStore::lead(url, |standby| println!("{standby:?}"), || true)?;
        let mut store = store.ok_or("it never gives up")?;
        let (started, cpu) = (Instant::now(), cpu_time()?);
        let slowest = run(&mut store, tasks, batch, whole_life)?;
        let what = if whole_life { "whole lives" } else { "accepted" };
        report(what, tasks, started.elapsed(), cpu_time()? - cpu);
        println!("  slowest commit {:.1} ms", slowest.as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Accepts tasks in batches; for whole lives each batch also records the outcomes of the batch two before it.
fn run(store: &mut dyn Store, tasks: usize, batch: usize, whole_life: bool) -> Result<Duration, Failure> {
    let mut ids = TaskIds::new();
    let mut running: Vec<Vec<TaskId>> = Vec::new();
    let mut answers: Vec<Answer> = Vec::new();
    let mut slowest = Duration::ZERO;
    let (mut accepted, mut ended) = (0, 0);
    while accepted < tasks || (whole_life && ended < tasks) {
        let mut operations = Vec::with_capacity(2 * batch);
        let mut accepting = Vec::with_capacity(batch);
        for _ in 0..batch.min(tasks - accepted) {
            let now = now();
            let id = ids.next(now);
            accepting.push(id);
            operations.push(Operation::Accept(NewTask::new(id, "upper", vec![7; 64], now)));
        }
        accepted += accepting.len();
        if whole_life {
            running.push(accepting);
            if running.len() > 2 || accepted == tasks {
                for id in running.remove(0) {
                    operations.push(Operation::Finish(Outcome::done(id, 1, now(), vec![8; 64])));
                    ended += 1;
                }
            }
        }
        answers.clear();
        let started = Instant::now();
        store.apply(&operations, &mut answers)?;
        slowest = slowest.max(started.elapsed());
        if let Some(wrong) =
            answers.iter().find(|answer| !matches!(answer, Answer::Accepted | Answer::Recorded))
        {
            return Err(format!("{wrong:?}").into());
        }
    }
    Ok(slowest)
}

/// Accepts tasks through the storage threads, `batch` in flight, as the reactor will.
fn through_threads(tasks: usize, batch: usize, durability: Durability) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(folder.path(), durability)?;
    let (wake, woken) = crossbeam_channel::bounded(1);
    let storage =
        Storage::start(Box::new(store), None, StorageSettings::default(), move || _ = wake.try_send(()))?;
    let mut ids = TaskIds::new();
    let (mut taken, mut accepted, mut token) = (0, 0, 0);
    let mut completions = Vec::new();
    let (started, cpu) = (Instant::now(), cpu_time()?);
    while accepted < tasks {
        let mut requests = Vec::new();
        while taken < tasks && taken - accepted < batch {
            let now = now();
            token += 1;
            let operation = Operation::Accept(NewTask::new(ids.next(now), "upper", vec![7; 64], now));
            requests.push(Request { token, operation });
            taken += 1;
        }
        storage.try_submit(&mut requests)?;
        woken.recv()?;
        storage.take_completions(&mut completions);
        accepted += completions.drain(..).filter(|completion| completion.reply.is_ok()).count();
    }
    report("accepted by the threads", tasks, started.elapsed(), cpu_time()? - cpu);
    storage.stop()?;
    Ok(())
}

/// How long a start takes until all open tasks are read.
fn restart(folder: &std::path::Path, durability: Durability, tasks: usize) -> Result<(), Failure> {
    let (started, cpu) = (Instant::now(), cpu_time()?);
    let store = SqliteStore::open(folder, durability)?;
    let mut reader = store.reader()?;
    let (mut found, mut after) = (0, None);
    loop {
        let page = reader.open_tasks(after, 4096)?;
        found += page.tasks.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, tasks);
    report("  opened again, all read", tasks, started.elapsed(), cpu_time()? - cpu);
    Ok(())
}

fn report(what: &str, tasks: usize, took: Duration, cpu: Duration) {
    let each = |time: Duration| time.as_secs_f64() * 1e6 / tasks as f64;
    let rate = tasks as f64 / took.as_secs_f64();
    println!("{what:<24} {rate:>10.0}/s, {:.2} µs and {:.2} µs of CPU each", each(took), each(cpu));
}

fn now() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// CPU time of this process, all threads; zero where /proc does not tell it.
fn cpu_time() -> Result<Duration, Failure> {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return Ok(Duration::ZERO) };
    // After the command's name, which may hold anything, user and system time are fields 12 and 13, in 1/100 s.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 =
        fields.get(11).unwrap_or(&"0").parse::<u64>()? + fields.get(12).unwrap_or(&"0").parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}
