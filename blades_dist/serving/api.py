"""The HTTP interface, apart from Ray: routes, limits, problems. ``app`` puts it on Ray Serve."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import blades_dist
from blades_dist.data.decode import Rejected
from blades_dist.detect.detector import Detector, FaceResult
from blades_dist.detect.inspect import Prepared, prepare, reference, report
from blades_dist.serving.body_limit import BodyLimit
from blades_dist.serving.schema import (
    PROBLEM_TYPE,
    STATUS_OF_REASON,
    DetectResponse,
    Health,
    ModelInfo,
    Models,
    OperatingPointInfo,
    Problem,
    Timings,
)

_log = logging.getLogger(__name__)

_TITLES = {
    400: "The request cannot be read",
    404: "No such resource",
    405: "Method not allowed",
    413: "Too large",
    415: "Format not allowed",
    422: "Nothing to judge",
    500: "Internal error",
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "a JPEG, PNG, WebP or TIFF image, as field `file` of a form or as the body itself",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            **{
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("image/*", "application/octet-stream")
            },
        },
    }
}


class Scorer(Protocol):
    """What the routes need: a detector, and a way to run it that may put requests together."""

    detector: Detector

    async def score(self, crops: np.ndarray, fpr: float) -> list[FaceResult]: ...


def make_api(scorer: Scorer, max_bytes: int, max_pixels: int, decoders: int = 2) -> FastAPI:
    """The application; ``decoders`` bounds the images being decoded at once, and so their memory."""
    app = FastAPI(title="BLADES-dist detector", version=blades_dist.__version__)
    app.add_middleware(BodyLimit, max_bytes=max_bytes, refusal=lambda: _too_large(max_bytes))
    _add_handlers(app)
    pool = ThreadPoolExecutor(decoders, "decode")
    how = scorer.detector.info.preprocessing
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": _TITLES[status]} for status in (400, 413, 415, 422)
    }

    @app.post("/v1/detect", responses=problems, openapi_extra=_BODY, summary="Judge every face of one image")
    async def detect(
        request: Request,
        fpr: Annotated[
            float | None, Query(gt=0, lt=1, description="false-positive rate; default: the detector's")
        ] = None,
        faces: Annotated[Literal["locate", "crop"], Query(description="crop: the image is one face")] = "locate",
    ) -> DetectResponse:
        begin = time.perf_counter()
        try:
            rate = scorer.detector.check_fpr(fpr)
        except ValueError as error:
            raise _Refused(400, "bad_parameter", str(error)) from None
        data = await _image_bytes(request)
        received = time.perf_counter()
        work = partial(prepare, data, how, max_pixels, max_bytes, whole=faces == "crop")
        prepared: Prepared = await asyncio.get_running_loop().run_in_executor(pool, work)
        ready = time.perf_counter()
        results = await scorer.score(prepared.crops, rate)
        end = time.perf_counter()
        timings = Timings(prepare=ready - received, score=end - ready, total=end - begin)
        return DetectResponse(**dict(report(scorer.detector, prepared, results)), timings=timings)

    @app.get("/v1/models", summary="Which detectors answer here, and at which operating points")
    async def models() -> Models:
        return Models(models=[describe(scorer.detector)])

    @app.get("/healthz", summary="Whether requests can be answered")
    async def healthz() -> Health:
        return Health()

    return app


def describe(detector: Detector) -> ModelInfo:
    """A detector as ``GET /v1/models`` shows it."""
    info = detector.info
    return ModelInfo(
        detector=reference(detector),
        fpr=info.fpr,
        smallest_fpr=info.calibration.smallest_fpr,
        calibration_faces=info.calibration.n,
        operating_points=[OperatingPointInfo(fpr=p.fpr, threshold=p.threshold) for p in info.operating_points],
        labels=info.labels,
    )


class _Refused(Exception):
    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail


async def _image_bytes(request: Request) -> bytes:
    """The image of a form's field ``file``, or else the body. What it is, its own bytes say, not its label."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return await request.body()
    async with request.form(max_files=1, max_fields=4) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise _Refused(400, "no_file", "the form has no file in a field named 'file'")
        return await file.read()


def _problem(status: int, reason: str, detail: str, title: str | None = None) -> JSONResponse:
    body = Problem(title=title or _TITLES.get(status, "Request refused"), status=status, detail=detail, reason=reason)
    return JSONResponse(body.model_dump(), status_code=status, media_type=PROBLEM_TYPE)


def _too_large(max_bytes: int) -> JSONResponse:
    answer = _problem(413, "too_large", f"the request body is larger than {max_bytes} bytes")
    answer.headers["connection"] = "close"  # the rest of the body is not worth reading
    return answer


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(Rejected)
    async def rejected(_: Request, error: Rejected) -> JSONResponse:
        return _problem(STATUS_OF_REASON.get(error.reason, 400), error.reason, error.detail)

    @app.exception_handler(_Refused)
    async def refused(_: Request, error: _Refused) -> JSONResponse:
        return _problem(error.status, error.reason, error.detail)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors())
        return _problem(400, "bad_parameter", found)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        answer = _problem(error.status_code, "bad_request" if error.status_code == 400 else "http", str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("request to %s failed", request.url.path, exc_info=error)
        return _problem(500, "internal", "the service failed on this request; its log says why")
