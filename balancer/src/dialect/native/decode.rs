//! From the native dialect's frames to events: which frame may come when, and what it asks for.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{
    DropTask, ErrorCode, Fetch, Frame, FrameError, FrameType, HEADER_BYTES, Hello, ListTasks, Message,
    Outcome, Register, RetryTask, Role, Task, TaskResult, frame_length, limits,
};

use super::{Session, State};
use crate::dialect::{Answer, Context, Listener, Refusal, Step};
use crate::scheduler::{AssignmentId, Event, Finish, Payload, Peer, Registration, Submission};

impl Session {
    /// The length of the frame that begins `buffer`, as far as it is known.
    ///
    /// # Errors
    /// A header that is none, or that may not come now.
    pub fn frame_bytes(&self, context: &Context, buffer: &[u8]) -> Result<usize, Refusal> {
        let limit = self.frame_limit(context);
        let length = frame_length(buffer, limit)?.unwrap_or(HEADER_BYTES);
        if buffer.len() >= HEADER_BYTES {
            Frame::parse(buffer, limit)?;
            if let Some(kind) = FrameType::from_byte(buffer[4]) {
                self.admit(kind)?;
            }
        }
        Ok(length)
    }

    /// Takes the frame that begins at `from` in `chunk`.
    ///
    /// # Errors
    /// Bytes that are no frame, or a frame that may not come now.
    #[inline]
    pub fn decode<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        from: &mut usize,
    ) -> Result<Step<'a>, Refusal> {
        let Some((frame, length)) = Frame::parse(&chunk[*from..], self.frame_limit(context))? else {
            return Ok(Step::Incomplete);
        };
        *from += length;
        match (self.state, frame.kind) {
            (State::Client, FrameType::Task) => Ok(submit(peer, chunk, &Task::decode(&frame)?)),
            (State::Worker, FrameType::TaskResult) => Ok(finished(peer, chunk, &TaskResult::decode(&frame)?)),
            (_, kind) => {
                self.admit(kind)?;
                self.take(context, peer, chunk, Message::decode(&frame)?)
            }
        }
    }

    /// Before HELLO a peer is a stranger, and HELLO is small.
    #[inline]
    fn frame_limit(&self, context: &Context) -> u32 {
        match self.state {
            State::New => limits::MIN_MAX_FRAME_BYTES,
            _ => context.max_frame_bytes,
        }
    }

    /// Whether a frame of this type may come now.
    #[inline]
    fn admit(&self, kind: FrameType) -> Result<(), FrameError> {
        use FrameType::{
            Cancel, Drain, DropTask, Fetch, Hello, ListTasks, Ping, Pong, Progress, Register, RetryTask,
            Status, Task, TaskResult,
        };
        let when = match (self.state, kind) {
            (
                State::Client,
                Task | Cancel | Status | Fetch | ListTasks | RetryTask | DropTask | Ping | Pong,
            )
            | (State::Worker, TaskResult | Progress | Register | Drain | Ping | Pong)
            | (State::Unregistered, Register | Ping | Pong)
            | (State::New, Hello) => return Ok(()),
            (State::New, _) => "before HELLO",
            (_, Hello) => "twice on a connection",
            (State::Client, _) => "from a client",
            (State::Unregistered, TaskResult | Progress | Drain) => "before REGISTER",
            (State::Unregistered | State::Worker, _) => "from a worker",
        };
        Err(FrameError::Unexpected { frame: kind, when })
    }

    #[inline]
    fn take<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        message: Message<'a>,
    ) -> Result<Step<'a>, Refusal> {
        Ok(match message {
            Message::Task(task) => submit(peer, chunk, &task),
            Message::TaskResult(result) => finished(peer, chunk, &result),
            Message::Progress(m) => Step::Event(Event::Progress {
                peer,
                assignment: AssignmentId(m.id),
                done: m.done,
                total: m.total,
                payload: Payload::within(chunk, m.payload),
            }),
            Message::Cancel(m) if m.task_id.is_some() => {
                if m.id == 0 {
                    return Err(FrameError::NoId { frame: FrameType::Cancel }.into());
                }
                no_store(m.id)
            }
            Message::Cancel(m) => Step::Event(Event::Cancel { peer, id: m.id }),
            Message::Ping(m) => Step::Answer(Answer::Pong(m.id), None),
            Message::Pong(_) => Step::Nothing,
            Message::Hello(hello) => self.hello(context, peer, &hello)?,
            Message::Register(register) => {
                self.state = State::Worker;
                Step::Event(Event::Register { peer, registration: registration(&register) })
            }
            Message::Drain(m) => Step::Event(Event::Drain { peer, request: m.id, resume: m.resume }),
            Message::Status(m) => {
                Step::Answer(Answer::Status { id: m.id, offset: m.offset, limit: m.limit }, None)
            }
            Message::Fetch(Fetch { id, .. })
            | Message::ListTasks(ListTasks { id, .. })
            | Message::RetryTask(RetryTask { id, .. })
            | Message::DropTask(DropTask { id, .. }) => no_store(id),
            // What only a balancer sends was turned away by its type.
            Message::Welcome(_)
            | Message::GoAway(_)
            | Message::Error(_)
            | Message::StatusReport(_)
            | Message::Accepted(_)
            | Message::TaskState(_)
            | Message::TaskList(_)
            | Message::Result(_)
            | Message::Ack(_)
            | Message::AssignTask(_) => Step::Nothing,
        })
    }

    fn hello<'a>(&mut self, context: &Context, peer: Peer, hello: &Hello<'_>) -> Result<Step<'a>, Refusal> {
        match (hello.role, self.listener) {
            (Role::Client, Listener::Clients) => {
                self.state = State::Client;
                Ok(Step::Answer(Answer::Welcome, Some(Event::ClientJoined { peer })))
            }
            (Role::Worker, Listener::Workers) => {
                self.state = State::Unregistered;
                Ok(Step::Answer(Answer::Welcome, None))
            }
            (Role::Worker, Listener::Clients) => Err(Refusal::new(
                ErrorCode::BadFrame,
                format!("this address is for clients; workers connect to {}", context.workers),
            )),
            (Role::Client, Listener::Workers) => Err(Refusal::new(
                ErrorCode::BadFrame,
                format!("this address is for workers; clients connect to {}", context.clients),
            )),
        }
    }
}

#[inline]
fn submit<'a>(peer: Peer, chunk: &'a Bytes, task: &Task<'a>) -> Step<'a> {
    let options = &task.options;
    if options.background || options.record {
        return no_store(task.id);
    }
    Step::Event(Event::Submit {
        peer,
        task: Submission {
            id: task.id,
            action: task.action,
            payload: Payload::within(chunk, task.payload),
            priority: options.priority.unwrap_or(limits::DEFAULT_PRIORITY),
            deadline: options.deadline_ms.map(Duration::from_millis),
            wait: options.wait_ms.map(Duration::from_millis),
            key: options.key.unwrap_or(&[]),
            max_attempts: options.max_attempts.unwrap_or(limits::DEFAULT_MAX_ATTEMPTS),
        },
    })
}

#[inline]
fn finished<'a>(peer: Peer, chunk: &'a Bytes, result: &TaskResult<'a>) -> Step<'a> {
    let finish = match result.outcome {
        Outcome::Done => Finish::Done,
        Outcome::Failed => Finish::Failed(result.message),
        Outcome::Retry => Finish::Retry(result.message),
        Outcome::NotRun => Finish::NotRun,
    };
    Step::Event(Event::Finished {
        peer,
        assignment: AssignmentId(result.id),
        finish,
        service_ns: result.service_ns,
        payload: Payload::within(chunk, result.payload),
    })
}

fn registration<'a>(register: &Register<'a>) -> Registration<'a> {
    Registration {
        request: register.id,
        worker_id: register.worker_id,
        threads: register.threads,
        window: register.window,
        weight: register.weight,
        service_ns: register.service_ns,
        held: register.held.iter().collect(),
        actions: register.actions.iter().collect(),
    }
}

fn no_store<'a>(id: u64) -> Step<'a> {
    let message = "this balancer has no store for background tasks";
    Step::Answer(Answer::Failed { id, code: ErrorCode::StoreUnavailable, message }, None)
}
