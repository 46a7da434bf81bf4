"""A detector in memory: encoder, head and calibration, and the answers they give on face crops."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from blades_dist.detect.binary import BinaryHead
from blades_dist.detect.calibrate import Calibration
from blades_dist.detect.info import DetectorInfo
from blades_dist.detect.one_class import OneClassHead
from blades_dist.models.export import FrozenEncoder
from blades_dist.tasks import TASKS

Verdict = Literal["photographic", "ai_generated"]
ReadOuts = dict[str, dict[str, float]]
Head = OneClassHead | BinaryHead


@dataclass(frozen=True)
class FaceResult:
    """The answer for one face.

    ``score`` grows with likeness to a photograph (log-likelihood or log-odds); ``p_value`` is the share of real
    calibration faces that score as low; ``threshold`` is that of ``fpr``, None where the calibration split is too
    small for it (then nothing is flagged). ``read_outs``: per pretext task its class probabilities; those of
    ``face_fine`` are one independent probability a region.
    """

    verdict: Verdict
    score: float
    p_value: float
    threshold: float | None
    fpr: float
    read_outs: ReadOuts


class Detector:
    """A loaded bundle. ``info`` describes it and ``id`` (sha-256 of ``detector.json``) names it."""

    def __init__(
        self, info: DetectorInfo, encoder: FrozenEncoder, head: Head, calibration: Calibration, identity: str
    ) -> None:
        self.info, self.encoder, self.head, self.calibration = info, encoder, head, calibration
        self.id = identity

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 scores; larger is more like a photograph."""
        return self.head.score(features)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) conformal p-values of "this face is a photograph"."""
        return self.calibration.p_values(scores)

    def threshold(self, fpr: float | None = None) -> float:
        """Faces that score below are flagged at ``fpr`` (None: the configured rate); -inf: too few to calibrate."""
        return self.calibration.threshold(fpr)

    def is_generated(self, scores: np.ndarray, fpr: float | None = None) -> np.ndarray:
        """(n,) bool: flagged at ``fpr``."""
        return self.calibration.is_generated(scores, fpr)

    def check_fpr(self, fpr: float | None) -> float:
        """The rate to use for what a person asked for.

        Raises:
            ValueError: outside (0, 1), or lower than the calibration split supports.
        """
        rate = self.info.fpr if fpr is None else fpr
        if not self.calibration.supports(rate):
            n = len(self.calibration.scores)
            raise ValueError(
                f"fpr={rate:g} is lower than this detector supports: it was calibrated on {n} real faces, so "
                f"{self.calibration.smallest_fpr:.4g} is the smallest (1 / (n + 1))"
            )
        return rate

    def detect(self, faces: np.ndarray | Tensor, fpr: float | Sequence[float] | None = None) -> list[FaceResult]:
        """Answers for (B, 3, S, S) uint8 crops; ``fpr`` is one rate for all of them or one each.

        On a CPU every face is computed alone and in one thread, several faces side by side: convolution kernels sum
        in an order that depends on batch and threads, and an answer must not depend on which faces came with it.

        Raises:
            ValueError: crops of another shape or type, or a face whose score is not finite.
        """
        crops = torch.as_tensor(faces)
        rates = list(fpr) if isinstance(fpr, Sequence) else [self.info.fpr if fpr is None else fpr] * len(crops)
        if len(rates) != len(crops):
            raise ValueError(f"{len(rates)} rates for {len(crops)} faces")
        if self.encoder.text_features.device.type == "cpu":
            computed = list(self._workers.map(self._compute, crops.split(1)))
        else:
            computed = [self._compute(crops)] if len(crops) else []
        scores = [value for part, _ in computed for value in part.tolist()]
        logits = [row for _, part in computed for row in part]
        return [self._answer(*item) for item in zip(scores, logits, rates, strict=True)]

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), "detect", torch.set_num_threads, (1,))

    def _compute(self, crops: Tensor) -> tuple[np.ndarray, Tensor]:
        features = self.encoder.features(crops.contiguous())
        return self.head.score(features.cpu().numpy()), self.encoder.logits(features).cpu()

    def _answer(self, score: float, logits: Tensor, fpr: float) -> FaceResult:
        if not math.isfinite(score):
            raise ValueError("a face has a score that is not finite: the detector's encoder or head is damaged")
        threshold = self.threshold(fpr)
        return FaceResult(
            verdict="ai_generated" if score < threshold else "photographic",
            score=score,
            p_value=float(self.p_values(np.array([score]))[0]),
            threshold=threshold if math.isfinite(threshold) else None,
            fpr=fpr,
            read_outs=read_outs(logits, self.info.labels),
        )


def read_outs(logits: Tensor, labels: dict[str, list[str]]) -> ReadOuts:
    """(C,) pretext logits to probabilities: a sigmoid a region for the fine task, softmax for all others."""
    kinds = {task.name: task.kind for task in TASKS}
    found, start = {}, 0
    for name, classes in labels.items():
        own = logits[start : start + len(classes)].double()
        values = own.sigmoid() if kinds.get(name) == "fine" else own.softmax(0)
        found[name] = dict(zip(classes, values.tolist(), strict=True))
        start += len(classes)
    return found
