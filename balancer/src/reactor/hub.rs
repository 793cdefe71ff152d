//! The first of several reactors: it has the scheduler, takes what the others send for it, and sends them what it
//! wants done.
//!
//! Its effects for a front gather in that front's outbox, and leave once a turn. A front never waits for a peer, so
//! an outbox that stays full means that its front gets no time to run; then nothing more is taken in until it has
//! had some, from anybody, since any event may have effects for it. What waits for a front is so bounded by what is
//! under way, a full batch, and the effects of one event more.

use std::sync::Arc;

use bytes::Bytes;

use super::decider::{Decider, failure_of, reply};
use super::exchange::{
    Batch, Bell, EffectBatch, EventBatch, Farewells, Inbox, Numbering, Outbox, Said, Sent, peer_mut,
};
use super::net::Net;
use super::totals::Totals;
use super::{BalancerError, Handle};
use crate::background::{Ask, Keeper, Noted, Outlet};
use crate::dialect::{Asked, Listener};
use crate::scheduler::{Assignment, AssignmentId, Effect, Effects, Event, Payload, Peer, Scheduler, Time};

/// The scheduler, and the ways to the other reactors.
#[derive(Debug)]
pub(super) struct Hub {
    scheduler: Scheduler,
    keeper: Option<Box<Keeper>>,
    handle: Handle,
    numbering: Numbering,
    totals: Arc<Totals>,
    bell: Arc<Bell>,
    /// To the fronts, in the order of their numbers, which begin at 1.
    outboxes: Vec<Outbox<EffectBatch>>,
    inboxes: Vec<Inbox<EventBatch>>,
    farewells: Farewells,
    /// A batch that could not be taken in to its end: from whom, and what of it is next.
    half_taken: Option<(usize, EventBatch, usize)>,
    /// From whom batches are taken first in this turn.
    first_served: usize,
    /// The fronts have been told that nothing follows.
    over: bool,
}

/// Sends each effect to the connection's reactor.
struct Routed<'a> {
    net: &'a mut Net,
    outboxes: &'a mut [Outbox<EffectBatch>],
    farewells: &'a mut Farewells,
    numbering: Numbering,
}

impl Routed<'_> {
    /// The batch for a front; `None` for the first reactor itself.
    #[inline]
    fn batch_for(&mut self, number: usize) -> Option<&mut EffectBatch> {
        self.outboxes.get_mut(number.wrapping_sub(1)).map(|outbox| &mut outbox.batch)
    }
}

impl<'a> Effects<'a> for Routed<'_> {
    #[inline]
    fn push(&mut self, mut effect: Effect<'a>) {
        let Some(peer) = peer_mut(&mut effect) else { return self.net.push(effect) };
        let outside = *peer;
        let (number, inside) = self.numbering.inside(outside);
        *peer = inside;
        if number == 0 {
            return self.net.push(effect);
        }
        self.farewells.told(outside, &effect);
        self.net.effects += 1;
        if let Some(batch) = self.batch_for(number) {
            batch.push(effect);
        }
    }

    #[inline]
    fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: Assignment<'_>) {
        let (number, peer) = self.numbering.inside(peer);
        match self.batch_for(number) {
            None => self.net.assign(peer, assignment, details),
            Some(batch) => {
                batch.assign(peer, assignment, &details);
                self.net.effects += 1;
            }
        }
    }

    #[inline]
    fn result(&mut self, peer: Peer, id: u64, payload: Payload<'a>) {
        let (number, peer) = self.numbering.inside(peer);
        match self.batch_for(number) {
            None => self.net.result(peer, id, payload),
            Some(batch) => {
                batch.push(Effect::Result { peer, id, payload });
                self.net.effects += 1;
            }
        }
    }

    fn count(&self) -> usize {
        self.net.effects
    }
}

impl Outlet for Routed<'_> {
    fn take_note(&mut self) -> Option<Noted> {
        self.net.take_note()
    }
}

impl Hub {
    /// The first reactor's part, without a way to any front yet.
    pub(super) fn new(
        (scheduler, keeper): (Scheduler, Option<Box<Keeper>>),
        handle: Handle,
        numbering: Numbering,
        totals: &Arc<Totals>,
        bell: &Arc<Bell>,
    ) -> Hub {
        Hub {
            scheduler,
            keeper,
            handle,
            numbering,
            totals: Arc::clone(totals),
            bell: Arc::clone(bell),
            outboxes: Vec::new(),
            inboxes: Vec::new(),
            farewells: Farewells::default(),
            half_taken: None,
            first_served: 0,
            over: false,
        }
    }

    /// Adds the ways to and from the next front.
    pub(super) fn connect(&mut self, outbox: Outbox<EffectBatch>, inbox: Inbox<EventBatch>) {
        self.outboxes.push(outbox);
        self.inboxes.push(inbox);
    }

    /// Takes a batch's events from a place on, until it is over or an outbox is full. Says where that was.
    fn take(&mut self, net: &mut Net, from: usize, batch: &EventBatch, mut at: usize) -> usize {
        while !self.is_full()
            && let Some(said) = batch.get(at)
        {
            match said {
                Said::Event(event) if self.farewells.drops(&event) => {}
                Said::Event(event) => self.handle(net, event),
                Said::Ask { peer, ask } => self.ask(net, peer, ask.clone()),
                Said::Asked { peer, id, asked } => {
                    let report = self.reply(net, asked);
                    let (_, peer) = self.numbering.inside(peer);
                    self.outboxes[from].batch.report(peer, id, report);
                }
            }
            at += 1;
        }
        at
    }

    /// Takes a batch in, as far as it goes.
    fn take_batch(
        &mut self,
        net: &mut Net,
        from: usize,
        batch: EventBatch,
        at: usize,
    ) -> Result<(), BalancerError> {
        let mut at = at;
        loop {
            at = self.take(net, from, &batch, at);
            if at == batch.size().0 {
                self.inboxes[from].give_back(batch);
                return Ok(());
            }
            // What is full may go now, in the midst of the turn.
            self.send()?;
            if self.is_full() {
                self.half_taken = Some((from, batch, at));
                return Ok(());
            }
        }
    }

    fn reply(&mut self, net: &mut Net, asked: &Asked) -> Bytes {
        let (context, now) = (net.context.clone(), net.now);
        let place = (&mut self.scheduler, self.keeper.as_deref());
        let mut routed = Routed {
            net,
            outboxes: &mut self.outboxes,
            farewells: &mut self.farewells,
            numbering: self.numbering,
        };
        let (report, stops) = reply(asked, &context, now, place, &mut routed);
        if stops {
            self.handle.shutdown();
        }
        report
    }

    fn ended(&self, front: usize) -> BalancerError {
        BalancerError::Reactor { number: front + 2, reason: "it has ended before its time".into() }
    }
}

impl Decider for Hub {
    #[inline]
    fn outside(&self, peer: Peer) -> Peer {
        self.numbering.outside(peer)
    }

    #[inline(always)]
    fn handle(&mut self, net: &mut Net, event: Event<'_>) {
        let now = net.now;
        let mut routed = Routed {
            net,
            outboxes: &mut self.outboxes,
            farewells: &mut self.farewells,
            numbering: self.numbering,
        };
        let leaving = match event {
            Event::Gone { peer } => Some((peer, None)),
            Event::Cancel { peer, id } => Some((peer, Some(id))),
            _ => None,
        };
        self.scheduler.handle(now, event, &mut routed);
        if let (Some(leaving), Some(keeper)) = (leaving, &mut self.keeper) {
            keeper.leave(&mut self.scheduler, now, leaving, &mut routed);
        }
    }

    fn ask(&mut self, net: &mut Net, peer: Peer, ask: Ask) {
        let now = net.now;
        let mut routed = Routed {
            net,
            outboxes: &mut self.outboxes,
            farewells: &mut self.farewells,
            numbering: self.numbering,
        };
        if let Some(keeper) = &mut self.keeper {
            keeper.ask(&mut self.scheduler, now, peer, ask, &mut routed);
        }
    }

    fn keep(&mut self, net: &mut Net) {
        // What the store has answered has effects, too.
        if self.is_full() {
            return;
        }
        let now = net.now;
        let mut routed = Routed {
            net,
            outboxes: &mut self.outboxes,
            farewells: &mut self.farewells,
            numbering: self.numbering,
        };
        if let Some(keeper) = &mut self.keeper {
            keeper.turn(&mut self.scheduler, now, &mut routed);
        }
    }

    fn is_quiet(&self) -> bool {
        self.keeper.as_ref().is_none_or(|keeper| keeper.is_quiet())
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.outboxes.iter().any(Outbox::is_full)
    }

    fn report(&mut self, net: &mut Net, _: Peer, _: u64, asked: Asked) -> Option<Bytes> {
        Some(self.reply(net, &asked))
    }

    fn failure(&self) -> Option<BalancerError> {
        failure_of(self.keeper.as_deref())
    }

    fn next_timer(&self, now: Time) -> Option<Time> {
        // What is due has effects, too.
        if self.is_full() {
            return None;
        }
        let keeper = self.keeper.as_ref().and_then(|keeper| keeper.next_timer(&self.scheduler, now));
        [self.scheduler.next_timer(), keeper].into_iter().flatten().min()
    }

    fn tick(&mut self, net: &mut Net) {
        let now = net.now;
        let mut routed = Routed {
            net,
            outboxes: &mut self.outboxes,
            farewells: &mut self.farewells,
            numbering: self.numbering,
        };
        self.scheduler.tick(now, &mut routed);
    }

    fn place(&mut self, net: &mut Net, stream: mio::net::TcpStream, listener: Listener) {
        match self.totals.least_busy(listener).checked_sub(1) {
            None => net.take_on(stream, listener),
            Some(front) => {
                self.totals.begin(front + 1, listener);
                self.outboxes[front].batch.connections.push((stream, listener));
            }
        }
    }

    fn receive(&mut self, net: &mut Net) -> Result<(), BalancerError> {
        if let Some((from, batch, at)) = self.half_taken.take() {
            self.take_batch(net, from, batch, at)?;
        }
        let fronts = self.inboxes.len();
        self.first_served = (self.first_served + 1) % fronts.max(1);
        for turn in 0..fronts {
            let from = (self.first_served + turn) % fronts;
            // What comes meanwhile waits for the next turn, since others wait, too.
            for _ in 0..self.inboxes[from].len().max(1) {
                if self.half_taken.is_some() || self.is_full() {
                    return Ok(());
                }
                match self.inboxes[from].take() {
                    Ok(Some(batch)) => self.take_batch(net, from, batch, 0)?,
                    Ok(None) => break,
                    Err(_) if self.over => break,
                    Err(_) => return Err(self.ended(from)),
                }
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<bool, BalancerError> {
        let mut all = true;
        for front in 0..self.outboxes.len() {
            match self.outboxes[front].post() {
                Sent::All => {}
                Sent::Full => all = false,
                Sent::Closed if self.over => {}
                Sent::Closed => return Err(self.ended(front)),
            }
        }
        Ok(all)
    }

    fn lie_down(&mut self) -> Result<bool, BalancerError> {
        self.bell.lie_down();
        let was_full = self.is_full();
        self.send()?;
        let full = self.is_full();
        let more = !full && (self.half_taken.is_some() || self.inboxes.iter().any(|inbox| !inbox.is_empty()));
        Ok(was_full == full && !more)
    }

    fn get_up(&self) {
        self.bell.get_up();
    }

    fn asked_to_stop(&self) -> bool {
        self.handle.asked()
    }

    fn begin_stopping(&mut self, net: &mut Net) {
        for outbox in &mut self.outboxes {
            outbox.batch.stopping = true;
        }
        let grace = net.settings.grace;
        if let Some(keeper) = &mut self.keeper {
            let mut routed = Routed {
                net,
                outboxes: &mut self.outboxes,
                farewells: &mut self.farewells,
                numbering: self.numbering,
            };
            keeper.begin_stopping(&mut routed);
        }
        self.handle(net, Event::Shutdown { grace });
    }

    fn stopped(&mut self) {
        self.over = true;
        for outbox in &mut self.outboxes {
            outbox.batch.stopped = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use mio::{Poll, Waker};

    use super::*;
    use crate::reactor::exchange::{Told, mailbox};
    use crate::reactor::{Settings, turn};
    use crate::scheduler::{Config, Submission, UnknownAction};

    /// A hub and its connections, of which it has none, and the other ends of the ways to its only front.
    fn hub_and_front() -> (Hub, Net, Outbox<EventBatch>, Inbox<EffectBatch>) {
        let poll = Poll::new().expect("an event queue");
        let waker = Arc::new(Waker::new(poll.registry(), turn::WAKER).expect("a waker"));
        let bell = |waker| Arc::new(Bell::new(waker));
        let bells = [bell(Some(Arc::clone(&waker))), bell(None)];
        let handle = Handle { waker, shutdown: Arc::new(AtomicBool::new(false)) };
        let scheduler = Scheduler::new(Config { unknown_action: UnknownAction::Reject, ..Config::default() });
        let totals = Arc::new(Totals::new(&bells));
        let mut hub = Hub::new((scheduler, None), handle, Numbering::new(0, 2), &totals, &bells[0]);
        let (events_out, events_in) = mailbox(&bells[1], &bells[0]);
        let (effects_out, effects_in) = mailbox(&bells[0], &bells[1]);
        hub.connect(effects_out, events_in);
        let address = ([127, 0, 0, 1], 1).into();
        let net = Net::new(poll, (address, address), Settings::default(), None);
        (hub, net, events_out, effects_in)
    }

    #[test]
    fn a_front_that_takes_nothing_stops_the_first_from_taking_in_and_nothing_is_lost_by_it() {
        let (mut hub, mut net, mut to_hub, from_hub) = hub_and_front();
        let client = Numbering::new(1, 2).outside(Peer { index: 0, generation: 1 });
        to_hub.batch.push(&Event::ClientJoined { peer: client });
        // Nobody offers the action, so each is answered at once.
        let mut submitted = 0;
        let mut submit = |to_hub: &mut Outbox<EventBatch>, most: u64| {
            while submitted < most && !to_hub.is_full() {
                submitted += 1;
                let task = Submission::new(submitted, "nobody's", Payload::EMPTY);
                to_hub.batch.push(&Event::Submit { peer: client, task });
            }
            submitted
        };
        let all = 500_000;
        let mut stuck = 0;
        for _ in 0..1000 {
            let before = stuck;
            stuck = submit(&mut to_hub, all);
            let sent = to_hub.post();
            hub.receive(&mut net).expect("the front is there");
            hub.send().expect("the front is there");
            if sent == Sent::Full && stuck == before {
                break;
            }
        }
        assert!(hub.is_full() && to_hub.is_full() && stuck < all, "{stuck} were taken by those who are full");
        let waiting = hub.outboxes[0].batch.size().0;
        assert!(waiting <= 8192, "{waiting} effects wait beyond the mailbox");
        assert_eq!(hub.next_timer(net.now), None, "what is due waits, too");

        let mut answered = 0;
        for _ in 0..10_000 {
            submit(&mut to_hub, all);
            to_hub.post();
            hub.receive(&mut net).expect("the front is there");
            hub.send().expect("the front is there");
            while let Ok(Some(batch)) = from_hub.take() {
                for at in 0..batch.size().0 {
                    let Some(Told::Effect(Effect::Fail { peer, id, .. })) = batch.get(at) else {
                        panic!("{:?} came", batch.get(at))
                    };
                    answered += 1;
                    assert_eq!((peer.index, id), (0, answered), "each once, in its order");
                }
                from_hub.give_back(batch);
            }
        }
        assert_eq!(answered, all);
    }

    #[test]
    fn a_front_that_has_ended_is_named_whichever_way_it_is_found_out() {
        let (mut hub, mut net, to_hub, from_hub) = hub_and_front();
        drop(to_hub);
        let error = hub.receive(&mut net).expect_err("nothing comes from it any more");
        assert_eq!(error.to_string(), "reactor 2 has failed: it has ended before its time");
        drop(from_hub);
        hub.outboxes[0].batch.stopping = true;
        assert!(hub.send().is_err());
        hub.stopped();
        assert!(hub.receive(&mut net).is_ok() && hub.send().is_ok(), "it may go once all is over");
    }
}
