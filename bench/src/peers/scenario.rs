//! Scenarios: so many connections with so many tasks in flight each, of such a size.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use indicatif::HumanCount;

use crate::raw::{Load, MIN_PAYLOAD_BYTES};

/// Most connections of a scenario.
const MAX_CONNECTIONS: usize = 256;

/// Largest window of a scenario, in tasks.
const MAX_WINDOW: usize = 65_536;

/// Largest payload, in bytes: what every server takes as it comes.
const MAX_SIZE: usize = 1_000_000;

/// A closed loop's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scenario {
    /// Client connections.
    pub connections: usize,
    /// Tasks in flight on each.
    pub window: usize,
    /// Bytes of each payload.
    pub size: usize,
}

impl Scenario {
    const fn new(connections: usize, window: usize, size: usize) -> Scenario {
        Scenario { connections, window, size }
    }

    /// Workers: two, and one where there is one connection.
    pub fn workers(self) -> usize {
        if self.connections == 1 { 1 } else { 2 }
    }

    /// A load of this shape.
    pub(crate) fn load(self, warm_up: Duration, duration: Duration) -> Load {
        let Scenario { connections, window, size } = self;
        Load { connections, window, size, warm_up, duration, ..Load::default() }
    }

    /// Those of every run.
    pub const ALL: [Scenario; 7] = [
        Scenario::new(1, 1, 64),
        Scenario::new(4, 1, 64),
        Scenario::new(4, 16, 64),
        Scenario::new(4, 128, 64),
        Scenario::new(4, 1024, 64),
        Scenario::new(4, 8, 65_536),
        Scenario::new(4, 2, 1_000_000),
    ];
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { connections, window, size } = *self;
        write!(f, "{connections} x {window}, {} bytes", HumanCount(size as u64))
    }
}

/// Reads `4x128x64`.
impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Scenario, String> {
        let hint = "write CONNECTIONSxWINDOWxBYTES, such as 4x128x64";
        let numbers: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
        let Ok(&[connections, window, size]) = numbers.as_deref() else {
            return Err(format!("'{text}' is not a scenario; {hint}"));
        };
        for (what, value, least, most) in [
            ("connections", connections, 1, MAX_CONNECTIONS),
            ("window", window, 1, MAX_WINDOW),
            ("bytes", size, MIN_PAYLOAD_BYTES, MAX_SIZE),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!("'{text}': {what} must be {least} to {most}; {hint}"));
            }
        }
        Ok(Scenario { connections, window, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_read_as_connections_window_and_bytes() {
        assert_eq!("4x128x64".parse(), Ok(Scenario::new(4, 128, 64)));
        assert_eq!(Scenario::new(4, 2, 1_000_000).to_string(), "4 x 2, 1,000,000 bytes");
    }

    #[test]
    fn a_wrong_scenario_says_what_is_wrong_with_it() {
        let refused = |text: &str| text.parse::<Scenario>().unwrap_err();
        assert!(refused("4x128").contains("such as 4x128x64"));
        assert!(refused("4xmanyx64").contains("'4xmanyx64' is not a scenario"));
        assert!(refused("0x1x64").contains("connections must be 1 to 256"));
        assert!(refused("1x1x4").contains("bytes must be 8 to 1000000"));
        assert!(refused("1x99999999999999999999x64").contains("is not a scenario"));
    }
}
