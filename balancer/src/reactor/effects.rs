//! Carrying out what the scheduler wants: effects become bytes in the outputs of the connections they concern, as
//! they come.

use super::net::Net;
use super::turn::Reactor;
use crate::dialect::Answer;
use crate::scheduler::{Assignment, AssignmentId, Effect, Effects, Event, Payload, Peer};

impl<'a> Effects<'a> for Net {
    fn push(&mut self, effect: Effect<'a>) {
        self.effects += 1;
        self.carry_out(effect);
    }

    #[inline]
    fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: Assignment<'_>) {
        self.effects += 1;
        let now = self.now;
        self.append(peer, |connection| {
            connection.session.assign(now, assignment, &details, &mut connection.output);
        });
    }

    #[inline]
    fn result(&mut self, peer: Peer, id: u64, payload: Payload<'a>) {
        self.effects += 1;
        self.append(peer, |connection| connection.session.result(id, payload, &mut connection.output));
    }

    fn count(&self) -> usize {
        self.effects
    }
}

impl Net {
    /// The effects that come far less often than assignments and results.
    #[inline(never)]
    fn carry_out(&mut self, effect: Effect<'_>) {
        let peer = match &effect {
            Effect::Note { .. } | Effect::Claim { .. } => return,
            Effect::Stopped => {
                self.stopped = true;
                return;
            }
            Effect::Progress { peer, .. } if self.is_full(*peer) => return,
            Effect::Assign { peer, .. }
            | Effect::CancelAssignment { peer, .. }
            | Effect::Result { peer, .. }
            | Effect::Fail { peer, .. }
            | Effect::Progress { peer, .. }
            | Effect::Acknowledge { peer, .. }
            | Effect::Ping { peer }
            | Effect::Unwanted { peer, .. }
            | Effect::GoAway { peer }
            | Effect::Close { peer, .. } => *peer,
        };
        let closing = matches!(effect, Effect::Close { .. });
        let told = self.append(peer, |connection| connection.session.encode(effect, &mut connection.output));
        if told && closing {
            self.begin_closing(peer);
        }
    }

    /// Whether so much waits for a connection that what can be spared is not told to it.
    fn is_full(&mut self, peer: Peer) -> bool {
        let soft = self.settings.output_soft_bytes;
        self.connections.get_mut(peer).is_some_and(|connection| connection.output.len() >= soft)
    }
}

impl Reactor {
    /// Hands the scheduler an event, and carries out what it wants done.
    #[inline]
    pub(super) fn handle(&mut self, event: Event<'_>) {
        self.scheduler.handle(self.net.now, event, &mut self.net);
    }

    /// Has the scheduler do what is due, and carries out what it wants done.
    pub(super) fn tick(&mut self) {
        self.scheduler.tick(self.net.now, &mut self.net);
    }

    /// Answers a frame that the scheduler has no part in. Says whether the connection has enough to read now.
    pub(super) fn answer(&mut self, peer: Peer, answer: &Answer) -> bool {
        let full = self.net.is_full(peer);
        // What waits unread tells a peer that we are alive, and pongs must not pile up on it.
        if full && matches!(answer, Answer::Pong(_)) {
            return false;
        }
        let (context, now, scheduler) = (self.net.context.clone(), self.net.now, &self.scheduler);
        let open = self.net.append(peer, |connection| {
            connection.session.answer(&context, now, scheduler, answer, &mut connection.output);
        });
        full || !open
    }

    /// Ends the connections that were doomed while effects were carried out.
    pub(super) fn settle(&mut self) {
        while let Some(peer) = self.net.doomed.pop() {
            self.lost(peer, "it does not read what it is sent");
        }
    }
}
