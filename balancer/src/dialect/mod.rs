//! Dialects: wire formats, between a connection's bytes and the scheduler's events and effects.
//!
//! A [`Session`] is what a dialect keeps of one connection. It finds the next frame in the bytes that came
//! ([`Session::decode`]), and writes down what the scheduler wants said ([`Session::encode`]). It knows no
//! socket, no clock and no thread, so every rule of a wire format can be tested with bytes alone.
//!
//! Each dialect has a folder beside this file and a variant of [`Session`]; nothing else knows how many there are.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::{ErrorCode, FrameError};

use crate::background::Ask;
use crate::scheduler::{Assignment, AssignmentId, Effect, Event, Payload, Peer, Policy, Pulled, Time};

pub mod gearman;
pub mod lines;
pub mod native;
mod output;
mod owned;

pub use native::status_report;
pub use output::{Output, SHARED_PAYLOAD_BYTES};
pub use owned::{OwnedEvent, OwnedRegistration, OwnedTask};

/// Which listener a connection came to, and so which dialect it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// The one for clients, who speak the native dialect.
    Clients,
    /// The one for workers, who speak the native dialect.
    Workers,
    /// One for clients and workers who speak lines.
    Lines,
    /// None: the balancer has connected to an upstream.
    Upstreams,
    /// One for Gearman's clients, workers and operators.
    Gearman,
}

impl Listener {
    /// How many kinds there are.
    pub const KINDS: usize = 5;

    /// Which of the kinds it is, from 0.
    pub fn kind(self) -> usize {
        self as usize
    }

    /// Its name, which is that of the flag with its address.
    pub fn name(self) -> &'static str {
        match self {
            Listener::Clients => "clients",
            Listener::Workers => "workers",
            Listener::Lines => "lines",
            Listener::Upstreams => "upstreams",
            Listener::Gearman => "gearman",
        }
    }
}

/// What a connection's peer is to the scheduler, as far as it has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerKind {
    /// It has not said.
    Unknown,
    /// It submits tasks.
    Client,
    /// It runs tasks.
    Worker,
    /// It does both.
    Both,
}

impl PeerKind {
    /// Whether it runs tasks.
    #[inline]
    pub fn is_worker(self) -> bool {
        matches!(self, PeerKind::Worker | PeerKind::Both)
    }
}

/// What sessions need to know of the balancer they belong to. The same for all of them.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where clients connect.
    pub clients: SocketAddr,
    /// Where workers connect.
    pub workers: SocketAddr,
    /// Largest frame taken, in bytes, header included.
    pub max_frame_bytes: u32,
    /// Silence after which a worker is asked whether it is there.
    pub heartbeat: Duration,
    /// Silence after which a worker is lost.
    pub silence: Duration,
    /// How workers are chosen, for the status report.
    pub policy: Policy,
    /// Background tasks can be taken.
    pub has_store: bool,
    /// The action of lines that name none.
    pub lines_action: Arc<str>,
    /// What Gearman sessions share.
    pub gearman: Arc<gearman::Shared>,
}

/// Why a connection is ended: what its last ERROR says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Why, for people.
    pub message: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with a code and a sentence.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Refusal { code, message: message.into() }
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Refusal::new(error.code(), error.to_string())
    }
}

/// What is looked up where the scheduler is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A page of the status report, as JSON.
    Status {
        /// Workers and actions to pass over.
        offset: u32,
        /// Workers and actions to give at most.
        limit: u32,
    },
    /// Something that a Gearman connection asks.
    Gearman(gearman::Question),
}

/// Something that is answered without asking the scheduler to do anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The limits in force, for a peer that said who it is.
    Welcome,
    /// A sign of life of this number.
    Pong(u64),
    /// A page of the status report, as JSON.
    Status {
        /// The asker's number.
        id: u64,
        /// Workers and actions to pass over.
        offset: u32,
        /// Workers and actions to give at most.
        limit: u32,
    },
    /// Bytes that are to be sent as they are.
    Raw(Bytes),
    /// Something that is looked up where the scheduler is, and answered with bytes to be sent as they are.
    Question(gearman::Question),
    /// A request that cannot be met. The connection lives on.
    Failed {
        /// The asker's number.
        id: u64,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: Cow<'static, str>,
    },
}

/// What one look at the bytes found.
#[derive(Debug)]
pub enum Step<'a> {
    /// No whole frame. Ask again when more bytes are there, up to [`Session::frame_bytes`].
    Incomplete,
    /// A frame that asks for nothing.
    Nothing,
    /// A frame that the scheduler must hear of.
    Event(Event<'a>),
    /// The same, where the event's parts do not lie in the bytes as the scheduler wants them.
    Owned(Box<OwnedEvent>),
    /// Tasks of one action that follow each other, of which each is an [`Event::Submit`].
    Tasks(native::Tasks<'a>),
    /// Results that follow each other, of which each is an [`Event::Finished`].
    Results(native::Results<'a>),
    /// Announced tasks of one action that follow each other, of which each is an [`Event::Submit`]. When they were
    /// taken, [`Session::jobs_taken`] must be told.
    Jobs(gearman::Jobs<'a>),
    /// A pull worker's questions that follow each other, of which each is an [`Event::Pull`].
    Grabs(gearman::Grabs),
    /// A pull worker's results that follow each other, of which each is an [`Event::Finished`]. When they were taken,
    /// [`Session::results_taken`] must be told.
    JobResults(gearman::Results<'a>),
    /// A frame that the store has a part in.
    Ask(Ask),
    /// A frame to be answered at once, before the scheduler hears of the event, if there is one.
    Answer(Answer, Option<Event<'a>>),
    /// The session takes no more until something is answered, as [`Session::is_full`] will say. What comes waits.
    Full,
    /// The peer wants nothing more. The connection ends once all is answered; what else came is thrown away.
    End,
}

/// A connection's state in the dialect that it speaks.
#[derive(Debug)]
pub enum Session {
    /// Reparto's own protocol.
    Native(native::Session),
    /// Lines of text.
    Lines(Box<lines::Session>),
    /// Gearman's.
    Gearman(Box<gearman::Session>),
}

impl Session {
    /// A session for a connection that has just come to a listener, from this address.
    pub fn new(listener: Listener, context: &Context, from: Option<IpAddr>) -> Session {
        match listener {
            Listener::Gearman => Session::Gearman(Box::new(gearman::Session::new(&context.gearman, from))),
            Listener::Clients | Listener::Workers => Session::Native(native::Session::new(listener)),
            Listener::Lines | Listener::Upstreams => Session::Lines(Box::default()),
        }
    }

    /// A session for a connection of the balancer's own to an upstream.
    pub fn upstream(upstream: Arc<lines::Upstream>, context: &Context) -> Session {
        Session::Lines(Box::new(lines::Session::upstream(upstream, context)))
    }

    /// What the scheduler must hear once the balancer's own connection is there.
    pub fn opening(&self) -> Option<OwnedEvent> {
        match self {
            Session::Native(_) | Session::Gearman(_) => None,
            Session::Lines(session) => session.opening(),
        }
    }

    /// What the peer is to the scheduler.
    #[inline]
    pub fn kind(&self) -> PeerKind {
        match self {
            Session::Native(session) => session.kind(),
            Session::Lines(session) => session.kind(),
            Session::Gearman(session) => session.kind(),
        }
    }

    /// Whether the peer has said all that it must say before it takes part: the scheduler knows it.
    #[inline]
    pub fn joined(&self) -> bool {
        match self {
            Session::Native(session) => session.joined(),
            // Nothing must be said.
            Session::Lines(_) => true,
            // Its peers may wait as long as they like.
            Session::Gearman(_) => true,
        }
    }

    /// The peer has closed its sending side, or said [`Step::End`]. If it is to get the answers that it waits for all the
    /// same, this gives what ends the frame that it had begun; `None` if the connection is over.
    pub fn half_close(&mut self) -> Option<&'static [u8]> {
        match self {
            Session::Native(_) | Session::Gearman(_) => None,
            Session::Lines(session) => session.half_close(),
        }
    }

    /// Whether nothing that the peer asked for waits to be answered. Only asked of one that closed its sending side.
    pub fn is_settled(&self) -> bool {
        match self {
            Session::Native(_) | Session::Gearman(_) => true,
            Session::Lines(session) => session.is_settled(),
        }
    }

    /// Whether it takes nothing until something is answered, after [`Step::Full`].
    pub fn is_full(&self) -> bool {
        match self {
            Session::Native(_) | Session::Gearman(_) => false,
            Session::Lines(session) => session.is_full(),
        }
    }

    /// The length of the frame that begins with `kept` and goes on with `rest`, in bytes, as far as these bytes tell.
    /// Never less than one, and more than there are if the frame is not whole. Where it is within `kept` and `rest`, no
    /// byte of another frame is within it.
    ///
    /// # Errors
    /// Bytes that cannot begin a frame that may come now. So a bad header does not wait for the frame's end.
    #[inline]
    pub fn frame_bytes(&self, context: &Context, kept: &[u8], rest: &[u8]) -> Result<usize, Refusal> {
        match self {
            Session::Native(session) => session.frame_bytes(context, kept),
            Session::Lines(session) => Ok(session.frame_bytes(context, kept, rest)),
            Session::Gearman(session) => session.frame_bytes(context, kept, rest),
        }
    }

    /// Whether a frame's head tells its length. Where it does not, a frame that was put together may hold several.
    pub fn tells_lengths(&self) -> bool {
        !matches!(self, Session::Lines(_))
    }

    /// The length of the frame that begins with `kept`, in bytes, where its head is whole and tells it.
    pub fn known_frame_bytes(&self, context: &Context, kept: &[u8]) -> Option<usize> {
        let tells = match self {
            Session::Native(_) => kept.len() >= reparto_protocol::HEADER_BYTES,
            Session::Lines(_) => false,
            Session::Gearman(_) => gearman::is_head(kept),
        };
        if tells { self.frame_bytes(context, kept, &[]).ok() } else { None }
    }

    /// Takes the frame that begins at `from` in `chunk`, and moves `from` behind it: what does it ask for? For
    /// [`Step::Incomplete`] it stays, as it does for the steps that are several frames, such as [`Step::Tasks`]: behind
    /// what was taken of those, they say where the next frame begins. It may stay for other steps, too, if the frame asks for several.
    ///
    /// # Errors
    /// Why the connection must end: bytes that are no frame, or a frame that may not come now.
    #[inline(always)]
    pub fn decode<'a>(
        &mut self,
        context: &Context,
        peer: Peer,
        chunk: &'a Bytes,
        from: &mut usize,
    ) -> Result<Step<'a>, Refusal> {
        match self {
            Session::Native(session) => session.decode(context, peer, chunk, from),
            Session::Lines(session) => session.decode(context, peer, chunk, from),
            Session::Gearman(session) => session.decode(context, peer, chunk, from),
        }
    }

    /// A run of jobs was taken, as far as it was.
    #[inline]
    pub fn jobs_taken(&mut self, jobs: &gearman::Jobs<'_>) {
        if let Session::Gearman(session) = self {
            session.jobs_taken(jobs);
        }
    }

    /// A run of a pull worker's results was taken, as far as it was.
    #[inline]
    pub fn results_taken(&mut self, results: gearman::Results<'_>) {
        if let Session::Gearman(session) = self {
            session.results_taken(results);
        }
    }

    /// Writes down an effect that concerns this connection; [`assign`](Self::assign) does it for
    /// [`Effect::Assign`].
    #[inline]
    pub fn encode(&mut self, effect: Effect<'_>, out: &mut Output) {
        match self {
            Session::Native(_) => native::encode(effect, out),
            Session::Lines(session) => session.encode(effect, out),
            Session::Gearman(session) => session.encode(effect, out),
        }
    }

    /// Writes down an assignment to this connection.
    #[inline]
    pub fn assign(&mut self, now: Time, id: AssignmentId, details: &Assignment<'_>, out: &mut Output) {
        match self {
            Session::Native(_) => native::assign(now, id, details, out),
            Session::Lines(session) => session.assign(id, details, out),
            Session::Gearman(session) => session.assign(id, details, out),
        }
    }

    /// Writes down a result for this connection, as [`encode`](Self::encode) does for [`Effect::Result`].
    #[inline]
    pub fn result(&mut self, id: u64, payload: Payload<'_>, out: &mut Output) {
        match self {
            Session::Native(_) => native::result(id, payload, out),
            Session::Lines(session) => session.result(id, payload, out),
            Session::Gearman(session) => session.result(id, payload, out),
        }
    }

    /// Writes down assignments of first attempts at tasks of one action with the usual options, all that
    /// `assignments` gives; as [`assign`](Self::assign) does each.
    #[inline]
    pub fn assign_some<'p>(
        &mut self,
        action: &str,
        assignments: &mut impl Iterator<Item = (AssignmentId, Payload<'p>)>,
        out: &mut Output,
    ) {
        match self {
            Session::Native(_) => native::assign_some(action, assignments, out),
            Session::Lines(session) => assignments
                .for_each(|(id, payload)| session.assign(id, &Assignment::first(action, payload), out)),
            Session::Gearman(session) => assignments
                .for_each(|(id, payload)| session.assign(id, &Assignment::first(action, payload), out)),
        }
    }

    /// Writes down results for this connection, all that `results` gives; as [`result`](Self::result) does each.
    #[inline]
    pub fn result_some<'p>(
        &mut self,
        results: &mut impl Iterator<Item = (u64, Payload<'p>)>,
        out: &mut Output,
    ) {
        match self {
            Session::Native(_) => native::result_some(results, out),
            Session::Lines(session) => results.for_each(|(id, payload)| session.result(id, payload, out)),
            Session::Gearman(session) => session.result_some(results, out),
        }
    }

    /// Writes down that tasks were taken, all of whose numbers `ids` gives. Only for dialects whose tasks are announced.
    #[inline]
    pub fn created_some(&mut self, ids: &mut impl Iterator<Item = u64>, out: &mut Output) {
        match self {
            Session::Gearman(session) => session.created_some(ids, out),
            Session::Native(_) | Session::Lines(_) => ids.for_each(drop),
        }
    }

    /// Writes down a pull worker's assignments of one action, whose form is that of its questions, all that
    /// `assignments` gives. Only for dialects whose workers pull.
    #[inline]
    pub fn assign_pulled<'p>(
        &mut self,
        alike: (&str, u8),
        assignments: &mut impl Iterator<Item = Pulled<'p>>,
        out: &mut Output,
    ) {
        match self {
            Session::Gearman(session) => session.assign_pulled(alike, assignments, out),
            Session::Native(_) | Session::Lines(_) => assignments.for_each(drop),
        }
    }

    /// Writes down so many times that a pull worker is given no task.
    #[inline]
    pub fn no_task_some(&mut self, count: usize, out: &mut Output) {
        if let Session::Gearman(session) = self {
            session.no_task_some(count, out);
        }
    }

    /// Writes down an answer; [`report`](Self::report) does it for [`Answer::Status`].
    pub fn answer(&mut self, context: &Context, answer: &Answer, out: &mut Output) {
        if let Answer::Raw(bytes) = answer {
            return out.payload(Payload::from(bytes));
        }
        match self {
            Session::Native(_) => native::answer(context, answer, out),
            Session::Lines(session) => session.answer(answer, out),
            // It answers with bytes.
            Session::Gearman(_) => {}
        }
    }

    /// Writes down a page of the status report, as [`status_report`] gives it, for the question of this number.
    pub fn report(&mut self, id: u64, report: &Bytes, out: &mut Output) {
        match self {
            Session::Native(_) => native::report(id, report, out),
            Session::Lines(session) => session.report(id, report, out),
            Session::Gearman(_) => out.payload(Payload::from(report)),
        }
    }

    /// Writes down why the connection ends.
    pub fn refuse(&mut self, refusal: &Refusal, out: &mut Output) {
        match self {
            Session::Native(_) => native::refuse(refusal, out),
            Session::Lines(session) => session.refuse(refusal, out),
            Session::Gearman(session) => session.refuse(refusal, out),
        }
    }
}
