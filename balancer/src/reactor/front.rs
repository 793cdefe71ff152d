//! A reactor without the scheduler: it reads, decodes, encodes and writes, and exchanges batches with the first.
//!
//! When more waits to be sent than a batch should hold, and the mailbox has no room, it reads from nobody until it
//! has: so what is under way to the scheduler is bounded, and peers feel it as a socket that takes no more. It goes
//! on carrying out effects all the while, so that the two never wait for each other.

use std::sync::Arc;

use bytes::Bytes;

use super::BalancerError;
use super::decider::Decider;
use super::exchange::{Batch, Bell, EffectBatch, EventBatch, Inbox, Numbering, Outbox, Sent, Told};
use super::net::Net;
use crate::background::Ask;
use crate::dialect::Asked;
use crate::scheduler::{Effect, Effects, Event, Peer};

/// The ways to and from the first reactor.
#[derive(Debug)]
pub(super) struct Front {
    numbering: Numbering,
    bell: Arc<Bell>,
    outbox: Outbox<EventBatch>,
    inbox: Inbox<EffectBatch>,
    /// The first has said that the balancer stops.
    stopping: bool,
}

impl Front {
    /// A front's part, with its ways to and from the first.
    pub(super) fn new(
        numbering: Numbering,
        bell: &Arc<Bell>,
        outbox: Outbox<EventBatch>,
        inbox: Inbox<EffectBatch>,
    ) -> Front {
        Front { numbering, bell: Arc::clone(bell), outbox, inbox, stopping: false }
    }

    /// Carries out what a batch tells.
    fn carry_out(&mut self, net: &mut Net, batch: &mut EffectBatch) {
        for (stream, listener) in batch.connections.drain(..) {
            net.take_on_counted(stream, listener);
        }
        for at in 0..batch.size().0 {
            match batch.get(at) {
                Some(Told::Assign(peer, assignment, details)) => net.assign(peer, assignment, details),
                Some(Told::Effect(effect @ Effect::Close { peer, .. })) => {
                    // Its last word, unless that is said already or will be said in another way.
                    let last = net.connections.get_mut(peer).is_some_and(|connection| connection.open());
                    net.push(effect);
                    if last {
                        self.outbox.batch.push(&Event::Gone { peer: self.numbering.outside(peer) });
                    }
                }
                Some(Told::Effect(Effect::Result { peer, id, payload })) => net.result(peer, id, payload),
                Some(Told::Effect(effect)) => net.push(effect),
                Some(Told::Report(peer, id, report)) => net.report_has_come(peer, id, &report),
                None => {}
            }
        }
        self.stopping |= batch.stopping;
        net.stopped |= batch.stopped;
    }
}

fn first_has_ended() -> BalancerError {
    BalancerError::Reactor { number: 1, reason: "it has ended before its time".into() }
}

impl Decider for Front {
    #[inline]
    fn outside(&self, peer: Peer) -> Peer {
        self.numbering.outside(peer)
    }

    #[inline]
    fn handle(&mut self, _net: &mut Net, event: Event<'_>) {
        self.outbox.batch.push(&event);
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.outbox.is_full()
    }

    fn ask(&mut self, _net: &mut Net, peer: Peer, ask: Ask) {
        self.outbox.batch.ask(peer, ask);
    }

    fn report(&mut self, _net: &mut Net, peer: Peer, id: u64, asked: Asked) -> Option<Bytes> {
        self.outbox.batch.ask_about(self.numbering.outside(peer), id, asked);
        None
    }

    fn receive(&mut self, net: &mut Net) -> Result<(), BalancerError> {
        // What comes meanwhile waits until the peers have had their turn.
        for _ in 0..self.inbox.len().max(1) {
            match self.inbox.take() {
                Ok(Some(mut batch)) => {
                    self.carry_out(net, &mut batch);
                    self.inbox.give_back(batch);
                }
                Ok(None) => break,
                Err(_) if net.stopped => break,
                Err(_) => return Err(first_has_ended()),
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<bool, BalancerError> {
        Ok(self.outbox.post() != Sent::Full)
    }

    fn lie_down(&mut self) -> Result<bool, BalancerError> {
        self.bell.lie_down();
        let was_full = self.is_full();
        self.send()?;
        Ok(was_full == self.is_full() && self.inbox.is_empty())
    }

    fn get_up(&self) {
        self.bell.get_up();
    }

    fn asked_to_stop(&self) -> bool {
        self.stopping
    }

    fn begin_stopping(&mut self, _net: &mut Net) {}
}
