"""Middleware of Ray Serve's HTTP proxy: it retries a request whose front replica died, and turns the proxy's own error
responses into problem documents.

The proxy calls ``middlewares`` where the environment says so (``environment.py``). No Ray here.
"""

import asyncio

from starlette.datastructures import Headers
from starlette.middleware import Middleware

from blades_dist.serving.middleware import ANSWER_CSP, App, Message, Receive, Scope, Send
from blades_dist.serving.problems import PROBLEM_TYPE, Refused, busy, problem_response

ATTEMPTS, PAUSE = 3, 0.1  # seconds of back-off, doubled every time
KEPT_BYTES, ALL_KEPT_BYTES = 20 * 2**20, 256 * 2**20  # buffered for retries: of one body, and of all
_ONCE = "/v1/jobs"  # not idempotent: an accepted job may have started
_SERVE_OWN = "/-/"  # paths that the proxy answers itself


def middlewares() -> list[Middleware]:
    """For Serve, which calls it when a proxy starts."""
    return [Middleware(RetryMiddleware)]


class RetryMiddleware:
    """Retries a request whose replica died before the response started, as long as its body fits the buffer; replaces
    error responses of the proxy itself by problem documents."""

    def __init__(self, app: App, kept_bytes: int = KEPT_BYTES, all_kept_bytes: int = ALL_KEPT_BYTES) -> None:
        self.app, self.kept_bytes, self.all_kept_bytes = app, kept_bytes, all_kept_bytes
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVE_OWN):
            await self.app(scope, receive, send)
            return
        attempts = 1 if scope["method"] == "POST" and scope["path"] == _ONCE else ATTEMPTS
        body, headers = _BufferedBody(self, receive), list(scope["headers"])
        try:
            for attempt in range(attempts):
                own, answer = dict(scope) | {"headers": list(headers)}, _Answer(send)
                await self.app(own, body.receive, answer.send)
                if answer.begun or body.gone:
                    return
                headers = own["headers"]  # with the id that the proxy has given the request
                if answer.refused or not body.kept:
                    break
                body.rewind()
                await asyncio.sleep(PAUSE * 2**attempt)
        finally:
            body.release()
        refused = _refusal(answer.refused)
        name = Headers(raw=headers).get("x-request-id", "")
        response = problem_response(refused, name)
        response.headers.update(
            {
                "cache-control": "no-store",
                "content-security-policy": ANSWER_CSP,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
                "x-request-id": name,
            }
        )
        await response(scope, receive, send)


class _BufferedBody:
    """A request's messages, buffered to be received again."""

    def __init__(self, all_: RetryMiddleware, receive: Receive) -> None:
        self._all, self._receive = all_, receive
        self._messages: list[Message] = []
        self._size = self._next = 0
        self.kept, self.gone = True, False

    async def receive(self) -> Message:
        if self._next < len(self._messages):
            self._next += 1
            return self._messages[self._next - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        elif self.kept:
            self._keep(message)
        return message

    def rewind(self) -> None:
        self._next = 0

    def release(self) -> None:
        self._messages.clear()
        self._all.held -= self._size
        self._size = self._next = 0

    def _keep(self, message: Message) -> None:
        size = len(message.get("body", b""))
        if self._size + size > self._all.kept_bytes or self._all.held + size > self._all.all_kept_bytes:
            self.kept = False
            self.release()
            return
        self._messages.append(message)
        self._next += 1
        self._size += size
        self._all.held += size


class _Answer:
    """Passes the front's response on; of the proxy's own error response it keeps the status only."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun, self.refused = False, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self.begun:
            kind = Headers(raw=message.get("headers", [])).get("content-type", "")
            if message["status"] >= 400 and not kind.startswith(PROBLEM_TYPE):
                self.refused = message["status"]
            else:
                self.begun = True
        if self.begun:
            await self._send(message)


def _refusal(status: int) -> Refused:
    """The refusal for the proxy's own status (0: it sent no response)."""
    if status in (429, 503):
        return busy("too many requests wait; try again")
    if status == 408:
        return Refused(504, "deadline", "there was no answer in time")
    if status == 404:
        return Refused(503, "unavailable", "the service is not up yet; try again")
    return Refused(503, "unavailable", "the part of the service that had the request ended; try again")
