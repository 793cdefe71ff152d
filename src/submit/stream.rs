//! `--lines`: a thread feeds lines to the balancer, this one prints what comes back, and a window between the
//! two bounds what is in flight or held back for its turn.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, IsTerminal, StdoutLock, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use reparto_client::{Client, Completion, CompletionQueue, ErrorCode, TaskFailure, TaskOutcome};

use super::line_reader::{Line, LineReader};
use super::results::{Reorder, failure_sentence, write_json, write_text};
use super::{Args, RECONNECT_FOR};
use crate::client_side::{EXIT_FAILED, EXIT_NO_BALANCER, EXIT_OK, EXIT_USAGE, complain, no_balancer};

/// Bytes read from the file, and written to standard output, at once.
const BUFFER_BYTES: usize = 128 * 1024;

/// Lines submitted and not yet printed, bounded.
struct Window {
    free: Mutex<u64>,
    opened: Condvar,
}

impl Window {
    fn new(size: u64) -> Self {
        Window { free: Mutex::new(size), opened: Condvar::new() }
    }

    /// Takes all places that are free, at least one; waits for it.
    fn take(&self) -> u64 {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.opened.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut free)
    }

    fn give_back(&self, places: u64) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free += places;
        if *free == places {
            self.opened.notify_one();
        }
    }
}

/// Why the feeder stopped.
enum Fed {
    /// At the end of the input.
    All,
    /// Reading failed after this many lines.
    Unreadable { lines: u64, error: io::Error },
    /// No balancer could be found again after this many lines.
    Unreachable { lines: u64, sentence: String },
}

/// What both threads know.
struct Job {
    args: Args,
    client: Client,
    queue: CompletionQueue,
    window: Window,
    bytes_fed: AtomicU64,
}

/// Runs it.
pub(super) fn run(args: Args, path: &Path) -> ExitCode {
    let from_input = path.as_os_str() == "-";
    let name = if from_input { "standard input".into() } else { path.display().to_string() };
    let (input, total_bytes): (Box<dyn BufRead + Send>, Option<u64>) = if from_input {
        (Box::new(BufReader::with_capacity(BUFFER_BYTES, io::stdin())), None)
    } else {
        match open(path) {
            Ok((file, bytes)) => (Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), bytes),
            Err(error) => {
                complain(&format!("cannot read {name}: {error}"));
                return ExitCode::from(EXIT_USAGE);
            }
        }
    };
    let client = match args.balancer.connect(RECONNECT_FOR) {
        Ok(client) => client,
        Err(code) => return code,
    };
    let size = args.window;
    let queue = client.completion_queue(size as usize);
    let window = Window::new(size.into());
    let job = Arc::new(Job { args, client, queue, window, bytes_fed: AtomicU64::new(0) });
    let feeder = {
        let job = Arc::clone(&job);
        std::thread::Builder::new().name("feed".into()).spawn(move || {
            let fed = feed(&job, input);
            job.queue.close();
            fed
        })
    };
    let feeder = match feeder {
        Ok(feeder) => feeder,
        Err(error) => {
            complain(&format!("cannot start a thread to read {name}: {error}"));
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let mut printer = Printer::new(&job.args, total_bytes);
    if let Err(error) = printer.print_all(&job) {
        printer.bar.finish_and_clear();
        // The feeder may wait for input that never comes; the process ends without it.
        if error.kind() == ErrorKind::BrokenPipe {
            return ExitCode::from(EXIT_OK);
        }
        complain(&format!("cannot write results to standard output: {error}"));
        return ExitCode::from(EXIT_FAILED);
    }
    printer.bar.finish_and_clear();
    let fed = feeder.join().unwrap_or_else(|_| Fed::Unreadable {
        lines: printer.printed,
        error: io::Error::other("the reading thread panicked"),
    });
    conclude(&printer, fed, &name)
}

fn open(path: &Path) -> io::Result<(File, Option<u64>)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    Ok((file, metadata.is_file().then_some(metadata.len())))
}

/// Says what remains to be said, and finds the exit code.
fn conclude(printer: &Printer<'_>, fed: Fed, name: &str) -> ExitCode {
    if printer.failed > 0 && !printer.json {
        let (failed, all) = (HumanCount(printer.failed), HumanCount(printer.printed));
        complain(&format!("{failed} of {all} tasks failed"));
    }
    match fed {
        Fed::Unreachable { lines, sentence } => {
            complain(&format!("{sentence}; stopped after line {lines}, and what follows was not submitted"));
            ExitCode::from(EXIT_NO_BALANCER)
        }
        Fed::Unreadable { lines, error } => {
            complain(&format!("cannot read {name} after line {lines}: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
        Fed::All if printer.failed > 0 => ExitCode::from(EXIT_FAILED),
        Fed::All => ExitCode::from(EXIT_OK),
    }
}

/// Submits every line, as fast as the window lets it.
fn feed(job: &Job, input: impl BufRead) -> Fed {
    let limit = job.client.max_payload_bytes(&job.args.action);
    let mut reader = LineReader::new(input, limit);
    let task = job.args.task(&job.client);
    let (mut text, mut lines, mut places) = (Vec::new(), 0, 0);
    loop {
        if places == 0 {
            places = job.window.take();
            if let Some(error) = job.client.unreachable() {
                return Fed::Unreachable { lines, sentence: no_balancer(&error) };
            }
        }
        let line = match reader.next_line(&mut text) {
            Ok(Some(line)) => line,
            Ok(None) => return Fed::All,
            Err(error) => return Fed::Unreadable { lines, error },
        };
        lines += 1;
        places -= 1;
        job.bytes_fed.fetch_add(text.len() as u64 + 1, Ordering::Relaxed);
        let submitted = match line {
            Line::Whole => job
                .queue
                .submit(lines, task.clone().payload_slice(&text))
                .map_err(reparto_client::ClientError::into_failure),
            Line::TooLong { bytes } => Err(TaskFailure::new(
                ErrorCode::PayloadTooLarge,
                format!("the line has {bytes} bytes, and the balancer takes at most {limit} as one task"),
            )),
        };
        if let Err(failure) = submitted
            && job.queue.push(lines, Err(failure)).is_err()
        {
            return Fed::All; // Closed: the printer is gone, and the process with it.
        }
    }
}

struct Printer<'a> {
    output: BufWriter<StdoutLock<'a>>,
    /// Sentences for standard error, written at once for a whole batch.
    complaints: String,
    bar: ProgressBar,
    reorder: Option<Reorder>,
    json: bool,
    printed: u64,
    failed: u64,
}

impl Printer<'_> {
    fn new(args: &Args, total_bytes: Option<u64>) -> Self {
        let output = io::stdout().lock();
        // A bar between the results would garble both.
        let show = io::stderr().is_terminal() && !output.is_terminal();
        Printer {
            output: BufWriter::with_capacity(BUFFER_BYTES, output),
            complaints: String::new(),
            bar: if show { progress_bar(total_bytes) } else { ProgressBar::hidden() },
            reorder: (!args.as_completed).then(Reorder::new),
            json: args.json,
            printed: 0,
            failed: 0,
        }
    }

    /// Prints until everything that was submitted has come back.
    fn print_all(&mut self, job: &Job) -> io::Result<()> {
        let mut batch: Vec<Completion> = Vec::new();
        while job.queue.recv_batch(&mut batch) {
            let before = self.printed;
            for completion in batch.drain(..) {
                match &mut self.reorder {
                    None => self.print(completion.tag, &completion.outcome)?,
                    Some(reorder) => {
                        reorder.put(completion.tag, completion.outcome);
                        self.print_in_order()?;
                    }
                }
            }
            job.window.give_back(self.printed - before);
            if job.queue.ready() == 0 {
                self.output.flush()?;
            }
            self.complain_all();
            self.show_progress(job);
        }
        self.output.flush()
    }

    fn print_in_order(&mut self) -> io::Result<()> {
        while let Some((line, outcome)) = self.reorder.as_mut().and_then(Reorder::take) {
            self.print(line, &outcome)?;
        }
        Ok(())
    }

    fn print(&mut self, line: u64, outcome: &TaskOutcome) -> io::Result<()> {
        self.printed += 1;
        self.failed += u64::from(outcome.is_err());
        if self.json {
            return write_json(&mut self.output, line, outcome);
        }
        match outcome {
            Ok(result) => write_text(&mut self.output, result),
            Err(failure) => {
                self.complaints.push_str(&failure_sentence(line, failure));
                self.complaints.push('\n');
                Ok(())
            }
        }
    }

    fn complain_all(&mut self) {
        if self.complaints.is_empty() {
            return;
        }
        let complaints = &self.complaints;
        self.bar.suspend(|| {
            // Nobody may be reading there, which is no reason to fail.
            let _ = io::stderr().lock().write_all(complaints.as_bytes());
        });
        self.complaints.clear();
    }

    fn show_progress(&self, job: &Job) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_position(job.bytes_fed.load(Ordering::Relaxed));
        let failed =
            if self.failed == 0 { String::new() } else { format!(", {} failed", HumanCount(self.failed)) };
        let rate = self.printed as f64 / self.bar.elapsed().as_secs_f64().max(0.001);
        self.bar.set_message(format!(
            "{} tasks{failed}, {}/s",
            HumanCount(self.printed),
            HumanCount(rate as u64)
        ));
    }
}

fn progress_bar(total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{elapsed} [{bar:30}] {percent}% {msg}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{elapsed} {spinner} {msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar, // The library's own look serves as well.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_hands_out_no_more_places_than_it_has() {
        let window = Arc::new(Window::new(3));
        assert_eq!(window.take(), 3);
        let waiting = std::thread::spawn({
            let window = Arc::clone(&window);
            move || window.take()
        });
        window.give_back(2);
        assert_eq!(waiting.join().unwrap(), 2);
    }
}
