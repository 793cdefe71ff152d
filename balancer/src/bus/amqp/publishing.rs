//! The thread that publishes: many messages are under way at once, and each is kept until RabbitMQ has confirmed it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use amiquip::{Channel, Confirm, Connection, ConnectionBlockedNotification, Publish, Return};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};

use super::{
    Address, Maker, PUBLISHING, Waits, clear_trouble, keep_trouble, note_queue, note_trouble, to_amqp,
};
use crate::bus::{BusEvent, Message, Publishing, Queue, QueueKind, Shared};

/// Messages sent and not confirmed, at most; the others wait here.
const MOST_UNDER_WAY: usize = 8192;
/// How long a queue that refuses, or is not there, is left alone.
const PAUSE: Duration = Duration::from_millis(200);
/// How often an idle thread looks whether its connection is there.
const LOOK: Duration = Duration::from_secs(1);

pub(in crate::bus) struct Publisher {
    shared: Arc<Shared>,
    address: Address,
    commands: Receiver<Publishing>,
    events: Sender<Vec<BusEvent>>,
    unsent: VecDeque<(u64, Message)>,
    /// What was sent on the present connection and not confirmed, by its number there.
    under_way: BTreeMap<u64, Sent>,
    /// Questions that are not answered yet.
    counts: Vec<(u64, Queue)>,
    told: Vec<BusEvent>,
    stops: bool,
}

struct Sent {
    token: u64,
    message: Message,
    /// RabbitMQ has found no queue for it.
    returned: bool,
}

/// Why a connection is over.
enum Over {
    Lost(amiquip::Error),
    Stopped,
}

impl From<amiquip::Error> for Over {
    fn from(error: amiquip::Error) -> Self {
        Over::Lost(error)
    }
}

impl Publisher {
    pub(in crate::bus) fn new(
        shared: Arc<Shared>,
        address: Address,
        commands: Receiver<Publishing>,
        events: Sender<Vec<BusEvent>>,
    ) -> Self {
        Publisher {
            shared,
            address,
            commands,
            events,
            unsent: VecDeque::new(),
            under_way: BTreeMap::new(),
            counts: Vec::new(),
            told: Vec::new(),
            stops: false,
        }
    }

    /// Runs until it is told to stop.
    pub(in crate::bus) fn run(mut self) {
        let mut waits = Waits::new();
        while !self.stops {
            let over = match self.address.connect() {
                Ok(mut connection) => {
                    let since = Instant::now();
                    let over = self.serve(&mut connection);
                    if since.elapsed() > LOOK {
                        waits = Waits::new();
                    }
                    over
                }
                Err(error) => Err(Over::Lost(error)),
            };
            self.take_back();
            let Err(Over::Lost(error)) = over else { return };
            note_trouble(&self.shared, PUBLISHING, &self.address.error(&error));
            self.wait(waits.next());
            self.count_nothing();
        }
    }

    /// What was under way is to be sent again, in its old order.
    fn take_back(&mut self) {
        for (_, sent) in std::mem::take(&mut self.under_way).into_iter().rev() {
            self.unsent.push_front((sent.token, sent.message));
        }
    }

    /// Takes commands for a time.
    fn wait(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stops {
            match self.commands.recv_deadline(until) {
                Ok(command) => self.note(command),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stops = true,
            }
        }
    }

    /// Answers what is asked while there is no connection.
    fn count_nothing(&mut self) {
        for (token, _) in self.counts.drain(..) {
            self.told.push(BusEvent::Counted { token, messages: 0, consumers: 0 });
        }
        self.tell();
    }

    /// Answers what is asked about queues.
    fn count(&mut self, connection: &mut Connection, line: &mut Line) -> Result<(), Over> {
        while let Some((token, queue)) = self.counts.last().cloned() {
            let (messages, consumers) = line.maker.count(connection, &queue)?;
            self.counts.pop();
            self.told.push(BusEvent::Counted { token, messages, consumers });
        }
        Ok(())
    }

    fn note(&mut self, command: Publishing) {
        match command {
            Publishing::Publish(messages) => self.unsent.extend(messages),
            Publishing::Count(token, queue) => self.counts.push((token, queue)),
            Publishing::Stop => self.stops = true,
        }
    }

    /// Publishes on a connection until it is lost or all is to end.
    fn serve(&mut self, connection: &mut Connection) -> Result<(), Over> {
        let blocked = connection.listen_for_connection_blocked()?;
        let channel = connection.open_channel(None)?;
        let confirms = channel.listen_for_publisher_confirms()?;
        let returns = channel.listen_for_returns()?;
        channel.enable_publisher_confirms()?;
        clear_trouble(&self.shared, PUBLISHING, &self.address);
        let mut line = Line { channel, maker: Maker::default(), next: 1, paused_until: None, blocked: false };
        loop {
            self.send(connection, &mut line)?;
            self.count(connection, &mut line)?;
            self.tell();
            select! {
                recv(self.commands) -> command => match command {
                    Ok(command) => self.note(command),
                    Err(_) => self.stops = true,
                },
                recv(confirms) -> confirm => match confirm {
                    Ok(confirm) => self.confirmed(&mut line, &confirm, &returns),
                    Err(_) => return Err(lost(&line.channel)),
                },
                recv(blocked) -> note => match note {
                    Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                        keep_trouble(&self.shared, PUBLISHING, format!("RabbitMQ takes nothing now: {reason}"));
                        line.blocked = true;
                    }
                    Ok(ConnectionBlockedNotification::Unblocked) => {
                        clear_trouble(&self.shared, PUBLISHING, &self.address);
                        line.blocked = false;
                    }
                    Err(_) => return Err(lost(&line.channel)),
                },
                default(line.wait()) => {}
            }
            for command in self.commands.clone().try_iter() {
                self.note(command);
            }
            for confirm in confirms.try_iter() {
                self.confirmed(&mut line, &confirm, &returns);
            }
            self.tell();
            if self.stops
                && (self.under_way.is_empty() && self.unsent.is_empty() || self.shared.is_stopping())
            {
                return Err(Over::Stopped);
            }
        }
    }

    /// Sends what there is room for on the connection.
    fn send(&mut self, connection: &mut Connection, line: &mut Line) -> Result<(), Over> {
        if line.blocked || line.paused_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        line.paused_until = None;
        while self.under_way.len() < MOST_UNDER_WAY
            && let Some((token, message)) = self.unsent.pop_front()
        {
            let queue = &message.queue;
            if is_made_here(queue.kind) {
                match line.maker.make(connection, queue) {
                    Ok(None) => {}
                    Ok(Some(reason)) => {
                        note_queue(&self.shared, PUBLISHING, queue, &reason);
                        self.unsent.push_back((token, message));
                        line.paused_until = Some(Instant::now() + PAUSE);
                        return Ok(());
                    }
                    Err(error) => {
                        self.unsent.push_front((token, message));
                        return Err(error.into());
                    }
                }
            }
            let durable = !matches!(queue.kind, QueueKind::Transient | QueueKind::Own);
            let publish = Publish {
                body: &message.body,
                routing_key: queue.name.to_string(),
                mandatory: true,
                immediate: false,
                properties: to_amqp(&message.properties, durable),
            };
            let sent = line.channel.basic_publish("", publish);
            self.under_way.insert(line.next, Sent { token, message, returned: false });
            line.next += 1;
            sent?;
        }
        Ok(())
    }

    /// Takes a confirmation, perhaps of many at once. A return comes before the confirmation of its message.
    fn confirmed(&mut self, line: &mut Line, confirm: &Confirm, returns: &Receiver<Return>) {
        for returned in returns.try_iter() {
            // They come in the order in which the messages were published.
            let of = |sent: &&mut Sent| !sent.returned && *sent.message.queue.name == *returned.routing_key;
            if let Some(sent) = self.under_way.values_mut().find(of) {
                sent.returned = true;
            }
        }
        let (payload, took) = match confirm {
            Confirm::Ack(payload) => (payload, true),
            Confirm::Nack(payload) => (payload, false),
        };
        if payload.multiple {
            let later = self.under_way.split_off(&payload.delivery_tag.saturating_add(1));
            for (_, sent) in std::mem::replace(&mut self.under_way, later) {
                self.settle(line, sent, took);
            }
        } else if let Some(sent) = self.under_way.remove(&payload.delivery_tag) {
            self.settle(line, sent, took);
        }
    }

    fn settle(&mut self, line: &mut Line, sent: Sent, took: bool) {
        let Sent { token, message, returned } = sent;
        let ours = is_made_here(message.queue.kind);
        if !took || (returned && ours) {
            // It has no leader for the moment, or somebody has removed it: it is looked for, or made, again.
            line.maker.forget(&message.queue);
            line.paused_until = Some(Instant::now() + PAUSE);
            self.unsent.push_back((token, message));
            return;
        }
        self.shared.unconfirmed.fetch_sub(1, Ordering::AcqRel);
        self.shared.unconfirmed_bytes.fetch_sub(message.memory(), Ordering::AcqRel);
        self.told.push(if returned { BusEvent::Unroutable(token) } else { BusEvent::Confirmed(token) });
    }

    fn tell(&mut self) {
        if !self.told.is_empty() {
            // Nobody may be there to take them any more.
            let _ = self.events.send(std::mem::take(&mut self.told));
            (self.shared.wake)();
        }
    }
}

/// A connection's channel, and what is known of it.
struct Line {
    channel: Channel,
    maker: Maker,
    /// RabbitMQ counts the messages of a channel from 1.
    next: u64,
    paused_until: Option<Instant>,
    blocked: bool,
}

impl Line {
    fn wait(&self) -> Duration {
        self.paused_until.map_or(LOOK, |until| until.saturating_duration_since(Instant::now()).min(LOOK))
    }
}

/// Whether a message makes its queue, if that is not there.
fn is_made_here(kind: QueueKind) -> bool {
    matches!(kind, QueueKind::Durable | QueueKind::Transient | QueueKind::Public)
}

/// Why a channel's listeners have ended: asking anything of it gives the reason.
fn lost(channel: &Channel) -> Over {
    let error = channel.qos(0, 0, false).err();
    Over::Lost(error.unwrap_or(amiquip::Error::UnexpectedSocketClose))
}
