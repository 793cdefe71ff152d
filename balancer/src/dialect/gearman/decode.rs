//! From packets and text commands to events: what each asks for.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reparto_protocol::{ErrorCode, limits};

use super::handle::{Handle, number_of};
use super::packet::{
    HEADER_BYTES, Header, Kind, MAX_FUNCTION_BYTES, MAX_HANDLE_BYTES, MAX_UNIQUE_BYTES, number,
    only_argument, put, put_error, take_argument,
};
use super::runs::submission;
use super::{MAX_ASKED, MAX_LINE_BYTES, Question, Request, Session, key};
use crate::background::{Ask, NewBackgroundTask};
use crate::dialect::{Answer, Context, OwnedEvent, OwnedTask, Refusal, Step};
use crate::scheduler::{Event, Finish, Payload, Peer, ProgressKind, Pull, Submission};

/// The priority of jobs submitted as high, and as low. What lies between is for tasks of other dialects.
const HIGH: u8 = limits::MAX_PRIORITY;
const LOW: u8 = 0;

/// Why a job failed whose worker said only that it did.
pub(super) const PLAIN_FAILURE: &str = "its worker says that it failed";

/// A run may take this long at least, as with gearmand.
const LEAST_RUN: Duration = Duration::from_secs(1);

/// An ERROR for a request that cannot be met, after which the connection lives on.
pub(super) struct Failure(&'static str, Cow<'static, str>);

impl From<Failure> for Step<'_> {
    fn from(Failure(code, text): Failure) -> Self {
        let mut out = BytesMut::new();
        put_error(&mut out, code, &text);
        Step::Answer(Answer::Raw(out.freeze()), None)
    }
}

/// How a job was submitted.
#[derive(Clone, Copy)]
struct Form {
    priority: u8,
    background: bool,
    /// What stands between the unique id and the payload.
    extra: Extra,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Extra {
    Nothing,
    Epoch,
    Reducer,
}

impl Form {
    fn of(kind: Kind) -> Option<Form> {
        let form = |priority, background, extra| Some(Form { priority, background, extra });
        let usual = limits::DEFAULT_PRIORITY;
        match kind {
            Kind::SubmitJob => form(usual, false, Extra::Nothing),
            Kind::SubmitJobBg => form(usual, true, Extra::Nothing),
            Kind::SubmitJobHigh => form(HIGH, false, Extra::Nothing),
            Kind::SubmitJobHighBg => form(HIGH, true, Extra::Nothing),
            Kind::SubmitJobLow => form(LOW, false, Extra::Nothing),
            Kind::SubmitJobLowBg => form(LOW, true, Extra::Nothing),
            Kind::SubmitJobEpoch => form(usual, true, Extra::Epoch),
            Kind::SubmitReduceJob => form(usual, false, Extra::Reducer),
            Kind::SubmitReduceJobBackground => form(usual, true, Extra::Reducer),
            _ => None,
        }
    }
}

/// A job, as the arguments of its submission give it.
struct Job<'a> {
    action: &'a str,
    unique: &'a [u8],
    reducer: &'a [u8],
    /// When it may begin, in milliseconds since 1970.
    start_at_ms: Option<u64>,
    payload: Payload<'a>,
}

impl Session {
    /// The length of the packet or line that begins `buffer`, as far as these bytes tell.
    ///
    /// # Errors
    /// Bytes that begin neither.
    pub fn frame_bytes(&self, context: &Context, kept: &[u8], rest: &[u8]) -> Result<usize, Refusal> {
        match kept.first().or(rest.first()) {
            None => Ok(HEADER_BYTES),
            Some(0) => {
                Ok(Header::parse(kept, context.max_frame_bytes)?.map_or(HEADER_BYTES, Header::packet_bytes))
            }
            Some(_) => match kept.iter().chain(rest).take(MAX_LINE_BYTES).position(|byte| *byte == b'\n') {
                Some(end) => Ok(end + 1),
                None if kept.len() + rest.len() >= MAX_LINE_BYTES => Err(line_too_long()),
                None => Ok(kept.len() + rest.len() + 1),
            },
        }
    }

    /// Takes the packet or line that begins at `from` in `chunk`.
    ///
    /// # Errors
    /// Bytes that are neither, or arguments that are not there.
    pub fn decode<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        from: &mut usize,
    ) -> Result<Step<'a>, Refusal> {
        match self.begin_run(context, peer, chunk, *from) {
            Some(run) => Ok(run),
            None => self.decode_any(context, peer, chunk, from),
        }
    }

    /// Takes any packet or line.
    #[inline(never)]
    pub(super) fn decode_any<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        from: &mut usize,
    ) -> Result<Step<'a>, Refusal> {
        let rest = &chunk[*from..];
        match rest.first() {
            None => Ok(Step::Incomplete),
            Some(0) => {
                let Some(header) = Header::parse(rest, context.max_frame_bytes)? else {
                    return Ok(Step::Incomplete);
                };
                let Some(packet) = rest.get(..header.packet_bytes()) else { return Ok(Step::Incomplete) };
                if let Some(joins) = self.join(peer, header.kind) {
                    // The packet itself is taken the next time.
                    return Ok(Step::Event(joins));
                }
                *from += packet.len();
                self.speaks_text = false;
                self.take(context, peer, chunk, header.kind, &packet[HEADER_BYTES..])
            }
            Some(_) => {
                self.speaks_text = true;
                let Some(end) = rest.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n') else {
                    return if rest.len() >= MAX_LINE_BYTES {
                        Err(line_too_long())
                    } else {
                        Ok(Step::Incomplete)
                    };
                };
                *from += end + 1;
                Ok(self.take_line(context, &String::from_utf8_lossy(&rest[..end])))
            }
        }
    }

    /// What the scheduler must hear first when the peer shows by a packet that it is a client or a worker.
    #[inline]
    fn join(&mut self, peer: Peer, kind: Kind) -> Option<Event<'static>> {
        if self.is_client && self.is_worker {
            return None;
        }
        match kind {
            Kind::SubmitJob | Kind::SubmitJobHigh | Kind::SubmitJobLow | Kind::SubmitReduceJob => {
                let joins = !std::mem::replace(&mut self.is_client, true);
                joins.then_some(Event::ClientJoined { peer })
            }
            Kind::CanDo
            | Kind::CanDoTimeout
            | Kind::CantDo
            | Kind::ResetAbilities
            | Kind::PreSleep
            | Kind::GrabJob
            | Kind::GrabJobUniq
            | Kind::GrabJobAll
            | Kind::SetClientId => {
                let joins = !std::mem::replace(&mut self.is_worker, true);
                joins.then_some(Event::PullerJoined { peer, from: self.from })
            }
            _ => None,
        }
    }

    fn take<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        kind: Kind,
        data: &'a [u8],
    ) -> Result<Step<'a>, Refusal> {
        if let Some(form) = Form::of(kind) {
            return self.submit(context, peer, chunk, (kind, form), data);
        }
        Ok(match kind {
            Kind::WorkComplete | Kind::WorkFail | Kind::WorkException => {
                self.finished(peer, chunk, kind, data)?
            }
            Kind::WorkData | Kind::WorkWarning | Kind::WorkStatus => {
                self.progress(peer, chunk, kind, data)?
            }
            Kind::GrabJob => pull(peer, Pull::Grab { form: 0 }),
            Kind::GrabJobUniq => pull(peer, Pull::Grab { form: 1 }),
            Kind::GrabJobAll => pull(peer, Pull::Grab { form: 2 }),
            Kind::PreSleep => pull(peer, Pull::Sleep),
            Kind::CanDo => match function(only_argument(data)) {
                Ok(action) => pull(peer, Pull::CanDo { action, limit: None }),
                Err(failure) => failure.into(),
            },
            Kind::CanDoTimeout => {
                let mut rest = data;
                let name = take_argument(&mut rest).ok_or_else(|| too_few(kind))?;
                let limit = Duration::from_millis(number(only_argument(rest)));
                let limit = (!limit.is_zero()).then_some(limit.max(LEAST_RUN));
                match function(name) {
                    Ok(action) => pull(peer, Pull::CanDo { action, limit }),
                    Err(failure) => failure.into(),
                }
            }
            Kind::CantDo => match function(only_argument(data)) {
                Ok(action) => pull(peer, Pull::CantDo { action }),
                Err(failure) => failure.into(),
            },
            Kind::ResetAbilities => pull(peer, Pull::Reset),
            Kind::SetClientId => match std::str::from_utf8(only_argument(data)) {
                Ok(name) if !name.is_empty() => pull(peer, Pull::Name(name)),
                _ => Failure("INVALID_PACKET", "a client id is a text".into()).into(),
            },
            // That it has no other server is of no use here.
            Kind::AllYours => Step::Nothing,
            Kind::EchoReq => {
                let mut out = BytesMut::new();
                put(&mut out, Kind::EchoRes, &[data]);
                Step::Answer(Answer::Raw(out.freeze()), None)
            }
            Kind::OptionReq => self.option(only_argument(data)),
            Kind::GetStatus => self.status(context, only_argument(data)),
            Kind::GetStatusUnique => match only_argument(data) {
                unique if unique.len() <= MAX_UNIQUE_BYTES => ask(Question::Unique(unique.into())),
                _ => unique_too_large().into(),
            },
            _ => Failure("INVALID_COMMAND", "Command not expected".into()).into(),
        })
    }

    // ---- clients ----

    fn submit<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        (kind, form): (Kind, Form),
        data: &'a [u8],
    ) -> Result<Step<'a>, Refusal> {
        let mut rest = data;
        let mut argument = || take_argument(&mut rest).ok_or_else(|| too_few(kind));
        let (name, unique) = (argument()?, argument()?);
        let extra = if form.extra == Extra::Nothing { &[][..] } else { argument()? };
        let reducer = if form.extra == Extra::Reducer { extra } else { &[] };
        let start_at_ms =
            (form.extra == Extra::Epoch).then(|| number(extra).saturating_mul(1000)).filter(|at| *at > 0);
        let action = match function(name) {
            Ok(action) => action,
            Err(failure) => return Ok(failure.into()),
        };
        if unique.len() > MAX_UNIQUE_BYTES || reducer.len() > MAX_UNIQUE_BYTES {
            return Ok(unique_too_large().into());
        }
        let payload = Payload::within(chunk, rest);
        let job = Job { action, unique, reducer, start_at_ms, payload };
        if form.background {
            return Ok(self.submit_background(context, form.priority, &job));
        }
        Ok(self.submit_foreground(peer, form.priority, &job))
    }

    #[inline]
    fn submit_foreground<'a>(&mut self, peer: Peer, priority: u8, job: &Job<'a>) -> Step<'a> {
        let count = self.next_count();
        let usual = Submission::new(number_of(peer.index, count), job.action, job.payload);
        let task = submission(Submission { priority, key: job.unique, ..usual });
        let Some(key) = made_key(job, count) else { return Step::Event(Event::Submit { peer, task }) };
        Step::Owned(Box::new(OwnedEvent::Submit(OwnedTask {
            priority,
            wait: task.wait,
            key: key.into(),
            announced: true,
            ..OwnedTask::new(task.id, job.action, job.payload.to_bytes())
        })))
    }

    fn submit_background<'a>(&mut self, context: &Context, priority: u8, job: &Job<'a>) -> Step<'a> {
        if !context.has_store {
            let text = "background jobs are kept in a store, and this balancer has none (--store)";
            return Failure("QUEUE_ERROR", text.into()).into();
        }
        let count = self.next_count();
        let key = made_key(job, count).unwrap_or_else(|| job.unique.into());
        Step::Ask(Ask::Submit(Box::new(NewBackgroundTask {
            id: Request::Submit.number(count),
            record: false,
            action: job.action.into(),
            payload: job.payload.to_bytes(),
            priority,
            max_attempts: limits::DEFAULT_MAX_ATTEMPTS,
            deadline: None,
            delay: None,
            start_at_ms: job.start_at_ms,
            backoff_first_ms: 0,
            backoff_most_ms: 0,
            idempotency_key: Bytes::new(),
            idempotency_window: Duration::ZERO,
            key: key.into(),
        })))
    }

    fn option(&mut self, name: &[u8]) -> Step<'static> {
        if !name.eq_ignore_ascii_case(b"exceptions") {
            return Failure("UNKNOWN_OPTION", "Server does not recognize given option".into()).into();
        }
        self.exceptions = true;
        let mut out = BytesMut::new();
        put(&mut out, Kind::OptionRes, &[name]);
        Step::Answer(Answer::Raw(out.freeze()), None)
    }

    /// How a job stands: a foreground one is asked of the scheduler, a background one of the store.
    fn status(&mut self, context: &Context, text: &[u8]) -> Step<'static> {
        if text.len() > MAX_HANDLE_BYTES {
            return Failure("ARGUMENT_TOO_LARGE", "Job handle too large".into()).into();
        }
        match Handle::parse(&self.shared.prefix, text) {
            Some(Handle::Number(number)) => ask(Question::Job(number)),
            Some(Handle::Task(task)) if context.has_store => {
                if self.asked.len() >= MAX_ASKED {
                    let text = "too many questions wait for the store already; ask again later";
                    return Failure("QUEUE_ERROR", text.into()).into();
                }
                let id = Request::Status.number(self.next_count());
                self.asked.push((id, task));
                Step::Ask(Ask::Fetch { id, task, wait: Duration::ZERO, describe: false })
            }
            _ => {
                let mut out = BytesMut::new();
                put(&mut out, Kind::StatusRes, &[text, b"0", b"0", b"0", b"0"]);
                Step::Answer(Answer::Raw(out.freeze()), None)
            }
        }
    }

    // ---- workers ----

    #[inline]
    fn finished<'a>(
        &mut self,
        peer: Peer,
        chunk: &'a Bytes,
        kind: Kind,
        data: &'a [u8],
    ) -> Result<Step<'a>, Refusal> {
        let mut rest = data;
        let text = match kind {
            Kind::WorkFail => std::mem::take(&mut rest).split(|byte| *byte == 0).next().unwrap_or(&[]),
            _ => take_argument(&mut rest).ok_or_else(|| too_few(kind))?,
        };
        let Some(at) = self.find_held(text) else {
            let handle = Handle::parse(&self.shared.prefix, text);
            let again = kind != Kind::WorkException && handle.is_some() && self.excepted.take() == handle;
            return Ok(if again { Step::Nothing } else { job_not_found().into() });
        };
        let Some((handle, assignment)) = self.held.remove(at) else { return Ok(Step::Nothing) };
        self.excepted = (kind == Kind::WorkException).then_some(handle);
        let finish = match kind {
            Kind::WorkComplete => Finish::Done,
            Kind::WorkFail => Finish::Failed(PLAIN_FAILURE),
            _ => Finish::Failed(match std::str::from_utf8(rest) {
                Ok(text) if !text.is_empty() => reparto_protocol::cut(text, limits::MAX_MESSAGE_BYTES),
                _ => "its worker has sent an exception",
            }),
        };
        let payload = Payload::within(chunk, rest);
        Ok(Step::Event(Event::Finished { peer, assignment, finish, service_ns: None, payload }))
    }

    fn progress<'a>(
        &mut self,
        peer: Peer,
        chunk: &'a Bytes,
        kind: Kind,
        data: &'a [u8],
    ) -> Result<Step<'a>, Refusal> {
        let mut rest = data;
        let text = take_argument(&mut rest).ok_or_else(|| too_few(kind))?;
        let Some(at) = self.find_held(text) else { return Ok(job_not_found().into()) };
        let assignment = self.held[at].1;
        let (news, done, total) = match kind {
            Kind::WorkStatus => {
                let done = take_argument(&mut rest).ok_or_else(|| too_few(kind))?;
                let total = std::mem::take(&mut rest);
                (ProgressKind::Report, number(done), number(only_argument(total)))
            }
            Kind::WorkWarning => (ProgressKind::Warning, 0, 0),
            _ => (ProgressKind::Data, 0, 0),
        };
        let payload = Payload::within(chunk, rest);
        Ok(Step::Event(Event::Progress { peer, assignment, kind: news, done, total, payload }))
    }

    /// Where in what it holds the job of this handle stands. Mostly it answers the oldest.
    #[inline]
    fn find_held(&self, text: &[u8]) -> Option<usize> {
        let handle = Handle::parse(&self.shared.prefix, text)?;
        self.held.iter().position(|(held, _)| *held == handle)
    }

    // ---- operators ----

    fn take_line(&mut self, context: &Context, line: &str) -> Step<'static> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [cancel, job, handle] = words[..]
            && cancel.eq_ignore_ascii_case("cancel")
            && job.eq_ignore_ascii_case("job")
            && let Some(Handle::Task(task)) = Handle::parse(&self.shared.prefix, handle.as_bytes())
            && context.has_store
        {
            let id = Request::Cancel.number(self.next_count());
            return Step::Ask(Ask::Cancel { id, task });
        }
        ask(Question::Text(words.join(" ").into()))
    }
}

#[inline]
fn pull(peer: Peer, pull: Pull<'_>) -> Step<'_> {
    Step::Event(Event::Pull { peer, pull })
}

fn ask(question: Question) -> Step<'static> {
    Step::Answer(Answer::Question(question), None)
}

/// The key of a job for which it must be made: with a reducer, or with the payload as its unique id.
fn made_key(job: &Job<'_>, count: u64) -> Option<Box<[u8]>> {
    if !job.reducer.is_empty() {
        return Some(key::with_reducer(job.unique, job.reducer, count));
    }
    if job.unique != key::PAYLOAD_ITSELF {
        return None;
    }
    // Jobs without a payload do not share a run, as with gearmand.
    let payload = job.payload.as_slice();
    Some(if payload.is_empty() { key::with_reducer(b"", b"", count) } else { key::of_payload(payload) })
}

pub(super) fn function(name: &[u8]) -> Result<&str, Failure> {
    match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() && name.len() <= MAX_FUNCTION_BYTES => Ok(name),
        _ => {
            let text = format!("a function's name is a text of 1 to {MAX_FUNCTION_BYTES} bytes, as UTF-8");
            Err(Failure("INVALID_FUNCTION_NAME", text.into()))
        }
    }
}

fn unique_too_large() -> Failure {
    Failure("ARGUMENT_TOO_LARGE", "Unique value too large".into())
}

fn job_not_found() -> Failure {
    Failure("JOB_NOT_FOUND", "Job given in work result not found".into())
}

fn too_few(kind: Kind) -> Refusal {
    let message = format!("{} has {} arguments, with a NUL between them", kind.name(), kind.arguments());
    Refusal::new(ErrorCode::BadFrame, message)
}

fn line_too_long() -> Refusal {
    Refusal::new(ErrorCode::BadFrame, format!("a command has {MAX_LINE_BYTES} bytes at most"))
}
