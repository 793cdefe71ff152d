//! A scheduler with simulated clients and workers around it, for timing its decisions.

use std::collections::VecDeque;

use reparto_balancer::scheduler::{
    AssignmentId, Config, Effect, Event, Finish, Payload, Peer, Policy, Registration, Scheduler, Submission,
    Time,
};

/// What every task carries: 64 bytes.
const PAYLOAD: &[u8; 64] = &[b'x'; 64];

const ACTION: &str = "echo";

/// The client's row; workers have those from 1 on.
const CLIENT: Peer = Peer { index: 0, generation: 1 };

/// The same order of workers in every run.
const SEED: u64 = 1;

fn worker_peer(worker: u32) -> Peer {
    Peer { index: worker, generation: 1 }
}

/// A [`Scheduler`] with one client and as many workers as asked for, driven by hand.
///
/// ```
/// use reparto_balancer::scheduler::Policy;
/// use reparto_bench::scale::SchedulerRig;
///
/// let mut rig = SchedulerRig::new(Policy::LeastLoaded, 10, 1);
/// rig.queue(1_000);
/// assert_eq!((rig.held(), rig.queued()), (10, 1_000));
/// rig.step();
/// assert_eq!((rig.held(), rig.queued()), (10, 1_000));
/// ```
#[derive(Debug)]
pub struct SchedulerRig {
    scheduler: Scheduler,
    effects: Vec<Effect<'static>>,
    /// Microseconds; every event is one later than the one before.
    now: u64,
    /// The client's latest number for a task.
    task: u64,
    /// Assignments that workers hold, the oldest first.
    held: VecDeque<(Peer, AssignmentId)>,
}

impl SchedulerRig {
    /// A scheduler with `workers` workers of `threads` threads each, and no tasks.
    pub fn new(policy: Policy, workers: u32, threads: u32) -> SchedulerRig {
        let config = Config { policy, max_workers: workers.max(1) as usize, ..Config::default() };
        let mut rig = SchedulerRig {
            scheduler: Scheduler::new(config),
            effects: Vec::new(),
            now: 0,
            task: 0,
            held: VecDeque::new(),
        };
        rig.handle(Event::ClientJoined { peer: CLIENT });
        for worker in 1..=workers {
            let registration = Registration {
                request: 1,
                worker_id: &format!("worker-{worker}"),
                threads,
                window: threads,
                weight: 1 + worker % 3,
                service_ns: None,
                heartbeats: true,
                held: Vec::new(),
                actions: vec![ACTION],
            };
            let event = Event::Register { peer: worker_peer(worker), registration };
            rig.scheduler.handle(Time(0), event, &mut Vec::new());
        }
        rig.shuffle(workers);
        rig
    }

    /// Has every worker leave its place and come back, in random order: where workers have come and gone, the next
    /// one to be chosen does not lie beside the one before, waiting in the processor's cache.
    fn shuffle(&mut self, workers: u32) {
        let mut order: Vec<u32> = (1..=workers).collect();
        fastrand::Rng::with_seed(SEED).shuffle(&mut order);
        for worker in order {
            for resume in [false, true] {
                self.handle(Event::Drain { peer: worker_peer(worker), request: 2, resume });
            }
        }
    }

    /// Tasks that workers hold.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Tasks that wait.
    pub fn queued(&self) -> usize {
        self.scheduler.totals().queued
    }

    /// Hands in a task of 64 bytes: it goes to a worker, or waits when none has room.
    #[inline]
    pub fn submit(&mut self) {
        self.task += 1;
        let task = Submission::new(self.task, ACTION, Payload::new(PAYLOAD));
        self.handle(Event::Submit { peer: CLIENT, task });
    }

    /// Takes back the task that was handed in last. It must be waiting.
    pub fn cancel_latest(&mut self) {
        self.handle(Event::Cancel { peer: CLIENT, id: self.task });
        self.task -= 1;
    }

    /// Has the task that a worker has held longest end with a result. Its worker gets the next one that waits.
    /// Does nothing when no task is held.
    #[inline]
    pub fn finish(&mut self) {
        let Some((peer, assignment)) = self.held.pop_front() else { return };
        let payload = Payload::new(PAYLOAD);
        let finish = Finish::Done;
        self.handle(Event::Finished { peer, assignment, finish, service_ns: None, payload });
    }

    /// One task's way: handed in, given to a worker, its result back. Where tasks wait, as many wait after it.
    #[inline]
    pub fn step(&mut self) {
        self.submit();
        self.finish();
    }

    /// Hands in tasks until no worker has room and `tasks` wait.
    pub fn queue(&mut self, tasks: usize) {
        while self.queued() < tasks {
            self.submit();
        }
    }

    #[inline]
    fn handle(&mut self, event: Event<'static>) {
        self.now += 1;
        self.scheduler.handle(Time(self.now), event, &mut self.effects);
        for effect in self.effects.drain(..) {
            if let Effect::Assign { peer, assignment } = effect {
                self.held.push_back((peer, assignment));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_takes_part_and_what_is_over_waits() {
        for policy in [Policy::RoundRobin, Policy::LeastLoaded, Policy::Weighted] {
            let mut rig = SchedulerRig::new(policy, 3, 2);
            rig.queue(5);
            assert_eq!((rig.held(), rig.queued()), (6, 5));
            for _ in 0..11 {
                rig.finish();
            }
            assert_eq!((rig.held(), rig.queued()), (0, 0));
            rig.finish();
        }
    }

    #[test]
    fn a_cancelled_task_no_longer_waits() {
        let mut rig = SchedulerRig::new(Policy::LeastLoaded, 0, 1);
        rig.queue(3);
        rig.submit();
        rig.cancel_latest();
        assert_eq!(rig.queued(), 3);
    }
}
