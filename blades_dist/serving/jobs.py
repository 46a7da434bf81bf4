"""Work that is asked for now and fetched later, and the webhook that tells of its end. No Ray.

A bounded number of jobs, in memory, each gone after a time.
"""

import asyncio
import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import logging
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast
from urllib.parse import SplitResult, urlsplit

from blades_dist.config.serve import ServiceConfig, is_loopback
from blades_dist.serving.backend import Judge, Options, judge_many
from blades_dist.serving.bodies import Upload
from blades_dist.serving.problems import Refused
from blades_dist.serving.schema import BatchItem, Job, JobStatus

ATTEMPTS, FIRST_WAIT, TIMEOUT = 4, 1.0, 5.0  # seconds; waits double
SIGNATURE = "X-Blades-Signature"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Webhooks:
    """Where results may go: ``hosts`` (name, or name:port for a port that is not 443), those of them whose addresses
    may be ``private``, and the ``secret`` that signs."""

    hosts: tuple[str, ...]
    private: tuple[str, ...]
    secret: bytes

    def check(self, url: str) -> SplitResult:
        """The parts of a URL that may be posted to.

        Raises:
            Refused: 403 ``webhook``, or 400 ``bad_parameter`` for what is no URL.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise Refused(400, "bad_parameter", "webhook: not a URL") from None
        if not host or len(url) > 2048 or any(not 0x20 < ord(letter) < 0x7F for letter in url):
            raise Refused(400, "bad_parameter", "webhook: not a URL")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
            raise Refused(403, "webhook", "webhook: only https is allowed")
        if parts.username is not None or parts.password is not None:
            raise Refused(403, "webhook", "webhook: a URL with a password in it is not allowed")
        if self._key(host, port) not in self.hosts:
            raise Refused(403, "webhook", "webhook: this host is not on the list of allowed ones")
        return parts

    def address(self, parts: SplitResult) -> str:
        """An address of the URL's host that may be connected to.

        Raises:
            OSError: it has none.
        """
        host, port = cast(str, parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        found = [str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        allowed = self._key(host, parts.port) in self.private
        for address in found:
            if allowed or ipaddress.ip_address(address.partition("%")[0]).is_global:
                return address
        raise OSError("its addresses are private, and the host is not among webhook_private_hosts")

    def sign(self, body: bytes, moment: int) -> str:
        """The signature header's value: HMAC-SHA256 over "MOMENT.BODY"."""
        return f"t={moment},v1={hmac.new(self.secret, f'{moment}.'.encode() + body, hashlib.sha256).hexdigest()}"

    @staticmethod
    def _key(host: str, port: int | None) -> str:
        return host if port is None else f"{host}:{port}"


def read_webhooks(config: ServiceConfig) -> Webhooks:
    """The configured hosts and secret.

    Raises:
        ValueError: the secret cannot be read, or is too short.
    """
    secret = b""
    if config.webhook_secret_file is not None:
        try:
            secret = config.webhook_secret_file.read_bytes().strip()
        except OSError as error:
            raise ValueError(f"webhook_secret_file: {config.webhook_secret_file} cannot be read ({error})") from None
        if len(secret) < 16:
            raise ValueError(f"webhook_secret_file: {len(secret)} bytes can be guessed; take at least 16")
    return Webhooks(config.webhook_hosts, config.webhook_private_hosts, secret)


def deliver(webhooks: Webhooks, url: str, body: bytes, wait: Callable[[float], None] = time.sleep) -> bool:
    """Posts a JSON body until it is answered with 2xx, a few times at most; whether it was. Blocks."""
    parts, pause = webhooks.check(url), FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            status = _post(webhooks, parts, body)
            if 200 <= status < 300:
                return True
            told = f"status {status}"
        except (OSError, http.client.HTTPException) as error:
            told = f"{type(error).__name__}: {error}"
        _log.warning("webhook to %s, attempt %d of %d: %s", parts.hostname, attempt, ATTEMPTS, told)
        if attempt < ATTEMPTS:
            wait(pause)
            pause *= 2
    return False


def _post(webhooks: Webhooks, parts: SplitResult, body: bytes) -> int:
    host, address = cast(str, parts.hostname), webhooks.address(parts)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    raw = socket.create_connection((address, port), TIMEOUT)
    try:
        secure = parts.scheme == "https"
        connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": "application/json", SIGNATURE: webhooks.sign(body, int(time.time()))}
        connection.request("POST", target, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()
        raw.close()


RUNNING = 2  # jobs worked on at once; they share the service with those who wait for an answer
_log = logging.getLogger(__name__)


@dataclass
class _Entry:
    submitted: float
    size: int
    status: JobStatus = "queued"
    finished: float | None = None
    results: list[BatchItem] | None = None
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)


class JobStore:
    """Jobs of one process. They end with it: whoever asks then gets 404, and sends them again."""

    def __init__(
        self, backend: Judge, config: ServiceConfig, webhooks: Webhooks, clock: Callable[[], float] = time.time
    ) -> None:
        self._backend, self._config, self._webhooks, self._clock = backend, config, webhooks, clock
        self._jobs: dict[str, _Entry] = {}
        self._room = asyncio.Semaphore(RUNNING)

    def submit(self, uploads: Sequence[Upload], options: Options, webhook: str | None) -> Job:
        """A new job, which begins by itself.

        Raises:
            Refused: 429 when there are too many jobs, or its images and those that wait are too large together; 403 for
                a webhook that is not allowed.
        """
        if webhook is not None:
            self._webhooks.check(webhook)
        self._forget()
        if len(self._jobs) >= self._config.max_jobs:
            raise Refused(429, "too_many_jobs", f"{len(self._jobs)} jobs are kept; fetch and delete some, or wait")
        size = sum(len(upload.data) for upload in uploads)
        waiting = sum(entry.size for entry in self._jobs.values())
        if size + waiting > self._config.max_job_bytes:
            raise Refused(429, "too_many_jobs", f"{waiting} bytes of images wait already; try again later")
        name = uuid.uuid4().hex
        entry = self._jobs[name] = _Entry(self._clock(), size)
        named = replace(options, request_id=f"{options.request_id}/job")
        entry.task = asyncio.create_task(self._run(name, entry, list(uploads), named, webhook))
        return self._shown(name, entry)

    def get(self, name: str) -> Job:
        """A job as it stands.

        Raises:
            Refused: 404, there is none of that name.
        """
        self._forget()
        return self._shown(name, self._entry(name))

    def drop(self, name: str) -> None:
        """Ends and forgets a job.

        Raises:
            Refused: 404, there is none of that name.
        """
        entry = self._entry(name)
        if entry.task is not None:
            entry.task.cancel()
        del self._jobs[name]

    async def close(self) -> None:
        """Ends all that runs."""
        tasks = [entry.task for entry in self._jobs.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, name: str, entry: _Entry, uploads: list[Upload], options: Options, webhook: str | None
    ) -> None:
        try:
            async with self._room:
                entry.status = "running"
                deadline, patience = self._config.deadline_seconds, self._config.job_seconds
                entry.results = await judge_many(self._backend, uploads, options, deadline, patience)
            entry.status = "done"
        except Exception as error:
            _log.error("request %s: the job failed", options.request_id, exc_info=error)
            entry.status = "failed"
        finally:
            entry.size = 0
            uploads.clear()
            entry.finished = self._clock()
        if webhook is not None:
            body = self._shown(name, entry).model_dump_json().encode()
            await asyncio.to_thread(deliver, self._webhooks, webhook, body)

    def _forget(self) -> None:
        end = self._clock() - self._config.job_seconds
        for name in [name for name, entry in self._jobs.items() if entry.finished is not None]:
            if (self._jobs[name].finished or 0.0) < end:
                del self._jobs[name]

    def _entry(self, name: str) -> _Entry:
        if name not in self._jobs:
            raise Refused(404, "no_job", "there is no such job; it may have been deleted, or kept for its time")
        return self._jobs[name]

    @staticmethod
    def _shown(name: str, entry: _Entry) -> Job:
        return Job(
            id=name,
            status=entry.status,
            submitted=entry.submitted,
            finished=entry.finished,
            results=entry.results,
        )
