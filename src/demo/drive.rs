//! The demo's client: hands the tasks in at a steady pace, and checks every answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use reparto_client::{Client, ClientError, Completion, CompletionQueue, ErrorCode, TaskFailure};

use super::plan::{Action, Plan};

/// Tasks in flight at most.
const MAX_IN_FLIGHT: usize = 256;
/// Tasks handed in a second, unless there are so many that it would take too long.
const PACE: u64 = 600;
/// Time in which all tasks are to be handed in, in seconds, if the machine can keep up.
const MAX_SECONDS: u64 = 7;
/// Without any answer for this long, what is in flight is given up for lost.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
/// The longest wait for an answer before looking around.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Troubles that are told as examples.
const MAX_EXAMPLES: usize = 5;
/// The longest latency that is told apart, in microseconds.
const MAX_LATENCY_US: u64 = 600_000_000;

/// How far the run is, for whoever watches.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) answered: AtomicU64,
    /// Asks the client to stop where it is.
    pub(super) stop: AtomicBool,
}

/// What came of the tasks.
pub(super) struct Tally {
    /// Answered once, and right.
    pub(super) right: u64,
    /// Answered with a result that is not the right one.
    pub(super) wrong: u64,
    /// Answers beyond the first.
    pub(super) duplicated: u64,
    /// Some troubles, in sentences.
    pub(super) examples: Vec<String>,
    /// From the handing in to the answer, in microseconds; in the order of [`Action::ALL`].
    pub(super) latency_us: Vec<Histogram<u64>>,
    /// From the first task's handing in to the last answer.
    pub(super) elapsed: Duration,
}

impl Tally {
    fn new() -> Result<Tally, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, MAX_LATENCY_US, 3);
        let latency_us = Action::ALL.iter().map(|_| histogram()).collect::<Result<_, _>>()?;
        let (right, wrong, duplicated) = (0, 0, 0);
        Ok(Tally { right, wrong, duplicated, examples: Vec::new(), latency_us, elapsed: Duration::ZERO })
    }

    fn example(&mut self, sentence: String) {
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(sentence);
        }
    }
}

/// Tasks handed in a second.
pub(super) fn pace(tasks: u64) -> u64 {
    PACE.max(tasks / MAX_SECONDS)
}

/// One run, as the client sees it.
pub(super) struct Driver<'a> {
    client: &'a Client,
    plan: &'a Plan,
    progress: &'a Progress,
    queue: CompletionQueue,
    /// When each task was handed in; those handed in so far.
    handed_in: Vec<Instant>,
    answered: Vec<bool>,
    tally: Tally,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        client: &'a Client,
        plan: &'a Plan,
        progress: &'a Progress,
    ) -> Result<Driver<'a>, hdrhistogram::CreationError> {
        let queue = client.completion_queue(MAX_IN_FLIGHT);
        let tally = Tally::new()?;
        Ok(Driver { client, plan, progress, queue, handed_in: Vec::new(), answered: Vec::new(), tally })
    }

    /// Hands in all tasks and takes their answers. `on_half` is called once, when half of them are answered.
    pub(super) fn run(mut self, on_half: impl FnOnce()) -> Tally {
        let mut on_half = Some(on_half);
        let begin = Instant::now();
        let mut last_answer = begin;
        let mut batch = Vec::new();
        while !self.progress.stop.load(Ordering::Acquire) {
            let wait = self.hand_in_what_is_due(begin);
            if !self.queue.recv_batch_timeout(&mut batch, wait) {
                break;
            }
            let now = Instant::now();
            if !batch.is_empty() {
                last_answer = now;
            } else if now.duration_since(last_answer) > GIVE_UP_AFTER {
                let open = self.queue.outstanding();
                self.tally.example(format!(
                    "no answer came for {} s while {open} tasks were in flight",
                    GIVE_UP_AFTER.as_secs()
                ));
                break;
            }
            for completion in batch.drain(..) {
                self.take(completion, now);
            }
            if self.progress.answered.load(Ordering::Relaxed) * 2 >= self.plan.tasks
                && let Some(on_half) = on_half.take()
            {
                on_half();
            }
        }
        self.tally.elapsed = last_answer.duration_since(begin);
        self.tally
    }

    /// Hands in the tasks whose time has come, as far as there is room. Gives the time until the next is due.
    fn hand_in_what_is_due(&mut self, begin: Instant) -> Duration {
        let pace = pace(self.plan.tasks);
        loop {
            let number = self.handed_in.len() as u64;
            if number == self.plan.tasks {
                self.queue.close();
                return LOOK_EVERY;
            }
            let due = begin + Duration::from_secs_f64(number as f64 / pace as f64);
            let now = Instant::now();
            if due > now {
                return (due - now).min(LOOK_EVERY);
            }
            let job = self.plan.job(number);
            let task = self.client.task(job.action.name()).payload(job.payload);
            match self.queue.try_submit(number, task) {
                Ok(()) => {
                    self.handed_in.push(now);
                    self.answered.push(false);
                }
                // An answer makes room.
                Err(ClientError::Full { .. }) => return LOOK_EVERY,
                // An earlier trouble made an end.
                Err(ClientError::QueueClosed) => return LOOK_EVERY,
                Err(error) => {
                    // The next task would fare no better.
                    self.tally.example(format!("task {number} could not be handed in: {error}"));
                    self.queue.close();
                    return LOOK_EVERY;
                }
            }
        }
    }

    fn take(&mut self, completion: Completion, now: Instant) {
        let number = completion.tag;
        // Tags are given in order from 0, so they are the lists' indexes.
        let index = number as usize;
        if std::mem::replace(&mut self.answered[index], true) {
            self.tally.duplicated += 1;
            self.tally.example(format!("task {number} was answered again"));
            return;
        }
        self.progress.answered.fetch_add(1, Ordering::Relaxed);
        let job = self.plan.job(number);
        let latency = now.duration_since(self.handed_in[index]);
        match completion.outcome {
            Ok(result) if result == job.expected => {
                self.tally.right += 1;
                let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                self.tally.latency_us[job.action as usize].saturating_record(us);
            }
            Ok(result) => {
                self.tally.wrong += 1;
                self.tally.example(format!(
                    "task {number} ({}) was answered '{}' instead of '{}'",
                    job.action.name(),
                    shown(&result),
                    shown(&job.expected)
                ));
            }
            Err(failure) => self.failed(number, job.action, &failure),
        }
    }

    fn failed(&mut self, number: u64, action: Action, failure: &TaskFailure) {
        self.tally.example(format!("task {number} ({}) had no result: {failure}", action.name()));
        if failure.code == ErrorCode::ConnectionLost {
            // The demo's balancer does not come back.
            self.queue.close();
        }
    }
}

/// The beginning of a result, for a sentence.
fn shown(result: &[u8]) -> String {
    const MOST: usize = 80;
    result[..result.len().min(MOST)].escape_ascii().to_string()
}
