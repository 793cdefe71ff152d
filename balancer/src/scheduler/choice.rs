//! Which worker gets a task, at the same cost with ten workers and with ten thousand.
//!
//! Workers that offer the same actions form a *group*. In a group they stand in buckets by how loaded they are;
//! the first worker of the lowest bucket that is not empty is next. An action knows the groups that offer it, by
//! a *seat* in each: mostly one, and where there are more, the seats stand in buckets as well, by their group's
//! lowest. So when a worker's load changes, one list changes, and the actions learn of it only when that moved
//! their group's lowest bucket and they have several groups.
//!
//! Under every policy the lower buckets are for workers with a free thread, so that free threads anywhere fill
//! before a task is given to a worker to hold.

use std::collections::HashMap;
use std::ops::Range;

use super::api::Policy;
use super::slab::{Link, List, NONE, Slab, linked};
use super::worker::Worker;

/// The bucket of a worker that can be given nothing.
pub(super) const NO_BUCKET: u8 = u8::MAX;

/// Under `least_loaded`, buckets for workers with a free thread.
const FREE_BUCKETS: u32 = 16;

/// The bucket of workers that have just no free thread.
const FIRST_BUSY_BUCKET: u8 = FREE_BUCKETS as u8;

/// Under `least_loaded`, buckets for each doubling of the load beyond that, as a power of two.
const STEP_BITS: u32 = 3;

/// More than any bucket's number: a window of 2^20 tasks on one thread comes to bucket 183.
const BUCKETS: usize = 192;

/// The bucket of pull workers that sleep and may be woken, the longest asleep first. It comes after all others, and
/// [`Choice::pick`] does not look into it: nothing can be given to them.
pub(super) const ASLEEP_BUCKET: u8 = BUCKETS as u8 - 1;

/// A worker's place in its group's buckets.
#[derive(Debug)]
pub(super) struct BucketLink;
#[derive(Debug)]
struct SeatBucket;
#[derive(Debug)]
struct SeatsOfAction;

/// Lists by number, the lowest that is not empty found at once.
#[derive(Debug)]
struct Buckets<K> {
    lists: [List<K>; BUCKETS],
    occupied: [u64; BUCKETS / 64],
}

impl<K> Buckets<K> {
    fn new() -> Box<Self> {
        Box::new(Buckets { lists: [List::new(); BUCKETS], occupied: [0; BUCKETS / 64] })
    }

    #[inline]
    fn lowest(&self) -> u8 {
        for (word, bits) in self.occupied.iter().enumerate() {
            if *bits != 0 {
                return (word * 64) as u8 + bits.trailing_zeros() as u8;
            }
        }
        NO_BUCKET
    }

    #[inline]
    fn list_mut(&mut self, bucket: u8) -> &mut List<K> {
        &mut self.lists[usize::from(bucket)]
    }

    #[inline]
    fn note(&mut self, bucket: u8) {
        let (word, bit) = (usize::from(bucket) / 64, 1 << (bucket % 64));
        if self.lists[usize::from(bucket)].is_empty() {
            self.occupied[word] &= !bit;
        } else {
            self.occupied[word] |= bit;
        }
    }
}

/// The workers that offer the same actions.
#[derive(Debug)]
struct Group {
    /// Which actions, in order.
    actions: Box<[u32]>,
    /// Its seat at each of them, in the same order.
    seats: Box<[u32]>,
    buckets: Box<Buckets<BucketLink>>,
    lowest: u8,
    members: u32,
    /// Weights of the members that have room, together; under `round_robin` their number.
    turns: u32,
}

/// A group's place at one action.
#[derive(Debug)]
struct Seat {
    group: u32,
    action: u32,
    bucket: u8,
    turns_left: u32,
    in_bucket: Link,
    at_action: Link,
}

linked!(Seat, SeatBucket, in_bucket);
linked!(Seat, SeatsOfAction, at_action);

/// The groups that offer one action.
#[derive(Debug)]
pub(super) struct Offers {
    seats: List<SeatsOfAction>,
    count: u32,
    /// Workers in those groups.
    pub(super) workers: u32,
    /// The seats by their groups' lowest buckets, where there are several.
    order: Option<Box<Buckets<SeatBucket>>>,
}

impl Offers {
    pub(super) fn new() -> Self {
        Offers { seats: List::new(), count: 0, workers: 0, order: None }
    }
}

/// A row that has an action's offers.
pub(super) trait HasOffers {
    fn offers_mut(&mut self) -> &mut Offers;
}

/// A worker chosen, and by which of its action's seats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) worker: u32,
    /// It has a free thread.
    pub(super) free: bool,
    seat: u32,
}

/// What happened to a worker whose bucket is to be found anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It was given a task.
    Assigned,
    /// Its load or its room changed.
    Other,
}

/// All groups and seats.
#[derive(Debug)]
pub(super) struct Choice {
    policy: Policy,
    groups: Slab<Group>,
    seats: Slab<Seat>,
    by_actions: HashMap<Box<[u32]>, u32>,
}

impl Choice {
    pub(super) fn new(policy: Policy) -> Self {
        Choice { policy, groups: Slab::new(), seats: Slab::new(), by_actions: HashMap::new() }
    }

    /// Groups that have workers.
    #[cfg(test)]
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// How many actions would be offered, over all groups, if a worker of these joined and left the group that it
    /// is in, if any.
    pub(super) fn offers_after(&self, leaves: Option<u32>, set: &[u32]) -> usize {
        let dissolved = leaves.filter(|group| self.groups[*group].members == 1);
        let freed = dissolved.map_or(0, |group| self.groups[group].actions.len());
        let founded = match self.by_actions.get(set) {
            Some(group) if Some(*group) != dissolved => 0,
            _ => set.len(),
        };
        self.seats.len() - freed + founded
    }

    /// The actions that a group offers, in the order of their indexes.
    #[inline]
    pub(super) fn actions(&self, group: u32) -> &[u32] {
        &self.groups[group].actions
    }

    /// Puts a worker into the group of these actions, which must be sorted and without repetition.
    pub(super) fn join<A: HasOffers>(
        &mut self,
        workers: &mut Slab<Worker>,
        actions: &mut Slab<A>,
        worker: u32,
        set: &[u32],
    ) {
        let group = match self.by_actions.get(set) {
            Some(group) => *group,
            None => self.found(actions, set),
        };
        self.groups[group].members += 1;
        for action in set {
            actions[*action].offers_mut().workers += 1;
        }
        workers[worker].group = group;
        workers[worker].bucket = NO_BUCKET;
        self.update(workers, actions, worker, Change::Other);
    }

    /// Takes a worker out of its group.
    pub(super) fn leave<A: HasOffers>(
        &mut self,
        workers: &mut Slab<Worker>,
        actions: &mut Slab<A>,
        worker: u32,
    ) {
        let group = workers[worker].group;
        self.place(workers, actions, worker, NO_BUCKET, false);
        for action in &self.groups[group].actions {
            actions[*action].offers_mut().workers -= 1;
        }
        self.groups[group].members -= 1;
        if self.groups[group].members == 0 {
            self.dissolve(actions, group);
        }
    }

    /// The worker that is next for an action, if one has room.
    #[inline]
    pub(super) fn pick(&self, offers: &Offers) -> Option<Pick> {
        let seat = match &offers.order {
            None => offers.seats.head(),
            Some(order) => match order.lowest() {
                NO_BUCKET => return None,
                bucket => order.lists[usize::from(bucket)].head(),
            },
        };
        if seat == NONE {
            return None;
        }
        let group = &self.groups[self.seats[seat].group];
        if group.lowest >= ASLEEP_BUCKET {
            return None;
        }
        let worker = group.buckets.lists[usize::from(group.lowest)].head();
        Some(Pick { worker, free: self.is_free(group.lowest), seat })
    }

    /// The pull worker that is next to be woken for an action, if one sleeps: the longest asleep of the action's next
    /// group that has one. A group whose workers have room is passed over, so it is asked when no worker has.
    pub(super) fn pick_asleep(&self, offers: &Offers) -> Option<Pick> {
        let seat = match &offers.order {
            None => offers.seats.head(),
            Some(order) => order.lists[usize::from(ASLEEP_BUCKET)].head(),
        };
        if seat == NONE {
            return None;
        }
        let group = &self.groups[self.seats[seat].group];
        if group.lowest != ASLEEP_BUCKET {
            return None;
        }
        let worker = group.buckets.lists[usize::from(ASLEEP_BUCKET)].head();
        Some(Pick { worker, free: true, seat })
    }

    /// Whether an action's tasks may go to several groups of workers, which then take turns.
    #[inline]
    pub(super) fn takes_turns(&self, offers: &Offers) -> bool {
        offers.order.is_some()
    }

    /// Is it the bucket of workers with a free thread?
    fn is_free(&self, bucket: u8) -> bool {
        match self.policy {
            Policy::LeastLoaded => u32::from(bucket) < FREE_BUCKETS,
            Policy::RoundRobin | Policy::Weighted => bucket == 0,
        }
    }

    /// Gives the action's next group its turn, where it has several. Call it for a pick that is carried out,
    /// before the worker's [`update`](Self::update).
    #[inline]
    pub(super) fn picked<A: HasOffers>(&mut self, actions: &mut Slab<A>, pick: Pick) {
        let action = self.seats[pick.seat].action;
        let Some(order) = &mut actions[action].offers_mut().order else { return };
        let turns = match self.policy {
            Policy::LeastLoaded => 1,
            Policy::RoundRobin | Policy::Weighted => self.groups[self.seats[pick.seat].group].turns,
        };
        let seat = &mut self.seats[pick.seat];
        seat.turns_left = seat.turns_left.saturating_sub(1);
        if seat.turns_left == 0 {
            seat.turns_left = turns.max(1);
            let bucket = seat.bucket;
            let list = order.list_mut(bucket);
            list.remove(&mut self.seats, pick.seat);
            list.push_back(&mut self.seats, pick.seat);
        }
    }

    /// Finds a worker's place anew after a change.
    #[inline]
    pub(super) fn update<A: HasOffers>(
        &mut self,
        workers: &mut Slab<Worker>,
        actions: &mut Slab<A>,
        worker: u32,
        change: Change,
    ) {
        let row = &mut workers[worker];
        if row.stays.contains(&row.in_flight) && row.bucket != NO_BUCKET && row.has_room() {
            return;
        }
        self.find_place(workers, actions, worker, change);
    }

    fn find_place<A: HasOffers>(
        &mut self,
        workers: &mut Slab<Worker>,
        actions: &mut Slab<A>,
        worker: u32,
        change: Change,
    ) {
        let row = &mut workers[worker];
        let bucket = bucket_of(self.policy, row);
        if self.policy == Policy::LeastLoaded {
            row.stays = match bucket {
                NO_BUCKET | ASLEEP_BUCKET => 0..0,
                _ if is_alike(row) => row.threads..row.alike,
                _ => loads_of(bucket, row.threads),
            };
        }
        let by_turns = self.policy != Policy::LeastLoaded;
        let full_turn = if self.policy == Policy::Weighted { row.weight } else { 1 };
        // Under `least_loaded` its load moves it on. Until then the next tasks go to it, too, so that a burst reaches
        // few workers, each in one write, instead of all of them in many.
        let mut turn_over = by_turns && change == Change::Assigned;
        if turn_over {
            row.turns_left = row.turns_left.saturating_sub(1);
            turn_over = row.turns_left == 0;
        }
        if row.turns_left == 0 || row.turns_left > full_turn {
            row.turns_left = full_turn;
        }
        let in_the_middle_of_its_turn = by_turns && row.turns_left < full_turn;
        // One whose last free thread was just taken is in the middle of a burst.
        let begins_a_burst = !by_turns && change == Change::Assigned && bucket == FIRST_BUSY_BUCKET;
        if bucket != row.bucket || turn_over {
            let first = in_the_middle_of_its_turn || begins_a_burst;
            self.place(workers, actions, worker, bucket, first);
        }
    }

    fn place<A: HasOffers>(
        &mut self,
        workers: &mut Slab<Worker>,
        actions: &mut Slab<A>,
        worker: u32,
        bucket: u8,
        first: bool,
    ) {
        let row = &mut workers[worker];
        let old = std::mem::replace(&mut row.bucket, bucket);
        if old == bucket {
            return self.move_within(workers, worker, first);
        }
        let weight = if self.policy == Policy::Weighted { row.weight } else { 1 };
        let index = row.group;
        let group = &mut self.groups[index];
        if old != NO_BUCKET {
            group.buckets.list_mut(old).remove(workers, worker);
            group.buckets.note(old);
            group.turns -= weight;
        }
        if bucket != NO_BUCKET {
            let list = group.buckets.list_mut(bucket);
            if first {
                list.push_front(workers, worker);
            } else {
                list.push_back(workers, worker);
            }
            group.buckets.note(bucket);
            group.turns += weight;
        }
        let lowest = group.buckets.lowest();
        if lowest != group.lowest {
            group.lowest = lowest;
            self.reseat(actions, index);
        }
    }

    /// Moves a worker to an end of the bucket that it stands in, if it stands in one and is not alone there.
    #[inline]
    fn move_within(&mut self, workers: &mut Slab<Worker>, worker: u32, first: bool) {
        let (group, bucket) = (workers[worker].group, workers[worker].bucket);
        if bucket == NO_BUCKET {
            return;
        }
        let list = self.groups[group].buckets.list_mut(bucket);
        let there = if first { list.head() } else { list.tail() };
        if there != worker {
            list.remove(workers, worker);
            if first {
                list.push_front(workers, worker);
            } else {
                list.push_back(workers, worker);
            }
        }
    }

    /// Tells the actions with several groups of this group's new lowest bucket.
    fn reseat<A: HasOffers>(&mut self, actions: &mut Slab<A>, group: u32) {
        let group = &self.groups[group];
        for (action, seat) in group.actions.iter().zip(&group.seats) {
            if let Some(order) = &mut actions[*action].offers_mut().order {
                place_seat(order, &mut self.seats, *seat, group.lowest);
            }
        }
    }

    /// A new, empty group, seated at each of its actions.
    fn found<A: HasOffers>(&mut self, actions: &mut Slab<A>, set: &[u32]) -> u32 {
        let group = self.groups.insert(Group {
            actions: set.into(),
            seats: Box::default(),
            buckets: Buckets::new(),
            lowest: NO_BUCKET,
            members: 0,
            turns: 0,
        });
        let seats = set
            .iter()
            .map(|action| {
                let seat = self.seats.insert(Seat {
                    group,
                    action: *action,
                    bucket: NO_BUCKET,
                    turns_left: 1,
                    in_bucket: Link::new(),
                    at_action: Link::new(),
                });
                let offers = actions[*action].offers_mut();
                offers.seats.push_back(&mut self.seats, seat);
                offers.count += 1;
                if offers.count == 2 {
                    let mut order = Buckets::new();
                    let first = offers.seats.head();
                    let lowest = self.groups[self.seats[first].group].lowest;
                    place_seat(&mut order, &mut self.seats, first, lowest);
                    offers.order = Some(order);
                }
                seat
            })
            .collect();
        self.groups[group].seats = seats;
        self.by_actions.insert(set.into(), group);
        group
    }

    fn dissolve<A: HasOffers>(&mut self, actions: &mut Slab<A>, group: u32) {
        let group = self.groups.remove(group);
        self.by_actions.remove(&group.actions);
        for (action, seat) in group.actions.iter().zip(&group.seats) {
            let offers = actions[*action].offers_mut();
            if let Some(order) = &mut offers.order {
                place_seat(order, &mut self.seats, *seat, NO_BUCKET);
            }
            offers.seats.remove(&mut self.seats, *seat);
            offers.count -= 1;
            self.seats.remove(*seat);
            if offers.count == 1 {
                offers.order = None;
                let last = offers.seats.head();
                self.seats[last].bucket = NO_BUCKET;
                self.seats[last].in_bucket = Link::new();
            }
        }
    }
}

fn place_seat(order: &mut Buckets<SeatBucket>, seats: &mut Slab<Seat>, seat: u32, bucket: u8) {
    let old = std::mem::replace(&mut seats[seat].bucket, bucket);
    if old == bucket {
        return;
    }
    if old != NO_BUCKET {
        order.list_mut(old).remove(seats, seat);
        order.note(old);
    }
    if bucket != NO_BUCKET {
        order.list_mut(bucket).push_back(seats, seat);
        order.note(bucket);
    }
}

/// The bucket that a worker belongs into, or [`NO_BUCKET`].
#[inline]
fn bucket_of(policy: Policy, worker: &Worker) -> u8 {
    if !worker.has_room() {
        return if worker.may_be_woken() { ASLEEP_BUCKET } else { NO_BUCKET };
    }
    match policy {
        Policy::RoundRobin | Policy::Weighted => u8::from(!worker.has_free_thread()),
        Policy::LeastLoaded if is_alike(worker) => FIRST_BUSY_BUCKET,
        Policy::LeastLoaded => load_bucket(worker.in_flight, worker.threads),
    }
}

/// Whether a worker has no free thread, and so little beyond them that it makes no difference how little.
#[inline]
fn is_alike(worker: &Worker) -> bool {
    (worker.threads..worker.alike).contains(&worker.in_flight)
}

/// In flight relative to threads: sixteenths while a thread is free, then eight steps a doubling.
#[inline]
fn load_bucket(in_flight: u32, threads: u32) -> u8 {
    // Windows have at most 2^20 tasks, so nothing here comes near 2^32.
    let threads = threads.max(1);
    if in_flight < threads {
        return (in_flight * FREE_BUCKETS / threads) as u8;
    }
    let load = (in_flight << STEP_BITS) / threads;
    let doublings = load.ilog2() - STEP_BITS;
    let step = (load >> doublings) & ((1 << STEP_BITS) - 1);
    (FREE_BUCKETS + (doublings << STEP_BITS) + step).min(u32::from(ASLEEP_BUCKET) - 1) as u8
}

/// The numbers in flight that come to a bucket: what [`load_bucket`] does, the other way round.
fn loads_of(bucket: u8, threads: u32) -> Range<u32> {
    let (bucket, threads) = (u32::from(bucket), threads.max(1));
    let first_of = |bucket: u32| {
        let Some(loaded) = bucket.checked_sub(FREE_BUCKETS) else {
            return (bucket * threads).div_ceil(FREE_BUCKETS);
        };
        let (doublings, step) = (loaded >> STEP_BITS, loaded & ((1 << STEP_BITS) - 1));
        // The highest bucket's doublings are 22 and a load is 15 times that at most, so 64 bits are plenty.
        let load = u64::from((1 << STEP_BITS) + step) << doublings;
        let in_flight = (load * u64::from(threads)).div_ceil(1 << STEP_BITS);
        u32::try_from(in_flight).unwrap_or(u32::MAX)
    };
    first_of(bucket)..first_of(bucket + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::api::{Peer, Time};

    #[test]
    fn a_bucket_has_just_the_loads_that_come_to_it() {
        for threads in [1, 2, 3, 7, 16, 17, 100, 65_536] {
            for in_flight in (0..5000).chain((0..500).map(|n| n * 2097 + threads)) {
                let in_flight = in_flight.min(1 << 20);
                let bucket = load_bucket(in_flight, threads);
                let loads = loads_of(bucket, threads);
                assert!(loads.contains(&in_flight), "{in_flight} on {threads} is not in {loads:?}");
                for edge in [loads.start, loads.end - 1] {
                    assert_eq!(load_bucket(edge, threads), bucket, "{edge} on {threads}");
                }
            }
        }
    }

    impl HasOffers for Offers {
        fn offers_mut(&mut self) -> &mut Offers {
            self
        }
    }

    struct Bench {
        choice: Choice,
        workers: Slab<Worker>,
        actions: Slab<Offers>,
    }

    impl Bench {
        fn new(policy: Policy, actions: usize) -> Self {
            let mut rows = Slab::new();
            for _ in 0..actions {
                rows.insert(Offers::new());
            }
            Bench { choice: Choice::new(policy), workers: Slab::new(), actions: rows }
        }

        fn join(&mut self, threads: u32, room: u32, weight: u32, set: &[u32]) -> u32 {
            let mut worker = Worker::new(Peer { index: 0, generation: 0 }, "w", usize::MAX, Time(0));
            (worker.threads, worker.window, worker.weight, worker.service_ns) =
                (threads, room, weight, Some(1));
            worker.turns_left = weight;
            worker.settle_room();
            let worker = self.workers.insert(worker);
            self.choice.join(&mut self.workers, &mut self.actions, worker, set);
            worker
        }

        fn assign(&mut self, action: u32) -> Option<u32> {
            let pick = self.choice.pick(&self.actions[action])?;
            self.choice.picked(&mut self.actions, pick);
            self.workers[pick.worker].in_flight += 1;
            self.choice.update(&mut self.workers, &mut self.actions, pick.worker, Change::Assigned);
            Some(pick.worker)
        }

        fn finish(&mut self, worker: u32) {
            self.workers[worker].in_flight -= 1;
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        }

        fn counts(&mut self, action: u32, rounds: usize) -> Vec<u32> {
            let mut counts = vec![0; self.workers.len()];
            for _ in 0..rounds {
                let worker = self.assign(action).expect("there is room");
                counts[worker as usize] += 1;
                self.finish(worker);
            }
            counts
        }
    }

    #[test]
    fn load_buckets_rise_with_the_load_and_never_overflow() {
        for threads in [1, 3, 8, 65_536] {
            let mut before = 0;
            for in_flight in (0..70_000).chain([1 << 20]) {
                let bucket = load_bucket(in_flight, threads);
                assert!(bucket >= before && bucket < NO_BUCKET);
                assert_eq!(u32::from(bucket) < FREE_BUCKETS, in_flight < threads);
                before = bucket;
            }
        }
    }

    #[test]
    fn free_threads_anywhere_fill_before_a_worker_is_given_a_task_to_hold() {
        for policy in [Policy::RoundRobin, Policy::LeastLoaded, Policy::Weighted] {
            let mut bench = Bench::new(policy, 2);
            bench.join(2, 100, 5, &[0]);
            bench.join(3, 100, 1, &[0, 1]);
            bench.join(1, 100, 1, &[0]);
            for _ in 0..6 {
                bench.assign(0);
            }
            let held: Vec<u32> = bench.workers.iter().map(|(_, worker)| worker.in_flight).collect();
            assert_eq!(held, [2, 3, 1], "{policy:?}");
        }
    }

    #[test]
    fn what_a_worker_is_given_in_a_row_ends_where_its_place_is_lost_one_by_one() {
        let mut random = fastrand::Rng::with_seed(11);
        for seed in 0..2000 {
            let policies = [Policy::RoundRobin, Policy::LeastLoaded, Policy::Weighted];
            let mut bench = Bench::new(policies[random.usize(..3)], 1);
            let threads = random.u32(1..5);
            let worker = bench.join(threads, threads + random.u32(..300), 2, &[0]);
            let row = &mut bench.workers[worker];
            row.service_ns = random.bool().then(|| random.u64(..3000));
            row.max_bytes = random.usize(1..4 << 20);
            row.settle_room();
            bench.choice.update(&mut bench.workers, &mut bench.actions, worker, Change::Other);
            let bytes = random.usize(..100_000);
            while bench.workers[worker].has_room() {
                let row = &mut bench.workers[worker];
                let (most, most_bytes) = row.in_a_row();
                for given in 1.. {
                    (row.in_flight, row.bytes) = (row.in_flight + 1, row.bytes + bytes);
                    let is_over = given == most || row.bytes >= most_bytes;
                    let keeps_its_place = row.stays.contains(&row.in_flight) && row.has_room();
                    assert_eq!(is_over, !keeps_its_place, "world {seed}, {given} given to {row:?}");
                    if is_over {
                        break;
                    }
                }
                bench.choice.update(&mut bench.workers, &mut bench.actions, worker, Change::Assigned);
            }
        }
    }

    #[test]
    fn round_robin_gives_each_worker_its_turn() {
        let mut bench = Bench::new(Policy::RoundRobin, 1);
        for _ in 0..3 {
            bench.join(4, 100, 7, &[0]);
        }
        let order: Vec<_> = (0..6).map(|_| bench.assign(0)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn round_robin_is_even_over_groups_of_different_sizes() {
        let mut bench = Bench::new(Policy::RoundRobin, 2);
        for _ in 0..3 {
            bench.join(10, 100, 1, &[0]);
        }
        bench.join(10, 100, 1, &[0, 1]);
        assert_eq!(bench.counts(0, 400), [100, 100, 100, 100]);
    }

    #[test]
    fn weighted_gives_each_worker_its_share() {
        let mut bench = Bench::new(Policy::Weighted, 1);
        for weight in [1, 2, 5] {
            bench.join(1, 1, weight, &[0]);
        }
        assert_eq!(bench.counts(0, 800), [100, 200, 500]);
    }

    #[test]
    fn weighted_gives_each_worker_its_share_also_where_workers_offer_different_actions() {
        let mut bench = Bench::new(Policy::Weighted, 3);
        bench.join(4, 4, 1, &[0]);
        bench.join(4, 4, 2, &[0]);
        bench.join(4, 4, 5, &[0, 1]);
        bench.join(4, 4, 2, &[0, 2]);
        let counts = bench.counts(0, 1_000);
        assert!(
            counts.iter().zip([100_u32, 200, 500, 200]).all(|(is, due)| due.abs_diff(*is) <= 2),
            "{counts:?}"
        );
    }

    #[test]
    fn least_loaded_follows_what_is_in_flight_relative_to_threads() {
        let mut bench = Bench::new(Policy::LeastLoaded, 1);
        bench.join(8, 1000, 1, &[0]);
        bench.join(2, 1000, 1, &[0]);
        for worker in [0, 1] {
            // Long enough that every task makes a difference.
            bench.workers[worker].service_ns = Some(11_000);
            bench.workers[worker].settle_room();
        }
        for _ in 0..500 {
            bench.assign(0);
        }
        let (large, small) = (bench.workers[0].in_flight, bench.workers[1].in_flight);
        assert!((380..=420).contains(&large), "{large} and {small}");
    }

    #[test]
    fn a_full_or_draining_worker_is_not_chosen() {
        let mut bench = Bench::new(Policy::LeastLoaded, 1);
        let first = bench.join(1, 2, 1, &[0]);
        assert_eq!((bench.assign(0), bench.assign(0), bench.assign(0)), (Some(first), Some(first), None));
        bench.finish(first);
        bench.workers[first].draining = true;
        bench.choice.update(&mut bench.workers, &mut bench.actions, first, Change::Other);
        assert_eq!(bench.assign(0), None);
        let second = bench.join(1, 1, 1, &[0]);
        assert_eq!(bench.assign(0), Some(second));
    }

    #[test]
    fn a_worker_is_chosen_only_for_its_own_actions_and_groups_vanish_with_their_last_worker() {
        let mut bench = Bench::new(Policy::LeastLoaded, 3);
        let a = bench.join(1, 10, 1, &[0, 1]);
        let b = bench.join(1, 10, 1, &[1, 2]);
        assert_eq!(bench.assign(0), Some(a));
        assert_eq!(bench.assign(2), Some(b));
        bench.finish(b);
        assert_eq!(bench.assign(1), Some(b));
        bench.choice.leave(&mut bench.workers, &mut bench.actions, a);
        assert_eq!((bench.assign(0), bench.assign(1)), (None, Some(b)));
        bench.choice.leave(&mut bench.workers, &mut bench.actions, b);
        assert_eq!((bench.assign(1), bench.choice.groups(), bench.choice.seats.len()), (None, 0, 0));
    }
}
