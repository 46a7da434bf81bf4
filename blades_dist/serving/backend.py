"""The interface between HTTP routes and what answers them, and detection with a deadline in one or many images. No Ray
here."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from blades_dist.detect.info import Preprocessing
from blades_dist.detect.schema import ImageReport
from blades_dist.serving.bodies import Upload
from blades_dist.serving.problems import Refused
from blades_dist.serving.schema import BatchItem, ImageResult, Job, ModelInfo, TensorInfo

AT_ONCE = 4  # images of one request that are in progress
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectOptions:
    """Parameters of a request: ``model`` None is the default bundle, ``fpr`` None its own rate; ``whole``: the image is
    one face; ``request_id`` for the log."""

    model: str | None = None
    fpr: float | None = None
    whole: bool = False
    request_id: str = ""


@dataclass(frozen=True)
class Predictions:
    """Scores, p-values and flags of n crops, by the detector of that id."""

    detector: str
    scores: list[float]
    p_values: list[float]
    flagged: list[bool]


@dataclass(frozen=True)
class ModelSpec:
    """What a client of a model deployment must know: ``key`` is equal for detectors that take the same crops."""

    key: str
    preprocessing: Preprocessing
    locator_model: str | None
    info: ModelInfo
    tensor: TensorInfo


@dataclass(frozen=True)
class ModelReply:
    """A model's report, and the id of its current detector: another one where the crops were made for an older."""

    report: ImageReport
    current: str


@dataclass(frozen=True)
class StaleCrops:
    """The crops fit no detector of that replica; ``spec`` is that of the current one."""

    spec: ModelSpec


class ImageBackend(Protocol):
    """Detects in one image; it may raise Refused."""

    async def detect(self, data: bytes, options: DetectOptions) -> ImageResult: ...


class Backend(ImageBackend, Protocol):
    """Everything behind the routes; every method may raise Refused."""

    async def infer(self, crops: np.ndarray, options: DetectOptions) -> Predictions: ...

    async def models(self) -> list[ModelInfo]: ...

    async def input_of(self, model: str | None) -> tuple[ModelInfo, TensorInfo]:
        """A model and what its encoder takes."""
        ...

    async def submit(self, uploads: list[Upload], options: DetectOptions, webhook: str | None) -> Job: ...

    async def job(self, name: str) -> Job: ...

    async def drop_job(self, name: str) -> None: ...


async def detect_image(backend: ImageBackend, data: bytes, options: DetectOptions, deadline: float) -> ImageResult:
    """The result of one image, or 504 after ``deadline`` seconds.

    Raises:
        Refused: there is no answer; it says why.
    """
    try:
        async with asyncio.timeout(deadline):
            return await backend.detect(data, options)
    except TimeoutError:
        raise Refused(504, "deadline", f"there was no answer within {deadline:g} s") from None


async def detect_images(
    backend: ImageBackend, uploads: Sequence[Upload], options: DetectOptions, deadline: float, patience: float = 0.0
) -> list[BatchItem]:
    """One result per image, in order; a failure of one leaves the others alone. An image that meets a busy service is
    retried for ``patience`` seconds."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(index: int, upload: Upload) -> BatchItem:
        async with limit:
            try:
                image = await _with_retries(backend, upload.data, options, deadline, patience)
                return BatchItem(index=index, filename=upload.filename, image=image, problem=None)
            except Refused as refused:
                problem = refused.problem(options.request_id)
            except Exception as error:
                _log.error("request %s failed at image %d", options.request_id, index, exc_info=error)
                problem = Refused(500, "internal", "the service failed on this image").problem(options.request_id)
            return BatchItem(index=index, filename=upload.filename, image=None, problem=problem)

    return list(await asyncio.gather(*(one(index, upload) for index, upload in enumerate(uploads))))


async def _with_retries(
    backend: ImageBackend, data: bytes, options: DetectOptions, deadline: float, patience: float
) -> ImageResult:
    end, wait = time.monotonic() + patience, 0.1
    while True:
        try:
            return await detect_image(backend, data, options, deadline)
        except Refused as refused:
            if refused.status != 503 or time.monotonic() + wait > end:
                raise
        await asyncio.sleep(wait)
        wait = min(2 * wait, 5.0)
