"""Messages between a process and the child that works on photos for it: a JSON header and raw bytes. No pickle.

On the pipe: 4 bytes length of the header, 8 bytes length of the payload (both big-endian), header, payload. Rows travel
as an Arrow IPC stream.
"""

import json
import os
import select
import struct
import time
from typing import IO, Any, BinaryIO

import pyarrow as pa

from blades_dist.data.crops import Outcome, Photo
from blades_dist.data.faces import face_from_json
from blades_dist.data.records import no_rows
from blades_dist.data.sources.base import Annotations

PREFIX = struct.Struct(">LQ")
Payload = bytes | bytearray | memoryview
Message = tuple[dict[str, Any], Payload]


class Gone(Exception):
    """The child ended before it had answered."""


class Late(Exception):
    """The child did not answer in time."""


def pack(header: dict[str, Any], payload: Payload = b"") -> bytes:
    """Everything of a message that comes before its payload."""
    text = json.dumps(header).encode()
    return PREFIX.pack(len(text), len(payload)) + text


def receive(stream: BinaryIO) -> Message | None:
    """The next message of a stream; None at its end, and when it ends within a message."""
    prefix = stream.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    header_size, payload_size = PREFIX.unpack(prefix)
    text, payload = stream.read(header_size), stream.read(payload_size)
    return (json.loads(text), payload) if len(text) == header_size and len(payload) == payload_size else None


def request_header(photo: Photo, annotations: Annotations) -> dict[str, Any]:
    """Header of "work on this photo"; the payload is the file's bytes."""
    faces = None if annotations.faces is None else [face.as_json() for face in annotations.faces]
    said = {"faces": faces, "frame": annotations.frame, "exif": annotations.exif, "levels": dict(annotations.levels)}
    return {"photo": vars(photo), "annotations": said}


def read_request(header: dict[str, Any]) -> tuple[Photo, Annotations]:
    said = header["annotations"]
    faces = None if said["faces"] is None else [face_from_json(face) for face in said["faces"]]
    frame = None if said["frame"] is None else (said["frame"][0], said["frame"][1])
    return Photo(**header["photo"]), Annotations(faces, frame, said["exif"], said["levels"])


def answer(outcome: Outcome) -> Message:
    """An outcome as a message; the payload holds its rows, if there are any."""
    header = vars(outcome) | {
        "rows": len(outcome.rows),
        "fingerprint": None if outcome.fingerprint is None else outcome.fingerprint.hex(),
        "found": [face.as_json() for face in outcome.found],
    }
    if not len(outcome.rows):
        return header, b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, outcome.rows.schema) as writer:
        writer.write_table(outcome.rows)
    return header, memoryview(sink.getvalue())


def read_answer(header: dict[str, Any], payload: Payload) -> Outcome:
    """The outcome that ``answer`` made the message of; its rows lie in the payload's memory."""
    rows = no_rows()
    if header["rows"]:
        with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
            rows = reader.read_all()
    fingerprint = None if header["fingerprint"] is None else bytes.fromhex(header["fingerprint"])
    rejected = [(face, reason, detail) for face, reason, detail in header["rejected"]]
    found = [face_from_json(face) for face in header["found"]]
    return Outcome(header["path"], header["faces"], rows, rejected, fingerprint, header["pixels"], found)


def exchange(sink: IO[bytes], source: IO[bytes], header: dict[str, Any], payload: bytes, seconds: float) -> Message:
    """Sends one message over non-blocking pipes and returns the answer.

    Raises:
        Gone: the other side has closed a pipe.
        Late: no answer within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    for part in (pack(header, payload), payload):
        left = memoryview(part)
        while left:
            _wait(sink, select.POLLOUT, deadline)
            try:
                left = left[os.write(sink.fileno(), left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Gone from None
    header_size, payload_size = PREFIX.unpack(_read(source, PREFIX.size, deadline))
    return json.loads(bytes(_read(source, header_size, deadline))), _read(source, payload_size, deadline)


def _read(source: IO[bytes], size: int, deadline: float) -> bytearray:
    result = bytearray(size)
    left = memoryview(result)
    while left:
        _wait(source, select.POLLIN, deadline)
        try:
            count = os.readv(source.fileno(), [left])
        except BlockingIOError:
            continue
        if not count:
            raise Gone
        left = left[count:]
    return result


def _wait(stream: IO[bytes], event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Late
        if poll.poll(1000 * left):
            return
