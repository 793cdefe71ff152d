//! What a client's clones, handles and threads share: the books under one short lock, and the ways in. No
//! socket is read or written while the lock is held.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use reparto_protocol::ErrorCode;

use crate::completer::{Completer, Finished, deliver};
use crate::config::Config;
use crate::connect;
use crate::error::ClientError;
use crate::request::Request;
use crate::state::State;
use crate::sync::{locked, wait_on};

/// What to do when there is no room for another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    Wait,
    Refuse,
    /// Take it all the same: questions are few, and each has a thread that waits for it.
    Take,
}

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) state: Mutex<State>,
    /// There is room for another request.
    room: Condvar,
    /// The connector, while it waits before its next attempt, has to look again.
    pub(crate) changed: Condvar,
}

/// Closes the connections when the last client, handle and queue is gone.
pub(crate) struct Owner {
    pub(crate) shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut finished = Finished::new();
        let mut state = locked(&self.shared.state);
        state.close(&mut finished);
        self.shared.changed.notify_all();
        drop(state);
        deliver(finished);
    }
}

impl Shared {
    pub(crate) fn new(config: Config) -> Shared {
        Shared { config, state: Mutex::new(State::new()), room: Condvar::new(), changed: Condvar::new() }
    }

    /// Hands in a request, and gives its id.
    pub(crate) fn submit(
        self: &Arc<Self>,
        request: Request<'_>,
        completer: Completer,
        when_full: WhenFull,
    ) -> Result<u64, ClientError> {
        let mut finished = Finished::new();
        let mut state = self.wait_for_room(&request, when_full)?;
        let id = state.enter(request, completer, &mut finished);
        if !state.is_connected() {
            self.look_for_balancer(&mut state, &mut finished);
        }
        if !finished.is_empty() || !state.is_connected() {
            drop(state);
            deliver(finished);
            return Ok(id);
        }
        let Some((number, stream, batch)) = state.take_inline() else { return Ok(id) };
        drop(state);
        let written = batch.write_to(&*stream, || {});
        let bytes = batch.bytes;
        let mut state = locked(&self.state);
        state.written(number, bytes, batch.into_spare());
        drop(state);
        if let Err(error) = written {
            self.write_failed(number, &error);
        }
        Ok(id)
    }

    fn wait_for_room(
        &self,
        request: &Request<'_>,
        when_full: WhenFull,
    ) -> Result<MutexGuard<'_, State>, ClientError> {
        let frame_bytes = request.frame_bytes();
        let mut state = locked(&self.state);
        loop {
            if frame_bytes > state.max_frame_bytes {
                return Err(ClientError::PayloadTooLarge {
                    payload_bytes: request.payload().map_or(0, |payload| payload.as_slice().len()),
                    frame_bytes,
                    limit_bytes: state.max_frame_bytes,
                });
            }
            let full = if state.in_flight() >= self.config.max_in_flight {
                ("the number of tasks in flight", self.config.max_in_flight)
            } else if state.buffered_bytes > 0
                && state.buffered_bytes + frame_bytes > self.config.max_buffered_bytes
            {
                ("the number of bytes not yet sent", self.config.max_buffered_bytes)
            } else {
                return Ok(state);
            };
            match when_full {
                WhenFull::Take => return Ok(state),
                WhenFull::Refuse => return Err(ClientError::Full { what: full.0, limit: full.1 }),
                WhenFull::Wait => {
                    state.room_waiters += 1;
                    state = wait_on(&self.room, state);
                    state.room_waiters -= 1;
                }
            }
        }
    }

    /// Wakes those that wait for room; once for many requests that ended.
    pub(crate) fn room_was_made(&self, state: &State) {
        if state.room_waiters > 0 {
            self.room.notify_all();
        }
    }

    pub(crate) fn cancel(&self, id: u64) {
        let mut finished = Finished::new();
        let mut state = locked(&self.state);
        state.cancel(id, &mut finished);
        self.room_was_made(&state);
        drop(state);
        deliver(finished);
    }

    /// Writing to a connection failed. What had come on it, an ERROR that says why perhaps, is read yet: so the
    /// reader, which finds the stream ended, is left to give it up.
    pub(crate) fn write_failed(&self, number: u32, error: &std::io::Error) {
        if let Some(link) = locked(&self.state).link(number) {
            link.write_failure = Some(format!("writing to the balancer failed: {}", error.kind()));
            let _ = link.stream.shutdown(std::net::Shutdown::Both); // It may be closed already.
        }
    }

    /// Gives a connection up. Does nothing for one that is gone already.
    pub(crate) fn lose(self: &Arc<Self>, number: u32, reason: &str) {
        let mut finished = Finished::new();
        let mut state = locked(&self.state);
        if state.lose(number, reason, &mut finished) {
            log::debug!("a connection is lost: {reason}");
        }
        self.look_for_balancer(&mut state, &mut finished);
        self.room_was_made(&state);
        drop(state);
        deliver(finished);
    }

    /// Sends what waits, if there is a connection; otherwise starts the thread that looks for a balancer, if
    /// something waits for one and nobody looks.
    pub(crate) fn look_for_balancer(self: &Arc<Self>, state: &mut State, finished: &mut Finished) {
        state.send_waiting(finished);
        if state.closed || state.connecting || state.is_connected() || !state.has_waiting() {
            return;
        }
        state.connecting = true;
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("reparto-client-connect".into());
        if let Err(error) = thread.spawn(move || connect::look(&shared)) {
            state.connecting = false;
            let message = format!("no thread could be started to look for a balancer: {error}");
            state.fail_waiting(ErrorCode::ConnectionLost, &message, finished);
        }
    }
}
