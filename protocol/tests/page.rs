//! docs/PROTOCOL.md is the contract, so it is held to the code: its tables name every frame, field and error by
//! its number, and its worked exchanges decode to what they say.

mod common;

use std::path::Path;

use reparto_protocol::{ErrorCode, FrameStream, FrameType, Message, Tag, limits};
use serde_json::{Value, json};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the page's tables that begin with these two cells.
fn rows(page: &str, number: &str, name: &str) -> usize {
    page.lines().filter(|line| line.starts_with(&format!("| {number} | {name} |"))).count()
}

/// The page's exchanges: for each block, who sends and the bytes of each frame.
fn exchanges(page: &str) -> Vec<Vec<(String, Vec<u8>)>> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```hex" => {
                inside = true;
                blocks.push(Vec::new());
            }
            "```" => inside = false,
            _ if !inside || line.is_empty() => {}
            _ => {
                let frames: &mut Vec<(String, Vec<u8>)> = blocks.last_mut().expect("a block has begun");
                match (line.split_once('|'), frames.last_mut()) {
                    (None, _) => frames.push((line.to_owned(), Vec::new())),
                    (Some((hex, _)), Some((_, bytes))) => bytes.extend(common::from_hex(hex)),
                    (Some(_), None) => panic!("bytes before a frame's name: {line}"),
                }
            }
        }
    }
    blocks
}

fn decoded(exchange: &[(String, Vec<u8>)]) -> Vec<Value> {
    let decode = |(title, bytes): &(String, Vec<u8>)| {
        let mut stream = FrameStream::new(limits::DEFAULT_MAX_FRAME_BYTES);
        stream.push(bytes);
        let frame = stream.next_frame().expect("a frame").unwrap_or_else(|| panic!("{title}: not whole"));
        assert!(stream.buffer_mut().is_empty(), "{title}: bytes behind the frame");
        let message = Message::decode(&frame.as_frame()).unwrap_or_else(|error| panic!("{title}: {error}"));
        let json = common::to_json(&message);
        assert_eq!(title.split_once(": ").map(|(_, name)| name), json["type"].as_str());
        json
    };
    exchange.iter().map(decode).collect()
}

#[test]
fn every_frame_field_and_error_stands_in_its_table_once() {
    let page = page();
    for kind in FrameType::ALL {
        assert_eq!(rows(&page, &format!("0x{:02X}", *kind as u8), kind.name()), 1, "{kind}");
    }
    for tag in (0..=255).filter_map(Tag::from_byte) {
        assert_eq!(rows(&page, &format!("0x{:02X}", tag as u8), tag.name()), 1, "{tag}");
    }
    for code in ErrorCode::all() {
        assert_eq!(rows(&page, &code.number().to_string(), code.name()), 1, "{code}");
    }
}

#[test]
fn the_client_exchange_decodes_to_what_it_says() {
    let exchanges = exchanges(&page());
    let welcome = json!({"type": "WELCOME", "version": 1, "features": 0, "max_frame": 16_777_216,
        "heartbeat_ms": 5000, "silence_ms": 15000, "agent": "reparto/0.1.0"});
    let expected = vec![
        json!({"type": "HELLO", "version": 1, "role": "client", "features": 0, "agent": "doc/1", "token_hex": ""}),
        welcome,
        json!({"type": "TASK", "id": 1, "background": false, "action": "upper", "priority": 6,
            "payload_hex": common::to_hex(b"hola")}),
        json!({"type": "RESULT", "id": 1, "payload_hex": common::to_hex(b"HOLA")}),
    ];
    assert_eq!(decoded(&exchanges[0]), expected);
}

#[test]
fn the_worker_exchange_decodes_to_what_it_says() {
    let exchanges = exchanges(&page());
    let assignment = 1u64 << 32;
    let expected = vec![
        json!({"type": "HELLO", "version": 1, "role": "worker", "features": 0, "agent": "", "token_hex": ""}),
        decoded(&exchanges[0]).remove(1),
        json!({"type": "REGISTER", "id": 1, "worker_id": "worker-1", "threads": 2, "window": 16, "weight": 1,
            "actions": ["upper", "echo"]}),
        json!({"type": "ACK", "id": 1, "window": 16}),
        json!({"type": "ASSIGN_TASK", "id": assignment, "action": "upper", "attempt": 1,
            "payload_hex": common::to_hex(b"hola")}),
        json!({"type": "TASK_RESULT", "id": assignment, "outcome": "done", "message": "", "service_ns": 41000,
            "payload_hex": common::to_hex(b"HOLA")}),
    ];
    assert_eq!(decoded(&exchanges[1]), expected);
    assert_eq!(exchanges.len(), 2);
}
