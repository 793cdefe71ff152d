//! Watching over workers: are they there, and do they sit on tasks that others could run?

use std::time::Duration;

use reparto_protocol::ErrorCode;

use super::choice::Change;
use super::{Effect, Effects, Scheduler, Time};

/// A worker that holds more than its threads and has delivered nothing for this long is asked to hand back what
/// another worker is free to run.
pub(super) const STALL: Duration = Duration::from_millis(20);

/// A worker is looked at no oftener than this, whatever heartbeat is set.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// A look at a worker that comes this much late means that the balancer itself stood still, so that nobody could be
/// heard.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// A worker that is not looked at.
const NEVER: Time = Time(u64::MAX);

/// Tasks recalled at most each time a stalled worker is looked at.
const RECALLS_A_CHECK: usize = 256;

/// How long a stalled worker is left alone for each task that was looked at. So looking through what it holds again
/// and again takes a thousandth of the time that passes.
const PAUSE_A_LOOK: Duration = Duration::from_micros(100);

impl Scheduler {
    /// When it is next to be looked at: when it will have been silent for a heartbeat, when it will be lost, or when
    /// it may have stalled. One without heartbeats that holds no more than its threads is not looked at.
    pub(super) fn arm_check(&mut self, worker: u32) {
        let row = &self.workers[worker];
        let heartbeat = self.config.heartbeat;
        let mut at = if row.heartbeats { row.heard_at.after(heartbeat) } else { NEVER };
        if at <= self.now {
            at = self.now.after(heartbeat);
        }
        if let Some(asked_at) = row.asked_at {
            at = at.min(row.heard_at.after(self.config.silence).max(asked_at.after(self.patience())));
        }
        if row.in_flight > row.threads {
            let stalled_at = row.finished_at.after(STALL);
            let stalled_at = if stalled_at > self.now { stalled_at } else { self.now.after(STALL) };
            at = at.min(stalled_at.max(row.recall_at));
        }
        self.set_check(worker, at.max(self.now.after(LEAST_PAUSE)));
    }

    /// How long a worker has to answer when it was asked whether it is there.
    fn patience(&self) -> Duration {
        self.config.silence.saturating_sub(self.config.heartbeat)
    }

    pub(super) fn set_check(&mut self, worker: u32, at: Time) {
        let row = &mut self.workers[worker];
        self.checks.remove(&(row.check_at, worker));
        row.check_at = at;
        if at != NEVER {
            self.checks.insert((at, worker));
        }
    }

    /// Is the worker silent, or does it sit on tasks that others could run? Says how many tasks were looked at.
    pub(super) fn check_worker<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) -> usize {
        if self.workers[worker].puller.is_some() {
            return self.check_puller(worker, effects);
        }
        let patience = self.patience();
        let row = &mut self.workers[worker];
        let check_at = std::mem::replace(&mut row.check_at, NEVER);
        if self.now.since(check_at) >= STOOD_STILL {
            // What the worker has said meanwhile may wait to be read.
            row.asked_at = None;
        }
        let (peer, silent_for) = (row.peer, self.now.since(row.heard_at));
        match row.asked_at {
            Some(at) if silent_for >= self.config.silence && self.now.since(at) >= patience => {
                return self.lose_silent(worker, silent_for, effects);
            }
            None if row.heartbeats && silent_for >= self.config.heartbeat => {
                row.asked_at = Some(self.now);
                effects.push(Effect::Ping { peer });
                self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
            }
            _ => {}
        }
        let row = &self.workers[worker];
        let stalled = row.in_flight > row.threads && self.now.since(row.finished_at) >= STALL;
        let looked_at = if stalled && self.now >= row.recall_at { self.recall(worker, effects) } else { 0 };
        self.arm_check(worker);
        looked_at
    }

    /// Says how many tasks it held.
    fn lose_silent<'a>(
        &mut self,
        worker: u32,
        silent_for: Duration,
        effects: &mut impl Effects<'a>,
    ) -> usize {
        let row = &self.workers[worker];
        let (peer, held) = (row.peer, row.in_flight as usize);
        let message = format!("worker '{}' was silent for {} ms", row.id, silent_for.as_millis());
        self.forget_peer(peer);
        self.worker_lost(worker, effects);
        effects.push(Effect::Close { peer, code: ErrorCode::TimedOut, message: message.into() });
        held
    }

    /// Asks a worker that delivers nothing to hand back what it has not begun and another is free to run. Says how
    /// many tasks were looked at.
    fn recall<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) -> usize {
        let is_free = |action: &u32| {
            let offers = &self.actions[*action].offers;
            self.choice.pick(offers).or_else(|| self.choice.pick_asleep(offers)).is_some_and(|pick| pick.free)
        };
        if !self.choice.actions(self.workers[worker].group).iter().any(is_free) {
            return 0;
        }
        let peer = self.workers[worker].peer;
        let not_begun = (self.workers[worker].in_flight - self.workers[worker].threads) as usize;
        let (mut looked_at, mut recalled) = (0, 0);
        let newest: Vec<u32> = self.workers[worker].held.tasks(&self.tasks).rev().take(not_begun).collect();
        for at in newest {
            if recalled == RECALLS_A_CHECK {
                break;
            }
            looked_at += 1;
            let task = &self.tasks[at];
            if !task.recalled && is_free(&task.action) {
                let assignment = self.assignment_id(at);
                effects.push(Effect::CancelAssignment { peer, assignment, recall: true });
                self.tasks[at].recalled = true;
                recalled += 1;
            }
        }
        let row = &mut self.workers[worker];
        row.recall_at = self.now.after(STALL.max(PAUSE_A_LOOK * looked_at as u32));
        if recalled > 0 {
            row.stalled = true;
            row.settle_room();
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        }
        looked_at
    }
}
