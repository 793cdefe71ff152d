//! The demo's tasks: what each asks for, and the answer that is right. A seed decides all of them, so none is kept.

use bytes::Bytes;

use super::files::{Document, Documents};

/// Tasks that sleep at most, over the whole demo. They are what takes the workers' time.
const MAX_SLEEPS: u64 = 4_000;
/// Every so many tasks one sleeps, unless that makes too many.
const SLEEP_SHARE: u64 = 3;
/// How long one sleeps, in milliseconds.
pub(super) const SLEEP_MS: std::ops::RangeInclusive<u64> = 10..=30;
/// The last Fibonacci number that 128 bits hold is this one.
const MAX_FIB: usize = 186;
/// Numbers in a sum at most.
const MAX_SUMMANDS: usize = 20;

/// What the tasks ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Sum,
    Fib,
    Sha256,
    Sleep,
}

impl Action {
    pub(super) const ALL: [Action; 4] = [Action::Sum, Action::Fib, Action::Sha256, Action::Sleep];

    /// As workers know it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Action::Sum => "sum",
            Action::Fib => "fib",
            Action::Sha256 => "sha256",
            Action::Sleep => "sleep",
        }
    }
}

/// One task.
pub(super) struct Job {
    pub(super) action: Action,
    pub(super) payload: Bytes,
    /// The right answer, computed in this process.
    pub(super) expected: Bytes,
}

/// All tasks of a run.
pub(super) struct Plan {
    pub(super) tasks: u64,
    seed: u64,
    pub(super) documents: Documents,
    fibonacci: Vec<Bytes>,
}

impl Plan {
    pub(super) fn new(tasks: u64, seed: u64, documents: Documents) -> Plan {
        Plan { tasks, seed, documents, fibonacci: fibonacci() }
    }

    /// The task of this number, from 0. The same number gives the same task.
    pub(super) fn job(&self, number: u64) -> Job {
        let (action, mut random) = self.draw(number);
        let (payload, expected) = match action {
            Action::Sum => {
                let numbers: Vec<i64> =
                    (0..random.usize(2..=MAX_SUMMANDS)).map(|_| random.i64(-1_000_000..=1_000_000)).collect();
                let texts: Vec<String> = numbers.iter().map(i64::to_string).collect();
                (texts.join(",").into(), numbers.iter().sum::<i64>().to_string().into())
            }
            Action::Fib => {
                let n = random.usize(0..=MAX_FIB);
                (n.to_string().into(), self.fibonacci[n].clone())
            }
            Action::Sha256 => {
                let Document { content, digest } =
                    &self.documents.all[random.usize(0..self.documents.all.len())];
                (content.clone(), digest.clone())
            }
            Action::Sleep => {
                let ms = random.u64(SLEEP_MS);
                (ms.to_string().into(), format!("slept {ms} ms").into())
            }
        };
        Job { action, payload, expected }
    }

    /// What the task of this number asks for.
    pub(super) fn action(&self, number: u64) -> Action {
        self.draw(number).0
    }

    /// How many tasks ask for each action, in the order of [`Action::ALL`].
    pub(super) fn counts(&self) -> [u64; Action::ALL.len()] {
        let mut counts = [0; Action::ALL.len()];
        for number in 0..self.tasks {
            counts[self.action(number) as usize] += 1;
        }
        counts
    }

    fn draw(&self, number: u64) -> (Action, fastrand::Rng) {
        // The factor is 2^64 divided by the golden ratio: neighbours get seeds that are far apart.
        let mut random = fastrand::Rng::with_seed(self.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let one_in = SLEEP_SHARE.max(self.tasks / MAX_SLEEPS);
        let action = if random.u64(0..one_in) == 0 {
            Action::Sleep
        } else {
            match random.u8(0..7) {
                0..3 => Action::Sum,
                3..6 => Action::Fib,
                _ => Action::Sha256,
            }
        };
        (action, random)
    }
}

/// The Fibonacci numbers that 128 bits hold, as text.
fn fibonacci() -> Vec<Bytes> {
    let mut numbers: Vec<u128> = vec![0, 1];
    while let [.., before, last] = numbers[..]
        && numbers.len() <= MAX_FIB
    {
        numbers.push(before + last);
    }
    numbers.iter().map(|number| number.to_string().into()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn plan(tasks: u64) -> Plan {
        let documents =
            Documents::gather(Path::new("/no such folder, surely"), &mut fastrand::Rng::with_seed(1));
        Plan::new(tasks, 1, documents)
    }

    #[test]
    fn the_same_number_is_always_the_same_task() {
        let plan = plan(4_000);
        for number in 0..100 {
            let (one, other) = (plan.job(number), plan.job(number));
            assert_eq!((one.action, one.payload), (other.action, other.payload));
            assert_eq!(one.action, plan.action(number));
        }
    }

    #[test]
    fn every_action_has_its_share_and_sleeping_stays_within_bounds() {
        let counts = plan(4_000).counts();
        assert_eq!(counts.iter().sum::<u64>(), 4_000);
        assert!(counts.iter().all(|count| *count > 200), "{counts:?}");
        let sleeps = plan(400_000).counts()[Action::Sleep as usize];
        assert!(sleeps < 2 * MAX_SLEEPS, "{sleeps}");
    }

    #[test]
    fn fibonacci_numbers_reach_as_far_as_128_bits() {
        let numbers = fibonacci();
        assert_eq!(numbers.len(), MAX_FIB + 1);
        assert_eq!(numbers[10], "55");
        assert_eq!(numbers[MAX_FIB], "332825110087067562321196029789634457848");
    }
}
