//! The mean time that a task takes a thread, and when it has changed enough to be told.

use std::time::Duration;

/// The weight of the newest task in the mean.
const NEWEST: f64 = 1.0 / 16.0;
/// A change of more than this part of what was told is told.
const WORTH_TELLING: f64 = 0.25;
/// Below this, a result may wait a moment for others to be written with it.
const QUICK: Duration = Duration::from_micros(100);

/// An exponentially weighted mean. The balancer gives a worker about a millisecond of work by it, so one that
/// is never told costs throughput, and one that is told with every task costs bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServiceTime {
    mean_ns: Option<f64>,
    told_ns: Option<f64>,
}

impl ServiceTime {
    pub(crate) fn record(&mut self, took: Duration) {
        let ns = took.as_secs_f64() * 1e9;
        self.mean_ns = Some(self.mean_ns.map_or(ns, |mean| mean + (ns - mean) * NEWEST));
    }

    /// The mean, when it is known, counted as told.
    pub(crate) fn tell(&mut self) -> Option<u64> {
        self.told_ns = self.mean_ns;
        // At least 1: a mean of zero would say nothing.
        self.mean_ns.map(|ns| (ns as u64).max(1))
    }

    /// The mean, when it was never told or has changed much since.
    pub(crate) fn tell_if_changed(&mut self) -> Option<u64> {
        match (self.mean_ns, self.told_ns) {
            (Some(mean), Some(told)) if (mean - told).abs() <= told * WORTH_TELLING => None,
            _ => self.tell(),
        }
    }

    pub(crate) fn is_quick(&self) -> bool {
        self.mean_ns.is_some_and(|ns| ns < QUICK.as_nanos() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_mean_is_told_first_and_then_only_when_it_changed_by_a_quarter() {
        let mut service = ServiceTime::default();
        assert_eq!(service.tell_if_changed(), None);
        service.record(MS);
        assert_eq!(service.tell_if_changed(), Some(1_000_000));
        service.record(MS * 4);
        assert_eq!(service.tell_if_changed(), None, "three sixteenths more is not worth telling");
        service.record(MS * 4);
        assert!(service.tell_if_changed().is_some_and(|ns| ns > 1_300_000));
    }

    #[test]
    fn tasks_below_a_tenth_of_a_millisecond_are_quick() {
        let mut service = ServiceTime::default();
        assert!(!service.is_quick(), "nothing is known yet");
        service.record(Duration::from_micros(2));
        assert!(service.is_quick());
        service.record(MS * 2);
        assert!(!service.is_quick());
    }
}
