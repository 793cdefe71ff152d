//! What is to be written to a connection: frames gathered until somebody writes them, many at once.

use std::io::{self, IoSlice, Write};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use reparto_protocol::Message;

use crate::request::Request;
use crate::task_request::Payload;

/// From this size on a payload is passed on as it is; a smaller one is copied, so that many go in one write.
const SHARED_PAYLOAD_BYTES: usize = 8 * 1024;

/// A spare buffer larger than this is given back to the allocator instead of being kept for the next batch.
const MAX_SPARE_BYTES: usize = 1024 * 1024;

/// Pieces handed to one vectored write at most.
const MAX_PIECES_PER_WRITE: usize = 64;

#[derive(Default)]
pub(crate) struct Output {
    /// In their order, before `tail`.
    segments: Vec<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl Output {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a request's frame, and gives its size in bytes.
    pub(crate) fn push_request(&mut self, id: u64, request: &Request<'_>, now: Instant) -> usize {
        let before = self.tail.len();
        let payload_bytes = request.payload().map_or(0, |payload| payload.as_slice().len());
        request.head(id, now).encode_head(&mut self.tail, payload_bytes);
        let added = self.tail.len() - before + payload_bytes;
        match request.payload() {
            Some(payload) if payload_bytes >= SHARED_PAYLOAD_BYTES => self.push_shared(payload),
            Some(payload) => self.tail.extend_from_slice(payload.as_slice()),
            None => {}
        }
        self.bytes += added;
        added
    }

    fn push_shared(&mut self, payload: &Payload<'_>) {
        self.segments.push(self.tail.split().freeze());
        self.segments.push(payload.to_bytes());
    }

    /// Appends a frame without a payload, and gives its size in bytes.
    pub(crate) fn push_message(&mut self, message: &Message<'_>) -> usize {
        let before = self.tail.len();
        message.encode(&mut self.tail);
        let added = self.tail.len() - before;
        self.bytes += added;
        added
    }

    /// Takes everything, leaving `spare` to be filled next.
    pub(crate) fn take(&mut self, spare: BytesMut) -> Batch {
        let tail = std::mem::replace(&mut self.tail, spare);
        Batch {
            segments: std::mem::take(&mut self.segments),
            tail,
            bytes: std::mem::replace(&mut self.bytes, 0),
        }
    }

    /// Gives back a buffer that may be filled again, if nothing was put in meanwhile.
    pub(crate) fn put_spare(&mut self, spare: BytesMut) {
        if self.tail.is_empty() && self.tail.capacity() < spare.capacity() {
            self.tail = spare;
        }
    }
}

/// What one turn of writing takes along.
pub(crate) struct Batch {
    segments: Vec<Bytes>,
    tail: BytesMut,
    pub(crate) bytes: usize,
}

impl Batch {
    /// Writes everything; tells after every write that the peer took something.
    pub(crate) fn write_to(&self, mut stream: impl Write, mut moved: impl FnMut()) -> io::Result<()> {
        let pieces: Vec<&[u8]>;
        let pieces: &[&[u8]] = if self.segments.is_empty() {
            &[&self.tail]
        } else {
            pieces = self.segments.iter().map(Bytes::as_ref).chain([self.tail.as_ref()]).collect();
            &pieces
        };
        for group in pieces.chunks(MAX_PIECES_PER_WRITE) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut left = &mut slices[..];
            IoSlice::advance_slices(&mut left, 0);
            while !left.is_empty() {
                match stream.write_vectored(left) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => IoSlice::advance_slices(&mut left, written),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
                moved();
            }
        }
        Ok(())
    }

    /// The buffer, emptied, to be filled again.
    pub(crate) fn into_spare(mut self) -> BytesMut {
        self.tail.clear();
        if self.tail.capacity() > MAX_SPARE_BYTES { BytesMut::new() } else { self.tail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task_request::TaskRequest;

    /// Takes a few bytes at a time, as a slow socket does.
    struct Trickle(Vec<u8>);

    impl Write for Trickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let some = bytes.len().min(1000);
            self.0.extend_from_slice(&bytes[..some]);
            Ok(some)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn frames_leave_whole_and_in_order_whatever_their_size_and_the_sockets_pace() {
        let mut output = Output::default();
        let sizes = [0, 1, 100, SHARED_PAYLOAD_BYTES, 50_000, 3, SHARED_PAYLOAD_BYTES - 1, 70_000];
        let mut expected = 0;
        for round in 0..20 {
            for (id, size) in sizes.into_iter().enumerate() {
                let payload = Payload::Shared(vec![id as u8; size].into());
                let request = Request::Task(TaskRequest { payload, ..TaskRequest::new("echo") });
                expected += output.push_request(round * 8 + id as u64 + 1, &request, Instant::now());
            }
        }
        assert_eq!(output.bytes(), expected);
        let batch = output.take(BytesMut::new());
        let mut wire = Trickle(Vec::new());
        batch.write_to(&mut wire, || {}).unwrap();
        assert!(output.is_empty());
        assert_eq!(wire.0.len(), batch.bytes);

        let mut stream = reparto_protocol::FrameStream::new(1 << 20);
        stream.push(&wire.0);
        let mut count = 0;
        while let Some(frame) = stream.next_frame().unwrap() {
            let id = frame.as_frame().id as usize - 1;
            assert_eq!(id, count);
            assert_eq!(frame.payload(), vec![(id % 8) as u8; sizes[id % 8]]);
            count += 1;
        }
        assert_eq!(count, 160);
    }
}
