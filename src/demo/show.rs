//! The demo while it runs: live lines on a terminal, a few sentences elsewhere; always on standard error.

use std::collections::VecDeque;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::Member;

/// Draws a second at most.
const DRAWS_PER_SECOND: u8 = 15;
/// Looks that a worker's trace shows.
const TRACE_LOOKS: usize = 30;
/// How a trace shows nothing in hand, little, and as much as there are threads, or more.
const TRACE_MARKS: [char; 9] = ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Shares of the tasks, in percent, at which a sentence tells how far it is where there is no terminal.
const TOLD_AT_PERCENT: [u64; 3] = [25, 75, 100];

/// Tells how the run goes.
pub(super) struct Show {
    live: Option<Live>,
    tasks: u64,
    /// The next of [`TOLD_AT_PERCENT`].
    told: usize,
}

struct Live {
    lines: MultiProgress,
    all: ProgressBar,
    workers: Vec<WorkerLine>,
}

struct WorkerLine {
    bar: ProgressBar,
    /// What the worker had in hand at the latest looks, as marks.
    trace: VecDeque<char>,
    is_red: bool,
}

impl Show {
    pub(super) fn new(tasks: u64, workers: &[&str]) -> Show {
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let live = (std::io::stderr().is_terminal() && !is_dumb).then(|| Live::new(tasks, workers));
        Show { live, tasks, told: 0 }
    }

    /// Says a sentence that stays.
    pub(super) fn say(&self, sentence: &str) {
        // Without standard error there is nobody to tell.
        let _ = match &self.live {
            Some(live) => live.lines.println(sentence),
            None => writeln!(std::io::stderr().lock(), "{sentence}"),
        };
    }

    /// Shows how far the tasks and what the workers are.
    pub(super) fn update(&mut self, answered: u64, workers: &[Member]) {
        if let Some(live) = &mut self.live {
            live.all.set_position(answered);
            for (line, worker) in live.workers.iter_mut().zip(workers) {
                line.update(worker);
            }
            return;
        }
        let Some(percent) = TOLD_AT_PERCENT.get(self.told) else { return };
        if answered * 100 < self.tasks * percent {
            return;
        }
        self.told +=
            TOLD_AT_PERCENT[self.told..].iter().filter(|at| answered * 100 >= self.tasks * **at).count();
        let done = |worker: &Member| format!("{} {}", worker.id, HumanCount(worker.seen.done));
        let done: Vec<String> = workers.iter().map(done).collect();
        self.say(&format!("{} answers; done by {}.", HumanCount(answered), done.join(", ")));
    }

    /// Takes the live lines away; what was said stays.
    pub(super) fn finish(&mut self) {
        if let Some(live) = self.live.take() {
            // Or the thread that keeps the bar moving would draw it once more.
            live.all.finish_and_clear();
            live.workers.iter().for_each(|line| line.bar.finish_and_clear());
            // A terminal that is gone needs no cleaning.
            let _ = live.lines.clear();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Live {
    fn new(tasks: u64, workers: &[&str]) -> Live {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
        let width = workers.iter().map(|id| id.len()).max().unwrap_or(0);
        let all = lines.add(ProgressBar::new(tasks).with_prefix(format!("{:width$}", "tasks")));
        let look = style("{prefix:.bold} {bar:30.green/dim} {human_pos} of {human_len}, {rate:.dim}")
            .progress_chars("━━╌")
            .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
                // What it is written to takes everything.
                let _ = write!(out, "{:.0} a second", state.per_sec());
            });
        all.set_style(look);
        all.enable_steady_tick(Duration::from_millis(100));
        let workers = workers.iter().map(|id| {
            let bar = lines.add(ProgressBar::new_spinner().with_prefix(format!("{id:width$}")));
            bar.set_style(style("{prefix:.bold} {msg}"));
            WorkerLine { bar, trace: VecDeque::from([TRACE_MARKS[0]; TRACE_LOOKS]), is_red: false }
        });
        let workers = workers.collect();
        Live { lines, all, workers }
    }
}

impl WorkerLine {
    fn update(&mut self, worker: &Member) {
        let (in_hand, done) = (worker.seen.in_flight, HumanCount(worker.seen.done));
        let is_dead = worker.killed.is_some();
        self.trace.pop_front();
        self.trace.push_back(if is_dead { ' ' } else { mark(in_hand, worker.seen.threads) });
        let trace: String = self.trace.iter().collect();
        if is_dead && !self.is_red {
            self.is_red = true;
            self.bar.set_style(style("{prefix:.bold.red} {msg:.red}"));
        }
        self.bar.set_message(if is_dead {
            format!("{trace}  killed with {} in hand, {done} done", worker.in_hand_when_killed())
        } else {
            format!("{trace} {in_hand:>2} in hand, {done} done")
        });
    }
}

/// How much of its threads a worker has in use, as a mark.
fn mark(in_hand: u64, threads: u64) -> char {
    let highest = TRACE_MARKS.len() as u64 - 1;
    let level = (in_hand * highest).div_ceil(threads.max(1)).min(highest);
    // At most the last index.
    TRACE_MARKS[level as usize]
}

/// A line's look. A wrong template would show in the first test and is no reason to end the demo.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_grows_with_the_threads_in_use_and_stays_full_beyond() {
        let marks: String = [0, 1, 2, 3, 4, 5, 1_000].map(|in_hand| mark(in_hand, 4)).iter().collect();
        assert_eq!(marks, "·▂▄▆███");
        assert_eq!(mark(1, 0), '█');
    }

    #[test]
    fn the_templates_are_right() {
        let live = Live::new(100, &["worker-1"]);
        for bar in [&live.all, &live.workers[0].bar] {
            assert_eq!(bar.prefix(), format!("{:8}", bar.prefix().trim_end()));
        }
        assert!(ProgressStyle::with_template("{prefix:.bold.red} {msg:.red}").is_ok());
    }
}
