//! Who decides what is to be done about a reactor's events: the scheduler itself, the scheduler among several
//! reactors, or a mailbox on the way to it. A reactor is made for one of them, so that the only one of its balancer
//! pays nothing for what several need.

use bytes::Bytes;

use super::net::Net;
use super::{BalancerError, Handle};
use crate::dialect::{self, Listener};
use crate::scheduler::{Event, Peer, Scheduler, Time};

/// Whatever takes a reactor's events, and has its effects carried out.
pub(super) trait Decider {
    /// A connection of this reactor, as the scheduler knows it. Events name connections so.
    #[inline]
    fn outside(&self, peer: Peer) -> Peer {
        peer
    }

    /// Takes an event.
    fn handle(&mut self, net: &mut Net, event: Event<'_>);

    /// Whether no event may come now that can wait.
    #[inline]
    fn is_full(&self) -> bool {
        false
    }

    /// A page of the status report, if it can be had now. It comes later otherwise, and the connection waits.
    fn report(&mut self, net: &mut Net, peer: Peer, id: u64, offset: u32, limit: u32) -> Option<Bytes>;

    /// When [`tick`](Self::tick) is next needed.
    fn next_timer(&self) -> Option<Time> {
        None
    }

    /// Does what is due.
    fn tick(&mut self, _net: &mut Net) {}

    /// Finds a reactor for a connection that was accepted.
    fn place(&mut self, net: &mut Net, stream: mio::net::TcpStream, listener: Listener) {
        net.take_on(stream, listener);
    }

    /// Carries out what came from other reactors.
    ///
    /// # Errors
    /// Another reactor has ended, and without it there is no going on.
    fn receive(&mut self, _net: &mut Net) -> Result<(), BalancerError> {
        Ok(())
    }

    /// Sends other reactors what has gathered for them. Says whether all of it went.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    fn send(&mut self) -> Result<bool, BalancerError> {
        Ok(true)
    }

    /// Called before the reactor sleeps. Says whether it may: nothing is there that it must turn for.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    fn lie_down(&mut self) -> Result<bool, BalancerError> {
        Ok(true)
    }

    /// Called when the reactor is awake again.
    fn get_up(&self) {}

    /// Whether it was asked to stop.
    fn asked_to_stop(&self) -> bool;

    /// Says on that the balancer stops.
    fn begin_stopping(&mut self, net: &mut Net);

    /// Says on that everything is answered.
    fn stopped(&mut self) {}
}

/// The scheduler, on the only reactor of its balancer.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) scheduler: Scheduler,
    pub(super) handle: Handle,
}

impl Decider for Alone {
    #[inline(always)]
    fn handle(&mut self, net: &mut Net, event: Event<'_>) {
        self.scheduler.handle(net.now, event, net);
    }

    fn report(&mut self, net: &mut Net, _: Peer, _: u64, offset: u32, limit: u32) -> Option<Bytes> {
        Some(dialect::status_report(&net.context, net.now, &self.scheduler, offset, limit))
    }

    fn next_timer(&self) -> Option<Time> {
        self.scheduler.next_timer()
    }

    fn tick(&mut self, net: &mut Net) {
        self.scheduler.tick(net.now, net);
    }

    fn asked_to_stop(&self) -> bool {
        self.handle.asked()
    }

    fn begin_stopping(&mut self, net: &mut Net) {
        let grace = net.settings.grace;
        self.handle(net, Event::Shutdown { grace });
    }
}
