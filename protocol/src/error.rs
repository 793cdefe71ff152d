//! What can go wrong: the stable codes that travel in ERROR frames, and the reasons why bytes are not a frame.

use crate::field::Tag;
use crate::frame::FrameType;

/// The stable code of an ERROR frame. Its number travels, its name is what people read.
///
/// ```
/// use reparto_protocol::ErrorCode;
/// assert_eq!(ErrorCode::QueueFull.name(), "queue_full");
/// assert_eq!(ErrorCode::from_number(8), ErrorCode::QueueFull);
/// assert_eq!(ErrorCode::from_number(4999).name(), "unknown");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// The bytes are not a frame, or not one that may come here.
    BadFrame,
    /// The peer speaks no version that this side speaks.
    UnsupportedVersion,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// The credentials do not allow this.
    Forbidden,
    /// No worker offers the action, and the balancer was told not to wait for one.
    UnknownAction,
    /// A live worker has this id already.
    DuplicateWorker,
    /// The connection already has a task with this id in flight.
    DuplicateTask,
    /// A bound on waiting tasks or their bytes is reached.
    QueueFull,
    /// The frame is larger than the limit in WELCOME.
    PayloadTooLarge,
    /// The deadline passed, or the task waited too long for its first assignment.
    Expired,
    /// Every attempt was used up.
    AttemptsExhausted,
    /// The handler said that the task failed for good.
    WorkerFailed,
    /// The task was cancelled.
    Cancelled,
    /// The store can take no task now, or there is none.
    StoreUnavailable,
    /// The balancer is going away.
    ShuttingDown,
    /// Nothing is known by that id.
    NotFound,
    /// The balancer itself failed.
    Internal,
    /// A bound on connections, unread output or unfinished frames is reached.
    Overloaded,
    /// A HELLO, the rest of a frame, or any sign of life from a worker did not come in time.
    TimedOut,
    /// The connection ended before the answer came. Said by the client library, never sent.
    ConnectionLost,
    /// A code that this library does not know, from a newer peer.
    Other(u16),
}

/// Every code with its number and its name, in the order of the numbers.
const CODES: [(ErrorCode, u16, &str); 20] = [
    (ErrorCode::BadFrame, 1, "bad_frame"),
    (ErrorCode::UnsupportedVersion, 2, "unsupported_version"),
    (ErrorCode::Unauthorized, 3, "unauthorized"),
    (ErrorCode::Forbidden, 4, "forbidden"),
    (ErrorCode::UnknownAction, 5, "unknown_action"),
    (ErrorCode::DuplicateWorker, 6, "duplicate_worker"),
    (ErrorCode::DuplicateTask, 7, "duplicate_task"),
    (ErrorCode::QueueFull, 8, "queue_full"),
    (ErrorCode::PayloadTooLarge, 9, "payload_too_large"),
    (ErrorCode::Expired, 10, "expired"),
    (ErrorCode::AttemptsExhausted, 11, "attempts_exhausted"),
    (ErrorCode::WorkerFailed, 12, "worker_failed"),
    (ErrorCode::Cancelled, 13, "cancelled"),
    (ErrorCode::StoreUnavailable, 14, "store_unavailable"),
    (ErrorCode::ShuttingDown, 15, "shutting_down"),
    (ErrorCode::NotFound, 16, "not_found"),
    (ErrorCode::Internal, 17, "internal"),
    (ErrorCode::Overloaded, 18, "overloaded"),
    (ErrorCode::TimedOut, 19, "timed_out"),
    (ErrorCode::ConnectionLost, 1000, "connection_lost"),
];

impl ErrorCode {
    /// Every code that this library knows, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = ErrorCode> {
        CODES.iter().map(|(code, _, _)| *code)
    }

    /// The number that travels in an ERROR frame's CODE field.
    pub fn number(self) -> u16 {
        match self {
            ErrorCode::Other(number) => number,
            known => CODES.iter().find(|(code, _, _)| *code == known).map_or(0, |(_, number, _)| *number),
        }
    }

    /// The code of a number; one that is not known becomes [`ErrorCode::Other`].
    pub fn from_number(number: u16) -> ErrorCode {
        CODES.iter().find(|(_, n, _)| *n == number).map_or(ErrorCode::Other(number), |(code, _, _)| *code)
    }

    /// The name that people and scripts read, such as `queue_full`; `unknown` for a number not known here.
    pub fn name(self) -> &'static str {
        CODES.iter().find(|(code, _, _)| *code == self).map_or("unknown", |(_, _, name)| name)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ErrorCode::Other(number) => write!(f, "unknown code {number}"),
            known => f.write_str(known.name()),
        }
    }
}

/// Why bytes were not taken as a frame, or a frame not as a message. Each maps to an [`ErrorCode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The length cannot even hold the header.
    #[error("the length field says {length}, but a frame has at least 12 bytes after it")]
    TooShort {
        /// What the length field said.
        length: u32,
    },
    /// The frame is larger than this side takes.
    #[error("a frame of {bytes} bytes is over the limit of {limit} bytes")]
    TooLong {
        /// Bytes of the whole frame, header included.
        bytes: u64,
        /// The limit in force, in bytes.
        limit: u32,
    },
    /// The fields would reach past the frame's end.
    #[error("fields of {fields} bytes do not fit in a frame with {room} bytes after its header")]
    FieldsOverrun {
        /// What the header said of the fields' length.
        fields: u16,
        /// Bytes after the header.
        room: u32,
    },
    /// No such frame type.
    #[error("unknown frame type 0x{0:02X}")]
    UnknownType(u8),
    /// A field reaches past the end of the fields.
    #[error("field 0x{tag:02X} reaches past the end of the fields")]
    FieldTruncated {
        /// The field's tag, or the first byte of what cannot be one.
        tag: u8,
    },
    /// A field has a length that its type does not allow.
    #[error("field {tag} is {length} bytes long, which it may not be")]
    FieldLength {
        /// Which field.
        tag: Tag,
        /// Its length in bytes.
        length: usize,
    },
    /// A field's value is out of its range.
    #[error("field {tag} has the value {value}, out of its range")]
    FieldRange {
        /// Which field.
        tag: Tag,
        /// The value.
        value: u64,
    },
    /// A field that should be text is not UTF-8.
    #[error("field {tag} is not UTF-8")]
    NotUtf8 {
        /// Which field.
        tag: Tag,
    },
    /// A field that may stand once stands twice.
    #[error("field {tag} stands more often than it may")]
    Repeated {
        /// Which field.
        tag: Tag,
    },
    /// A field that must stand does not.
    #[error("{frame} needs the field {tag}")]
    Missing {
        /// In which frame.
        frame: FrameType,
        /// Which field.
        tag: Tag,
    },
    /// A field that this side does not know and may not skip.
    #[error("field 0x{tag:02X} must be understood, and is not known here")]
    Critical {
        /// The field's tag.
        tag: u8,
    },
    /// The id is 0, which stands for the connection, where an answer needs one of its own.
    #[error("{frame} has the id 0, which stands for the connection itself")]
    NoId {
        /// In which frame.
        frame: FrameType,
    },
    /// The connection does not begin with the protocol's magic number.
    #[error("this is not the Reparto protocol: the first frame does not begin with its magic number")]
    BadMagic,
    /// The peer's version is not spoken here.
    #[error("version {0} of the protocol is not spoken here; version 1 is")]
    UnsupportedVersion(u16),
    /// A frame that may not come now, or not from this side.
    #[error("{frame} may not come {when}")]
    Unexpected {
        /// Which frame.
        frame: FrameType,
        /// When or from whom it came, as words that end the sentence.
        when: &'static str,
    },
}

impl FrameError {
    /// The code to put in the ERROR frame that answers it.
    pub fn code(&self) -> ErrorCode {
        match self {
            FrameError::TooLong { .. } => ErrorCode::PayloadTooLarge,
            FrameError::UnsupportedVersion(_) => ErrorCode::UnsupportedVersion,
            _ => ErrorCode::BadFrame,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_its_number_and_has_its_own_name() {
        let mut names: Vec<&str> = ErrorCode::all().map(ErrorCode::name).collect();
        for code in ErrorCode::all() {
            assert_eq!(ErrorCode::from_number(code.number()), code);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::all().count());
    }

    #[test]
    fn an_unknown_number_is_kept() {
        assert_eq!(ErrorCode::from_number(777).number(), 777);
    }
}
