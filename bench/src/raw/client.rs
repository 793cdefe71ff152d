//! Clients that keep a window full, or a rate, and measure what comes back.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::link::Link;
use super::open_loop;
use super::{ClientCodec, ClientProtocol, MIN_PAYLOAD_BYTES, Output, RawError};

/// Most connections of a load.
const MAX_CONNECTIONS: usize = 1024;

/// Most tasks in flight on a connection.
const MAX_WINDOW: usize = 1 << 20;

/// Largest payload of a load: 1 GiB.
const MAX_SIZE: usize = 1 << 30;

/// With more bytes than this in flight, a connection polls instead of blocking. All the sockets on a task's way
/// there and back hold more than this together, so that up to here nobody comes to wait in a write for good.
const BLOCKING_BYTES: usize = 256 * 1024;

/// The unit of recorded latencies. A finer one would only make the histogram larger.
const LATENCY_UNIT_NS: u64 = 100;

/// The longest latency that is told apart: ten minutes. Longer ones count as this long.
const MAX_LATENCY: u64 = 600 * 1_000_000_000 / LATENCY_UNIT_NS;

/// How clients pace their tasks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Closed loop: each connection keeps its window full.
    Window,
    /// Open loop: this many tasks a second over all connections, whatever comes back. A task's latency counts from
    /// the moment it was due, so a stall hurts every task that was due in it.
    Rate(f64),
}

/// What clients are to do.
#[derive(Debug, Clone)]
pub struct Load {
    /// Connections, each driven by a thread of its own.
    pub connections: usize,
    /// Closed loop: tasks in flight on each connection.
    pub window: usize,
    /// Bytes of each payload, at least [`MIN_PAYLOAD_BYTES`].
    pub size: usize,
    /// Time that is driven, but not measured, first.
    pub warm_up: Duration,
    /// Time that is measured.
    pub duration: Duration,
    /// What makes a client send.
    pub pace: Pace,
    /// Closed loop: most tasks that each connection hands in; it ends once they are answered.
    pub tasks: u64,
    /// The number of the first client. Loads that are driven at one server at the same time need numbers apart.
    pub first_client: usize,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            connections: 4,
            window: 128,
            size: 64,
            warm_up: Duration::ZERO,
            duration: Duration::from_secs(2),
            pace: Pace::Window,
            tasks: u64::MAX,
            first_client: 0,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// Tasks answered in the measured time.
    pub tasks: u64,
    /// The measured time.
    pub duration: Duration,
    /// Tasks that had no answer when an open loop gave up waiting; their latencies count as the time until then.
    pub unanswered: u64,
    latency: Histogram<u64>,
}

impl Measurement {
    pub(crate) fn new(duration: Duration) -> Result<Measurement, RawError> {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY, 3)
            .map_err(|error| RawError::Load(format!("a histogram cannot be made: {error}")))?;
        Ok(Measurement { tasks: 0, duration, unanswered: 0, latency })
    }

    /// Records `count` tasks of this latency.
    #[inline]
    pub(crate) fn record(&mut self, latency_ns: u64, count: u64) {
        self.latency.saturating_record_n((latency_ns / LATENCY_UNIT_NS).max(1), count);
    }

    pub(crate) fn add(&mut self, other: &Measurement) -> Result<(), RawError> {
        self.tasks += other.tasks;
        self.unanswered += other.unanswered;
        // Both have the same bounds, so this cannot fail; if it ever did, it would be said.
        self.latency.add(&other.latency).map_err(|error| RawError::Load(error.to_string()))
    }

    /// Tasks whose latency was recorded.
    pub fn latency_count(&self) -> u64 {
        self.latency.len()
    }

    /// Tasks answered a second.
    pub fn tasks_per_second(&self) -> f64 {
        self.tasks as f64 / self.duration.as_secs_f64().max(1e-9)
    }

    /// The latency, in microseconds, that this share of the tasks did not exceed; 0 without any.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        if self.latency.is_empty() {
            return 0.0;
        }
        self.latency.value_at_quantile(quantile) as f64 * LATENCY_UNIT_NS as f64 / 1000.0
    }
}

/// Drives a load against a server, until it is measured and everything in flight is answered.
///
/// Raising `stop` ends it early.
///
/// # Errors
/// A load out of its bounds; a server that does not take a connection, refuses a task, answers it twice or not
/// within 30 s, or sends what makes no sense; [`RawError::Interrupted`] when `stop` was raised.
pub fn drive(
    protocol: &dyn ClientProtocol,
    address: SocketAddr,
    load: &Load,
    stop: &AtomicBool,
) -> Result<Measurement, RawError> {
    check(load)?;
    if let Pace::Rate(rate) = load.pace {
        return open_loop::drive(protocol, address, load, rate, stop);
    }
    let mut connections = Vec::with_capacity(load.connections);
    for number in 0..load.connections {
        let mut codec = protocol.client(load.first_client + number, load.size);
        let frame_bytes = load.size.saturating_add(protocol.overhead_bytes());
        // What a frame has beside its payload is about a hundred bytes in every protocol.
        let polls = (load.size + 128).saturating_mul(load.window) > BLOCKING_BYTES;
        let output = Output::with_payload(vec![b'x'; load.size]);
        let mut link = Link::connect(address, output, frame_bytes, polls)?;
        handshake(&mut link, codec.as_mut())?;
        connections.push((link, codec));
    }
    let begin = Instant::now();
    let measurements: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = connections
            .into_iter()
            .map(|(link, codec)| scope.spawn(move || closed_loop(link, codec, load, begin, stop)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
    });
    let mut all = Measurement::new(load.duration)?;
    for measurement in measurements {
        all.add(&measurement?)?;
    }
    if stop.load(Ordering::Relaxed) { Err(RawError::Interrupted) } else { Ok(all) }
}

pub(super) fn panicked() -> RawError {
    RawError::Load("a client's thread panicked".into())
}

fn check(load: &Load) -> Result<(), RawError> {
    let bounded = |what: &str, value: usize, least: usize, most: usize| {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(RawError::Load(format!("{what} is {value}, but must be {least} to {most}")))
    };
    bounded("the number of connections", load.connections, 1, MAX_CONNECTIONS)?;
    bounded("the window", load.window, 1, MAX_WINDOW)?;
    bounded("the payload's size in bytes", load.size, MIN_PAYLOAD_BYTES, MAX_SIZE)
}

/// Greets, and waits until the server has answered.
pub(super) fn handshake(link: &mut Link, codec: &mut dyn ClientCodec) -> Result<(), RawError> {
    codec.greet(&mut link.output);
    while !codec.ready() {
        link.exchange()?;
        let (input, output) = link.split();
        let taken = codec.read(input, output, &mut Vec::new())?;
        link.consume(taken);
    }
    Ok(())
}

/// What stands for a slot that has no task in flight.
const IDLE: u64 = u64::MAX;

/// One connection's closed loop. A task's number is its slot in the window.
fn closed_loop(
    mut link: Link,
    mut codec: Box<dyn ClientCodec>,
    load: &Load,
    begin: Instant,
    stop: &AtomicBool,
) -> Result<Measurement, RawError> {
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1);
    let measured_from = nanoseconds(load.warm_up);
    let measured_to = nanoseconds(load.warm_up.saturating_add(load.duration));
    let mut measurement = Measurement::new(load.duration)?;
    let mut sent_at = vec![IDLE; load.window];
    let mut to_send: Vec<u64> = (0..load.window as u64).collect();
    let mut done = Vec::with_capacity(load.window);
    let mut in_flight = 0;
    let mut left = load.tasks;
    let mut now = nanoseconds(begin.elapsed());
    let mut has_begun = false;
    loop {
        // One window is sent also by a thread that got no processor until the time was over.
        if (now < measured_to || !has_begun) && left > 0 && !stop.load(Ordering::Relaxed) {
            has_begun = true;
            to_send.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= to_send.len() as u64;
            codec.tasks(&to_send, &mut link.output);
            for slot in &to_send {
                sent_at[*slot as usize] = now;
            }
            in_flight += to_send.len();
            to_send.clear();
        } else if in_flight == 0 {
            return Ok(measurement);
        }
        link.exchange()?;
        now = nanoseconds(begin.elapsed());
        let (input, output) = link.split();
        let taken = codec.read(input, output, &mut done)?;
        link.consume(taken);
        in_flight = in_flight.saturating_sub(done.len());
        let measured = (measured_from..measured_to).contains(&now);
        // Tasks that were sent together mostly come back together: they are recorded as one.
        let (mut run_sent, mut run) = (IDLE, 0);
        for slot in done.drain(..) {
            let sent = usize::try_from(slot).ok().and_then(|slot| sent_at.get_mut(slot));
            let Some(sent) = sent.filter(|sent| **sent != IDLE) else { return Err(RawError::Unasked(slot)) };
            let sent = std::mem::replace(sent, IDLE);
            to_send.push(slot);
            if sent != run_sent {
                record(&mut measurement, measured, now, run_sent, run);
                (run_sent, run) = (sent, 0);
            }
            run += 1;
        }
        record(&mut measurement, measured, now, run_sent, run);
    }
}

#[inline]
fn record(measurement: &mut Measurement, measured: bool, now: u64, sent: u64, count: u64) {
    if measured && count > 0 {
        measurement.tasks += count;
        measurement.record(now.saturating_sub(sent), count);
    }
}
