//! What waits to be written to a connection: a queue of shared pieces, and a buffer that small things are copied into.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::scheduler::Payload;

/// Payloads from here on are passed on as they are; smaller ones are copied behind their heads.
pub const SHARED_PAYLOAD_BYTES: usize = 4 * 1024;

/// Bytes on their way out, in their order.
///
/// Dialects append; the reactor writes and says how much went. Empty, it holds no memory but itself, once
/// [`take_buffer`](Self::take_buffer) was called.
///
/// ```
/// use bytes::{BufMut, Bytes};
/// use reparto_balancer::dialect::Output;
/// let mut output = Output::default();
/// output.buffer().put_slice(b"head");
/// output.share(Bytes::from(vec![0; 5000]));
/// assert_eq!((output.len(), output.pieces()), (5004, 2));
/// output.advance(4);
/// assert_eq!((output.len(), output.pieces()), (5000, 1));
/// ```
#[derive(Debug, Default)]
pub struct Output {
    /// Pieces that go before `tail`.
    queue: VecDeque<Bytes>,
    /// Bytes in `queue`.
    queued_bytes: usize,
    /// Where small things are appended.
    tail: BytesMut,
    /// Bytes that the dialect keeps beside this, and which count as if they waited here.
    beside: usize,
}

impl Output {
    /// Bytes that wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.queued_bytes + self.tail.len()
    }

    /// Bytes that wait, and those that the dialect keeps beside them.
    #[inline]
    pub fn weight(&self) -> usize {
        self.len() + self.beside
    }

    /// Counts bytes that the dialect keeps for this connection beside what waits here, such as an answer that may not
    /// go before another: they are held to the same bounds.
    pub fn keep_beside(&mut self, bytes: usize) {
        self.beside += bytes;
    }

    /// Bytes that were kept beside are kept no more.
    pub fn drop_beside(&mut self, bytes: usize) {
        self.beside = self.beside.saturating_sub(bytes);
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pieces that a vectored write would have.
    pub fn pieces(&self) -> usize {
        self.queue.len() + usize::from(!self.tail.is_empty())
    }

    /// The buffer that small things are appended to.
    #[inline]
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Appends bytes without copying them.
    pub fn share(&mut self, bytes: Bytes) {
        if !self.tail.is_empty() {
            self.queued_bytes += self.tail.len();
            self.queue.push_back(self.tail.split().freeze());
        }
        if !bytes.is_empty() {
            self.queued_bytes += bytes.len();
            self.queue.push_back(bytes);
        }
    }

    /// Appends a payload: copied when it is small, shared when it is not.
    #[inline]
    pub fn payload(&mut self, payload: Payload<'_>) {
        if payload.len() < SHARED_PAYLOAD_BYTES {
            self.tail.extend_from_slice(payload.as_slice());
        } else {
            self.share(payload.to_bytes());
        }
    }

    /// Lists the first pieces for a vectored write: how many there are, and their bytes.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> (usize, usize) {
        let tail = Some(&self.tail[..]).filter(|tail| !tail.is_empty());
        let (mut count, mut bytes) = (0, 0);
        for (slot, piece) in slices.iter_mut().zip(self.queue.iter().map(|piece| &piece[..]).chain(tail)) {
            *slot = IoSlice::new(piece);
            bytes += piece.len();
            count += 1;
        }
        (count, bytes)
    }

    /// Forgets the first `bytes`, which were written; all of them when there are fewer.
    pub fn advance(&mut self, mut bytes: usize) {
        while let Some(front) = self.queue.front_mut() {
            if bytes < front.len() {
                front.advance(bytes);
                self.queued_bytes -= bytes;
                return;
            }
            bytes -= front.len();
            self.queued_bytes -= front.len();
            self.queue.pop_front();
        }
        if bytes < self.tail.len() {
            self.tail.advance(bytes);
        } else {
            self.tail.clear();
        }
    }

    /// Whether it is empty, and has no memory for small things either.
    #[inline]
    pub fn needs_buffer(&self) -> bool {
        self.is_empty() && self.tail.capacity() == 0
    }

    /// Gives an empty output a buffer to begin with.
    pub fn lend_buffer(&mut self, buffer: BytesMut) {
        if self.tail.is_empty() {
            self.tail = buffer;
        }
    }

    /// Frees what an empty output holds. Its buffer comes back for the next one, unless its memory may be
    /// shared with pieces that were split off it.
    pub fn take_buffer(&mut self) -> Option<BytesMut> {
        if !self.is_empty() {
            return None;
        }
        let buffer = std::mem::take(&mut self.tail);
        let had_pieces = std::mem::take(&mut self.queue).capacity() > 0;
        (!had_pieces && buffer.capacity() > 0).then_some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(output: &Output) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 8];
        let (count, bytes) = output.slices(&mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
        assert_eq!(all.len(), bytes);
        all
    }

    #[test]
    fn bytes_leave_in_the_order_they_came_however_the_writes_are_cut() {
        let mut whole = Vec::new();
        for cut in [1, 7, 100, 4096, 5000, 100_000] {
            let mut output = Output::default();
            whole.clear();
            for (index, size) in [3, 6000, 0, 10, 4096, 9].into_iter().enumerate() {
                let payload = Bytes::from(vec![index as u8; size]);
                output.buffer().extend_from_slice(&[b'#', index as u8]);
                output.payload(Payload::from(&payload));
                whole.extend_from_slice(&[b'#', index as u8]);
                whole.extend_from_slice(&payload);
            }
            let mut rest = &whole[..];
            while !output.is_empty() {
                assert_eq!(written(&output), rest);
                assert_eq!(output.len(), rest.len());
                output.advance(cut);
                rest = &rest[cut.min(rest.len())..];
            }
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn small_payloads_are_copied_and_large_ones_shared() {
        let mut output = Output::default();
        output.payload(Payload::new(&[1; SHARED_PAYLOAD_BYTES - 1]));
        assert_eq!(output.pieces(), 1);
        let large = Bytes::from(vec![2; SHARED_PAYLOAD_BYTES]);
        output.payload(Payload::from(&large));
        assert_eq!(output.pieces(), 2);
        let mut slices = [IoSlice::new(&[]); 2];
        output.slices(&mut slices);
        assert_eq!(slices[1].as_ptr(), large.as_ptr());
    }

    #[test]
    fn an_empty_output_gives_its_buffer_back_and_keeps_nothing() {
        let mut output = Output::default();
        assert!(output.needs_buffer());
        output.lend_buffer(BytesMut::with_capacity(512));
        assert!(!output.needs_buffer());
        output.buffer().extend_from_slice(b"some");
        assert!(output.take_buffer().is_none(), "it is in use");
        output.advance(4);
        assert!(output.take_buffer().is_some());
        assert!(output.take_buffer().is_none() && output.needs_buffer());
        output.share(Bytes::from(vec![0; 10]));
        output.advance(10);
        assert!(output.take_buffer().is_none(), "nothing was lent");
    }
}
