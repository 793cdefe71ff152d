//! Writing to a balancer, and the keeper, who sees to it that nothing waits to be written and heartbeats go out.
//!
//! Whoever finds output and nobody writing writes all of it, and what is added meanwhile. A thread of the pool
//! does so when it has nothing else to run or its tasks take long; between quick tasks it leaves results for
//! others to be written with, up to 32 KiB, and the keeper writes what has waited half a millisecond. The reader
//! never writes: a balancer that does not read must not keep the worker from reading.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use reparto_protocol::{Drain, HeldTasks, Message, Ping, Pong, Register, limits};

use super::{FIRST_REQUEST, FULL_BYTES, Link, State};
use crate::actions::Actions;
use crate::error::ConnectionError;
use crate::lock;
use crate::worker::Profile;

/// How long a result may wait for others to be written with.
const DEFER: Duration = Duration::from_micros(500);
/// How long the sentence that ends a connection may take to be written behind what is being written.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Answers that the reader alone makes (to PING, CANCEL and assignments it hands back) wait up to here.
const MAX_UNREAD_BYTES: usize = 64 * 1024 * 1024;

impl Link {
    /// Writes everything that is waiting. Nobody else may be writing.
    pub(super) fn write_out<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.writing = true;
        state.urgent = false;
        while !state.output.is_empty() && !state.is_closed {
            let batch = state.output.take();
            self.room.notify_all();
            drop(state);
            let written = batch.write_to(&self.stream);
            state = lock(&self.state);
            state.last_sent = Instant::now();
            state.output.recycle(batch);
            if let Err(error) = written {
                let reason = match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        ConnectionError::NotReading(self.terms.silence)
                    }
                    _ => ConnectionError::Io(error),
                };
                self.close_locked(&mut state, reason);
            }
        }
        state.writing = false;
        self.room.notify_all();
        state
    }

    /// Waits until a frame of `bytes` may be added. One that is larger than the bound goes out alone.
    pub(super) fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        bytes: usize,
    ) -> MutexGuard<'a, State> {
        while !state.is_closed && !state.output.is_empty() && state.output.len() + bytes > FULL_BYTES {
            if state.writing {
                state = self.room.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            } else {
                state = self.write_out(state);
            }
        }
        state
    }

    /// Has the keeper write what was just added.
    ///
    /// # Errors
    /// The balancer has left too much unread.
    pub(super) fn urgent(&self, mut state: MutexGuard<'_, State>) -> Result<(), ConnectionError> {
        let bytes = state.output.len();
        if bytes > MAX_UNREAD_BYTES {
            return Err(ConnectionError::Unread { bytes, limit: MAX_UNREAD_BYTES });
        }
        state.urgent = true;
        drop(state);
        self.keeper.notify_one();
        Ok(())
    }

    /// Sends a frame that the reader has made.
    fn send(&self, message: &Message<'_>) -> Result<(), ConnectionError> {
        let mut state = lock(&self.state);
        state.output.push(message);
        self.urgent(state)
    }

    /// Answers a PING.
    pub(crate) fn pong(&self, id: u64) -> Result<(), ConnectionError> {
        self.send(&Message::Pong(Pong { id }))
    }

    /// Says who the worker is and what it offers, the first time or anew.
    ///
    /// # Errors
    /// The frame is over the balancer's limit, or too much is unread.
    pub(crate) fn register(&self, profile: &Profile<'_>) -> Result<(), ConnectionError> {
        let names: Vec<&str> = profile.actions.names().collect();
        let mut state = lock(&self.state);
        let id = state.next_request;
        let mut held = if id == FIRST_REQUEST { self.held.ids() } else { Vec::new() };
        held.truncate(limits::MAX_HELD_TASKS);
        let message = Message::Register(Register {
            id,
            worker_id: profile.id,
            threads: profile.threads,
            window: profile.window,
            weight: profile.weight,
            service_ns: state.service.tell(),
            held: HeldTasks::new(&held),
            actions: reparto_protocol::Actions::new(&names),
        });
        let mut frame = bytes::BytesMut::new();
        message.encode(&mut frame);
        if frame.len() > self.terms.max_frame_bytes as usize {
            let limit = self.terms.max_frame_bytes;
            return Err(ConnectionError::RegisterTooLarge { bytes: frame.len(), limit });
        }
        state.next_request += 1;
        state.registering = Some(id);
        let old = std::mem::replace(&mut state.actions, Arc::clone(profile.actions));
        state.former_actions = Some(match state.former_actions.take() {
            Some(older) => Arc::new(Actions::clone(&older).and(Actions::clone(&old))),
            None => old,
        });
        state.output.push(&message);
        self.urgent(state)
    }

    /// Asks for no new tasks, or for tasks again. A worker that leaves has asked already.
    pub(crate) fn drain(&self, resume: bool) -> Result<(), ConnectionError> {
        let mut state = lock(&self.state);
        if state.leaving {
            return Ok(());
        }
        self.push_drain(&mut state, resume);
        self.urgent(state)
    }

    pub(super) fn push_drain(&self, state: &mut State, resume: bool) {
        let id = state.next_request;
        state.next_request += 1;
        state.draining = Some(id);
        state.output.push(&Message::Drain(Drain { id, resume }));
    }

    /// Takes an ACK. Gives whether it is the one that makes the worker registered.
    pub(crate) fn acknowledge(&self, id: u64) -> bool {
        let mut state = lock(&self.state);
        if state.draining == Some(id) {
            state.draining = None;
        }
        if state.registering == Some(id) {
            state.registering = None;
            state.former_actions = None;
        }
        id == FIRST_REQUEST && !std::mem::replace(&mut state.registered, true)
    }

    pub(crate) fn is_registered(&self) -> bool {
        lock(&self.state).registered
    }

    /// Tells the balancer why the connection ends, if that is its own doing, and ends it.
    pub(crate) fn close_telling(&self, reason: ConnectionError) {
        let mut state = lock(&self.state);
        if let Some(code) = reason.code_to_tell()
            && !state.is_closed
        {
            let message = reason.to_string();
            let error = reparto_protocol::ErrorMessage { id: 0, code, message: &message, payload: &[] };
            state.output.push(&Message::Error(error));
            if state.writing {
                // Whoever writes takes it along, unless the balancer does not read.
                let waited = self.room.wait_timeout_while(state, LAST_WORD, |state| state.writing);
                state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            } else {
                state = self.write_out(state);
            }
        }
        self.close_locked(&mut state, reason);
    }

    /// Bytes came.
    pub(crate) fn heard(&self) {
        self.heard_ms.store(self.age_ms(), Ordering::Release);
    }

    /// How long nothing has come.
    pub(crate) fn silent_for(&self) -> Duration {
        Duration::from_millis(self.age_ms().saturating_sub(self.heard_ms.load(Ordering::Acquire)))
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The keeper's work, until the connection is closed: writes what is urgent at once, what was deferred after
    /// a moment, and a PING when one is due.
    pub(crate) fn keep(&self) {
        let mut state = lock(&self.state);
        while !state.is_closed {
            let pending = !state.output.is_empty() && !state.writing;
            if pending && state.urgent {
                state = self.write_out(state);
                continue;
            }
            let wait = if state.deferred { DEFER } else { self.until_ping(&mut state) };
            if wait.is_zero() {
                continue;
            }
            let waited = self.keeper.wait_timeout(state, wait);
            let (guard, timeout) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            state = guard;
            if state.deferred && timeout.timed_out() {
                if state.output.is_empty() {
                    state.deferred = false;
                } else if !state.writing {
                    state = self.write_out(state);
                }
            }
        }
    }

    /// Time until a PING is due; zero when it was due and has been added.
    ///
    /// It is due when nothing was sent for a heartbeat, and also when nothing was heard: the balancer asks only
    /// those that are silent, so a worker that sends all the time would never know whether it is there.
    fn until_ping(&self, state: &mut State) -> Duration {
        let heartbeat = self.terms.heartbeat;
        let unsent = state.last_sent.elapsed();
        let unheard = self.silent_for().min(state.last_ping.elapsed());
        let idle = unsent.max(unheard);
        if idle < heartbeat {
            return heartbeat - idle;
        }
        if state.writing {
            // Whoever writes does not get on; another frame would not arrive either.
            return heartbeat;
        }
        state.output.push(&Message::Ping(Ping { id: 0 }));
        state.urgent = true;
        state.last_ping = Instant::now();
        Duration::ZERO
    }
}
