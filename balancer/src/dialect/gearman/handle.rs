//! Job handles: the texts by which clients, workers and operators name a job, `H:HOST:...`.
//!
//! A foreground job's handle ends in the number that its client's session has given it; a background job's in its task
//! id, by which every other command and dialect knows it, too.

use bytes::{BufMut, BytesMut};

use super::packet::MAX_HANDLE_BYTES;
use crate::scheduler::{AssignmentId, BackgroundId};

/// Bits of a number that count jobs; the connection's index stands above them.
const COUNT_BITS: u32 = 40;

/// Bytes of a host's name that handles have room for, beside the longest of what else is in them.
const HOST_BYTES: usize = MAX_HANDLE_BYTES - 2 - 1 - 36;

/// A job, as its handle names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handle {
    /// A foreground job.
    Number(u64),
    /// A background job.
    Task(BackgroundId),
}

/// The number of a connection's job: the connection's index, and a count over all of them.
pub(super) fn number_of(connection: u32, count: u64) -> u64 {
    // Indexes are 20 bits at most, so the bits above stay free.
    (u64::from(connection) + 1) << COUNT_BITS | count & ((1 << COUNT_BITS) - 1)
}

/// The number of an assignment's job that was given none, such as a native client's: no other job of its worker has it, and
/// no connection's.
pub(super) fn number_of_assignment(id: AssignmentId) -> u64 {
    const BIT: u64 = 1 << 62;
    BIT | id.0 & (BIT - 1)
}

/// The index of the connection whose job has this number; `None` for a number that no job has.
pub(super) fn connection_of(number: u64) -> Option<u32> {
    u32::try_from(number >> COUNT_BITS).ok()?.checked_sub(1)
}

/// What all handles of a balancer begin with: `H:`, a host's name, and `:`.
pub(super) fn prefix(host: &str) -> String {
    let plain: String = host.chars().filter(|char| char.is_ascii_graphic()).take(HOST_BYTES).collect();
    format!("H:{}:", if plain.is_empty() { "reparto" } else { &plain })
}

impl Handle {
    /// The handle of this text; `None` when it is none of this balancer's.
    pub(super) fn parse(prefix: &str, text: &[u8]) -> Option<Handle> {
        let rest = std::str::from_utf8(text.strip_prefix(prefix.as_bytes())?).ok()?;
        if let Ok(number) = rest.parse() {
            return Some(Handle::Number(number));
        }
        uuid::Uuid::try_parse(rest).ok().map(|id| Handle::Task(id.into_bytes()))
    }

    /// Writes its text.
    #[inline]
    pub(super) fn put(self, prefix: &str, out: &mut BytesMut) {
        out.put_slice(prefix.as_bytes());
        match self {
            Handle::Number(number) => put_digits(number, out),
            Handle::Task(id) => {
                let mut buffer = uuid::Uuid::encode_buffer();
                let text = uuid::Uuid::from_bytes(id).hyphenated().encode_lower(&mut buffer);
                out.put_slice(text.as_bytes());
            }
        }
    }

    /// Bytes of its text.
    #[inline]
    pub(super) fn len(self, prefix: &str) -> usize {
        prefix.len()
            + match self {
                Handle::Number(number) => number.checked_ilog10().unwrap_or(0) as usize + 1,
                Handle::Task(_) => uuid::fmt::Hyphenated::LENGTH,
            }
    }

    /// Its text.
    pub(super) fn text(self, prefix: &str) -> BytesMut {
        let mut out = BytesMut::with_capacity(self.len(prefix));
        self.put(prefix, &mut out);
        out
    }
}

/// Writes a number in digits.
#[inline]
pub(super) fn put_digits(mut number: u64, out: &mut BytesMut) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_reads_back_from_its_text_and_fits() {
        let prefix = prefix("a-host-with-a-name-that-is-longer-than-most.example.org");
        for handle in
            [Handle::Number(0), Handle::Number(7), Handle::Number(u64::MAX), Handle::Task([0xAB; 16])]
        {
            let text = handle.text(&prefix);
            assert!(text.len() <= MAX_HANDLE_BYTES && text.len() == handle.len(&prefix), "{text:?}");
            assert_eq!(Handle::parse(&prefix, &text), Some(handle));
        }
        for text in [&b"H:other:1"[..], b"", b"H:", b"1", &prefix.as_bytes()[..prefix.len() - 1]] {
            assert_eq!(Handle::parse(&prefix, text), None);
        }
        assert_eq!(Handle::parse("H:x:", b"H:x:nonsense"), None);
    }

    #[test]
    fn a_number_tells_its_connection_and_no_small_one_does() {
        for (connection, count) in [(0, 0), (0, 1 << 39), (1_000_000, 5)] {
            assert_eq!(connection_of(number_of(connection, count)), Some(connection));
        }
        assert_eq!(connection_of(12), None);
        assert!(number_of(1 << 20, u64::MAX) < 1 << 62);
    }

    #[test]
    fn a_host_without_a_usable_name_is_called_otherwise() {
        assert_eq!(prefix("\u{1F980} \n"), "H:reparto:");
    }
}
