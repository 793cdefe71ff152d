"""Reparto's frames, written from docs/PROTOCOL.md alone: bytes to messages and back.

A message is a dictionary of the form that protocol/vectors/README.md describes. Python 3.9 or later, standard
library only.
"""

import struct
import uuid

HEADER = struct.Struct(">IBBHQ")
LENGTH_BYTES = 4
MAGIC = b"RPTO"
VERSION = 1
DEFAULT_MAX_FRAME = 16 * 1024 * 1024
# What the balancer sends may be this much longer than MAX_FRAME.
RELAY_SLACK = 65_536
MAX_TIME_MS = 366 * 24 * 3600 * 1000
MAX_MOMENT_MS = 253_402_300_799_999
MAX_ACTIONS = 1024
MAX_HELD = 65_536

TYPES = {
    0x01: "HELLO", 0x02: "WELCOME", 0x03: "GOAWAY", 0x04: "PING", 0x05: "PONG", 0x06: "ERROR", 0x07: "STATUS",
    0x08: "STATUS_REPORT", 0x10: "TASK", 0x11: "ACCEPTED", 0x12: "RESULT", 0x13: "PROGRESS", 0x14: "CANCEL",
    0x15: "FETCH", 0x16: "TASK_STATE", 0x17: "LIST_TASKS", 0x18: "TASK_LIST", 0x19: "RETRY_TASK",
    0x1A: "DROP_TASK", 0x20: "REGISTER", 0x21: "ACK", 0x22: "ASSIGN_TASK", 0x23: "TASK_RESULT", 0x24: "DRAIN",
}
NUMBER_OF_TYPE = {name: number for number, name in TYPES.items()}

U8, U16, U32, U64 = (struct.Struct(form) for form in (">B", ">H", ">I", ">Q"))

# Tag: name, kind, least and most (of a number its value, of text and bytes their length).
TAGS = {
    0x01: ("magic", "bytes", 6, 6),
    0x02: ("features", U64, 0, 2**64 - 1),
    0x03: ("role", U8, 1, 2),
    0x04: ("agent", "text", 0, 255),
    0x05: ("max_frame", U32, 131_072, 1_073_741_824),
    0x06: ("heartbeat_ms", U32, 1, 2**32 - 1),
    0x07: ("silence_ms", U32, 1, 2**32 - 1),
    0x08: ("message", "text", 0, 4096),
    0x09: ("code", U16, 0, 2**16 - 1),
    0x0A: ("token", "bytes", 0, 255),
    0x10: ("action", "text", 1, 255),
    0x11: ("priority", U8, 0, 9),
    0x12: ("deadline_ms", U64, 0, MAX_TIME_MS),
    0x13: ("wait_ms", U64, 0, MAX_TIME_MS),
    0x14: ("key", "bytes", 1, 255),
    0x15: ("max_attempts", U8, 1, 255),
    0x16: ("attempt", U8, 1, 255),
    0x17: ("task_id", "bytes", 16, 16),
    0x18: ("delay_ms", U64, 0, MAX_TIME_MS),
    0x19: ("start_at_ms", U64, 0, MAX_MOMENT_MS),
    0x1A: ("backoff_first_ms", U32, 0, 2**32 - 1),
    0x1B: ("backoff_most_ms", U32, 0, 2**32 - 1),
    0x1C: ("idempotency_key", "bytes", 1, 255),
    0x1D: ("idempotency_ms", U64, 0, MAX_TIME_MS),
    0x20: ("worker_id", "text", 1, 255),
    0x21: ("threads", U32, 1, 65_536),
    0x22: ("window", U32, 1, 1_048_576),
    0x23: ("weight", U32, 1, 1000),
    0x24: ("service_ns", U64, 0, 2**64 - 1),
    0x30: ("done", U64, 0, 2**64 - 1),
    0x31: ("total", U64, 0, 2**64 - 1),
    0x40: ("offset", U32, 0, 2**32 - 1),
    0x41: ("limit", U32, 0, 2**32 - 1),
    0x50: ("state", U8, 0, 7),
    0x51: ("attempts", U8, 0, 255),
    0x52: ("created_at_ms", U64, 0, MAX_MOMENT_MS),
    0x53: ("due_at_ms", U64, 0, MAX_MOMENT_MS),
    0x54: ("ended_at_ms", U64, 0, MAX_MOMENT_MS),
    0x55: ("since_ms", U64, 0, MAX_MOMENT_MS),
}
TAG_OF = {name: tag for tag, (name, *_) in TAGS.items()}

# Frame: fields in the order in which we write them; those with a * are required.
FRAME_FIELDS = {
    "HELLO": ["*magic", "*role", "features", "agent", "token"],
    "WELCOME": ["*magic", "features", "*max_frame", "*heartbeat_ms", "*silence_ms", "agent"],
    "GOAWAY": ["message"],
    "PING": [],
    "PONG": [],
    "ERROR": ["*code", "message"],
    "STATUS": ["offset", "limit"],
    "STATUS_REPORT": [],
    "TASK": ["*action", "priority", "deadline_ms", "wait_ms", "key", "max_attempts", "delay_ms", "start_at_ms",
             "backoff_first_ms", "backoff_most_ms", "idempotency_key", "idempotency_ms"],
    "ACCEPTED": ["*task_id"],
    "RESULT": [],
    "PROGRESS": ["done", "total"],
    "CANCEL": ["task_id"],
    "FETCH": ["*task_id", "wait_ms"],
    "TASK_STATE": ["*task_id", "*state", "attempts", "*created_at_ms", "due_at_ms", "ended_at_ms"],
    "LIST_TASKS": ["action", "state", "since_ms", "task_id", "limit"],
    "TASK_LIST": [],
    "RETRY_TASK": ["*task_id"],
    "DROP_TASK": ["*task_id"],
    "REGISTER": ["*worker_id", "threads", "window", "weight", "service_ns"],
    "ACK": ["window"],
    "ASSIGN_TASK": ["*action", "attempt", "deadline_ms", "key", "task_id"],
    "TASK_RESULT": ["message", "service_ns"],
    "DRAIN": [],
}
# What stands in for a field that is not there; without an entry the message has no such key.
DEFAULTS = {
    "HELLO": {"features": 0, "agent": "", "token": b""},
    "WELCOME": {"features": 0, "agent": ""},
    "GOAWAY": {"message": ""},
    "ERROR": {"message": ""},
    "STATUS": {"offset": 0, "limit": 2**32 - 1},
    "PROGRESS": {"done": 0, "total": 0},
    "FETCH": {"wait_ms": 0},
    "TASK_STATE": {"attempts": 0},
    "LIST_TASKS": {"limit": 2**32 - 1},
    "REGISTER": {"threads": 1, "window": 1024, "weight": 1},
    "ACK": {"window": 0},
    "ASSIGN_TASK": {"attempt": 1},
    "TASK_RESULT": {"message": ""},
}
# Fields that are not written when they say what their absence says.
LEFT_OUT = {
    "HELLO": ["agent", "token"], "WELCOME": ["agent"], "FETCH": ["wait_ms"], "ASSIGN_TASK": ["attempt"],
    "TASK_RESULT": ["message"],
}
WITH_PAYLOAD = {
    "ERROR", "STATUS_REPORT", "TASK", "RESULT", "PROGRESS", "ASSIGN_TASK", "TASK_RESULT", "TASK_STATE", "TASK_LIST",
}
WITH_ID = set(FRAME_FIELDS) - {"HELLO", "WELCOME", "GOAWAY"}
NEEDS_ID = {
    "TASK", "FETCH", "ASSIGN_TASK", "ACCEPTED", "TASK_STATE", "LIST_TASKS", "TASK_LIST", "RETRY_TASK", "DROP_TASK",
}
OUTCOMES = ["done", "failed", "retry", "not_run"]
FLAG = {"TASK": "background", "CANCEL": "recall", "DRAIN": "resume"}
# Flags that a message names only when they are on, and their bits.
FLAG_IF_ON = {
    "TASK": ("record", 2), "ACCEPTED": ("duplicate", 1), "FETCH": ("describe", 1), "ASSIGN_TASK": ("held", 1),
}
# Fields of a TASK that have a use only where the task is kept.
KEPT_ONLY = {
    "delay_ms", "start_at_ms", "backoff_first_ms", "backoff_most_ms", "idempotency_key", "idempotency_ms",
}
STATES = ["scheduled", "queued", "running", "done", "failed", "dead", "cancelled", "expired"]

ERRORS = {
    1: "bad_frame", 2: "unsupported_version", 3: "unauthorized", 4: "forbidden", 5: "unknown_action",
    6: "duplicate_worker", 7: "duplicate_task", 8: "queue_full", 9: "payload_too_large", 10: "expired",
    11: "attempts_exhausted", 12: "worker_failed", 13: "cancelled", 14: "store_unavailable",
    15: "shutting_down", 16: "not_found", 17: "internal", 18: "overloaded", 19: "timed_out",
    1000: "connection_lost",
}


class WireError(Exception):
    """Bytes that a reader refuses, with the code that answers them."""

    def __init__(self, code, why):
        super().__init__(why)
        self.code = code


def bad(why):
    return WireError("bad_frame", why)


# ---- decoding ----


def split_frame(buffer, max_frame=DEFAULT_MAX_FRAME):
    """The frame at the beginning of a buffer and its length, or None when more bytes are needed.

    The frame is (type, flags, id, fields, payload).
    """
    if len(buffer) < LENGTH_BYTES:
        return None
    (length,) = U32.unpack_from(buffer)
    if length < HEADER.size - LENGTH_BYTES:
        raise bad(f"the length {length} leaves no room for the header")
    total = LENGTH_BYTES + length
    if total > max_frame:
        raise WireError("payload_too_large", f"a frame of {total} bytes is over the limit of {max_frame}")
    if len(buffer) < HEADER.size:
        return None
    _, number, flags, fields_len, frame_id = HEADER.unpack_from(buffer)
    if number not in TYPES:
        raise bad(f"no frame type 0x{number:02X}")
    if HEADER.size + fields_len > total:
        raise bad("the fields reach past the end of the frame")
    if len(buffer) < total:
        return None
    fields_end = HEADER.size + fields_len
    fields = bytes(buffer[HEADER.size:fields_end])
    return (TYPES[number], flags, frame_id, fields, bytes(buffer[fields_end:total])), total


def walk_fields(data):
    """Yields (tag, value) of every field whose tag is known; passes over the others, or refuses them."""
    at = 0
    while at < len(data):
        if at + 3 > len(data):
            raise bad("a field is cut off")
        tag, (length,) = data[at], U16.unpack_from(data, at + 1)
        value = data[at + 3:at + 3 + length]
        if len(value) < length:
            raise bad(f"field 0x{tag:02X} is cut off")
        at += 3 + length
        if tag in TAGS:
            yield tag, value
        elif tag >= 0x80:
            raise bad(f"field 0x{tag:02X} must be understood and is not known")


def field_value(tag, value, frame_type=None):
    name, kind, least, most = TAGS[tag]
    if (frame_type, name) == ("ACK", "window"):
        # A worker that drains has none.
        least, most = 0, 2**32 - 1
    if kind == "bytes" or kind == "text":
        if not least <= len(value) <= most:
            raise bad(f"{name} is {len(value)} bytes long")
        if kind == "bytes":
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad(f"{name} is not UTF-8") from error
    if len(value) != kind.size:
        raise bad(f"{name} is {len(value)} bytes long")
    (number,) = kind.unpack(value)
    if not least <= number <= most:
        raise bad(f"{name} is {number}, out of its range")
    return number


def check_magic(fields):
    """The first field of HELLO and WELCOME. Of another version nothing else is looked at."""
    first = next(walk_fields(fields), None)
    if first is None or first[0] != TAG_OF["magic"] or len(first[1]) != 6 or first[1][:4] != MAGIC:
        raise bad("this does not begin with the magic number")
    (version,) = U16.unpack(first[1][4:])
    if version != VERSION:
        raise WireError("unsupported_version", f"version {version} is not spoken here")


def decode(frame):
    """A frame, as split_frame gives it, understood."""
    kind, flags, frame_id, fields, payload = frame
    wanted = {name.lstrip("*") for name in FRAME_FIELDS[kind]}
    if kind == "TASK" and not flags & 3:
        wanted -= KEPT_ONLY
    if "magic" in wanted:
        check_magic(fields)
    got = {}
    for tag, value in walk_fields(fields):
        name = TAGS[tag][0]
        if name not in wanted:
            continue
        if name in got:
            raise bad(f"{name} stands twice")
        got[name] = field_value(tag, value, kind)
    for name in FRAME_FIELDS[kind]:
        if name.startswith("*") and name[1:] not in got:
            raise bad(f"{kind} needs {name[1:]}")
    if kind in NEEDS_ID and frame_id == 0:
        raise bad(f"{kind} has the id 0")
    got = {**DEFAULTS.get(kind, {}), **got}
    message = {"type": kind}
    if kind in WITH_ID:
        message["id"] = frame_id
    if kind in FLAG:
        message[FLAG[kind]] = bool(flags & 1)
    if kind in FLAG_IF_ON and flags & FLAG_IF_ON[kind][1]:
        message[FLAG_IF_ON[kind][0]] = True
    if kind == "TASK_RESULT":
        message["outcome"] = OUTCOMES[flags & 3]
    if kind == "REGISTER":
        got["window"] = max(got["window"], got["threads"])
        message["actions"] = decode_actions(payload)
        held = decode_held(payload)
        if held:
            message["held"] = held
    if kind == "ERROR":
        message["code_number"] = got["code"]
        got["code"] = ERRORS.get(got["code"], "unknown")
    if "magic" in got:
        del got["magic"]
        message["version"] = VERSION
    if "role" in got:
        got["role"] = "client" if got["role"] == 1 else "worker"
    if "state" in got:
        got["state"] = STATES[got["state"]]
    if "task_id" in got:
        got["task_id"] = str(uuid.UUID(bytes=got["task_id"]))
    for name, value in got.items():
        message[name + "_hex" if isinstance(value, bytes) else name] = (
            value.hex() if isinstance(value, bytes) else value)
    if kind in WITH_PAYLOAD:
        message["payload_hex"] = payload.hex()
    return message


def decode_actions(payload):
    tag = TAG_OF["action"]
    actions = [field_value(tag, value) for found, value in walk_fields(payload) if found == tag]
    if len(actions) > MAX_ACTIONS:
        raise bad(f"{len(actions)} actions are more than {MAX_ACTIONS}")
    return actions


def decode_held(payload):
    tag = TAG_OF["task_id"]
    held = [field_value(tag, value) for found, value in walk_fields(payload) if found == tag]
    if len(held) > MAX_HELD:
        raise bad(f"{len(held)} tasks are more than {MAX_HELD}")
    return [str(uuid.UUID(bytes=task)) for task in held]


# ---- encoding ----


def put_field(name, value):
    tag = TAG_OF[name]
    kind = TAGS[tag][1]
    if kind == "text":
        value = value.encode("utf-8")
    elif kind != "bytes":
        value = kind.pack(value)
    return bytes([tag]) + U16.pack(len(value)) + value


def frame(kind, frame_id=0, flags=0, fields=(), payload=b""):
    """A whole frame from its parts; fields are (name, value)."""
    body = b"".join(put_field(name, value) for name, value in fields)
    length = HEADER.size - LENGTH_BYTES + len(body) + len(payload)
    return HEADER.pack(length, NUMBER_OF_TYPE[kind], flags, len(body), frame_id) + body + payload


def encode(message):
    """The frame of a message as the vectors write it."""
    kind = message["type"]
    values = dict(message)
    for name in ("token", "key", "idempotency_key"):
        if name + "_hex" in values:
            values[name] = bytes.fromhex(values[name + "_hex"])
    if "task_id" in values:
        values["task_id"] = uuid.UUID(values["task_id"]).bytes
    if "state" in values:
        values["state"] = STATES.index(values["state"])
    if "role" in values:
        values["role"] = 1 if values["role"] == "client" else 2
    if "version" in values:
        values["magic"] = MAGIC + U16.pack(values["version"])
    if "code_number" in values:
        values["code"] = values["code_number"]
    flags = 0
    if kind in FLAG:
        flags = int(values[FLAG[kind]])
    if kind in FLAG_IF_ON and values.get(FLAG_IF_ON[kind][0]):
        flags |= FLAG_IF_ON[kind][1]
    if kind == "TASK_RESULT":
        flags = OUTCOMES.index(values["outcome"])
    fields = []
    for name in (name.lstrip("*") for name in FRAME_FIELDS[kind]):
        value = values.get(name)
        silent = name in LEFT_OUT.get(kind, ()) and value == DEFAULTS[kind][name]
        if value is not None and not silent:
            fields.append((name, value))
    payload = bytes.fromhex(values.get("payload_hex", ""))
    if kind == "REGISTER":
        payload = b"".join(put_field("action", action) for action in values["actions"])
        payload += b"".join(put_field("task_id", uuid.UUID(task).bytes) for task in values.get("held", ()))
    return frame(kind, values.get("id", 0), flags, fields, payload)
