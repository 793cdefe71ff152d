//! An action's queue: ten levels of priority, and in each the clients that have tasks there taking turns.
//!
//! Between levels: a task's rank is its priority plus the time it has waited in units of `aging`. All ranks rise
//! alike, so of two levels that one goes first whose oldest task has the smaller `since - priority * aging`, which
//! never changes: no task has to be moved while it waits. A level that goes before a higher one for its oldest
//! task's sake gives that one, and the next one in turn, alternately. So nothing starves: neither a task behind
//! others that keep coming, nor a client behind one with many old tasks.
//!
//! Within a level: deficit round robin over the clients by payload bytes, after M. Shreedhar and G. Varghese,
//! "Efficient Fair Queuing Using Deficit Round-Robin" (SIGCOMM 1995). A client's tasks of one action and level are
//! a *flow*, first-in first-out. How much a turn has, [`effort`](super::effort) says.

use foldhash::fast::FixedState;
use reparto_protocol::limits::MAX_PRIORITY;
use std::hash::BuildHasher;

use super::effort::{Effort, TASK_COST};
use super::slab::{Link, List, NONE, Slab, linked};
use super::table::Table;
use super::task::{AgeLink, Place, PlaceLink, Task, Tasks};

const LEVELS: usize = MAX_PRIORITY as usize + 1;

#[derive(Debug)]
struct Ring;

/// A client, an action and a priority.
type FlowKey = (u32, u32, u8);

/// One client's tasks of one action and level.
#[derive(Debug)]
struct Flow {
    client: u32,
    action: u32,
    priority: u8,
    /// What it may still take this turn, in bytes of cost.
    deficit: u64,
    tasks: List<PlaceLink>,
    ring: Link,
}

linked!(Flow, Ring, ring);

/// The queue of one action. Its flows stand in [`Flows`].
#[derive(Debug, Default)]
pub(super) struct Queue {
    levels: [Level; LEVELS],
    /// The levels that have tasks, a bit each.
    occupied: u16,
    /// The last task that went before those of a higher level was the oldest of its own.
    gave_oldest: bool,
    tasks: usize,
    /// What its tasks take.
    pub(super) effort: Effort,
}

#[derive(Debug)]
struct Level {
    /// Its flows, in the order of their turns.
    ring: List<Ring>,
    /// All its tasks, whoever's they are, in the order in which they came.
    by_age: List<AgeLink>,
    tasks: usize,
}

impl Default for Level {
    fn default() -> Self {
        Level { ring: List::new(), by_age: List::new(), tasks: 0 }
    }
}

/// The level of a queue that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) priority: u8,
    /// The smaller goes first: the moment since its oldest task waits, less its priority's worth of waiting.
    pub(super) rank: i128,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.tasks
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks == 0
    }

    /// Tasks of each priority, from the lowest on.
    pub(super) fn by_priority(&self) -> impl Iterator<Item = (u8, usize)> {
        (0..).zip(self.levels.iter().map(|level| level.tasks))
    }
}

/// The flows of all queues.
#[derive(Debug)]
pub(super) struct Flows {
    flows: Slab<Flow>,
    /// Finds a flow by client, action and priority.
    index: Table,
    hasher: FixedState,
    /// Waiting this long makes up for one level of priority, in microseconds.
    aging_us: u64,
}

impl Flows {
    pub(super) fn new(aging_us: u64, seed: u64) -> Self {
        Flows { flows: Slab::new(), index: Table::new(), hasher: FixedState::with_seed(seed), aging_us }
    }

    /// Flows that have tasks.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Queues a task behind its client's others.
    pub(super) fn push_back(&mut self, queue: &mut Queue, tasks: &mut Tasks, task: u32) {
        let flow = self.flow_of(queue, key_of(&tasks[task]));
        self.push_back_in(flow, queue, tasks, task);
    }

    /// The same, where the task's flow is known already.
    #[inline]
    pub(super) fn push_back_in(&mut self, flow: u32, queue: &mut Queue, tasks: &mut Tasks, task: u32) {
        self.flows[flow].tasks.push_back(tasks, task);
        let level = &mut queue.levels[usize::from(tasks[task].priority)];
        level.by_age.push_back(tasks, task);
        level.tasks += 1;
        tasks[task].put(Place::Queued(flow));
        queue.tasks += 1;
    }

    /// Queues a task before its client's others, and gives its client the next turn.
    pub(super) fn push_front(&mut self, queue: &mut Queue, tasks: &mut Tasks, task: u32) {
        let flow = self.flow_of(queue, key_of(&tasks[task]));
        self.flows[flow].tasks.push_front(tasks, task);
        let cost = cost_of(&tasks[task]);
        self.flows[flow].deficit = self.flows[flow].deficit.max(cost);
        let level = &mut queue.levels[usize::from(tasks[task].priority)];
        level.by_age.push_front(tasks, task);
        level.tasks += 1;
        level.ring.remove(&mut self.flows, flow);
        level.ring.push_front(&mut self.flows, flow);
        tasks[task].put(Place::Queued(flow));
        queue.tasks += 1;
    }

    /// Takes a task out of the middle. It must stand in this queue.
    pub(super) fn remove(&mut self, queue: &mut Queue, tasks: &mut Tasks, task: u32) {
        let flow = flow_that_holds(tasks, task);
        self.flows[flow].tasks.remove(tasks, task);
        let level = &mut queue.levels[usize::from(tasks[task].priority)];
        level.by_age.remove(tasks, task);
        level.tasks -= 1;
        tasks[task].put(Place::Moving);
        queue.tasks -= 1;
        if self.flows[flow].tasks.is_empty() {
            self.drop_flow(queue, flow);
        }
    }

    /// Some tasks of a queue that fit, at most `most`: of the highest priority first, and in each the oldest first. No more
    /// than `look_at` are looked at.
    pub(super) fn oldest(
        &self,
        queue: &Queue,
        tasks: &Tasks,
        look_at: usize,
        most: usize,
        fits: impl Fn(&Task) -> bool,
    ) -> Vec<u32> {
        let (mut found, mut looks) = (Vec::new(), look_at);
        for level in queue.levels.iter().rev() {
            let mut at = level.by_age.head();
            while at != NONE && looks > 0 && found.len() < most {
                looks -= 1;
                if fits(&tasks[at]) {
                    found.push(at);
                }
                at = List::<AgeLink>::next(tasks, at);
            }
        }
        found
    }

    /// Which level is next, and the rank that its oldest task gives it.
    pub(super) fn peek(&self, queue: &Queue, tasks: &Tasks) -> Option<Next> {
        let mut best: Option<Next> = None;
        let mut levels = queue.occupied;
        while levels != 0 {
            let level = levels.trailing_zeros();
            levels &= levels - 1;
            let oldest = queue.levels[level as usize].by_age.head();
            let rank = i128::from(tasks[oldest].since.0) - i128::from(level) * i128::from(self.aging_us);
            if best.is_none_or(|best| rank <= best.rank) {
                best = Some(Next { priority: level as u8, rank });
            }
        }
        best
    }

    /// Takes the next task.
    pub(super) fn take(&mut self, queue: &mut Queue, tasks: &mut Tasks) -> Option<u32> {
        let highest = queue.occupied.checked_ilog2()? as usize;
        let level = match queue.occupied.count_ones() {
            1 => highest,
            _ => usize::from(self.peek(queue, tasks)?.priority),
        };
        let for_its_age = level < highest;
        queue.gave_oldest ^= for_its_age;
        let flow = if for_its_age && queue.gave_oldest {
            flow_that_holds(tasks, queue.levels[level].by_age.head())
        } else {
            self.turn(&mut queue.levels[level].ring, tasks, queue.effort.turn())
        };
        let task = self.flows[flow].tasks.head();
        let cost = cost_of(&tasks[task]);
        self.flows[flow].deficit = self.flows[flow].deficit.saturating_sub(cost);
        self.remove(queue, tasks, task);
        Some(task)
    }

    /// The flow whose turn it is, which is worth so much: the first in the ring that can pay for its next task.
    fn turn(&mut self, ring: &mut List<Ring>, tasks: &Tasks, quantum: u64) -> u32 {
        let first = ring.head();
        if first == ring.tail() {
            return first;
        }
        let mut fewest_rounds = u64::MAX;
        for round in 0.. {
            loop {
                let head = ring.head();
                let flow = &mut self.flows[head];
                let cost = cost_of(&tasks[flow.tasks.head()]);
                if flow.deficit >= cost {
                    return head;
                }
                fewest_rounds = fewest_rounds.min((cost - flow.deficit).div_ceil(quantum));
                flow.deficit += quantum;
                ring.remove(&mut self.flows, head);
                ring.push_back(&mut self.flows, head);
                if ring.head() == first {
                    break;
                }
            }
            if round == 0 && fewest_rounds > 2 {
                // Large payloads all round: what the next rounds would only count up is added at once.
                let ahead = (fewest_rounds - 2) * quantum;
                let mut at = first;
                while at != NONE {
                    self.flows[at].deficit += ahead;
                    at = List::<Ring>::next(&self.flows, at);
                }
            }
        }
        first
    }

    /// The flow of a client's tasks of an action and priority, begun if need be: a task must follow at once then.
    pub(super) fn flow_of(&mut self, queue: &mut Queue, key: FlowKey) -> u32 {
        let hash = self.hasher.hash_one(key);
        let flows = &self.flows;
        let same = |flow: &u32| key == flows[*flow].key();
        if let Some(found) = self.index.find(hash, same) {
            return found;
        }
        let (client, action, priority) = key;
        let flow = self.flows.insert(Flow {
            client,
            action,
            priority,
            deficit: queue.effort.turn(),
            tasks: List::new(),
            ring: Link::new(),
        });
        let (flows, hasher) = (&self.flows, &self.hasher);
        self.index.insert(flow, |flow| hasher.hash_one(flows[*flow].key()));
        queue.levels[usize::from(priority)].ring.push_back(&mut self.flows, flow);
        queue.occupied |= 1 << priority;
        flow
    }

    fn drop_flow(&mut self, queue: &mut Queue, flow: u32) {
        let (flows, hasher) = (&self.flows, &self.hasher);
        let hash_of = |flow: &u32| hasher.hash_one(flows[*flow].key());
        self.index.remove(hash_of(&flow), |other| *other == flow, hash_of);
        let priority = self.flows[flow].priority;
        let ring = &mut queue.levels[usize::from(priority)].ring;
        ring.remove(&mut self.flows, flow);
        if ring.is_empty() {
            queue.occupied &= !(1 << priority);
        }
        self.flows.remove(flow);
    }
}

impl Flow {
    fn key(&self) -> FlowKey {
        (self.client, self.action, self.priority)
    }
}

/// The key of the flow that a task stands in when it waits.
fn key_of(task: &Task) -> FlowKey {
    (task.client, task.action, task.priority)
}

/// The flow of a task that is queued; for another that is a bug of the scheduler, and panics.
fn flow_that_holds(tasks: &Tasks, task: u32) -> u32 {
    match tasks[task].place() {
        Place::Queued(flow) => flow,
        place => panic!("task {task} is not queued but {place:?}"),
    }
}

fn cost_of(task: &Task) -> u64 {
    task.payload.len() as u64 + TASK_COST
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::api::Time;
    use crate::scheduler::payload::Kept;

    const AGING_US: u64 = 5_000_000;

    struct Bench {
        tasks: Tasks,
        flows: Flows,
        queue: Queue,
    }

    impl Bench {
        fn new() -> Self {
            Bench { tasks: Tasks::new(), flows: Flows::new(AGING_US, 0), queue: Queue::default() }
        }

        fn add(&mut self, client: u32, priority: u8, since_us: u64, bytes: usize) -> u32 {
            let payload = Kept::of_length(bytes as u32);
            let since = Time(since_us);
            let (index, row) = self.tasks.add();
            (row.payload, row.client, row.action) = (payload, client, 0);
            (row.since, row.priority) = (since, priority);
            self.flows.push_back(&mut self.queue, &mut self.tasks, index);
            index
        }

        fn take(&mut self) -> Option<u32> {
            self.flows.take(&mut self.queue, &mut self.tasks)
        }

        fn clients(&mut self, tasks: usize) -> Vec<u32> {
            (0..tasks).map(|_| self.take().map_or(NONE, |task| self.tasks[task].client)).collect()
        }
    }

    #[test]
    fn one_client_s_tasks_come_out_as_they_came_in() {
        let mut bench = Bench::new();
        let added: Vec<u32> = (0..100).map(|n| bench.add(1, 4, n, 10)).collect();
        let taken: Vec<u32> = std::iter::from_fn(|| bench.take()).collect();
        assert_eq!(taken, added);
        assert!(bench.queue.is_empty());
        assert_eq!(bench.flows.len(), 0);
    }

    #[test]
    fn the_higher_priority_goes_first() {
        let mut bench = Bench::new();
        let (low, high) = (bench.add(1, 3, 0, 1), bench.add(1, 8, 1_000, 1));
        assert_eq!((bench.take(), bench.take()), (Some(high), Some(low)));
    }

    #[test]
    fn waiting_makes_up_for_a_lower_priority() {
        let mut bench = Bench::new();
        let old = bench.add(1, 3, 0, 1);
        let fresh_but_higher = bench.add(1, 4, AGING_US + 1, 1);
        assert_eq!((bench.take(), bench.take()), (Some(old), Some(fresh_but_higher)));
        let old = bench.add(1, 3, 0, 1);
        let fresh_and_just_higher = bench.add(1, 4, AGING_US - 1, 1);
        assert_eq!((bench.take(), bench.take()), (Some(fresh_and_just_higher), Some(old)));
    }

    #[test]
    fn waiting_counts_also_behind_a_client_whose_own_tasks_never_wait_for_long() {
        let mut bench = Bench::new();
        let mut others = std::collections::VecDeque::from([(0, bench.add(1, 0, 0, 10))]);
        let patient = bench.add(2, 0, 1, 10);
        for second in 1..=60 {
            let now = second * 1_000_000;
            bench.add(3, 9, now, 10);
            others.push_back((now, bench.add(1, 0, now, 10)));
            if others.front().is_some_and(|(since, _)| since + 30_000_000 <= now) {
                let (_, withdrawn) = others.pop_front().expect("it has a front");
                bench.flows.remove(&mut bench.queue, &mut bench.tasks, withdrawn);
            }
            let taken = bench.take().expect("there is one");
            if taken == patient {
                assert!(second >= 9 * AGING_US / 1_000_000, "before its time, after {second} s");
                return;
            }
            others.retain(|(_, task)| *task != taken);
        }
        panic!("it has waited for more than nine levels' worth, and was not served");
    }

    #[test]
    fn clients_take_turns_also_among_tasks_that_go_first_for_their_age() {
        let mut bench = Bench::new();
        for n in 0..1_000 {
            bench.add(1, 0, n, 10);
        }
        bench.add(2, 0, 2_000, 10);
        for _ in 0..1_000 {
            bench.add(3, 9, 100 * AGING_US, 10);
        }
        assert!(bench.clients(200).contains(&2));
    }

    #[test]
    fn clients_of_small_tasks_take_turns_of_some_forty_tasks() {
        let mut bench = Bench::new();
        for n in 0..10_000 {
            bench.add(1, 4, n, 64);
        }
        for n in 0..100 {
            bench.add(2, 4, 20_000 + n, 64);
        }
        let first = bench.clients(200);
        let second_client = first.iter().filter(|client| **client == 2).count();
        assert!((80..=100).contains(&second_client), "the late client had {second_client} of 200");
    }

    #[test]
    fn clients_of_tasks_that_take_next_to_no_time_take_turns_of_more() {
        let mut bench = Bench::new();
        for moment in 1..100 {
            bench.queue.effort.add(Time(moment * 10), Time((moment - 1) * 10), 100);
        }
        for client in [1, 2] {
            (0..1_000).for_each(|n| _ = bench.add(client, 4, n, 64));
        }
        let first = bench.clients(200);
        let turn = first.iter().take_while(|client| **client == 1).count();
        assert_eq!((turn, first[turn]), (32 * 1024 / (64 + 128), 2));
    }

    #[test]
    fn turns_are_counted_in_bytes_so_large_payloads_do_not_crowd_out_small_ones() {
        let mut bench = Bench::new();
        for n in 0..20 {
            bench.add(1, 4, n, 1_000_000);
        }
        for n in 0..2_000 {
            bench.add(2, 4, n, 872);
        }
        let before_the_second_large_one = {
            let mut small = 0;
            let mut large = 0;
            while large < 2 {
                match bench.clients(1)[0] {
                    1 => large += 1,
                    _ => small += 1,
                }
            }
            small
        };
        assert!(before_the_second_large_one >= 1_900, "{before_the_second_large_one}");
    }

    #[test]
    fn many_clients_with_the_largest_payloads_share_evenly() {
        let mut bench = Bench::new();
        for client in 0..50 {
            for n in 0..3 {
                bench.add(client, 4, n, 3_000_000);
            }
        }
        for _ in 0..3 {
            let mut round = bench.clients(50);
            round.sort_unstable();
            assert_eq!(round, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_task_put_back_is_the_next_one_even_where_others_have_the_turn() {
        let mut bench = Bench::new();
        for client in 0..3 {
            for n in 0..3 {
                bench.add(client, 4, n, 5_000);
            }
        }
        let task = bench.take().expect("nine are queued");
        bench.flows.push_front(&mut bench.queue, &mut bench.tasks, task);
        assert_eq!(bench.take(), Some(task));
    }

    #[test]
    fn a_task_taken_out_of_the_middle_leaves_the_rest_in_order() {
        let mut bench = Bench::new();
        let added: Vec<u32> = (0..5).map(|n| bench.add(1, 4, n, 10)).collect();
        bench.flows.remove(&mut bench.queue, &mut bench.tasks, added[2]);
        let taken: Vec<u32> = std::iter::from_fn(|| bench.take()).collect();
        assert_eq!(taken, [added[0], added[1], added[3], added[4]]);
    }
}
