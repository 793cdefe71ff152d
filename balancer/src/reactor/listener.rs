//! Accepting: the listeners, and what happens at the bounds on connections and open files.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use reparto_protocol::ErrorCode;
use socket2::{SockRef, TcpKeepalive};

use super::connection::Connection;
use super::deadlines::Deadlines;
use super::decider::Decider;
use super::net::Net;
use super::turn::{FIRST_LISTENER, Reactor, token_of};
use super::{BalancerError, Settings};
use crate::dialect::{Context, Listener, Output, Refusal, Session};
use crate::scheduler::Peer;

/// Most connections accepted from a listener in a turn.
const ACCEPTS_A_TURN: usize = 256;

/// How long to wait when no more files can be opened.
const PAUSE: Duration = Duration::from_millis(200);

/// How long the log is silent about that after it was told.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// A client whose host has vanished is found out after this much silence and a few probes: within a minute.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);

/// A listener, and whether somebody may be waiting there.
#[derive(Debug)]
pub(super) struct Acceptor {
    socket: TcpListener,
    address: SocketAddr,
    listener: Listener,
    pub(super) ready: bool,
}

impl Acceptor {
    /// Listens at an address, as the `index`-th of all listeners.
    pub(super) fn bind(
        registry: &Registry,
        index: usize,
        listener: Listener,
        address: SocketAddr,
    ) -> Result<Acceptor, BalancerError> {
        let listen = || {
            let mut socket = TcpListener::bind(address)?;
            registry.register(&mut socket, Token(FIRST_LISTENER + index), Interest::READABLE)?;
            let address = socket.local_addr()?;
            Ok(Acceptor { socket, address, listener, ready: true })
        };
        listen().map_err(|source| BalancerError::Listen { who: listener.name(), address, source })
    }

    /// For whom it listens.
    pub(super) fn listener(&self) -> Listener {
        self.listener
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Net {
    /// Whether somebody may be accepted now.
    pub(super) fn may_accept(&self) -> bool {
        self.accept_again.is_none() && self.acceptors.iter().any(|acceptor| acceptor.ready)
    }
}

impl<D: Decider> Reactor<D> {
    /// Accepts those who wait, a bounded number a turn.
    pub(super) fn accept(&mut self) {
        if self.net.accept_again.is_some_and(|again| again <= self.net.now) {
            self.net.accept_again = None;
        }
        for index in 0..self.net.acceptors.len() {
            for _ in 0..ACCEPTS_A_TURN {
                if self.net.accept_again.is_some() {
                    return;
                }
                let acceptor = self.net.acceptors.get_mut(index).filter(|acceptor| acceptor.ready);
                let Some(acceptor) = acceptor else { break };
                match acceptor.socket.accept() {
                    Ok((stream, from)) => {
                        let listener = acceptor.listener;
                        self.welcome(stream, from, listener);
                    }
                    Err(error) => self.net.accept_failed(index, &error),
                }
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream, from: SocketAddr, listener: Listener) {
        let (open, most) = (self.net.open_connections(), self.net.settings.max_connections);
        if open >= most {
            log::debug!("{from} is turned away: {open} connections are open");
            return turn_away(stream, listener, &self.net.context, most);
        }
        self.decider.place(&mut self.net, stream, listener);
    }
}

impl Net {
    fn accept_failed(&mut self, index: usize, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.acceptors[index].ready = false,
            // The one who waited has gone.
            io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted => {}
            _ => {
                if self.accept_warned.is_none_or(|at| self.now.since(at) > WARN_AGAIN) {
                    self.accept_warned = Some(self.now);
                    log::warn!(
                        "cannot accept connections for now, with {} open: {error}. Is the limit on open files \
                         too low?",
                        self.open_connections()
                    );
                }
                self.accept_again = Some(self.now.after(PAUSE));
            }
        }
    }

    /// Takes a connection on.
    pub(super) fn take_on(&mut self, stream: TcpStream, listener: Listener) {
        if let Some((number, totals)) = &self.shared {
            totals.begin(*number, listener);
        }
        self.take_on_counted(stream, listener);
    }

    /// Takes a connection on that is counted already.
    pub(super) fn take_on_counted(&mut self, stream: TcpStream, listener: Listener) {
        let connection = Connection::new(stream, listener, &self.context, self.now);
        if let Err(error) = self.add_counted(connection) {
            log::debug!("a connection could not be set up: {error}");
        }
    }

    /// Adds a connection.
    pub(super) fn add(&mut self, connection: Connection) -> io::Result<Peer> {
        if let Some((number, totals)) = &self.shared {
            totals.begin(*number, connection.listener);
        }
        self.add_counted(connection)
    }

    fn add_counted(&mut self, mut connection: Connection) -> io::Result<Peer> {
        let peer = self.connections.next_peer();
        let listener = connection.listener;
        let set_up = |stream: &mut TcpStream| -> io::Result<()> {
            stream.set_nodelay(true)?;
            // Native workers have heartbeats.
            if listener != Listener::Workers {
                keep_alive(stream)?;
            }
            // Edge-triggered, both ways from the start: nothing is registered again for the whole of its life.
            let token = token_of(peer);
            self.poll.registry().register(stream, token, Interest::READABLE | Interest::WRITABLE)
        };
        if let Err(error) = set_up(&mut connection.stream) {
            if let Some((number, totals)) = &self.shared {
                totals.end(*number, listener);
            }
            return Err(error);
        }
        plan(&mut self.deadlines, peer, &mut connection, &self.settings);
        Ok(self.connections.insert(connection))
    }
}

/// Plans when to look at a connection again.
pub(super) fn plan(deadlines: &mut Deadlines, peer: Peer, connection: &mut Connection, settings: &Settings) {
    if let Some((at, _)) = connection.due(settings) {
        deadlines.plan(peer, &mut connection.planned, at);
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
    // Elsewhere the system's own interval and number of probes stand.
    #[cfg(any(
        target_os = "linux",
        target_os = "android",
        target_os = "macos",
        target_os = "ios",
        target_os = "freebsd",
        target_os = "netbsd",
        target_os = "windows",
    ))]
    let keepalive = keepalive.with_interval(Duration::from_secs(8)).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Says why to one too many, as far as the socket takes it at once, and lets go.
fn turn_away(mut stream: TcpStream, listener: Listener, context: &Context, most: usize) {
    let refusal =
        Refusal::new(ErrorCode::Overloaded, format!("{most} connections are open, which is the limit here"));
    let mut output = Output::default();
    Session::new(listener, context, None).refuse(&refusal, &mut output);
    // What it has sent is read, or its system would throw our answer away with the connection. It may be gone
    // already; there is nothing left to do for it then.
    let mut hello = [0; 1024];
    let _ = stream.read(&mut hello);
    let _ = stream.write(output.buffer());
    let _ = stream.shutdown(Shutdown::Write);
}
