//! What is answered by looking at the scheduler: how jobs stand, and the administrative text commands. The answers
//! are gearmand's, to the letter where programs read them.

use bytes::{Bytes, BytesMut};

use super::Shared;
use super::encode::flag;
use super::handle::{Handle, connection_of};
use super::key;
use super::packet::{Kind, put};
use crate::background::Keeper;
use crate::scheduler::{Effects, HeldTask, JobStatus, Scheduler, Time};

/// Most jobs that a list of them shows.
const MOST_LISTED: usize = 16_384;

/// Longest text of which an error repeats a part, in bytes.
const MOST_REPEATED: usize = 64;

const OK: &str = "OK\r\n";

/// A question of a Gearman connection's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// GET_STATUS, for a foreground job.
    Job(u64),
    /// GET_STATUS_UNIQUE.
    Unique(Box<[u8]>),
    /// A text command, its words with one space between.
    Text(Box<str>),
}

/// Where an answer is looked up.
pub(crate) struct Place<'a> {
    /// The scheduler.
    pub(crate) scheduler: &'a mut Scheduler,
    /// What keeps background jobs, if anything does.
    pub(crate) keeper: Option<&'a Keeper>,
    /// Now.
    pub(crate) now: Time,
}

/// Answers a question, as bytes to be sent as they are. Says whether the balancer is asked to stop.
pub(crate) fn reply<'a>(
    question: &Question,
    shared: &Shared,
    place: Place<'_>,
    effects: &mut impl Effects<'a>,
) -> (Bytes, bool) {
    let prefix = shared.prefix();
    match question {
        Question::Job(number) => {
            let job = connection_of(*number).and_then(|at| place.scheduler.job(at, *number));
            let handle = Handle::Number(*number).text(prefix);
            (status(Kind::StatusRes, &handle, job, false), false)
        }
        Question::Unique(unique) => {
            let background = || {
                let id = place.keeper?.task_of_unique(unique)?;
                Some(place.scheduler.background_job(&id.0).unwrap_or_default())
            };
            let job = place.scheduler.job_by_key(unique).or_else(background).filter(|_| !unique.is_empty());
            (status(Kind::StatusResUnique, unique, job, true), false)
        }
        Question::Text(line) => {
            let words: Vec<&str> = line.split(' ').collect();
            let (text, stops) = command(&words, prefix, place, effects);
            (Bytes::from(text), stops)
        }
    }
}

fn status(kind: Kind, name: &[u8], job: Option<JobStatus>, counts: bool) -> Bytes {
    let JobStatus { runs, done, total, waiting } = job.unwrap_or_default();
    let numbers = [done.to_string(), total.to_string(), waiting.to_string()];
    let mut arguments = vec![name, flag(job.is_some()), flag(runs)];
    arguments.extend(numbers.iter().take(if counts { 3 } else { 2 }).map(String::as_bytes));
    let mut out = BytesMut::new();
    put(&mut out, kind, &arguments);
    out.freeze()
}

fn command<'a>(
    words: &[&str],
    prefix: &str,
    place: Place<'_>,
    effects: &mut impl Effects<'a>,
) -> (String, bool) {
    let lower: Vec<String> = words.iter().take(2).map(|word| word.to_ascii_lowercase()).collect();
    let scheduler = place.scheduler;
    let text = match (lower.first().map_or("", String::as_str), words.len()) {
        ("workers", _) => workers(scheduler, place.now),
        ("status", _) => table(scheduler.actions(0, usize::MAX).iter().map(|action| {
            let (waiting, running) = (action.queued, action.running);
            format!("{}\t{}\t{running}\t{}", one_line(&action.name), waiting + running, action.workers)
        })),
        ("prioritystatus", _) => table(scheduler.actions(0, usize::MAX).iter().map(|action| {
            let [high, usual, low] = action.queued_by_class;
            format!("{}\t{high}\t{usual}\t{low}\t{}", one_line(&action.name), action.workers)
        })),
        ("show", 2) if lower[1] == "jobs" => table(scheduler.held_tasks(MOST_LISTED).filter_map(|task| {
            let (handle, kept) = (handle_of(&task)?, u8::from(task.task_id.is_some()));
            let handle = handle.text(prefix);
            Some(format!("{}\t{}\t0\t{kept}", String::from_utf8_lossy(&handle), task.attempts))
        })),
        ("show", 3) if lower[1] == "unique" && words[2].eq_ignore_ascii_case("jobs") => {
            table(scheduler.held_tasks(MOST_LISTED).filter_map(|task| {
                let unique = key::parts(task.key).0;
                (!unique.is_empty()).then(|| one_line(&String::from_utf8_lossy(unique)))
            }))
        }
        ("show", 2..) => "ERR UNKNOWN_SHOW_ARGUMENTS\r\n".into(),
        ("cancel", 3) if lower[1] == "job" => {
            let job = match Handle::parse(prefix, words[2].as_bytes()) {
                Some(Handle::Number(number)) => connection_of(number).map(|at| (at, number)),
                _ => None,
            };
            let cancelled = job.is_some_and(|job| scheduler.cancel_job(place.now, job, effects));
            if cancelled { OK.into() } else { "ERR UNKNOWN_JOB\r\n".into() }
        }
        ("create", 3) if lower[1] == "function" => {
            let name = words[2];
            let kept = name.len() <= super::packet::MAX_FUNCTION_BYTES && scheduler.keep_action(name);
            if kept { OK.into() } else { format!("ERR CREATE_FUNCTION {}\r\n", repeated(name)) }
        }
        ("drop", 3) if lower[1] == "function" => match scheduler.drop_action(words[2]) {
            Some(true) => OK.into(),
            Some(false) => "ERR there are still connected workers or executing clients\r\n".into(),
            None => "ERR function not found\r\n".into(),
        },
        ("maxqueue", 2..) => {
            scheduler.bound_action(words[1], bounds(&words[2..]));
            OK.into()
        }
        ("create" | "drop" | "maxqueue", _) => format!(
            "ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+{}\r\n",
            words[0]
        ),
        ("getpid", _) => format!("OK {}\n", std::process::id()),
        ("verbose", _) => format!("OK {}\n", verbosity()),
        ("version", _) => format!("OK {}\n", env!("CARGO_PKG_VERSION")),
        ("shutdown", _) => return (OK.into(), true),
        (first, _) => format!("ERR UNKNOWN_COMMAND Unknown+server+command{}\r\n", repeated(first)),
    };
    (text, false)
}

/// Lines, and the line that ends a table.
fn table(lines: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str(".\n");
    text
}

/// All workers, those of other dialects as well, whose addresses are not known here.
fn workers(scheduler: &Scheduler, now: Time) -> String {
    table(scheduler.workers(now, 0, usize::MAX).into_iter().map(|worker| {
        let from = worker.from.map_or_else(|| "-".to_owned(), |from| from.to_string());
        let mut line = format!("{} {from} {} :", worker.connection, one_word(&worker.id));
        for action in worker.actions {
            line.push(' ');
            line.push_str(&one_word(&action));
        }
        line
    }))
}

/// The handle of a task: of one that came over a Gearman connection, or of any background task.
fn handle_of(task: &HeldTask<'_>) -> Option<Handle> {
    if let Some(id) = task.task_id {
        return Some(Handle::Task(id));
    }
    let (peer, number) = task.submitted;
    (connection_of(number) == Some(peer.index)).then_some(Handle::Number(number))
}

/// One bound for all priorities, or one each; without any, none. What is no number, or below 0, is no bound.
fn bounds(words: &[&str]) -> [usize; 3] {
    let bound = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    match words.len() {
        0 | 1 => [bound(0); 3],
        _ => [bound(0), bound(1), bound(2)],
    }
}

fn verbosity() -> &'static str {
    match log::max_level() {
        log::LevelFilter::Off => "FATAL",
        log::LevelFilter::Error => "ERROR",
        log::LevelFilter::Warn => "WARNING",
        log::LevelFilter::Info => "INFO",
        log::LevelFilter::Debug | log::LevelFilter::Trace => "DEBUG",
    }
}

/// A name that cannot break its line.
fn one_line(name: &str) -> String {
    name.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

/// A name that cannot be taken for two.
fn one_word(name: &str) -> String {
    one_line(name).replace(' ', "_")
}

fn repeated(text: &str) -> &str {
    reparto_protocol::cut(text, MOST_REPEATED)
}
