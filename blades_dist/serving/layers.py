"""What every request passes before a route sees it, and every answer after: ASGI layers that buffer nothing.

``Envelope`` (outermost) gives the request its id, the answer its headers and the log its line; ``Gate`` says who may
come in, and how many at once; ``BodyLimit`` bounds what is read of a body, and for how long.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from blades_dist.serving.config import LOOPBACK_NAMES, ServiceConfig, is_loopback
from blades_dist.serving.problems import Refused, busy, problem_response
from blades_dist.serving.tokens import Tokens

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ANSWER_CSP = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
OPEN_PATHS = ("/", "/healthz", "/openapi.json", "/v2/health/live", "/v2/health/ready")  # besides /page/: no token
READY_PATHS = ("/healthz", "/v2/health/ready")
MANY = ("/v1/detect/batch", "/v1/jobs")  # whose bodies hold many images
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handled:
    """One request as log and metrics tell it; nothing in it is of the picture. ``seconds`` from its header on."""

    request_id: str
    method: str
    route: str
    status: int
    reason: str
    seconds: float
    timings: dict[str, float]


@dataclass
class Desk:
    """How many requests are being worked on, and whether no more are taken in."""

    inside: int = 0
    closed: bool = False

    async def drain(self, seconds: float) -> None:
        """Takes no more in, and returns when all inside are done, or after ``seconds``."""
        self.closed, end = True, time.monotonic() + seconds
        while self.inside and time.monotonic() < end:
            await asyncio.sleep(0.05)


class Envelope:
    """Request ids, security headers, one ``Handled`` a request for ``observe``, and no trace of a fault of ours.

    ``id_header``: whether to send the id; Serve's proxy does so itself.
    """

    def __init__(self, app: App, observe: Callable[[Handled], None], id_header: bool) -> None:
        self.app, self.observe, self.id_header = app, observe, id_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        begin, status = time.perf_counter(), 0
        asked = Headers(scope=scope).get("x-request-id", "")
        name = scope["request_id"] = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        scope["timings"] = {}

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("cache-control", "no-store")
                headers.setdefault("content-security-policy", ANSWER_CSP)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                if self.id_header:
                    headers["x-request-id"] = name
            await send(message)

        try:
            await self.app(scope, receive, dressed)
        except ClientDisconnect:
            status = status or 499
            scope["reason"] = "disconnected"
        except Exception as error:
            if status:  # the answer has begun; there is no other way to say that it is none
                raise
            refused = error
            if not isinstance(refused, Refused):
                _log.error("request %s failed", name, exc_info=error)
                refused = Refused(500, "internal", "the service failed on this request; its log says why")
            scope["reason"] = refused.reason
            await problem_response(refused, name)(scope, receive, dressed)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - begin
            reason = scope.get("reason", "")
            self.observe(Handled(name, scope["method"], route, status, reason, seconds, scope["timings"]))


class Gate:
    """Refuses large headers (431), callers without a token (401), from elsewhere while there is none (403), and more
    requests than may be worked on at once, or any while the service stops (503)."""

    def __init__(self, app: App, config: ServiceConfig, tokens: Tokens, desk: Desk) -> None:
        self.app, self.config, self.tokens, self.desk = app, config, tokens, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        size += len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size > self.config.max_header_bytes:
            raise Refused(431, "header_too_large", f"a header of more than {self.config.max_header_bytes} bytes")
        headers = Headers(scope=scope)
        self._check_origin(scope, headers)
        path = scope["path"]
        open_to_all = path in OPEN_PATHS or path.startswith("/page/")
        if self.tokens and not open_to_all and not self.tokens.allow(headers.get("authorization", "")):
            raise Refused(401, "token", "send a valid token: Authorization: Bearer TOKEN")
        if self.desk.closed and (scope["method"] == "POST" or path in READY_PATHS):
            raise Refused(503, "stopping", "the service is being stopped")
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.desk.inside >= self.config.max_requests:
            raise busy(f"{self.desk.inside} requests are being worked on; try again")
        self.desk.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.desk.inside -= 1

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Without tokens: this machine only, and under a name that no page of another site can give it."""
        if self.tokens:
            return
        client = scope.get("client")
        if client is not None and not is_loopback(client[0]):
            raise Refused(403, "not_loopback", "without tokens only this machine may ask")
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name not in (*LOOPBACK_NAMES, *self.config.allowed_hosts):
            raise Refused(403, "host", "without tokens requests must name localhost or an allowed host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "origin", "without tokens pages of other sites may not ask")


class BodyLimit:
    """Refuses a body as soon as it announces, or holds, more than its route allows (413), or takes too long (408)."""

    def __init__(self, app: App, config: ServiceConfig) -> None:
        self.app, self.config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bound = self.config.max_batch_bytes if scope["path"] in MANY else self.config.max_bytes
        too_large = Refused(413, "too_large", f"the request body is larger than {bound} bytes")
        announced = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
        if announced.isdigit() and int(announced[:20]) > bound:
            raise too_large
        seen, more, end = 0, True, asyncio.get_running_loop().time() + self.config.receive_seconds

        async def counted() -> Message:
            nonlocal seen, more
            if not more:  # only a disconnect can come, and that at any time
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                told = f"the body had not arrived after {self.config.receive_seconds:g} s"
                raise Refused(408, "slow_body", told) from None
            seen += len(message.get("body", b""))
            more = bool(message.get("more_body", False))
            if seen > bound:
                raise too_large
            return message

        await self.app(scope, counted, send)
