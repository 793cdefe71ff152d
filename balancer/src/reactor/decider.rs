//! Who decides what is to be done about a reactor's events: the scheduler itself, the scheduler among several
//! reactors, or a mailbox on the way to it. A reactor is made for one of them, so that the only one of its balancer
//! pays nothing for what several need.

use bytes::Bytes;

use super::net::Net;
use super::{BalancerError, Handle};
use crate::background::{Ask, Keeper};
use crate::dialect::gearman::{self, Grabs, Jobs};
use crate::dialect::native::{Results, Tasks};
use crate::dialect::{self, Asked, Context, Listener};
use crate::scheduler::{Effects, Event, Peer, Scheduler, Time};
use crate::storage::StoreError;

/// Whatever takes a reactor's events, and has its effects carried out.
pub(super) trait Decider {
    /// A connection of this reactor, as the scheduler knows it. Events name connections so.
    #[inline]
    fn outside(&self, peer: Peer) -> Peer {
        peer
    }

    /// Takes an event.
    fn handle(&mut self, net: &mut Net, event: Event<'_>);

    /// Takes one event after the other, as many as can be taken now; one at least.
    #[inline]
    fn take_each<'a>(&mut self, net: &mut Net, mut next: impl FnMut() -> Option<Event<'a>>) {
        while let Some(event) = next() {
            self.handle(net, event);
            if self.is_full() {
                break;
            }
        }
    }

    /// Takes tasks of one client that have come together, as many as can be taken now; one at least.
    #[inline]
    fn submit_all(&mut self, net: &mut Net, peer: Peer, tasks: &mut Tasks<'_>) {
        self.take_each(net, || tasks.next_event(peer));
    }

    /// Takes results of one worker that have come together, as many as can be taken now; one at least.
    #[inline]
    fn finish_all(&mut self, net: &mut Net, peer: Peer, results: &mut Results<'_>) {
        self.take_each(net, || results.next_event(peer));
    }

    /// Takes announced tasks of one client that have come together, as many as can be taken now; one at least.
    #[inline]
    fn announce_all(&mut self, net: &mut Net, peer: Peer, jobs: &mut Jobs<'_>) {
        self.take_each(net, || jobs.next_event(peer));
    }

    /// Takes a pull worker's questions that have come together, as many as can be taken now; one at least.
    #[inline]
    fn pull_all(&mut self, net: &mut Net, peer: Peer, grabs: &mut Grabs) {
        self.take_each(net, || grabs.next_event(peer));
    }

    /// Takes a pull worker's results that have come together, as many as can be taken now; one at least.
    #[inline]
    fn finish_all_pulled(&mut self, net: &mut Net, peer: Peer, results: &mut gearman::Results<'_>) {
        self.take_each(net, || results.next_event(peer));
    }

    /// Whether no event may come now that can wait.
    #[inline]
    fn is_full(&self) -> bool {
        false
    }

    /// The answer to a question, if it can be had now. It comes later otherwise, and the connection waits.
    fn report(&mut self, net: &mut Net, peer: Peer, id: u64, asked: Asked) -> Option<Bytes>;

    /// Takes what a client asks of the store.
    fn ask(&mut self, net: &mut Net, peer: Peer, ask: Ask);

    /// Takes what the store has answered, and gives it what is to be kept. Once a turn, after all events.
    fn keep(&mut self, _net: &mut Net) {}

    /// Whether the store has answered all that it must before the balancer ends.
    fn is_quiet(&self) -> bool {
        true
    }

    /// Why the balancer cannot go on; `None` while it can.
    fn failure(&self) -> Option<BalancerError> {
        None
    }

    /// When [`tick`](Self::tick) is next needed.
    fn next_timer(&self, _now: Time) -> Option<Time> {
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

/// Why a balancer with these stores cannot go on. Only that another leads ends it: without a store that is broken, or
/// away, foreground tasks go on.
pub(super) fn failure_of(keeper: Option<&Keeper>) -> Option<BalancerError> {
    match keeper?.failure()? {
        fenced @ StoreError::Fenced { .. } => Some(fenced.into()),
        _ => None,
    }
}

/// Answers a question. Says whether the balancer is asked to stop.
pub(super) fn reply<'a>(
    asked: &Asked,
    context: &Context,
    now: Time,
    (scheduler, keeper): (&mut Scheduler, Option<&Keeper>),
    effects: &mut impl Effects<'a>,
) -> (Bytes, bool) {
    match asked {
        Asked::Status { offset, limit } => {
            let engines = keeper.map(Keeper::engines).unwrap_or_default();
            (dialect::status_report(context, now, scheduler, &engines, (*offset, *limit)), false)
        }
        Asked::Gearman(question) => {
            let place = dialect::gearman::Place { scheduler, keeper, now };
            dialect::gearman::reply(question, &context.gearman, place, effects)
        }
    }
}

/// The scheduler, on the only reactor of its balancer.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) scheduler: Scheduler,
    pub(super) handle: Handle,
    pub(super) keeper: Option<Box<Keeper>>,
}

impl Decider for Alone {
    #[inline(always)]
    fn handle(&mut self, net: &mut Net, event: Event<'_>) {
        let leaving = match event {
            Event::Gone { peer } => Some((peer, None)),
            Event::Cancel { peer, id } => Some((peer, Some(id))),
            _ => None,
        };
        self.scheduler.handle(net.now, event, net);
        if let (Some(leaving), Some(keeper)) = (leaving, &mut self.keeper) {
            keeper.leave(&mut self.scheduler, net.now, leaving, net);
        }
    }

    #[inline]
    fn submit_all(&mut self, net: &mut Net, peer: Peer, tasks: &mut Tasks<'_>) {
        self.scheduler.submit_all(net.now, peer, tasks.action(), tasks, net);
    }

    #[inline]
    fn finish_all(&mut self, net: &mut Net, peer: Peer, results: &mut Results<'_>) {
        self.scheduler.finish_all(net.now, peer, results, net);
    }

    #[inline]
    fn announce_all(&mut self, net: &mut Net, peer: Peer, jobs: &mut Jobs<'_>) {
        self.scheduler.announce_all(net.now, peer, jobs.action(), jobs, net);
    }

    #[inline]
    fn pull_all(&mut self, net: &mut Net, peer: Peer, grabs: &mut Grabs) {
        self.scheduler.pull_all(net.now, peer, grabs.take(), net);
    }

    #[inline]
    fn finish_all_pulled(&mut self, net: &mut Net, peer: Peer, results: &mut gearman::Results<'_>) {
        self.scheduler.finish_all(net.now, peer, results, net);
    }

    fn ask(&mut self, net: &mut Net, peer: Peer, ask: Ask) {
        if let Some(keeper) = &mut self.keeper {
            keeper.ask(&mut self.scheduler, net.now, peer, ask, net);
        }
    }

    fn keep(&mut self, net: &mut Net) {
        if let Some(keeper) = &mut self.keeper {
            keeper.turn(&mut self.scheduler, net.now, net);
        }
    }

    fn is_quiet(&self) -> bool {
        self.keeper.as_ref().is_none_or(|keeper| keeper.is_quiet())
    }

    fn report(&mut self, net: &mut Net, _: Peer, _: u64, asked: Asked) -> Option<Bytes> {
        let place = (&mut self.scheduler, self.keeper.as_deref());
        let (context, now) = (net.context.clone(), net.now);
        let (report, stops) = reply(&asked, &context, now, place, net);
        if stops {
            self.handle.shutdown();
        }
        Some(report)
    }

    fn failure(&self) -> Option<BalancerError> {
        failure_of(self.keeper.as_deref())
    }

    fn next_timer(&self, now: Time) -> Option<Time> {
        let keeper = self.keeper.as_ref().and_then(|keeper| keeper.next_timer(&self.scheduler, now));
        [self.scheduler.next_timer(), keeper].into_iter().flatten().min()
    }

    fn tick(&mut self, net: &mut Net) {
        self.scheduler.tick(net.now, net);
    }

    fn asked_to_stop(&self) -> bool {
        self.handle.asked()
    }

    fn begin_stopping(&mut self, net: &mut Net) {
        let grace = net.settings.grace;
        if let Some(keeper) = &mut self.keeper {
            keeper.begin_stopping(net);
        }
        self.handle(net, Event::Shutdown { grace });
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use reparto_protocol::{Hello, Message, Role, Task, TaskOptions, limits};

    use super::*;
    use crate::dialect::{Session, Step};
    use crate::reactor::Settings;

    /// One that is full already when it is asked to take something, as a front may be after a worker was heard.
    #[derive(Default)]
    struct Full(usize);

    impl Decider for Full {
        fn handle(&mut self, _: &mut Net, _: Event<'_>) {
            self.0 += 1;
        }
        fn is_full(&self) -> bool {
            true
        }
        fn report(&mut self, _: &mut Net, _: Peer, _: u64, _: Asked) -> Option<Bytes> {
            None
        }
        fn ask(&mut self, _: &mut Net, _: Peer, _: Ask) {}
        fn asked_to_stop(&self) -> bool {
            false
        }
        fn begin_stopping(&mut self, _: &mut Net) {}
    }

    #[test]
    fn of_a_run_one_frame_at_least_is_taken_also_by_one_that_is_full() {
        let address = ([127, 0, 0, 1], 1).into();
        let poll = mio::Poll::new().expect("a poll");
        let mut net = Net::new(poll, (address, address), Settings::default(), None);
        let peer = Peer { index: 0, generation: 1 };
        let mut session = Session::new(Listener::Clients, &net.context, None);
        let mut wire = BytesMut::new();
        let hello =
            Hello { version: limits::VERSION, role: Role::Client, features: 0, agent: "", token: &[] };
        Message::Hello(hello).encode(&mut wire);
        for id in 1..=3 {
            let task = Task { id, action: "a", options: TaskOptions::default(), payload: b"x" };
            Message::Task(task).encode(&mut wire);
        }
        let (wire, mut from) = (wire.freeze(), 0);
        session.decode(&net.context, peer, &wire, &mut from).expect("HELLO");
        let mut taken = Vec::new();
        while let Ok(Step::Tasks(mut tasks)) = session.decode(&net.context, peer, &wire, &mut from) {
            let mut decider = Full::default();
            decider.submit_all(&mut net, peer, &mut tasks);
            from = tasks.at();
            taken.push(decider.0);
        }
        assert_eq!((taken, from), (vec![1, 1, 1], wire.len()));
    }
}
