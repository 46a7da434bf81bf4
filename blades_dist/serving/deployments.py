"""The Ray Serve deployments: the front (HTTP) calls decode, then model; jobs run beside the front."""

import asyncio
import time
from functools import cached_property
from typing import Any

import numpy as np
from fastapi import FastAPI
from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from blades_dist.config.serve import ServiceConfig
from blades_dist.detect.info import Preprocessing
from blades_dist.detect.preprocess import PreprocessedImage, Unusable
from blades_dist.ray_private import method_of
from blades_dist.serving import logs
from blades_dist.serving.api import make_api
from blades_dist.serving.backend import DetectOptions, ModelReply, ModelSpec, Predictions, StaleCrops
from blades_dist.serving.bodies import Upload
from blades_dist.serving.decoding import DecodeProcess
from blades_dist.serving.environment import direct
from blades_dist.serving.jobs import JobStore, read_webhooks
from blades_dist.serving.metrics import DecodeMetrics, RequestMetrics
from blades_dist.serving.middleware import InFlight, RequestRecord, read_tokens
from blades_dist.serving.problems import Refused, busy, unusable
from blades_dist.serving.schema import ImageResult, Job, ModelInfo, TensorInfo, Timings

ATTEMPTS = 4  # of a call whose replica died: detection is idempotent
_LOST = (RayActorError, ActorUnavailableError, WorkerCrashedError, ReplicaUnavailableError, AioRpcError)


class Decode:
    """One replica: a child process with bounded time and memory, which decodes one file at a time."""

    def __init__(self, config: dict[str, Any]) -> None:
        logs.set_up()
        own = ServiceConfig.model_validate(config)
        self._process = DecodeProcess(own.max_pixels, own.max_bytes, own.decode_seconds, own.decode_mebibytes)
        self._process.__enter__()
        self._metrics = DecodeMetrics()

    async def prepare(
        self, data: bytes, how: Preprocessing, whole: bool, locator_model: str | None
    ) -> PreprocessedImage | Unusable:
        """A file's crops, or why there are none."""
        return await asyncio.to_thread(self._prepare, data, how, whole, locator_model)

    def _prepare(
        self, data: bytes, how: Preprocessing, whole: bool, locator_model: str | None
    ) -> PreprocessedImage | Unusable:
        begin, failures = time.perf_counter(), self._process.failures
        found = self._process.prepare(data, how, whole, locator_model)
        self._metrics.decoded(time.perf_counter() - begin, self._process.failures - failures)
        return found

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.close()


class DeploymentBackend:
    """A ``backend.Backend`` but for jobs: calls to the other deployments, retried where a replica died."""

    def __init__(self, default: str, decode: DeploymentHandle, models: dict[str, DeploymentHandle]) -> None:
        self._default, self._decode, self._models = default, decode, models
        self._specs: dict[str, ModelSpec] = {}

    async def detect(self, data: bytes, options: DetectOptions) -> ImageResult:
        """The result of one image file."""
        start = time.perf_counter()
        name, handle = self._model(options.model)
        spec = await self._spec(name)
        self._check_fpr(spec, options.fpr)
        prepare = score = 0.0
        for _ in range(ATTEMPTS):
            begin = time.perf_counter()
            prepared = await self._prepare(data, spec, options.whole)
            ready = time.perf_counter()
            found = await self._score(handle, prepared, spec, options)
            prepare, score = prepare + ready - begin, score + time.perf_counter() - ready
            if isinstance(found, ModelReply):
                if found.current != spec.info.detector.id:
                    self._specs.pop(name, None)  # the next request asks for the current one's
                timings = Timings(prepare=prepare, score=score, total=time.perf_counter() - start)
                return ImageResult(**dict(found.report), timings=timings)
            spec = self._specs[name] = found.spec  # the current detector takes other crops
        raise Refused(503, "updating", "the detector is being replaced; try again")

    async def infer(self, crops: np.ndarray, options: DetectOptions) -> Predictions:
        """Scores of crops."""
        _, handle = self._model(options.model)
        found: Predictions | Unusable = await call(handle, "infer", crops, options.fpr)
        if isinstance(found, Unusable):
            raise unusable(found.reason, found.detail)
        return found

    async def models(self) -> list[ModelInfo]:
        """All models as they are now."""
        return [(await self._spec(name, fresh=True)).info for name in self._models]

    async def input_of(self, model: str | None) -> tuple[ModelInfo, TensorInfo]:
        """A model and its input tensor."""
        spec = await self._spec(self._model(model)[0], fresh=True)
        return spec.info, spec.tensor

    def check_model(self, name: str | None) -> None:
        """Refuses an unknown name."""
        self._model(name)

    def _model(self, name: str | None) -> tuple[str, DeploymentHandle]:
        chosen = self._default if name is None else name
        if chosen not in self._models:
            raise Refused(404, "no_model", f"no such model; there are: {', '.join(self._models)}")
        return chosen, self._models[chosen]

    async def _spec(self, name: str, fresh: bool = False) -> ModelSpec:
        if fresh or name not in self._specs:
            self._specs[name] = await call(self._models[name], "describe")
        return self._specs[name]

    async def _prepare(self, data: bytes, spec: ModelSpec, whole: bool) -> PreprocessedImage:
        how, model = spec.preprocessing, spec.locator_model
        found: PreprocessedImage | Unusable = await call(self._decode, "prepare", data, how, whole, model)
        if isinstance(found, Unusable):
            raise unusable(found.reason, found.detail)
        return found

    async def _score(
        self, handle: DeploymentHandle, prepared: PreprocessedImage, spec: ModelSpec, options: DetectOptions
    ) -> ModelReply | StaleCrops:
        found: ModelReply | StaleCrops | Unusable = await call(
            handle, "detect", prepared, options.fpr, spec.key, options.request_id
        )
        if isinstance(found, Unusable):
            raise unusable(found.reason, found.detail)
        return found

    @staticmethod
    def _check_fpr(spec: ModelSpec, fpr: float | None) -> None:
        smallest = spec.info.smallest_fpr
        if fpr is not None and fpr < smallest * (1 - 1e-9):
            told = f"fpr={fpr:g} is lower than this detector supports: {smallest:.4g} is the smallest"
            raise Refused(400, "bad_parameter", told)


class Jobs:
    """The one replica that keeps jobs. It returns refusals as values, since an exception would arrive wrapped."""

    def __init__(self, config: dict[str, Any], decode: DeploymentHandle, models: dict[str, DeploymentHandle]) -> None:
        logs.set_up()
        self._config = ServiceConfig.model_validate(config)
        self._backend, self._webhooks = (
            DeploymentBackend(self._config.name, decode, models),
            read_webhooks(self._config),
        )

    async def submit(self, uploads: list[Upload], options: DetectOptions, webhook: str | None) -> Job | Refused:
        """A new job, or why there is none."""
        try:
            self._backend.check_model(options.model)
            return self._store.submit(uploads, options, webhook)
        except Refused as refused:
            return refused

    async def job(self, name: str) -> Job | Refused:
        """A job as it stands, or why there is none."""
        try:
            return self._store.get(name)
        except Refused as refused:
            return refused

    async def drop_job(self, name: str) -> Refused | None:
        """Ends and forgets a job."""
        try:
            self._store.drop(name)
        except Refused as refused:
            return refused
        return None

    @cached_property
    def _store(self) -> JobStore:
        return JobStore(self._backend, self._config, self._webhooks)  # made where an event loop runs


@serve.ingress()
class Front(DeploymentBackend):
    """One replica of the HTTP server: it authenticates, applies limits, parses, and calls the other deployments."""

    def __init__(
        self,
        config: dict[str, Any],
        decode: DeploymentHandle,
        models: dict[str, DeploymentHandle],
        jobs: DeploymentHandle,
    ) -> None:
        logs.set_up()
        self._config = ServiceConfig.model_validate(config)
        super().__init__(self._config.name, decode, models)
        self._jobs, self._metrics, self._desk = jobs, RequestMetrics(), InFlight()

    def __serve_build_asgi_app__(self) -> FastAPI:
        def observe(record: RequestRecord) -> None:
            self._metrics.observe(record)
            logs.log_request(record)

        return make_api(self, self._config, read_tokens(self._config), observe, id_header=False, in_flight=self._desk)

    async def drain(self, seconds: float) -> None:
        """Finishes the requests in flight and refuses new ones."""
        await self._desk.drain(seconds)

    async def submit(self, uploads: list[Upload], options: DetectOptions, webhook: str | None) -> Job:
        """A new job."""
        # Not retried when its replica dies: the job may have started.
        return _unwrapped(await call(self._jobs, "submit", uploads, options, webhook, attempts=1))

    async def job(self, name: str) -> Job:
        """A job as it stands."""
        return _unwrapped(await call(self._jobs, "job", name))

    async def drop_job(self, name: str) -> None:
        """Ends and forgets a job."""
        _unwrapped(await call(self._jobs, "drop_job", name))


async def call(handle: DeploymentHandle, method: str, *arguments: Any, attempts: int = ATTEMPTS) -> Any:
    """The result of a call to another deployment; cancelled together with its caller.

    Raises:
        Refused: 503, its queue is full, or it died under every attempt.
    """
    # Decided by the cluster that runs this process, not by the process that deployed the application.
    target = method_of(handle, method, by_value=direct())
    for attempt in range(attempts):
        response = None
        try:
            response = target.remote(*arguments)
            return await response
        except BackPressureError:
            raise busy("too many requests wait; try again") from None
        except DeploymentUnavailableError:
            break
        except _LOST:
            await asyncio.sleep(0.05 * 4**attempt)
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
    raise Refused(503, "unavailable", "a part of the service is being restarted; try again")


def _unwrapped(result: Any) -> Any:
    if isinstance(result, Refused):
        raise result
    return result
