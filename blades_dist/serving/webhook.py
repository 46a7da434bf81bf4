"""Posting a job's results to a host that the operator has named: the one connection the service makes. No Ray here.

https only, but to loopback; no redirect is followed; the address that was checked is the one that is connected to, so
a name that resolves otherwise a moment later gains nothing.
"""

import hashlib
import hmac
import http.client
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import SplitResult, urlsplit

from blades_dist.serving.config import ServiceConfig, is_loopback
from blades_dist.serving.problems import Refused

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
