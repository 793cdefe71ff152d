//! The two commonest frames, read in one go: a TASK that has an action and nothing else, and a TASK_RESULT that is
//! done and says nothing beside it. A balancer reads little else.
//!
//! These take a frame only where [`Frame::parse`](crate::Frame::parse) and [`Message::decode`](crate::Message::decode)
//! would take it, and understand it alike; whatever else stands there, they leave to those.

use crate::field::{FIELD_HEADER_BYTES, Tag};
use crate::frame::{FrameType, HEADER_BYTES, LENGTH_BYTES};
use crate::limits;

/// A TASK that has an action and nothing else.
///
/// ```
/// use bytes::BytesMut;
/// use reparto_protocol::{Message, Task, TaskOptions, UsualTask};
/// let mut wire = BytesMut::new();
/// let mut task = Task { id: 7, action: "upper", options: TaskOptions::default(), payload: b"hola" };
/// Message::Task(task).encode(&mut wire);
/// let (usual, length) = UsualTask::parse(&wire, 1024).expect("it has an action alone");
/// assert_eq!((usual.id, usual.action, usual.payload, length), (7, "upper", &b"hola"[..], wire.len()));
///
/// wire.clear();
/// task.options.priority = Some(9);
/// Message::Task(task).encode(&mut wire);
/// assert!(UsualTask::parse(&wire, 1024).is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsualTask<'a> {
    /// The client's own number for it; not 0.
    pub id: u64,
    /// What to do.
    pub action: &'a str,
    /// What to do it with.
    pub payload: &'a [u8],
}

impl<'a> UsualTask<'a> {
    /// Reads it from the beginning of `buffer`, and gives its whole length in bytes with it. `None` when something
    /// else stands there, or when it is not whole or is over `max_frame_bytes`, header included.
    #[inline]
    pub fn parse(buffer: &'a [u8], max_frame_bytes: u32) -> Option<(UsualTask<'a>, usize)> {
        let head = Head::read(buffer, FrameType::Task, max_frame_bytes)?;
        let (field, rest) =
            buffer.get(HEADER_BYTES..head.total)?.split_first_chunk::<FIELD_HEADER_BYTES>()?;
        let [tag, high, low] = *field;
        let name_bytes = usize::from(u16::from_be_bytes([high, low]));
        let is_alone = head.fields_bytes == FIELD_HEADER_BYTES + name_bytes;
        let is_action = tag == Tag::Action as u8 && (1..=limits::MAX_ACTION_BYTES).contains(&name_bytes);
        if head.id == 0 || !is_alone || !is_action {
            return None;
        }
        let (name, payload) = rest.split_at_checked(name_bytes)?;
        let action = std::str::from_utf8(name).ok()?;
        Some((UsualTask { id: head.id, action, payload }, head.total))
    }
}

/// A TASK_RESULT that is done and says nothing beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsualResult<'a> {
    /// The assignment's number.
    pub id: u64,
    /// The result.
    pub payload: &'a [u8],
}

impl<'a> UsualResult<'a> {
    /// Reads it from the beginning of `buffer`, as [`UsualTask::parse`] does.
    #[inline]
    pub fn parse(buffer: &'a [u8], max_frame_bytes: u32) -> Option<(UsualResult<'a>, usize)> {
        let head = Head::read(buffer, FrameType::TaskResult, max_frame_bytes)?;
        let payload = buffer.get(HEADER_BYTES..head.total)?;
        (head.fields_bytes == 0).then_some((UsualResult { id: head.id, payload }, head.total))
    }
}

/// A header without flags.
struct Head {
    id: u64,
    fields_bytes: usize,
    /// The whole frame's length.
    total: usize,
}

impl Head {
    #[inline]
    fn read(buffer: &[u8], kind: FrameType, max_frame_bytes: u32) -> Option<Head> {
        let (first, rest) = buffer.split_first_chunk::<8>()?;
        let first = u64::from_be_bytes(*first);
        let id = u64::from_be_bytes(*rest.first_chunk::<8>()?);
        let (kind_and_flags, fields_bytes) = ((first >> 16) as u16, usize::from(first as u16));
        let length = first >> 32;
        let is_it = kind_and_flags == u16::from(kind as u8) << 8;
        if !is_it || length + LENGTH_BYTES as u64 > u64::from(max_frame_bytes) {
            return None;
        }
        Some(Head { id, fields_bytes, total: length as usize + LENGTH_BYTES })
    }
}
