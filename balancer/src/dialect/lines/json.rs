//! JSON lines: an object a line, each with an id of the client's own, answered as they end.
//!
//! ```text
//!  {"id":1,"action":"upper","payload":"hola"}    <- {"id":1,"status":"done","result":{"ok":true,"data":"HOLA"}}
//!  {"id":2,"action":"greet","data":"Antonio"}    <- {"id":2,"status":"ok","input":{...},"output":"..."}
//!  {"id":3,"action":"upper","payload":"hola","background":true}
//!                                                <- {"id":3,"status":"accepted","task_id":"..."}
//!  {"id":4,"fetch":"..."}                        <- {"id":4,"status":"done","task_id":"...","result":{...}}
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use foldhash::fast::RandomState;
use reparto_protocol::{ErrorCode, limits};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Line, MOST_PENDING, Wrong, check_action, failed, wrong};
use crate::background::{Ask, NewBackgroundTask};
use crate::dialect::native::ask_store;
use crate::dialect::{Context, Output, OwnedEvent, OwnedTask, Step};
use crate::scheduler::{Payload, StoreAnswer};

/// Longest id, as it is written, in bytes.
const MOST_ID_BYTES: usize = 255;

/// Requests that are kept to be repeated in their answers: no more is read while there are as many bytes of them.
const KEPT_BYTES: usize = 1 << 20;

/// Most bytes that may stand in a request beside its data, where it is kept.
const MOST_BESIDE_DATA: usize = 64 << 10;

/// A request, as its line has it. What is not known is passed over.
#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    action: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload_base64: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    background: bool,
    #[serde(borrow, default)]
    fetch: Option<Cow<'a, str>>,
    priority: Option<u8>,
    deadline_ms: Option<u64>,
    wait_ms: Option<u64>,
    delay_ms: Option<u64>,
    max_attempts: Option<u8>,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    idempotency_key: Option<Cow<'a, str>>,
}

/// The id of a line that is wrong otherwise.
#[derive(Deserialize)]
struct OnlyId<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Asked {
    /// As it was written.
    id: Box<str>,
    how: How,
}

/// How a request is answered.
#[derive(Debug)]
enum How {
    /// With a result.
    Result,
    /// With the request itself, and an output.
    Output(Box<str>),
    /// With what became of a background task.
    Fetched(Uuid),
}

/// A client: its requests that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// By our own numbers, which begin at 1.
    asked: HashMap<u64, Asked, RandomState>,
    last: u64,
    /// Bytes of requests that are to be repeated.
    kept: usize,
}

impl Client {
    /// Requests that are not answered.
    pub(super) fn pending(&self) -> usize {
        self.asked.len()
    }

    /// Whether as many wait as may.
    pub(super) fn is_full(&self) -> bool {
        self.asked.len() >= MOST_PENDING || self.kept >= KEPT_BYTES
    }

    /// A number for a line without an id.
    pub(super) fn stranger(&mut self) -> u64 {
        self.ask("null", How::Result)
    }

    fn ask(&mut self, id: &str, how: How) -> u64 {
        self.last += 1;
        if let How::Output(input) = &how {
            self.kept += input.len();
        }
        self.asked.insert(self.last, Asked { id: id.into(), how });
        self.last
    }

    fn answered(&mut self, number: u64) -> Option<Asked> {
        let asked = self.asked.remove(&number)?;
        if let How::Output(input) = &asked.how {
            self.kept -= input.len();
        }
        Some(asked)
    }

    /// Takes a line.
    pub(super) fn take<'a>(&mut self, context: &Context, line: Line<'a>) -> Step<'a> {
        let text = line.text.trim_ascii();
        if text.is_empty() {
            return Step::Nothing;
        }
        if !text.starts_with('{') {
            return failed(self.stranger(), wrong("the line is no request: it is no object"));
        }
        let request: Request<'_> = match serde_json::from_str(text) {
            Ok(request) => request,
            Err(error) => {
                let id = serde_json::from_str::<OnlyId<'_>>(text).ok().and_then(|only| only.id);
                let number = match id.map(RawValue::get).filter(|id| id.len() <= MOST_ID_BYTES) {
                    Some(id) => self.ask(id, How::Result),
                    None => self.stranger(),
                };
                return failed(number, wrong(format!("the line is no request: {error}")));
            }
        };
        let id = request.id.map_or("null", RawValue::get);
        if id.len() > MOST_ID_BYTES {
            let message = format!("the id has {} bytes, over the bound of {MOST_ID_BYTES}", id.len());
            return failed(self.stranger(), wrong(message));
        }
        if let Some(task) = &request.fetch {
            return self.fetch(context, id, task, &request);
        }
        let has_output = request.data.is_some()
            && request.payload.is_none()
            && request.payload_base64.is_none()
            && !request.background;
        if has_output {
            let beside = text.len() - request.data.map_or(0, |data| data.get().len());
            if beside > MOST_BESIDE_DATA {
                let message = format!("{beside} bytes beside the data, over the bound of {MOST_BESIDE_DATA}");
                return failed(self.ask(id, How::Result), (ErrorCode::PayloadTooLarge, message.into()));
            }
        }
        let how = if has_output { How::Output(text.into()) } else { How::Result };
        let number = self.ask(id, how);
        match submission(context, number, line, &request) {
            Ok(task) if request.background => {
                ask_store(context, Ask::Submit(Box::new(background(task, &request))))
            }
            Ok(task) => Step::Owned(Box::new(OwnedEvent::Submit(task))),
            Err(wrong) => failed(number, wrong),
        }
    }

    fn fetch<'a>(&mut self, context: &Context, id: &str, task: &str, request: &Request<'_>) -> Step<'a> {
        let Ok(task) = Uuid::parse_str(task) else {
            return failed(self.ask(id, How::Result), wrong("fetch: the task's id is none"));
        };
        let number = self.ask(id, How::Fetched(task));
        let wait = Duration::from_millis(request.wait_ms.unwrap_or(0)).min(limits::MAX_TIME);
        ask_store(context, Ask::Fetch { id: number, task: *task.as_bytes(), wait, describe: false })
    }

    /// Writes a result down.
    pub(super) fn result(&mut self, number: u64, payload: Payload<'_>, out: &mut Output) {
        let Some(asked) = self.answered(number) else { return };
        let out = out.buffer();
        begin(&asked.id, out);
        match asked.how {
            How::Result => {
                out.put_slice(br#""status":"done","result":{"ok":true,"#);
                text_member("data", payload.as_slice(), out);
                out.put_slice(b"}");
            }
            How::Fetched(task) => {
                let head = format!(r#""status":"done","task_id":"{task}","result":{{"ok":true,"#);
                out.put_slice(head.as_bytes());
                text_member("data", payload.as_slice(), out);
                out.put_slice(b"}");
            }
            How::Output(input) => {
                out.put_slice(br#""status":"ok","input":"#);
                out.put_slice(input.as_bytes());
                out.put_slice(b",");
                value_member("output", payload.as_slice(), out);
            }
        }
        out.put_slice(b"}\n");
    }

    /// Writes a failure down.
    pub(super) fn fail(&mut self, number: u64, code: ErrorCode, message: &str, out: &mut Output) {
        let Some(asked) = self.answered(number) else { return };
        let How::Output(input) = asked.how else { return error_line(&asked.id, code, message, out) };
        let out = out.buffer();
        begin(&asked.id, out);
        out.put_slice(br#""status":"error","input":"#);
        out.put_slice(input.as_bytes());
        out.put_slice(br#","error":"#);
        string(message, out);
        out.put_slice(format!(r#","code":"{}"}}"#, code.name()).as_bytes());
        out.put_slice(b"\n");
    }

    /// Writes down what the store says.
    pub(super) fn store_answer(&mut self, number: u64, answer: StoreAnswer<'_>, out: &mut Output) {
        let Some(asked) = self.answered(number) else { return };
        let out = out.buffer();
        begin(&asked.id, out);
        let said = match answer {
            StoreAnswer::Accepted { task, duplicate } => {
                let duplicate = if duplicate { r#","duplicate":true"# } else { "" };
                format!(r#""status":"accepted","task_id":"{}"{duplicate}}}"#, Uuid::from_bytes(task))
            }
            StoreAnswer::Standing { standing, .. } => format!(
                r#""status":"{}","task_id":"{}","attempts":{}}}"#,
                standing.state.name(),
                Uuid::from_bytes(standing.task),
                standing.attempts
            ),
            // Lists are not asked for.
            StoreAnswer::List { .. } => r#""status":"done"}"#.to_owned(),
        };
        out.put_slice(said.as_bytes());
        out.put_slice(b"\n");
    }
}

/// Writes down that something failed.
pub(super) fn error_line(id: &str, code: ErrorCode, message: &str, out: &mut Output) {
    let out = out.buffer();
    begin(id, out);
    out.put_slice(br#""status":"error","result":{"ok":false,"error":"#);
    string(message, out);
    out.put_slice(format!(r#","code":"{}"}}}}"#, code.name()).as_bytes());
    out.put_slice(b"\n");
}

fn begin(id: &str, out: &mut BytesMut) {
    out.put_slice(br#"{"id":"#);
    out.put_slice(id.as_bytes());
    out.put_slice(b",");
}

/// The task that a request hands in.
fn submission(
    context: &Context,
    number: u64,
    line: Line<'_>,
    request: &Request<'_>,
) -> Result<OwnedTask, Wrong> {
    let has_payload = request.payload.is_some() || request.payload_base64.is_some() || request.data.is_some();
    let action = match &request.action {
        Some(action) => check_action(action)?,
        None if has_payload => &context.lines_action,
        None => return Err(wrong("the request has neither an action nor a payload")),
    };
    let payload = match (request.payload.or(request.data), &request.payload_base64) {
        (Some(value), _) => bytes_of(value, line)?,
        (None, Some(text)) => STANDARD
            .decode(text.as_bytes())
            .map_err(|error| wrong(format!("payload_base64: {error}")))?
            .into(),
        (None, None) => Bytes::new(),
    };
    let time = |ms: Option<u64>| ms.map(|ms| Duration::from_millis(ms).min(limits::MAX_TIME));
    let key = bounded("key", request.key.as_deref(), limits::MAX_KEY_BYTES)?;
    bounded("idempotency_key", request.idempotency_key.as_deref(), limits::MAX_IDEMPOTENCY_KEY_BYTES)?;
    Ok(OwnedTask {
        priority: request.priority.unwrap_or(limits::DEFAULT_PRIORITY).min(limits::MAX_PRIORITY),
        deadline: time(request.deadline_ms),
        wait: time(request.wait_ms),
        key,
        max_attempts: request.max_attempts.unwrap_or(limits::DEFAULT_MAX_ATTEMPTS).max(1),
        ..OwnedTask::new(number, action, payload)
    })
}

fn bounded(name: &str, text: Option<&str>, most: usize) -> Result<Bytes, Wrong> {
    let text = text.unwrap_or_default();
    if text.len() > most {
        return Err(wrong(format!("{name} has {} bytes, over the bound of {most}", text.len())));
    }
    Ok(Bytes::copy_from_slice(text.as_bytes()))
}

fn background(task: OwnedTask, request: &Request<'_>) -> NewBackgroundTask {
    let delay = request.delay_ms.map(|ms| Duration::from_millis(ms).min(limits::MAX_TIME));
    NewBackgroundTask {
        priority: task.priority,
        max_attempts: task.max_attempts,
        deadline: task.deadline,
        delay,
        idempotency_key: Bytes::copy_from_slice(request.idempotency_key.as_deref().unwrap_or("").as_bytes()),
        ..NewBackgroundTask::new(task.id, task.action, task.payload)
    }
}

/// What a value is to a handler: a string's text, or else the JSON as it stands.
pub(super) fn bytes_of(value: &RawValue, line: Line<'_>) -> Result<Bytes, Wrong> {
    let raw = value.get();
    match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        None => Ok(line.chunk.slice_ref(raw.as_bytes())),
        Some(text) if !text.contains('\\') => Ok(line.chunk.slice_ref(text.as_bytes())),
        Some(_) => serde_json::from_str::<String>(raw)
            .map(Bytes::from)
            .map_err(|error| wrong(format!("the payload is no text: {error}"))),
    }
}

/// Writes a text as JSON.
pub(super) fn string(text: &str, out: &mut BytesMut) {
    // Appending to memory cannot fail, nor can a text be no JSON.
    let _ = serde_json::to_writer(out.writer(), text);
}

/// Writes `"name":"..."`, or `"name_base64":"..."` where the bytes are no text.
fn text_member(name: &str, bytes: &[u8], out: &mut BytesMut) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.put_slice(format!(r#""{name}":"#).as_bytes());
            string(text, out);
        }
        Err(_) => out.put_slice(format!(r#""{name}_base64":"{}""#, STANDARD.encode(bytes)).as_bytes()),
    }
}

/// The same; but bytes that are an object or an array in JSON are written as what they are.
pub(super) fn value_member(name: &str, bytes: &[u8], out: &mut BytesMut) {
    let Some(json) = object_or_array(bytes) else { return text_member(name, bytes, out) };
    out.put_slice(format!(r#""{name}":"#).as_bytes());
    // Line breaks can only stand between its parts.
    out.extend(json.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
}

fn object_or_array(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?.trim_ascii();
    let may_be = text.starts_with('{') && text.ends_with('}') || text.starts_with('[') && text.ends_with(']');
    (may_be && serde_json::from_str::<&RawValue>(text).is_ok()).then_some(text)
}
