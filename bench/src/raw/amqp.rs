//! AMQP 0-9-1 with RabbitMQ's publisher confirms, driven raw: persistent messages published into a durable quorum
//! queue, each done for its client once the server has confirmed it; and, where workers take part, consumed from it
//! and acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::protocol::put_payloads;
use super::{ClientCodec, ClientProtocol, Output, Protocol, RawError, WorkerCodec};

/// The queue, of all clients together.
const QUEUE: &str = "bench";

/// The user, and password, that a new RabbitMQ lets in over loopback.
const GUEST: &str = "guest";
/// Messages under way to a consumer, at most.
const PREFETCH: u16 = 1000;

const FRAME_METHOD: u8 = 1;
const FRAME_HEADER: u8 = 2;
const FRAME_BODY: u8 = 3;
const FRAME_HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
/// Type, channel, size.
const FRAME_HEAD_BYTES: usize = 7;

/// A method's class and its number in it.
type Method = (u16, u16);
const CONNECTION_START: Method = (10, 10);
const CONNECTION_START_OK: Method = (10, 11);
const CONNECTION_TUNE: Method = (10, 30);
const CONNECTION_TUNE_OK: Method = (10, 31);
const CONNECTION_OPEN: Method = (10, 40);
const CONNECTION_OPEN_OK: Method = (10, 41);
const CONNECTION_CLOSE: Method = (10, 50);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const QUEUE_DECLARE: Method = (50, 10);
const QUEUE_DECLARE_OK: Method = (50, 11);
const BASIC_QOS: Method = (60, 10);
const BASIC_QOS_OK: Method = (60, 11);
const BASIC_CONSUME: Method = (60, 20);
const BASIC_CONSUME_OK: Method = (60, 21);
const BASIC_PUBLISH: Method = (60, 40);
const BASIC_DELIVER: Method = (60, 60);
const BASIC_ACK: Method = (60, 80);
const BASIC_NACK: Method = (60, 120);
const CONFIRM_SELECT: Method = (85, 10);
const CONFIRM_SELECT_OK: Method = (85, 11);

/// A content header's flag for its delivery mode, and the mode of persistent messages.
const HAS_DELIVERY_MODE: u16 = 1 << 12;
const PERSISTENT: u8 = 2;

/// AMQP with publisher confirms.
#[derive(Debug, Clone, Copy, Default)]
pub struct AmqpConfirmed;

impl ClientProtocol for AmqpConfirmed {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        Box::new(Client::new(credentials(GUEST, GUEST), size))
    }

    fn overhead_bytes(&self) -> usize {
        // The server's properties are the longest that it says.
        16 * 1024
    }
}

/// The same queue with consumers, for a user of one's own.
#[derive(Debug, Clone)]
pub struct AmqpQueue {
    credentials: Vec<u8>,
    consumed: Arc<AtomicU64>,
}

impl AmqpQueue {
    /// The queue, as this user has it.
    pub fn new(user: &str, password: &str) -> AmqpQueue {
        AmqpQueue { credentials: credentials(user, password), consumed: Arc::default() }
    }

    /// Messages that its consumers have taken and acknowledged.
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Acquire)
    }
}

impl ClientProtocol for AmqpQueue {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        Box::new(Client::new(self.credentials.clone(), size))
    }

    fn overhead_bytes(&self) -> usize {
        AmqpConfirmed.overhead_bytes()
    }
}

impl Protocol for AmqpQueue {
    fn worker(&self, _number: usize, size: usize) -> Box<dyn WorkerCodec> {
        Box::new(Consumer {
            credentials: self.credentials.clone(),
            size,
            tag: 0,
            left: None,
            consumed: Arc::clone(&self.consumed),
            ready: false,
        })
    }
}

/// As SASL's PLAIN wants them.
fn credentials(user: &str, password: &str) -> Vec<u8> {
    format!("\0{user}\0{password}").into_bytes()
}

/// Answers a method on the way to an open channel. Says whether it was one.
fn open_channel(
    credentials: &[u8],
    method: Method,
    arguments: &[u8],
    output: &mut Output,
) -> Result<bool, RawError> {
    match method {
        CONNECTION_START => {
            let mut body = Vec::new();
            // No properties of ours.
            body.extend_from_slice(&0_u32.to_be_bytes());
            put_short(&mut body, "PLAIN");
            put_long(&mut body, credentials);
            put_short(&mut body, "en_US");
            put_method(output, 0, CONNECTION_START_OK, &body);
        }
        CONNECTION_TUNE => {
            // Channels and bytes a frame as the server has them, without its heartbeat.
            let limits = arguments.get(..6).ok_or_else(|| malformed("a short TUNE"))?;
            put_method(output, 0, CONNECTION_TUNE_OK, &[limits, &[0, 0]].concat());
            // The virtual host `/`, and two arguments of no meaning.
            put_method(output, 0, CONNECTION_OPEN, b"\x01/\0\0");
        }
        CONNECTION_OPEN_OK => put_method(output, 1, CHANNEL_OPEN, b"\0"),
        CONNECTION_CLOSE | CHANNEL_CLOSE => {
            let length = arguments.get(2).map_or(0, |length| usize::from(*length));
            let reason = arguments.get(3..3 + length).unwrap_or_default();
            return Err(RawError::Refused(String::from_utf8_lossy(reason).into_owned()));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// A method's number, and its arguments.
fn method_of(body: &[u8]) -> Result<(Method, &[u8]), RawError> {
    let (head, arguments) =
        body.split_first_chunk::<4>().ok_or_else(|| malformed("a method without its number"))?;
    let [c0, c1, n0, n1] = *head;
    Ok(((u16::from_be_bytes([c0, c1]), u16::from_be_bytes([n0, n1])), arguments))
}

struct Client {
    credentials: Vec<u8>,
    /// All of a publish before its payload.
    head: Vec<u8>,
    /// Messages published and not confirmed, in the order of their tags; `None` once one is.
    asked: VecDeque<Option<u64>>,
    /// The tag of the first of them. The server counts the publishes of a channel from 1.
    first_tag: u64,
    ready: bool,
}

impl Client {
    fn new(credentials: Vec<u8>, size: usize) -> Client {
        let head = publish_head(size);
        Client { credentials, head, asked: VecDeque::new(), first_tag: 1, ready: false }
    }

    /// The server has confirmed the message of this tag, or all up to it.
    fn confirm(&mut self, tag: u64, multiple: bool, done: &mut Vec<u64>) -> Result<(), RawError> {
        let place = tag.checked_sub(self.first_tag).and_then(|place| usize::try_from(place).ok());
        let place = place.filter(|place| *place < self.asked.len()).ok_or(RawError::Unasked(tag))?;
        let from = if multiple { 0 } else { place };
        done.extend(self.asked.range_mut(from..=place).filter_map(Option::take));
        while self.asked.front().is_some_and(Option::is_none) {
            self.asked.pop_front();
            self.first_tag += 1;
        }
        Ok(())
    }

    fn method(
        &mut self,
        method: Method,
        arguments: &[u8],
        output: &mut Output,
        done: &mut Vec<u64>,
    ) -> Result<(), RawError> {
        if open_channel(&self.credentials, method, arguments, output)? {
            return Ok(());
        }
        match method {
            BASIC_ACK => {
                let (tag, flags) = arguments.split_first_chunk().ok_or_else(|| malformed("a short ACK"))?;
                let multiple = flags.first().is_some_and(|flags| flags & 1 != 0);
                self.confirm(u64::from_be_bytes(*tag), multiple, done)?;
            }
            CHANNEL_OPEN_OK => put_method(output, 1, CONFIRM_SELECT, b"\0"),
            CONFIRM_SELECT_OK => put_method(output, 1, QUEUE_DECLARE, &declaration()),
            QUEUE_DECLARE_OK => self.ready = true,
            BASIC_NACK => return Err(RawError::Refused("a message was not confirmed (NACK)".into())),
            (class, number) => return Err(malformed(format!("the method {class}.{number}"))),
        }
        Ok(())
    }
}

impl ClientCodec for Client {
    fn greet(&mut self, output: &mut Output) {
        output.put(b"AMQP\0\0\x09\x01");
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        put_payloads(&self.head, &[FRAME_END], ids.len(), output);
        self.asked.extend(ids.iter().copied().map(Some));
    }

    fn read(&mut self, input: &[u8], output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((kind, body)) = parse(&input[taken..])? {
            match kind {
                FRAME_METHOD => {
                    let (method, arguments) = method_of(body)?;
                    self.method(method, arguments, output, done)?;
                }
                FRAME_HEARTBEAT => {}
                kind => return Err(malformed(format!("a frame of type {kind}"))),
            }
            taken += FRAME_HEAD_BYTES + body.len() + 1;
        }
        Ok(taken)
    }
}

struct Consumer {
    credentials: Vec<u8>,
    size: usize,
    /// Of the last delivery.
    tag: u64,
    /// Bytes of its body that are still to come; `None` between deliveries.
    left: Option<usize>,
    consumed: Arc<AtomicU64>,
    ready: bool,
}

impl Consumer {
    fn method(&mut self, method: Method, arguments: &[u8], output: &mut Output) -> Result<(), RawError> {
        if open_channel(&self.credentials, method, arguments, output)? {
            return Ok(());
        }
        match method {
            BASIC_DELIVER => {
                // Behind the consumer's own name.
                let name = arguments.first().map_or(0, |length| usize::from(*length));
                let tag = arguments.get(1 + name..).and_then(|rest| rest.first_chunk());
                self.tag = u64::from_be_bytes(*tag.ok_or_else(|| malformed("a short DELIVER"))?);
            }
            CHANNEL_OPEN_OK => {
                let [p0, p1] = PREFETCH.to_be_bytes();
                put_method(output, 1, BASIC_QOS, &[0, 0, 0, 0, p0, p1, 0]);
            }
            BASIC_QOS_OK => put_method(output, 1, QUEUE_DECLARE, &declaration()),
            QUEUE_DECLARE_OK => {
                let mut body = vec![0, 0];
                put_short(&mut body, QUEUE);
                // The server names the consumer; it awaits acknowledgements; no further arguments.
                put_short(&mut body, "");
                body.extend_from_slice(&[0, 0, 0, 0, 0]);
                put_method(output, 1, BASIC_CONSUME, &body);
            }
            BASIC_CONSUME_OK => self.ready = true,
            (class, number) => return Err(malformed(format!("the method {class}.{number}"))),
        }
        Ok(())
    }

    /// A part of a delivery's body has come. Says whether that was the last.
    fn body(&mut self, part: usize) -> Result<bool, RawError> {
        let left = self.left.and_then(|left| left.checked_sub(part));
        let left = left.ok_or_else(|| malformed("a body that is longer than was said"))?;
        self.left = Some(left).filter(|left| *left > 0);
        Ok(left == 0)
    }
}

impl WorkerCodec for Consumer {
    fn greet(&mut self, output: &mut Output) {
        output.put(b"AMQP\0\0\x09\x01");
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn read(&mut self, input: &[u8], output: &mut Output) -> Result<usize, RawError> {
        let (mut taken, mut whole, mut last) = (0, 0, 0);
        while let Some((kind, body)) = parse(&input[taken..])? {
            match kind {
                FRAME_METHOD => {
                    let (method, arguments) = method_of(body)?;
                    self.method(method, arguments, output)?;
                }
                FRAME_HEADER => {
                    let size = body.get(4..).and_then(|rest| rest.first_chunk());
                    let size = u64::from_be_bytes(*size.ok_or_else(|| malformed("a short header"))?);
                    if size != self.size as u64 {
                        let got = usize::try_from(size).unwrap_or(usize::MAX);
                        return Err(RawError::WrongSize { got, sent: self.size });
                    }
                    self.left = Some(self.size);
                }
                FRAME_BODY => {
                    if self.body(body.len())? {
                        (whole, last) = (whole + 1, self.tag);
                    }
                }
                FRAME_HEARTBEAT => {}
                kind => return Err(malformed(format!("a frame of type {kind}"))),
            }
            taken += FRAME_HEAD_BYTES + body.len() + 1;
        }
        if whole > 0 {
            // This one and all before it.
            put_method(output, 1, BASIC_ACK, &[&last.to_be_bytes()[..], &[1]].concat());
            self.consumed.fetch_add(whole, Ordering::AcqRel);
        }
        Ok(taken)
    }
}

/// The type and body of the frame at the beginning of `input`, once it is whole.
fn parse(input: &[u8]) -> Result<Option<(u8, &[u8])>, RawError> {
    if input.starts_with(b"AMQP") {
        return Err(RawError::Refused("the server speaks another version of AMQP".into()));
    }
    let Some((head, rest)) = input.split_first_chunk::<FRAME_HEAD_BYTES>() else { return Ok(None) };
    let [kind, _, _, s0, s1, s2, s3] = *head;
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    let (Some(body), Some(end)) = (rest.get(..size), rest.get(size)) else { return Ok(None) };
    if *end != FRAME_END {
        return Err(malformed(format!("a frame that ends with {end}")));
    }
    Ok(Some((kind, body)))
}

/// A publish of a message of `size` bytes, up to its payload.
fn publish_head(size: usize) -> Vec<u8> {
    let mut publish = vec![0, 0];
    // The exchange that has every queue under its name.
    put_short(&mut publish, "");
    put_short(&mut publish, QUEUE);
    // It may be dropped where no queue is: there is one.
    publish.push(0);
    let mut content = Vec::new();
    content.extend_from_slice(&BASIC_PUBLISH.0.to_be_bytes());
    content.extend_from_slice(&[0, 0]);
    content.extend_from_slice(&(size as u64).to_be_bytes());
    content.extend_from_slice(&HAS_DELIVERY_MODE.to_be_bytes());
    content.push(PERSISTENT);
    let mut head = Vec::new();
    put_frame(&mut head, FRAME_METHOD, 1, &method_body(BASIC_PUBLISH, &publish));
    put_frame(&mut head, FRAME_HEADER, 1, &content);
    put_frame_head(&mut head, FRAME_BODY, 1, size);
    head
}

/// The arguments that declare the queue: durable, of the type quorum.
fn declaration() -> Vec<u8> {
    let mut table = Vec::new();
    put_short(&mut table, "x-queue-type");
    table.push(b'S');
    put_long(&mut table, b"quorum");
    let mut body = vec![0, 0];
    put_short(&mut body, QUEUE);
    // Durable.
    body.push(1 << 1);
    put_long(&mut body, &table);
    body
}

fn put_short(out: &mut Vec<u8>, text: &str) {
    // All texts here are names of a few letters.
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn method_body(method: Method, arguments: &[u8]) -> Vec<u8> {
    [&method.0.to_be_bytes(), &method.1.to_be_bytes(), arguments].concat()
}

fn put_method(output: &mut Output, channel: u16, method: Method, arguments: &[u8]) {
    let mut frame = Vec::new();
    put_frame(&mut frame, FRAME_METHOD, channel, &method_body(method, arguments));
    output.put(&frame);
}

fn put_frame(out: &mut Vec<u8>, kind: u8, channel: u16, body: &[u8]) {
    put_frame_head(out, kind, channel, body.len());
    out.extend_from_slice(body);
    out.push(FRAME_END);
}

fn put_frame_head(out: &mut Vec<u8>, kind: u8, channel: u16, size: usize) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
}

fn malformed(what: impl Into<String>) -> RawError {
    RawError::Malformed { protocol: "amqp", what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(tag: u64, size: usize) -> Vec<u8> {
        let mut arguments = Vec::new();
        put_short(&mut arguments, "amq.ctag");
        arguments.extend_from_slice(&tag.to_be_bytes());
        arguments.push(0);
        put_short(&mut arguments, "");
        put_short(&mut arguments, QUEUE);
        let mut header = vec![0, 60, 0, 0];
        header.extend_from_slice(&(size as u64).to_be_bytes());
        header.extend_from_slice(&[0, 0]);
        let mut bytes = Vec::new();
        put_frame(&mut bytes, FRAME_METHOD, 1, &method_body(BASIC_DELIVER, &arguments));
        put_frame(&mut bytes, FRAME_HEADER, 1, &header);
        put_frame(&mut bytes, FRAME_BODY, 1, &vec![b'x'; size]);
        bytes
    }

    #[test]
    fn a_consumer_acknowledges_all_that_one_read_has_brought_at_once_and_counts_them() {
        let queue = AmqpQueue::new("ana", "secret");
        let mut consumer = queue.worker(0, 64);
        let mut output = Output::default();
        let bytes = [delivery(1, 64), delivery(2, 64), delivery(3, 64)].concat();
        let whole = bytes.len() - 10;
        let taken = consumer.read(&bytes[..whole], &mut output).unwrap();
        assert_eq!(queue.consumed(), 2);
        let mut acknowledgement = Vec::new();
        let arguments = [&2_u64.to_be_bytes()[..], &[1]].concat();
        put_frame(&mut acknowledgement, FRAME_METHOD, 1, &method_body(BASIC_ACK, &arguments));
        assert_eq!(output.take_bytes(), acknowledgement);
        assert_eq!(taken + consumer.read(&bytes[taken..], &mut output).unwrap(), bytes.len());
        assert_eq!(queue.consumed(), 3);
    }

    #[test]
    fn a_message_of_another_size_is_an_error() {
        let mut consumer = AmqpQueue::new("ana", "secret").worker(0, 64);
        let outcome = consumer.read(&delivery(1, 65), &mut Output::default());
        assert!(matches!(outcome, Err(RawError::WrongSize { got: 65, sent: 64 })), "{outcome:?}");
    }
}
