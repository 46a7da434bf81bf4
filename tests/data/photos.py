"""Small helpers of the tests that turn photos into rows."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from blades_dist.config import IngestConfig
from blades_dist.data.crops import Photo
from blades_dist.data.faces import Face

POINTS = np.array([[30, 30], [60, 30], [45, 45], [35, 60], [55, 60]], np.float32)


def photo_of(data: bytes, path: str = "trip/photo.jpg") -> Photo:
    return Photo(path, "trip", hashlib.sha256(data).hexdigest(), "train")


def face(x: float, y: float, w: float, h: float) -> Face:
    return Face((x, y, w, h), POINTS)


def configured(**options: Any) -> IngestConfig:
    return IngestConfig.model_validate({"source": "photos", "output": "shards"} | options)


def peak_mebibytes(pid: int) -> int:
    """The most memory that a process has held so far (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) // 1024
