"""Hostile requests for the service, one a seed, and the promise that every one of them is held to."""

import asyncio
import base64
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from blades_dist.detect.preprocess import Unusable
from blades_dist.serving.decoding import DecodeProcess
from blades_dist.serving.problems import PROBLEM_TYPE, TITLES, unusable
from blades_dist.serving.schema import ImageResult
from blades_dist.testing.hostile_bytes import claimed_jpeg, claimed_tiff, claimed_webp, png, profile_bomb, text_bomb
from blades_dist.testing.service import Local, encoded, small_config

SECONDS_A_CASE = 60.0
_ALLOWED = {200, 202, 204, *TITLES} - {500}
_KINDS = ("image/jpeg", "image/*", "application/octet-stream", "text/html", "", "multipart/form-data", "\xff", "a;b=c")
_ODD_TEXT = (
    "",
    "nan",
    "inf",
    "-1",
    "1e999",
    "0",
    "\x00",
    "%00",
    "../../etc/passwd",
    "é",
    "\U0001d518",
    "a" * 3000,
    "'\"<>",
    "{}",
)
_PATHS = ("/v1/detect", "/v1/detect/batch", "/v1/jobs", "/v2/models/default/infer")
_ODD_PATHS = (
    *("/v1/models", "/v2/health/ready", "/v2/models/default", "/v2/models/%2e%2e/ready", "/v2/models/" + "x" * 99),
    *(
        "/",
        "/page/",
        "/page/../../api.py",
        "/page/%2e%2e/api.py",
        "/page/\0",
        "/openapi.json",
        "/docs",
        "//",
        "/v1/detect/",
    ),
    *("/v1/jobs/none", "/v1/jobs/" + "0" * 32, "/v1/jobs/\udcff", "/healthz"),
)


@dataclass
class Case:
    """One request; ``ends``: ``whole``, or what the sender does in the middle of the body."""

    kind: str
    path: str
    body: bytes = b""
    method: str = "POST"
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    ends: str = "whole"


class Bounded(Local):
    """The backend of the tests, with the service's own decoding process."""

    def __init__(self, detector: Any, config: Any, process: DecodeProcess) -> None:
        super().__init__(detector, config)
        self.process = process

    async def detect(self, data: bytes, options: Any) -> ImageResult:
        how = self.detector.info.preprocessing
        found = await asyncio.to_thread(self.process.prepare, data, how, options.whole)
        if isinstance(found, Unusable):
            raise unusable(found.reason, found.detail)
        return await super().detect(data, options)


def fuzz_config(**changes: Any) -> Any:
    """Small bounds, so that cases meet them; bodies must arrive within half a second."""
    values = {"receive_seconds": 0.5, "max_jobs": 24, "job_seconds": 1.0, "decode_mebibytes": 512}
    return small_config(**values | changes)


class Cases:
    """``case(seed)`` is the same for the same pictures and seed."""

    def __init__(self, photos: Sequence[bytes]) -> None:
        self.pictures = [*photos, *(_again(photos[0], kind) for kind in ("PNG", "WEBP", "TIFF", "GIF", "BMP"))]
        self.pictures.append(encoded((64, 64)))
        self.bombs = [text_bomb(), profile_bomb(), png(40_000, 40_000, bytes(4000)), png(2**31 - 1, 1, b"\0")]
        self.bombs += [claimed_jpeg(65_000, 65_000), claimed_jpeg(700, 700, progressive=True), claimed_webp(9000, 9000)]
        self.bombs += [claimed_tiff(60_000, 60_000), claimed_tiff(700, 700)]

    def case(self, seed: int) -> Case:
        """Mostly pictures, then bodies, then everything around them."""
        pick = random.Random(seed)
        (make,) = pick.choices(
            (self._picture, self._form, self._json, self._tensor, self._around), weights=(50, 18, 14, 8, 10)
        )
        case: Case = make(pick)
        if pick.random() < 0.06:
            self._trouble_headers(case, pick)
        if pick.random() < 0.08:
            name = pick.choice(("fpr", "faces", "model", "webhook", "fpr&fpr", "=", "%"))
            case.query = f"{name}={pick.choice(_ODD_TEXT)}".encode("utf-8", "surrogatepass")
        if pick.random() < 0.03:
            case.ends = pick.choice(("disconnects", "disconnects", "stalls"))
        return case

    def image(self, pick: random.Random) -> tuple[str, bytes]:
        """A picture that something was done to, and what."""
        data = pick.choice(self.pictures)
        kind = pick.choice(("bits", "bits", "cut", "span", "splice", "insert", "polyglot", "bomb", "noise", "intact"))
        changed = bytearray(data)
        at = pick.randrange(len(data))
        if kind == "bits":
            near = pick.choice((len(data), 64, 700))  # half of them where the headers are
            for _ in range(pick.choice((1, 2, 8, 64))):
                changed[pick.randrange(min(near, len(data)))] ^= 1 << pick.randrange(8)
        elif kind == "cut":
            del changed[at:]
        elif kind == "span":
            del changed[at : at + pick.randrange(1, 400)]
        elif kind == "splice":
            other = pick.choice(self.pictures)
            changed[at:] = other[pick.randrange(len(other)) :]
        elif kind == "insert":
            changed[at:at] = pick.choice((bytes(50), b"\xff" * 50, struct.pack(">L", 2**32 - 1), pick.randbytes(200)))
        elif kind == "polyglot":
            extra = pick.choice((_archive(), b"<html><script>alert(1)</script>", b"%PDF-1.4\n", b"GIF89a", bytes(999)))
            changed = bytearray(pick.choice((data + extra, extra + data, data[:2] + extra + data[2:])))
        elif kind == "bomb":
            changed = bytearray(pick.choice(self.bombs))
        elif kind == "noise":
            changed = bytearray(pick.randbytes(pick.choice((0, 1, 3, 40, 4000))))
        return f"image: {kind}", bytes(changed)

    def _picture(self, pick: random.Random) -> Case:
        kind, data = self.image(pick)
        query = b"faces=crop" if pick.random() < 0.5 else b""
        return Case(kind, "/v1/detect", data, query=query, headers=_typed(pick.choice(_KINDS)))

    def _form(self, pick: random.Random) -> Case:
        if pick.random() < 0.5:  # in order but for its pictures
            count = pick.choice((1, 1, 2, 4, 5))
            head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
            body = b"".join(head + self.image(pick)[1] + b"\r\n" for _ in range(count)) + b"--b--\r\n"
            path = pick.choice(_PATHS[:3]) if count == 1 else pick.choice(_PATHS[1:3])
            return Case("form", path, body, headers=_typed("multipart/form-data; boundary=b"))
        boundary = pick.choice((b"b", b"----x" * 4, b'"q"', b"b" * 70))
        parts = []
        for _ in range(pick.choice((1, 1, 2, 3, 9, 60))):
            name = pick.choice((b"file", b"file", b"file", b"webhook", b"", b"\xff", b"x" * 500))
            filename = pick.choice(
                (b'; filename="a.jpg"', b'; filename="../\xff"', b"", b"; filename=", b"; filename*=x")
            )
            odd = pick.choice((b"", b"", b"content-type: \xff\r\n", b"x: " + b"y" * 9000 + b"\r\n", b"no colon\r\n"))
            head = b'content-disposition: form-data; name="' + name + b'"' + filename + b"\r\n" + odd
            parts.append(b"--" + boundary + b"\r\n" + head + b"\r\n" + self.image(pick)[1][:20_000] + b"\r\n")
        body = b"".join(parts) + pick.choice((b"--" + boundary + b"--\r\n", b"--" + boundary + b"--", b"", b"\r\n"))
        named = pick.choice((boundary, boundary, boundary, b"other", b"", b"\xff"))
        body = _damaged(body, pick) if pick.random() < 0.4 else body
        headers = [(b"content-type", b"multipart/form-data; boundary=" + named)]
        return Case("form", pick.choice(_PATHS), body, headers=headers)

    def _json(self, pick: random.Random) -> Case:
        def text() -> Any:
            data = base64.b64encode(self.image(pick)[1][:20_000]).decode()
            return pick.choice((data, data, data[:-1], data + "\n", "=" + data, "é", "\ud800", 1, None, [data], {}, ""))

        if pick.random() < 0.4:  # in order but for its picture
            data = base64.b64encode(self.image(pick)[1]).decode()
            many = pick.random() < 0.5
            valid = json.dumps({"images": [data]} if many else {"image": data}).encode()
            return Case("json", _PATHS[1] if many else _PATHS[0], valid, headers=_typed("application/json"))
        value: Any = pick.choice(({"image": text()}, {"images": [text() for _ in range(pick.choice((0, 1, 3, 9)))]}))
        value["webhook"] = pick.choice(
            (None, None, "https://169.254.169.254/", "file:///etc/passwd", 3, "http://[::1", "\0")
        )
        raw = json.dumps(value).encode()
        nested = b'{"images":' + b"[" * 100_000
        raw = pick.choice(
            (raw, raw, raw, _damaged(raw, pick), nested, b"[]", b"nul", b"\xff\xfe{\0}\0", b"1" * 5000, b"")
        )
        return Case("json", pick.choice(_PATHS[:3]), raw, headers=_typed("application/json"))

    def _tensor(self, pick: random.Random) -> Case:
        odd: tuple[Any, ...] = (None, -1, 1e308, float("nan"), float("inf"), "x", [], {}, 10**400, True)
        size = 32 * 32 * 3
        few = pick.random() < 0.5  # things wrong
        data: Any = [pick.randrange(256)] * (size if few else pick.choice((size, 0, 1, size + 1)))
        if data and pick.random() < 0.5:
            data[pick.randrange(len(data))] = pick.choice(odd)
        shape = [1, 3, 32, 32] if few else pick.choice(([0, 3, 32, 32], [2**40, 3, 32, 32], [1], pick.choice(odd)))
        kind = "UINT8" if few else pick.choice(("UINT8", "FP32", ""))
        tensor = {"name": "crops", "datatype": kind, "shape": shape, "data": data}
        value: dict[str, Any] = {"inputs": [tensor] if few else pick.choice(([], tensor, [tensor] * 2))}
        value |= {"id": pick.choice((None, "x", "x" * 999)), "parameters": {"fpr": pick.choice((0.1, 0.1, *odd))}}
        raw = json.dumps(value).encode()
        raw = _damaged(raw, pick) if pick.random() < 0.2 else raw
        path = f"/v2/models/{pick.choice(('default',) * 6 + ('none', '%2f'))}/infer"
        return Case(
            "tensor", path, raw, headers=_typed(pick.choice(("application/json", "application/json", "text/x")))
        )

    def _around(self, pick: random.Random) -> Case:
        method = pick.choice(
            ("GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW", "")
        )
        body = pick.choice((b"", b"", self.pictures[0], bytes(400_000), bytes(700_000)))
        case = Case("around", pick.choice(_ODD_PATHS + _PATHS), body, method)
        self._trouble_headers(case, pick)
        return case

    def _trouble_headers(self, case: Case, pick: random.Random) -> None:
        case.headers += pick.choice(
            (
                [
                    (
                        b"content-length",
                        pick.choice((b"0", b"1", b"-1", b"9" * 30, b"9" * 5000, b"x", b"", "²".encode())),
                    )
                ],
                [(b"x-long", b"y" * pick.choice((1000, 20_000, 2_000_000)))],
                [(b"x-%d" % i, b"y") for i in range(3000)],
                [(b"content-type", b"application/json"), (b"content-type", b"multipart/form-data")],
                [(b"content-type", pick.randbytes(40))],
                [(b"content-encoding", b"gzip"), (b"transfer-encoding", b"chunked")],
                [(b"x-request-id", pick.choice((b"\xff\xfe", b"a\r\nb: c", b"", b"z" * 500)))],
                [(b"host", pick.choice((b"", b"evil.example", b"[::1]:8000", b"[", b"localhost:x", b"\xff")))],
                [(b"origin", pick.choice((b"null", b"http://evil.example", b"http://localhost", b"\xff")))],
                [(b"authorization", pick.choice((b"Bearer", b"Bearer \xff", b"Basic " + b"x" * 3000)))],
            )
        )


async def exchange(app: Callable[..., Any], case: Case, pick: random.Random) -> int:
    """Sends a case and returns the status; 0 where the sender left before there was one.

    Raises:
        AssertionError: the promise is broken: another status, an answer that is no problem document, or none in time.
    """
    size = pick.choice((len(case.body) + 1, 1000, 65_536))
    chunks = [case.body[i : i + size] for i in range(0, len(case.body), size)] or [b""]
    sent: list[dict[str, Any]] = []
    position = 0

    async def receive() -> dict[str, Any]:
        nonlocal position
        if case.ends != "whole" and position >= max(1, len(chunks) // 2):
            if case.ends == "stalls":
                await asyncio.sleep(3 * SECONDS_A_CASE)
            return {"type": "http.disconnect"}
        if position >= len(chunks):
            return {"type": "http.disconnect"}
        position += 1
        more = position < len(chunks) or case.ends != "whole"
        return {"type": "http.request", "body": chunks[position - 1], "more_body": more}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    hosts = [] if any(name == b"host" for name, _ in case.headers) else [(b"host", b"localhost")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": case.method,
        "scheme": "http",
        "path": case.path,
        "raw_path": case.path.encode("utf-8", "surrogateescape"),
        "query_string": case.query,
        "root_path": "",
        "headers": hosts + case.headers,
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    }
    try:
        async with asyncio.timeout(SECONDS_A_CASE):
            await app(scope, receive, send)
    except TimeoutError:
        raise AssertionError(f"no answer within {SECONDS_A_CASE:g} s: {_told(case)}") from None
    if not sent:
        assert case.ends == "disconnects" or case.ends == "stalls", f"no answer: {_told(case)}"
        return 0
    status, headers = sent[0]["status"], dict(sent[0]["headers"])
    body = b"".join(message.get("body", b"") for message in sent[1:])
    assert status in _ALLOWED, f"{status}: {_told(case)}: {body[:500]!r}"
    assert b"Traceback" not in body and headers[b"x-content-type-options"] == b"nosniff", _told(case)
    assert b"\n" not in headers[b"x-request-id"], _told(case)
    if status >= 400 and case.method != "HEAD":
        assert headers[b"content-type"] == PROBLEM_TYPE.encode(), f"{status}: {_told(case)}: {body[:500]!r}"
        document = json.loads(body)
        assert document["status"] == status and document["reason"] and document["detail"], _told(case)
    return int(status)


def _told(case: Case) -> str:
    return f"{case.kind} {case.method} {case.path[:60]}?{case.query[:60]!r} {case.headers!r:.300} {case.body[:80]!r}"


def _typed(kind: str) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", kind.encode("latin-1"))] if kind else []


def _damaged(data: bytes, pick: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(pick.choice((1, 3, 20))):
        at = pick.randrange(len(changed)) if changed else 0
        changed[at : at + pick.choice((0, 1, 30))] = pick.choice(
            (b"", b"\r\n", b"\xff", b"\0", b"--", b'"', pick.randbytes(9))
        )
    return bytes(changed)


def _again(data: bytes, kind: str) -> bytes:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(data)) as opened:
        opened.convert("RGB").resize((96, 96)).save(stream, kind)
    return stream.getvalue()


def _archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.html", "<script>alert(1)</script>")
    return stream.getvalue()
