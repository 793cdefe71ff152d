//! An action's course: what of it was delivered and waits, what is held, and how much of it is consumed.

use std::collections::VecDeque;
use std::time::Duration;

use super::CLASSES;
use crate::bus::Tag;
use crate::scheduler::Time;
use crate::storage::TaskId;

/// Messages under way to one consumer, at most.
const MOST_PREFETCHED: usize = 1000;
/// What was delivered and has found no room for this long goes back, so that another balancer may have it.
const PATIENCE: Duration = Duration::from_secs(2);
/// An action without workers, or with far more tasks than its workers can take up soon, hands them back after this time.
const HAND_BACK: Duration = Duration::from_secs(1);
/// So much more than there is room for may be held: workers come and go, and what they report varies.
const SLACK: usize = 16;

/// What was delivered, and waits to be claimed.
#[derive(Debug)]
struct Waiting {
    tag: Tag,
    id: TaskId,
    since: Time,
}

/// See this module's first lines.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// Tasks that the workers here can take up soon.
    pub(super) target: usize,
    /// Tasks that are held here, or are being claimed.
    pub(super) held: usize,
    /// By class, the highest first.
    waiting: [VecDeque<Waiting>; CLASSES.len()],
    /// One for each class, while it is consumed.
    pub(super) consumers: Option<[u64; CLASSES.len()]>,
    prefetch: usize,
    /// Since when there are too many tasks here.
    too_many_since: Option<Time>,
}

/// What is to be done about a course.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    /// Deliveries that go back to their queues.
    pub(super) give_back: Vec<Tag>,
    /// Consumers that end.
    pub(super) end: Option<[u64; CLASSES.len()]>,
    /// Consumers begin, with this prefetch.
    pub(super) begin: Option<u16>,
    /// Only so many tasks are to be kept here; the others go back to the bus.
    pub(super) keep: Option<usize>,
}

impl Course {
    pub(super) fn wait(&mut self, since: Time, class: usize, tag: Tag, id: TaskId) {
        self.waiting[class].push_back(Waiting { tag, id, since });
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.iter().any(|class| !class.is_empty())
    }

    /// Whether there is a delivery, and room for its task.
    pub(super) fn has_claim(&self) -> bool {
        self.held < self.target && self.is_waited_for()
    }

    /// The delivery whose task is claimed next: of the highest class, the first that came.
    pub(super) fn next_to_claim(&mut self) -> Option<(Tag, TaskId)> {
        let class = self.waiting.iter_mut().find(|class| !class.is_empty())?;
        class.pop_front().map(|waiting| (waiting.tag, waiting.id))
    }

    /// All deliveries that wait, which are not waited for any more.
    pub(super) fn give_all_back(&mut self) -> Vec<Tag> {
        self.waiting.iter_mut().flat_map(|class| class.drain(..)).map(|waiting| waiting.tag).collect()
    }

    /// Nothing of it is here any more.
    pub(super) fn is_over(&self) -> bool {
        self.target == 0 && self.held == 0 && self.consumers.is_none() && !self.is_waited_for()
    }

    /// Looks at the room that there is.
    pub(super) fn look(&mut self, now: Time) -> Advice {
        let mut advice = Advice { keep: self.too_many(now), ..Advice::default() };
        let oldest = self.waiting.iter().filter_map(|class| class.front()).map(|waiting| waiting.since).min();
        let in_vain = oldest.is_some_and(|since| now >= since.after(PATIENCE));
        if self.target == 0 || in_vain {
            advice.end = self.consumers.take();
            advice.give_back = self.give_all_back();
            return advice;
        }
        let room = self.target.saturating_sub(self.held);
        let wanted = room.min(MOST_PREFETCHED);
        let is_short = !self.is_waited_for() && wanted >= 2 * self.prefetch;
        if room > 0 && (self.consumers.is_none() || is_short && self.prefetch < MOST_PREFETCHED) {
            advice.end = self.consumers.take();
            self.prefetch = wanted;
            advice.begin = u16::try_from(wanted).ok();
        }
        advice
    }

    /// How many tasks are to be kept here, if too many have been for a while.
    fn too_many(&mut self, now: Time) -> Option<usize> {
        let keep = if self.target == 0 { 0 } else { 2 * self.target + SLACK };
        if self.held <= keep {
            self.too_many_since = None;
            return None;
        }
        let since = *self.too_many_since.get_or_insert(now);
        (now >= since.after(HAND_BACK)).then_some(keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn course(target: usize) -> Course {
        Course { target, ..Course::default() }
    }

    #[test]
    fn an_action_with_workers_is_consumed_and_one_without_is_not() {
        let mut course = course(0);
        assert_eq!(course.look(Time(0)), Advice::default());
        assert!(course.is_over());
        course.target = 8;
        assert_eq!(course.look(Time(0)).begin, Some(8));
        course.consumers = Some([1, 2, 3]);
        assert_eq!(course.look(Time(1)), Advice::default());
        course.target = 0;
        let advice = course.look(Time(2));
        assert_eq!((advice.end, advice.begin), (Some([1, 2, 3]), None));
    }

    #[test]
    fn consumers_are_renewed_when_there_is_twice_the_room() {
        let mut course = course(8);
        course.look(Time(0));
        course.consumers = Some([1, 2, 3]);
        course.target = 15;
        assert_eq!(course.look(Time(1)), Advice::default());
        course.target = 16;
        let advice = course.look(Time(2));
        assert_eq!((advice.end, advice.begin), (Some([1, 2, 3]), Some(16)));
        course.consumers = Some([4, 5, 6]);
        course.target = 1_000_000;
        assert_eq!(course.look(Time(3)).begin, Some(1000));
        course.consumers = Some([7, 8, 9]);
        assert_eq!(course.look(Time(4)), Advice::default());
    }

    #[test]
    fn no_consumer_begins_while_there_is_no_room() {
        let mut course = course(2);
        course.held = 2;
        assert_eq!(course.look(Time(0)), Advice::default());
        course.held = 1;
        assert_eq!(course.look(Time(1)).begin, Some(1));
    }

    #[test]
    fn tasks_without_workers_are_handed_back_after_a_moment_and_a_few_too_many_are_not() {
        let mut course = course(0);
        course.held = 5;
        assert_eq!(course.look(Time(0)).keep, None);
        assert_eq!(course.look(Time(SECOND - 1)).keep, None);
        assert_eq!(course.look(Time(SECOND)).keep, Some(0));
        course.target = 1;
        assert_eq!(course.look(Time(2 * SECOND)).keep, None);
        course.held = 100;
        course.look(Time(3 * SECOND));
        assert_eq!(course.look(Time(4 * SECOND)).keep, Some(18));
    }
}
