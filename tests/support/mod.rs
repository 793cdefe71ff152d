//! Real processes for the tests beside this folder: the `reparto` command, started, fed, signalled, watched, and
//! killed with the test that started it.

#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used)] // Each test file uses its part of this.

pub mod amqp;
pub mod engines;
pub mod sharing;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use reparto_bench::engines::runs;
use reparto_client::{Accepted, Client, Reply, Status, TaskId, WorkerStatus};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// How long a test waits for anything, whatever the machine. Reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Hands a background task of `upper` in, which may be tried often.
pub fn hand_in(client: &Client, payload: &str) -> Reply<Accepted> {
    client.task("upper").payload(payload.to_owned()).max_attempts(20).submit_background().unwrap()
}

/// The id of a task that is accepted.
pub fn accepted(reply: &Reply<Accepted>) -> TaskId {
    reply.wait_timeout(PATIENCE).expect("an answer").expect("it is accepted").task_id
}

/// Waits until `condition` gives a value.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < give_up_at, "waited {} s in vain until {what}", PATIENCE.as_secs());
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// A process of the test's own. Killed, and waited for, when it is dropped.
pub struct Process {
    name: String,
    child: Child,
    /// What is to be written to its standard input; closed when this is dropped.
    input: Option<Sender<Vec<u8>>>,
    stdout: Stream,
    stderr: Stream,
}

/// What has come from a pipe so far, and the thread that reads it.
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn read(mut pipe: impl Read + Send + 'static) -> Stream {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = std::thread::spawn({
            let bytes = Arc::clone(&bytes);
            move || {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    bytes.lock().unwrap().extend_from_slice(&buffer[..count]);
                }
            }
        });
        Stream { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
    /// Standard output of a process that must have ended with 0.
    #[track_caller]
    pub fn success(self) -> Vec<u8> {
        assert_eq!(self.code, Some(0), "standard error: {}", self.stderr);
        self.stdout
    }

    /// Standard output, as text, of a process that must have ended with 0.
    #[track_caller]
    pub fn success_text(self) -> String {
        String::from_utf8(self.success()).unwrap()
    }

    /// Standard error of a process that must have ended with `code`.
    #[track_caller]
    pub fn failure(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "standard error: {}", self.stderr);
        self.stderr
    }

    /// Standard output as JSON objects, one a line.
    #[track_caller]
    pub fn records(&self) -> Vec<serde_json::Value> {
        let lines = std::str::from_utf8(&self.stdout).unwrap().lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// `reparto` with arguments, and without the variables of whoever runs the tests.
pub fn reparto<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reparto"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REPARTO_") {
            command.env_remove(name);
        }
    }
    // Nothing may be left in the source tree.
    command.env("REPARTO_BALANCER_NO_DATA", "true");
    if reactors() > 1 {
        command.env("REPARTO_BALANCER_REACTORS", reactors().to_string());
    }
    command.args(arguments);
    command
}

/// With how many reactors: what the other files test with one, two_reactors.rs tests once more.
pub fn reactors() -> usize {
    match env!("CARGO_CRATE_NAME") {
        "two_reactors" => 2,
        _ => 1,
    }
}

impl Process {
    pub fn start(mut command: Command) -> Process {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let (mut pipe, stdout, stderr) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (input, to_write) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            // It fails when the process has ended, which is the test's to judge.
            while to_write.recv().is_ok_and(|bytes| pipe.write_all(&bytes).is_ok()) {}
        });
        Process {
            name,
            child,
            input: Some(input),
            stdout: Stream::read(stdout),
            stderr: Stream::read(stderr),
        }
    }

    /// Gives it something to read. Does not wait until it has.
    pub fn write(&self, bytes: impl Into<Vec<u8>>) {
        // It fails when the process has ended, which is the test's to judge.
        let _ = self.input.as_ref().unwrap().send(bytes.into());
    }

    /// Ends its input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Stops it with SIGSTOP, and waits until it stands still: its threads may go on for a moment.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap();
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill(self) {
        drop(self);
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for a line of standard output that begins with `start`, and gives what follows.
    pub fn line_after(&mut self, start: &str) -> String {
        wait_for(&format!("{} says '{start}'", self.name), || {
            // Looked at first: a process that is over says no more once all that it has said is read.
            let code = self.child.try_wait().unwrap();
            let is_over = code.is_some() && self.stdout.reader.is_finished();
            let said = self.stdout();
            let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let found = whole.lines().find_map(|line| line.strip_prefix(start)).map(str::to_owned);
            assert!(found.is_some() || !is_over, "{} ended with {code:?}: {}", self.name, self.stderr.text());
            found
        })
    }

    /// Ends its input, and waits until it has ended by itself.
    pub fn end(mut self) -> Ended {
        self.close_input();
        let name = self.name.clone();
        let status = wait_for(&format!("{name} ends; so far it said: {}", self.stderr()), || {
            self.child.try_wait().unwrap()
        });
        wait_until("its output is read", || {
            self.stdout.reader.is_finished() && self.stderr.reader.is_finished()
        });
        let stdout = std::mem::take(&mut *self.stdout.bytes.lock().unwrap());
        Ended { code: status.code(), stdout, stderr: self.stderr() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `reparto` to its end, with nothing on standard input.
pub fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ended {
    Process::start(reparto(arguments)).end()
}

/// A balancer on free ports.
pub struct Balancer {
    pub process: Process,
    /// Where it listens for clients.
    pub clients: String,
    /// Where it listens for workers.
    pub workers: String,
}

impl Balancer {
    pub fn start() -> Balancer {
        Balancer::start_with(&[])
    }

    /// With more flags. A flag for an address goes before the free port.
    pub fn start_with(flags: &[&str]) -> Balancer {
        let mut command = reparto(["balancer"]);
        for listener in ["--clients", "--workers"] {
            if !flags.contains(&listener) {
                command.args([listener, "127.0.0.1:0"]);
            }
        }
        command.args(flags);
        Balancer::from_command(command)
    }

    pub fn from_command(command: Command) -> Balancer {
        let mut process = Process::start(command);
        let addresses = process.line_after("ready clients=");
        let (clients, workers) = addresses.split_once(" workers=").unwrap();
        // Other listeners' addresses follow, as `name=ADDR`.
        let workers = workers.split(' ').next().unwrap();
        Balancer { clients: clients.to_owned(), workers: workers.to_owned(), process }
    }

    /// Where it listens for lines, with `--lines`.
    pub fn lines(&self) -> String {
        self.address("lines")
    }

    /// Where another of its listeners is, by its flag's name.
    pub fn address(&self, name: &str) -> String {
        let line = self.process.stdout();
        let words = line.lines().next().unwrap_or_default().split(' ');
        let found = words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name);
        found.unwrap_or_else(|| panic!("no {name} in '{line}'")).1.to_owned()
    }

    /// A balancer on the addresses of a former one. For a moment a connection of another test may have one of the
    /// ports, so it is tried again.
    pub fn start_again(clients: &str, workers: &str) -> Balancer {
        wait_for("the addresses are free again", || {
            let mut process =
                Process::start(reparto(["balancer", "--clients", clients, "--workers", workers]));
            wait_until("it serves or cannot", || process.stdout().contains('\n') || process.has_ended());
            let serves = !process.has_ended();
            serves.then(|| Balancer { process, clients: clients.to_owned(), workers: workers.to_owned() })
        })
    }

    /// A worker with two threads and the built-in actions, which is registered.
    pub fn worker(&self, id: &str) -> Process {
        self.worker_with(&["--id", id, "--threads", "2", "--builtin"])
    }

    /// A worker with these flags, which is registered.
    pub fn worker_with(&self, flags: &[&str]) -> Process {
        let mut worker = self.unregistered_worker(flags);
        worker.line_after("ready id=");
        worker
    }

    /// A worker with these flags, which need not be registered.
    pub fn unregistered_worker(&self, flags: &[&str]) -> Process {
        let mut command = reparto(["worker", "--balancer", &self.workers]);
        command.args(flags);
        Process::start(command)
    }

    /// `reparto submit`, to be fed and waited for.
    pub fn submitting<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Process {
        let mut command = reparto(["submit", "--balancer", &self.clients]);
        command.args(arguments);
        Process::start(command)
    }

    /// Runs `reparto submit` to its end, with nothing on standard input.
    pub fn submit<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ended {
        self.submitting(arguments).end()
    }

    /// Runs `reparto submit` to its end, with `input` on standard input.
    pub fn submit_input<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: impl Into<Vec<u8>>,
    ) -> Ended {
        let process = self.submitting(arguments);
        process.write(input);
        process.end()
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        let client = Client::builder().balancer(self.clients.clone()).connect_timeout(PATIENCE).connect();
        client.unwrap().status().unwrap()
    }

    /// What one of its workers is doing; `None` when it has no such worker.
    pub fn worker_status(&self, id: &str) -> Option<WorkerStatus> {
        self.status().workers.into_iter().find(|worker| worker.id == id)
    }

    /// Waits until a worker holds a task.
    pub fn wait_until_busy(&self, id: &str) {
        wait_until(&format!("{id} holds a task"), || {
            self.worker_status(id).is_some_and(|worker| worker.in_flight > 0)
        });
    }
}

/// An empty folder of the test's own, beside the build.
pub fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // A former process of the same number may have left its own.
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Waits until a process has written its number, and a line break, into a file.
pub fn pid_from(file: &Path) -> Pid {
    wait_for(&format!("{} holds a process number", file.display()), || {
        let text = std::fs::read_to_string(file).ok()?;
        Pid::from_raw(text.strip_suffix('\n')?.trim().parse().ok()?)
    })
}

/// Lines with the numbers of a range.
pub fn numbers(range: impl Iterator<Item = u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}
