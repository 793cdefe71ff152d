//! What a run saw, for people and for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::HumanCount;

use super::books::Violation;

/// Violations that are told in full.
const MOST_TOLD: usize = 5;

/// What a run saw.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// With which the run can be had again.
    pub seed: u64,
    /// How long faults went on, in seconds.
    pub faults_for_s: f64,
    /// How long it took in all, in seconds.
    pub took_s: f64,
    /// The store, and what else took part.
    pub setting: String,
    /// What clients did and saw, by name.
    pub tasks: BTreeMap<&'static str, u64>,
    /// What was done to processes, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// How often a process or an engine got SIGKILL on purpose (everybody at once counts once).
    pub kills: u64,
    /// Processes started.
    pub starts: u64,
    /// Runs of handlers.
    pub runs: u64,
    /// Tasks that were begun more than once.
    pub begun_again: u64,
    /// The longest time without an ACCEPTED, in milliseconds.
    pub longest_outage_ms: u64,
    /// The slowest start of a balancer until it took tasks, in milliseconds.
    pub slowest_start_ms: u64,
    /// What must not happen, and did.
    pub violations: Vec<Violation>,
    /// Logs and data, kept where something is wrong.
    pub folder: Option<PathBuf>,
}

impl Report {
    /// Nothing that must not happen did.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }

    /// For people.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "seed {}: {:.0} s of faults, {:.0} s in all; {}",
            self.seed, self.faults_for_s, self.took_s, self.setting
        )?;
        for (name, count) in &self.tasks {
            writeln!(out, "{:>12}  {name}", HumanCount(*count).to_string())?;
        }
        writeln!(
            out,
            "{:>12}  runs of handlers; {} tasks were begun again",
            HumanCount(self.runs).to_string(),
            HumanCount(self.begun_again)
        )?;
        for (name, count) in &self.faults {
            writeln!(out, "{:>12}  {name}", HumanCount(*count).to_string())?;
        }
        writeln!(
            out,
            "{:>12}  kills (SIGKILL), {} starts of processes",
            HumanCount(self.kills).to_string(),
            HumanCount(self.starts)
        )?;
        writeln!(
            out,
            "longest time without an ACCEPTED {} ms; slowest start of a balancer {} ms",
            HumanCount(self.longest_outage_ms),
            HumanCount(self.slowest_start_ms)
        )?;
        for violation in self.violations.iter().take(MOST_TOLD) {
            writeln!(out, "\nWRONG  {}", violation.what)?;
            if let Some(number) = violation.number {
                let id = violation.task_id.as_deref().unwrap_or("never accepted");
                writeln!(out, "  task {number} of seed {} ({id})", self.seed)?;
            }
            for line in &violation.history {
                writeln!(out, "  {line}")?;
            }
        }
        if self.violations.len() > MOST_TOLD {
            writeln!(out, "\n... and {} more", self.violations.len() - MOST_TOLD)?;
        }
        if let Some(folder) = &self.folder {
            writeln!(out, "logs and data: {}", folder.display())?;
        }
        if self.is_good() {
            writeln!(out, "nothing lost, nothing doubled")
        } else {
            writeln!(out, "{} things are wrong", self.violations.len())
        }
    }
}
