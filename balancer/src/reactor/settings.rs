//! Everything about a balancer that can be set, with its default and its unit.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use reparto_protocol::limits;

use super::BalancerError;
use super::upstreams::MOST_UPSTREAMS;
use crate::background::StoreSettings;
use crate::dialect::Listener;
use crate::dialect::lines::Upstream;
use crate::scheduler::Config;

/// Most event loops of a balancer. Long before there are as many, the scheduler is what is waited for.
pub const MOST_REACTORS: usize = 64;

/// Most addresses that a balancer listens at.
pub(super) const MOST_LISTENERS: usize = 64;

/// A balancer's settings. Every bound on what a peer can make grow is here.
///
/// ```
/// use reparto_balancer::Settings;
/// let settings = Settings { max_connections: 100, ..Settings::default() };
/// assert_eq!(settings.clients.port(), 8888);
/// assert_eq!(settings.max_frame_bytes, 16 * 1024 * 1024);
/// ```
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where clients connect; port 0 picks a free one. Default 127.0.0.1:8888.
    pub clients: SocketAddr,
    /// Where workers connect; port 0 picks a free one. Default 127.0.0.1:8889.
    pub workers: SocketAddr,
    /// Where Gearman's clients, workers and operators connect; `None` for nowhere, the default. Usual is port 4730.
    pub gearman: Option<SocketAddr>,
    /// Where clients and workers connect that speak lines; none by default.
    pub lines: Vec<SocketAddr>,
    /// The action of lines that name none. Default `default`.
    pub lines_action: String,
    /// Servers that answer JSON lines, to connect to; none by default.
    pub upstreams: Vec<Upstream>,
    /// The scheduler's own settings. Its seed is random by default.
    pub scheduler: Config,
    /// Where background tasks are kept; `None` for nowhere: they are refused. Default `None`.
    pub store: Option<StoreSettings>,
    /// Event loops, each with a thread of its own, that connections are spread over; 1 to [`MOST_REACTORS`]. The
    /// scheduler lives on the first. Default 1.
    pub reactors: usize,
    /// Time that running tasks have to end when the balancer is told to stop. Default 10 s.
    pub grace: Duration,
    /// Largest frame taken, in bytes, header included. Default 16 MiB.
    pub max_frame_bytes: u32,
    /// Most connections at once, clients and workers together. One more is answered `overloaded`. Default 20,000.
    pub max_connections: usize,
    /// Most bytes of incomplete frames, over all connections. Past it the connection that holds the most is
    /// answered `overloaded`. Default 256 MiB.
    pub max_incomplete_bytes: usize,
    /// Time within which a frame that has begun must be whole, and a connection must have said HELLO (and a
    /// worker REGISTER). Default 30 s.
    pub frame_timeout: Duration,
    /// Unread output of a client, in bytes, from which on it is no longer read from, until it is down to half.
    /// Default 1 MiB.
    pub output_soft_bytes: usize,
    /// Unread output of a connection, in bytes, past which it is closed. Default 128 MiB: more than a worker
    /// may have in flight.
    pub output_hard_bytes: usize,
    /// Most unread output over all connections, in bytes. Past it a connection that does not read is closed
    /// as soon as it would get more. Default 1 GiB.
    pub max_output_bytes: usize,
    /// A connection that takes nothing of what waits for it for this long is closed. Default 60 s.
    pub write_timeout: Duration,
    /// Time that a closing connection has to take its last bytes and close its side. Default 2 s.
    pub linger: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            clients: ([127, 0, 0, 1], 8888).into(),
            workers: ([127, 0, 0, 1], 8889).into(),
            gearman: None,
            lines: Vec::new(),
            lines_action: "default".into(),
            upstreams: Vec::new(),
            scheduler: Config { seed: RandomState::new().build_hasher().finish(), ..Config::default() },
            store: None,
            reactors: 1,
            grace: Duration::from_secs(10),
            max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
            max_connections: 20_000,
            max_incomplete_bytes: 256 << 20,
            frame_timeout: limits::FRAME_TIMEOUT,
            output_soft_bytes: 1 << 20,
            output_hard_bytes: 128 << 20,
            max_output_bytes: 1 << 30,
            write_timeout: Duration::from_secs(60),
            linger: Duration::from_secs(2),
        }
    }
}

impl Settings {
    /// Sets the largest frame, and raises the bounds that must leave room for several of that size.
    pub fn set_max_frame(&mut self, bytes: u32) {
        self.max_frame_bytes = bytes;
        let frames = |count: usize| usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(count);
        self.max_incomplete_bytes = self.max_incomplete_bytes.max(frames(4));
        self.output_hard_bytes = self.output_hard_bytes.max(frames(4));
        self.max_output_bytes = self.max_output_bytes.max(frames(8));
    }

    /// Where the balancer listens, and for whom: for clients, for workers, then for what else there is.
    pub(super) fn listeners(&self) -> impl Iterator<Item = (Listener, SocketAddr)> {
        let gearman = self.gearman.map(|address| (Listener::Gearman, address));
        let lines = self.lines.iter().map(|address| (Listener::Lines, *address));
        let native = [(Listener::Clients, self.clients), (Listener::Workers, self.workers)];
        native.into_iter().chain(gearman).chain(lines)
    }

    /// Checks that the settings make sense together.
    ///
    /// # Errors
    /// [`BalancerError::Setting`] names the first that does not.
    pub fn check(&self) -> Result<(), BalancerError> {
        let wrong = |name, reason: String| Err(BalancerError::Setting { name, reason });
        if !(1..=MOST_REACTORS).contains(&self.reactors) {
            return wrong("reactors", format!("is {}, but must be 1 to {MOST_REACTORS}", self.reactors));
        }
        let range = limits::MIN_MAX_FRAME_BYTES..=limits::MAX_MAX_FRAME_BYTES;
        if !range.contains(&self.max_frame_bytes) {
            let (least, most) = (range.start(), range.end());
            return wrong("max_frame", format!("is {}, but must be {least} to {most}", self.max_frame_bytes));
        }
        let frame = usize::try_from(self.max_frame_bytes).unwrap_or(usize::MAX);
        for (name, bytes) in [
            ("max_incomplete_bytes", self.max_incomplete_bytes),
            ("output_hard_bytes", self.output_hard_bytes),
            ("max_output_bytes", self.max_output_bytes),
        ] {
            if bytes < frame {
                return wrong(name, format!("is {bytes} bytes, less than one frame of {frame} bytes"));
            }
        }
        if self.output_soft_bytes > self.output_hard_bytes {
            return wrong("output_soft_bytes", format!("is over the hard bound, {}", self.output_hard_bytes));
        }
        if self.max_connections == 0 {
            return wrong("max_connections", "is 0, so nobody could connect".into());
        }
        let listeners = self.listeners().count();
        if listeners > MOST_LISTENERS {
            return wrong("listeners", format!("are {listeners}, over the bound of {MOST_LISTENERS}"));
        }
        if !(1..=limits::MAX_ACTION_BYTES).contains(&self.lines_action.len()) {
            let (bytes, most) = (self.lines_action.len(), limits::MAX_ACTION_BYTES);
            return wrong("lines_action", format!("has {bytes} bytes, but must have 1 to {most}"));
        }
        if self.upstreams.len() > MOST_UPSTREAMS {
            return wrong(
                "upstream",
                format!("names {}, over the bound of {MOST_UPSTREAMS}", self.upstreams.len()),
            );
        }
        let mut names: Vec<String> = self.upstreams.iter().map(Upstream::name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong("upstream", format!("names {} twice; give it all its actions at once", twice[0]));
        }
        let Config { heartbeat, silence, max_tasks, .. } = self.scheduler;
        if heartbeat < Duration::from_millis(1) {
            return wrong("heartbeat", format!("is {heartbeat:?}, but must be a millisecond or more"));
        }
        if silence <= heartbeat {
            return wrong(
                "silence",
                format!("is {silence:?}, but must be longer than the heartbeat, {heartbeat:?}"),
            );
        }
        if max_tasks == 0 {
            return wrong("max_tasks", "is 0, so no task could be taken".into());
        }
        Ok(())
    }
}

/// Raises this process's limit on open files as far as it may go itself, and says where it stands then; `None`
/// where there is no such limit. Every connection is an open file.
pub fn raise_open_files_limit() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            if let Err(error) = setrlimit(Resource::Nofile, raised) {
                log::debug!("the limit on open files stays at {:?}: {error}", limit.current);
            }
        }
        getrlimit(Resource::Nofile).current
    }
    #[cfg(not(unix))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        assert!(Settings::default().check().is_ok());
    }

    #[test]
    fn a_large_frame_raises_the_bounds_that_must_hold_it() {
        let mut settings = Settings::default();
        settings.set_max_frame(1 << 30);
        assert!(settings.check().is_ok());
        assert!(settings.output_hard_bytes >= 1 << 30);
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let settings = Settings { max_frame_bytes: 100, ..Settings::default() };
        assert!(settings.check().is_err_and(|error| error.to_string().contains("max_frame is 100")));
        let settings = Settings { output_hard_bytes: 1 << 20, ..Settings::default() };
        assert!(settings.check().is_err_and(|error| error.to_string().contains("output_hard_bytes")));
        let scheduler = Config { silence: Duration::from_secs(1), ..Config::default() };
        let settings = Settings { scheduler, ..Settings::default() };
        assert!(settings.check().is_err_and(|error| error.to_string().contains("longer than the heartbeat")));
        let settings = Settings { reactors: 0, ..Settings::default() };
        assert!(settings.check().is_err_and(|error| error.to_string().contains("must be 1 to 64")));
        let settings = Settings { max_connections: 0, ..Settings::default() };
        assert!(settings.check().is_err_and(|error| error.to_string().contains("max_connections")));
    }
}
