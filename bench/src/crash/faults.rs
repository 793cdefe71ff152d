//! What is done to the processes of a run, and when: drawn from the seed, so that a run's faults can be had again.

use std::time::Duration;

use fastrand::Rng;

/// Something that befalls a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    KillBalancer,
    /// Killed again while it starts.
    KillBalancerTwice,
    /// Every balancer and every worker at once.
    KillAll,
    KillWorker,
    StopBalancer,
    StopWorker,
    FreezeBalancer,
    FreezeWorker,
    /// An engine, where there are any.
    KillEngine,
    /// Nothing, for as long as workers have to name what they hold, and longer.
    Calm,
}

impl Fault {
    /// Every fault with its name.
    pub(super) const ALL: [(Fault, &'static str); 10] = [
        (Fault::KillBalancer, "balancer killed"),
        (Fault::KillBalancerTwice, "balancer killed, and again while it starts"),
        (Fault::KillAll, "all balancers and workers killed at once"),
        (Fault::KillWorker, "worker killed"),
        (Fault::StopBalancer, "balancer stopped (SIGTERM)"),
        (Fault::StopWorker, "worker stopped (SIGTERM)"),
        (Fault::FreezeBalancer, "balancer frozen for a while (SIGSTOP)"),
        (Fault::FreezeWorker, "worker frozen for a while (SIGSTOP)"),
        (Fault::KillEngine, "engine killed"),
        (Fault::Calm, "calm"),
    ];

    pub(super) fn name(self) -> &'static str {
        Fault::ALL.iter().find(|(fault, _)| *fault == self).map_or("", |(_, name)| name)
    }

    /// Whether somebody's process gets SIGKILL.
    pub(super) fn is_kill(self) -> bool {
        matches!(
            self,
            Fault::KillBalancer
                | Fault::KillBalancerTwice
                | Fault::KillAll
                | Fault::KillWorker
                | Fault::KillEngine
        )
    }
}

/// Draws faults.
#[derive(Debug)]
pub(super) struct Faults {
    random: Rng,
    has_engines: bool,
    /// There is time for calms.
    has_calms: bool,
}

impl Faults {
    pub(super) fn new(seed: u64, has_engines: bool, has_calms: bool) -> Faults {
        Faults { random: Rng::with_seed(seed ^ 0xFA17), has_engines, has_calms }
    }

    /// The next fault.
    pub(super) fn draw(&mut self) -> Fault {
        match self.random.u8(..100) {
            0..30 => Fault::KillBalancer,
            30..38 => Fault::KillBalancerTwice,
            38..43 => Fault::KillAll,
            43..63 => Fault::KillWorker,
            63..67 => Fault::StopBalancer,
            67..71 => Fault::StopWorker,
            71..75 => Fault::FreezeBalancer,
            75..82 => Fault::FreezeWorker,
            82..97 if self.has_engines => Fault::KillEngine,
            97.. if self.has_calms => Fault::Calm,
            _ => Fault::KillBalancer,
        }
    }

    /// Time until the next fault.
    pub(super) fn pause(&mut self, fault: Fault) -> Duration {
        match fault {
            Fault::Calm => self.millis(17_000, 20_000),
            // An engine takes its time to come back, and what waits for it some more.
            Fault::KillEngine => self.millis(1_000, 8_000),
            _ if self.random.u8(..5) == 0 => self.millis(0, 100),
            _ => self.millis(200, 2_500),
        }
    }

    /// How long a process is away, or frozen.
    pub(super) fn away(&mut self, fault: Fault) -> Duration {
        match fault {
            Fault::FreezeBalancer | Fault::FreezeWorker => self.millis(100, 4_000),
            _ if self.random.bool() => Duration::ZERO,
            _ => self.millis(1, 1_500),
        }
    }

    /// How soon a process that starts is killed again.
    pub(super) fn soon(&mut self) -> Duration {
        self.millis(0, 250)
    }

    /// One of so many.
    pub(super) fn which(&mut self, count: usize) -> usize {
        self.random.usize(..count.max(1))
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.u64(least..=most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_each_time_and_engines_are_spared_where_there_are_none() {
        let draw = |seed| {
            let mut faults = Faults::new(seed, false, true);
            (0..300)
                .map(|_| {
                    let fault = faults.draw();
                    (fault, faults.pause(fault), faults.away(fault))
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!(draw(3).iter().all(|(fault, ..)| *fault != Fault::KillEngine));
        let mut faults = Faults::new(3, true, false);
        assert!((0..300).any(|_| faults.draw() == Fault::KillEngine));
    }
}
