//! Upstreams: servers that the balancer connects to by itself, again and again until each is there.
//!
//! They live on the first reactor, where the scheduler is. Names are looked up on a thread of their own, a short one each
//! time, since a look-up may take long; connecting does not block.
//!
//! ```text
//!        .--------------------------- lost or refused <-----------------------.
//!        v                                                                    |
//!     Waiting --time--> LookingUp --addresses--> Connecting --writable--> Connected
//! ```

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use mio::Waker;
use mio::net::TcpStream;

use super::connection::Connection;
use super::deadlines::NEVER;
use super::decider::Decider;
use super::turn::Reactor;
use crate::dialect::lines::Upstream;
use crate::dialect::{Listener, Session};
use crate::scheduler::{Peer, Time};

/// Most upstreams of a balancer.
pub(super) const MOST_UPSTREAMS: usize = 1024;

/// Time before the first attempt to connect again, which doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A connection that has lasted this long counts as one that works: attempts begin anew when it is lost.
const LASTED: Duration = Duration::from_secs(5);

/// Time that a look-up, or a connection attempt, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a look-up has found.
#[derive(Debug)]
struct Found {
    index: usize,
    /// Which look-up of this upstream it was.
    attempt: u32,
    addresses: io::Result<Vec<SocketAddr>>,
}

/// The upstreams, and how far each is.
#[derive(Debug)]
pub(super) struct Upstreams {
    links: Vec<Link>,
    /// When the next of them is to be looked at.
    next: Time,
    waker: Option<Arc<Waker>>,
    found: Receiver<Found>,
    finds: Sender<Found>,
    random: RandomState,
}

#[derive(Debug)]
struct Link {
    upstream: Arc<Upstream>,
    state: State,
    /// Attempts since it was last connected for long.
    attempt: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Until the next attempt.
    Waiting(Time),
    /// Its name is being looked up, until then at most.
    LookingUp(Time),
    /// Until then at most.
    Connecting(Peer, Time),
    /// Since then.
    Connected(Time),
}

impl Upstreams {
    /// For a reactor that is woken with this; without upstreams it needs none.
    pub(super) fn new(upstreams: &[Upstream], waker: Option<Arc<Waker>>) -> Upstreams {
        // Room for each one's look-up that takes long, and a few that were given up.
        let (finds, found) = bounded(4 * upstreams.len().max(1));
        let link = |upstream: &Upstream| Link {
            upstream: Arc::new(upstream.clone()),
            state: State::Waiting(Time(0)),
            attempt: 0,
        };
        let links: Vec<Link> = upstreams.iter().map(link).collect();
        let next = if links.is_empty() { NEVER } else { Time(0) };
        Upstreams { links, next, waker, found, finds, random: RandomState::new() }
    }

    /// When the next of them is to be looked at.
    pub(super) fn next(&self) -> Option<Time> {
        (self.next != NEVER).then_some(self.next)
    }

    /// No more attempts are made.
    pub(super) fn stop(&mut self) {
        self.links.clear();
        self.next = NEVER;
    }

    /// Whether there is something to do now.
    fn is_due(&self, now: Time) -> bool {
        !self.links.is_empty() && (self.next <= now || !self.found.is_empty())
    }

    fn settle_next(&mut self) {
        let at = |link: &Link| match link.state {
            State::Waiting(at) | State::LookingUp(at) | State::Connecting(_, at) => at,
            State::Connected(_) => NEVER,
        };
        self.next = self.links.iter().map(at).min().unwrap_or(NEVER);
    }

    /// Begins to look a name up; one that is an address is found at once.
    fn look_up(&mut self, index: usize, now: Time) -> Option<SocketAddr> {
        let link = self.links.get_mut(index)?;
        link.attempt += 1;
        let (host, port, attempt) = (link.upstream.host.clone(), link.upstream.port, link.attempt);
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some((address, port).into());
        }
        link.state = State::LookingUp(now.after(PATIENCE));
        let (finds, waker) = (self.finds.clone(), self.waker.clone());
        let looks = move || {
            let addresses = (&*host, port).to_socket_addrs().map(Iterator::collect);
            // One that comes too late may find no room, and need not.
            let _ = finds.try_send(Found { index, attempt, addresses });
            if let Some(waker) = waker {
                // It fails when the balancer is gone, and then nobody waits for it.
                let _ = waker.wake();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("lookup".into()).spawn(looks) {
            self.failed(index, now, &format!("its name cannot be looked up: {error}"));
        }
        None
    }

    /// An attempt has failed, or a connection is lost: another follows.
    fn failed(&mut self, index: usize, now: Time, why: &str) {
        let random = self.random.hash_one((index, now));
        let Some(link) = self.links.get_mut(index) else { return };
        if let State::Connected(since) = link.state
            && now.since(since) >= LASTED
        {
            link.attempt = 0;
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << link.attempt.saturating_sub(1).min(16));
        let pause = doubled.min(LONGEST_PAUSE);
        // From half of it on, so that those that were lost together do not come back together.
        let half = pause / 2;
        let jitter = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        let pause = half + Duration::from_micros(random % jitter);
        let level = if link.attempt <= 1 { log::Level::Warn } else { log::Level::Info };
        log::log!(
            level,
            "upstream {}: {why}; trying again in {} ms",
            link.upstream.name(),
            pause.as_millis()
        );
        link.state = State::Waiting(now.after(pause));
        self.settle_next();
    }

    /// A connection to an upstream has ended, however far it was.
    pub(super) fn lost(&mut self, index: usize, now: Time, why: &str) {
        let why = match self.links.get(index).map(|link| link.state) {
            Some(State::Connected(_)) => format!("lost: {why}"),
            _ => format!("cannot be reached: {why}"),
        };
        self.failed(index, now, &why);
    }
}

impl<D: Decider> Reactor<D> {
    /// Makes the attempts that are due, and goes on with those whose addresses were found.
    pub(super) fn connect_upstreams(&mut self) {
        let now = self.net.now;
        if !self.net.upstreams.is_due(now) {
            return;
        }
        while let Ok(Found { index, attempt, addresses }) = self.net.upstreams.found.try_recv() {
            let link = self.net.upstreams.links.get(index);
            let waits = |link: &Link| link.attempt == attempt && matches!(link.state, State::LookingUp(_));
            if !link.is_some_and(waits) {
                continue;
            }
            match addresses {
                // Each attempt takes the next of them.
                Ok(addresses) if !addresses.is_empty() => {
                    self.connect(index, addresses[attempt as usize % addresses.len()]);
                }
                Ok(_) => self.net.upstreams.failed(index, now, "its name has no address"),
                Err(error) => self.net.upstreams.failed(index, now, &format!("its name: {error}")),
            }
        }
        for index in 0..self.net.upstreams.links.len() {
            match self.net.upstreams.links[index].state {
                State::Waiting(at) if at <= now => {
                    if let Some(address) = self.net.upstreams.look_up(index, now) {
                        self.connect(index, address);
                    }
                }
                State::LookingUp(at) if at <= now => {
                    self.net.upstreams.failed(index, now, "its name is not found in time");
                }
                State::Connecting(peer, at) if at <= now => self.lost(peer, "no answer in time"),
                _ => {}
            }
        }
        self.net.upstreams.settle_next();
    }

    fn connect(&mut self, index: usize, address: SocketAddr) {
        let now = self.net.now;
        let Some(link) = self.net.upstreams.links.get(index) else { return };
        let session = Session::upstream(Arc::clone(&link.upstream), &self.net.context);
        let connected = TcpStream::connect(address).and_then(|stream| {
            let mut connection = Connection::with(stream, Listener::Upstreams, session, now);
            connection.upstream = u32::try_from(index).ok();
            connection.connecting = true;
            self.net.add(connection)
        });
        match connected {
            Ok(peer) => {
                self.net.upstreams.links[index].state = State::Connecting(peer, now.after(PATIENCE));
            }
            Err(error) => self.net.upstreams.failed(index, now, &format!("cannot be reached: {error}")),
        }
    }

    /// A connection that was begun can be written to, or has failed.
    pub(super) fn finish_connecting(&mut self, peer: Peer) {
        let now = self.net.now;
        let Some(connection) = self.net.connections.get_mut(peer) else { return };
        if let Ok(Some(error)) | Err(error) = connection.stream.take_error() {
            return self.lost(peer, &error.to_string());
        }
        if let Err(error) = connection.stream.peer_addr() {
            if error.kind() != io::ErrorKind::NotConnected {
                self.lost(peer, &error.to_string());
            }
            // Another event follows.
            return;
        }
        connection.connecting = false;
        let (opening, index) = (connection.session.opening(), connection.upstream);
        let link = index.and_then(|index| self.net.upstreams.links.get_mut(index as usize));
        if let Some(link) = link {
            log::info!("upstream {} is connected", link.upstream.name());
            link.state = State::Connected(now);
        }
        self.net.upstreams.settle_next();
        if let Some(event) = opening {
            self.handle(event.event(self.decider.outside(peer)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams() -> Upstreams {
        let upstream = "lines://127.0.0.1:9".parse().expect("an upstream");
        Upstreams::new(&[upstream], None)
    }

    /// How long it waits after this many attempts.
    fn pause(upstreams: &mut Upstreams, now: Time) -> Duration {
        upstreams.look_up(0, now).expect("an address is found at once");
        upstreams.lost(0, now, "no");
        let Some(at) = upstreams.next() else { panic!("another attempt follows") };
        at.since(now)
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_are_never_all_alike() {
        let mut upstreams = upstreams();
        assert!(upstreams.is_due(Time(0)));
        let pauses: Vec<Duration> =
            (0..12).map(|second| pause(&mut upstreams, Time(second * 1_000_000))).collect();
        for (attempt, pause) in pauses.iter().enumerate() {
            let most = (FIRST_PAUSE * (1 << attempt)).min(LONGEST_PAUSE);
            assert!((most / 2..=most).contains(pause), "{attempt}: {pause:?}");
        }
        assert_ne!(pauses[10], pauses[11]);
    }

    #[test]
    fn a_connection_that_has_lasted_is_tried_again_soon_and_one_that_has_not_is_not() {
        let mut upstreams = upstreams();
        for _ in 0..10 {
            pause(&mut upstreams, Time(0));
        }
        upstreams.links[0].state = State::Connected(Time(0));
        upstreams.lost(0, Time(1_000), "at once");
        assert!(upstreams.next().is_some_and(|at| at.since(Time(1_000)) >= LONGEST_PAUSE / 2));
        upstreams.links[0].state = State::Connected(Time(0));
        let late = Time(0).after(LASTED);
        upstreams.lost(0, late, "after a while");
        assert!(upstreams.next().is_some_and(|at| at.since(late) <= FIRST_PAUSE));
    }

    #[test]
    fn none_are_never_due() {
        let upstreams = Upstreams::new(&[], None);
        assert!(!upstreams.is_due(Time(u64::MAX - 1)) && upstreams.next().is_none());
    }
}
