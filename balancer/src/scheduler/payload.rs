//! Payloads: how they come in and go out without being copied or counted, and where waiting tasks keep theirs.
//!
//! A payload passes through the scheduler as a [`Payload`], which borrows the reader's memory. Only a task that is
//! taken in keeps its own: a very small one in a line that belongs to the task's row, a small one in a block of the
//! [`Store`], whose lines and blocks are used again without asking the allocator; a large one as shared bytes.

use bytes::Bytes;

use super::slab::Slab;

/// From here on a payload that must outlive its reader's buffer shares the buffer's memory, in bytes. A smaller one
/// is copied, lest a few bytes keep a whole buffer alive.
const SHARE_PART_BYTES: usize = 32 * 1024;

/// The same for payloads of tasks, which may wait for long. Any piece keeps the whole of its buffer alive, which is
/// 256 KiB, or little more than a frame where nobody else holds it: so what payloads keep in memory is about twice what
/// they are counted for at most.
const KEEP_SHARED_BYTES: usize = 128 * 1024;

/// Bytes that belong to a task or its result, where they lie now.
///
/// ```
/// use bytes::Bytes;
/// use reparto_balancer::scheduler::Payload;
/// let buffer = Bytes::from(vec![7; 100_000]);
/// let payload = Payload::within(&buffer, &buffer[100..90_000]);
/// assert_eq!(payload.as_slice().len(), 89_900);
/// assert_eq!(payload.to_bytes().as_ptr(), buffer[100..].as_ptr(), "large ones share their buffer");
/// assert_eq!(Payload::new(b"hola").to_bytes(), "hola");
/// ```
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    memory: Option<&'a Bytes>,
}

impl<'a> Payload<'a> {
    /// No bytes.
    pub const EMPTY: Payload<'static> = Payload { bytes: &[], memory: None };

    /// Bytes that are copied by whoever keeps them.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Payload { bytes, memory: None }
    }

    /// A part of a buffer, whose memory may be shared by whoever keeps it.
    #[inline]
    pub fn within(memory: &'a Bytes, bytes: &'a [u8]) -> Self {
        Payload { bytes, memory: Some(memory) }
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(self) -> &'a [u8] {
        self.bytes
    }

    /// How many bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes to keep: shared where that is allowed and they are the whole of their memory or 32 KiB and more,
    /// copied otherwise.
    pub fn to_bytes(self) -> Bytes {
        match self.memory {
            Some(memory) if memory.len() == self.bytes.len() => memory.clone(),
            Some(memory) if self.bytes.len() >= SHARE_PART_BYTES => memory.slice_ref(self.bytes),
            _ => Bytes::copy_from_slice(self.bytes),
        }
    }

    /// The bytes to keep for long.
    fn to_kept(self) -> Bytes {
        // Memory that nobody else holds is a frame's, which has a head: a part of a buffer has none, and may keep all of
        // the buffer.
        let is_most_of = |memory: &Bytes| {
            let (all, part) = (memory.len(), self.bytes.len());
            part < all && all <= 2 * part && memory.is_unique()
        };
        match self.memory {
            Some(memory) if self.bytes.len() >= KEEP_SHARED_BYTES || is_most_of(memory) => {
                memory.slice_ref(self.bytes)
            }
            _ => Bytes::copy_from_slice(self.bytes),
        }
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        Payload::within(bytes, bytes)
    }
}

impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Payload<'_> {}

impl std::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.bytes.escape_ascii())
    }
}

/// Where a task's payload is kept, besides in the task's own line. To be given back to its store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// Of a payload that is not in its task's line: its class in the highest four bits, its number within the class in
    /// the others.
    place: u32,
    bytes: u32,
}

impl Kept {
    /// No payload.
    pub(super) const NOTHING: Kept = Kept { place: 0, bytes: 0 };

    /// One of this many bytes that is kept nowhere.
    #[cfg(test)]
    pub(super) fn of_length(bytes: u32) -> Kept {
        Kept { place: 0, bytes }
    }

    /// Bytes of the payload.
    #[inline]
    pub(super) fn len(self) -> usize {
        self.bytes as usize
    }
}

/// Largest payload that is kept in its task's own line, in bytes.
const LINE_BYTES: usize = 64;

/// Lines that are kept when no payload is in one any more; beyond as many, their memory is freed then.
const KEPT_LINES: usize = 65_536;

/// Largest payload that is kept in a block, in bytes.
pub(super) const BLOCK_BYTES: usize = 4096;

/// Classes of blocks: 96 bytes, 128, 192, 256 and so on to 4096, so that at most a third of a block is empty.
const CLASSES: usize = 12;

/// The class of payloads in memory of their own.
const OWN: u32 = 15;

/// About how large a page of blocks is, in bytes.
const PAGE_BYTES: usize = 64 * 1024;

/// Pages that a class keeps when none of its blocks is in use any more: 512 KiB, so that waves of some thousand small
/// tasks do not free and clear pages again and again.
const KEPT_PAGES: usize = 8;

const CLASS_SHIFT: u32 = 28;

/// A place for a very small payload: one line of the processor's cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([u8; LINE_BYTES]);

/// Payloads of tasks, each by its task's index.
#[derive(Debug)]
pub(super) struct Store {
    /// By the index of the task.
    lines: Vec<Line>,
    /// Those with something in them.
    lines_used: usize,
    classes: [Class; CLASSES],
    own: Slab<Bytes>,
    /// Pages that may yet be added. A class keeps its pages while one of its blocks is in use, so without a bound
    /// over all of them, tasks of one size after the other could make each class as large as all may be together.
    pages_left: usize,
}

#[derive(Debug)]
struct Class {
    block_bytes: usize,
    /// log2 of the blocks a page.
    page_bits: u32,
    pages: Vec<Box<[u8]>>,
    free: Vec<u32>,
    used: usize,
}

impl Store {
    /// A store for this many bytes of payload. Its pages have room for half as many again, which is more than
    /// blocks are larger than what is in them; what finds none left is kept in memory of its own.
    pub(super) fn new(max_bytes: usize) -> Self {
        let pages_left = ((max_bytes / PAGE_BYTES).saturating_mul(3) / 2).max(CLASSES);
        let classes = std::array::from_fn(Class::new);
        Store { lines: Vec::new(), lines_used: 0, classes, own: Slab::new(), pages_left }
    }

    /// Keeps a task's payload: copied into the task's line or into a block when it is small, into memory of its own
    /// when it is not, and shared when it is large.
    #[inline(always)]
    pub(super) fn keep(&mut self, task: u32, payload: Payload<'_>) -> Kept {
        let bytes = payload.as_slice();
        if bytes.len() > LINE_BYTES {
            return self.keep_larger(payload);
        }
        if !bytes.is_empty() {
            let at = task as usize;
            if at >= self.lines.len() {
                self.lines.resize(at + 1, Line([0; LINE_BYTES]));
            }
            self.lines[at].0[..bytes.len()].copy_from_slice(bytes);
            self.lines_used += 1;
        }
        Kept { place: 0, bytes: bytes.len() as u32 }
    }

    fn keep_larger(&mut self, payload: Payload<'_>) -> Kept {
        let bytes = payload.as_slice();
        // A frame's length is a number of 32 bits, and no payload is longer than its frame.
        let length = bytes.len() as u32;
        if bytes.len() <= BLOCK_BYTES {
            let class = class_of(bytes.len());
            if let Some(number) = self.classes[class].take(&mut self.pages_left) {
                self.classes[class].block_mut(number)[..bytes.len()].copy_from_slice(bytes);
                return Kept { place: (class as u32) << CLASS_SHIFT | number, bytes: length };
            }
        }
        let number = self.own.insert(payload.to_kept());
        assert!(number < 1 << CLASS_SHIFT, "the bound on tasks is far below 2^28");
        Kept { place: OWN << CLASS_SHIFT | number, bytes: length }
    }

    /// A task's payload.
    #[inline]
    pub(super) fn get(&self, task: u32, kept: Kept) -> Payload<'_> {
        let (class, number) = (kept.place >> CLASS_SHIFT, kept.place & ((1 << CLASS_SHIFT) - 1));
        match kept.len() {
            0 => Payload::EMPTY,
            1..=LINE_BYTES => Payload::new(&self.lines[task as usize].0[..kept.len()]),
            _ if class == OWN => Payload::from(&self.own[number]),
            _ => Payload::new(&self.classes[class as usize].block(number)[..kept.len()]),
        }
    }

    /// Takes a payload's memory back.
    #[inline]
    pub(super) fn release(&mut self, kept: Kept) {
        match kept.len() {
            0 => {}
            1..=LINE_BYTES => {
                self.lines_used -= 1;
                if self.lines_used == 0 && self.lines.len() > KEPT_LINES {
                    self.lines = Vec::new();
                }
            }
            _ => self.release_larger(kept),
        }
    }

    fn release_larger(&mut self, kept: Kept) {
        let (class, number) = (kept.place >> CLASS_SHIFT, kept.place & ((1 << CLASS_SHIFT) - 1));
        if class == OWN {
            self.own.remove(number);
        } else {
            self.classes[class as usize].give_back(number, &mut self.pages_left);
        }
    }

    /// Payloads that are kept, but for empty ones.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.lines_used + self.own.len() + self.classes.iter().map(|class| class.used).sum::<usize>()
    }
}

impl Class {
    fn new(class: usize) -> Self {
        let block_bytes = bytes_of(class);
        let page_bits = (PAGE_BYTES / block_bytes).ilog2();
        Class { block_bytes, page_bits, pages: Vec::new(), free: Vec::new(), used: 0 }
    }

    /// A block that is free, on a new page if need be; `None` when no page may be added.
    #[inline]
    fn take(&mut self, pages_left: &mut usize) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                *pages_left = pages_left.checked_sub(1)?;
                self.add_page()
            }
        };
        self.used += 1;
        Some(number)
    }

    /// Adds a page, and takes its first block.
    fn add_page(&mut self) -> u32 {
        let blocks = 1u32 << self.page_bits;
        let first = (self.pages.len() as u32) << self.page_bits;
        assert!(first < (1 << CLASS_SHIFT) - blocks, "the bound on tasks is far below 2^28 blocks");
        self.pages.push(vec![0; self.block_bytes << self.page_bits].into());
        self.free.extend((first + 1..first + blocks).rev());
        first
    }

    /// Takes a block back. When none is in use any more, the pages of a busier time are freed.
    #[inline]
    fn give_back(&mut self, number: u32, pages_left: &mut usize) {
        self.used -= 1;
        if self.used == 0 && self.pages.len() > KEPT_PAGES {
            *pages_left += self.pages.len() - KEPT_PAGES;
            self.pages.truncate(KEPT_PAGES);
            self.free = (0..(KEPT_PAGES as u32) << self.page_bits).rev().collect();
        } else {
            self.free.push(number);
        }
    }

    #[inline]
    fn block(&self, number: u32) -> &[u8] {
        let at = (number as usize & ((1 << self.page_bits) - 1)) * self.block_bytes;
        &self.pages[(number >> self.page_bits) as usize][at..at + self.block_bytes]
    }

    #[inline]
    fn block_mut(&mut self, number: u32) -> &mut [u8] {
        let at = (number as usize & ((1 << self.page_bits) - 1)) * self.block_bytes;
        &mut self.pages[(number >> self.page_bits) as usize][at..at + self.block_bytes]
    }
}

/// The class of the smallest blocks that hold `bytes`, more than a line does.
#[inline]
fn class_of(bytes: usize) -> usize {
    let last = bytes - 1;
    let doubling = last.ilog2();
    let upper_half = (last >> (doubling - 1)) & 1;
    (doubling as usize - LINE_BYTES.ilog2() as usize) * 2 + upper_half
}

/// Bytes of a class's blocks.
fn bytes_of(class: usize) -> usize {
    let of_doubling = if class.is_multiple_of(2) { 96 } else { 128 };
    of_doubling << (class / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_payload_has_the_smallest_block_that_holds_it() {
        assert_eq!(bytes_of(CLASSES - 1), BLOCK_BYTES);
        for bytes in LINE_BYTES + 1..=BLOCK_BYTES {
            let class = class_of(bytes);
            assert!(bytes_of(class) >= bytes, "{bytes}");
            assert!(class == 0 || bytes_of(class - 1) < bytes, "{bytes}");
        }
    }

    #[test]
    fn what_is_kept_is_what_came_whatever_its_size_and_neighbours() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut store = Store::new(1 << 30);
        let (mut kept, mut free) = (Vec::new(), (0..20_000).collect::<Vec<u32>>());
        for round in 0..20_000u32 {
            if random.bool() || kept.is_empty() {
                let bytes = 1 << random.u32(..18);
                let payload: Vec<u8> = vec![round as u8; random.usize(..bytes)];
                let memory = Bytes::from(payload.clone());
                let task = free.swap_remove(random.usize(..free.len()));
                let place = store.keep(task, Payload::from(&memory));
                kept.push((payload, task, place));
            } else {
                let (payload, task, place) = kept.swap_remove(random.usize(..kept.len()));
                assert_eq!((store.get(task, place).as_slice(), place.len()), (&payload[..], payload.len()));
                store.release(place);
                free.push(task);
            }
        }
        for (payload, task, place) in kept {
            assert_eq!(store.get(task, place).as_slice(), payload);
            store.release(place);
        }
        assert_eq!(store.used(), 0);
    }

    #[test]
    fn lines_of_a_busier_time_are_freed_once_it_is_over() {
        let mut store = Store::new(1 << 30);
        let kept: Vec<Kept> =
            (0..=KEPT_LINES as u32).map(|task| store.keep(task, Payload::new(b"hola"))).collect();
        for place in kept {
            store.release(place);
        }
        assert_eq!(store.lines.capacity(), 0);
    }

    #[test]
    fn pages_of_a_busier_time_are_freed_once_it_is_over() {
        let mut store = Store::new(1 << 30);
        let kept: Vec<Kept> = (0..100_000).map(|task| store.keep(task, Payload::new(&[1; 96]))).collect();
        let pages = |store: &Store| store.classes.iter().map(|class| class.pages.len()).sum::<usize>();
        assert!(pages(&store) > 90);
        for place in kept {
            store.release(place);
        }
        assert_eq!(pages(&store), KEPT_PAGES);
        let again = store.keep(0, Payload::new(&[2; 96]));
        assert_eq!(store.get(0, again).as_slice(), [2; 96]);
    }

    #[test]
    fn pages_of_all_sizes_together_are_bounded_however_they_are_filled_and_left() {
        let most = 4 << 20;
        let mut store = Store::new(most);
        let mut left = Vec::new();
        for class in 0..CLASSES {
            let payload = vec![class as u8; bytes_of(class)];
            let mut kept: Vec<Kept> =
                (0..most / payload.len()).map(|_| store.keep(0, Payload::new(&payload))).collect();
            left.extend(kept.pop().map(|last| (payload, last)));
            kept.into_iter().for_each(|kept| store.release(kept));
        }
        let bytes: usize = store.classes.iter().flat_map(|class| &class.pages).map(|page| page.len()).sum();
        assert!(bytes <= most + most / 2, "{bytes}");
        for (payload, kept) in left {
            assert_eq!(store.get(0, kept).as_slice(), payload);
            store.release(kept);
        }
        assert_eq!(store.used(), 0);
    }

    #[test]
    fn large_payloads_of_tasks_share_their_buffer_and_smaller_ones_do_not() {
        let mut store = Store::new(1 << 30);
        let buffer = Bytes::from(vec![1; 256 * 1024]);
        let large = store.keep(0, Payload::within(&buffer, &buffer[..KEEP_SHARED_BYTES]));
        assert_eq!(store.get(0, large).as_slice().as_ptr(), buffer.as_ptr());
        // Somebody else, such as a reader's buffer, has more of this memory than is seen here.
        let _others = buffer.clone();
        let small = store.keep(1, Payload::within(&buffer, &buffer[..KEEP_SHARED_BYTES - 1]));
        assert_ne!(store.get(1, small).as_slice().as_ptr(), buffer.as_ptr());
    }

    #[test]
    fn payloads_of_tasks_share_a_frame_that_nobody_else_holds_if_they_are_half_of_it() {
        let mut store = Store::new(1 << 30);
        let frame = Bytes::from(vec![1; 60_000]);
        let little = store.keep(0, Payload::within(&frame, &frame[..29_000]));
        assert_ne!(store.get(0, little).as_slice().as_ptr(), frame.as_ptr());
        let most = store.keep(1, Payload::within(&frame, &frame[100..]));
        assert_eq!(store.get(1, most).as_slice().as_ptr(), frame[100..].as_ptr());
        // What another reactor hands over is a part of its buffer, and may be all that is left of it.
        let part = Bytes::from(vec![1; 250_000]).split_to(60_000);
        let whole = store.keep(2, Payload::from(&part));
        assert_ne!(store.get(2, whole).as_slice().as_ptr(), part.as_ptr());
    }
}
