//! Starting: listeners, reactors and the mailboxes between them; then a thread a reactor, until all have ended.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use mio::{Poll, Waker};

use super::decider::Alone;
use super::exchange::{Bell, Numbering, mailbox};
use super::front::Front;
use super::hub::Hub;
use super::listener::Acceptor;
use super::net::Net;
use super::totals::Totals;
use super::turn::{Reactor, WAKER};
use super::upstreams::Upstreams;
use super::{Balancer, BalancerError, Handle, Settings};
use crate::background::{Keeper, OpenedStore};
use crate::dialect::Listener;
use crate::scheduler::Scheduler;

/// The reactors of a balancer.
#[derive(Debug)]
pub(super) enum Reactors {
    /// One, with the scheduler.
    One(Box<Reactor<Alone>>),
    /// Several: the first with the scheduler, and the others.
    Several(Box<Reactor<Hub>>, Vec<Reactor<Front>>),
}

/// Listens, and puts the reactors together.
pub(super) fn bind(settings: Settings, store: Option<OpenedStore>) -> Result<Balancer, BalancerError> {
    let (poll, waker) = poll_and_waker()?;
    let handle = Handle { waker: Arc::clone(&waker), shutdown: Arc::new(AtomicBool::new(false)) };
    let acceptors = settings
        .listeners()
        .enumerate()
        .map(|(index, (listener, address))| Acceptor::bind(poll.registry(), index, listener, address))
        .collect::<Result<Vec<Acceptor>, BalancerError>>()?;
    let addresses: Vec<_> = acceptors.iter().map(Acceptor::address).collect();
    // `Settings::listeners` begins with these two.
    let (clients, workers) = (addresses[0], addresses[1]);
    let of = |listener| acceptors.iter().filter(move |acceptor| acceptor.listener() == listener);
    let gearman = of(Listener::Gearman).map(Acceptor::address).next();
    let lines = of(Listener::Lines).map(Acceptor::address).collect();
    let scheduler = Scheduler::new(settings.scheduler.clone());
    let keeper = match store {
        Some(store) => {
            let waker = Arc::clone(&waker);
            let wake = move || {
                // It fails when the balancer is gone, and then nobody waits for it.
                let _ = waker.wake();
            };
            let max_payload = usize::try_from(settings.max_frame_bytes).unwrap_or(usize::MAX);
            Some(Box::new(Keeper::start(store, max_payload, wake)?))
        }
        None => None,
    };
    let upstreams = Upstreams::new(&settings.upstreams, Some(Arc::clone(&waker)));
    let reactors = if settings.reactors == 1 {
        let mut net = Net::new(poll, (clients, workers), settings, None);
        net.acceptors = acceptors;
        net.upstreams = upstreams;
        let alone = Alone { scheduler, handle: handle.clone(), keeper };
        Reactors::One(Box::new(Reactor::new(net, alone, Instant::now())))
    } else {
        let ways = Ways { acceptors, upstreams, addresses: (clients, workers) };
        several((poll, waker), ways, (scheduler, keeper), handle.clone(), &settings)?
    };
    Ok(Balancer { clients, workers, gearman, lines, handle, reactors })
}

fn poll_and_waker() -> Result<(Poll, Arc<Waker>), BalancerError> {
    let poll = Poll::new().map_err(BalancerError::Poll)?;
    let waker = Waker::new(poll.registry(), WAKER).map_err(BalancerError::Poll)?;
    Ok((poll, Arc::new(waker)))
}

/// How connections come to be, all of them at the first reactor.
struct Ways {
    acceptors: Vec<Acceptor>,
    upstreams: Upstreams,
    /// Where clients and workers connect.
    addresses: (SocketAddr, SocketAddr),
}

/// The first reactor with the scheduler, the others, and the mailboxes between them.
fn several(
    first: (Poll, Arc<Waker>),
    ways: Ways,
    scheduler: (Scheduler, Option<Box<Keeper>>),
    handle: Handle,
    settings: &Settings,
) -> Result<Reactors, BalancerError> {
    let mut polls = vec![first];
    for _ in 1..settings.reactors {
        polls.push(poll_and_waker()?);
    }
    let bells: Vec<Arc<Bell>> =
        polls.iter().map(|(_, waker)| Arc::new(Bell::new(Some(Arc::clone(waker))))).collect();
    let totals = Arc::new(Totals::new(&bells));
    let mut nets = (0..).zip(polls).map(|(number, (poll, _))| {
        Net::new(poll, ways.addresses, settings.clone(), Some((number, Arc::clone(&totals))))
    });
    let numbering = |number| Numbering::new(number, settings.reactors);
    // They are at least two.
    let Some(mut net) = nets.next() else { return Err(BalancerError::Poll(io::ErrorKind::NotFound.into())) };
    net.acceptors = ways.acceptors;
    net.upstreams = ways.upstreams;
    let origin = Instant::now();
    let mut hub = Hub::new(scheduler, handle, numbering(0), &totals, &bells[0]);
    let mut fronts = Vec::with_capacity(settings.reactors - 1);
    for ((number, net), bell) in (1..).zip(nets).zip(&bells[1..]) {
        let (outbox, events) = mailbox(bell, &bells[0]);
        let (effects, inbox) = mailbox(&bells[0], bell);
        hub.connect(effects, events);
        fronts.push(Reactor::new(net, Front::new(numbering(number), bell, outbox, inbox), origin));
    }
    Ok(Reactors::Several(Box::new(Reactor::new(net, hub, origin)), fronts))
}

impl Reactors {
    /// Serves until all have ended.
    pub(super) fn run(self) -> Result<(), BalancerError> {
        match self {
            Reactors::One(reactor) => reactor.run(),
            Reactors::Several(first, fronts) => run_several(*first, fronts),
        }
    }
}

/// The first runs here, each other one in a thread of its own. Whichever ends before its time closes its mailboxes,
/// by which the first finds out, and so all the others.
fn run_several(first: Reactor<Hub>, fronts: Vec<Reactor<Front>>) -> Result<(), BalancerError> {
    let mut threads: Vec<JoinHandle<Result<(), BalancerError>>> = Vec::with_capacity(fronts.len());
    for (number, front) in (2..).zip(fronts) {
        let thread = Builder::new().name(format!("reactor-{number}")).spawn(move || front.run());
        threads.push(thread.map_err(|source| BalancerError::Thread { number, source })?);
    }
    let ended = first.run();
    let mut cause = None;
    for (number, thread) in (2..).zip(threads) {
        let error = match thread.join() {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(panic) => BalancerError::Reactor { number, reason: reason(&*panic) },
        };
        // That the first has ended is no cause, but what others say when it has.
        if !matches!(error, BalancerError::Reactor { number: 1, .. }) {
            cause = cause.or(Some(error));
        }
    }
    match (ended, cause) {
        (Ok(()) | Err(BalancerError::Reactor { .. }), Some(cause)) => Err(cause),
        (ended, _) => ended,
    }
}

/// What a panic said.
fn reason(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", said.unwrap_or("without a word"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn several(reactors: usize) -> (Reactor<Hub>, Vec<Reactor<Front>>) {
        let any_port = ([127, 0, 0, 1], 0).into();
        let settings = Settings { clients: any_port, workers: any_port, reactors, ..Settings::default() };
        match bind(settings, None).expect("free ports").reactors {
            Reactors::Several(first, fronts) => (*first, fronts),
            Reactors::One(_) => panic!("{reactors} reactors are several"),
        }
    }

    #[test]
    fn a_reactor_that_ends_before_its_time_takes_the_balancer_down_and_is_named() {
        let (first, mut fronts) = several(4);
        fronts.remove(1);
        let error = run_several(first, fronts).expect_err("one is missing");
        assert_eq!(error.to_string(), "reactor 3 has failed: it has ended before its time");
    }

    #[test]
    fn without_the_first_the_others_end() {
        let (first, fronts) = several(3);
        let threads: Vec<_> =
            fronts.into_iter().map(|front| std::thread::spawn(move || front.run())).collect();
        drop(first);
        for thread in threads {
            let ended = thread.join().expect("it does not panic");
            assert!(matches!(ended, Err(BalancerError::Reactor { number: 1, .. })), "{ended:?}");
        }
    }

    #[test]
    fn what_a_panic_said_is_told() {
        for (panic, said) in [
            (Box::new("a text") as Box<dyn Any + Send>, "it panicked: a text"),
            (Box::new("a string".to_owned()), "it panicked: a string"),
            (Box::new(7), "it panicked: without a word"),
        ] {
            assert_eq!(reason(&*panic), said);
        }
    }
}
