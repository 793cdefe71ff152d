//! Fronts between the outside of the simulation and the scheduler: events and effects pass through the batches and
//! mailboxes that reactors exchange, each with as much delay as the seed gives it.
//!
//! So the outside acts on what it has been told, which may be out of date: a client cancels what is done already, a
//! worker answers what is not wanted any more, and either leaves while something is on its way to it. What arrives
//! for one who has left is dropped, as a reactor drops it.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use super::super::*;
use super::Simulation;
use super::books::Note;
use crate::reactor::exchange::{
    Bell, EffectBatch, EventBatch, Farewells, Inbox, Numbering, Outbox, Said, Sent, Told, mailbox, peer_mut,
};

/// A front, and the mailboxes between it and the scheduler.
struct Lane {
    events_out: Outbox<EventBatch>,
    events_in: Inbox<EventBatch>,
    effects_out: Outbox<EffectBatch>,
    effects_in: Inbox<EffectBatch>,
    /// What the scheduler has said on this lane and nobody was told yet, folded, in its order.
    said: VecDeque<u64>,
}

/// All fronts.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    numbering: Numbering,
    farewells: Farewells,
}

/// Puts each effect on its peer's lane.
struct Routed<'a> {
    lanes: &'a mut Lanes,
    hasher: &'a FixedState,
    count: usize,
    stopped: bool,
}

impl Routed<'_> {
    fn lane(&mut self, peer: Peer, what: &str) -> &mut Lane {
        let (number, _) = self.lanes.numbering.inside(peer);
        let lane = &mut self.lanes.lanes[number];
        lane.said.push_back(self.hasher.hash_one(what));
        self.count += 1;
        lane
    }
}

impl<'a> Effects<'a> for Routed<'_> {
    fn push(&mut self, mut effect: Effect<'a>) {
        match peer_mut(&mut effect).copied() {
            Some(peer) => {
                self.lanes.farewells.told(peer, &effect);
                self.lane(peer, &format!("{effect:?}")).effects_out.batch.push(effect);
            }
            None => self.stopped = true,
        }
    }

    fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: Assignment<'_>) {
        let what = format!("{peer:?} {assignment:?} {details:?}");
        self.lane(peer, &what).effects_out.batch.assign(peer, assignment, &details);
    }

    fn count(&self) -> usize {
        self.count
    }
}

impl Lanes {
    pub(super) fn new(fronts: usize) -> Lanes {
        let lane = || {
            let bell = || Arc::new(Bell::new(None));
            let (events_out, events_in) = mailbox(&bell(), &bell());
            let (effects_out, effects_in) = mailbox(&bell(), &bell());
            Lane { events_out, events_in, effects_out, effects_in, said: VecDeque::new() }
        };
        Lanes {
            lanes: (0..fronts).map(|_| lane()).collect(),
            numbering: Numbering::new(0, fronts),
            farewells: Farewells::default(),
        }
    }
}

impl Simulation {
    /// Says something on a peer's lane; then something may happen on any of them.
    pub(super) fn say(&mut self, peer: Peer, event: &Event<'_>) {
        self.leave_on_lane(peer, event);
        for _ in 0..self.random.u8(..4) {
            self.something_moves();
        }
    }

    fn leave_on_lane(&mut self, peer: Peer, event: &Event<'_>) {
        let Some(lanes) = &mut self.lanes else { return };
        let (number, _) = lanes.numbering.inside(peer);
        lanes.lanes[number].events_out.batch.push(event);
    }

    /// One of the things that reactors do, at one of them.
    fn something_moves(&mut self) {
        let fronts = self.lanes.as_ref().map_or(0, |lanes| lanes.lanes.len());
        let number = self.random.usize(..fronts);
        match self.random.u8(..4) {
            0 => self.post(number),
            1 => drop(self.take_events(number)),
            2 => self.post_effects(number),
            _ => drop(self.take_effects(number)),
        }
    }

    fn post(&mut self, number: usize) {
        if let Some(lanes) = &mut self.lanes
            && lanes.lanes[number].events_out.post() == Sent::Full
        {
            self.books.seen.insert("a mailbox was full");
        }
    }

    fn post_effects(&mut self, number: usize) {
        if let Some(lanes) = &mut self.lanes
            && lanes.lanes[number].effects_out.post() == Sent::Full
        {
            self.books.seen.insert("a mailbox was full");
        }
    }

    /// The scheduler takes a batch of events. Says whether there was one.
    fn take_events(&mut self, number: usize) -> bool {
        let Some(lanes) = &self.lanes else { return false };
        let batch = lanes.lanes[number].events_in.take();
        let Some(batch) = batch.expect("the lane is open") else { return false };
        let mut at = 0;
        while let Some(Said::Event(event)) = batch.get(at) {
            at += 1;
            if self.lanes.as_mut().is_some_and(|lanes| lanes.farewells.drops(&event)) {
                self.books.seen.insert("said after it was closed");
                continue;
            }
            self.handle_now(event);
        }
        if let Some(lanes) = &self.lanes {
            lanes.lanes[number].events_in.give_back(batch);
        }
        true
    }

    /// The scheduler takes an event; what it wants done goes to the lanes.
    pub(super) fn handle_now(&mut self, event: Event<'_>) {
        let Some(lanes) = &mut self.lanes else { return };
        let hasher = self.scheduler.hasher.clone();
        let mut routed = Routed { lanes, hasher: &hasher, count: 0, stopped: false };
        self.scheduler.handle(self.now, event, &mut routed);
        let stopped = routed.stopped;
        self.after_the_scheduler(stopped);
    }

    /// The scheduler does what is due.
    pub(super) fn tick_now(&mut self) {
        let Some(lanes) = &mut self.lanes else { return };
        let hasher = self.scheduler.hasher.clone();
        let mut routed = Routed { lanes, hasher: &hasher, count: 0, stopped: false };
        self.scheduler.tick(self.now, &mut routed);
        let stopped = routed.stopped;
        self.after_the_scheduler(stopped);
    }

    fn after_the_scheduler(&mut self, stopped: bool) {
        if stopped {
            assert!(!std::mem::replace(&mut self.books.stopped, true), "it stops once");
        }
        self.assert_the_scheduler_is_sound();
    }

    /// A front takes a batch of effects, and its peers are told. Says whether there was one.
    fn take_effects(&mut self, number: usize) -> bool {
        let Some(lanes) = &self.lanes else { return false };
        let batch = lanes.lanes[number].effects_in.take();
        let Some(batch) = batch.expect("the lane is open") else { return false };
        let mut at = 0;
        while let Some(told) = batch.get(at) {
            at += 1;
            let what = match &told {
                Told::Assign(peer, assignment, details) => format!("{peer:?} {assignment:?} {details:?}"),
                Told::Effect(effect) => format!("{effect:?}"),
                Told::Report(..) => unreachable!("nobody asks for a report"),
            };
            let hash = self.scheduler.hasher.hash_one(what);
            let said = self.lanes.as_mut().and_then(|lanes| lanes.lanes[number].said.pop_front());
            assert_eq!(said, Some(hash), "what is told is what was said, in its order");
            self.trace = self.trace.rotate_left(5) ^ hash;
            match told {
                Told::Assign(peer, assignment, details) => {
                    self.tell(peer, Effect::Assign { peer, assignment }, Some(details));
                }
                Told::Effect(mut effect) => {
                    let peer = *peer_mut(&mut effect).expect("what is on a lane is for one of its peers");
                    self.tell(peer, effect, None);
                }
                Told::Report(..) => {}
            }
        }
        if let Some(lanes) = &self.lanes {
            lanes.lanes[number].effects_in.give_back(batch);
        }
        self.reply();
        true
    }

    /// A peer is told something, if it is still there.
    fn tell(&mut self, peer: Peer, effect: Effect<'_>, details: Option<Assignment<'_>>) {
        if !self.books.clients.contains_key(&peer) && !self.books.workers.contains_key(&peer) {
            self.books.seen.insert("came too late");
            return;
        }
        let closed = matches!(effect, Effect::Close { .. });
        if closed {
            self.books.clients.remove(&peer);
            self.books.worker_lost(peer);
        }
        self.books.note(Note { effect, details, now: self.now });
        if closed {
            // The front's last word on it.
            self.departs(peer);
            self.leave_on_lane(peer, &Event::Gone { peer });
        }
    }

    /// Everything arrives, and what is said about it, until nothing is under way.
    pub(super) fn deliver_everything(&mut self) {
        let fronts = self.lanes.as_ref().map_or(0, |lanes| lanes.lanes.len());
        for _ in 0..1_000_000 {
            let mut moved = false;
            for number in 0..fronts {
                self.post(number);
                moved |= self.take_events(number);
            }
            for number in 0..fronts {
                self.post_effects(number);
                moved |= self.take_effects(number);
            }
            if !moved {
                let left = self.lanes.iter().flat_map(|lanes| &lanes.lanes).any(|lane| !lane.said.is_empty());
                assert!(!left, "something that was said reached nobody");
                return;
            }
        }
        panic!("peers and scheduler have no end of telling each other something");
    }
}
