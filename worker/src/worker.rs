//! The worker itself: how it is built, run, changed while it runs, and stopped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use reparto_protocol::limits;

use crate::actions::Actions;
use crate::error::{ConfigError, ConnectionError, WorkerError};
use crate::event::Event;
use crate::held::Held;
use crate::link::{Link, Tickets};
use crate::lock;
use crate::pool::Pool;
use crate::session;
use crate::task::{CancelReason, Task, TaskError};

/// Where a balancer takes workers unless it is told otherwise.
pub const DEFAULT_BALANCER: &str = "127.0.0.1:8889";

/// Most balancers that one worker connects to.
pub const MAX_BALANCERS: usize = 64;

/// Once the grace is over and tasks are cancelled, their handlers have this long to return. A command that does
/// not end on SIGTERM is killed within it.
const CANCEL_GRACE: Duration = Duration::from_secs(3);
/// A balancer has this long to close after the worker has said all.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// How often a stopping worker looks whether it is done.
const STOP_TICK: Duration = Duration::from_millis(5);

type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// Settings of a worker to be. See [`Worker::builder`].
pub struct WorkerBuilder {
    id: Option<String>,
    balancers: Vec<String>,
    threads: u32,
    window: u32,
    weight: u32,
    actions: Actions,
    on_event: Option<OnEvent>,
}

impl Default for WorkerBuilder {
    /// No id, no actions, the local balancer, a thread for each core.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        WorkerBuilder {
            id: None,
            balancers: Vec::new(),
            threads: u32::try_from(cores).unwrap_or(1).min(limits::MAX_THREADS),
            window: limits::DEFAULT_WINDOW,
            weight: 1,
            actions: Actions::new(),
            on_event: None,
        }
    }
}

impl WorkerBuilder {
    /// The worker's id, 1 to 255 bytes, alone among the workers that live at a balancer. Without one it gets its
    /// host's name, its process' number and something random.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// One more balancer, as HOST:PORT. The worker registers with every one that it is given, 64 at most, and
    /// runs tasks for all of them; without any it is [`DEFAULT_BALANCER`].
    #[must_use]
    pub fn balancer(mut self, address: impl Into<String>) -> Self {
        self.balancers.push(address.into());
        self
    }

    /// Tasks run at once, 1 to 65,536; without it, one for each core.
    #[must_use]
    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// Tasks that each balancer may have here at most, running or waiting, 1 to 1,048,576; 1,024 without it.
    /// Never less than the threads.
    #[must_use]
    pub fn window(mut self, window: u32) -> Self {
        self.window = window;
        self
    }

    /// The worker's share under the balancer's policy `weighted`, 1 to 1,000; 1 without it.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// One more action, and how it is done. A handler of the same name is replaced.
    #[must_use]
    pub fn action<H>(mut self, name: impl Into<String>, handler: H) -> Self
    where
        H: Fn(&Task) -> Result<Bytes, TaskError> + Send + Sync + 'static,
    {
        self.actions = self.actions.with(name, handler);
        self
    }

    /// More actions, such as the [built-in ones](crate::builtin::actions).
    #[must_use]
    pub fn actions(mut self, actions: Actions) -> Self {
        self.actions = self.actions.and(actions);
        self
    }

    /// What to call when the worker registered somewhere or was lost. It is called from the threads that hold
    /// the connections, so it should be quick.
    #[must_use]
    pub fn on_event(mut self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Box::new(callback));
        self
    }

    /// Checks the settings. Nothing is started and no connection made before [`Worker::run`].
    ///
    /// # Errors
    /// A setting that is out of its range, no actions, a balancer's address that is not HOST:PORT.
    pub fn build(mut self) -> Result<Worker, ConfigError> {
        let id = self.id.unwrap_or_else(default_id);
        if id.is_empty() || id.len() > limits::MAX_WORKER_ID_BYTES {
            return Err(ConfigError::Id { bytes: id.len() });
        }
        check_range("threads", self.threads, limits::MAX_THREADS)?;
        check_range("window", self.window, limits::MAX_WINDOW)?;
        check_range("weight", self.weight, limits::MAX_WEIGHT)?;
        self.actions.check()?;
        if self.balancers.is_empty() {
            self.balancers.push(DEFAULT_BALANCER.to_owned());
        }
        check_addresses(&self.balancers)?;

        let window = self.window.max(self.threads);
        // No more tickets wait for a balancer than it has tasks here, or than there can be threads.
        let tickets_each = window.min(limits::MAX_THREADS) as usize;
        let (sender, tickets) = bounded(tickets_each * self.balancers.len());
        let threads = Arc::new(AtomicUsize::new(0));
        let slot = |(balancer, address)| {
            let (sender, threads) = (sender.clone(), Arc::clone(&threads));
            let tickets = Tickets { balancer, waiting: Arc::default(), sender, threads };
            Slot { address, tickets, held: Arc::default(), current: Mutex::new(None) }
        };
        let control = Control {
            actions: Arc::new(self.actions),
            threads: self.threads,
            draining: false,
            running: false,
            stop_by: None,
            sessions: 0,
        };
        let shared = Shared {
            id,
            window,
            weight: self.weight,
            slots: self.balancers.into_iter().enumerate().map(slot).collect(),
            tickets,
            threads,
            pool: Pool::default(),
            control: Mutex::new(control),
            changed: Condvar::new(),
            on_event: self.on_event,
        };
        Ok(Worker { shared: Arc::new(shared) })
    }
}

fn check_range(what: &'static str, value: u32, most: u32) -> Result<(), ConfigError> {
    if (1..=most).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::Range { what, value: value.into(), most: most.into() })
    }
}

fn check_addresses(addresses: &[String]) -> Result<(), ConfigError> {
    if addresses.len() > MAX_BALANCERS {
        return Err(ConfigError::BalancerCount { count: addresses.len() });
    }
    for (index, address) in addresses.iter().enumerate() {
        let parts = address.rsplit_once(':');
        if !parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            return Err(ConfigError::Address { address: address.clone() });
        }
        if addresses[..index].contains(address) {
            return Err(ConfigError::DuplicateBalancer { address: address.clone() });
        }
    }
    Ok(())
}

fn default_id() -> String {
    #[cfg(unix)]
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let host = std::env::var("COMPUTERNAME").unwrap_or_default();
    // The random part tells apart workers of one process, and containers that all have the process number 1.
    let host = if host.is_empty() { "worker" } else { reparto_protocol::cut(&host, 200) };
    format!("{host}-{}-{:08x}", std::process::id(), fastrand::u32(..))
}

/// A worker, ready to run.
pub struct Worker {
    shared: Arc<Shared>,
}

impl Worker {
    /// Begins a worker's settings.
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder::default()
    }

    /// The worker's id.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// A handle to change and stop the worker from another thread.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle { shared: Arc::clone(&self.shared) }
    }

    /// Runs until [`WorkerHandle::stop`]. A balancer that is not there, or is lost, is tried again and again.
    ///
    /// A handler that does not return by the end of the grace and 3 s more is left behind on its thread.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn run(self) -> Result<(), WorkerError> {
        let shared = &self.shared;
        let started = self.start();
        if started.is_err() {
            self.handle().stop(Duration::ZERO);
        }
        let mut control = lock(&shared.control);
        while control.stop_by.is_none() {
            control = shared.changed.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        drop(control);
        let idle = self.leave();
        shared.pool.end(shared, idle);
        started
    }

    fn start(&self) -> Result<(), WorkerError> {
        let shared = &self.shared;
        let mut control = lock(&shared.control);
        shared.pool.resize(shared, control.threads as usize)?;
        control.running = true;
        for slot in 0..shared.slots.len() {
            let run = {
                let shared = Arc::clone(shared);
                move || {
                    session::run(&shared, slot);
                    lock(&shared.control).sessions -= 1;
                    shared.changed.notify_all();
                }
            };
            std::thread::Builder::new()
                .name(format!("balancer-{slot}"))
                .spawn(run)
                .map_err(|source| WorkerError::Thread { purpose: "a balancer's connection", source })?;
            control.sessions += 1;
        }
        Ok(())
    }

    /// Hands back, finishes, says goodbye. Gives whether every handler has returned.
    fn leave(&self) -> bool {
        let shared = &self.shared;
        shared.each_link(Link::leave);
        let mut idle = shared.wait_until_quiet(|control| control.stop_by);
        if !idle {
            shared.each_link(|link| link.cancel_running(CancelReason::Stopping));
            shared.slots.iter().for_each(|slot| slot.held.cancel_all(CancelReason::Stopping));
            let end = Instant::now() + CANCEL_GRACE;
            idle = shared.wait_until_quiet(|_| Some(end));
        }
        shared.each_link(session::end_sending);
        shared.wait_for_sessions(CLOSE_GRACE);
        shared.each_link(|link| link.close(ConnectionError::Left));
        // Those that are connecting see the stop when that ends, and are not waited for.
        shared.wait_for_sessions(CLOSE_GRACE / 10);
        idle
    }
}

/// Changes and stops a worker, from any thread. Clones are handles of the same worker.
#[derive(Clone)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
}

impl WorkerHandle {
    /// The worker's id.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Stops the worker, and returns at once: it takes nothing new, hands back what has not begun, finishes what
    /// has within `grace`, cancels the rest, and leaves. A second call can only shorten the grace.
    pub fn stop(&self, grace: Duration) {
        let now = Instant::now();
        // A grace beyond the end of time is cut to a day.
        let by = now.checked_add(grace).unwrap_or(now + Duration::from_secs(24 * 3600));
        let mut control = lock(&self.shared.control);
        control.stop_by = Some(control.stop_by.map_or(by, |earlier| earlier.min(by)));
        drop(control);
        self.shared.changed.notify_all();
    }

    /// Takes nothing new, and runs what it has, until [`resume`](Self::resume).
    pub fn drain(&self) {
        self.set_draining(true);
    }

    /// Takes work again.
    pub fn resume(&self) {
        self.set_draining(false);
    }

    fn set_draining(&self, draining: bool) {
        let mut control = lock(&self.shared.control);
        control.draining = draining;
        self.shared.each_link_or_close(|link| link.drain(!draining));
        drop(control);
    }

    /// Offers these actions from now on, in place of the former. Tasks that have come already are done as before.
    ///
    /// # Errors
    /// No actions, more than 1,024, or a name that is empty or longer than 255 bytes.
    pub fn set_actions(&self, actions: Actions) -> Result<(), WorkerError> {
        actions.check()?;
        let mut control = lock(&self.shared.control);
        control.actions = Arc::new(actions);
        self.shared.register_anew(&control);
        Ok(())
    }

    /// Runs this many tasks at once from now on, 1 up to the window. Fewer: a task that runs is run to its end.
    ///
    /// # Errors
    /// A number out of its range, or the system gives no more threads.
    pub fn set_threads(&self, threads: u32) -> Result<(), WorkerError> {
        check_range("threads", threads, self.shared.window.min(limits::MAX_THREADS))?;
        let mut control = lock(&self.shared.control);
        if control.running && control.stop_by.is_none() {
            self.shared.pool.resize(&self.shared, threads as usize)?;
        }
        control.threads = threads;
        self.shared.register_anew(&control);
        self.shared.each_link(Link::invite);
        Ok(())
    }
}

/// How a worker describes itself.
pub(crate) struct Profile<'a> {
    pub(crate) id: &'a str,
    pub(crate) threads: u32,
    pub(crate) window: u32,
    pub(crate) weight: u32,
    pub(crate) actions: &'a Arc<Actions>,
}

/// One balancer: its address, the tickets that speak of it, and the connection to it while there is one.
pub(crate) struct Slot {
    pub(crate) address: String,
    pub(crate) tickets: Tickets,
    /// Background tasks that have outlived their connection.
    pub(crate) held: Arc<Held>,
    current: Mutex<Option<Arc<Link>>>,
}

impl Slot {
    pub(crate) fn current(&self) -> Option<Arc<Link>> {
        lock(&self.current).clone()
    }

    pub(crate) fn set_current(&self, link: Option<Arc<Link>>) {
        *lock(&self.current) = link;
    }
}

/// What changes while the worker runs. Locked before any link.
struct Control {
    actions: Arc<Actions>,
    threads: u32,
    draining: bool,
    running: bool,
    /// Set once the worker stops: the end of its grace.
    stop_by: Option<Instant>,
    /// Threads that hold a connection, or try to.
    sessions: usize,
}

/// What the worker's threads share.
pub(crate) struct Shared {
    pub(crate) id: String,
    pub(crate) window: u32,
    weight: u32,
    pub(crate) slots: Vec<Slot>,
    /// The pool's one channel.
    pub(crate) tickets: Receiver<usize>,
    /// How many threads the pool has.
    pub(crate) threads: Arc<AtomicUsize>,
    pool: Pool,
    control: Mutex<Control>,
    changed: Condvar,
    on_event: Option<OnEvent>,
}

impl Shared {
    pub(crate) fn tell(&self, event: &Event) {
        log::debug!("{event}");
        let Some(callback) = &self.on_event else { return };
        // It runs on a connection's thread, which must live on.
        if catch_unwind(AssertUnwindSafe(|| callback(event))).is_err() {
            log::error!("the worker's on_event callback panicked at: {event}");
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        lock(&self.control).stop_by.is_some()
    }

    /// Waits as long as `limit`, or until the worker stops.
    pub(crate) fn wait_for_stop(&self, limit: Duration) {
        let control = lock(&self.control);
        // A poisoned lock is as good as any here: the caller looks again.
        let _ = self.changed.wait_timeout_while(control, limit, |control| control.stop_by.is_none());
    }

    /// Makes `link` the connection of a slot, and registers there.
    pub(crate) fn install(&self, slot: usize, link: &Arc<Link>) -> Result<(), ConnectionError> {
        let control = lock(&self.control);
        if control.stop_by.is_some() {
            return Err(ConnectionError::Left);
        }
        self.slots[slot].held.set_link(link);
        self.slots[slot].set_current(Some(Arc::clone(link)));
        link.register(&self.profile(&control))?;
        if control.draining {
            link.drain(false)?;
        }
        Ok(())
    }

    fn profile<'a>(&'a self, control: &'a MutexGuard<'_, Control>) -> Profile<'a> {
        Profile {
            id: &self.id,
            threads: control.threads,
            window: self.window,
            weight: self.weight,
            actions: &control.actions,
        }
    }

    fn register_anew(&self, control: &MutexGuard<'_, Control>) {
        let profile = self.profile(control);
        self.each_link_or_close(|link| link.register(&profile));
    }

    fn each_link(&self, act: impl Fn(&Link)) {
        for link in self.slots.iter().filter_map(Slot::current) {
            act(&link);
        }
    }

    /// As `each_link`; a link that cannot take it is closed for the reason it gives.
    fn each_link_or_close(&self, act: impl Fn(&Link) -> Result<(), ConnectionError>) {
        self.each_link(|link| {
            if let Err(error) = act(link) {
                link.close(error);
            }
        });
    }

    /// Waits until every link is quiet, or the time is over that `until` gives. Gives whether all are.
    fn wait_until_quiet(&self, until: impl Fn(&Control) -> Option<Instant>) -> bool {
        loop {
            let quiet =
                |slot: &Slot| slot.held.is_idle() && slot.current().is_none_or(|link| link.is_quiet());
            if self.slots.iter().all(quiet) {
                return true;
            }
            let control = lock(&self.control);
            if until(&control).is_none_or(|until| Instant::now() >= until) {
                return false;
            }
            // Links do not signal: a wait this short costs less than every task asking whether to.
            let _ = self.changed.wait_timeout(control, STOP_TICK);
        }
    }

    fn wait_for_sessions(&self, limit: Duration) {
        let control = lock(&self.control);
        // As above: the caller goes on in any case.
        let _ = self.changed.wait_timeout_while(control, limit, |control| control.sessions > 0);
    }
}
