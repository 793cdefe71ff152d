//! The status report: what the balancer does and holds, as a JSON object.

use bytes::Bytes;
use serde::Serialize;

use crate::dialect::Context;
use crate::scheduler::{ActionStatus, Policy, Scheduler, Time, Totals, WorkerStatus};

/// Most workers, and most actions, in a page.
const MAX_ROWS: usize = 1000;

/// A page ends early once it has this many bytes of names, since a worker may offer a thousand actions.
const MAX_NAME_BYTES: usize = 512 * 1024;

/// Rows asked of the scheduler at a time, so that a page that ends early costs little.
const STRIDE: usize = 50;

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    uptime_ms: u64,
    policy: &'a str,
    totals: Totals,
    workers: Vec<WorkerStatus>,
    actions: Vec<ActionStatus>,
    workers_total: usize,
    actions_total: usize,
}

/// A page of the report. Both lists begin at `offset` and are cut at the same row, so the next page begins
/// after the longer of the two.
pub(super) fn report(context: &Context, now: Time, scheduler: &Scheduler, offset: u32, limit: u32) -> Bytes {
    let rows = usize::try_from(limit).unwrap_or(MAX_ROWS).min(MAX_ROWS);
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let (mut workers, mut actions) = (Vec::new(), Vec::new());
    let (mut taken, mut name_bytes) = (0, 0);
    while taken < rows && name_bytes < MAX_NAME_BYTES {
        let stride = STRIDE.min(rows - taken);
        let start = offset.saturating_add(taken);
        let (more_workers, more_actions) =
            (scheduler.workers(now, start, stride), scheduler.actions(start, stride));
        if more_workers.is_empty() && more_actions.is_empty() {
            break;
        }
        name_bytes += more_workers.iter().map(worker_name_bytes).sum::<usize>();
        name_bytes += more_actions.iter().map(|action| action.name.len()).sum::<usize>();
        workers.extend(more_workers);
        actions.extend(more_actions);
        taken += stride;
    }
    let totals = scheduler.totals();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: now.0 / 1000,
        policy: policy_name(context.policy),
        totals,
        workers,
        actions,
        workers_total: totals.workers,
        actions_total: totals.actions,
    };
    match serde_json::to_vec(&report) {
        Ok(json) => Bytes::from(json),
        Err(error) => {
            log::error!("the status report could not be written as JSON: {error}");
            Bytes::from_static(b"{}")
        }
    }
}

fn worker_name_bytes(worker: &WorkerStatus) -> usize {
    worker.id.len() + worker.actions.iter().map(String::len).sum::<usize>()
}

fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::RoundRobin => "round_robin",
        Policy::LeastLoaded => "least_loaded",
        Policy::Weighted => "weighted",
    }
}
