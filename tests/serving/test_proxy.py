"""What stands before Serve's proxy: a request is sent again where its replica died, and refusals are problem documents.

The application behind it does what the proxy does then: it returns without a word, or says its own in plain text.
``test_service`` kills a real front.
"""

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse, Response

from blades_dist.serving import proxy
from blades_dist.serving.problems import PROBLEM_TYPE, Refused, problem_response
from blades_dist.testing.service import check_problem

BODY = [b"first", b"second" * 1000]


class Serve:
    """Dies under the first ``deaths`` requests after ``read`` messages of the body, then answers with it."""

    def __init__(self, deaths=0, read=10, answer=None):
        self.deaths, self.read, self.answer, self.bodies = deaths, read, answer, []

    async def __call__(self, scope, receive, send):
        scope["headers"].append((b"x-request-id", b"made-by-the-proxy"))
        body, more, dies = b"", True, len(self.bodies) < self.deaths
        while more and not (dies and body.count(b"s") >= self.read):
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        if not dies:
            await (self.answer or Response(body))(scope, receive, send)


def ask(serve, method="POST", path="/v1/detect", **options):
    async def pieces():
        for piece in BODY:
            yield piece

    async def whole():
        again = proxy.RetryMiddleware(serve, **options)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(again), base_url="http://localhost") as client:
            answer = await client.request(method, path, content=pieces() if method == "POST" else None)
        assert again.held == 0
        return answer

    return asyncio.run(whole())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(proxy, "PAUSE", 0.0)


@pytest.mark.parametrize("read", [1, 10])
def test_a_request_whose_replica_died_is_sent_again(read):
    serve = Serve(deaths=2, read=read)
    answer = ask(serve)
    assert (answer.status_code, answer.content, len(serve.bodies)) == (200, b"".join(BODY), 3)
    assert ask(Serve(deaths=1), "GET").status_code == 200


def test_what_cannot_be_sent_again_is_a_problem():
    for serve, options, tried in (
        (Serve(deaths=9), {}, proxy.ATTEMPTS),
        (Serve(deaths=1), {"path": "/v1/jobs"}, 1),
        (Serve(deaths=1), {"kept_bytes": 100}, 1),
        (Serve(deaths=1), {"all_kept_bytes": 100}, 1),
    ):
        answer = ask(serve, **options)
        body = check_problem(answer, 503, "unavailable")
        assert body["request_id"] == answer.headers["x-request-id"] == "made-by-the-proxy"
        assert answer.headers["retry-after"] == "1" and answer.headers["x-content-type-options"] == "nosniff"
        assert len(serve.bodies) == tried
    job = Serve(deaths=1)
    assert ask(job, "GET", "/v1/jobs").status_code == 200 and len(job.bodies) == 2


def test_the_proxys_own_words_become_problems():
    for status, (expected, reason) in {
        503: (503, "busy"),
        408: (504, "deadline"),
        404: (503, "unavailable"),
        500: (503, "unavailable"),
    }.items():
        serve = Serve(answer=PlainTextResponse("words of Serve", status))
        answer = ask(serve)
        assert "Serve" not in check_problem(answer, expected, reason)["detail"] and len(serve.bodies) == 1


def test_the_fronts_answers_pass_as_they_are():
    told = problem_response(Refused(404, "no_model", "there is none"), "one")
    answer = ask(Serve(answer=told))
    assert answer.content == told.body and answer.headers["content-type"] == PROBLEM_TYPE
    own = ask(Serve(answer=PlainTextResponse("not yet", 503)), "GET", "/-/healthz")
    assert (own.status_code, own.text) == (503, "not yet")


def test_a_caller_who_has_gone_gets_nothing_more():
    async def gone():
        return {"type": "http.disconnect"}

    serve, scope = Serve(deaths=1), {"type": "http", "method": "POST", "path": "/v1/detect", "headers": []}
    asyncio.run(proxy.RetryMiddleware(serve)(scope, gone, None))
    assert len(serve.bodies) == 1
