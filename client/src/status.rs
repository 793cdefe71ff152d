//! The balancer's status report: its parts, and collecting it page by page.

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::ClientError;

/// Workers and actions asked for at once.
const PAGE_ROWS: u32 = 1_000;

/// Workers and actions taken in all; more are left out.
const MAX_ROWS: u32 = 1_000_000;

/// What a balancer is doing. Numbers of long lists come from pages read one after the other, so they may be
/// some milliseconds apart.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The balancer's version.
    pub version: String,
    /// How long it has been running, in milliseconds.
    pub uptime_ms: u64,
    /// How it chooses workers.
    pub policy: String,
    /// What it has done and holds.
    pub totals: Totals,
    /// What it keeps background tasks in, and how that does; none when it keeps none.
    pub engines: Vec<EngineStatus>,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
    /// The actions that it knows.
    pub actions: Vec<ActionStatus>,
    /// How many workers there are.
    pub workers_total: u64,
    /// How many actions there are.
    pub actions_total: u64,
}

/// What a balancer has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Clients connected now.
    pub clients: u64,
    /// Workers registered now.
    pub workers: u64,
    /// Actions known now.
    pub actions: u64,
    /// Tasks that wait now.
    pub queued: u64,
    /// Tasks that workers hold now.
    pub running: u64,
    /// Bytes of payload held now.
    pub bytes: u64,
    /// Tasks taken since the start.
    pub submitted: u64,
    /// Tasks refused since the start.
    pub refused: u64,
    /// Tasks that ended with a result.
    pub done: u64,
    /// Tasks that ended with an error after they were taken.
    pub failed: u64,
    /// Assignments that came back because their worker was lost or handed them back.
    pub requeued: u64,
    /// Workers lost with work in hand, or silent too long.
    pub workers_lost: u64,
}

/// How a store, or another engine that a balancer depends on, does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineStatus {
    /// What it is for: `store` or `blobs`.
    pub role: String,
    /// `sqlite`, `postgres`, `file` or `s3`.
    pub kind: String,
    /// Where it is, without a password.
    pub place: String,
    /// `ok`; `unreachable`, and tried again; or `failed` for good.
    pub state: String,
    /// Since when it is not `ok`, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Why it is not.
    pub message: Option<String>,
    /// Operations that wait for it.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Other balancers that stand by to take over from this one.
    pub standbys: u64,
}

/// What a worker is doing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Its id.
    pub id: String,
    /// Tasks that it runs at once.
    pub threads: u64,
    /// Tasks that it holds at most.
    pub window: u64,
    /// Its share under the policy `weighted`.
    pub weight: u64,
    /// Tasks that it holds now.
    pub in_flight: u64,
    /// Assignments that it has done.
    pub done: u64,
    /// Assignments that it said failed.
    pub failed: u64,
    /// Its mean time a task, in nanoseconds, if it told.
    pub service_ns: Option<u64>,
    /// It takes nothing new.
    pub draining: bool,
    /// What it can do.
    pub actions: Vec<String>,
    /// Microseconds since it registered.
    pub connected_us: u64,
}

/// How an action is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ActionStatus {
    /// Its name.
    pub name: String,
    /// Workers that offer it.
    pub workers: u64,
    /// Tasks that wait.
    pub queued: u64,
    /// Tasks that workers hold.
    pub running: u64,
}

/// Asks for page after page until everything is there.
pub(crate) fn fetch(client: &Client) -> Result<Status, ClientError> {
    let mut whole: Option<Status> = None;
    let mut offset = 0;
    loop {
        let bytes = client.status_page(offset, PAGE_ROWS)?;
        let page: Status =
            serde_json::from_slice(&bytes).map_err(|error| ClientError::BadReport(error.to_string()))?;
        // A balancer may give fewer rows than were asked for, but the same number of both while both last.
        let rows = page.workers.len().max(page.actions.len());
        offset = offset.saturating_add(u32::try_from(rows).unwrap_or(u32::MAX));
        let total = page.workers_total.max(page.actions_total);
        let status = match &mut whole {
            None => whole.insert(page),
            Some(status) => {
                status.workers.extend(page.workers);
                status.actions.extend(page.actions);
                status
            }
        };
        if rows == 0 || u64::from(offset) >= total || offset >= MAX_ROWS {
            return Ok(std::mem::take(status));
        }
    }
}
