//! `reparto repl`: type a task, see its result.

use std::io::{self, BufReader, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reparto_client::{Client, ErrorCode, TaskHandle, TaskOutcome};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use crate::client_side::{BalancerArgs, EXIT_FAILED, EXIT_OK, complain, no_balancer, printable};
use crate::status;
use crate::submit::line_reader::{Line, LineReader};
use crate::table::Look;

/// A balancer that is lost is looked for this long when a task is typed.
const RECONNECT_FOR: Duration = Duration::from_secs(10);

/// Lines kept in the history file.
const MAX_HISTORY: usize = 1_000;

/// While a task runs Ctrl-C is looked for this often.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// The exit code after Ctrl-C with nothing to cancel, as shells say of SIGINT.
const INTERRUPTED: i32 = 130;

const HELP: &str = "\
ACTION PAYLOAD    submits a task and shows its result; the payload is the rest of the line
status            shows the balancer's workers and actions
help              shows this
exit, quit, salir or Ctrl-D ends

Ctrl-C while a task runs cancels it.
";

/// Type tasks and see their results.
///
/// Every line is a task: its action, and the rest of the line as its payload. The arrow keys bring back what was
/// typed before. When standard input is no terminal, lines are read without a prompt, and results alone go to
/// standard output.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  $ reparto repl
  reparto> upper hola
  HOLA
  reparto> sum 1,2,3,4,5
  15
  reparto> salir

  printf 'greet Ana\\n' | reparto repl               print Hello, Ana!

Exit code: 0, 1 a task failed and standard input is no terminal, 2 wrong usage, 3 no balancer could be reached.")]
pub(crate) struct Args {
    #[command(flatten)]
    balancer: BalancerArgs,
}

/// Runs it.
pub(crate) fn run(args: Args) -> ExitCode {
    let client = match args.balancer.connect(RECONNECT_FOR) {
        Ok(client) => client,
        Err(code) => return code,
    };
    let mut session = Session { client, signal: None, timed: false, failed: false, was_connected: true };
    let ended = if io::stdin().is_terminal() { session.by_hand() } else { session.by_pipe() };
    match ended {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(EXIT_OK),
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(EXIT_FAILED)
        }
        Ok(()) if session.failed => ExitCode::from(EXIT_FAILED),
        Ok(()) => ExitCode::from(EXIT_OK),
    }
}

/// What a typed line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    End,
    Help,
    Status,
    Task { action: &'a str, payload: &'a str },
}

fn understand(line: &str) -> Input<'_> {
    let line = line.trim_start();
    match line.trim_end() {
        "" => Input::Nothing,
        "exit" | "quit" | "salir" => Input::End,
        "help" => Input::Help,
        "status" => Input::Status,
        _ => {
            let (action, payload) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            Input::Task { action, payload }
        }
    }
}

/// Ctrl-C, as the signal's handler and the session see it.
#[derive(Default)]
struct Signal {
    /// A task runs, so there is something to cancel.
    running: AtomicBool,
    pressed: AtomicBool,
}

struct Session {
    client: Client,
    signal: Option<Arc<Signal>>,
    /// Shows how long each task took.
    timed: bool,
    failed: bool,
    was_connected: bool,
}

impl Session {
    /// Someone types at a terminal.
    fn by_hand(&mut self) -> io::Result<()> {
        self.timed = io::stdout().is_terminal();
        self.catch_signal();
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)
            .map_err(io::Error::other)?
            .auto_add_history(true)
            .build();
        let mut editor = DefaultEditor::with_config(config).map_err(io::Error::other)?;
        let history = history_file();
        if let Some(path) = &history {
            let _ = editor.load_history(path); // There is none the first time.
        }
        let _ = writeln!(
            io::stderr(),
            "connected to {}; type a task such as `upper hola`, or `help`",
            self.client.balancer()
        );
        loop {
            self.tell_connection();
            match editor.readline("reparto> ") {
                Ok(line) => {
                    if !self.act(&line)? {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(io::Error::other(format!("cannot read the terminal: {error}"))),
            }
        }
        if let Some(path) = &history
            && let Err(error) = save_history(&mut editor, path)
        {
            log::warn!("the history could not be saved to {}: {error}", path.display());
        }
        // Whoever types has seen what failed.
        self.failed = false;
        Ok(())
    }

    /// Lines come from a pipe or file.
    fn by_pipe(&mut self) -> io::Result<()> {
        let limit = self.client.max_payload_bytes("");
        let mut reader = LineReader::new(BufReader::new(io::stdin()), limit);
        let (mut line, mut number) = (Vec::new(), 0u64);
        loop {
            let read = reader.next_line(&mut line);
            let read =
                read.map_err(|error| io::Error::other(format!("cannot read standard input: {error}")))?;
            number += 1;
            let problem = match (read, std::str::from_utf8(&line)) {
                (None, _) => return Ok(()),
                (Some(Line::TooLong { bytes }), _) => {
                    format!("line {number} has {bytes} bytes, over the balancer's limit of {limit}")
                }
                (Some(Line::Whole), Err(_)) => {
                    format!("line {number} is not UTF-8; `reparto submit` takes any bytes")
                }
                (Some(Line::Whole), Ok(text)) => {
                    if !self.act(text)? {
                        return Ok(());
                    }
                    continue;
                }
            };
            self.failed = true;
            complain(&problem);
        }
    }

    /// Does what a line asks for. `false` ends the session.
    fn act(&mut self, line: &str) -> io::Result<bool> {
        match understand(line) {
            Input::Nothing => {}
            Input::End => return Ok(false),
            Input::Help => io::stdout().write_all(HELP.as_bytes())?,
            Input::Status => match self.client.status() {
                Ok(report) => {
                    let text = status::text(&report, &self.client.balancer(), Look::of_stdout());
                    io::stdout().write_all(text.as_bytes())?;
                }
                Err(error) => self.fail(&error.to_string()),
            },
            Input::Task { action, payload } => self.task(action, payload)?,
        }
        Ok(true)
    }

    fn task(&mut self, action: &str, payload: &str) -> io::Result<()> {
        let start = Instant::now();
        let handle = match self.client.submit(action, payload.to_owned()) {
            Ok(handle) => handle,
            Err(error) => {
                self.fail(&error.to_string());
                return Ok(());
            }
        };
        let outcome = self.wait(&handle);
        let took = start.elapsed();
        match outcome {
            Ok(result) => {
                let mut output = io::stdout().lock();
                output.write_all(&result)?;
                if !result.ends_with(b"\n") {
                    output.write_all(b"\n")?;
                }
                output.flush()?;
            }
            Err(failure) => {
                let lost = failure.code == ErrorCode::ConnectionLost;
                match self.client.unreachable().filter(|_| lost) {
                    Some(error) => self.fail(&no_balancer(&error)),
                    None => self.fail(&failure.to_string()),
                }
            }
        }
        if self.timed {
            let _ = writeln!(io::stderr(), "({})", short_time(took));
        }
        Ok(())
    }

    /// Waits for a task; the first Ctrl-C cancels it.
    fn wait(&self, handle: &TaskHandle) -> TaskOutcome {
        let Some(signal) = &self.signal else { return handle.wait() };
        signal.pressed.store(false, Ordering::SeqCst);
        signal.running.store(true, Ordering::SeqCst);
        let outcome = loop {
            if let Some(outcome) = handle.wait_timeout(SIGNAL_INTERVAL) {
                break outcome;
            }
            if signal.pressed.load(Ordering::SeqCst) {
                handle.cancel();
            }
        };
        signal.running.store(false, Ordering::SeqCst);
        outcome
    }

    /// Makes Ctrl-C cancel the running task; a second one, or one without a task, ends the process.
    fn catch_signal(&mut self) {
        let signal = Arc::new(Signal::default());
        let seen = Arc::clone(&signal);
        let installed = ctrlc::set_handler(move || {
            let again = seen.pressed.swap(true, Ordering::SeqCst);
            if again || !seen.running.load(Ordering::SeqCst) {
                std::process::exit(INTERRUPTED);
            }
        });
        match installed {
            Ok(()) => self.signal = Some(signal),
            Err(error) => log::warn!("Ctrl-C will end the session instead of cancelling a task: {error}"),
        }
    }

    fn fail(&mut self, sentence: &str) {
        self.failed = true;
        complain(sentence);
    }

    /// Says when the connection was lost, and when it stands again.
    fn tell_connection(&mut self) {
        let connected = self.client.is_connected();
        if connected != self.was_connected {
            self.was_connected = connected;
            let sentence = if connected {
                format!("connected to {} again", self.client.balancer())
            } else {
                "the connection to the balancer is lost; the next task makes a new one".into()
            };
            let _ = writeln!(io::stderr(), "{}", printable(&sentence));
        }
    }
}

/// Where the history stays between sessions, by the XDG rules or their like.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else {
        absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local").join("state")))
    };
    Some(state?.join("reparto").join("history"))
}

fn save_history(editor: &mut DefaultEditor, path: &PathBuf) -> Result<(), ReadlineError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    editor.save_history(path)
}

/// A time as people read it: `840 µs`, `1.2 ms`, `3.5 s`.
fn short_time(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_task_or_one_of_the_few_words() {
        let task = |action, payload| Input::Task { action, payload };
        assert_eq!(understand("upper hola mundo"), task("upper", "hola mundo"));
        assert_eq!(understand("  upper  two spaces "), task("upper", " two spaces "));
        assert_eq!(understand("fib\t30"), task("fib", "30"));
        assert_eq!(understand("now"), task("now", ""));
        assert_eq!(understand("exit now"), task("exit", "now"));
        for word in ["exit", "quit", "salir", " salir "] {
            assert_eq!(understand(word), Input::End);
        }
        assert_eq!((understand("help"), understand("status")), (Input::Help, Input::Status));
        assert_eq!((understand(""), understand("  \t")), (Input::Nothing, Input::Nothing));
    }

    #[test]
    fn times_are_short() {
        assert_eq!(short_time(Duration::from_micros(840)), "840 µs");
        assert_eq!(short_time(Duration::from_micros(1_240)), "1.2 ms");
        assert_eq!(short_time(Duration::from_millis(3_500)), "3.5 s");
    }
}
