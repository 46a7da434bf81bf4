"""The cases of ``fuzz_cases`` as bytes on connections of their own, with framing that may be wrong, to a service that
runs: what its HTTP server, and Serve's proxy with it, make of them."""

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass

from blades_dist.serving.problems import PROBLEM_TYPE, TITLES
from blades_dist.testing.fuzz_cases import Case

SECONDS_A_CASE = 30.0
_ALLOWED = {200, 202, 204, *TITLES} - {500}
_SERVERS_OWN = 400  # a request that is none, in the server's own words
_NO_METHODS = {"BREW", ""}  # refused at the first line: the connection may be closed under the rest of a request
_SMALL = 60_000  # bytes of a header, or of a body, that a server reads before it answers and closes


@dataclass(frozen=True)
class Framed:
    """A request's bytes; ``sound`` if it must be answered; ``leaves``: the sender hangs up in the end."""

    kind: str
    pieces: list[bytes]
    sound: bool
    leaves: bool = False


def framed(case: Case, pick: random.Random) -> Framed:
    """One way to send a case."""
    kind = pick.choice(
        ("whole",) * 6 + ("chunked", "bad chunks", "short", "long", "two lengths", "pieces", "no end", "no request")
    )
    hosts = [] if any(name == b"host" for name, _ in case.headers) else [(b"host", b"localhost")]
    own = [(name, value) for name, value in case.headers if name not in (b"content-length", b"transfer-encoding")]
    query = b"?" + case.query if case.query else b""
    line = case.method.encode() + b" " + case.path.encode("utf-8", "surrogateescape") + query + b" HTTP/1.1\r\n"
    head = line + b"".join(name + b": " + value + b"\r\n" for name, value in [*hosts, *own])
    body, close = case.body, b"connection: close\r\n"
    odd = own != case.headers or len(head) > _SMALL or len(body) > _SMALL or case.ends != "whole"
    sound = kind in ("whole", "chunked", "pieces") and not odd and case.method not in _NO_METHODS

    def length(number: int) -> bytes:
        return b"content-length: %d\r\n" % number

    if kind == "chunked":
        tail = b"transfer-encoding: chunked\r\n\r\n" + (b"%x\r\n" % len(body) + body + b"\r\n" if body else b"")
        return Framed(kind, [head + close + tail + b"0\r\n\r\n"], sound)
    if kind == "bad chunks":
        size = pick.choice((b"zz", b"-1", b"ffffffffffffffffff", b"", b"5;x" * 40))
        return Framed(kind, [head + b"transfer-encoding: chunked\r\n\r\n" + size + b"\r\n" + body], False, True)
    if kind == "short":
        return Framed(kind, [head + close + length(len(body) + 10) + b"\r\n" + body], False, pick.random() < 0.5)
    if kind == "long":
        return Framed(kind, [head + length(len(body) // 2) + b"\r\n" + body], False, True)
    if kind == "two lengths":
        return Framed(kind, [head + length(len(body)) + length(len(body) + 3) + b"\r\n" + body], False, True)
    if kind == "no end":
        return Framed(kind, [head[: pick.randrange(len(head))]], False, True)
    if kind == "no request":
        return Framed(kind, [pick.randbytes(pick.choice((1, 30, 3000))) + b"\r\n\r\n"], False, True)
    whole = head + close + length(len(body)) + b"\r\n" + body
    if kind == "pieces":
        cuts = sorted(pick.randrange(len(whole)) for _ in range(5))
        return Framed(kind, [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)], sound)
    return Framed(kind, [whole], sound)


async def over_wire(port: int, case: Case, pick: random.Random) -> tuple[str, int]:
    """Sends a case to loopback; how, and the status of the answer, 0 where there was none.

    Raises:
        AssertionError: another status than those documented, no problem document, or no answer where one is due.
    """
    sent = framed(case, pick)
    told = f"{sent.kind}: {case.kind} {case.method} {case.path[:60]!r} {case.headers!r:.200}"
    try:
        async with asyncio.timeout(SECONDS_A_CASE):
            answer = await _exchange(port, sent)
    except TimeoutError:
        raise AssertionError(f"neither an answer nor an end within {SECONDS_A_CASE:g} s: {told}") from None
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if not lines[0].startswith(b"HTTP/1.1 "):
        assert not answer and not sent.sound, f"no answer: {told}: {answer[:200]!r}"
        return sent.kind, 0
    status = int(lines[0].split()[1])
    assert status in _ALLOWED, f"{status}: {told}: {answer[:800]!r}"
    assert b"Traceback" not in answer, told
    headers = dict(line.lower().partition(b": ")[::2] for line in lines[1:])
    if status >= 400 and case.method != "HEAD" and not (status == _SERVERS_OWN and b"invalid http" in body.lower()):
        assert headers[b"content-type"] == PROBLEM_TYPE.encode(), f"{told}: {answer[:500]!r}"
        if len(body) == int(headers[b"content-length"]):  # else the connection was closed under it, or more follows
            document = json.loads(body)
            assert document["status"] == status and document["reason"] and document["detail"], told
    return sent.kind, status


async def _exchange(port: int, sent: Framed) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(_read(reader))  # at once: what has come is forgotten when a connection breaks
    try:
        with contextlib.suppress(ConnectionError):  # the answer may have come before the end of the request
            for piece in sent.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
        if sent.leaves:
            await asyncio.sleep(0.05)
            with contextlib.suppress(OSError):
                writer.write_eof()
        return await answer
    finally:
        answer.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends or breaks."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(2**16):
            pieces.append(piece)
    return b"".join(pieces)
