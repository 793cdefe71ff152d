//! A client without the library, which would hide an answer that comes twice: it counts every frame that comes for its
//! tasks. Foreground tasks only, and as many connections as are lost.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use reparto_client::{ErrorCode, TaskFailure, TaskOutcome};
use reparto_protocol::{
    Cancel, FrameStream, Hello, Message, OwnedFrame, Pong, Role, Task, TaskOptions, limits,
};

use super::clients::{PATIENCE, Shared};
use super::plan::{Kind, LOCAL_ACTIONS, Plan};

/// Tasks in flight at most.
const MOST_IN_FLIGHT: usize = 100;
/// How long a read may wait.
const READ_FOR: Duration = Duration::from_millis(20);
/// Time between two tries to connect.
const CONNECT_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Time that every task's first assignment may take.
const WAIT_MS: u64 = 24 * 3600 * 1000;

/// The client.
pub(super) struct Wire {
    pub(super) shared: Arc<Shared>,
    /// Where balancers take clients.
    pub(super) addresses: Vec<String>,
    pub(super) random: Rng,
}

/// Why a connection is over.
enum Over {
    /// It ended, or was never made.
    Lost,
    /// The run is over and everything is answered.
    Done,
}

struct Connection<'a> {
    shared: &'a Shared,
    stream: TcpStream,
    frames: FrameStream,
    /// What is in flight, by its number on this connection, and since when.
    open: HashMap<u64, (Plan, Instant)>,
    next_id: u64,
    is_welcome: bool,
    /// Which balancer it is to, from 0.
    balancer: usize,
}

impl Wire {
    /// Works until told to stop; what is in flight then is waited for.
    pub(super) fn run(mut self) {
        loop {
            if let Over::Done = self.connection() {
                return;
            }
            if self.shared.stops() {
                return;
            }
            std::thread::sleep(CONNECT_AGAIN_AFTER);
        }
    }

    fn connection(&mut self) -> Over {
        let balancer = self.random.usize(..self.addresses.len());
        let Ok(stream) = TcpStream::connect(&self.addresses[balancer]) else { return Over::Lost };
        if stream.set_read_timeout(Some(READ_FOR)).is_err() || stream.set_nodelay(true).is_err() {
            return Over::Lost;
        }
        let most = limits::DEFAULT_MAX_FRAME_BYTES + limits::RELAY_SLACK_BYTES;
        let mut connection = Connection {
            shared: &self.shared,
            stream,
            frames: FrameStream::new(most),
            open: HashMap::new(),
            next_id: 0,
            is_welcome: false,
            balancer,
        };
        let over = connection.run(&mut self.random);
        let reason = TaskFailure::new(ErrorCode::ConnectionLost, "the connection has ended");
        for (plan, _) in connection.open.into_values() {
            self.shared.books.answered(&plan, &Err(reason.clone()));
        }
        over
    }
}

impl Connection<'_> {
    fn run(&mut self, random: &mut Rng) -> Over {
        let hello =
            Hello { version: limits::VERSION, role: Role::Client, features: 0, agent: "crash", token: b"" };
        if self.send(&Message::Hello(hello)).is_err() {
            return Over::Lost;
        }
        let mut buffer = vec![0; 256 << 10];
        loop {
            let stops = self.shared.stops();
            if stops && self.open.is_empty() {
                return Over::Done;
            }
            // Another task now and then, so that the connection is seldom idle and seldom full.
            let is_due = self.is_welcome && !stops && self.open.len() < MOST_IN_FLIGHT;
            if is_due && random.u8(..3) > 0 && self.submit().is_err() {
                return Over::Lost;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Over::Lost,
                Ok(count) => self.frames.push(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Over::Lost,
            }
            loop {
                match self.frames.next_frame() {
                    Ok(Some(frame)) => {
                        if self.take(&frame).is_err() {
                            return Over::Lost;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.shared.books.violate(None, format!("the balancer sent no frame: {error}"));
                        return Over::Lost;
                    }
                }
            }
            self.look_for_the_forgotten();
        }
    }

    fn send(&mut self, message: &Message<'_>) -> std::io::Result<()> {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.stream.write_all(&bytes)
    }

    fn submit(&mut self) -> std::io::Result<()> {
        let mut plan = self.shared.next();
        plan.kind = Kind::Foreground;
        self.next_id += 1;
        let options = TaskOptions {
            priority: Some(plan.priority),
            max_attempts: Some(plan.max_attempts),
            wait_ms: Some(WAIT_MS),
            ..TaskOptions::default()
        };
        self.shared.books.submitted(&plan);
        let (id, payload, action) = (self.next_id, plan.payload(), plan.action);
        let is_cancelled = plan.cancel_after.is_some();
        if is_cancelled {
            self.shared.books.cancel_asked(&plan);
        }
        self.open.insert(id, (plan, Instant::now()));
        self.send(&Message::Task(Task { id, action, options, payload: &payload }))?;
        if is_cancelled {
            self.send(&Message::Cancel(Cancel { id, task_id: None, recall: false }))?;
        }
        Ok(())
    }

    fn take(&mut self, frame: &OwnedFrame) -> std::io::Result<()> {
        let borrowed = frame.as_frame();
        match Message::decode(&borrowed) {
            Ok(Message::Welcome(_)) => self.is_welcome = true,
            Ok(Message::Ping(ping)) => self.send(&Message::Pong(Pong { id: ping.id }))?,
            Ok(Message::Result(result)) => {
                self.answered(result.id, Ok(Bytes::copy_from_slice(result.payload)))
            }
            // About the connection, which ends with it.
            Ok(Message::Error(error)) if error.id == 0 => {}
            Ok(Message::Error(error)) => {
                self.answered(error.id, Err(TaskFailure::new(error.code, error.message)));
            }
            Ok(Message::GoAway(_) | Message::Pong(_)) => {}
            Ok(other) => {
                self.shared.books.violate(None, format!("a frame came that nobody asked for: {other:?}"));
            }
            Err(error) => self.shared.books.violate(None, format!("a frame cannot be read: {error}")),
        }
        Ok(())
    }

    /// An answer must be for a task that waits for one.
    fn answered(&mut self, id: u64, outcome: TaskOutcome) {
        match self.open.remove(&id) {
            Some((plan, _)) => {
                let home = LOCAL_ACTIONS.iter().position(|action| *action == plan.action);
                if outcome.is_ok() && home.is_some_and(|home| home != self.balancer) {
                    self.shared.books.count("foreground results that came from another balancer");
                }
                self.shared.books.answered(&plan, &outcome);
            }
            None if id <= self.next_id => {
                let words = outcome
                    .map_or_else(|failure| failure.to_string(), |result| format!("{} bytes", result.len()));
                self.shared
                    .books
                    .violate(None, format!("task {id} of a connection was answered a second time: {words}"));
            }
            None => self.shared.books.violate(None, format!("an answer came for {id}, which was never sent")),
        }
    }

    fn look_for_the_forgotten(&mut self) {
        let forgotten: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, (_, since))| since.elapsed() > PATIENCE)
            .map(|(id, _)| *id)
            .collect();
        for id in forgotten {
            if let Some((plan, _)) = self.open.remove(&id) {
                let what = format!("no answer after {} s, though its connection lives", PATIENCE.as_secs());
                self.shared.books.violate(Some(plan.number), what);
            }
        }
    }
}
