//! What the scheduler holds, for people: totals, and pages of workers and actions.

use super::{ActionStatus, Scheduler, Time, Totals, WorkerStatus};

impl Scheduler {
    /// Counts of what is there now and what has been since the start.
    pub fn totals(&self) -> Totals {
        Totals {
            clients: self.clients.len() - self.leaving.len() - usize::from(self.keeper != super::NONE),
            workers: self.workers.len(),
            actions: self.actions.len(),
            queued: self.queued,
            running: self.tasks.len() - self.queued,
            bytes: self.bytes,
            submitted: self.counts.submitted,
            refused: self.counts.refused,
            done: self.counts.done,
            failed: self.counts.failed,
            requeued: self.counts.requeued,
            workers_lost: self.counts.workers_lost,
        }
    }

    /// A page of the workers, in an order that stays while none comes or goes.
    pub fn workers(&self, now: Time, offset: usize, limit: usize) -> Vec<WorkerStatus> {
        let status = |worker: &super::Worker| WorkerStatus {
            id: worker.id.to_string(),
            threads: worker.threads,
            window: worker.window,
            weight: worker.weight,
            in_flight: worker.in_flight,
            done: worker.done,
            failed: worker.failed,
            service_ns: worker.service_ns,
            draining: worker.draining,
            actions: self.action_names(worker.group),
            connected_us: now.since(worker.registered_at).as_micros().try_into().unwrap_or(u64::MAX),
        };
        self.workers.iter().skip(offset).take(limit).map(|(_, worker)| status(worker)).collect()
    }

    /// A page of the actions, in an order that stays while none comes or goes.
    pub fn actions(&self, offset: usize, limit: usize) -> Vec<ActionStatus> {
        let status = |action: &super::Action| ActionStatus {
            name: action.name.to_string(),
            workers: action.offers.workers as usize,
            queued: action.queue.len(),
            running: action.running,
        };
        self.actions.iter().skip(offset).take(limit).map(|(_, action)| status(action)).collect()
    }

    fn action_names(&self, group: u32) -> Vec<String> {
        self.choice.actions(group).iter().map(|action| self.actions[*action].name.to_string()).collect()
    }
}
