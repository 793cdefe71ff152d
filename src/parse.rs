//! Durations, sizes and moments as people write them, `500ms`, `16MiB` or `2026-11-20T18:00`, for flags, variables and
//! configuration files.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Units of size and how many bytes they have. Matched without regard to case.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
];

/// Splits a text after its leading number.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

/// Reads a duration: a number, whole or with a fraction, and its unit `us`, `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// A sentence that says what is wrong with the text, and what a right one looks like.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    reparto_protocol::parse_duration(text).map_err(|error| error.to_string())
}

/// Reads a size in bytes: a whole number, alone or with a unit such as `KiB`, `MiB`, `GiB`, `KB`, `MB` or `GB`.
///
/// # Errors
/// A sentence that says what is wrong with the text, and what a right one looks like.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text.trim());
    let hint = "write a whole number of bytes, or one with a unit, such as 512KiB, 16MiB or 1GiB";
    let value: u64 = number.parse().map_err(|_| format!("'{text}' is not a size; {hint}"))?;
    let unit = unit.to_ascii_lowercase();
    let (_, bytes) = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("'{unit}' is not a unit of size; {hint}"))?;
    value.checked_mul(*bytes).ok_or_else(|| format!("'{text}' is more than can be counted"))
}

/// Reads a moment: a date, or a date and a time, here or with `Z` or another offset from UTC.
///
/// # Errors
/// A sentence that says what a right one looks like.
pub(crate) fn moment(text: &str) -> Result<SystemTime, String> {
    let text = text.trim();
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment.into());
    }
    let here = |moment: DateTime| moment.to_zoned(TimeZone::system()).map(|moment| moment.timestamp().into());
    text.parse::<DateTime>().and_then(here).map_err(|_| {
        format!("'{text}' is not a moment; write one such as 2026-11-20T18:00 (here) or 2026-11-20T18:00:00Z")
    })
}

/// Reads a moment in the past: as one, or as a time ago.
///
/// # Errors
/// A sentence that says what a right one looks like.
pub(crate) fn since(text: &str) -> Result<SystemTime, String> {
    match duration(text) {
        Ok(ago) => Ok(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)),
        Err(_) => moment(text).map_err(|error| format!("{error}, or a time ago, such as 90m")),
    }
}

/// A moment in milliseconds since 1970, UTC, as people read it here.
pub(crate) fn shown_moment(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(
        || format!("{ms} ms"),
        |moment| moment.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// Reads an address: a name or number, a colon, a port. Whether there is such a host is found out when it is called.
pub(crate) fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("'{text}' is not an address; write HOST:PORT, such as 127.0.0.1:8888")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration(" 1m "), Ok(Duration::from_secs(60)));
        assert_eq!(duration("1.5 s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn a_wrong_duration_says_what_is_wrong_with_it() {
        assert!(duration("5").is_err_and(|e| e.contains("has no unit")));
        assert!(duration("5 parsecs").is_err_and(|e| e.contains("'parsecs' is not a unit")));
        assert!(duration("soon").is_err_and(|e| e.contains("'soon' is not a duration")));
        assert!(duration("-1s").is_err());
        assert!(duration("1.2.3s").is_err());
        assert!(duration("99999999999999999999999d").is_err_and(|e| e.contains("too long")));
    }

    #[test]
    fn a_moment_is_read_with_an_offset_or_as_it_is_here() {
        let second = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(moment("1970-01-01T00:01:00Z"), Ok(second(60)));
        assert_eq!(moment("1970-01-01 02:00:05+02:00"), Ok(second(5)));
        for here in ["2026-11-20T18:00", "2026-11-20 18:00:00", "2026-11-20"] {
            let ms = moment(here).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
            assert!(shown_moment(ms as u64).starts_with("2026-11-20 "), "{here}");
        }
        for wrong in ["", "soon", "2026-13-01", "18:00"] {
            assert!(moment(wrong).is_err_and(|e| e.contains("2026-11-20T18:00:00Z")), "{wrong}");
        }
    }

    #[test]
    fn since_takes_a_time_ago_as_well() {
        let two_hours = Duration::from_secs(7200);
        let (before, read, after) = (SystemTime::now(), since("2h").unwrap(), SystemTime::now());
        assert!((before..=after).contains(&(read + two_hours)));
        assert_eq!(since("1970-01-01T00:00:05Z"), moment("1970-01-01T00:00:05Z"));
        assert!(since("soon").is_err_and(|e| e.contains("90m")));
    }

    #[test]
    fn a_moment_past_the_calendar_is_shown_as_a_number() {
        assert_eq!(shown_moment(u64::MAX), format!("{} ms", u64::MAX));
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(address(" lb1:8888"), Ok("lb1:8888".into()));
        assert_eq!(address("[::1]:8888"), Ok("[::1]:8888".into()));
        for wrong in ["lb1", ":8888", "lb1:", "lb1:http", "lb1:99999", ""] {
            assert!(address(wrong).is_err_and(|e| e.contains("write HOST:PORT")), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("512 kib"), Ok(512 << 10));
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
    }

    #[test]
    fn a_wrong_size_says_what_is_wrong_with_it() {
        assert!(size("").is_err_and(|e| e.contains("is not a size")));
        assert!(size("1.5MiB").is_err_and(|e| e.contains("whole number")));
        assert!(size("3 sheets").is_err_and(|e| e.contains("'sheets' is not a unit")));
        assert!(size("99999999999GiB").is_err_and(|e| e.contains("more than can be counted")));
    }
}
