#!/usr/bin/env python3
"""Reads protocol/vectors/ and the exchanges in docs/PROTOCOL.md with the Python codec, which knows only the page.

    python3 tests/python/check_vectors.py

Exits with 1 and a sentence a vector that does not hold.
"""

import json
import pathlib
import sys

# No folder of compiled files in the source tree.
sys.dont_write_bytecode = True

import reparto_wire as wire  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def check_valid(vector):
    data = bytes.fromhex(vector["hex"])
    found = wire.split_frame(data)
    if found is None or found[1] != len(data):
        return "is not one whole frame"
    message = wire.decode(found[0])
    if message != vector["message"]:
        return f"decodes to {message}, not to {vector['message']}"
    if vector.get("canonical", True) and wire.encode(message) != data:
        return f"encodes to {wire.encode(message).hex()}"
    for cut in range(len(data)):
        if wire.split_frame(data[:cut]) is not None:
            return f"is taken for whole after {cut} bytes"
    return None


def check_invalid(vector):
    try:
        found = wire.split_frame(bytes.fromhex(vector["hex"]), vector.get("max_frame", wire.DEFAULT_MAX_FRAME))
        if found is None:
            return "waits for more bytes and is not refused"
        return f"is not refused, but taken for {wire.decode(found[0])}"
    except wire.WireError as error:
        if error.code != vector["error"]:
            return f"is refused with {error.code} ({error}), not with {vector['error']}"
    return None


def exchanges(page):
    """(title, bytes) of every frame in the page's hex blocks."""
    frames, inside = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```hex"
        elif inside and "|" in line:
            frames[-1][1].extend(bytes.fromhex(line.split("|")[0]))
        elif inside and line:
            frames.append((line, bytearray()))
    return frames


def main():
    wrong, count = [], 0
    for name in ("connection.json", "client.json", "worker.json", "invalid.json"):
        check = check_invalid if name == "invalid.json" else check_valid
        for vector in json.loads((ROOT / "protocol" / "vectors" / name).read_text(encoding="utf-8")):
            count += 1
            try:
                problem = check(vector)
            except wire.WireError as error:
                problem = f"is refused: {error}"
            if problem:
                wrong.append(f"{name}: '{vector['name']}' {problem}")
    page = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    for title, data in exchanges(page):
        count += 1
        try:
            found = wire.split_frame(data)
            if found is None or found[1] != len(data) or wire.decode(found[0])["type"] != title.split(": ")[1]:
                wrong.append(f"docs/PROTOCOL.md: '{title}' is not that frame")
        except wire.WireError as error:
            wrong.append(f"docs/PROTOCOL.md: '{title}' is refused: {error}")
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    print(f"{count - len(wrong)} of {count} vectors and frames hold")
    return 1 if wrong or count < 50 else 0


if __name__ == "__main__":
    sys.exit(main())
