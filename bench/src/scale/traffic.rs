//! What goes through a balancer: with more and more workers registered, and with larger and larger payloads.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;

use super::ScaleError;
use super::farm::Farm;
use super::link::ACTION;
use super::place::Place;
use super::report::{PayloadRow, WorkersRow};
use crate::load::{self, Options};

/// Connections, except where one task at a time is measured.
const CONNECTIONS: usize = 4;

/// Tasks in flight on each of them.
const WINDOW: usize = 128;

/// Bytes in flight on each of them at most, as long as two tasks are.
const WINDOW_BYTES: usize = 1 << 20;

/// Workers that payloads go through.
const PAYLOAD_WORKERS: usize = 2;

/// Measures tasks of 64 bytes over `workers` workers: many at once, and one at a time.
pub(super) fn workers(
    place: &Place,
    workers: usize,
    duration: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<WorkersRow, ScaleError> {
    let _farm = Farm::start(place.workers, workers)?;
    let options = options(place, 64, duration, stop);
    let many = load::run(&options)?;
    let one = load::run(&Options { connections: 1, window: 1, ..options })?;
    Ok(WorkersRow {
        workers,
        tasks_per_second: many.tasks_per_second,
        p50_us: many.p50_us,
        one_at_a_time_p50_us: one.p50_us,
        failed: many.tasks - many.done + one.tasks - one.done,
    })
}

/// Measures tasks of `bytes` bytes each.
pub(super) fn payload(
    place: &Place,
    bytes: usize,
    duration: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<PayloadRow, ScaleError> {
    let _farm = Farm::start(place.workers, PAYLOAD_WORKERS)?;
    let options = options(place, bytes, duration, stop);
    let report = load::run(&options)?;
    Ok(PayloadRow {
        bytes,
        in_flight: options.window * options.connections,
        tasks_per_second: report.tasks_per_second,
        megabytes_per_second: report.tasks_per_second * bytes as f64 / 1e6,
        p50_us: report.p50_us,
        failed: report.tasks - report.done,
    })
}

fn options(place: &Place, bytes: usize, duration: Duration, stop: &Arc<AtomicBool>) -> Options {
    Options {
        connections: CONNECTIONS,
        window: (WINDOW_BYTES / bytes.max(1)).clamp(2, WINDOW),
        duration,
        stop: Arc::clone(stop),
        ..Options::new(ACTION, Bytes::from(vec![b'x'; bytes]), vec![place.clients.to_string()])
    }
}
