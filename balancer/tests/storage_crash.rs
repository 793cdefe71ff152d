//! Kills a process that writes to the embedded store with SIGKILL at random moments, again and again on one data
//! folder, and checks after each kill that all it had been told is durable is there, once and as it was told.
//!
//! The parent starts this same program as its child. `REPARTO_CRASH_SEED` replays the moments as well as a clock
//! lets them be replayed; `REPARTO_CRASH_ROUNDS` sets how many times each store is killed.

use std::collections::HashMap;
use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use reparto_balancer::storage::{
    Answer, BlobStore as _, Body, Durability, FailedAttempt, Failure, FileBlobs, Filter, NewTask, Operation,
    Outcome, Query, Reply, Request, SqliteStore, Storage, StorageSettings, Store as _, StoredTask, TaskId,
    TaskIds, TaskState, sweep,
};

const NAME: &str = "what_was_acknowledged_is_there_once_after_sigkill_at_any_moment";
const CHILD: &str = "REPARTO_CRASH_CHILD";
/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Payloads of more bytes become blobs.
const BLOB_THRESHOLD: usize = 2000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Ok(folder) = env::var(CHILD) {
        let durability = arguments[0].parse().expect("the parent gives a durability");
        return child(Path::new(&folder), durability, arguments[1].parse().expect("the parent gives a seed"));
    }
    // Enough of a test harness to be listed and filtered as any other test.
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("{NAME}: test");
        }
        return;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    if filters.is_empty() || filters.iter().any(|filter| NAME.contains(filter.as_str())) {
        let seed = number_from("REPARTO_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
        println!("REPARTO_CRASH_SEED={seed}");
        let rounds = number_from("REPARTO_CRASH_ROUNDS").unwrap_or(12);
        let mut random = fastrand::Rng::with_seed(seed);
        for durability in ["fsync", "interval:50ms"] {
            parent(durability, rounds, &mut random);
        }
        println!("test {NAME} ... ok");
    }
}

fn number_from(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// What the child was told is durable.
#[derive(Debug, Default)]
struct Told {
    /// Each task's outcome, if it has one: the number that its result holds.
    tasks: HashMap<TaskId, Option<u64>>,
}

fn parent(durability: &str, rounds: u64, random: &mut fastrand::Rng) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut told = Told::default();
    for round in 0..rounds {
        let before = told.tasks.len();
        run_and_kill(folder.path(), durability, random, &mut told);
        let (open, ended) = check(folder.path(), &told);
        println!(
            "{durability}, round {round}: {} more tasks told, in all {}; found {open} open, {ended} ended",
            told.tasks.len() - before,
            told.tasks.len()
        );
    }
}

/// Starts the child, notes what it was told, and kills it a random time after the first word.
fn run_and_kill(folder: &Path, durability: &str, random: &mut fastrand::Rng, told: &mut Told) {
    let mut child = Command::new(env::current_exe().expect("this program has a path"))
        .args([durability, &random.u64(..).to_string()])
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started");
    let output = child.stdout.take().expect("its output is piped");
    let (lines_out, lines) = mpsc::channel();
    let reading = thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = String::new();
        // A line that the kill cut short was not told.
        while output.read_line(&mut line).is_ok_and(|count| count > 0) && line.ends_with('\n') {
            if lines_out.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    let first = lines.recv_timeout(PATIENCE).expect("the child says something");
    // Mostly soon, as the first moments are a recovery's; at times beyond the age at which it writes behind.
    let longest = if random.u8(..) < 40 { 2500 } else { 250 };
    thread::sleep(Duration::from_millis(random.u64(0..longest)));
    child.kill().expect("the child can be killed");
    child.wait().expect("the child ends");
    reading.join().expect("reading does not panic");
    for line in std::iter::once(first).chain(lines.try_iter()) {
        note(told, line.trim_end());
    }
}

fn note(told: &mut Told, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let id = words[1].parse().unwrap_or_else(|_| panic!("the child said {line:?}"));
    match words[0] {
        "accepted" => assert_eq!(told.tasks.insert(id, None), None, "accepted twice: {id}"),
        "recorded" => {
            let number = words[2].parse().unwrap_or_else(|_| panic!("the child said {line:?}"));
            // Its task may have been durable before the child was killed, and not told.
            let before = told.tasks.insert(id, Some(number));
            assert!(before.is_none_or(|before| before.is_none()), "recorded twice: {id}");
        }
        _ => panic!("the child said {line:?}"),
    }
}

/// Opens the folder as the next balancer would. Returns the tasks that are open and that have ended.
fn check(folder: &Path, told: &Told) -> (usize, usize) {
    let store =
        SqliteStore::open(&folder.join("data"), Durability::Fsync).expect("the store opens after a kill");
    let blobs = FileBlobs::open(&folder.join("blobs")).expect("the blob store opens after a kill");
    let mut reader = store.reader().expect("a reader opens");
    for (id, number) in &told.tasks {
        let stored = reader.fetch(*id).expect("a task can be read");
        let stored = stored.unwrap_or_else(|| panic!("lost: {id}, told {number:?}"));
        match (&stored.task.payload, stored.state.is_ended()) {
            (Body::Inline(payload), false) => assert_eq!(*payload, payload_of(*id), "{id}"),
            (Body::Inline(_), true) => {}
            (Body::Blob(key), _) => {
                assert_eq!(
                    blobs.get(key).expect("a blob can be read").expect("its blob is there"),
                    payload_of(*id)
                );
            }
        }
        if let Some(number) = number {
            assert_eq!(stored.state, TaskState::Done, "{id}");
            assert_eq!(stored.result, Some(Body::Inline(result_of(*id, *number).into())), "{id}");
        }
    }
    let (mut open, mut ended, mut before) = (0, 0, None);
    let mut seen = std::collections::HashSet::new();
    loop {
        let page = reader.list(&Filter::default(), before, 4096).expect("tasks can be listed");
        for StoredTask { task, state, .. } in page.tasks {
            assert!(seen.insert(task.id), "listed twice: {}", task.id);
            *if state.is_ended() { &mut ended } else { &mut open } += 1;
        }
        before = page.next;
        if before.is_none() {
            return (open, ended);
        }
    }
}

fn payload_of(id: TaskId) -> Vec<u8> {
    let len = if id.0[15] < 3 { BLOB_THRESHOLD + 1 } else { 64 };
    id.0.iter().copied().cycle().take(len).collect()
}

fn result_of(id: TaskId, number: u64) -> String {
    format!("{id} {number}")
}

/// What the child is waiting to hear about.
enum Waiting {
    Accept(TaskId),
    Retry,
    /// With the number in its result.
    Finish(TaskId, u64),
    Query,
}

/// Hands in tasks, ends them in any order, each twice, and says what it is told, until it is killed.
fn child(folder: &Path, durability: Durability, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    // Half of the children write behind within nearly every commit.
    let lag = if random.bool() { 100 } else { 500_000 };
    let store = SqliteStore::open(&folder.join("data"), durability).expect("the store opens").with_lag(lag);
    let blobs = FileBlobs::open(&folder.join("blobs")).expect("the blob store opens");
    let mut open: Vec<TaskId> = Vec::new();
    let page =
        store.reader().and_then(|mut reader| reader.open_tasks(None, 1000)).expect("open tasks can be read");
    open.extend(page.tasks.iter().map(|stored| stored.task.id));
    let (wake, woken) = mpsc::sync_channel(1);
    // Nothing is being put yet, so no age need be spared.
    let mut reader = store.reader().expect("a reader opens");
    sweep(&blobs, &mut *reader, Duration::ZERO, || true).expect("blobs can be swept");
    let settings = StorageSettings { blob_threshold: BLOB_THRESHOLD, ..StorageSettings::default() };
    let storage = Storage::start(Box::new(store), Some(std::sync::Arc::new(blobs)), settings, move || {
        _ = wake.try_send(());
    })
    .expect("the storage threads start");
    let mut ids = TaskIds::new();
    let mut waiting: HashMap<u64, Waiting> = HashMap::new();
    let (mut token, mut completions, mut output) = (0_u64, Vec::new(), std::io::stdout().lock());
    loop {
        let mut requests = Vec::new();
        let mut ask = |operation, what| {
            token += 1;
            waiting.insert(token, what);
            requests.push(Request { token, operation });
        };
        for _ in 0..random.usize(1..200) {
            let id = ids.next(now());
            let task = NewTask::new(id, "upper", payload_of(id), now());
            ask(Operation::Accept(task), Waiting::Accept(id));
        }
        for _ in 0..random.usize(0..200).min(open.len()) {
            let id = open.swap_remove(random.usize(..open.len()));
            if random.u8(..) < 30 {
                let failure = Failure::new(reparto_protocol::ErrorCode::WorkerFailed, "bad luck");
                let attempt = FailedAttempt { id, attempts: 1, at: now(), worker: "ana".into(), failure };
                ask(Operation::Retry { attempt, due_at: None }, Waiting::Retry);
            }
            for _ in 0..2 {
                let number = random.u64(..);
                let outcome = Outcome::done(id, 1, now(), result_of(id, number));
                ask(Operation::Finish(outcome), Waiting::Finish(id, number));
            }
        }
        while storage.try_submit(&mut requests).is_err() {
            woken.recv_timeout(PATIENCE).expect("room is made");
            hear(&storage, &mut waiting, &mut open, &mut completions, &mut output);
        }
        if random.u8(..) < 8 {
            // The first page of a list has everything written behind.
            token += 1;
            waiting.insert(token, Waiting::Query);
            let query = Query::List { filter: Filter::default(), before: None, limit: 1 };
            storage.try_query(token, query).expect("a question is taken");
        }
        if random.u8(..) < 200 {
            let started = Instant::now();
            while !waiting.is_empty() {
                assert!(started.elapsed() < PATIENCE, "completions come");
                let _ = woken.recv_timeout(Duration::from_millis(100));
                hear(&storage, &mut waiting, &mut open, &mut completions, &mut output);
            }
        }
    }
}

/// Takes what the storage says, and says it to the parent.
fn hear(
    storage: &Storage,
    waiting: &mut HashMap<u64, Waiting>,
    open: &mut Vec<TaskId>,
    completions: &mut Vec<reparto_balancer::storage::Completion>,
    output: &mut impl std::io::Write,
) {
    storage.take_completions(completions);
    let mut said = String::new();
    for completion in completions.drain(..) {
        let what = waiting.remove(&completion.token).expect("a completion comes once");
        match (what, completion.reply.expect("the store works")) {
            (Waiting::Accept(id), Reply::Answer(Answer::Accepted)) => {
                said += &format!("accepted {id}\n");
                open.push(id);
            }
            (Waiting::Finish(id, number), Reply::Answer(Answer::Recorded)) => {
                said += &format!("recorded {id} {number}\n");
            }
            (Waiting::Finish(..), Reply::Answer(Answer::AlreadyEnded(TaskState::Done)))
            | (Waiting::Retry, Reply::Answer(Answer::Noted))
            | (Waiting::Query, Reply::Page(_)) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
    output.write_all(said.as_bytes()).and_then(|()| output.flush()).expect("the parent listens");
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as i64)
}
