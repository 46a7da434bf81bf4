"""Jobs and the webhook: bounds, ends, signatures, and where results may not be sent."""

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import socket
import threading

import pytest

from blades_dist.serving import jobs
from blades_dist.serving.backend import DetectOptions
from blades_dist.serving.bodies import Upload
from blades_dist.serving.jobs import JobStore, Webhooks, deliver
from blades_dist.serving.problems import Refused, busy
from blades_dist.testing.service import Local, check_problem, noise, small_config
from tests.serving.test_api import run

SECRET = b"a secret of enough bytes"
NONE = Webhooks((), (), b"")


async def finished(client, url):
    for _ in range(2400):
        job = (await client.get(url)).json()
        if job["status"] in ("done", "failed"):
            return job
        await asyncio.sleep(0.05)
    raise AssertionError(job)


def test_a_job_over_http(detector, photo):
    data = photo.read_bytes()

    async def work(client):
        answer = await client.post("/v1/jobs?fpr=0.2", files=[("file", ("a.jpg", data)), ("file", ("b", b"x"))])
        assert answer.status_code == 202, answer.text
        job = await finished(client, answer.json()["status_url"])
        assert job["submitted"] <= job["finished"] and job["status"] == "done"
        good, bad = job["results"]
        assert good["filename"] == "a.jpg" and good["image"]["faces"][0]["fpr"] == 0.2
        assert bad["problem"]["reason"] == "unreadable"
        url = answer.json()["status_url"]
        assert (await client.delete(url)).status_code == 204
        check_problem(await client.get(url), 404, "no_job")
        check_problem(await client.delete(url), 404, "no_job")
        check_problem(await client.post("/v1/jobs", json={"images": []}), 400, "no_file")
        check_problem(await client.post("/v1/jobs?model=none", json={"images": ["AAAA"]}), 404, "no_model")
        for where in ("https://evil.example/", "http://127.0.0.1/", "ftp://a/"):
            document = {"images": ["AAAA"], "webhook": where}
            check_problem(await client.post("/v1/jobs", json=document), 403, "webhook")
        check_problem(await client.post("/v1/jobs?webhook=nothing", json={"images": ["AAAA"]}), 400, "bad_parameter")

    run(detector, work)


def test_too_many_jobs(detector):
    document = {"images": [base64.b64encode(noise(1)).decode()]}

    async def count(client):
        for _ in range(2):
            assert (await client.post("/v1/jobs", json=document)).status_code == 202
        answer = await client.post("/v1/jobs", json=document)
        check_problem(answer, 429, "too_many_jobs")
        assert answer.headers["retry-after"] == "1"

    run(detector, count, config=small_config(max_jobs=2), hold=asyncio.Event())

    async def size(client):
        assert (await client.post("/v1/jobs", json=document)).status_code == 202
        check_problem(await client.post("/v1/jobs", json=document), 429, "too_many_jobs")

    run(detector, size, config=small_config(max_job_bytes=len(noise(1)) + 1), hold=asyncio.Event())


def test_finished_jobs_are_forgotten_and_dropped_ones_end(detector):
    async def work():
        now, hold = [1000.0], asyncio.Event()
        config = small_config(job_seconds=60, max_jobs=2)
        store = JobStore(Local(detector, config, hold), config, NONE, lambda: now[0])
        upload = [Upload(noise(1))]
        first, second = (store.submit(upload, DetectOptions(whole=True), None) for _ in range(2))
        store.drop(second.id)
        hold.set()
        while store.get(first.id).finished is None:
            await asyncio.sleep(0.02)
        assert store.get(first.id).results[0].image is not None
        now[0] += 61
        with pytest.raises(Refused, match="no such job"):
            store.get(first.id)
        store.submit(upload, DetectOptions(), None), store.submit(upload, DetectOptions(), None)  # there is room again
        await store.close()

    asyncio.run(work())


def test_a_job_is_patient_with_a_busy_service(detector):
    class Busy(Local):
        left = 2

        async def detect(self, data, options):
            if self.left:
                self.left -= 1
                raise busy("not now")
            return await super().detect(data, options)

    async def work():
        config = small_config()
        store = JobStore(Busy(detector, config), config, NONE)
        job = store.submit([Upload(noise(1))], DetectOptions(whole=True), None)
        while store.get(job.id).finished is None:
            await asyncio.sleep(0.02)
        assert store.get(job.id).results[0].image is not None

    asyncio.run(work())


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0))
        self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    server.seen, server.statuses = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_results_are_posted_with_a_signature(detector, receiver, tmp_path):
    host = f"127.0.0.1:{receiver.server_port}"
    (tmp_path / "secret").write_bytes(SECRET)
    config = small_config(
        webhook_hosts=[host], webhook_private_hosts=[host], webhook_secret_file=str(tmp_path / "secret")
    )
    receiver.statuses = [200]

    async def work(client):
        document = {"images": [base64.b64encode(noise(1)).decode()], "webhook": f"http://{host}/hook?x=1"}
        answer = await client.post("/v1/jobs?faces=crop", json=document)
        assert answer.status_code == 202, answer.text
        while not receiver.seen:
            await asyncio.sleep(0.02)
        return answer.json()["id"]

    name = run(detector, work, config=config)
    ((path, headers, body),) = receiver.seen
    moment, _, signature = headers["X-Blades-Signature"].partition(",v1=")
    expected = hmac.new(SECRET, f"{moment.removeprefix('t=')}.".encode() + body, hashlib.sha256).hexdigest()
    assert path == "/hook?x=1" and hmac.compare_digest(signature, expected)
    job = json.loads(body)
    assert job["id"] == name and job["status"] == "done" and job["results"][0]["image"]


def test_deliveries_are_repeated_and_redirects_are_not_followed(receiver):
    host, waits = f"127.0.0.1:{receiver.server_port}", []
    hooks = Webhooks((host,), (host,), SECRET)
    receiver.statuses = [500, 302, 204]
    assert deliver(hooks, f"http://{host}/", b"{}", waits.append)
    assert waits == [1.0, 2.0] and [path for path, _, _ in receiver.seen] == ["/"] * 3
    receiver.statuses = [404] * 4
    assert not deliver(hooks, f"http://{host}/", b"{}", waits.append) and len(receiver.seen) == 7


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://hooks.example/", 403),
        ("https://hooks.example:8443/", 403),
        ("https://hooks.example.evil/", 403),
        ("https://user:pass@hooks.example/", 403),
        ("https://evil@hooks.example/", 403),
        ("file:///etc/passwd", 400),
        ("https://", 400),
        ("https://hooks.example:x/", 400),
        ("https://[::1/", 400),
        ("https://hooks.example/\r\nX: y", 400),
        ("https://hooks.example/" + "x" * 3000, 400),
    ],
)
def test_urls_that_are_refused(url, status):
    with pytest.raises(Refused) as refused:
        Webhooks(("hooks.example",), (), SECRET).check(url)
    assert refused.value.status == status


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fd00::1"])
def test_a_name_that_leads_inside_is_not_followed(monkeypatch, address):
    asked = []

    def resolve(host, port, **_):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(jobs.socket, "getaddrinfo", resolve)
    hooks = Webhooks(("hooks.example",), (), SECRET)
    assert not deliver(hooks, "https://hooks.example/", b"{}", lambda _: None) and asked
    inside = Webhooks(("hooks.example",), ("hooks.example",), SECRET)
    assert inside.address(inside.check("https://hooks.example/")) == address
