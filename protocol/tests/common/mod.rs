//! What several tests need: hex, messages as JSON and back, and arbitrary messages for the property tests.
#![allow(dead_code)] // Each test program uses its part.

use bytes::BytesMut;
use reparto_protocol::{
    Accepted, Ack, Actions, AssignTask, Cancel, Drain, DropTask, ErrorCode, ErrorMessage, Fetch, GoAway,
    HeldTasks, Hello, ListTasks, Message, Outcome, Ping, Pong, Progress, Register, RetryTask, Role, Status,
    StatusReport, Task, TaskDone, TaskList, TaskOptions, TaskResult, TaskStanding, TaskState, Welcome,
};
use serde_json::{Map, Value, json};

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hex digits; anything that is no digit is passed over.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

fn uuid(id: &[u8; 16]) -> String {
    let hex = to_hex(id);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Failed => "failed",
        Outcome::Retry => "retry",
        Outcome::NotRun => "not_run",
    }
}

/// A message as the vectors write it.
pub(crate) fn to_json(message: &Message<'_>) -> Value {
    let mut json = match message {
        Message::Hello(m) => json!({
            "type": "HELLO", "version": m.version, "role": if m.role == Role::Client { "client" } else { "worker" },
            "features": m.features, "agent": m.agent, "token_hex": to_hex(m.token),
        }),
        Message::Welcome(m) => json!({
            "type": "WELCOME", "version": m.version, "features": m.features, "max_frame": m.max_frame_bytes,
            "heartbeat_ms": m.heartbeat_ms, "silence_ms": m.silence_ms, "agent": m.agent,
        }),
        Message::GoAway(m) => json!({"type": "GOAWAY", "message": m.message}),
        Message::Ping(m) => json!({"type": "PING", "id": m.id}),
        Message::Pong(m) => json!({"type": "PONG", "id": m.id}),
        Message::Error(m) => json!({
            "type": "ERROR", "id": m.id, "code": m.code.name(), "code_number": m.code.number(),
            "message": m.message, "payload_hex": to_hex(m.payload),
        }),
        Message::Status(m) => json!({"type": "STATUS", "id": m.id, "offset": m.offset, "limit": m.limit}),
        Message::StatusReport(m) => {
            json!({"type": "STATUS_REPORT", "id": m.id, "payload_hex": to_hex(m.payload)})
        }
        Message::Task(m) => json!({
            "type": "TASK", "id": m.id, "background": m.options.background, "action": m.action,
            "priority": m.options.priority, "deadline_ms": m.options.deadline_ms, "wait_ms": m.options.wait_ms,
            "key_hex": m.options.key.map(to_hex), "max_attempts": m.options.max_attempts,
            "record": m.options.record.then_some(true), "delay_ms": m.options.delay_ms,
            "start_at_ms": m.options.start_at_ms, "backoff_first_ms": m.options.backoff_first_ms,
            "backoff_most_ms": m.options.backoff_most_ms,
            "idempotency_key_hex": m.options.idempotency_key.map(to_hex),
            "idempotency_ms": m.options.idempotency_ms, "payload_hex": to_hex(m.payload),
        }),
        Message::Accepted(m) => json!({
            "type": "ACCEPTED", "id": m.id, "task_id": uuid(&m.task_id), "duplicate": m.duplicate.then_some(true),
        }),
        Message::Result(m) => json!({"type": "RESULT", "id": m.id, "payload_hex": to_hex(m.payload)}),
        Message::Progress(m) => json!({
            "type": "PROGRESS", "id": m.id, "done": m.done, "total": m.total, "payload_hex": to_hex(m.payload),
        }),
        Message::Cancel(m) => json!({
            "type": "CANCEL", "id": m.id, "task_id": m.task_id.as_ref().map(uuid), "recall": m.recall,
        }),
        Message::Fetch(m) => json!({
            "type": "FETCH", "id": m.id, "task_id": uuid(&m.task_id), "wait_ms": m.wait_ms,
            "describe": m.describe.then_some(true),
        }),
        Message::TaskState(m) => json!({
            "type": "TASK_STATE", "id": m.id, "task_id": uuid(&m.task_id), "state": m.state.name(),
            "attempts": m.attempts, "created_at_ms": m.created_at_ms, "due_at_ms": m.due_at_ms,
            "ended_at_ms": m.ended_at_ms, "payload_hex": to_hex(m.payload),
        }),
        Message::ListTasks(m) => json!({
            "type": "LIST_TASKS", "id": m.id, "action": m.action, "state": m.state.map(TaskState::name),
            "since_ms": m.since_ms, "task_id": m.before.as_ref().map(uuid), "limit": m.limit,
        }),
        Message::TaskList(m) => json!({"type": "TASK_LIST", "id": m.id, "payload_hex": to_hex(m.payload)}),
        Message::RetryTask(m) => json!({"type": "RETRY_TASK", "id": m.id, "task_id": uuid(&m.task_id)}),
        Message::DropTask(m) => json!({"type": "DROP_TASK", "id": m.id, "task_id": uuid(&m.task_id)}),
        Message::Register(m) => json!({
            "type": "REGISTER", "id": m.id, "worker_id": m.worker_id, "threads": m.threads, "window": m.window,
            "weight": m.weight, "service_ns": m.service_ns, "actions": m.actions.iter().collect::<Vec<_>>(),
            "held": Some(m.held.iter().map(|id| uuid(&id)).collect::<Vec<_>>()).filter(|held| !held.is_empty()),
        }),
        Message::Ack(m) => json!({"type": "ACK", "id": m.id, "window": m.window}),
        Message::AssignTask(m) => json!({
            "type": "ASSIGN_TASK", "id": m.id, "action": m.action, "attempt": m.attempt,
            "deadline_ms": m.deadline_ms, "key_hex": m.key.map(to_hex), "task_id": m.task_id.as_ref().map(uuid),
            "held": m.held.then_some(true), "payload_hex": to_hex(m.payload),
        }),
        Message::TaskResult(m) => json!({
            "type": "TASK_RESULT", "id": m.id, "outcome": outcome_name(m.outcome), "message": m.message,
            "service_ns": m.service_ns, "payload_hex": to_hex(m.payload),
        }),
        Message::Drain(m) => json!({"type": "DRAIN", "id": m.id, "resume": m.resume}),
    };
    if let Value::Object(map) = &mut json {
        map.retain(|_, value| !value.is_null());
    }
    json
}

/// The values of a message as the vectors write it, with a panic that names what is missing.
struct Values<'a>(&'a Map<String, Value>);

impl Values<'_> {
    fn maybe_number<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        let number = self.0.get(key)?.as_u64().unwrap_or_else(|| panic!("{key} is no number"));
        Some(T::try_from(number).unwrap_or_else(|_| panic!("{key} is {number}, too large")))
    }
    fn number<T: TryFrom<u64>>(&self, key: &str) -> T {
        self.maybe_number(key).unwrap_or_else(|| panic!("no {key}"))
    }
    fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_else(|| panic!("no text {key}"))
    }
    fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or_else(|| panic!("no flag {key}"))
    }
    /// A flag that is left out when it is off.
    fn is_on(&self, key: &str) -> bool {
        self.0.contains_key(key) && self.flag(key)
    }
    fn maybe_text(&self, key: &str) -> Option<&str> {
        self.0.contains_key(key).then(|| self.text(key))
    }
    fn maybe_state(&self) -> Option<TaskState> {
        self.maybe_text("state").map(|name| TaskState::from_name(name).expect("a known state"))
    }
    fn maybe_bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.0.contains_key(key).then(|| from_hex(self.text(key)))
    }
    fn maybe_id(&self, key: &str) -> Option<[u8; 16]> {
        self.maybe_bytes(key).map(|bytes| bytes.try_into().unwrap_or_else(|_| panic!("{key} is no UUID")))
    }
}

/// The frame of a message as the vectors write it.
pub(crate) fn encode_json(json: &Value) -> BytesMut {
    let v = Values(json.as_object().unwrap_or_else(|| panic!("no object: {json}")));
    let id = v.maybe_number("id").unwrap_or(0);
    let payload_held = v.maybe_bytes("payload_hex").unwrap_or_default();
    let payload = payload_held.as_slice();
    let key_held = v.maybe_bytes("key_hex");
    let key = key_held.as_deref();
    let idempotency_key = v.maybe_bytes("idempotency_key_hex");
    let token = v.maybe_bytes("token_hex").unwrap_or_default();
    let names: Vec<&str> =
        json["actions"].as_array().map_or(Vec::new(), |list| list.iter().filter_map(Value::as_str).collect());
    let task_id = v.maybe_id("task_id");
    let own_task_id = || task_id.expect("a task_id");
    let is_register = v.text("type") == "REGISTER";
    let named = json["held"].as_array().filter(|_| is_register).map_or(Vec::new(), |list| {
        list.iter().map(|id| from_hex(id.as_str().unwrap_or_default()).try_into().expect("a UUID")).collect()
    });
    let message = match v.text("type") {
        "HELLO" => Message::Hello(Hello {
            version: v.number("version"),
            role: if v.text("role") == "client" { Role::Client } else { Role::Worker },
            features: v.number("features"),
            agent: v.text("agent"),
            token: &token,
        }),
        "WELCOME" => Message::Welcome(Welcome {
            version: v.number("version"),
            features: v.number("features"),
            max_frame_bytes: v.number("max_frame"),
            heartbeat_ms: v.number("heartbeat_ms"),
            silence_ms: v.number("silence_ms"),
            agent: v.text("agent"),
        }),
        "GOAWAY" => Message::GoAway(GoAway { message: v.text("message") }),
        "PING" => Message::Ping(Ping { id }),
        "PONG" => Message::Pong(Pong { id }),
        "ERROR" => Message::Error(ErrorMessage {
            id,
            code: ErrorCode::from_number(v.number("code_number")),
            message: v.text("message"),
            payload,
        }),
        "STATUS" => Message::Status(Status { id, offset: v.number("offset"), limit: v.number("limit") }),
        "STATUS_REPORT" => Message::StatusReport(StatusReport { id, payload }),
        "TASK" => {
            let options = TaskOptions {
                priority: v.maybe_number("priority"),
                deadline_ms: v.maybe_number("deadline_ms"),
                wait_ms: v.maybe_number("wait_ms"),
                key,
                max_attempts: v.maybe_number("max_attempts"),
                background: v.flag("background"),
                record: v.is_on("record"),
                delay_ms: v.maybe_number("delay_ms"),
                start_at_ms: v.maybe_number("start_at_ms"),
                backoff_first_ms: v.maybe_number("backoff_first_ms"),
                backoff_most_ms: v.maybe_number("backoff_most_ms"),
                idempotency_key: idempotency_key.as_deref(),
                idempotency_ms: v.maybe_number("idempotency_ms"),
            };
            Message::Task(Task { id, action: v.text("action"), options, payload })
        }
        "ACCEPTED" => {
            Message::Accepted(Accepted { id, task_id: own_task_id(), duplicate: v.is_on("duplicate") })
        }
        "RESULT" => Message::Result(TaskDone { id, payload }),
        "PROGRESS" => {
            Message::Progress(Progress { id, done: v.number("done"), total: v.number("total"), payload })
        }
        "CANCEL" => Message::Cancel(Cancel { id, task_id, recall: v.flag("recall") }),
        "FETCH" => Message::Fetch(Fetch {
            id,
            task_id: own_task_id(),
            wait_ms: v.number("wait_ms"),
            describe: v.is_on("describe"),
        }),
        "TASK_STATE" => Message::TaskState(TaskStanding {
            id,
            task_id: own_task_id(),
            state: v.maybe_state().expect("a state"),
            attempts: v.number("attempts"),
            created_at_ms: v.number("created_at_ms"),
            due_at_ms: v.maybe_number("due_at_ms"),
            ended_at_ms: v.maybe_number("ended_at_ms"),
            payload,
        }),
        "LIST_TASKS" => Message::ListTasks(ListTasks {
            id,
            action: v.maybe_text("action"),
            state: v.maybe_state(),
            since_ms: v.maybe_number("since_ms"),
            before: task_id,
            limit: v.number("limit"),
        }),
        "TASK_LIST" => Message::TaskList(TaskList { id, payload }),
        "RETRY_TASK" => Message::RetryTask(RetryTask { id, task_id: own_task_id() }),
        "DROP_TASK" => Message::DropTask(DropTask { id, task_id: own_task_id() }),
        "REGISTER" => Message::Register(Register {
            id,
            worker_id: v.text("worker_id"),
            threads: v.number("threads"),
            window: v.number("window"),
            weight: v.number("weight"),
            service_ns: v.maybe_number("service_ns"),
            held: HeldTasks::new(&named),
            actions: Actions::new(&names),
        }),
        "ACK" => Message::Ack(Ack { id, window: v.number("window") }),
        "ASSIGN_TASK" => Message::AssignTask(AssignTask {
            id,
            action: v.text("action"),
            attempt: v.number("attempt"),
            deadline_ms: v.maybe_number("deadline_ms"),
            key,
            task_id,
            held: v.is_on("held"),
            payload,
        }),
        "TASK_RESULT" => {
            let outcomes = [Outcome::Done, Outcome::Failed, Outcome::Retry, Outcome::NotRun];
            let named = outcomes.into_iter().find(|outcome| outcome_name(*outcome) == v.text("outcome"));
            Message::TaskResult(TaskResult {
                id,
                outcome: named.expect("a known outcome"),
                message: v.text("message"),
                service_ns: v.maybe_number("service_ns"),
                payload,
            })
        }
        "DRAIN" => Message::Drain(Drain { id, resume: v.flag("resume") }),
        other => panic!("no frame type {other}"),
    };
    let mut wire = BytesMut::new();
    message.encode(&mut wire);
    wire
}
