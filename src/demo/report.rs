//! What the demo says at its end: a table for people, or one JSON object for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};

use hdrhistogram::Histogram;
use indicatif::HumanCount;
use reparto_client::Status;
use serde::Serialize;

use super::Member;
use super::drive::{Tally, pace};
use super::plan::{Action, Plan, SLEEP_MS};

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    seed: u64,
    tasks: u64,
    /// From the first task's handing in to the last answer.
    seconds: f64,
    tasks_per_second: f64,
    /// The pace at which tasks were handed in, a second.
    pace_per_second: u64,
    /// What the `sha256` tasks digested.
    documents: usize,
    document_bytes: u64,
    workers: Vec<WorkerRow>,
    /// Assignments that went to another worker because theirs was lost.
    reassigned: u64,
    /// Of all tasks, from the handing in to the answer.
    latency_ms: Latency,
    latency_ms_by_action: BTreeMap<&'static str, Latency>,
    duplicated: u64,
    wrong: u64,
    lost: u64,
    troubles: Vec<String>,
}

#[derive(Debug, Serialize)]
struct WorkerRow {
    id: String,
    threads: u64,
    /// Results that the balancer had from it.
    done: u64,
    killed: bool,
    ended_unasked: bool,
    /// Tasks that it held when it was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_hand_when_killed: Option<u64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Latency {
    tasks: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Report {
    /// Puts together what the client counted and what the balancer said last.
    pub(super) fn new(plan: &Plan, seed: u64, tally: Tally, status: &Status, workers: &[Member]) -> Report {
        let seconds = tally.elapsed.as_secs_f64();
        let answered = tally.right + tally.wrong;
        let by_action = Action::ALL.iter().zip(&tally.latency_us);
        let mut report = Report {
            seed,
            tasks: plan.tasks,
            seconds,
            tasks_per_second: if seconds > 0.0 { answered as f64 / seconds } else { 0.0 },
            pace_per_second: pace(plan.tasks),
            documents: plan.documents.all.len(),
            document_bytes: plan.documents.bytes(),
            workers: worker_rows(status, workers),
            reassigned: status.totals.requeued,
            latency_ms: Latency::of(&sum(&tally.latency_us)),
            latency_ms_by_action: by_action
                .map(|(action, histogram)| (action.name(), Latency::of(histogram)))
                .collect(),
            // The balancer's own count tells of a second result that the client library would have dropped.
            duplicated: tally.duplicated.max(status.totals.done.saturating_sub(plan.tasks)),
            wrong: tally.wrong,
            lost: plan.tasks.saturating_sub(answered),
            troubles: tally.examples,
        };
        for worker in workers {
            if let Some(status) = &worker.ended {
                report.trouble(format!("{} ended unasked ({status})", worker.id));
            }
        }
        report
    }

    /// Nothing was lost, duplicated or wrong.
    pub(super) fn is_good(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.wrong == 0
    }

    /// Adds something that went wrong.
    pub(super) fn trouble(&mut self, sentence: String) {
        self.troubles.push(sentence);
    }

    pub(super) fn troubles(&self) -> impl Iterator<Item = &String> {
        self.troubles.iter()
    }

    pub(super) fn write(&self, out: &mut impl Write, json: bool) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self)?;
            writeln!(out)?;
        } else {
            self.write_table(out)?;
        }
        out.flush()
    }

    fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        let width = self.workers.iter().map(|row| row.id.len()).max().unwrap_or(0).max("worker".len());
        writeln!(out)?;
        writeln!(out, "{:width$}  threads     done", "worker")?;
        for row in &self.workers {
            let note = match row.in_hand_when_killed {
                Some(in_hand) => format!("  until it was killed (SIGKILL), with {in_hand} in hand"),
                None if row.ended_unasked => "  when it was last asked; it ended unasked".to_owned(),
                None => String::new(),
            };
            writeln!(
                out,
                "{:width$}  {:>7}  {:>7}{note}",
                row.id,
                row.threads,
                HumanCount(row.done).to_string()
            )?;
        }
        writeln!(out)?;
        writeln!(out, "latency in ms        tasks     p50     p90     p99     max")?;
        for action in Action::ALL {
            let name = match action {
                Action::Sleep => format!("sleep ({} to {})", SLEEP_MS.start(), SLEEP_MS.end()),
                other => other.name().to_owned(),
            };
            if let Some(latency) = self.latency_ms_by_action.get(action.name()) {
                latency.write(out, &name)?;
            }
        }
        self.latency_ms.write(out, "all")?;
        writeln!(out)?;
        writeln!(
            out,
            "{} of {} tasks answered in {:.1} s, {:.0} a second (handed in at {} a second)",
            HumanCount(self.latency_ms.tasks + self.wrong),
            HumanCount(self.tasks),
            self.seconds,
            self.tasks_per_second,
            HumanCount(self.pace_per_second),
        )?;
        write!(out, "re-assigned {}", self.reassigned)?;
        match self.workers.iter().find(|row| row.killed) {
            Some(row) if !self.workers.iter().any(|row| row.ended_unasked) => {
                writeln!(out, " (what {} had been given and not answered)", row.id)?;
            }
            _ => writeln!(out)?,
        }
        writeln!(out, "duplicated {} wrong {}", self.duplicated, self.wrong)?;
        writeln!(out, "lost {}", self.lost)
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        let ms = |us: u64| us as f64 / 1_000.0;
        Latency {
            tasks: histogram.len(),
            p50: ms(histogram.value_at_quantile(0.50)),
            p90: ms(histogram.value_at_quantile(0.90)),
            p99: ms(histogram.value_at_quantile(0.99)),
            max: ms(histogram.max()),
        }
    }

    fn write(&self, out: &mut impl Write, name: &str) -> io::Result<()> {
        let Latency { tasks, p50, p90, p99, max } = self;
        let tasks = HumanCount(*tasks).to_string();
        writeln!(out, "{name:16}  {tasks:>8}  {p50:>6.2}  {p90:>6.2}  {p99:>6.2}  {max:>6.2}")
    }
}

/// All histograms in one.
fn sum(histograms: &[Histogram<u64>]) -> Histogram<u64> {
    let mut histograms = histograms.iter();
    // There is one for each action.
    let mut all = histograms.next().cloned().unwrap_or_else(|| unreachable!("no action"));
    for histogram in histograms {
        // They have the same bounds, so adding cannot fail.
        let _ = all.add(histogram);
    }
    all
}

fn worker_rows(status: &Status, workers: &[Member]) -> Vec<WorkerRow> {
    // What a worker did between the last look at it and its end is known from all the others: every result came
    // from one of them. Unless another ended as well: then it stays at what was seen last.
    let is_known = workers.iter().all(|worker| worker.ended.is_none());
    let by_others: u64 =
        workers.iter().filter(|worker| worker.killed.is_none()).map(|worker| worker.seen.done).sum();
    let rest = status.totals.done.saturating_sub(by_others);
    let row = |worker: &Member| WorkerRow {
        id: worker.id.clone(),
        threads: worker.seen.threads,
        done: if worker.killed.is_some() && is_known { rest.max(worker.seen.done) } else { worker.seen.done },
        killed: worker.killed.is_some(),
        ended_unasked: worker.ended.is_some(),
        in_hand_when_killed: worker.killed.as_ref().map(|killed| killed.in_hand),
    };
    workers.iter().map(row).collect()
}
