"""What the service says, and in which shape: answers, and problems as RFC 9457 has them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from blades_dist.detect.inspect import DetectorReference, ImageReport

PROBLEM_TYPE = "application/problem+json"

# What a reason code of ``records.REASONS`` means as an HTTP status.
STATUS_OF_REASON = {
    "empty": 400,
    "unreadable": 400,
    "truncated": 400,
    "bad_sidecar": 400,
    "too_large": 413,
    "unsupported": 415,
    "no_face": 422,
    "face_too_small": 422,
}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timings(_Answer):
    """Seconds spent on decoding and finding faces (waiting for a decoder included), on judging, and in all."""

    prepare: float
    score: float
    total: float


class DetectResponse(ImageReport):
    """Per-face results of one image: what ``jobs/predict.py --json`` gives for the file, plus timings in seconds."""

    timings: Timings


class OperatingPointInfo(_Answer):
    """A rate that ``?fpr=`` may name without loss of meaning: others between ``smallest_fpr`` and 1 work too."""

    fpr: float
    threshold: float | None


class ModelInfo(_Answer):
    """One detector that answers here."""

    detector: DetectorReference
    fpr: float
    smallest_fpr: float
    calibration_faces: int
    operating_points: list[OperatingPointInfo]
    labels: dict[str, list[str]]


class Models(_Answer):
    models: list[ModelInfo]


class Health(_Answer):
    status: Literal["ok"] = "ok"


class Problem(_Answer):
    """RFC 9457 problem details; ``reason`` is a stable code for programs, ``detail`` a sentence for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
