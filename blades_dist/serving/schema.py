"""The bodies of responses. Times are seconds, or seconds since 1970 where a field is a moment."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from blades_dist.detect.schema import DetectorReference, ImageReport


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(_Answer):
    """RFC 9457 problem details; ``reason`` is a stable code for programs, ``detail`` a sentence for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
    request_id: str


class Timings(_Answer):
    """Seconds spent on decoding and finding faces, on judging (waiting included in both), and in all."""

    prepare: float
    score: float
    total: float


class ImageResult(ImageReport):
    """Per-face results of one image: what ``jobs/predict.py --json`` gives for the file, plus timings in seconds."""

    timings: Timings


class DetectResponse(ImageResult):
    """The answer on one image."""

    request_id: str


class BatchItem(_Answer):
    """One image of a batch: an answer or a problem. ``filename`` as the form gave it."""

    index: int
    filename: str | None
    image: ImageResult | None
    problem: Problem | None


class BatchTimings(_Answer):
    total: float


class BatchResponse(_Answer):
    """One result an image, in the order they came."""

    results: list[BatchItem]
    timings: BatchTimings
    request_id: str


class JobAccepted(_Answer):
    id: str
    status_url: str


JobStatus = Literal["queued", "running", "done", "failed"]


class Job(_Answer):
    """``failed`` is a fault of the service; problems of single images are in ``results``."""

    id: str
    status: JobStatus
    submitted: float
    finished: float | None
    results: list[BatchItem] | None


class OperatingPointInfo(_Answer):
    """A rate that ``?fpr=`` may name without loss of meaning: others between ``smallest_fpr`` and 1 work too."""

    fpr: float
    threshold: float | None


class Histogram(_Answer):
    """``counts[i]`` values lie between ``edges[i]`` and ``edges[i + 1]``; the outermost bins hold the rest as well."""

    edges: list[float]
    counts: list[int]


class ModelInfo(_Answer):
    """One detector that answers here; ``histogram`` is of the scores of the real faces it was calibrated on."""

    name: str
    default: bool
    detector: DetectorReference
    fpr: float
    unsure_fpr: float | None
    smallest_fpr: float
    calibration_faces: int
    operating_points: list[OperatingPointInfo]
    labels: dict[str, list[str]]
    score_unit: str
    histogram: Histogram


class Models(_Answer):
    models: list[ModelInfo]


class Health(_Answer):
    status: Literal["ok"] = "ok"


class Live(_Answer):
    live: Literal[True] = True


class Ready(_Answer):
    ready: Literal[True] = True


class ServerMetadata(_Answer):
    """KServe V2 server metadata."""

    name: str = "blades-dist"
    version: str
    extensions: list[str] = []


class ModelReady(_Answer):
    name: str
    ready: Literal[True] = True


class TensorInfo(_Answer):
    """``shape``: -1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Answer):
    """KServe V2 metadata; ``versions`` holds the detector's id."""

    name: str
    versions: list[str]
    platform: str = "blades-dist"
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class OutputTensor(_Answer):
    name: str
    datatype: str
    shape: list[int]
    data: list[float] | list[bool]


class InferResponse(_Answer):
    model_name: str
    model_version: str
    id: str | None
    outputs: list[OutputTensor]
