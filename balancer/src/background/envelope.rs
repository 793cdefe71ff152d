//! What a store keeps as a task's payload where there is more to be kept: a key in front of it.
//!
//! ```text
//!  16 bytes that say so | key's length, 16 bits, big-endian | key | payload
//! ```
//!
//! A task without a key has its payload as it is, unless that begins with the same 16 bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// What begins such a payload. No text begins so.
const MARK: [u8; 16] = *b"\0reparto key\0\r\n\x01";

/// Longest key, in bytes.
const MAX_KEY_BYTES: usize = u16::MAX as usize;

/// What is to be stored of a payload with this key, of which no more than 64 KiB are kept.
pub(super) fn wrap(key: &[u8], payload: Bytes) -> Bytes {
    if key.is_empty() && !payload.starts_with(&MARK) {
        return payload;
    }
    let key = &key[..key.len().min(MAX_KEY_BYTES)];
    let mut stored = BytesMut::with_capacity(MARK.len() + 2 + key.len() + payload.len());
    stored.put_slice(&MARK);
    stored.put_u16(key.len() as u16);
    stored.put_slice(key);
    stored.put_slice(&payload);
    stored.freeze()
}

/// The key and the payload of what was stored.
pub(super) fn unwrap(stored: Bytes) -> (Bytes, Bytes) {
    let head = MARK.len() + 2;
    let Some(rest) = stored.strip_prefix(&MARK) else { return (Bytes::new(), stored) };
    let Some([high, low]) = rest.first_chunk().copied() else { return (Bytes::new(), stored) };
    let end = head + usize::from(u16::from_be_bytes([high, low]));
    if end > stored.len() {
        return (Bytes::new(), stored);
    }
    (stored.slice(head..end), stored.slice(end..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrapped_is_unwrapped_whatever_it_begins_with() {
        for key in [&b""[..], b"unique", b"u\0reducer", &[7; 300]] {
            for payload in [&b""[..], b"hola", &MARK, &[&MARK[..], b"\0\x01x"].concat()] {
                let payload = Bytes::copy_from_slice(payload);
                let (got_key, got) = unwrap(wrap(key, payload.clone()));
                assert_eq!((&got_key[..], got), (key, payload));
            }
        }
    }

    #[test]
    fn a_task_without_a_key_has_its_payload_as_it_is() {
        let payload = Bytes::from_static(b"hola");
        assert_eq!(wrap(b"", payload.clone()).as_ptr(), payload.as_ptr());
        assert_eq!(unwrap(payload.clone()), (Bytes::new(), payload));
        let cut = Bytes::from_static(&MARK);
        assert_eq!(unwrap(cut.clone()), (Bytes::new(), cut), "one that somebody else has written");
    }
}
