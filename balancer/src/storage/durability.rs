//! When what is written counts as durable.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// When an answer is given: after the disk has it, or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Every commit is synced before it is answered: neither a crash nor a power failure loses what was accepted.
    #[default]
    Fsync,
    /// Commits are answered once the operating system has them, and synced once an interval: a crash of the
    /// process, SIGKILL included, loses nothing; a power failure may lose what was accepted in the last interval.
    Interval(Duration),
}

/// The longest interval.
const LONGEST: Duration = Duration::from_secs(60);

/// A text is no durability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no durability: say fsync, or interval: and a time from 1ms to 60s, such as interval:50ms")]
pub struct NotADurability(String);

impl FromStr for Durability {
    type Err = NotADurability;

    fn from_str(text: &str) -> Result<Self, NotADurability> {
        let wrong = || NotADurability(text.chars().take(60).collect());
        if text == "fsync" {
            return Ok(Durability::Fsync);
        }
        let time = text.strip_prefix("interval:").ok_or_else(wrong)?;
        let (number, unit) = match time.strip_suffix("ms") {
            Some(number) => (number, Duration::from_millis(1)),
            None => (time.strip_suffix('s').ok_or_else(wrong)?, Duration::from_secs(1)),
        };
        let number: u32 = number.parse().map_err(|_| wrong())?;
        match unit.checked_mul(number) {
            Some(interval) if !interval.is_zero() && interval <= LONGEST => {
                Ok(Durability::Interval(interval))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Durability::Fsync => formatter.write_str("fsync"),
            Durability::Interval(interval) => write!(formatter, "interval:{}ms", interval.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durability_reads_back_from_its_text() {
        for text in ["fsync", "interval:50ms", "interval:1ms"] {
            assert_eq!(text.parse::<Durability>().unwrap().to_string(), text);
        }
        assert_eq!("interval:2s".parse(), Ok(Durability::Interval(Duration::from_secs(2))));
    }

    #[test]
    fn a_wrong_durability_is_told_what_is_right() {
        for text in ["", "none", "interval:", "interval:0ms", "interval:61s", "interval:-1s", "interval:5"] {
            let error = text.parse::<Durability>().unwrap_err().to_string();
            assert!(error.contains("say fsync, or interval:"), "{error}");
        }
    }
}
