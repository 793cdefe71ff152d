//! Work that balancers share: who holds what, what is published, and how much is fetched from the bus.
//!
//! PostgreSQL holds the truth, RabbitMQ carries the work. A task's row stands in the store before its message is
//! published; whoever is delivered the message claims the row, and the message is done with once that is durable. So a
//! message that comes twice, or for a task that is gone, finds nothing to claim.
//!
//! What is fetched follows the room at the workers here ([`Scheduler::room_ahead`](crate::scheduler::Scheduler)): an
//! action is consumed only while there are workers for it, no more is claimed than they can take up soon, and what was
//! delivered and finds no room goes back to its queue.

#[cfg(test)]
mod claim_tests;
mod course;
mod form;
mod intake;
mod opening;
mod posting;
mod travel;
mod working;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;

use self::course::Course;
pub(super) use self::intake::{Intake, Owed};
pub use self::opening::{MOST_AMQP_WORKERS, SharingSettings};
pub(super) use self::opening::{OpenedSharing, start};
pub use self::posting::AmqpWorker;
use self::posting::Posts;
use self::travel::Travel;
pub(super) use self::working::Claimant;
use crate::bus::{Bus, BusEvent, Delivery, Message, Properties, Queue, QueueKind, Tag};
use crate::scheduler::{Peer, Time};
use crate::storage::{Heard, Listener, StoredTask, TaskId, ToPublish};

/// How much work is fetched ahead for the workers here, as time that it takes them.
const AHEAD: Duration = Duration::from_millis(100);
/// How often it is looked how much room there is.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked what lies between the balancers: what is due, has expired, or was left by one that died.
const SWEEP: Duration = Duration::from_millis(500);
/// Tasks that one step of that may publish.
const SWEPT: usize = 1000;
/// How long what could not be brought in is left alone.
const PAUSE: Duration = Duration::from_secs(1);
/// Names of actions longer than this many bytes are cut in the names of their queues, which have 255 bytes at most.
const LONG_ACTION: usize = 150;

/// The queues of an action: high, normal and low. A quorum queue knows no priorities.
const CLASSES: [&str; 3] = ["high", "normal", "low"];

/// Which of them a priority belongs to.
fn class_of(priority: u8) -> usize {
    match priority {
        7.. => 0,
        3..7 => 1,
        0..3 => 2,
    }
}

/// A task that this balancer owns, or is about to.
#[derive(Debug)]
struct Held {
    action: Arc<str>,
    priority: u8,
    /// The number under which it owns the task; `None` until the store has said so.
    owner: Option<i64>,
    /// Where its outcome is owed to.
    reply: Option<Arc<str>>,
}

/// What was heard of tasks that ended at other balancers.
#[derive(Debug)]
struct HeardOfOthers {
    heard: Receiver<Heard>,
    /// There was more than is kept.
    missed: Arc<AtomicBool>,
}

/// A part of the keeper: what it shares with other balancers.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) bus: Bus,
    heard: HeardOfOthers,
    _listener: Listener,
    /// Stands in the names of all queues, so that balancers of other databases have others.
    installation: Arc<str>,
    courses: HashMap<Arc<str>, Course>,
    /// Which action's, and which class.
    consumers: HashMap<u64, (Arc<str>, usize)>,
    next_consumer: u64,
    /// The queues of other programs.
    pub(super) intakes: Vec<Intake>,
    /// Tasks whose outcome is on its way to whom it is owed.
    telling: HashSet<TaskId>,
    /// Workers that know only AMQP.
    posts: Posts,
    /// Their answers, until they are looked at.
    answered: Vec<Delivery>,
    /// Foreground tasks from here and to here.
    travel: Travel,
    /// What came from other balancers, until it is looked at.
    arrived: Vec<Delivery>,
    held: HashMap<TaskId, Held>,
    /// The number under which this balancer owns tasks, as far as it knows.
    owner: Option<i64>,
    /// Claimed tasks that could not be brought in, and when that is tried again.
    delayed: VecDeque<(Time, Box<StoredTask>, Option<Peer>)>,
    look_at: Time,
    sweep_at: Time,
    is_sweeping: bool,
}

impl Sharing {
    /// The queue of an action's tasks of a class.
    fn queue(&self, action: &str, class: usize) -> Queue {
        let name = format!("reparto.{}.tasks.{}.{}", self.installation, short(action), CLASSES[class]);
        Queue { name: name.into(), kind: QueueKind::Durable }
    }

    /// Publishes a task, so that some balancer claims it.
    pub(super) fn publish(&mut self, token: u64, task: &ToPublish) {
        let queue = self.queue(&task.action, class_of(task.priority));
        let body = Bytes::copy_from_slice(&task.id.0);
        self.bus.publish(token, Message { queue, body, properties: Properties::default() });
    }

    /// A message has come, to one of the many consumers.
    fn delivered(&mut self, now: Time, delivery: Delivery) {
        if let Some((action, class)) = self.consumers.get(&delivery.consumer).cloned() {
            return self.delivered_to_course(now, &delivery, &action, class);
        }
        let Some(delivery) = self.delivered_to_intake(now, delivery) else { return };
        let Some(delivery) = self.answer_delivered(delivery) else { return };
        let Some(delivery) = self.travel_delivered(delivery) else { return };
        // Of a consumer that was ended meanwhile.
        self.bus.give_back(delivery.tag);
    }

    /// A message has come for a task of an action. It waits until there is room for it.
    fn delivered_to_course(&mut self, now: Time, delivery: &Delivery, action: &str, class: usize) {
        let id = <[u8; 16]>::try_from(&delivery.body[..]).map(TaskId);
        match (id, self.courses.get_mut(action)) {
            (Err(_), _) => {
                log::warn!("a message on the bus names no task, and is dropped");
                self.bus.take(delivery.tag);
            }
            (Ok(_), None) => self.bus.give_back(delivery.tag),
            (Ok(id), Some(course)) => course.wait(now, class, delivery.tag, id),
        }
    }

    /// The next delivery whose task is to be claimed, if there is room for one.
    fn next_to_claim(&mut self) -> Option<(TaskId, Tag)> {
        let (action, course) = self.courses.iter_mut().find(|(_, course)| course.has_claim())?;
        let (tag, id) = course.next_to_claim()?;
        if self.held.contains_key(&id) {
            // Its message has come twice.
            self.bus.take(tag);
            return self.next_to_claim();
        }
        course.held += 1;
        let priority = reparto_protocol::limits::DEFAULT_PRIORITY;
        self.held.insert(id, Held { action: Arc::clone(action), priority, owner: None, reply: None });
        Some((id, tag))
    }

    /// A task is this balancer's.
    fn owned(&mut self, task: &StoredTask, owner: i64) {
        let (action, priority) = (&task.task.action, task.task.priority);
        let reply = task.task.reply.clone();
        match self.held.get_mut(&task.task.id) {
            Some(held) => (held.owner, held.priority, held.reply) = (Some(owner), priority, reply),
            None => {
                // A worker has named it.
                self.course(action).held += 1;
                let held = Held { action: Arc::clone(action), priority, owner: Some(owner), reply };
                self.held.insert(task.task.id, held);
            }
        }
    }

    fn course(&mut self, action: &Arc<str>) -> &mut Course {
        self.courses.entry(Arc::clone(action)).or_default()
    }

    /// A task is not this balancer's any more: it has ended, is put off, or belongs to another.
    pub(super) fn left(&mut self, id: TaskId) {
        if let Some(held) = self.held.remove(&id)
            && let Some(course) = self.courses.get_mut(&held.action)
        {
            course.held = course.held.saturating_sub(1);
        }
    }

    /// The tasks that were owned under another number than the present one.
    fn lost(&self, owner: i64) -> Vec<TaskId> {
        let lost = self.held.iter().filter(|(_, held)| held.owner.is_some_and(|was| was != owner));
        lost.map(|(id, _)| *id).collect()
    }

    /// Keeps a claimed task until it is tried again to bring it in.
    pub(super) fn delay(&mut self, now: Time, task: Box<StoredTask>, holder: Option<Peer>) {
        self.delayed.push_back((now.after(PAUSE), task, holder));
    }

    /// Adjusts what is consumed to the room that there is. Gives the actions of which too much is held here.
    fn look(&mut self, now: Time, room: &[(&str, usize)]) -> Vec<(Arc<str>, usize)> {
        for course in self.courses.values_mut() {
            course.target = 0;
        }
        for (action, tasks) in room {
            match self.courses.get_mut(*action) {
                Some(course) => course.target = *tasks,
                None => self.course(&Arc::from(*action)).target = *tasks,
            }
        }
        let mut too_many = Vec::new();
        let names: Vec<Arc<str>> = self.courses.keys().cloned().collect();
        for action in names {
            let Some(course) = self.courses.get_mut(&action) else { continue };
            let advice = course.look(now);
            for tag in advice.give_back {
                self.bus.give_back(tag);
            }
            for consumer in advice.end.into_iter().flatten() {
                self.consumers.remove(&consumer);
                self.bus.end(consumer);
            }
            if let Some(prefetch) = advice.begin {
                self.begin(&action, prefetch);
            }
            if let Some(keep) = advice.keep {
                too_many.push((action, keep));
            } else if self.courses.get(&action).is_some_and(Course::is_over) {
                self.courses.remove(&action);
            }
        }
        too_many
    }

    /// Begins to consume an action's queues.
    fn begin(&mut self, action: &Arc<str>, prefetch: u16) {
        let mut begun = [0; CLASSES.len()];
        for (class, consumer) in begun.iter_mut().enumerate() {
            self.next_consumer += 1;
            *consumer = self.next_consumer;
            self.consumers.insert(*consumer, (Arc::clone(action), class));
            let queue = self.queue(action, class);
            self.bus.begin(*consumer, queue, prefetch);
        }
        self.course(action).consumers = Some(begun);
    }

    /// Consumes nothing any more.
    pub(super) fn stop(&mut self) {
        self.end_intakes();
        self.close_doors();
        for (consumer, _) in self.consumers.drain() {
            self.bus.end(consumer);
        }
        for course in self.courses.values_mut() {
            for tag in course.give_all_back() {
                self.bus.give_back(tag);
            }
        }
        self.courses.clear();
        self.bus.flush();
    }

    /// The same while the balancer stops.
    pub(super) fn next_time_stopping(&self) -> Time {
        self.look_at.min(self.posts.next_time().unwrap_or(Time(u64::MAX)))
    }

    /// When there is next something to do that depends on the time alone.
    pub(super) fn next_time(&self) -> Time {
        let sweep = if self.is_sweeping { Time(u64::MAX) } else { self.sweep_at };
        let delayed = self.delayed.front().map_or(Time(u64::MAX), |(at, _, _)| *at);
        let answer = self.posts.next_time().unwrap_or(Time(u64::MAX));
        self.look_at.min(sweep).min(delayed).min(answer)
    }

    /// The consuming connection is lost: what it delivered comes again.
    fn connection_lost(&mut self) {
        self.intakes_lost();
        self.travel.at_doors_lost();
        for course in self.courses.values_mut() {
            course.give_all_back();
        }
    }

    fn take_events(&self) -> Vec<BusEvent> {
        let mut events = Vec::new();
        self.bus.take_events(&mut events);
        events
    }
}

/// An action's name in that of a queue: a long one is cut, and told apart by a number.
fn short(action: &str) -> String {
    if action.len() <= LONG_ACTION {
        return action.to_owned();
    }
    let hash = action.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    format!("{}~{hash:016x}", reparto_protocol::cut(action, LONG_ACTION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_priority_has_its_class_and_the_usual_one_is_normal() {
        let classes: Vec<usize> = (0..=9).map(class_of).collect();
        assert_eq!(classes, [2, 2, 2, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(CLASSES[class_of(reparto_protocol::limits::DEFAULT_PRIORITY)], "normal");
    }

    #[test]
    fn long_actions_have_queues_of_their_own_whose_names_are_not_too_long() {
        let (one, other) = ("é".repeat(127), format!("{}x", "é".repeat(126)));
        assert_ne!(short(&one), short(&other));
        assert!(short(&one).len() < 180);
        assert_eq!(short("upper"), "upper");
    }
}
