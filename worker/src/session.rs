//! A worker's life with one balancer: connect, greet, register, read until the connection ends, and again.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reparto_protocol::{
    AssignTask, Cancel, FrameError, FrameStream, FrameType, Hello, Message, OwnedFrame, Role, Welcome, limits,
};

use crate::actions::Action;
use crate::backoff::Backoff;
use crate::error::ConnectionError;
use crate::event::Event;
use crate::link::{Job, Link, Terms};
use crate::service_time::ServiceTime;
use crate::worker::Shared;

/// For each of a name's addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From HELLO to WELCOME.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a reader that waits looks whether the worker stops or the balancer is silent, at least.
const LOOK_AROUND: Duration = Duration::from_millis(250);
/// Bytes taken with one read.
const READ_BYTES: usize = 256 * 1024;
/// A connection that lasted this long was a good one: the next wait is short again.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// An ASSIGN_TASK may be larger than the TASK it was, which kept the balancer's limit, by the fields that the
/// balancer adds.
const ADDED_FIELDS_BYTES: u32 = 1024;
/// A balancer's heartbeat is taken for at least this.
const MIN_HEARTBEAT: Duration = Duration::from_millis(50);

/// Stays with the balancer of `slot` until the worker stops.
pub(crate) fn run(shared: &Shared, slot: usize) {
    let balancer = &shared.slots[slot].address;
    let mut backoff = Backoff::new();
    let mut service = ServiceTime::default();
    while !shared.is_stopping() {
        let began = Instant::now();
        let (registered, error) = match live(shared, slot, &mut service) {
            Ok((link, error)) => (link.is_registered(), error),
            Err(error) => (false, error),
        };
        if shared.is_stopping() {
            break;
        }
        if registered && began.elapsed() >= GOOD_AFTER {
            backoff.reset();
        }
        let retry_in = backoff.next();
        log::debug!("balancer {balancer}: {error}; next try in {retry_in:?}");
        let (balancer, error) = (balancer.clone(), Arc::new(error));
        shared.tell(&if registered {
            Event::Lost { balancer, error, retry_in }
        } else {
            Event::Refused { balancer, error, retry_in }
        });
        shared.wait_for_stop(retry_in);
    }
}

/// One connection, from its first byte to its last.
fn live(
    shared: &Shared,
    slot: usize,
    service: &mut ServiceTime,
) -> Result<(Arc<Link>, ConnectionError), ConnectionError> {
    let stream = connect(&shared.slots[slot].address)?;
    let (terms, stream_in) = greet(shared, &stream)?;
    stream.set_read_timeout(Some(LOOK_AROUND.min(terms.heartbeat))).map_err(ConnectionError::Io)?;
    stream.set_write_timeout(Some(terms.silence)).map_err(ConnectionError::Io)?;
    let link = Arc::new(Link::new(
        stream,
        terms,
        shared.slots[slot].tickets.clone(),
        *service,
        Arc::clone(&shared.slots[slot].held),
    ));
    let keeper = {
        let link = Arc::clone(&link);
        let name = format!("keeper-{slot}");
        std::thread::Builder::new().name(name).spawn(move || link.keep()).map_err(ConnectionError::Io)?
    };
    let error = match shared.install(slot, &link) {
        Ok(()) => read(shared, slot, &link, terms, stream_in),
        Err(error) => error,
    };
    link.close_telling(error);
    shared.slots[slot].set_current(None);
    *service = link.service();
    // It ends by itself now; its own panic was told by the panic hook.
    let _ = keeper.join();
    let reason = link.take_reason().unwrap_or(ConnectionError::Closed);
    Ok((link, reason))
}

fn connect(address: &str) -> Result<TcpStream, ConnectionError> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs().map_err(ConnectionError::Resolve)? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                // Output is gathered here already; waiting for more would only delay it.
                stream.set_nodelay(true).map_err(ConnectionError::Io)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(ConnectionError::Connect(last))
}

/// HELLO and WELCOME. Gives the terms, and the stream of frames that follows.
fn greet(shared: &Shared, mut stream: &TcpStream) -> Result<(Terms, FrameStream), ConnectionError> {
    stream.set_read_timeout(Some(LOOK_AROUND)).map_err(ConnectionError::Io)?;
    stream.set_write_timeout(Some(WELCOME_TIMEOUT)).map_err(ConnectionError::Io)?;
    let mut hello = BytesMut::new();
    Message::Hello(Hello {
        version: limits::VERSION,
        role: Role::Worker,
        features: 0,
        agent: concat!("reparto-worker/", env!("CARGO_PKG_VERSION")),
        token: &[],
    })
    .encode(&mut hello);
    stream.write_all(&hello).map_err(ConnectionError::Io)?;

    let mut frames = FrameStream::new(limits::MIN_MAX_FRAME_BYTES);
    let deadline = Instant::now() + WELCOME_TIMEOUT;
    let mut buffer = [0; 4096];
    let frame = loop {
        if let Some(frame) = frames.next_frame()? {
            break frame;
        }
        if shared.is_stopping() {
            return Err(ConnectionError::Left);
        }
        if Instant::now() >= deadline {
            return Err(ConnectionError::NoWelcome(WELCOME_TIMEOUT));
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(count) => frames.push(&buffer[..count]),
            Err(error) if is_patience(&error) => {}
            Err(error) => return Err(ConnectionError::Io(error)),
        }
    };
    let terms = match Message::decode(&frame.as_frame())? {
        Message::Welcome(welcome) => terms_of(&welcome, shared.window as usize)?,
        Message::Error(error) => {
            return Err(ConnectionError::Refused { code: error.code, message: error.message.to_owned() });
        }
        Message::GoAway(goaway) => return Err(ConnectionError::GoneAway(goaway.message.to_owned())),
        _ => {
            let when = "where a balancer must say WELCOME";
            return Err(FrameError::Unexpected { frame: frame.as_frame().kind, when }.into());
        }
    };
    let mut rest = FrameStream::new(terms.max_frame_bytes + ADDED_FIELDS_BYTES);
    rest.push(frames.buffer_mut());
    Ok((terms, rest))
}

fn terms_of(welcome: &Welcome<'_>, window: usize) -> Result<Terms, FrameError> {
    if welcome.version != limits::VERSION {
        return Err(FrameError::UnsupportedVersion(welcome.version));
    }
    let max_frame_bytes = welcome.max_frame_bytes;
    if !(limits::MIN_MAX_FRAME_BYTES..=limits::MAX_MAX_FRAME_BYTES).contains(&max_frame_bytes) {
        let (tag, value) = (reparto_protocol::Tag::MaxFrame, max_frame_bytes.into());
        return Err(FrameError::FieldRange { tag, value });
    }
    let heartbeat = Duration::from_millis(welcome.heartbeat_ms.into()).max(MIN_HEARTBEAT);
    let silence = Duration::from_millis(welcome.silence_ms.into()).max(heartbeat * 2);
    Ok(Terms { max_frame_bytes, heartbeat, silence, window })
}

/// A read that ended because its time was over or a signal came, and may be tried again.
fn is_patience(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Reads until the connection ends, and says why it did.
fn read(shared: &Shared, slot: usize, link: &Link, terms: Terms, frames: FrameStream) -> ConnectionError {
    let mut reader = Reader { shared, slot, link, frames, jobs: Vec::new(), goaway: None };
    let mut buffer = vec![0; READ_BYTES];
    let mut stream = link.stream();
    loop {
        // First what came with the WELCOME.
        if let Err(error) = reader.take_frames() {
            return error;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return reader.goaway.map_or(ConnectionError::Closed, ConnectionError::GoneAway),
            Ok(count) => {
                link.heard();
                reader.frames.push(&buffer[..count]);
            }
            Err(error) if is_patience(&error) => {
                if link.silent_for() >= terms.silence {
                    return ConnectionError::Silent(terms.silence);
                }
            }
            Err(error) => return ConnectionError::Io(error),
        }
    }
}

struct Reader<'a> {
    shared: &'a Shared,
    slot: usize,
    link: &'a Link,
    frames: FrameStream,
    /// Tasks of this read that the link does not have yet.
    jobs: Vec<Job>,
    /// What GOAWAY said, once it came.
    goaway: Option<String>,
}

impl Reader<'_> {
    /// Takes every whole frame that has come.
    fn take_frames(&mut self) -> Result<(), ConnectionError> {
        let (actions, former) = self.link.actions();
        let now = Instant::now();
        while let Some(frame) = self.frames.next_frame()? {
            match Message::decode(&frame.as_frame())? {
                Message::AssignTask(task) if task.held => self.link.take_up(task.id, task.task_id)?,
                Message::AssignTask(task) => {
                    let action = actions.get(task.action);
                    let action = action.or_else(|| former.as_ref()?.get(task.action));
                    self.take_task(&frame, &task, action, now)?;
                }
                other => {
                    // A CANCEL may speak of a task of the same read.
                    self.link.accept(&mut self.jobs)?;
                    self.take_other(&frame, other)?;
                }
            }
        }
        self.link.accept(&mut self.jobs)
    }

    fn take_task(
        &mut self,
        frame: &OwnedFrame,
        task: &AssignTask<'_>,
        action: Option<&Arc<Action>>,
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let Some(action) = action else { return self.link.refuse(task.id, task.action) };
        self.jobs.push(Job {
            id: task.id,
            action: Arc::clone(action),
            payload: frame.payload(),
            attempt: task.attempt,
            deadline: task.deadline_ms.and_then(|ms| now.checked_add(Duration::from_millis(ms))),
            key: task.key.map(Bytes::copy_from_slice),
            task_id: task.task_id,
        });
        Ok(())
    }

    fn take_other(&mut self, frame: &OwnedFrame, message: Message<'_>) -> Result<(), ConnectionError> {
        match message {
            Message::Cancel(Cancel { task_id: Some(task), .. }) => {
                self.link.forget(task);
                Ok(())
            }
            Message::Cancel(cancel) => self.link.cancel(cancel.id, cancel.recall),
            Message::Ping(ping) => self.link.pong(ping.id),
            Message::Pong(_) => Ok(()),
            Message::Ack(ack) => {
                if self.link.acknowledge(ack.id) {
                    let balancer = self.shared.slots[self.slot].address.clone();
                    self.shared.tell(&Event::Registered { balancer, window: ack.window });
                }
                Ok(())
            }
            Message::GoAway(goaway) => {
                self.goaway = Some(goaway.message.to_owned());
                Ok(())
            }
            Message::Error(error) if error.id == 0 => {
                Err(ConnectionError::Refused { code: error.code, message: error.message.to_owned() })
            }
            Message::Error(error) => {
                log::debug!("the balancer says of {}: {}: {}", error.id, error.code, error.message);
                Ok(())
            }
            _ => Err(unexpected(frame.as_frame().kind).into()),
        }
    }
}

fn unexpected(frame: FrameType) -> FrameError {
    FrameError::Unexpected { frame, when: "from a balancer to a registered worker" }
}

/// Says that nothing more will be sent. The balancer closes, and the reader sees it.
pub(crate) fn end_sending(link: &Link) {
    // It fails when the connection is gone already, which is as well.
    let _ = link.stream().shutdown(Shutdown::Write);
}
