//! Another program that speaks AMQP and knows nothing of Reparto: it publishes, consumes and answers.

use std::time::Duration;

use amiquip::{
    AmqpProperties, Channel, Confirm, Connection, Consumer, ConsumerMessage, ConsumerOptions, Delivery,
    Publish, QueueDeclareOptions,
};

use crossbeam_channel::Receiver;

use super::PATIENCE;

/// How long a message is waited for. What an engine's death has held up comes with the next sweep, which may be a minute
/// later, after a dead balancer's lease.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(240);

pub struct Program {
    confirms: Receiver<Confirm>,
    // Before the connection that it is on, as that is the order in which they end.
    channel: Channel,
    _connection: Connection,
}

impl Program {
    pub fn connect(url: &str) -> Program {
        let mut connection = Connection::insecure_open(url).unwrap();
        let channel = connection.open_channel(None).unwrap();
        channel.enable_publisher_confirms().unwrap();
        let confirms = channel.listen_for_publisher_confirms().unwrap();
        Program { confirms, channel, _connection: connection }
    }

    /// Makes a durable queue, as most programs make theirs.
    pub fn declare(&self, queue: &str) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue, options).unwrap();
    }

    /// Publishes a message, and waits until RabbitMQ has it on its disk.
    pub fn publish(&self, queue: &str, body: impl AsRef<[u8]>, properties: AmqpProperties) {
        let publish = Publish::with_properties(body.as_ref(), queue, properties.with_delivery_mode(2));
        self.channel.basic_publish("", publish).unwrap();
        let confirm = self.confirms.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(confirm, Confirm::Ack(_)), "{confirm:?}");
    }

    pub fn consume(&self, queue: &str) -> Consumer<'_> {
        self.channel.basic_consume(queue, ConsumerOptions::default()).unwrap()
    }

    pub fn acknowledge(&self, delivery: Delivery) {
        delivery.ack(&self.channel).unwrap();
    }

    /// The next message, which is acknowledged: its body and its properties.
    pub fn next(&self, consumer: &Consumer<'_>) -> (String, AmqpProperties) {
        let delivery = delivery(consumer);
        let (body, properties) = (delivery.body.clone(), delivery.properties.clone());
        self.acknowledge(delivery);
        (String::from_utf8(body).unwrap(), properties)
    }

    /// Messages that wait in a queue for a consumer.
    pub fn waiting(&self, queue: &str) -> u32 {
        self.channel.queue_declare_passive(queue).unwrap().declared_message_count().unwrap()
    }
}

/// The next delivery, not acknowledged.
pub fn delivery(consumer: &Consumer<'_>) -> Delivery {
    match consumer.receiver().recv_timeout(MESSAGE_PATIENCE) {
        Ok(ConsumerMessage::Delivery(delivery)) => delivery,
        other => panic!("no message comes: {other:?}"),
    }
}
