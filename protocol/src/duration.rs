//! Times as people write them, `500ms`, `5s` or `1m`: on the command line, in files, and in tasks that are written by
//! hand.

use std::time::Duration;

/// Units of time and how many seconds they have.
const UNITS: [(&str, f64); 6] =
    [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];

/// What a right one looks like.
const HINT: &str = "write a number and a unit, such as 500ms, 5s or 1m";

/// A text is no time: a sentence that says what is wrong with it, and what a right one looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotADuration(String);

impl std::fmt::Display for NotADuration {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for NotADuration {}

/// Reads a time: a number, whole or with a fraction, and its unit `us`, `ms`, `s`, `m`, `h` or `d`.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(reparto_protocol::parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
/// assert!(reparto_protocol::parse_duration("5").is_err_and(|error| error.to_string().contains("no unit")));
/// ```
///
/// # Errors
/// [`NotADuration`] says what is wrong.
pub fn parse_duration(text: &str) -> Result<Duration, NotADuration> {
    let wrong = |reason: String| Err(NotADuration(reason));
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit = unit.trim();
    let Ok(value) = number.parse::<f64>() else {
        return wrong(format!("'{text}' is not a duration; {HINT}"));
    };
    if unit.is_empty() && value != 0.0 {
        return wrong(format!("'{text}' has no unit; {HINT}"));
    }
    let seconds = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, seconds)) => *seconds,
        None if unit.is_empty() => 0.0,
        None => return wrong(format!("'{unit}' is not a unit of time; {HINT}")),
    };
    Duration::try_from_secs_f64(value * seconds)
        .map_err(|_| NotADuration(format!("'{text}' is too long a time")))
}
