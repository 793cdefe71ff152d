//! Foreground tasks that travel: one whose action has no worker here, or that has waited for a while, goes to another
//! balancer that has a worker free, and its result comes back.
//!
//! A task stays its lender's: there it stands as held by a worker, which is all other balancers together
//! (`scheduler/lending.rs`), and there it is ended, once. So a result that comes twice or late finds nothing. A *host* has
//! it as a task of a client of its own, with one attempt; attempts are counted by the lender.
//!
//! An action's queue is consumed only by balancers that have room for it, so whoever has none looks whether it has
//! consumers before it lends. A lent task that nobody takes is gone from the queue after [`WITHIN`], and back here soon
//! after. A host tells every [`ALIVE`] which tasks it has: what it does not name any more, or all of one that is silent, has
//! spent an attempt. While RabbitMQ is away nothing is lent, and what is lent comes back.

mod hosting;
mod lending;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::wire::Letter;
use super::{LOOK, Sharing, short};
use crate::background::{Keeper, Outlet};
use crate::bus::{Delivery, Queue, QueueKind};
use crate::scheduler::{AssignmentId, Peer, Scheduler, Time};

/// How long a task has waited here before it is lent, where workers here may have room for it soon.
const WAITED: Duration = Duration::from_millis(50);
/// How long a lent task stays in its action's queue.
const WITHIN: Duration = Duration::from_secs(2);
/// How much later it is back here.
const BACK: Duration = Duration::from_secs(1);
/// How often a host says which tasks it has.
const ALIVE: Duration = Duration::from_secs(2);
/// A host that has been silent for this long is lost.
const SILENT: Duration = Duration::from_secs(10);
/// RabbitMQ may be away for this long before what is lent comes back.
const AWAY: Duration = Duration::from_secs(5);
/// Tasks lent at once, at most.
const MOST_LENT: u32 = 4096;
/// Tasks of an action that are in its queue and that nobody has taken, at most.
const MOST_UNTAKEN: usize = 256;
/// Actions whose queues are looked at in a step.
const MOST_ACTIONS: usize = 64;
/// How soon it is looked again while there is something to lend.
const SOON: Duration = Duration::from_millis(10);
/// Messages that may be on their way to an inbox.
const PREFETCH: u16 = 256;

/// A task that is lent.
#[derive(Debug)]
struct Lent {
    action: Arc<str>,
    since: Time,
    /// The inbox of the balancer that has it, once that has said so.
    host: Option<Arc<str>>,
}

/// A task of another balancer's.
#[derive(Debug)]
struct Guest {
    lender: Arc<str>,
    number: u64,
}

/// A lent task that has come and waits for room here.
#[derive(Debug)]
struct AtDoor {
    since: Time,
    action: Arc<str>,
    delivery: Delivery,
}

/// What travels from here and to here.
#[derive(Debug)]
pub(super) struct Travel {
    /// Where other balancers write to this one; consumed by `consumer`, 0 until it is.
    inbox: Arc<str>,
    consumer: u64,
    /// All other balancers, as a worker.
    others: Peer,
    /// All other balancers, as a client.
    guests_of: Peer,
    has_registered: bool,
    has_joined: bool,
    // ---- what is lent ----
    lent: HashMap<AssignmentId, Lent>,
    /// When each host was last heard.
    heard: HashMap<Arc<str>, Time>,
    /// Where to begin among the actions that wait.
    turn: usize,
    /// Actions whose queues are being looked at.
    looking: HashMap<u64, Arc<str>>,
    /// When RabbitMQ could last be used, and since when without a break.
    well_at: Time,
    well_since: Time,
    // ---- what is hosted ----
    guests: BTreeMap<u64, Guest>,
    by_origin: HashMap<(Arc<str>, u64), u64>,
    next_guest: u64,
    /// The consumers of the queues of actions that there is room for.
    doors: HashMap<Arc<str>, u64>,
    at_doors: VecDeque<AtDoor>,
    alive_at: Time,
}

impl Travel {
    pub(super) fn new(installation: &str, others: Peer, guests_of: Peer) -> Travel {
        let inbox = format!("reparto.{installation}.inbox.{}", uuid::Uuid::new_v4().simple());
        Travel {
            inbox: inbox.into(),
            consumer: 0,
            others,
            guests_of,
            has_registered: false,
            has_joined: false,
            lent: HashMap::new(),
            heard: HashMap::new(),
            turn: 0,
            looking: HashMap::new(),
            well_at: Time(0),
            well_since: Time(0),
            guests: BTreeMap::new(),
            by_origin: HashMap::new(),
            next_guest: 0,
            doors: HashMap::new(),
            at_doors: VecDeque::new(),
            alive_at: Time(0),
        }
    }

    /// The consuming connection is lost: what it delivered and was not taken comes again.
    pub(super) fn at_doors_lost(&mut self) {
        self.at_doors.clear();
    }

    pub(super) fn is_others(&self, peer: Peer) -> bool {
        peer == self.others
    }
}

impl Sharing {
    fn travel_queue(&self, action: &str) -> Queue {
        let name = format!("reparto.{}.foreground.{}", self.installation, short(action));
        Queue { name: name.into(), kind: QueueKind::Transient }
    }

    /// Whether RabbitMQ can be used now, which is noted.
    fn is_well(&mut self, now: Time) -> bool {
        let is_well = self.bus.status().trouble.is_none();
        if is_well {
            self.travel.well_at = now;
        } else {
            // Nobody is heard meanwhile.
            self.travel.well_since = now;
        }
        is_well
    }

    fn write(&mut self, token: u64, to: &Arc<str>, letter: Letter) {
        self.bus.publish(token, letter.message(to));
    }

    /// A message has come, to the inbox or for a door. Gives it back if it is none of them.
    pub(super) fn travel_delivered(&mut self, delivery: Delivery) -> Option<Delivery> {
        let is_ours = delivery.consumer == self.travel.consumer
            || self.travel.doors.values().any(|consumer| *consumer == delivery.consumer);
        if !is_ours {
            return Some(delivery);
        }
        self.arrived.push(delivery);
        None
    }
}

impl Keeper {
    /// Has what travels go on while this balancer stops: what is lent has its host watched over, and what is hosted its
    /// lender told that it runs.
    pub(super) fn go_on_travelling<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let Some(sharing) = &mut self.sharing else { return };
        if now < sharing.look_at {
            return;
        }
        sharing.look_at = now.after(LOOK);
        let is_well = sharing.is_well(now);
        self.look_at_lent(scheduler, now, out);
        if is_well {
            self.say_alive(now);
        }
    }

    /// Looks what should travel, from here and to here, and what has become of it.
    pub(super) fn look_at_travel<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.travel.consumer == 0 {
            sharing.next_consumer += 1;
            sharing.travel.consumer = sharing.next_consumer;
            let inbox = Queue { name: Arc::clone(&sharing.travel.inbox), kind: QueueKind::Inbox };
            sharing.bus.begin(sharing.next_consumer, inbox, PREFETCH);
        }
        let is_well = sharing.is_well(now);
        sharing.look_at_doors(scheduler);
        self.look_at_lent(scheduler, now, out);
        if is_well {
            self.look_for_hosts(scheduler, now);
            self.say_alive(now);
        }
    }

    /// Takes what has come from other balancers.
    pub(super) fn take_arrived<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let arrived = self.sharing.as_mut().map(|sharing| std::mem::take(&mut sharing.arrived));
        for delivery in arrived.unwrap_or_default() {
            let Some(sharing) = &mut self.sharing else { return };
            if delivery.consumer != sharing.travel.consumer {
                sharing.at_door(now, delivery);
                continue;
            }
            sharing.bus.take(delivery.tag);
            match Letter::read(&delivery) {
                Some(Letter::About { from, number, said: wire::Said::Cancel }) => {
                    self.guest_is_cancelled(scheduler, now, (from, number), out);
                }
                Some(Letter::About { from, number, said }) => {
                    self.heard_of_lent(scheduler, now, &from, AssignmentId(number), said, out);
                }
                Some(Letter::Alive { from, numbers }) => {
                    self.host_is_alive(scheduler, now, &from, &numbers, out);
                }
                None => log::warn!("a message in this balancer's inbox says nothing that is known"),
            }
        }
        self.let_in(scheduler, now, out);
    }
}
