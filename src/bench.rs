//! `reparto bench`: Reparto's speed, measured on this machine.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reparto_bench::peers::{self, Options, Parts, Report, Scenario, Server, page};

use crate::client_side::{EXIT_FAILED, EXIT_USAGE, complain};
use crate::parse;
use conclusion::Conclusion;

mod conclusion;
#[cfg(unix)]
mod crash;
mod durable;
mod scale;

/// The exit code after Ctrl-C, as shells say of SIGINT.
const INTERRUPTED: u8 = 130;

/// Measure Reparto's speed on this machine.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Peers(PeersArgs),
    Durable(durable::Args),
    Scale(scale::Args),
    #[cfg(unix)]
    Crash(crash::Args),
    #[cfg(unix)]
    #[command(hide = true)]
    CrashWorker(crash::WorkerArgs),
    #[cfg(unix)]
    #[command(hide = true)]
    CrashAmqpWorker(crash::AmqpWorkerArgs),
}

/// Compare Reparto with nats-server, gearmand, and the byte relays HAProxy and nginx.
///
/// Starts every server from its own program on free loopback ports, gives each its turn in every round, and drives
/// all of them with minimal clients and workers, so that the server is what is measured. Beside closed loops it
/// measures Reparto through its own libraries, open loops at shares of nats-server's peak, and how a flood of large
/// tasks from one client hurts another's small ones. Ratios count, not absolute times: everything shares this
/// machine. A server that is not here is left out, with a hint how to install it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto bench peers --quick                       a look at everything, in less than two minutes
  reparto bench peers --write                       figures for docs/BENCHMARKS.md, in about a quarter of an hour
  reparto bench peers --only reparto,nats --scenario 4x128x64 --scenario 4x16x64
  reparto bench peers --quick --json | jq '.scenarios[].servers.reparto'

The other servers are in Debian's packages:
  apt-get install gearman-job-server nats-server haproxy nginx libnginx-mod-stream

Exit code: 0 everything of Reparto was measured, 1 something of it failed, 2 wrong usage, 130 interrupted.")]
struct PeersArgs {
    /// Three short rounds: a look, not a figure.
    #[arg(long)]
    quick: bool,

    /// Rounds, in each of which every server has its turn [default: 7, with --quick 3].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// Time that each turn measures [default: 2s, with --quick 250ms].
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    duration: Option<Duration>,

    /// The servers to compare: reparto, reparto_gearman (with gearmand's own clients), nats, gearmand, relay [default: all].
    #[arg(long, value_name = "SERVERS", value_delimiter = ',')]
    only: Vec<Server>,

    /// A closed loop, as CONNECTIONSxWINDOWxBYTES; may be given again. Without --part it is all that is measured.
    #[arg(long, value_name = "SCENARIO")]
    scenario: Vec<Scenario>,

    /// What to measure; may be given again [default: all].
    #[arg(long, value_name = "PART", value_enum)]
    part: Vec<Part>,

    /// Print one JSON object instead of the tables.
    #[arg(long)]
    json: bool,

    /// Write the tables into this page, between its marks, and a chart beside it.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/BENCHMARKS.md")]
    write: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Closed loops: windows that are kept full
    Closed,
    /// Reparto through its own client and worker libraries, beside NATS driven raw
    Libraries,
    /// Open loops at half and nine tenths of NATS' peak
    Open,
    /// A flood of large tasks beside small ones
    Flood,
}

impl PeersArgs {
    fn options(&self, program: PathBuf) -> Options {
        let mut options = if self.quick { Options::quick(program) } else { Options::new(program) };
        options.rounds = self.rounds.unwrap_or(options.rounds);
        options.duration = self.duration.unwrap_or(options.duration);
        if !self.only.is_empty() {
            options.servers.clone_from(&self.only);
        }
        if !self.scenario.is_empty() {
            options.scenarios.clone_from(&self.scenario);
            options.parts = Parts::NONE;
        }
        if !self.part.is_empty() {
            let wanted = |part| self.part.contains(&part);
            options.parts = Parts {
                library: wanted(Part::Libraries),
                open_loop: wanted(Part::Open),
                flood: wanted(Part::Flood),
            };
            if !wanted(Part::Closed) {
                options.scenarios.clear();
            }
        }
        options
    }
}

/// Runs it.
pub(crate) fn run(args: Args) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            let sentence = format!("this program's own file cannot be found, to start its balancer: {error}");
            return fail(EXIT_FAILED, &sentence);
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Every turn looks at it, and servers are killed on the way out, so a second signal has nothing to add.
    if let Err(error) = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)) {
        return fail(EXIT_FAILED, &format!("signals cannot be caught: {error}"));
    }
    match args.command {
        Command::Peers(args) => run_peers(&args, program, &stop),
        Command::Durable(args) => durable::run(&args, program, &stop),
        Command::Scale(args) => scale::run(&args, program, stop),
        #[cfg(unix)]
        Command::Crash(args) => crash::run(&args, program, stop),
        #[cfg(unix)]
        Command::CrashWorker(args) => crash::work(args, &stop),
        #[cfg(unix)]
        Command::CrashAmqpWorker(args) => crash::work_over_amqp(args, &stop),
    }
}

fn run_peers(args: &PeersArgs, program: PathBuf, stop: &AtomicBool) -> ExitCode {
    if args.write.is_some() && args.part.iter().all(|part| *part != Part::Closed) && !args.part.is_empty() {
        return fail(
            EXIT_USAGE,
            "--write draws the closed loops, so it needs --part closed, or no --part at all",
        );
    }
    match peers::run(&args.options(program), stop) {
        Ok(report) => conclude(args, &report),
        Err(error) => conclusion::without_report(&error),
    }
}

fn fail(code: u8, sentence: &str) -> ExitCode {
    complain(sentence);
    ExitCode::from(code)
}

/// Prints and writes what was found, and finds the exit code.
fn conclude(args: &PeersArgs, report: &Report) -> ExitCode {
    Conclusion {
        lacking: &report.lacking,
        failures: &report.failures,
        is_whole: report.is_whole(),
        json: args.json.then(|| report.json()),
        tables: report.tables(),
        page: args.write.as_deref(),
    }
    .tell(|out| print_conditions(report, out), |path| page::write(report, &command_line(), path))
}

fn print_conditions(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    conclusion::print_machine(&report.machine, out)?;
    writeln!(out, "{}", report.versions.join(", "))?;
    writeln!(
        out,
        "{} rounds, {:?} measured in each; medians, and ratios of Reparto's figure by the other's, with their range",
        report.rounds, report.duration
    )
}

/// How this program was called, so that its figures can be had again.
fn command_line() -> String {
    let arguments = std::env::args_os().skip(1).map(|it| it.to_string_lossy().into_owned());
    std::iter::once("reparto".to_owned()).chain(arguments).collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn options(arguments: &[&str]) -> Options {
        let all = ["reparto", "peers"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().args.command {
            Command::Peers(args) => args.options("reparto".into()),
            _ => unreachable!("these are the arguments of peers"),
        }
    }

    fn durable_options(arguments: &[&str]) -> reparto_bench::durable::Options {
        let all = ["reparto", "durable"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().args.command {
            Command::Durable(args) => args.options("reparto".into()),
            _ => unreachable!("these are the arguments of durable"),
        }
    }

    #[test]
    fn durable_measures_all_its_parts_or_those_that_are_named() {
        use reparto_bench::durable::Part;
        let all = durable_options(&["--quick", "--rounds", "3"]);
        assert_eq!((all.rounds, all.parts.len()), (3, Part::ALL.len()));
        let some = durable_options(&["--part", "restart", "--part", "life", "--folder", "here"]);
        assert_eq!(some.parts, [Part::Life, Part::Restart]);
        assert_eq!(some.folder, std::path::Path::new("here"));
    }

    #[test]
    fn without_flags_everything_is_measured_and_a_scenario_narrows_it() {
        let all = options(&[]);
        assert_eq!((all.rounds, all.scenarios.len(), all.parts), (7, Scenario::ALL.len(), Parts::ALL));
        let one = options(&["--scenario", "4x128x64", "--rounds", "9"]);
        assert_eq!((one.rounds, one.scenarios.len(), one.parts), (9, 1, Parts::NONE));
        let part = options(&["--part", "flood", "--only", "reparto,nats"]);
        assert!(part.scenarios.is_empty() && part.parts.flood && !part.parts.library);
        assert_eq!(part.servers, [Server::Reparto, Server::Nats]);
    }

    #[test]
    fn an_unknown_server_or_scenario_is_refused() {
        for arguments in [["--only", "redis"], ["--scenario", "4x128"], ["--duration", "5"]] {
            let all = ["reparto", "peers"].iter().chain(&arguments);
            assert!(Cli::try_parse_from(all).is_err());
        }
    }
}
