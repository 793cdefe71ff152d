//! `reparto bench scale`: what Reparto costs as the work grows.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reparto_bench::scale::{self, Options, Report};

use super::{INTERRUPTED, fail};
use crate::client_side::{EXIT_FAILED, EXIT_OK, complain};

/// Measure what Reparto costs as workers, queues, idle connections and payloads grow.
///
/// Choosing a worker and submitting to a queue are timed inside a scheduler, with up to 10,000 workers and 1,000,000
/// waiting tasks. Traffic and memory are asked of a balancer that is started for it: up to 2,000 workers, 1,000,000
/// waiting tasks, 20,000 idle connections (as far as open files allow), payloads from nothing to 8 MiB. Figures
/// that Reparto is held to are told beside their bars. Ctrl-C ends it early, and what was measured is printed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto bench scale --quick                       a look at everything, in less than a minute
  reparto bench scale --json | jq .bars             the figures that Reparto is held to

Exit code: 0 everything was measured, 1 something failed, 2 wrong usage, 130 interrupted.")]
pub(super) struct Args {
    /// Fewer sizes and shorter times: a look, not a figure.
    #[arg(long)]
    quick: bool,

    /// Print one JSON object instead of the tables.
    #[arg(long)]
    json: bool,
}

/// Runs it, with `program` as the balancer.
pub(super) fn run(args: &Args, program: PathBuf, stop: Arc<AtomicBool>) -> ExitCode {
    let options = Options { quick: args.quick, stop, live: true, ..Options::new(program) };
    match scale::run(&options) {
        Ok(report) => conclude(args, &report),
        Err(error) => fail(EXIT_FAILED, &error.to_string()),
    }
}

/// Prints what was found, and finds the exit code.
fn conclude(args: &Args, report: &Report) -> ExitCode {
    let code = match (report.interrupted, report.is_good()) {
        (true, _) => INTERRUPTED,
        (false, true) => EXIT_OK,
        (false, false) => EXIT_FAILED,
    };
    let mut out = io::stdout().lock();
    let written = if args.json { report.write_json(&mut out) } else { report.write_table(&mut out) };
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        complain(&format!("the report cannot be written to standard output: {error}"));
        return ExitCode::from(EXIT_FAILED);
    }
    ExitCode::from(code)
}
