//! Reading: from a connection's bytes to the scheduler's events.

use std::io;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

use super::connection::Phase;
use super::decider::Decider;
use super::listener::plan;
use super::read_buffer::READ_BYTES;
use super::turn::Reactor;
use crate::dialect::{Answer, Refusal, Step};
use crate::scheduler::{Event, Peer};

/// Most status reports that one connection gets a turn, since a report costs far more than its question.
const REPORTS_A_TURN: u32 = 2;

/// Why decoding stopped before the bytes were over.
enum Stop {
    /// No whole frame is left from here on.
    Incomplete(usize),
    /// Enough for a turn; go on from here in another.
    Later(usize),
    /// The connection takes nothing any more.
    Closed,
}

impl<D: Decider> Reactor<D> {
    /// Gives a connection its part of the turn: one read, or several of large frames, and all that came with it. Says how
    /// many bytes came, and whether they began with a large frame's.
    pub(super) fn serve(&mut self, peer: Peer) -> (usize, bool) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return (0, false) };
        connection.queued = false;
        if connection.is_held_up() {
            return (0, false);
        }
        if connection.parked {
            connection.parked = false;
            // In memory that is no larger than it: a payload may be kept in it.
            let parked = Bytes::from(std::mem::take(&mut connection.input).into_boxed_slice());
            let bytes = parked.len();
            self.take_in(peer, &parked);
            self.net.queue_again(peer);
            if self.net.connections.get_mut(peer).is_some_and(|connection| connection.input_over) {
                self.net.look_at(peer);
            }
            return (bytes, false);
        }
        if !connection.readable {
            return (0, false);
        }
        let (mut bytes, is_large) = self.read_once(peer);
        // Large frames are read one by one, so there may be several to a turn.
        while bytes < READ_BYTES && self.expects_large(peer) {
            bytes += self.read_once(peer).0;
        }
        self.net.queue_again(peer);
        (bytes, is_large)
    }

    /// Whether what comes next on a connection belongs to a large frame, and may be read now.
    pub(super) fn expects_large(&mut self, peer: Peer) -> bool {
        let room = self.net.room_for_large_frames();
        let connection = self.net.connections.get_mut(peer);
        connection.is_some_and(|connection| {
            let serves = connection.open() && connection.readable && !connection.is_held_up();
            serves && !connection.input_over && connection.expects_large(&self.net.context, room).is_some()
        })
    }

    /// Reads once, and takes in what came. Says how many bytes that were, and whether they were a large frame's.
    fn read_once(&mut self, peer: Peer) -> (usize, bool) {
        let room = self.net.room_for_large_frames();
        let Some(connection) = self.net.connections.get_mut(peer) else { return (0, false) };
        let takes = connection.open() && !connection.input_over;
        let large = connection.expects_large(&self.net.context, room).filter(|_| takes);
        let mut chunk = Bytes::new();
        let read = match large {
            Some(length) => connection.read_large(length, room),
            None => self.net.read_buffer.read(&mut connection.stream).map(|(bytes, more)| {
                chunk = bytes;
                (chunk.len(), more)
            }),
        };
        let is_large = large.is_some();
        let count = match read {
            Ok((0, _)) => {
                if is_large {
                    self.expected_in_vain(peer);
                }
                self.input_over(peer);
                0
            }
            Ok((count, more)) => {
                connection.readable = more || connection.ending;
                if connection.phase == Phase::Open && !connection.input_over {
                    self.heard(peer);
                    self.take_in(peer, &chunk);
                }
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.readable = false;
                if is_large {
                    self.expected_in_vain(peer);
                }
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                self.lost(peer, &error.to_string());
                0
            }
        };
        (count, is_large)
    }

    /// Nothing came of a frame that was expected to be large.
    fn expected_in_vain(&mut self, peer: Peer) {
        if let Some(connection) = self.net.connections.get_mut(peer) {
            connection.expect_nothing();
        }
        self.count_input(peer, false);
    }

    fn heard(&mut self, peer: Peer) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        if connection.session.kind().is_worker() && connection.session.joined() {
            self.handle(Event::Heard { peer: self.decider.outside(peer) });
        }
    }

    /// The peer has closed its sending side. That is the connection's end, unless its dialect lets it have the answers
    /// that it waits for.
    fn input_over(&mut self, peer: Peer) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        // Nothing more can be read, however often the socket says that something has happened.
        connection.readable = false;
        connection.ending = false;
        if connection.open() && connection.input_over {
            return;
        }
        let rest = if connection.open() { connection.session.half_close() } else { None };
        let Some(rest) = rest else {
            // The peer may be reading still, and has an answer that waited for more to go with it.
            if connection.open()
                && let Err(error) = self.net.write(peer)
            {
                log::debug!("a connection that ends did not take its last answers: {error}");
            }
            return self.lost(peer, "closed by the peer");
        };
        connection.input_over = true;
        if !connection.input.is_empty() {
            self.take_in(peer, &Bytes::from_static(rest));
        }
        self.net.look_at(peer);
    }

    /// The peer has said that it wants nothing more: the same, but that what else it has sent does not count.
    fn quit(&mut self, peer: Peer) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        connection.input_over = true;
        connection.session.half_close();
        self.count_input(peer, false);
        self.net.look_at(peer);
    }

    /// Takes in a chunk: first what completes an unfinished frame, then frames where they lie, and keeps the rest.
    fn take_in(&mut self, peer: Peer, chunk: &Bytes) {
        let behind;
        let (mut chunk, mut from) = (chunk, 0);
        let mut whole_frames = false;
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        if !connection.input.is_empty() {
            match connection.complete(&self.net.context, chunk, &mut from) {
                Err(refusal) => return self.close(peer, &refusal),
                Ok(None) => return self.count_input(peer, false),
                Ok(Some((frame, more))) => {
                    whole_frames = true;
                    if !more.is_empty() {
                        // It was read into memory of its own, and nothing came elsewhere.
                        behind = more;
                        (chunk, from) = (&behind, 0);
                    }
                    match self.decode(peer, &frame, 0) {
                        Stop::Closed => return,
                        // It was completed to its own length, so nothing is left of it. A dialect that took
                        // less would have its rest thrown away here.
                        Stop::Incomplete(at) => debug_assert_eq!(at, frame.len(), "a frame is taken whole"),
                        Stop::Later(at) if at == frame.len() => return self.park(peer, &chunk[from..]),
                        // It asks for several things, of which one was done.
                        Stop::Later(at) => {
                            self.park(peer, &frame[at..]);
                            return self.park(peer, &chunk[from..]);
                        }
                    }
                }
            }
        }
        match self.decode(peer, chunk, from) {
            Stop::Closed => {}
            Stop::Later(at) => self.park(peer, &chunk[at..]),
            Stop::Incomplete(at) => {
                let Some(connection) = self.net.connections.get_mut(peer) else { return };
                let rest = &chunk[at..];
                if !rest.is_empty()
                    && let Err(refusal) = connection.keep(&self.net.context, rest)
                {
                    return self.close(peer, &refusal);
                }
                self.count_input(peer, whole_frames || at > from);
            }
        }
    }

    /// Takes frame after frame, and has each one's effects carried out before the next.
    fn decode(&mut self, peer: Peer, chunk: &Bytes, mut from: usize) -> Stop {
        let mut reports = 0;
        let outside = self.decider.outside(peer);
        loop {
            // It may have been closed by what the last frame did.
            let Some(connection) = self.net.connections.get_mut(peer).filter(|connection| connection.open())
            else {
                return Stop::Closed;
            };
            match connection.session.decode(&self.net.context, outside, chunk, &mut from) {
                Ok(Step::Event(event)) => self.handle(event),
                Ok(Step::Tasks(mut tasks)) => {
                    self.decider.submit_all(&mut self.net, outside, &mut tasks);
                    from = tasks.at();
                }
                Ok(Step::Results(mut results)) => {
                    self.decider.finish_all(&mut self.net, outside, &mut results);
                    from = results.at();
                }
                Ok(Step::Jobs(mut jobs)) => {
                    self.decider.announce_all(&mut self.net, outside, &mut jobs);
                    from = jobs.at();
                    if let Some(connection) = self.net.connections.get_mut(peer) {
                        connection.session.jobs_taken(&jobs);
                    }
                }
                Ok(Step::Grabs(mut grabs)) => {
                    self.decider.pull_all(&mut self.net, outside, &mut grabs);
                    from = grabs.at();
                }
                Ok(Step::JobResults(mut results)) => {
                    self.decider.finish_all_pulled(&mut self.net, outside, &mut results);
                    from = results.at();
                    if let Some(connection) = self.net.connections.get_mut(peer) {
                        connection.session.results_taken(results);
                    }
                }
                Ok(Step::Ask(ask)) => self.decider.ask(&mut self.net, outside, ask),
                Ok(Step::Owned(owned)) => self.handle(owned.event(outside)),
                Ok(Step::Full) => {
                    connection.full = true;
                    return Stop::Later(from);
                }
                Ok(Step::End) => {
                    self.quit(peer);
                    return Stop::Closed;
                }
                Ok(Step::Incomplete) => return Stop::Incomplete(from),
                Ok(Step::Nothing) => continue,
                Ok(Step::Answer(answer, event)) => {
                    reports += u32::from(matches!(answer, Answer::Status { .. } | Answer::Question(_)));
                    let full = self.answer(peer, &answer);
                    if let Some(event) = event {
                        self.handle(event);
                    }
                    if full || reports >= REPORTS_A_TURN {
                        return Stop::Later(from);
                    }
                    continue;
                }
                Err(refusal) => {
                    self.close(peer, &refusal);
                    return Stop::Closed;
                }
            }
            if self.decider.is_full() {
                return Stop::Later(from);
            }
        }
    }

    /// Leaves bytes for a later turn, whole frames among them.
    fn park(&mut self, peer: Peer, rest: &[u8]) {
        let Some(connection) = self.net.connections.get_mut(peer).filter(|connection| connection.open())
        else {
            return;
        };
        if !rest.is_empty() {
            connection.park(rest);
        }
        self.count_input(peer, true);
    }

    /// Brings the sum over all unfinished frames up to date, and keeps it within its bound.
    fn count_input(&mut self, peer: Peer, whole_frames: bool) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        let held = connection.input.capacity();
        self.net.incomplete_bytes = self.net.incomplete_bytes - connection.input_counted + held;
        connection.input_counted = held;
        if connection.input.is_empty() {
            connection.frame_began = None;
        } else {
            if whole_frames || connection.frame_began.is_none() {
                connection.frame_began = Some(self.net.now);
            }
            plan(&mut self.net.deadlines, peer, connection, &self.net.settings);
        }
        self.hold_input_to_its_bound();
    }

    /// Closes connections until unfinished frames hold no more than they may.
    pub(super) fn hold_input_to_its_bound(&mut self) {
        if self.net.has_too_much_input() {
            // Others may hold less by now.
            self.net.share_totals();
            while self.net.has_too_much_input() && self.close_largest_input() {}
        }
    }

    /// Closes the connection that holds the most of the memory for unfinished frames, of equals the one whose
    /// frame began first. Looking at all of them is dear, but each look frees at least an average share, and
    /// those who hold little never pay for those who hold much.
    fn close_largest_input(&mut self) -> bool {
        let largest = self
            .net
            .connections
            .iter_mut()
            .filter(|(_, connection)| connection.open())
            .map(|(peer, connection)| {
                (connection.input_counted, std::cmp::Reverse(connection.frame_began), peer)
            })
            .max();
        let Some((bytes, _, peer)) = largest.filter(|(bytes, ..)| *bytes > 0) else { return false };
        log::warn!(
            "unfinished frames hold {} bytes; the connection with the most, {bytes}, is closed",
            self.net.incomplete_bytes
        );
        let message =
            "too many frames are unfinished at once, and this connection's is the largest; try again";
        self.close(peer, &Refusal::new(ErrorCode::Overloaded, message));
        true
    }
}
