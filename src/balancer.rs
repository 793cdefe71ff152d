//! `reparto balancer`: settings from flags, variables and a file, the balancer itself, and signals that stop it.

mod amqp;
mod signals;
mod store;
mod title;

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use reparto_balancer::background::without_passwords;
use reparto_balancer::reactor::raise_open_files_limit;
use reparto_balancer::scheduler::{Policy, UnknownAction};
use reparto_balancer::storage::{Durability, Standby};
use reparto_balancer::{Balancer, BalancerError, OpenedStore, Settings};
use serde::Deserialize;

use crate::parse;

/// Exit code for settings that cannot be used.
const WRONG_USAGE: u8 = 2;
/// Exit code for a balancer that cannot start or go on.
const FAILED: u8 = 1;
/// Files that the balancer needs open beside its connections, those of its store among them.
const OTHER_FILES: u64 = 48;

/// Files that each reactor after the first needs open.
const REACTOR_FILES: u64 = 4;

/// Takes tasks from clients and gives each to the worker best placed to run it.
///
/// Prints one line to standard output once it serves: `ready clients=ADDR workers=ADDR`, `lines=ADDR` for each --lines, and
/// `gearman=ADDR` with --gearman. While another balancer leads
/// the same PostgreSQL database it serves nobody, and says on standard error who leads. SIGTERM or SIGINT stops
/// it: tasks that run have --grace to end, the others are answered `shutting_down`, and it exits with 0. A second
/// signal ends it at once.
#[derive(clap::Args, Default)]
#[command(after_help = "\
Example, a balancer for this machine, then one for a network, from a file:
  reparto balancer
  reparto balancer --clients 0.0.0.0:8888 --workers 0.0.0.0:8889 --config balancer.toml

One that netcat and scripts of a few lines can use, too:
  reparto balancer --lines 127.0.0.1:8891
  echo 'upper hola' | nc -N 127.0.0.1 8891

In front of servers that answer JSON lines:
  reparto balancer --lines 127.0.0.1:8891 --lines-action greet --upstream lines://127.0.0.1:9001 --upstream lines://127.0.0.1:9002

On two hosts, one that leads and one that stands by and takes over:
  export REPARTO_BALANCER_STORE=postgres://reparto:PASSWORD@db.example/reparto
  reparto balancer --blobs 's3://reparto?endpoint=http://s3.example:3900&region=garage'

On any number of hosts, which share the work: the same with
  export REPARTO_BALANCER_BUS=amqp://reparto:PASSWORD@rabbitmq.example

The file has the flags' names with underscores, times and sizes as on the command line:
  policy = \"weighted\"
  max_tasks = 1000000
  max_frame = \"32MiB\"

Flags go before variables (REPARTO_BALANCER_POLICY and so on), variables before the file.
REPARTO_LOG=info or debug says more on standard error.")]
pub(crate) struct Args {
    /// Where clients connect; port 0 picks a free one [default: 127.0.0.1:8888]
    #[arg(long, value_name = "ADDR", env = "REPARTO_BALANCER_CLIENTS")]
    clients: Option<String>,

    /// Where workers connect; port 0 picks a free one [default: 127.0.0.1:8889]
    #[arg(long, value_name = "ADDR", env = "REPARTO_BALANCER_WORKERS")]
    workers: Option<String>,

    /// Where clients and workers connect that speak lines of text (JSON, pipes or plain words), such as netcat; may be given
    /// several times [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "REPARTO_BALANCER_LINES", value_delimiter = ',')]
    lines: Vec<String>,

    /// The action of lines that name none [default: default]
    #[arg(long, value_name = "ACTION", env = "REPARTO_BALANCER_LINES_ACTION")]
    lines_action: Option<String>,

    /// A server that listens and answers JSON lines, to connect to and give tasks to:
    /// lines://HOST:PORT[?actions=a,b&threads=N]; may be given several times
    #[arg(long, value_name = "URL", env = "REPARTO_BALANCER_UPSTREAM", value_delimiter = ' ')]
    upstream: Vec<String>,

    /// Where clients and workers made for gearmand connect; its usual port is 4730 [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "REPARTO_BALANCER_GEARMAN")]
    gearman: Option<String>,

    /// Folder in which background tasks and their results are kept [default: reparto-data]
    #[arg(long, value_name = "DIR", env = "REPARTO_BALANCER_DATA")]
    data: Option<PathBuf>,

    /// Where background tasks are kept: sqlite:PATH, a file of its own folder, or postgres://USER:PASSWORD@HOST/DATABASE,
    /// which balancers share: with --bus they work side by side, without it one leads, and the others stand by and take
    /// over [default: a file in the data folder]
    #[arg(long, value_name = "URL", env = "REPARTO_BALANCER_STORE", hide_env_values = true)]
    store: Option<String>,

    /// Where payloads and results beyond --blob-threshold are kept: file:DIR or s3://BUCKET?endpoint=URL&region=NAME,
    /// with the key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY [default: a folder in the data folder]
    #[arg(long, value_name = "URL", env = "REPARTO_BALANCER_BLOBS", hide_env_values = true)]
    blobs: Option<String>,

    /// Share background tasks with other balancers over RabbitMQ: amqp://USER:PASSWORD@HOST:PORT/VHOST. Needs --store
    /// postgres://... and --blobs that all of them reach
    #[arg(long, value_name = "URL", env = "REPARTO_BALANCER_BUS", hide_env_values = true)]
    bus: Option<String>,

    /// Take tasks from this queue of RabbitMQ, as any program publishes them: JSON with `action` and `payload`. Their
    /// outcomes are told to `reply_to`. Repeatable; needs --bus
    #[arg(long, value_name = "QUEUE", value_delimiter = ',', env = "REPARTO_BALANCER_AMQP_QUEUE")]
    amqp_queue: Vec<String>,

    /// Hand an action's tasks to programs that consume this queue of RabbitMQ, as JSON, and take their answers by
    /// `reply_to`; with ?reply=no the queue having a task ends it. Behind the ? also in_flight=N (256) and limit=TIME for
    /// an answer (1h). Repeatable; needs --bus
    #[arg(long, value_name = "ACTION=QUEUE", value_delimiter = ',', env = "REPARTO_BALANCER_AMQP_WORKER")]
    amqp_worker: Vec<String>,

    /// Keep nothing: background tasks are refused with `store_unavailable`
    #[arg(long, conflicts_with_all = ["data", "store", "blobs"], env = "REPARTO_BALANCER_NO_DATA")]
    no_data: bool,

    /// When a background task counts as durable in the embedded store: fsync, or interval:50ms and the like, which
    /// survives SIGKILL but may lose the last interval in a power failure [default: fsync]
    #[arg(long, value_name = "fsync|interval:TIME", env = "REPARTO_BALANCER_DURABILITY")]
    durability: Option<Durability>,

    /// How long the results of background tasks are kept [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, env = "REPARTO_BALANCER_KEEP_RESULTS")]
    keep_results: Option<Duration>,

    /// Payloads and results of background tasks beyond this size go to the blob store [default: 256KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse::size, env = "REPARTO_BALANCER_BLOB_THRESHOLD")]
    blob_threshold: Option<u64>,

    /// Event loops that connections are spread over, each on a thread of its own; the first has the scheduler, too
    /// [default: 1]
    #[arg(long, value_name = "N", env = "REPARTO_BALANCER_REACTORS")]
    reactors: Option<usize>,

    /// How a worker is chosen for a task [default: least_loaded]
    #[arg(long, value_enum, env = "REPARTO_BALANCER_POLICY")]
    policy: Option<PolicyName>,

    /// What becomes of a task whose action no worker offers [default: wait]
    #[arg(long, value_enum, env = "REPARTO_BALANCER_UNKNOWN_ACTION")]
    unknown_action: Option<UnknownActionName>,

    /// Most tasks held at once; one more is answered `queue_full` [default: 4000000]
    #[arg(long, value_name = "N", env = "REPARTO_BALANCER_MAX_TASKS")]
    max_tasks: Option<usize>,

    /// Most bytes of payload held at once; more are answered `queue_full` [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse::size, env = "REPARTO_BALANCER_MAX_QUEUE_BYTES")]
    max_queue_bytes: Option<u64>,

    /// Largest frame taken, so about the largest payload [default: 16MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse::size, env = "REPARTO_BALANCER_MAX_FRAME")]
    max_frame: Option<u64>,

    /// Most connections at once; one more is answered `overloaded` [default: 20000]
    #[arg(long, value_name = "N", env = "REPARTO_BALANCER_MAX_CONNECTIONS")]
    max_connections: Option<usize>,

    /// Waiting this long makes up for one level of priority [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, env = "REPARTO_BALANCER_AGING")]
    aging: Option<Duration>,

    /// How long a task waits for its first assignment if it does not say [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, env = "REPARTO_BALANCER_WAIT")]
    wait: Option<Duration>,

    /// Silence after which a worker is asked whether it is there [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, env = "REPARTO_BALANCER_HEARTBEAT")]
    heartbeat: Option<Duration>,

    /// Silence after which a worker is lost, and its tasks go to others [default: 15s]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, env = "REPARTO_BALANCER_SILENCE")]
    silence: Option<Duration>,

    /// Time for running tasks to end when the balancer is stopped [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, env = "REPARTO_BALANCER_GRACE")]
    grace: Option<Duration>,

    /// A TOML file with settings
    #[arg(long, value_name = "FILE", env = "REPARTO_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum PolicyName {
    /// Each in turn
    RoundRobin,
    /// The one with the least in flight relative to its threads
    LeastLoaded,
    /// Each in turn, as many times as its weight
    Weighted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum UnknownActionName {
    /// It waits for a worker that offers it
    Wait,
    /// It is answered `unknown_action` at once
    Reject,
}

/// What may stand in the configuration file: the flags, by their names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    clients: Option<String>,
    workers: Option<String>,
    lines: Option<Vec<String>>,
    lines_action: Option<String>,
    upstream: Option<Vec<String>>,
    gearman: Option<String>,
    data: Option<PathBuf>,
    store: Option<String>,
    blobs: Option<String>,
    bus: Option<String>,
    amqp_queue: Vec<String>,
    amqp_worker: Vec<String>,
    no_data: Option<bool>,
    durability: Option<String>,
    keep_results: Option<Span>,
    blob_threshold: Option<Size>,
    reactors: Option<usize>,
    policy: Option<PolicyName>,
    unknown_action: Option<UnknownActionName>,
    max_tasks: Option<usize>,
    max_queue_bytes: Option<Size>,
    max_frame: Option<Size>,
    max_connections: Option<usize>,
    aging: Option<Span>,
    wait: Option<Span>,
    heartbeat: Option<Span>,
    silence: Option<Span>,
    grace: Option<Span>,
}

/// A size in the file: a number of bytes, or a text such as `16MiB`.
#[derive(Debug, Clone, Copy)]
struct Size(u64);

/// A time in the file: a text such as `5s`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Span(Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse::duration(&text).map(Span)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of bytes, or a text such as \"16MiB\"")
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size cannot be below 0"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                parse::size(text).map(Size).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Runs the balancer until a signal stops it.
pub(crate) fn run(args: Args) -> ExitCode {
    title::hide_passwords(&args);
    let settings = match read_config(args.config.as_deref()).and_then(|file| settings(&args, &file)) {
        Ok(settings) => settings,
        Err(sentence) => return fail(WRONG_USAGE, &sentence),
    };
    let signals = match signals::catch() {
        Ok(signals) => signals,
        Err(error) => return fail(FAILED, &format!("signals cannot be caught: {error}")),
    };
    let store = match open_store(&settings, &signals) {
        Ok(Waited::Open(store)) => store,
        Ok(Waited::Stopped) => return ExitCode::SUCCESS,
        Err(error @ BalancerError::Setting { .. }) => return fail(WRONG_USAGE, &error.to_string()),
        Err(error) => return fail(FAILED, &error.to_string()),
    };
    let settings = within_open_files(settings, raise_open_files_limit());
    let balancer = match Balancer::bind_with(settings, store.map(|store| *store)) {
        Ok(balancer) => balancer,
        Err(error @ BalancerError::Setting { .. }) => return fail(WRONG_USAGE, &error.to_string()),
        Err(error) => return fail(FAILED, &error.to_string()),
    };
    signals.stop_from_now_on(balancer.handle());
    if let Err(error) = say_ready(&balancer) {
        return fail(FAILED, &format!("standard output cannot be written to: {error}"));
    }
    match balancer.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, &error.to_string()),
    }
}

/// What came of waiting for a store.
enum Waited {
    /// It is open, or none was asked for.
    Open(Option<Box<OpenedStore>>),
    /// A signal came first.
    Stopped,
}

/// Opens the store. While it has to be waited for, it says so on standard error.
fn open_store(settings: &Settings, signals: &signals::Signals) -> Result<Waited, BalancerError> {
    settings.check()?;
    let Some(store) = &settings.store else { return Ok(Waited::Open(None)) };
    let mut stood_by = false;
    let report = |standby: &Standby| {
        stood_by = true;
        tell(&match standby {
            Standby::Waiting { leader } => {
                format!(
                    "standing by: {leader} leads at {}, and this one takes over when it is gone",
                    store.store
                )
            }
            Standby::Unreachable { reason } => format!("waiting for the database: {reason}"),
            other => format!("waiting for the database: {other:?}"),
        });
    };
    let opened = store.open(report, || !signals.asked_to_stop())?;
    match opened {
        Some(opened) => {
            if stood_by {
                tell("leads now");
            }
            Ok(Waited::Open(Some(Box::new(opened))))
        }
        None => Ok(Waited::Stopped),
    }
}

/// Tells whoever looks at standard error, whatever the log's level.
fn tell(sentence: &str) {
    eprintln!("reparto balancer: {sentence}");
    log::info!("{sentence}");
}

fn fail(code: u8, sentence: &str) -> ExitCode {
    eprintln!("reparto balancer: {sentence}");
    ExitCode::from(code)
}

fn say_ready(balancer: &Balancer) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "ready clients={} workers={}", balancer.clients_addr(), balancer.workers_addr())?;
    for lines in balancer.lines_addrs() {
        write!(out, " lines={lines}")?;
    }
    if let Some(address) = balancer.gearman_addr() {
        write!(out, " gearman={address}")?;
    }
    writeln!(out)?;
    out.flush()
}

fn read_config(path: Option<&Path>) -> Result<File, String> {
    let Some(path) = path else { return Ok(File::default()) };
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("the configuration file {} cannot be read: {error}", path.display()))?;
    // The line at fault is shown, and may hold a password.
    toml::from_str(&text).map_err(|error| {
        let shown = without_passwords(&error.to_string());
        format!("the configuration file {} is wrong: {shown}", path.display())
    })
}

/// Puts the settings together: a flag or variable, or else the file, or else the default.
fn settings(args: &Args, file: &File) -> Result<Settings, String> {
    let mut settings = Settings::default();
    if let Some(text) = args.clients.as_ref().or(file.clients.as_ref()) {
        settings.clients = address("clients", text)?;
    }
    if let Some(text) = args.workers.as_ref().or(file.workers.as_ref()) {
        settings.workers = address("workers", text)?;
    }
    for text in several(&args.lines, file.lines.as_ref()) {
        settings.lines.push(address("lines", text)?);
    }
    for text in several(&args.upstream, file.upstream.as_ref()) {
        settings.upstreams.push(text.parse().map_err(|sentence| format!("--upstream {sentence}"))?);
    }
    if let Some(action) = args.lines_action.as_ref().or(file.lines_action.as_ref()) {
        settings.lines_action.clone_from(action);
    }
    if let Some(text) = args.gearman.as_ref().or(file.gearman.as_ref()) {
        settings.gearman = Some(address("gearman", text)?);
    }
    if let Some(size) = args.max_frame.or(file.max_frame.map(|size| size.0)) {
        let bytes = u32::try_from(size).map_err(|_| format!("--max-frame {size} is more than 1GiB"))?;
        settings.set_max_frame(bytes);
    }
    if let Some(size) = args.max_queue_bytes.or(file.max_queue_bytes.map(|size| size.0)) {
        settings.scheduler.max_bytes = usize::try_from(size).unwrap_or(usize::MAX);
    }
    set(&mut settings.reactors, args.reactors, file.reactors);
    set(&mut settings.max_connections, args.max_connections, file.max_connections);
    set(&mut settings.grace, args.grace, file.grace.map(|span| span.0));
    let scheduler = &mut settings.scheduler;
    set(&mut scheduler.max_tasks, args.max_tasks, file.max_tasks);
    set(&mut scheduler.aging, args.aging, file.aging.map(|span| span.0));
    set(&mut scheduler.default_wait, args.wait, file.wait.map(|span| span.0));
    set(&mut scheduler.heartbeat, args.heartbeat, file.heartbeat.map(|span| span.0));
    set(&mut scheduler.silence, args.silence, file.silence.map(|span| span.0));
    if let Some(policy) = args.policy.or(file.policy) {
        scheduler.policy = match policy {
            PolicyName::RoundRobin => Policy::RoundRobin,
            PolicyName::LeastLoaded => Policy::LeastLoaded,
            PolicyName::Weighted => Policy::Weighted,
        };
    }
    if let Some(unknown_action) = args.unknown_action.or(file.unknown_action) {
        scheduler.unknown_action = match unknown_action {
            UnknownActionName::Wait => UnknownAction::Wait,
            UnknownActionName::Reject => UnknownAction::Reject,
        };
    }
    settings.store = store::settings(args, file)?;
    Ok(settings)
}

fn set<T>(place: &mut T, flag: Option<T>, file: Option<T>) {
    if let Some(value) = flag.or(file) {
        *place = value;
    }
}

/// What was given several times: as flags or in a variable, or else in the file.
fn several<'a>(flags: &'a [String], file: Option<&'a Vec<String>>) -> &'a [String] {
    if flags.is_empty() { file.map_or(&[], Vec::as_slice) } else { flags }
}

fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    let hint = "write HOST:PORT, such as 127.0.0.1:8888 or [::1]:8888";
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|error| format!("--{name} '{text}' is no address: {error}; {hint}"))?;
    addresses.next().ok_or_else(|| format!("--{name} '{text}' is no address; {hint}"))
}

/// Every connection is an open file: where fewer may be open than connections are wanted, it says so and asks
/// for fewer, so that one too many is told instead of being left waiting.
fn within_open_files(mut settings: Settings, limit: Option<u64>) -> Settings {
    let Some(limit) = limit else { return settings };
    let reactors = u64::try_from(settings.reactors).unwrap_or(u64::MAX);
    let other_files = OTHER_FILES.saturating_add(reactors.saturating_sub(1).saturating_mul(REACTOR_FILES));
    let room = usize::try_from(limit.saturating_sub(other_files)).unwrap_or(usize::MAX).max(1);
    if settings.max_connections > room {
        // The default is meant for any machine; only a number that was asked for is worth a warning.
        let level = if settings.max_connections == Settings::default().max_connections {
            log::Level::Info
        } else {
            log::Level::Warn
        };
        log::log!(
            level,
            "{limit} files may be open, so {room} connections are taken instead of {}; raise the limit (ulimit -n)",
            settings.max_connections
        );
        settings.max_connections = room;
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<File, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let file = file(
            "max_tasks = 5\nreactors = 2\nsilence = \"1m\"\npolicy = \"weighted\"\nmax_frame = \"32MiB\"",
        )
        .expect("a good file");
        let args = Args { max_tasks: Some(7), ..Args::default() };
        let settings = settings(&args, &file).expect("good settings");
        assert_eq!(settings.scheduler.max_tasks, 7);
        assert_eq!(settings.scheduler.silence, Duration::from_secs(60));
        assert_eq!(settings.scheduler.policy, Policy::Weighted);
        assert_eq!(settings.max_frame_bytes, 32 << 20);
        assert_eq!(settings.scheduler.heartbeat, Duration::from_secs(5));
        assert_eq!(settings.reactors, 2);
        assert_eq!(settings.clients.port(), 8888);
    }

    #[test]
    fn lines_and_upstreams_are_given_several_times_and_flags_replace_those_of_the_file() {
        let file = file(
            "lines = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nlines_action = \"greet\"\nupstream = [\"lines://a:1?threads=2\"]",
        )
        .expect("a good file");
        let given = settings(&Args::default(), &file).expect("good settings");
        assert_eq!((given.lines.len(), &*given.lines_action), (2, "greet"));
        assert_eq!((&*given.upstreams[0].host, given.upstreams[0].threads), ("a", 2));
        let args =
            Args { lines: vec!["127.0.0.1:3".into()], upstream: vec!["lines://b".into()], ..Args::default() };
        let wrong = settings(&args, &file).expect_err("an upstream has a port");
        assert!(wrong.starts_with("--upstream 'lines://b' is no upstream: there is no port"), "{wrong}");
        let args = Args { lines: vec!["127.0.0.1:3".into()], ..Args::default() };
        assert_eq!(settings(&args, &file).expect("good settings").lines.len(), 1);
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named_with_its_line() {
        let error = file("max_tasks = 5\nmax_taks = 6").expect_err("a slip of the pen");
        assert!(error.contains("max_taks") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_wrong_value_in_the_file_is_named() {
        assert!(file("grace = \"5 parsecs\"").is_err_and(|error| error.contains("'parsecs'")));
        assert!(file("max_frame = -1").is_err_and(|error| error.contains("below 0")));
        assert!(file("policy = \"best\"").is_err_and(|error| error.contains("least_loaded")));
    }

    #[test]
    fn a_name_is_resolved_and_a_wrong_address_says_how_to_write_one() {
        assert!(address("clients", "localhost:0").is_ok_and(|address| address.ip().is_loopback()));
        assert!(address("clients", "8888").is_err_and(|error| error.contains("HOST:PORT")));
    }

    #[test]
    fn connections_stay_within_the_files_that_may_be_open() {
        let settings = Settings { max_connections: 5000, ..Settings::default() };
        assert_eq!(within_open_files(settings.clone(), Some(1024)).max_connections, 976);
        assert_eq!(within_open_files(settings.clone(), Some(1 << 20)).max_connections, 5000);
        let several = Settings { reactors: 4, ..settings.clone() };
        assert_eq!(within_open_files(several, Some(1024)).max_connections, 964);
        assert_eq!(within_open_files(settings, None).max_connections, 5000);
    }
}
