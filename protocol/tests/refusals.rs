//! What a reader refuses, by name, and what a writer leaves for it to refuse.

use bytes::BytesMut;
use reparto_protocol::{
    Actions, AssignTask, ErrorCode, Fetch, Frame, FrameError, FrameStream, FrameType, HeldTasks, Hello,
    Message, Ping, Register, Role, Tag, Task, TaskOptions, limits,
};

/// A frame made by hand: header, fields, payload.
fn frame(kind: FrameType, flags: u8, id: u64, fields: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = ((12 + fields.len() + payload.len()) as u32).to_be_bytes().to_vec();
    bytes.extend([kind as u8, flags]);
    bytes.extend((fields.len() as u16).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend(fields);
    bytes.extend(payload);
    bytes
}

fn field(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Message<'_>, FrameError> {
    let (frame, length) = Frame::parse(bytes, limits::MAX_MAX_FRAME_BYTES)?.expect("the frame is whole");
    assert_eq!(length, bytes.len());
    Message::decode(&frame)
}

fn encode(message: &Message<'_>) -> BytesMut {
    let mut wire = BytesMut::new();
    message.encode(&mut wire);
    wire
}

fn task<'a>(id: u64, action: &'a str, options: TaskOptions<'a>, payload: &'a [u8]) -> Message<'a> {
    Message::Task(Task { id, action, options, payload })
}

fn register<'a>(worker_id: &'a str, actions: &'a [&'a str]) -> Message<'a> {
    Message::Register(Register {
        id: 1,
        worker_id,
        threads: 1,
        window: 1,
        weight: 1,
        service_ns: None,
        held: HeldTasks::NONE,
        actions: Actions::new(actions),
    })
}

#[test]
fn an_id_of_zero_is_refused_where_its_answer_would_look_like_the_connections() {
    let fetch = Message::Fetch(Fetch { id: 0, task_id: [1; 16], wait_ms: 0, describe: false });
    let assign = Message::AssignTask(AssignTask {
        id: 0,
        action: "upper",
        attempt: 1,
        deadline_ms: None,
        key: None,
        task_id: None,
        held: false,
        payload: b"",
    });
    for message in [task(0, "upper", TaskOptions::default(), b""), fetch, assign] {
        assert!(matches!(decode(&encode(&message)), Err(FrameError::NoId { .. })), "{message:?}");
    }
}

#[test]
fn a_hello_of_another_version_is_told_the_version_whatever_follows() {
    let mut magic = limits::MAGIC.to_be_bytes().to_vec();
    magic.extend(2u16.to_be_bytes());
    // A role that version 1 does not have, and a field that it may not skip.
    let fields = [field(0x01, &magic), field(0x03, &[9]), field(0xF0, b"new")].concat();
    for kind in [FrameType::Hello, FrameType::Welcome] {
        let bytes = frame(kind, 0, 0, &fields, b"");
        assert_eq!(decode(&bytes), Err(FrameError::UnsupportedVersion(2)));
    }
}

#[test]
fn a_magic_number_may_stand_once() {
    let magic = [limits::MAGIC.to_be_bytes().as_slice(), &[0, 1]].concat();
    let fields = [field(0x01, &magic), field(0x01, &magic), field(0x03, &[1])].concat();
    let bytes = frame(FrameType::Hello, 0, 0, &fields, b"");
    assert_eq!(decode(&bytes), Err(FrameError::Repeated { tag: Tag::Magic }));
}

#[test]
fn a_worker_offers_only_what_stands_in_action_fields() {
    // Fields that this version knows but that are no ACTION are passed over, and do not become names.
    let payload = [field(0x14, b"key"), field(0x10, b"upper"), field(0x04, b"agent")].concat();
    let bytes = frame(FrameType::Register, 0, 1, &field(0x20, b"w1"), &payload);
    let Ok(Message::Register(register)) = decode(&bytes) else { panic!("not taken") };
    assert_eq!(register.actions.iter().collect::<Vec<_>>(), ["upper"]);
}

#[test]
fn an_over_long_name_or_key_is_refused_and_never_taken_for_a_shorter_one() {
    let long = "é".repeat(200);
    let with_key = TaskOptions { key: Some(long.as_bytes()), ..TaskOptions::default() };
    let hello = Message::Hello(Hello {
        version: 1,
        role: Role::Client,
        features: 0,
        agent: "",
        token: long.as_bytes(),
    });
    let names = ["upper", long.as_str()];
    let cases = [
        (task(1, "upper", with_key, b""), Tag::Key),
        (task(1, &long, TaskOptions::default(), b""), Tag::Action),
        (register(&long, &["upper"]), Tag::WorkerId),
        (register("w1", &names), Tag::Action),
        (hello, Tag::Token),
    ];
    for (message, tag) in cases {
        let refused = FrameError::FieldLength { tag, length: 256 };
        assert_eq!(decode(&encode(&message)), Err(refused.clone()));
        let mut wire = BytesMut::from(&b"before"[..]);
        assert_eq!(message.try_encode(&mut wire, limits::DEFAULT_MAX_FRAME_BYTES), Err(refused));
        assert_eq!(wire, b"before"[..]);
    }
}

#[test]
fn more_actions_than_allowed_are_refused_and_not_dropped() {
    let names: Vec<String> = (0..limits::MAX_ACTIONS_PER_WORKER + 76).map(|i| format!("a{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let refused = Err(FrameError::Repeated { tag: Tag::Action });
    assert_eq!(decode(&encode(&register("w1", &names))), refused);
    let most = &names[..limits::MAX_ACTIONS_PER_WORKER];
    assert_eq!(decode(&encode(&register("w1", most))), Ok(register("w1", most)));
}

#[test]
fn an_empty_key_is_no_key() {
    let empty = TaskOptions { key: Some(b""), ..TaskOptions::default() };
    let wire = encode(&task(1, "upper", empty, b""));
    assert_eq!(decode(&wire), Ok(task(1, "upper", TaskOptions::default(), b"")));
}

#[test]
fn a_sentence_is_cut_at_a_character_and_taken() {
    let long = "é".repeat(3000);
    let message = Message::GoAway(reparto_protocol::GoAway { message: &long });
    let wire = encode(&message);
    let Ok(Message::GoAway(got)) = decode(&wire) else { panic!("not taken") };
    assert_eq!(got.message, "é".repeat(limits::MAX_MESSAGE_BYTES / 2));
}

#[test]
fn a_payload_past_what_the_length_can_say_is_announced_as_over_every_limit() {
    let result = Message::Result(reparto_protocol::TaskDone { id: 1, payload: b"" });
    let mut wire = BytesMut::new();
    result.encode_head(&mut wire, usize::MAX);
    let refused = Frame::parse(&wire, limits::MAX_MAX_FRAME_BYTES).map(|_| ());
    assert_eq!(refused.map_err(|error| error.code()), Err(ErrorCode::PayloadTooLarge));
}

#[test]
fn a_frame_over_the_readers_limit_is_not_written() {
    let payload = [7u8; 100];
    let message = task(1, "upper", TaskOptions::default(), &payload);
    let exact = encode(&message).len() as u32;
    let mut wire = BytesMut::new();
    assert_eq!(
        message.try_encode(&mut wire, exact - 1),
        Err(FrameError::TooLong { bytes: exact.into(), limit: exact - 1 })
    );
    assert!(wire.is_empty());
    assert_eq!(message.try_encode(&mut wire, exact), Ok(()));
    assert_eq!(wire, encode(&message));
}

#[test]
fn a_limit_that_leaves_no_room_is_refused() {
    let magic = [limits::MAGIC.to_be_bytes().as_slice(), &[0, 1]].concat();
    let welcome = |tag: u8, value: u32| {
        let mut numbers = [(0x05u8, limits::DEFAULT_MAX_FRAME_BYTES), (0x06, 5000), (0x07, 15000)];
        if let Some(number) = numbers.iter_mut().find(|(t, _)| *t == tag) {
            number.1 = value;
        }
        let numbers = numbers.iter().flat_map(|(tag, value)| field(*tag, &value.to_be_bytes()));
        frame(
            FrameType::Welcome,
            0,
            0,
            &field(0x01, &magic).into_iter().chain(numbers).collect::<Vec<_>>(),
            b"",
        )
    };
    assert!(decode(&welcome(0x05, limits::MIN_MAX_FRAME_BYTES)).is_ok());
    for (tag, value) in [(0x05, 0), (0x05, limits::MAX_MAX_FRAME_BYTES + 1), (0x06, 0), (0x07, 0)] {
        assert!(matches!(decode(&welcome(tag, value)), Err(FrameError::FieldRange { .. })), "{tag} {value}");
    }
}

#[test]
fn a_stream_repeats_its_error_and_gives_nothing_after_it() {
    let mut stream = FrameStream::new(1024);
    stream.push(&frame(FrameType::Ping, 0, 1, b"", b"")[..4]);
    stream.push(&[0xEE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    stream.push(&encode(&Message::Ping(Ping { id: 2 })));
    for _ in 0..2 {
        assert_eq!(stream.next_frame(), Err(FrameError::UnknownType(0xEE)));
    }
}

#[test]
fn a_header_is_judged_before_its_payload_comes() {
    let mut header = frame(FrameType::Task, 0, 1, b"", b"");
    header[6..8].copy_from_slice(&1u16.to_be_bytes());
    assert_eq!(Frame::parse(&header, 1024), Err(FrameError::FieldsOverrun { fields: 1, room: 0 }));
    let endless = 0x7FFF_FFFFu32.to_be_bytes();
    assert!(matches!(Frame::parse(&endless, 1024), Err(FrameError::TooLong { limit: 1024, .. })));
    assert_eq!(Frame::parse(&[0, 0, 0, 11], 1024), Err(FrameError::TooShort { length: 11 }));
}

#[test]
fn a_shared_secret_is_not_printed() {
    let hello =
        Message::Hello(Hello { version: 1, role: Role::Client, features: 0, agent: "", token: b"hunter2" });
    let printed = format!("{hello:?}");
    assert!(printed.contains("7 bytes") && !printed.contains("104"), "{printed}");
}
