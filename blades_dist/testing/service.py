"""A backend in this process: the real detector and the real jobs, without Ray; and small pictures."""

import asyncio
import io
import time

import httpx
import numpy as np
from PIL import Image

from blades_dist.config.serve import ServiceConfig
from blades_dist.data.decode import Rejected
from blades_dist.detect.inspect import report
from blades_dist.detect.preprocess import preprocess
from blades_dist.serving import kserve
from blades_dist.serving.api import make_api
from blades_dist.serving.backend import Predictions
from blades_dist.serving.jobs import JobStore, read_webhooks
from blades_dist.serving.middleware import read_tokens
from blades_dist.serving.model import describe
from blades_dist.serving.problems import PROBLEM_TYPE, Refused, unusable
from blades_dist.serving.schema import ImageResult, Timings


class Local:
    """``hold``: judging waits for this event, where one is given."""

    def __init__(self, detector, config, hold=None):
        self.detector, self.config, self.hold = detector, config, hold
        self.store = JobStore(self, config, read_webhooks(config))

    async def detect(self, data, options):
        self._check(options.model)
        if self.hold is not None:
            await self.hold.wait()
        begin = time.perf_counter()
        bounds = self.config.max_pixels, self.config.max_bytes
        try:
            rate = self.detector.check_fpr(options.fpr)
        except ValueError as error:
            raise unusable("bad_parameter", str(error)) from None
        try:
            how = self.detector.info.preprocessing
            prepared = await asyncio.to_thread(preprocess, data, how, *bounds, whole=options.whole)
        except Rejected as error:
            raise unusable(error.reason, error.detail) from None
        ready = time.perf_counter()
        results = self.detector.detect(prepared.crops, rate)
        end = time.perf_counter()
        timings = Timings(prepare=ready - begin, score=end - ready, total=end - begin)
        return ImageResult(**dict(report(self.detector, prepared, results)), timings=timings)

    async def infer(self, crops, options):
        results = self.detector.detect(crops, options.fpr)
        flagged = [r.verdict == "ai_generated" for r in results]
        return Predictions(self.detector.id, [r.score for r in results], [r.p_value for r in results], flagged)

    async def models(self):
        return [describe(self.config.name, True, self.detector)]

    async def input_of(self, model):
        self._check(model)
        tensor = kserve.input_tensor(self.detector.info.preprocessing.image_size, floats=False)
        return (await self.models())[0], tensor

    async def submit(self, uploads, options, webhook):
        self._check(options.model)
        return self.store.submit(uploads, options, webhook)

    async def job(self, name):
        return self.store.get(name)

    async def drop_job(self, name):
        self.store.drop(name)

    def _check(self, model):
        if model not in (None, self.config.name):
            raise Refused(404, "no_model", "no such model")


def small_config(**changes):
    values = {"detector": "unused", "max_bytes": 300_000, "max_batch_bytes": 600_000, "max_pixels": 500_000}
    return ServiceConfig.model_validate(values | {"max_files": 4} | changes)


def client_of(detector, config=None, hold=None, address="127.0.0.1", **options):
    """An asynchronous client of the application; use it in one event loop."""
    config = config or small_config()
    app = make_api(Local(detector, config, hold), config, read_tokens(config), **options)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 50_000))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def encoded(size, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, "gray").save(stream, kind)
    return stream.getvalue()


def noise(seed, size=64):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def check_problem(answer, status, reason):
    """The document, if the answer is that problem in all its parts."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM_TYPE
    body = answer.json()
    assert body["status"] == status and body["reason"] == reason and body["detail"] and body["title"]
    assert body["request_id"] and "Traceback" not in answer.text
    return body
