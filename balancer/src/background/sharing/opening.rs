//! What sharing work needs to be opened and started.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{TrySendError, bounded};

use super::intake::Intake;
use super::posting::{AmqpWorker, Posts};
use super::travel::Travel;
use super::{HeardOfOthers, Sharing};
use crate::bus::{Address, Bus, BusLimits};
use crate::scheduler::{Peer, Time};
use crate::storage::{Hearing, ShareSettings, StoreError};

/// What is heard of other balancers and not yet taken, in notifications; what is beyond it is asked for.
const MOST_HEARD: usize = 4096;

/// Workers that know only AMQP, at most.
pub const MOST_AMQP_WORKERS: usize = 1024;
/// Other balancers as a worker, and as a client; behind them the workers that know only AMQP.
const OTHERS: Peer = Peer::insider(0);
const GUESTS: Peer = Peer::insider(1);
const FIRST_POST: Peer = Peer::insider(2);

/// How work is shared with other balancers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharingSettings {
    /// Where RabbitMQ is.
    pub bus: Address,
    /// Bounds of what waits for it.
    pub limits: BusLimits,
    /// Leases, and how long what is left over is left alone.
    pub share: ShareSettings,
    /// Queues that any program may publish tasks into, as JSON, up to 250 bytes each. Their outcomes are told to where
    /// the messages say.
    pub queues: Vec<Arc<str>>,
    /// Workers that know only AMQP, at most [`MOST_AMQP_WORKERS`].
    pub workers: Vec<AmqpWorker>,
}

impl SharingSettings {
    /// The usual settings.
    #[must_use]
    pub fn new(bus: Address) -> Self {
        SharingSettings {
            bus,
            limits: BusLimits::default(),
            share: ShareSettings::default(),
            queues: Vec::new(),
            workers: Vec::new(),
        }
    }
}

/// What was opened for sharing beside the store.
#[derive(Debug)]
pub(in crate::background) struct OpenedSharing {
    pub(in crate::background) settings: SharingSettings,
    pub(in crate::background) hearing: Hearing,
    pub(in crate::background) installation: Arc<str>,
}

/// Sets it to work. `wake` is called from its threads when there is something to take.
///
/// # Errors
/// A thread cannot be had.
pub(in crate::background) fn start(
    opened: OpenedSharing,
    wake: &Arc<dyn Fn() + Send + Sync>,
) -> Result<Box<Sharing>, StoreError> {
    let OpenedSharing { settings, hearing, installation } = opened;
    let waker = Arc::clone(wake);
    let bus = Bus::start(&settings.bus, settings.limits, move || waker())
        .map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
    let (told, heard) = bounded(MOST_HEARD);
    let missed = Arc::new(AtomicBool::new(false));
    let (waker, some_missed) = (Arc::clone(wake), Arc::clone(&missed));
    let listener = hearing.start(move |heard| {
        if let Err(TrySendError::Full(_)) = told.try_send(heard) {
            some_missed.store(true, Ordering::Release);
        }
        waker();
    })?;
    Ok(Box::new(Sharing {
        bus,
        heard: HeardOfOthers { heard, missed },
        _listener: listener,
        courses: HashMap::new(),
        consumers: HashMap::new(),
        next_consumer: 0,
        intakes: settings.queues.iter().map(Intake::new).collect(),
        telling: HashSet::new(),
        posts: Posts::new(&settings.workers, FIRST_POST, &installation),
        answered: Vec::new(),
        travel: Travel::new(&installation, OTHERS, GUESTS),
        arrived: Vec::new(),
        installation,
        held: HashMap::new(),
        owner: None,
        delayed: VecDeque::new(),
        look_at: Time(0),
        sweep_at: Time(0),
        is_sweeping: false,
    }))
}
