"""What comes before the routes: bodies that never end, callers who may not, ids, headers, and the line in the log."""

import asyncio
import json
import logging

import pytest

from blades_dist.serving.logs import JsonLines, log_request
from blades_dist.serving.middleware import BodyLimit, InFlight
from blades_dist.serving.problems import Refused
from blades_dist.testing.service import check_problem, client_of, small_config
from tests.serving.test_api import run

TOKEN = "a-token-that-is-long-enough"


def received_by(limit, messages, path="/v1/detect", headers=()):
    """How many messages an application behind ``limit`` could take, and what it was refused with."""
    taken = 0

    async def app(scope, receive, send):
        nonlocal taken
        while (await receive()).get("more_body"):
            taken += 1

    async def receive():
        return await messages()

    limited = BodyLimit(app, limit)
    with pytest.raises(Refused) as refused:
        asyncio.run(limited({"type": "http", "headers": list(headers), "path": path}, receive, None))
    return taken, refused.value


def test_a_body_is_given_up_at_the_limit():
    async def endless():
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    for path, bound in (("/v1/detect", 300), ("/v1/detect/batch", 600), ("/v1/jobs", 600)):
        taken, refused = received_by(small_config(), endless, path)
        assert taken == bound and refused.status == 413
        length = [(b"content-length", b"%d" % (bound * 1000 + 1))]
        assert received_by(small_config(), endless, path, length)[0] == 0


def test_a_slow_body_is_given_up_in_time():
    async def slow():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    taken, refused = received_by(small_config(receive_seconds=0.3), slow)
    assert taken <= 6 and (refused.status, refused.reason) == (408, "slow_body")


def test_bodies_over_http(detector):
    async def pieces(count):
        for _ in range(count):
            yield b"x" * 50_000

    async def never():
        yield b"x"
        await asyncio.sleep(5)

    async def work(client):
        check_problem(await client.post("/v1/detect", content=b"x" * 300_001), 413, "too_large")
        answer = await client.post("/v1/detect", content=pieces(10))
        check_problem(answer, 413, "too_large")
        assert answer.headers["connection"] == "close"
        check_problem(await client.post("/v1/detect", content=pieces(2)), 400, "unreadable")

    async def wait(client):
        check_problem(await client.post("/v1/detect", content=never()), 408, "slow_body")

    run(detector, work)
    run(detector, wait, config=small_config(receive_seconds=0.2))


def test_tokens(detector):
    async def work(client):
        for headers in (
            {},
            {"authorization": TOKEN},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": "Bearer x"},
        ):
            answer = await client.get("/v1/models", headers=headers)
            check_problem(answer, 401, "token")
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for headers in ({"authorization": f"Bearer {TOKEN}"}, {"authorization": f"bearer {TOKEN}"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        for path in ("/healthz", "/v2/health/live", "/v2/health/ready", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        document = (await client.get("/openapi.json")).json()
        assert document["security"] == [{"bearer": []}]

    import hashlib

    tokens = ["sha256:" + hashlib.sha256(TOKEN.encode()).hexdigest()]
    run(detector, work, config=small_config(tokens=tokens), address="8.8.8.8")


def test_without_tokens_only_this_machine_may_ask(detector):
    async def elsewhere(client):
        check_problem(await client.get("/healthz"), 403, "not_loopback")

    async def named(client):
        for host, status in (
            ("localhost", 200),
            ("localhost:8000", 200),
            ("127.0.0.1:8000", 200),
            ("[::1]:8000", 200),
            ("detect.example", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("", 403),
        ):
            assert (await client.get("/healthz", headers={"host": host})).status_code == status, host

        for origin, status in (("http://localhost", 200), ("https://evil.example", 403), ("null", 403)):
            assert (await client.get("/healthz", headers={"origin": origin})).status_code == status, origin

    run(detector, elsewhere, address="10.0.0.7")
    run(detector, named, config=small_config(allowed_hosts=["detect.example"]))


def test_large_headers(detector):
    async def work(client):
        check_problem(await client.get("/healthz", headers={"x-y": "z" * 2000}), 431, "header_too_large")
        check_problem(await client.get("/healthz?" + "z" * 2000), 431, "header_too_large")

    run(detector, work, config=small_config(max_header_bytes=1024))


def test_more_requests_than_may_be_worked_on(detector, photo):
    async def whole():
        hold, config = asyncio.Event(), small_config(max_requests=2)
        async with client_of(detector, config, hold) as client:
            data = photo.read_bytes()
            first = [asyncio.create_task(client.post("/v1/detect", content=data)) for _ in range(2)]
            await asyncio.sleep(0.1)
            answer = await client.post("/v1/detect", content=data)
            check_problem(answer, 503, "busy")
            assert answer.headers["retry-after"] == "1"
            assert (await client.get("/v1/models")).status_code == 200
            hold.set()
            assert [(await task).status_code for task in first] == [200, 200]
            assert (await client.post("/v1/detect", content=data)).status_code == 200

    asyncio.run(whole())


def test_a_service_that_stops_finishes_what_it_has(detector, photo):
    async def whole():
        hold, in_flight = asyncio.Event(), InFlight()
        async with client_of(detector, small_config(), hold, in_flight=in_flight) as client:
            data = photo.read_bytes()
            first = asyncio.create_task(client.post("/v1/detect", content=data))
            while not in_flight.count:
                await asyncio.sleep(0.01)
            drained = asyncio.create_task(in_flight.drain(60))
            while not in_flight.draining:
                await asyncio.sleep(0.01)
            check_problem(await client.post("/v1/detect", content=data), 503, "stopping")
            check_problem(await client.get("/healthz"), 503, "stopping")
            assert (await client.get("/v2/health/live")).status_code == 200 and not drained.done()
            hold.set()
            await drained
            assert (await first).status_code == 200

    asyncio.run(whole())


def test_ids_and_headers(detector):
    async def work(client):
        for path in ("/healthz", "/nothing", "/openapi.json"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store" and "default-src 'none'" in headers["content-security-policy"]
        given = (await client.get("/healthz", headers={"x-request-id": "abc-1"})).headers["x-request-id"]
        own = [
            (await client.get("/healthz", headers={"x-request-id": bad})).headers["x-request-id"]
            for bad in ("a b", "", "x" * 200)
        ]
        assert given == "abc-1" and len(set(own)) == 3 and all(len(name) == 32 for name in own)

    run(detector, work)


def test_the_log_tells_the_outcome_and_nothing_of_the_picture(detector, photo, caplog):
    caplog.set_level(logging.INFO, "blades_dist.serving")

    async def work(client):
        files = {"file": ("my-secret-name.jpg", photo.read_bytes())}
        await client.post("/v1/detect", files=files, headers={"x-request-id": "one"})
        await client.post("/v1/detect", content=b"SECRETBYTES", headers={"x-request-id": "two"})
        await client.get("/healthz")

    run(detector, work, observe=log_request)
    lines = [json.loads(JsonLines().format(r)) for r in caplog.records if r.name == "blades_dist.serving"]
    assert [(line["request_id"], line["status"], line["reason"]) for line in lines] == [
        ("one", 200, ""),
        ("two", 400, "unreadable"),
    ]
    assert lines[0]["route"] == "/v1/detect" and lines[0]["timings"]["score"] > 0 and lines[0]["seconds"] > 0
    assert "secret" not in json.dumps(lines).lower()


def test_a_caller_who_goes_away_is_no_fault(detector):
    seen = []

    async def work():
        from blades_dist.serving.api import make_api
        from blades_dist.serving.middleware import read_tokens
        from blades_dist.testing.service import Local

        config = small_config()
        app = make_api(Local(detector, config), config, read_tokens(config), seen.append)
        scope = {"type": "http", "method": "POST", "path": "/v1/detect", "raw_path": b"/v1/detect", "query_string": b""}
        scope |= {"headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "http_version": "1.1"}

        async def gone():
            return {"type": "http.disconnect"}

        await app(scope, gone, None)

    asyncio.run(work())
    assert (seen[0].status, seen[0].reason) == (499, "disconnected")
