//! `reparto balancer`.

use std::process::ExitCode;

/// Placeholder.
#[derive(clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args) -> ExitCode {
    ExitCode::SUCCESS
}
