//! The commonest frames, in one go: read, a TASK that has an action and nothing else, and a TASK_RESULT that is done and
//! says nothing beside it; written, what they become, an ASSIGN_TASK and a RESULT. A balancer has little else to do.
//!
//! The readers take a frame only where [`Frame::parse`](crate::Frame::parse) and [`Message::decode`](crate::Message::decode)
//! would take it, and understand it alike; whatever else stands there, they leave to those.

use bytes::BytesMut;

use crate::beginning::Beginning;
use crate::field::{FIELD_HEADER_BYTES, Tag};
use crate::frame::{FrameType, HEADER_BYTES, LENGTH_BYTES, header};
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

/// Usual TASKs that follow each other in a buffer and have the same action: what is true of all of them is read once.
///
/// An iterator over their numbers and payloads. It ends before the first frame that is another, is not whole, or has
/// another action; [`at`](Self::at) says where that begins.
///
/// ```
/// use bytes::BytesMut;
/// use reparto_protocol::{Message, Task, TaskOptions, UsualTasks};
/// let mut wire = BytesMut::new();
/// for (id, action) in [(1, "upper"), (2, "upper"), (3, "echo")] {
///     let task = Task { id, action, options: TaskOptions::default(), payload: b"hola" };
///     Message::Task(task).encode(&mut wire);
/// }
/// let mut run = UsualTasks::begin(&wire, 0, 1024).expect("a usual task stands there");
/// assert_eq!(run.action(), "upper");
/// assert_eq!(run.by_ref().map(|(id, _)| id).collect::<Vec<_>>(), [1, 2]);
/// assert_eq!(UsualTasks::begin(&wire, run.at(), 1024).expect("one more").action(), "echo");
/// ```
#[derive(Debug, Clone)]
pub struct UsualTasks<'a> {
    frames: Alike<'a>,
    action: &'a str,
}

impl<'a> UsualTasks<'a> {
    /// Those that begin at `at` in `buffer`, at least one. `None` as for [`UsualTask::parse`].
    #[inline]
    pub fn begin(buffer: &'a [u8], at: usize, max_frame_bytes: u32) -> Option<Self> {
        let first = buffer.get(at..)?;
        let (task, _) = UsualTask::parse(first, max_frame_bytes)?;
        let fields = first.get(HEADER_BYTES..HEADER_BYTES + FIELD_HEADER_BYTES + task.action.len())?;
        let frames = Alike::new(buffer, at, FrameType::Task, fields, max_frame_bytes);
        Some(UsualTasks { frames, action: task.action })
    }

    /// What all of them are to do.
    #[inline]
    pub fn action(&self) -> &'a str {
        self.action
    }

    /// Where the next frame begins.
    #[inline]
    pub fn at(&self) -> usize {
        self.frames.at
    }
}

impl<'a> Iterator for UsualTasks<'a> {
    type Item = (u64, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let at = self.frames.at;
        let next = self.frames.next();
        if let Some((0, _)) = next {
            // No task's number.
            self.frames.at = at;
            return None;
        }
        next
    }
}

/// Usual TASK_RESULTs that follow each other in a buffer; as [`UsualTasks`].
#[derive(Debug, Clone)]
pub struct UsualResults<'a>(Alike<'a>);

impl<'a> UsualResults<'a> {
    /// Those that begin at `at` in `buffer`, at least one. `None` as for [`UsualResult::parse`].
    #[inline]
    pub fn begin(buffer: &'a [u8], at: usize, max_frame_bytes: u32) -> Option<Self> {
        UsualResult::parse(buffer.get(at..)?, max_frame_bytes)?;
        Some(UsualResults(Alike::new(buffer, at, FrameType::TaskResult, &[], max_frame_bytes)))
    }

    /// Where the next frame begins.
    #[inline]
    pub fn at(&self) -> usize {
        self.0.at
    }
}

impl<'a> Iterator for UsualResults<'a> {
    type Item = (u64, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// Frames of one type without flags that have the same fields. Gives their ids and payloads.
#[derive(Debug, Clone)]
struct Alike<'a> {
    buffer: &'a [u8],
    at: usize,
    /// Type, flags and length of the fields, as the header has them.
    kind: u32,
    fields: Beginning<'a>,
    /// Most bytes of a frame behind its length.
    most: usize,
}

impl<'a> Alike<'a> {
    #[inline]
    fn new(buffer: &'a [u8], at: usize, kind: FrameType, fields: &'a [u8], max_frame_bytes: u32) -> Self {
        let kind = u32::from(kind as u8) << 24 | fields.len() as u32;
        let most = (max_frame_bytes as usize).saturating_sub(LENGTH_BYTES);
        Alike { buffer, at, kind, fields: Beginning::new(fields), most }
    }

    #[inline]
    fn next(&mut self) -> Option<(u64, &'a [u8])> {
        let rest = self.buffer.get(self.at..)?;
        let (head, body) = rest.split_first_chunk::<HEADER_BYTES>()?;
        let head = u128::from_be_bytes(*head);
        let (first, id) = ((head >> 64) as u64, head as u64);
        let length = (first >> 32) as usize;
        let body_bytes = length.checked_sub(HEADER_BYTES - LENGTH_BYTES)?;
        if first as u32 != self.kind || length > self.most {
            return None;
        }
        // Bytes behind the frame may be compared, and are not counted.
        if !self.fields.begins(body) {
            return None;
        }
        let payload = body.get(self.fields.len()..body_bytes)?;
        self.at += LENGTH_BYTES + length;
        Some((id, payload))
    }
}

/// Writes the heads of frames that follow each other and differ in nothing but their numbers and payloads: ASSIGN_TASKs
/// of one action, first attempts with the usual options, or RESULTs.
///
/// ```
/// use bytes::BytesMut;
/// use reparto_protocol::{AlikeHeads, AssignTask, Message};
/// let heads = AlikeHeads::assign_task("upper").expect("the name of an action");
/// let mut wire = BytesMut::new();
/// heads.put(7, 4, &mut wire);
/// wire.extend_from_slice(b"hola");
///
/// let assign = AssignTask {
///     id: 7, action: "upper", attempt: 1, deadline_ms: None, key: None, task_id: None, held: false, payload: b"hola",
/// };
/// let mut alone = BytesMut::new();
/// Message::AssignTask(assign).encode(&mut alone);
/// assert_eq!(wire, alone);
/// ```
#[derive(Debug, Clone)]
pub struct AlikeHeads {
    kind: FrameType,
    fields: Box<[u8]>,
}

impl AlikeHeads {
    /// Heads of ASSIGN_TASKs that say nothing but their action. `None` where it is no name of an action.
    pub fn assign_task(action: &str) -> Option<AlikeHeads> {
        if !(1..=limits::MAX_ACTION_BYTES).contains(&action.len()) {
            return None;
        }
        let name_bytes = u8::try_from(action.len()).ok()?;
        let fields = [Tag::Action as u8, 0, name_bytes].into_iter().chain(action.bytes()).collect();
        Some(AlikeHeads { kind: FrameType::AssignTask, fields })
    }

    /// Heads of RESULTs.
    pub fn result() -> AlikeHeads {
        AlikeHeads { kind: FrameType::Result, fields: Box::default() }
    }

    /// Appends a header and its fields, for a payload of `payload_bytes` that follows by itself.
    #[inline(always)]
    pub fn put(&self, id: u64, payload_bytes: usize, out: &mut BytesMut) {
        let fields_bytes = self.fields.len() as u16;
        out.extend_from_slice(&header((self.kind, 0, id), fields_bytes, payload_bytes).to_be_bytes());
        if !self.fields.is_empty() {
            out.extend_from_slice(&self.fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::message::{AssignTask, Message, Task, TaskDone, TaskOptions};

    fn wire(tasks: &[(u64, &str, &[u8])]) -> BytesMut {
        let mut wire = BytesMut::new();
        for (id, action, payload) in tasks {
            Message::Task(Task { id: *id, action, options: TaskOptions::default(), payload })
                .encode(&mut wire);
        }
        wire
    }

    #[test]
    fn a_run_ends_before_another_action_whatever_its_length_and_its_bytes_in_common() {
        let long = "a".repeat(255);
        for (action, other) in [
            ("echo", "echp"),
            ("e", "f"),
            ("thumbnail-abc", "thumbnail-abd"),
            ("thumbnail-abcd", "thumbnail-abce"),
            (&*long, "a"),
        ] {
            let wire = wire(&[(1, action, b""), (2, action, b"xx"), (3, other, b""), (4, action, b"")]);
            let mut run = UsualTasks::begin(&wire, 0, 4096).expect("a usual task");
            let ids: Vec<u64> = run.by_ref().map(|(id, _)| id).collect();
            assert_eq!(ids, [1, 2], "{action}");
            let rest = UsualTask::parse(&wire[run.at()..], 4096).expect("the other one");
            assert_eq!(rest.0.action, other);
        }
    }

    #[test]
    fn heads_are_those_of_single_frames_whatever_the_length_of_the_name() {
        for name_bytes in 1..=limits::MAX_ACTION_BYTES {
            let action = &*"a".repeat(name_bytes);
            let heads = AlikeHeads::assign_task(action).expect("a name");
            let (mut wire, mut alone) = (BytesMut::new(), BytesMut::new());
            for (id, payload) in [(1, &b""[..]), (u64::MAX, &[7; 300])] {
                heads.put(id, payload.len(), &mut wire);
                wire.extend_from_slice(payload);
                let (attempt, held) = (1, false);
                let (deadline_ms, key, task_id) = (None, None, None);
                Message::AssignTask(AssignTask {
                    id,
                    action,
                    attempt,
                    deadline_ms,
                    key,
                    task_id,
                    held,
                    payload,
                })
                .encode(&mut alone);
                AlikeHeads::result().put(id, payload.len(), &mut wire);
                wire.extend_from_slice(payload);
                Message::Result(TaskDone { id, payload }).encode(&mut alone);
            }
            assert_eq!(wire, alone);
        }
        assert!(AlikeHeads::assign_task("").is_none());
        assert!(AlikeHeads::assign_task(&"a".repeat(limits::MAX_ACTION_BYTES + 1)).is_none());
    }

    #[test]
    fn a_run_ends_before_a_frame_that_is_not_whole() {
        let wire = wire(&[(1, "echo", b"hola"), (2, "echo", b"hola")]);
        for cut in 1..wire.len() / 2 {
            let mut run = UsualTasks::begin(&wire[..wire.len() - cut], 0, 4096).expect("a usual task");
            assert_eq!(run.by_ref().count(), 1, "{cut} bytes short");
            assert_eq!(run.at(), wire.len() / 2);
        }
    }
}
