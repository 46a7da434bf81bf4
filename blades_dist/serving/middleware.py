"""ASGI middleware, outermost first: ``RequestContext`` (request id, security headers, problem documents, access
record), ``AdmissionControl`` (authentication, limits), ``BodyLimit``."""

import asyncio
import hashlib
import hmac
import logging
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from blades_dist.config.serve import LOOPBACK_NAMES, TOKENS_VARIABLE, ServiceConfig, is_loopback
from blades_dist.serving.problems import Refused, busy, problem_response

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_SHORTEST = 16


class Tokens:
    """The tokens that open the service; false when there is none."""

    def __init__(self, entries: list[str]) -> None:
        self._digests = [_digest_of(entry) for entry in entries]

    @property
    def hashed(self) -> list[str]:
        """All of them as sha256:HEX."""
        return [f"sha256:{digest.hex()}" for digest in self._digests]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: str) -> bool:
        """Whether an ``Authorization`` header carries one of them."""
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        # Every digest is compared, so that time tells nothing about which one it was.
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(found)


def read_tokens(config: ServiceConfig) -> Tokens:
    """The tokens of the configuration, of the environment, and of ``tokens_file``: one a line, where empty lines and
    lines that begin with # count for nothing.

    Raises:
        ValueError: the file cannot be read or holds no token, or a token is too short to be a secret.
    """
    entries = list(config.tokens) + [entry.strip() for entry in os.environ.get(TOKENS_VARIABLE, "").split(",")]
    if config.tokens_file is not None:
        entries += _lines(config.tokens_file)
    return Tokens([entry for entry in entries if entry])


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"tokens_file: {file} cannot be read ({error})") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"tokens_file: {file} holds no token; write one a line, plain or as sha256:HEX")
    return found


def _digest_of(entry: str) -> bytes:
    if hashed := _HASHED.fullmatch(entry):
        return bytes.fromhex(hashed[1])
    if entry.startswith("sha256:"):
        raise ValueError("tokens: sha256: must be followed by 64 hexadecimal digits")
    if len(entry) < _SHORTEST:
        raise ValueError(f"tokens: a token of {len(entry)} characters can be guessed; take at least {_SHORTEST}")
    return hashlib.sha256(entry.encode()).digest()


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
class RequestRecord:
    """One request for the access log and the metrics; nothing is of its picture. ``seconds`` start at its header."""

    request_id: str
    method: str
    route: str
    status: int
    reason: str
    seconds: float
    timings: dict[str, float]


@dataclass
class InFlight:
    """Number of requests in flight, and whether the server is draining."""

    count: int = 0
    draining: bool = False

    async def drain(self, seconds: float) -> None:
        """Refuses new requests; returns when those in flight are done, or after ``seconds``."""
        self.draining, end = True, time.monotonic() + seconds
        while self.count and time.monotonic() < end:
            await asyncio.sleep(0.05)


class RequestContext:
    """Request ids, security headers, a ``RequestRecord`` per request for ``observe``, exceptions as problem documents.

    ``id_header``: whether to send the id; Serve's proxy does so itself.
    """

    def __init__(self, app: App, observe: Callable[[RequestRecord], None], id_header: bool) -> None:
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

        async def with_headers(message: Message) -> None:
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
            await self.app(scope, receive, with_headers)
        except ClientDisconnect:
            status = status or 499
            scope["reason"] = "disconnected"
        except Exception as error:
            if status:  # the response has started; only the connection can be broken
                raise
            refused = error
            if not isinstance(refused, Refused):
                _log.error("request %s failed", name, exc_info=error)
                refused = Refused(500, "internal", "the service failed on this request; its log says why")
            scope["reason"] = refused.reason
            await problem_response(refused, name)(scope, receive, with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - begin
            reason = scope.get("reason", "")
            self.observe(RequestRecord(name, scope["method"], route, status, reason, seconds, scope["timings"]))


class AdmissionControl:
    """Refuses large headers (431), requests without a valid token (401) or, where no tokens are configured, from other
    hosts (403), more requests in flight than ``max_requests``, and all of them while draining (503)."""

    def __init__(self, app: App, config: ServiceConfig, tokens: Tokens, in_flight: InFlight) -> None:
        self.app, self.config, self.tokens, self.in_flight = app, config, tokens, in_flight

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
        if self.in_flight.draining and (scope["method"] == "POST" or path in READY_PATHS):
            raise Refused(503, "stopping", "the service is being stopped")
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.in_flight.count >= self.config.max_requests:
            raise busy(f"{self.in_flight.count} requests are being worked on; try again")
        self.in_flight.count += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight.count -= 1

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
    """Refuses a body that announces or holds more bytes than its route allows (413), or arrives too slowly (408)."""

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
            if not more:  # only http.disconnect can follow, at any time
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
