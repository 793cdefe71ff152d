//! The event loop: what a turn consists of, in which order, and how it all ends.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Token};
use reparto_protocol::ErrorCode;

use super::BalancerError;
use super::connection::Due;
use super::deadlines::NEVER;
use super::decider::Decider;
use super::large::show_allocator_large_frames;
use super::listener::plan;
use super::net::{Net, touch};
use super::read_buffer::READ_BYTES;
use super::settings::MOST_LISTENERS;
use crate::dialect::Refusal;
use crate::scheduler::{Effect, Effects, Peer, Time};

/// The waker's token, then the listeners'; connections come after them.
pub(super) const WAKER: Token = Token(0);
pub(super) const FIRST_LISTENER: usize = 1;
const FIRST_CONNECTION: usize = FIRST_LISTENER + MOST_LISTENERS;

/// Most bytes read in a turn before outputs are flushed and new events are looked at.
const TURN_BYTES: usize = 1 << 20;

/// Bytes of large frames read in a turn, after which the rest of them wait for the next: whoever has small ones does not
/// wait until all that is large has been copied.
const LARGE_TURN_BYTES: usize = READ_BYTES;

/// Most events taken from the operating system at once.
const EVENTS: usize = 1024;

/// How much longer than its grace the scheduler may take to stop. It never should; a balancer that was told to
/// stop must not hang.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// The token of a connection.
pub(super) fn token_of(peer: Peer) -> Token {
    Token(FIRST_CONNECTION + peer.index as usize)
}

/// The loop, and what it works with.
#[derive(Debug)]
pub(super) struct Reactor<D> {
    pub(super) net: Net,
    pub(super) decider: D,
    /// Where the clock begins, for all reactors.
    origin: Instant,
    stop: Stop,
}

/// How far the balancer is in stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It serves.
    No,
    /// Whoever decides was told; it has until then.
    Told(Time),
    /// All is answered; connections have until then to take their last bytes.
    Leaving(Time),
}

impl<D: Decider> Reactor<D> {
    pub(super) fn new(net: Net, decider: D, origin: Instant) -> Self {
        Reactor { net, decider, origin, stop: Stop::No }
    }

    /// Turns until it was stopped and all is done.
    pub(super) fn run(mut self) -> Result<(), BalancerError> {
        let mut events = Events::with_capacity(EVENTS);
        show_allocator_large_frames();
        loop {
            let mut timeout = self.timeout();
            if timeout != Some(Duration::ZERO) && !self.decider.lie_down()? {
                timeout = Some(Duration::ZERO);
            }
            match self.net.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
                Err(error) => return Err(BalancerError::Poll(error)),
                Ok(()) => {}
            }
            self.decider.get_up();
            self.net.now = Time(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX));
            for event in &events {
                self.note(event);
            }
            self.net.take_ready_workers();
            let is_idle = events.is_empty() && self.net.ready.is_empty();
            let all_sent = self.turn(is_idle)?;
            if all_sent && self.left() {
                return self.decider.failure().map_or(Ok(()), Err);
            }
        }
    }

    /// What a turn consists of, once events are noted, of which there may be none. Says whether other reactors were sent
    /// all that is for them.
    fn turn(&mut self, is_idle: bool) -> Result<bool, BalancerError> {
        self.decider.receive(&mut self.net)?;
        self.settle();
        if self.stop == Stop::No && self.must_stop() {
            self.begin_stopping();
        }
        self.accept();
        self.connect_upstreams();
        let (mut bytes, mut large_bytes, mut turns) = (0, 0, self.net.ready.len());
        while bytes < TURN_BYTES && turns > 0 {
            if self.decider.is_full() {
                self.send()?;
                if self.decider.is_full() {
                    break;
                }
            }
            let Some(peer) = self.net.ready.pop_front() else { break };
            turns -= 1;
            if large_bytes >= LARGE_TURN_BYTES && self.expects_large(peer) {
                self.net.put_off.push(peer);
                continue;
            }
            let (came, is_large) = self.serve(peer);
            bytes += came;
            large_bytes += if is_large { came } else { 0 };
            self.settle();
        }
        self.net.take_put_off_first();
        self.expire();
        if self.decider.next_timer(self.net.now).is_some_and(|at| at <= self.net.now) {
            self.tick();
        }
        self.decider.keep(&mut self.net);
        self.settle();
        // The others go on while we write.
        self.send()?;
        self.net.hurry(is_idle);
        self.flush();
        self.go_on_stopping();
        self.hold_input_to_its_bound();
        self.send()
    }

    /// Whether it was asked to stop, or cannot go on.
    fn must_stop(&self) -> bool {
        self.decider.asked_to_stop() || self.decider.failure().is_some()
    }

    /// Sends other reactors what is for them, and before it what this one holds: whoever acts on the one knows the
    /// other. Says whether all of it went.
    fn send(&mut self) -> Result<bool, BalancerError> {
        self.net.share_totals();
        self.decider.send()
    }

    /// How long to wait for events: not at all while there is something left to do.
    fn timeout(&self) -> Option<Duration> {
        let may_serve = !self.net.ready.is_empty() && !self.decider.is_full();
        let may_flush =
            !self.net.touched.is_empty() || !self.net.patient.is_empty() || !self.net.held_back.is_empty();
        if may_serve || may_flush || self.net.may_accept() {
            return Some(Duration::ZERO);
        }
        let stop = match self.stop {
            Stop::No => None,
            Stop::Told(at) | Stop::Leaving(at) => Some(at),
        };
        let next = [
            self.decider.next_timer(self.net.now),
            self.net.deadlines.next(),
            self.net.accept_again,
            self.net.upstreams.next(),
            stop,
        ];
        // Turns are not free, so time has passed since `now`; a wait that begins at `now` ends a little late,
        // by less than the turn took, which no deadline minds.
        next.into_iter().flatten().min().map(|at| at.since(self.net.now))
    }

    /// Notes what a socket can do now.
    fn note(&mut self, event: &mio::event::Event) {
        let Some(index) = event.token().0.checked_sub(FIRST_CONNECTION) else {
            let index = event.token().0.checked_sub(FIRST_LISTENER);
            if let Some(acceptor) = index.and_then(|index| self.net.acceptors.get_mut(index)) {
                acceptor.ready = true;
            }
            return;
        };
        let Some((peer, connection)) = self.net.connections.at(index) else { return };
        if connection.connecting {
            self.finish_connecting(peer);
            return self.note_input(peer, event);
        }
        if event.is_writable() && connection.write_blocked {
            connection.write_blocked = false;
            touch(peer, connection, &mut self.net.touched, &mut self.net.spare);
        }
        self.note_input(peer, event);
    }

    /// Notes that a connection may have something to be read, or has ended.
    fn note_input(&mut self, peer: Peer, event: &mio::event::Event) {
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        let ending = event.is_read_closed() || event.is_error();
        if connection.input_over && connection.open() && (event.is_write_closed() || event.is_error()) {
            // Reading would not tell, since the peer's sending side was closed before.
            return self.lost(peer, "reset by the peer");
        }
        if event.is_readable() || ending {
            connection.readable = true;
            connection.ending |= ending;
            self.net.queue_noted(peer);
        }
    }

    /// Looks at the connections whose time may have come.
    fn expire(&mut self) {
        while let Some((at, peer)) = self.net.deadlines.take_due(self.net.now) {
            let Some(connection) = self.net.connections.get_mut(peer).filter(|c| c.planned == at) else {
                continue;
            };
            connection.planned = NEVER;
            match connection.due(&self.net.settings) {
                Some((at, due)) if at <= self.net.now => self.overdue(peer, due),
                _ => plan(&mut self.net.deadlines, peer, connection, &self.net.settings),
            }
        }
    }

    fn overdue(&mut self, peer: Peer, due: Due) {
        let time = self.net.settings.frame_timeout;
        match due {
            Due::Join => {
                let message = format!("a connection must say HELLO, and a worker REGISTER, within {time:?}");
                self.close(peer, &Refusal::new(ErrorCode::TimedOut, message));
            }
            Due::Frame => {
                let message = format!("a frame that has begun must be whole within {time:?}");
                self.close(peer, &Refusal::new(ErrorCode::TimedOut, message));
            }
            Due::Write => {
                log::warn!(
                    "a connection is closed that has read nothing for {:?}",
                    self.net.settings.write_timeout
                );
                self.lost(peer, "it does not read what it is sent");
            }
            Due::Linger => self.lost(peer, "its time to read the last bytes is up"),
        }
    }

    /// Accepts nobody any more, and tells everybody.
    fn begin_stopping(&mut self) {
        log::info!("stopping, with {} connections", self.net.connections.len());
        self.net.acceptors.clear();
        self.net.upstreams.stop();
        self.stop = Stop::Told(self.net.now.after(self.net.settings.grace).after(STOP_SLACK));
        let strangers: Vec<Peer> = self
            .net
            .connections
            .iter_mut()
            .filter(|(_, connection)| !connection.session.joined())
            .map(|(peer, _)| peer)
            .collect();
        strangers.into_iter().for_each(|peer| self.net.push(Effect::GoAway { peer }));
        self.decider.begin_stopping(&mut self.net);
    }

    /// Once the scheduler has stopped, lets every connection take its last bytes and end.
    fn go_on_stopping(&mut self) {
        let Stop::Told(at) = self.stop else { return };
        let done = self.net.stopped && self.decider.is_quiet();
        if !done && at > self.net.now {
            return;
        }
        if !self.net.stopped {
            log::error!("the scheduler has not stopped in time; its tasks are left without an answer");
        }
        self.decider.stopped();
        self.stop = Stop::Leaving(self.net.now.after(self.net.settings.linger));
        let peers: Vec<Peer> = self.net.connections.iter_mut().map(|(peer, _)| peer).collect();
        for peer in peers {
            if self.net.connections.get_mut(peer).is_some_and(|connection| connection.open()) {
                self.net.begin_closing(peer);
            }
        }
        self.flush();
    }

    /// Whether all is done: it was stopped, and every connection has ended or has had its time.
    fn left(&self) -> bool {
        match self.stop {
            Stop::Leaving(at) => self.net.connections.len() == 0 || at <= self.net.now,
            Stop::No | Stop::Told(_) => false,
        }
    }
}
