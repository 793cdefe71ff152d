//! One connection's part of the load: handing tasks in, in a closed loop or an open one, and taking answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reparto_client::{Client, ClientError, Completion, CompletionQueue, ErrorCode, TaskBuilder};

use super::record::{Recorder, nanos};
use super::{Fatal, Run};

/// From this size on a payload is shared with the client library; a smaller one is cheaper to copy.
const SHARED_PAYLOAD_BYTES: usize = 8 * 1024;

/// A thread that waits looks this often whether the run is over.
const LOOK: Duration = Duration::from_millis(50);

/// Pause before a task is handed in again that found the client at a bound.
const FULL_PAUSE: Duration = Duration::from_micros(200);

/// What is left when a connection's part is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    /// Handed in and not answered in time.
    pub(super) unanswered: u64,
    /// Due, and not even handed in.
    pub(super) not_handed_in: u64,
}

/// A connection under load.
pub(super) struct Connection<'a> {
    run: &'a Run<'a>,
    client: &'a Client,
    queue: CompletionQueue,
    recorder: &'a Mutex<Recorder>,
    index: usize,
}

/// How handing in went.
enum HandedIn {
    Yes,
    /// A bound is reached; try again.
    Full,
    /// The run is over.
    Ended,
}

impl<'a> Connection<'a> {
    pub(super) fn new(run: &'a Run<'a>, client: &'a Client, index: usize) -> Self {
        let queue = client.completion_queue(run.options.window);
        Connection { run, client, queue, recorder: &run.recorders[index % run.recorders.len()], index }
    }

    /// Keeps the window full until the time is over, then waits for what is in flight.
    pub(super) fn closed(&self) -> Outcome {
        let window = self.run.options.window as u64;
        let (mut in_flight, mut batch) = (0, Vec::new());
        let mut has_begun = false;
        // Something is handed in also by a thread that got no processor until the time was over.
        while !self.time_is_over() || !(has_begun || self.run.is_over()) {
            has_begun = true;
            while in_flight < window {
                match self.hand_in(self.now_ns()) {
                    HandedIn::Yes => in_flight += 1,
                    HandedIn::Full if in_flight == 0 => std::thread::sleep(FULL_PAUSE),
                    HandedIn::Full | HandedIn::Ended => break,
                }
                if self.time_is_over() {
                    break;
                }
            }
            self.queue.recv_batch_timeout(&mut batch, LOOK);
            in_flight -= batch.len() as u64;
            self.record(&mut batch);
        }
        self.queue.close();
        Outcome { unanswered: self.drain(Instant::now() + self.run.options.drain), not_handed_in: 0 }
    }

    /// Hands in tasks as they fall due, on a thread of its own, while this one takes the answers.
    pub(super) fn open(&self, rate: f64) -> Outcome {
        let not_handed_in = AtomicU64::new(0);
        let unanswered = std::thread::scope(|scope| {
            scope.spawn(|| {
                not_handed_in.store(self.hand_in_on_time(rate), Ordering::Relaxed);
                self.queue.close();
            });
            let options = self.run.options;
            let limit = options.duration.saturating_add(options.drain);
            self.drain(self.run.began.checked_add(limit).unwrap_or_else(Instant::now))
        });
        Outcome { unanswered, not_handed_in: not_handed_in.into_inner() }
    }

    /// Hands in what is due until the time is over, and gives how many tasks that were due it could not.
    fn hand_in_on_time(&self, rate: f64) -> u64 {
        let options = self.run.options;
        let due = |place: u64| {
            let number = place * options.connections as u64 + self.index as u64;
            (number as f64 * 1e9 / rate) as u64
        };
        let end = nanos(options.duration);
        let give_up = nanos(options.duration.saturating_add(options.drain));
        let mut place = 0;
        loop {
            let now = self.now_ns();
            let mut full = false;
            while !full && due(place) <= now && due(place) < end {
                if self.run.is_over() {
                    return 0;
                }
                match self.hand_in(due(place)) {
                    HandedIn::Yes => place += 1,
                    HandedIn::Full => full = true,
                    HandedIn::Ended => return 0,
                }
            }
            if due(place) >= end || self.run.is_over() {
                return 0;
            }
            if now >= give_up {
                return (place..).take_while(|place| due(*place) < end).count() as u64;
            }
            let pause = if full {
                FULL_PAUSE
            } else {
                Duration::from_nanos(due(place).saturating_sub(self.now_ns())).min(LOOK)
            };
            std::thread::sleep(pause);
        }
    }

    /// Takes answers until all have come, or until a moment; once the run is ended early, no longer than for the
    /// drain from then on. Gives how many did not come.
    fn drain(&self, until: Instant) -> u64 {
        let mut until = until;
        let mut cut_short = false;
        let mut batch = Vec::new();
        loop {
            let now = Instant::now();
            if !cut_short && self.run.is_over() {
                cut_short = true;
                until = until.min(now + self.run.options.drain);
            }
            if now >= until {
                return self.queue.outstanding() as u64;
            }
            let more = self.queue.recv_batch_timeout(&mut batch, LOOK.min(until - now));
            self.record(&mut batch);
            if !more {
                return 0;
            }
        }
    }

    /// Hands in a task that counts from `counts_from_ns` on.
    fn hand_in(&self, counts_from_ns: u64) -> HandedIn {
        match self.queue.try_submit(counts_from_ns, self.task()) {
            Ok(()) => HandedIn::Yes,
            Err(ClientError::Full { .. }) => HandedIn::Full,
            Err(error) => {
                self.run.end(Fatal::Refused(error));
                HandedIn::Ended
            }
        }
    }

    fn task(&self) -> TaskBuilder<'_> {
        let options = self.run.options;
        let task = self.client.task(&options.action);
        if options.payload.len() < SHARED_PAYLOAD_BYTES {
            task.payload_slice(&options.payload)
        } else {
            task.payload(options.payload.clone())
        }
    }

    fn record(&self, batch: &mut Vec<Completion>) {
        if batch.is_empty() {
            return;
        }
        let lost = batch.iter().any(|completion| {
            completion.outcome.as_ref().is_err_and(|failure| failure.code == ErrorCode::ConnectionLost)
        });
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner).take(self.now_ns(), batch);
        if lost && let Some(error) = self.client.unreachable() {
            self.run.end(Fatal::Lost(error));
        }
    }

    fn now_ns(&self) -> u64 {
        nanos(self.run.began.elapsed())
    }

    fn time_is_over(&self) -> bool {
        self.run.is_over() || self.run.began.elapsed() >= self.run.options.duration
    }
}
