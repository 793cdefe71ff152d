//! Reparto's wire protocol, version 1: frames, messages, their codec, and the limits that both sides keep.
//!
//! What it does: finds frames in a stream of bytes ([`Frame::parse`], [`FrameStream`]), understands them
//! ([`Message::decode`]) and writes them ([`Message::encode`], and [`Message::try_encode`] for values that are
//! not your own). What it leaves to you: sockets, threads, time,
//! and what to do about any message. The contract, for people who write a peer in another language, is
//! docs/PROTOCOL.md; `protocol/vectors/` holds its frames as hex.
//!
//! Decoding never panics, and allocates nothing: messages borrow from the buffer that the bytes came into. A
//! [`FrameStream`] holds one unfinished frame, and grows with what came, never with what was announced.
//!
//! ```
//! use bytes::BytesMut;
//! use reparto_protocol::{FrameStream, Message, Outcome, TaskResult};
//!
//! let mut wire = BytesMut::new();
//! Message::TaskResult(TaskResult {
//!     id: 42,
//!     outcome: Outcome::Failed,
//!     message: "sum: 'x' is not a whole number",
//!     service_ns: None,
//!     payload: b"",
//! })
//! .encode(&mut wire);
//!
//! let mut stream = FrameStream::new(reparto_protocol::limits::DEFAULT_MAX_FRAME_BYTES);
//! stream.push(&wire);
//! let frame = stream.next_frame()?.expect("the whole frame was pushed");
//! let Message::TaskResult(result) = Message::decode(&frame.as_frame())? else { panic!("another frame") };
//! assert_eq!((result.id, result.outcome), (42, Outcome::Failed));
//! # Ok::<(), reparto_protocol::FrameError>(())
//! ```

mod beginning;
mod duration;
mod error;
mod field;
mod frame;
pub mod limits;
mod message;
mod state;
mod usual;

pub use beginning::Beginning;
pub use duration::{NotADuration, parse_duration};
pub use error::{ErrorCode, FrameError};
pub use field::{FIELD_HEADER_BYTES, FIRST_CRITICAL_TAG, Field, Fields, Tag, cut};
pub use frame::{Frame, FrameStream, FrameType, HEADER_BYTES, OwnedFrame, frame_length};
pub use message::{
    Accepted, Ack, Actions, AssignTask, Cancel, Drain, DropTask, ErrorMessage, Fetch, GoAway, HeldTasks,
    Hello, ListTasks, Message, Outcome, Ping, Pong, Progress, Register, RetryTask, Role, Status,
    StatusReport, Task, TaskDone, TaskList, TaskOptions, TaskResult, TaskStanding, Welcome,
};
pub use state::TaskState;
pub use usual::{AlikeHeads, UsualResult, UsualResults, UsualTask, UsualTasks};
