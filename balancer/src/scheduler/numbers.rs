//! A client's own numbers for what it waits for, and the row that each stands for.
//!
//! Clients mostly count upwards, or use the numbers of what has ended again. So the lowest bits of a number mostly
//! tell it apart from the others in flight, and a short ring of rows, indexed by them, holds all of them: one look
//! in memory that lies together, no hashing. A number whose place is taken, and what is more than the ring may hold,
//! stands in a hash table, whose hashes no client can foresee; a client that chooses its numbers badly gains nothing
//! but that.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use super::slab::NONE;
use super::table::Table;

/// Places that a ring begins with.
const LEAST_PLACES: usize = 16;

/// Most places of a ring: 32 KiB. It is doubled at once when it is half full, so it must not be long.
const MOST_PLACES: usize = 8192;

/// A ring of no more places than this, which are 16 KiB, is kept when nothing is in flight any more.
const KEPT_PLACES: usize = 4096;

/// What a client waits for, by its own numbers. An entry is any number but [`NONE`]; what it stands for, the owner
/// knows, and can tell an entry's number.
#[derive(Debug)]
pub(super) struct Numbers {
    /// A power of two of places, or none; [`NONE`] where nothing stands.
    ring: Box<[u32]>,
    in_ring: usize,
    /// What the ring has no place for.
    others: Table,
}

/// Clients mostly count upwards. Numbers that follow each other are given places that do, too, which spares most of
/// the waiting for memory when a client has a million tasks in flight; where each eight stand is random. A hash table
/// takes the place from the lowest bits, and from the highest what tells entries apart at a glance.
#[inline]
fn hash_of_number(hasher: &FixedState, id: u64) -> u64 {
    let (eight, which) = (id >> 3, id & 7);
    hasher.hash_one(eight).wrapping_add(which) ^ which << 61
}

impl Numbers {
    pub(super) fn new() -> Self {
        Numbers { ring: Box::default(), in_ring: 0, others: Table::new() }
    }

    /// How many there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.in_ring + self.others.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a number stands in the ring, if it stands there.
    #[inline]
    fn place(&self, id: u64) -> usize {
        // The lowest bits are what is wanted.
        id as usize & self.ring.len().wrapping_sub(1)
    }

    /// The entry of a number.
    #[inline]
    pub(super) fn find(&self, hasher: &FixedState, id: u64, id_of: impl Fn(u32) -> u64) -> Option<u32> {
        match self.ring.get(self.place(id)) {
            Some(&entry) if entry != NONE && id_of(entry) == id => Some(entry),
            _ if self.others.is_empty() => None,
            _ => self.others.find(hash_of_number(hasher, id), |entry| id_of(*entry) == id),
        }
    }

    /// Adds an entry, whose number must not be there.
    #[inline]
    pub(super) fn insert(&mut self, hasher: &FixedState, entry: u32, id_of: impl Fn(u32) -> u64) {
        if self.in_ring * 2 >= self.ring.len() && self.ring.len() < MOST_PLACES {
            self.double(&id_of);
        }
        let place = self.place(id_of(entry));
        match self.ring.get_mut(place) {
            Some(empty) if *empty == NONE => {
                *empty = entry;
                self.in_ring += 1;
            }
            _ => self.others.insert(entry, |entry| hash_of_number(hasher, id_of(*entry))),
        }
    }

    /// Whether a number is not there, and has a place in the ring as it is.
    #[inline]
    pub(super) fn takes_at_once(&self, id: u64) -> bool {
        self.is_roomy() && self.ring.get(self.place(id)) == Some(&NONE)
    }

    /// Puts the entry that `add` gives, with what comes with it, for a number that is not there, if that has a place in the
    /// ring as it is; nothing is added where it has none.
    #[inline(always)]
    pub(super) fn put_at_once<T>(&mut self, id: u64, add: impl FnOnce() -> (u32, T)) -> Option<(u32, T)> {
        if !self.is_roomy() {
            return None;
        }
        let place = self.place(id);
        let place = self.ring.get_mut(place).filter(|place| **place == NONE)?;
        let (entry, row) = add();
        *place = entry;
        self.in_ring += 1;
        Some((entry, row))
    }

    /// Whether a place in the ring that is empty may be taken.
    #[inline]
    fn is_roomy(&self) -> bool {
        let is_short_enough = self.in_ring * 2 < self.ring.len() || self.ring.len() == MOST_PLACES;
        is_short_enough && self.others.is_empty()
    }

    /// Takes an entry out, which has this number. Says whether it was there.
    #[inline(always)]
    pub(super) fn remove(
        &mut self,
        hasher: &FixedState,
        id: u64,
        entry: u32,
        id_of: impl Fn(u32) -> u64,
    ) -> bool {
        let place = self.place(id);
        match self.ring.get_mut(place) {
            Some(there) if *there == entry => {
                *there = NONE;
                self.in_ring -= 1;
                if self.in_ring == 0 && self.ring.len() > KEPT_PLACES {
                    self.ring = Box::default();
                }
                true
            }
            _ => self.remove_other(hasher, id, entry, id_of),
        }
    }

    /// Takes an entry out that the ring has no place for.
    #[cold]
    fn remove_other(&mut self, hasher: &FixedState, id: u64, entry: u32, id_of: impl Fn(u32) -> u64) -> bool {
        let hash = hash_of_number(hasher, id);
        self.others.remove(hash, |other| *other == entry, |entry| hash_of_number(hasher, id_of(*entry)))
    }

    /// Some of the entries, at most this many; none only when there are none.
    pub(super) fn some(&self, most: usize) -> Vec<u32> {
        if self.in_ring == 0 {
            return self.others.some(most);
        }
        self.ring.iter().copied().filter(|entry| *entry != NONE).take(most).collect()
    }

    /// Twice as many places. Entries that had places of their own have them still.
    #[cold]
    fn double(&mut self, id_of: &impl Fn(u32) -> u64) {
        let longer = vec![NONE; (self.ring.len() * 2).max(LEAST_PLACES)].into_boxed_slice();
        for entry in std::mem::replace(&mut self.ring, longer) {
            if entry != NONE {
                let place = self.place(id_of(entry));
                self.ring[place] = entry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers by entry, as the owner would know them.
    struct Owner {
        ids: Vec<u64>,
        numbers: Numbers,
        hasher: FixedState,
    }

    impl Owner {
        fn new() -> Self {
            Owner { ids: Vec::new(), numbers: Numbers::new(), hasher: FixedState::with_seed(9) }
        }

        fn add(&mut self, id: u64) -> u32 {
            let entry = self.ids.len() as u32;
            self.ids.push(id);
            self.numbers.insert(&self.hasher, entry, |entry| self.ids[entry as usize]);
            entry
        }

        fn find(&self, id: u64) -> Option<u32> {
            self.numbers.find(&self.hasher, id, |entry| self.ids[entry as usize])
        }

        fn remove(&mut self, entry: u32) -> bool {
            let id = self.ids[entry as usize];
            self.numbers.remove(&self.hasher, id, entry, |entry| self.ids[entry as usize])
        }
    }

    #[test]
    fn numbers_are_found_however_they_were_chosen() {
        let mut random = fastrand::Rng::with_seed(3);
        let random_ids: Vec<u64> = (0..20_000).map(|_| random.u64(..)).collect();
        for ids in [(1..=20_000).collect(), (0..20_000).map(|n| n << 40).collect(), random_ids] {
            let ids: Vec<u64> = ids;
            let mut owner = Owner::new();
            for (entry, id) in ids.iter().enumerate() {
                assert_eq!(owner.find(*id), None);
                assert_eq!(owner.add(*id), entry as u32);
            }
            assert_eq!(owner.numbers.len(), ids.len());
            for entry in 0..ids.len() as u32 {
                assert_eq!(owner.find(ids[entry as usize]), Some(entry));
            }
            for entry in (0..ids.len() as u32).rev() {
                assert!(owner.remove(entry));
                assert!(!owner.remove(entry));
                assert_eq!(owner.find(ids[entry as usize]), None);
            }
            assert!(owner.numbers.is_empty());
        }
    }

    #[test]
    fn numbers_that_count_upwards_stand_in_the_ring_while_few_are_in_flight() {
        let mut owner = Owner::new();
        for id in 1..100_000 {
            let entry = owner.add(id);
            if let Some(oldest) = entry.checked_sub(3000) {
                assert!(owner.remove(oldest));
            }
            assert_eq!(owner.numbers.others.len(), 0, "at number {id}");
        }
        assert_eq!(owner.numbers.ring.len(), MOST_PLACES);
    }

    #[test]
    fn a_number_is_put_at_once_where_its_place_is_empty_and_nothing_is_added_where_it_is_not() {
        let mut owner = Owner::new();
        let places = LEAST_PLACES as u64;
        let put = |owner: &mut Owner, id| {
            let entry = owner.ids.len() as u32;
            let mut added = 0;
            let put = owner.numbers.put_at_once(id, || {
                added += 1;
                (entry, "its row")
            });
            assert_eq!(put, (added == 1).then_some((entry, "its row")));
            owner.ids.extend(put.map(|_| id));
            added == 1
        };
        assert!(!put(&mut owner, 1), "there is no ring yet");
        let first = owner.add(1);
        assert!(put(&mut owner, 2));
        assert!(!put(&mut owner, 1), "it is there");
        assert!(!put(&mut owner, 1 + places), "its place is another's");
        assert_eq!((owner.find(1), owner.find(2), owner.numbers.len()), (Some(first), Some(1), 2));
        assert!(owner.remove(first) && put(&mut owner, 1 + places));
        for id in 3..3 + places {
            put(&mut owner, id);
        }
        assert_eq!(owner.numbers.len() as u64, places / 2, "a ring half full is doubled before more is put");
    }

    #[test]
    fn memory_follows_the_numbers_down() {
        let mut owner = Owner::new();
        for id in 0..5000 {
            owner.add(id);
        }
        for entry in 0..5000 {
            assert!(owner.remove(entry));
        }
        assert_eq!(owner.numbers.ring.len(), 0);
    }

    #[test]
    fn all_entries_come_by_some_at_a_time() {
        let mut owner = Owner::new();
        for id in 0..12_000 {
            owner.add(id * 3);
        }
        let mut seen = std::collections::HashSet::new();
        while !owner.numbers.is_empty() {
            let some = owner.numbers.some(100);
            assert!(!some.is_empty() && some.len() <= 100);
            for entry in some {
                assert!(owner.remove(entry));
                assert!(seen.insert(entry));
            }
        }
        assert_eq!(seen.len(), 12_000);
    }
}
