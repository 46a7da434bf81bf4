"""Decoding of uploads in a child process with bounded time and memory (a sandbox). No Ray here.

The same child as ingest's (``data.sandbox``), with another task: ``preprocess`` instead of ``process_photo``.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from blades_dist.data import wire
from blades_dist.data.credentials import Credentials
from blades_dist.data.faces import face_from_json
from blades_dist.data.sandbox import BoundedProcess, Failed, SandboxError
from blades_dist.detect.info import Preprocessing
from blades_dist.detect.preprocess import PreprocessedImage, Unusable

# What became of the child, as a reason of ``problems.STATUS_OF_REASON``.
_REASONS = {"late": "deadline", "killed": "too_large", "crashed": "unreadable"}
ATTEMPTS = 2  # per file: a child may have been killed for another process's memory


class DecodeProcess(BoundedProcess):
    """``preprocess`` in a child process; a context manager. The bounds are seconds a file and mebibytes of memory."""

    def __init__(self, max_pixels: int, max_bytes: int, seconds: float, mebibytes: int) -> None:
        hello = {"max_pixels": max_pixels, "max_bytes": max_bytes, "mebibytes": mebibytes}
        super().__init__("blades_dist.serving.decoding_child", hello, seconds, mebibytes)
        self.failures = 0

    def prepare(
        self, data: bytes, how: Preprocessing, whole: bool, locator_model: str | None = None
    ) -> PreprocessedImage | Unusable:
        """What ``preprocess`` makes of a file; where it takes the child down or too long, the file is unusable too. A
        file whose child was killed gets another child first.

        Raises:
            SandboxError: the child cannot be started, or cannot load the locator.
        """
        header = {"how": how.model_dump(mode="json"), "whole": whole, "locator_model": locator_model}
        attempt = 1
        while True:
            try:
                return _read(*self.ask(header, data))
            except Failed as failure:
                self.failures += 1
                if failure.kind != "killed" or attempt == ATTEMPTS:
                    return Unusable(_REASONS[failure.kind], str(failure))
            attempt += 1


def message_of(outcome: PreprocessedImage | Unusable) -> wire.Message:
    """An outcome as a message; ``_read`` undoes it."""
    if isinstance(outcome, Unusable):
        return {"unusable": vars(outcome)}, b""
    crops = np.ascontiguousarray(outcome.crops)
    header = vars(outcome) | {
        "faces": [face.as_json() for face in outcome.faces],
        "crops": {"shape": crops.shape, "dtype": crops.dtype.name},
        "credentials": None if outcome.credentials is None else outcome.credentials.model_dump(mode="json"),
    }
    return header, crops.reshape(-1).view(np.uint8).data


def _read(header: dict[str, Any], payload: wire.Payload) -> PreprocessedImage | Unusable:
    if "broken" in header:
        raise SandboxError(header["broken"])
    if "unusable" in header:
        return Unusable(**header["unusable"])
    shape, dtype = header["crops"]["shape"], np.dtype(header["crops"]["dtype"])
    prepared = PreprocessedImage(**header)
    return replace(
        prepared,
        faces=[face_from_json(face) for face in header["faces"]],
        crops=np.frombuffer(payload, dtype).reshape(shape),
        credentials=None if header["credentials"] is None else Credentials.model_validate(header["credentials"]),
    )
