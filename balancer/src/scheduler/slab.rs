//! Rows that keep their index, and lists that run through them.
//!
//! Tasks, workers, clients and the rest live in [`Slab`]s and know each other by index. Their queues are
//! [`List`]s whose links stand in the rows themselves, so that adding, removing and moving cost the same
//! however many there are, and allocate nothing.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// Rows that are kept when none is in use any more; beyond as many, their memory is freed then.
const KEPT_ROWS: usize = 65_536;

/// The index that no row has.
pub(super) const NONE: u32 = u32::MAX;

/// Rows with small, reused indexes. To use an index whose row is empty is a bug of the scheduler and panics;
/// what comes from outside is looked up with [`get`](Self::get).
#[derive(Debug, Clone)]
pub(super) struct Slab<T> {
    rows: Vec<Option<T>>,
    /// The empty rows. They stand in a list of their own, so that to fill one it need not be read first.
    vacant: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Slab { rows: Vec::new(), vacant: Vec::new() }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.rows.len() - self.vacant.len()
    }

    /// Rows, occupied or not: more than any index in use.
    pub(super) fn rows(&self) -> u32 {
        self.rows.len() as u32
    }

    #[inline(always)]
    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.add(value).0
    }

    /// As [`insert`](Self::insert), and gives the row to be filled in.
    #[inline(always)]
    pub(super) fn add(&mut self, value: T) -> (u32, &mut T) {
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => {
                assert!(self.rows.len() < NONE as usize, "callers bound their rows far below 2^32");
                self.rows.push(None);
                (self.rows.len() - 1) as u32
            }
        };
        (index, self.rows[index as usize].insert(value))
    }

    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> T {
        let Some(value) = self.rows[index as usize].take() else { panic!("row {index} is empty already") };
        self.vacated(index);
        value
    }

    /// Empties a row, without moving out what stood there.
    #[inline(always)]
    pub(super) fn vacate(&mut self, index: u32) {
        let row = &mut self.rows[index as usize];
        assert!(row.is_some(), "row {index} is empty already");
        *row = None;
        self.vacated(index);
    }

    #[inline]
    fn vacated(&mut self, index: u32) {
        self.vacant.push(index);
        if self.vacant.len() == self.rows.len() && self.rows.len() > KEPT_ROWS {
            *self = Slab::new();
        }
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.rows.get(index as usize)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.rows.iter().enumerate().filter_map(|(index, row)| Some((index as u32, row.as_ref()?)))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    #[inline]
    fn index(&self, index: u32) -> &T {
        match &self.rows[index as usize] {
            Some(value) => value,
            None => panic!("row {index} is empty"),
        }
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        match &mut self.rows[index as usize] {
            Some(value) => value,
            None => panic!("row {index} is empty"),
        }
    }
}

/// A row's place in one kind of list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    previous: u32,
    next: u32,
}

impl Link {
    pub(super) const fn new() -> Self {
        Link { previous: NONE, next: NONE }
    }
}

/// Rows that can stand in a list of kind `K`, by their index.
pub(super) trait Links<K> {
    fn link(&self, index: u32) -> &Link;
    fn link_mut(&mut self, index: u32) -> &mut Link;
}

impl<K, T: Linked<K>> Links<K> for Slab<T> {
    #[inline]
    fn link(&self, index: u32) -> &Link {
        self[index].node()
    }

    #[inline]
    fn link_mut(&mut self, index: u32) -> &mut Link {
        self[index].node_mut()
    }
}

/// A row that can stand in a list of kind `K`.
pub(super) trait Linked<K> {
    fn node(&self) -> &Link;
    fn node_mut(&mut self) -> &mut Link;
}

/// Implements [`Linked`] for a row's field.
macro_rules! linked {
    ($row:ty, $kind:ty, $field:tt) => {
        impl $crate::scheduler::slab::Linked<$kind> for $row {
            #[inline]
            fn node(&self) -> &$crate::scheduler::slab::Link {
                &self.$field
            }
            #[inline]
            fn node_mut(&mut self) -> &mut $crate::scheduler::slab::Link {
                &mut self.$field
            }
        }
    };
}
pub(super) use linked;

/// A list through the rows of a slab. A row stands in at most one list of a kind at a time; the owner knows
/// which.
#[derive(Debug)]
pub(super) struct List<K> {
    head: u32,
    tail: u32,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for List<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for List<K> {}

impl<K> List<K> {
    pub(super) const fn new() -> Self {
        List { head: NONE, tail: NONE, kind: PhantomData }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// The first row, or [`NONE`].
    #[inline]
    pub(super) fn head(&self) -> u32 {
        self.head
    }

    /// The last row, or [`NONE`].
    #[inline]
    pub(super) fn tail(&self) -> u32 {
        self.tail
    }

    /// The row after `index`, or [`NONE`].
    #[inline]
    pub(super) fn next(rows: &impl Links<K>, index: u32) -> u32 {
        rows.link(index).next
    }

    #[inline]
    pub(super) fn push_back(&mut self, rows: &mut impl Links<K>, index: u32) {
        *rows.link_mut(index) = Link { previous: self.tail, next: NONE };
        match self.tail {
            NONE => self.head = index,
            tail => rows.link_mut(tail).next = index,
        }
        self.tail = index;
    }

    #[inline]
    pub(super) fn push_front(&mut self, rows: &mut impl Links<K>, index: u32) {
        *rows.link_mut(index) = Link { previous: NONE, next: self.head };
        match self.head {
            NONE => self.tail = index,
            head => rows.link_mut(head).previous = index,
        }
        self.head = index;
    }

    /// Takes a row out, which must stand in this list.
    #[inline]
    pub(super) fn remove(&mut self, rows: &mut impl Links<K>, index: u32) {
        let link = std::mem::replace(rows.link_mut(index), Link::new());
        match link.previous {
            NONE => self.head = link.next,
            previous => rows.link_mut(previous).next = link.next,
        }
        match link.next {
            NONE => self.tail = link.previous,
            next => rows.link_mut(next).previous = link.previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Any;
    struct Item(u32, Link);
    linked!(Item, Any, 1);

    fn values(list: &List<Any>, rows: &Slab<Item>) -> Vec<u32> {
        let mut found = Vec::new();
        let mut at = list.head();
        while at != NONE {
            found.push(rows[at].0);
            at = List::next(rows, at);
        }
        found
    }

    #[test]
    fn an_index_is_used_again_after_its_row_was_emptied() {
        let mut rows = Slab::new();
        let (a, b) = (rows.insert('a'), rows.insert('b'));
        assert_eq!(rows.remove(a), 'a');
        assert_eq!(rows.get(a), None);
        assert_eq!((rows.insert('c'), rows.len()), (a, 2));
        assert_eq!(rows[b], 'b');
    }

    #[test]
    fn the_rows_of_a_busier_time_are_freed_once_none_is_used() {
        let mut rows = Slab::new();
        for n in 0..=KEPT_ROWS as u32 {
            assert_eq!(rows.insert(n), n);
        }
        for n in 0..=KEPT_ROWS as u32 {
            assert_eq!(rows.remove(n), n);
        }
        assert_eq!((rows.rows.capacity(), rows.insert(7), rows.len()), (0, 0, 1));
    }

    #[test]
    fn a_list_keeps_its_order_through_removals_at_both_ends_and_in_the_middle() {
        let (mut rows, mut list) = (Slab::new(), List::<Any>::new());
        let index: Vec<u32> = (0..5).map(|n| rows.insert(Item(n, Link::new()))).collect();
        for i in &index[1..] {
            list.push_back(&mut rows, *i);
        }
        list.push_front(&mut rows, index[0]);
        assert_eq!(values(&list, &rows), [0, 1, 2, 3, 4]);
        list.remove(&mut rows, index[2]);
        list.remove(&mut rows, index[0]);
        list.remove(&mut rows, index[4]);
        assert_eq!(values(&list, &rows), [1, 3]);
        assert_eq!((list.head(), list.tail()), (index[1], index[3]));
        list.remove(&mut rows, index[1]);
        list.remove(&mut rows, index[3]);
        assert!(list.is_empty());
    }
}
