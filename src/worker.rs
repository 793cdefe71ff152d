//! `reparto worker`: offers built-in actions and shell commands to one balancer or several.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reparto_worker::{Actions, Event, Worker, builtin};

use crate::parse;

/// Runs tasks for balancers: built-in actions, and any shell command.
///
/// Prints `ready id=ID` once it is registered with a balancer, and runs until it is told to stop. A balancer that
/// is not there, or is lost, is tried again and again. On SIGTERM or SIGINT it takes nothing new, hands back what
/// has not begun, and finishes what has within --grace; a second signal ends it at once.
///
/// Built-in: echo, upper, reverse, sleep (milliseconds), fib, sum (1,2,3 gives 6), greet, sha256, wc.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  Offer the built-in actions to the balancer on this machine:
    reparto worker

  Offer a shell command, four at once, to two balancers:
    reparto worker --balancer lb1:8889 --balancer lb2:8889 --threads 4 \\
      --exec thumbnail='convert - -resize 200x200 png:-'

  A distributed xargs, together with `find . -name '*.rs' | reparto submit count --lines -`:
    reparto worker --exec count='xargs wc -l'

A command finds the payload on its standard input, and REPARTO_ACTION, REPARTO_ATTEMPT and REPARTO_KEY in its \
environment; its standard output is the result. Exit code 0 is success, 75 asks for another attempt, any other \
code is a failure that carries the code and the end of standard error.")]
pub(crate) struct Args {
    /// A balancer's address for workers, HOST:PORT; give it again for more balancers
    #[arg(
        long = "balancer",
        value_name = "ADDR",
        env = "REPARTO_WORKER_BALANCER",
        value_delimiter = ',',
        default_value = reparto_worker::DEFAULT_BALANCER
    )]
    balancers: Vec<String>,

    /// This worker's id, alone among those that live [default: host, process and something random]
    #[arg(long, env = "REPARTO_WORKER_ID")]
    id: Option<String>,

    /// Tasks run at once [default: one for each core]
    #[arg(long, value_name = "N", env = "REPARTO_WORKER_THREADS")]
    threads: Option<u32>,

    /// Tasks held at most, running or waiting, for each balancer [default: 1024]
    #[arg(long, value_name = "N", env = "REPARTO_WORKER_WINDOW")]
    window: Option<u32>,

    /// This worker's share where the balancer's policy is `weighted`
    #[arg(long, value_name = "N", default_value_t = 1, env = "REPARTO_WORKER_WEIGHT")]
    weight: u32,

    /// Offers ACTION, done by `sh -c COMMAND`; give it again for more actions
    #[cfg(unix)]
    #[arg(long = "exec", value_name = "ACTION=COMMAND", value_parser = exec_action)]
    execs: Vec<(String, String)>,

    /// Time that a command may take, such as 30s; 0 for no limit. Without one a command that hangs would keep
    /// its thread for ever
    #[cfg(unix)]
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse::duration, env = "REPARTO_WORKER_EXEC_TIMEOUT")]
    exec_timeout: Duration,

    /// Bytes that a command may write to standard output, such as 1MiB [default: 16MiB less 64KiB, which fits
    /// the balancer's default frame]
    #[cfg(unix)]
    #[arg(long, value_name = "SIZE", value_parser = parse::size, env = "REPARTO_WORKER_EXEC_MAX_OUTPUT")]
    exec_max_output: Option<u64>,

    /// Offers the built-in actions beside those of --exec
    #[arg(long)]
    builtin: bool,

    /// Time for what runs to finish when the worker is told to stop
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse::duration, env = "REPARTO_WORKER_GRACE")]
    grace: Duration,
}

/// The exit code for settings that cannot be.
const WRONG_USAGE: u8 = 2;
/// The exit code after a second signal, as shells say of SIGINT.
const INTERRUPTED: i32 = 130;

/// Runs the worker until a signal stops it.
pub(crate) fn run(args: Args) -> ExitCode {
    let actions = match actions(&args) {
        Ok(actions) => actions,
        Err(sentence) => return fail(WRONG_USAGE, &sentence),
    };
    let mut builder = Worker::builder().weight(args.weight).actions(actions);
    for balancer in &args.balancers {
        builder = builder.balancer(balancer);
    }
    if let Some(id) = &args.id {
        builder = builder.id(id);
    }
    if let Some(threads) = args.threads {
        builder = builder.threads(threads);
    }
    if let Some(window) = args.window {
        builder = builder.window(window);
    }
    let reporter = Arc::new(Reporter::default());
    let builder = builder.on_event({
        let reporter = Arc::clone(&reporter);
        move |event| reporter.tell(event)
    });
    let worker = match builder.build() {
        Ok(worker) => worker,
        Err(error) => return fail(WRONG_USAGE, &error.to_string()),
    };
    reporter.set_id(worker.id());
    if let Err(error) = stop_on_signals(&worker, args.grace) {
        return fail(1, &format!("signals cannot be caught: {error}"));
    }
    match worker.run() {
        Ok(()) => {
            end_commands();
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, &error.to_string()),
    }
}

fn fail(code: u8, sentence: &str) -> ExitCode {
    eprintln!("reparto worker: {sentence}");
    ExitCode::from(code)
}

#[cfg(unix)]
fn exec_action(text: &str) -> Result<(String, String), String> {
    let hint = "write ACTION=COMMAND, such as count='xargs wc -l'";
    let Some((action, command)) = text.split_once('=') else { return Err(format!("it has no '='; {hint}")) };
    if action.is_empty() {
        return Err(format!("the action before '=' is missing; {hint}"));
    }
    if command.trim().is_empty() {
        return Err(format!("the command after '=' is missing; {hint}"));
    }
    Ok((action.to_owned(), command.to_owned()))
}

#[cfg(unix)]
fn actions(args: &Args) -> Result<Actions, String> {
    use reparto_worker::exec::{DEFAULT_MAX_OUTPUT_BYTES, Exec};

    let mut commands = Actions::new();
    let timeout = (!args.exec_timeout.is_zero()).then_some(args.exec_timeout);
    let most = args
        .exec_max_output
        .map_or(DEFAULT_MAX_OUTPUT_BYTES, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    for (action, command) in &args.execs {
        if commands.contains(action) {
            return Err(format!("--exec names the action '{action}' twice; give each action once"));
        }
        let exec = Exec::new(command).timeout(timeout).max_output_bytes(most);
        commands = commands.with(action, move |task| exec.run(task));
    }
    let with_builtin = args.builtin || args.execs.is_empty();
    // A command of the same name goes before the built-in action.
    Ok(if with_builtin { builtin::actions().and(commands) } else { commands })
}

#[cfg(not(unix))]
fn actions(_args: &Args) -> Result<Actions, String> {
    Ok(builtin::actions())
}

/// Ends what handlers that did not return have started.
fn end_commands() {
    #[cfg(unix)]
    reparto_worker::exec::kill_all();
}

fn stop_on_signals(worker: &Worker, grace: Duration) -> Result<(), ctrlc::Error> {
    let handle = worker.handle();
    let again = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if again.swap(true, Ordering::AcqRel) {
            end_commands();
            std::process::exit(INTERRUPTED);
        }
        handle.stop(grace);
    })
}

/// Says on standard output that the worker is ready, once, and on standard error what goes wrong, once each.
#[derive(Default)]
struct Reporter(Mutex<Report>);

#[derive(Default)]
struct Report {
    id: String,
    ready: bool,
    /// The last sentence about each balancer, so that one that is tried again and again is spoken of once.
    last: HashMap<String, String>,
}

impl Reporter {
    fn set_id(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).id = id.to_owned();
    }

    fn tell(&self, event: &Event) {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sentence = event.to_string();
        let (balancer, is_good) = match event {
            Event::Registered { balancer, .. } => (balancer, true),
            Event::Refused { balancer, .. } | Event::Lost { balancer, .. } => (balancer, false),
            _ => return,
        };
        let is_news = report.last.get(balancer) != Some(&sentence);
        if !is_good && is_news {
            eprintln!("reparto worker: {sentence}; trying again");
        }
        if is_good && report.last.contains_key(balancer) {
            eprintln!("reparto worker: {sentence}");
        }
        report.last.insert(balancer.clone(), sentence);
        if is_good && !report.ready {
            report.ready = true;
            let mut out = std::io::stdout();
            // Whoever started the worker may not read; it works all the same.
            let _ = writeln!(out, "ready id={}", report.id).and_then(|()| out.flush());
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn an_exec_flag_is_split_at_its_first_equals_sign() {
        let (action, command) = exec_action("put=curl -d a=b http://x").unwrap();
        assert_eq!((action.as_str(), command.as_str()), ("put", "curl -d a=b http://x"));
    }

    #[test]
    fn a_broken_exec_flag_is_refused_with_an_example() {
        for text in ["count", "=wc", "count=", "count=  "] {
            let sentence = exec_action(text).unwrap_err();
            assert!(sentence.contains("count='xargs wc -l'"), "{sentence}");
        }
    }
}
