//! Carrying out what the scheduler wants: effects become bytes in the outputs of the connections they concern.

use bytes::BytesMut;

use super::connection::Connection;
use super::turn::Reactor;
use crate::dialect::Answer;
use crate::scheduler::{Effect, Event, Peer};

impl Reactor {
    /// Hands the scheduler an event, and carries out what it wants done.
    #[inline]
    pub(super) fn handle(&mut self, event: Event<'_>) {
        let mut effects = again(std::mem::take(&mut self.effects));
        self.scheduler.handle(self.now, event, &mut effects);
        self.carry_out(effects);
    }

    /// Has the scheduler do what is due, and carries out what it wants done.
    pub(super) fn tick(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.scheduler.tick(self.now, &mut effects);
        self.carry_out(effects);
    }

    /// Carries out effects, in their order, and keeps their memory for the next ones.
    #[inline]
    pub(super) fn carry_out(&mut self, mut effects: Vec<Effect<'_>>) {
        for effect in effects.drain(..) {
            self.carry_out_one(effect);
        }
        self.effects = again(effects);
    }

    #[inline]
    fn carry_out_one(&mut self, effect: Effect<'_>) {
        let Some(peer) = peer_of(&effect) else {
            self.stopped = true;
            return;
        };
        let Some(connection) = self.connections.get_mut(peer).filter(|connection| connection.open()) else {
            return;
        };
        let before = connection.output.len();
        if matches!(effect, Effect::Progress { .. }) && before >= self.settings.output_soft_bytes {
            return;
        }
        touch(peer, connection, &mut self.touched, &mut self.spare);
        let closing = matches!(effect, Effect::Close { .. });
        let assignment = match effect {
            Effect::Assign { assignment, .. } => self.scheduler.assignment(assignment),
            _ => None,
        };
        connection.session.encode(self.now, effect, assignment, &mut connection.output);
        if closing {
            self.begin_closing(peer);
        }
        self.appended(peer, before);
    }

    /// Answers a frame that the scheduler has no part in. Says whether the connection has enough to read now.
    pub(super) fn answer(&mut self, peer: Peer, answer: &Answer) -> bool {
        let Some(connection) = self.connections.get_mut(peer) else { return true };
        let before = connection.output.len();
        let full = before >= self.settings.output_soft_bytes;
        // What waits unread tells a peer that we are alive, and pongs must not pile up on it.
        if full && matches!(answer, Answer::Pong(_)) {
            return false;
        }
        touch(peer, connection, &mut self.touched, &mut self.spare);
        connection.session.answer(&self.context, self.now, &self.scheduler, answer, &mut connection.output);
        self.appended(peer, before);
        full
    }

    /// Counts what was appended to an output, and holds it to its bounds.
    #[inline]
    pub(super) fn appended(&mut self, peer: Peer, before: usize) {
        let Some(connection) = self.connections.get_mut(peer) else { return };
        let waiting = connection.output.len();
        self.output_bytes += waiting - before;
        let over_its_own = waiting > self.settings.output_hard_bytes;
        let over_all = self.output_bytes > self.settings.max_output_bytes && connection.write_blocked;
        if (over_its_own || over_all) && !connection.doomed {
            log::warn!(
                "a connection that does not read is closed: {waiting} bytes wait for it, {} for all",
                self.output_bytes
            );
            connection.doomed = true;
            self.doomed.push(peer);
        }
    }

    /// Ends the connections that were doomed while effects were carried out.
    pub(super) fn settle(&mut self) {
        while let Some(peer) = self.doomed.pop() {
            self.lost(peer, "it does not read what it is sent");
        }
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

/// Whom an effect concerns; nobody in particular for [`Effect::Stopped`].
#[inline]
fn peer_of(effect: &Effect<'_>) -> Option<Peer> {
    match effect {
        Effect::Assign { peer, .. }
        | Effect::CancelAssignment { peer, .. }
        | Effect::Result { peer, .. }
        | Effect::Fail { peer, .. }
        | Effect::Progress { peer, .. }
        | Effect::Acknowledge { peer, .. }
        | Effect::Ping { peer }
        | Effect::GoAway { peer }
        | Effect::Close { peer, .. } => Some(*peer),
        Effect::Stopped => None,
    }
}

/// An empty list's memory, for effects that borrow from another event. Collecting a list's own iterator into a list
/// of the same layout takes the memory over.
#[inline]
fn again<'a>(mut effects: Vec<Effect<'_>>) -> Vec<Effect<'a>> {
    effects.clear();
    effects.into_iter().map_while(|_| None).collect()
}
