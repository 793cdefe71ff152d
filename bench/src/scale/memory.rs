//! What the balancer's memory is spent on: tasks that wait, connections that say nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reparto_protocol::{Message, Role, Task, TaskOptions};

use super::ScaleError;
use super::link::Link;
use super::place::Place;
use super::report::{IdleRow, QueueRow};

/// Bytes written at once when tasks are handed in.
const WRITE_BYTES: usize = 256 * 1024;

/// Open files that this process and the balancer need beside the idle connections.
const OTHER_FILES: u64 = 64;

/// What every waiting task carries: 64 bytes.
const PAYLOAD: &[u8; 64] = &[b'x'; 64];

/// An action that no worker offers, so that its tasks wait.
const NOBODY_DOES_THIS: &str = "wait";

/// Hands in more and more tasks that nobody takes, and looks at the memory.
pub(super) fn queued(place: &Place, sizes: &[usize], stop: &AtomicBool) -> Result<Vec<QueueRow>, ScaleError> {
    let doing = "handing in tasks that wait";
    let mut link = Link::connect(place.clients, Role::Client)?;
    let mut rows = Vec::new();
    let (mut handed_in, before) = (0, place.resident_bytes());
    for size in sizes {
        let (began, first) = (Instant::now(), handed_in);
        while handed_in < *size {
            if stop.load(Ordering::Relaxed) {
                return Ok(rows);
            }
            handed_in += 1;
            let task = Task {
                id: handed_in as u64,
                action: NOBODY_DOES_THIS,
                options: TaskOptions::default(),
                payload: PAYLOAD,
            };
            link.queue(&Message::Task(task));
            if link.gathered() >= WRITE_BYTES {
                link.flush(doing)?;
            }
        }
        link.sync(doing)?;
        let seconds = began.elapsed().as_secs_f64();
        rows.push(QueueRow {
            queued: *size,
            resident_bytes_each: each(before, place.resident_bytes(), *size),
            taken_in_per_second: (handed_in - first) as f64 / seconds.max(1e-9),
        });
    }
    Ok(rows)
}

/// Opens more and more connections that greet and then say nothing, and looks at the memory. `files` is how many
/// this process may have open; there are no more connections than that.
pub(super) fn idle(
    place: &Place,
    sizes: &[usize],
    files: Option<u64>,
    stop: &AtomicBool,
) -> Result<Vec<IdleRow>, ScaleError> {
    let most = files
        .map_or(usize::MAX, |files| usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX));
    // One that was there before, so that what the first connection alone costs is not counted.
    let _first = Link::connect(place.clients, Role::Client)?;
    let before = place.resident_bytes();
    let (mut links, mut rows) = (Vec::new(), Vec::new());
    for size in sizes {
        let connections = (*size).min(most);
        while links.len() < connections {
            if stop.load(Ordering::Relaxed) {
                return Ok(rows);
            }
            links.push(Link::connect(place.clients, Role::Client)?);
        }
        rows.push(IdleRow {
            wanted: *size,
            connections,
            resident_bytes_each: each(before, place.resident_bytes(), connections),
        });
        if connections < *size {
            break;
        }
    }
    Ok(rows)
}

/// What each of `count` things added to the memory.
fn each(before: Option<u64>, after: Option<u64>, count: usize) -> Option<f64> {
    Some((after? as f64 - before? as f64) / count.max(1) as f64)
}
