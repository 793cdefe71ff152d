//! What is to be written to a balancer: frames one after another, large payloads shared instead of copied.

use std::io::{self, Write};
use std::net::TcpStream;

use bytes::{Bytes, BytesMut};
use reparto_protocol::Message;

/// Payloads from this size on are passed on as they are; below it a copy is cheaper than a write of its own.
const SHARE_FROM_BYTES: usize = 16 * 1024;
/// A buffer that grew beyond this is not kept for the next batch.
const KEEP_BYTES: usize = 1024 * 1024;

/// Frames in the order they go out. It bounds nothing by itself; its owner asks for [`len`](Self::len).
#[derive(Debug, Default)]
pub(super) struct Output {
    whole: Vec<Bytes>,
    tail: BytesMut,
    bytes: usize,
    spare: BytesMut,
}

impl Output {
    /// Bytes that are waiting.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds a whole frame.
    pub(super) fn push(&mut self, message: &Message<'_>) {
        let before = self.tail.len();
        message.encode(&mut self.tail);
        self.bytes += self.tail.len() - before;
    }

    /// Adds a frame whose payload is `payload`, whatever stands in `message`.
    pub(super) fn push_with(&mut self, message: &Message<'_>, payload: Bytes) {
        let before = self.tail.len();
        message.encode_head(&mut self.tail, payload.len());
        self.bytes += self.tail.len() - before + payload.len();
        if payload.len() < SHARE_FROM_BYTES {
            self.tail.extend_from_slice(&payload);
        } else {
            self.whole.push(self.tail.split().freeze());
            self.whole.push(payload);
        }
    }

    /// Takes everything that is waiting.
    pub(super) fn take(&mut self) -> Batch {
        self.bytes = 0;
        let spare = std::mem::take(&mut self.spare);
        Batch { whole: std::mem::take(&mut self.whole), tail: std::mem::replace(&mut self.tail, spare) }
    }

    /// Gives a written batch's memory back.
    pub(super) fn recycle(&mut self, batch: Batch) {
        let mut buffer = batch.tail;
        if buffer.capacity() <= KEEP_BYTES {
            buffer.clear();
            self.spare = buffer;
        }
    }

    /// Forgets everything that is waiting.
    pub(super) fn clear(&mut self) {
        *self = Output::default();
    }
}

/// Frames that are being written.
#[derive(Debug)]
pub(super) struct Batch {
    whole: Vec<Bytes>,
    tail: BytesMut,
}

impl Batch {
    /// Writes all of it. Blocks, up to the stream's write time-out without any progress.
    pub(super) fn write_to(&self, mut stream: &TcpStream) -> io::Result<()> {
        for bytes in &self.whole {
            stream.write_all(bytes)?;
        }
        stream.write_all(&self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reparto_protocol::{FrameStream, Outcome, TaskResult, limits};

    fn result(id: u64) -> Message<'static> {
        Message::TaskResult(TaskResult {
            id,
            outcome: Outcome::Done,
            message: "",
            service_ns: None,
            payload: &[],
        })
    }

    #[test]
    fn frames_keep_their_order_whether_copied_or_shared() {
        let mut output = Output::default();
        for (id, size) in [(1, 10), (2, SHARE_FROM_BYTES), (3, 0), (4, 3 * SHARE_FROM_BYTES), (5, 7)] {
            output.push_with(&result(id), Bytes::from(vec![id as u8; size]));
        }
        let announced = output.len();
        let batch = output.take();
        assert!(output.is_empty());
        let mut wire: Vec<u8> = batch.whole.concat();
        wire.extend_from_slice(&batch.tail);
        assert_eq!(wire.len(), announced);

        let mut stream = FrameStream::new(limits::DEFAULT_MAX_FRAME_BYTES);
        stream.push(&wire);
        for id in 1..=5u64 {
            let frame = stream.next_frame().unwrap().unwrap();
            assert_eq!(frame.as_frame().id, id);
            assert!(frame.payload().iter().all(|byte| u64::from(*byte) == id));
        }
        assert_eq!(stream.next_frame().unwrap(), None);
    }
}
