//! Tasks that programs publish into queues of their own, as JSON: taken in as background tasks, and their outcomes told
//! to whom they are owed.
//!
//! A delivery is acknowledged once its task stands in the store, with where to reply; so whatever dies, the task is
//! there or its message comes again. The outcome is told by the balancer that records it. What it could not tell, since
//! it died or RabbitMQ was away, the sweep finds, and another tells it: so an outcome may be told twice, and is never
//! forgotten.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{ErrorCode, TaskState, limits};

use super::Sharing;
use super::form::{self, HandedIn, ReplyTo};
use crate::background::{Keeper, Look, Outlet, Pending, describe, micros, wall_clock};
use crate::bus::{Delivery, Message, Properties, Queue, QueueKind, Tag};
use crate::scheduler::Time;
use crate::storage::{
    Answer, Backoff, Body, Failure, IdempotencyKey, NewTask, Operation, StoreError, StoredTask, TaskId,
    ToPublish,
};

/// Messages of a queue that may be on their way into the store, at most.
const MOST_PREFETCHED: u16 = 64;
/// And no more than are so many bytes, were all as large as the largest that came lately. RabbitMQ itself bounds messages by
/// number alone, and each by its own limit on a message.
const PREFETCHED_BYTES: usize = 64 << 20;
/// By this part the largest message is forgotten with each look, ten times a second: by half in two seconds.
const FORGOTTEN: usize = 32;
/// What was delivered and cannot be taken in for this long goes back to its queue.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a dead-letter queue is called after its queue.
const DEAD: &str = "dead";
/// The header that says why a message is dead.
const REASON: &str = "x-reparto-reason";
/// The header that says which queue it came from.
const FROM: &str = "x-reparto-queue";

/// A queue that tasks are taken from.
#[derive(Debug)]
pub(in crate::background) struct Intake {
    pub(in crate::background) queue: Arc<str>,
    consumer: Option<u64>,
    /// Messages that may be on their way to the consumer.
    prefetch: u16,
    /// Bytes of the largest message that came lately.
    largest: usize,
    waiting: VecDeque<(Time, Delivery)>,
}

/// How a task has ended that somebody is owed the outcome of, beside its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::background) struct Owed {
    pub(in crate::background) reply: Arc<str>,
    pub(in crate::background) state: TaskState,
    pub(in crate::background) failure: Option<Failure>,
}

impl Intake {
    pub(super) fn new(queue: &Arc<str>) -> Intake {
        let queue = Arc::clone(queue);
        Intake { queue, consumer: None, prefetch: 0, largest: 0, waiting: VecDeque::new() }
    }

    /// Messages that wait to be taken in, and their bytes.
    pub(in crate::background) fn waiting(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting.iter().map(|(_, delivery)| delivery.body.len()).sum())
    }

    fn has_come(&mut self, now: Time, delivery: Delivery) {
        self.largest = self.largest.max(delivery.body.len());
        self.waiting.push_back((now, delivery));
    }

    /// How many messages may be on their way here, if that is another number than it was. Fewer at once when they are
    /// large, and more again when nothing waits.
    fn new_prefetch(&mut self) -> Option<u16> {
        let by_size = PREFETCHED_BYTES / self.largest.max(1);
        let wanted = u16::try_from(by_size).map_or(MOST_PREFETCHED, |most| most.clamp(1, MOST_PREFETCHED));
        self.largest -= self.largest / FORGOTTEN;
        let grows = wanted >= self.prefetch.saturating_mul(2) && self.waiting.is_empty();
        (self.consumer.is_none() || wanted < self.prefetch || grows).then_some(wanted)
    }

    fn oldest(&self) -> Option<Time> {
        self.waiting.front().map(|(since, _)| *since)
    }

    fn public(name: String) -> Queue {
        Queue { name: name.into(), kind: QueueKind::Public }
    }
}

impl Sharing {
    /// A message has come to the consumer of one of those queues. Gives it back if it is none of them.
    pub(super) fn delivered_to_intake(&mut self, now: Time, delivery: Delivery) -> Option<Delivery> {
        let intake = self.intakes.iter_mut().find(|intake| intake.consumer == Some(delivery.consumer));
        match intake {
            Some(intake) => {
                intake.has_come(now, delivery);
                None
            }
            None => Some(delivery),
        }
    }

    /// The next message that is to be taken in, and the queue that it came from.
    fn next_handed_in(&mut self) -> Option<(Arc<str>, Delivery)> {
        let intakes = self.intakes.iter_mut().filter(|intake| !intake.waiting.is_empty());
        let intake = intakes.min_by_key(|intake| intake.oldest())?;
        let (_, delivery) = intake.waiting.pop_front()?;
        Some((Arc::clone(&intake.queue), delivery))
    }

    /// Consumes those queues while their tasks can be taken in.
    pub(super) fn look_at_intakes(&mut self, now: Time, takes: bool) {
        for index in 0..self.intakes.len() {
            let in_vain = self.intakes[index].oldest().is_some_and(|since| now >= since.after(PATIENCE));
            if in_vain {
                self.end_intake(index);
            } else if takes && let Some(prefetch) = self.intakes[index].new_prefetch() {
                self.next_consumer += 1;
                let intake = &mut self.intakes[index];
                intake.prefetch = prefetch;
                // What the one before has delivered is taken all the same.
                if let Some(before) = intake.consumer.replace(self.next_consumer) {
                    self.bus.end(before);
                }
                let queue = Intake::public(intake.queue.to_string());
                self.bus.begin(self.next_consumer, queue, prefetch);
            }
        }
    }

    fn end_intake(&mut self, index: usize) {
        if let Some(consumer) = self.intakes[index].consumer.take() {
            self.bus.end(consumer);
        }
        for (_, delivery) in std::mem::take(&mut self.intakes[index].waiting) {
            self.bus.give_back(delivery.tag);
        }
    }

    pub(super) fn end_intakes(&mut self) {
        (0..self.intakes.len()).for_each(|index| self.end_intake(index));
    }

    /// The consuming connection is lost: what it delivered comes again.
    pub(super) fn intakes_lost(&mut self) {
        self.intakes.iter_mut().for_each(|intake| intake.waiting.clear());
    }

    /// Where the outcome of a task that is held here is owed to.
    pub(in crate::background) fn reply_of(&self, id: TaskId) -> Option<Arc<str>> {
        self.held.get(&id)?.reply.clone()
    }
}

impl Keeper {
    // ---- into the store ----

    /// Takes in what has come to the queues of other programs, as far as the store takes it.
    pub(in crate::background) fn take_in(&mut self) {
        while self.takes_in()
            && let Some((queue, delivery)) =
                self.sharing.as_mut().and_then(|sharing| sharing.next_handed_in())
        {
            match HandedIn::read(&delivery.body, self.max_payload) {
                Ok(task) => self.hand_in(&queue, delivery, task),
                Err(error) => self.bury(&queue, delivery, &error.to_string()),
            }
        }
    }

    /// Whether another task can be taken in.
    pub(in crate::background) fn takes_in(&self) -> bool {
        !self.stopping && self.refuses_tasks().is_none() && self.bus_is_full().is_none()
    }

    fn hand_in(&mut self, queue: &Arc<str>, delivery: Delivery, task: HandedIn) {
        let now = wall_clock();
        let idempotency = delivery.properties.message_id.as_ref().map(|message| {
            let mut key = Vec::with_capacity(queue.len() + 1 + message.len());
            key.extend_from_slice(queue.as_bytes());
            // Not the byte that stands behind an action in the keys of clients.
            key.push(0xFE);
            key.extend_from_slice(message.as_bytes());
            let until = now.saturating_add(micros(limits::DEFAULT_IDEMPOTENCY));
            IdempotencyKey { key: key.into(), until }
        });
        let Properties { reply_to, correlation_id, .. } = &delivery.properties;
        let reply = reply_to.clone().map(|queue| {
            ReplyTo { queue, correlation_id: correlation_id.clone(), id: task.id.clone() }.to_text()
        });
        let most_ms = u32::try_from(limits::DEFAULT_BACKOFF_MOST.as_millis()).unwrap_or(u32::MAX);
        let new = NewTask {
            id: self.ids.next(now),
            action: task.action,
            payload: Body::Inline(task.payload),
            priority: task.priority,
            max_attempts: task.attempts,
            created_at: now,
            due_at: task
                .delay
                .filter(|delay| !delay.is_zero())
                .map(|delay| now.saturating_add(micros(delay))),
            deadline_at: task.deadline.map(|deadline| now.saturating_add(micros(deadline))),
            backoff: Backoff { first_ms: task.backoff_first_ms, most_ms: most_ms.max(task.backoff_first_ms) },
            idempotency,
            reply,
        };
        let to_publish = ToPublish { id: new.id, action: Arc::clone(&new.action), priority: new.priority };
        let (due, queue) = (new.due_at, Arc::clone(queue));
        let pending = Pending::TakeIn { queue, delivery: Box::new(delivery), task: to_publish, due };
        self.request(Operation::Accept(new), pending);
    }

    /// A task that was handed in stands in the store.
    pub(in crate::background) fn handed_in(
        &mut self,
        delivery: &Delivery,
        task: &ToPublish,
        due: Option<i64>,
        answer: &Answer,
    ) {
        if let Some(sharing) = &mut self.sharing {
            sharing.bus.take(delivery.tag);
        }
        match (answer, due) {
            // Its message has come before.
            (Answer::SameKey(_), _) => {}
            (_, Some(due)) => self.due_at(due),
            (_, None) => self.publish_again(task),
        }
    }

    /// The store has not taken a task that was handed in.
    pub(in crate::background) fn hand_in_failed(
        &mut self,
        queue: &Arc<str>,
        delivery: Delivery,
        error: &StoreError,
    ) {
        match error {
            StoreError::Invalid { .. } => self.bury(queue, delivery, &error.to_string()),
            _ => self.hand_back_delivery(delivery.tag),
        }
    }

    pub(in crate::background) fn hand_back_delivery(&mut self, tag: Tag) {
        if let Some(sharing) = &mut self.sharing {
            sharing.bus.give_back(tag);
        }
    }

    /// Puts a message that is no task aside, with the reason, so that it blocks nobody and somebody can look at it.
    fn bury(&mut self, queue: &Arc<str>, delivery: Delivery, reason: &str) {
        log::warn!("a message in '{queue}' is put into '{queue}.{DEAD}': {reason}");
        let token = self.token(Pending::Bury { tag: delivery.tag });
        let Some(sharing) = &mut self.sharing else { return };
        let Delivery { body, mut properties, .. } = delivery;
        let headers =
            [(REASON, reason), (FROM, queue)].map(|(name, text)| (name.to_owned(), text.to_owned()));
        properties.headers.extend(headers);
        let queue = Intake::public(format!("{queue}.{DEAD}"));
        sharing.bus.publish(token, Message { queue, body, properties });
    }

    // ---- what is owed ----

    /// Tells how a task has ended to whom that is owed. What cannot be told now is left to the sweep.
    pub(in crate::background) fn tell_owed(&mut self, id: TaskId, owed: &Owed, result: Option<&Bytes>) {
        match (result, &owed.failure) {
            (Some(result), _) => self.tell(id, &owed.reply, Ok(result)),
            (None, Some(failure)) => self.tell(id, &owed.reply, Err((failure.code, &failure.message))),
            (None, None) => self.tell(id, &owed.reply, Err((ErrorCode::Internal, owed.state.name()))),
        }
    }

    /// The same, of a task as the store has it.
    pub(in crate::background) fn tell_stored(&mut self, stored: &StoredTask) {
        let (id, Some(reply)) = (stored.task.id, &stored.task.reply) else { return };
        match (stored.state, &stored.result) {
            (TaskState::Done, Some(Body::Inline(result))) => self.tell(id, reply, Ok(result)),
            (TaskState::Done, Some(Body::Blob(key))) => {
                let message = format!("its result {key} is missing from the blobs");
                self.tell(id, reply, Err((ErrorCode::Internal, &message)));
            }
            (TaskState::Done, None) => self.tell(id, reply, Ok(&[])),
            (state, _) if state.is_ended() => {
                let (code, message) = describe::failure(stored);
                self.tell(id, reply, Err((code, &message)));
            }
            // It was revived meanwhile.
            _ => {}
        }
    }

    fn tell(&mut self, id: TaskId, reply: &str, outcome: Result<&[u8], (ErrorCode, &str)>) {
        let Some(sharing) = &mut self.sharing else { return };
        if !sharing.bus.has_room() || !sharing.telling.insert(id) {
            return;
        }
        let reply = match ReplyTo::read(reply) {
            Ok(reply) => reply,
            Err(error) => {
                log::warn!("nobody can be told how {id} has ended: {error}");
                return self.told(id);
            }
        };
        let task_id = id.to_string();
        let body = form::answer(reply.id.as_deref(), &task_id, outcome);
        let properties = Properties {
            message_id: Some(task_id),
            correlation_id: reply.correlation_id,
            content_type: Some("application/json".into()),
            ..Properties::default()
        };
        let queue = Queue { name: reply.queue.into(), kind: QueueKind::Foreign };
        let token = self.token(Pending::Tell { id });
        if let Some(sharing) = &mut self.sharing {
            sharing.bus.publish(token, Message { queue, body, properties });
        }
    }

    /// An outcome was told, or nobody is there who could be told.
    pub(in crate::background) fn told(&mut self, id: TaskId) {
        if let Some(sharing) = &mut self.sharing {
            sharing.telling.remove(&id);
        }
        self.request(Operation::Settle { id }, Pending::Settle);
    }

    /// The sweep has found outcomes that are owed.
    pub(super) fn tell_what_is_owed<E: Outlet>(&mut self, owed: Vec<TaskId>, out: &mut E) {
        for id in owed {
            if self.sharing.as_ref().is_some_and(|sharing| !sharing.telling.contains(&id)) {
                self.look(id, Look::Tell, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_messages_are_fetched_while_they_are_large_and_more_again_afterwards() {
        let mut intake = Intake::new(&"orders".into());
        assert_eq!(intake.new_prefetch(), Some(64));
        (intake.consumer, intake.prefetch) = (Some(1), 64);
        assert_eq!(intake.new_prefetch(), None);
        let come = |intake: &mut Intake, bytes: usize| {
            let (body, properties) = (vec![0; bytes].into(), Properties::default());
            intake.has_come(Time(0), Delivery { consumer: 1, tag: Tag::NOWHERE, body, properties });
        };
        come(&mut intake, 1 << 20);
        assert_eq!(intake.new_prefetch(), None, "64 of a MiB are 64 MiB");
        come(&mut intake, 20 << 20);
        assert_eq!(intake.new_prefetch(), Some(3));
        intake.prefetch = 3;
        come(&mut intake, 100 << 20);
        assert_eq!(intake.new_prefetch(), Some(1), "one is always fetched");
        intake.prefetch = 1;
        assert_eq!(intake.new_prefetch(), None);
        intake.waiting.clear();
        // Small again: it grows in steps, and is what it was after some seconds.
        let mut looks = 0;
        while intake.prefetch < 64 {
            intake.prefetch = intake.new_prefetch().unwrap_or(intake.prefetch);
            looks += 1;
        }
        assert!((50..300).contains(&looks), "{looks} looks, ten a second");
    }
}
