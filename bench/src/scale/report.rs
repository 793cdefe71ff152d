//! What was measured, as a table for people and as JSON for programs, and the bars it is held to.

use std::io::{self, Write};

use indicatif::HumanCount;
use serde::Serialize;

/// An idle connection may cost so many resident bytes.
const IDLE_BYTES_BAR: f64 = 700.0;

/// A waiting task of 64 bytes may cost so many resident bytes.
const QUEUED_BYTES_BAR: f64 = 200.0;

/// Choosing among 10,000 workers may cost so many times choosing among 10.
const CHOICE_BAR: f64 = 1.5;

/// Submitting with 1,000,000 tasks waiting may cost so many times submitting with none.
const SUBMIT_BAR: f64 = 1.5;

/// Fewer things than this are lost in a process's other memory.
const TELLING_COUNT: usize = 1_000;

/// The cost of choosing a worker, inside a scheduler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceRow {
    /// How workers are chosen.
    pub policy: &'static str,
    /// Workers to choose from.
    pub workers: u32,
    /// A task's submission with its assignment.
    pub submit_ns: f64,
    /// A task's whole way: submission, assignment, result.
    pub step_ns: f64,
}

/// The cost of submitting to a queue, inside a scheduler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubmitRow {
    /// Tasks that wait.
    pub queued: usize,
    /// A task's submission.
    pub submit_ns: f64,
}

/// What goes through a balancer with many workers, in tasks of 64 bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkersRow {
    /// Workers registered.
    pub workers: usize,
    /// Tasks a second, 4 connections with 128 in flight each.
    pub tasks_per_second: f64,
    /// Their median latency.
    pub p50_us: f64,
    /// The median latency of one task at a time.
    pub one_at_a_time_p50_us: f64,
    /// Tasks that failed.
    pub failed: u64,
}

/// What waiting tasks of 64 bytes cost a balancer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QueueRow {
    /// Tasks that wait.
    pub queued: usize,
    /// What each of them added to the resident memory, where the system tells.
    pub resident_bytes_each: Option<f64>,
    /// Tasks taken in a second, over one connection, from the row before on.
    pub taken_in_per_second: f64,
}

/// What idle connections cost a balancer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IdleRow {
    /// Connections that were wanted.
    pub wanted: usize,
    /// Connections that there were: the limit on open files may allow fewer.
    pub connections: usize,
    /// What each of them added to the resident memory, where the system tells.
    pub resident_bytes_each: Option<f64>,
}

/// What goes through a balancer by the payload's size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PayloadRow {
    /// Bytes of a task's payload, and of its result.
    pub bytes: usize,
    /// Tasks in flight, over all connections.
    pub in_flight: usize,
    /// Tasks a second.
    pub tasks_per_second: f64,
    /// Millions of bytes of payload a second; as many come back as results.
    pub megabytes_per_second: f64,
    /// The median latency.
    pub p50_us: f64,
    /// Tasks that failed.
    pub failed: u64,
}

/// A figure that Reparto is held to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bar {
    /// What it is.
    pub what: String,
    /// What was measured.
    pub measured: f64,
    /// What it may be at most.
    pub at_most: f64,
    /// It is.
    pub holds: bool,
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Report {
    /// Fewer sizes and shorter times.
    pub quick: bool,
    /// It was ended before everything was measured.
    pub interrupted: bool,
    /// Choosing among workers.
    pub choices: Vec<ChoiceRow>,
    /// Submitting to long queues.
    pub submits: Vec<SubmitRow>,
    /// Traffic with many workers.
    pub workers: Vec<WorkersRow>,
    /// Memory of waiting tasks.
    pub queued: Vec<QueueRow>,
    /// Memory of idle connections.
    pub idle: Vec<IdleRow>,
    /// Traffic with large payloads.
    pub payloads: Vec<PayloadRow>,
    /// How the figures stand to their bars.
    pub bars: Vec<Bar>,
}

impl Report {
    pub(super) fn new(quick: bool) -> Report {
        Report { quick, ..Report::default() }
    }

    /// No task failed on the way.
    pub fn is_good(&self) -> bool {
        self.workers.iter().all(|row| row.failed == 0) && self.payloads.iter().all(|row| row.failed == 0)
    }

    /// Holds what was measured against the bars.
    pub(super) fn judge(&mut self) {
        self.bars.clear();
        for policy in ["round_robin", "least_loaded", "weighted"] {
            let of = |workers| self.choices.iter().find(|row| row.policy == policy && row.workers == workers);
            if let (Some(few), Some(many)) = (of(10), of(10_000)) {
                let what = format!("{policy}: choosing among 10,000 workers, in times of choosing among 10");
                self.hold(what, many.submit_ns / few.submit_ns, CHOICE_BAR);
            }
        }
        let of = |queued| self.submits.iter().find(|row| row.queued == queued);
        if let (Some(none), Some(many)) = (of(0), of(1_000_000)) {
            let what = "submitting with 1,000,000 waiting, in times of submitting with none".to_owned();
            self.hold(what, many.submit_ns / none.submit_ns, SUBMIT_BAR);
        }
        if let Some(row) = self.queued.last().filter(|row| row.queued >= TELLING_COUNT)
            && let Some(bytes) = row.resident_bytes_each
        {
            self.hold("resident bytes of a waiting 64-byte task".to_owned(), bytes, QUEUED_BYTES_BAR);
        }
        if let Some(row) = self.idle.last().filter(|row| row.connections >= TELLING_COUNT)
            && let Some(bytes) = row.resident_bytes_each
        {
            self.hold("resident bytes of an idle connection".to_owned(), bytes, IDLE_BYTES_BAR);
        }
    }

    fn hold(&mut self, what: String, measured: f64, at_most: f64) {
        self.bars.push(Bar { what, measured, at_most, holds: measured <= at_most });
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

    /// Writes the report as tables.
    ///
    /// # Errors
    /// The output cannot be written to.
    pub fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        self.write_decisions(out)?;
        self.write_workers(out)?;
        self.write_memory(out)?;
        self.write_payloads(out)?;
        if !self.bars.is_empty() {
            writeln!(out, "{:<80} {:>9} {:>9}", "bars", "measured", "at most")?;
            for bar in &self.bars {
                let verdict = if bar.holds { "holds" } else { "MISSED" };
                writeln!(out, "{:<80} {:>9.2} {:>9.2}  {verdict}", bar.what, bar.measured, bar.at_most)?;
            }
        }
        if self.interrupted {
            writeln!(out, "\nended early")?;
        }
        out.flush()
    }

    fn write_decisions(&self, out: &mut impl Write) -> io::Result<()> {
        if !self.choices.is_empty() {
            writeln!(
                out,
                "choosing, inside the scheduler   workers   submit and assign ns   with the result ns"
            )?;
            for row in &self.choices {
                let (workers, ChoiceRow { policy, submit_ns, step_ns, .. }) =
                    (count(row.workers.into()), row);
                writeln!(out, "{policy:<30} {workers:>9} {submit_ns:>22.1} {step_ns:>20.1}")?;
            }
            writeln!(out)?;
        }
        if !self.submits.is_empty() {
            writeln!(out, "submitting, inside the scheduler   waiting   submit ns")?;
            for row in &self.submits {
                writeln!(out, "{:>42} {:>11.1}", count(row.queued as u64), row.submit_ns)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn write_workers(&self, out: &mut impl Write) -> io::Result<()> {
        if self.workers.is_empty() {
            return Ok(());
        }
        writeln!(out, "workers registered   tasks/s (4 x 128)    p50 us   one at a time p50 us   failed")?;
        for row in &self.workers {
            writeln!(
                out,
                "{:>18} {:>19} {:>9.1} {:>22.1} {:>8}",
                count(row.workers as u64),
                count(row.tasks_per_second as u64),
                row.p50_us,
                row.one_at_a_time_p50_us,
                count(row.failed),
            )?;
        }
        writeln!(out)
    }

    fn write_memory(&self, out: &mut impl Write) -> io::Result<()> {
        let bytes = |bytes: Option<f64>| bytes.map_or("unknown".into(), |bytes| format!("{bytes:.0}"));
        if !self.queued.is_empty() {
            writeln!(out, "tasks that wait   resident bytes each   taken in a second")?;
            for row in &self.queued {
                let (queued, taken_in) = (count(row.queued as u64), count(row.taken_in_per_second as u64));
                writeln!(out, "{queued:>15} {:>21} {taken_in:>19}", bytes(row.resident_bytes_each))?;
            }
            writeln!(out)?;
        }
        if !self.idle.is_empty() {
            writeln!(out, "idle connections   resident bytes each")?;
            for row in &self.idle {
                let connections = count(row.connections as u64);
                write!(out, "{connections:>16} {:>21}", bytes(row.resident_bytes_each))?;
                if row.connections < row.wanted {
                    let wanted = count(row.wanted as u64);
                    write!(out, "  instead of {wanted}: no more files may be open (ulimit -n)")?;
                }
                writeln!(out)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn write_payloads(&self, out: &mut impl Write) -> io::Result<()> {
        if self.payloads.is_empty() {
            return Ok(());
        }
        writeln!(out, "payload bytes   in flight     tasks/s   MB/s each way     p50 us   failed")?;
        for row in &self.payloads {
            writeln!(
                out,
                "{:>13} {:>11} {:>11} {:>15.1} {:>10.1} {:>8}",
                count(row.bytes as u64),
                row.in_flight,
                count(row.tasks_per_second as u64),
                row.megabytes_per_second,
                row.p50_us,
                count(row.failed),
            )?;
        }
        writeln!(out)
    }
}

fn count(number: u64) -> String {
    HumanCount(number).to_string()
}
