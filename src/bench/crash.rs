//! `reparto bench crash`: balancers, workers and engines killed under load, and every promise looked at.

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reparto_bench::crash::{self, AmqpWorkerOptions, CrashError, Options, Report, WorkerOptions};

use super::{INTERRUPTED, fail};
use crate::client_side::{EXIT_FAILED, EXIT_OK, complain};
use crate::parse;

/// Kill balancers, workers and engines under load, and look whether anything is lost or doubled.
///
/// Starts a balancer and three workers as processes of their own, in a temporary folder. Clients hand in foreground,
/// recorded and background tasks of many sizes, with delays, deadlines, retries, idempotency keys and cancels; some
/// of the tasks fail, panic, or kill their worker. At moments drawn from the seed processes get SIGKILL, also while
/// they start; some are frozen or stopped. When that is over, every accepted task must have exactly one recorded
/// outcome, the right one, and every foreground task one answer or a connection that ended.
///
/// With --engines some actions have workers at one balancer alone, so that foreground tasks travel, and some have workers
/// that know only AMQP; and tasks are published into a queue of RabbitMQ as JSON, each of which must have its outcome told
/// there.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto bench crash --seed 7                      half a minute of faults
  reparto bench crash --seed 1 --seeds 20           20 seeds, one after the other
  reparto bench crash --seed 7 --for 10m --engines  two balancers, PostgreSQL, RabbitMQ and S3, all killed

When something is wrong it says what, with the seed, the task and its history, and where logs and data are kept.
--engines brings the engines up with scripts/services, so it runs in Reparto's source tree.

Exit code: 0 nothing lost or doubled, 1 something is wrong or could not be run, 2 wrong usage, 130 interrupted.")]
pub(super) struct Args {
    /// Decides what tasks there are and what befalls the processes.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Run so many seeds, one after the other, from --seed on.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,

    /// How long faults go on, with each seed.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
    faults_for: Duration,

    /// Tasks a second, all clients together, as far as the machine gets.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,

    /// Two balancers with PostgreSQL, RabbitMQ and S3, which are killed as well.
    #[arg(long)]
    engines: bool,

    /// Keep logs and data also if all is well.
    #[arg(long)]
    keep: bool,

    /// Print a JSON object for each seed instead of text.
    #[arg(long)]
    json: bool,
}

/// The worker of such a run, started by it.
#[derive(clap::Args, Debug)]
pub(super) struct WorkerArgs {
    /// A balancer's address for workers
    #[arg(long = "balancer", value_name = "ADDR", required = true)]
    balancers: Vec<String>,

    /// This worker's id
    #[arg(long)]
    id: String,

    /// Tasks run at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    threads: u32,

    /// An action that it offers; may be given again
    #[arg(long = "action", value_name = "ACTION", required = true)]
    actions: Vec<String>,

    /// Where it writes down what it runs
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
}

/// The worker of such a run that knows only AMQP, started by it.
#[derive(clap::Args, Debug)]
pub(super) struct AmqpWorkerArgs {
    /// Where RabbitMQ is. It has a password, so it comes in a variable.
    #[arg(long, value_name = "URL", env = "REPARTO_BALANCER_BUS", hide_env_values = true)]
    bus: String,

    /// Where it writes down what it runs
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
}

/// Runs every seed, with `program` as balancer and worker.
pub(super) fn run(args: &Args, program: PathBuf, stop: Arc<AtomicBool>) -> ExitCode {
    let mut code = EXIT_OK;
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let options = Options {
            faults_for: args.faults_for,
            rate: args.rate,
            engines: args.engines,
            keep: args.keep,
            stop: Arc::clone(&stop),
            live: true,
            ..Options::new(program.clone(), seed)
        };
        match crash::run(&options) {
            Ok(report) => {
                if !report.is_good() {
                    code = EXIT_FAILED;
                }
                if let Err(error) = print(&report, args.json)
                    && error.kind() != ErrorKind::BrokenPipe
                {
                    complain(&format!("the report cannot be written to standard output: {error}"));
                    return ExitCode::from(EXIT_FAILED);
                }
            }
            Err(CrashError::Interrupted) => return fail(INTERRUPTED, "interrupted; its processes are ended"),
            Err(error) => return fail(EXIT_FAILED, &format!("seed {seed}: {error}")),
        }
    }
    ExitCode::from(code)
}

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        report.write(&mut out)?;
    }
    out.flush()
}

/// Runs the worker until it is told to stop.
pub(super) fn work(args: WorkerArgs, stop: &Arc<AtomicBool>) -> ExitCode {
    let WorkerArgs { balancers, id, threads, actions, log } = args;
    match crash::work(&WorkerOptions { balancers, id, threads, actions, log }, stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILED, &error),
    }
}

/// Runs the worker that knows only AMQP until it is told to stop.
pub(super) fn work_over_amqp(args: AmqpWorkerArgs, stop: &Arc<AtomicBool>) -> ExitCode {
    let AmqpWorkerArgs { bus: url, log } = args;
    match crash::work_over_amqp(&AmqpWorkerOptions { url, log }, stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILED, &error),
    }
}
