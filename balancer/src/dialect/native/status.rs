//! The status report: what the balancer does and holds, as a JSON object.

use bytes::Bytes;
use serde::Serialize;

use crate::background::EngineStatus;
use crate::dialect::Context;
use crate::scheduler::{ActionStatus, Policy, Scheduler, Time, Totals, WorkerStatus};

/// Most workers, and most actions, in a page.
const MAX_ROWS: usize = 1000;

/// A page ends before it has more bytes of rows than this, since a worker may offer a thousand actions.
const PAGE_BYTES: usize = 512 * 1024;

/// Rows asked of the scheduler at a time, so that a page that ends early costs little.
const STRIDE: usize = 50;

/// What stands in a report before its rows.
#[derive(Serialize)]
struct Head<'a> {
    version: &'static str,
    uptime_ms: u64,
    policy: &'a str,
    totals: Totals,
    engines: &'a [EngineStatus],
    workers_total: usize,
    actions_total: usize,
}

/// The rows of a page, as JSON.
#[derive(Debug, Default)]
struct Page {
    workers: Vec<u8>,
    actions: Vec<u8>,
}

impl Page {
    fn len(&self) -> usize {
        self.workers.len() + self.actions.len()
    }
}

/// A page of the report. Both lists begin at `offset` and are cut at the same row, so the next page begins
/// after the longer of the two. The rows take no more bytes than the largest frame that the balancer takes; what is
/// around them has room in [`RELAY_SLACK_BYTES`](reparto_protocol::limits::RELAY_SLACK_BYTES).
pub fn report(
    context: &Context,
    now: Time,
    scheduler: &Scheduler,
    engines: &[EngineStatus],
    (offset, limit): (u32, u32),
) -> Bytes {
    let rows = usize::try_from(limit).unwrap_or(MAX_ROWS).min(MAX_ROWS);
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let frame_bytes = usize::try_from(context.max_frame_bytes).unwrap_or(usize::MAX);
    let mut page = Page::default();
    let mut taken = 0;
    while taken < rows {
        let stride = STRIDE.min(rows - taken);
        let start = offset.saturating_add(taken);
        let mut workers = scheduler.workers(now, start, stride).into_iter();
        let mut actions = scheduler.actions(start, stride).into_iter();
        let fitted = add_rows(&mut page, frame_bytes, &mut workers, &mut actions);
        taken += fitted;
        if fitted < stride {
            break;
        }
    }
    let totals = scheduler.totals();
    let head = Head {
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: now.0 / 1000,
        policy: policy_name(context.policy),
        totals,
        engines,
        workers_total: totals.workers,
        actions_total: totals.actions,
    };
    let mut report = json(&head);
    // Its closing brace comes after the rows.
    report.pop();
    for (name, rows) in [("workers", page.workers), ("actions", page.actions)] {
        report.extend_from_slice(format!(",\"{name}\":[").as_bytes());
        report.extend_from_slice(&rows);
        report.push(b']');
    }
    report.push(b'}');
    Bytes::from(report)
}

/// Adds rows to a page while there are any and it has room for them. Says how many, of the longer list.
fn add_rows(
    page: &mut Page,
    frame_bytes: usize,
    workers: &mut impl Iterator<Item = WorkerStatus>,
    actions: &mut impl Iterator<Item = ActionStatus>,
) -> usize {
    for fitted in 0.. {
        let (worker, action) = (workers.next(), actions.next());
        if worker.is_none() && action.is_none() {
            return fitted;
        }
        let action = action.map(|action| json(&action)).unwrap_or_default();
        let worker_bytes = frame_bytes.saturating_sub(action.len() + SEPARATORS_BYTES);
        let worker = worker.map(|worker| worker_row(worker, worker_bytes)).unwrap_or_default();
        let bytes = page.len() + worker.len() + action.len() + SEPARATORS_BYTES;
        if page.len() > 0 && bytes > PAGE_BYTES.min(frame_bytes) {
            return fitted;
        }
        append(&mut page.workers, &worker);
        append(&mut page.actions, &action);
    }
    0
}

/// The commas before a worker and before an action.
const SEPARATORS_BYTES: usize = 2;

fn append(rows: &mut Vec<u8>, row: &[u8]) {
    if !row.is_empty() {
        if !rows.is_empty() {
            rows.push(b',');
        }
        rows.extend_from_slice(row);
    }
}

/// A worker's row. Where it would be longer than `most`, as names of control characters are in JSON, it is shown with
/// those of its actions that fit.
fn worker_row(mut worker: WorkerStatus, most: usize) -> Vec<u8> {
    let row = json(&worker);
    let mut excess = row.len().saturating_sub(most);
    if excess == 0 {
        return row;
    }
    while excess > 0
        && let Some(name) = worker.actions.pop()
    {
        excess = excess.saturating_sub(json(&name).len());
    }
    json(&worker)
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| {
        log::error!("a part of the status report could not be written as JSON: {error}");
        b"{}".to_vec()
    })
}

fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::RoundRobin => "round_robin",
        Policy::LeastLoaded => "least_loaded",
        Policy::Weighted => "weighted",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use reparto_protocol::{HEADER_BYTES, limits};

    use super::*;
    use crate::scheduler::{Config, Event, Peer, Registration};

    fn context(max_frame_bytes: u32) -> Context {
        Context {
            clients: ([127, 0, 0, 1], 1).into(),
            workers: ([127, 0, 0, 1], 2).into(),
            max_frame_bytes,
            heartbeat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            policy: Policy::default(),
            has_store: false,
            gearman: Default::default(),
            lines_action: "default".into(),
        }
    }

    /// A scheduler with workers that each offer actions of their own, whose names are filled up with `fill`.
    fn scheduler(workers: u32, actions: u32, fill: &str) -> Scheduler {
        let mut scheduler = Scheduler::new(Config::default());
        for index in 0..workers {
            let names: Vec<String> =
                (0..actions).map(|action| format!("{index}.{action}.{}", fill.repeat(240))).collect();
            let registration = Registration {
                request: 1,
                worker_id: &format!("w{index}"),
                threads: 1,
                window: 1,
                weight: 1,
                service_ns: None,
                heartbeats: true,
                held: Vec::new(),
                actions: names.iter().map(String::as_str).collect(),
            };
            let peer = Peer { index, generation: 1 };
            scheduler.handle(Time(0), Event::Register { peer, registration }, &mut Vec::new());
        }
        scheduler
    }

    /// Turns the pages as clients do, and says how many actions each worker was shown with.
    fn turn_pages(max_frame_bytes: u32, scheduler: &Scheduler) -> BTreeMap<String, usize> {
        let most = (max_frame_bytes + limits::RELAY_SLACK_BYTES) as usize;
        let (mut offset, mut seen, mut actions_seen) = (0, BTreeMap::new(), 0);
        loop {
            let report = report(&context(max_frame_bytes), Time(1), scheduler, &[], (offset, u32::MAX));
            assert!(HEADER_BYTES + report.len() <= most, "a report of {} bytes", report.len());
            let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
            let rows = |name: &str| report[name].as_array().expect("a list").clone();
            let (workers, actions) = (rows("workers"), rows("actions"));
            for worker in &workers {
                let id = worker["id"].as_str().expect("an id").to_owned();
                let again = seen.insert(id, worker["actions"].as_array().expect("a list").len());
                assert_eq!(again, None, "a worker stands in two pages");
            }
            actions_seen += actions.len();
            offset += workers.len().max(actions.len()) as u32;
            if workers.is_empty() && actions.is_empty() {
                assert_eq!(actions_seen, scheduler.totals().actions);
                return seen;
            }
        }
    }

    #[test]
    fn a_report_is_no_longer_than_the_frames_that_the_balancer_may_send() {
        let seen = turn_pages(limits::MIN_MAX_FRAME_BYTES, &scheduler(20, 400, "a"));
        assert_eq!(seen.len(), 20);
        assert!(seen.values().all(|actions| *actions == 400), "{seen:?}");
    }

    #[test]
    fn a_worker_whose_names_do_not_fit_in_a_frame_is_shown_with_those_that_do() {
        let seen = turn_pages(limits::MIN_MAX_FRAME_BYTES, &scheduler(3, 500, "\u{1}"));
        assert_eq!(seen.len(), 3);
        assert!(seen.values().all(|actions| (50..500).contains(actions)), "{seen:?}");
    }

    #[test]
    fn a_large_frame_holds_a_worker_with_all_its_names() {
        let seen = turn_pages(limits::DEFAULT_MAX_FRAME_BYTES, &scheduler(3, 1024, "\u{1}"));
        assert_eq!(seen.len(), 3);
        assert!(seen.values().all(|actions| *actions == 1024), "{seen:?}");
    }
}
