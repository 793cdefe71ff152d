//! Fields: the type-length-value part of a frame, between its header and its payload.
//!
//! A field is one byte of tag, two bytes of length (big-endian), and that many bytes of value. A reader skips
//! a tag that it does not know when the tag is below 0x80, and refuses the frame when it is not, so that later
//! versions can add both kinds. Numbers are big-endian and have exactly their type's width.

use byteorder::{BigEndian, ByteOrder};
use bytes::{BufMut, BytesMut};

use crate::error::FrameError;

/// Bytes before a field's value: its tag and its length.
pub const FIELD_HEADER_BYTES: usize = 3;

/// The first tag that a reader may not skip.
pub const FIRST_CRITICAL_TAG: u8 = 0x80;

macro_rules! tags {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// The tag of a field that this version knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Tag { $($(#[$doc])* $name = $value,)* }

        impl Tag {
            /// The tag of a byte, if this version knows it.
            pub fn from_byte(byte: u8) -> Option<Tag> {
                match byte { $($value => Some(Tag::$name),)* _ => None }
            }

            /// The field's name in docs/PROTOCOL.md.
            pub fn name(self) -> &'static str {
                match self { $(Tag::$name => $text,)* }
            }
        }
    };
}

tags! {
    /// Magic number (u32) and version (u16): the first field of HELLO and WELCOME.
    Magic = 0x01, "MAGIC";
    /// Features that the sender has, a bit each (u64).
    Features = 0x02, "FEATURES";
    /// 1 for a client, 2 for a worker (u8).
    Role = 0x03, "ROLE";
    /// Name and version of the sender's software, for people (text).
    Agent = 0x04, "AGENT";
    /// Largest frame taken, header included, in bytes (u32).
    MaxFrame = 0x05, "MAX_FRAME";
    /// Silence after which a PING is due, in milliseconds (u32).
    HeartbeatMs = 0x06, "HEARTBEAT_MS";
    /// Silence after which a worker is lost, in milliseconds (u32).
    SilenceMs = 0x07, "SILENCE_MS";
    /// A sentence for people (text).
    Message = 0x08, "MESSAGE";
    /// An error's stable number (u16).
    Code = 0x09, "CODE";
    /// A shared secret (bytes).
    Token = 0x0A, "TOKEN";
    /// An action's name (text). Repeats in REGISTER.
    Action = 0x10, "ACTION";
    /// 0 to 9, higher goes first (u8).
    Priority = 0x11, "PRIORITY";
    /// Time within which the task must end, in milliseconds from the frame's arrival (u64).
    DeadlineMs = 0x12, "DEADLINE_MS";
    /// Time that the task may wait for its first assignment, in milliseconds (u64).
    WaitMs = 0x13, "WAIT_MS";
    /// Tasks of one action and key that meet in the balancer share one run (bytes).
    Key = 0x14, "KEY";
    /// Attempts before the task is dead (u8).
    MaxAttempts = 0x15, "MAX_ATTEMPTS";
    /// Which attempt this is, from 1 (u8).
    Attempt = 0x16, "ATTEMPT";
    /// A durable task's id, a UUID (16 bytes).
    TaskId = 0x17, "TASK_ID";
    /// Time before the task may begin, in milliseconds from the frame's arrival (u64).
    DelayMs = 0x18, "DELAY_MS";
    /// When the task may begin, in milliseconds since 1970, UTC (u64).
    StartAtMs = 0x19, "START_AT_MS";
    /// Time before the second attempt, in milliseconds; it doubles with every further one (u32).
    BackoffFirstMs = 0x1A, "BACKOFF_FIRST_MS";
    /// The longest time between two attempts, in milliseconds (u32).
    BackoffMostMs = 0x1B, "BACKOFF_MOST_MS";
    /// What keeps a task from being taken in twice (bytes).
    IdempotencyKey = 0x1C, "IDEMPOTENCY_KEY";
    /// How long that key stands for its task, in milliseconds (u64).
    IdempotencyMs = 0x1D, "IDEMPOTENCY_MS";
    /// A worker's id (text).
    WorkerId = 0x20, "WORKER_ID";
    /// Tasks that the worker runs at once (u32).
    Threads = 0x21, "THREADS";
    /// Tasks that the worker holds at most (u32).
    Window = 0x22, "WINDOW";
    /// The worker's share under the policy `weighted` (u32).
    Weight = 0x23, "WEIGHT";
    /// Mean time that a task takes a thread of this worker, in nanoseconds (u64).
    ServiceNs = 0x24, "SERVICE_NS";
    /// How much of the task is done (u64).
    Done = 0x30, "DONE";
    /// How much there is to do (u64).
    Total = 0x31, "TOTAL";
    /// How many rows to pass over (u32).
    Offset = 0x40, "OFFSET";
    /// How many rows to give (u32).
    Limit = 0x41, "LIMIT";
    /// Where a background task stands (u8).
    State = 0x50, "STATE";
    /// Attempts that a task has used (u8).
    Attempts = 0x51, "ATTEMPTS";
    /// When a task was taken in, in milliseconds since 1970, UTC (u64).
    CreatedAtMs = 0x52, "CREATED_AT_MS";
    /// When a task's next attempt may begin, in milliseconds since 1970, UTC (u64).
    DueAtMs = 0x53, "DUE_AT_MS";
    /// When a task ended, in milliseconds since 1970, UTC (u64).
    EndedAtMs = 0x54, "ENDED_AT_MS";
    /// Only tasks taken in from then on, in milliseconds since 1970, UTC (u64).
    SinceMs = 0x55, "SINCE_MS";
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One field as it stands in a frame. Its value is not yet looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Which field.
    pub tag: Tag,
    /// Its bytes.
    pub value: &'a [u8],
}

impl<'a> Field<'a> {
    /// The value as a u8. Fails when it is not one byte.
    pub fn u8(self) -> Result<u8, FrameError> {
        match self.value {
            [value] => Ok(*value),
            _ => Err(self.length_error()),
        }
    }

    /// The value as a u16. Fails when it is not two bytes.
    pub fn u16(self) -> Result<u16, FrameError> {
        if self.value.len() == 2 { Ok(BigEndian::read_u16(self.value)) } else { Err(self.length_error()) }
    }

    /// The value as a u32. Fails when it is not four bytes.
    pub fn u32(self) -> Result<u32, FrameError> {
        if self.value.len() == 4 { Ok(BigEndian::read_u32(self.value)) } else { Err(self.length_error()) }
    }

    /// The value as a u64. Fails when it is not eight bytes.
    pub fn u64(self) -> Result<u64, FrameError> {
        if self.value.len() == 8 { Ok(BigEndian::read_u64(self.value)) } else { Err(self.length_error()) }
    }

    /// The value as a 16-byte id. Fails when it is of another length.
    pub fn id(self) -> Result<[u8; 16], FrameError> {
        self.value.try_into().map_err(|_| self.length_error())
    }

    /// The value as bytes within a range of lengths.
    pub fn bytes(self, least: usize, most: usize) -> Result<&'a [u8], FrameError> {
        if (least..=most).contains(&self.value.len()) { Ok(self.value) } else { Err(self.length_error()) }
    }

    /// The value as text within a range of lengths in bytes.
    pub fn text(self, least: usize, most: usize) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.bytes(least, most)?).map_err(|_| FrameError::NotUtf8 { tag: self.tag })
    }

    fn length_error(self) -> FrameError {
        FrameError::FieldLength { tag: self.tag, length: self.value.len() }
    }
}

/// Walks over a frame's fields in their order. Unknown optional ones are passed over, anything broken is an
/// error, after which the walk has ended.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// A walk over the bytes between a frame's header and its payload.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, FrameError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let first = *self.rest.first()?;
            let rest = std::mem::take(&mut self.rest);
            if rest.len() < FIELD_HEADER_BYTES {
                return Some(Err(FrameError::FieldTruncated { tag: first }));
            }
            let end = FIELD_HEADER_BYTES + usize::from(BigEndian::read_u16(&rest[1..FIELD_HEADER_BYTES]));
            if rest.len() < end {
                return Some(Err(FrameError::FieldTruncated { tag: first }));
            }
            self.rest = &rest[end..];
            match Tag::from_byte(first) {
                Some(tag) => return Some(Ok(Field { tag, value: &rest[FIELD_HEADER_BYTES..end] })),
                None if first >= FIRST_CRITICAL_TAG => {
                    self.rest = &[];
                    return Some(Err(FrameError::Critical { tag: first }));
                }
                None => {}
            }
        }
    }
}

/// Puts a `u8` field.
pub(crate) fn put_u8(out: &mut BytesMut, tag: Tag, value: u8) {
    out.put_slice(&[tag as u8, 0, 1, value]);
}

/// Puts a `u16` field.
pub(crate) fn put_u16(out: &mut BytesMut, tag: Tag, value: u16) {
    put_header(out, tag, 2);
    out.put_u16(value);
}

/// Puts a `u32` field.
pub(crate) fn put_u32(out: &mut BytesMut, tag: Tag, value: u32) {
    put_header(out, tag, 4);
    out.put_u32(value);
}

/// Puts a `u64` field.
pub(crate) fn put_u64(out: &mut BytesMut, tag: Tag, value: u64) {
    put_header(out, tag, 8);
    out.put_u64(value);
}

/// Puts a field of bytes, cut to `most`, and to what a field can hold.
pub(crate) fn put_bytes(out: &mut BytesMut, tag: Tag, value: &[u8], most: usize) {
    let value = &value[..value.len().min(most).min(usize::from(u16::MAX))];
    put_header(out, tag, value.len() as u16);
    out.put_slice(value);
}

/// Puts a field that names something. One longer than `most` is cut one byte beyond, which every reader refuses:
/// cut to `most` it could be another thing's name.
pub(crate) fn put_name(out: &mut BytesMut, tag: Tag, value: &[u8], most: usize) {
    put_bytes(out, tag, value, most + 1);
}

/// Puts a field of text, cut at a character to at most `most` bytes.
pub(crate) fn put_text(out: &mut BytesMut, tag: Tag, value: &str, most: usize) {
    put_bytes(out, tag, cut(value, most).as_bytes(), most);
}

fn put_header(out: &mut BytesMut, tag: Tag, length: u16) {
    let length = length.to_be_bytes();
    out.put_slice(&[tag as u8, length[0], length[1]]);
}

/// The longest beginning of `text` that has at most `most` bytes and ends at a character.
///
/// ```
/// assert_eq!(reparto_protocol::cut("señal", 3), "se");
/// assert_eq!(reparto_protocol::cut("señal", 4), "señ");
/// ```
pub fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
