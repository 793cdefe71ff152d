//! Background tasks between the scheduler and the store: what is accepted, run, recorded and fetched.
//!
//! ```text
//!   client --Ask--> Keeper --requests--> Storage (threads of its own)
//!                     |  ^                  |
//!              Enter  |  | Note             | completions, and a wake of the reactor
//!                     v  |                  v
//!                  Scheduler             Keeper --> answers to clients
//! ```
//!
//! The store has every task that is open, the scheduler a part of them: its *window*. A task enters the window when it
//! has been accepted and there is room; else it stays in the store alone, and a walk over what is open brings it in when
//! there is room again. The scheduler decides who runs what; the keeper carries between the two and waits for nobody:
//! whatever it asks of the store is answered by a completion, in a later turn.
//!
//! Where balancers share their work, nothing enters from the store by itself: it comes over the bus (`sharing`).

mod ask;
mod asking;
mod completing;
mod describe;
mod engines;
mod envelope;
mod noted;
mod opening;
mod outgoing;
mod places;
mod settings;
mod sharing;
#[cfg(test)]
mod tests;
mod uniques;
mod waits;
mod walk;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reparto_protocol::{ErrorCode, TaskState, limits};

pub use ask::{Ask, NewBackgroundTask};
pub use engines::{EngineState, EngineStatus};
pub(crate) use noted::{Answered, Assigned, Noted, Outlet};
pub use opening::OpenedStore;
use outgoing::Outgoing;
pub use places::{BlobPlace, NotAPlace, SecretUrl, StorePlace, without_passwords};
pub use settings::StoreSettings;
pub use sharing::{AmqpWorker, MOST_AMQP_WORKERS, SharingSettings};
use sharing::{Claimant, Owed, Sharing};
use uniques::Uniques;
use waits::Waits;
use walk::Walk;

use crate::bus::{Delivery, Tag};
use crate::scheduler::{AssignmentId, Effect, Event, Payload, Peer, Scheduler, Time};
use crate::storage::{
    Body, FailedAttempt, Failure, NewTask, Operation, Outcome, Query, Request, Storage, StorageSettings,
    StoreError, StoredTask, TaskId, TaskIds, ToPublish,
};

/// How often what has ended long ago is looked for.
const UPKEEP: Duration = Duration::from_secs(10);
/// How soon the next step of it comes where there may be more.
const UPKEEP_STEP: Duration = Duration::from_millis(50);
/// How soon a store that could not say how a task has ended is asked again for those who wait.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Rows that a step of it looks at.
const UPKEEP_ROWS: usize = 1000;

/// What a question to the store is for.
#[derive(Debug)]
enum Look {
    /// Those who wait for its end, by the number of the wait.
    Outcome(u64),
    /// Where it stands, for a client.
    Standing { peer: Peer, id: u64 },
    /// All that is known of it.
    Describe { peer: Peer, id: u64 },
    /// It is to be dropped, if it has ended.
    Drop { peer: Peer, id: u64 },
    /// It was revived, and is to be run.
    Revived { peer: Peer, id: u64 },
    /// A worker has named it.
    Claim { peer: Peer },
    /// Its outcome is owed to somebody.
    Tell,
}

/// What a completion of the store's is to be followed by.
#[derive(Debug)]
enum Pending {
    Accept {
        peer: Peer,
        id: u64,
        task: NewTask,
        client: Tie,
    },
    /// An outcome, a failed attempt, a start: whoever waits for the task is told.
    Record {
        task: TaskId,
        due: Option<i64>,
        /// The result, if it is one that ends the task.
        done: Option<Bytes>,
        /// Whom its end is to be told, beside those who wait here.
        owed: Option<Box<Owed>>,
    },
    Cancel {
        peer: Peer,
        id: u64,
        task: TaskId,
    },
    Retry {
        peer: Peer,
        id: u64,
        task: TaskId,
    },
    Drop {
        peer: Peer,
        id: u64,
        stored: Box<StoredTask>,
    },
    TakeDue,
    Upkeep,
    Look(TaskId, Look),
    History {
        peer: Peer,
        id: u64,
        stored: Box<StoredTask>,
    },
    List {
        peer: Peer,
        id: u64,
    },
    Page,
    Payload(Box<StoredTask>, Option<Peer>),
    /// Accepted, and to be confirmed by the bus before its client is told.
    Publish {
        peer: Peer,
        id: u64,
        task: TaskId,
        client: Tie,
    },
    /// Published for nobody who waits for it.
    Republish,
    Claim {
        id: TaskId,
        from: Claimant,
    },
    Release(ToPublish),
    Sweep,
    /// A task that a program has published.
    TakeIn {
        queue: Arc<str>,
        delivery: Box<Delivery>,
        task: ToPublish,
        due: Option<i64>,
    },
    /// A message that is no task is to be put aside before it is taken.
    Bury {
        tag: Tag,
    },
    /// An outcome is on its way to whom it is owed.
    Tell {
        id: TaskId,
    },
    Settle,
    /// A task is on its way to a worker that knows only AMQP.
    Post {
        assignment: AssignmentId,
    },
    /// Something is on its way to a balancer that has lent tasks to this one.
    Home {
        lender: Arc<str>,
    },
}

/// How a task that is being accepted hangs on its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// Not at all.
    None,
    /// The client waits for its end, and its leaving cancels it.
    Waits,
    /// The client has left, or cancelled it, already.
    Left,
}

/// Carries background tasks between clients, scheduler and store. It lives with the scheduler.
#[derive(Debug)]
pub(crate) struct Keeper {
    settings: StoreSettings,
    storage: Option<Storage>,
    ids: TaskIds,
    token: u64,
    pending: HashMap<u64, Pending, foldhash::fast::RandomState>,
    outgoing: Outgoing,
    /// Questions that wait for room among the store's.
    looks: VecDeque<(TaskId, Look)>,
    waits: Waits,
    /// Those who wait though the store could not be asked, and when it is asked again.
    unanswered: Vec<u64>,
    ask_again_at: Time,
    walk: Walk,
    /// Tasks whose payload is being read, on their way into the window.
    loading: HashSet<TaskId>,
    /// Tasks that are alive and have a key. Empty where balancers share their work: none knows all that are alive.
    uniques: Uniques,
    /// When the next scheduled task is due, in microseconds since 1970.
    next_due: Option<i64>,
    asked_for_due: bool,
    /// Tasks being accepted that hang on their clients.
    ties: usize,
    upkeep_at: Time,
    stopping: bool,
    sharing: Option<Box<Sharing>>,
    /// Bytes of a payload that a worker can be given, at most.
    max_payload: usize,
}

/// The wall clock, in microseconds since 1970.
fn wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

impl Keeper {
    /// Sets opened stores to work, for tasks of up to `max_payload` bytes. `wake` is called from their threads when there is something to take.
    ///
    /// # Errors
    /// A thread or a second connection cannot be had.
    pub(crate) fn start(
        opened: OpenedStore,
        max_payload: usize,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Keeper, StoreError> {
        let OpenedStore { settings, store, blobs, sharing } = opened;
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(wake);
        let sharing = sharing.map(|sharing| sharing::start(sharing, &wake)).transpose()?;
        let threads =
            StorageSettings { blob_threshold: settings.blob_threshold, ..StorageSettings::default() };
        let storage = Storage::start(store, Some(blobs), threads, move || wake())?;
        Ok(Keeper::over(settings, storage, sharing, max_payload))
    }

    /// Puts itself between scheduler and storage.
    fn over(
        settings: StoreSettings,
        storage: Storage,
        sharing: Option<Box<Sharing>>,
        max_payload: usize,
    ) -> Keeper {
        Keeper {
            walk: Walk::new(settings.claim_time),
            settings,
            storage: Some(storage),
            ids: TaskIds::new(),
            token: 0,
            pending: HashMap::default(),
            outgoing: Outgoing::default(),
            looks: VecDeque::new(),
            waits: Waits::default(),
            unanswered: Vec::new(),
            ask_again_at: Time(0),
            loading: HashSet::new(),
            uniques: Uniques::default(),
            // What was due while nobody was here is taken first.
            next_due: Some(0),
            asked_for_due: false,
            ties: 0,
            upkeep_at: Time(0),
            stopping: false,
            sharing,
            max_payload,
        }
    }

    fn token(&mut self, pending: Pending) -> u64 {
        self.token += 1;
        self.pending.insert(self.token, pending);
        self.token
    }

    fn request(&mut self, operation: Operation, pending: Pending) {
        let token = self.token(pending);
        self.outgoing.push(Request { token, operation });
    }

    /// Asks the store something, if it takes another question now.
    fn query(&mut self, query: Query, pending: Pending) -> Result<(), String> {
        let token = self.token(pending);
        let asked = match &self.storage {
            Some(storage) => storage.try_query(token, query).map_err(|error| error.to_string()),
            None => Err("the store is closed".to_owned()),
        };
        if asked.is_err() {
            self.pending.remove(&token);
        }
        asked
    }

    // ---- turns ----

    /// Takes what the store has answered and what the scheduler has noted, until there is no more of it.
    pub(crate) fn turn<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, out: &mut E) {
        let mut completions = Vec::new();
        if let Some(storage) = &self.storage {
            storage.take_completions(&mut completions);
        }
        for completion in completions {
            self.complete(scheduler, now, completion, out);
        }
        self.expire(now, out);
        self.look_again(now, out);
        self.look_after_the_old(now);
        if self.sharing.is_some() {
            self.share(scheduler, now, out);
        } else {
            self.ask_for_due(scheduler, now);
            self.walk_on(scheduler, now);
        }
        while let Some(noted) = out.take_note() {
            self.take_note(scheduler, now, noted, out);
        }
        // What has ended makes room.
        self.claim_what_waits();
        self.ask_looks();
        self.hand_over(scheduler, now, out);
        if let Some(sharing) = &mut self.sharing {
            sharing.bus.flush();
        }
    }

    /// Asks the store what is to be looked up, as far as it takes questions. The others wait for the next turn.
    fn ask_looks(&mut self) {
        while let Some((task, look)) = self.looks.pop_front() {
            let token = self.token(Pending::Look(task, look));
            let asked = self.storage.as_ref().map(|storage| storage.try_query(token, Query::Fetch(task)));
            if !matches!(asked, Some(Ok(()))) {
                if let Some(Pending::Look(task, look)) = self.pending.remove(&token) {
                    self.looks.push_front((task, look));
                }
                return;
            }
        }
    }

    /// Takes a note of the scheduler's.
    fn take_note<E: Outlet>(&mut self, scheduler: &mut Scheduler, now: Time, noted: Noted, out: &mut E) {
        match noted {
            Noted::Assigned(assignment, task) => self.assigned(scheduler, now, assignment, *task),
            Noted::Withdrawn { peer, assignment } => {
                self.assignment_withdrawn(scheduler, now, (peer, assignment), out);
            }
            Noted::Asked { peer } => scheduler.handle(now, Event::Heard { peer }, out),
            Noted::Answered { id, answered } => self.guest_has_ended(id, answered),
            Noted::Progress { id, done, total, payload } => self.guest_goes_on(id, (done, total), payload),
            Noted::Started(id) => self.record(Operation::Start { id }, id, None),
            Noted::Requeued(id) => self.record(Operation::Requeue { id }, id, None),
            Noted::Refused(id) if self.give_up(id) => {}
            Noted::Refused(id) => self.walk.left_behind(id, now.after(Duration::from_secs(5))),
            Noted::Retry { id, attempts, worker, message, delay } => {
                self.walk.pass_over(id);
                if delay.is_some() || self.stopping {
                    self.left(id);
                }
                let at = wall_clock();
                let failure = Failure::new(ErrorCode::WorkerFailed, message.into_string());
                let attempt = FailedAttempt { id, attempts, at, worker: worker.into(), failure };
                let due_at = delay.map(|delay| at.saturating_add(micros(delay)));
                self.record(Operation::Retry { attempt, due_at }, id, due_at);
            }
            Noted::Ended { id, attempts, state, failure, payload } => {
                self.walk.pass_over(id);
                if !self.outgoing.has_room_for(payload.len()) {
                    log::warn!(
                        "the outcome of {id} is left out, as the store takes nothing; it will run again"
                    );
                    if !self.give_up(id) {
                        self.walk.left_behind(id, now);
                    }
                    return;
                }
                let owed = self.sharing.as_ref().and_then(|sharing| sharing.reply_of(id));
                let owed = owed.map(|reply| Box::new(Owed { reply, state, failure: failure.clone() }));
                self.left(id);
                self.uniques.over(id);
                let done = (state == TaskState::Done).then(|| payload.clone());
                let result = Body::Inline(payload);
                let outcome = Outcome { id, state, attempts, at: wall_clock(), result, failure };
                self.request(Operation::Finish(outcome), Pending::Record { task: id, due: None, done, owed });
            }
            Noted::Claim { peer, id } if self.sharing.is_some() => self.claim_for(peer, id),
            Noted::Claim { peer, id } => self.look(id, Look::Claim { peer }, out),
        }
    }

    fn record(&mut self, operation: Operation, task: TaskId, due: Option<i64>) {
        self.request(operation, Pending::Record { task, due, done: None, owed: None });
    }

    /// Has those look whose time to wait is up.
    fn expire<E: Outlet>(&mut self, now: Time, out: &mut E) {
        while let Some(number) = self.waits.take_due(now) {
            if let Some(task) = self.waits.get(number).map(|wait| wait.task) {
                self.look(task, Look::Outcome(number), out);
            }
        }
    }

    /// Has the store asked again for those who wait, once it can be used.
    fn look_again<E: Outlet>(&mut self, now: Time, out: &mut E) {
        if self.unanswered.is_empty() || now < self.ask_again_at {
            return;
        }
        self.ask_again_at = now.after(LOOK_AGAIN);
        if self.storage.as_ref().is_some_and(|storage| storage.trouble().is_none()) {
            for number in std::mem::take(&mut self.unanswered) {
                if let Some(task) = self.waits.get(number).map(|wait| wait.task) {
                    self.look(task, Look::Outcome(number), out);
                }
            }
        }
    }

    fn ask_for_due(&mut self, scheduler: &Scheduler, now: Time) {
        let _ = now;
        let wall = wall_clock();
        let room = self.settings.window_tasks.saturating_sub(scheduler.background().0);
        if self.stopping || self.asked_for_due || room == 0 || self.next_due.is_none_or(|due| due > wall) {
            return;
        }
        self.asked_for_due = true;
        self.next_due = None;
        self.request(Operation::TakeDue { now: wall, limit: room.min(1024) }, Pending::TakeDue);
    }

    /// Has what ended long ago removed, a step at a time.
    fn look_after_the_old(&mut self, now: Time) {
        if self.stopping || now < self.upkeep_at {
            return;
        }
        self.upkeep_at = now.after(UPKEEP);
        let wall = wall_clock();
        let before = wall.saturating_sub(micros(self.settings.keep_results));
        self.request(Operation::RemoveEnded { before, limit: UPKEEP_ROWS }, Pending::Upkeep);
        self.request(Operation::RemoveKeys { now: wall, limit: UPKEEP_ROWS }, Pending::Upkeep);
    }

    /// When [`turn`](Self::turn) is next needed, if nothing else happens.
    pub(crate) fn next_timer(&self, scheduler: &Scheduler, now: Time) -> Option<Time> {
        if self.stopping {
            return self.sharing.as_ref().map(|sharing| sharing.next_time_stopping());
        }
        let room = scheduler.background().0 < self.settings.window_tasks;
        let due = self.next_due.filter(|_| room && !self.asked_for_due).map(|due| {
            let wait = u64::try_from(due.saturating_sub(wall_clock())).unwrap_or(0);
            Time(now.0.saturating_add(wait).saturating_add(u64::from(wait > 0)))
        });
        let walk = self.walk.next_time(now);
        // A store that took nothing is tried again, also if nothing else happens.
        let again = (!self.outgoing.is_empty() || !self.looks.is_empty())
            .then(|| now.after(Duration::from_millis(5)));
        let unanswered = (!self.unanswered.is_empty()).then_some(self.ask_again_at);
        let sharing = self.sharing.as_ref().map(|sharing| sharing.next_time());
        [self.waits.next_time(), due, walk, again, unanswered, sharing, Some(self.upkeep_at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// The balancer stops: nobody waits any more. What is open stays in the store.
    pub(crate) fn begin_stopping<E: Outlet>(&mut self, out: &mut E) {
        self.stopping = true;
        if let Some(sharing) = &mut self.sharing {
            sharing.stop();
        }
        for number in self.waits.all() {
            if let Some(wait) = self.waits.remove(number) {
                let message = "the balancer is shutting down; ask again when it is back";
                fail(out, wait.peer, wait.id, ErrorCode::ShuttingDown, message);
            }
        }
    }

    /// Whether everything that was handed to store and bus is answered, or will never be.
    pub(crate) fn is_quiet(&self) -> bool {
        if self.failure().is_some() {
            return true;
        }
        // What a bus in trouble has not confirmed stands in the store, and is published by whoever is there.
        let confirming = self.sharing.as_ref().filter(|sharing| sharing.confirms());
        self.outgoing.is_empty()
            && confirming.is_none_or(|sharing| sharing.is_quiet())
            && !self.pending.values().any(|pending| match pending {
                Pending::Accept { .. }
                | Pending::Cancel { .. }
                | Pending::Record { .. }
                | Pending::TakeIn { .. }
                | Pending::Settle => true,
                // The bus may have confirmed it, and its client not be told yet.
                Pending::Publish { .. } => confirming.is_some(),
                _ => false,
            })
    }
}

impl Drop for Keeper {
    /// Waits until all that was taken is durable, and closes the store.
    fn drop(&mut self) {
        // A store that has failed before has said so.
        let failed = self.failure().is_some();
        if let Some(Err(error)) = self.storage.take().map(Storage::stop)
            && !failed
        {
            log::error!("the store was not closed in good order: {error}");
        }
    }
}

/// Tells a client that its request has failed.
fn fail<E: Outlet>(
    out: &mut E,
    peer: Peer,
    id: u64,
    code: ErrorCode,
    message: impl Into<std::borrow::Cow<'static, str>>,
) {
    let mut message = message.into();
    if message.len() > limits::MAX_MESSAGE_BYTES {
        message = reparto_protocol::cut(&message, limits::MAX_MESSAGE_BYTES).to_owned().into();
    }
    out.push(Effect::Fail { peer, id, code, message, payload: Payload::EMPTY });
}
