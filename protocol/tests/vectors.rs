//! The vectors in protocol/vectors/, read both ways: hex to meaning, and meaning to hex.

mod common;

use std::collections::HashSet;
use std::path::Path;

use reparto_protocol::{Frame, FrameType, Message, limits};
use serde_json::Value;

fn load(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn valid() -> Vec<Value> {
    ["connection.json", "client.json", "worker.json"].iter().flat_map(|name| load(name)).collect()
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_else(|| panic!("no text {key} in {vector}"))
}

#[test]
fn every_valid_vector_decodes_to_its_meaning() {
    for vector in valid() {
        let bytes = common::from_hex(text(&vector, "hex"));
        let parsed = Frame::parse(&bytes, limits::DEFAULT_MAX_FRAME_BYTES);
        let Ok(Some((frame, length))) = parsed else { panic!("{}: {parsed:?}", vector["name"]) };
        assert_eq!(length, bytes.len(), "{}", vector["name"]);
        let message = Message::decode(&frame).unwrap_or_else(|error| panic!("{}: {error}", vector["name"]));
        assert_eq!(common::to_json(&message), vector["message"], "{}", vector["name"]);
    }
}

#[test]
fn every_canonical_vectors_meaning_encodes_to_its_hex() {
    for vector in valid().iter().filter(|vector| vector["canonical"] != false) {
        let wire = common::encode_json(&vector["message"]);
        assert_eq!(common::to_hex(&wire), text(vector, "hex"), "{}", vector["name"]);
    }
}

#[test]
fn every_invalid_vector_is_refused_for_its_reason() {
    for vector in load("invalid.json") {
        let bytes = common::from_hex(text(&vector, "hex"));
        let limit =
            vector["max_frame"].as_u64().map_or(limits::DEFAULT_MAX_FRAME_BYTES, |limit| limit as u32);
        let error = match Frame::parse(&bytes, limit) {
            Ok(Some((frame, _))) => Message::decode(&frame).err(),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let error = error.unwrap_or_else(|| panic!("{}: was not refused", vector["name"]));
        assert_eq!(error.code().name(), text(&vector, "error"), "{}", vector["name"]);
        assert_eq!(error.to_string(), text(&vector, "why"), "{}", vector["name"]);
    }
}

#[test]
fn every_frame_type_has_a_vector_and_every_name_is_used_once() {
    let vectors = valid();
    let types: HashSet<&str> = vectors.iter().map(|vector| text(&vector["message"], "type")).collect();
    for kind in FrameType::ALL {
        assert!(types.contains(kind.name()), "no vector for {kind}");
    }
    let mut names = HashSet::new();
    for vector in vectors.iter().chain(&load("invalid.json")) {
        assert!(names.insert(text(vector, "name").to_owned()), "{} stands twice", vector["name"]);
    }
}
