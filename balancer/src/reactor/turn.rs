//! The event loop: what a turn consists of, in which order, and how it all ends.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mio::{Events, Poll, Token};
use reparto_protocol::ErrorCode;

use super::connection::Due;
use super::deadlines::{Deadlines, NEVER};
use super::listener::{Acceptor, listener_index, plan};
use super::read_buffer::ReadBuffer;
use super::slab::Connections;
use super::{BalancerError, Handle, Settings};
use crate::dialect::{Context, Refusal};
use crate::scheduler::{Effect, Event, Peer, Scheduler, Time};

/// The waker's token, then the listeners'; connections come after them.
pub(super) const WAKER: Token = Token(0);
pub(super) const LISTENERS: [Token; 2] = [Token(1), Token(2)];
const FIRST_CONNECTION: usize = 3;

/// Most bytes read in a turn before outputs are flushed and new events are looked at.
const TURN_BYTES: usize = 4 << 20;

/// Most events taken from the operating system at once.
const EVENTS: usize = 1024;

/// How much longer than its grace the scheduler may take to stop. It never should; a balancer that was told to
/// stop must not hang.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// The token of a connection.
pub(super) fn token_of(peer: Peer) -> Token {
    Token(FIRST_CONNECTION + peer.index as usize)
}

/// Everything that the loop works with.
#[derive(Debug)]
pub(super) struct Reactor {
    pub(super) poll: Poll,
    pub(super) settings: Settings,
    pub(super) context: Context,
    pub(super) scheduler: Scheduler,
    /// The moment of this turn.
    pub(super) now: Time,
    /// Clients' first, then workers'; none once the balancer stops.
    pub(super) acceptors: Vec<Acceptor>,
    /// Accepting failed; when to try again.
    pub(super) accept_again: Option<Time>,
    /// When the log was last told of that.
    pub(super) accept_warned: Option<Time>,
    pub(super) connections: Connections,
    pub(super) deadlines: Deadlines,
    pub(super) read_buffer: ReadBuffer,
    /// What the scheduler wants done; empty between events.
    pub(super) effects: Vec<Effect<'static>>,
    /// Those that may have something to be read, in the order of their turns.
    pub(super) ready: VecDeque<Peer>,
    /// Those to be flushed at the end of the turn.
    pub(super) touched: Vec<Peer>,
    /// Those whose flush goes on in the next turn; empty between flushes.
    pub(super) unfinished: Vec<Peer>,
    /// Those to be dropped once no effect is being carried out.
    pub(super) doomed: Vec<Peer>,
    /// Empty buffers for the next outputs.
    pub(super) spare: Vec<BytesMut>,
    /// Memory of unfinished frames, over all connections.
    pub(super) incomplete_bytes: usize,
    /// Unwritten output, over all connections.
    pub(super) output_bytes: usize,
    /// The scheduler has answered everything after it was told to stop.
    pub(super) stopped: bool,
    origin: Instant,
    handle: Handle,
    stop: Stop,
}

/// How far the balancer is in stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It serves.
    No,
    /// The scheduler was told; it has until then.
    Told(Time),
    /// The scheduler has stopped; connections have until then to take their last bytes.
    Leaving(Time),
}

impl Reactor {
    pub(super) fn new(poll: Poll, acceptors: [Acceptor; 2], handle: Handle, settings: Settings) -> Reactor {
        let [clients, workers] = &acceptors;
        let context = Context {
            clients: clients.address(),
            workers: workers.address(),
            max_frame_bytes: settings.max_frame_bytes,
            heartbeat: settings.scheduler.heartbeat,
            silence: settings.scheduler.silence,
            policy: settings.scheduler.policy,
        };
        Reactor {
            poll,
            context,
            scheduler: Scheduler::new(settings.scheduler.clone()),
            settings,
            now: Time(0),
            acceptors: acceptors.into(),
            accept_again: None,
            accept_warned: None,
            connections: Connections::default(),
            deadlines: Deadlines::default(),
            read_buffer: ReadBuffer::new(),
            effects: Vec::new(),
            ready: VecDeque::new(),
            touched: Vec::new(),
            unfinished: Vec::new(),
            doomed: Vec::new(),
            spare: Vec::new(),
            incomplete_bytes: 0,
            output_bytes: 0,
            stopped: false,
            origin: Instant::now(),
            handle,
            stop: Stop::No,
        }
    }

    /// Turns until it was stopped and all is done.
    pub(super) fn run(mut self) -> Result<(), BalancerError> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
                Err(error) => return Err(BalancerError::Poll(error)),
                Ok(()) => {}
            }
            self.now = Time(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX));
            for event in &events {
                self.note(event);
            }
            self.turn();
            if self.left() {
                return Ok(());
            }
        }
    }

    /// What a turn consists of, once events are noted.
    fn turn(&mut self) {
        if self.handle.asked() && self.stop == Stop::No {
            self.begin_stopping();
        }
        self.accept();
        let (mut bytes, mut turns) = (0, self.ready.len());
        while bytes < TURN_BYTES && turns > 0 {
            let Some(peer) = self.ready.pop_front() else { break };
            turns -= 1;
            bytes += self.serve(peer);
            self.settle();
        }
        self.expire();
        if self.scheduler.next_timer().is_some_and(|at| at <= self.now) {
            self.tick();
        }
        self.settle();
        self.flush();
        self.go_on_stopping();
    }

    /// How long to wait for events: not at all while there is something left to do.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() || !self.touched.is_empty() || self.may_accept() {
            return Some(Duration::ZERO);
        }
        let stop = match self.stop {
            Stop::No => None,
            Stop::Told(at) | Stop::Leaving(at) => Some(at),
        };
        let next = [self.scheduler.next_timer(), self.deadlines.next(), self.accept_again, stop];
        // Turns are not free, so time has passed since `now`; a wait that begins at `now` ends a little late,
        // by less than the turn took, which no deadline minds.
        next.into_iter().flatten().min().map(|at| at.since(self.now))
    }

    /// Notes what a socket can do now.
    fn note(&mut self, event: &mio::event::Event) {
        if let Some(index) = listener_index(event.token()) {
            if let Some(acceptor) = self.acceptors.get_mut(index) {
                acceptor.ready = true;
            }
            return;
        }
        let Some(index) = event.token().0.checked_sub(FIRST_CONNECTION) else { return };
        let Some((peer, connection)) = self.connections.at(index) else { return };
        if event.is_writable() && connection.write_blocked {
            connection.write_blocked = false;
            super::effects::touch(peer, connection, &mut self.touched, &mut self.spare);
        }
        let ending = event.is_read_closed() || event.is_error();
        if event.is_readable() || ending {
            connection.readable = true;
            connection.ending |= ending;
            self.queue_again(peer);
        }
    }

    /// Looks at the connections whose time may have come.
    fn expire(&mut self) {
        while let Some((at, peer)) = self.deadlines.take_due(self.now) {
            let Some(connection) = self.connections.get_mut(peer).filter(|c| c.planned == at) else {
                continue;
            };
            connection.planned = NEVER;
            match connection.due(&self.settings) {
                Some((at, due)) if at <= self.now => self.overdue(peer, due),
                _ => plan(&mut self.deadlines, peer, connection, &self.settings),
            }
        }
    }

    fn overdue(&mut self, peer: Peer, due: Due) {
        let time = self.settings.frame_timeout;
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
                    self.settings.write_timeout
                );
                self.lost(peer, "it does not read what it is sent");
            }
            Due::Linger => self.lost(peer, "its time to read the last bytes is up"),
        }
    }

    /// Accepts nobody any more, and tells everybody.
    fn begin_stopping(&mut self) {
        log::info!("stopping, with {} connections", self.connections.len());
        self.acceptors.clear();
        self.stop = Stop::Told(self.now.after(self.settings.grace).after(STOP_SLACK));
        let strangers: Vec<Peer> = self
            .connections
            .iter_mut()
            .filter(|(_, connection)| !connection.session.joined())
            .map(|(peer, _)| peer)
            .collect();
        self.carry_out(strangers.into_iter().map(|peer| Effect::GoAway { peer }).collect());
        self.handle(Event::Shutdown { grace: self.settings.grace });
    }

    /// Once the scheduler has stopped, lets every connection take its last bytes and end.
    fn go_on_stopping(&mut self) {
        let Stop::Told(at) = self.stop else { return };
        if !self.stopped && at > self.now {
            return;
        }
        if !self.stopped {
            log::error!("the scheduler has not stopped in time; its tasks are left without an answer");
        }
        self.stop = Stop::Leaving(self.now.after(self.settings.linger));
        let peers: Vec<Peer> = self.connections.iter_mut().map(|(peer, _)| peer).collect();
        for peer in peers {
            if self.connections.get_mut(peer).is_some_and(|connection| connection.open()) {
                self.begin_closing(peer);
            }
        }
        self.flush();
    }

    /// Whether all is done: it was stopped, and every connection has ended or has had its time.
    fn left(&self) -> bool {
        match self.stop {
            Stop::Leaving(at) => self.connections.len() == 0 || at <= self.now,
            Stop::No | Stop::Told(_) => false,
        }
    }
}
