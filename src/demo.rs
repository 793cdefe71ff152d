//! `reparto demo`: a balancer and some workers as real processes, a few thousand real tasks, and one worker
//! killed on the way. Every answer is checked.

use std::io::{self, Write};
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanCount};
use reparto_client::{Client, Status, WorkerStatus};

use drive::{Driver, Progress, Tally};
use files::Documents;
use plan::{Action, Plan, SLEEP_MS};
use processes::{ProcessIndex, Processes};
use report::Report;
use show::Show;

mod background;
mod drive;
#[cfg(unix)]
mod engines;
mod files;
mod plan;
mod processes;
mod report;
mod show;
mod temporary;

/// Tasks that each worker runs at once.
const THREADS: u32 = 4;
/// How often it is asked what each worker does.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Time in which a worker with several tasks in hand is waited for, so that the kill hurts.
const BUSY_WITHIN: Duration = Duration::from_millis(300);
/// Time after which one is killed even if none has anything in hand.
const KILL_WITHIN: Duration = Duration::from_secs(2);
/// The exit code after a signal, as shells say of SIGINT.
const INTERRUPTED: u8 = 130;

/// Shows it all at work: a balancer and three workers, thousands of tasks, one worker killed, nothing lost.
///
/// Starts a balancer and workers as processes of their own on free ports of this machine, and hands in real
/// tasks at a steady pace: sums, Fibonacci numbers, SHA-256 of the files under the current folder (made-up data
/// when there are none), and short sleeps. Halfway it kills the busiest worker with SIGKILL. Every answer is checked
/// against one computed here. It takes some seven seconds.
///
/// Exit code 0 when nothing was lost, duplicated or wrong, otherwise 1.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  reparto demo
  reparto demo --tasks 100000 --workers 8
  reparto demo --json | jq .reassigned
  reparto demo --background                         a balancer killed, every result fetched
  reparto demo --engines                            the same across two balancers

--engines takes PostgreSQL, RabbitMQ and S3 from REPARTO_POSTGRES_URL, REPARTO_RABBITMQ_URL, REPARTO_S3_URL and the
usual AWS variables; without them it brings them up with scripts/services, in Reparto's source tree.")]
pub(crate) struct Args {
    /// Tasks handed in, 100 to 1000000
    #[arg(long, value_name = "N", default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    tasks: u64,

    /// Workers started, 2 to 32; one of them is killed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=32))]
    workers: u32,

    /// Decides what the tasks are; the same seed gives the same tasks
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Hands background tasks over, kills the balancer with SIGKILL halfway, starts it again, and fetches every result
    #[arg(long)]
    background: bool,

    /// The same across two balancers that share PostgreSQL, RabbitMQ and S3
    #[cfg(unix)]
    #[arg(long, conflicts_with = "background")]
    engines: bool,

    /// Gives the summary as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Args {
    #[cfg(unix)]
    fn wants_engines(&self) -> bool {
        self.engines
    }

    #[cfg(not(unix))]
    fn wants_engines(&self) -> bool {
        false
    }
}

/// Why the demo came to no end.
enum DemoError {
    /// A signal ended it.
    Interrupted,
    /// In a sentence.
    Failed(String),
}

impl From<String> for DemoError {
    fn from(sentence: String) -> Self {
        DemoError::Failed(sentence)
    }
}

/// Runs the demo.
pub(crate) fn run(args: Args) -> ExitCode {
    let processes = match Processes::new() {
        Ok(processes) => processes,
        Err(error) => return fail(&error, &[]),
    };
    if let Err(error) = end_on_signals(&processes) {
        return fail(&DemoError::Failed(format!("signals cannot be caught: {error}")), &[]);
    }
    if args.background || args.wants_engines() {
        return run_background(&args, &processes);
    }
    let report = match demo(&args, &processes) {
        _ if processes.interrupted() => return fail(&DemoError::Interrupted, &[]),
        Ok(report) => report,
        Err(error) => return fail(&error, &processes.errors()),
    };
    // Whoever reads may have read enough, and the exit code tells the rest.
    let _ = report.write(&mut io::stdout().lock(), args.json);
    let mut errors = io::stderr().lock();
    for sentence in report.troubles() {
        let _ = writeln!(errors, "reparto demo: {sentence}");
    }
    if report.is_good() {
        return ExitCode::SUCCESS;
    }
    for line in processes.errors() {
        let _ = writeln!(errors, "  {line}");
    }
    ExitCode::FAILURE
}

/// Runs the show of background tasks.
fn run_background(args: &Args, processes: &Processes) -> ExitCode {
    let report = match show_background(args, processes) {
        _ if processes.interrupted() => return fail(&DemoError::Interrupted, &[]),
        Ok(report) => report,
        Err(error) => return fail(&error, &processes.errors()),
    };
    // Whoever reads may have read enough, and the exit code tells the rest.
    let _ = report.write(&mut io::stdout().lock(), args.json);
    let mut errors = io::stderr().lock();
    for sentence in report.troubles() {
        let _ = writeln!(errors, "reparto demo: {sentence}");
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show_background(args: &Args, processes: &Processes) -> Result<background::Report, DemoError> {
    #[cfg(unix)]
    if args.engines {
        return engines::show(args, processes);
    }
    let data = temporary::Folder::new()?;
    let flags = vec!["--data".to_owned(), data.path().display().to_string()];
    let balancers = background::Balancers::start(processes, 1, flags, Vec::new())?;
    let report = background::show(args, processes, balancers);
    // They write into the folder, which is removed now.
    processes.kill_all();
    report
}

fn fail(error: &DemoError, process_errors: &[String]) -> ExitCode {
    let mut out = io::stderr().lock();
    // Without standard error there is nobody to tell.
    let (code, _) = match error {
        DemoError::Interrupted => {
            (INTERRUPTED, writeln!(out, "reparto demo: interrupted; its processes are ended"))
        }
        DemoError::Failed(sentence) => (1, writeln!(out, "reparto demo: {sentence}")),
    };
    for line in process_errors {
        let _ = writeln!(out, "  {line}");
    }
    ExitCode::from(code)
}

/// A signal kills all processes, whereupon everything that waits for them ends; a second one ends the demo itself.
fn end_on_signals(processes: &Processes) -> Result<(), ctrlc::Error> {
    let killer = processes.killer();
    let again = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        killer.kill_all();
        if again.swap(true, Ordering::AcqRel) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
}

fn demo(args: &Args, processes: &Processes) -> Result<Report, DemoError> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let plan = Plan::new(args.tasks, args.seed, Documents::gather(Path::new("."), &mut random));
    let mut cluster = Cluster::start(processes, args.workers)?;
    let mut show = Show::new(plan.tasks, &cluster.ids());
    show.say(&cluster.introduction());
    show.say(&introduction(&plan));

    let (client, progress) = (cluster.client.clone(), Progress::default());
    let driver = Driver::new(&client, &plan, &progress)
        .map_err(|error| format!("latencies cannot be recorded: {error}"))?;
    let (tell_half, half) = sync_channel(1);
    let tally = thread::scope(|scope| {
        let driving = scope.spawn(move || {
            // The other end may have given up watching.
            driver.run(|| {
                let _ = tell_half.send(());
            })
        });
        let watched = cluster.watch(&half, &progress, &plan, &mut show);
        if watched.is_err() {
            progress.stop.store(true, Ordering::Release);
        }
        let tally = driving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        watched.map(|()| tally)
    })?;
    cluster.look();
    show.finish();
    Ok(cluster.report(&plan, args.seed, tally))
}

fn introduction(plan: &Plan) -> String {
    let counts = plan.counts();
    let count = |action: Action| HumanCount(counts[action as usize]);
    let documents = &plan.documents;
    let what = if documents.made_up { "pieces of made-up data" } else { "files found here" };
    format!(
        "{} tasks, {} a second: {} sum, {} fib, {} sleep ({} to {} ms),\n\
         and {} sha256 over {} {what} ({}).",
        HumanCount(plan.tasks),
        HumanCount(drive::pace(plan.tasks)),
        count(Action::Sum),
        count(Action::Fib),
        count(Action::Sleep),
        SLEEP_MS.start(),
        SLEEP_MS.end(),
        count(Action::Sha256),
        HumanCount(documents.all.len() as u64),
        BinaryBytes(documents.bytes()),
    )
}

/// The balancer, the workers, and what was last seen of them.
struct Cluster<'a> {
    processes: &'a Processes,
    balancer: ProcessIndex,
    workers: Vec<Member>,
    client: Client,
    /// What the balancer said last.
    status: Status,
}

/// One worker.
struct Member {
    id: String,
    process: ProcessIndex,
    /// What the balancer said of it last.
    seen: WorkerStatus,
    killed: Option<Killed>,
    /// It ended by itself, and how.
    ended: Option<ExitStatus>,
}

/// That a worker was killed, and how it was then.
struct Killed {
    /// Tasks that it held, as the balancer said right before.
    in_hand: u64,
}

impl<'a> Cluster<'a> {
    fn start(processes: &'a Processes, workers: u32) -> Result<Cluster<'a>, DemoError> {
        let (balancer, first_line) = processes.start(
            "balancer",
            &["balancer", "--no-data", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"],
        )?;
        let line = processes.ready(balancer, &first_line)?;
        let (for_clients, for_workers) =
            addresses(&line).ok_or_else(|| format!("the balancer said '{line}' instead of its addresses"))?;

        let threads = THREADS.to_string();
        let mut starting = Vec::new();
        for number in 1..=workers {
            let id = format!("worker-{number}");
            let arguments = ["worker", "--balancer", for_workers, "--id", &id, "--threads", &threads];
            let (process, first_line) = processes.start(&id, &arguments)?;
            starting.push((id, process, first_line));
        }
        let mut members = Vec::new();
        for (id, process, first_line) in starting {
            processes.ready(process, &first_line)?;
            let seen = WorkerStatus { threads: u64::from(THREADS), ..WorkerStatus::default() };
            members.push(Member { id, process, seen, killed: None, ended: None });
        }
        let client = Client::builder()
            .balancer(for_clients)
            .agent("reparto-demo")
            .reconnect_for(Duration::ZERO)
            .connect()
            .map_err(|error| error.to_string())?;
        Ok(Cluster { processes, balancer, workers: members, client, status: Status::default() })
    }

    fn ids(&self) -> Vec<&str> {
        self.workers.iter().map(|worker| worker.id.as_str()).collect()
    }

    fn introduction(&self) -> String {
        let numbers: Vec<String> =
            self.workers.iter().map(|worker| self.processes.id(worker.process).to_string()).collect();
        format!(
            "Up: a balancer at {} (process {}),\nand {} workers of {THREADS} threads (processes {}).",
            self.client.balancer(),
            self.processes.id(self.balancer),
            self.workers.len(),
            numbers.join(", "),
        )
    }

    /// Shows what goes on until the tasks have ended; kills a worker when told that half of them have.
    fn watch(
        &mut self,
        half: &Receiver<()>,
        progress: &Progress,
        plan: &Plan,
        show: &mut Show,
    ) -> Result<(), DemoError> {
        loop {
            match half.recv_timeout(POLL_EVERY) {
                Ok(()) => {
                    let victim = self.kill_busiest(progress, plan)?;
                    let (id, in_hand) =
                        (&self.workers[victim].id, self.workers[victim].in_hand_when_killed());
                    let answered = HumanCount(progress.answered.load(Ordering::Relaxed));
                    show.say(&format!(
                        "At {answered} answers {id} is killed (SIGKILL) with {in_hand} in hand."
                    ));
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if self.processes.interrupted() {
                return Err(DemoError::Interrupted);
            }
            show.update(progress.answered.load(Ordering::Relaxed), &self.workers);
        }
    }

    /// Asks the balancer what it and its workers do. Without an answer, what was seen last stays.
    fn look(&mut self) {
        let Ok(status) = self.client.status() else { return };
        for worker in &mut self.workers {
            match status.workers.iter().find(|row| row.id == worker.id) {
                Some(row) => worker.seen.clone_from(row),
                None => worker.seen.in_flight = 0,
            }
        }
        self.status = status;
    }

    /// Kills the worker that has most in hand, as soon as that is something.
    fn kill_busiest(&mut self, progress: &Progress, plan: &Plan) -> Result<usize, DemoError> {
        let begin = Instant::now();
        loop {
            self.look();
            // The first of the busiest; there are two workers at least.
            let most = self.workers.iter().map(|worker| worker.seen.in_flight).max().unwrap_or(0);
            let wanted = match begin.elapsed() {
                waited if waited < BUSY_WITHIN => 2,
                waited if waited < KILL_WITHIN => 1,
                _ => 0,
            };
            let is_last_chance = progress.answered.load(Ordering::Relaxed) == plan.tasks;
            if most < wanted && !is_last_chance && !self.processes.interrupted() {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            let victim = self.workers.iter().position(|worker| worker.seen.in_flight == most).unwrap_or(0);
            let worker = &mut self.workers[victim];
            self.processes
                .kill(worker.process)
                .map_err(|error| format!("{} could not be killed: {error}", worker.id))?;
            worker.killed = Some(Killed { in_hand: worker.seen.in_flight });
            return Ok(victim);
        }
    }

    fn report(&mut self, plan: &Plan, seed: u64, tally: Tally) -> Report {
        for worker in self.workers.iter_mut().filter(|worker| worker.killed.is_none()) {
            worker.ended = self.processes.ended(worker.process);
        }
        let mut report = Report::new(plan, seed, tally, &self.status, &self.workers);
        if let Some(status) = self.processes.ended(self.balancer) {
            report.trouble(format!("the balancer ended on the way ({status})"));
        }
        report
    }
}

impl Member {
    fn in_hand_when_killed(&self) -> u64 {
        self.killed.as_ref().map_or(0, |killed| killed.in_hand)
    }
}

/// Reads `ready clients=ADDR workers=ADDR`, and what may come behind.
fn addresses(line: &str) -> Option<(&str, &str)> {
    let (clients, rest) = line.strip_prefix("ready clients=")?.split_once(" workers=")?;
    let workers = rest.split_once(' ').map_or(rest, |(workers, _)| workers);
    Some((clients, workers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_balancers_ready_line_gives_both_addresses() {
        assert_eq!(
            addresses("ready clients=127.0.0.1:5 workers=127.0.0.1:6"),
            Some(("127.0.0.1:5", "127.0.0.1:6"))
        );
        assert_eq!(
            addresses("ready clients=127.0.0.1:5 workers=127.0.0.1:6 lines=127.0.0.1:7"),
            Some(("127.0.0.1:5", "127.0.0.1:6"))
        );
        assert_eq!(addresses("ready"), None);
    }
}
