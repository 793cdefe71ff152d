//! What a wire format has to offer to be driven: a codec for clients and, where workers take part, one for workers,
//! both batch by batch.

use super::{Output, RawError};

/// Least bytes of payload: where the wire has no number for a task that a client can choose, the payload's first
/// eight bytes carry it.
pub const MIN_PAYLOAD_BYTES: usize = 8;

/// The name of the action that every task asks for.
pub(super) const ACTION: &str = "echo";

/// A wire format, as far as clients speak it.
pub trait ClientProtocol: Sync {
    /// Its name, for errors.
    fn name(&self) -> &'static str;

    /// The codec of client number `number`, whose tasks have payloads of `size` bytes.
    fn client(&self, number: usize, size: usize) -> Box<dyn ClientCodec>;

    /// Bytes that a frame has at most beside its payload.
    fn overhead_bytes(&self) -> usize {
        4096
    }
}

/// A wire format that workers speak as well.
pub trait Protocol: ClientProtocol {
    /// The codec of worker number `number`, for payloads of `size` bytes.
    fn worker(&self, number: usize, size: usize) -> Box<dyn WorkerCodec>;
}

/// A client's side of a wire format. It numbers its tasks as it likes; numbers come back with the answers.
pub trait ClientCodec: Send {
    /// Writes what a client says first.
    fn greet(&mut self, output: &mut Output);

    /// The server has answered the greeting.
    fn ready(&self) -> bool;

    /// Writes a task for each of these numbers.
    fn tasks(&mut self, ids: &[u64], output: &mut Output);

    /// Takes the whole frames at the beginning of `input`: adds the numbers of answered tasks to `done`, writes
    /// answers that the protocol wants to `output`, and gives the bytes taken.
    ///
    /// # Errors
    /// Bytes that make no sense, a refusal, a result of the wrong size. The connection is of no use then.
    fn read(&mut self, input: &[u8], output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError>;
}

/// A worker's side of a wire format.
pub trait WorkerCodec: Send {
    /// Writes what a worker says first.
    fn greet(&mut self, output: &mut Output);

    /// The server has answered the greeting: it may send tasks.
    fn ready(&self) -> bool;

    /// Takes the whole frames at the beginning of `input`, writes a result for every task among them, and gives
    /// the bytes taken.
    ///
    /// # Errors
    /// Bytes that make no sense, or a refusal. The connection is of no use then.
    fn read(&mut self, input: &[u8], output: &mut Output) -> Result<usize, RawError>;
}

/// Writes so many tasks that have no number on the wire, each between these bytes.
pub(super) fn put_payloads(head: &[u8], tail: &[u8], count: usize, output: &mut Output) {
    for _ in 0..count {
        output.put(head);
        output.put_payload(0);
        output.put(tail);
    }
}

/// Counts a number of ASCII digits up; after nines come zeros.
pub(super) fn count_up(digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        if *digit != b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
}
