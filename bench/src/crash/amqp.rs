//! Programs of a run that know only AMQP. One publishes tasks as JSON into a queue and is told their outcomes in another:
//! every message that RabbitMQ has confirmed must have its outcome told, always the same and of one task. The other, a
//! process of its own, consumes the tasks of an action and answers them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, Channel, Confirm, Connection, ConsumerMessage, ConsumerOptions, Delivery, Publish,
    QueueDeclareOptions,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crossbeam_channel::{Receiver, TryRecvError};
use reparto_client::{ErrorCode, TaskFailure, TaskOutcome};
use serde::{Deserialize, Serialize};

use super::clients::{PATIENCE, Shared};
use super::plan::{AMQP_ACTION, AMQP_QUEUE, Deed, Kind, Order, Plan, result};
use super::worker::{FAILED_WORDS, PANIC_WORDS, die, note, open_log, stop_with_the_harness};

/// Where outcomes are told.
const ANSWERS: &str = "crash-answers";
/// Answers under way to the program that publishes.
const PREFETCH: u16 = 500;
/// How long a thread waits for a message before it looks what else there is.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time between two tries to connect.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long RabbitMQ may take to confirm a message on a connection that lives.
const CONFIRM_WITHIN: Duration = Duration::from_secs(30);
/// Tasks that a worker runs at once, each on a connection of its own.
const THREADS: usize = 4;

fn connect(url: &str) -> amiquip::Result<Connection> {
    Connection::insecure_open(&format!("{url}?heartbeat=5&connection_timeout=5000"))
}

fn declare(channel: &Channel, queue: &str) -> amiquip::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue, options).map(drop)
}

/// Publishes a message that survives RabbitMQ, once that has confirmed it.
fn publish(
    channel: &Channel,
    queue: &str,
    body: &impl Serialize,
    properties: AmqpProperties,
) -> amiquip::Result<()> {
    // Writing what derives Serialize into memory fails for nothing that is written here.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let properties = properties.with_content_type("application/json".into()).with_delivery_mode(2);
    channel.basic_publish("", Publish::with_properties(&body, queue, properties))
}

/// Bytes in JSON, as a text or in base64.
fn bytes_of(text: Option<String>, base64: Option<String>) -> Option<Bytes> {
    match (text, base64) {
        (Some(text), None) => Some(text.into()),
        (None, Some(base64)) => BASE64.decode(base64).ok().map(Bytes::from),
        (None, None) => Some(Bytes::new()),
        (Some(_), Some(_)) => None,
    }
}

// ---- tasks in ----

/// A task as any program writes it.
#[derive(Serialize)]
struct Written<'a> {
    id: u64,
    action: &'a str,
    payload_base64: String,
    priority: u8,
    attempts: u8,
    backoff: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<String>,
}

/// An outcome as it is told.
#[derive(Deserialize)]
struct Told {
    id: u64,
    task_id: String,
    ok: bool,
    data: Option<String>,
    data_base64: Option<String>,
    error: Option<String>,
    code: Option<String>,
}

impl Told {
    fn outcome(self) -> Option<TaskOutcome> {
        if self.ok {
            return bytes_of(self.data, self.data_base64).map(Ok);
        }
        let (name, message) = (self.code?, self.error?);
        let code = ErrorCode::all().find(|code| code.name() == name)?;
        Some(Err(TaskFailure::new(code, message)))
    }
}

/// A task whose outcome was not told yet.
struct Open {
    plan: Plan,
    is_confirmed: bool,
}

/// Whoever publishes tasks.
pub(super) struct Publisher {
    shared: Arc<Shared>,
    url: String,
    plans: Receiver<Plan>,
    /// By number.
    open: BTreeMap<u64, Open>,
    /// Nobody hands it anything any more.
    has_all: bool,
    /// When an outcome was told last, or all was handed in.
    heard_at: Instant,
}

impl Publisher {
    pub(super) fn new(shared: Arc<Shared>, url: String, plans: Receiver<Plan>) -> Publisher {
        let heard_at = Instant::now();
        Publisher { shared, url, plans, open: BTreeMap::new(), has_all: false, heard_at }
    }

    /// Works until every task's outcome was told.
    pub(super) fn run(mut self) {
        while !self.is_over() {
            if let Err(error) = self.serve() {
                log::info!("the program that publishes begins anew: {error}");
                std::thread::sleep(AGAIN_AFTER);
                self.take_plans();
            }
        }
    }

    fn is_over(&mut self) -> bool {
        if self.has_all && self.heard_at.elapsed() > PATIENCE {
            let waited = PATIENCE.as_secs();
            for (number, task) in std::mem::take(&mut self.open) {
                let what = if task.is_confirmed { "has been confirmed" } else { "is not even confirmed" };
                let what =
                    format!("its message {what}, and its outcome is not told {waited} s after any other");
                self.shared.books.violate(Some(number), what);
            }
        }
        self.has_all && self.open.is_empty()
    }

    /// Takes what is handed in, to be published.
    fn take_plans(&mut self) -> Vec<u64> {
        let mut taken = Vec::new();
        loop {
            match self.plans.try_recv() {
                Ok(plan) => {
                    self.shared.books.submitted(&plan);
                    taken.push(plan.number);
                    self.open.insert(plan.number, Open { plan, is_confirmed: false });
                }
                Err(TryRecvError::Empty) => return taken,
                Err(TryRecvError::Disconnected) => {
                    if !std::mem::replace(&mut self.has_all, true) {
                        self.heard_at = Instant::now();
                    }
                    return taken;
                }
            }
        }
    }

    /// Publishes and listens on a connection until that is lost, or all is told.
    fn serve(&mut self) -> amiquip::Result<()> {
        let mut connection = connect(&self.url)?;
        let (publishing, listening) = (connection.open_channel(None)?, connection.open_channel(None)?);
        let confirms = publishing.listen_for_publisher_confirms()?;
        publishing.enable_publisher_confirms()?;
        declare(&publishing, AMQP_QUEUE)?;
        declare(&publishing, ANSWERS)?;
        listening.qos(0, PREFETCH, false)?;
        let answers = listening.basic_consume(ANSWERS, ConsumerOptions::default())?;
        let mut line = Line { channel: &publishing, next: 1, under_way: BTreeMap::new() };
        // What the connection before this one has not confirmed may be lost, or come twice.
        for task in self.open.values().filter(|task| !task.is_confirmed) {
            line.publish(&task.plan)?;
        }
        while !self.is_over() {
            for number in self.take_plans() {
                let Some(task) = self.open.get(&number) else { continue };
                line.publish(&task.plan)?;
                if task.plan.comes_twice() {
                    line.publish(&task.plan)?;
                }
            }
            for confirm in confirms.try_iter() {
                for number in line.confirmed(&confirm) {
                    self.open.entry(number).and_modify(|task| task.is_confirmed = true);
                }
            }
            let mut wait = LOOK_EVERY;
            while let Some(delivery) = next(answers.receiver(), wait)? {
                self.told(&delivery);
                delivery.ack(&listening)?;
                wait = Duration::ZERO;
            }
        }
        Ok(())
    }

    /// An outcome was told.
    fn told(&mut self, delivery: &Delivery) {
        let books = &self.shared.books;
        let Ok(told) = serde_json::from_slice::<Told>(&delivery.body) else {
            let body = String::from_utf8_lossy(&delivery.body).into_owned();
            return books
                .violate(None, format!("an outcome that cannot be read was told in a queue: {body}"));
        };
        let (number, plan) = (told.id, books.plan(told.id));
        let correlation = delivery.properties.correlation_id().as_deref();
        if plan.kind != Kind::Published || correlation != Some(&*number.to_string()) {
            let what = format!("an outcome was told of {number} with the correlation id {correlation:?}");
            return books.violate(Some(number), what);
        }
        match (told.task_id.parse(), told.outcome()) {
            (Ok(id), Some(outcome)) => books.told(&plan, id, &outcome),
            _ => books.violate(Some(number), "an outcome was told that is none"),
        }
        self.open.remove(&number);
        self.heard_at = Instant::now();
    }
}

/// The next delivery, if one comes in time.
fn next(receiver: &Receiver<ConsumerMessage>, wait: Duration) -> amiquip::Result<Option<Delivery>> {
    match receiver.recv_timeout(wait) {
        Ok(ConsumerMessage::Delivery(delivery)) => Ok(Some(delivery)),
        Ok(ConsumerMessage::ServerClosedChannel(error) | ConsumerMessage::ServerClosedConnection(error)) => {
            Err(error)
        }
        Err(crossbeam_channel::RecvTimeoutError::Timeout) => Ok(None),
        Ok(_) | Err(_) => Err(amiquip::Error::UnexpectedSocketClose),
    }
}

/// What was published on a connection and is not confirmed.
struct Line<'a> {
    channel: &'a Channel,
    /// RabbitMQ counts messages from 1.
    next: u64,
    /// The numbers of their tasks.
    under_way: BTreeMap<u64, u64>,
}

impl Line<'_> {
    fn publish(&mut self, plan: &Plan) -> amiquip::Result<()> {
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let written = Written {
            id: plan.number,
            action: plan.action,
            payload_base64: BASE64.encode(plan.payload()),
            priority: plan.priority,
            attempts: plan.max_attempts,
            backoff: millis(plan.backoff().0),
            deadline: plan.deadline.map(millis),
            delay: plan.delay.map(millis),
        };
        let properties = AmqpProperties::default()
            .with_message_id(format!("message-{}", plan.number))
            .with_reply_to(ANSWERS.into())
            .with_correlation_id(plan.number.to_string());
        self.under_way.insert(self.next, plan.number);
        self.next += 1;
        publish(self.channel, AMQP_QUEUE, &written, properties)
    }

    /// The tasks whose messages RabbitMQ has on its disk now.
    fn confirmed(&mut self, confirm: &Confirm) -> Vec<u64> {
        // What it does not take is left open, and published again on the next connection.
        let Confirm::Ack(payload) = confirm else { return Vec::new() };
        if !payload.multiple {
            return self.under_way.remove(&payload.delivery_tag).into_iter().collect();
        }
        let later = self.under_way.split_off(&payload.delivery_tag.saturating_add(1));
        std::mem::replace(&mut self.under_way, later).into_values().collect()
    }
}

// ---- tasks out ----

/// How a worker that knows only AMQP is set up.
#[derive(Debug, Clone)]
pub struct AmqpWorkerOptions {
    /// Where RabbitMQ is.
    pub url: String,
    /// Where it writes down what it runs.
    pub log: PathBuf,
}

/// A task as it is handed to such a worker.
#[derive(Deserialize)]
struct Handed {
    id: String,
    payload: Option<String>,
    payload_base64: Option<String>,
    attempt: u8,
}

/// What it answers.
#[derive(Serialize)]
struct Answer {
    id: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    retry: bool,
}

/// Runs the worker until `stop` or the end of its standard input.
///
/// # Errors
/// A sentence: the log cannot be written.
pub fn work_over_amqp(options: &AmqpWorkerOptions, stop: &Arc<AtomicBool>) -> Result<(), String> {
    let log = open_log(&options.log)?;
    stop_with_the_harness(stop);
    let work = || {
        while !stop.load(Ordering::Acquire) {
            if let Err(error) = consume(&options.url, &log, stop) {
                log::info!("it begins anew: {error}");
                std::thread::sleep(AGAIN_AFTER);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    Ok(())
}

fn consume(url: &str, log: &File, stop: &AtomicBool) -> amiquip::Result<()> {
    let mut connection = connect(url)?;
    let (consuming, answering) = (connection.open_channel(None)?, connection.open_channel(None)?);
    let confirms = answering.listen_for_publisher_confirms()?;
    answering.enable_publisher_confirms()?;
    declare(&consuming, AMQP_ACTION)?;
    consuming.qos(0, 1, false)?;
    let tasks = consuming.basic_consume(AMQP_ACTION, ConsumerOptions::default())?;
    while !stop.load(Ordering::Acquire) {
        let Some(delivery) = next(tasks.receiver(), LOOK_EVERY)? else { continue };
        let answer = match serde_json::from_slice::<Handed>(&delivery.body) {
            Ok(handed) => run(handed, log),
            Err(error) => Some(failed(String::new(), &format!("the task cannot be read: {error}"), false)),
        };
        let Some(answer) = answer else {
            // It would kill whoever is given it next, too: what kills is taken first.
            delivery.ack(&consuming)?;
            consuming.qos(0, 1, false)?;
            die();
        };
        if let Some(to) = delivery.properties.reply_to() {
            let correlation = delivery.properties.correlation_id().clone().unwrap_or_default();
            let properties = AmqpProperties::default().with_correlation_id(correlation);
            publish(&answering, to, &answer, properties)?;
            if confirms.recv_timeout(CONFIRM_WITHIN).is_err() {
                return Err(amiquip::Error::UnexpectedSocketClose);
            }
        }
        delivery.ack(&consuming)?;
    }
    Ok(())
}

fn failed(id: String, why: &str, retry: bool) -> Answer {
    Answer { id, ok: false, data_base64: None, error: Some(why.to_owned()), retry }
}

/// Does what a task says; `None` for one that kills its worker.
fn run(handed: Handed, log: &File) -> Option<Answer> {
    let Handed { id, payload, payload_base64, attempt } = handed;
    let payload = bytes_of(payload, payload_base64).unwrap_or_default();
    let Some(order) = Order::read(&payload) else {
        return Some(failed(id, "the payload is damaged", false));
    };
    note(log, "begin", &order, attempt);
    std::thread::sleep(order.runs_for);
    note(log, "end", &order, attempt);
    let done = |id| {
        let data_base64 = Some(BASE64.encode(result(&payload, order.result_bytes)));
        Answer { id, ok: true, data_base64, error: None, retry: false }
    };
    Some(match order.deed {
        Deed::Succeed => done(id),
        Deed::RetryThenSucceed if attempt > 2 => done(id),
        Deed::RetryThenSucceed | Deed::AlwaysRetry => {
            failed(id, &format!("attempt {attempt} asks for another"), true)
        }
        Deed::Fail => failed(id, FAILED_WORDS, false),
        // What a program that catches it would say.
        Deed::Panic => failed(id, PANIC_WORDS, false),
        Deed::KillWorker => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_read_as_it_is_told() {
        let outcome = |text: &str| serde_json::from_str::<Told>(text).ok().and_then(Told::outcome);
        let done = r#"{"id":7,"task_id":"x","ok":true,"data_base64":"/wA="}"#;
        assert_eq!(outcome(done), Some(Ok(Bytes::from_static(b"\xff\0"))));
        assert_eq!(outcome(r#"{"id":7,"task_id":"x","ok":true,"data":""}"#), Some(Ok(Bytes::new())));
        let failed = r#"{"id":7,"task_id":"x","ok":false,"error":"so","code":"worker_failed"}"#;
        assert_eq!(outcome(failed), Some(Err(TaskFailure::new(ErrorCode::WorkerFailed, "so"))));
        for text in ["{}", r#"{"id":7,"task_id":"x","ok":false,"error":"so","code":"odd"}"#] {
            assert_eq!(outcome(text), None, "{text}");
        }
    }
}
