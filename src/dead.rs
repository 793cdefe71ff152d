//! `reparto dead`: tasks whose attempts are used up, looked at, given new attempts, or forgotten.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::process::ExitCode;

use reparto_client::{Client, ClientError, Reply, TaskId, TaskStanding, TaskState};

use crate::client_side::{BalancerArgs, EXIT_FAILED, RECONNECT_FOR, complain, conclude_output, refused};
use crate::tasks::{self, FilterArgs, FormArgs};

/// Retries or drops under way at a time: as many as one commit of the store may take together.
const MOST_UNDER_WAY: usize = 256;

/// Look at background tasks whose attempts are used up; retry or drop them.
///
/// A task is dead once it has used up its attempts, because its worker asked for another one each time or was lost. It
/// stays, with its last error and its history, until it is retried, dropped, or its time (the balancer's
/// --keep-results) is over.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto dead list --since 1d                      those of the tasks of the last day
  reparto dead show 0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7
  reparto dead retry 0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7
  reparto dead retry --all --action thumbnail       all of an action, once its worker is mended
  reparto dead drop --all

Exit code: 0, 1 some were not dead or the balancer refused, 2 wrong usage, 3 no balancer could be
reached, 5 no task is known by one of the ids.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List dead tasks, the newest first.
    List {
        #[command(flatten)]
        balancer: BalancerArgs,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Show all that is known of a task: its last error, and what became of each attempt.
    Show {
        #[command(flatten)]
        balancer: BalancerArgs,
        /// The task's id.
        id: TaskId,
        /// Print it as one JSON object on a line.
        #[arg(long)]
        json: bool,
    },
    /// Give dead tasks all their attempts anew, and print the ids of those that were.
    Retry(Which),
    /// Forget dead tasks, with their history, and print the ids of those that were.
    Drop(Which),
}

/// Which dead tasks.
#[derive(clap::Args, Debug)]
struct Which {
    #[command(flatten)]
    balancer: BalancerArgs,

    /// The tasks' ids.
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<TaskId>,

    /// All dead tasks, or those that --action and --since let through.
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: FilterArgs,
}

/// Runs it.
pub(crate) fn run(args: Args) -> ExitCode {
    let balancer = match &args.command {
        Command::List { balancer, .. } | Command::Show { balancer, .. } => balancer,
        Command::Retry(which) | Command::Drop(which) => &which.balancer,
    };
    let client = match balancer.connect(RECONNECT_FOR) {
        Ok(client) => client,
        Err(code) => return code,
    };
    match args.command {
        Command::List { filter, form, .. } => {
            tasks::list(&client, filter.filter(Some(TaskState::Dead)), &form)
        }
        Command::Show { id, json, .. } => show(&client, id, json),
        Command::Retry(which) => Change::new(&client, What::Retry).run(&which),
        Command::Drop(which) => Change::new(&client, What::Drop).run(&which),
    }
}

fn show(client: &Client, id: TaskId, json: bool) -> ExitCode {
    let task = match client.describe(id) {
        Ok(task) => task,
        Err(error) => return refused(client, &id.to_string(), &error.into_failure()),
    };
    let mut output = io::stdout().lock();
    if json {
        let written = serde_json::to_writer(&mut output, &task).map_err(io::Error::from);
        return conclude_output(written.and_then(|()| writeln!(output)));
    }
    conclude_output(output.write_all(tasks::text(&task).as_bytes()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Retry,
    Drop,
}

/// Retries or drops under way.
struct Change<'a> {
    client: &'a Client,
    what: What,
    under_way: VecDeque<(TaskId, Reply<TaskStanding>)>,
    written: io::Result<()>,
    code: Option<ExitCode>,
}

impl<'a> Change<'a> {
    fn new(client: &'a Client, what: What) -> Change<'a> {
        Change { client, what, under_way: VecDeque::new(), written: Ok(()), code: None }
    }

    fn run(mut self, which: &Which) -> ExitCode {
        if which.all {
            for task in self.client.tasks(which.filter.filter(Some(TaskState::Dead))) {
                match task {
                    Ok(task) => self.begin(task.id),
                    Err(error) => self.failed(None, error),
                }
                if self.cannot_go_on() {
                    break;
                }
            }
        }
        for id in &which.ids {
            // A task that has ended otherwise has an outcome that somebody may still want.
            match self.client.describe(*id) {
                Ok(task) if task.state == TaskState::Dead => self.begin(*id),
                Ok(task) => self.not_dead(*id, task.state),
                Err(error) => self.failed(Some(*id), error),
            }
            if self.cannot_go_on() {
                break;
            }
        }
        while let Some((id, reply)) = self.under_way.pop_front() {
            self.end(id, &reply);
        }
        self.code.unwrap_or_else(|| conclude_output(self.written))
    }

    fn begin(&mut self, id: TaskId) {
        if self.under_way.len() == MOST_UNDER_WAY
            && let Some((id, reply)) = self.under_way.pop_front()
        {
            self.end(id, &reply);
        }
        let asked = match self.what {
            What::Retry => self.client.retry_task(id),
            What::Drop => self.client.drop_task(id),
        };
        match asked {
            Ok(reply) => self.under_way.push_back((id, reply)),
            Err(error) => self.failed(Some(id), error),
        }
    }

    fn end(&mut self, id: TaskId, reply: &Reply<TaskStanding>) {
        let wanted = match self.what {
            What::Retry => TaskState::Queued,
            What::Drop => TaskState::Dead,
        };
        match reply.wait() {
            Ok(standing) if standing.state == wanted => {
                if self.written.is_ok() {
                    self.written = writeln!(io::stdout().lock(), "{id}");
                }
            }
            Ok(standing) => self.not_dead(id, standing.state),
            Err(failure) => self.failed(Some(id), failure.into()),
        }
    }

    fn not_dead(&mut self, id: TaskId, state: TaskState) {
        complain(&format!("{id} is {state}, not dead; it was left as it is"));
        self.code.get_or_insert(ExitCode::from(EXIT_FAILED));
    }

    fn failed(&mut self, id: Option<TaskId>, error: ClientError) {
        let about = id.map_or_else(String::new, |id| id.to_string());
        self.code = Some(refused(self.client, &about, &error.into_failure()));
    }

    /// Nobody answers any more.
    fn cannot_go_on(&self) -> bool {
        self.client.unreachable().is_some()
    }
}
