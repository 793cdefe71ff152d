//! What reactors hand each other: batches of events on their way to the scheduler, batches of its effects on their
//! way back, and the mailboxes that carry them.
//!
//! ```text
//!    front                                                        first
//!    decode -> event -> [ EventBatch  ] == at most a few ==> take -> scheduler
//!    encode <- effect <- take <== at most a few == [ EffectBatch ] <- effect
//!                  (an emptied batch goes back to whom it came from, to be filled again)
//! ```
//!
//! An event or effect is a plain row of a batch; texts and small payloads lie one behind the other in two buffers
//! that all rows share, and large payloads are shared as they are. So filling and emptying a batch allocates nothing
//! once its buffers have grown, and a batch costs one send and at most one wake-up, however much it holds.
//!
//! Nothing here blocks. A batch that finds its mailbox full stays with its sender, which takes in nothing more while
//! it holds a batch that is [full](Batch::is_full).

mod effects;
mod events;
mod farewells;
mod mailbox;
mod parts;
#[cfg(test)]
mod tests;

pub(crate) use effects::{EffectBatch, Told, peer_mut};
pub(crate) use events::{EventBatch, Said};
pub(crate) use farewells::Farewells;
pub(crate) use mailbox::{Bell, Inbox, Outbox, Sent, mailbox};

use crate::scheduler::Peer;

/// Rows after which a batch is full.
const FULL_ROWS: usize = 8192;

/// Bytes of payloads and texts after which a batch is full.
const FULL_BYTES: usize = 512 * 1024;

/// What a mailbox carries.
pub(crate) trait Batch: Default {
    /// Rows in it, and bytes of payloads and texts.
    fn size(&self) -> (usize, usize);

    /// Forgets what is in it, and keeps its memory for what comes next unless that is much.
    fn clear(&mut self);

    /// Whether there is nothing to be sent.
    fn is_empty(&self) -> bool;

    /// Whether it holds so much that nothing should be added that can wait.
    #[inline]
    fn is_full(&self) -> bool {
        let (rows, bytes) = self.size();
        rows >= FULL_ROWS || bytes >= FULL_BYTES
    }
}

/// How connections are numbered over all reactors: the reactor's number in the lowest bits, the connection's own
/// index above them. So the scheduler's rows stay dense, whatever reactor a connection is at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbering {
    bits: u32,
    number: u32,
}

impl Numbering {
    /// The numbering of reactor `number` of `reactors`.
    pub(crate) fn new(number: usize, reactors: usize) -> Numbering {
        // Settings allow far fewer reactors than 32 bits count.
        Numbering { bits: reactors.next_power_of_two().trailing_zeros(), number: number as u32 }
    }

    /// A connection of this reactor, as the scheduler knows it.
    #[inline]
    pub(crate) fn outside(self, peer: Peer) -> Peer {
        Peer { index: peer.index << self.bits | self.number, generation: peer.generation }
    }

    /// The number of the reactor that a connection is at, and the connection as that reactor knows it.
    #[inline]
    pub(crate) fn inside(self, peer: Peer) -> (usize, Peer) {
        if peer.is_insider() {
            // It belongs to the first.
            return (0, peer);
        }
        let number = peer.index & ((1 << self.bits) - 1);
        (number as usize, Peer { index: peer.index >> self.bits, generation: peer.generation })
    }
}
