//! What is written down while load runs: latencies, throughput over time, and errors by code.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use reparto_client::{Completion, ErrorCode};

use super::Options;

/// Shortest interval that throughput is counted for.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Intervals in a run's duration; draining may add some.
const INTERVALS: u32 = 400;

/// More than that are counted into the last one.
const MAX_INTERVALS: usize = 4_096;

/// Sentences are kept up to this many bytes.
const MAX_EXAMPLE_BYTES: usize = 300;

/// The longest latency told apart: an hour, in nanoseconds.
const MAX_LATENCY_NS: u64 = 3_600_000_000_000;

/// Tasks that failed with one code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failures {
    pub(super) tasks: u64,
    /// The first one's sentence.
    pub(super) example: String,
}

/// What was seen by one connection, or by several that share it.
#[derive(Debug)]
pub(super) struct Recorder {
    /// In nanoseconds, of tasks that succeeded.
    pub(super) latency: Histogram<u64>,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Bytes of results.
    pub(super) result_bytes: u64,
    pub(super) failures: BTreeMap<ErrorCode, Failures>,
    /// Tasks done in each interval.
    pub(super) intervals: Vec<u64>,
    interval_ns: u64,
    /// When the latest answer came, in nanoseconds from the start.
    pub(super) latest_ns: u64,
}

/// How long the intervals are for which throughput is counted.
pub(super) fn interval(duration: Duration) -> Duration {
    (duration / INTERVALS).max(MIN_INTERVAL)
}

/// An empty histogram of latencies in nanoseconds, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    match Histogram::new(3) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("three significant digits are within what a histogram can have"),
    }
}

/// Adds `count` times the same latency, in nanoseconds.
pub(super) fn record(latency: &mut Histogram<u64>, ns: u64, count: u64) {
    if count == 0 {
        return; // It would still move the largest value seen.
    }
    let recorded = latency.record_n(ns.min(MAX_LATENCY_NS), count);
    debug_assert!(recorded.is_ok(), "the histogram grows by itself");
}

impl Recorder {
    pub(super) fn new(options: &Options) -> Recorder {
        Recorder {
            latency: histogram(),
            done: 0,
            failed: 0,
            result_bytes: 0,
            failures: BTreeMap::new(),
            intervals: Vec::new(),
            interval_ns: nanos(interval(options.duration)),
            latest_ns: 0,
        }
    }

    /// Writes down answers that came at `now_ns`. Their tags are the moments from which they count, in
    /// nanoseconds from the start as well.
    pub(super) fn take(&mut self, now_ns: u64, batch: &mut Vec<Completion>) {
        let before = self.done;
        for completion in batch.drain(..) {
            match completion.outcome {
                Ok(result) => {
                    self.done += 1;
                    self.result_bytes += result.len() as u64;
                    record(&mut self.latency, now_ns.saturating_sub(completion.tag), 1);
                }
                Err(failure) => {
                    self.failed += 1;
                    let failures = self.failures.entry(failure.code).or_insert_with(|| Failures {
                        tasks: 0,
                        example: reparto_protocol::cut(&failure.message, MAX_EXAMPLE_BYTES).to_owned(),
                    });
                    failures.tasks += 1;
                }
            }
        }
        self.latest_ns = self.latest_ns.max(now_ns);
        let interval =
            usize::try_from(now_ns / self.interval_ns).unwrap_or(MAX_INTERVALS).min(MAX_INTERVALS - 1);
        if interval >= self.intervals.len() {
            self.intervals.resize(interval + 1, 0);
        }
        self.intervals[interval] += self.done - before;
    }

    /// Adds what another one saw in the same run.
    pub(super) fn add(&mut self, other: &Recorder) {
        // Histograms that grow by themselves can always be added.
        let _ = self.latency.add(&other.latency);
        self.done += other.done;
        self.failed += other.failed;
        self.result_bytes += other.result_bytes;
        self.latest_ns = self.latest_ns.max(other.latest_ns);
        for (code, failures) in &other.failures {
            self.failures
                .entry(*code)
                .and_modify(|all| all.tasks += failures.tasks)
                .or_insert_with(|| failures.clone());
        }
        if self.intervals.len() < other.intervals.len() {
            self.intervals.resize(other.intervals.len(), 0);
        }
        for (sum, tasks) in self.intervals.iter_mut().zip(&other.intervals) {
            *sum += tasks;
        }
    }
}

/// A time in nanoseconds, as far as they can be counted.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use reparto_client::TaskFailure;

    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(&Options::new("echo", "", Vec::new()))
    }

    fn done(tag: u64) -> Completion {
        Completion { tag, outcome: Ok("hola".into()) }
    }

    fn failed(tag: u64, code: ErrorCode, message: &str) -> Completion {
        Completion { tag, outcome: Err(TaskFailure::new(code, message)) }
    }

    #[test]
    fn latency_counts_from_the_tag_and_only_for_tasks_that_succeeded() {
        let mut recorder = recorder();
        let mut batch = vec![done(1_000), done(2_000), failed(0, ErrorCode::QueueFull, "full")];
        recorder.take(2_500, &mut batch);
        assert!(batch.is_empty());
        assert_eq!((recorder.done, recorder.failed, recorder.result_bytes), (2, 1, 8));
        assert_eq!((recorder.latency.min(), recorder.latency.max()), (500, 1_500));
    }

    #[test]
    fn throughput_is_counted_in_the_interval_of_the_answer() {
        let mut recorder = recorder();
        let interval = recorder.interval_ns;
        recorder.take(interval / 2, &mut vec![done(0)]);
        recorder.take(interval * 2, &mut vec![done(0), done(0)]);
        assert_eq!(recorder.intervals, [1, 0, 2]);
        recorder.take(u64::MAX, &mut vec![done(0)]);
        assert_eq!(recorder.intervals.len(), MAX_INTERVALS);
    }

    #[test]
    fn recorders_add_up() {
        let (mut one, mut other) = (recorder(), recorder());
        one.take(1_000, &mut vec![done(0), failed(0, ErrorCode::WorkerFailed, "first")]);
        let interval = other.interval_ns;
        let mut batch = vec![
            done(0),
            failed(0, ErrorCode::WorkerFailed, "second"),
            failed(0, ErrorCode::Expired, "late"),
        ];
        other.take(interval, &mut batch);
        one.add(&other);
        assert_eq!((one.done, one.failed, one.latest_ns), (2, 3, interval));
        assert_eq!(one.intervals, [1, 1]);
        let counts: Vec<_> =
            one.failures.iter().map(|(code, f)| (*code, f.tasks, f.example.as_str())).collect();
        assert_eq!(counts, [(ErrorCode::Expired, 1, "late"), (ErrorCode::WorkerFailed, 2, "first")]);
    }
}
