//! Durations and sizes as people write them, `500ms` or `16MiB`, for flags, variables and configuration files.

use std::time::Duration;

/// Units of time and how many seconds they have.
const TIME_UNITS: [(&str, f64); 6] =
    [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];

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
    let (number, unit) = split_number(text.trim());
    let hint = "write a number and a unit, such as 500ms, 5s or 1m";
    let value: f64 = number.parse().map_err(|_| format!("'{text}' is not a duration; {hint}"))?;
    if unit.is_empty() && value != 0.0 {
        return Err(format!("'{text}' has no unit; {hint}"));
    }
    let seconds = match TIME_UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, seconds)) => *seconds,
        None if unit.is_empty() => 0.0,
        None => return Err(format!("'{unit}' is not a unit of time; {hint}")),
    };
    Duration::try_from_secs_f64(value * seconds).map_err(|_| format!("'{text}' is too long a time"))
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
