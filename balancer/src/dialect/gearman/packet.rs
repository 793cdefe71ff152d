//! Packets: a header of twelve bytes, then arguments with a NUL between them, of which the last goes to the end.
//!
//! ```text
//!  0      4      8        12
//!  \0REQ  type   size     argument NUL argument NUL ... last argument
//!  \0RES  (big-endian, 32 bits each; size counts what follows)
//! ```

use bytes::{BufMut, BytesMut};
use reparto_protocol::ErrorCode;

use crate::dialect::{Output, Refusal};
use crate::scheduler::Payload;

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 12;

pub(super) const REQUEST: [u8; 4] = *b"\0REQ";
pub(super) const RESPONSE: [u8; 4] = *b"\0RES";

/// Bytes of a function's name: an action's.
pub(super) const MAX_FUNCTION_BYTES: usize = 255;

/// Bytes of a unique id, and of a reducer's name.
pub(super) const MAX_UNIQUE_BYTES: usize = 64;

/// Bytes of a job's handle.
pub(super) const MAX_HANDLE_BYTES: usize = 63;

macro_rules! kinds {
    ($($name:ident = $number:literal, $text:literal, $arguments:literal;)*) => {
        /// What a packet is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Kind {
            $(#[doc = $text] $name = $number,)*
        }

        impl Kind {
            /// The kind of this number; `None` for a number that none has.
            pub(super) fn of(number: u32) -> Option<Kind> {
                Some(match number {
                    $($number => Kind::$name,)*
                    _ => return None,
                })
            }

            /// Its name in the protocol's description.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Kind::$name => $text,)*
                }
            }

            /// How many arguments it has. The last may hold NULs, and be empty.
            pub(super) fn arguments(self) -> usize {
                match self {
                    $(Kind::$name => $arguments,)*
                }
            }
        }
    };
}

kinds! {
    CanDo = 1, "CAN_DO", 1;
    CantDo = 2, "CANT_DO", 1;
    ResetAbilities = 3, "RESET_ABILITIES", 0;
    PreSleep = 4, "PRE_SLEEP", 0;
    Noop = 6, "NOOP", 0;
    SubmitJob = 7, "SUBMIT_JOB", 3;
    JobCreated = 8, "JOB_CREATED", 1;
    GrabJob = 9, "GRAB_JOB", 0;
    NoJob = 10, "NO_JOB", 0;
    JobAssign = 11, "JOB_ASSIGN", 3;
    WorkStatus = 12, "WORK_STATUS", 3;
    WorkComplete = 13, "WORK_COMPLETE", 2;
    WorkFail = 14, "WORK_FAIL", 1;
    GetStatus = 15, "GET_STATUS", 1;
    EchoReq = 16, "ECHO_REQ", 1;
    EchoRes = 17, "ECHO_RES", 1;
    SubmitJobBg = 18, "SUBMIT_JOB_BG", 3;
    Error = 19, "ERROR", 2;
    StatusRes = 20, "STATUS_RES", 5;
    SubmitJobHigh = 21, "SUBMIT_JOB_HIGH", 3;
    SetClientId = 22, "SET_CLIENT_ID", 1;
    CanDoTimeout = 23, "CAN_DO_TIMEOUT", 2;
    AllYours = 24, "ALL_YOURS", 0;
    WorkException = 25, "WORK_EXCEPTION", 2;
    OptionReq = 26, "OPTION_REQ", 1;
    OptionRes = 27, "OPTION_RES", 1;
    WorkData = 28, "WORK_DATA", 2;
    WorkWarning = 29, "WORK_WARNING", 2;
    GrabJobUniq = 30, "GRAB_JOB_UNIQ", 0;
    JobAssignUniq = 31, "JOB_ASSIGN_UNIQ", 4;
    SubmitJobHighBg = 32, "SUBMIT_JOB_HIGH_BG", 3;
    SubmitJobLow = 33, "SUBMIT_JOB_LOW", 3;
    SubmitJobLowBg = 34, "SUBMIT_JOB_LOW_BG", 3;
    SubmitJobSched = 35, "SUBMIT_JOB_SCHED", 8;
    SubmitJobEpoch = 36, "SUBMIT_JOB_EPOCH", 4;
    SubmitReduceJob = 37, "SUBMIT_REDUCE_JOB", 4;
    SubmitReduceJobBackground = 38, "SUBMIT_REDUCE_JOB_BACKGROUND", 4;
    GrabJobAll = 39, "GRAB_JOB_ALL", 0;
    JobAssignAll = 40, "JOB_ASSIGN_ALL", 5;
    GetStatusUnique = 41, "GET_STATUS_UNIQUE", 1;
    StatusResUnique = 42, "STATUS_RES_UNIQUE", 6;
}

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// What it is.
    pub(super) kind: Kind,
    /// Bytes that follow the header.
    pub(super) data_bytes: usize,
}

impl Header {
    /// The header that begins `buffer`; `None` while it is not whole.
    ///
    /// # Errors
    /// Bytes that begin no request, a number that no packet has, or a packet of more than `max_bytes` in all. Each is
    /// found as soon as its bytes are there.
    pub(super) fn parse(buffer: &[u8], max_bytes: u32) -> Result<Option<Header>, Refusal> {
        let magic = buffer.len().min(REQUEST.len());
        if buffer[..magic] != REQUEST[..magic] {
            let message = if buffer[..magic] == RESPONSE[..magic] {
                "a client or worker sends requests, which begin with \\0REQ, and this is a response"
            } else {
                "a packet begins with \\0REQ"
            };
            return Err(Refusal::new(ErrorCode::BadFrame, message));
        }
        let Some([_, _, _, _, k0, k1, k2, k3, s0, s1, s2, s3]) =
            buffer.first_chunk::<HEADER_BYTES>().copied()
        else {
            return Ok(None);
        };
        let number = u32::from_be_bytes([k0, k1, k2, k3]);
        let Some(kind) = Kind::of(number) else {
            return Err(Refusal::new(ErrorCode::BadFrame, format!("no packet has the type {number}")));
        };
        let size = u32::from_be_bytes([s0, s1, s2, s3]);
        if size > max_bytes.saturating_sub(HEADER_BYTES as u32) {
            let message = format!("{} has {size} bytes, and {max_bytes} is the limit", kind.name());
            return Err(Refusal::new(ErrorCode::PayloadTooLarge, message));
        }
        Ok(Some(Header { kind, data_bytes: size as usize }))
    }

    /// Bytes of the whole packet.
    pub(super) fn packet_bytes(self) -> usize {
        HEADER_BYTES + self.data_bytes
    }
}

/// Whether these bytes hold a packet's whole head.
pub fn is_head(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_BYTES && bytes[0] == REQUEST[0]
}

/// Takes the first argument off, and the NUL behind it.
pub(super) fn take_argument<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = data.iter().position(|byte| *byte == 0)?;
    let (argument, rest) = data.split_at(end);
    *data = &rest[1..];
    Some(argument)
}

/// The only argument, without the NUL that some peers end it with.
pub(super) fn only_argument(data: &[u8]) -> &[u8] {
    data.split(|byte| *byte == 0).next().unwrap_or(data)
}

/// A whole number in digits, as far as it goes: what is none, or too large, counts as 0, as it does for a server that
/// uses `atoi`.
pub(super) fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Writes a response's header for `data_bytes` of data.
#[inline]
pub(super) fn put_header(out: &mut BytesMut, kind: Kind, data_bytes: usize) {
    out.reserve(HEADER_BYTES + data_bytes.min(512));
    out.put_slice(&RESPONSE);
    out.put_u32(kind as u32);
    // No payload comes near 4 GiB.
    out.put_u32(data_bytes as u32);
}

/// Writes a response whose data is these arguments.
pub(super) fn put(out: &mut BytesMut, kind: Kind, arguments: &[&[u8]]) {
    let nuls = arguments.len().saturating_sub(1);
    put_header(out, kind, arguments.iter().map(|argument| argument.len()).sum::<usize>() + nuls);
    for (at, argument) in arguments.iter().enumerate() {
        if at > 0 {
            out.put_u8(0);
        }
        out.put_slice(argument);
    }
}

/// Writes a response whose last argument is a payload.
#[inline]
pub(super) fn put_with_payload(out: &mut Output, kind: Kind, arguments: &[&[u8]], payload: Payload<'_>) {
    let names: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
    let buffer = out.buffer();
    put_header(buffer, kind, names + payload.len());
    for argument in arguments {
        buffer.put_slice(argument);
        buffer.put_u8(0);
    }
    out.payload(payload);
}

/// Writes an ERROR.
pub(super) fn put_error(out: &mut BytesMut, code: &str, text: &str) {
    put(out, Kind::Error, &[code.as_bytes(), text.as_bytes()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes from hex digits, of which spaces are left out.
    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let value = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16);
        digits.chunks(2).map(|pair| value(pair).expect("hex digits")).collect()
    }

    #[test]
    fn the_packets_of_the_protocols_own_example_are_read_and_written() {
        let submit = hex("00524551 00000007 0000000d 7265766572736500 00 74657374");
        let header = Header::parse(&submit, 1024).expect("good").expect("whole");
        assert_eq!(header, Header { kind: Kind::SubmitJob, data_bytes: 13 });
        let mut data = &submit[HEADER_BYTES..];
        assert_eq!(take_argument(&mut data), Some(&b"reverse"[..]));
        assert_eq!(take_argument(&mut data), Some(&b""[..]));
        assert_eq!((data, take_argument(&mut data)), (&b"test"[..], None));

        let mut out = BytesMut::new();
        put(&mut out, Kind::JobCreated, &[b"H:lap:1"]);
        assert_eq!(out, hex("00524553 00000008 00000007 483a6c61703a31"));
        let mut out = BytesMut::new();
        put(&mut out, Kind::NoJob, &[]);
        assert_eq!(out, hex("00524553 0000000a 00000000"));
        let mut output = Output::default();
        put_with_payload(&mut output, Kind::JobAssign, &[b"H:lap:1", b"reverse"], Payload::new(b"test"));
        let written = hex("00524553 0000000b 00000014 483a6c61703a3100 7265766572736500 74657374");
        assert_eq!(output.buffer()[..], written);
    }

    #[test]
    fn bytes_that_begin_no_request_are_told_apart_as_soon_as_they_are_there() {
        for (bytes, says) in [
            (&b"\0RE"[..], None),
            (b"\0REQ\0\0\0\x07", None),
            (b"\0RES", Some("response")),
            (b"\0X", Some("begins with")),
            (b"\0REQ\0\0\0\x05\0\0\0\0", Some("type 5")),
            (b"\0REQ\0\0\0\x2b\0\0\0\0", Some("type 43")),
            (b"\0REQ\0\0\0\x07\0\0\x04\0", Some("1024")),
            (b"\0REQ\0\0\0\x07\xff\xff\xff\xff", Some("limit")),
        ] {
            match (Header::parse(bytes, 1024), says) {
                (Ok(None), None) => {}
                (Err(refusal), Some(says)) => assert!(refusal.message.contains(says), "{refusal:?}"),
                (other, _) => panic!("{bytes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn every_kind_is_found_by_its_number() {
        let kinds: Vec<Kind> = (0..100).filter_map(Kind::of).collect();
        assert_eq!(kinds.len(), 41);
        assert!(kinds.iter().all(|kind| Kind::of(*kind as u32) == Some(*kind)));
    }

    #[test]
    fn numbers_that_are_none_count_as_nothing() {
        for (text, is) in [(&b"17"[..], 17), (b" 3 ", 3), (b"", 0), (b"x", 0), (b"-1", 0), (b"\xff", 0)] {
            assert_eq!(number(text), is);
        }
        assert_eq!(only_argument(b"handle\0"), b"handle");
        assert_eq!(only_argument(b"handle"), b"handle");
    }
}
