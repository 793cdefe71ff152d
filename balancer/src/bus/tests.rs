//! The bus against a real RabbitMQ: what is published is confirmed and comes, also when connections are lost.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use super::*;

/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn url() -> String {
    std::env::var("REPARTO_RABBITMQ_URL")
        .unwrap_or_else(|_| panic!("this test needs RabbitMQ; run: eval \"$(scripts/services up rabbitmq)\""))
}

/// A queue that no other test has.
fn queue(kind: QueueKind) -> Queue {
    Queue { name: format!("test.{}", uuid::Uuid::new_v4().simple()).into(), kind }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A bus and what has come from it; a thread of the test's stands for the reactor.
struct Rig {
    bus: Bus,
    woken: mpsc::Receiver<()>,
    events: Vec<BusEvent>,
}

impl Rig {
    fn start(url: &str) -> Rig {
        let (wake, woken) = mpsc::channel();
        let wake = Mutex::new(wake);
        let address = Address::parse(url).unwrap();
        let bus = Bus::start(&address, BusLimits::default(), move || {
            let _ = wake.lock().unwrap().send(());
        });
        Rig { bus: bus.unwrap(), woken, events: Vec::new() }
    }

    fn publish(&mut self, token: u64, queue: &Queue, body: &'static str) {
        let body = Bytes::from_static(body.as_bytes());
        let message = Message { queue: queue.clone(), body, properties: Properties::default() };
        self.bus.publish(token, message);
        self.bus.flush();
    }

    /// Waits for an event of which `pick` makes something; the others are kept.
    fn wait<T>(&mut self, what: &str, pick: impl Fn(&BusEvent) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some((at, found)) =
                self.events.iter().enumerate().find_map(|(at, event)| pick(event).map(|found| (at, found)))
            {
                self.events.remove(at);
                return found;
            }
            assert!(
                Instant::now() < until,
                "{what} does not come: {:?}, {:?}",
                self.events,
                self.bus.status()
            );
            let _ = self.woken.recv_timeout(Duration::from_millis(100));
            self.bus.take_events(&mut self.events);
        }
    }

    fn confirmed(&mut self, token: u64) {
        self.wait("a confirmation", |event| (*event == BusEvent::Confirmed(token)).then_some(()));
    }

    fn delivery(&mut self, consumer: u64) -> Delivery {
        self.delivery_to(|to| to == consumer)
    }

    fn any_delivery(&mut self) -> Delivery {
        self.delivery_to(|_| true)
    }

    fn delivery_to(&mut self, is_meant: impl Fn(u64) -> bool) -> Delivery {
        self.wait("a delivery", |event| match event {
            BusEvent::Delivered(delivery) if is_meant(delivery.consumer) => Some(delivery.clone()),
            _ => None,
        })
    }

    fn take(&mut self, tag: Tag) {
        self.bus.take(tag);
        self.bus.flush();
    }
}

/// Between a bus and RabbitMQ, so that a test can cut their connections and keep questions from being heard.
#[derive(Clone)]
struct Relay {
    address: SocketAddr,
    /// Both ends of each connection, by its number.
    streams: Arc<Mutex<HashMap<usize, Ends>>>,
    opens: Arc<AtomicBool>,
    /// Questions about this queue that RabbitMQ does not hear.
    unheard: Arc<Mutex<Option<Unheard>>>,
    /// What was asked about it.
    asked: Arc<Mutex<HashSet<Question>>>,
    /// The connection on which its removal was asked for.
    removes: Arc<Mutex<Option<usize>>>,
}

type Ends = [TcpStream; 2];
type Unheard = (Queue, &'static [Question], Then);

/// A question about a queue, as AMQP numbers its class and method.
type Question = [u8; 4];
const CONSUME: Question = [0, 60, 0, 20];
const GET: Question = [0, 60, 0, 70];
const DELETE: Question = [0, 50, 0, 40];
/// What answers that.
const DELETED: Question = [0, 50, 0, 41];

/// What becomes of the connection on which it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing is answered.
    Silence,
    /// It ends.
    End,
}

impl Relay {
    fn start() -> Relay {
        let server = Address::parse(&url()).unwrap();
        let server = server.place().trim_start_matches("amqp://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap(),
            streams: Arc::default(),
            opens: Arc::new(AtomicBool::new(true)),
            unheard: Arc::default(),
            asked: Arc::default(),
            removes: Arc::default(),
        };
        let this = relay.clone();
        thread::spawn(move || {
            for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
                if !this.opens.load(Ordering::SeqCst) {
                    continue;
                }
                let server = TcpStream::connect(&server).unwrap();
                let ends = || [client.try_clone().unwrap(), server.try_clone().unwrap()];
                this.streams.lock().unwrap().insert(number, ends());
                let ([client, server], [mut to_client, mut from_server]) = (ends(), ends());
                let there = this.clone();
                thread::spawn(move || {
                    let _ = there.pass_questions(number, client, server);
                    there.close(number);
                });
                let back = this.clone();
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from_server, &mut to_client);
                    back.close(number);
                });
            }
        });
        relay
    }

    /// Passes on what a client says, frame by frame, but for what is not to be heard.
    fn pass_questions(
        &self,
        number: usize,
        mut client: TcpStream,
        mut server: TcpStream,
    ) -> std::io::Result<()> {
        let mut greeting = [0; 8];
        client.read_exact(&mut greeting)?;
        server.write_all(&greeting)?;
        loop {
            // Its kind, its channel and the size of what follows, after which stands one byte more.
            let mut frame = vec![0; 7];
            client.read_exact(&mut frame)?;
            let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
            frame.resize(7 + size + 1, 0);
            client.read_exact(&mut frame[7..])?;
            match self.unheard(number, &frame) {
                None => server.write_all(&frame)?,
                Some(Then::Silence) => {}
                Some(Then::End) => return Ok(()),
            }
        }
    }

    /// Whether RabbitMQ is not to hear this, and what follows then.
    fn unheard(&self, number: usize, frame: &[u8]) -> Option<Then> {
        let unheard = self.unheard.lock().unwrap();
        let (queue, questions, then) = unheard.as_ref()?;
        let question = Question::try_from(frame.get(7..11)?).unwrap();
        // After a number that means nothing comes the queue's name, with its length before it.
        let name = frame.get(14..14 + queue.name.len());
        if frame[0] != 1 || name != Some(queue.name.as_bytes()) {
            return None;
        }
        self.asked.lock().unwrap().insert(question);
        if question == DELETE {
            *self.removes.lock().unwrap() = Some(number);
        }
        questions.contains(&question).then_some(*then)
    }

    /// RabbitMQ does not hear these questions about a queue any more.
    fn keep(&self, queue: &Queue, questions: &'static [Question], then: Then) {
        *self.unheard.lock().unwrap() = Some((queue.clone(), questions, then));
    }

    /// It hears all of them again, and whoever has waited in vain asks anew.
    fn pass_all(&self) {
        *self.unheard.lock().unwrap() = None;
        self.cut();
    }

    /// Waits until a question about the queue was asked.
    fn wait_for(&self, question: Question) {
        wait_until(&format!("{question:?} is asked"), || self.asked.lock().unwrap().contains(&question));
    }

    fn close(&self, number: usize) {
        // Whoever removes a queue leaves when he has his answer.
        if *self.removes.lock().unwrap() == Some(number) {
            self.asked.lock().unwrap().insert(DELETED);
        }
        for end in self.streams.lock().unwrap().remove(&number).into_iter().flatten() {
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
    }

    fn url(&self) -> String {
        let url = url();
        let (user, place) = url.split_once('@').unwrap();
        let (_, rest) = place.split_once('/').unwrap_or((place, ""));
        format!("{user}@{}/{rest}", self.address)
    }

    fn connections(&self) -> usize {
        self.streams.lock().unwrap().len()
    }

    fn cut(&self) {
        let numbers: Vec<_> = self.streams.lock().unwrap().keys().copied().collect();
        for number in numbers {
            self.close(number);
        }
    }
}

/// A relay, a bus whose connections go through it, and a queue.
fn through_a_relay() -> (Relay, Rig, Queue) {
    let relay = Relay::start();
    let rig = Rig::start(&relay.url());
    (relay, rig, queue(QueueKind::Durable))
}

/// A consumer has the one message of a queue. It was confirmed before: RabbitMQ may end the connection of who consumes a
/// queue that it is just making for another.
fn consume_one(rig: &mut Rig, queue: &Queue) -> Delivery {
    rig.publish(1, queue, "a");
    rig.confirmed(1);
    rig.bus.begin(1, queue.clone(), 5);
    rig.bus.flush();
    rig.delivery(1)
}

#[test]
fn what_is_published_is_confirmed_and_comes_to_a_consumer_with_its_properties() {
    let mut rig = Rig::start(&url());
    for kind in [QueueKind::Durable, QueueKind::Transient] {
        let queue = queue(kind);
        let properties = Properties {
            message_id: Some("m".into()),
            correlation_id: Some("c".into()),
            reply_to: Some("r".into()),
            content_type: Some("application/json".into()),
            headers: vec![("why".into(), "because".into())],
            expires: None,
        };
        let (body, consumer) = (Bytes::from_static(b"hola"), kind as u64);
        rig.bus
            .publish(7, Message { queue: queue.clone(), body: body.clone(), properties: properties.clone() });
        rig.bus.flush();
        rig.confirmed(7);
        rig.bus.begin(consumer, queue, 10);
        rig.bus.flush();
        let delivery = rig.delivery(consumer);
        assert_eq!((delivery.body, delivery.properties), (body, properties));
        rig.take(delivery.tag);
    }
    assert_eq!(rig.bus.status(), BusStatus::default());
}

#[test]
fn many_are_under_way_at_once_and_each_is_confirmed_once() {
    let mut rig = Rig::start(&url());
    let queue = queue(QueueKind::Durable);
    for token in 0..20_000 {
        let message = Message {
            queue: queue.clone(),
            body: Bytes::from_static(b"x"),
            properties: Properties::default(),
        };
        rig.bus.publish(token, message);
    }
    rig.bus.flush();
    let mut confirmed = HashSet::new();
    while confirmed.len() < 20_000 {
        let token = rig.wait("a confirmation", |event| match event {
            BusEvent::Confirmed(token) => Some(*token),
            _ => None,
        });
        assert!(confirmed.insert(token));
    }
}

#[test]
fn no_more_than_the_prefetch_is_under_way_and_what_is_taken_makes_room() {
    let mut rig = Rig::start(&url());
    let queue = queue(QueueKind::Durable);
    for (token, body) in (0..).zip(["a", "b", "c"]) {
        rig.publish(token, &queue, body);
        rig.confirmed(token);
    }
    rig.bus.begin(1, queue.clone(), 1);
    rig.bus.flush();
    let first = rig.delivery(1);
    assert_eq!(&first.body[..], b"a");
    // Another consumer gets the next, since the first one has what it may have.
    rig.bus.begin(2, queue.clone(), 1);
    rig.bus.flush();
    let second = rig.delivery(2);
    assert_eq!(&second.body[..], b"b");
    rig.take(first.tag);
    let third = rig.delivery(1);
    assert_eq!(&third.body[..], b"c");
    rig.take(second.tag);
    rig.take(third.tag);
}

#[test]
fn what_is_given_back_comes_again_to_whoever_consumes() {
    let mut rig = Rig::start(&url());
    let queue = queue(QueueKind::Durable);
    rig.publish(1, &queue, "a");
    rig.bus.begin(1, queue.clone(), 5);
    rig.bus.flush();
    let delivery = rig.delivery(1);
    rig.bus.end(1);
    rig.bus.give_back(delivery.tag);
    rig.bus.begin(2, queue, 5);
    rig.bus.flush();
    let again = rig.delivery(2);
    assert_eq!(&again.body[..], b"a");
    rig.take(again.tag);
}

#[test]
fn what_is_not_taken_when_the_connection_is_lost_comes_again_and_consumers_go_on() {
    let (relay, mut rig, queue) = through_a_relay();
    let first = consume_one(&mut rig, &queue);
    relay.cut();
    rig.wait("the loss", |event| (*event == BusEvent::Lost).then_some(()));
    // Of a connection that is gone: it is done with for nobody.
    rig.take(first.tag);
    let again = rig.delivery(1);
    assert_eq!(&again.body[..], b"a");
    rig.take(again.tag);
    rig.publish(2, &queue, "b");
    rig.confirmed(2);
    let next = rig.delivery(1);
    assert_eq!(&next.body[..], b"b");
}

#[test]
fn consumers_that_were_to_begin_when_the_connection_was_lost_begin_on_the_next_one() {
    let (relay, mut rig, queue) = through_a_relay();
    rig.publish(0, &queue, "a");
    rig.confirmed(0);
    relay.keep(&queue, &[CONSUME], Then::Silence);
    rig.bus.begin(1, queue.clone(), 1);
    rig.bus.begin(2, queue.clone(), 1);
    rig.bus.end(1);
    rig.bus.begin(3, queue.clone(), 1);
    rig.bus.flush();
    relay.wait_for(CONSUME);
    relay.pass_all();
    rig.publish(1, &queue, "b");
    let consumers = [rig.any_delivery().consumer, rig.any_delivery().consumer];
    assert!(consumers == [2, 3] || consumers == [3, 2], "{consumers:?}");
}

/// Another one is to begin, of which RabbitMQ does not hear.
fn hang(relay: &Relay, rig: &mut Rig, queue: &Queue, unheard: &'static [Question], then: Then) {
    relay.keep(queue, unheard, then);
    rig.bus.begin(2, queue.clone(), 1);
    rig.bus.flush();
    relay.wait_for(CONSUME);
}

#[test]
fn a_queue_that_works_is_not_removed_when_a_consumer_of_it_hangs() {
    let (relay, mut rig, queue) = through_a_relay();
    consume_one(&mut rig, &queue);
    hang(&relay, &mut rig, &queue, &[CONSUME], Then::Silence);
    let connections = relay.connections();
    relay.wait_for(GET);
    wait_until("it has been looked at", || relay.connections() <= connections);
    assert!(!relay.asked.lock().unwrap().contains(&DELETE));
    relay.pass_all();
    // What was with a consumer all the time is still there.
    assert_eq!(&rig.any_delivery().body[..], b"a");
}

#[test]
fn a_queue_that_does_not_answer_is_made_anew() {
    is_made_anew(Then::Silence);
}

#[test]
fn a_queue_that_costs_each_consumer_its_connection_is_made_anew() {
    is_made_anew(Then::End);
}

fn is_made_anew(then: Then) {
    let (relay, mut rig, queue) = through_a_relay();
    let first = consume_one(&mut rig, &queue);
    rig.take(first.tag);
    hang(&relay, &mut rig, &queue, &[CONSUME, GET], then);
    relay.wait_for(DELETED);
    // RabbitMQ would end the connection on which it was asked for what is gone.
    relay.pass_all();
    rig.publish(2, &queue, "b");
    rig.confirmed(2);
    assert_eq!(&rig.any_delivery().body[..], b"b");
}

#[test]
fn what_is_published_while_rabbitmq_is_away_is_confirmed_once_it_is_back() {
    let (relay, mut rig, queue) = through_a_relay();
    rig.publish(1, &queue, "a");
    rig.confirmed(1);
    relay.opens.store(false, Ordering::SeqCst);
    relay.cut();
    wait_until("RabbitMQ is missed", || rig.bus.status().trouble.is_some());
    for token in 2..100 {
        rig.publish(token, &queue, "b");
    }
    assert_eq!(rig.bus.status().unconfirmed, 98);
    relay.opens.store(true, Ordering::SeqCst);
    for token in 2..100 {
        rig.confirmed(token);
    }
    assert_eq!(rig.bus.status().unconfirmed, 0);
}

#[test]
fn a_bus_is_full_at_its_bound() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = Address::parse(&format!("amqp://ana:secret@{closed}")).unwrap();
    let limits = BusLimits { unconfirmed: 2, unconfirmed_bytes: 1 << 20 };
    let mut bus = Bus::start(&address, limits, || {}).unwrap();
    for (token, room) in [(1, true), (2, false)] {
        let message = Message {
            queue: queue(QueueKind::Durable),
            body: Bytes::new(),
            properties: Properties::default(),
        };
        bus.publish(token, message);
        assert_eq!(bus.has_room(), room);
    }
}

#[test]
fn a_message_for_somebody_elses_queue_that_is_not_there_is_told_to_be_unroutable() {
    let mut rig = Rig::start(&url());
    rig.publish(1, &queue(QueueKind::Foreign), "a");
    rig.wait("that it has no queue", |event| (*event == BusEvent::Unroutable(1)).then_some(()));
}

#[test]
fn a_queue_that_was_removed_is_made_again_for_what_is_published_next() {
    let mut rig = Rig::start(&url());
    let queue = queue(QueueKind::Durable);
    rig.publish(1, &queue, "a");
    rig.confirmed(1);
    let mut connection = amiquip::Connection::insecure_open(&url()).unwrap();
    let channel = connection.open_channel(None).unwrap();
    channel.queue_delete(&*queue.name, amiquip::QueueDeleteOptions::default()).unwrap();
    rig.publish(2, &queue, "b");
    rig.confirmed(2);
    rig.bus.begin(1, queue, 5);
    rig.bus.flush();
    assert_eq!(&rig.delivery(1).body[..], b"b");
}

#[test]
fn a_queue_that_is_not_there_does_not_keep_other_consumers_from_their_work() {
    let mut rig = Rig::start(&url());
    let (missing, ours) = (queue(QueueKind::Foreign), queue(QueueKind::Durable));
    rig.bus.begin(1, missing.clone(), 5);
    rig.bus.begin(2, ours.clone(), 5);
    rig.publish(1, &ours, "a");
    let delivery = rig.delivery(2);
    rig.take(delivery.tag);
    wait_until("the missing queue is named", || {
        rig.bus.status().trouble.is_some_and(|(reason, _)| reason.contains(&*missing.name))
    });
    // It is consumed as soon as somebody has made it.
    let made = Queue { kind: QueueKind::Transient, ..missing };
    rig.publish(2, &made, "b");
    assert_eq!(&rig.delivery(1).body[..], b"b");
}

/// What a look finds once RabbitMQ has the time to answer.
fn look(address: &Address) -> Result<(), BusError> {
    let since = Instant::now();
    loop {
        match address.check() {
            Err(BusError::Unavailable { .. }) if since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            found => return found,
        }
    }
}

#[test]
fn a_wrong_password_is_refused_and_a_server_that_is_away_is_not() {
    let address = Address::parse(&url()).unwrap();
    assert_eq!(look(&address), Ok(()));
    let place = address.place().trim_start_matches("amqp://");
    let wrong = Address::parse(&format!("amqp://ana:secret@{place}")).unwrap();
    let error = look(&wrong).unwrap_err();
    assert!(matches!(error, BusError::Refused { .. }), "{error}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = Address::parse(&format!("amqp://ana:secret@{closed}/x")).unwrap();
    let error = away.check().unwrap_err();
    assert!(matches!(error, BusError::Unavailable { .. }), "{error}");
    for text in [error.to_string(), format!("{away:?}"), look(&wrong).unwrap_err().to_string()] {
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn a_server_that_ends_while_it_is_greeted_is_not_one_that_refuses_the_password() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::parse(&format!("amqp://ana:secret@{}", listener.local_addr().unwrap())).unwrap();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.read_exact(&mut [0; 8]).unwrap();
        // Connection.Start of version 0-9 without properties, in a frame of channel 0.
        client
            .write_all(b"\x01\0\0\0\0\0\x1c\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US\xce")
            .unwrap();
        // Whatever is said then, it has ended.
        client.read_exact(&mut [0; 7]).unwrap();
    });
    let error = address.check().unwrap_err();
    server.join().unwrap();
    assert!(matches!(error, BusError::Unavailable { .. }), "{error}");
}

#[test]
fn a_wrong_url_is_told_what_is_right() {
    for (text, wanted) in [
        ("http://x/y", "not amqp"),
        ("amqp://ana:secret@host/a/b", "%2F"),
        ("amqp://ana:secret@host?heartbeat=1", "'heartbeat'"),
        ("host:5672", "not amqp"),
        ("::", "cannot be read"),
    ] {
        let error = Address::parse(text).unwrap_err().to_string();
        assert!(
            error.contains(wanted) && error.contains("amqp://USER") && !error.contains("secret"),
            "{error}"
        );
    }
}

#[test]
fn tls_is_there_where_it_was_built_and_else_a_sentence_says_how() {
    let parsed = Address::parse("amqps://ana:secret@host/x");
    if cfg!(feature = "amqps") {
        assert_eq!(parsed.unwrap().place(), "amqps://host:5671/x");
    } else {
        let error = parsed.unwrap_err().to_string();
        assert!(error.contains("--features amqps") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn the_messages_and_consumers_of_a_queue_are_counted_and_it_is_made_for_that() {
    let mut rig = Rig::start(&url());
    let queue = queue(QueueKind::Transient);
    let count = |rig: &mut Rig, token: u64| {
        rig.bus.count(token, queue.clone());
        rig.bus.flush();
        rig.wait("a count", |event| match event {
            BusEvent::Counted { token: of, messages, consumers } if *of == token => {
                Some((*messages, *consumers))
            }
            _ => None,
        })
    };
    assert_eq!(count(&mut rig, 1), (0, 0));
    rig.publish(2, &queue, "a");
    rig.confirmed(2);
    assert_eq!(count(&mut rig, 3), (1, 0));
    rig.bus.begin(1, queue.clone(), 5);
    rig.bus.flush();
    let delivery = rig.delivery(1);
    assert_eq!(count(&mut rig, 4), (0, 1));
    rig.take(delivery.tag);
}

#[test]
fn a_queue_of_other_programs_is_taken_as_they_have_made_it_and_made_if_it_is_not_there() {
    let mut rig = Rig::start(&url());
    let theirs = queue(QueueKind::Public);
    let mut connection = amiquip::Connection::insecure_open(&url()).unwrap();
    let channel = connection.open_channel(None).unwrap();
    let mut options = amiquip::QueueDeclareOptions { durable: true, ..Default::default() };
    options.arguments.insert("x-max-length".into(), amiquip::AmqpValue::LongInt(10));
    channel.queue_declare(&*theirs.name, options).unwrap();
    for (consumer, queue) in [(1, theirs), (2, queue(QueueKind::Public))] {
        rig.bus.begin(consumer, queue.clone(), 5);
        rig.publish(consumer, &queue, "a");
        rig.confirmed(consumer);
        let delivery = rig.delivery(consumer);
        rig.take(delivery.tag);
        // One that is gone is made again for what is published.
        channel.queue_delete(&*queue.name, amiquip::QueueDeleteOptions::default()).unwrap();
        rig.publish(10 + consumer, &queue, "b");
        rig.confirmed(10 + consumer);
    }
}
