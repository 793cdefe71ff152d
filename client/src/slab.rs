//! Rows for tasks in flight. A row's key is its index and a generation, so an answer that comes late, for a
//! row that serves another task by now, finds nothing.

/// The index's share of a key, in bits; the generation has the others.
const INDEX_BITS: u32 = 32;

pub(crate) struct Slab<T> {
    rows: Vec<Row<T>>,
    free: Vec<u32>,
}

struct Row<T> {
    /// Never 0, so that no key is 0, which on the wire means the connection itself.
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Slab { rows: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.rows.push(Row { generation: 1, value: None });
                (self.rows.len() - 1) as u32
            }
        };
        let row = &mut self.rows[index as usize];
        row.value = Some(value);
        u64::from(row.generation) << INDEX_BITS | u64::from(index)
    }

    fn row(&mut self, key: u64) -> Option<&mut Row<T>> {
        let (index, generation) = (key as u32, (key >> INDEX_BITS) as u32);
        self.rows.get_mut(index as usize).filter(|row| row.generation == generation)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        self.row(key)?.value.as_mut()
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        let row = self.row(key)?;
        let value = row.value.take()?;
        row.generation = row.generation.wrapping_add(1).max(1);
        self.free.push(key as u32);
        Some(value)
    }

    /// The keys whose values fulfil a condition, in no order that means anything.
    pub(crate) fn keys_where(&self, wanted: impl Fn(&T) -> bool) -> Vec<u64> {
        let live = self.rows.iter().enumerate();
        live.filter(|(_, row)| row.value.as_ref().is_some_and(&wanted))
            .map(|(index, row)| u64::from(row.generation) << INDEX_BITS | index as u64)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_zero_and_never_finds_its_rows_next_tenant() {
        let mut slab = Slab::new();
        let first = slab.insert("first");
        assert_ne!(first, 0);
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!((slab.len(), slab.keys_where(|_| true)), (1, vec![second]));
    }

    #[test]
    fn a_key_out_of_range_finds_nothing() {
        let mut slab = Slab::new();
        slab.insert(1);
        assert_eq!(slab.get_mut(u64::MAX), None);
        assert_eq!(slab.remove(0), None);
    }
}
