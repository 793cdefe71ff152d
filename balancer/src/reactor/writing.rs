//! Writing: flushing outputs, and the ways in which a connection ends.

use std::net::Shutdown;

use mio::net::TcpStream;

use super::connection::{Flushed, Phase};
use super::decider::Decider;
use super::listener::plan;
use super::turn::Reactor;
use crate::dialect::Refusal;
use crate::scheduler::{Event, Peer};

/// Most buffers kept for the next outputs.
const SPARE_BUFFERS: usize = 32;

/// A buffer that has grown beyond this is freed instead.
const SPARE_BYTES: usize = 512 * 1024;

impl<D: Decider> Reactor<D> {
    /// Flushes every touched connection. What a turn leaves over stays on the list.
    pub(super) fn flush(&mut self) {
        let mut unfinished = std::mem::take(&mut self.net.unfinished);
        // A write that fails ends its connection, which may give others something to write.
        while !self.net.touched.is_empty() {
            let mut touched = std::mem::take(&mut self.net.touched);
            for peer in touched.drain(..) {
                self.flush_one(peer, &mut unfinished);
            }
            if self.net.touched.is_empty() {
                self.net.touched = touched;
            }
            self.settle();
        }
        std::mem::swap(&mut self.net.touched, &mut unfinished);
        self.net.unfinished = unfinished;
    }

    fn flush_one(&mut self, peer: Peer, unfinished: &mut Vec<Peer>) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        connection.touched = false;
        if connection.holds_back() {
            self.net.held_back.add(peer);
            return;
        }
        let flushed = if connection.write_blocked { Ok(Flushed::Blocked) } else { self.net.write(peer) };
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        match flushed {
            Ok(Flushed::Unfinished) => {
                connection.touched = true;
                unfinished.push(peer);
            }
            Ok(Flushed::Drained | Flushed::Blocked) => {}
            Err(error) => return self.lost(peer, &error.to_string()),
        }
        let waiting = connection.output.weight();
        if connection.output.is_empty() {
            if let Some(buffer) = connection.output.take_buffer()
                && buffer.capacity() <= SPARE_BYTES
                && self.net.spare.len() < SPARE_BUFFERS
            {
                self.net.spare.push(buffer);
            }
            if connection.phase == Phase::Closing {
                return self.end_sending(peer);
            }
            if connection.is_settled() {
                return self.end_settled(peer);
            }
        } else {
            plan(&mut self.net.deadlines, peer, connection, &self.net.settings);
        }
        if connection.full && !connection.session.is_full() {
            connection.full = false;
            self.net.queue_again(peer);
        }
        self.pause_or_resume(peer, waiting);
    }

    /// Ends a connection whose peer wants nothing more, and has been answered.
    fn end_settled(&mut self, peer: Peer) {
        self.net.begin_closing(peer);
        self.handle(Event::Gone { peer: self.decider.outside(peer) });
    }

    /// Stops reading from a client that does not read, and begins again once it has read half of what is allowed.
    fn pause_or_resume(&mut self, peer: Peer, waiting: usize) {
        let soft = self.net.settings.output_soft_bytes;
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        if connection.session.kind().is_worker() || connection.phase != Phase::Open {
            return;
        }
        if !connection.paused && waiting >= soft {
            connection.paused = true;
        } else if connection.paused && waiting < soft.div_ceil(2) {
            connection.paused = false;
            if connection.frame_began.is_some() {
                connection.frame_began = Some(self.net.now);
                plan(&mut self.net.deadlines, peer, connection, &self.net.settings);
            }
            self.net.queue_again(peer);
        }
    }

    /// Ends a connection that did something wrong: the peer is told why, what waits for it is written as far as it
    /// takes it, and it has a moment to read that. Not to be called while effects are carried out.
    pub(super) fn close(&mut self, peer: Peer, refusal: &Refusal) {
        let Some(connection) = self.net.connections.get_mut(peer).filter(|connection| connection.open())
        else {
            return;
        };
        let level = if connection.upstream.is_some() { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "{} is closed: {}: {}", name(&connection.stream), refusal.code, refusal.message);
        self.net.append(peer, |connection| connection.session.refuse(refusal, &mut connection.output));
        self.net.begin_closing(peer);
        self.handle(Event::Gone { peer: self.decider.outside(peer) });
    }

    /// Everything is written. A socket that were closed now could take the last bytes back from a peer that is
    /// still sending, so the peer's end is waited for.
    fn end_sending(&mut self, peer: Peer) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        connection.phase = Phase::Lingering;
        if connection.stream.shutdown(Shutdown::Write).is_err() {
            return self.lost(peer, "it is gone");
        }
        self.net.queue_again(peer);
    }

    /// Lets go of a connection, whatever it was doing. Not to be called while effects are carried out.
    pub(super) fn lost(&mut self, peer: Peer, why: &str) {
        let Some(mut connection) = self.net.connections.remove(peer) else { return };
        log::debug!("{} has ended: {why}", name(&connection.stream));
        self.net.output_bytes -= connection.output.weight();
        self.net.incomplete_bytes -= connection.input_counted;
        if let Err(error) = self.net.poll.registry().deregister(&mut connection.stream) {
            log::debug!("a socket could not be deregistered: {error}");
        }
        drop(connection.stream);
        if let Some((number, totals)) = &self.net.shared {
            totals.end(*number, connection.listener);
        }
        if connection.phase == Phase::Open {
            self.handle(Event::Gone { peer: self.decider.outside(peer) });
        }
        if let Some(index) = connection.upstream {
            self.net.upstreams.lost(index as usize, self.net.now, why);
        }
    }
}

/// A connection's name in the log.
fn name(stream: &TcpStream) -> String {
    stream.peer_addr().map_or_else(|_| "a connection".into(), |address| address.to_string())
}
