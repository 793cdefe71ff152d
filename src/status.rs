//! `reparto status`: what a balancer, its workers and its actions are doing.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, HumanDuration};
use reparto_client::{ActionStatus, Client, EngineStatus, ErrorCode, Status, WorkerStatus};

use crate::client_side::{
    BalancerArgs, EXIT_FAILED, EXIT_NO_BALANCER, EXIT_OK, complain, no_balancer, printable, with_hint,
};
use crate::parse;
use crate::table::{BOLD, Look, cut, one_line, table};

/// While watching, a balancer that is lost is looked for this long.
const RECONNECT_FOR: Duration = Duration::from_secs(30);

/// Rows of each table that are redrawn while watching a terminal; more would scroll the top away.
const WATCHED_ROWS: usize = 30;

/// Characters of a worker's list of actions that are shown.
const ACTIONS_WIDTH: usize = 48;

/// Show the workers, actions and counts of a running balancer.
///
/// Store and blobs: where background tasks and their large results are kept, whether that can be used, and what waits
/// to be written. Bus: the same of RabbitMQ; intake: messages of a queue of plain AMQP that wait to be taken in. Workers: tasks run at once, in flight now, done and failed since they registered, mean time a task, state and
/// actions. Actions: workers that offer them, tasks that wait and that run. Colours are left out when NO_COLOR is
/// set or the output is no terminal.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto status                                    a table
  reparto status --watch                            redraw it every second
  reparto status --json | jq .totals.queued         for programs

Exit code: 0, 1 the balancer did not answer, 2 wrong usage, 3 no balancer could be reached.")]
pub(crate) struct Args {
    #[command(flatten)]
    balancer: BalancerArgs,

    /// Print the report as one JSON object on a line.
    #[arg(long)]
    json: bool,

    /// Show it again and again, with so many seconds between.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = interval)]
    watch: Option<Duration>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&time) => Ok(time),
        _ => Err(format!("'{text}' is not between 0.1 seconds and a day")),
    }
}

/// Runs it.
pub(crate) fn run(args: Args) -> ExitCode {
    let client = match args.balancer.connect(RECONNECT_FOR) {
        Ok(client) => client,
        Err(code) => return code,
    };
    let look = Look::of_stdout();
    let redraw = args.watch.is_some() && !args.json && io::stdout().is_terminal();
    loop {
        let report = match client.status() {
            Ok(report) => report,
            Err(error) => return failed(&client, &error),
        };
        let shown = if args.json {
            match serde_json::to_string(&report) {
                Ok(json) => json + "\n",
                Err(error) => {
                    complain(&format!("the report could not be written as JSON: {error}"));
                    return ExitCode::from(EXIT_FAILED);
                }
            }
        } else {
            let look = if redraw { look.with_rows(WATCHED_ROWS) } else { look };
            let text = text(&report, &client.balancer(), look);
            // Home, the new picture, and away with what was below the old one.
            if redraw { format!("\x1b[2J\x1b[H{text}") } else { text }
        };
        let mut output = io::stdout().lock();
        match output.write_all(shown.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return ExitCode::from(EXIT_OK),
            Err(error) => {
                complain(&format!("cannot write to standard output: {error}"));
                return ExitCode::from(EXIT_FAILED);
            }
        }
        drop(output);
        match args.watch {
            None => return ExitCode::from(EXIT_OK),
            Some(time) => std::thread::sleep(time),
        }
        if !args.json && !redraw {
            let _ = writeln!(io::stdout());
        }
    }
}

fn failed(client: &Client, error: &reparto_client::ClientError) -> ExitCode {
    let lost = matches!(error, reparto_client::ClientError::Refused(failure)
        if failure.code == ErrorCode::ConnectionLost);
    if let Some(error) = client.unreachable().filter(|_| lost) {
        complain(&no_balancer(&error));
        return ExitCode::from(EXIT_NO_BALANCER);
    }
    complain(&format!("no status from the balancer at {}: {}", client.balancer(), with_hint(error)));
    ExitCode::from(EXIT_FAILED)
}

/// Draws a report as text.
pub(crate) fn text(report: &Status, address: &str, look: Look) -> String {
    let totals = &report.totals;
    let count = |number: u64| HumanCount(number).to_string();
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} {address}, version {}, up {}, policy {}",
        look.paint(BOLD, "balancer"),
        printable(&report.version),
        HumanDuration(Duration::from_millis(report.uptime_ms)),
        printable(&report.policy),
    );
    let _ = writeln!(
        text,
        "{}    {} queued, {} running, {} submitted, {} done, {} failed, {} refused, {} assigned again",
        look.paint(BOLD, "tasks"),
        count(totals.queued),
        count(totals.running),
        count(totals.submitted),
        count(totals.done),
        count(totals.failed),
        count(totals.refused),
        count(totals.requeued),
    );
    let _ = writeln!(
        text,
        "{}    {} clients, {} workers ({} lost), {} of payload held",
        look.paint(BOLD, "peers"),
        count(totals.clients),
        count(totals.workers),
        count(totals.workers_lost),
        HumanBytes(totals.bytes),
    );
    for engine in &report.engines {
        let _ = writeln!(text, "{}", engine_line(engine, look));
    }
    text.push('\n');
    if report.workers.is_empty() {
        text.push_str("no workers; start one with `reparto worker`\n");
    } else {
        let heads = ["WORKER", "THREADS", "IN FLIGHT", "DONE", "FAILED", "MEAN TIME", "STATE", "ACTIONS"];
        let rows = report.workers.iter().take(look.most_rows).map(worker_row);
        table(&mut text, look, &heads, &[0, 6, 7], rows.collect(), report.workers.len());
    }
    if !report.actions.is_empty() {
        text.push('\n');
        let heads = ["ACTION", "WORKERS", "QUEUED", "RUNNING"];
        let rows = report.actions.iter().take(look.most_rows).map(action_row);
        table(&mut text, look, &heads, &[0], rows.collect(), report.actions.len());
    }
    text
}

/// What an engine is, where, how it does, and what waits for it.
fn engine_line(engine: &EngineStatus, look: Look) -> String {
    let role = look.paint(BOLD, &one_line(&engine.role));
    // As wide as the heads above it.
    let space = " ".repeat(9_usize.saturating_sub(engine.role.chars().count()).max(1));
    let since = engine.since_ms.map(|ms| format!(" since {}", parse::shown_moment(ms))).unwrap_or_default();
    let message = engine.message.as_ref().map(|text| format!(": {}", one_line(text))).unwrap_or_default();
    let standbys = match engine.standbys {
        0 => String::new(),
        1 => ", 1 balancer stands by".to_owned(),
        many => format!(", {} balancers stand by", HumanCount(many)),
    };
    format!(
        "{role}{space}{}, {}{since}, {} operations wait ({}){standbys}{message}",
        one_line(&engine.place),
        one_line(&engine.state),
        HumanCount(engine.waiting),
        HumanBytes(engine.waiting_bytes),
    )
}

fn worker_row(worker: &WorkerStatus) -> Vec<String> {
    let state = if worker.draining {
        "draining"
    } else if worker.in_flight == 0 {
        "idle"
    } else {
        "working"
    };
    vec![
        one_line(&worker.id),
        HumanCount(worker.threads).to_string(),
        HumanCount(worker.in_flight).to_string(),
        HumanCount(worker.done).to_string(),
        HumanCount(worker.failed).to_string(),
        worker.service_ns.map_or_else(|| "-".into(), mean_time),
        state.into(),
        cut(&one_line(&worker.actions.join(" ")), ACTIONS_WIDTH),
    ]
}

fn action_row(action: &ActionStatus) -> Vec<String> {
    vec![
        one_line(&action.name),
        HumanCount(action.workers).to_string(),
        HumanCount(action.queued).to_string(),
        HumanCount(action.running).to_string(),
    ]
}

fn mean_time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look::PLAIN;

    fn report() -> Status {
        let worker = |id: &str, in_flight, draining| WorkerStatus {
            id: id.into(),
            threads: 4,
            in_flight,
            done: 1_234_567,
            service_ns: Some(41_000),
            draining,
            actions: vec!["upper".into(), "sum".into()],
            ..WorkerStatus::default()
        };
        Status {
            version: "0.1.0".into(),
            policy: "least_loaded".into(),
            uptime_ms: 61_000,
            workers: vec![
                worker("one", 2, false),
                worker("a-longer-name", 0, true),
                worker("x\x1b[2J\n", 0, false),
            ],
            actions: vec![ActionStatus { name: "upper".into(), workers: 3, queued: 7, running: 2 }],
            ..Status::default()
        }
    }

    #[test]
    fn a_report_is_drawn_as_tables_whose_columns_stand_under_their_heads() {
        let text = text(&report(), "127.0.0.1:8888", PLAIN);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[4..8],
            [
                "WORKER         THREADS  IN FLIGHT       DONE  FAILED  MEAN TIME  STATE     ACTIONS",
                "one                  4          2  1,234,567       0    41.0 µs  working   upper sum",
                "a-longer-name        4          0  1,234,567       0    41.0 µs  draining  upper sum",
                "x\\u{1b}[2J           4          0  1,234,567       0    41.0 µs  idle      upper sum",
            ]
        );
        assert_eq!(lines[9..], ["ACTION  WORKERS  QUEUED  RUNNING", "upper         3       7        2"]);
        assert!(!text.contains('\x1b'), "no colours, and no escapes of a worker's own");
    }

    #[test]
    fn each_engine_has_a_line_that_says_how_it_does_and_what_waits_for_it() {
        let engine = |role: &str, state: &str| EngineStatus {
            role: role.into(),
            place: "postgres://ana:***@db/tasks".into(),
            state: state.into(),
            ..EngineStatus::default()
        };
        assert_eq!(
            engine_line(&engine("store", "ok"), PLAIN),
            "store    postgres://ana:***@db/tasks, ok, 0 operations wait (0 B)"
        );
        let lost = EngineStatus {
            since_ms: Some(1_000_000),
            message: Some("connection refused\n".into()),
            waiting: 1200,
            waiting_bytes: 2048,
            standbys: 1,
            ..engine("blobs", "unreachable")
        };
        let line = engine_line(&lost, PLAIN);
        assert!(
            line.starts_with("blobs    postgres://ana:***@db/tasks, unreachable since 1970-01-01 "),
            "{line}"
        );
        assert!(
            line.ends_with(", 1,200 operations wait (2.00 KiB), 1 balancer stands by: connection refused "),
            "{line}"
        );
    }

    #[test]
    fn rows_over_the_bound_are_counted() {
        let text = text(&report(), "x", PLAIN.with_rows(1));
        assert!(text.contains("and 2 more\n"), "{text}");
    }

    #[test]
    fn an_interval_is_between_a_tenth_of_a_second_and_a_day() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "x", "NaN", "1e300", "100000"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
