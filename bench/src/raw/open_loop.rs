//! Open loop: tasks are due at a fixed rate, whatever comes back, and a task's latency counts from the moment it
//! was due.
//!
//! One thread sends for all connections, every tick what has become due; a thread a connection reads. So a server
//! that is slow to answer is sent to all the same, up to a bound of tasks without an answer; past it sending waits,
//! and the clock of the tasks that are due meanwhile runs.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Load, Measurement, handshake, panicked};
use super::link::Link;
use super::{ClientCodec, ClientProtocol, Output, RawError};

/// Time between two looks at what is due. Shorter ones would cost the server the processor that it needs.
const TICK: Duration = Duration::from_micros(200);

/// Most tasks of a connection that have no answer.
const MAX_UNANSWERED: u64 = 65_536;

/// Most tasks of a run, since each has a mark of its own.
const MAX_TASKS: f64 = 100_000_000.0;

/// Time that answers are waited for after the last task was due.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

/// When which task is due. Tasks take turns over the connections, so each connection's are equally spaced.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    begin: Instant,
    /// Nanoseconds between two tasks of a connection.
    interval_ns: f64,
    /// Nanoseconds by which each connection's first task comes after the one's before.
    offset_ns: f64,
    /// Tasks of each connection.
    tasks: u64,
}

impl Schedule {
    fn due_ns(&self, connection: usize, id: u64) -> u64 {
        (self.offset_ns * connection as f64 + self.interval_ns * id as f64) as u64
    }

    /// Tasks of a connection that are due by now.
    fn due_by(&self, connection: usize, now_ns: u64) -> u64 {
        let since_first = now_ns as f64 - self.offset_ns * connection as f64;
        if since_first < 0.0 {
            return 0;
        }
        ((since_first / self.interval_ns) as u64 + 1).min(self.tasks)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What the sending and the reading side of a connection share.
#[derive(Default)]
struct Shared {
    answered: AtomicU64,
    /// What the reading side has to say, such as a PONG. The sending side writes it between two tasks.
    replies: Mutex<Vec<u8>>,
    /// The reading side has ended.
    over: AtomicBool,
    /// Nobody waits for the rest of the answers.
    given_up: AtomicBool,
}

struct Sender {
    stream: TcpStream,
    codec: Box<dyn ClientCodec>,
    output: Output,
    sent: u64,
}

pub(super) fn drive(
    protocol: &dyn ClientProtocol,
    address: SocketAddr,
    load: &Load,
    rate: f64,
    stop: &AtomicBool,
) -> Result<Measurement, RawError> {
    let seconds = (load.warm_up + load.duration).as_secs_f64();
    if !(rate > 0.0 && rate * seconds <= MAX_TASKS) {
        let most = MAX_TASKS / seconds;
        return Err(RawError::Load(format!(
            "the rate is {rate} a second, but must be over 0 and at most {most:.0}"
        )));
    }
    let (mut senders, mut links) = (Vec::new(), Vec::new());
    for number in 0..load.connections {
        let client = load.first_client + number;
        let mut codec = protocol.client(client, load.size);
        let frame_bytes = load.size.saturating_add(protocol.overhead_bytes());
        let mut link = Link::connect(address, Output::default(), frame_bytes, false)?;
        handshake(&mut link, codec.as_mut())?;
        let output = Output::with_payload(vec![b'x'; load.size]);
        let (stream, codec_to_send) = (link.closer()?, protocol.client(client, load.size));
        senders.push(Sender { stream, codec: codec_to_send, output, sent: 0 });
        links.push((link, codec));
    }
    let connections = load.connections as f64;
    let schedule = Schedule {
        begin: Instant::now(),
        interval_ns: connections * 1e9 / rate,
        offset_ns: 1e9 / rate,
        tasks: ((rate * seconds / connections) as u64).max(1),
    };
    let shared: Vec<Shared> = (0..load.connections).map(|_| Shared::default()).collect();
    thread::scope(|scope| {
        let readers: Vec<_> = links
            .into_iter()
            .zip(&shared)
            .enumerate()
            .map(|(number, ((link, codec), shared))| {
                scope.spawn(move || {
                    let outcome = read(link, codec, number, &schedule, load, shared);
                    shared.over.store(true, Ordering::Release);
                    outcome
                })
            })
            .collect();
        let sent = send(&mut senders, &schedule, &shared, stop);
        for (sender, shared) in senders.iter().zip(&shared) {
            // Ends the readers that still wait.
            shared.given_up.store(true, Ordering::Release);
            let _ = sender.stream.shutdown(Shutdown::Both);
        }
        let mut all = Measurement::new(load.duration)?;
        for reader in readers {
            all.add(&reader.join().unwrap_or_else(|_| Err(panicked()))?)?;
        }
        sent.map(|()| all)
    })
}

/// Sends every task once it is due, then waits for the answers.
fn send(
    senders: &mut [Sender],
    schedule: &Schedule,
    shared: &[Shared],
    stop: &AtomicBool,
) -> Result<(), RawError> {
    let last_due = schedule.due_ns(senders.len(), schedule.tasks);
    let give_up_ns = last_due.saturating_add(DRAIN_WITHIN.as_nanos() as u64);
    let mut ids = Vec::new();
    loop {
        let now = schedule.now_ns();
        if stop.load(Ordering::Relaxed) {
            return Err(RawError::Interrupted);
        }
        let over = shared.iter().all(|it| it.over.load(Ordering::Acquire));
        if over || now >= give_up_ns {
            return Ok(());
        }
        for (number, (sender, shared)) in senders.iter_mut().zip(shared).enumerate() {
            if shared.over.load(Ordering::Acquire) {
                continue;
            }
            let bound = shared.answered.load(Ordering::Relaxed) + MAX_UNANSWERED;
            let until = schedule.due_by(number, now).min(bound);
            ids.clear();
            ids.extend(sender.sent..until);
            sender.sent = sender.sent.max(until);
            let replies = std::mem::take(&mut *shared.replies.lock().unwrap_or_else(PoisonError::into_inner));
            if !replies.is_empty() {
                sender.output.put(&replies);
            }
            sender.codec.tasks(&ids, &mut sender.output);
            let bytes = sender.output.take_bytes();
            // One whose connection ended is told of by its reader.
            if !bytes.is_empty() && sender.stream.write_all(&bytes).is_err() {
                let _ = sender.stream.shutdown(Shutdown::Both);
            }
        }
        thread::sleep(TICK);
    }
}

/// Reads one connection's answers until it has them all, or the connection is shut down.
fn read(
    mut link: Link,
    mut codec: Box<dyn ClientCodec>,
    number: usize,
    schedule: &Schedule,
    load: &Load,
    shared: &Shared,
) -> Result<Measurement, RawError> {
    let measured_from = load.warm_up.as_nanos() as u64;
    let measured_to = (load.warm_up + load.duration).as_nanos() as u64;
    let mut measurement = Measurement::new(load.duration)?;
    let mut answered = vec![false; schedule.tasks as usize];
    let mut left = schedule.tasks;
    let mut done = Vec::new();
    while left > 0 {
        match link.exchange() {
            Ok(()) => {}
            Err(RawError::Closed) if shared.given_up.load(Ordering::Acquire) => break,
            Err(error) => return Err(error),
        }
        let now = schedule.now_ns();
        let (input, output) = link.split();
        let taken = codec.read(input, output, &mut done)?;
        link.consume(taken);
        if !link.output.is_empty() {
            let bytes = link.output.take_bytes();
            shared.replies.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes);
        }
        left = left.saturating_sub(done.len() as u64);
        shared.answered.fetch_add(done.len() as u64, Ordering::Relaxed);
        for id in done.drain(..) {
            let mark = usize::try_from(id).ok().and_then(|id| answered.get_mut(id)).filter(|mark| !**mark);
            *mark.ok_or(RawError::Unasked(id))? = true;
            let due = schedule.due_ns(number, id);
            if due >= measured_from {
                measurement.tasks += u64::from(now <= measured_to);
                measurement.record(now.saturating_sub(due), 1);
            }
        }
    }
    let now = schedule.now_ns();
    for (id, _) in answered.iter().enumerate().filter(|(_, answered)| !**answered) {
        let due = schedule.due_ns(number, id as u64);
        measurement.unanswered += 1;
        measurement.record(now.saturating_sub(due), 1);
    }
    Ok(measurement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_tasks_are_due_as_the_rate_says_and_each_counts_from_its_own_moment() {
        let schedule =
            Schedule { begin: Instant::now(), interval_ns: 4_000.0, offset_ns: 1_000.0, tasks: 10 };
        assert_eq!(schedule.due_by(0, 0), 1);
        assert_eq!(schedule.due_by(1, 999), 0);
        assert_eq!(schedule.due_by(1, 1_000), 1);
        assert_eq!(schedule.due_by(0, 8_000), 3);
        assert_eq!(schedule.due_by(0, 1_000_000), 10);
        assert_eq!(schedule.due_ns(1, 2), 9_000);
    }
}
