//! `reparto submit`: one task from the command line, or a task for every line of a file.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use reparto_client::{Accepted, Client, TaskBuilder};
use reparto_protocol::limits;

use crate::client_side::{
    BalancerArgs, EXIT_FAILED, EXIT_USAGE, RECONNECT_FOR, complain, conclude_output, print_alone, refused,
};
use crate::parse;

mod background;
pub(crate) mod line_reader;
mod results;
mod stream;

use background::BackgroundArgs;

/// Tasks of `--lines` in flight or waiting to be printed at most, unless asked for otherwise.
const DEFAULT_WINDOW: u32 = 4_096;

/// Submit a task and print its result, or a task for every line of a file.
///
/// The result alone goes to standard output, exactly as the worker gave it. With --lines a file of any size
/// streams through in constant memory: results come in the order of the lines and end with a line break,
/// failures are told on standard error with their line's number. Ctrl-C leaves, and the balancer cancels what is
/// in flight.
///
/// With --background the task is handed over for good: once it is durable its id is printed, alone, and it runs
/// whatever becomes of this command and the balancer. `reparto get ID` gives the result.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto submit upper 'hola'                       print HOLA
  reparto submit sha256 < photo.jpg                 the payload from standard input
  find . -name '*.rs' | reparto submit count --lines -
                                                    a task a file; with a worker started as
                                                    reparto worker --exec count='xargs wc -l'
  reparto submit sum --lines sums.txt --json        one JSON object a line
  id=$(reparto submit --background fib 90)          hand it over, and later:
  reparto get $id --wait 30s
  reparto submit --background --delay 10m --attempts 5 --backoff 2s report 7
                                                    in ten minutes, with 1 to 2 s, 2 to 4 s, ...
                                                    between attempts
  reparto submit --background upper --lines names.txt > ids.txt
                                                    an id a line, in the order of the lines

Exit code: 0 every task succeeded (with --background: was accepted), 1 some failed, 2 wrong usage,
3 no balancer could be reached.")]
pub(crate) struct Args {
    #[command(flatten)]
    balancer: BalancerArgs,

    /// What the task asks for, such as `upper`.
    #[arg(value_parser = short_text)]
    action: String,

    /// What to do it with; taken from standard input when it is not given.
    #[arg(conflicts_with = "lines")]
    payload: Option<OsString>,

    /// Submit every line of this file as a task; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,

    /// Print results as they come, not in the order of the lines.
    #[arg(long, requires = "lines", conflicts_with = "payload")]
    as_completed: bool,

    /// Print one JSON object a line: `line`, `status` (`done`, `accepted` or `error`), `result` (`result_base64`
    /// when it is not UTF-8) or `task_id`, or `error` and `code`.
    #[arg(long, requires = "lines", conflicts_with = "payload")]
    json: bool,

    /// Lines in flight, or waiting for an earlier one to be printed, at most.
    #[arg(long, requires = "lines", value_name = "TASKS", default_value_t = DEFAULT_WINDOW,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    window: u32,

    /// From 0 to 9; higher goes first. The balancer's default is 4.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,

    /// Time within which a task must end, such as 500ms, 10s or 5m.
    #[arg(long, value_name = "TIME", value_parser = task_time)]
    deadline: Option<Duration>,

    /// Time that a task may wait for a worker to take it. Without it and --deadline 60s.
    #[arg(long, value_name = "TIME", value_parser = task_time)]
    wait: Option<Duration>,

    /// Tasks of one action and key that meet in the balancer share one run.
    #[arg(long, conflicts_with = "lines", value_parser = short_text)]
    key: Option<String>,

    /// Attempts before a task is given up, when its workers are lost. The balancer's default is 3.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..))]
    attempts: Option<u8>,

    /// The tasks may run more than once: when the balancer is lost, send them again instead of failing them.
    #[arg(long)]
    repeat_safe: bool,

    #[command(flatten)]
    background: BackgroundArgs,
}

/// An action's name or a key.
fn short_text(text: &str) -> Result<String, String> {
    match text.len() {
        1..=limits::MAX_ACTION_BYTES => Ok(text.to_owned()),
        0 => Err("it is empty".into()),
        bytes => Err(format!("it is {bytes} bytes long, and may be at most {}", limits::MAX_ACTION_BYTES)),
    }
}

fn task_time(text: &str) -> Result<Duration, String> {
    let time = parse::duration(text)?;
    if time > limits::MAX_TIME {
        return Err(format!("a task's time may be at most {} days", limits::MAX_TIME.as_secs() / 86_400));
    }
    Ok(time)
}

impl Args {
    /// A task with the options asked for.
    fn task<'a>(&'a self, client: &'a Client) -> TaskBuilder<'a> {
        let mut task = client.task(&self.action).safe_to_repeat(self.repeat_safe);
        if let Some(priority) = self.priority {
            task = task.priority(priority);
        }
        if let Some(deadline) = self.deadline {
            task = task.deadline(deadline);
        }
        if let Some(wait) = self.wait {
            task = task.wait_limit(wait);
        }
        if let Some(key) = &self.key {
            task = task.key(key);
        }
        if let Some(attempts) = self.attempts {
            task = task.max_attempts(attempts);
        }
        self.background.apply(task)
    }
}

/// Runs it.
pub(crate) fn run(args: Args) -> ExitCode {
    if let Err(sentence) = args.background.check(args.lines.is_some()) {
        complain(&sentence);
        return ExitCode::from(EXIT_USAGE);
    }
    match args.lines.clone() {
        Some(path) if args.background.is_wanted() => stream::run::<Accepted>(args, &path),
        Some(path) => stream::run::<Bytes>(args, &path),
        None => one(&args),
    }
}

fn one(args: &Args) -> ExitCode {
    let client = match args.balancer.connect(RECONNECT_FOR) {
        Ok(client) => client,
        Err(code) => return code,
    };
    let payload = match &args.payload {
        Some(payload) => payload.clone().into_encoded_bytes(),
        None => match payload_from_input(client.max_payload_bytes(&args.action)) {
            Ok(payload) => payload,
            Err(sentence) => return failed(&sentence),
        },
    };
    let task = args.task(&client).payload(payload);
    let ended = if args.background.is_wanted() {
        let accepted = task.submit_background().and_then(|reply| Ok(reply.wait()?));
        accepted.map(|accepted| conclude_output(writeln!(io::stdout().lock(), "{}", accepted.task_id)))
    } else {
        let result = task.submit().and_then(|handle| Ok(handle.wait()?));
        result.map(|result| print_alone(&result))
    };
    ended.unwrap_or_else(|error| refused(&client, "", &error.into_failure()))
}

fn failed(sentence: &str) -> ExitCode {
    complain(sentence);
    ExitCode::from(EXIT_FAILED)
}

/// Reads standard input to its end, and not past what a task can carry.
fn payload_from_input(most: usize) -> Result<Vec<u8>, String> {
    let input = io::stdin().lock();
    if input.is_terminal() {
        let _ = writeln!(io::stderr(), "reading the payload from the terminal; end it with Ctrl-D");
    }
    let mut payload = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    input
        .take(limit)
        .read_to_end(&mut payload)
        .map_err(|error| format!("cannot read the payload from standard input: {error}"))?;
    if payload.len() > most {
        return Err(format!(
            "payload_too_large: standard input has more than the {most} bytes that the balancer takes as one \
             task; send less, or raise the balancer's limit"
        ));
    }
    Ok(payload)
}
