"""The checks of `reparto_peer.py selftest`: what docs/PROTOCOL.md promises, tried on a running balancer.

Each check's name is the rule that it checks. They wait for conditions with a long patience and never for a time,
except where a rule is about time.
"""

import concurrent.futures
import os
import queue
import socket
import sys
import threading
import time

import reparto_peer as peer
import reparto_wire as wire

PATIENCE_S = peer.PATIENCE_S
TASKS = 1000

# So that several runs, and other peers, can share a balancer.
OWN = f"python-selftest-{os.getpid()}"


def action(name):
    return f"{OWN}/{name}"


def check(holds, sentence):
    if not holds:
        raise AssertionError(sentence)


def code_of(answer):
    """The error code that an answer brings, or `done`."""
    try:
        answer.result(PATIENCE_S)
        return "done"
    except peer.RepartoError as error:
        return error.code


class Bench:
    """A client, and a worker whose handlers the checks steer."""

    def __init__(self, clients, workers):
        self.clients, self.workers = clients, workers
        self.gate = threading.Event()
        self.begun = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.runs = []
        handlers = {
            action("upper"): lambda task: task.payload.upper(),
            action("echo"): lambda task: task.payload,
            action("fail"): self.fail,
            action("flaky"): self.flaky,
            action("wait"): self.wait,
            action("count"): self.count,
            action("measure"): self.measure,
        }
        self.worker = peer.Worker(workers, OWN, handlers, threads=4)
        self.client = peer.Client(clients)

    def fail(self, task):
        raise peer.Failed("it was not to be", b"\x00\xff")

    def flaky(self, task):
        self.runs.append(task.attempt)
        raise peer.Retry("try again")

    def wait(self, task):
        self.runs.append(task.payload)
        self.begun.put(task)
        while not self.gate.is_set():
            if task.cancelled.wait(0.01):
                self.cancelled.set()
                break
        return task.payload

    def count(self, task):
        for done in range(1, 4):
            task.progress(done, 3, b"step")
        return b"counted"

    def measure(self, task):
        if task.attempt == 1:
            raise peer.Retry("once more, now with the field ATTEMPT")
        return str(len(task.payload)).encode()

    def close(self):
        self.gate.set()
        self.client.close()
        self.worker.close()


def a_task_comes_back_as_its_result(bench):
    result = bench.client.run(action("upper"), b"hola")
    check(result == b"HOLA", f"upper of 'hola' gave {result!r}")
    check(bench.client.run(action("echo")) == b"", "an empty payload did not come back empty")
    large = os.urandom(1 << 20)
    check(bench.client.run(action("echo"), large) == large, "a MiB came back changed")


def a_thousand_tasks_are_in_flight_and_answered_out_of_order(bench):
    """A worker that holds them all and answers from the last to the first."""
    connection = peer.Connection(bench.workers, "worker")
    connection.socket.settimeout(PATIENCE_S)
    name = action("reversed")
    connection.send(wire.encode({
        "type": "REGISTER", "id": 1, "worker_id": f"{OWN}-reversed", "threads": TASKS, "window": TASKS,
        "weight": 1, "actions": [name]}))
    ack = connection.receive()
    check(ack is not None and (ack["type"], ack["window"]) == ("ACK", TASKS), f"REGISTER was answered with {ack}")

    order, lock = [], threading.Lock()
    answers = {}
    for number in range(TASKS):
        _, answer = bench.client.submit(name, f"task {number}".encode())
        answers[number] = answer

        def ended(_, number=number):
            with lock:
                order.append(number)

        answer.add_done_callback(ended)
    held = []
    while len(held) < TASKS:
        message = connection.receive()
        check(message is not None, f"the worker's connection ended with {len(held)} tasks held")
        if message["type"] == "PING":
            connection.send(wire.frame("PONG", message["id"]))
        elif message["type"] == "ASSIGN_TASK":
            held.append(message)
    check(len({message["id"] for message in held}) == TASKS, "two assignments have one id")
    check(not order, "a task was answered before its worker answered")
    connection.send(b"".join(
        wire.frame("TASK_RESULT", message["id"], 0, (), bytes.fromhex(message["payload_hex"]) + b" done")
        for message in reversed(held)))
    for number, answer in answers.items():
        result = answer.result(PATIENCE_S)
        check(result == f"task {number} done".encode(), f"task {number} was answered with {result!r}")
    expected = [int(bytes.fromhex(message["payload_hex"]).split()[1]) for message in reversed(held)]
    # Whoever waits for an answer is woken before its callbacks are called.
    give_up_at = time.monotonic() + PATIENCE_S
    while len(order) < TASKS and time.monotonic() < give_up_at:
        time.sleep(0.01)
    with lock:
        check(order == expected, "the results did not come as the worker gave them")
    connection.close()


def a_failed_task_is_answered_with_its_sentence_and_payload(bench):
    try:
        bench.client.run(action("fail"))
    except peer.RepartoError as error:
        check(error.code == "worker_failed", f"a failed task was answered with {error.code}")
        check(error.message == "it was not to be", f"its sentence came as '{error.message}'")
        check(error.payload == b"\x00\xff", f"its payload came as {error.payload!r}")
        return
    raise AssertionError("a failed task was answered with a result")


def a_retried_task_uses_up_its_attempts(bench):
    bench.runs.clear()
    _, answer = bench.client.submit(action("flaky"), max_attempts=2)
    code = code_of(answer)
    check(code == "attempts_exhausted", f"two attempts used up were answered with {code}")
    check(bench.runs == [1, 2], f"the attempts were numbered {bench.runs}")


def the_largest_task_reaches_its_worker_again(bench):
    """A TASK of MAX_FRAME bytes; in its second attempt the ASSIGN_TASK is longer than that."""
    most = min(bench.client.connection.max_frame, 32 << 20)
    head = len(peer.Client.task_frame(1, action("measure"), b""))
    payload = bytes(most - head)
    result = bench.client.run(action("measure"), payload)
    check(result == str(len(payload)).encode(), f"{len(payload)} bytes arrived as {result!r}")


def an_action_that_nobody_offers_expires_or_is_refused(bench):
    started = time.monotonic()
    code = code_of(bench.client.submit(action("nobody"), wait_ms=200)[1])
    check(code in ("expired", "unknown_action"), f"it was answered with {code}")
    check(code != "expired" or time.monotonic() - started >= 0.19, "it expired before its time")


def a_deadline_ends_a_running_task_and_cancels_it_at_its_worker(bench):
    # One that had no time even to begin is handed in again, with more of it.
    for deadline_ms in (300, 3_000, 30_000):
        bench.gate.clear()
        bench.cancelled.clear()
        while not bench.begun.empty():
            bench.begun.get()
        code = code_of(bench.client.submit(action("wait"), b"deadline", deadline_ms=deadline_ms)[1])
        check(code == "expired", f"a deadline that passed was answered with {code}")
        if not bench.begun.empty():
            break
    check(bench.cancelled.wait(PATIENCE_S), "the worker was not told that the task is over")


def a_cancelled_task_is_answered_and_its_worker_told(bench):
    bench.gate.clear()
    bench.cancelled.clear()
    while not bench.begun.empty():
        bench.begun.get()
    number, answer = bench.client.submit(action("wait"), b"cancel")
    bench.begun.get(timeout=PATIENCE_S)
    bench.client.cancel(number)
    code = code_of(answer)
    check(code == "cancelled", f"a cancelled task was answered with {code}")
    check(bench.cancelled.wait(PATIENCE_S), "the worker was not told of the cancel")
    # One that is over is no error.
    bench.client.cancel(number)
    check(bench.client.run(action("upper"), b"on") == b"ON", "the connection ended with a late CANCEL")


def progress_reaches_the_client_before_the_result(bench):
    seen = []
    result = bench.client.run(action("count"), on_progress=lambda *what: seen.append(what))
    check(result == b"counted", f"count gave {result!r}")
    check(seen == [(1, 3, b"step"), (2, 3, b"step"), (3, 3, b"step")], f"the progress was {seen}")


def tasks_of_one_key_share_a_run(bench):
    bench.gate.clear()
    bench.runs.clear()
    answers = [bench.client.submit(action("wait"), b"shared", key=b"one")[1] for _ in range(5)]
    # Frames of one connection are taken in order, so with the PONG all five have been.
    bench.client.ping()
    bench.gate.set()
    for answer in answers:
        check(answer.result(PATIENCE_S) == b"shared", "a task that shares a run has another result")
    check(len(bench.runs) == 1, f"tasks of one key ran {len(bench.runs)} times")


def a_ping_is_answered_with_a_pong_of_its_number(bench):
    check(bench.client.ping()["type"] == "PONG", "a client's PING was not answered with a PONG")
    bench.worker.ping()


def a_silent_worker_is_pinged(bench):
    heartbeat_s = bench.worker.connection.welcome["heartbeat_ms"] / 1000
    if heartbeat_s > 10:
        print(f"  (the heartbeat is {heartbeat_s} s: not waited for)")
        return
    connection = peer.Connection(bench.workers, "worker")
    connection.socket.settimeout(heartbeat_s + PATIENCE_S)
    connection.send(wire.encode({"type": "REGISTER", "id": 1, "worker_id": f"{OWN}-silent", "threads": 1,
                                 "window": 1, "weight": 1, "actions": []}))
    kinds = []
    while "PING" not in kinds:
        message = connection.receive()
        check(message is not None, "a silent worker's connection ended without a PING")
        kinds.append(message["type"])
    connection.close()


def a_task_id_in_flight_may_not_be_used_twice(bench):
    connection = peer.Connection(bench.clients, "client")
    connection.socket.settimeout(PATIENCE_S)
    bench.gate.clear()
    frame = peer.Client.task_frame(7, action("wait"), b"twice")
    connection.send(frame + frame)
    first = connection.receive()
    check(first is not None and first.get("code") == "duplicate_task" and first["id"] == 7,
          f"the second task 7 was answered with {first}")
    bench.gate.set()
    second = connection.receive()
    check(second is not None and (second["type"], second["id"]) == ("RESULT", 7),
          f"the first task 7 was answered with {second}")
    connection.close()


def a_bad_frame_is_answered_with_its_reason_and_ends_the_connection(bench):
    cases = [
        ("an unknown frame type", b"\x00\x00\x00\x0c\xee\x00\x00\x00" + bytes(8), "bad_frame"),
        ("a length of nothing", bytes(4), "bad_frame"),
        ("a frame that only the balancer sends", wire.frame("WELCOME"), "bad_frame"),
        ("a TASK without an action", wire.frame("TASK", 1), "bad_frame"),
        ("a TASK with the id 0", peer.Client.task_frame(0, "x", b""), "bad_frame"),
        ("a frame over the limit", b"\xff\xff\xff\xff", "payload_too_large"),
    ]
    for what, data, code in cases:
        connection = peer.Connection(bench.clients, "client")
        connection.socket.settimeout(PATIENCE_S)
        connection.send(data)
        expect_end(connection, what, code)


def expect_end(connection, what, code):
    error = connection.receive()
    check(error is not None, f"{what} ended the connection without an ERROR")
    check(error["type"] == "ERROR" and error["id"] == 0 and error["code"] == code,
          f"{what} was answered with {error}, not with {code}")
    check(error["message"] != "", f"{what} was answered without a sentence")
    check(connection.receive() is None, f"{what} did not end the connection")
    connection.close()


def a_stranger_is_told_why(bench):
    magic = bytes([1, 0, 6]) + wire.MAGIC
    role = bytes([3, 0, 1, 1])
    cases = [
        ("no magic number", wire.frame("HELLO", 0, 0, [("role", 1)]), "bad_frame"),
        ("version 2", raw_frame(0x01, magic + b"\x00\x02" + role), "unsupported_version"),
        ("a role of the other listener", raw_frame(0x01, magic + b"\x00\x01" + bytes([3, 0, 1, 2])), "bad_frame"),
        ("a TASK before HELLO", peer.Client.task_frame(1, "x", b""), "bad_frame"),
    ]
    for what, data, code in cases:
        connection = Stranger(bench.clients)
        connection.socket.sendall(data)
        expect_end(connection, what, code)


def raw_frame(number, fields):
    return wire.HEADER.pack(12 + len(fields), number, 0, len(fields), 0) + fields


class Stranger(peer.Connection):
    """A connection that has not said HELLO."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=PATIENCE_S)
        self.lock, self.buffer = threading.Lock(), bytearray()
        self.max_frame = wire.DEFAULT_MAX_FRAME


def a_worker_id_in_use_is_refused(bench):
    try:
        peer.Worker(bench.workers, OWN, {})
    except peer.RepartoError as error:
        check(error.code == "duplicate_worker", f"a second worker of one id was refused with {error.code}")
        return
    raise AssertionError("a second worker of one id was taken")


def a_worker_may_change_its_actions(bench):
    name = action("later")
    _, answer = bench.client.submit(name, b"now")
    bench.worker.handlers[name] = lambda task: task.payload + b"!"
    bench.worker.register()
    code = code_of(answer)
    check(code in ("done", "unknown_action"), f"an action that came later was answered with {code}")
    check(bench.client.run(name, b"now") == b"now!", "an action that came later does not run")


def a_draining_worker_is_given_nothing_until_it_resumes(bench):
    window = bench.worker.drain()
    check(window == 0, f"DRAIN was acknowledged with the window {window}")
    code = code_of(bench.client.submit(action("upper"), b"late", wait_ms=300)[1])
    check(code in ("expired", "unknown_action"), f"a task for a draining worker was answered with {code}")
    _, answer = bench.client.submit(action("upper"), b"again")
    window = bench.worker.drain(resume=True)
    check(window == bench.worker.window, f"resuming was acknowledged with the window {window}")
    code = code_of(answer)
    check(code in ("done", "unknown_action"), f"a task that waited for the resumed worker ended with {code}")
    check(bench.client.run(action("upper"), b"more") == b"MORE", "a resumed worker is given nothing")


def a_lost_workers_tasks_are_given_to_another(bench):
    name = action("inherited")
    first = peer.Connection(bench.workers, "worker")
    first.socket.settimeout(PATIENCE_S)
    first.send(wire.encode({"type": "REGISTER", "id": 1, "worker_id": f"{OWN}-lost", "threads": 8, "window": 8,
                            "weight": 1, "actions": [name]}))
    first.receive()
    answers = [bench.client.submit(name, str(number).encode())[1] for number in range(20)]
    first.receive()
    # With the PONG all twenty have been taken.
    bench.client.ping()
    bench.worker.handlers[name] = lambda task: task.payload + b" of attempt %d" % task.attempt
    first.close()
    bench.worker.register()
    attempts = set()
    for number, answer in enumerate(answers):
        payload, _, attempt = answer.result(PATIENCE_S).partition(b" of attempt ")
        check(payload == str(number).encode(), f"task {number} was answered with {payload!r}")
        attempts.add(int(attempt))
    check(attempts == {1, 2}, f"tasks of a lost worker ran in the attempts {attempts}")


def a_background_task_is_refused_by_a_balancer_without_a_store(bench):
    code = code_of(bench.client.submit(action("upper"), b"later", background=True)[1])
    check(code == "store_unavailable", f"a background task was answered with {code}")
    try:
        bench.client.fetch(os.urandom(16))
        raise AssertionError("FETCH was answered with a result")
    except peer.RepartoError as error:
        check(error.code == "store_unavailable", f"FETCH was answered with {error.code}")


def the_status_report_tells_of_its_workers(bench):
    report = bench.client.status()
    totals = ("clients", "workers", "actions", "queued", "running", "bytes", "submitted", "refused", "done",
              "failed", "requeued", "workers_lost")
    check(set(totals) <= set(report["totals"]), f"the totals are {sorted(report['totals'])}")
    own = [worker for worker in report["workers"] if worker["id"] == OWN]
    check(len(own) == 1, f"the report tells {len(own)} times of this worker")
    check(action("upper") in own[0]["actions"] and own[0]["threads"] == 4, f"it tells {own[0]}")
    check(own[0]["done"] > 0 and own[0]["service_ns"] is not None, f"it tells {own[0]}")
    names = {row["name"] for row in report["actions"]}
    check(action("upper") in names, "the report does not tell of this worker's action")
    check(report["workers_total"] == len(report["workers"]), "the pages do not make up the whole")


CHECKS = [
    a_task_comes_back_as_its_result,
    a_thousand_tasks_are_in_flight_and_answered_out_of_order,
    a_failed_task_is_answered_with_its_sentence_and_payload,
    a_retried_task_uses_up_its_attempts,
    the_largest_task_reaches_its_worker_again,
    an_action_that_nobody_offers_expires_or_is_refused,
    a_deadline_ends_a_running_task_and_cancels_it_at_its_worker,
    a_cancelled_task_is_answered_and_its_worker_told,
    progress_reaches_the_client_before_the_result,
    tasks_of_one_key_share_a_run,
    a_ping_is_answered_with_a_pong_of_its_number,
    a_silent_worker_is_pinged,
    a_task_id_in_flight_may_not_be_used_twice,
    a_bad_frame_is_answered_with_its_reason_and_ends_the_connection,
    a_stranger_is_told_why,
    a_worker_id_in_use_is_refused,
    a_worker_may_change_its_actions,
    a_draining_worker_is_given_nothing_until_it_resumes,
    a_lost_workers_tasks_are_given_to_another,
    a_background_task_is_refused_by_a_balancer_without_a_store,
    the_status_report_tells_of_its_workers,
]


def run(clients, workers):
    """Runs every check; ends the process with 1 if one does not hold."""
    bench = Bench(clients, workers)
    wrong = 0
    for rule in CHECKS:
        name = rule.__name__.replace("_", " ")
        try:
            rule(bench)
            print(f"ok: {name}", flush=True)
        except (AssertionError, peer.RepartoError, OSError, wire.WireError, queue.Empty,
                concurrent.futures.TimeoutError) as error:
            wrong += 1
            reason = error if str(error) else f"nothing came in {PATIENCE_S} s ({type(error).__name__})"
            print(f"FAILED: {name}: {reason}", file=sys.stderr, flush=True)
        finally:
            # Whatever waits at the worker may go.
            bench.gate.set()
    if bench.client.unexpected:
        wrong += 1
        print(f"FAILED: frames that nobody waited for: {bench.client.unexpected[:3]}", file=sys.stderr)
    bench.close()
    if wrong:
        print(f"selftest: {wrong} of {len(CHECKS)} rules do not hold", file=sys.stderr)
        sys.exit(1)
    print(f"selftest: {len(CHECKS)} rules hold")
