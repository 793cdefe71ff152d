//! A reactor's connections, and everything around them that needs no scheduler: whose turn it is to be read from,
//! whose output is to be flushed, what all of them hold together.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use mio::Poll;

use super::Settings;
use super::connection::{Connection, Flushed, Phase};
use super::deadlines::Deadlines;
use super::listener::{Acceptor, plan};
use super::read_buffer::ReadBuffer;
use super::slab::Connections;
use super::totals::{Others, Totals};
use super::upstreams::Upstreams;
use crate::background::Noted;
use crate::dialect::{Context, gearman};
use crate::scheduler::{Peer, Time};

/// Turns that pass at most before what may wait for more to go with it is written all the same.
const MOST_PATIENT_TURNS: u32 = 16;

/// Whole turns that pass at most before a piece of what a client is usually sent in a write is written, though the rest
/// has not come.
const MOST_HELD_TURNS: u32 = 1;

/// Connections of which each waits for a few turns, or until nothing happens in one.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    peers: Vec<Peer>,
    /// Turns that the first of them has waited.
    turns: u32,
}

impl Waiting {
    pub(super) fn add(&mut self, peer: Peer) {
        self.peers.push(peer);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// A turn comes to its end. Gives all of them if `most` turns have passed before, or nothing has happened in this one.
    fn turn(&mut self, is_idle: bool, most: u32) -> std::vec::Drain<'_, Peer> {
        let are_due = is_idle || self.turns >= most;
        self.turns = if are_due || self.is_empty() { 0 } else { self.turns + 1 };
        let due = if are_due { self.peers.len() } else { 0 };
        self.peers.drain(..due)
    }
}

/// The connections of a reactor.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) poll: Poll,
    pub(super) settings: Settings,
    pub(super) context: Context,
    /// The moment of this turn.
    pub(super) now: Time,
    /// None at any reactor but the first, nor once the balancer stops.
    pub(super) acceptors: Vec<Acceptor>,
    /// Servers to connect to; none at any reactor but the first.
    pub(super) upstreams: Upstreams,
    /// Accepting failed; when to try again.
    pub(super) accept_again: Option<Time>,
    /// When the log was last told of that.
    pub(super) accept_warned: Option<Time>,
    pub(super) connections: Connections,
    pub(super) deadlines: Deadlines,
    pub(super) read_buffer: ReadBuffer,
    /// Those that may have something to be read, in the order of their turns.
    pub(super) ready: VecDeque<Peer>,
    /// Workers that an event has made ready: they come behind clients of the same look at the sockets, whose tasks a
    /// worker that asks may then be given. Empty once the events are noted.
    pub(super) ready_workers: Vec<Peer>,
    /// Those whose turn was put off to the next one; empty between turns.
    pub(super) put_off: Vec<Peer>,
    /// Those to be flushed at the end of the turn.
    pub(super) touched: Vec<Peer>,
    /// Those whose output is only what may wait for more to go with it.
    pub(super) patient: Waiting,
    /// Those whose output was held back in the hope of more.
    pub(super) held_back: Waiting,
    /// Those whose flush goes on in the next turn; empty between flushes.
    pub(super) unfinished: Vec<Peer>,
    /// Those to be dropped once the scheduler has done with the event at hand.
    pub(super) doomed: Vec<Peer>,
    /// Empty buffers for the next outputs.
    pub(super) spare: Vec<BytesMut>,
    /// Memory of unfinished frames, over all connections.
    pub(super) incomplete_bytes: usize,
    /// Unwritten output, over all connections.
    pub(super) output_bytes: usize,
    /// What that may be now: the bound on it, less what other reactors hold.
    pub(super) output_room: usize,
    /// This reactor's number and what all of them hold; `None` where it is the only one.
    pub(super) shared: Option<(usize, Arc<Totals>)>,
    /// What the others held a turn ago.
    pub(super) others: Others,
    /// The scheduler has answered everything after it was told to stop.
    pub(super) stopped: bool,
    /// The scheduler's effects so far.
    pub(super) effects: usize,
    /// What the scheduler has noted for the keeper, who takes it in the same turn.
    pub(super) notes: VecDeque<Noted>,
}

impl Net {
    pub(super) fn new(
        poll: Poll,
        addresses: (SocketAddr, SocketAddr),
        settings: Settings,
        shared: Option<(usize, Arc<Totals>)>,
    ) -> Net {
        let context = Context {
            clients: addresses.0,
            workers: addresses.1,
            max_frame_bytes: settings.max_frame_bytes,
            heartbeat: settings.scheduler.heartbeat,
            silence: settings.scheduler.silence,
            policy: settings.scheduler.policy,
            has_store: settings.store.is_some(),
            lines_action: settings.lines_action.as_str().into(),
            gearman: Arc::new(gearman::Shared::new(&host_name())),
        };
        Net {
            poll,
            context,
            output_room: settings.max_output_bytes,
            settings,
            now: Time(0),
            acceptors: Vec::new(),
            upstreams: Upstreams::new(&[], None),
            accept_again: None,
            accept_warned: None,
            connections: Connections::default(),
            deadlines: Deadlines::default(),
            read_buffer: ReadBuffer::new(),
            ready: VecDeque::new(),
            ready_workers: Vec::new(),
            put_off: Vec::new(),
            touched: Vec::new(),
            patient: Waiting::default(),
            held_back: Waiting::default(),
            unfinished: Vec::new(),
            doomed: Vec::new(),
            spare: Vec::new(),
            incomplete_bytes: 0,
            output_bytes: 0,
            shared,
            others: Others::default(),
            stopped: false,
            effects: 0,
            notes: VecDeque::new(),
        }
    }

    /// Puts a connection at the end of the ready list, if there may be more to do for it.
    pub(super) fn queue_again(&mut self, peer: Peer) {
        let Some(connection) = self.connections.get_mut(peer) else { return };
        if connection.begins_to_queue() {
            self.ready.push_back(peer);
        }
    }

    /// Puts a connection that an event has made ready into the ready list, or among the workers that come there next.
    pub(super) fn queue_noted(&mut self, peer: Peer) {
        let Some(connection) = self.connections.get_mut(peer) else { return };
        if !connection.begins_to_queue() {
            return;
        }
        if connection.session.kind().is_worker() {
            self.ready_workers.push(peer);
        } else {
            self.ready.push_back(peer);
        }
    }

    /// All events are noted: the workers among those that are ready come behind.
    pub(super) fn take_ready_workers(&mut self) {
        self.ready.extend(self.ready_workers.drain(..));
    }

    /// Has those whose turn was put off begin the next one, in their order: whoever always has more to be read comes behind
    /// them.
    pub(super) fn take_put_off_first(&mut self) {
        while let Some(peer) = self.put_off.pop() {
            self.ready.push_front(peer);
        }
    }

    /// Connections that are open, at any reactor.
    pub(super) fn open_connections(&self) -> usize {
        self.shared.as_ref().map_or(self.connections.len(), |(_, totals)| totals.connections())
    }

    /// Whether unfinished frames hold more than they may, over all reactors, and one of ours should end for it: we
    /// hold our share of it at least, as one reactor does always.
    pub(super) fn has_too_much_input(&self) -> bool {
        let all = self.incomplete_bytes.saturating_add(self.others.incomplete);
        let reactors = self.shared.as_ref().map_or(1, |(_, totals)| totals.reactors());
        all > self.settings.max_incomplete_bytes && self.incomplete_bytes.saturating_mul(reactors) >= all
    }

    /// Bytes of memory that the heads of large frames may be given before their frames have come: of unfinished frames'
    /// bound a quarter, less what these hold.
    pub(super) fn room_for_large_frames(&self) -> usize {
        let held = self.incomplete_bytes.saturating_add(self.others.incomplete);
        (self.settings.max_incomplete_bytes / 4).saturating_sub(held)
    }

    /// Tells the other reactors what this one holds, and learns what they do.
    pub(super) fn share_totals(&mut self) {
        let Some((number, totals)) = &self.shared else { return };
        self.others = totals.exchange(*number, self.output_bytes, self.incomplete_bytes);
        self.output_room = self.settings.max_output_bytes.saturating_sub(self.others.output);
        let all = self.incomplete_bytes.saturating_add(self.others.incomplete);
        if all > self.settings.max_incomplete_bytes && !self.has_too_much_input() {
            totals.wake_holders(all);
        }
    }

    /// Has `write` append to a connection's output, if it is open, and holds the output to its bounds. Says whether
    /// it was.
    #[inline(always)]
    pub(super) fn append(&mut self, peer: Peer, write: impl FnOnce(&mut Connection)) -> bool {
        self.append_when(peer, false, write)
    }

    /// The same with what its peer can wait for while there is something else to do: mostly more follows in a moment, and
    /// goes in the same write. See [`hurry`](Self::hurry).
    #[inline(always)]
    pub(super) fn append_patiently(&mut self, peer: Peer, write: impl FnOnce(&mut Connection)) -> bool {
        self.append_when(peer, true, write)
    }

    #[inline(always)]
    fn append_when(&mut self, peer: Peer, may_wait: bool, write: impl FnOnce(&mut Connection)) -> bool {
        let Some(connection) = self.connections.get_mut(peer).filter(|connection| connection.open()) else {
            return false;
        };
        // Nothing more follows on a connection that is about to end.
        if !may_wait || connection.ending {
            touch(peer, connection, &mut self.touched, &mut self.spare);
        } else if !connection.touched {
            if !connection.patient {
                connection.patient = true;
                self.patient.add(peer);
            }
            // Also one that has been on the list since before its last write.
            connection.lend(&mut self.spare);
        }
        let before = connection.output.weight();
        write(connection);
        let waiting = connection.output.weight();
        self.output_bytes = self.output_bytes + waiting - before;
        let over_all = self.output_bytes > self.output_room && connection.is_behind();
        if waiting > self.settings.output_hard_bytes || over_all {
            self.doom(peer);
        }
        true
    }

    /// Has a connection dropped that does not read, at the end of its turn.
    #[cold]
    fn doom(&mut self, peer: Peer) {
        let Some(connection) = self.connections.get_mut(peer).filter(|connection| !connection.doomed) else {
            return;
        };
        log::warn!(
            "a connection that does not read is closed: {} bytes wait for it, {} for all",
            connection.output.len(),
            self.output_bytes
        );
        connection.doomed = true;
        self.doomed.push(peer);
    }

    /// Writes what waits for a connection, as much as its socket takes and a turn allows.
    ///
    /// # Errors
    /// The socket's. What went before it failed has gone all the same.
    pub(super) fn write(&mut self, peer: Peer) -> io::Result<Flushed> {
        let Some(connection) = self.connections.get_mut(peer) else { return Ok(Flushed::Drained) };
        let before = connection.output.weight();
        let flushed = connection.flush(self.now);
        self.output_bytes = self.output_bytes + connection.output.weight() - before;
        flushed
    }

    /// Has what waits patiently, or was held back, flushed in this turn: when nothing else happened in it, and else after
    /// some turns.
    pub(super) fn hurry(&mut self, is_idle: bool) {
        for peer in self.patient.turn(is_idle, MOST_PATIENT_TURNS) {
            let Some(connection) = self.connections.get_mut(peer) else { continue };
            connection.patient = false;
            if !connection.output.is_empty() {
                touch(peer, connection, &mut self.touched, &mut self.spare);
            }
        }
        for peer in self.held_back.turn(is_idle, MOST_HELD_TURNS) {
            if let Some(connection) = self.connections.get_mut(peer).filter(|connection| connection.held_back)
            {
                touch(peer, connection, &mut self.touched, &mut self.spare);
            }
        }
    }

    /// Has a connection looked at when outputs are flushed.
    pub(super) fn look_at(&mut self, peer: Peer) {
        if let Some(connection) = self.connections.get_mut(peer) {
            touch(peer, connection, &mut self.touched, &mut self.spare);
        }
    }

    /// From here on what comes is thrown away; the connection ends when what waits is written.
    pub(super) fn begin_closing(&mut self, peer: Peer) {
        let Some(connection) = self.connections.get_mut(peer) else { return };
        connection.phase = Phase::Closing;
        connection.since = self.now;
        connection.frame_began = None;
        connection.paused = false;
        connection.parked = false;
        connection.waiting = false;
        connection.full = false;
        connection.input = Vec::new();
        self.incomplete_bytes -= std::mem::take(&mut connection.input_counted);
        plan(&mut self.deadlines, peer, connection, &self.settings);
        touch(peer, connection, &mut self.touched, &mut self.spare);
        self.queue_again(peer);
    }
}

/// Puts a connection on the list of those to be flushed, and lends its output a buffer.
#[inline]
pub(super) fn touch(
    peer: Peer,
    connection: &mut Connection,
    touched: &mut Vec<Peer>,
    spare: &mut Vec<BytesMut>,
) {
    if !connection.touched {
        connection.touched = true;
        touched.push(peer);
        connection.lend(spare);
    }
}

/// This host's name; empty if it has none.
fn host_name() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mio::net::TcpStream;

    use super::*;
    use crate::dialect::Listener;

    #[test]
    fn what_was_written_before_a_write_failed_waits_no_longer() {
        let address = ([127, 0, 0, 1], 1).into();
        let poll = Poll::new().expect("a poll");
        let mut net = Net::new(poll, (address, address), Settings::default(), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
        // It is closed, so the first of several writes has it say that nobody reads any more.
        drop(listener.accept().expect("it connects"));
        let connection = Connection::new(stream, Listener::Clients, &net.context, Time(0));
        let peer = net.add(connection).expect("it is registered");
        for _ in 0..100 {
            assert!(
                net.append(peer, |connection| connection.output.share(Bytes::from_static(&[b'x'; 1024])))
            );
        }
        let failed = net.write(peer).is_err();
        let waiting = net.connections.get_mut(peer).expect("it is still there").output.weight();
        assert_eq!(net.output_bytes, waiting, "failed: {failed}");
    }

    #[test]
    fn those_whose_turn_was_put_off_begin_the_next_in_their_order() {
        let address = ([127, 0, 0, 1], 1).into();
        let poll = Poll::new().expect("a poll");
        let mut net = Net::new(poll, (address, address), Settings::default(), None);
        let peers: Vec<Peer> = (0..5).map(|index| Peer { index, generation: 1 }).collect();
        // The first was read from and has more, the second and third were put off, the fourth has come meanwhile.
        net.ready.extend([peers[0], peers[3]]);
        net.put_off.extend([peers[1], peers[2]]);
        net.take_put_off_first();
        // A worker was ready before any of these.
        net.ready_workers.push(peers[4]);
        net.take_ready_workers();
        assert_eq!(net.ready, [peers[1], peers[2], peers[0], peers[3], peers[4]]);
        assert!(net.put_off.is_empty() && net.ready_workers.is_empty());
    }
}
