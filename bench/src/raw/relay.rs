//! Frames for servers that pass bytes on and know nothing of tasks: the floor that any server stands on.
//!
//! A frame has a 16-byte header, as Reparto's have, so that as many bytes travel: a length of what follows its own
//! four bytes, four bytes of nothing, and the task's number. Whoever listens behind the relay sends the bytes back.

use super::{ClientCodec, ClientProtocol, Output, Protocol, RawError, WorkerCodec};

const HEADER_BYTES: usize = 16;

/// Frames that are echoed as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Relay;

impl ClientProtocol for Relay {
    fn name(&self) -> &'static str {
        "relay"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        let mut head = [0; HEADER_BYTES];
        let length = u32::try_from(HEADER_BYTES - 4 + size).unwrap_or(u32::MAX);
        head[..4].copy_from_slice(&length.to_be_bytes());
        Box::new(Client { head, size })
    }
}

impl Protocol for Relay {
    /// A worker that connects, for a relay that connects neither side; the usual ones listen, see
    /// [`EchoServers`](super::EchoServers).
    fn worker(&self, _number: usize, _size: usize) -> Box<dyn WorkerCodec> {
        Box::new(Worker)
    }
}

struct Client {
    head: [u8; HEADER_BYTES],
    size: usize,
}

impl ClientCodec for Client {
    fn greet(&mut self, _output: &mut Output) {}

    fn ready(&self) -> bool {
        true
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        for id in ids {
            self.head[8..].copy_from_slice(&id.to_be_bytes());
            output.put(&self.head);
            output.put_payload(0);
        }
    }

    fn read(&mut self, input: &[u8], _output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((header, rest)) = input[taken..].split_first_chunk::<HEADER_BYTES>() {
            let [l0, l1, l2, l3, _, _, _, _, id @ ..] = *header;
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            let payload = (length + 4).checked_sub(HEADER_BYTES);
            if payload != Some(self.size) {
                return Err(RawError::WrongSize { got: payload.unwrap_or(0), sent: self.size });
            }
            if rest.len() < self.size {
                break;
            }
            done.push(u64::from_be_bytes(id));
            taken += HEADER_BYTES + self.size;
        }
        Ok(taken)
    }
}

struct Worker;

impl WorkerCodec for Worker {
    fn greet(&mut self, _output: &mut Output) {}

    fn ready(&self) -> bool {
        true
    }

    fn read(&mut self, input: &[u8], output: &mut Output) -> Result<usize, RawError> {
        output.put_input(input, 0..input.len());
        Ok(input.len())
    }
}
