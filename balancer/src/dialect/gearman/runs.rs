//! Packets that follow each other and are alike: jobs of one function without a unique id, questions for a job, results
//! in the order of the jobs. What is true of all of them is read once.
//!
//! A run takes packets only where each alone would be taken, and understands them alike; whatever else stands there is
//! left to [`Session::decode`].

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::Beginning;

use super::Session;
use super::decode::function;
use super::handle::{Handle, number_of};
use super::packet::{HEADER_BYTES, Kind, REQUEST};
use super::text::Head;
use crate::dialect::{Context, Step};
use crate::scheduler::{AssignmentId, Event, Payload, Peer, Pull, Submission};

/// Jobs in one run, at most. A client that is closed for not reading while its run is taken in hands in no more than
/// these; what follows is seen to be a closed connection's.
const MOST_JOBS: u64 = 1024;

/// A header's first eight bytes, in a request of this kind.
const fn start_of(kind: Kind) -> u64 {
    (u32::from_be_bytes(REQUEST) as u64) << 32 | kind as u64
}

const SUBMIT_JOB: u64 = start_of(Kind::SubmitJob);
const WORK_COMPLETE: u64 = start_of(Kind::WorkComplete);
const GRAB_JOB: u64 = start_of(Kind::GrabJob);
const GRAB_JOB_UNIQ: u64 = start_of(Kind::GrabJobUniq);
const GRAB_JOB_ALL: u64 = start_of(Kind::GrabJobAll);

/// The data of the packet that begins at `at`, if it begins like this and is whole and no longer than it may be.
#[inline]
fn data_at(chunk: &Bytes, at: usize, start: u64, most_data: usize) -> Option<&[u8]> {
    let (head, rest) = chunk.get(at..)?.split_first_chunk::<HEADER_BYTES>()?;
    let [m0, m1, m2, m3, k0, k1, k2, k3, s0, s1, s2, s3] = *head;
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    let is_it = u64::from_be_bytes([m0, m1, m2, m3, k0, k1, k2, k3]) == start && size <= most_data;
    if is_it { rest.get(..size) } else { None }
}

/// SUBMIT_JOBs of one function, none with a unique id, as they follow each other in a chunk: the session's number for
/// each, and its payload.
#[derive(Debug)]
pub struct Jobs<'a> {
    chunk: &'a Bytes,
    at: usize,
    most_data: usize,
    action: &'a str,
    /// The function and the unique id, with the NULs behind them.
    names: Beginning<'a>,
    connection: u32,
    /// Counts for as many as there may be.
    counts: Range<u64>,
}

impl<'a> Jobs<'a> {
    /// What all of them are to do.
    #[inline]
    pub fn action(&self) -> &'a str {
        self.action
    }

    /// Where the next packet begins, of which it is not said that it is one of these.
    #[inline]
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next one alone, as an event.
    pub fn next_event(&mut self, peer: Peer) -> Option<Event<'a>> {
        let (id, payload) = self.next()?;
        Some(Event::Submit { peer, task: submission(Submission::new(id, self.action, payload)) })
    }
}

/// A foreground job's task: it waits as long as it takes, and its client is told that it was taken.
#[inline]
pub(super) fn submission(usual: Submission<'_>) -> Submission<'_> {
    Submission { wait: Some(Duration::MAX), announced: true, ..usual }
}

impl<'a> Iterator for Jobs<'a> {
    type Item = (u64, Payload<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let data = data_at(self.chunk, self.at, SUBMIT_JOB, self.most_data)?;
        let payload = data.get(self.names.len()..).filter(|_| self.names.begins(data))?;
        let count = self.counts.next()?;
        self.at += HEADER_BYTES + data.len();
        Some((number_of(self.connection, count), Payload::within(self.chunk, payload)))
    }
}

/// Questions for a job, alike, as they follow each other in a chunk.
#[derive(Debug)]
pub struct Grabs {
    at: usize,
    form: u8,
    count: usize,
}

impl Grabs {
    /// Where the next packet begins.
    #[inline]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Their form and how many they are, after which there are none left.
    #[inline]
    pub fn take(&mut self) -> (u8, usize) {
        self.at += self.count * HEADER_BYTES;
        (self.form, std::mem::take(&mut self.count))
    }

    /// The next one alone, as an event.
    pub fn next_event(&mut self, peer: Peer) -> Option<Event<'static>> {
        self.count = self.count.checked_sub(1)?;
        self.at += HEADER_BYTES;
        Some(Event::Pull { peer, pull: Pull::Grab { form: self.form } })
    }
}

/// WORK_COMPLETEs in the order in which their jobs were given, as they follow each other in a chunk.
#[derive(Debug)]
pub struct Results<'a> {
    chunk: &'a Bytes,
    at: usize,
    most_data: usize,
    /// A handle as it stands in a packet, the NUL behind it with it.
    head: Head,
    /// What the session holds, which it is to be given back.
    held: VecDeque<(Handle, AssignmentId)>,
}

impl<'a> Results<'a> {
    /// Where the next packet begins, of which it is not said that it is one of these.
    #[inline]
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next one alone, as an event.
    pub fn next_event(&mut self, peer: Peer) -> Option<Event<'a>> {
        Some(Event::done(peer, self.next()?))
    }
}

impl<'a> Iterator for Results<'a> {
    type Item = (AssignmentId, Payload<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let &(Handle::Number(number), assignment) = self.held.front()? else { return None };
        let data = data_at(self.chunk, self.at, WORK_COMPLETE, self.most_data)?;
        let payload = self.head.strip(number, data)?;
        self.held.pop_front();
        self.at += HEADER_BYTES + data.len();
        Some((assignment, Payload::within(self.chunk, payload)))
    }
}

impl Session {
    /// The run that begins at `from`, if one does there.
    #[inline(always)]
    pub(super) fn begin_run<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        from: usize,
    ) -> Option<Step<'a>> {
        let start = u64::from_be_bytes(*chunk.get(from..)?.first_chunk::<8>()?);
        let most_data = (context.max_frame_bytes as usize).saturating_sub(HEADER_BYTES);
        let run = match start {
            SUBMIT_JOB if self.is_client => self.begin_jobs(peer, chunk, from, most_data)?,
            WORK_COMPLETE if self.is_worker => self.begin_results(chunk, from, most_data)?,
            GRAB_JOB if self.is_worker => grabs(chunk, from, start, 0)?,
            GRAB_JOB_UNIQ if self.is_worker => grabs(chunk, from, start, 1)?,
            GRAB_JOB_ALL if self.is_worker => grabs(chunk, from, start, 2)?,
            _ => return None,
        };
        self.speaks_text = false;
        Some(run)
    }

    #[inline]
    fn begin_jobs<'a>(
        &mut self,
        peer: Peer,
        chunk: &'a Bytes,
        from: usize,
        most_data: usize,
    ) -> Option<Step<'a>> {
        let data = data_at(chunk, from, SUBMIT_JOB, most_data)?;
        let end = data.iter().position(|byte| *byte == 0)?;
        if data.get(end + 1) != Some(&0) {
            return None;
        }
        let action = function(data.get(..end)?).ok()?;
        let names = Beginning::new(data.get(..end + 2)?);
        if self.counts.is_empty() {
            self.counts = self.shared.next_block();
        }
        let counts = self.counts.start..self.counts.end.min(self.counts.start + MOST_JOBS);
        Some(Step::Jobs(Jobs { chunk, at: from, most_data, action, names, connection: peer.index, counts }))
    }

    #[inline]
    fn begin_results<'a>(&mut self, chunk: &'a Bytes, from: usize, most_data: usize) -> Option<Step<'a>> {
        let &(Handle::Number(number), _) = self.held.front()? else { return None };
        let head = || Head::new(Kind::WorkComplete, &self.shared.prefix, &[b"\0"]);
        let data = data_at(chunk, from, WORK_COMPLETE, most_data)?;
        self.answered.get_or_insert_with(head).strip(number, data)?;
        let (head, held) = (self.answered.take()?, std::mem::take(&mut self.held));
        self.excepted = None;
        Some(Step::JobResults(Results { chunk, at: from, most_data, head, held }))
    }

    /// A run of jobs is over: the next ones go on counting from there.
    #[inline]
    pub(in crate::dialect) fn jobs_taken(&mut self, jobs: &Jobs<'_>) {
        self.counts.start = jobs.counts.start;
    }

    /// A run of results is over: what of the jobs it has left is the session's again.
    #[inline]
    pub(in crate::dialect) fn results_taken(&mut self, results: Results<'_>) {
        let mut held = results.held;
        // What it was given meanwhile is newer.
        held.append(&mut self.held);
        (self.held, self.answered) = (held, Some(results.head));
    }
}

#[inline]
fn grabs(chunk: &Bytes, from: usize, start: u64, form: u8) -> Option<Step<'static>> {
    let packet = u128::from(start) << 32;
    let is_one = |bytes: &[u8; HEADER_BYTES]| {
        let [m0, m1, m2, m3, k0, k1, k2, k3, s0, s1, s2, s3] = *bytes;
        u128::from_be_bytes([0, 0, 0, 0, m0, m1, m2, m3, k0, k1, k2, k3, s0, s1, s2, s3]) == packet
    };
    let (packets, _) = chunk.get(from..)?.as_chunks::<HEADER_BYTES>();
    let count = packets.iter().take_while(|bytes| is_one(bytes)).count();
    (count > 0).then_some(Step::Grabs(Grabs { at: from, form, count }))
}
