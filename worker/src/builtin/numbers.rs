//! The built-in actions about numbers and time: `fib`, `sum`, `sleep`.

use std::num::IntErrorKind;
use std::time::Duration;

use bytes::Bytes;

use super::{shown, text, trimmed};
use crate::task::{Task, TaskError};

/// The last Fibonacci number that 128 bits hold is this one.
const MAX_FIB: u32 = 186;
/// A day.
const MAX_SLEEP_MS: u64 = 24 * 3600 * 1000;

/// The n-th Fibonacci number, for n from 0 to 186.
///
/// # Errors
/// Anything else.
pub fn fib(task: &Task) -> Result<Bytes, TaskError> {
    let given = trimmed("fib", task)?;
    let Ok(n) = given.parse::<u32>() else {
        return Err(format!("fib: {} is not a whole number from 0 to {MAX_FIB}", shown(given)).into());
    };
    if n > MAX_FIB {
        return Err(format!("fib: {n} is over {MAX_FIB}, the last Fibonacci number of 128 bits").into());
    }
    let (mut this, mut next) = (0u128, 1u128);
    for _ in 0..n {
        // The one after the last overflows, and is not looked at.
        (this, next) = (next, this.wrapping_add(next));
    }
    Ok(text(this))
}

/// The sum of whole numbers that are separated by commas, within 128 bits.
///
/// # Errors
/// An item that is not a whole number, a sum that does not fit.
pub fn sum(task: &Task) -> Result<Bytes, TaskError> {
    let given = trimmed("sum", task)?;
    if given.is_empty() {
        let message = "sum: the payload is empty; give whole numbers separated by commas, such as 1,2,3";
        return Err(message.into());
    }
    let mut total = 0i128;
    for (index, item) in given.split(',').map(str::trim).enumerate() {
        let position = index + 1;
        let number: i128 = item.parse().map_err(|error: std::num::ParseIntError| {
            let what = match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "over 128 bits",
                _ => "not a whole number",
            };
            format!("sum: {} (item {position}) is {what}", shown(item))
        })?;
        total = total
            .checked_add(number)
            .ok_or_else(|| format!("sum: with {} (item {position}) the sum is over 128 bits", shown(item)))?;
    }
    Ok(text(total))
}

/// Waits as many milliseconds as the payload says, up to a day; wakes early when the task is cancelled.
///
/// # Errors
/// Not a number, over a day, or cancelled.
pub fn sleep(task: &Task) -> Result<Bytes, TaskError> {
    let given = trimmed("sleep", task)?;
    let Ok(ms) = given.parse::<u64>() else {
        return Err(format!("sleep: {} is not a number of milliseconds", shown(given)).into());
    };
    if ms > MAX_SLEEP_MS {
        return Err(format!("sleep: {ms} ms is over the limit of {MAX_SLEEP_MS} ms (a day)").into());
    }
    if task.cancellation().wait_timeout(Duration::from_millis(ms)) {
        return Err("cancelled".into());
    }
    Ok(text(format_args!("slept {ms} ms")))
}
