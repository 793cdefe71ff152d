//! The heads of packets that follow each other and differ in nothing but their jobs' handles and the length of their
//! payloads: JOB_CREATEDs, JOB_ASSIGNs of one function, WORK_COMPLETEs. They are written, and known again, without each
//! handle being put into digits: mostly its number follows the one before.

use bytes::{BufMut, BytesMut};

use super::handle::put_digits;
use super::packet::{HEADER_BYTES, Kind, RESPONSE};

/// Heads up to this many bytes are written as one block of this length, which spares a call for them.
const BLOCK_BYTES: usize = 64;

/// A packet's head: header, handle, and what stands behind it before the payload.
///
/// What is kept is the head for a hundred numbers that follow each other. Its copy is where the last two digits are
/// written, and the size: to change it and then copy it would make the processor wait for the change.
#[derive(Debug)]
pub(super) struct Head {
    /// What stands behind the handle.
    tail: Box<[u8]>,
    /// What all handles begin with.
    prefix_bytes: usize,
    /// The first of the numbers.
    hundred: u64,
    /// Where their handles end; 0 while there are none.
    end: usize,
    /// The head for the first of them, its size left open, and zeros up to [`BLOCK_BYTES`] at least.
    bytes: BytesMut,
}

/// What a session writes heads with, each begun when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Heads {
    created: Option<Head>,
    complete: Option<Head>,
    /// With the function that it is for.
    assign: Option<(Box<str>, Head)>,
}

impl Heads {
    /// Of JOB_CREATEDs.
    #[inline]
    pub(super) fn created(&mut self, prefix: &str) -> &mut Head {
        self.created.get_or_insert_with(|| Head::new(Kind::JobCreated, prefix, &[]))
    }

    /// Of WORK_COMPLETEs.
    #[inline]
    pub(super) fn complete(&mut self, prefix: &str) -> &mut Head {
        self.complete.get_or_insert_with(|| Head::new(Kind::WorkComplete, prefix, &[b"\0"]))
    }

    /// Of JOB_ASSIGNs of this function.
    #[inline]
    pub(super) fn assign(&mut self, prefix: &str, action: &str) -> &mut Head {
        let kept = self.assign.take().filter(|(of, _)| **of == *action);
        let head = || Head::new(Kind::JobAssign, prefix, &[b"\0", action.as_bytes(), b"\0"]);
        &mut self.assign.insert(kept.unwrap_or_else(|| (action.into(), head()))).1
    }
}

impl Head {
    /// Heads of packets of this kind, with handles of this prefix and `tail` behind them.
    pub(super) fn new(kind: Kind, prefix: &str, tail: &[&[u8]]) -> Head {
        let mut bytes = BytesMut::with_capacity(2 * BLOCK_BYTES);
        bytes.put_slice(&RESPONSE);
        bytes.put_u32(kind as u32);
        bytes.put_u32(0);
        bytes.put_slice(prefix.as_bytes());
        Head { tail: tail.concat().into(), prefix_bytes: prefix.len(), hundred: 0, end: 0, bytes }
    }

    /// Has the head be that of the hundred of this number, and gives the number's last two digits. `None` for a number
    /// that has only one or two: no hundred's heads have the length of all of its.
    #[inline]
    fn last_digits(&mut self, number: u64) -> Option<[u8; 2]> {
        let above = match number.checked_sub(self.hundred) {
            Some(above) if above < 100 && self.end > 0 => above,
            _ => self.begin_hundred(number)?,
        } as u8;
        Some([b'0' + above / 10, b'0' + above % 10])
    }

    /// Gives how far above its hundred the number is.
    #[inline(never)]
    fn begin_hundred(&mut self, number: u64) -> Option<u64> {
        let above = number % 100;
        if number < 100 {
            return None;
        }
        self.hundred = number - above;
        self.bytes.truncate(HEADER_BYTES + self.prefix_bytes);
        put_digits(self.hundred, &mut self.bytes);
        self.end = self.bytes.len();
        self.bytes.put_slice(&self.tail);
        if self.bytes.len() < BLOCK_BYTES {
            self.bytes.resize(BLOCK_BYTES, 0);
        }
        Some(above)
    }

    /// What stands in `data` behind the handle of the job of this number and a NUL, if `data` begins with them.
    #[inline]
    pub(super) fn strip<'d>(&mut self, number: u64, data: &'d [u8]) -> Option<&'d [u8]> {
        let [tens, ones] = self.last_digits(number)?;
        let common = self.bytes.get(HEADER_BYTES..self.end - 2)?;
        let (handle, rest) = data.split_at_checked(common.len())?;
        let ([first, second, nul], rest) = rest.split_first_chunk::<3>()?;
        // Two comparisons of 16 bytes take a fraction of what a call for them does.
        let is_alike = match (handle.first_chunk::<16>(), handle.last_chunk::<16>(), handle.len()) {
            (Some(first), Some(last), 16..=32) => {
                Some(first) == common.first_chunk() && Some(last) == common.last_chunk()
            }
            _ => handle == common,
        };
        (is_alike && (tens, ones, 0) == (*first, *second, *nul)).then_some(rest)
    }

    /// Appends the head for the job of this number, and a payload of `payload_bytes` that follows by itself.
    #[inline]
    pub(super) fn put(&mut self, number: u64, payload_bytes: usize, out: &mut BytesMut) {
        let Some(digits) = self.last_digits(number) else {
            return self.put_small(number, payload_bytes, out);
        };
        let (start, length) = (out.len(), self.end + self.tail.len());
        match self.bytes.first_chunk::<BLOCK_BYTES>() {
            Some(block) if length <= BLOCK_BYTES => {
                out.put_slice(block);
                out.truncate(start + length);
            }
            _ => out.put_slice(self.bytes.get(..length).unwrap_or_default()),
        }
        let Some(head) = out.get_mut(start..start + self.end) else { return };
        if let Some(size) = head.get_mut(8..HEADER_BYTES) {
            size.copy_from_slice(&size_of(length, payload_bytes));
        }
        if let Some(last) = head.last_chunk_mut() {
            *last = digits;
        }
    }

    #[cold]
    fn put_small(&self, number: u64, payload_bytes: usize, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(self.bytes.get(..HEADER_BYTES + self.prefix_bytes).unwrap_or_default());
        put_digits(number, out);
        out.put_slice(&self.tail);
        let length = out.len() - start;
        if let Some(size) = out.get_mut(start + 8..start + HEADER_BYTES) {
            size.copy_from_slice(&size_of(length, payload_bytes));
        }
    }
}

/// A header's size, for a packet with such a head.
#[inline]
fn size_of(head_bytes: usize, payload_bytes: usize) -> [u8; 4] {
    // No payload comes near 4 GiB.
    ((head_bytes - HEADER_BYTES + payload_bytes) as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::handle::Handle;
    use super::super::packet::put_header;
    use super::*;

    #[test]
    fn heads_are_those_of_single_packets_whatever_the_numbers() {
        for (prefix, tail) in [("H:a:", &b""[..]), ("H:lap:", b"\0echo\0"), (&*"h".repeat(50), &[7; 100])] {
            let mut head = Head::new(Kind::JobAssign, prefix, &[tail]);
            let (mut wire, mut alone) = (BytesMut::new(), BytesMut::new());
            for number in (0..=111).chain([998, 999, 1000, 1000, 7, 8, 1 << 40, u64::MAX, 0]) {
                let payload_bytes = number as usize % 300;
                head.put(number, payload_bytes, &mut wire);
                let handle = Handle::Number(number);
                put_header(&mut alone, Kind::JobAssign, handle.len(prefix) + tail.len() + payload_bytes);
                handle.put(prefix, &mut alone);
                alone.put_slice(tail);
                assert_eq!(wire, alone, "at {number}");
                let arguments = [&handle.text(prefix)[..], b"\0rest"].concat();
                let stripped = head.strip(number, &arguments);
                assert_eq!(stripped, (number >= 100).then_some(&b"rest"[..]), "at {number}");
                for at in 0..arguments.len() - 4 {
                    let mut other = arguments.clone();
                    other[at] ^= 1;
                    assert_eq!(head.strip(number, &other), None);
                    assert_eq!(head.strip(number, &arguments[..at]), None);
                }
            }
        }
    }
}
