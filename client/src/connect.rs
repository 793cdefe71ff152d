//! Finding a balancer: opening a connection, greeting, trying one address after the other, and trying again.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use reparto_protocol::{ErrorCode, Frame, Hello, Message, Role, frame_length, limits};

use crate::client::Client;
use crate::completer::{Finished, deliver};
use crate::config::Config;
use crate::connection;
use crate::error::{ClientError, ConnectAttempt, ConnectError, ConnectFailure};
use crate::shared::{Owner, Shared};
use crate::sync::{locked, wait_until};

/// Socket addresses tried for one name at most.
const MAX_RESOLVED: usize = 16;

/// The first pause between two rounds over all addresses; it doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// The longest pause between two rounds.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// A heartbeat or silence shorter than this is taken as this, so that no balancer can make a client spin.
const SHORTEST_BEAT: Duration = Duration::from_millis(20);

/// A connection whose balancer has greeted.
pub(crate) struct Opened {
    pub(crate) stream: TcpStream,
    /// The largest frame that the balancer takes, in bytes, header included.
    pub(crate) max_frame_bytes: u32,
    /// It keeps tasks.
    pub(crate) has_store: bool,
    /// Silence after which a PING is due.
    pub(crate) heartbeat: Duration,
    /// Silence after a PING by which the balancer is lost.
    pub(crate) silence: Duration,
}

/// Makes a client with its first connection.
pub(crate) fn first(config: Config) -> Result<Client, ClientError> {
    if config.addresses.is_empty() {
        return Err(ClientError::NoAddress);
    }
    if config.token.len() > limits::MAX_TOKEN_BYTES {
        let why = format!("is {} bytes long, over {}", config.token.len(), limits::MAX_TOKEN_BYTES);
        return Err(ClientError::Invalid { what: "the token", why });
    }
    let (address_index, opened) = open_any(&config, 0)?;
    let shared = Arc::new(Shared::new(config));
    let owner = Arc::new(Owner { shared: Arc::clone(&shared) });
    adopt(&shared, address_index, opened);
    Ok(Client { owner })
}

/// Looks for a balancer until one is found, nothing waits for it any more, or the time for it is over. Runs on
/// a thread of its own while there is something to send and no connection.
pub(crate) fn look(shared: &Arc<Shared>) {
    let give_up_at = Instant::now().checked_add(shared.config.reconnect_for);
    let mut failed_rounds = 0;
    while let Some(preferred) = pause(shared, failed_rounds, give_up_at) {
        match open_any(&shared.config, preferred) {
            Ok((address_index, opened)) => {
                adopt(shared, address_index, opened);
                return;
            }
            Err(error) => {
                failed_rounds += 1;
                log::debug!("{error}");
                if give_up(shared, &error, give_up_at) {
                    return;
                }
            }
        }
    }
}

/// Waits before the next round, and says where to begin it; `None` when there is nothing left to look for.
fn pause(shared: &Shared, failed_rounds: u32, give_up_at: Option<Instant>) -> Option<usize> {
    let mut state = locked(&shared.state);
    let until = Instant::now() + backoff(failed_rounds.max(state.short_lives));
    let until = give_up_at.map_or(until, |give_up_at| until.min(give_up_at));
    loop {
        if state.closed || !state.has_waiting() {
            state.connecting = false;
            return None;
        }
        let over;
        (state, over) = wait_until(&shared.changed, state, until);
        if over {
            return Some(state.preferred);
        }
    }
}

fn backoff(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let longest = FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(10)).min(MAX_BACKOFF);
    // Between half and the whole of it, so that clients who lost the same balancer do not return together.
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// After a round in vain: ends what has waited long enough, and tells whether to stop looking.
fn give_up(shared: &Shared, error: &ConnectError, give_up_at: Option<Instant>) -> bool {
    let now = Instant::now();
    let hopeless = error.attempts.iter().all(|attempt| attempt.failure.is_final());
    let over = hopeless || give_up_at.is_some_and(|at| now >= at);
    let mut finished = Finished::new();
    let mut state = locked(&shared.state);
    state.expire_waiting(now, &mut finished);
    if over {
        state.fail_waiting(ErrorCode::ConnectionLost, &error.to_string(), &mut finished);
        state.connecting = false;
        state.unreachable = Some(error.clone());
    }
    shared.room_was_made(&state);
    drop(state);
    deliver(finished);
    over
}

/// Takes a connection into use: what waits is sent, and its two threads start.
fn adopt(shared: &Arc<Shared>, address_index: usize, opened: Opened) {
    let stream = Arc::new(opened.stream);
    let mut finished = Finished::new();
    let mut state = locked(&shared.state);
    state.connecting = false;
    if state.closed {
        return;
    }
    let (max_frame_bytes, has_store) = (opened.max_frame_bytes, opened.has_store);
    let number = state.adopt(Arc::clone(&stream), address_index, max_frame_bytes, has_store, &mut finished);
    let clocks = state.link(number).map(|link| (Arc::clone(&link.writer), link.written_clock()));
    shared.room_was_made(&state);
    drop(state);
    deliver(finished);
    log::debug!("connected to the balancer at {}", shared.config.addresses[address_index]);
    let Some((writer, written)) = clocks else { return };
    let in_force = connection::Limits {
        max_frame_bytes: opened.max_frame_bytes.saturating_add(limits::RELAY_SLACK_BYTES),
        heartbeat: opened.heartbeat,
        silence: opened.silence,
    };
    if let Err(error) = connection::start(shared, number, &stream, writer, written, in_force) {
        shared.lose(number, &format!("no thread could be started for the connection: {error}"));
    }
}

/// Tries every address once, beginning with a preferred one.
fn open_any(config: &Config, preferred: usize) -> Result<(usize, Opened), ConnectError> {
    let count = config.addresses.len();
    let mut attempts = Vec::with_capacity(count);
    for step in 0..count {
        let index = (preferred + step) % count;
        let address = &config.addresses[index];
        match open(address, config) {
            Ok(opened) => return Ok((index, opened)),
            Err(failure) => attempts.push(ConnectAttempt { address: address.clone(), failure }),
        }
    }
    Err(ConnectError { attempts })
}

fn open(address: &str, config: &Config) -> Result<Opened, ConnectFailure> {
    let resolved = address.to_socket_addrs().map_err(|error| ConnectFailure::Resolve(error.to_string()))?;
    let mut failure = ConnectFailure::Resolve("the name has no address".into());
    for socket_address in resolved.take(MAX_RESOLVED) {
        match TcpStream::connect_timeout(&socket_address, config.connect_timeout) {
            Ok(stream) => return greet(stream, config),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// Says HELLO and waits for WELCOME.
fn greet(mut stream: TcpStream, config: &Config) -> Result<Opened, ConnectFailure> {
    stream.set_nodelay(true)?;
    let until = Instant::now() + config.connect_timeout;
    let mut bytes = BytesMut::new();
    Message::Hello(Hello {
        version: limits::VERSION,
        role: Role::Client,
        features: 0,
        agent: &config.agent,
        token: &config.token,
    })
    .encode(&mut bytes);
    stream.set_write_timeout(Some(config.connect_timeout))?;
    stream.write_all(&bytes)?;
    stream.set_write_timeout(None)?;

    let no_greeting = || ConnectFailure::NoGreeting(config.connect_timeout.as_millis());
    let answer = read_frame(&mut stream, until, no_greeting)?;
    let protocol_error = |error: reparto_protocol::FrameError| ConnectFailure::Protocol(error.to_string());
    let (frame, _) = Frame::parse(&answer, limits::MIN_MAX_FRAME_BYTES)
        .map_err(protocol_error)?
        .ok_or(ConnectFailure::Closed)?;
    let welcome = match Message::decode(&frame).map_err(protocol_error)? {
        Message::Welcome(welcome) => welcome,
        Message::Error(error) => {
            return Err(ConnectFailure::Refused { code: error.code, message: error.message.into() });
        }
        Message::GoAway(away) => {
            return Err(ConnectFailure::Refused {
                code: ErrorCode::ShuttingDown,
                message: away.message.into(),
            });
        }
        _ => return Err(ConnectFailure::Protocol(format!("it greets with {}", frame.kind))),
    };
    if welcome.version != limits::VERSION {
        return Err(ConnectFailure::Protocol(format!(
            "it chose version {}, and this client speaks {}",
            welcome.version,
            limits::VERSION
        )));
    }
    let beat = |ms: u32| Duration::from_millis(ms.into()).max(SHORTEST_BEAT);
    Ok(Opened {
        stream,
        max_frame_bytes: welcome.max_frame_bytes.min(limits::MAX_MAX_FRAME_BYTES),
        has_store: welcome.features & limits::FEATURE_BACKGROUND != 0,
        heartbeat: beat(welcome.heartbeat_ms),
        silence: beat(welcome.silence_ms),
    })
}

/// Reads exactly one frame, so that nothing of what follows it is taken from the stream.
fn read_frame(
    stream: &mut TcpStream,
    until: Instant,
    too_late: impl Fn() -> ConnectFailure,
) -> Result<Vec<u8>, ConnectFailure> {
    let mut bytes = vec![0; 4];
    let mut filled = 0;
    loop {
        if filled == bytes.len() {
            let total = frame_length(&bytes, limits::MIN_MAX_FRAME_BYTES)
                .map_err(|error| ConnectFailure::Protocol(error.to_string()))?;
            match total {
                Some(total) if total > filled => bytes.resize(total, 0),
                _ => return Ok(bytes),
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_late());
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(ConnectFailure::Closed),
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if connection::is_timeout(&error) => return Err(too_late()),
            Err(error) => return Err(error.into()),
        }
    }
}
