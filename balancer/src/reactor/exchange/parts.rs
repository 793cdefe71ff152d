//! The texts and payloads of a batch, which its rows point into.

use bytes::Bytes;

use crate::dialect::SHARED_PAYLOAD_BYTES;
use crate::scheduler::Payload;

/// A batch's buffer that has grown beyond this is freed when the batch is emptied, in bytes.
const KEPT_BYTES: usize = 2 << 20;

/// What a buffer holds at most, so that 31 bits tell a place in it; beyond it, payloads are kept one by one. In
/// bytes.
const MOST_BYTES: usize = 1 << 30;

/// Marks a part as a number among the shared payloads.
const SHARED: u32 = 1 << 31;

/// Where some bytes of a batch lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    at: u32,
    bytes: u32,
}

/// Where a text of a batch lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    at: u32,
    bytes: u32,
}

/// The texts and payloads of a batch.
#[derive(Debug, Default)]
pub(super) struct Parts {
    bytes: Vec<u8>,
    /// Apart from the bytes, so that they need not be looked through again to be texts.
    text: String,
    shared: Vec<Bytes>,
    shared_bytes: usize,
}

impl Parts {
    /// Bytes that are held.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.text.len() + self.shared_bytes
    }

    /// Adds bytes, copied.
    #[inline]
    pub(super) fn add(&mut self, bytes: &[u8]) -> Part {
        let at = self.bytes.len();
        if at + bytes.len() > MOST_BYTES {
            return self.share(Bytes::copy_from_slice(bytes));
        }
        self.bytes.extend_from_slice(bytes);
        Part { at: at as u32, bytes: bytes.len() as u32 }
    }

    /// Adds a payload: copied when it is small, shared when it is not.
    #[inline]
    pub(super) fn add_payload(&mut self, payload: Payload<'_>) -> Part {
        if payload.len() < SHARED_PAYLOAD_BYTES {
            self.add(payload.as_slice())
        } else {
            self.share(payload.to_bytes())
        }
    }

    /// Adds bytes as they are.
    pub(super) fn share(&mut self, bytes: Bytes) -> Part {
        // A batch is full long before it holds 2^31 of them.
        let part = Part { at: SHARED | self.shared.len() as u32, bytes: bytes.len() as u32 };
        self.shared_bytes += bytes.len();
        self.shared.push(bytes);
        part
    }

    /// Adds a text. One that would be beyond what can be told apart is left out; no batch comes near that.
    #[inline]
    pub(super) fn add_text(&mut self, text: &str) -> Text {
        let at = self.text.len();
        if at + text.len() > MOST_BYTES {
            return Text { at: 0, bytes: 0 };
        }
        self.text.push_str(text);
        Text { at: at as u32, bytes: text.len() as u32 }
    }

    /// The bytes.
    #[inline]
    pub(super) fn get(&self, part: Part) -> &[u8] {
        if part.at & SHARED == 0 {
            &self.bytes[part.at as usize..][..part.bytes as usize]
        } else {
            &self.shared[(part.at & !SHARED) as usize]
        }
    }

    /// The payload, which shares its memory where that is shared here.
    #[inline]
    pub(super) fn payload(&self, part: Part) -> Payload<'_> {
        if part.at & SHARED == 0 {
            Payload::new(&self.bytes[part.at as usize..][..part.bytes as usize])
        } else {
            Payload::from(&self.shared[(part.at & !SHARED) as usize])
        }
    }

    /// The text.
    #[inline]
    pub(super) fn text(&self, text: Text) -> &str {
        &self.text[text.at as usize..][..text.bytes as usize]
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.text.clear();
        self.shared.clear();
        self.shared_bytes = 0;
        self.bytes.shrink_to(KEPT_BYTES);
        self.text.shrink_to(KEPT_BYTES);
        self.shared.shrink_to(KEPT_BYTES / SHARED_PAYLOAD_BYTES);
    }
}
