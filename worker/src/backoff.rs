//! How long to wait before the next try to connect: longer after every failure, and never in step with others.

use std::time::Duration;

/// Before the second try.
const FIRST: Duration = Duration::from_millis(100);
/// However often it failed.
const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from 100 ms to 5 s; each wait is drawn from the upper half, so that workers that lost one balancer
/// together do not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { next: FIRST }
    }

    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_seconds_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::new();
        for ms in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let full = Duration::from_millis(ms);
            let wait = backoff.next();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} is not within the upper half of {full:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
