//! `reparto load`: load on a running balancer, and what it found.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reparto_bench::load::{self, LoadError, MAX_CONNECTIONS, MAX_WINDOW, Options, Pace, Report};

use crate::client_side::{
    BalancerArgs, EXIT_FAILED, EXIT_NO_BALANCER, EXIT_OK, EXIT_USAGE, complain, no_balancer,
};
use crate::parse;

/// Tasks in flight on a connection in a closed loop, unless asked for otherwise.
const DEFAULT_WINDOW: usize = 128;

/// In an open loop the window only bounds memory, so it is wide.
const DEFAULT_OPEN_WINDOW: usize = 65_536;

/// The exit code after a second Ctrl-C, as shells say of SIGINT.
const INTERRUPTED: i32 = 130;

/// The largest payload that is made up: more than any balancer takes.
const MAX_SIZE: u64 = 1 << 30;

/// Put load on a balancer and measure how fast tasks are answered.
///
/// In a closed loop every connection keeps --window tasks in flight, and hands in a new one when an answer
/// comes. With --rate it is an open loop: tasks fall due at that rate, whether answers come or not, and latency
/// counts from the moment a task was due, so a stall of the balancer or the workers is not hidden.
///
/// Connections go to the balancers in turn, when there are several. Ctrl-C ends the run early, and what was found
/// is still printed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto load echo
      four connections with 128 tasks in flight each, for ten seconds
  reparto load echo --connections 1 --window 1
      one task at a time: the shortest way there and back
  reparto load echo --rate 20000 --duration 30s --plot echo.svg
      20,000 tasks a second, and a picture of their latency
  reparto load sum --payload 1,2,3 --json
      one JSON object at the end

Exit code: 0 every task succeeded, 1 some failed or were not answered, 2 wrong usage, 3 no balancer could be \
reached, or it was lost.")]
pub(crate) struct Args {
    #[command(flatten)]
    balancer: BalancerArgs,

    /// What the tasks ask for, such as `echo`.
    action: String,

    /// Connections.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = number(1, MAX_CONNECTIONS))]
    connections: usize,

    /// Tasks in flight on a connection at most [default: 128; with --rate 65536].
    #[arg(long, value_name = "TASKS", value_parser = number(1, MAX_WINDOW))]
    window: Option<usize>,

    /// Tasks that fall due a second, over all connections: an open loop.
    #[arg(long, value_name = "TASKS")]
    rate: Option<f64>,

    /// Bytes that every task carries, such as 64 or 64KiB [default: 64].
    #[arg(long, value_name = "SIZE", value_parser = parse::size, conflicts_with = "payload")]
    size: Option<u64>,

    /// What every task carries.
    #[arg(long, value_name = "TEXT")]
    payload: Option<OsString>,

    /// How long tasks are handed in, such as 500ms, 10s or 5m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse::duration)]
    duration: Duration,

    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,

    /// Draw latency by quantile and throughput over time into this file, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// A parser of whole numbers in a range.
fn number(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync {
    move |text: &str| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("'{text}' is not a whole number from {least} to {most}")),
    }
}

impl Args {
    fn options(&self, stop: Arc<AtomicBool>) -> Result<Options, String> {
        let payload = match (&self.payload, self.size.unwrap_or(64)) {
            (Some(text), _) => Bytes::from(text.clone().into_encoded_bytes()),
            (None, size) if size > MAX_SIZE => return Err("--size is over 1GiB".into()),
            (None, size) => filler(usize::try_from(size).unwrap_or(usize::MAX)),
        };
        let (pace, default_window) = match self.rate {
            None => (Pace::Closed, DEFAULT_WINDOW),
            Some(rate) => (Pace::Open(rate), DEFAULT_OPEN_WINDOW),
        };
        let balancers = self.balancer.balancers.iter().map(|address| address.trim().to_owned()).collect();
        Ok(Options {
            pace,
            connections: self.connections,
            window: self.window.unwrap_or(default_window),
            duration: self.duration,
            stop,
            live: true,
            ..Options::new(self.action.clone(), payload, balancers)
        })
    }
}

/// Letters, so that actions on text have something to do.
fn filler(bytes: usize) -> Bytes {
    (b'a'..=b'z').cycle().take(bytes).collect()
}

/// Runs it.
pub(crate) fn run(args: Args) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    let options = match args.options(Arc::clone(&stop)) {
        Ok(options) => options,
        Err(sentence) => return fail(EXIT_USAGE, &sentence),
    };
    if let Err(error) = stop_on_signals(stop) {
        return fail(EXIT_FAILED, &format!("signals cannot be caught: {error}"));
    }
    match load::run(&options) {
        Ok(report) => conclude(&args, &report),
        Err(LoadError::NoBalancer(error)) => fail(EXIT_NO_BALANCER, &no_balancer(&error)),
        Err(error @ LoadError::Thread(_)) => fail(EXIT_FAILED, &error.to_string()),
        Err(error) => fail(EXIT_USAGE, &error.to_string()),
    }
}

fn fail(code: u8, sentence: &str) -> ExitCode {
    complain(sentence);
    ExitCode::from(code)
}

/// The first Ctrl-C ends the run in good order, the second at once.
fn stop_on_signals(stop: Arc<AtomicBool>) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        if stop.swap(true, Ordering::AcqRel) {
            std::process::exit(INTERRUPTED);
        }
    })
}

/// Prints what was found, draws it, and finds the exit code.
fn conclude(args: &Args, report: &Report) -> ExitCode {
    let mut code = if report.balancer_lost.is_some() {
        EXIT_NO_BALANCER
    } else if report.is_good() {
        EXIT_OK
    } else {
        EXIT_FAILED
    };
    let mut out = io::stdout().lock();
    let written = if args.json { report.write_json(&mut out) } else { report.write_table(&mut out) };
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        complain(&format!("the report cannot be written to standard output: {error}"));
        code = code.max(EXIT_FAILED);
    }
    if let Some(path) = &args.plot {
        match report.plot(path) {
            Ok(()) if args.json => {}
            // Nobody may be reading there, which is no reason to fail.
            Ok(()) => drop(writeln!(out, "\ndrawn into {}", path.display())),
            Err(error) => {
                complain(&error.to_string());
                code = code.max(EXIT_FAILED);
            }
        }
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_payloads_are_text_of_the_size_asked_for() {
        assert_eq!(filler(0), "");
        assert_eq!(filler(28), "abcdefghijklmnopqrstuvwxyzab");
    }

    #[test]
    fn numbers_out_of_their_range_say_what_the_range_is() {
        let parser = number(1, 10);
        assert_eq!(parser("10"), Ok(10));
        assert_eq!(parser("11"), Err("'11' is not a whole number from 1 to 10".into()));
        assert!(parser("many").is_err());
    }
}
