//! When each task's time is up: a hierarchical timing wheel, so that setting and clearing a timer cost the same
//! with one task and with millions.
//!
//! After G. Varghese and T. Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987). Seven levels of 64 slots;
//! a slot of level 0 is one tick of 1,024 µs, one of level `n` is 64 of level `n - 1`. A timer stands on the level
//! of the highest six bits in which its tick differs from the present one, and is moved down when that slot comes.

use super::api::Time;
use super::slab::{List, NONE};
use super::task::{Tasks, TimerLink};

/// Levels of the wheel; 64^7 ticks are 142 years.
const LEVELS: usize = 7;
/// log2 of the slots a level.
const SLOT_BITS: u32 = 6;
/// Slots a level.
const SLOTS: usize = 1 << SLOT_BITS;
/// log2 of a tick, in microseconds.
const TICK_BITS: u32 = 10;

/// Ticks that a timer is ahead at most: 71 years. One that is set further away counts as that far, which nobody
/// will live to see; beyond what the levels hold it would come by at every turn of the highest one.
const MOST_AHEAD: u64 = 1 << (LEVELS as u32 * SLOT_BITS - 1);

/// The slot of a timer that is not set.
pub(super) const NO_SLOT: u16 = u16::MAX;

/// What a step of the wheel came upon.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This task's time is up; its timer is cleared.
    Due(u32),
    /// A timer that is not due yet was moved nearer.
    Moved,
    /// Nothing is due any more.
    Reached,
}

/// All tasks' timers. A task has at most one.
#[derive(Debug)]
pub(super) struct Wheel {
    /// Everything up to and with this tick has been done.
    tick: u64,
    slots: Vec<List<TimerLink>>,
    /// For each level, the slots that hold something.
    occupied: [u64; LEVELS],
}

impl Wheel {
    pub(super) fn new() -> Self {
        Wheel { tick: 0, slots: vec![List::new(); LEVELS * SLOTS], occupied: [0; LEVELS] }
    }

    /// Sets a task's timer, which must not be set. It fires at `at` or up to a tick later.
    pub(super) fn set(&mut self, tasks: &mut Tasks, task: u32, at: Time) {
        let tick = at.0.div_ceil(1 << TICK_BITS).clamp(self.tick + 1, self.tick + MOST_AHEAD);
        tasks.set_timer_tick(task, tick);
        self.place(tasks, task, tick);
    }

    /// Clears a task's timer, if it is set.
    #[inline]
    pub(super) fn clear(&mut self, tasks: &mut Tasks, task: u32) {
        let slot = tasks[task].timer_slot;
        if slot != NO_SLOT {
            self.unlink(tasks, task, usize::from(slot));
        }
    }

    /// The first moment at which [`step`](Self::step) may find something.
    pub(super) fn next(&self) -> Option<Time> {
        self.next_slot().map(|(_, tick)| Time(tick << TICK_BITS))
    }

    /// Goes one step towards `now`. Bounded work a step, so a caller can stop in between and go on later.
    pub(super) fn step(&mut self, tasks: &mut Tasks, now: Time) -> Step {
        let now_tick = now.0 >> TICK_BITS;
        let Some((slot, tick)) = self.next_slot().filter(|(_, tick)| *tick <= now_tick) else {
            self.tick = self.tick.max(now_tick);
            return Step::Reached;
        };
        self.tick = self.tick.max(tick);
        let task = self.slots[slot].head();
        self.unlink(tasks, task, slot);
        let due = tasks.timer_tick(task);
        if due <= self.tick {
            return Step::Due(task);
        }
        self.place(tasks, task, due);
        Step::Moved
    }

    fn place(&mut self, tasks: &mut Tasks, task: u32, tick: u64) {
        let differing = (tick ^ self.tick) | 1;
        let level = ((differing.ilog2() / SLOT_BITS) as usize).min(LEVELS - 1);
        let slot = level * SLOTS + ((tick >> (level as u32 * SLOT_BITS)) as usize & (SLOTS - 1));
        self.slots[slot].push_back(tasks, task);
        self.occupied[level] |= 1 << (slot % SLOTS);
        tasks[task].timer_slot = slot as u16;
    }

    fn unlink(&mut self, tasks: &mut Tasks, task: u32, slot: usize) {
        debug_assert_ne!(task, NONE, "an occupied slot has a head");
        self.slots[slot].remove(tasks, task);
        tasks[task].timer_slot = NO_SLOT;
        if self.slots[slot].is_empty() {
            self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        }
    }

    /// The earliest occupied slot and the tick at which it comes.
    fn next_slot(&self) -> Option<(usize, u64)> {
        let mut earliest: Option<(usize, u64)> = None;
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = level as u32 * SLOT_BITS;
            let position = (self.tick >> shift) as u32 & (SLOTS as u32 - 1);
            // Slots come in the order from the present position, which holds what is still to be moved down.
            let ahead = self.occupied[level].rotate_right(position).trailing_zeros();
            let tick = ((self.tick >> shift) + u64::from(ahead)) << shift;
            let slot = level * SLOTS + ((position + ahead) as usize & (SLOTS - 1));
            if earliest.is_none_or(|(_, least)| tick < least) {
                earliest = Some((slot, tick));
            }
        }
        earliest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel, tasks: &mut Tasks, now: Time) -> Vec<u32> {
        let mut found = Vec::new();
        loop {
            match wheel.step(tasks, now) {
                Step::Due(task) => found.push(task),
                Step::Moved => {}
                Step::Reached => return found,
            }
        }
    }

    #[test]
    fn a_timer_fires_at_its_time_or_a_tick_later_however_far_it_is() {
        for at in [1, 1_024, 1_025, 65_536, 70_000_000, 60_000_000, 3_600_000_000, 31_622_400_000_000] {
            let (mut wheel, mut tasks) = (Wheel::new(), Tasks::new());
            let task = tasks.add().0;
            wheel.set(&mut tasks, task, Time(at));
            assert!(due(&mut wheel, &mut tasks, Time(at - 1)).is_empty(), "{at}");
            assert_eq!(due(&mut wheel, &mut tasks, Time(at + 1_024)), [task], "{at}");
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn a_timer_beyond_the_wheel_s_reach_leaves_it_at_rest() {
        for at in [u64::MAX, u64::MAX - 5, 1 << 62, 1 << 53] {
            let (mut wheel, mut tasks) = (Wheel::new(), Tasks::new());
            let task = tasks.add().0;
            wheel.set(&mut tasks, task, Time(at));
            let now = Time(3_600_000_000);
            for _ in 0..100 {
                if wheel.step(&mut tasks, now) == Step::Reached {
                    break;
                }
            }
            assert_eq!(wheel.step(&mut tasks, now), Step::Reached, "{at}");
            assert!(wheel.next().is_some_and(|next| next > now), "{at}");
        }
    }

    #[test]
    fn a_cleared_timer_never_fires() {
        let (mut wheel, mut tasks) = (Wheel::new(), Tasks::new());
        let task = tasks.add().0;
        wheel.set(&mut tasks, task, Time(5_000));
        wheel.clear(&mut tasks, task);
        wheel.clear(&mut tasks, task);
        assert_eq!(wheel.next(), None);
        assert!(due(&mut wheel, &mut tasks, Time(1_000_000)).is_empty());
    }

    #[test]
    fn random_timers_fire_in_their_order_and_none_is_early_or_forgotten() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut wheel, mut tasks) = (Wheel::new(), Tasks::new());
            let mut expected = std::collections::BTreeMap::new();
            let mut now = 0;
            for _ in 0..200 {
                let reach = 1 << random.u64(1..38);
                let task = tasks.add().0;
                let at = now + random.u64(1..=reach);
                wheel.set(&mut tasks, task, Time(at));
                expected.insert(task, at);
                if random.bool() {
                    now = wheel.next().map_or(now, |next| next.0.max(now)) + random.u64(0..2_000);
                    for task in due(&mut wheel, &mut tasks, Time(now)) {
                        let at = expected.remove(&task).expect("a timer fires once");
                        assert!(at <= now, "seed {seed}: early");
                        tasks.vacate(task);
                    }
                    assert!(expected.values().all(|at| at + 1_024 > now), "seed {seed}: late");
                }
            }
        }
    }
}
