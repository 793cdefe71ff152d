//! The built-in actions about text and bytes: `echo`, `upper`, `reverse`, `greet`, `sha256`, `wc`.

use std::fmt::Write;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{text, trimmed};
use crate::task::{Task, TaskError};

/// The payload, unchanged and not copied.
///
/// # Errors
/// Never.
pub fn echo(task: &Task) -> Result<Bytes, TaskError> {
    Ok(task.payload().clone())
}

/// The payload in capitals; of bytes that are not UTF-8, only the ASCII letters.
///
/// # Errors
/// Never.
pub fn upper(task: &Task) -> Result<Bytes, TaskError> {
    Ok(match std::str::from_utf8(task.payload()) {
        Ok(text) => text.to_uppercase().into(),
        Err(_) => task.payload().to_ascii_uppercase().into(),
    })
}

/// The payload's characters from last to first; its bytes, when it is not UTF-8.
///
/// # Errors
/// Never.
pub fn reverse(task: &Task) -> Result<Bytes, TaskError> {
    Ok(match std::str::from_utf8(task.payload()) {
        Ok(text) => text.chars().rev().collect::<String>().into(),
        Err(_) => task.payload().iter().rev().copied().collect(),
    })
}

/// A greeting for the name in the payload.
///
/// # Errors
/// No name, or not UTF-8.
pub fn greet(task: &Task) -> Result<Bytes, TaskError> {
    match trimmed("greet", task)? {
        "" => Err("greet: the payload is empty; give a name, such as Ana".into()),
        name => Ok(text(format_args!("Hello, {name}!"))),
    }
}

/// The payload's SHA-256 digest, 64 hexadecimal digits.
///
/// # Errors
/// Never.
pub fn sha256(task: &Task) -> Result<Bytes, TaskError> {
    let digest = Sha256::digest(task.payload());
    let mut hex = String::with_capacity(2 * digest.len());
    for byte in digest {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex.into())
}

/// Line breaks, words and bytes of the payload, as `wc` counts them in the C locale.
///
/// # Errors
/// Never.
pub fn wc(task: &Task) -> Result<Bytes, TaskError> {
    let (mut lines, mut words, mut in_word) = (0u64, 0u64, false);
    for byte in task.payload() {
        lines += u64::from(*byte == b'\n');
        // Space, and tab to carriage return, which has the vertical tab in it.
        let blank = matches!(byte, b' ' | b'\t'..=b'\r');
        words += u64::from(!blank && !in_word);
        in_word = !blank;
    }
    Ok(text(format_args!("{lines} {words} {}", task.payload().len())))
}
