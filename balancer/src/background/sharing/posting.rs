//! Workers that know only AMQP: the tasks of an action are published as JSON into a queue that they consume, and their
//! answers come back by `reply_to`.
//!
//! To the scheduler such a queue is one worker more, with so many threads as tasks may be in the queue or at work behind
//! it; so every rule on workers holds for it. It is this balancer that speaks for it: an answer ends the assignment that
//! its correlation id names, and one that does not come within the limit has failed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{cut, limits};

use super::Sharing;
use super::form::{self, Answered};
use crate::background::{Assigned, Keeper, Outlet, Pending};
use crate::bus::{Delivery, Message, Properties, Queue, QueueKind};
use crate::scheduler::{AssignmentId, Event, Finish, Peer, Registration, Scheduler, Time};
use crate::storage::TaskId;

/// Answers that may be on their way here.
const PREFETCH: u16 = 256;

/// A queue whose consumers are workers for an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpWorker {
    /// The action.
    pub action: String,
    /// The queue, up to 250 bytes.
    pub queue: Arc<str>,
    /// They answer to `reply_to`. Otherwise a task has ended, with an empty result, once the queue has it.
    pub replies: bool,
    /// Tasks in the queue and at work, at most; 1 to [`limits::MAX_THREADS`].
    pub in_flight: u32,
    /// How long an answer is waited for.
    pub limit: Duration,
}

impl AmqpWorker {
    /// The usual settings.
    #[must_use]
    pub fn new(action: &str, queue: &str) -> AmqpWorker {
        AmqpWorker {
            action: action.to_owned(),
            queue: queue.into(),
            replies: true,
            in_flight: 256,
            limit: Duration::from_secs(3600),
        }
    }

    /// How the status shows it.
    fn id(&self) -> String {
        let id = format!("amqp:{}={}", self.action, self.queue);
        cut(&id, limits::MAX_WORKER_ID_BYTES).to_owned()
    }
}

#[derive(Debug)]
struct Worker {
    settings: AmqpWorker,
    peer: Peer,
    /// It is given nothing, as RabbitMQ takes nothing.
    drains: bool,
}

/// A task that is in a queue, or at work behind it.
#[derive(Debug)]
struct Posted {
    worker: usize,
    until: Time,
}

/// All such workers, and what they have.
#[derive(Debug)]
pub(super) struct Posts {
    workers: Vec<Worker>,
    /// Where answers come to; consumed by `consumer`, 0 until it is.
    answers: Queue,
    consumer: u64,
    posted: HashMap<AssignmentId, Posted>,
    by_time: BTreeSet<(Time, AssignmentId)>,
}

impl Posts {
    pub(super) fn new(workers: &[AmqpWorker], first: Peer, installation: &str) -> Posts {
        let name = format!("reparto.{installation}.answers.{}", uuid::Uuid::new_v4().simple());
        let workers = (first.index..).zip(workers).map(|(index, settings)| Worker {
            settings: settings.clone(),
            peer: Peer { index, ..first },
            drains: false,
        });
        Posts {
            workers: workers.collect(),
            answers: Queue { name: name.into(), kind: QueueKind::Transient },
            consumer: 0,
            posted: HashMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    fn worker_of(&self, peer: Peer) -> Option<usize> {
        self.workers.iter().position(|worker| worker.peer == peer)
    }

    /// A task is not posted any more. Gives whose it was.
    fn take(&mut self, assignment: AssignmentId) -> Option<usize> {
        let posted = self.posted.remove(&assignment)?;
        self.by_time.remove(&(posted.until, assignment));
        Some(posted.worker)
    }

    /// When the first answer will have been waited for long enough.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    fn overdue(&self, now: Time) -> Option<AssignmentId> {
        self.by_time.first().filter(|(at, _)| *at <= now).map(|(_, assignment)| *assignment)
    }
}

impl Sharing {
    /// A message has come to where answers come to. Gives it back if it is none.
    pub(super) fn answer_delivered(&mut self, delivery: Delivery) -> Option<Delivery> {
        if delivery.consumer != self.posts.consumer {
            return Some(delivery);
        }
        self.bus.take(delivery.tag);
        self.answered.push(delivery);
        None
    }

    /// Writes a task into its worker's queue.
    fn post(&mut self, token: u64, now: Time, assignment: AssignmentId, task: &Assigned) {
        let Some(index) = self.posts.worker_of(task.peer) else { return };
        let settings = &self.posts.workers[index].settings;
        let id = task.task_id.map_or_else(|| assignment.0.to_string(), |id| TaskId(id).to_string());
        let body = form::task(&id, &task.action, &task.payload, task.attempt);
        let mut properties = Properties {
            message_id: Some(id),
            content_type: Some("application/json".into()),
            expires: task.deadline.map(|deadline| deadline.since(now)),
            ..Properties::default()
        };
        if settings.replies {
            properties.reply_to = Some(self.posts.answers.name.to_string());
            properties.correlation_id = Some(assignment.0.to_string());
        }
        let until = now.after(settings.limit);
        let queue = Queue { name: Arc::clone(&settings.queue), kind: QueueKind::Public };
        self.posts.posted.insert(assignment, Posted { worker: index, until });
        self.posts.by_time.insert((until, assignment));
        self.bus.publish(token, Message { queue, body, properties });
    }
}

impl Keeper {
    /// Has the workers take their places, once, and takes them out of the way while RabbitMQ takes nothing.
    pub(super) fn look_at_posts<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.posts.workers.is_empty() {
            return;
        }
        if sharing.posts.consumer == 0 {
            sharing.next_consumer += 1;
            sharing.posts.consumer = sharing.next_consumer;
            sharing.bus.begin(sharing.next_consumer, sharing.posts.answers.clone(), PREFETCH);
            for worker in &sharing.posts.workers {
                let AmqpWorker { action, in_flight, .. } = &worker.settings;
                let registration = Registration {
                    request: 0,
                    worker_id: &worker.settings.id(),
                    threads: *in_flight,
                    window: *in_flight,
                    weight: 1,
                    service_ns: None,
                    heartbeats: true,
                    actions: vec![action],
                    held: Vec::new(),
                };
                scheduler.handle(now, Event::Register { peer: worker.peer, registration }, out);
            }
        }
        let status = sharing.bus.status();
        let drains = status.unconfirmed > 0 && (status.trouble.is_some() || !sharing.bus.has_room());
        for worker in &mut sharing.posts.workers {
            if worker.drains != drains {
                worker.drains = drains;
                scheduler.handle(now, Event::Drain { peer: worker.peer, request: 0, resume: !drains }, out);
            }
        }
    }

    /// Ends what was not answered in time, and what was.
    pub(super) fn end_posted<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        while let Some(assignment) = self.sharing.as_ref().and_then(|sharing| sharing.posts.overdue(now)) {
            let Some(sharing) = &self.sharing else { return };
            let Some(posted) = sharing.posts.posted.get(&assignment) else { return };
            let AmqpWorker { queue, limit, .. } = &sharing.posts.workers[posted.worker].settings;
            let message = format!("no answer has come from the queue '{queue}' within {limit:?}");
            self.end_post(scheduler, now, assignment, &Answered::Failed { message, again: true }, out);
        }
        let answered = self.sharing.as_mut().map(|sharing| std::mem::take(&mut sharing.answered));
        for delivery in answered.unwrap_or_default() {
            let correlation = delivery.properties.correlation_id.as_deref().unwrap_or_default();
            match correlation.parse() {
                Ok(number) => {
                    let answered = self.read_answer(&delivery);
                    self.end_post(scheduler, now, AssignmentId(number), &answered, out);
                }
                Err(_) => log::debug!("an answer names nothing that was asked: '{correlation}'"),
            }
        }
    }

    fn read_answer(&self, delivery: &Delivery) -> Answered {
        match form::read_answer(&delivery.body) {
            Ok(Answered::Done(result)) if result.len() > self.max_payload => {
                let (bytes, most) = (result.len(), self.max_payload);
                let message = format!("its result has {bytes} bytes, and {most} is the limit (--max-frame)");
                Answered::Failed { message, again: false }
            }
            Ok(answered) => answered,
            Err(error) => {
                let message = format!("its worker's answer cannot be read: {error}");
                Answered::Failed { message, again: false }
            }
        }
    }

    /// What was posted has ended. A late answer finds nothing.
    fn end_post<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        assignment: AssignmentId,
        answered: &Answered,
        out: &mut E,
    ) {
        let Some(sharing) = &mut self.sharing else { return };
        let Some(worker) = sharing.posts.take(assignment) else { return };
        let peer = sharing.posts.workers[worker].peer;
        let nothing = Bytes::new();
        let (finish, payload) = match answered {
            Answered::Done(result) => (Finish::Done, result),
            Answered::Failed { message, again } => {
                let message = cut(message, limits::MAX_MESSAGE_BYTES);
                (if *again { Finish::Retry(message) } else { Finish::Failed(message) }, &nothing)
            }
        };
        scheduler.handle(
            now,
            Event::Finished { peer, assignment, finish, service_ns: None, payload: payload.into() },
            out,
        );
    }

    /// The scheduler has given such a worker a task.
    pub(in crate::background) fn post(&mut self, now: Time, assignment: AssignmentId, task: &Assigned) {
        let token = self.token(Pending::Post { assignment });
        if let Some(sharing) = &mut self.sharing {
            sharing.post(token, now, assignment, task);
        }
    }

    /// A task stands in its worker's queue.
    pub(super) fn posted<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        assignment: AssignmentId,
        out: &mut E,
    ) {
        let Some(sharing) = &self.sharing else { return };
        let Some(posted) = sharing.posts.posted.get(&assignment) else { return };
        if !sharing.posts.workers[posted.worker].settings.replies {
            self.end_post(scheduler, now, assignment, &Answered::Done(Bytes::new()), out);
        }
    }

    /// Nobody wants a posted task any more. Its message cannot be taken back; its place is free.
    pub(in crate::background) fn withdraw_post<E: Outlet>(
        &mut self,
        scheduler: &mut Scheduler,
        now: Time,
        (peer, assignment): (Peer, AssignmentId),
        out: &mut E,
    ) {
        if self.sharing.as_mut().and_then(|sharing| sharing.posts.take(assignment)).is_some() {
            let finish = Finish::NotRun;
            let payload = crate::scheduler::Payload::EMPTY;
            scheduler.handle(
                now,
                Event::Finished { peer, assignment, finish, service_ns: None, payload },
                out,
            );
        }
    }
}
