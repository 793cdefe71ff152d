//! `--lines`: a thread feeds lines to the balancer, this one prints what comes back, and a window between the
//! two bounds what is in flight or held back for its turn.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, IsTerminal, StdoutLock, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use reparto_client::{Client, Completion, CompletionQueue, ErrorCode, TaskFailure};

use super::Args;
use super::line_reader::{Line, LineReader};
use super::results::{LineOutcome, Reorder, failure_sentence, write_json};
use crate::client_side::{
    EXIT_FAILED, EXIT_NO_BALANCER, EXIT_OK, EXIT_USAGE, NO_STORE_HINT, RECONNECT_FOR, complain, no_balancer,
    no_store,
};

/// Bytes read from the file, and written to standard output, at once.
const BUFFER_BYTES: usize = 128 * 1024;

/// Lines submitted and not yet printed have so many KiB at most, so that long lines fill neither the balancer nor
/// this process.
const WINDOW_KIB: u64 = 64 * 1024;

/// Bits of a tag that say how long its line is.
const KIB_BITS: u32 = 20;

/// A line on its way: its number, from 1, and its length in whole KiB, as a task's tag has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticket {
    line: u64,
    kib: u64,
}

impl Ticket {
    fn new(line: u64, bytes: usize) -> Ticket {
        Ticket { line, kib: (bytes as u64 >> 10).min((1 << KIB_BITS) - 1) }
    }

    fn tag(self) -> u64 {
        self.line << KIB_BITS | self.kib
    }

    fn of_tag(tag: u64) -> Ticket {
        Ticket { line: tag >> KIB_BITS, kib: tag & ((1 << KIB_BITS) - 1) }
    }
}

/// Bounds the lines submitted and not yet printed, and their length. One thread takes, another gives back.
struct Window {
    free: Mutex<Free>,
    opened: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct Free {
    places: u64,
    kib: u64,
}

impl Window {
    fn new(places: u64) -> Self {
        Window { free: Mutex::new(Free { places, kib: WINDOW_KIB }), opened: Condvar::new() }
    }

    /// Takes all places that are free, at least one; waits for it.
    fn take_places(&self) -> u64 {
        let mut free = self.when(|free| free.places > 0);
        std::mem::take(&mut free.places)
    }

    /// Takes room for a long line; one that is longer than the window waits until it is alone.
    fn take_room(&self, kib: u64) {
        let kib = kib.min(WINDOW_KIB);
        self.when(|free| free.kib >= kib).kib -= kib;
    }

    fn when(&self, enough: impl Fn(&Free) -> bool) -> MutexGuard<'_, Free> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while !enough(&free) {
            free = self.opened.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        free
    }

    fn give_back(&self, places: u64, kib: u64) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let none_was_free = free.places == 0;
        free.places += places;
        free.kib += kib;
        if none_was_free || kib > 0 {
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
struct Job<T> {
    args: Args,
    client: Client,
    queue: CompletionQueue<T>,
    window: Window,
    bytes_fed: AtomicU64,
}

/// Runs it.
pub(super) fn run<T: LineOutcome>(args: Args, path: &Path) -> ExitCode {
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
    if args.background.is_wanted() && no_store(&client) {
        // Every line would be told the same.
        complain(&format!("the balancer at {} keeps no background tasks{NO_STORE_HINT}", client.balancer()));
        return ExitCode::from(EXIT_FAILED);
    }
    let size = args.window;
    let queue = T::queue(&client, size as usize);
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
fn conclude<T>(printer: &Printer<'_, T>, fed: Fed, name: &str) -> ExitCode {
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
fn feed<T: LineOutcome>(job: &Job<T>, input: impl BufRead) -> Fed {
    let limit = job.client.max_payload_bytes(&job.args.action);
    let mut reader = LineReader::new(input, limit);
    let task = job.args.task(&job.client);
    let (mut text, mut lines, mut places) = (Vec::new(), 0, 0);
    loop {
        if places == 0 {
            places = job.window.take_places();
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
        let ticket = Ticket::new(lines, text.len());
        if ticket.kib > 0 {
            job.window.take_room(ticket.kib);
        }
        job.bytes_fed.fetch_add(text.len() as u64 + 1, Ordering::Relaxed);
        let submitted = match line {
            Line::Whole => {
                let key = job.args.background.key_of_line(lines);
                let mut task = task.clone().payload_slice(&text);
                if let Some(key) = &key {
                    task = task.idempotency_key(key);
                }
                T::submit(&job.queue, ticket.tag(), task).map_err(reparto_client::ClientError::into_failure)
            }
            Line::TooLong { bytes } => Err(TaskFailure::new(
                ErrorCode::PayloadTooLarge,
                format!("the line has {bytes} bytes, and the balancer takes at most {limit} as one task"),
            )),
        };
        if let Err(failure) = submitted
            && job.queue.push(ticket.tag(), Err(failure)).is_err()
        {
            return Fed::All; // Closed: the printer is gone, and the process with it.
        }
    }
}

struct Printer<'a, T> {
    output: BufWriter<StdoutLock<'a>>,
    /// Sentences for standard error, written at once for a whole batch.
    complaints: String,
    bar: ProgressBar,
    reorder: Option<Reorder<Completion<T>>>,
    json: bool,
    printed: u64,
    failed: u64,
}

impl<T: LineOutcome> Printer<'_, T> {
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
    fn print_all(&mut self, job: &Job<T>) -> io::Result<()> {
        let mut batch: Vec<Completion<T>> = Vec::new();
        while job.queue.recv_batch(&mut batch) {
            let before = self.printed;
            let mut kib = 0;
            for completion in batch.drain(..) {
                let line = Ticket::of_tag(completion.tag).line;
                let Some(reorder) = &mut self.reorder else {
                    kib += self.print(&completion)?;
                    continue;
                };
                reorder.put(line, completion);
                while let Some(completion) = self.reorder.as_mut().and_then(Reorder::take) {
                    kib += self.print(&completion)?;
                }
            }
            job.window.give_back(self.printed - before, kib);
            if job.queue.ready() == 0 {
                self.output.flush()?;
            }
            self.complain_all();
            self.show_progress(job);
        }
        self.output.flush()
    }

    /// Prints what a line gave, and tells how many KiB of the window it held.
    fn print(&mut self, completion: &Completion<T>) -> io::Result<u64> {
        let Ticket { line, kib } = Ticket::of_tag(completion.tag);
        self.printed += 1;
        self.failed += u64::from(completion.outcome.is_err());
        match &completion.outcome {
            outcome if self.json => write_json(&mut self.output, line, outcome)?,
            Ok(given) => given.write_text(&mut self.output)?,
            Err(failure) => {
                self.complaints.push_str(&failure_sentence(line, failure));
                self.complaints.push('\n');
            }
        }
        Ok(kib.min(WINDOW_KIB))
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

    fn show_progress(&self, job: &Job<T>) {
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
        assert_eq!(window.take_places(), 3);
        let waiting = std::thread::spawn({
            let window = Arc::clone(&window);
            move || window.take_places()
        });
        window.give_back(2, 0);
        assert_eq!(waiting.join().unwrap(), 2);
    }

    #[test]
    fn long_lines_wait_for_room_and_one_over_the_whole_window_for_all_of_it() {
        let window = Arc::new(Window::new(3));
        window.take_room(1);
        let waiting = std::thread::spawn({
            let window = Arc::clone(&window);
            move || window.take_room(10 * WINDOW_KIB)
        });
        window.give_back(0, 1);
        waiting.join().unwrap();
        assert_eq!(window.free.lock().unwrap().kib, 0);
    }

    #[test]
    fn a_tag_carries_the_lines_number_and_length() {
        for ticket in [Ticket::new(1, 0), Ticket::new(1 << 43, 16 << 20), Ticket::new(7, usize::MAX)] {
            assert_eq!(Ticket::of_tag(ticket.tag()), ticket);
        }
        assert_eq!(Ticket::new(7, 1023).kib, 0);
        assert_eq!(Ticket::new(7, 1 << 20).kib, 1024);
    }
}
