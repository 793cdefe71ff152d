//! `reparto tasks`: the background tasks that a balancer keeps.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use reparto_client::{Client, ClientError, TaskDescription, TaskFilter, TaskState};

use crate::client_side::{BalancerArgs, RECONNECT_FOR, conclude_output, refused};
use crate::parse;
use crate::table::{Look, cut, one_line, table};

/// Tasks shown in a table, unless asked for otherwise.
const DEFAULT_ROWS: usize = 100;

/// Characters of an action that are shown.
const ACTION_WIDTH: usize = 24;

/// Characters of an error that are shown.
const ERROR_WIDTH: usize = 60;

/// List the background tasks that a balancer keeps, the newest first.
///
/// A task is scheduled (not due yet), queued or running, and ends done, failed (its worker said so for good), dead (its
/// attempts are used up), cancelled or expired. What has ended is kept for the balancer's --keep-results.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto tasks                                     the newest 100
  reparto tasks --state failed --since 1h           what failed of the tasks of the last hour
  reparto tasks --action thumbnail --json | jq -r 'select(.attempts > 1) | .id'

Exit code: 0, 1 the balancer refused, 2 wrong usage, 3 no balancer could be reached.")]
pub(crate) struct Args {
    #[command(flatten)]
    balancer: BalancerArgs,

    #[command(flatten)]
    filter: FilterArgs,

    /// Only those in this state.
    #[arg(long, value_parser = states())]
    state: Option<TaskState>,

    #[command(flatten)]
    form: FormArgs,
}

/// Which tasks to list.
#[derive(clap::Args, Debug)]
pub(crate) struct FilterArgs {
    /// Only this action's.
    #[arg(long)]
    action: Option<String>,

    /// Only those taken in since then: a time ago, such as 90m or 2d, or a moment, such as 2026-11-20T18:00 (here) or
    /// 2026-11-20T18:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = parse::since)]
    since: Option<SystemTime>,
}

impl FilterArgs {
    /// The filter that they make.
    pub(crate) fn filter(&self, state: Option<TaskState>) -> TaskFilter {
        let mut filter = TaskFilter::new();
        if let Some(action) = &self.action {
            filter = filter.action(action);
        }
        if let Some(since) = self.since {
            filter = filter.since(since);
        }
        if let Some(state) = state {
            filter = filter.state(state);
        }
        filter
    }
}

/// How to show them.
#[derive(clap::Args, Debug)]
pub(crate) struct FormArgs {
    /// Print one JSON object a line, with times in milliseconds since 1970, UTC.
    #[arg(long)]
    json: bool,

    /// Tasks to show at most [default: 100, with --json all].
    #[arg(long, value_name = "TASKS")]
    limit: Option<usize>,
}

fn states() -> impl TypedValueParser<Value = TaskState> {
    PossibleValuesParser::new(TaskState::ALL.map(TaskState::name))
        .try_map(|name| TaskState::from_name(&name).ok_or("it is no state"))
}

/// Runs it.
pub(crate) fn run(args: &Args) -> ExitCode {
    match args.balancer.connect(RECONNECT_FOR) {
        Ok(client) => list(&client, args.filter.filter(args.state), &args.form),
        Err(code) => code,
    }
}

/// Lists the tasks that a filter lets through.
pub(crate) fn list(client: &Client, filter: TaskFilter, form: &FormArgs) -> ExitCode {
    let tasks = client.tasks(filter);
    let listed = if form.json {
        write_json(tasks.take(form.limit.unwrap_or(usize::MAX)))
    } else {
        write_table(tasks, form.limit.unwrap_or(DEFAULT_ROWS))
    };
    match listed {
        Ok(written) => conclude_output(written),
        Err(error) => refused(client, "", &error.into_failure()),
    }
}

type Task = Result<TaskDescription, ClientError>;

fn write_json(tasks: impl Iterator<Item = Task>) -> Result<io::Result<()>, ClientError> {
    let mut output = BufWriter::new(io::stdout().lock());
    for task in tasks {
        let written = serde_json::to_writer(&mut output, &task?).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| output.write_all(b"\n")) {
            return Ok(Err(error));
        }
    }
    Ok(output.flush())
}

fn write_table(mut tasks: impl Iterator<Item = Task>, most: usize) -> Result<io::Result<()>, ClientError> {
    let rows =
        tasks.by_ref().take(most).map(|task| Ok(row(&task?))).collect::<Result<Vec<_>, ClientError>>()?;
    let mut text = String::new();
    if rows.is_empty() {
        text.push_str("no tasks\n");
    } else {
        let heads = ["TASK", "ACTION", "STATE", "ATTEMPTS", "CREATED", "DUE", "ENDED", "ERROR"];
        let all = rows.len();
        table(&mut text, Look::of_stdout(), &heads, &[0, 1, 2, 4, 5, 6, 7], rows, all);
    }
    if tasks.next().transpose()?.is_some() {
        text.push_str("there are more; see them with --limit\n");
    }
    Ok(io::stdout().lock().write_all(text.as_bytes()))
}

fn row(task: &TaskDescription) -> Vec<String> {
    let moment = |ms: Option<u64>| ms.map_or_else(|| "-".into(), parse::shown_moment);
    vec![
        task.id.to_string(),
        cut(&one_line(&task.action), ACTION_WIDTH),
        task.state.to_string(),
        format!("{}/{}", task.attempts, task.max_attempts),
        parse::shown_moment(task.created_at_ms),
        moment(task.due_at_ms),
        moment(task.ended_at_ms),
        cut(&one_line(task.error.as_deref().unwrap_or_default()), ERROR_WIDTH),
    ]
}

/// All that is known of a task, for people.
pub(crate) fn text(task: &TaskDescription) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12}{}", one_line(value));
    };
    line("task", &task.id.to_string());
    line("action", &task.action);
    line("state", task.state.name());
    line("priority", &task.priority.to_string());
    line("attempts", &format!("{} of {}", task.attempts, task.max_attempts));
    let moments = [
        ("created", Some(task.created_at_ms)),
        ("due", task.due_at_ms),
        ("deadline", task.deadline_at_ms),
        ("ended", task.ended_at_ms),
    ];
    for (name, ms) in moments {
        if let Some(ms) = ms {
            line(name, &parse::shown_moment(ms));
        }
    }
    if task.code.is_some() || task.error.is_some() {
        line("error", &sentence(task.code.as_deref(), task.error.as_deref()));
    }
    for failed in task.failed_attempts.iter().flatten() {
        let worker = failed.worker.as_deref().unwrap_or("an unknown worker");
        let why = sentence(failed.code.as_deref(), failed.error.as_deref());
        let when = parse::shown_moment(failed.at_ms);
        line(&format!("attempt {}", failed.attempt), &format!("{when} at {worker}: {why}"));
    }
    text
}

fn sentence(code: Option<&str>, error: Option<&str>) -> String {
    [code, error].into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use reparto_client::FailedAttempt;

    use super::*;

    #[test]
    fn a_task_is_shown_with_its_history_and_nothing_that_drives_the_terminal() {
        let task = TaskDescription {
            id: "0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7".parse().unwrap(),
            action: "up\x1b[2Jper".into(),
            state: TaskState::Dead,
            priority: 4,
            attempts: 3,
            max_attempts: 3,
            created_at_ms: 0,
            due_at_ms: None,
            deadline_at_ms: None,
            ended_at_ms: Some(1_000),
            code: Some("attempts_exhausted".into()),
            error: Some("the disk\nis busy".into()),
            failed_attempts: Some(vec![FailedAttempt {
                attempt: 1,
                worker: Some("ana".into()),
                code: Some("worker_failed".into()),
                error: Some("busy".into()),
                ..FailedAttempt::default()
            }]),
        };
        let text = text(&task);
        assert!(!text.contains('\x1b') && !text.contains("due"), "{text}");
        assert!(text.contains("state       dead\n") && text.contains("attempts    3 of 3\n"), "{text}");
        assert!(text.contains("error       attempts_exhausted: the disk is busy\n"), "{text}");
        assert!(text.contains(" at ana: worker_failed: busy\n"), "{text}");
        assert_eq!(row(&task)[3], "3/3");
    }
}
