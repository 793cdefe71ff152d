//! The `reparto` command: finds the subcommand and hands over to its file. No logic of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod balancer;
mod bench;
mod cancel;
mod client_side;
mod dead;
mod demo;
mod get;
mod load;
mod parse;
mod repl;
mod status;
mod submit;
mod table;
mod tasks;
mod worker;

/// A task load balancer: clients hand in tasks, workers run them, nothing is lost on the way.
#[derive(Parser)]
#[command(name = "reparto", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    // It has far more flags than the others.
    Balancer(Box<balancer::Args>),
    Worker(worker::Args),
    Submit(submit::Args),
    Get(get::Args),
    Cancel(cancel::Args),
    Tasks(tasks::Args),
    Dead(dead::Args),
    Repl(repl::Args),
    Status(status::Args),
    Demo(demo::Args),
    Load(load::Args),
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("REPARTO_LOG", "warn")).init();
    match cli.command {
        Command::Balancer(args) => balancer::run(*args),
        Command::Worker(args) => worker::run(args),
        Command::Submit(args) => submit::run(args),
        Command::Get(args) => get::run(args),
        Command::Cancel(args) => cancel::run(&args),
        Command::Tasks(args) => tasks::run(&args),
        Command::Dead(args) => dead::run(args),
        Command::Repl(args) => repl::run(args),
        Command::Status(args) => status::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Load(args) => load::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_of_every_command_fit_together() {
        Cli::command().debug_assert();
    }
}
