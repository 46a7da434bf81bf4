"""What routes and jobs ask of the parts behind them, and judging with a deadline, one image or many. No Ray here."""

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
from blades_dist.serving.schema import BatchItem, Job, Judged, ModelInfo, TensorInfo, Timings

AT_ONCE = 4  # images of one batch
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to judge: ``model`` None is the default bundle, ``fpr`` None its own rate; ``whole``: the image is one face;
    ``request_id`` for the log."""

    model: str | None = None
    fpr: float | None = None
    whole: bool = False
    request_id: str = ""


@dataclass(frozen=True)
class Answered:
    """A report and the seconds that its two parts took."""

    report: ImageReport
    prepare: float
    score: float


@dataclass(frozen=True)
class Inferred:
    """Scores, p-values and flags of n crops, by the detector of that id."""

    detector: str
    scores: list[float]
    p_values: list[float]
    flagged: list[bool]


@dataclass(frozen=True)
class Spec:
    """What others must know of a bundle: ``key`` is equal for bundles that take the same crops."""

    key: str
    preprocessing: Preprocessing
    locator_model: str | None
    info: ModelInfo
    tensor: TensorInfo


@dataclass(frozen=True)
class ModelReport:
    """A model's report, and the id of the detector that answers now: another one where the crops were for an older."""

    report: ImageReport
    newest: str


@dataclass(frozen=True)
class Stale:
    """The crops are for no bundle of that replica; ``spec`` is that of the one it has."""

    spec: Spec


class Judge(Protocol):
    """What gives one image's report; it may raise Refused."""

    async def judge(self, data: bytes, options: Options) -> Answered: ...


class Backend(Judge, Protocol):
    """Everything behind the routes; every method may raise Refused."""

    async def infer(self, crops: np.ndarray, options: Options) -> Inferred: ...

    async def models(self) -> list[ModelInfo]: ...

    async def input_of(self, model: str | None) -> tuple[ModelInfo, TensorInfo]:
        """A model and what its encoder takes."""
        ...

    async def submit(self, uploads: list[Upload], options: Options, webhook: str | None) -> Job: ...

    async def job(self, name: str) -> Job: ...

    async def drop_job(self, name: str) -> None: ...


async def judge(backend: Judge, data: bytes, options: Options, deadline: float) -> Judged:
    """One image, or 504 after ``deadline`` seconds.

    Raises:
        Refused: there is no answer; it says why.
    """
    begin = time.perf_counter()
    try:
        async with asyncio.timeout(deadline):
            answered = await backend.judge(data, options)
    except TimeoutError:
        raise Refused(504, "deadline", f"there was no answer within {deadline:g} s") from None
    total = time.perf_counter() - begin
    timings = Timings(prepare=answered.prepare, score=answered.score, total=total)
    return Judged(**dict(answered.report), timings=timings)


async def judge_many(
    backend: Judge, uploads: Sequence[Upload], options: Options, deadline: float, patience: float = 0.0
) -> list[BatchItem]:
    """A result an image, in order; what is wrong with one is no matter for the others. An image that meets a busy
    service is tried again for ``patience`` seconds."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(index: int, upload: Upload) -> BatchItem:
        async with room:
            try:
                image = await _patiently(backend, upload.data, options, deadline, patience)
                return BatchItem(index=index, filename=upload.filename, image=image, problem=None)
            except Refused as refused:
                problem = refused.problem(options.request_id)
            except Exception as error:
                _log.error("request %s failed at image %d", options.request_id, index, exc_info=error)
                problem = Refused(500, "internal", "the service failed on this image").problem(options.request_id)
            return BatchItem(index=index, filename=upload.filename, image=None, problem=problem)

    return list(await asyncio.gather(*(one(index, upload) for index, upload in enumerate(uploads))))


async def _patiently(backend: Judge, data: bytes, options: Options, deadline: float, patience: float) -> Judged:
    end, wait = time.monotonic() + patience, 0.1
    while True:
        try:
            return await judge(backend, data, options, deadline)
        except Refused as refused:
            if refused.status != 503 or time.monotonic() + wait > end:
                raise
        await asyncio.sleep(wait)
        wait = min(2 * wait, 5.0)
