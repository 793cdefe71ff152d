//! A balancer killed with SIGKILL while its store is full of tasks, and started again.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use reparto_client::{Client, TaskFilter, TaskState};

use super::life::{SCENARIO, accept_one, hand_in, wait_until_recorded};
use super::peer::{Balancer, Store};
use super::report::RestartReport;
use super::run::{Options, Session};
use crate::peers::error::PeersError;
use crate::peers::process::Folder;
use crate::raw::{Reparto, RepartoBackground, Workers};

/// Time for the tasks with which it was looked to end.
const LOOKED_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn run(session: &Session<'_>) -> Result<Option<RestartReport>, PeersError> {
    session.attempt("reparto, restart", || measure(session.options, session.stop))
}

fn measure(options: &Options, stop: &AtomicBool) -> Result<RestartReport, PeersError> {
    let library = |error: &dyn std::fmt::Display| PeersError::Library(error.to_string());
    let data = Folder::new_in(&options.folder)?;
    let start = || Balancer::start(&options.program, &options.folder, Store::In(data.path(), "fsync"));
    let (balancer, tasks) = (start()?, options.restart_tasks);
    hand_in(&RepartoBackground, balancer.clients, tasks, stop)?;
    // Its process is killed.
    drop(balancer);

    let began = Instant::now();
    let balancer = start()?;
    let ready = began.elapsed();
    let client = Client::connect([balancer.clients.to_string()]).map_err(|error| library(&error))?;
    accept_one(&client)?;
    let serves = began.elapsed();
    let failed = PeersError::raw("reparto");
    let workers =
        Workers::connect(&Reparto, balancer.workers, SCENARIO.workers(), SCENARIO.size).map_err(&failed)?;
    let working = Instant::now();
    wait_until_recorded(balancer.clients, tasks + 1, stop)?;
    let all_ended = working.elapsed();
    let open_tasks = open_tasks(&client)?;
    workers.stop().map_err(&failed)?;
    Ok(RestartReport { tasks, ready, serves, all_ended, open_tasks })
}

/// Tasks that have not ended, up to 100 of each state. Those with which it was looked are given a moment to end.
fn open_tasks(client: &Client) -> Result<u64, PeersError> {
    let until = Instant::now() + LOOKED_WITHIN;
    loop {
        let mut open = 0;
        for state in [TaskState::Scheduled, TaskState::Queued, TaskState::Running] {
            for task in client.tasks(TaskFilter::new().state(state)).take(100) {
                task.map_err(|error| PeersError::Library(error.to_string()))?;
                open += 1;
            }
        }
        if open == 0 || Instant::now() >= until {
            return Ok(open);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
