//! A client's settings, and the builder that collects them.

use std::time::Duration;

use crate::client::Client;
use crate::connect;
use crate::error::ClientError;

/// Tasks in flight at most, unless the builder says otherwise.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 65_536;

/// Bytes of requests not yet sent, or kept to be sent again, at most, unless the builder says otherwise: 256 MiB.
pub const DEFAULT_MAX_BUFFERED_BYTES: usize = 256 * 1024 * 1024;

/// Time for one address to take a connection, and as much again to greet, unless the builder says otherwise.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a lost balancer is looked for before what waits is given up, unless the builder says otherwise.
pub const DEFAULT_RECONNECT_FOR: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) addresses: Vec<String>,
    pub(crate) agent: String,
    pub(crate) token: Vec<u8>,
    pub(crate) connect_timeout: Duration,
    pub(crate) reconnect_for: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) max_buffered_bytes: usize,
}

/// Collects a client's settings; made by [`Client::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// # fn main() -> Result<(), reparto_client::ClientError> {
/// let client = reparto_client::Client::builder()
///     .balancer("10.0.0.1:8888")
///     .balancer("10.0.0.2:8888")
///     .reconnect_for(Duration::from_secs(120))
///     .max_in_flight(10_000)
///     .connect()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until connect() is called"]
pub struct ClientBuilder {
    config: Config,
}

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        ClientBuilder {
            config: Config {
                addresses: Vec::new(),
                agent: concat!("reparto-client/", env!("CARGO_PKG_VERSION")).into(),
                token: Vec::new(),
                connect_timeout: DEFAULT_CONNECT_TIMEOUT,
                reconnect_for: DEFAULT_RECONNECT_FOR,
                max_in_flight: DEFAULT_MAX_IN_FLIGHT,
                max_buffered_bytes: DEFAULT_MAX_BUFFERED_BYTES,
            },
        }
    }

    /// Adds an address of a balancer's clients' listener, `host:port`. With several, the client uses the first
    /// that answers, stays with it, and turns to the others when it is lost or goes away.
    pub fn balancer(mut self, address: impl Into<String>) -> Self {
        self.config.addresses.push(address.into());
        self
    }

    /// Adds several addresses, in their order.
    pub fn balancers(mut self, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.config.addresses.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// The name under which the balancer sees this client, up to 255 bytes; longer ones are cut.
    pub fn agent(mut self, name: impl Into<String>) -> Self {
        self.config.agent = name.into();
        self
    }

    /// The shared secret, where the balancer asks for one; up to 255 bytes.
    pub fn token(mut self, token: impl Into<Vec<u8>>) -> Self {
        self.config.token = token.into();
        self
    }

    /// Time for one address to take a connection, and as much again to greet. 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// How long a lost balancer is looked for. Tasks submitted meanwhile, and those that are safe to repeat,
    /// wait; after it they end with `connection_lost`. The next task submitted starts the search anew. 30 s by
    /// default; with zero every address is tried once.
    pub fn reconnect_for(mut self, time: Duration) -> Self {
        self.config.reconnect_for = time;
        self
    }

    /// Tasks in flight at most, at least 1; 65,536 by default. At the bound `submit` waits and `try_submit`
    /// answers [`ClientError::Full`].
    pub fn max_in_flight(mut self, tasks: usize) -> Self {
        self.config.max_in_flight = tasks.clamp(1, u32::MAX as usize);
        self
    }

    /// Bytes of requests not yet sent, or kept to be sent again, at most; 256 MiB by default. One task is always
    /// let through. At the bound `submit` waits and `try_submit` answers [`ClientError::Full`].
    pub fn max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.config.max_buffered_bytes = bytes;
        self
    }

    /// Connects to the first balancer that answers. Every address is tried once.
    ///
    /// # Errors
    /// [`ClientError::NoAddress`]; [`ClientError::Invalid`] for a token that is too long;
    /// [`ClientError::NoBalancer`] with what happened at each address.
    pub fn connect(self) -> Result<Client, ClientError> {
        connect::first(self.config)
    }
}
