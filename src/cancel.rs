//! `reparto cancel`: stop background tasks.

use std::process::ExitCode;

use reparto_client::{TaskId, TaskState};

use crate::client_side::{BalancerArgs, EXIT_FAILED, EXIT_OK, RECONNECT_FOR, complain, refused};

/// Cancel background tasks.
///
/// A task that runs is stopped at its worker. What has ended already keeps its outcome, which is told on standard error.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto cancel 0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7
  reparto tasks --state queued --json | jq -r .id | xargs reparto cancel

Exit code: 0 all are cancelled, 1 some had ended before, 2 wrong usage, 3 no balancer could be
reached, 5 no task is known by one of the ids.")]
pub(crate) struct Args {
    #[command(flatten)]
    balancer: BalancerArgs,

    /// The tasks' ids.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<TaskId>,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> ExitCode {
    let client = match args.balancer.connect(RECONNECT_FOR) {
        Ok(client) => client,
        Err(code) => return code,
    };
    let mut code = ExitCode::from(EXIT_OK);
    for id in &args.ids {
        match client.cancel_task(*id).and_then(|reply| Ok(reply.wait()?)) {
            Ok(standing) if standing.state == TaskState::Cancelled => {}
            Ok(standing) => {
                complain(&format!("{id} had ended before: it is {}", standing.state));
                code = ExitCode::from(EXIT_FAILED);
            }
            Err(error) => {
                code = refused(&client, &id.to_string(), &error.into_failure());
                if client.unreachable().is_some() {
                    return code;
                }
            }
        }
    }
    code
}
