//! A worker's row: how it described itself, what it holds, and how much more it may be given.

use std::ops::Range;
use std::time::Duration;

use super::api::{Peer, Time};
use super::choice::{BucketLink, NO_BUCKET};
use super::held::Held;
use super::pulling::{Puller, Rest};
use super::slab::{Link, linked};

/// Work that a worker may be given beyond its free threads, as time that it will take a thread.
const HELD_WORK: Duration = Duration::from_millis(1);

/// Work beyond free threads that makes no difference under `least_loaded`, as time that it takes a thread. To spread
/// less would wake more workers for it than the work is worth.
const ALIKE_WORK: Duration = Duration::from_micros(10);

/// Tasks that a worker with fewer threads is given at most, however short it says they are. No balancer passes
/// on more in a millisecond, and what one worker holds must be taken back in one go when it is lost.
const HELD_MOST: u64 = 16_384;

/// Payload that a worker may have for each of its threads, in bytes, and still be given tasks beyond its free
/// threads: what takes long to hand over takes long, too, however short the worker says that it is, and small tasks
/// would wait behind it in the socket.
const HELD_BYTES: usize = 1 << 19;

/// A worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) peer: Peer,
    pub(super) id: Box<str>,
    pub(super) threads: u32,
    pub(super) window: u32,
    pub(super) weight: u32,
    pub(super) service_ns: Option<u64>,
    /// Most bytes of payload that it is given at once; one task is always let through.
    pub(super) max_bytes: usize,
    /// Tasks that it may hold now; follows from the fields above.
    room: u32,
    /// With fewer tasks than this, and no free thread, its load counts as the same; follows from the fields above.
    pub(super) alike: u32,
    pub(super) in_flight: u32,
    pub(super) bytes: usize,
    /// What it holds, the oldest first.
    pub(super) held: Held,
    pub(super) draining: bool,
    /// It delivers nothing while others are free, so it is given no more than its free threads.
    pub(super) stalled: bool,
    /// Its group: those that offer the same actions.
    pub(super) group: u32,
    pub(super) bucket: u8,
    /// Under `least_loaded`: with this many in flight it belongs into its bucket, as long as it has room.
    pub(super) stays: Range<u32>,
    pub(super) link: Link,
    /// Under turns: tasks that it still gets before the next worker's turn.
    pub(super) turns_left: u32,
    /// It is asked whether it is there when it has been silent.
    pub(super) heartbeats: bool,
    pub(super) heard_at: Time,
    pub(super) finished_at: Time,
    pub(super) registered_at: Time,
    /// Its entry in the list of what is to be looked at when; `Time(u64::MAX)` for none.
    pub(super) check_at: Time,
    /// When it was asked whether it is there, if it has not been heard since.
    pub(super) asked_at: Option<Time>,
    /// Nothing is recalled from it before.
    pub(super) recall_at: Time,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// What a worker has that asks for its tasks one by one; such a one is never given any unasked.
    pub(super) puller: Option<Box<Puller>>,
}

linked!(Worker, BucketLink, link);

impl Worker {
    pub(super) fn new(peer: Peer, id: &str, max_bytes: usize, now: Time) -> Self {
        Worker {
            peer,
            id: id.into(),
            threads: 1,
            window: 1,
            weight: 1,
            service_ns: None,
            max_bytes,
            room: 0,
            alike: 0,
            in_flight: 0,
            bytes: 0,
            held: Held::new(),
            draining: false,
            stalled: false,
            group: 0,
            bucket: NO_BUCKET,
            stays: 0..0,
            link: Link::new(),
            turns_left: 1,
            heartbeats: true,
            heard_at: now,
            finished_at: now,
            registered_at: now,
            check_at: Time(u64::MAX),
            asked_at: None,
            recall_at: now,
            done: 0,
            failed: 0,
            puller: None,
        }
    }

    /// Works out anew how many tasks it may hold: `threads x max(1, 1 ms / mean service time)`, and never more
    /// than its window or, beyond its threads, [`HELD_MOST`]. Without a known service time, or while it is stalled,
    /// its threads.
    pub(super) fn settle_room(&mut self) {
        if self.puller.is_some() {
            // It has a credit only in the moment in which it asks.
            (self.room, self.alike) = (0, 0);
            return;
        }
        let worth_of = |work: Duration| match self.service_ns {
            Some(ns) if !self.stalled => work.as_nanos() as u64 / ns.max(1),
            _ => 0,
        };
        let per_thread = worth_of(HELD_WORK).max(1);
        let threads = u64::from(self.threads);
        let alike =
            threads.saturating_mul(worth_of(ALIKE_WORK).saturating_add(1)).min(HELD_MOST).max(threads);
        self.alike = u32::try_from(alike).unwrap_or(self.threads);
        let worth = threads.saturating_mul(per_thread).min(HELD_MOST).max(threads);
        let room = worth.min(u64::from(self.window));
        self.room = u32::try_from(room).unwrap_or(self.window);
    }

    /// May it be given a task now? Not while it has yet to answer whether it is there: when many workers fall silent
    /// together, a task would spend all its attempts on one after the other.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.in_flight < self.room
            && !self.draining
            && self.asked_at.is_none()
            && (self.bytes < self.max_bytes || self.in_flight == 0)
            && (self.bytes < HELD_BYTES || self.has_free_thread() || self.may_hold_more())
    }

    /// How many tasks it may be given in a row before its place among the others must be found anew, at least one; and
    /// at how many bytes of payload it must be before. It must have room.
    #[inline]
    pub(super) fn in_a_row(&self) -> (u32, usize) {
        let count = self.stays.end.min(self.room).saturating_sub(self.in_flight).max(1);
        // It is in one bucket until then, so it keeps a free thread if it has one.
        let held_bytes = if self.has_free_thread() { usize::MAX } else { self.most_held_bytes() };
        (count, self.max_bytes.min(held_bytes))
    }

    /// How many more tasks it would be given now.
    pub(super) fn free_room(&self) -> usize {
        let free = if self.has_room() { self.room.saturating_sub(self.in_flight) } else { 0 };
        usize::try_from(free).unwrap_or(usize::MAX)
    }

    /// May a pull worker that asks be given a task?
    pub(super) fn takes_another(&self) -> bool {
        self.in_flight < self.window && (self.bytes < self.max_bytes || self.in_flight == 0)
    }

    /// Does it sleep, and would it be given a task if it woke up and asked?
    pub(super) fn may_be_woken(&self) -> bool {
        self.puller.as_ref().is_some_and(|puller| puller.rest == Rest::Asleep) && self.takes_another()
    }

    /// Of a worker that has much payload and no free thread: is it little for so many threads?
    fn may_hold_more(&self) -> bool {
        self.bytes < self.most_held_bytes()
    }

    /// Payload from which on it is given nothing beyond its free threads, in bytes.
    #[inline]
    fn most_held_bytes(&self) -> usize {
        HELD_BYTES.saturating_mul(self.threads as usize)
    }

    #[inline]
    pub(super) fn has_free_thread(&self) -> bool {
        self.in_flight < self.threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(threads: u32, window: u32, service_ns: Option<u64>) -> Worker {
        let mut worker = Worker::new(Peer { index: 0, generation: 0 }, "w", usize::MAX, Time(0));
        (worker.threads, worker.window, worker.service_ns) = (threads, window, service_ns);
        worker.settle_room();
        worker
    }

    #[test]
    fn room_is_a_millisecond_of_work_at_least_the_threads_and_at_most_the_window() {
        assert_eq!(worker(4, 1024, None).room, 4);
        assert_eq!(worker(4, 1024, Some(2_000_000)).room, 4);
        assert_eq!(worker(4, 1024, Some(100_000)).room, 40);
        assert_eq!(worker(4, 1024, Some(10)).room, 1024);
        assert_eq!(worker(4, 1024, Some(0)).room, 1024);
    }

    #[test]
    fn free_threads_fill_whatever_is_in_flight_but_half_a_megabyte_a_thread_is_enough_to_hold() {
        let mut worker = worker(4, 1024, Some(10));
        for in_flight in 0..4 {
            (worker.in_flight, worker.bytes) = (in_flight, (in_flight as usize * 16) << 20);
            assert!(worker.has_room(), "{in_flight} of 4 threads are busy");
        }
        for (bytes, has_room) in [(HELD_BYTES, true), (4 * HELD_BYTES - 1, true), (4 * HELD_BYTES, false)] {
            (worker.in_flight, worker.bytes) = (20, bytes);
            assert_eq!(worker.has_room(), has_room, "{bytes} bytes");
        }
    }

    #[test]
    fn ten_microseconds_of_work_beyond_the_threads_make_no_difference() {
        assert_eq!(worker(4, 1024, None).alike, 4);
        assert_eq!(worker(4, 1024, Some(100_000)).alike, 4);
        assert_eq!(worker(4, 1024, Some(1_000)).alike, 4 * 11);
        assert_eq!(worker(1, 1024, Some(100)).alike, 101);
        assert_eq!(worker(4, 1024, Some(0)).alike, 16_384);
    }

    #[test]
    fn room_beyond_the_threads_is_bounded_however_short_the_tasks_are_said_to_be() {
        assert_eq!(worker(8, 1_048_576, Some(1)).room, 16_384);
        assert_eq!(worker(65_536, 1_048_576, Some(1)).room, 65_536);
    }
}
