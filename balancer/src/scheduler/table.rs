//! Finding rows by something other than their index: a client's own number for a task, a task's key, a flow's
//! client.
//!
//! A hash table that grows by a whole copy would make one submission among a million take a tenth of a second. So a
//! table of many entries is cut into shards, each of which grows, and shrinks, by itself. And a table gives back
//! memory when its entries go: a client that once had a million tasks in flight does not keep room for them.

use hashbrown::HashTable;

/// From this many entries on a table is cut into shards.
const MANY: usize = 8192;

/// Shards of a table with many entries; four million entries are 16,384 in each.
const SHARDS: usize = 256;

/// A table that is not cut and of no more than this capacity, which is 20 KiB, never shrinks: a client whose tasks
/// come and go by the thousand would pay for it again and again.
const SMALL: usize = 4096;

/// A shard of no more than this capacity never shrinks.
const SMALL_SHARD: usize = 64;

/// A set of rows, each found by the hash of what the owner says it stands for.
#[derive(Debug)]
pub(super) struct Table {
    shards: Shards,
    len: usize,
}

#[derive(Debug)]
enum Shards {
    One(HashTable<u32>),
    Many(Box<[HashTable<u32>]>),
}

impl Table {
    pub(super) fn new() -> Self {
        Table { shards: Shards::One(HashTable::new()), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(super) fn find(&self, hash: u64, same: impl FnMut(&u32) -> bool) -> Option<u32> {
        let shard = match &self.shards {
            Shards::One(table) => table,
            Shards::Many(shards) => &shards[shard_of(hash)],
        };
        shard.find(hash, same).copied()
    }

    /// Adds an entry, which must not be there. `hash_of` gives any entry's hash.
    #[inline]
    pub(super) fn insert(&mut self, entry: u32, hash_of: impl Fn(&u32) -> u64) {
        if self.len == MANY
            && let Shards::One(table) = &mut self.shards
        {
            self.shards = cut(std::mem::take(table), &hash_of);
        }
        let hash = hash_of(&entry);
        self.shard_mut(hash).insert_unique(hash, entry, hash_of);
        self.len += 1;
    }

    /// Takes an entry out. Says whether it was there.
    #[inline]
    pub(super) fn remove(
        &mut self,
        hash: u64,
        same: impl FnMut(&u32) -> bool,
        hash_of: impl Fn(&u32) -> u64,
    ) -> bool {
        let small = if matches!(self.shards, Shards::One(_)) { SMALL } else { SMALL_SHARD };
        let shard = self.shard_mut(hash);
        let Ok(entry) = shard.find_entry(hash, same) else { return false };
        entry.remove();
        if shard.capacity() > small && shard.len() < shard.capacity() / 8 {
            shard.shrink_to(shard.len() * 2, hash_of);
        }
        self.len -= 1;
        if self.len == 0 && matches!(self.shards, Shards::Many(_)) {
            self.shards = Shards::One(HashTable::new());
        }
        true
    }

    /// Some of its entries, at most this many; none only when it is empty.
    pub(super) fn some(&self, most: usize) -> Vec<u32> {
        let shards = match &self.shards {
            Shards::One(table) => std::slice::from_ref(table),
            Shards::Many(shards) => shards,
        };
        let Some(shard) = shards.iter().find(|shard| !shard.is_empty()) else { return Vec::new() };
        shard.iter().take(most).copied().collect()
    }

    #[inline]
    fn shard_mut(&mut self, hash: u64) -> &mut HashTable<u32> {
        match &mut self.shards {
            Shards::One(table) => table,
            Shards::Many(shards) => &mut shards[shard_of(hash)],
        }
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        match &self.shards {
            Shards::One(table) => table.capacity(),
            Shards::Many(shards) => shards.iter().map(HashTable::capacity).sum(),
        }
    }
}

/// Which shard a hash belongs to, by bits of which a hash table makes no use of its own.
#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

fn cut(table: HashTable<u32>, hash_of: &impl Fn(&u32) -> u64) -> Shards {
    let mut shards: Box<[HashTable<u32>]> = (0..SHARDS).map(|_| HashTable::new()).collect();
    for entry in table {
        let hash = hash_of(&entry);
        shards[shard_of(hash)].insert_unique(hash, entry, hash_of);
    }
    Shards::Many(shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldhash::fast::FixedState;
    use std::hash::BuildHasher;

    fn hash_of(entry: &u32) -> u64 {
        FixedState::with_seed(7).hash_one(entry)
    }

    #[test]
    fn entries_are_found_and_removed_however_many_there_are() {
        let mut table = Table::new();
        for entry in 0..50_000 {
            table.insert(entry, hash_of);
        }
        assert_eq!(table.len(), 50_000);
        for entry in 0..50_000 {
            assert_eq!(table.find(hash_of(&entry), |other| *other == entry), Some(entry));
        }
        assert_eq!(table.find(hash_of(&50_000), |other| *other == 50_000), None);
        for entry in (0..50_000).rev() {
            assert!(table.remove(hash_of(&entry), |other| *other == entry, hash_of));
            assert!(!table.remove(hash_of(&entry), |other| *other == entry, hash_of));
        }
        assert!(table.is_empty());
    }

    #[test]
    fn memory_follows_the_entries_down() {
        let mut table = Table::new();
        for entry in 0..100_000 {
            table.insert(entry, hash_of);
        }
        for entry in 0..99_990 {
            table.remove(hash_of(&entry), |other| *other == entry, hash_of);
        }
        assert!(table.capacity() <= SHARDS * SMALL_SHARD, "{}", table.capacity());
        for entry in 99_990..100_000 {
            table.remove(hash_of(&entry), |other| *other == entry, hash_of);
        }
        assert_eq!(table.capacity(), 0);
    }

    #[test]
    fn no_shard_is_much_larger_than_the_others() {
        let mut table = Table::new();
        for entry in 0..100_000 {
            table.insert(entry, hash_of);
        }
        let Shards::Many(shards) = &table.shards else { panic!("it has many entries") };
        let largest = shards.iter().map(HashTable::len).max();
        assert!(largest.is_some_and(|largest| largest < 2 * 100_000 / SHARDS), "{largest:?}");
    }

    #[test]
    fn all_entries_come_by_some_at_a_time() {
        let mut table = Table::new();
        for entry in 0..20_000 {
            table.insert(entry, hash_of);
        }
        let mut seen = std::collections::HashSet::new();
        while !table.is_empty() {
            let some = table.some(100);
            assert!(!some.is_empty() && some.len() <= 100);
            for entry in some {
                assert!(table.remove(hash_of(&entry), |other| *other == entry, hash_of));
                assert!(seen.insert(entry));
            }
        }
        assert_eq!(seen.len(), 20_000);
    }
}
