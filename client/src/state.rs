//! The books of a client: the tasks in flight, its connections, and what waits for one. It decides and
//! remembers; it reads no socket, writes none, and takes no lock.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use reparto_protocol::{Cancel, ErrorCode, Message, Pong};

use crate::answer::{Answer, Expected, Replied};
use crate::cell::{Mailbox, Note};
use crate::completer::{Completer, Finished};
use crate::connection::WrittenClock;
use crate::error::{ConnectError, TaskFailure};
use crate::handle::ProgressReport;
use crate::output::{Batch, Output};
use crate::request::Request;
use crate::slab::Slab;

/// Instead of a connection's number: the request waits for one.
const NOT_SENT: u32 = 0;

/// A safe task is sent again at most this often, so that one which brings balancers down does not go on for ever.
const MAX_REPEATS: u8 = 5;

/// Connections that a balancer told to go away, and that still have tasks. Past this the oldest is given up.
const MAX_LEAVING_LINKS: usize = 8;

/// What may be unsent beyond the bound on requests: CANCEL, PING and PONG. A balancer that asks for more
/// without reading is given up.
const MAX_CONTROL_BYTES: usize = 4 * 1024 * 1024;

/// A lone request up to this size is written by the thread that hands it in; it fits an empty socket buffer.
const INLINE_WRITE_BYTES: usize = 16 * 1024;

/// A connection that lived shorter than this counts as a failed attempt, so that the next one waits a little.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// A request in flight.
struct Entry {
    completer: Completer,
    /// Which connection it was sent on, or [`NOT_SENT`].
    link: u32,
    /// The request itself, while it may have to be sent yet or again.
    kept: Option<Box<Kept>>,
    cancelled: bool,
    expected: Expected,
}

struct Kept {
    request: Request<'static>,
    repeats_left: u8,
    /// Orders what is sent again.
    sequence: u64,
    bytes: usize,
}

/// A connection as the shared state sees it.
pub(crate) struct Link {
    pub(crate) number: u32,
    pub(crate) stream: Arc<TcpStream>,
    pub(crate) output: Output,
    pub(crate) writer: Arc<Condvar>,
    /// The writer thread sleeps.
    pub(crate) writer_idle: bool,
    /// Somebody writes.
    pub(crate) writing: bool,
    /// Why writing ended; the reader tells it once it has read what had come.
    pub(crate) write_failure: Option<String>,
    /// Requests sent and not answered.
    pub(crate) outstanding: Outstanding,
    /// Bytes of CANCEL, PING and PONG put in since the writer last took the output.
    pub(crate) control_bytes: usize,
    address_index: usize,
    /// The balancer keeps tasks.
    has_store: bool,
    since: Instant,
    written_at_ms: Arc<AtomicU64>,
}

impl Link {
    pub(crate) fn new(number: u32, stream: Arc<TcpStream>, address_index: usize, has_store: bool) -> Link {
        Link {
            number,
            stream,
            output: Output::default(),
            writer: Arc::new(Condvar::new()),
            writer_idle: false,
            writing: false,
            write_failure: None,
            outstanding: Outstanding::default(),
            control_bytes: 0,
            address_index,
            has_store,
            since: Instant::now(),
            written_at_ms: Arc::new(AtomicU64::new(0)),
        }
    }

    pub(crate) fn written_clock(&self) -> WrittenClock {
        WrittenClock { since: self.since, at_ms: Arc::clone(&self.written_at_ms) }
    }

    /// Takes everything that is to be written; whoever takes it writes it.
    pub(crate) fn take_output(&mut self, spare: BytesMut) -> Batch {
        self.writing = true;
        self.control_bytes = 0;
        self.output.take(spare)
    }

    /// Wakes the writer if there is something for it to do and it sleeps.
    pub(crate) fn wake_writer(&mut self) {
        if self.writer_idle && !self.writing && !self.output.is_empty() {
            self.writer_idle = false;
            self.writer.notify_one();
        }
    }
}

/// How many requests of a connection are on their way.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    count: usize,
    /// The most at once since there was none.
    most: usize,
    /// The same of the time before that.
    most_before: usize,
}

impl Outstanding {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn add(&mut self) {
        self.count += 1;
        self.most = self.most.max(self.count);
    }

    fn remove(&mut self) {
        self.count -= 1;
        if self.count == 0 {
            self.most_before = std::mem::take(&mut self.most);
        }
    }

    /// There is one, and most likely it stays alone. Where there were many before, it is the first of many: to write it
    /// by itself would cost a write, and tear the batch apart on all its way.
    fn is_lone(&self) -> bool {
        self.count == 1 && self.most.max(self.most_before) == 1
    }
}

/// Something that came on a connection.
pub(crate) enum Arrived {
    Answer { id: u64, reply: Replied },
    Progress { id: u64, report: ProgressReport },
    Ping { id: u64 },
    GoAway { message: String },
}

/// What came out of a batch of arrivals, to be handed over after the lock.
#[derive(Default)]
pub(crate) struct News {
    pub(crate) finished: Finished,
    pub(crate) notes: Vec<(Arc<dyn Mailbox>, Note)>,
}

pub(crate) struct State {
    slots: Slab<Entry>,
    current: Option<Link>,
    /// Told to go away, with tasks yet to end.
    leaving: Vec<Link>,
    /// Requests not sent, in their order; some may have been cancelled since.
    waiting: VecDeque<u64>,
    /// Bytes of requests kept or not yet written.
    pub(crate) buffered_bytes: usize,
    /// Threads that wait for room.
    pub(crate) room_waiters: usize,
    /// A thread looks for a balancer.
    pub(crate) connecting: bool,
    pub(crate) closed: bool,
    next_link: u32,
    next_sequence: u64,
    /// As the latest balancer said.
    pub(crate) max_frame_bytes: usize,
    /// Which address to try first; one past the last means the first.
    pub(crate) preferred: usize,
    /// Why the latest search for a balancer ended in vain; `None` once one was found.
    pub(crate) unreachable: Option<ConnectError>,
    /// Connections in a row that ended soon after they began.
    pub(crate) short_lives: u32,
}

impl State {
    pub(crate) fn new() -> State {
        State {
            slots: Slab::new(),
            current: None,
            leaving: Vec::new(),
            waiting: VecDeque::new(),
            buffered_bytes: 0,
            room_waiters: 0,
            connecting: false,
            closed: false,
            next_link: NOT_SENT + 1,
            next_sequence: 0,
            max_frame_bytes: reparto_protocol::limits::DEFAULT_MAX_FRAME_BYTES as usize,
            preferred: 0,
            unreachable: None,
            short_lives: 0,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.current.is_some()
    }

    pub(crate) fn has_store(&self) -> bool {
        self.current.as_ref().is_some_and(|link| link.has_store)
    }

    /// The address that is connected, or is tried first.
    pub(crate) fn address_index(&self) -> usize {
        self.current.as_ref().map_or(self.preferred, |link| link.address_index)
    }

    /// Enters a request, and puts it on the current connection or among those that wait for one. A request that the
    /// balancer would not understand ends here.
    pub(crate) fn enter(
        &mut self,
        request: Request<'_>,
        completer: Completer,
        finished: &mut Finished,
    ) -> u64 {
        let expected = request.expected();
        let entry = Entry { completer, link: NOT_SENT, kept: None, cancelled: false, expected };
        let id = self.slots.insert(entry);
        if request.needs_store() && self.current.as_ref().is_some_and(|link| !link.has_store) {
            self.end(id, Err(no_store()), finished);
            return id;
        }
        let (link, must_keep) = match &mut self.current {
            Some(link) => {
                self.buffered_bytes += link.output.push_request(id, &request, Instant::now());
                link.outstanding.add();
                (link.number, request.may_be_repeated())
            }
            None => {
                self.waiting.push_back(id);
                (NOT_SENT, true)
            }
        };
        let Some(entry) = self.slots.get_mut(id) else { return id };
        entry.link = link;
        if must_keep {
            let (request, bytes) = (request.into_owned(), 0);
            let mut kept = Kept { request, repeats_left: MAX_REPEATS, sequence: self.next_sequence, bytes };
            self.next_sequence += 1;
            kept.bytes = kept.request.frame_bytes();
            self.buffered_bytes += kept.bytes;
            entry.kept = Some(Box::new(kept));
        }
        id
    }

    /// What the thread that just entered a request should write itself: the request, if it is alone and small.
    /// One request at a time then costs no switch to the writer thread.
    pub(crate) fn take_inline(&mut self) -> Option<(u32, Arc<TcpStream>, Batch)> {
        let link = self.current.as_mut()?;
        if !link.outstanding.is_lone() || link.writing || link.output.bytes() > INLINE_WRITE_BYTES {
            link.wake_writer();
            return None;
        }
        Some((link.number, Arc::clone(&link.stream), link.take_output(BytesMut::new())))
    }

    /// A batch taken from a connection's output has been written, or was lost with it.
    pub(crate) fn written(&mut self, number: u32, bytes: usize, spare: BytesMut) {
        self.buffered_bytes -= bytes;
        if let Some(link) = self.link(number) {
            link.writing = false;
            link.output.put_spare(spare);
            link.wake_writer();
        }
    }

    /// Takes a fresh connection into use and sends what waits; gives its number.
    pub(crate) fn adopt(
        &mut self,
        stream: Arc<TcpStream>,
        address_index: usize,
        max_frame_bytes: u32,
        has_store: bool,
        finished: &mut Finished,
    ) -> u32 {
        let number = self.next_link;
        self.next_link = self.next_link.wrapping_add(1).max(NOT_SENT + 1);
        self.current = Some(Link::new(number, stream, address_index, has_store));
        self.unreachable = None;
        (self.preferred, self.max_frame_bytes) = (address_index, max_frame_bytes as usize);
        self.send_waiting(finished);
        number
    }

    /// Asks for a request to be stopped.
    pub(crate) fn cancel(&mut self, id: u64, finished: &mut Finished) {
        let Some(entry) = self.slots.get_mut(id) else { return };
        if std::mem::replace(&mut entry.cancelled, true) {
            return;
        }
        let number = entry.link;
        if number == NOT_SENT {
            self.end(id, Err(TaskFailure::new(ErrorCode::Cancelled, "the task was cancelled")), finished);
            // The list of those that wait forgets it when it is next walked, or here when it is mostly such.
            if self.waiting.len() > 64 + 2 * self.slots.len() {
                let slots = &mut self.slots;
                self.waiting.retain(|id| slots.get_mut(*id).is_some());
            }
        } else {
            self.push_control(number, &Message::Cancel(Cancel { id, task_id: None, recall: false }));
        }
    }

    /// Puts a message of the connection's own on it. Tells whether there was room.
    pub(crate) fn push_control(&mut self, number: u32, message: &Message<'_>) -> bool {
        let Some(link) = self.link(number) else { return true };
        link.control_bytes += reparto_protocol::HEADER_BYTES;
        let fits = link.control_bytes <= MAX_CONTROL_BYTES;
        let added = link.output.push_message(message);
        link.wake_writer();
        self.buffered_bytes += added;
        fits
    }

    /// Takes in what came on a connection. An error ends the connection, with that reason.
    pub(crate) fn arrive(
        &mut self,
        number: u32,
        batch: &mut Vec<Arrived>,
        news: &mut News,
    ) -> Result<(), String> {
        for arrived in batch.drain(..) {
            match arrived {
                Arrived::Answer { id, reply } => self.answer(number, id, reply, news),
                Arrived::Progress { id, report } => self.note(number, id, Note::Progress(report), news),
                Arrived::Ping { id } => {
                    if !self.push_control(number, &Message::Pong(Pong { id })) {
                        return Err("the balancer asks for PONGs and does not read them".into());
                    }
                }
                Arrived::GoAway { message } => {
                    log::info!("the balancer goes away: {message}");
                    self.leave(number, &mut news.finished);
                }
            }
        }
        Ok(())
    }

    /// Something that comes before the answer, for whoever has a place for it.
    fn note(&mut self, number: u32, id: u64, note: Note, news: &mut News) {
        if let Some(Entry { completer: Completer::Cell(mailbox), link, .. }) = self.slots.get_mut(id)
            && *link == number
        {
            news.notes.push((Arc::clone(mailbox), note));
        }
    }

    fn answer(&mut self, number: u32, id: u64, reply: Replied, news: &mut News) {
        let expected =
            self.slots.get_mut(id).filter(|entry| entry.link == number).map(|entry| entry.expected);
        let fits = |expected: Expected| reply.as_ref().map_or(true, |answer| expected.takes(answer));
        let Some(expected) = expected.filter(|expected| fits(*expected)) else {
            log::warn!("the balancer answered {id}, which was not asked; the answer is dropped");
            return;
        };
        if let (Expected::AcceptedThenResult, Ok(Answer::Accepted(accepted))) = (expected, &reply) {
            self.note(number, id, Note::Accepted(accepted.task_id), news);
            return;
        }
        let finished = &mut news.finished;
        if let Some(link) = self.link(number) {
            link.outstanding.remove();
        }
        if matches!(&reply, Err(failure) if failure.code == ErrorCode::ShuttingDown) {
            self.leave(number, finished);
            if self.put_back(id) {
                return;
            }
        }
        self.end(id, reply, finished);
    }

    /// A connection that was told to go away and has nothing left.
    pub(crate) fn has_left(&mut self, number: u32) -> bool {
        self.leaving.iter().any(|link| link.number == number && link.outstanding.count() == 0)
    }

    /// Drops everything: no client, handle or queue is left.
    pub(crate) fn close(&mut self, finished: &mut Finished) {
        self.closed = true;
        let links: Vec<u32> = self.current.iter().chain(&self.leaving).map(|link| link.number).collect();
        let reason = "the client was closed before the answer came";
        for number in links {
            self.lose(number, reason, finished);
        }
        self.fail_waiting(ErrorCode::ConnectionLost, reason, finished);
    }

    pub(crate) fn link(&mut self, number: u32) -> Option<&mut Link> {
        let links = self.current.iter_mut().chain(self.leaving.iter_mut());
        links.into_iter().find(|link| link.number == number)
    }

    fn take_link(&mut self, number: u32) -> Option<Link> {
        if let Some(link) = self.current.take_if(|link| link.number == number) {
            return Some(link);
        }
        let position = self.leaving.iter().position(|link| link.number == number)?;
        Some(self.leaving.remove(position))
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a request out of the books and says how it ended.
    fn end(&mut self, id: u64, reply: Replied, finished: &mut Finished) {
        if let Some(entry) = self.slots.remove(id) {
            self.buffered_bytes -= entry.kept.map_or(0, |kept| kept.bytes);
            finished.push((entry.completer, reply));
        }
    }

    /// Puts a request that was sent in vain back among those that wait, if it may be sent again.
    fn put_back(&mut self, id: u64) -> bool {
        let Some(entry) = self.slots.get_mut(id) else { return false };
        let Some(kept) = entry.kept.as_mut().filter(|kept| kept.repeats_left > 0) else { return false };
        if entry.cancelled {
            return false;
        }
        kept.repeats_left -= 1;
        entry.link = NOT_SENT;
        self.waiting.push_back(id);
        true
    }

    /// Ends every request that waits.
    pub(crate) fn fail_waiting(&mut self, code: ErrorCode, message: &str, finished: &mut Finished) {
        for id in std::mem::take(&mut self.waiting) {
            self.end(id, Err(TaskFailure::new(code, message)), finished);
        }
    }

    /// Ends those that wait and whose deadline has passed.
    pub(crate) fn expire_waiting(&mut self, now: Instant, finished: &mut Finished) {
        let mut expired = Vec::new();
        let slots = &mut self.slots;
        self.waiting.retain(|id| {
            let Some(entry) = slots.get_mut(*id) else { return false };
            let over = entry.kept.as_ref().is_some_and(|kept| kept.request.has_expired(now));
            if over {
                expired.push(*id);
            }
            !over
        });
        for id in expired {
            self.end_expired(id, finished);
        }
    }

    /// Ends a request that waits and whose deadline has passed. One that was sent before, on a connection that is lost,
    /// may have been taken in, and have whatever end it has.
    fn end_expired(&mut self, id: u64, finished: &mut Finished) {
        let Some(entry) = self.slots.get_mut(id) else { return };
        let was_sent = entry.kept.as_ref().is_some_and(|kept| kept.repeats_left < MAX_REPEATS);
        let failure = if was_sent && entry.expected == Expected::Accepted {
            let words =
                "the connection was lost, and the deadline passed before the task could be sent again";
            TaskFailure::new(ErrorCode::ConnectionLost, words)
        } else {
            let words = "the deadline passed before a balancer could be reached";
            TaskFailure::new(ErrorCode::Expired, words)
        };
        self.end(id, Err(failure), finished);
    }

    /// Puts everything that waits on the current connection, if there is one.
    pub(crate) fn send_waiting(&mut self, finished: &mut Finished) {
        if self.current.is_none() || self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        for id in std::mem::take(&mut self.waiting) {
            let Some(link) = &mut self.current else { return };
            let Some(entry) = self.slots.get_mut(id) else { continue };
            let Some(kept) = &entry.kept else { continue };
            let frame_bytes = kept.request.frame_bytes();
            if kept.request.has_expired(now) {
                self.end_expired(id, finished);
                continue;
            }
            if kept.request.needs_store() && !link.has_store {
                self.end(id, Err(no_store()), finished);
                continue;
            }
            if frame_bytes > self.max_frame_bytes {
                let limit = self.max_frame_bytes;
                let sentence =
                    format!("the frame of {frame_bytes} bytes is over this balancer's limit of {limit}");
                self.end(id, Err(TaskFailure::new(ErrorCode::PayloadTooLarge, sentence)), finished);
                continue;
            }
            self.buffered_bytes += link.output.push_request(id, &kept.request, now);
            link.outstanding.add();
            entry.link = link.number;
            if !kept.request.may_be_repeated() {
                self.buffered_bytes -= entry.kept.take().map_or(0, |kept| kept.bytes);
            }
        }
        if let Some(link) = &mut self.current {
            link.wake_writer();
        }
    }

    /// Forgets a connection: its requests wait again if they may, and end otherwise. Tells whether it was known.
    pub(crate) fn lose(&mut self, number: u32, reason: &str, finished: &mut Finished) -> bool {
        let was_current = self.current.as_ref().is_some_and(|link| link.number == number);
        let Some(link) = self.take_link(number) else { return false };
        if was_current {
            self.note_life(&link);
        }
        let _ = link.stream.shutdown(Shutdown::Both); // It may be closed already.
        link.writer.notify_all();
        self.buffered_bytes -= link.output.bytes();
        let mut orphans = self.slots.keys_where(|entry| entry.link == number);
        let slots = &mut self.slots;
        orphans.sort_by_cached_key(|id| {
            slots.get_mut(*id).and_then(|entry| entry.kept.as_ref()).map(|kept| kept.sequence)
        });
        for id in orphans {
            // Of a task that is recorded nobody knows whether its balancer had read the CANCEL: it may run after all.
            let is_over =
                |entry: &mut Entry| entry.cancelled && entry.expected != Expected::AcceptedThenResult;
            if self.slots.get_mut(id).is_some_and(is_over) {
                self.end(id, Err(TaskFailure::new(ErrorCode::Cancelled, "the task was cancelled")), finished);
            } else if !self.put_back(id) {
                self.end(id, Err(TaskFailure::new(ErrorCode::ConnectionLost, reason)), finished);
            }
        }
        true
    }

    /// A connection ended. The next search begins at its address, unless it was of little use.
    fn note_life(&mut self, link: &Link) {
        if link.since.elapsed() < SHORT_LIFE {
            self.short_lives = self.short_lives.saturating_add(1);
            self.preferred = link.address_index + 1;
        } else {
            self.short_lives = 0;
        }
    }

    /// Takes nothing new to a connection whose balancer goes away.
    fn leave(&mut self, number: u32, finished: &mut Finished) {
        let Some(link) = self.current.take_if(|link| link.number == number) else { return };
        self.note_life(&link);
        self.preferred = link.address_index + 1;
        self.leaving.push(link);
        if self.leaving.len() > MAX_LEAVING_LINKS {
            let oldest = self.leaving[0].number;
            self.lose(oldest, "too many balancers went away with tasks in flight", finished);
        }
    }
}

fn no_store() -> TaskFailure {
    TaskFailure::new(ErrorCode::StoreUnavailable, "the balancer has no store, so it keeps no tasks")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_alone_where_there_was_one_at_a_time_and_the_first_of_many_where_there_were_many() {
        let mut outstanding = Outstanding::default();
        for _ in 0..3 {
            outstanding.add();
            assert!(outstanding.is_lone());
            outstanding.remove();
        }
        outstanding.add();
        outstanding.add();
        assert!(!outstanding.is_lone());
        outstanding.remove();
        assert!(!outstanding.is_lone(), "it was two");
        outstanding.remove();
        outstanding.add();
        assert!(!outstanding.is_lone(), "there were many before");
        outstanding.remove();
        outstanding.add();
        assert!(outstanding.is_lone());
    }
}
