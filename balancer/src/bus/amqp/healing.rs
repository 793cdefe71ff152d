//! Removes a queue that RabbitMQ cannot use, so that it can be made anew.
//!
//! A RabbitMQ that is killed in the moment in which it makes a quorum queue may come back with one that has a name and no
//! leader (seen with 3.10). Whoever consumes it waits for a minute, and loses the whole connection then, again and again.
//! PostgreSQL holds the truth, so a queue of ours that is empty can be removed: what is published next makes it again.

use std::thread;
use std::time::Duration;

use amiquip::QueueDeleteOptions;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::{Address, describe};
use crate::bus::{Queue, QueueKind};

/// How long a consumer may take to begin before its queue is looked at.
const HANGS: Duration = Duration::from_secs(5);

/// Watches over the beginning of a consumer, until what is returned is dropped.
pub(super) fn watch(address: &Address, queue: &Queue) -> Option<Sender<()>> {
    if queue.kind != QueueKind::Durable {
        return None;
    }
    let (begins, begun) = bounded(0);
    let (address, queue) = (address.clone(), queue.clone());
    let watching = move || {
        if begun.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            heal(&address, &queue);
        }
    };
    thread::Builder::new().name("bus-watch".into()).spawn(watching).ok().map(|_| begins)
}

/// Removes a queue if nothing is in it.
fn heal(address: &Address, queue: &Queue) {
    let remove = || {
        let mut connection = address.connect()?;
        let channel = connection.open_channel(None)?;
        let found = channel.queue_declare_passive(&*queue.name)?.declared_message_count();
        if found != Some(0) {
            return Ok(false);
        }
        channel.queue_delete(&*queue.name, QueueDeleteOptions::default()).map(|_| true)
    };
    match remove() {
        Ok(true) => log::warn!("the queue '{}' did not answer, and is made anew", queue.name),
        Ok(false) => log::warn!("the queue '{}' does not answer, and is not empty", queue.name),
        Err(error) => log::warn!("the queue '{}' does not answer: {}", queue.name, describe(&error)),
    }
}
