"""A client, a worker and an operator on the package gearman3, as programs made for gearmand have them.

    peer.py worker HOST:PORT    reverses until it is killed
    peer.py client HOST:PORT    uses it, and says what it has seen
"""

import sys
import time

import gearman


class BytesEncoder(gearman.DataEncoder):
    """Payloads as bytes, whatever they are."""

    @classmethod
    def encode(cls, encodable_object):
        return encodable_object

    @classmethod
    def decode(cls, decodable_string):
        return decodable_string


class Client(gearman.GearmanClient):
    data_encoder = BytesEncoder


class Worker(gearman.GearmanWorker):
    data_encoder = BytesEncoder


def reverse(worker, job):
    if job.data == b"raise":
        raise ValueError("no")
    worker.send_job_status(job, 1, 2)
    return bytes(reversed(job.data))


def work(address):
    worker = Worker([address])
    worker.set_client_id("in-python")
    worker.register_task(b"reverse", reverse)
    print("ready", flush=True)
    worker.work()


def ask(address):
    client = Client([address])
    for payload in (b"hola", b"", bytes(range(1, 256)), b"\0" * 3 + b"x" * 100_000):
        request = client.submit_job("reverse", payload, poll_timeout=60)
        assert request.complete and request.result == bytes(reversed(payload)), request.state
    print("payloads ok")
    for priority in (gearman.PRIORITY_HIGH, gearman.PRIORITY_LOW):
        request = client.submit_job("reverse", b"abc", priority=priority, poll_timeout=60)
        assert request.result == b"cba"
    print("priorities ok")
    request = client.submit_job("reverse", b"raise", poll_timeout=60)
    print("failed" if request.state == gearman.JOB_FAILED else request.state)
    jobs = [dict(task="reverse", data=str(number).encode()) for number in range(100)]
    requests = client.submit_multiple_jobs(jobs, poll_timeout=60)
    print("many", sum(request.complete for request in requests))
    request = client.submit_job("reverse", b"later", background=True, wait_until_complete=False, poll_timeout=60)
    status = client.get_job_status(request, poll_timeout=60).status
    while status["known"]:
        time.sleep(0.01)
        status = client.get_job_status(request, poll_timeout=60).status
    print("background done")
    operator = gearman.GearmanAdminClient([address])
    status = [line for line in operator.get_status() if line["task"] == "reverse"]
    print("status", status[0]["queued"], status[0]["running"], status[0]["workers"])
    print("version", operator.get_version())
    print("ping", operator.ping_server() >= 0)


if __name__ == "__main__":
    {"worker": work, "client": ask}[sys.argv[1]](sys.argv[2])
