//! The bus between balancers: messages in durable queues of RabbitMQ, on threads of its own.
//!
//! ```text
//!   publish, begin, end, take --> Bus --commands--> publishing thread --> RabbitMQ
//!                                  ^  \-----------> consuming thread <--/
//!                                  |                     |
//!                          take_events <-- events, wake -+
//! ```
//!
//! Whoever uses it never waits for the network. What is published is told to be confirmed once RabbitMQ has made it
//! durable; until then it is kept here, and published again after a connection was lost, so that a message may come
//! twice and is never forgotten while this process lives. What is consumed is acknowledged by its [`Tag`].
//!
//! The two connections are apart, since RabbitMQ stops reading from those that publish when its memory or disk runs
//! short, and acknowledgements must not wait for that. All that knows the client library stands in `amqp`.

mod amqp;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};

pub use amqp::{Address, BusError};

/// How long the end of the threads is waited for. One that waits for a server that does not answer is left behind.
const STOP: Duration = Duration::from_secs(3);

/// Where a message goes or comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Its name, up to 255 bytes.
    pub name: Arc<str>,
    /// What it is.
    pub kind: QueueKind,
}

/// What a queue is, and so how it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// Ours, durable and replicated (a quorum queue); made when it is first used.
    Durable,
    /// Ours, its messages in memory, gone when nobody has used it for a while; made when it is first used.
    Transient,
    /// Ours, consumed by this process alone, whose messages come from others; gone soon after it is consumed no more.
    /// Made when it is consumed.
    Inbox,
    /// Ours alone, in memory, gone with the consuming connection; made when it is consumed.
    Own,
    /// Shared with other programs: durable; made if it is not there, and otherwise taken as they have made it.
    Public,
    /// Somebody else's, or nobody's: never made here.
    Foreign,
}

/// What stands beside a message's body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// Its sender's name for it.
    pub message_id: Option<String>,
    /// What its answer is to carry.
    pub correlation_id: Option<String>,
    /// The queue that its answer is to go to.
    pub reply_to: Option<String>,
    /// What its body is.
    pub content_type: Option<String>,
    /// Texts of its sender's.
    pub headers: Vec<(String, String)>,
    /// How long it may wait in its queue.
    pub expires: Option<Duration>,
}

/// A message to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub queue: Queue,
    /// What.
    pub body: Bytes,
    /// What stands beside it.
    pub properties: Properties,
}

impl Message {
    fn memory(&self) -> usize {
        size_of::<Message>() + self.body.len()
    }
}

/// Names a delivery, for its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Which of our connections it came on, counted from 1.
    connection: u64,
    number: u64,
}

#[cfg(test)]
impl Tag {
    /// One of the first connection.
    pub(crate) fn numbered(number: u64) -> Tag {
        Tag { connection: 1, number }
    }

    /// For deliveries that came from nowhere.
    pub(crate) const NOWHERE: Tag = Tag { connection: 0, number: 0 };
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The caller's number for the consumer that it came to.
    pub consumer: u64,
    /// To take it or give it back with.
    pub tag: Tag,
    /// What.
    pub body: Bytes,
    /// What stands beside it.
    pub properties: Properties,
}

/// What has happened on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusEvent {
    /// RabbitMQ has made the message of this token durable.
    Confirmed(u64),
    /// The queue that the message of this token was for does not exist. Told of foreign and own queues alone.
    Unroutable(u64),
    /// What the question of this token has found: messages that wait in the queue, and its consumers. Nothing while
    /// there is no connection.
    Counted {
        /// The question's.
        token: u64,
        /// Messages that no consumer has been given.
        messages: u32,
        /// Consumers.
        consumers: u32,
    },
    /// A message has come.
    Delivered(Delivery),
    /// The consuming connection is lost: what it delivered and was not taken will come again, and its tags are void.
    /// Consumers go on by themselves when there is a connection again.
    Lost,
}

/// Bounds of a bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusLimits {
    /// Messages published and not confirmed, at most.
    pub unconfirmed: usize,
    /// Their bytes, at most. A single larger one is taken when nothing else waits.
    pub unconfirmed_bytes: usize,
}

impl Default for BusLimits {
    fn default() -> Self {
        BusLimits { unconfirmed: 65_536, unconfirmed_bytes: 64 << 20 }
    }
}

/// How the bus does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BusStatus {
    /// Messages published and not confirmed.
    pub unconfirmed: usize,
    /// Their bytes.
    pub unconfirmed_bytes: usize,
    /// Why it cannot be used now, and since when; `None` when it can.
    pub trouble: Option<(String, SystemTime)>,
}

/// What the publishing thread is told.
enum Publishing {
    Publish(Vec<(u64, Message)>),
    /// Say what is in a queue, and who consumes it.
    Count(u64, Queue),
    Stop,
}

/// What the consuming thread is told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Consuming {
    /// Begin a consumer: the caller's number for it, its queue, and how many messages may be on their way to it.
    Begin(u64, Queue, u16),
    /// End it. What it has delivered can still be taken or given back.
    End(u64),
    /// Take a delivery: it is done with.
    Take(Tag),
    /// Give a delivery back to its queue.
    Return(Tag),
    Stop,
}

/// What all threads share.
struct Shared {
    unconfirmed: AtomicUsize,
    unconfirmed_bytes: AtomicUsize,
    stopping: AtomicBool,
    /// Why the publishing and the consuming thread have no connection.
    troubles: [Mutex<Option<(String, SystemTime)>>; 2],
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    fn trouble(&self, thread: usize) -> MutexGuard<'_, Option<(String, SystemTime)>> {
        // A text that a panicking thread was about to replace is as good as another.
        self.troubles[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// A bus at work on its own threads. Dropping it stops them.
pub struct Bus {
    shared: Arc<Shared>,
    limits: BusLimits,
    /// What is told to the threads at the next [`flush`](Self::flush).
    outgoing: Vec<(u64, Message)>,
    counts: Vec<(u64, Queue)>,
    consuming: Vec<Consuming>,
    to_publishing: Sender<Publishing>,
    to_consuming: Sender<Vec<Consuming>>,
    events: Receiver<Vec<BusEvent>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Bus").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Bus {
    /// Starts the threads, which connect by themselves, and again whenever the connection is lost. `wake` is called
    /// from them whenever there are events to take; it must not block.
    ///
    /// # Errors
    ///
    /// [`BusError::Thread`] when a thread cannot be had.
    pub fn start(
        address: &Address,
        limits: BusLimits,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Bus, BusError> {
        // Messages here are batches of what is counted or bounded: confirmations by the messages published, deliveries
        // by their consumers' prefetch, commands by both.
        let (to_publishing, from_caller) = unbounded();
        let (to_consuming, consuming_from_caller) = unbounded();
        let (to_caller, events) = unbounded();
        let shared = Arc::new(Shared {
            unconfirmed: AtomicUsize::new(0),
            unconfirmed_bytes: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            troubles: Default::default(),
            wake: Box::new(wake),
        });
        let publisher =
            amqp::Publisher::new(Arc::clone(&shared), address.clone(), from_caller, to_caller.clone());
        let consumer =
            amqp::Consuming::new(Arc::clone(&shared), address.clone(), consuming_from_caller, to_caller);
        let threads = vec![
            spawn("bus-publishing", move || publisher.run())?,
            spawn("bus-consuming", move || consumer.run())?,
        ];
        Ok(Bus {
            shared,
            limits,
            outgoing: Vec::new(),
            counts: Vec::new(),
            consuming: Vec::new(),
            to_publishing,
            to_consuming,
            events,
            threads,
        })
    }

    /// Whether another message may be published now: fewer than the bound wait to be confirmed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shared.unconfirmed.load(Ordering::Acquire) < self.limits.unconfirmed
            && self.shared.unconfirmed_bytes.load(Ordering::Acquire) < self.limits.unconfirmed_bytes
    }

    /// Publishes a message at the next [`flush`](Self::flush); what became of it is told with `token`.
    ///
    /// It is taken whatever [`has_room`](Self::has_room) says: ask that before taking on what will be published.
    pub fn publish(&mut self, token: u64, message: Message) {
        self.shared.unconfirmed.fetch_add(1, Ordering::AcqRel);
        self.shared.unconfirmed_bytes.fetch_add(message.memory(), Ordering::AcqRel);
        self.outgoing.push((token, message));
    }

    /// Asks how many messages a queue has, and how many consumers; the queue is made if it is not there. Ask no more than
    /// is answered.
    pub fn count(&mut self, token: u64, queue: Queue) {
        self.counts.push((token, queue));
    }

    /// Begins a consumer of a queue, under a number that no other has. At most `prefetch` of its messages are under
    /// way at once, delivered and neither taken nor given back.
    pub fn begin(&mut self, consumer: u64, queue: Queue, prefetch: u16) {
        self.consuming.push(Consuming::Begin(consumer, queue, prefetch.max(1)));
    }

    /// Ends a consumer. What it has delivered, or delivers until this is known, can still be taken or given back.
    pub fn end(&mut self, consumer: u64) {
        self.consuming.push(Consuming::End(consumer));
    }

    /// Takes a delivery, which is then done with. One of a connection that is lost comes again all the same.
    pub fn take(&mut self, tag: Tag) {
        self.consuming.push(Consuming::Take(tag));
    }

    /// Gives a delivery back to its queue, for any consumer.
    pub fn give_back(&mut self, tag: Tag) {
        self.consuming.push(Consuming::Return(tag));
    }

    /// What was given back since the last [`flush`](Self::flush).
    #[cfg(test)]
    pub(crate) fn given_back(&self) -> Vec<Tag> {
        let tag = |said: &Consuming| if let Consuming::Return(tag) = said { Some(*tag) } else { None };
        self.consuming.iter().filter_map(tag).collect()
    }

    /// What was published since the last [`flush`](Self::flush).
    #[cfg(test)]
    pub(crate) fn published(&self) -> Vec<Message> {
        self.outgoing.iter().map(|(_, message)| message.clone()).collect()
    }

    /// Tells the threads all that was said since the last time.
    pub fn flush(&mut self) {
        // A thread that has ended was told to stop.
        if !self.outgoing.is_empty() {
            let _ = self.to_publishing.send(Publishing::Publish(std::mem::take(&mut self.outgoing)));
        }
        for (token, queue) in self.counts.drain(..) {
            let _ = self.to_publishing.send(Publishing::Count(token, queue));
        }
        if !self.consuming.is_empty() {
            let _ = self.to_consuming.send(std::mem::take(&mut self.consuming));
        }
    }

    /// Takes what has happened.
    pub fn take_events(&self, events: &mut Vec<BusEvent>) {
        for mut batch in self.events.try_iter() {
            events.append(&mut batch);
        }
    }

    /// How the bus does.
    #[must_use]
    pub fn status(&self) -> BusStatus {
        BusStatus {
            unconfirmed: self.shared.unconfirmed.load(Ordering::Acquire),
            unconfirmed_bytes: self.shared.unconfirmed_bytes.load(Ordering::Acquire),
            trouble: (0..2).find_map(|thread| self.shared.trouble(thread).clone()),
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.flush();
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.to_publishing.send(Publishing::Stop);
        let _ = self.to_consuming.send(vec![Consuming::Stop]);
        let until = Instant::now() + STOP;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() && thread.join().is_err() {
                log::error!("a thread of the bus panicked");
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, BusError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| BusError::Thread { reason: error.to_string() })
}
