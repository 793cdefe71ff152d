//! Unique ids and reducers as keys: what a worker is told of both travels in the task's key.
//!
//! ```text
//!  unique                                     jobs of one function and unique id share a run
//!  unique NUL reducer                         the same, with a reducer
//!  "-" NUL NUL SHA-256 of the payload         unique "-": the payload is the unique id
//!  NUL reducer NUL count                      no unique id, so it shares with nobody
//! ```

use sha2::{Digest, Sha256};

/// The unique id by which the payload stands for itself.
pub(super) const PAYLOAD_ITSELF: &[u8] = b"-";

/// A key for jobs whose payload is their unique id.
pub(super) fn of_payload(payload: &[u8]) -> Box<[u8]> {
    let mut key = b"-\0\0".to_vec();
    key.extend_from_slice(&Sha256::digest(payload));
    key.into()
}

/// A key for a job with a reducer and, perhaps, a unique id. `count` is another one for each job.
pub(super) fn with_reducer(unique: &[u8], reducer: &[u8], count: u64) -> Box<[u8]> {
    let mut key = [unique, b"\0", reducer].concat();
    if unique.is_empty() {
        key.push(0);
        key.extend_from_slice(count.to_string().as_bytes());
    }
    key.into()
}

/// The unique id and the reducer in a key.
pub(super) fn parts(key: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = key.split(|byte| *byte == 0);
    (parts.next().unwrap_or(&[]), parts.next().unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_told_what_the_client_gave() {
        assert_eq!(parts(b"order-17"), (&b"order-17"[..], &b""[..]));
        assert_eq!(parts(b""), (&b""[..], &b""[..]));
        assert_eq!(parts(&of_payload(b"anything")), (&b"-"[..], &b""[..]));
        assert_eq!(parts(&with_reducer(b"u", b"sum", 7)), (&b"u"[..], &b"sum"[..]));
        assert_eq!(parts(&with_reducer(b"", b"sum", 7)), (&b""[..], &b"sum"[..]));
    }

    #[test]
    fn what_must_share_a_run_has_the_same_key_and_nothing_else_has() {
        assert_eq!(of_payload(b"a"), of_payload(b"a"));
        assert_ne!(of_payload(b"a"), of_payload(b"b"));
        assert_eq!(with_reducer(b"u", b"sum", 7), with_reducer(b"u", b"sum", 8));
        assert_ne!(with_reducer(b"", b"sum", 7), with_reducer(b"", b"sum", 8));
    }
}
