//! A connection's two threads: one writes what is gathered, one reads what comes and watches over silence.

use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use reparto_protocol::{Frame, FrameError, Message, Ping, frame_length};

use crate::answer::Answer;
use crate::background::{Accepted, TaskStanding};
use crate::completer::deliver;
use crate::error::TaskFailure;
use crate::handle::ProgressReport;
use crate::shared::Shared;
use crate::state::{Arrived, News};
use crate::sync::{locked, wait_on};
use crate::task_id::TaskId;

/// Bytes read at once at most.
const READ_BYTES: usize = 128 * 1024;

/// A result of at least this size keeps the memory that it was read into; a smaller one is copied, so that it
/// does not keep its neighbours' memory alive.
const SHARED_RESULT_BYTES: usize = 16 * 1024;

/// What the balancer's greeting put in force.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The largest frame that the balancer sends: what it passes on may be longer than what it takes.
    pub(crate) max_frame_bytes: u32,
    pub(crate) heartbeat: Duration,
    pub(crate) silence: Duration,
}

/// When the peer last took bytes, so that a long upload over a slow line is not mistaken for silence.
#[derive(Debug, Clone)]
pub(crate) struct WrittenClock {
    pub(crate) since: Instant,
    /// After `since`, in milliseconds.
    pub(crate) at_ms: Arc<AtomicU64>,
}

impl WrittenClock {
    fn tick(&self) {
        let ms = self.since.elapsed().as_millis();
        self.at_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.at_ms.load(Ordering::Relaxed))
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Starts the two threads of a connection that was entered in the books.
pub(crate) fn start(
    shared: &Arc<Shared>,
    number: u32,
    stream: &Arc<TcpStream>,
    wake: Arc<Condvar>,
    written: WrittenClock,
    limits: Limits,
) -> io::Result<()> {
    let tick = (limits.heartbeat.min(limits.silence) / 2).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(tick))?;
    let writer = Writer {
        shared: Arc::clone(shared),
        number,
        stream: Arc::clone(stream),
        wake,
        written: written.clone(),
    };
    std::thread::Builder::new().name("reparto-client-write".into()).spawn(move || writer.run())?;
    let reader = Reader {
        shared: Arc::clone(shared),
        number,
        stream: Arc::clone(stream),
        limits,
        written,
        heard: Instant::now(),
        pinged: None,
    };
    std::thread::Builder::new().name("reparto-client-read".into()).spawn(move || reader.run())?;
    Ok(())
}

struct Writer {
    shared: Arc<Shared>,
    number: u32,
    stream: Arc<TcpStream>,
    wake: Arc<Condvar>,
    written: WrittenClock,
}

impl Writer {
    /// Writes what has gathered, all of it at once, until the connection is gone. While it writes, more gathers.
    fn run(self) {
        let mut spare = BytesMut::new();
        let mut state = locked(&self.shared.state);
        loop {
            let Some(link) = state.link(self.number) else { return };
            if link.writing || link.output.is_empty() {
                link.writer_idle = true;
                state = wait_on(&self.wake, state);
                continue;
            }
            link.writer_idle = false;
            let batch = link.take_output(spare);
            drop(state);
            let result = batch.write_to(&*self.stream, || self.written.tick());
            let bytes = batch.bytes;
            spare = batch.into_spare();
            if let Err(error) = result {
                locked(&self.shared.state).written(self.number, bytes, BytesMut::new());
                return self.shared.write_failed(self.number, &error);
            }
            state = locked(&self.shared.state);
            state.written(self.number, bytes, BytesMut::new());
            self.shared.room_was_made(&state);
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    number: u32,
    stream: Arc<TcpStream>,
    limits: Limits,
    written: WrittenClock,
    /// When bytes last came.
    heard: Instant,
    /// When the PING was sent that is not answered yet.
    pinged: Option<Instant>,
}

impl Reader {
    fn run(mut self) {
        if let Err(reason) = self.read_all() {
            self.shared.lose(self.number, &reason);
        }
    }

    /// Reads until the connection ends. `Ok` when it ended as it should, or is given up already.
    fn read_all(&mut self) -> Result<(), String> {
        let mut buffer = vec![0u8; READ_BYTES];
        let mut filled = 0;
        let mut batch = Vec::new();
        loop {
            let read = self.read_some(&mut buffer[filled..])?;
            filled += read;
            let taken = self.take_frames(&buffer[..filled], &mut batch);
            // What stands before a broken frame was sent in good order, and counts.
            let goes_on = self.hand_over(&mut batch)?;
            let taken = taken?;
            if !goes_on {
                return Ok(());
            }
            buffer.copy_within(taken..filled, 0);
            filled -= taken;
            let total = frame_length(&buffer[..filled], self.limits.max_frame_bytes).map_err(broken)?;
            if let Some(total) = total.filter(|total| *total > READ_BYTES) {
                self.read_large(&buffer[..filled], total, &mut batch)?;
                filled = 0;
                if !self.hand_over(&mut batch)? {
                    return Ok(());
                }
            }
        }
    }

    /// Reads at least one byte, and watches over silence while none comes.
    fn read_some(&mut self, into: &mut [u8]) -> Result<usize, String> {
        loop {
            match (&*self.stream).read(into) {
                Ok(0) => return Err(self.end_reason("the balancer closed the connection".into())),
                Ok(read) => {
                    self.heard = Instant::now();
                    self.pinged = None;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => self.watch()?,
                Err(error) => {
                    let reason = format!("reading from the balancer failed: {}", error.kind());
                    return Err(self.end_reason(reason));
                }
            }
        }
    }

    /// Why the stream ended: because writing failed, or else as reading says.
    fn end_reason(&self, reading: String) -> String {
        let mut state = locked(&self.shared.state);
        state.link(self.number).and_then(|link| link.write_failure.take()).unwrap_or(reading)
    }

    /// Nothing came for a while: asks whether the balancer is there, or gives it up.
    fn watch(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let mut state = locked(&self.shared.state);
        let Some(link) = state.link(self.number) else { return Err("the connection was given up".into()) };
        if link.outstanding.count() == 0 {
            self.pinged = None;
            return Ok(());
        }
        match self.pinged {
            Some(pinged) => {
                let alive = pinged.max(self.written.last());
                if now.saturating_duration_since(alive) >= self.limits.silence {
                    return Err(format!(
                        "the balancer was silent for {} ms and did not answer a PING",
                        now.saturating_duration_since(self.heard).as_millis()
                    ));
                }
            }
            None if now.saturating_duration_since(self.heard) >= self.limits.heartbeat => {
                self.pinged = Some(now);
                state.push_control(self.number, &Message::Ping(Ping { id: 1 }));
            }
            None => {}
        }
        Ok(())
    }

    /// Understands every whole frame at the beginning of `bytes`, and gives how many bytes that were.
    fn take_frames(&self, bytes: &[u8], batch: &mut Vec<Arrived>) -> Result<usize, String> {
        let mut taken = 0;
        while let Some((frame, total)) =
            Frame::parse(&bytes[taken..], self.limits.max_frame_bytes).map_err(broken)?
        {
            understand(&frame, Bytes::copy_from_slice, batch)?;
            taken += total;
        }
        Ok(taken)
    }

    /// Reads a frame that does not fit in the buffer. Its memory grows with what comes, not with what was
    /// announced.
    fn read_large(&mut self, begin: &[u8], total: usize, batch: &mut Vec<Arrived>) -> Result<(), String> {
        let mut bytes = BytesMut::from(begin);
        while bytes.len() < total {
            let filled = bytes.len();
            bytes.resize(filled + (total - filled).min(READ_BYTES), 0);
            let read = self.read_some(&mut bytes[filled..])?;
            bytes.truncate(filled + read);
        }
        let bytes = bytes.freeze();
        let parsed = Frame::parse(&bytes, self.limits.max_frame_bytes).map_err(broken)?;
        let Some((frame, _)) = parsed else { return Err("a frame ended before its length".into()) };
        let share = |payload: &[u8]| {
            if payload.len() < SHARED_RESULT_BYTES {
                return Bytes::copy_from_slice(payload);
            }
            let mut shared = bytes.clone();
            shared.advance(total - payload.len());
            shared
        };
        understand(&frame, share, batch)
    }

    /// Gives what came to the books, and the outcomes to those who wait. `false` when the connection is done.
    fn hand_over(&self, batch: &mut Vec<Arrived>) -> Result<bool, String> {
        if batch.is_empty() {
            return Ok(true);
        }
        let mut news = News::default();
        let mut state = locked(&self.shared.state);
        let arrived = state.arrive(self.number, batch, &mut news);
        let has_left = state.has_left(self.number);
        if has_left {
            state.lose(self.number, "the balancer went away", &mut news.finished);
        }
        let goes_on = state.link(self.number).is_some();
        self.shared.look_for_balancer(&mut state, &mut news.finished);
        self.shared.room_was_made(&state);
        drop(state);
        for (mailbox, note) in news.notes {
            mailbox.tell(note);
        }
        deliver(news.finished);
        arrived.map(|()| goes_on)
    }
}

fn broken(error: FrameError) -> String {
    format!("the balancer sent what is not a frame: {error}")
}

/// Turns a frame into what it means for the books.
fn understand(
    frame: &Frame<'_>,
    own: impl Fn(&[u8]) -> Bytes,
    batch: &mut Vec<Arrived>,
) -> Result<(), String> {
    let answer = |id: u64, answer: Answer| Arrived::Answer { id, reply: Ok(answer) };
    batch.push(match Message::decode(frame).map_err(broken)? {
        Message::Result(done) => answer(done.id, Answer::Result(own(done.payload))),
        Message::StatusReport(report) => answer(report.id, Answer::Report(own(report.payload))),
        Message::TaskList(list) => answer(list.id, Answer::List(own(list.payload))),
        Message::Accepted(accepted) => {
            let task_id = TaskId::from_bytes(accepted.task_id);
            let duplicate = accepted.duplicate;
            answer(accepted.id, Answer::Accepted(Accepted { task_id, duplicate }))
        }
        Message::TaskState(state) => {
            let standing = TaskStanding {
                task_id: TaskId::from_bytes(state.task_id),
                state: state.state,
                attempts: state.attempts,
                created_at_ms: state.created_at_ms,
                due_at_ms: state.due_at_ms,
                ended_at_ms: state.ended_at_ms,
            };
            answer(state.id, Answer::State(Box::new((standing, own(state.payload)))))
        }
        Message::Error(error) if error.id == 0 => {
            return Err(format!("the balancer ended the connection: {}: {}", error.code, error.message));
        }
        Message::Error(error) => {
            let message = error.message.to_owned();
            let failure = TaskFailure { code: error.code, message, payload: own(error.payload) };
            Arrived::Answer { id: error.id, reply: Err(failure) }
        }
        Message::Progress(progress) => {
            let report =
                ProgressReport { done: progress.done, total: progress.total, payload: own(progress.payload) };
            Arrived::Progress { id: progress.id, report }
        }
        Message::Ping(ping) => Arrived::Ping { id: ping.id },
        Message::Pong(_) => return Ok(()),
        Message::GoAway(away) => Arrived::GoAway { message: away.message.into() },
        _ => {
            let when = "from a balancer to a client now";
            return Err(broken(FrameError::Unexpected { frame: frame.kind, when }));
        }
    });
    Ok(())
}
