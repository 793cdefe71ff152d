#!/usr/bin/env python3
"""A Reparto worker and client in Python, standard library only, written from docs/PROTOCOL.md alone.

    python3 tests/python/reparto_peer.py worker 127.0.0.1:8889
    python3 tests/python/reparto_peer.py client 127.0.0.1:8888 upper hola
    python3 tests/python/reparto_peer.py status 127.0.0.1:8888
    python3 tests/python/reparto_peer.py selftest 127.0.0.1:8888 127.0.0.1:8889

`selftest` joins a running balancer as a worker and as a client, checks what the page promises, and exits with 1
and a sentence when something does not hold. It can share the balancer with others: its actions' names are its
own.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import socket
import sys
import threading
import time

# No folder of compiled files in the source tree.
sys.dont_write_bytecode = True

import reparto_wire as wire  # noqa: E402

# Generous, so that nothing hangs on how fast the machine is: an answer that takes longer is missing.
PATIENCE_S = 60.0


class RepartoError(Exception):
    """An ERROR frame, or a connection that ended."""

    def __init__(self, code, message, payload=b""):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.payload = code, message, payload


class Retry(Exception):
    """Raised by a handler whose task may do better in another attempt."""


class Failed(Exception):
    """Raised by a handler whose task failed for good."""

    def __init__(self, message, payload=b""):
        super().__init__(message)
        self.payload = payload


def parse_address(text):
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not HOST:PORT, such as 127.0.0.1:8888")
    return host.strip("[]"), int(port)


class Connection:
    """A socket that speaks frames: HELLO and WELCOME done, any thread may send, one thread receives."""

    def __init__(self, address, role):
        self.socket = socket.create_connection(address, timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lock = threading.Lock()
        self.buffer = bytearray()
        self.max_frame = wire.DEFAULT_MAX_FRAME
        self.send(wire.encode({"type": "HELLO", "version": 1, "role": role, "features": 0,
                               "agent": "reparto-peer-python/1", "token_hex": ""}))
        self.welcome = self.receive()
        if self.welcome is None:
            raise RepartoError("connection_lost", "the balancer closed the connection before WELCOME")
        if self.welcome["type"] == "ERROR":
            raise RepartoError(self.welcome["code"], self.welcome["message"])
        if self.welcome["type"] != "WELCOME":
            raise RepartoError("bad_frame", f"{self.welcome['type']} came instead of WELCOME")
        self.max_frame = self.welcome["max_frame"]
        # From here on silence is the business of PING and PONG.
        self.socket.settimeout(None)

    def send(self, data):
        with self.lock:
            self.socket.sendall(data)

    def receive(self):
        """The next message, or None at the end of the stream."""
        while True:
            found = wire.split_frame(self.buffer, self.max_frame + wire.RELAY_SLACK)
            if found is not None:
                parts, length = found
                del self.buffer[:length]
                return wire.decode(parts)
            try:
                data = self.socket.recv(262_144)
            except (ConnectionError, OSError):
                data = b""
            if not data:
                return None
            self.buffer += data

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


class Task:
    """What a handler gets: an ASSIGN_TASK, and ways to say something about it."""

    def __init__(self, worker, assignment):
        self.worker = worker
        self.id = assignment["id"]
        self.action = assignment["action"]
        self.attempt = assignment["attempt"]
        self.deadline_ms = assignment.get("deadline_ms")
        self.payload = bytes.fromhex(assignment["payload_hex"])
        self.cancelled = threading.Event()

    def progress(self, done, total=0, payload=b""):
        self.worker.connection.send(
            wire.frame("PROGRESS", self.id, 0, [("done", done), ("total", total)], payload))


class Worker:
    """Registers, runs each task's handler in one of its threads, and answers each exactly once."""

    def __init__(self, address, worker_id, handlers, threads=4, window=1024):
        self.worker_id, self.handlers, self.threads, self.window = worker_id, dict(handlers), threads, window
        self.connection = Connection(address, "worker")
        self.lock = threading.Lock()
        self.waiting = queue.SimpleQueue()
        self.begun, self.held = set(), {}
        self.acks, self.requests = {}, 0
        self.mean_ns, self.told_ns = None, None
        self.gone = threading.Event()
        self.error = None
        for number in range(threads):
            threading.Thread(target=self._run, name=f"{worker_id}-{number}", daemon=True).start()
        threading.Thread(target=self._receive, name=f"{worker_id}-reader", daemon=True).start()
        self.register()

    # ---- requests ----

    def register(self):
        """Says, or says anew, what this worker runs; gives the window in force."""
        return self._request(lambda number: wire.encode({
            "type": "REGISTER", "id": number, "worker_id": self.worker_id, "threads": self.threads,
            "window": self.window, "weight": 1, "actions": list(self.handlers)}))

    def drain(self, resume=False):
        """Takes nothing new, or takes work again; gives the window in force."""
        return self._request(lambda number: wire.frame("DRAIN", number, int(resume)))

    def ping(self):
        return self._request(lambda number: wire.frame("PING", number))

    def close(self):
        self.connection.close()
        for _ in range(self.threads):
            self.waiting.put(None)

    def _request(self, build):
        with self.lock:
            self.requests += 1
            number, answer = self.requests, concurrent.futures.Future()
            self.acks[number] = answer
        if self.gone.is_set():
            raise self.error
        self.connection.send(build(number))
        return answer.result(PATIENCE_S)

    # ---- what comes ----

    def _receive(self):
        error = RepartoError("connection_lost", "the balancer closed the connection")
        try:
            while (message := self.connection.receive()) is not None:
                kind = message["type"]
                if kind == "ERROR":
                    error = RepartoError(message["code"], message["message"])
                self._take(kind, message)
        except (wire.WireError, OSError) as broken:
            error = RepartoError("bad_frame", str(broken))
        self.error = error
        self.gone.set()
        with self.lock:
            answers, self.acks = list(self.acks.values()), {}
        for answer in answers:
            answer.set_exception(error)

    def _take(self, kind, message):
        if kind == "ASSIGN_TASK":
            task = Task(self, message)
            with self.lock:
                self.held[task.id] = task
            self.waiting.put(task)
        elif kind == "CANCEL":
            self._cancel(message["id"], message["recall"])
        elif kind == "PING":
            self.connection.send(wire.frame("PONG", message["id"]))
        elif kind in ("ACK", "PONG"):
            with self.lock:
                answer = self.acks.pop(message["id"], None)
            if answer:
                answer.set_result(message.get("window"))

    def _cancel(self, number, recall):
        with self.lock:
            task = self.held.get(number)
            not_begun = task is not None and number not in self.begun
            if not_begun:
                # Its thread will find that it is not held any more.
                del self.held[number]
        if not_begun:
            self._answer(number, "not_run")
        elif task is not None and not recall:
            task.cancelled.set()

    # ---- what runs ----

    def _run(self):
        while (task := self.waiting.get()) is not None:
            with self.lock:
                if task.id not in self.held:
                    continue
                self.begun.add(task.id)
            started = time.perf_counter_ns()
            try:
                outcome, message, payload = "done", "", self.handlers[task.action](task)
            except Retry as error:
                outcome, message, payload = "retry", str(error), b""
            except Failed as error:
                outcome, message, payload = "failed", str(error), error.payload
            except Exception as error:  # A handler's mistake is its task's failure, not the worker's.
                outcome, message, payload = "failed", f"{type(error).__name__}: {error}", b""
            took = time.perf_counter_ns() - started
            with self.lock:
                self.held.pop(task.id, None)
                self.begun.discard(task.id)
                self.mean_ns = took if self.mean_ns is None else (self.mean_ns * 7 + took) // 8
                mean, told = self.mean_ns, self.told_ns
                tell = told is None or abs(mean - told) > told / 4
                if tell:
                    self.told_ns = mean
            self._answer(task.id, outcome, message, payload, mean if tell else None)

    def _answer(self, number, outcome, message="", payload=b"", service_ns=None):
        fields = [("message", cut(message))] if message else []
        if service_ns is not None:
            fields.append(("service_ns", service_ns))
        data = wire.frame("TASK_RESULT", number, wire.OUTCOMES.index(outcome), fields, payload)
        if len(data) > self.connection.max_frame:
            text = f"the result makes a frame of {len(data)} bytes, and the limit is {self.connection.max_frame}"
            data = wire.frame("TASK_RESULT", number, wire.OUTCOMES.index("failed"), [("message", text)])
        try:
            self.connection.send(data)
        except OSError:
            pass  # The connection is lost, and the balancer gives the task to another worker.


def cut(sentence):
    return sentence.encode("utf-8")[:4096].decode("utf-8", "ignore")


class Client:
    """Submits tasks, many at once, and hands out a Future for each."""

    def __init__(self, address):
        self.connection = Connection(address, "client")
        self.lock = threading.Lock()
        self.last_id, self.in_flight, self.requests, self.listeners = 0, {}, {}, {}
        self.unexpected = []
        self.error = None
        threading.Thread(target=self._receive, name="client-reader", daemon=True).start()

    def submit(self, action, payload=b"", background=False, on_progress=None, **options):
        """Sends a TASK; options are priority, deadline_ms, wait_ms, key and max_attempts. Gives (id, Future)."""
        number, answer = self._begin(self.in_flight)
        if on_progress:
            self.listeners[number] = on_progress
        self.connection.send(self.task_frame(number, action, payload, background, options))
        return number, answer

    @staticmethod
    def task_frame(number, action, payload, background=False, options=()):
        order = ("priority", "deadline_ms", "wait_ms", "key", "max_attempts")
        fields = [("action", action)] + [(name, options[name]) for name in order if name in options]
        return wire.frame("TASK", number, int(background), fields, payload)

    def run(self, action, payload=b"", **options):
        return self.submit(action, payload, **options)[1].result(PATIENCE_S)

    def cancel(self, number):
        self.connection.send(wire.frame("CANCEL", number))

    def fetch(self, task_id):
        number, answer = self._begin(self.in_flight)
        self.connection.send(wire.frame("FETCH", number, 0, [("task_id", task_id)]))
        return answer.result(PATIENCE_S)

    def ping(self):
        number, answer = self._begin(self.requests)
        self.connection.send(wire.frame("PING", number))
        return answer.result(PATIENCE_S)

    def status(self):
        """The whole report, all its pages in one."""
        offset, whole = 0, None
        while True:
            number, answer = self._begin(self.requests)
            fields = [("offset", offset), ("limit", 1000)]
            self.connection.send(wire.frame("STATUS", number, 0, fields))
            report = json.loads(bytes.fromhex(answer.result(PATIENCE_S)["payload_hex"]))
            if whole is None:
                whole = report
            else:
                whole["workers"] += report["workers"]
                whole["actions"] += report["actions"]
            rows = max(len(report["workers"]), len(report["actions"]))
            offset += rows
            if rows == 0 or offset >= max(report["workers_total"], report["actions_total"]):
                return whole

    def close(self):
        self.connection.close()

    def _begin(self, table):
        answer = concurrent.futures.Future()
        with self.lock:
            if self.error:
                raise self.error
            self.last_id += 1
            table[self.last_id] = answer
            return self.last_id, answer

    def _receive(self):
        error = RepartoError("connection_lost", "the balancer closed the connection")
        try:
            while (message := self.connection.receive()) is not None:
                kind = message["type"]
                if kind == "ERROR" and message["id"] == 0:
                    error = RepartoError(message["code"], message["message"])
                elif kind in ("RESULT", "ERROR"):
                    self._end(kind, message)
                elif kind in ("STATUS_REPORT", "PONG"):
                    with self.lock:
                        answer = self.requests.pop(message["id"], None)
                    if answer:
                        answer.set_result(message)
                elif kind == "PROGRESS":
                    listener = self.listeners.get(message["id"])
                    if listener:
                        listener(message["done"], message["total"], bytes.fromhex(message["payload_hex"]))
                elif kind == "PING":
                    self.connection.send(wire.frame("PONG", message["id"]))
                elif kind != "GOAWAY":
                    self.unexpected.append(message)
        except (wire.WireError, OSError) as broken:
            error = RepartoError("bad_frame", str(broken))
        with self.lock:
            self.error = error
            left = list(self.in_flight.values()) + list(self.requests.values())
            self.in_flight, self.requests = {}, {}
        for answer in left:
            answer.set_exception(error)

    def _end(self, kind, message):
        with self.lock:
            answer = self.in_flight.pop(message["id"], None)
            self.listeners.pop(message["id"], None)
        payload = bytes.fromhex(message["payload_hex"])
        if answer is None:
            self.unexpected.append(message)
        elif kind == "RESULT":
            answer.set_result(payload)
        else:
            answer.set_exception(RepartoError(message["code"], message["message"], payload))


HANDLERS = {"echo": lambda task: task.payload, "upper": lambda task: task.payload.upper()}


# ---- commands ----


def run_worker(arguments):
    worker_id = arguments.id or f"python-{socket.gethostname()}-{os.getpid()}"
    worker = Worker(arguments.address, worker_id, HANDLERS, arguments.threads)
    print(f"ready id={worker_id}", flush=True)
    worker.gone.wait()
    raise worker.error


def run_client(arguments):
    payload = arguments.payload
    payload = sys.stdin.buffer.read() if payload is None else payload.encode("utf-8")
    client = Client(arguments.address)
    sys.stdout.buffer.write(client.run(arguments.action, payload))
    client.close()


def run_status(arguments):
    client = Client(arguments.address)
    print(json.dumps(client.status(), indent=2))
    client.close()


def run_selftest(arguments):
    import selftest

    selftest.run(arguments.clients, arguments.workers)


def main():
    parser = argparse.ArgumentParser(description="A Reparto worker and client in Python.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    worker = commands.add_parser("worker", help="register with a balancer and run echo and upper")
    worker.add_argument("address", type=parse_address, metavar="HOST:PORT")
    worker.add_argument("--id", help="the worker's id; made from host and process if not given")
    worker.add_argument("--threads", type=int, default=4, help="tasks run at once (4)")
    worker.set_defaults(run=run_worker)
    client = commands.add_parser("client", help="submit a task and print its result")
    client.add_argument("address", type=parse_address, metavar="HOST:PORT")
    client.add_argument("action", metavar="ACTION")
    client.add_argument("payload", nargs="?", metavar="PAYLOAD", help="from standard input if not given")
    client.set_defaults(run=run_client)
    status = commands.add_parser("status", help="print the balancer's status report")
    status.add_argument("address", type=parse_address, metavar="HOST:PORT")
    status.set_defaults(run=run_status)
    selftest = commands.add_parser("selftest", help="check a running balancer against the page")
    selftest.add_argument("clients", type=parse_address, metavar="CLIENTS_ADDR")
    selftest.add_argument("workers", type=parse_address, metavar="WORKERS_ADDR")
    selftest.set_defaults(run=run_selftest)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except (RepartoError, OSError, AssertionError, TimeoutError, concurrent.futures.TimeoutError) as error:
        print(f"reparto_peer: {error or type(error).__name__}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    # Under its own name, so that selftest.py, which imports it, meets the same classes.
    import reparto_peer

    reparto_peer.main()
