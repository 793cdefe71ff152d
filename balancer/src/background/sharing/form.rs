//! The JSON of tasks and answers in plain AMQP queues, as any program writes and reads it. docs/AMQP.md is the contract.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use reparto_protocol::{ErrorCode, limits, parse_duration};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest `id` that a task may have, as JSON, in bytes.
const MOST_ID: usize = 1024;

/// A body is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unreadable(String);

fn unreadable<T>(reason: impl Into<String>) -> Result<T, Unreadable> {
    Err(Unreadable(reason.into()))
}

/// What a text, a JSON value or base64 stands for.
fn bytes_of(plain: Option<&RawValue>, base64: Option<&str>, name: &str) -> Result<Bytes, Unreadable> {
    match (plain, base64) {
        (Some(_), Some(_)) => unreadable(format!("it has both {name} and {name}_base64")),
        (None, None) => Ok(Bytes::new()),
        (None, Some(text)) => match BASE64.decode(text) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => unreadable(format!("{name}_base64 is no base64: {error}")),
        },
        (Some(value), None) => match serde_json::from_str::<String>(value.get()) {
            Ok(text) => Ok(text.into()),
            // Handed on as the JSON that it is.
            Err(_) => Ok(Bytes::copy_from_slice(value.get().as_bytes())),
        },
    }
}

/// How bytes stand in JSON: as a text where they are one, else as base64.
fn text_of(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

/// Writing what derives Serialize into memory fails for nothing that is written here.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}

// ---- tasks that come in ----

/// A task as a program writes it.
#[derive(Debug, Deserialize)]
struct WrittenTask<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    action: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    payload_base64: Option<Cow<'a, str>>,
    priority: Option<u64>,
    attempts: Option<u64>,
    #[serde(borrow)]
    deadline: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delay: Option<Cow<'a, str>>,
    #[serde(borrow)]
    backoff: Option<Cow<'a, str>>,
}

/// A task that was read, with what it does not say filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HandedIn {
    /// Its writer's own name for it, as JSON.
    pub(super) id: Option<String>,
    pub(super) action: Arc<str>,
    pub(super) payload: Bytes,
    pub(super) priority: u8,
    pub(super) attempts: u8,
    pub(super) deadline: Option<Duration>,
    pub(super) delay: Option<Duration>,
    pub(super) backoff_first_ms: u32,
}

impl HandedIn {
    /// Reads a message's body. A payload may have `max_payload` bytes.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub(super) fn read(body: &[u8], max_payload: usize) -> Result<HandedIn, Unreadable> {
        let written: WrittenTask<'_> = match serde_json::from_slice(body) {
            Ok(written) => written,
            Err(error) => return unreadable(format!("it is no task in JSON: {error}")),
        };
        let action = match written.action.as_deref() {
            None | Some("") => return unreadable("it names no action"),
            Some(name) if name.len() > limits::MAX_ACTION_BYTES => {
                let most = limits::MAX_ACTION_BYTES;
                return unreadable(format!("its action has {} bytes, and {most} is the limit", name.len()));
            }
            Some(name) => name.into(),
        };
        let id = written.id.map(|id| id.get().to_owned());
        if id.as_ref().is_some_and(|id| id.len() > MOST_ID) {
            return unreadable(format!("its id is longer than {MOST_ID} bytes"));
        }
        let payload = bytes_of(written.payload, written.payload_base64.as_deref(), "payload")?;
        if payload.len() > max_payload {
            return unreadable(format!(
                "its payload has {} bytes, and {max_payload} is the limit (--max-frame)",
                payload.len()
            ));
        }
        let most = u64::from(limits::MAX_PRIORITY);
        let priority = number("priority", written.priority, 0..=most, limits::DEFAULT_PRIORITY)?;
        let attempts =
            number("attempts", written.attempts, 1..=u64::from(u8::MAX), limits::DEFAULT_MAX_ATTEMPTS)?;
        let backoff = time("backoff", written.backoff.as_deref())?;
        let backoff = backoff.unwrap_or(limits::DEFAULT_BACKOFF_FIRST);
        Ok(HandedIn {
            id,
            action,
            payload,
            priority,
            attempts,
            deadline: time("deadline", written.deadline.as_deref())?,
            delay: time("delay", written.delay.as_deref())?,
            backoff_first_ms: u32::try_from(backoff.as_millis()).unwrap_or(u32::MAX),
        })
    }
}

fn number(
    name: &str,
    given: Option<u64>,
    range: std::ops::RangeInclusive<u64>,
    usual: u8,
) -> Result<u8, Unreadable> {
    match given {
        None => Ok(usual),
        Some(number) if range.contains(&number) => Ok(u8::try_from(number).unwrap_or(usual)),
        Some(number) => {
            unreadable(format!("its {name} is {number}, and must be {} to {}", range.start(), range.end()))
        }
    }
}

fn time(name: &str, given: Option<&str>) -> Result<Option<Duration>, Unreadable> {
    let Some(text) = given else { return Ok(None) };
    match parse_duration(text) {
        Ok(time) if time > limits::MAX_TIME => {
            unreadable(format!("its {name} is more than {} days", limits::MAX_TIME.as_secs() / 86_400))
        }
        Ok(time) => Ok(Some(time)),
        Err(error) => unreadable(format!("its {name}: {error}")),
    }
}

// ---- answers that go out ----

/// Where a task's outcome is told, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplyTo {
    pub(super) queue: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correlation_id: Option<String>,
    /// The task's own `id`, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
}

impl ReplyTo {
    /// As the store keeps it.
    pub(super) fn to_text(&self) -> Arc<str> {
        String::from_utf8_lossy(&json(self)).into()
    }

    /// From what the store has kept.
    ///
    /// # Errors
    /// It is not what [`to_text`](Self::to_text) gives.
    pub(super) fn read(text: &str) -> Result<ReplyTo, Unreadable> {
        serde_json::from_str(text).map_err(|error| Unreadable(error.to_string()))
    }
}

#[derive(Serialize)]
struct WrittenAnswer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    task_id: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
}

/// The answer that tells how a task has ended.
pub(super) fn answer(id: Option<&str>, task_id: &str, outcome: Result<&[u8], (ErrorCode, &str)>) -> Bytes {
    // It was JSON when it came.
    let id: Option<&RawValue> = id.and_then(|id| serde_json::from_str(id).ok());
    let mut answer =
        WrittenAnswer { id, task_id, ok: false, data: None, data_base64: None, error: None, code: None };
    match outcome {
        Ok(result) => {
            answer.ok = true;
            (answer.data, answer.data_base64) = text_of(result);
        }
        Err((code, message)) => (answer.error, answer.code) = (Some(message), Some(code.name())),
    }
    json(&answer)
}

// ---- tasks that go out, and their answers ----

#[derive(Serialize)]
struct TaskForWorker<'a> {
    id: &'a str,
    action: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    attempt: u8,
}

/// A task for a worker that knows only AMQP.
pub(super) fn task(id: &str, action: &str, payload: &[u8], attempt: u8) -> Bytes {
    let (payload, payload_base64) = text_of(payload);
    json(&TaskForWorker { id, action, payload, payload_base64, attempt })
}

/// What such a worker has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answered {
    /// Here is the result.
    Done(Bytes),
    /// It failed, and why; another attempt may do better.
    Failed { message: String, again: bool },
}

/// An answer as a worker writes it.
#[derive(Debug, Deserialize)]
struct AnswerOfWorker<'a> {
    ok: Option<bool>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
    #[serde(default)]
    retry: bool,
}

/// Reads a worker's answer.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read_answer(body: &[u8]) -> Result<Answered, Unreadable> {
    let answer: AnswerOfWorker<'_> = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => return unreadable(format!("it is no answer in JSON: {error}")),
    };
    match answer.ok {
        None => unreadable("it does not say whether it is ok"),
        Some(true) => Ok(Answered::Done(bytes_of(answer.data, answer.data_base64.as_deref(), "data")?)),
        Some(false) => {
            let message = answer.error.map_or_else(|| "it does not say why".to_owned(), Cow::into_owned);
            Ok(Answered::Failed { message, again: answer.retry })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HandedIn, String> {
        HandedIn::read(text.as_bytes(), 100).map_err(|error| error.to_string())
    }

    #[test]
    fn a_task_is_read_with_its_options_and_the_usual_ones() {
        let task = read(r#"{"id": 7, "action": "upper", "payload": "hol\u00e1"}"#).unwrap();
        assert_eq!(
            (task.id.as_deref(), &*task.action, &task.payload[..]),
            (Some("7"), "upper", "holá".as_bytes())
        );
        assert_eq!((task.priority, task.attempts, task.deadline, task.delay), (4, 3, None, None));
        let all =
            r#"{"action":"a","priority":9,"attempts":1,"deadline":"10s","delay":"1.5s","backoff":"20ms"}"#;
        let task = read(all).unwrap();
        assert_eq!((task.priority, task.attempts, task.backoff_first_ms), (9, 1, 20));
        assert_eq!(
            (task.deadline, task.delay),
            (Some(Duration::from_secs(10)), Some(Duration::from_millis(1500)))
        );
        assert!(task.payload.is_empty());
    }

    #[test]
    fn a_payload_is_a_text_or_base64_or_any_json() {
        for (payload, bytes) in [
            (r#""payload": "a\nb""#, &b"a\nb"[..]),
            (r#""payload_base64": "/wA=""#, b"\xff\x00"),
            (r#""payload": {"b": 1.50, "a": [null]}"#, br#"{"b": 1.50, "a": [null]}"#),
            (r#""payload": 17"#, b"17"),
        ] {
            let task = read(&format!(r#"{{"action": "a", {payload}}}"#)).unwrap();
            assert_eq!(&task.payload[..], bytes);
        }
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said() {
        for (body, said) in [
            ("hola", "no task in JSON"),
            ("[1]", "no task in JSON"),
            (r#"{"payload": "x"}"#, "names no action"),
            (r#"{"action": ""}"#, "names no action"),
            (r#"{"action": "a", "payload": "x", "payload_base64": "eA=="}"#, "both payload"),
            (r#"{"action": "a", "payload_base64": "?"}"#, "no base64"),
            (r#"{"action": "a", "priority": 10}"#, "must be 0 to 9"),
            (r#"{"action": "a", "attempts": 0}"#, "must be 1 to 255"),
            (r#"{"action": "a", "deadline": "10"}"#, "has no unit"),
            (r#"{"action": "a", "delay": "10000d"}"#, "more than 366 days"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(said), "{body}: {error}");
        }
        assert!(read(&format!(r#"{{"action": "{}"}}"#, "a".repeat(256))).unwrap_err().contains("256 bytes"));
        let long = format!(r#"{{"action": "a", "payload": "{}"}}"#, "x".repeat(101));
        assert!(read(&long).unwrap_err().contains("101 bytes"));
        let long = format!(r#"{{"action": "a", "id": "{}"}}"#, "x".repeat(2000));
        assert!(read(&long).unwrap_err().contains("its id"));
    }

    #[test]
    fn an_answer_carries_the_id_as_it_came_and_the_result_or_the_reason() {
        let task = "0193a5c4-7d5e-7000-8000-000000000001";
        let told = |id, outcome| String::from_utf8(answer(id, task, outcome).to_vec()).unwrap();
        assert_eq!(
            told(Some(r#"{"a": 1}"#), Ok(b"HOLA")),
            format!(r#"{{"id":{{"a": 1}},"task_id":"{task}","ok":true,"data":"HOLA"}}"#)
        );
        assert_eq!(
            told(None, Ok(b"\xff")),
            format!(r#"{{"task_id":"{task}","ok":true,"data_base64":"/w=="}}"#)
        );
        assert_eq!(
            told(Some("7"), Err((ErrorCode::WorkerFailed, "it \"broke\""))),
            format!(
                r#"{{"id":7,"task_id":"{task}","ok":false,"error":"it \"broke\"","code":"worker_failed"}}"#
            )
        );
    }

    #[test]
    fn where_to_reply_is_read_as_it_was_kept() {
        let reply =
            ReplyTo { queue: "answers".into(), correlation_id: Some("c\0".into()), id: Some("7".into()) };
        let text = reply.to_text();
        assert!(!text.contains('\0'));
        assert_eq!(ReplyTo::read(&text), Ok(reply));
        assert!(ReplyTo::read("x").is_err());
    }

    #[test]
    fn a_task_for_a_worker_carries_its_payload_whatever_that_is() {
        let written = |payload: &[u8]| String::from_utf8(task("7", "a", payload, 2).to_vec()).unwrap();
        assert_eq!(written(b"hola"), r#"{"id":"7","action":"a","payload":"hola","attempt":2}"#);
        assert_eq!(written(b"\xff\0"), r#"{"id":"7","action":"a","payload_base64":"/wA=","attempt":2}"#);
        let again = HandedIn::read(written(b"x").as_bytes(), 100).unwrap();
        assert_eq!(&again.payload[..], b"x", "whoever takes tasks can take it");
    }

    #[test]
    fn a_worker_answers_with_a_result_or_a_reason() {
        let read = |text: &str| read_answer(text.as_bytes());
        let failed = |message: &str, again| Ok(Answered::Failed { message: message.into(), again });
        for (text, answered) in [
            (r#"{"id": "7", "ok": true, "data": "HOLA"}"#, Ok(Answered::Done("HOLA".into()))),
            (r#"{"ok": true, "data_base64": "/wA="}"#, Ok(Answered::Done(Bytes::from_static(b"\xff\0")))),
            (r#"{"ok": true, "data": {"n": 1}}"#, Ok(Answered::Done(r#"{"n": 1}"#.into()))),
            (r#"{"ok": true}"#, Ok(Answered::Done(Bytes::new()))),
            (r#"{"ok": false, "error": "broken"}"#, failed("broken", false)),
            (r#"{"ok": false, "error": "busy", "retry": true}"#, failed("busy", true)),
            (r#"{"ok": false}"#, failed("it does not say why", false)),
        ] {
            assert_eq!(read(text), answered, "{text}");
        }
        for (text, said) in [("done", "no answer in JSON"), (r#"{"data": "x"}"#, "does not say whether")] {
            assert!(read(text).is_err_and(|error| error.to_string().contains(said)), "{text}");
        }
    }
}
