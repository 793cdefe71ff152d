//! A connection to PostgreSQL: how it is opened, what is set on it, and what its errors mean.

use std::collections::HashMap;
use std::time::Duration;

use postgres::config::{Host, SslMode};
use postgres::error::SqlState;
use postgres::{Client, Config, GenericClient, NoTls, Statement};

use crate::storage::store::StoreError;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which the other side is asked whether it is there; it is asked three times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may stay unacknowledged by the other host.
const UNACKNOWLEDGED: Duration = Duration::from_secs(6);

/// What is set on every connection. The server's keepalive is what tells it that a balancer's host is gone, so that
/// the lock of that balancer becomes free. Commits that a server-wide setting would not wait for are waited for.
const SETTINGS: &str = "
    SET client_min_messages = warning;
    SET tcp_keepalives_idle = 3;
    SET tcp_keepalives_interval = 1;
    SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 6000;
    SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '15s';
    SET timezone = 'UTC';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
";

/// Where a database is, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Address {
    config: Config,
    /// For messages: without the password.
    pub(super) place: String,
}

impl Address {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub(super) fn parse(url: &str) -> Result<Address, StoreError> {
        let wrong = |place: &str, reason: String| StoreError::Open { place: place.to_owned(), reason };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            let hint = "a database is named as postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned();
            return Err(wrong("the database", hint));
        }
        let mut config: Config = url.parse().map_err(|error| {
            wrong("the database", format!("its URL cannot be read: {}", describe(&error)))
        })?;
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            #[cfg(unix)]
            Some(Host::Unix(path)) => path.display().to_string(),
            _ => return Err(wrong("the database", "its URL names no host".to_owned())),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let place = format!("postgres://{host}:{port}/{}", config.get_dbname().unwrap_or_default());
        if config.get_ssl_mode() == SslMode::Require {
            let reason = "this reparto has no TLS for PostgreSQL; leave out sslmode=require, and reach the \
                          database over a private network or a tunnel";
            return Err(wrong(&place, reason.to_owned()));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        if config.get_application_name().is_none() {
            config.application_name("reparto");
        }
        config.ssl_mode(SslMode::Disable);
        config.keepalives(true).keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL).keepalives_retries(KEEPALIVE_RETRIES);
        config.tcp_user_timeout(UNACKNOWLEDGED);
        config.notice_callback(|notice| log::debug!("PostgreSQL: {}", notice.message()));
        Ok(Address { config, place })
    }

    /// Opens a connection.
    pub(super) fn connect(&self) -> Result<Session, StoreError> {
        let mut client = self.config.connect(NoTls).map_err(|error| match error.code() {
            Some(code) if is_for_good(code) => {
                StoreError::Open { place: self.place.clone(), reason: describe(&error) }
            }
            _ => self.error(&error),
        })?;
        client.batch_execute(SETTINGS).map_err(|error| self.error(&error))?;
        Ok(Session { client, statements: Statements::default() })
    }

    /// Opens a connection where there was one before: what keeps this one out now may be mended.
    pub(super) fn connect_again(&self) -> Result<Session, StoreError> {
        self.connect().map_err(|error| match error {
            StoreError::Open { place, reason } => {
                StoreError::Unavailable { reason: format!("{place}: {reason}") }
            }
            error => error,
        })
    }

    /// What an error means once there is a connection, or while there is none for the moment.
    pub(super) fn error(&self, error: &postgres::Error) -> StoreError {
        match error.code() {
            Some(&SqlState::DATA_CORRUPTED | &SqlState::INDEX_CORRUPTED) => {
                StoreError::Corrupt { place: self.place.clone(), reason: describe(error) }
            }
            _ => StoreError::Unavailable { reason: format!("{}: {}", self.place, describe(error)) },
        }
    }
}

/// Waiting would not help: a wrong password, an unknown database, a missing right.
fn is_for_good(code: &SqlState) -> bool {
    let code = code.code();
    code.starts_with("28") || code == SqlState::INVALID_CATALOG_NAME.code() || code == "42501"
}

/// An error with what it was caused by, which the crate's own text leaves out.
pub(super) fn describe(error: &postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return match error.hint() {
            Some(hint) => format!("{} ({hint})", error.message()),
            None => error.message().to_owned(),
        };
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Statements that a connection has prepared, by their text.
#[derive(Default)]
pub(super) struct Statements(HashMap<&'static str, Statement>);

impl Statements {
    /// Prepares a statement at its first use.
    pub(super) fn get(
        &mut self,
        client: &mut impl GenericClient,
        sql: &'static str,
    ) -> Result<Statement, postgres::Error> {
        if let Some(statement) = self.0.get(sql) {
            return Ok(statement.clone());
        }
        let statement = client.prepare(sql)?;
        self.0.insert(sql, statement.clone());
        Ok(statement)
    }
}

/// An open connection.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) statements: Statements,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        let address = Address::parse("postgres://ana:secret@db.example:6543/tasks").unwrap();
        assert_eq!(address.place, "postgres://db.example:6543/tasks");
    }

    #[test]
    fn a_wrong_url_is_told_what_is_right() {
        for (url, wanted) in [
            ("mysql://x/y", "postgres://USER:PASSWORD@HOST:PORT/DATABASE"),
            ("postgres://host:port/x", "cannot be read"),
            ("postgres:///x", "names no host"),
            ("postgres://ana:secret@host/x?sslmode=require", "has no TLS for PostgreSQL"),
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
