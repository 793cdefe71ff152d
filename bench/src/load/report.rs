//! What a run found: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde::Serialize;

use super::drive::Outcome;
use super::record::{self, Recorder, nanos};
use super::{Options, Pace};

/// Steps of the quantile's distance from 1 that are told for each halving of it.
const STEPS_A_HALVING: u32 = 4;

/// The outcome of a run. Latencies are of tasks that succeeded, in microseconds: in a closed loop from when they
/// were handed in, in an open loop from when they were due. Tasks without an answer count with the time that they
/// were waited for at least, so that they do not make the quantiles look better than they are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What the tasks asked for.
    pub action: String,
    /// Bytes that each of them carried.
    pub payload_bytes: usize,
    /// `closed` or `open`.
    pub pace: &'static str,
    /// In an open loop, tasks that fell due a second.
    pub rate: Option<f64>,
    /// Connections.
    pub connections: usize,
    /// Tasks in flight on a connection at most.
    pub window: usize,
    /// From the start to the last answer.
    pub seconds: f64,
    /// It was ended before its time by [`Options::stop`].
    pub interrupted: bool,
    /// The balancer was lost and not found again, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balancer_lost: Option<String>,
    /// Tasks in all: those that succeeded, that failed, that were not answered, and that were due and could not
    /// be handed in.
    pub tasks: u64,
    /// Tasks that succeeded.
    pub done: u64,
    /// Tasks that ended with an error.
    pub failed: u64,
    /// Tasks handed in and not answered before the run gave up waiting.
    pub unanswered: u64,
    /// In an open loop, tasks that were due and could not be handed in, because the window stayed full.
    pub not_handed_in: u64,
    /// How many tasks ended with each error.
    pub errors: BTreeMap<&'static str, u64>,
    /// The first sentence of each error.
    pub error_examples: BTreeMap<&'static str, String>,
    /// Tasks that succeeded a second.
    pub tasks_per_second: f64,
    /// Bytes of payloads and results a second, of tasks that succeeded.
    pub bytes_per_second: f64,
    /// The mean.
    pub mean_us: f64,
    /// Half of the tasks took no longer.
    pub p50_us: f64,
    /// Nine of ten took no longer.
    pub p90_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
    /// 999 of 1,000 took no longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Latency by quantile, finer towards the end.
    pub latency: Vec<LatencyPoint>,
    /// Throughput by time.
    pub throughput: Vec<ThroughputPoint>,
}

/// So many of all tasks took no longer than this.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencyPoint {
    /// From 0 to 1.
    pub quantile: f64,
    /// Microseconds.
    pub us: f64,
}

/// What went through in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ThroughputPoint {
    /// When the interval ended, in seconds from the start.
    pub seconds: f64,
    /// Tasks that succeeded a second.
    pub tasks_per_second: f64,
}

impl Report {
    pub(super) fn new(
        options: &Options,
        recorders: Vec<Recorder>,
        outcomes: &[Outcome],
        elapsed: Duration,
        interrupted: bool,
        balancer_lost: Option<String>,
    ) -> Report {
        let mut all = Recorder::new(options);
        for recorder in &recorders {
            all.add(recorder);
        }
        let unanswered = outcomes.iter().map(|outcome| outcome.unanswered).sum();
        let not_handed_in = outcomes.iter().map(|outcome| outcome.not_handed_in).sum();
        let handed_in_in_vain: u64 = unanswered + not_handed_in;
        // Each of them has waited for the drain at least.
        let waited = nanos(options.drain.min(elapsed));
        record::record(&mut all.latency, waited, handed_in_in_vain);

        let seconds = if all.done > 0 { all.latest_ns as f64 / 1e9 } else { elapsed.as_secs_f64() };
        let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let payload_bytes = options.payload.len();
        let us = |quantile: f64| all.latency.value_at_quantile(quantile) as f64 / 1e3;
        Report {
            action: options.action.clone(),
            payload_bytes,
            pace: if options.pace == Pace::Closed { "closed" } else { "open" },
            rate: match options.pace {
                Pace::Closed => None,
                Pace::Open(rate) => Some(rate),
            },
            connections: options.connections,
            window: options.window,
            seconds,
            interrupted,
            balancer_lost,
            tasks: all.done + all.failed + handed_in_in_vain,
            done: all.done,
            failed: all.failed,
            unanswered,
            not_handed_in,
            errors: errors(&all, |failures| failures.tasks, |sum, tasks| *sum += tasks),
            error_examples: errors(&all, |failures| failures.example.clone(), |_, _| ()),
            tasks_per_second: per_second(all.done as f64),
            bytes_per_second: per_second(all.done as f64 * payload_bytes as f64 + all.result_bytes as f64),
            mean_us: all.latency.mean() / 1e3,
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: all.latency.max() as f64 / 1e3,
            latency: latency_points(&all.latency),
            throughput: throughput_points(&all, record::interval(options.duration)),
        }
    }

    /// Every task was answered with a result, and there was one.
    pub fn is_good(&self) -> bool {
        self.done > 0 && self.done == self.tasks
    }

    /// Writes the report as one JSON object and a line break.
    ///
    /// # Errors
    /// The output cannot be written to.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)?;
        out.flush()
    }

    /// Writes the report as a table.
    ///
    /// # Errors
    /// The output cannot be written to.
    pub fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        let Report { connections, window, payload_bytes, .. } = self;
        let how = match self.rate {
            None => format!("closed loop, {window} in flight each"),
            Some(rate) => format!("open loop, {} due a second", HumanCount(rate.round() as u64)),
        };
        let ended = if self.interrupted { ", ended early" } else { "" };
        writeln!(
            out,
            "{}: {how}, {connections} connections, {payload_bytes} bytes, {:.1} s{ended}",
            self.action, self.seconds
        )?;
        writeln!(out)?;
        let mut row = |name: &str, value: String, note: &str| {
            let line = format!("{name:<18} {value:>14}  {note}");
            writeln!(out, "{}", line.trim_end())
        };
        let count = |count: u64| HumanCount(count).to_string();
        row("tasks", count(self.tasks), "")?;
        for (code, tasks) in &self.errors {
            let example = self.error_examples.get(code).map_or("", String::as_str);
            row(&format!("  {code}"), count(*tasks), &on_one_line(example))?;
        }
        if self.unanswered > 0 {
            row("  unanswered", count(self.unanswered), "handed in, and no answer before the run ended")?;
        }
        if self.not_handed_in > 0 {
            row("  not handed in", count(self.not_handed_in), "due, but the window stayed full")?;
        }
        if let Some(sentence) = &self.balancer_lost {
            row("balancer", "lost".into(), sentence)?;
        }
        row("tasks a second", count(self.tasks_per_second.round() as u64), "")?;
        row("MB a second", format!("{:.1}", self.bytes_per_second / 1e6), "payloads and results")?;
        if self.latency.is_empty() {
            return out.flush();
        }
        let from = if self.rate.is_some() { "from when a task was due" } else { "" };
        for (position, (name, us)) in self.latencies().into_iter().enumerate() {
            row(&format!("{name} us"), format!("{us:.1}"), if position == 0 { from } else { "" })?;
        }
        out.flush()
    }

    /// Names and values of the usual figures, in microseconds.
    fn latencies(&self) -> [(&'static str, f64); 6] {
        [
            ("mean", self.mean_us),
            ("p50", self.p50_us),
            ("p90", self.p90_us),
            ("p99", self.p99_us),
            ("p99.9", self.p999_us),
            ("max", self.max_us),
        ]
    }
}

/// A worker's sentence, so that it can neither break the table nor drive the terminal.
fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn errors<T>(
    all: &Recorder,
    value: impl Fn(&record::Failures) -> T,
    merge: impl Fn(&mut T, T),
) -> BTreeMap<&'static str, T> {
    let mut by_name = BTreeMap::new();
    for (code, failures) in &all.failures {
        // Codes that are not known here have one name.
        match by_name.entry(code.name()) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(value(failures));
            }
            std::collections::btree_map::Entry::Occupied(entry) => merge(entry.into_mut(), value(failures)),
        }
    }
    by_name
}

fn latency_points(latency: &Histogram<u64>) -> Vec<LatencyPoint> {
    if latency.is_empty() {
        return Vec::new();
    }
    let points = latency.iter_quantiles(STEPS_A_HALVING);
    points
        .map(|point| LatencyPoint {
            quantile: point.quantile(),
            us: latency.value_at_quantile(point.quantile()) as f64 / 1e3,
        })
        .collect()
}

fn throughput_points(all: &Recorder, interval: Duration) -> Vec<ThroughputPoint> {
    let interval = interval.as_secs_f64();
    let end = all.latest_ns as f64 / 1e9;
    let points = all.intervals.iter().enumerate().map(|(position, tasks)| {
        let from = position as f64 * interval;
        let until = (from + interval).min(end.max(from));
        (until, *tasks, until - from)
    });
    points
        // The last one may be too short to tell anything.
        .filter(|(_, _, width)| *width > interval / 4.0)
        .map(|(seconds, tasks, width)| ThroughputPoint { seconds, tasks_per_second: tasks as f64 / width })
        .collect()
}
