//! What holds for any message, any bytes, and any way in which a stream is cut into pieces.

mod common;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use reparto_protocol::{
    ErrorCode, Fields, Frame, FrameError, FrameStream, FrameType, Message, Outcome, Task, TaskOptions,
    TaskResult, TaskState, UsualResult, UsualResults, UsualTask, UsualTasks, limits,
};
use serde_json::{Value, json};

const LIMIT: u32 = limits::DEFAULT_MAX_FRAME_BYTES;

fn bytes(most: usize) -> impl Strategy<Value = String> {
    vec(any::<u8>(), 0..=most).prop_map(|bytes| common::to_hex(&bytes))
}

fn key() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(vec(any::<u8>(), 1..=255).prop_map(|bytes| common::to_hex(&bytes)))
}

/// Text of `least` to `most` bytes.
fn text(least: usize, most: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), least..=most).prop_map(move |characters| {
        let text: String = characters.into_iter().collect();
        reparto_protocol::cut(&text, most).to_owned()
    })
}

fn uuid() -> impl Strategy<Value = String> {
    any::<[u8; 16]>().prop_map(|id| {
        let hex = common::to_hex(&id);
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    })
}

fn time() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(0..=limits::MAX_TIME.as_millis() as u64)
}

/// A flag that is left out when it is off.
fn on() -> impl Strategy<Value = Option<bool>> {
    proptest::option::of(Just(true))
}

fn state() -> impl Strategy<Value = &'static str> {
    (0..8usize).prop_map(|number| TaskState::ALL[number].name())
}

fn without_nulls(mut message: Value) -> Value {
    if let Value::Object(map) = &mut message {
        map.retain(|_, value| !value.is_null());
    }
    message
}

/// Any message that a reader takes, as the vectors write it.
fn message() -> impl Strategy<Value = Value> {
    let id = any::<u64>;
    let own_id = || 1..=u64::MAX;
    let role = prop_oneof![Just("client"), Just("worker")];
    let outcome = prop_oneof![Just("done"), Just("failed"), Just("retry"), Just("not_run")];
    let hello = (role, any::<u64>(), text(0, 255), bytes(255)).prop_map(|(role, features, agent, token)| {
        json!({"type": "HELLO", "version": 1, "role": role, "features": features, "agent": agent,
               "token_hex": token})
    });
    let welcome = (
        any::<u64>(),
        limits::MIN_MAX_FRAME_BYTES..=limits::MAX_MAX_FRAME_BYTES,
        1..=u32::MAX,
        1..=u32::MAX,
        text(0, 255),
    )
        .prop_map(|(features, max_frame, heartbeat, silence, agent)| {
            json!({"type": "WELCOME", "version": 1, "features": features, "max_frame": max_frame,
                   "heartbeat_ms": heartbeat, "silence_ms": silence, "agent": agent})
        });
    let error = (id(), any::<u16>(), text(0, 4096), bytes(300)).prop_map(|(id, code, message, payload)| {
        let name = ErrorCode::from_number(code).name();
        json!({"type": "ERROR", "id": id, "code": name, "code_number": code, "message": message,
               "payload_hex": payload})
    });
    let options = (proptest::option::of(0..=9u8), time(), time(), key(), proptest::option::of(1..=u8::MAX));
    let task = (own_id(), any::<bool>(), text(1, 255), options, bytes(300)).prop_map(
        |(id, background, action, (priority, deadline, wait, key, attempts), payload)| {
            json!({"type": "TASK", "id": id, "background": background, "action": action, "priority": priority,
                   "deadline_ms": deadline, "wait_ms": wait, "key_hex": key, "max_attempts": attempts,
                   "payload_hex": payload})
        },
    );
    let kept = (
        (any::<bool>(), any::<bool>()),
        (time(), proptest::option::of(0..=limits::MAX_MOMENT_MS), time()),
        (proptest::option::of(any::<u32>()), proptest::option::of(any::<u32>()), key()),
    );
    let kept_task = (own_id(), text(1, 255), kept, bytes(300)).prop_map(
        |(id, action, ((background, also), (delay, start_at, window), (first, most, key)), payload)| {
            json!({"type": "TASK", "id": id, "background": background, "action": action,
                   "record": (also || !background).then_some(true), "delay_ms": delay, "start_at_ms": start_at,
                   "backoff_first_ms": first, "backoff_most_ms": most, "idempotency_key_hex": key,
                   "idempotency_ms": window, "payload_hex": payload})
        },
    );
    let assign =
        (own_id(), text(1, 255), 1..=u8::MAX, time(), key(), proptest::option::of(uuid()), on(), bytes(300))
            .prop_map(|(id, action, attempt, deadline, key, task_id, held, payload)| {
                json!({"type": "ASSIGN_TASK", "id": id, "action": action, "attempt": attempt,
                       "deadline_ms": deadline, "key_hex": key, "task_id": task_id, "held": held,
                       "payload_hex": payload})
            });
    let task_result = (id(), outcome, text(0, 4096), proptest::option::of(any::<u64>()), bytes(300))
        .prop_map(|(id, outcome, message, service, payload)| {
            json!({"type": "TASK_RESULT", "id": id, "outcome": outcome, "message": message,
                   "service_ns": service, "payload_hex": payload})
        });
    let register = (
        id(),
        text(1, 255),
        (1..=limits::MAX_THREADS, 0..=limits::MAX_WINDOW, 1..=limits::MAX_WEIGHT),
        proptest::option::of(any::<u64>()),
        vec(text(1, 255), 0..40),
        proptest::option::of(vec(uuid(), 1..5)),
    )
        .prop_map(|(id, worker_id, (threads, window, weight), service, actions, held)| {
            json!({"type": "REGISTER", "id": id, "worker_id": worker_id, "threads": threads,
                   "window": window.max(threads), "weight": weight, "service_ns": service, "actions": actions,
                   "held": held})
        });
    let progress = (id(), any::<u64>(), any::<u64>(), bytes(300)).prop_map(|(id, done, total, payload)| {
        json!({"type": "PROGRESS", "id": id, "done": done, "total": total, "payload_hex": payload})
    });
    let fetch = (own_id(), uuid(), time(), on()).prop_map(|(id, task_id, wait, describe)| {
        json!({"type": "FETCH", "id": id, "task_id": task_id, "wait_ms": wait.unwrap_or(0),
               "describe": describe})
    });
    let moment = || 0..=limits::MAX_MOMENT_MS;
    let maybe_moment = || proptest::option::of(moment());
    let standing = (
        own_id(),
        uuid(),
        state(),
        any::<u8>(),
        (moment(), maybe_moment(), maybe_moment()),
        bytes(300),
    )
        .prop_map(|(id, task_id, state, attempts, (created, due, ended), payload)| {
            json!({"type": "TASK_STATE", "id": id, "task_id": task_id, "state": state, "attempts": attempts,
                   "created_at_ms": created, "due_at_ms": due, "ended_at_ms": ended, "payload_hex": payload})
        });
    let action = proptest::option::of(text(1, 255));
    let list = (
        own_id(),
        action,
        proptest::option::of(state()),
        maybe_moment(),
        proptest::option::of(uuid()),
        any::<u32>(),
    )
        .prop_map(|(id, action, state, since, before, limit)| {
            json!({"type": "LIST_TASKS", "id": id, "action": action, "state": state, "since_ms": since,
                   "task_id": before, "limit": limit})
        });
    let status = (id(), any::<u32>(), any::<u32>()).prop_map(
        |(id, offset, limit)| json!({"type": "STATUS", "id": id, "offset": offset, "limit": limit}),
    );
    let small = prop_oneof![
        id().prop_map(|id| json!({"type": "PING", "id": id})),
        id().prop_map(|id| json!({"type": "PONG", "id": id})),
        text(0, 4096).prop_map(|message| json!({"type": "GOAWAY", "message": message})),
        (own_id(), uuid(), on()).prop_map(
            |(id, task, known)| json!({"type": "ACCEPTED", "id": id, "task_id": task, "duplicate": known})
        ),
        (own_id(), uuid()).prop_map(|(id, task)| json!({"type": "RETRY_TASK", "id": id, "task_id": task})),
        (own_id(), uuid()).prop_map(|(id, task)| json!({"type": "DROP_TASK", "id": id, "task_id": task})),
        (own_id(), bytes(300))
            .prop_map(|(id, hex)| json!({"type": "TASK_LIST", "id": id, "payload_hex": hex})),
        (id(), bytes(300)).prop_map(|(id, hex)| json!({"type": "RESULT", "id": id, "payload_hex": hex})),
        (id(), bytes(300))
            .prop_map(|(id, hex)| json!({"type": "STATUS_REPORT", "id": id, "payload_hex": hex})),
        (id(), proptest::option::of(uuid()), any::<bool>())
            .prop_map(|(id, task, on)| json!({"type": "CANCEL", "id": id, "task_id": task, "recall": on})),
        (id(), any::<bool>()).prop_map(|(id, on)| json!({"type": "DRAIN", "id": id, "resume": on})),
        (id(), any::<u32>()).prop_map(|(id, window)| json!({"type": "ACK", "id": id, "window": window})),
    ];
    let large = prop_oneof![
        hello,
        welcome,
        error,
        task,
        kept_task,
        standing,
        list,
        assign,
        task_result,
        register,
        progress,
        fetch,
        status
    ];
    prop_oneof![3 => large, 2 => small].prop_map(without_nulls)
}

/// Whatever stands at the beginning of `bytes`: a message, more bytes needed, or why not.
fn decode(bytes: &[u8]) -> Result<Option<Message<'_>>, FrameError> {
    match Frame::parse(bytes, LIMIT)? {
        Some((frame, _)) => Message::decode(&frame).map(Some),
        None => Ok(None),
    }
}

/// Every frame of a stream fed in `pieces`, and how it ended.
fn through_stream<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, Option<FrameError>) {
    let mut stream = FrameStream::new(LIMIT);
    let mut seen = Vec::new();
    for piece in pieces {
        stream.push(piece);
        loop {
            match stream.next_frame() {
                Ok(Some(frame)) => {
                    assert_eq!(frame.payload(), frame.as_frame().payload);
                    seen.push(format!("{:?}", Message::decode(&frame.as_frame())));
                }
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}

fn cut_at<'a>(wire: &'a [u8], cuts: &[proptest::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    ends.push(wire.len());
    ends.sort_unstable();
    let mut from = 0;
    let mut pieces = Vec::new();
    for end in ends {
        pieces.push(&wire[from..end]);
        from = end;
    }
    pieces
}

/// What a reader has of a value or a named error: it can be printed, and an error has a code that ends in ERROR.
fn is_named(decoded: &Result<Option<Message<'_>>, FrameError>) -> bool {
    match decoded {
        Ok(message) => !format!("{message:?}").is_empty(),
        Err(error) => {
            let codes = [ErrorCode::BadFrame, ErrorCode::PayloadTooLarge, ErrorCode::UnsupportedVersion];
            codes.contains(&error.code()) && !error.to_string().is_empty()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encode_then_decode_is_the_identity(message in message()) {
        let wire = common::encode_json(&message);
        let (frame, length) = Frame::parse(&wire, LIMIT)?.expect("the frame is whole");
        prop_assert_eq!(length, wire.len());
        let decoded = Message::decode(&frame)?;
        prop_assert_eq!(common::to_json(&decoded), message);
        // And what was decoded is written as the same bytes, which the writer's own check takes.
        let mut again = BytesMut::new();
        prop_assert_eq!(decoded.try_encode(&mut again, wire.len() as u32), Ok(()));
        prop_assert_eq!(&again, &wire);
        let mut head = BytesMut::new();
        decoded.encode_head(&mut head, frame.payload.len());
        prop_assert!(wire.starts_with(&head));
    }

    #[test]
    fn every_beginning_of_a_frame_asks_for_more(message in message(), cut in any::<proptest::sample::Index>()) {
        let wire = common::encode_json(&message);
        prop_assert_eq!(Frame::parse(&wire[..cut.index(wire.len())], LIMIT), Ok(None));
    }

    #[test]
    fn any_split_of_a_stream_decodes_the_same(
        messages in vec(message(), 1..6),
        cuts in vec(any::<proptest::sample::Index>(), 0..12),
        broken in any::<Option<(proptest::sample::Index, u8)>>(),
    ) {
        let mut wire: Vec<u8> = messages.iter().flat_map(common::encode_json).collect();
        if let Some((place, value)) = broken {
            let place = place.index(wire.len());
            wire[place] = value;
        }
        let whole = through_stream(std::iter::once(wire.as_slice()));
        prop_assert_eq!(&through_stream(cut_at(&wire, &cuts).into_iter()), &whole);
        prop_assert_eq!(&through_stream(wire.chunks(1)), &whole);
        if broken.is_none() {
            prop_assert_eq!((whole.0.len(), whole.1), (messages.len(), None));
        }
    }

    #[test]
    fn a_mutated_frame_is_a_value_or_a_named_error(
        message in message(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
        inserted in proptest::option::of((any::<proptest::sample::Index>(), vec(any::<u8>(), 1..8))),
    ) {
        let mut wire = common::encode_json(&message).to_vec();
        if let Some((place, bytes)) = inserted {
            let place = place.index(wire.len());
            wire.splice(place..place, bytes);
        }
        for (place, value) in changes {
            let place = place.index(wire.len());
            wire[place] = value;
        }
        if let Some(cut) = cut {
            wire.truncate(cut.index(wire.len()));
        }
        prop_assert!(is_named(&decode(&wire)));
    }

    #[test]
    fn random_bytes_are_a_value_or_a_named_error(
        kind in proptest::sample::select(FrameType::ALL),
        flags in any::<u8>(),
        id in any::<u64>(),
        body in vec(any::<u8>(), 0..200),
        fields in any::<proptest::sample::Index>(),
        anything in vec(any::<u8>(), 0..64),
    ) {
        prop_assert!(is_named(&decode(&anything)));
        // Behind a header that holds, so that the bytes reach the fields.
        let mut wire = (12 + body.len() as u32).to_be_bytes().to_vec();
        wire.extend([kind as u8, flags]);
        wire.extend((fields.index(body.len() + 1) as u16).to_be_bytes());
        wire.extend(id.to_be_bytes());
        wire.extend(&body);
        prop_assert!(is_named(&decode(&wire)));
        // A walk over the fields ends, and an error is its last step.
        let walked: Vec<_> = Fields::new(&body).collect();
        let errors = walked.iter().filter(|field| field.is_err()).count();
        prop_assert!(errors == 0 || (errors == 1 && walked.last().is_some_and(Result::is_err)));
    }

    #[test]
    fn what_a_writer_checks_is_what_a_reader_takes(message in message(), limit in 16..2048u32) {
        let wire = common::encode_json(&message);
        let (frame, _) = Frame::parse(&wire, LIMIT)?.expect("the frame is whole");
        let decoded = Message::decode(&frame)?;
        let mut written = BytesMut::new();
        let checked = decoded.try_encode(&mut written, limit);
        prop_assert_eq!(checked.is_ok(), wire.len() as u32 <= limit);
        prop_assert_eq!(checked.is_ok(), !written.is_empty());
        prop_assert_eq!(Frame::parse(&wire, limit).is_ok(), checked.is_ok());
    }
}

#[test]
fn a_stream_holds_what_came_and_not_what_was_announced() {
    let mut stream = FrameStream::new(LIMIT);
    let mut header = (LIMIT - 4).to_be_bytes().to_vec();
    header.extend([FrameType::Task as u8, 0, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 1]);
    let mut came = 0;
    for piece in [header.as_slice(), &[0; 100], &[0; 1000], &[0; 30_000]] {
        stream.push(piece);
        came += piece.len();
        assert_eq!(stream.next_frame(), Ok(None));
        let held = stream.buffer_mut().capacity();
        assert!(held <= 2 * came + 64, "{held} bytes held for {came} that came");
    }
}

/// A frame of either usual kind, with some of its bytes changed and its end cut off.
fn nearly_usual() -> impl Strategy<Value = Vec<u8>> {
    let frame = (any::<bool>(), 0..4u64, text(1, 255), vec(any::<u8>(), 0..100)).prop_map(
        |(is_task, id, action, payload)| {
            let mut wire = BytesMut::new();
            if is_task {
                let task = Task { id, action: &action, options: TaskOptions::default(), payload: &payload };
                Message::Task(task).encode(&mut wire);
            } else {
                let (outcome, message) = (Outcome::Done, "");
                let result = TaskResult { id, outcome, message, service_ns: None, payload: &payload };
                Message::TaskResult(result).encode(&mut wire);
            }
            wire.to_vec()
        },
    );
    (frame, vec((0..40usize, any::<u8>()), 0..3), 0..4usize).prop_map(|(mut bytes, changes, cut)| {
        for (at, byte) in changes {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        bytes
    })
}

proptest! {
    #[test]
    fn the_short_way_takes_only_what_the_long_way_takes_and_understands_it_alike(
        bytes in nearly_usual(), limit in 16..400u32,
    ) {
        let whole = Frame::parse(&bytes, limit);
        let message = whole.as_ref().ok().copied().flatten().map(|(frame, length)| (Message::decode(&frame), length));
        if let Some((task, length)) = UsualTask::parse(&bytes, limit) {
            let (id, action, payload) = (task.id, task.action, task.payload);
            let same = Message::Task(Task { id, action, options: TaskOptions::default(), payload });
            prop_assert_eq!(&message, &Some((Ok(same), length)));
        } else if let Some((Ok(Message::Task(task)), _)) = &message {
            let frame = whole.expect("it was decoded").expect("it was decoded").0;
            let usual = task.options == TaskOptions::default()
                && frame.flags == 0
                && frame.fields.len() == 3 + task.action.len();
            prop_assert!(!usual, "a usual task is not taken");
        }
        if let Some((result, length)) = UsualResult::parse(&bytes, limit) {
            let (id, outcome, payload) = (result.id, Outcome::Done, result.payload);
            let same = Message::TaskResult(TaskResult { id, outcome, message: "", service_ns: None, payload });
            prop_assert_eq!(&message, &Some((Ok(same), length)));
        }
    }
}

proptest! {
    #[test]
    fn a_run_takes_only_what_one_by_one_is_taken_and_understands_it_alike(
        frames in vec(nearly_usual(), 1..6), limit in 16..400u32,
    ) {
        let bytes = frames.concat();
        if let Some(mut run) = UsualTasks::begin(&bytes, 0, limit) {
            let mut at = 0;
            while let Some((id, payload)) = run.next() {
                let (task, length) = UsualTask::parse(&bytes[at..], limit).expect("one by one it is taken");
                prop_assert_eq!((task.id, task.action, task.payload), (id, run.action(), payload));
                at += length;
                prop_assert_eq!(run.at(), at);
            }
            let next = UsualTask::parse(&bytes[at..], limit);
            prop_assert!(at > 0 && next.is_none_or(|(next, _)| next.action != run.action()));
        }
        if let Some(mut run) = UsualResults::begin(&bytes, 0, limit) {
            let mut at = 0;
            while let Some((id, payload)) = run.next() {
                let (result, length) = UsualResult::parse(&bytes[at..], limit).expect("one by one it is taken");
                prop_assert_eq!((result.id, result.payload), (id, payload));
                at += length;
                prop_assert_eq!(run.at(), at);
            }
            prop_assert!(at > 0 && UsualResult::parse(&bytes[at..], limit).is_none());
        }
    }
}
