//! What `submit`, `repl` and `status` share: the balancer's addresses, connecting, and saying what failed.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use reparto_client::{Client, ClientError, ConnectError, ConnectFailure};

/// Everything succeeded.
pub(crate) const EXIT_OK: u8 = 0;
/// A task, or a question to the balancer, failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Wrong usage; clap uses the same.
pub(crate) const EXIT_USAGE: u8 = 2;
/// No balancer could be reached.
pub(crate) const EXIT_NO_BALANCER: u8 = 3;

/// Which balancer to talk to.
#[derive(clap::Args, Debug)]
pub(crate) struct BalancerArgs {
    /// A balancer's address for clients. Give several, and the first that answers serves, the others stand by.
    #[arg(
        long = "balancer",
        value_name = "HOST:PORT",
        env = "REPARTO_BALANCER",
        value_delimiter = ',',
        value_parser = crate::parse::address,
        default_value = "127.0.0.1:8888"
    )]
    pub(crate) balancers: Vec<String>,
}

impl BalancerArgs {
    /// Connects, and says on standard error what failed when it does not.
    ///
    /// # Errors
    /// The exit code that fits.
    pub(crate) fn connect(&self, reconnect_for: Duration) -> Result<Client, ExitCode> {
        let client = Client::builder()
            .balancers(self.balancers.iter().map(|address| address.trim()))
            .agent(concat!("reparto/", env!("CARGO_PKG_VERSION")))
            .reconnect_for(reconnect_for)
            .connect();
        client.map_err(|error| {
            complain(&with_hint(&error));
            ExitCode::from(match error {
                ClientError::NoBalancer(_) => EXIT_NO_BALANCER,
                _ => EXIT_USAGE,
            })
        })
    }
}

/// The error's sentence, and what to try.
pub(crate) fn with_hint(error: &ClientError) -> String {
    match error {
        ClientError::NoBalancer(connect_error) => no_balancer(connect_error),
        other => other.to_string(),
    }
}

/// Why no balancer was found, and what to try.
pub(crate) fn no_balancer(error: &ConnectError) -> String {
    let failures = || error.attempts.iter().map(|attempt| &attempt.failure);
    let hint = if failures().any(|failure| matches!(failure, ConnectFailure::Resolve(_))) {
        "write an address as HOST:PORT, such as 127.0.0.1:8888"
    } else if failures().any(|failure| matches!(failure, ConnectFailure::Io(_))) {
        "start one with `reparto balancer`, or name another one with --balancer"
    } else {
        "is that address the balancer's one for clients?"
    };
    format!("{error}; {hint}")
}

/// Says on standard error what went wrong. Nobody may be reading there, which is no reason to fail.
pub(crate) fn complain(sentence: &str) {
    let _ = writeln!(io::stderr().lock(), "error: {}", printable(sentence));
}

/// Text from elsewhere, without what would drive a terminal: control characters other than line breaks and
/// tabs are written as escapes.
pub(crate) fn printable(text: &str) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(harmless) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmless(c) { safe.push(c) } else { safe.extend(c.escape_default()) }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(printable("red \x1b[31m\r\n\tand ñ"), "red \\u{1b}[31m\\r\n\tand ñ");
        assert_eq!(printable("plain"), "plain");
    }

    #[test]
    fn a_failed_connection_says_where_why_and_what_to_try() {
        let error = Client::connect(["not an address"]).unwrap_err();
        let sentence = with_hint(&error);
        assert!(sentence.starts_with("no balancer at not an address ("), "{sentence}");
        assert!(sentence.ends_with("write an address as HOST:PORT, such as 127.0.0.1:8888"), "{sentence}");
    }
}
