"""The process that decodes photos for ``sandbox.PhotoProcess``: ``python -m blades_dist.data.sandbox_child``.

Decoders are the part of an ingest that hostile bytes can crash or exhaust, so they run here, with bounded memory.
"""

import ctypes
import hashlib
import io
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from blades_dist.config import IngestConfig
from blades_dist.data import wire
from blades_dist.data.crops import Outcome, Photo, no_memory, process_photo
from blades_dist.data.faces import Face
from blades_dist.data.locate import check_locator
from blades_dist.data.locate_models import LocatorError
from blades_dist.data.records import LANDMARKS
from blades_dist.data.sources.base import Annotations

_PR_SET_PDEATHSIG = 1


Answer = Callable[[wire.Message], wire.Message]


def main(parent: int) -> int:
    """Serves ``parent`` until it closes the pipe; everything goes through stdin and stdout."""
    return serve(parent, _begin)


def serve(parent: int, begin: Callable[[dict[str, Any]], tuple[Answer, int]]) -> int:
    """The life of a child of ``sandbox.BoundedProcess``: ``begin`` takes its first header and returns what answers the
    messages that follow, and the mebibytes that may be held from then on.

    A LocatorError of ``begin`` is told to the parent.
    """
    _die_with(parent)
    # The pipe is for messages alone: whatever a library prints goes where errors go.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first = wire.receive(source)
    if first is None:
        return 0
    # Arrow would load pandas, for 40 MiB and a third of a second, to see whether a list is a series.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    try:
        answer, mebibytes = begin(first[0])
    except LocatorError as problem:
        _send(sink, {"error": str(problem)})
        return 1
    _bound_memory(mebibytes)
    _send(sink, {"error": ""})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what decoders have to say of hostile files is in the outcome
    os.dup2(2, 1)
    while (message := wire.receive(source)) is not None:
        _send(sink, *answer(message))
    return 0


def _begin(first: dict[str, Any]) -> tuple[Answer, int]:
    config = IngestConfig.model_validate(first["config"])
    check_locator(config)
    _warm_up(config)
    return partial(_answer, config=config), config.memory_mebibytes


def _warm_up(config: IngestConfig) -> None:
    """Takes a picture the whole way, so that what libraries load at their first use is no photo's time or memory."""
    side, buffer = max(64, config.min_face_px), io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG")
    data = buffer.getvalue()
    photo = Photo("warm", "warm", hashlib.sha256(data).hexdigest(), "train")
    annotations = Annotations(faces=[Face((0.0, 0.0, float(side), float(side)), np.zeros((LANDMARKS, 2), np.float32))])
    untagged = config.model_copy(update={"kind": "generated"})
    wire.answer(process_photo(photo, data, annotations, untagged))


def _answer(message: wire.Message, config: IngestConfig) -> wire.Message:
    photo, annotations = wire.read_request(message[0])
    try:
        return wire.answer(process_photo(photo, bytes(message[1]), annotations, config))
    except MemoryError:  # its rows are too large to be handed on
        return wire.answer(no_memory(Outcome(photo.path)))


def _send(sink: BinaryIO, header: dict[str, Any], payload: wire.Payload = b"") -> None:
    sink.write(wire.pack(header, payload))
    sink.write(payload)
    sink.flush()


def _die_with(parent: int) -> None:
    """The kernel kills this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(0)


def _bound_memory(mebibytes: int) -> None:
    """Lets this process hold about ``mebibytes`` of memory in all, beyond which allocations fail.

    RLIMIT_DATA counts private writable memory; RLIMIT_AS would also count libraries, of which a process maps far more
    than it holds. What is mapped but not held now stays free of charge, so that the bound is one of held memory.
    """
    status = Path("/proc/self/status")
    if not status.is_file():  # not Linux: there the deadline is the only bound
        return
    import resource

    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    mapped, held = (int(fields[name].split()[0]) * 1024 for name in ("VmData", "VmRSS"))
    bound = mapped + max(0, mebibytes * 2**20 - held)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
