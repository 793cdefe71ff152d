//! Frames that follow each other and are alike: tasks of one action, results.

use bytes::Bytes;
use reparto_protocol::{UsualResults, UsualTasks};

use crate::scheduler::{AssignmentId, Event, Finish, Payload, Peer, Submission};

/// Tasks of one action with the usual options, as they follow each other in a chunk: the client's number for each, and
/// its payload.
#[derive(Debug)]
pub struct Tasks<'a> {
    frames: UsualTasks<'a>,
    chunk: &'a Bytes,
}

impl<'a> Tasks<'a> {
    #[inline]
    pub(super) fn begin(chunk: &'a Bytes, from: usize, max_frame_bytes: u32) -> Option<Self> {
        Some(Tasks { frames: UsualTasks::begin(chunk, from, max_frame_bytes)?, chunk })
    }

    /// What all of them are to do.
    #[inline]
    pub fn action(&self) -> &'a str {
        self.frames.action()
    }

    /// Where the next frame begins, of which it is not said that it is one of these.
    #[inline]
    pub fn at(&self) -> usize {
        self.frames.at()
    }

    /// The next one alone, as an event.
    pub fn next_event(&mut self, peer: Peer) -> Option<Event<'a>> {
        let (id, payload) = self.next()?;
        Some(Event::Submit { peer, task: Submission::new(id, self.action(), payload) })
    }
}

impl<'a> Iterator for Tasks<'a> {
    type Item = (u64, Payload<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (id, payload) = self.frames.next()?;
        Some((id, Payload::within(self.chunk, payload)))
    }
}

/// Results that say nothing beside them, as they follow each other in a chunk.
#[derive(Debug)]
pub struct Results<'a> {
    frames: UsualResults<'a>,
    chunk: &'a Bytes,
}

impl<'a> Results<'a> {
    #[inline]
    pub(super) fn begin(chunk: &'a Bytes, from: usize, max_frame_bytes: u32) -> Option<Self> {
        Some(Results { frames: UsualResults::begin(chunk, from, max_frame_bytes)?, chunk })
    }

    /// Where the next frame begins, of which it is not said that it is one of these.
    #[inline]
    pub fn at(&self) -> usize {
        self.frames.at()
    }

    /// The next one alone, as an event.
    pub fn next_event(&mut self, peer: Peer) -> Option<Event<'a>> {
        let (assignment, payload) = self.next()?;
        Some(Event::Finished { peer, assignment, finish: Finish::Done, service_ns: None, payload })
    }
}

impl<'a> Iterator for Results<'a> {
    type Item = (AssignmentId, Payload<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (id, payload) = self.frames.next()?;
        Some((AssignmentId(id), Payload::within(self.chunk, payload)))
    }
}
