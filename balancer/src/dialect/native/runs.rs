//! Frames that follow each other and are alike: tasks of one action, results.

use bytes::Bytes;
use reparto_protocol::{UsualResults, UsualTasks};

use crate::scheduler::{AssignmentId, Event, Payload, Peer, Submission};

/// Tasks in one run, at most. A client that is closed for not reading while its run is taken in hands in no more than
/// these; what follows is seen to be a closed connection's.
const MOST_TASKS: u32 = 1024;

/// Tasks of one action with the usual options, as they follow each other in a chunk: the client's number for each, and
/// its payload.
#[derive(Debug)]
pub struct Tasks<'a> {
    frames: UsualTasks<'a>,
    chunk: &'a Bytes,
    /// How many more there may be.
    left: u32,
}

impl<'a> Tasks<'a> {
    #[inline]
    pub(super) fn begin(chunk: &'a Bytes, from: usize, max_frame_bytes: u32) -> Option<Self> {
        Some(Tasks { frames: UsualTasks::begin(chunk, from, max_frame_bytes)?, chunk, left: MOST_TASKS })
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
        self.left = self.left.checked_sub(1)?;
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
        Some(Event::done(peer, self.next()?))
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

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use reparto_protocol::{Message, Task, TaskOptions};

    use super::*;

    #[test]
    fn a_run_of_tasks_ends_at_its_bound_and_the_next_one_goes_on_there() {
        let mut chunk = BytesMut::new();
        for id in 1..=2500 {
            let task = Task { id, action: "a", options: TaskOptions::default(), payload: b"x" };
            Message::Task(task).encode(&mut chunk);
        }
        let chunk = chunk.freeze();
        let (mut from, mut counts, mut ids) = (0, Vec::new(), Vec::new());
        while let Some(mut tasks) = Tasks::begin(&chunk, from, 1 << 20) {
            let before = ids.len();
            ids.extend(tasks.by_ref().map(|(id, _)| id));
            counts.push(ids.len() - before);
            from = tasks.at();
        }
        assert_eq!((counts, from), (vec![1024, 1024, 452], chunk.len()));
        assert_eq!(ids, (1..=2500).collect::<Vec<u64>>());
    }
}
