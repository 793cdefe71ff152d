//! From the native dialect's frames to events: which frame may come when, and what it asks for.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{
    Cancel, ErrorCode, Frame, FrameError, FrameType, HEADER_BYTES, Hello, Message, Outcome, Register, Role,
    Task, TaskResult, frame_length, limits,
};

use super::{Results, Session, State, Tasks};
use crate::background::{Ask, NewBackgroundTask};
use crate::dialect::{Answer, Context, Listener, Refusal, Step};
use crate::scheduler::{AssignmentId, Event, Finish, Payload, Peer, ProgressKind, Registration, Submission};

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
    #[inline(always)]
    pub fn decode<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        from: &mut usize,
    ) -> Result<Step<'a>, Refusal> {
        let limit = self.frame_limit(context);
        match self.state {
            State::Client => {
                if let Some(tasks) = Tasks::begin(chunk, *from, limit) {
                    return Ok(Step::Tasks(tasks));
                }
            }
            State::Worker => {
                if let Some(results) = Results::begin(chunk, *from, limit) {
                    return Ok(Step::Results(results));
                }
            }
            State::New | State::Unregistered => {}
        }
        self.decode_any(context, peer, chunk, from)
    }

    /// Takes any frame.
    #[inline(never)]
    fn decode_any<'a>(
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
        self.admit(frame.kind)?;
        self.take(context, peer, chunk, Message::decode(&frame)?)
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

    fn take<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        message: Message<'a>,
    ) -> Result<Step<'a>, Refusal> {
        Ok(match message {
            Message::Task(task) => submit(context, peer, chunk, &task),
            Message::TaskResult(result) => finished(peer, chunk, &result),
            Message::Progress(m) => Step::Event(Event::Progress {
                peer,
                assignment: AssignmentId(m.id),
                kind: ProgressKind::Report,
                done: m.done,
                total: m.total,
                payload: Payload::within(chunk, m.payload),
            }),
            Message::Cancel(Cancel { id, task_id: Some(task), .. }) => {
                if id == 0 {
                    return Err(FrameError::NoId { frame: FrameType::Cancel }.into());
                }
                ask_store(context, Ask::Cancel { id, task })
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
            Message::Fetch(m) => {
                let wait = Duration::from_millis(m.wait_ms);
                ask_store(context, Ask::Fetch { id: m.id, task: m.task_id, wait, describe: m.describe })
            }
            Message::RetryTask(m) => ask_store(context, Ask::Retry { id: m.id, task: m.task_id }),
            Message::DropTask(m) => ask_store(context, Ask::Drop { id: m.id, task: m.task_id }),
            Message::ListTasks(m) => {
                let (action, state, since_ms) = (m.action.map(Box::from), m.state, m.since_ms);
                ask_store(
                    context,
                    Ask::List { id: m.id, action, state, since_ms, before: m.before, limit: m.limit },
                )
            }
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
            (Role::Worker, _) => Err(Refusal::new(
                ErrorCode::BadFrame,
                format!("this address is for clients; workers connect to {}", context.workers),
            )),
            (Role::Client, _) => Err(Refusal::new(
                ErrorCode::BadFrame,
                format!("this address is for workers; clients connect to {}", context.clients),
            )),
        }
    }
}

fn submit<'a>(context: &Context, peer: Peer, chunk: &'a Bytes, task: &Task<'a>) -> Step<'a> {
    let options = &task.options;
    if options.background || options.record {
        return submit_kept(context, chunk, task);
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
            announced: false,
        },
    })
}

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
        heartbeats: true,
        held: register.held.iter().collect(),
        actions: register.actions.iter().collect(),
    }
}

/// A task that the store is to keep.
#[inline(never)]
fn submit_kept<'a>(context: &Context, chunk: &Bytes, task: &Task<'_>) -> Step<'a> {
    if !context.has_store {
        return no_store(task.id);
    }
    let options = &task.options;
    let payload = Payload::within(chunk, task.payload).to_bytes();
    let usual = NewBackgroundTask::new(task.id, task.action, payload);
    Step::Ask(Ask::Submit(Box::new(NewBackgroundTask {
        record: options.record && !options.background,
        priority: options.priority.unwrap_or(limits::DEFAULT_PRIORITY),
        max_attempts: options.max_attempts.unwrap_or(limits::DEFAULT_MAX_ATTEMPTS),
        deadline: options.deadline_ms.map(Duration::from_millis),
        delay: options.delay_ms.map(Duration::from_millis),
        start_at_ms: options.start_at_ms,
        backoff_first_ms: options.backoff_first_ms.unwrap_or(usual.backoff_first_ms),
        backoff_most_ms: options.backoff_most_ms.unwrap_or(usual.backoff_most_ms),
        idempotency_key: Bytes::copy_from_slice(options.idempotency_key.unwrap_or(&[])),
        idempotency_window: options.idempotency_ms.map_or(usual.idempotency_window, Duration::from_millis),
        ..usual
    })))
}

/// A request that the store has a part in, if there is a store.
pub(in crate::dialect) fn ask_store<'a>(context: &Context, ask: Ask) -> Step<'a> {
    if context.has_store { Step::Ask(ask) } else { no_store(ask.id()) }
}

fn no_store<'a>(id: u64) -> Step<'a> {
    let message = "this balancer was started without a store (--no-data), and takes no background tasks";
    Step::Answer(Answer::Failed { id, code: ErrorCode::StoreUnavailable, message: message.into() }, None)
}
