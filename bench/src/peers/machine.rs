//! What a run's figures hang on: the machine and the day.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine, and how busy it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// The operating system and its kernel's release.
    pub system: String,
    /// Load averages over 1, 5 and 15 minutes when the run began.
    pub load: String,
    /// The day it began, in UTC.
    pub date: String,
}

impl Machine {
    /// Looks at this machine. What it does not tell is `unknown`.
    pub fn look() -> Machine {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let loads: Vec<&str> = loads.split_whitespace().take(3).collect();
        let known = |text: String| if text.is_empty() { "unknown".to_owned() } else { text };
        Machine {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: known(model.map(|(_, name)| name.trim().to_owned()).unwrap_or_default()),
            system: format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned(),
            load: known(loads.join(", ")),
            date: date(SystemTime::now()),
        }
    }
}

/// The UTC date, as 2026-01-31.
fn date(moment: SystemTime) -> String {
    let mut days = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn days_are_told_as_dates() {
        let at = |days: u64| date(UNIX_EPOCH + Duration::from_secs(days * 86_400 + 86_399));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(59), "1970-03-01");
        assert_eq!(at(11_016), "2000-02-29");
        assert_eq!(at(20_453), "2025-12-31");
        assert_eq!(at(20_454), "2026-01-01");
    }

    #[test]
    fn a_machine_has_at_least_one_core() {
        assert!(Machine::look().cores >= 1);
    }
}
