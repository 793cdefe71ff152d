//! A connection that sends and takes in batches.
//!
//! While little is in flight, a socket that blocks is the cheapest: one write, one read. Once more is in flight
//! than the sockets on the way may hold, both ends could come to wait in a write; then a link polls, and reads and
//! writes as either becomes possible. It is the same for every protocol.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::{Output, RawError};

/// Bytes of input that a link has room for, unless a frame needs more.
const INPUT_BYTES: usize = 512 * 1024;

/// Silence after which a server is given up when answers are due.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

/// Time that a server has to take a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

enum Socket {
    Blocking(TcpStream),
    Polled { stream: mio::net::TcpStream, poll: Poll, events: Events },
}

/// A connection with its input and output.
pub(super) struct Link {
    socket: Socket,
    input: Vec<u8>,
    start: usize,
    end: usize,
    pub(super) output: Output,
    /// Ends the wait of whoever reads, from another thread.
    closer: TcpStream,
}

/// Connects, without delay for small writes.
pub(super) fn connect(address: SocketAddr) -> Result<TcpStream, RawError> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN)
        .map_err(|source| RawError::Connect { address, source })?;
    stream.set_nodelay(true).map_err(RawError::io("setting TCP_NODELAY"))?;
    stream.set_read_timeout(Some(SILENCE)).map_err(RawError::io("setting a read time-out"))?;
    stream.set_write_timeout(Some(SILENCE)).map_err(RawError::io("setting a write time-out"))?;
    Ok(stream)
}

impl Link {
    /// Connects. Frames have at most `frame_bytes`; `polls` is for a link that is to read while it cannot write.
    pub(super) fn connect(
        address: SocketAddr,
        output: Output,
        frame_bytes: usize,
        polls: bool,
    ) -> Result<Link, RawError> {
        let stream = connect(address)?;
        let closer = stream.try_clone().map_err(RawError::io("duplicating a socket"))?;
        let socket = if polls { Self::polled(stream)? } else { Socket::Blocking(stream) };
        let room = INPUT_BYTES.max(frame_bytes.saturating_mul(2));
        Ok(Link { socket, input: vec![0; room], start: 0, end: 0, output, closer })
    }

    fn polled(stream: TcpStream) -> Result<Socket, RawError> {
        stream.set_nonblocking(true).map_err(RawError::io("making a socket non-blocking"))?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let poll = Poll::new().map_err(RawError::io("making an event queue"))?;
        poll.registry()
            .register(&mut stream, Token(0), Interest::READABLE | Interest::WRITABLE)
            .map_err(RawError::io("watching a socket"))?;
        Ok(Socket::Polled { stream, poll, events: Events::with_capacity(4) })
    }

    /// The socket, to end it from another thread.
    pub(super) fn closer(&self) -> Result<TcpStream, RawError> {
        self.closer.try_clone().map_err(RawError::io("duplicating a socket"))
    }

    /// What has come and is not taken, and where the answers to it go.
    pub(super) fn split(&mut self) -> (&[u8], &mut Output) {
        self.output.set_input_start(self.start);
        (&self.input[self.start..self.end], &mut self.output)
    }

    /// Takes bytes off the beginning of what has come.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        debug_assert!(self.start <= self.end, "a codec takes no more than it was given");
    }

    /// Sends what is to be sent, and waits until something comes.
    pub(super) fn exchange(&mut self) -> Result<(), RawError> {
        match self.socket {
            Socket::Blocking(_) => self.exchange_blocking(),
            Socket::Polled { .. } => self.exchange_polled(),
        }
    }

    fn exchange_blocking(&mut self) -> Result<(), RawError> {
        self.flush()?;
        self.make_room()?;
        let Socket::Blocking(stream) = &mut self.socket else { return Ok(()) };
        loop {
            match stream.read(&mut self.input[self.end..]) {
                Ok(0) => return Err(RawError::Closed),
                Ok(read) => {
                    self.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("reading", error)),
            }
        }
    }

    /// Sends everything, if the socket is one that blocks.
    pub(super) fn flush(&mut self) -> Result<(), RawError> {
        let Socket::Blocking(stream) = &mut self.socket else { return Ok(()) };
        while !self.output.is_empty() {
            match self.output.write_to(stream, &self.input) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(failed("writing", error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn exchange_polled(&mut self) -> Result<(), RawError> {
        loop {
            self.write_some()?;
            self.make_room()?;
            let full = self.end == self.input.len();
            let Socket::Polled { stream, poll, events } = &mut self.socket else { return Ok(()) };
            if !full {
                match stream.read(&mut self.input[self.end..]) {
                    Ok(0) => return Err(RawError::Closed),
                    Ok(read) => {
                        self.end += read;
                        return Ok(());
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(failed("reading", error)),
                }
            }
            match poll.poll(events, Some(SILENCE)) {
                Ok(()) if events.is_empty() => return Err(RawError::Silent(SILENCE)),
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(failed("polling", error)),
                _ => {}
            }
        }
    }

    fn write_some(&mut self) -> Result<(), RawError> {
        let Socket::Polled { stream, .. } = &mut self.socket else { return Ok(()) };
        while !self.output.is_empty() {
            match self.output.write_to(stream, &self.input) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed("writing", error)),
            }
        }
        Ok(())
    }

    /// Moves what has come to the front when little room is left behind it.
    fn make_room(&mut self) -> Result<(), RawError> {
        if self.output.holds_input() {
            return Ok(());
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.input.len() - self.end < self.input.len() / 2 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.end == self.input.len() {
                return Err(RawError::TooLong { limit: self.input.len() });
            }
        }
        Ok(())
    }
}

fn failed(what: &'static str, source: std::io::Error) -> RawError {
    match source.kind() {
        // What a time-out of a blocking socket is called differs between systems.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => RawError::Silent(SILENCE),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => RawError::Closed,
        _ => RawError::Io { what, source },
    }
}
