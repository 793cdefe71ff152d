//! One connection to one balancer, as the pool and the reader share it: what waits, what runs, what is to be
//! written.
//!
//! Everything hangs on one lock, which a thread takes once a task: to leave the result of the task it has run
//! and to take the next. Nothing blocks under it; a write swaps the output out first (see `writing.rs`).
//!
//! **Every assignment is answered once.** It is either in `queue` or in `running`, and whoever takes it out,
//! under the lock, answers it: the pool with its outcome, a cancel or a drain with `NotRun`. Once the connection
//! is closed nothing is answered any more.
//!
//! **No task waits while a thread is free.** Tasks wait here and not in the pool's channel, because a cancel
//! takes them out of the middle. The channel carries tickets: "there is work at this balancer". Whoever draws
//! one runs tasks until the queue is empty, so one task at a time and never a batch of its own. When tasks come,
//! tickets are added until as many wait as there are threads or tasks. If a task waits and no ticket does, every
//! ticket was drawn: either by as many threads as there are, all of which are busy, or by one for every task.

mod output;
mod writing;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use reparto_protocol::{HEADER_BYTES, Message, Outcome, Progress, TaskResult, cut, limits};

use crate::actions::{Action, Actions};
use crate::error::ConnectionError;
use crate::held::{Ended, Held};
use crate::lock;
use crate::service_time::ServiceTime;
use crate::task::{CancelReason, Cancellation, TaskError};
use output::Output;

/// Output from which on a thread writes before it takes its next task.
const FLUSH_BYTES: usize = 32 * 1024;
/// Output at which threads with a result wait until the balancer has read some.
const FULL_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of payload that wait to be run. The balancer's own bound for one worker is 64 MiB.
const MAX_QUEUED_BYTES: usize = 1024 * 1024 * 1024;
/// The number of the first request on a connection, which is always a REGISTER.
const FIRST_REQUEST: u64 = 1;
/// Room for a TASK_RESULT's or PROGRESS' fields beside its message.
const FIELDS_BYTES: usize = 64;

/// A task that has not begun.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) action: Arc<Action>,
    pub(crate) payload: Bytes,
    pub(crate) attempt: u8,
    pub(crate) deadline: Option<Instant>,
    pub(crate) key: Option<Bytes>,
    pub(crate) task_id: Option<[u8; 16]>,
}

/// A task that was run.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) place: usize,
    pub(crate) id: u64,
    pub(crate) task_id: Option<[u8; 16]>,
    pub(crate) outcome: Outcome,
    pub(crate) message: Cow<'static, str>,
    pub(crate) payload: Bytes,
    pub(crate) took: Duration,
}

/// The way from a balancer's queue to the pool.
#[derive(Debug, Clone)]
pub(crate) struct Tickets {
    /// Which balancer they speak of.
    pub(crate) balancer: usize,
    /// How many wait in the channel. Whoever draws one counts it off before it looks at the queue.
    pub(crate) waiting: Arc<AtomicUsize>,
    pub(crate) sender: Sender<usize>,
    pub(crate) threads: Arc<AtomicUsize>,
}

impl Tickets {
    /// Sees to it that enough tickets wait for a queue of `tasks`. Call it with the queue locked.
    fn issue(&self, tasks: usize) {
        let wanted = tasks.min(self.threads.load(Ordering::Acquire));
        let waiting = self.waiting.load(Ordering::Acquire);
        for _ in waiting..wanted {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            if self.sender.try_send(self.balancer).is_err() {
                // The channel has room for a window of tickets for each balancer, so it is never full.
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                return;
            }
        }
    }
}

/// What the balancer said at the beginning, and what the worker said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Largest frame that the balancer takes, in bytes.
    pub(crate) max_frame_bytes: u32,
    /// Silence after which a PING is due.
    pub(crate) heartbeat: Duration,
    /// Silence after which the other side is lost.
    pub(crate) silence: Duration,
    /// Tasks that the worker holds at most.
    pub(crate) window: usize,
}

#[derive(Debug)]
struct Running {
    id: u64,
    task_id: Option<[u8; 16]>,
    cancellation: Cancellation,
}

#[derive(Debug)]
struct State {
    actions: Arc<Actions>,
    /// What was offered before, until the balancer has acknowledged that it no longer is.
    former_actions: Option<Arc<Actions>>,
    queue: VecDeque<Job>,
    queued_bytes: usize,
    /// What runs, by its place. Places are used again.
    running: Vec<Option<Running>>,
    free_places: Vec<usize>,
    service: ServiceTime,
    output: Output,
    /// Somebody writes, and will write what is added meanwhile.
    writing: bool,
    /// The output holds something that should go out at once.
    urgent: bool,
    /// The output may wait a moment; the keeper watches that it is no more than that.
    deferred: bool,
    last_sent: Instant,
    last_ping: Instant,
    next_request: u64,
    /// The newest REGISTER, while it has no ACK.
    registering: Option<u64>,
    registered: bool,
    /// The newest DRAIN, while it has no ACK.
    draining: Option<u64>,
    /// The worker leaves: nothing is begun any more, everything is handed back.
    leaving: bool,
    closed: Option<ConnectionError>,
    is_closed: bool,
}

/// A connection, shared by its reader, its keeper and the pool.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    terms: Terms,
    tickets: Tickets,
    /// Background tasks of former connections, and of this one once it is over.
    held: Arc<Held>,
    opened: Instant,
    /// Milliseconds from `opened` to the last bytes that came.
    heard_ms: AtomicU64,
    state: Mutex<State>,
    /// Wakes the keeper.
    keeper: Condvar,
    /// Wakes threads that wait for room in the output.
    room: Condvar,
}

impl Link {
    pub(crate) fn new(
        stream: TcpStream,
        terms: Terms,
        tickets: Tickets,
        service: ServiceTime,
        held: Arc<Held>,
    ) -> Link {
        let now = Instant::now();
        let state = State {
            actions: Arc::default(),
            former_actions: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            running: Vec::new(),
            free_places: Vec::new(),
            service,
            output: Output::default(),
            writing: false,
            urgent: false,
            deferred: false,
            last_sent: now,
            last_ping: now,
            next_request: FIRST_REQUEST,
            registering: None,
            registered: false,
            draining: None,
            leaving: false,
            closed: None,
            is_closed: false,
        };
        Link {
            stream,
            terms,
            tickets,
            held,
            opened: now,
            heard_ms: AtomicU64::new(0),
            state: Mutex::new(state),
            keeper: Condvar::new(),
            room: Condvar::new(),
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What is offered now, and what the balancer may still assign because it does not know better.
    pub(crate) fn actions(&self) -> (Arc<Actions>, Option<Arc<Actions>>) {
        let state = lock(&self.state);
        (Arc::clone(&state.actions), state.former_actions.clone())
    }

    pub(crate) fn service(&self) -> ServiceTime {
        lock(&self.state).service
    }

    /// Takes tasks that came, in their order, and leaves `jobs` empty.
    pub(crate) fn accept(&self, jobs: &mut Vec<Job>) -> Result<(), ConnectionError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut state = lock(&self.state);
        if state.leaving {
            for job in jobs.drain(..) {
                state.answer(job.id, Outcome::NotRun, "");
            }
            return self.urgent(state);
        }
        state.queued_bytes += jobs.iter().map(|job| job.payload.len()).sum::<usize>();
        state.queue.extend(jobs.drain(..));
        let held = state.queue.len() + state.running_count();
        if held > self.terms.window {
            return Err(ConnectionError::OverWindow { held, window: self.terms.window });
        }
        if state.queued_bytes > MAX_QUEUED_BYTES {
            return Err(ConnectionError::OverBytes { bytes: state.queued_bytes, limit: MAX_QUEUED_BYTES });
        }
        self.tickets.issue(state.queue.len());
        Ok(())
    }

    /// Answers a task whose action is not offered. It costs the task an attempt: a hand-back without a price
    /// could go on for ever.
    pub(crate) fn refuse(&self, id: u64, action: &str) -> Result<(), ConnectionError> {
        let mut state = lock(&self.state);
        state.answer(id, Outcome::Retry, &format!("this worker does not offer '{action}'"));
        self.urgent(state)
    }

    /// Cancels a task, or takes it back (`recall`), if it is still here.
    pub(crate) fn cancel(&self, id: u64, recall: bool) -> Result<(), ConnectionError> {
        let mut state = lock(&self.state);
        if let Some(position) = state.queue.iter().position(|job| job.id == id) {
            if let Some(job) = state.queue.remove(position) {
                state.queued_bytes -= job.payload.len();
            }
            state.answer(id, Outcome::NotRun, if recall { "" } else { "cancelled" });
            return self.urgent(state);
        }
        if !recall {
            for running in state.running.iter().flatten().filter(|running| running.id == id) {
                running.cancellation.cancel(CancelReason::Unwanted);
            }
            self.held.cancel_awaited(id);
        }
        Ok(())
    }

    /// The balancer says that a task of a former connection is still this worker's, and awaits it by this number.
    pub(crate) fn take_up(&self, id: u64, task: Option<[u8; 16]>) -> Result<(), ConnectionError> {
        match task.map_or(Err(()), |task| self.held.await_it(task, id)) {
            Ok(None) => return Ok(()),
            Ok(Some(ended)) => {
                self.tell(id, &ended);
            }
            Err(()) => lock(&self.state).answer(id, Outcome::Retry, "this worker does not hold it any more"),
        }
        self.urgent(lock(&self.state))
    }

    /// Tells how a task of a former connection has ended. Says whether this one is open yet.
    pub(crate) fn tell(&self, id: u64, ended: &Ended) -> bool {
        let mut state = lock(&self.state);
        if state.is_closed {
            return false;
        }
        let (outcome, message) = (ended.outcome, &*ended.message);
        let result = TaskResult { id, outcome, message, service_ns: None, payload: &[] };
        state.output.push_with(&Message::TaskResult(result), ended.payload.clone());
        state.urgent = true;
        drop(state);
        self.keeper.notify_one();
        true
    }

    /// The balancer does not want a task of a former connection.
    pub(crate) fn forget(&self, task: [u8; 16]) {
        self.held.forget(task);
    }

    /// Cancels everything that runs.
    pub(crate) fn cancel_running(&self, reason: CancelReason) {
        for running in lock(&self.state).running.iter().flatten() {
            running.cancellation.cancel(reason);
        }
    }

    /// Takes the result of the task that a thread has run, and gives it the next one, with the place to name in
    /// its [`Finished`], if it will `take` one.
    ///
    /// `cancellation` is made ready for that next task.
    pub(crate) fn next(
        &self,
        finished: Option<Finished>,
        take: bool,
        cancellation: &mut Cancellation,
    ) -> Option<(Job, usize)> {
        let mut state = lock(&self.state);
        if let Some(finished) = finished {
            state = self.record(state, finished);
        }
        let alone = !take || state.queue.is_empty() || !state.service.is_quick();
        if (alone || state.output.len() >= FLUSH_BYTES) && !state.writing && !state.output.is_empty() {
            state = self.write_out(state);
        }
        let job = if take { begin(&mut state, cancellation) } else { None };
        if !state.output.is_empty() && !state.writing && !state.deferred {
            state.deferred = true;
            self.keeper.notify_one();
        }
        job
    }

    /// Calls for threads if tasks wait: after one has left early, or when there are more of them.
    pub(crate) fn invite(&self) {
        let state = lock(&self.state);
        self.tickets.issue(state.queue.len());
    }

    /// Writes down how a task ended, once there is room for it.
    fn record<'a>(&'a self, mut state: MutexGuard<'a, State>, finished: Finished) -> MutexGuard<'a, State> {
        state.service.record(finished.took);
        let Finished { place, id, task_id, mut outcome, mut message, mut payload, .. } = finished;
        let bytes =
            HEADER_BYTES + FIELDS_BYTES + cut(&message, limits::MAX_MESSAGE_BYTES).len() + payload.len();
        let limit = self.terms.max_frame_bytes;
        if bytes > limit as usize {
            let what = if outcome == Outcome::Done { "the result" } else { "what came with the failure" };
            message =
                format!("{what} has {} bytes, too many for a frame of {limit} bytes", payload.len()).into();
            payload = Bytes::new();
            outcome = Outcome::Failed;
        }
        state = self.wait_for_room(state, bytes.min(limit as usize));
        let running = state.running[place].take();
        state.free_places.push(place);
        if !state.is_closed {
            let service_ns = state.service.tell_if_changed();
            let result = TaskResult { id, outcome, message: &message, service_ns, payload: &[] };
            state.output.push_with(&Message::TaskResult(result), payload);
        } else if let Some((task_id, running)) = task_id.zip(running) {
            let ended = Ended { outcome, message: message.into_owned(), payload };
            self.held.end(task_id, &running.cancellation, ended);
        }
        state
    }

    /// Sends a PROGRESS frame.
    pub(crate) fn progress(&self, id: u64, done: u64, total: u64, payload: Bytes) -> Result<(), TaskError> {
        let bytes = HEADER_BYTES + FIELDS_BYTES + payload.len();
        if bytes > self.terms.max_frame_bytes as usize {
            let limit = self.terms.max_frame_bytes;
            let message =
                format!("progress with {} bytes does not fit in a frame of {limit} bytes", payload.len());
            return Err(TaskError::failed(message));
        }
        let mut state = self.wait_for_room(lock(&self.state), bytes);
        if !state.is_closed {
            state.output.push_with(&Message::Progress(Progress { id, done, total, payload: &[] }), payload);
            if !state.writing {
                drop(self.write_out(state));
            }
        }
        Ok(())
    }

    /// Hands back everything that has not begun, and begins nothing any more.
    pub(crate) fn leave(&self) {
        let mut state = lock(&self.state);
        if state.leaving {
            return;
        }
        state.leaving = true;
        self.push_drain(&mut state, false);
        for job in std::mem::take(&mut state.queue) {
            state.answer(job.id, Outcome::NotRun, "");
        }
        state.queued_bytes = 0;
        state.urgent = true;
        self.keeper.notify_one();
    }

    /// Whether a worker that leaves may go: the balancer knows that it leaves, and has everything that ran.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = lock(&self.state);
        let silent = state.output.is_empty() && !state.writing;
        state.is_closed || (state.leaving && state.draining.is_none() && state.running_count() == 0 && silent)
    }

    /// Ends the connection. What waits is dropped, what runs is cancelled; the first reason stays.
    pub(crate) fn close(&self, reason: ConnectionError) {
        self.close_locked(&mut lock(&self.state), reason);
    }

    fn close_locked(&self, state: &mut State, reason: ConnectionError) {
        if state.is_closed {
            return;
        }
        state.is_closed = true;
        state.closed = Some(reason);
        state.queue.clear();
        state.queued_bytes = 0;
        state.output.clear();
        self.held.release();
        for running in state.running.iter().flatten() {
            match running.task_id {
                Some(task_id) => self.held.keep(task_id, running.cancellation.clone()),
                None => running.cancellation.cancel(CancelReason::Unwanted),
            }
        }
        // Wakes the reader and whoever writes. It fails when the connection is gone already, which is as well.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.keeper.notify_all();
        self.room.notify_all();
    }

    /// Why it was closed. Given once.
    pub(crate) fn take_reason(&self) -> Option<ConnectionError> {
        lock(&self.state).closed.take()
    }
}

impl State {
    fn running_count(&self) -> usize {
        self.running.len() - self.free_places.len()
    }

    /// Answers a task that was not run.
    fn answer(&mut self, id: u64, outcome: Outcome, message: &str) {
        if !self.is_closed {
            let result = TaskResult { id, outcome, message, service_ns: None, payload: &[] };
            self.output.push(&Message::TaskResult(result));
        }
    }
}

/// Moves the next task from `queue` to `running`; one whose deadline has passed is handed back instead,
/// and the balancer ends it.
fn begin(state: &mut State, cancellation: &mut Cancellation) -> Option<(Job, usize)> {
    while let Some(job) = state.queue.pop_front() {
        state.queued_bytes -= job.payload.len();
        if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            state.answer(job.id, Outcome::NotRun, "its deadline passed before it began");
            continue;
        }
        cancellation.renew();
        let running = Some(Running { id: job.id, task_id: job.task_id, cancellation: cancellation.clone() });
        let place = match state.free_places.pop() {
            Some(place) => {
                state.running[place] = running;
                place
            }
            None => {
                state.running.push(running);
                state.running.len() - 1
            }
        };
        return Some((job, place));
    }
    None
}
