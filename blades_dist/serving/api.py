"""The HTTP interface, apart from Ray: routes over a ``backend.Backend``. ``app`` runs it on Ray Serve."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.openapi.utils import get_openapi

import blades_dist
from blades_dist.config.serve import ServiceConfig
from blades_dist.serving import kserve
from blades_dist.serving.backend import Backend, DetectOptions, detect_image, detect_images
from blades_dist.serving.bodies import MANY_IMAGES, ONE_IMAGE, many_images, one_image
from blades_dist.serving.logs import log_request
from blades_dist.serving.middleware import AdmissionControl, BodyLimit, InFlight, RequestContext, RequestRecord, Tokens
from blades_dist.serving.page import add_page
from blades_dist.serving.problems import add_handlers, documented
from blades_dist.serving.schema import (
    BatchResponse,
    BatchTimings,
    DetectResponse,
    Health,
    Job,
    JobAccepted,
    Models,
    Problem,
)

ModelParameter = Annotated[
    str | None, Query(max_length=64, description="a name of GET /v1/models; default: the default one")
]
FprParameter = Annotated[float | None, Query(gt=0, lt=1, description="false-positive rate; default: the detector's")]
FacesParameter = Annotated[Literal["locate", "crop"], Query(description="crop: the image is one face")]
JobName = Annotated[str, Path(max_length=64)]
_EVERY = (400, 401, 403, 404, 408, 413, 431, 503)


def make_api(
    backend: Backend,
    config: ServiceConfig,
    tokens: Tokens,
    observe: Callable[[RequestRecord], None] = log_request,
    id_header: bool = True,
    in_flight: InFlight | None = None,
) -> FastAPI:
    """The application; ``observe`` gets a record of every request, ``id_header``: as in ``middleware.RequestContext``;
    ``in_flight`` drains it."""
    app = FastAPI(
        title="BLADES-dist detector",
        version=blades_dist.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(BodyLimit, config=config)
    app.add_middleware(AdmissionControl, config=config, tokens=tokens, in_flight=in_flight or InFlight())
    app.add_middleware(RequestContext, observe=observe, id_header=id_header)
    add_handlers(app)
    _add_detection(app, backend, config)
    _add_jobs(app, backend, config)
    app.include_router(kserve.make_router(backend, config.max_batch_size, config.deadline_seconds))
    add_page(app)

    @app.get("/v1/models", responses=documented(401, 503), summary="Which detectors answer, at which operating points")
    async def models() -> Models:
        return Models(models=await backend.models())

    @app.get("/healthz", responses=documented(503), summary="Whether requests are taken")
    async def healthz() -> Health:
        return Health()

    _complete_openapi(app, bool(tokens))
    return app


def _add_detection(app: FastAPI, backend: Backend, config: ServiceConfig) -> None:
    @app.post(
        "/v1/detect",
        responses=documented(*_EVERY, 415, 422, 504),
        openapi_extra=ONE_IMAGE,
        summary="ImageBackend every face of one image",
    )
    async def detect(
        request: Request, fpr: FprParameter = None, faces: FacesParameter = "locate", model: ModelParameter = None
    ) -> DetectResponse:
        options = _options(request, fpr, faces, model)
        result = await detect_image(backend, await one_image(request), options, config.deadline_seconds)
        request.scope["timings"] = result.timings.model_dump()
        return DetectResponse(**dict(result), request_id=options.request_id)

    @app.post(
        "/v1/detect/batch",
        responses=documented(*_EVERY, 415),
        openapi_extra=MANY_IMAGES,
        summary="ImageBackend many images; each gets a result or a problem",
    )
    async def detect_batch(
        request: Request, fpr: FprParameter = None, faces: FacesParameter = "locate", model: ModelParameter = None
    ) -> BatchResponse:
        begin, options = time.perf_counter(), _options(request, fpr, faces, model)
        uploads, _ = await many_images(request, config.max_files)
        results = await detect_images(backend, uploads, options, config.deadline_seconds)
        timings = BatchTimings(total=time.perf_counter() - begin)
        return BatchResponse(results=results, timings=timings, request_id=options.request_id)


def _add_jobs(app: FastAPI, backend: Backend, config: ServiceConfig) -> None:
    @app.post(
        "/v1/jobs",
        status_code=202,
        responses=documented(*_EVERY, 415, 429),
        openapi_extra=MANY_IMAGES,
        summary="ImageBackend many images later; ask for the results, or have them posted",
    )
    async def submit(
        request: Request,
        fpr: FprParameter = None,
        faces: FacesParameter = "locate",
        model: ModelParameter = None,
        webhook: Annotated[str | None, Query(max_length=2048, description="URL of an allowed host")] = None,
    ) -> JobAccepted:
        uploads, named = await many_images(request, config.max_files)
        job = await backend.submit(uploads, _options(request, fpr, faces, model), webhook or named)
        return JobAccepted(id=job.id, status_url=f"/v1/jobs/{job.id}")

    @app.get("/v1/jobs/{name}", responses=documented(401, 404, 503), summary="A job, with its results when done")
    async def job(name: JobName) -> Job:
        return await backend.job(name)

    @app.delete("/v1/jobs/{name}", status_code=204, responses=documented(401, 404, 503), summary="End and forget a job")
    async def drop(name: JobName) -> Response:
        await backend.drop_job(name)
        return Response(status_code=204)


def _options(request: Request, fpr: float | None, faces: str, model: str | None) -> DetectOptions:
    return DetectOptions(model, fpr, faces == "crop", request.scope.get("request_id", ""))


def _complete_openapi(app: FastAPI, secured: bool) -> None:
    """Schemas that routes read by themselves, and how to authenticate."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            parts = found.setdefault("components", {})
            for model in (Problem, kserve.InferRequest):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                parts.setdefault("schemas", {}).update(schema.pop("$defs", {}))
                parts["schemas"][model.__name__] = schema
            parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            if secured:
                found["security"] = [{"bearer": []}]
            for path in found["paths"].values():
                for operation in path.values():
                    # FastAPI promises its own shape for parameters that it refuses; ours is 400.
                    body = operation["responses"].get("422", {}).get("content", {}).get("application/json")
                    if body is not None:
                        del operation["responses"]["422"]
                        operation["responses"].setdefault("400", documented(400)[400])
            for name in ("HTTPValidationError", "ValidationError"):
                parts["schemas"].pop(name, None)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
