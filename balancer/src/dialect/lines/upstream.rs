//! Upstreams: servers that listen and answer JSON lines, as workers. The balancer connects to them.
//!
//! ```text
//!  -> {"id":1,"action":"upper","payload":"hola","data":"hola"}
//!  <- {"id":1,"result":{"ok":true,"data":"HOLA"}}   or  {"id":1,"status":"ok","output":"HOLA"}   or what is like it
//! ```
//!
//! A server that repeats ids may be asked several things at once. Whether this one does is found out: it is registered
//! with one thread, and with as many as it was given once its answer bore the id of its question.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes};
use foldhash::fast::RandomState;
use reparto_protocol::{ErrorCode, limits};
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::json::{bytes_of, string, value_member};
use super::{Line, message_of};
use crate::dialect::{Output, OwnedEvent, OwnedRegistration, Refusal, Step};
use crate::scheduler::{Assignment, AssignmentId};

/// A server that the balancer connects to and gives tasks to: `lines://HOST:PORT[?actions=a,b&threads=N&member=data]`.
///
/// ```
/// use reparto_balancer::Upstream;
/// let upstream: Upstream = "lines://127.0.0.1:9001?actions=upper,wc&threads=4".parse()?;
/// assert_eq!((upstream.port, upstream.threads), (9001, 4));
/// assert_eq!(upstream.name(), "lines://127.0.0.1:9001");
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it listens: a name or an address.
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// What it can do; empty for the action of lines that name none.
    pub actions: Vec<String>,
    /// What it is asked at once at most, if it repeats ids.
    pub threads: u32,
    /// Where a request has its payload.
    pub member: Member,
}

/// Where a request to an upstream has its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Member {
    /// In `payload` and in `data`, so that a server may read either.
    #[default]
    Both,
    /// In `payload` alone.
    Payload,
    /// In `data` alone.
    Data,
}

impl Upstream {
    /// What it is called as a worker.
    pub fn name(&self) -> String {
        if self.host.contains(':') {
            format!("lines://[{}]:{}", self.host, self.port)
        } else {
            format!("lines://{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write lines://HOST:PORT, perhaps with ?actions=a,b&threads=4";
        let no = |reason: &str| format!("'{text}' is no upstream: {reason}; {hint}");
        let url = Url::parse(text).map_err(|error| no(&error.to_string()))?;
        if url.scheme() != "lines" {
            return Err(no("it does not begin with lines://"));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| no("there is no host"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = url.port().filter(|port| *port > 0).ok_or_else(|| no("there is no port"))?;
        if !url.username().is_empty() || url.password().is_some() || !matches!(url.path(), "" | "/") {
            return Err(no("there is more than a host and a port"));
        }
        let mut upstream =
            Upstream { host: host.into(), port, actions: Vec::new(), threads: 1, member: Member::default() };
        for (name, value) in url.query_pairs() {
            match &*name {
                "actions" => upstream.actions = actions(&value).map_err(|reason| no(&reason))?,
                "threads" => {
                    let threads = value.parse().ok().filter(|n| (1..=limits::MAX_THREADS).contains(n));
                    upstream.threads = threads.ok_or_else(|| no("threads must be 1 to 65536"))?;
                }
                "member" => {
                    upstream.member = match &*value {
                        "both" => Member::Both,
                        "payload" => Member::Payload,
                        "data" => Member::Data,
                        _ => return Err(no("member must be payload, data or both")),
                    };
                }
                other => return Err(no(&format!("'{other}' is not known"))),
            }
        }
        Ok(upstream)
    }
}

fn actions(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if names.len() > limits::MAX_ACTIONS_PER_WORKER {
        return Err(format!(
            "{} actions are over the bound of {}",
            names.len(),
            limits::MAX_ACTIONS_PER_WORKER
        ));
    }
    match names.iter().find(|name| !(1..=limits::MAX_ACTION_BYTES).contains(&name.len())) {
        Some(name) => Err(format!("the action '{name}' must have 1 to {} bytes", limits::MAX_ACTION_BYTES)),
        None => Ok(names),
    }
}

/// An answer, as its line has it: any of the ways in which servers write them.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    output: Option<&'a RawValue>,
    #[serde(borrow, default)]
    output_base64: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data_base64: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

/// A connection to an upstream: what it was asked and has not answered.
#[derive(Debug)]
pub(super) struct Worker {
    upstream: Arc<Upstream>,
    registration: OwnedRegistration,
    /// By the number that a question bears, which begins at 1.
    asked: HashMap<u64, AssignmentId, RandomState>,
    last: u64,
    /// It repeats ids.
    repeats: bool,
}

impl Worker {
    pub(super) fn new(upstream: Arc<Upstream>, lines_action: &str) -> Worker {
        let actions: Vec<Box<str>> = match &upstream.actions[..] {
            [] => vec![lines_action.into()],
            names => names.iter().map(|name| name.as_str().into()).collect(),
        };
        let registration = OwnedRegistration { worker_id: upstream.name().into(), threads: 1, actions };
        Worker { upstream, registration, asked: HashMap::default(), last: 0, repeats: false }
    }

    /// How it is registered once it is connected: as one that is asked one thing at a time.
    pub(super) fn opening(&self) -> OwnedEvent {
        OwnedEvent::Register(self.registration.clone())
    }

    /// Takes an answer. A registration comes before the end of the assignment, and the same line is taken again.
    pub(super) fn take<'a>(&mut self, line: Line<'a>) -> Result<Step<'a>, Refusal> {
        let text = line.text.trim_ascii();
        if text.is_empty() || self.asked.is_empty() {
            // Nothing was asked: a greeting.
            return Ok(Step::Nothing);
        }
        if !text.starts_with('{') {
            return self.unreadable("the server's answer is no JSON object");
        }
        let answer: Answer<'_> = match serde_json::from_str(text) {
            Ok(answer) => answer,
            Err(error) => return self.unreadable(&format!("the server's answer is no JSON object: {error}")),
        };
        let id = answer.id.and_then(number).filter(|id| self.asked.contains_key(id));
        if id.is_some() && !self.repeats {
            self.repeats = true;
            if self.upstream.threads > 1 {
                self.registration.threads = self.upstream.threads;
                return Ok(Step::Owned(Box::new(self.opening())));
            }
        }
        let Some(assignment) = id.or_else(|| self.only_one()).and_then(|id| self.asked.remove(&id)) else {
            let (asked, code) = (self.asked.len(), ErrorCode::BadFrame);
            let message = format!("an answer has none of the ids of the {asked} questions that it was asked");
            return Err(Refusal::new(code, message));
        };
        Ok(Step::Owned(Box::new(finished(assignment, &answer, line.part(text)))))
    }

    /// An answer that cannot be read ends the only question that it can be to; where there are more, the connection.
    pub(super) fn unreadable<'a>(&mut self, sentence: &str) -> Result<Step<'a>, Refusal> {
        let only = self.only_one().and_then(|id| self.asked.remove(&id));
        let Some(assignment) = only else {
            return Err(Refusal::new(ErrorCode::BadFrame, sentence.to_owned()));
        };
        Ok(Step::Owned(Box::new(failed(assignment, sentence))))
    }

    fn only_one(&self) -> Option<u64> {
        (self.asked.len() == 1).then(|| self.asked.keys().next().copied()).flatten()
    }

    /// Asks it.
    pub(super) fn assign(&mut self, id: AssignmentId, details: &Assignment<'_>, out: &mut Output) {
        self.last += 1;
        self.asked.insert(self.last, id);
        let out = out.buffer();
        out.put_slice(format!(r#"{{"id":{},"action":"#, self.last).as_bytes());
        string(details.action, out);
        for (name, left_out) in [("payload", Member::Data), ("data", Member::Payload)] {
            if self.upstream.member != left_out {
                out.put_slice(b",");
                value_member(name, details.payload.as_slice(), out);
            }
        }
        out.put_slice(b"}\n");
    }
}

/// The number that an id is: as it was asked, or as those write it who make a text or a fraction of it.
fn number(id: &RawValue) -> Option<u64> {
    let text = id.get().trim_matches('"');
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}

fn failed(assignment: AssignmentId, sentence: &str) -> OwnedEvent {
    OwnedEvent::Failed { assignment, message: message_of(sentence), payload: Bytes::new() }
}

/// How an answer says that its question ended.
fn finished(assignment: AssignmentId, answer: &Answer<'_>, line: Line<'_>) -> OwnedEvent {
    let result: Option<Answer<'_>> =
        answer.result.filter(|result| result.get().starts_with('{')).and_then(|result| {
            // One that is another object is a result as it stands.
            serde_json::from_str(result.get()).ok()
        });
    let says_no = |value: Option<&RawValue>| value.is_some_and(|value| value.get() == "false");
    let is_error = match answer.status.map(RawValue::get) {
        Some(status) => matches!(status, r#""error""# | r#""failed""# | r#""failure""#),
        None => answer.error.is_some(),
    };
    if is_error || says_no(answer.ok) || result.as_ref().is_some_and(|result| says_no(result.ok)) {
        let error = answer.error.or(result.as_ref().and_then(|result| result.error)).or(answer.result);
        let reason = error.and_then(|error| bytes_of(error, line).ok());
        return match reason {
            Some(reason) => failed(assignment, &String::from_utf8_lossy(&reason)),
            None => failed(assignment, line.text),
        };
    }
    let inner = result.as_ref();
    let plain = |value: &RawValue| bytes_of(value, line).map_err(|(_, message)| message.into_owned());
    let payload = if let Some(value) = inner.and_then(|result| result.data).or(answer.output) {
        plain(value)
    } else if let Some(value) = inner.and_then(|result| result.data_base64).or(answer.output_base64) {
        decoded(value)
    } else if let Some(value) = answer.result.or(answer.data) {
        plain(value)
    } else if let Some(value) = answer.data_base64 {
        decoded(value)
    } else if let Some(value) = answer.payload {
        plain(value)
    } else {
        Ok(line.chunk.slice_ref(line.text.as_bytes()))
    };
    match payload {
        Ok(payload) => OwnedEvent::Done { assignment, payload },
        Err(sentence) => failed(assignment, &format!("the server's answer cannot be read: {sentence}")),
    }
}

fn decoded(value: &RawValue) -> Result<Bytes, String> {
    let text: String = serde_json::from_str(value.get()).map_err(|error| error.to_string())?;
    STANDARD.decode(text).map(Bytes::from).map_err(|error| error.to_string())
}
