//! What the commands of a client share: the balancer's addresses, connecting, results on standard output, and saying
//! what failed.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use reparto_client::{Client, ClientError, ConnectError, ConnectFailure, ErrorCode, TaskFailure};

/// Everything succeeded.
pub(crate) const EXIT_OK: u8 = 0;
/// A task, or a question to the balancer, failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Wrong usage; clap uses the same.
pub(crate) const EXIT_USAGE: u8 = 2;
/// No balancer could be reached.
pub(crate) const EXIT_NO_BALANCER: u8 = 3;
/// The task has not ended yet.
pub(crate) const EXIT_NOT_ENDED: u8 = 4;
/// No task is known by that id.
pub(crate) const EXIT_UNKNOWN_TASK: u8 = 5;

/// A balancer that is lost on the way is looked for this long.
pub(crate) const RECONNECT_FOR: Duration = Duration::from_secs(30);

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

/// Says why the balancer did not do what it was asked, and gives the exit code that fits. `about` begins the sentence
/// if it is not empty.
pub(crate) fn refused(client: &Client, about: &str, failure: &TaskFailure) -> ExitCode {
    if let Some(error) = client.unreachable().filter(|_| failure.code == ErrorCode::ConnectionLost) {
        complain(&no_balancer(&error));
        return ExitCode::from(EXIT_NO_BALANCER);
    }
    let about = if about.is_empty() { String::new() } else { format!("{about}: ") };
    complain(&format!("{about}{failure}{}", hint(client, failure.code)));
    ExitCode::from(if failure.code == ErrorCode::NotFound { EXIT_UNKNOWN_TASK } else { EXIT_FAILED })
}

/// What to try where a balancer keeps no tasks.
pub(crate) const NO_STORE_HINT: &str =
    "; it was started with --no-data: background tasks need one with --data DIR";

/// The balancer that is connected keeps no tasks.
pub(crate) fn no_store(client: &Client) -> bool {
    client.is_connected() && !client.has_store()
}

/// What to try, where the failure alone does not say it.
fn hint(client: &Client, code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::StoreUnavailable if no_store(client) => NO_STORE_HINT,
        ErrorCode::NotFound => {
            "; a result is removed after the balancer's --keep-results, or by `reparto dead drop`"
        }
        _ => "",
    }
}

/// Prints a result alone, exactly as the worker gave it.
pub(crate) fn print_alone(result: &[u8]) -> ExitCode {
    let mut output = io::stdout().lock();
    let mut written = output.write_all(result);
    // On a terminal the prompt should not stand behind the result; everywhere else every byte counts.
    if output.is_terminal() && !result.ends_with(b"\n") {
        written = written.and_then(|()| output.write_all(b"\n"));
    }
    conclude_output(written.and_then(|()| output.flush()))
}

/// The exit code after everything was written. That nobody reads any more is no failure.
pub(crate) fn conclude_output(written: io::Result<()>) -> ExitCode {
    match written {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(EXIT_OK),
        Err(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
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
