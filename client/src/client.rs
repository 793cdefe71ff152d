//! The client itself, and the builder of one task.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reparto_protocol::{FIELD_HEADER_BYTES, HEADER_BYTES};

use crate::answer::FromReply;
use crate::background::Accepted;
use crate::cell::Cell;
use crate::completer::Completer;
use crate::completion::{CompletionQueue, QueueInner};
use crate::config::ClientBuilder;
use crate::error::{ClientError, ConnectError, TaskOutcome};
use crate::handle::{Reply, TaskHandle};
use crate::request::Request;
use crate::shared::{Owner, WhenFull};
use crate::status::Status;
use crate::sync::locked;
use crate::task_request::{Keep, Payload, TaskRequest};

/// A connection to a balancer, shared by all its clones.
///
/// Clone it freely and use it from as many threads as you like: everything travels on one connection, and
/// answers come in any order. The connection closes when the last clone, [`TaskHandle`] and
/// [`CompletionQueue`] is dropped; the balancer then cancels what is in flight.
#[derive(Clone)]
pub struct Client {
    pub(crate) owner: Arc<Owner>,
}

impl Client {
    /// Connects to the first of these addresses at which a balancer answers, with the usual settings.
    ///
    /// # Errors
    /// [`ClientError::NoAddress`]; [`ClientError::NoBalancer`] with what happened at each address.
    pub fn connect(addresses: impl IntoIterator<Item = impl Into<String>>) -> Result<Client, ClientError> {
        Client::builder().balancers(addresses).connect()
    }

    /// Collects settings for a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Hands in a task with the usual options. The same as `task(action).payload(payload).submit()`.
    ///
    /// # Errors
    /// As [`TaskBuilder::submit`].
    pub fn submit(&self, action: &str, payload: impl Into<Bytes>) -> Result<TaskHandle, ClientError> {
        self.task(action).payload(payload).submit()
    }

    /// Describes a task, to be handed in with [`TaskBuilder::submit`] or through a [`CompletionQueue`].
    pub fn task<'a>(&'a self, action: &'a str) -> TaskBuilder<'a> {
        TaskBuilder { client: self, request: TaskRequest::new(action) }
    }

    /// A queue that receives the outcomes of many tasks, of which at most `capacity` (at least 1) are submitted
    /// and not yet received.
    pub fn completion_queue(&self, capacity: usize) -> CompletionQueue {
        CompletionQueue { owner: Arc::clone(&self.owner), inner: Arc::new(QueueInner::new(capacity)) }
    }

    /// A queue through which many background tasks are handed in, and which receives their ids: at most `capacity`
    /// (at least 1) are submitted and not yet received.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = reparto_client::Client::connect(["127.0.0.1:8888"])?;
    /// let queue = client.accepted_queue(1_000);
    /// for number in 0..1_000u64 {
    ///     let key = format!("invoice-{number}");
    ///     queue.try_submit(number, client.task("invoice").payload(number.to_string()).idempotency_key(&key))?;
    /// }
    /// queue.close();
    /// while let Some(completion) = queue.recv() {
    ///     println!("{}: {}", completion.tag, completion.outcome?.task_id);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn accepted_queue(&self, capacity: usize) -> CompletionQueue<Accepted> {
        CompletionQueue { owner: Arc::clone(&self.owner), inner: Arc::new(QueueInner::new(capacity)) }
    }

    /// Asks the balancer what it is doing. Blocks until the report is complete; a large one comes in pages.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the connection was lost or the balancer answered with an error;
    /// [`ClientError::BadReport`] when the answer makes no sense.
    pub fn status(&self) -> Result<Status, ClientError> {
        crate::status::fetch(self)
    }

    /// A page of the status report, as it came.
    pub(crate) fn status_page(&self, offset: u32, limit: u32) -> Result<Bytes, ClientError> {
        Ok(self.ask(Request::Status { offset, limit }, WhenFull::Take)?.wait()?)
    }

    /// Sends a request, whose answer becomes a value of the caller's choice.
    pub(crate) fn ask<T: FromReply + 'static>(
        &self,
        request: Request<'_>,
        when_full: WhenFull,
    ) -> Result<Reply<T>, ClientError> {
        let cell = Arc::new(Cell::default());
        let completer = Completer::Cell(Arc::clone(&cell) as _);
        self.owner.shared.submit(request, completer, when_full)?;
        Ok(Reply { _owner: Arc::clone(&self.owner), cell })
    }

    /// The longest payload, in bytes, that a task without options can carry to the present balancer.
    pub fn max_payload_bytes(&self, action: &str) -> usize {
        let max_frame_bytes = locked(&self.owner.shared.state).max_frame_bytes;
        max_frame_bytes.saturating_sub(HEADER_BYTES + FIELD_HEADER_BYTES + action.len())
    }

    /// Tasks handed in and not ended.
    pub fn in_flight(&self) -> usize {
        locked(&self.owner.shared.state).in_flight()
    }

    /// A connection stands at this moment. When it does not, the next task makes one.
    pub fn is_connected(&self) -> bool {
        locked(&self.owner.shared.state).is_connected()
    }

    /// The balancer that is connected at this moment has a store, and so takes background tasks. `false` without a
    /// connection.
    pub fn has_store(&self) -> bool {
        locked(&self.owner.shared.state).has_store()
    }

    /// Why the latest search for a lost balancer was given up; `None` while it is connected, or is searched for.
    /// A caller with many tasks yet to submit learns from it that each of them would wait in vain.
    pub fn unreachable(&self) -> Option<ConnectError> {
        let state = locked(&self.owner.shared.state);
        if state.connecting { None } else { state.unreachable.clone() }
    }

    /// The address of the balancer that is connected; without a connection, the one that is tried first.
    pub fn balancer(&self) -> String {
        let addresses = &self.owner.shared.config.addresses;
        let index = locked(&self.owner.shared.state).address_index();
        addresses[index % addresses.len()].clone()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("balancer", &self.balancer())
            .field("connected", &self.is_connected())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// A task being described. What is not said is left to the balancer.
#[derive(Clone)]
#[must_use = "a task is not handed in until submit() is called"]
pub struct TaskBuilder<'a> {
    client: &'a Client,
    request: TaskRequest<'a>,
}

impl<'a> TaskBuilder<'a> {
    /// What to do it with; empty by default.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.request.payload = Payload::Shared(payload.into());
        self
    }

    /// As [`payload`](Self::payload), from borrowed bytes: they are copied once, straight to where they are sent
    /// from.
    pub fn payload_slice(mut self, payload: &'a [u8]) -> Self {
        self.request.payload = Payload::Slice(payload);
        self
    }

    /// 0 to 9; higher goes first. The balancer's default is 4.
    pub fn priority(mut self, priority: u8) -> Self {
        self.request.priority = Some(priority);
        self
    }

    /// Time within which the task must end, counted from when it is handed in, up to 366 days. A task that is
    /// late ends with `expired`.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.request.deadline = Some(deadline);
        self
    }

    /// Time that the task may wait at the balancer for its first assignment, up to 366 days.
    pub fn wait_limit(mut self, wait_limit: Duration) -> Self {
        self.request.wait_limit = Some(wait_limit);
        self
    }

    /// Tasks of one action and key that meet in the balancer share one run. 1 to 255 bytes.
    pub fn key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.request.key = Some(Cow::Borrowed(key.as_ref()));
        self
    }

    /// Attempts before the task is dead, at least 1. The balancer's default is 3.
    pub fn max_attempts(mut self, attempts: u8) -> Self {
        self.request.max_attempts = Some(attempts);
        self
    }

    /// The task may run more than once without harm. When its connection is lost before the answer came, it is
    /// sent again on the next one, up to five times, instead of ending with `connection_lost`. A background task with
    /// an [idempotency key](Self::idempotency_key) is sent again anyway.
    pub fn safe_to_repeat(mut self, safe: bool) -> Self {
        self.request.safe_to_repeat = safe;
        self
    }

    /// The balancer keeps the task beside answering it: once it is durable it has an
    /// [id](TaskHandle::wait_task_id), by which its outcome can be fetched later. It still lives with its client, and is
    /// cancelled when its connection is lost.
    pub fn recorded(mut self, recorded: bool) -> Self {
        self.request.keep = if recorded { Keep::Recorded } else { Keep::No };
        self
    }

    /// For a task that is kept: time before it may begin, up to 366 days.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.request.kept_options_mut().delay = Some(delay);
        self
    }

    /// For a task that is kept: the moment from which it may begin. One that has passed is at once; with a
    /// [delay](Self::delay) as well the later moment counts.
    pub fn start_at(mut self, moment: SystemTime) -> Self {
        self.request.kept_options_mut().start_at = Some(moment);
        self
    }

    /// For a task that is kept: time before its second attempt, when its handler asked for a retry. It doubles with
    /// every further one, and a random half of it is left out, so that what failed together does not return together.
    /// 1 s by default; zero is at once.
    pub fn backoff(mut self, first: Duration) -> Self {
        self.request.kept_options_mut().backoff = Some(first);
        self
    }

    /// For a task that is kept: the longest time between two attempts. 5 minutes by default.
    pub fn max_backoff(mut self, most: Duration) -> Self {
        self.request.kept_options_mut().max_backoff = Some(most);
        self
    }

    /// For a task that is kept: within the key's [window](Self::idempotency_window), whoever hands in a task of the
    /// same action with the same key is given the first one's id, and nothing is run twice. 1 to 255 bytes. So a
    /// background task with a key is sent again by itself when its connection is lost before it was accepted.
    pub fn idempotency_key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.request.kept_options_mut().idempotency_key = Some(Cow::Borrowed(key.as_ref()));
        self
    }

    /// How long the idempotency key stands for its task, up to 366 days. A day by default.
    pub fn idempotency_window(mut self, window: Duration) -> Self {
        self.request.kept_options_mut().idempotency_window = Some(window);
        self
    }

    /// Hands the task in as a background task: it outlives this client and the balancer, and its outcome is kept. The
    /// reply comes once the task is durable; many may be under way at a time, and
    /// [`Client::accepted_queue`] hands in hundreds of thousands. Blocks while the client is at one of its bounds, and
    /// not for the network.
    ///
    /// When the connection is lost before the reply came, nobody knows whether the task was taken in. With an
    /// [idempotency key](Self::idempotency_key), or when it is [safe to repeat](Self::safe_to_repeat), it is sent
    /// again; without, the reply ends with `connection_lost`.
    ///
    /// ```no_run
    /// # fn example(client: &reparto_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// let accepted = client
    ///     .task("report")
    ///     .payload("2026-11")
    ///     .delay(Duration::from_secs(3600))
    ///     .max_attempts(5)
    ///     .backoff(Duration::from_secs(10))
    ///     .idempotency_key("report-2026-11")
    ///     .submit_background()?
    ///     .wait()?;
    /// println!("{}", accepted.task_id);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`submit`](Self::submit). The reply ends with `store_unavailable` when the balancer has no store, or cannot
    /// make the task durable now.
    pub fn submit_background(self) -> Result<Reply<Accepted>, ClientError> {
        self.submit_background_when(WhenFull::Wait)
    }

    /// As [`submit_background`](Self::submit_background), but never waits for room.
    ///
    /// # Errors
    /// [`ClientError::Full`] when the client is at one of its bounds, and what `submit_background` says.
    pub fn try_submit_background(self) -> Result<Reply<Accepted>, ClientError> {
        self.submit_background_when(WhenFull::Refuse)
    }

    fn submit_background_when(self, when_full: WhenFull) -> Result<Reply<Accepted>, ClientError> {
        let owner = Arc::clone(&self.client.owner);
        let cell = Arc::new(Cell::default());
        self.keep(Keep::Background).hand_in(Completer::Cell(Arc::clone(&cell) as _), when_full)?;
        Ok(Reply { _owner: owner, cell })
    }

    pub(crate) fn keep(mut self, keep: Keep) -> Self {
        self.request.keep = keep;
        self
    }

    /// Hands the task in. Blocks while the client is at one of its bounds, and not for the network.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for an option out of its range; [`ClientError::PayloadTooLarge`], checked
    /// against what the balancer said it takes. What happens later is the handle's to tell.
    pub fn submit(self) -> Result<TaskHandle, ClientError> {
        self.submit_when(WhenFull::Wait)
    }

    /// As [`submit`](Self::submit), but never waits for room.
    ///
    /// # Errors
    /// [`ClientError::Full`] when the client is at one of its bounds, and what `submit` says.
    pub fn try_submit(self) -> Result<TaskHandle, ClientError> {
        self.submit_when(WhenFull::Refuse)
    }

    fn submit_when(self, when_full: WhenFull) -> Result<TaskHandle, ClientError> {
        let owner = Arc::clone(&self.client.owner);
        let cell = Arc::new(Cell::default());
        let id = self.hand_in(Completer::Cell(Arc::clone(&cell) as _), when_full)?;
        Ok(TaskHandle { owner, cell, id, reports_seen: 0 })
    }

    /// Hands the task in, and has the outcome given to `callback`.
    ///
    /// It is called once, mostly on the thread that reads the connection: be short, do not block, and hand in
    /// further tasks from it with [`try_submit`](Self::try_submit) only. A callback does not keep the client
    /// alive: when the last [`Client`] is dropped it is called with `connection_lost`.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); the callback is not called then.
    pub fn submit_with(self, callback: impl FnOnce(TaskOutcome) + Send + 'static) -> Result<(), ClientError> {
        self.hand_in(Completer::Callback(Box::new(callback)), WhenFull::Wait).map(|_| ())
    }

    pub(crate) fn hand_in(mut self, completer: Completer, when_full: WhenFull) -> Result<u64, ClientError> {
        self.request.check()?;
        self.request.start_clocks(Instant::now());
        self.client.owner.shared.submit(Request::Task(self.request), completer, when_full)
    }
}

impl fmt::Debug for TaskBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder").field("request", &self.request).finish_non_exhaustive()
    }
}
