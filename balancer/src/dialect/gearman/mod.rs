//! The Gearman dialect: the binary protocol of gearmand, and its administrative text commands on the same port, so that
//! clients and workers made for that server work here unchanged.
//!
//! ```text
//!  first byte of a packet  \0 ----> binary: a client's or a worker's packet; one connection may be both
//!                    another -----> text: a command, up to the line's end
//! ```
//!
//! A job is a task, a function an action, a unique id a key. What a client's session needs to name a job, it puts into
//! the number that it gives the task; what a worker's needs to find an assignment by its handle, it keeps here. See
//! docs/GEARMAN.md for what differs from gearmand.

mod decode;
mod encode;
mod handle;
mod key;
mod packet;
mod questions;
mod runs;
#[cfg(test)]
mod tests;
mod text;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use handle::Handle;
pub use packet::is_head;
pub use questions::Question;
pub(crate) use questions::{Place, reply};
pub use runs::{Grabs, Jobs, Results};
use text::{Head, Heads};

use crate::dialect::PeerKind;
use crate::scheduler::{AssignmentId, BackgroundId};

/// Longest text command, in bytes, its line's end included.
const MAX_LINE_BYTES: usize = 1024;

/// Counts that a session takes at once. So a client's jobs mostly have numbers that follow each other, and their lowest
/// bits go on from one block to the next, by which the scheduler finds them without a search.
const COUNTS_A_BLOCK: u64 = 8192;

/// Questions to the store that a connection may have under way.
const MAX_ASKED: usize = 1024;

/// Set in the number of what is asked of the store, where no job's number has a bit.
const ASK_BIT: u64 = 1 << 63;

/// Where a number says what is asked.
const ASK_SHIFT: u32 = 60;

/// What all Gearman sessions of a balancer share.
#[derive(Debug)]
pub struct Shared {
    /// What handles begin with.
    prefix: Box<str>,
    /// Counts blocks of [`COUNTS_A_BLOCK`] counts that sessions have for their jobs, so that no two jobs have the same
    /// handle.
    blocks: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Shared::new("")
    }
}

impl Shared {
    /// For a balancer on this host.
    pub fn new(host: &str) -> Self {
        Shared { prefix: handle::prefix(host).into(), blocks: AtomicU64::new(0) }
    }

    /// What handles begin with.
    fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Counts that no other session has.
    fn next_block(&self) -> Range<u64> {
        let first = self.blocks.fetch_add(1, Ordering::Relaxed).wrapping_mul(COUNTS_A_BLOCK);
        first..first.saturating_add(COUNTS_A_BLOCK)
    }
}

/// What a session has asked the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// To take a background job.
    Submit,
    /// How a background job stands, for GET_STATUS.
    Status,
    /// To cancel a background job, for a text command.
    Cancel,
}

impl Request {
    fn number(self, count: u64) -> u64 {
        ASK_BIT | (self as u64) << ASK_SHIFT | count & ((1 << ASK_SHIFT) - 1)
    }

    /// What a number asks; `None` for a job's.
    fn of(number: u64) -> Option<Request> {
        if number & ASK_BIT == 0 {
            return None;
        }
        [Request::Submit, Request::Status, Request::Cancel]
            .get((number >> ASK_SHIFT & 0b111) as usize)
            .copied()
    }
}

/// A connection's state in the Gearman dialect.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    from: Option<IpAddr>,
    /// Counts for its next jobs and questions.
    counts: Range<u64>,
    /// The scheduler knows it as a client.
    is_client: bool,
    /// The scheduler knows it as a worker.
    is_worker: bool,
    /// It wants to be told of exceptions.
    exceptions: bool,
    /// What came last was text, so a last word is said in text, too.
    speaks_text: bool,
    /// What it was given as a worker and has not answered, the oldest first. The scheduler bounds it.
    held: VecDeque<(Handle, AssignmentId)>,
    /// What heads of packets are written with.
    heads: Heads,
    /// What the handles in its WORK_COMPLETEs are compared with.
    answered: Option<Head>,
    /// The job that it has ended last with an exception: its library may say once more that it failed.
    excepted: Option<Handle>,
    /// The background jobs that it has asked about, with the numbers of its questions.
    asked: Vec<(u64, BackgroundId)>,
}

impl Session {
    /// The state of a connection that has just come.
    pub fn new(shared: &Arc<Shared>, from: Option<IpAddr>) -> Self {
        Session {
            shared: Arc::clone(shared),
            from,
            counts: 0..0,
            is_client: false,
            is_worker: false,
            exceptions: false,
            speaks_text: false,
            held: VecDeque::new(),
            heads: Heads::default(),
            answered: None,
            excepted: None,
            asked: Vec::new(),
        }
    }

    /// A count that no other job has, and no other question of this session.
    fn next_count(&mut self) -> u64 {
        let shared = &self.shared;
        self.counts.next().unwrap_or_else(|| {
            self.counts = shared.next_block();
            self.counts.start += 1;
            self.counts.start - 1
        })
    }

    /// What the peer is to the scheduler.
    pub fn kind(&self) -> PeerKind {
        match (self.is_client, self.is_worker) {
            (false, false) => PeerKind::Unknown,
            (true, false) => PeerKind::Client,
            (false, true) => PeerKind::Worker,
            (true, true) => PeerKind::Both,
        }
    }
}
