"""The ``model`` deployments, one per bundle. A replica holds the detector and scores faces of many requests in batches.

An update loads the new bundle beside the old one and swaps them between two batches, so that no request waits for it or
is lost. Crops made for the old one's preprocessing are scored by the old one until it is unloaded.
"""

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from blades_dist.arithmetic import cuda
from blades_dist.config.serve import ServiceConfig
from blades_dist.detect.detector import Detector, FaceResult, load_detector
from blades_dist.detect.heads import HEADS
from blades_dist.detect.inspect import reference, report
from blades_dist.detect.preprocess import PreprocessedImage, Unusable
from blades_dist.ray_private import mute_batching_advice
from blades_dist.serving import kserve, logs
from blades_dist.serving.backend import ModelReply, ModelSpec, Predictions, StaleCrops
from blades_dist.serving.batching import DynamicBatcher
from blades_dist.serving.drift import Drift, calibration_histogram
from blades_dist.serving.metrics import ModelMetrics
from blades_dist.serving.schema import ModelInfo, OperatingPointInfo


def describe(name: str, default: bool, detector: Detector) -> ModelInfo:
    """A detector as ``GET /v1/models`` shows it."""
    info = detector.info
    return ModelInfo(
        name=name,
        default=default,
        detector=reference(detector),
        fpr=info.fpr,
        unsure_fpr=info.unsure_fpr,
        smallest_fpr=info.calibration.smallest_fpr,
        calibration_faces=info.calibration.n,
        operating_points=[OperatingPointInfo(fpr=p.fpr, threshold=p.threshold) for p in info.operating_points],
        labels=info.labels,
        score_unit=HEADS[info.kind].unit,
        histogram=calibration_histogram(detector.calibration.scores),
    )


KEEP_OLD_SECONDS = 60.0  # longer than any request may take
# Batches of @serve.batch in progress: in effect no bound, since ``DynamicBatcher`` behind it limits concurrency.
MAX_CONCURRENT_BATCHES = 1000
SHADOW_AT_ONCE = 4  # requests in progress at the shadow; further ones are not compared


@dataclass(frozen=True)
class LoadedModel:
    """A detector in memory, under its name."""

    name: str
    default: bool
    detector: Detector
    drift: Drift

    @cached_property
    def spec(self) -> ModelSpec:
        detector = self.detector
        info, model = detector.info, detector.locator_model
        made_by = [info.preprocessing.model_dump(mode="json"), info.files.get(info.preprocessing.locator_model or "")]
        tensor = kserve.input_tensor(info.preprocessing.image_size, detector.encoder.input_dtype.is_floating_point)
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        where = None if model is None else str(model)
        return ModelSpec(key, info.preprocessing, where, describe(self.name, self.default, detector), tensor)


@dataclass
class _QueuedFace:
    """One face that waits for its batch."""

    model: LoadedModel
    crop: np.ndarray
    fpr: float
    wanted: bool = True


class Model:
    """One replica. ``user_config`` ``{"folder": ..., "id": ...}`` names the bundle; a change of it swaps bundles."""

    def __init__(
        self, config: dict[str, Any], name: str, shadow: DeploymentHandle | None = None, background: bool = False
    ) -> None:
        logs.set_up()
        self._config, self._name, self._shadow = ServiceConfig.model_validate(config), name, shadow
        if background:
            os.nice(10)  # the shadow never takes a core from models whose answers a client waits for
        self._metrics = ModelMetrics(name)
        self._loaded: LoadedModel | None = None
        self._old: LoadedModel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._shadowed = 0
        # On a CPU batches have one face, twice as many as threads, so that none is idle. A GPU takes whole batches, two
        # at once, so that the second is stacked while the first runs.
        size, at_once = (self._config.max_batch_size, 2) if self._config.gpu else (1, 2 * torch.get_num_threads())
        self._batcher = DynamicBatcher(self._detected, size, at_once, lambda face: face.wanted)
        # With so many batches Serve advises to admit as many requests; they are to wait in front of all replicas.
        mute_batching_advice()
        self._batch.set_max_batch_size(self._config.max_batch_size)
        self._batch.set_batch_wait_timeout_s(self._config.batch_wait_seconds)

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Loads the named bundle: the first before the replica is ready, later ones in the background.

        Raises:
            FileNotFoundError, ValueError: the first bundle cannot be loaded. A later one that cannot leaves the
                replica as it was, and a line in the log.
        """
        folder = Path(user_config["folder"])
        if self._loaded is None:
            self._loaded = await asyncio.to_thread(self._load, folder)
        else:
            self._in_background(self._swap(folder))

    async def describe(self) -> ModelSpec:
        """The current detector."""
        return self._current.spec

    async def detect(
        self, prepared: PreprocessedImage, fpr: float | None, key: str, request_id: str
    ) -> ModelReply | StaleCrops | Unusable:
        """The report on a file whose crops were made for detectors of that key."""
        model = self._model_for(key)
        if model is None:
            return StaleCrops(self._current.spec)
        try:
            rate = model.detector.check_fpr(fpr)
        except ValueError as error:
            return Unusable("bad_parameter", str(error))
        results = await self._scored(model, prepared.crops, rate)
        index, crossed = model.drift.add(result.score for result in results)
        self._metrics.scored([result.p_value for result in results], index)
        if crossed:
            logs.event("drift", logging.WARNING, model=self._name, index=index, alarm=self._config.drift_alarm)
        if self._shadow is not None:
            self._in_background(self._compare(self._shadow, prepared.crops, rate, results, request_id))
        return ModelReply(report(model.detector, prepared, results), self._current.detector.id)

    async def infer(self, crops: np.ndarray, fpr: float | None) -> Predictions | Unusable:
        """Scores of (n, 3, S, S) crops without their re-encodings."""
        model, detector = self._current, self._current.detector
        if not kserve.fits(crops, model.spec.tensor):  # they were checked against the detector before a swap
            return Unusable("bad_parameter", "the detector was replaced by one of another input")
        try:
            results = await self._scored(model, crops[:, None], detector.check_fpr(fpr))
        except ValueError as error:
            return Unusable("bad_parameter", str(error))
        scores, p_values = [r.score for r in results], [r.p_value for r in results]
        return Predictions(detector.id, scores, p_values, [r.verdict == "ai_generated" for r in results])

    async def verdicts(self, crops: np.ndarray, fpr: float) -> list[FaceResult] | None:
        """As a shadow: results on another bundle's crops; None where they do not fit."""
        detector, views = self._current.detector, crops
        if not detector.calibration.supports(fpr) or crops.shape[3] != detector.info.preprocessing.image_size:
            return None
        if crops.shape[1] != 1 + len(detector.info.preprocessing.re_encodings):
            views = crops[:, :1]
        return await self._scored(self._current, views, fpr)

    @property
    def _current(self) -> LoadedModel:
        assert self._loaded is not None, "Serve calls reconfigure before anything else"
        return self._loaded

    def _model_for(self, key: str) -> LoadedModel | None:
        return next((item for item in (self._loaded, self._old) if item is not None and item.spec.key == key), None)

    def _load(self, folder: Path) -> LoadedModel:
        detector = load_detector(folder)
        if self._config.gpu:
            detector.encoder.to(cuda())
        shape = detector.info.preprocessing
        views, kind = 1 + len(shape.re_encodings), detector.encoder.input_dtype
        empty = np.zeros((1, views, 3, shape.image_size, shape.image_size), str(kind).removeprefix("torch."))
        detector.detect(empty)  # warm-up
        drift = Drift(detector.calibration.scores, self._config.drift_window, self._config.drift_alarm)
        bundle = LoadedModel(self._name, self._name == self._config.name, detector, drift)
        _ = bundle.spec
        return bundle

    async def _swap(self, folder: Path) -> None:
        try:
            loaded = await asyncio.to_thread(self._load, folder)
        except (OSError, ValueError, RuntimeError) as error:
            logs.event("bundle_refused", logging.ERROR, model=self._name, error=str(error))
            return
        if loaded.detector.id == self._current.detector.id:
            return
        self._old, self._loaded = self._loaded, loaded
        logs.event("bundle_swapped", model=self._name, detector=loaded.detector.id)
        await asyncio.sleep(KEEP_OLD_SECONDS)
        if self._loaded is loaded:
            self._old = None

    async def _scored(self, model: LoadedModel, crops: np.ndarray, fpr: float) -> list[FaceResult]:
        faces = [_QueuedFace(model, crop, fpr) for crop in crops]
        try:
            return list(await asyncio.gather(*(self._batch(face) for face in faces)))
        except asyncio.CancelledError:  # the client has gone
            for face in faces:
                face.wanted = False
            raise

    @serve.batch(max_concurrent_batches=MAX_CONCURRENT_BATCHES)
    async def _batch(self, faces: list[_QueuedFace]) -> list[FaceResult | None]:
        """@serve.batch collects faces for ``batch_wait_seconds``; the dynamic batcher forms the batches that run."""
        return await self._batcher.add(faces)

    def _detected(self, faces: list[_QueuedFace]) -> list[FaceResult]:
        self._metrics.batch(len(faces))
        return _detect(faces)

    async def _compare(
        self, shadow: DeploymentHandle, crops: np.ndarray, fpr: float, own: Sequence[FaceResult], request_id: str
    ) -> None:
        if self._shadowed >= SHADOW_AT_ONCE:
            self._metrics.shadow("left_out", len(own))
            return
        self._shadowed += 1
        try:
            others = await shadow.verdicts.remote(crops, fpr)
        except Exception as error:  # the shadow never fails a request
            logs.event("shadow_failed", logging.WARNING, model=self._name, error=type(error).__name__)
            others = None
        finally:
            self._shadowed -= 1
        if others is None:
            self._metrics.shadow("failed", len(own))
            return
        for a, b in zip(own, others, strict=True):
            self._metrics.shadow("agreed" if a.verdict == b.verdict else "disagreed", 1)
            if a.verdict != b.verdict:
                verdicts, p_values = [a.verdict, b.verdict], [a.p_value, b.p_value]
                logs.event(
                    "shadow_disagreed",
                    model=self._name,
                    request_id=request_id,
                    fpr=fpr,
                    verdicts=verdicts,
                    p_values=p_values,
                )

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)


def _detect(faces: Sequence[_QueuedFace]) -> list[FaceResult]:
    """Results in order; faces of one bundle and as many views go through it together."""
    results: list[FaceResult | None] = [None] * len(faces)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, face in enumerate(faces):
        groups.setdefault((id(face.model), len(face.crop)), []).append(i)
    for members in groups.values():
        crops = np.stack([faces[i].crop for i in members])
        found = faces[members[0]].model.detector.detect(crops, [faces[i].fpr for i in members])
        for i, result in zip(members, found, strict=True):
            results[i] = result
    return [result for result in results if result is not None]
