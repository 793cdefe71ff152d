//! `reparto demo --engines`: two balancers that share PostgreSQL, RabbitMQ and S3, which are found by the usual variables
//! or brought up by `scripts/services` for the time of the demo.

use reparto_bench::engines::{self, Engines};

use super::background::{self, Balancers, Report};
use super::processes::Processes;
use super::temporary::Folder;
use super::{Args, DemoError};

/// How to get the engines, for whoever lacks them.
const HINT: &str = "bring them up and tell where they are with\n  eval \"$(scripts/services up)\"\nwhich installs \
                    them on Debian as root; elsewhere `docker compose up -d --wait` has them too (see compose.yaml), \
                    and REPARTO_POSTGRES_URL, REPARTO_RABBITMQ_URL, REPARTO_S3_URL and the AWS variables tell where";

pub(super) fn show(args: &Args, processes: &Processes) -> Result<Report, DemoError> {
    let folder = Folder::new()?;
    let (_engines, variables) = match engines::balancer_variables(|name| std::env::var(name).ok()) {
        // The AWS variables are handed down as they are.
        Ok(variables) => (None, variables),
        Err(missing) => {
            // It takes some seconds, and minutes where something has to be installed.
            eprintln!("{missing} is not set: bringing up PostgreSQL, RabbitMQ and S3 for this demo.");
            let engines = Engines::start(&folder.path().join("engines"), &engines::ALL)
                .map_err(|error| format!("{error}\n{HINT}"))?;
            let variables = engines.balancer_variables()?;
            (Some(engines), variables)
        }
    };
    let data = ["--data".to_owned(), folder.path().join("data").display().to_string()];
    let balancers = Balancers::start(processes, 2, data.to_vec(), variables)?;
    let report = background::show(args, processes, balancers);
    // Before the engines go.
    processes.kill_all();
    report
}
