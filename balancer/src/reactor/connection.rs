//! One connection: its socket, its session, what came of an unfinished frame, and what waits to be written.
//!
//! An idle connection holds no buffer at all. Times are kept, not timers: [`Connection::due`] says what the
//! connection must be closed for, and when.

use std::io::{self, IoSlice, Write};

use bytes::{Bytes, BytesMut};
use mio::net::TcpStream;

use super::deadlines::NEVER;
use super::read_buffer::SHORT_MEANS_BLOCKED;
use super::settings::Settings;
use crate::dialect::{Context, Listener, Output, Refusal, Session};
use crate::scheduler::Time;

/// Most pieces given to one vectored write.
const WRITE_PIECES: usize = 64;

/// Most bytes written to a connection in a turn; the rest goes in the next.
const WRITE_BYTES: usize = 256 << 10;

/// A client that is sent this much in a write, in bytes, has the write's cost spread over enough: half of it is never
/// held back.
const LARGE_WRITE: usize = 64 << 10;

/// Least memory that an unfinished frame is given once it needs any beyond its header.
const LEAST_INPUT: usize = 512;

/// How far the connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Frames are taken.
    Open,
    /// What came is thrown away; what waits is still written, then the sending side is closed.
    Closing,
    /// The sending side is closed; the peer's is waited for, so that it gets to read the last bytes.
    Lingering,
}

/// What a connection must be closed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// It has not said what it must say before it takes part.
    Join,
    /// A frame has begun and is not whole.
    Frame,
    /// It takes nothing of what waits for it.
    Write,
    /// It was closing, and its time is up.
    Linger,
}

/// How a flush ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing waits any more.
    Drained,
    /// The socket takes no more; an event will say when it does.
    Blocked,
    /// Enough for a turn.
    Unfinished,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) session: Session,
    /// Where it came from.
    pub(super) listener: Listener,
    pub(super) phase: Phase,
    /// Bytes may be there to be read.
    pub(super) readable: bool,
    /// The peer has closed its side, so reading must go on until the end is seen.
    pub(super) ending: bool,
    /// The balancer's own connection, which is not there yet.
    pub(super) connecting: bool,
    /// Which upstream it goes to, if it is the balancer's own.
    pub(super) upstream: Option<u32>,
    /// The peer says nothing more, and is to have what it waits for all the same. What still comes is thrown away.
    pub(super) input_over: bool,
    /// In the list of those to be read from.
    pub(super) queued: bool,
    /// In the list of those to be flushed.
    pub(super) touched: bool,
    /// It is on the list of those whose output may wait.
    pub(super) patient: bool,
    /// Its output was held back in the hope of more, and is so once.
    pub(super) held_back: bool,
    /// What it is usually sent in a write, in bytes: the most of late, which fades by half with each write.
    usual_write: usize,
    /// The socket takes nothing now.
    pub(super) write_blocked: bool,
    /// Not read from, because it does not read either.
    pub(super) paused: bool,
    /// It has asked for something that comes from another reactor, and is not served until it has come.
    pub(super) waiting: bool,
    /// Its session takes nothing more until something is answered.
    pub(super) full: bool,
    /// `input` begins with frames that are whole, left for a later turn.
    pub(super) parked: bool,
    /// To be closed as soon as no effect is being carried out. Nothing is written to it any more.
    pub(super) doomed: bool,
    /// When it came or, when it is closing, when that began.
    pub(super) since: Time,
    /// When the unfinished frame began.
    pub(super) frame_began: Option<Time>,
    /// Since when the socket has taken nothing of what waits.
    pub(super) blocked_since: Option<Time>,
    /// When it is to be looked at, as the deadlines' heap has it.
    pub(super) planned: Time,
    /// What came of a frame that is not whole.
    pub(super) input: Vec<u8>,
    /// The length of the last frame that was put together there, in bytes; 0 for a small one.
    pub(super) last_large: u32,
    /// What of `input`'s memory is counted into the sum over all connections.
    pub(super) input_counted: usize,
    pub(super) output: Output,
}

impl Connection {
    /// One that has just come to a listener.
    pub(super) fn new(stream: TcpStream, listener: Listener, context: &Context, now: Time) -> Self {
        let from = stream.peer_addr().ok().map(|address| address.ip());
        let session = Session::new(listener, context, from);
        Self::with(stream, listener, session, now)
    }

    /// One with a session that it brings.
    pub(super) fn with(stream: TcpStream, listener: Listener, session: Session, now: Time) -> Self {
        Connection {
            stream,
            session,
            listener,
            phase: Phase::Open,
            readable: false,
            ending: false,
            connecting: false,
            upstream: None,
            input_over: false,
            queued: false,
            touched: false,
            patient: false,
            held_back: false,
            usual_write: 0,
            write_blocked: false,
            paused: false,
            waiting: false,
            full: false,
            parked: false,
            doomed: false,
            since: now,
            frame_began: None,
            blocked_since: None,
            planned: NEVER,
            input: Vec::new(),
            last_large: 0,
            input_counted: 0,
            output: Output::default(),
        }
    }

    /// Whether frames are taken from it, and written to it.
    #[inline]
    pub(super) fn open(&self) -> bool {
        self.phase == Phase::Open && !self.doomed
    }

    /// Whether it is not read from for now.
    #[inline]
    pub(super) fn is_held_up(&self) -> bool {
        self.paused || self.waiting || self.full
    }

    /// Says whether it is to be put into a list of those that are ready: there may be more to do for it, and it stood in none.
    #[inline]
    pub(super) fn begins_to_queue(&mut self) -> bool {
        let begins = (self.readable || self.parked) && !self.is_held_up() && !self.queued;
        self.queued |= begins;
        begins
    }

    /// Whether what waits to be written is to be held back for a moment: for a client, less than half of what it is
    /// usually sent in a write, so that the rest is likely to be on its way. It is asked once for each write, and what was
    /// held back is not held back again.
    ///
    /// Workers that become free one after the other tear a client's bursts into pieces, of which each costs a write
    /// here and makes the client answer with a piece in turn; held back, they grow together again.
    pub(super) fn holds_back(&mut self) -> bool {
        let bytes = self.output.len();
        let is_piece = bytes > 0 && bytes < self.usual_write / 2 && !self.session.kind().is_worker();
        self.held_back = is_piece && !self.held_back && !self.write_blocked && !self.ending && self.open();
        if !self.held_back {
            self.usual_write = bytes.min(LARGE_WRITE).max(self.usual_write / 2);
        }
        self.held_back
    }

    /// Whether something waits for it that the peer could have made go: bytes that it does not read, or answers behind
    /// one that takes long.
    pub(super) fn is_behind(&self) -> bool {
        self.write_blocked || self.output.weight() > self.output.len()
    }

    /// Whether the peer says nothing more, and all that it has asked for is answered.
    pub(super) fn is_settled(&self) -> bool {
        self.input_over
            && self.phase == Phase::Open
            && self.input.is_empty()
            && !self.waiting
            && self.session.is_settled()
    }

    /// Moves bytes from `chunk` behind what is there of an unfinished frame, up to that frame's end. Gives the
    /// frame once it is whole, and what was there behind it already.
    ///
    /// Memory grows with the bytes that came, doubling, and never beyond what the frame needs.
    ///
    /// # Errors
    /// As [`Session::frame_bytes`]: a bad header does not wait for its frame.
    pub(super) fn complete(
        &mut self,
        context: &Context,
        chunk: &Bytes,
        from: &mut usize,
    ) -> Result<Option<(Bytes, Bytes)>, Refusal> {
        loop {
            let rest = &chunk[*from..];
            let length = self.session.frame_bytes(context, &self.input, rest)?;
            if self.input.len() >= length {
                self.note_length(length);
                return Ok(Some(split_frame(std::mem::take(&mut self.input), length)));
            }
            if rest.is_empty() {
                return Ok(None);
            }
            let missing = length - self.input.len();
            let take = missing.min(rest.len());
            grow(&mut self.input, take, length);
            self.input.extend_from_slice(&rest[..take]);
            *from += take;
        }
    }

    /// Keeps bytes that begin with no whole frame.
    ///
    /// # Errors
    /// As [`Session::frame_bytes`].
    pub(super) fn keep(&mut self, context: &Context, rest: &[u8]) -> Result<(), Refusal> {
        let length = self.session.frame_bytes(context, rest, &[])?;
        grow(&mut self.input, rest.len(), length);
        self.input.extend_from_slice(rest);
        Ok(())
    }

    /// Keeps bytes that may hold whole frames, for a later turn.
    pub(super) fn park(&mut self, rest: &[u8]) {
        self.input.extend_from_slice(rest);
        self.parked = true;
    }

    /// Writes what waits, as much as the socket takes and a turn allows.
    ///
    /// # Errors
    /// The socket's, which may have taken a part before.
    pub(super) fn flush(&mut self, now: Time) -> io::Result<Flushed> {
        let mut total = 0;
        let flushed = loop {
            if self.output.is_empty() {
                break Flushed::Drained;
            }
            if total >= WRITE_BYTES {
                break Flushed::Unfinished;
            }
            let mut slices = [IoSlice::new(&[]); WRITE_PIECES];
            let (count, offered) = self.output.slices(&mut slices);
            let sent = match &slices[..count] {
                // A plain send costs the system less.
                [one] => self.stream.write(one),
                several => self.stream.write_vectored(several),
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.output.advance(written);
                    total += written;
                    if written < offered && SHORT_MEANS_BLOCKED {
                        break Flushed::Blocked;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Flushed::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.write_blocked = flushed == Flushed::Blocked;
        if self.output.is_empty() {
            self.blocked_since = None;
        } else if total > 0 || self.blocked_since.is_none() {
            self.blocked_since = Some(now);
        }
        Ok(flushed)
    }

    /// Lends an output that is to be appended to a buffer.
    pub(super) fn lend(&mut self, spare: &mut Vec<BytesMut>) {
        if self.output.needs_buffer()
            && let Some(buffer) = spare.pop()
        {
            self.output.lend_buffer(buffer);
        }
    }

    /// What the connection must next be closed for, and when.
    pub(super) fn due(&self, settings: &Settings) -> Option<(Time, Due)> {
        if self.phase != Phase::Open {
            return Some((self.since.after(settings.linger), Due::Linger));
        }
        let join = (!self.session.joined()).then(|| (self.since.after(settings.frame_timeout), Due::Join));
        // While it is not read from, the rest of its frame cannot come.
        let began = self.frame_began.filter(|_| !self.paused && !self.parked);
        let frame = began.map(|began| (began.after(settings.frame_timeout), Due::Frame));
        let write = self.blocked_since.map(|since| (since.after(settings.write_timeout), Due::Write));
        [join, frame, write].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

/// Takes a frame of this length, and what is behind it, apart. The frame's memory is nobody else's, and little larger than
/// the frame: its payload may be kept in it.
fn split_frame(input: Vec<u8>, length: usize) -> (Bytes, Bytes) {
    let behind = Bytes::copy_from_slice(&input[length..]);
    if input.capacity() > length + length / 8 + LEAST_INPUT {
        return (Bytes::copy_from_slice(&input[..length]), behind);
    }
    let mut frame = Bytes::from(input);
    frame.truncate(length);
    (frame, behind)
}

/// Makes room for `more` bytes of a frame of `length`: twice of what is there, but not more than the frame.
fn grow(input: &mut Vec<u8>, more: usize, length: usize) {
    let needed = input.len() + more;
    if needed > input.capacity() {
        let capacity = needed.max(2 * input.len()).max(LEAST_INPUT).min(length.max(needed));
        input.reserve_exact(capacity - input.len());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use reparto_protocol::{Hello, Message, Role, Task, TaskOptions, limits};

    use super::*;
    use crate::dialect::Step;
    use crate::scheduler::{Peer, Policy};

    const PEER: Peer = Peer { index: 0, generation: 0 };

    pub(in super::super) fn context() -> Context {
        let address = ([127, 0, 0, 1], 1).into();
        Context {
            clients: address,
            workers: address,
            max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
            heartbeat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            policy: Policy::default(),
            has_store: false,
            lines_action: "default".into(),
            gearman: Default::default(),
        }
    }

    /// A connection that has said HELLO, and the listener that keeps its other end waiting.
    pub(in super::super) fn client() -> (Connection, std::net::TcpListener) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
        let mut connection = Connection::new(stream, Listener::Clients, &context(), Time(0));
        let mut hello = BytesMut::new();
        let message = Hello { version: 1, role: Role::Client, features: 0, agent: "", token: &[] };
        Message::Hello(message).encode(&mut hello);
        let hello = hello.freeze();
        let mut length = 0;
        let step = connection.session.decode(&context(), PEER, &hello, &mut length).expect("a HELLO");
        assert!(matches!(step, Step::Answer(..)) && length == hello.len());
        (connection, listener)
    }

    /// Whether so many bytes more are held back; what is not is taken for written.
    fn is_held(connection: &mut Connection, bytes: usize) -> bool {
        connection.output.buffer().extend_from_slice(&vec![b'x'; bytes]);
        let is_held = connection.holds_back();
        if !is_held {
            connection.output.advance(usize::MAX);
        }
        is_held
    }

    #[test]
    fn a_piece_of_what_a_client_is_usually_sent_is_held_back_once() {
        let (mut connection, _listener) = client();
        assert!(!is_held(&mut connection, 1000), "nothing is usual yet");
        assert!(!is_held(&mut connection, 500), "half of it may well be all");
        assert!(!is_held(&mut connection, 1000));
        assert!(is_held(&mut connection, 499));
        assert!(!is_held(&mut connection, 0), "it is not held back again");
        assert!(!is_held(&mut connection, 1000));
        assert!(is_held(&mut connection, 100));
        assert!(!is_held(&mut connection, 900), "the rest has come");
        assert!(!is_held(&mut connection, 0), "there is nothing");
        let held = (0..20).filter(|_| is_held(&mut connection, 10)).count();
        assert_eq!(held, 5, "it forgets bursts soon when they end");
        assert_eq!((0..20).filter(|_| is_held(&mut connection, 10)).count(), 0);
    }

    #[test]
    fn what_is_worth_a_write_or_has_no_time_is_not_held_back() {
        let (mut connection, _listener) = client();
        assert!(!is_held(&mut connection, 1 << 20));
        assert!(!is_held(&mut connection, LARGE_WRITE / 2));
        assert!(!is_held(&mut connection, 1 << 20));
        connection.ending = true;
        assert!(!is_held(&mut connection, 1), "its peer says nothing more");
        connection.ending = false;
        assert!(!is_held(&mut connection, 1 << 20));
        connection.phase = Phase::Closing;
        assert!(!is_held(&mut connection, 1), "nothing more follows");
    }

    fn task(payload: &[u8]) -> Bytes {
        let mut wire = BytesMut::new();
        Message::Task(Task { id: 1, action: "echo", options: TaskOptions::default(), payload })
            .encode(&mut wire);
        wire.freeze()
    }

    #[test]
    fn a_frame_is_put_together_from_any_pieces_and_no_byte_of_the_next_is_taken() {
        let frame = task(&[9; 3000]);
        for piece in [1, 2, 15, 16, 17, 1000, 3500] {
            let (mut connection, _listener) = client();
            let mut wire = frame.to_vec();
            wire.extend_from_slice(b"next");
            let mut whole = None;
            let mut taken = 0;
            for chunk in wire.chunks(piece) {
                let chunk = Bytes::copy_from_slice(chunk);
                let mut from = 0;
                whole = connection.complete(&context(), &chunk, &mut from).expect("a good header");
                taken += from;
                if whole.is_some() {
                    break;
                }
            }
            assert_eq!(whole, Some((frame.clone(), Bytes::new())), "pieces of {piece} bytes");
            assert_eq!(taken, frame.len());
            assert_eq!(connection.input.capacity(), 0, "nothing is kept");
        }
    }

    #[test]
    fn memory_grows_with_what_came_not_with_what_was_announced() {
        let (mut connection, _listener) = client();
        let frame = task(&vec![1; 10 << 20]);
        connection.keep(&context(), &frame[..20]).expect("a good header");
        assert!(connection.input.capacity() <= LEAST_INPUT);
        let mut from = 0;
        let chunk = frame.slice(20..100_000);
        assert!(connection.complete(&context(), &chunk, &mut from).expect("a good header").is_none());
        assert!(connection.input.capacity() <= 200_000, "{}", connection.input.capacity());
        let mut from = 0;
        let whole =
            connection.complete(&context(), &frame.slice(100_000..), &mut from).expect("a good header");
        assert_eq!(whole, Some((frame, Bytes::new())));
    }

    #[test]
    fn a_bad_header_does_not_wait_for_its_frame() {
        let (mut connection, _listener) = client();
        let mut frame = task(&[1; 5000]).to_vec();
        frame[4] = 0x22;
        let refusal = connection.keep(&context(), &frame[..16]).expect_err("a client assigns nothing");
        assert_eq!(refusal.message, "ASSIGN_TASK may not come from a client");
        frame[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        let refusal = connection.keep(&context(), &frame[..4]).expect_err("too large");
        assert_eq!(refusal.code.name(), "payload_too_large");
    }

    #[test]
    fn what_is_due_first_is_named_and_a_paused_connection_owes_no_frame() {
        let settings = Settings { linger: Duration::from_secs(1), ..Settings::default() };
        let (mut connection, _listener) = client();
        assert_eq!(connection.due(&settings), None);
        connection.frame_began = Some(Time(5_000_000));
        assert_eq!(connection.due(&settings), Some((Time(35_000_000), Due::Frame)));
        connection.paused = true;
        assert_eq!(connection.due(&settings), None);
        connection.blocked_since = Some(Time(1_000_000));
        assert_eq!(connection.due(&settings), Some((Time(61_000_000), Due::Write)));
        connection.phase = Phase::Closing;
        connection.since = Time(7_000_000);
        assert_eq!(connection.due(&settings), Some((Time(8_000_000), Due::Linger)));
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 256, "{} bytes", size_of::<Connection>());
    }
}
