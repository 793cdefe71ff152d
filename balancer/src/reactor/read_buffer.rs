//! The one buffer that everything is read into. Frames are parsed where they came, without a copy.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

/// Bytes of the buffer, and so the most that one read takes.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// With epoll and kqueue a read or write that did less than it was asked to has reached the end of what the
/// socket can do, and an event follows when it can do more. Elsewhere only `WouldBlock` tells.
pub(super) const SHORT_MEANS_BLOCKED: bool = cfg!(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "ios",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly",
));

/// A buffer that is read into from its beginning, again and again, so that the same warm memory serves read after
/// read. Where somebody has kept a part of what was read, that keeps the memory, and the next read gets new one:
/// zeroed, since reading into memory that holds nothing yet takes unsafe code.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    /// Memory to read into; empty while it is handed out.
    room: BytesMut,
    /// The memory that is handed out.
    lent: Bytes,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        ReadBuffer { room: BytesMut::zeroed(READ_BYTES), lent: Bytes::new() }
    }

    /// Reads once. Gives what came, empty at the end of the stream, and whether more may be there.
    pub(super) fn read(&mut self, source: &mut impl Read) -> io::Result<(Bytes, bool)> {
        if self.room.is_empty() {
            let lent = std::mem::take(&mut self.lent);
            self.room = lent.try_into_mut().unwrap_or_else(|_| BytesMut::zeroed(READ_BYTES));
        }
        let count = source.read(&mut self.room)?;
        let more = count == self.room.len() || !SHORT_MEANS_BLOCKED;
        self.lent = std::mem::take(&mut self.room).freeze();
        Ok((self.lent.slice(..count), more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_what_was_read_and_the_buffer_never_runs_out() {
        let mut buffer = ReadBuffer::new();
        let mut kept = Vec::new();
        for round in 0..100u8 {
            let data = vec![round; 10_000];
            let (piece, _) = buffer.read(&mut &data[..]).expect("reading a slice");
            assert_eq!(piece, data);
            if round % 10 == 0 {
                kept.push((round, piece));
            }
        }
        for (round, piece) in kept {
            assert!(piece.iter().all(|byte| *byte == round), "a kept piece stays as it was");
        }
    }

    #[test]
    fn memory_is_used_again_when_nobody_kept_a_piece() {
        let mut buffer = ReadBuffer::new();
        let mut places = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let data = vec![7; 100_000];
            places.insert(buffer.read(&mut &data[..]).expect("reading a slice").0.as_ptr());
        }
        assert!(places.len() <= 3, "{} places", places.len());
    }

    #[test]
    fn a_full_read_says_that_more_may_be_there() {
        let mut buffer = ReadBuffer::new();
        let data = vec![7; 2 * READ_BYTES];
        assert!(buffer.read(&mut &data[..]).expect("reading a slice").1);
    }
}
