//! The thread that consumes: consumers come and go as their user wishes, and go on after a connection was lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, Consumer, ConsumerMessage, ConsumerOptions, Delivery};
use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Select, Sender};

use super::healing::Watches;
use super::{Address, CONSUMING, Maker, Waits, clear_trouble, from_amqp, note_queue, note_trouble};
use crate::bus::{BusEvent, Consuming as Command, Queue, Shared, Tag};

/// Deliveries of one consumer that are taken in a row.
const MOST_IN_A_ROW: usize = 1024;
/// How long a queue that is not there is left alone.
const AGAIN: Duration = Duration::from_secs(1);
/// How often an idle thread looks whether its connection is there.
const LOOK: Duration = Duration::from_secs(1);

pub(in crate::bus) struct Consuming {
    shared: Arc<Shared>,
    address: Address,
    commands: Receiver<Vec<Command>>,
    events: Sender<Vec<BusEvent>>,
    /// The consumers that are to be there.
    wanted: BTreeMap<u64, (Queue, u16)>,
    watches: Watches,
    /// The number of the present connection, or of the last one.
    connection: u64,
    stops: bool,
}

/// What a connection has: its consumers, and what they have delivered and nobody has taken.
struct Line<'a> {
    channel: &'a Channel,
    maker: Maker,
    consumers: HashMap<u64, Consumer<'a>>,
    deliveries: HashMap<u64, Delivery>,
    told: Vec<BusEvent>,
}

impl Consuming {
    pub(in crate::bus) fn new(
        shared: Arc<Shared>,
        address: Address,
        commands: Receiver<Vec<Command>>,
        events: Sender<Vec<BusEvent>>,
    ) -> Self {
        let watches = Watches::new(&address);
        Consuming {
            shared,
            address,
            commands,
            events,
            wanted: BTreeMap::new(),
            watches,
            connection: 0,
            stops: false,
        }
    }

    /// Runs until it is told to stop.
    pub(in crate::bus) fn run(mut self) {
        let mut waits = Waits::new();
        while !self.stops {
            let error = match self.address.connect() {
                Ok(mut connection) => {
                    let since = Instant::now();
                    self.connection += 1;
                    let over = self.serve(&mut connection);
                    if since.elapsed() > LOOK {
                        waits = Waits::new();
                    }
                    // Nobody may be there to take it any more.
                    let _ = self.events.send(vec![BusEvent::Lost]);
                    (self.shared.wake)();
                    match over {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            note_trouble(&self.shared, CONSUMING, &self.address.error(&error));
            self.wait(waits.next());
        }
    }

    /// Takes commands for a time, without a connection.
    fn wait(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stops {
            match self.commands.recv_deadline(until) {
                Ok(commands) => commands.iter().for_each(|command| self.note(command)),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stops = true,
            }
        }
    }

    fn note(&mut self, command: &Command) {
        match command {
            Command::Begin(consumer, queue, prefetch) => {
                self.wanted.insert(*consumer, (queue.clone(), *prefetch));
            }
            Command::End(consumer) => {
                if let Some((queue, _)) = self.wanted.remove(consumer) {
                    self.watches.is_over(&queue);
                }
            }
            // They are of one connection alone.
            Command::Take(_) | Command::Return(_) => {}
            Command::Stop => self.stops = true,
        }
    }

    /// Consumes on a connection until it is lost or all is to end.
    fn serve(&mut self, connection: &mut Connection) -> amiquip::Result<()> {
        let channel = connection.open_channel(None)?;
        let mut line = Line {
            channel: &channel,
            maker: Maker::default(),
            consumers: HashMap::new(),
            deliveries: HashMap::new(),
            told: Vec::new(),
        };
        clear_trouble(&self.shared, CONSUMING, &self.address);
        self.begin_all(connection, &mut line)?;
        let mut again = Instant::now() + AGAIN;
        loop {
            if line.consumers.len() < self.wanted.len() && Instant::now() >= again {
                self.begin_all(connection, &mut line)?;
                again = Instant::now() + AGAIN;
            }
            self.await_something(&line);
            while let Ok(commands) = self.commands.try_recv() {
                // All of them are noted before one is carried out, which may cost the connection: the next one then
                // begins what is wanted.
                commands.iter().for_each(|command| self.note(command));
                for command in commands {
                    self.carry_out(connection, &mut line, command)?;
                }
            }
            if self.stops {
                return Ok(());
            }
            line.take_deliveries(self.connection)?;
            if !line.told.is_empty() {
                let _ = self.events.send(std::mem::take(&mut line.told));
                (self.shared.wake)();
            }
        }
    }

    /// Waits until there is a command or a delivery.
    fn await_something(&self, line: &Line<'_>) {
        let mut select = Select::new();
        select.recv(&self.commands);
        for consumer in line.consumers.values() {
            select.recv(consumer.receiver());
        }
        // What is ready is looked at by whoever takes it.
        let _ = select.ready_timeout(LOOK);
    }

    /// Begins the consumers that are wanted and not there.
    fn begin_all(&mut self, connection: &mut Connection, line: &mut Line<'_>) -> amiquip::Result<()> {
        let mut all = true;
        for (consumer, (queue, prefetch)) in self.wanted.clone() {
            all &= self.begin(connection, line, consumer, (&queue, prefetch))?;
        }
        if all {
            clear_trouble(&self.shared, CONSUMING, &self.address);
        }
        Ok(())
    }

    /// Begins a consumer, if its queue is there. Says whether it is.
    fn begin(
        &mut self,
        connection: &mut Connection,
        line: &mut Line<'_>,
        consumer: u64,
        (queue, prefetch): (&Queue, u16),
    ) -> amiquip::Result<bool> {
        if line.consumers.contains_key(&consumer) {
            return Ok(true);
        }
        if let Some(reason) = line.maker.make(connection, queue)? {
            note_queue(&self.shared, CONSUMING, queue, &reason);
            return Ok(false);
        }
        self.watches.begins(queue);
        line.begin(consumer, queue, prefetch)?;
        self.watches.is_over(queue);
        Ok(true)
    }

    fn carry_out(
        &mut self,
        connection: &mut Connection,
        line: &mut Line<'_>,
        command: Command,
    ) -> amiquip::Result<()> {
        match command {
            Command::Begin(consumer, queue, prefetch) => {
                self.begin(connection, line, consumer, (&queue, prefetch)).map(drop)
            }
            Command::End(consumer) => line.end(consumer, self.connection),
            Command::Take(tag) if tag.connection == self.connection => line.take(tag.number),
            Command::Return(tag) if tag.connection == self.connection => line.give_back(tag.number),
            Command::Take(_) | Command::Return(_) | Command::Stop => Ok(()),
        }
    }
}

impl<'a> Line<'a> {
    fn begin(&mut self, consumer: u64, queue: &Queue, prefetch: u16) -> amiquip::Result<()> {
        // Without "global" it holds for the consumers that begin after it, each for itself.
        self.channel.qos(0, prefetch, false)?;
        let begun = self.channel.basic_consume(&*queue.name, ConsumerOptions::default())?;
        self.consumers.insert(consumer, begun);
        Ok(())
    }

    /// Ends a consumer. What it has delivered to the last is told.
    fn end(&mut self, consumer: u64, connection: u64) -> amiquip::Result<()> {
        let Some(ended) = self.consumers.remove(&consumer) else { return Ok(()) };
        ended.cancel()?;
        // The library tells the consumer so after it has answered; it gives up the whole connection when nobody is there
        // to be told.
        while let Ok(message) = ended.receiver().recv() {
            match message {
                ConsumerMessage::Delivery(delivery) => self.delivered(consumer, connection, delivery),
                _ => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, number: u64) -> amiquip::Result<()> {
        match self.deliveries.remove(&number) {
            Some(delivery) => delivery.ack(self.channel),
            None => Ok(()),
        }
    }

    fn give_back(&mut self, number: u64) -> amiquip::Result<()> {
        match self.deliveries.remove(&number) {
            Some(delivery) => delivery.nack(self.channel, true),
            None => Ok(()),
        }
    }

    fn take_deliveries(&mut self, connection: u64) -> amiquip::Result<()> {
        let mut came = Vec::new();
        for (number, consumer) in &self.consumers {
            for _ in 0..MOST_IN_A_ROW {
                match consumer.receiver().try_recv() {
                    Ok(ConsumerMessage::Delivery(delivery)) => came.push((*number, delivery)),
                    Ok(
                        ConsumerMessage::ServerClosedChannel(error)
                        | ConsumerMessage::ServerClosedConnection(error),
                    ) => {
                        return Err(error);
                    }
                    Ok(_) => return Err(amiquip::Error::ClientClosedChannel),
                    Err(crossbeam_channel::TryRecvError::Empty) => break,
                    Err(crossbeam_channel::TryRecvError::Disconnected) => {
                        return Err(amiquip::Error::UnexpectedSocketClose);
                    }
                }
            }
        }
        if self.consumers.is_empty() {
            // Nobody else would notice that the connection is gone.
            self.channel.qos(0, 1, false)?;
        }
        for (number, delivery) in came {
            self.delivered(number, connection, delivery);
        }
        Ok(())
    }

    fn delivered(&mut self, consumer: u64, connection: u64, mut delivery: Delivery) {
        let number = delivery.delivery_tag();
        self.told.push(BusEvent::Delivered(crate::bus::Delivery {
            consumer,
            tag: Tag { connection, number },
            body: Bytes::from(std::mem::take(&mut delivery.body)),
            properties: from_amqp(&delivery.properties),
        }));
        delivery.properties = Default::default();
        self.deliveries.insert(number, delivery);
    }
}
