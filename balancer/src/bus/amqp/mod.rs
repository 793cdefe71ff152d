//! All that knows the AMQP client library (amiquip), which nobody maintains any more: another can take its place here.
//!
//! It blocks, and has a thread of its own for each connection. What it would wait for without end is bounded here: a
//! connection must be there within [`CONNECT_MS`], and a server that says nothing for two heartbeats is given up.

mod consuming;
mod healing;
mod publishing;

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, SystemTime};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Connection, ConnectionTuning, FieldTable, QueueDeclareOptions,
};
use url::Url;

pub(super) use consuming::Consuming;
pub(super) use publishing::Publisher;

use super::{Properties, Queue, QueueKind, Shared};

/// How long a connection may take to come up, in milliseconds.
const CONNECT_MS: &str = "5000";
/// The heartbeat asked for, in seconds.
const HEARTBEAT: &str = "5";
/// So often must a look find that we are refused before that is believed.
const REFUSALS: u32 = 3;
/// Pause between two such looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The first wait after a connection was lost or could not be had; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// A transient queue that nobody uses is removed after this time.
const UNUSED: Duration = Duration::from_secs(3600);
/// An inbox that its owner does not consume is removed after this time: whoever writes to it then learns that he is gone.
const UNREAD: Duration = Duration::from_secs(20);
/// Longest text of a message's properties that is taken, in bytes.
const MOST_TEXT: usize = 4096;
/// Most texts of its sender's that are taken.
const MOST_HEADERS: usize = 64;

/// Why the bus cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The URL is none.
    #[error("--bus: {reason}; RabbitMQ is named as amqp://USER:PASSWORD@HOST:PORT/VHOST")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// RabbitMQ refuses, so that trying again would not help.
    #[error("cannot use {place}: {reason}")]
    Refused {
        /// Where, without the password.
        place: String,
        /// What it says.
        reason: String,
    },
    /// It cannot be reached now.
    #[error("{place}: {reason}")]
    Unavailable {
        /// Where, without the password.
        place: String,
        /// Why.
        reason: String,
    },
    /// No thread can be had.
    #[error("no thread can be started for the bus: {reason}")]
    Thread {
        /// Why.
        reason: String,
    },
}

/// Where RabbitMQ is, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    url: Url,
    place: String,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Address").field(&self.place).finish()
    }
}

impl Address {
    /// Reads `amqp://USER:PASSWORD@HOST:PORT/VHOST`, or the same with `amqps` where the feature of that name was built.
    ///
    /// # Errors
    ///
    /// [`BusError::Url`].
    pub fn parse(text: &str) -> Result<Address, BusError> {
        let wrong = |reason: String| BusError::Url { reason };
        let mut url = Url::parse(text).map_err(|error| wrong(format!("the URL cannot be read: {error}")))?;
        match url.scheme() {
            "amqp" => {}
            "amqps" if cfg!(feature = "amqps") => {}
            "amqps" => {
                return Err(wrong(
                    "this reparto was built without TLS for RabbitMQ; build it with `cargo build --features amqps`, or \
                     reach RabbitMQ over a private network or a tunnel"
                        .into(),
                ));
            }
            other => return Err(wrong(format!("'{other}' is not amqp"))),
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()).map(str::to_owned) else {
            return Err(wrong("the URL names no host".into()));
        };
        let vhost = url.path().trim_start_matches('/').to_owned();
        if vhost.contains('/') {
            return Err(wrong("a / in the virtual host's name is written %2F".into()));
        }
        if let Some((name, _)) = url.query_pairs().next() {
            return Err(wrong(format!("'{name}' is no option of the URL")));
        }
        let (scheme, port) = (url.scheme(), if url.scheme() == "amqps" { 5671 } else { 5672 });
        let place = format!("{scheme}://{host}:{}/{vhost}", url.port().unwrap_or(port));
        url.query_pairs_mut()
            .append_pair("heartbeat", HEARTBEAT)
            .append_pair("connection_timeout", CONNECT_MS);
        Ok(Address { url, place })
    }

    /// Where it is, without the password.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Looks whether RabbitMQ is there and lets us in. It takes a second more to say that it does not.
    ///
    /// # Errors
    ///
    /// [`BusError::Refused`] when waiting would not help, as with a wrong password; [`BusError::Unavailable`].
    pub fn check(&self) -> Result<(), BusError> {
        let mut looks = 1;
        loop {
            match self.look() {
                // A wrong password makes RabbitMQ close the connection without a word, as it does when it is just ending,
                // and a timeout at that point looks the same.
                Err(BusError::Refused { .. }) if looks < REFUSALS => looks += 1,
                found => return found,
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn look(&self) -> Result<(), BusError> {
        let mut connection = self.connect().map_err(|error| self.error(&error))?;
        connection.open_channel(None).map(drop).map_err(|error| self.error(&error))
    }

    fn connect(&self) -> amiquip::Result<Connection> {
        let tuning = ConnectionTuning::default()
            .mem_channel_bound(256)
            .buffered_writes_high_water(4 << 20)
            .buffered_writes_low_water(1 << 20);
        // It takes a URL without TLS as well; one with it is never opened without.
        Connection::insecure_open_tuned(self.url.as_str(), tuning)
    }

    fn error(&self, error: &amiquip::Error) -> BusError {
        let (place, reason) = (self.place.clone(), describe(error));
        match error {
            amiquip::Error::InvalidCredentials
            | amiquip::Error::ServerClosedConnection { code: 402 | 403 | 530, .. } => {
                BusError::Refused { place, reason }
            }
            _ => BusError::Unavailable { place, reason },
        }
    }
}

/// What an error says. The library's own texts show the URL, with the password in it.
fn describe(error: &amiquip::Error) -> String {
    match error {
        amiquip::Error::FailedToConnect { source, .. }
        | amiquip::Error::ResolveUrlToSocketAddr { source, .. }
        | amiquip::Error::IoErrorReadingSocket { source }
        | amiquip::Error::IoErrorWritingSocket { source } => source.to_string(),
        amiquip::Error::UrlNoSocketAddrs { .. } => "its host has no address".to_owned(),
        #[cfg(feature = "amqps")]
        amiquip::Error::TlsHandshake { source } => format!("TLS with it is not to be had: {source}"),
        amiquip::Error::InvalidCredentials => "it refuses the user or the password".to_owned(),
        amiquip::Error::ConnectionTimeout => "it does not answer".to_owned(),
        amiquip::Error::UnexpectedSocketClose => "it has closed the connection".to_owned(),
        amiquip::Error::MissedServerHeartbeats => "it has fallen silent".to_owned(),
        amiquip::Error::ServerClosedConnection { message, .. }
        | amiquip::Error::ServerClosedChannel { message, .. } => message.clone(),
        other => {
            let text = other.to_string();
            if text.contains("://") { "its URL cannot be used".to_owned() } else { text }
        }
    }
}

/// The publishing thread's place among the troubles, and the consuming one's.
const PUBLISHING: usize = 0;
const CONSUMING: usize = 1;

/// Says in the log, once for each outage, that there is no connection, and keeps the reason.
fn note_trouble(shared: &Shared, thread: usize, error: &BusError) {
    let is_new = keep_trouble(shared, thread, error.to_string());
    if is_new && !shared.is_stopping() {
        log::error!("{error}; it is tried again until it works");
    }
}

/// Says in the log, once, that a queue cannot be used, and keeps the reason.
fn note_queue(shared: &Shared, thread: usize, queue: &Queue, reason: &str) {
    let reason = format!("the queue '{}' cannot be used: {reason}", queue.name);
    if keep_trouble(shared, thread, reason.clone()) {
        log::error!("{reason}; it is tried again until it works");
    }
}

/// Keeps the reason why a thread cannot work, and says whether it is the first since it could.
fn keep_trouble(shared: &Shared, thread: usize, reason: String) -> bool {
    let mut trouble = shared.trouble(thread);
    let is_new = trouble.is_none();
    let since = trouble.as_ref().map_or_else(SystemTime::now, |(_, since)| *since);
    *trouble = Some((reason, since));
    is_new
}

/// Says that there is a connection again.
fn clear_trouble(shared: &Shared, thread: usize, address: &Address) {
    if shared.trouble(thread).take().is_some() {
        log::warn!("{} can be used again", address.place);
    }
}

/// Waits that grow, up to a limit, and vary by half so that balancers do not come back all at once.
struct Waits(Duration);

impl Waits {
    fn new() -> Waits {
        Waits(FIRST_WAIT)
    }

    fn next(&mut self) -> Duration {
        let whole = self.0;
        self.0 = (whole * 2).min(LONGEST_WAIT);
        let half = whole / 2;
        // Any number will do that differs between balancers.
        let random = uuid::Uuid::new_v4().as_u128() as u64;
        half + Duration::from_nanos(random % u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1))
    }
}

/// Makes queues, on a channel of its own: RabbitMQ closes the channel on which it refuses something.
#[derive(Default)]
struct Maker {
    channel: Option<Channel>,
    /// What is there, as far as this connection knows.
    made: HashSet<Queue>,
}

impl Maker {
    /// Sees to it that a queue is there. Gives the reason if it is not and cannot be made.
    fn make(&mut self, connection: &mut Connection, queue: &Queue) -> amiquip::Result<Option<String>> {
        if self.made.contains(queue) {
            return Ok(None);
        }
        let refusal = match options(queue.kind, connection.server_properties()) {
            Some(options) => {
                self.ask(connection, |channel| channel.queue_declare(&*queue.name, options).map(drop))?
            }
            None => Some(String::new()),
        };
        if refusal.is_some() {
            // Perhaps it is there, made otherwise or by somebody else.
            let is_there = |channel: &Channel| channel.queue_declare_passive(&*queue.name).map(drop);
            if let Some(reason) = self.ask(connection, is_there)? {
                return Ok(Some(reason));
            }
        }
        self.made.insert(queue.clone());
        Ok(None)
    }

    /// The messages that wait in a queue, and its consumers. It is made if it is not there.
    fn count(&mut self, connection: &mut Connection, queue: &Queue) -> amiquip::Result<(u32, u32)> {
        if self.make(connection, queue)?.is_some() {
            return Ok((0, 0));
        }
        let mut counted = (0, 0);
        let refused = self.ask(connection, |channel| {
            let found = channel.queue_declare_passive(&*queue.name)?;
            counted =
                (found.declared_message_count().unwrap_or(0), found.declared_consumer_count().unwrap_or(0));
            Ok(())
        })?;
        if refused.is_some() {
            self.forget(queue);
        }
        Ok(counted)
    }

    /// A queue is not there any more.
    fn forget(&mut self, queue: &Queue) {
        self.made.remove(queue);
    }

    /// Asks something on the channel. Gives the reason if it is refused.
    fn ask(
        &mut self,
        connection: &mut Connection,
        question: impl FnOnce(&Channel) -> amiquip::Result<()>,
    ) -> amiquip::Result<Option<String>> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => connection.open_channel(None)?,
        };
        match question(&channel) {
            Ok(()) => {
                self.channel = Some(channel);
                Ok(None)
            }
            Err(amiquip::Error::ServerClosedChannel { message, .. }) => Ok(Some(message)),
            Err(error) => Err(error),
        }
    }
}

/// How a queue is made; `None` for one that is somebody else's.
fn options(kind: QueueKind, server: &FieldTable) -> Option<QueueDeclareOptions> {
    let mut options = QueueDeclareOptions::default();
    match kind {
        QueueKind::Foreign => return None,
        QueueKind::Durable => {
            options.durable = true;
            options.arguments.insert("x-queue-type".into(), AmqpValue::LongString("quorum".into()));
            if counts_returns(server) {
                options.arguments.insert("x-delivery-limit".into(), AmqpValue::LongInt(-1));
            }
        }
        // Of the server's usual kind, as most programs make theirs.
        QueueKind::Public => options.durable = true,
        QueueKind::Transient | QueueKind::Inbox => {
            // The queue outlives a restart of the server, its messages do not; queues that do not are on their way out of
            // RabbitMQ.
            options.durable = true;
            let unused = if kind == QueueKind::Inbox { UNREAD } else { UNUSED };
            let unused = i32::try_from(unused.as_millis()).unwrap_or(i32::MAX);
            options.arguments.insert("x-expires".into(), AmqpValue::LongInt(unused));
        }
        QueueKind::Own => {
            options.exclusive = true;
            options.auto_delete = true;
        }
    }
    Some(options)
}

/// Whether quorum queues drop a message that was given back some twenty times unless they are told not to: RabbitMQ
/// 4 and later.
fn counts_returns(server: &FieldTable) -> bool {
    match server.get("version") {
        Some(AmqpValue::LongString(version)) => version
            .split('.')
            .next()
            .and_then(|major| major.parse::<u32>().ok())
            .is_some_and(|major| major >= 4),
        _ => false,
    }
}

fn to_amqp(properties: &Properties, durable: bool) -> AmqpProperties {
    let mut all = AmqpProperties::default().with_delivery_mode(if durable { 2 } else { 1 });
    if let Some(text) = &properties.message_id {
        all = all.with_message_id(text.clone());
    }
    if let Some(text) = &properties.correlation_id {
        all = all.with_correlation_id(text.clone());
    }
    if let Some(text) = &properties.reply_to {
        all = all.with_reply_to(text.clone());
    }
    if let Some(text) = &properties.content_type {
        all = all.with_content_type(text.clone());
    }
    if let Some(time) = properties.expires {
        all = all.with_expiration(time.as_millis().max(1).to_string());
    }
    if !properties.headers.is_empty() {
        let headers = properties.headers.iter();
        let headers: FieldTable =
            headers.map(|(name, text)| (name.clone(), AmqpValue::LongString(text.clone()))).collect();
        all = all.with_headers(headers);
    }
    all
}

fn from_amqp(all: &AmqpProperties) -> Properties {
    let text =
        |text: &Option<String>| text.clone().filter(|text| !text.is_empty() && text.len() <= MOST_TEXT);
    let headers = all.headers().iter().flatten().filter_map(|(name, value)| match value {
        AmqpValue::LongString(text) if text.len() <= MOST_TEXT => Some((name.clone(), text.clone())),
        _ => None,
    });
    Properties {
        message_id: text(all.message_id()),
        correlation_id: text(all.correlation_id()),
        reply_to: text(all.reply_to()),
        content_type: text(all.content_type()),
        headers: headers.take(MOST_HEADERS).collect(),
        expires: None,
    }
}
