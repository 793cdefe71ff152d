//! `reparto get`: the result of a background task.

use std::process::ExitCode;
use std::time::Duration;

use reparto_client::{Fetched, TaskId};

use crate::client_side::{
    BalancerArgs, EXIT_FAILED, EXIT_NOT_ENDED, RECONNECT_FOR, complain, print_alone, refused,
};
use crate::parse;

/// Print the result of a background task.
///
/// The result alone goes to standard output, exactly as the worker gave it. A task that ended without one is told on
/// standard error. When the balancer is lost while this waits, it is looked for, and asked again.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  reparto get 0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7              the result, if it is there
  reparto get --wait 30s 0198f2a4-1c5e-7c3a-b0d1-e2f3a4b5c6d7   wait for it
  reparto submit --background upper hola | xargs reparto get --wait 30s

Exit code: 0 done, 1 ended without a result (failed, dead, cancelled or expired), 2 wrong usage,
3 no balancer could be reached, 4 not ended yet, 5 no task is known by that id.")]
pub(crate) struct Args {
    #[command(flatten)]
    balancer: BalancerArgs,

    /// The task's id, as `reparto submit --background` printed it.
    id: TaskId,

    /// How long to wait for the task to end, such as 30s or 5m; not at all if not given.
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    wait: Option<Duration>,
}

/// Runs it.
pub(crate) fn run(args: Args) -> ExitCode {
    let client = match args.balancer.connect(RECONNECT_FOR) {
        Ok(client) => client,
        Err(code) => return code,
    };
    let reply = client.fetch(args.id, args.wait.unwrap_or_default());
    match reply.and_then(|reply| Ok(reply.wait()?)) {
        Ok(Fetched::Ended(Ok(result))) => print_alone(&result),
        Ok(Fetched::Ended(Err(failure))) => {
            complain(&failure.to_string());
            ExitCode::from(EXIT_FAILED)
        }
        Ok(Fetched::NotEnded(standing)) => {
            complain(&format!("{} is {}; it has not ended yet", args.id, standing.state));
            ExitCode::from(EXIT_NOT_ENDED)
        }
        Err(error) => refused(&client, "", &error.into_failure()),
    }
}
