//! What the scheduler holds, for people: totals, and pages of workers and actions.

use super::clients::Wait;
use super::pulling::class_of;
use super::queue::Queue;
use super::task::Place;
use super::{
    ActionStatus, BackgroundId, HeldTask, JobStatus, NONE, Role, Scheduler, Time, Totals, WorkerStatus,
};

/// Actions that are looked at for a key that comes without its action.
const MOST_LOOKED_AT: usize = 4096;

fn by_class(queue: &Queue) -> [usize; 3] {
    let mut classes = [0; 3];
    for (priority, tasks) in queue.by_priority() {
        classes[class_of(priority)] += tasks;
    }
    classes
}

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
            // One at a time, as far as is known of a pull worker.
            threads: if worker.puller.is_some() { 1 } else { worker.threads },
            window: worker.window,
            weight: worker.weight,
            in_flight: worker.in_flight,
            done: worker.done,
            failed: worker.failed,
            service_ns: worker.service_ns,
            draining: worker.draining,
            actions: self.action_names(worker.group),
            connected_us: now.since(worker.registered_at).as_micros().try_into().unwrap_or(u64::MAX),
            connection: worker.peer.index,
            from: worker.puller.as_ref().and_then(|puller| puller.from),
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
            queued_by_class: by_class(&action.queue),
        };
        self.actions.iter().skip(offset).take(limit).map(|(_, action)| status(action)).collect()
    }

    /// How the task stands that a client at this connection waits for by this number; `None` when there is none.
    pub fn job(&self, connection: u32, number: u64) -> Option<JobStatus> {
        let task = self.job_row(connection, number)?;
        Some(self.job_status(task))
    }

    /// The task that a client at this connection waits for by this number.
    pub(super) fn job_row(&self, connection: u32, number: u64) -> Option<u32> {
        let client = match self.peers.get(connection as usize)?.role {
            Role::Client(client) => client,
            Role::Dual { client, .. } if client != NONE => client,
            _ => return None,
        };
        Some(match self.find_wait(client, number)? {
            Wait::First(task) => task,
            Wait::Beside(waiter) => self.waiters[waiter].task,
        })
    }

    /// How a task with this key stands, of whichever action: the first of those known longest, of which so many are
    /// looked at.
    pub fn job_by_key(&self, key: &[u8]) -> Option<JobStatus> {
        let actions = self.actions.iter().take(MOST_LOOKED_AT);
        let task = actions.filter_map(|(action, _)| self.find_key(action, key)).next()?;
        Some(self.job_status(task))
    }

    /// How a background task stands that is held here.
    pub fn background_job(&self, id: &BackgroundId) -> Option<JobStatus> {
        self.find_background(id).map(|task| self.job_status(task))
    }

    fn job_status(&self, task: u32) -> JobStatus {
        let row = &self.tasks[task];
        let (done, total) = self.tasks.extra(task).map_or((0, 0), |extra| extra.progress);
        let first = u32::from(row.is_wanted() && self.tasks.background(task).is_none());
        JobStatus {
            runs: matches!(row.place(), Place::Held(_)),
            done,
            total,
            waiting: first + self.tasks.waiting(task),
        }
    }

    /// The tasks that somebody waits for or that a store has, at most so many.
    pub fn held_tasks(&self, limit: usize) -> impl Iterator<Item = HeldTask<'_>> {
        let wanted = self.tasks.iter().filter(|(_, task)| task.is_wanted());
        wanted.take(limit).map(|(index, task)| HeldTask {
            submitted: (self.clients[task.client].peer, task.client_id),
            task_id: self.tasks.background(index).map(|background| background.id),
            attempts: task.spent,
            key: self.tasks.told_key(index),
        })
    }

    fn action_names(&self, group: u32) -> Vec<String> {
        self.choice.actions(group).iter().map(|action| self.actions[*action].name.to_string()).collect()
    }
}
