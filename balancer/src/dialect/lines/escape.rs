//! How bytes travel in a line of text: all as they are, but for those that would end the line, and those that are no text.
//!
//! | bytes | in a line |
//! |---|---|
//! | a backslash | `\\` |
//! | a line feed | `\n` |
//! | a carriage return | `\r` |
//! | a byte that is no part of UTF-8 | `\x` and two hexadecimal digits |

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use crate::dialect::Output;
use crate::scheduler::Payload;

/// Appends bytes, escaped.
pub(super) fn escape(bytes: &[u8], out: &mut BytesMut) {
    for chunk in bytes.utf8_chunks() {
        escape_text(chunk.valid(), out);
        for byte in chunk.invalid() {
            out.put_slice(&[b'\\', b'x', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
    }
}

fn escape_text(text: &str, out: &mut BytesMut) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| needs_escape(*byte)) {
        out.put_slice(&rest[..at]);
        out.put_slice(match rest[at] {
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\\\",
        });
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

/// Appends a payload, escaped; where nothing in it needs that, as it is, so that a large one is not copied.
pub(super) fn escape_payload(payload: Payload<'_>, out: &mut Output) {
    let bytes = payload.as_slice();
    if std::str::from_utf8(bytes).is_ok() && !bytes.iter().any(|byte| needs_escape(*byte)) {
        out.payload(payload);
    } else {
        escape(bytes, out.buffer());
    }
}

/// The bytes that a text stands for.
///
/// # Errors
/// A backslash that begins no escape: a sentence that names it.
pub(super) fn unescape(text: &str) -> Result<Cow<'_, [u8]>, String> {
    let Some(first) = text.find('\\') else { return Ok(Cow::Borrowed(text.as_bytes())) };
    let mut bytes = Vec::with_capacity(text.len());
    bytes.extend_from_slice(&text.as_bytes()[..first]);
    let mut rest = &text[first..];
    while let Some(escape) = rest.strip_prefix('\\') {
        let (byte, taken) = match escape.as_bytes() {
            [b'\\', ..] => (b'\\', 1),
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b'x', high, low, ..] => match (hex_value(*high), hex_value(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => return Err(no_escape(rest)),
            },
            _ => return Err(no_escape(rest)),
        };
        bytes.push(byte);
        // The escape is ASCII, so a character begins behind it.
        rest = &escape[taken..];
        let next = rest.find('\\').unwrap_or(rest.len());
        bytes.extend_from_slice(&rest.as_bytes()[..next]);
        rest = &rest[next..];
    }
    Ok(Cow::Owned(bytes))
}

fn no_escape(rest: &str) -> String {
    let shown: String = rest.chars().take(4).collect();
    format!("'{shown}' is no escape; write \\\\ for a backslash, \\n, \\r, or \\x and two hexadecimal digits")
}

fn needs_escape(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | b'\\')
}

fn hex_digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value & 15)]
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(bytes: &[u8]) -> String {
        let mut out = BytesMut::new();
        escape(bytes, &mut out);
        String::from_utf8(out.to_vec()).expect("what is escaped is text")
    }

    #[test]
    fn every_byte_value_comes_back_and_a_line_stays_one() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        let line = escaped(&all);
        assert!(!line.contains(['\n', '\r']));
        assert_eq!(unescape(&line).expect("our own escapes"), all);
    }

    #[test]
    fn text_stays_as_people_write_it() {
        assert_eq!(escaped("año\tä €".as_bytes()), "año\tä €");
        assert_eq!(escaped(b"a\nb\r\\c"), r"a\nb\r\\c");
        assert_eq!(escaped(b"\xff\xc3"), r"\xff\xc3");
        assert!(matches!(unescape("plain"), Ok(Cow::Borrowed(b"plain"))));
        assert_eq!(unescape(r"\xC3\xb1").expect("hexadecimal"), "ñ".as_bytes());
    }

    #[test]
    fn a_backslash_that_begins_no_escape_is_named() {
        for wrong in [r"C:\temp", r"end\", r"\x4", r"\xg0", r"\x", r"\ñ"] {
            assert!(unescape(wrong).is_err_and(|sentence| sentence.contains("is no escape")), "{wrong}");
        }
    }

    #[test]
    fn a_large_payload_is_passed_on_without_a_copy_where_nothing_needs_an_escape() {
        let large = bytes::Bytes::from(vec![b'a'; 100_000]);
        let mut out = Output::default();
        escape_payload(Payload::from(&large), &mut out);
        let mut slices = [std::io::IoSlice::new(&[]); 2];
        out.slices(&mut slices);
        assert_eq!(slices[0].as_ptr(), large.as_ptr());
    }
}
