//! Turns: in every round each contender is measured once, and another one is first each time; what fails is noted.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Figures, PeersError};

/// Most rounds.
const MAX_ROUNDS: usize = 1_000;

/// Longest time that one measures, and shortest.
const DURATIONS: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3_600);

/// Most failures that are kept for people.
const MAX_FAILURES: usize = 50;

/// What each of the contenders did, round by round; `None` where it failed.
pub(crate) type Rounds = Vec<Vec<Option<Figures>>>;

/// Whether there can be so many rounds, each so long.
///
/// # Errors
/// [`PeersError::Options`] says what is out of its range.
pub(crate) fn check(rounds: usize, duration: Duration, warm_up: Duration) -> Result<(), PeersError> {
    if !(1..=MAX_ROUNDS).contains(&rounds) {
        let sentence = format!("there are {rounds} rounds, but there must be 1 to {MAX_ROUNDS}");
        return Err(PeersError::Options(sentence));
    }
    if !DURATIONS.contains(&duration) || warm_up > *DURATIONS.end() {
        let sentence = "a round lasts 10 ms to an hour, and its warm-up no more than an hour";
        return Err(PeersError::Options(sentence.into()));
    }
    Ok(())
}

/// Gives turns, shows on standard error how far it is where that is a terminal, and keeps what has failed.
pub(crate) struct Turns<'a> {
    rounds: usize,
    stop: &'a AtomicBool,
    bar: ProgressBar,
    failures: RefCell<Vec<String>>,
}

impl<'a> Turns<'a> {
    pub(crate) fn new(rounds: usize, stop: &'a AtomicBool) -> Turns<'a> {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left: {msg}") {
            bar.set_style(style);
        }
        Turns { rounds, stop, bar, failures: RefCell::default() }
    }

    /// So many turns are to come.
    pub(crate) fn plan(&self, turns: usize) {
        self.bar.set_length(turns as u64);
    }

    /// Gives each of `contenders` its turn in every round.
    pub(crate) fn rounds<T>(
        &self,
        contenders: &[T],
        name: impl Fn(&T) -> &'static str,
        turn: impl Fn(&T) -> Result<Figures, PeersError>,
    ) -> Result<Rounds, PeersError> {
        let mut all = vec![Vec::new(); contenders.len()];
        for round in 0..self.rounds {
            for place in 0..contenders.len() {
                let index = (place + round) % contenders.len();
                let contender = &contenders[index];
                all[index].push(self.attempt(name(contender), || turn(contender))?);
            }
        }
        Ok(all)
    }

    /// Gives one its turn. A failure is noted.
    pub(crate) fn attempt<T>(
        &self,
        name: &'static str,
        turn: impl FnOnce() -> Result<T, PeersError>,
    ) -> Result<Option<T>, PeersError> {
        self.bar.set_message(name);
        let outcome = turn();
        self.bar.inc(1);
        if self.stop.load(Ordering::Relaxed) {
            return Err(PeersError::Interrupted);
        }
        match outcome {
            Ok(it) => Ok(Some(it)),
            Err(PeersError::Interrupted) => Err(PeersError::Interrupted),
            Err(error) => {
                let mut failures = self.failures.borrow_mut();
                if failures.len() < MAX_FAILURES {
                    failures.push(error.to_string());
                }
                Ok(None)
            }
        }
    }

    /// All turns are over. Gives what has failed, for people.
    pub(crate) fn finish(&self) -> Vec<String> {
        self.bar.finish_and_clear();
        self.failures.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(speed: f64) -> Figures {
        Figures { tasks_per_second: speed, p50_us: 1.0, p99_us: 1.0, p999_us: 1.0 }
    }

    #[test]
    fn another_one_is_first_in_each_round_and_a_failure_is_noted_and_costs_one_figure() {
        let stop = AtomicBool::new(false);
        let turns = Turns::new(2, &stop);
        let order = RefCell::new(Vec::new());
        let rounds = turns.rounds(
            &["a", "b"],
            |name| name,
            |name| {
                order.borrow_mut().push(*name);
                match order.borrow().len() {
                    3 => Err(PeersError::Options("out of order".into())),
                    turn => Ok(figures(turn as f64)),
                }
            },
        );
        assert_eq!(order.into_inner(), ["a", "b", "b", "a"]);
        let rounds = rounds.unwrap();
        assert_eq!(rounds[0], [Some(figures(1.0)), Some(figures(4.0))]);
        assert_eq!(rounds[1], [Some(figures(2.0)), None]);
        assert_eq!(turns.finish(), ["out of order"]);
    }

    #[test]
    fn rounds_and_times_out_of_their_range_are_refused() {
        let second = Duration::from_secs(1);
        let refused = |rounds, duration| check(rounds, duration, second).unwrap_err().to_string();
        assert!(refused(0, second).contains("1 to 1000"));
        assert!(refused(5, Duration::ZERO).contains("10 ms to an hour"));
        assert!(check(5, second, second).is_ok());
    }

    #[test]
    fn a_run_that_is_stopped_gives_no_more_turns() {
        let stop = AtomicBool::new(true);
        let outcome = Turns::new(1, &stop).attempt("a", || Ok(()));
        assert!(matches!(outcome, Err(PeersError::Interrupted)));
    }
}
