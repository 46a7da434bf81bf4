"""The ``model`` deployments: one a bundle. A replica holds the detector and judges faces of many requests together.

An update brings a new bundle up beside the old one and swaps them between two batches: no request waits for it or is
lost by it. Crops made for the old one's preprocessing are judged by the old one for as long as it is kept.
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
from blades_dist.detect.inspect import reference, report
from blades_dist.detect.preprocess import Prepared, Unusable
from blades_dist.serving import kserve, logs
from blades_dist.serving.backend import Given, Inferred, Spec, Stale
from blades_dist.serving.batching import Together
from blades_dist.serving.drift import Drift, calibration_histogram
from blades_dist.serving.metrics import ModelMetrics
from blades_dist.serving.schema import ModelInfo, OperatingPointInfo

_UNITS = {
    "oc": "log-likelihood (nats)",
    "mahalanobis": "negative squared Mahalanobis distance",
    "knn": "negative distance to the nearest real faces",
    "bc": "logit of photograph",
    "linear": "logit of photograph",
}


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
        score_unit=_UNITS[info.kind],
        histogram=calibration_histogram(detector.calibration.scores),
    )


KEEP_OLD_SECONDS = 60.0  # longer than any request may take
MANY = 1000  # of Serve's batches under way: it is ``Together`` that holds them back
SHADOW_AT_ONCE = 4  # requests whose faces wait for the shadow; those beyond are left out


@dataclass(frozen=True)
class Bundle:
    """A loaded detector under its name."""

    name: str
    default: bool
    detector: Detector
    drift: Drift

    @cached_property
    def spec(self) -> Spec:
        detector = self.detector
        info, model = detector.info, detector.locator_model
        made_by = [info.preprocessing.model_dump(mode="json"), info.files.get(info.preprocessing.locator_model or "")]
        tensor = kserve.input_tensor(info.preprocessing.image_size, detector.encoder.input_dtype.is_floating_point)
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        where = None if model is None else str(model)
        return Spec(key, info.preprocessing, where, describe(self.name, self.default, detector), tensor)


@dataclass
class _Face:
    """One face on its way through a batch."""

    bundle: Bundle
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
            os.nice(10)  # the shadow never takes a core from those whose answers are waited for
        self._metrics = ModelMetrics(name)
        self._bundle: Bundle | None = None
        self._old: Bundle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._shadowed = 0
        # On a CPU every face is computed alone, so it begins as soon as a thread is free; twice as many are under way,
        # so that none is idle meanwhile. A GPU takes as many as there are at once, and the next ones are made ready.
        size, at_once = (self._config.max_batch_size, 2) if self._config.gpu else (1, 2 * torch.get_num_threads())
        self._together = Together(self._detected, size, at_once, lambda face: face.wanted)
        # Serve advises at MANY batches to let as many requests in, which are to wait where any replica can take them.
        logging.getLogger("ray.serve").addFilter(lambda record: "max_concurrent_batches" not in str(record.msg))
        self._batch.set_max_batch_size(self._config.max_batch_size)
        self._batch.set_batch_wait_timeout_s(self._config.batch_wait_seconds)

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Loads the named bundle: before the replica is ready at first, beside its work later.

        Raises:
            FileNotFoundError, ValueError: the first bundle cannot be loaded. A later one that cannot leaves the
                replica as it was, and a line in the log.
        """
        folder = Path(user_config["folder"])
        if self._bundle is None:
            self._bundle = await asyncio.to_thread(self._load, folder)
        else:
            self._later(self._swap(folder))

    async def describe(self) -> Spec:
        """The bundle that answers now."""
        return self._current.spec

    async def judge(self, prepared: Prepared, fpr: float | None, key: str, request_id: str) -> Given | Stale | Unusable:
        """The report on a file whose crops were made for the bundles of that key."""
        bundle = self._bundle_of(key)
        if bundle is None:
            return Stale(self._current.spec)
        try:
            rate = bundle.detector.check_fpr(fpr)
        except ValueError as error:
            return Unusable("bad_parameter", str(error))
        results = await self._judged(bundle, prepared.crops, rate)
        index, crossed = bundle.drift.add(result.score for result in results)
        self._metrics.scored([result.p_value for result in results], index)
        if crossed:
            logs.event("drift", logging.WARNING, model=self._name, index=index, alarm=self._config.drift_alarm)
        if self._shadow is not None:
            self._later(self._compare(self._shadow, prepared.crops, rate, results, request_id))
        return Given(report(bundle.detector, prepared, results), self._current.detector.id)

    async def infer(self, crops: np.ndarray, fpr: float | None) -> Inferred | Unusable:
        """Scores of (n, 3, S, S) crops without their re-encodings."""
        bundle, detector = self._current, self._current.detector
        if not kserve.fits(crops, bundle.spec.tensor):  # they were checked before it was swapped in
            return Unusable("bad_parameter", "the detector was replaced by one of another input")
        try:
            results = await self._judged(bundle, crops[:, None], detector.check_fpr(fpr))
        except ValueError as error:
            return Unusable("bad_parameter", str(error))
        scores, p_values = [r.score for r in results], [r.p_value for r in results]
        return Inferred(detector.id, scores, p_values, [r.verdict == "ai_generated" for r in results])

    async def verdicts(self, crops: np.ndarray, fpr: float) -> list[FaceResult] | None:
        """As a shadow: results on another bundle's crops; None where they do not fit."""
        detector, views = self._current.detector, crops
        if not detector.calibration.supports(fpr) or crops.shape[3] != detector.info.preprocessing.image_size:
            return None
        if crops.shape[1] != 1 + len(detector.info.preprocessing.re_encodings):
            views = crops[:, :1]
        return await self._judged(self._current, views, fpr)

    @property
    def _current(self) -> Bundle:
        assert self._bundle is not None, "Serve calls reconfigure before anything else"
        return self._bundle

    def _bundle_of(self, key: str) -> Bundle | None:
        return next((item for item in (self._bundle, self._old) if item is not None and item.spec.key == key), None)

    def _load(self, folder: Path) -> Bundle:
        detector = load_detector(folder)
        if self._config.gpu:
            detector.encoder.to(cuda())
        shape = detector.info.preprocessing
        views, kind = 1 + len(shape.re_encodings), detector.encoder.input_dtype
        empty = np.zeros((1, views, 3, shape.image_size, shape.image_size), str(kind).removeprefix("torch."))
        detector.detect(empty)  # what is made at the first use is no request's time
        drift = Drift(detector.calibration.scores, self._config.drift_window, self._config.drift_alarm)
        bundle = Bundle(self._name, self._name == self._config.name, detector, drift)
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
        self._old, self._bundle = self._bundle, loaded
        logs.event("bundle_swapped", model=self._name, detector=loaded.detector.id)
        await asyncio.sleep(KEEP_OLD_SECONDS)
        if self._bundle is loaded:
            self._old = None

    async def _judged(self, bundle: Bundle, crops: np.ndarray, fpr: float) -> list[FaceResult]:
        faces = [_Face(bundle, crop, fpr) for crop in crops]
        try:
            return list(await asyncio.gather(*(self._batch(face) for face in faces)))
        except asyncio.CancelledError:  # whoever asked has gone
            for face in faces:
                face.wanted = False
            raise

    @serve.batch(max_concurrent_batches=MANY)
    async def _batch(self, faces: list[_Face]) -> list[FaceResult | None]:
        """Serve collects what comes within ``batch_wait_seconds``; what waits then joins the next batch."""
        return await self._together.add(faces)

    def _detected(self, faces: list[_Face]) -> list[FaceResult]:
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
        except Exception as error:  # a shadow's troubles are never the request's
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

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)


def _detect(faces: Sequence[_Face]) -> list[FaceResult]:
    """Results in order; faces of one bundle and as many views go through it together."""
    results: list[FaceResult | None] = [None] * len(faces)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, face in enumerate(faces):
        groups.setdefault((id(face.bundle), len(face.crop)), []).append(i)
    for members in groups.values():
        crops = np.stack([faces[i].crop for i in members])
        found = faces[members[0]].bundle.detector.detect(crops, [faces[i].fpr for i in members])
        for i, result in zip(members, found, strict=True):
            results[i] = result
    return [result for result in results if result is not None]
