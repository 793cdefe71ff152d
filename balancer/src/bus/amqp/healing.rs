//! Removes a queue that RabbitMQ cannot use, so that it can be made anew.
//!
//! A RabbitMQ that is killed in the moment in which it makes a quorum queue may come back with one that has a name and no
//! leader (seen with 3.10). Whoever consumes it loses the whole connection, at once or after a minute, again and again.
//! PostgreSQL holds the truth, so such a queue of ours can be removed: what is published next makes it again.
//!
//! A queue that works must never be removed, though it looks empty: what its consumers have is not counted, and a busy
//! RabbitMQ counts nothing at all. A slow network or a slow disk makes a consumer wait as well. So both are asked the
//! same, the queue and one made for that purpose: only if the other has answered, and ours, which was asked before, still
//! does not, is it no good.

use std::collections::HashMap;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use amiquip::{Connection, QueueDeleteOptions};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use super::{Address, describe, options};
use crate::bus::{Queue, QueueKind};

/// How long a consumer may take to begin before its queue is looked at, and how long the queue may be silent after
/// another has answered.
const HANGS: Duration = Duration::from_secs(5);
/// RabbitMQ removes a queue made to be asked after this time, if we could not, in milliseconds.
const LEFT_BEHIND_MS: i32 = 120_000;

/// Watches over queues of which a consumer is to begin, one over each, through as many connections as that takes.
#[derive(Debug)]
pub(super) struct Watches {
    address: Address,
    on: HashMap<Queue, Watch>,
}

/// One of them. Its thread ends when this is dropped, or has looked at the queue.
#[derive(Debug)]
struct Watch {
    _ends: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watches {
    pub(super) fn new(address: &Address) -> Watches {
        Watches { address: address.clone(), on: HashMap::new() }
    }

    /// A consumer of it is about to begin, for the first time or again.
    pub(super) fn begins(&mut self, queue: &Queue) {
        let is_watched = self.on.get(queue).is_some_and(|watch| !watch.thread.is_finished());
        if queue.kind != QueueKind::Durable || is_watched {
            return;
        }
        let (ends, begun) = bounded(0);
        let (address, watched) = (self.address.clone(), queue.clone());
        let thread = spawn("bus-watch", move || {
            if begun.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
                heal(&address, &watched, &begun);
            }
        });
        if let Some(thread) = thread {
            self.on.insert(queue.clone(), Watch { _ends: ends, thread });
        }
    }

    /// A consumer of it has begun, or is not wanted any more.
    pub(super) fn is_over(&mut self, queue: &Queue) {
        self.on.remove(queue);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run).ok()
}

/// Removes a queue if it does not work.
fn heal(address: &Address, queue: &Queue, begun: &Receiver<()>) {
    let removed = is_silent(address, queue, begun)
        .and_then(|silent| if silent { remove(address, queue).map(Some) } else { Ok(None) });
    match removed {
        Ok(Some(true)) => log::warn!("the queue '{}' did not answer, and is made anew", queue.name),
        Ok(Some(false)) => log::warn!("the queue '{}' does not answer, and is not empty", queue.name),
        Ok(None) => log::info!("a consumer of the queue '{}' waits long to begin", queue.name),
        Err(error) => log::warn!("the queue '{}' does not answer: {}", queue.name, describe(&error)),
    }
}

/// Whether a queue does not answer though another does. One that is gone, or whose consumer begins meanwhile, counts as
/// one that answers. An error says that RabbitMQ does not.
fn is_silent(address: &Address, queue: &Queue, begun: &Receiver<()>) -> amiquip::Result<bool> {
    let (says, said) = bounded(1);
    let asked = {
        let (address, queue) = (address.clone(), queue.clone());
        // RabbitMQ ends its waiting, and so the thread, after a minute.
        spawn("bus-question", move || {
            let answer = address.connect().and_then(|mut connection| ask(&mut connection, &queue.name));
            let _ = says.send(answer);
        })
    };
    if asked.is_none() {
        return Ok(false);
    }
    ask_another(address)?;
    // One that was told at once that it does not work is waited for as well: its queue may be about to have a leader.
    let silent = select! {
        recv(begun) -> _ => false,
        recv(said) -> answer => match answer {
            Ok(Ok(()) | Err(amiquip::Error::ServerClosedChannel { .. })) => false,
            _ => begun.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout),
        },
        default(HANGS) => true,
    };
    Ok(silent)
}

/// Asks a queue for a message, which goes back to it. The answer goes through all that a consumer's beginning does.
fn ask(connection: &mut Connection, queue: &str) -> amiquip::Result<()> {
    let channel = connection.open_channel(None)?;
    match channel.basic_get(queue, false)? {
        Some(got) => got.nack(&channel, true),
        None => Ok(()),
    }
}

/// Asks the same of a queue made a moment ago.
fn ask_another(address: &Address) -> amiquip::Result<()> {
    let mut connection = address.connect()?;
    let mut how = options(QueueKind::Durable, connection.server_properties()).unwrap_or_default();
    how.arguments.insert("x-expires".into(), amiquip::AmqpValue::LongInt(LEFT_BEHIND_MS));
    let name = format!("reparto.asked.{}", uuid::Uuid::new_v4().simple());
    let channel = connection.open_channel(None)?;
    channel.queue_declare(&*name, how)?;
    ask(&mut connection, &name)?;
    channel.queue_delete(name, QueueDeleteOptions::default()).map(drop)
}

/// Removes a queue, unless there are messages in it.
fn remove(address: &Address, queue: &Queue) -> amiquip::Result<bool> {
    let mut connection = address.connect()?;
    let channel = connection.open_channel(None)?;
    if channel.queue_declare_passive(&*queue.name)?.declared_message_count() != Some(0) {
        return Ok(false);
    }
    channel.queue_delete(&*queue.name, QueueDeleteOptions::default()).map(|_| true)
}
