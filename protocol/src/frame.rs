//! Frames: a 16-byte header, fields, a payload. Finding them in a stream of bytes, and nothing about what they mean.
//!
//! ```text
//!  0        4     5      6            8                 16            16+fields_len
//!  +--------+-----+------+------------+-----------------+---------------+-----------+
//!  | length | type| flags| fields_len | id              | fields        | payload   |
//!  | u32    | u8  | u8   | u16        | u64             |               |           |
//!  +--------+-----+------+------------+-----------------+---------------+-----------+
//! ```
//!
//! `length` counts everything after itself, so a frame is `4 + length` bytes long.

use byteorder::{BigEndian, ByteOrder};
use bytes::{BufMut, Bytes, BytesMut};

use crate::error::FrameError;

/// Bytes of the fixed header, its length field included.
pub const HEADER_BYTES: usize = 16;

/// Bytes of the length field, which does not count itself.
pub(crate) const LENGTH_BYTES: usize = 4;

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// What a frame is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum FrameType { $($(#[$doc])* $name = $value,)* }

        impl FrameType {
            /// Every type of this version.
            pub const ALL: &'static [FrameType] = &[$(FrameType::$name,)*];

            /// The type of a byte, if this version knows it.
            #[inline]
            pub fn from_byte(byte: u8) -> Option<FrameType> {
                match byte { $($value => Some(FrameType::$name),)* _ => None }
            }

            /// The name on the wire, such as `ASSIGN_TASK`.
            pub fn name(self) -> &'static str {
                match self { $(FrameType::$name => $text,)* }
            }
        }
    };
}

frame_types! {
    /// The first frame of a peer: magic, version, role, features.
    Hello = 0x01, "HELLO";
    /// The balancer's answer: the limits in force.
    Welcome = 0x02, "WELCOME";
    /// No new work on this connection; it will close.
    GoAway = 0x03, "GOAWAY";
    /// Are you there?
    Ping = 0x04, "PING";
    /// I am.
    Pong = 0x05, "PONG";
    /// A task, or the connection, failed.
    Error = 0x06, "ERROR";
    /// What is the balancer doing?
    Status = 0x07, "STATUS";
    /// The answer to STATUS, as JSON.
    StatusReport = 0x08, "STATUS_REPORT";
    /// A client's task.
    Task = 0x10, "TASK";
    /// A background task is durable.
    Accepted = 0x11, "ACCEPTED";
    /// A task's result.
    Result = 0x12, "RESULT";
    /// How far a task is.
    Progress = 0x13, "PROGRESS";
    /// Stop a task.
    Cancel = 0x14, "CANCEL";
    /// Ask for a background task's outcome.
    Fetch = 0x15, "FETCH";
    /// Where a background task stands.
    TaskState = 0x16, "TASK_STATE";
    /// Which background tasks are there?
    ListTasks = 0x17, "LIST_TASKS";
    /// The answer to LIST_TASKS, as JSON.
    TaskList = 0x18, "TASK_LIST";
    /// A dead task gets its attempts anew.
    RetryTask = 0x19, "RETRY_TASK";
    /// Forget an ended task.
    DropTask = 0x1A, "DROP_TASK";
    /// A worker says who it is and what it can do.
    Register = 0x20, "REGISTER";
    /// REGISTER or DRAIN is in force.
    Ack = 0x21, "ACK";
    /// A task for a worker.
    AssignTask = 0x22, "ASSIGN_TASK";
    /// What became of it there.
    TaskResult = 0x23, "TASK_RESULT";
    /// The worker takes nothing new, or takes work again.
    Drain = 0x24, "DRAIN";
}

impl std::fmt::Display for FrameType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A whole frame in somebody's buffer: known type, everything inside its bounds, nothing yet read of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: FrameType,
    /// Flags, whose meaning hangs on the type.
    pub flags: u8,
    /// Which task or assignment; 0 for the connection itself.
    pub id: u64,
    /// The fields' bytes, for [`Fields`](crate::Fields).
    pub fields: &'a [u8],
    /// The rest, which nobody between the two ends looks at.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Finds the frame at the beginning of `buffer`.
    ///
    /// Gives the frame and its whole length in bytes, or `None` when more bytes are needed. Allocates nothing.
    /// A header is judged as soon as it is there: an error does not wait for the payload.
    ///
    /// # Errors
    /// A length below the header's or over `max_frame_bytes` (header included), fields that do not fit, an
    /// unknown type. After an error the stream has no next frame.
    ///
    /// ```
    /// use reparto_protocol::{Frame, FrameType};
    /// let ping = [0, 0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    /// let (frame, length) = Frame::parse(&ping, 1024)?.expect("sixteen bytes are a whole PING");
    /// assert_eq!((frame.kind, frame.id, length), (FrameType::Ping, 7, 16));
    /// assert!(Frame::parse(&ping[..15], 1024)?.is_none());
    /// # Ok::<(), reparto_protocol::FrameError>(())
    /// ```
    #[inline]
    pub fn parse(buffer: &'a [u8], max_frame_bytes: u32) -> Result<Option<(Frame<'a>, usize)>, FrameError> {
        let Some(total) = frame_length(buffer, max_frame_bytes)? else { return Ok(None) };
        if buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let kind = FrameType::from_byte(buffer[4]).ok_or(FrameError::UnknownType(buffer[4]))?;
        let fields_len = BigEndian::read_u16(&buffer[6..8]);
        let fields_end = HEADER_BYTES + usize::from(fields_len);
        if fields_end > total {
            return Err(FrameError::FieldsOverrun {
                fields: fields_len,
                room: (total - HEADER_BYTES) as u32,
            });
        }
        if buffer.len() < total {
            return Ok(None);
        }
        let frame = Frame {
            kind,
            flags: buffer[5],
            id: BigEndian::read_u64(&buffer[8..16]),
            fields: &buffer[HEADER_BYTES..fields_end],
            payload: &buffer[fields_end..total],
        };
        Ok(Some((frame, total)))
    }
}

/// The whole length, header included, of the frame at the beginning of `buffer`; `None` before its first four
/// bytes are there.
///
/// # Errors
/// A length below the header's or over `max_frame_bytes`.
#[inline]
pub fn frame_length(buffer: &[u8], max_frame_bytes: u32) -> Result<Option<usize>, FrameError> {
    if buffer.len() < LENGTH_BYTES {
        return Ok(None);
    }
    let length = BigEndian::read_u32(&buffer[..LENGTH_BYTES]);
    if (length as usize) < HEADER_BYTES - LENGTH_BYTES {
        return Err(FrameError::TooShort { length });
    }
    let bytes = u64::from(length) + LENGTH_BYTES as u64;
    if bytes > u64::from(max_frame_bytes) {
        return Err(FrameError::TooLong { bytes, limit: max_frame_bytes });
    }
    Ok(Some(bytes as usize))
}

/// Writes a header with room for the fields' length, and mends the lengths once the fields are there.
pub(crate) struct HeadWriter {
    start: usize,
}

impl HeadWriter {
    #[inline]
    pub(crate) fn begin(out: &mut BytesMut, kind: FrameType, flags: u8, id: u64) -> HeadWriter {
        let start = out.len();
        let mut header = [0u8; HEADER_BYTES];
        header[4] = kind as u8;
        header[5] = flags;
        BigEndian::write_u64(&mut header[8..], id);
        out.put_slice(&header);
        HeadWriter { start }
    }

    /// Ends the fields. `payload_bytes` is what will follow them.
    #[inline]
    pub(crate) fn end(self, out: &mut BytesMut, payload_bytes: usize) {
        let head = &mut out[self.start..];
        let fields = head.len() - HEADER_BYTES;
        // Each message has a handful of fields, none longer than MAX_MESSAGE_BYTES, so they fit by far.
        debug_assert!(fields <= usize::from(u16::MAX), "callers bound what they put into fields");
        let length = frame_rest(head.len(), payload_bytes);
        BigEndian::write_u32(&mut head[..LENGTH_BYTES], length);
        BigEndian::write_u16(&mut head[6..8], fields as u16);
    }
}

/// The length that stands at the beginning of a frame whose header and fields have `head_bytes`.
#[inline]
pub(crate) fn frame_rest(head_bytes: usize, payload_bytes: usize) -> u32 {
    // Past what the field can say, it says what every reader refuses, rather than a smaller length that
    // would turn the rest of the payload into frames.
    u32::try_from((head_bytes - LENGTH_BYTES).saturating_add(payload_bytes)).unwrap_or(u32::MAX)
}

/// A whole header as one number, for a frame whose fields' length is known before they are written.
///
/// Bytes that are put together one by one and then copied make the processor wait for them, which at millions of
/// frames a second is most of what writing a header costs.
#[inline]
pub(crate) fn header(
    (kind, flags, id): (FrameType, u8, u64),
    fields_bytes: u16,
    payload_bytes: usize,
) -> u128 {
    let length = frame_rest(HEADER_BYTES + usize::from(fields_bytes), payload_bytes);
    let kind_and_flags = u64::from(kind as u8) << 24 | u64::from(flags) << 16;
    let first = u64::from(length) << 32 | kind_and_flags | u64::from(fields_bytes);
    u128::from(first) << 64 | u128::from(id)
}

/// A frame that owns its bytes, as a [`FrameStream`] hands it out. The payload is shared, not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedFrame {
    bytes: Bytes,
    kind: FrameType,
    fields_end: usize,
}

impl OwnedFrame {
    /// The frame, borrowed, for [`Message::decode`](crate::Message::decode).
    pub fn as_frame(&self) -> Frame<'_> {
        Frame {
            kind: self.kind,
            flags: self.bytes[5],
            id: BigEndian::read_u64(&self.bytes[8..16]),
            fields: &self.bytes[HEADER_BYTES..self.fields_end],
            payload: &self.bytes[self.fields_end..],
        }
    }

    /// The payload, sharing the frame's memory.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(self.fields_end..)
    }
}

/// Turns a stream of bytes, in whatever pieces it comes, into frames.
///
/// It holds at most one unfinished frame, and grows with the bytes that came, not with the length that was
/// announced.
///
/// ```
/// use bytes::BytesMut;
/// use reparto_protocol::{FrameStream, Message, Ping};
/// let mut wire = BytesMut::new();
/// Message::Ping(Ping { id: 1 }).encode(&mut wire);
/// Message::Ping(Ping { id: 2 }).encode(&mut wire);
/// let mut stream = FrameStream::new(1024);
/// stream.push(&wire[..20]);
/// assert_eq!(stream.next_frame()?.map(|frame| frame.as_frame().id), Some(1));
/// assert_eq!(stream.next_frame()?, None);
/// stream.push(&wire[20..]);
/// assert_eq!(stream.next_frame()?.map(|frame| frame.as_frame().id), Some(2));
/// # Ok::<(), reparto_protocol::FrameError>(())
/// ```
#[derive(Debug)]
pub struct FrameStream {
    buffer: BytesMut,
    max_frame_bytes: u32,
}

impl FrameStream {
    /// A stream that takes frames of at most `max_frame_bytes`, header included.
    pub fn new(max_frame_bytes: u32) -> Self {
        FrameStream { buffer: BytesMut::new(), max_frame_bytes }
    }

    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer that [`next_frame`](Self::next_frame) reads from, to read into without a copy.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Takes the next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// As [`Frame::parse`]; after one the stream is over.
    pub fn next_frame(&mut self) -> Result<Option<OwnedFrame>, FrameError> {
        let Some((frame, total)) = Frame::parse(&self.buffer, self.max_frame_bytes)? else { return Ok(None) };
        let (kind, fields_end) = (frame.kind, HEADER_BYTES + frame.fields.len());
        Ok(Some(OwnedFrame { bytes: self.buffer.split_to(total).freeze(), kind, fields_end }))
    }
}
