//! How the stores do, for the status report.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Keeper;
use crate::storage::Trouble;

/// Bytes of a place and of a message in the report, at most.
const MOST_TEXT: usize = 1024;

/// What an engine that the balancer depends on is, and how it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineStatus {
    /// What it is for: `store`, `blobs`, `bus`, or `intake`, a queue that tasks are taken from.
    pub role: &'static str,
    /// `sqlite`, `postgres`, `file`, `s3` or `rabbitmq`.
    pub kind: &'static str,
    /// Where it is, without a password.
    pub place: String,
    /// How it does.
    pub state: EngineState,
    /// Since when it cannot be used, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Why it cannot.
    pub message: Option<String>,
    /// Operations that wait for it.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
    /// Other balancers that stand by to take over from this one.
    pub standbys: usize,
}

/// How an engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// It can be used.
    Ok,
    /// It cannot be used now, and is tried again.
    Unreachable,
    /// It cannot be used any more until the balancer is started anew.
    Failed,
}

impl Keeper {
    /// How the stores and the bus do.
    pub(crate) fn engines(&self) -> Vec<EngineStatus> {
        let Some(storage) = &self.storage else { return Vec::new() };
        let status = storage.status();
        let engine = |role, kind, place: String, trouble: Option<Trouble>, (waiting, waiting_bytes)| {
            let state = match &trouble {
                None => EngineState::Ok,
                Some(Trouble { for_good: true, .. }) => EngineState::Failed,
                Some(_) => EngineState::Unreachable,
            };
            let (since_ms, message) =
                trouble.map(|trouble| (millis(trouble.since), cut(trouble.reason))).unzip();
            let standbys = if role == "store" { status.standbys } else { 0 };
            let place = cut(place);
            EngineStatus { role, kind, place, state, since_ms, message, waiting, waiting_bytes, standbys }
        };
        // What the storage took no more of waits for the store as well.
        let (held_back, held_back_bytes) = self.outgoing.held_back();
        let (blobs_waiting, blobs_waiting_bytes) = status.blobs_waiting;
        let waiting = (
            status.waiting.saturating_sub(blobs_waiting) + held_back,
            status.waiting_bytes.saturating_sub(blobs_waiting_bytes) + held_back_bytes,
        );
        let (store, blobs) = (&self.settings.store, &self.settings.blobs);
        let mut engines = vec![
            engine("store", store.kind(), store.to_string(), status.trouble, waiting),
            engine("blobs", blobs.kind(), blobs.to_string(), status.blob_trouble, status.blobs_waiting),
        ];
        if let (Some(sharing), Some(settings)) = (&self.sharing, &self.settings.sharing) {
            let status = sharing.bus.status();
            let trouble = status.trouble.map(|(reason, since)| Trouble { reason, since, for_good: false });
            let waiting = (status.unconfirmed, status.unconfirmed_bytes);
            let bus = settings.bus.place();
            engines.push(engine("bus", "rabbitmq", bus.to_owned(), trouble.clone(), waiting));
            for intake in &sharing.intakes {
                let waiting = intake.waiting();
                engines.push(engine(
                    "intake",
                    "rabbitmq",
                    intake.queue.to_string(),
                    trouble.clone(),
                    waiting,
                ));
            }
        }
        engines
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn cut(mut text: String) -> String {
    text.truncate(reparto_protocol::cut(&text, MOST_TEXT).len());
    text
}
