//! `reparto bench durable`: what durable tasks cost, beside other servers that keep theirs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reparto_bench::durable::{self, Options, Peer, Report};

use super::command_line;
use super::conclusion::{self, Conclusion};
use crate::parse;

/// Compare Reparto's durable tasks with JetStream, RabbitMQ, beanstalkd and gearmand.
///
/// Starts every server from its own program on free loopback ports, with its data in a temporary folder, and measures
/// tasks of 64 bytes: handed in until they are acknowledged (Reparto with fsync and with interval:50ms, nats-server
/// with a JetStream stream in files, RabbitMQ with a quorum queue and confirms, beanstalkd with fsync, gearmand with
/// SQLite); the whole life of Reparto's, accepted, run and recorded; the same through RabbitMQ and PostgreSQL, beside
/// what RabbitMQ alone publishes and consumes; foreground tasks with the store on and off; and a balancer that is
/// killed with its store full of tasks and started again. A server that is not here is left out,
/// with a hint how to install it. On a file system in memory, where syncing is free, it refuses to measure.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto bench durable --quick                     a look at everything, in about two minutes
  reparto bench durable --write                     figures for docs/BENCHMARKS.md, in about five minutes
  reparto bench durable --part restart              one part alone
  reparto bench durable --quick --json | jq .bars

The other servers are in Debian's packages:
  apt-get install nats-server rabbitmq-server beanstalkd gearman-job-server postgresql

Exit code: 0 everything of Reparto was measured, 1 something of it failed, 2 wrong usage, 130 interrupted.")]
pub(super) struct Args {
    /// Two short rounds, and fewer tasks: a look, not a figure.
    #[arg(long)]
    quick: bool,

    /// Rounds, in each of which every server has its turn [default: 5, with --quick 2].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// Time that each turn measures [default: 1s, with --quick 250ms].
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    duration: Option<Duration>,

    /// At whom tasks are handed in: reparto_fsync, reparto_interval, jetstream, rabbitmq, beanstalkd, gearmand
    /// [default: all].
    #[arg(long, value_name = "SERVERS", value_delimiter = ',')]
    only: Vec<Peer>,

    /// What to measure; may be given again [default: all].
    #[arg(long, value_name = "PART", value_enum)]
    part: Vec<Part>,

    /// Tasks whose whole life is measured, in each round [default: 500000, with --quick 50000].
    #[arg(long, value_name = "N")]
    life_tasks: Option<u64>,

    /// Tasks through RabbitMQ and PostgreSQL, in each round [default: 100000, with --quick 20000].
    #[arg(long, value_name = "N")]
    bus_tasks: Option<u64>,

    /// Tasks in the store of the balancer that is killed [default: 1000000, with --quick 100000].
    #[arg(long, value_name = "N")]
    restart_tasks: Option<u64>,

    /// Where the temporary folders are made [default: the system's folder for them].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Print one JSON object instead of the tables.
    #[arg(long)]
    json: bool,

    /// Write the tables into this page, between its marks.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/BENCHMARKS.md")]
    write: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Tasks handed in until they are acknowledged, at every server
    Accept,
    /// The whole life of tasks: accepted, run, recorded
    Life,
    /// The same through RabbitMQ and PostgreSQL, beside RabbitMQ alone
    Bus,
    /// Foreground tasks with the store on and off
    Foreground,
    /// A balancer killed with tasks in its store, and started again
    Restart,
}

impl From<Part> for durable::Part {
    fn from(part: Part) -> Self {
        match part {
            Part::Accept => durable::Part::Accept,
            Part::Life => durable::Part::Life,
            Part::Bus => durable::Part::Bus,
            Part::Foreground => durable::Part::Foreground,
            Part::Restart => durable::Part::Restart,
        }
    }
}

impl Args {
    pub(super) fn options(&self, program: PathBuf) -> Options {
        let mut options = if self.quick { Options::quick(program) } else { Options::new(program) };
        options.rounds = self.rounds.unwrap_or(options.rounds);
        options.duration = self.duration.unwrap_or(options.duration);
        options.life_tasks = self.life_tasks.unwrap_or(options.life_tasks);
        options.bus_tasks = self.bus_tasks.unwrap_or(options.bus_tasks);
        options.restart_tasks = self.restart_tasks.unwrap_or(options.restart_tasks);
        if !self.only.is_empty() {
            options.peers.clone_from(&self.only);
        }
        if let Some(folder) = &self.folder {
            options.folder.clone_from(folder);
        }
        if !self.part.is_empty() {
            let wanted = |part: &durable::Part| self.part.iter().any(|it| durable::Part::from(*it) == *part);
            options.parts.retain(wanted);
        }
        options
    }
}

/// Runs it, with `program` as the balancer.
pub(super) fn run(args: &Args, program: PathBuf, stop: &AtomicBool) -> ExitCode {
    match durable::run(&args.options(program), stop) {
        Ok(report) => conclude(args, &report),
        Err(error) => conclusion::without_report(&error),
    }
}

/// Prints and writes what was found, and finds the exit code.
fn conclude(args: &Args, report: &Report) -> ExitCode {
    let write =
        |page: &Path| durable::write_page(report, &command_line(), page).map(|()| vec![page.to_owned()]);
    Conclusion {
        lacking: &report.lacking,
        failures: &report.failures,
        is_whole: report.is_whole(),
        json: args.json.then(|| report.json()),
        tables: report.tables(),
        page: args.write.as_deref(),
    }
    .tell(|out| print_conditions(report, out), write)
}

fn print_conditions(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let (machine, disk) = (&report.machine, &report.disk);
    conclusion::print_machine(machine, out)?;
    writeln!(
        out,
        "data in {}, on {}: a 4 KiB write with its sync took {:.0} us (median of 200, before the run)",
        disk.folder.display(),
        disk.file_system,
        disk.sync_us
    )?;
    writeln!(out, "{}", report.versions.join(", "))?;
    writeln!(
        out,
        "{} rounds, {:?} measured in each turn; medians, and ratios inside a round, with their range",
        report.rounds, report.duration
    )
}
