"""A detector in memory: encoder, head and calibration, and the answers they give on face crops."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor

from blades_dist.detect.calibrate import Calibration, Verdict, Verdicts, at_most
from blades_dist.detect.consistency import ConsistencyCalibration
from blades_dist.detect.heads import Head
from blades_dist.detect.info import DetectorInfo
from blades_dist.models.export import FrozenEncoder
from blades_dist.tasks import TASKS

ReadOuts = dict[str, dict[str, float]]


@dataclass(frozen=True)
class FaceResult:
    """The answer for one face.

    ``score`` grows with likeness to a photograph (its unit depends on the head's kind); ``probability`` is that of
    AI-generated, where the head gives one; ``p_value`` is the share of real calibration faces that score as low, and
    ``re_encoded`` the same after each re-encoding; ``threshold`` is that of ``fpr``, None where the calibration split
    is too small for it (then nothing is flagged). ``unsure_because`` says why there is no verdict. ``read_outs``: per
    pretext task its class probabilities; those of ``face_fine`` are one independent probability a region.
    """

    verdict: Verdict
    score: float
    probability: float | None
    p_value: float
    re_encoded: dict[str, float]
    threshold: float | None
    fpr: float
    unsure_because: tuple[str, ...]
    read_outs: ReadOuts


class Detector(ModelHubMixin, library_name="blades-dist", tags=["deepfake-detection", "image-forensics"]):
    """A loaded bundle. ``info`` describes it and ``id`` (sha-256 of ``detector.json``) names it.

    ``push_to_hub(repo_id)``, ``save_pretrained(folder)`` and ``Detector.from_pretrained(repo_id or folder)`` are those
    of Hugging Face models; what they move is the bundle folder, checked whole on arrival.
    """

    def __init__(
        self,
        info: DetectorInfo,
        encoder: FrozenEncoder,
        head: Head,
        calibration: Calibration,
        identity: str,
        consistency: ConsistencyCalibration | None = None,
        locator_model: Path | None = None,
    ) -> None:
        self.info, self.encoder, self.head, self.calibration = info, encoder, head, calibration
        self.consistency, self.locator_model = consistency, locator_model
        self.id = identity
        self._hub_mixin_config = None  # the bundle describes itself; no config.json beside it

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 scores; larger is more like a photograph."""
        return self.head.score(features)

    def probability(self, scores: np.ndarray) -> np.ndarray | None:
        """(n,) scores to (n,) probabilities of AI-generated; None for heads that have seen no AI face."""
        given = getattr(self.head, "probability", None)
        return None if given is None else np.asarray(given(scores), np.float64)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) conformal p-values of "this face is a photograph"."""
        return self.calibration.p_values(scores)

    def threshold(self, fpr: float | None = None) -> float:
        """Faces that score below are flagged at ``fpr`` (None: the configured rate); -inf: too few to calibrate."""
        return self.calibration.threshold(fpr)

    def is_generated(self, scores: np.ndarray, fpr: float | None = None) -> np.ndarray:
        """(n,) bool: flagged at ``fpr`` by the score alone."""
        return self.calibration.is_generated(scores, fpr)

    def judge(
        self, scores: np.ndarray, re_encoded: Mapping[str, np.ndarray] | None = None, fpr: float | None = None
    ) -> Verdicts:
        """Verdicts on (n,) scores and those of the re-encoded faces; see ``Calibration.judge``."""
        return self.calibration.judge(scores, re_encoded, fpr)

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
        """Answers for crops (B, 3, S, S), or (B, 1 + V, 3, S, S) with the V re-encodings of each behind it, as
        ``encoder.prepare`` makes them; ``fpr`` is one rate for all of them or one each.

        On a CPU every face is computed alone and in one thread, several faces side by side: convolution kernels sum
        in an order that depends on batch and threads, and an answer must not depend on which faces came with it.

        Raises:
            ValueError: crops of another shape or type, or a face whose score is not finite.
        """
        crops = torch.as_tensor(faces)
        crops = crops[:, None] if crops.ndim == 4 else crops
        if crops.ndim != 5 or crops.shape[1] not in (1, 1 + len(self.info.preprocessing.re_encodings)):
            expected = f"one crop a face, or {1 + len(self.info.preprocessing.re_encodings)} with its re-encodings"
            raise ValueError(f"expected {expected}: (B, views, 3, S, S), got {tuple(crops.shape)}")
        rates = list(fpr) if isinstance(fpr, Sequence) else [self.info.fpr if fpr is None else fpr] * len(crops)
        if len(rates) != len(crops):
            raise ValueError(f"{len(rates)} rates for {len(crops)} faces")
        if self.encoder.text_features.device.type == "cpu":
            computed = list(self._workers.map(self._compute, crops.split(1)))
        else:
            computed = [self._compute(crops)] if len(crops) else []
        scores = [row for part, _ in computed for row in part]
        logits = [row for _, part in computed for row in part]
        return [self._answer(*item) for item in zip(scores, logits, rates, strict=True)]

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), "detect", torch.set_num_threads, (1,))

    def _compute(self, crops: Tensor) -> tuple[np.ndarray, Tensor]:
        """(B, V', 3, S, S) to scores (B, V') and the logits (B, C) of the faces as they are."""
        features = self.encoder.features(crops.flatten(0, 1).contiguous())
        own = features.unflatten(0, crops.shape[:2])[:, 0]
        return self.head.score(features.cpu().numpy()).reshape(crops.shape[:2]), self.encoder.logits(own).cpu()

    def _answer(self, scores: np.ndarray, logits: Tensor, fpr: float) -> FaceResult:
        if not np.isfinite(scores).all():
            raise ValueError("a face has a score that is not finite: the detector's encoder or head is damaged")
        own = scores[:1]
        names = self.info.preprocessing.re_encodings[: len(scores) - 1]
        re_encoded = {name: scores[i : i + 1] for i, name in enumerate(names, 1)}
        verdicts, threshold, probability = self.judge(own, re_encoded, fpr), self.threshold(fpr), self.probability(own)
        p_values = {name: float(self.calibration.p_values(value, name)[0]) for name, value in re_encoded.items()}
        return FaceResult(
            verdict="unsure" if verdicts.unsure[0] else "ai_generated" if verdicts.flagged[0] else "photographic",
            score=float(own[0]),
            probability=None if probability is None else float(probability[0]),
            p_value=float(self.p_values(own)[0]),
            re_encoded=p_values,
            threshold=threshold if math.isfinite(threshold) else None,
            fpr=fpr,
            unsure_because=self._reasons(verdicts, float(self.p_values(own)[0]), p_values, fpr),
            read_outs=read_outs(logits, self.info.labels),
        )

    def _reasons(self, verdicts: Verdicts, p: float, re_encoded: Mapping[str, float], fpr: float) -> tuple[str, ...]:
        found = []
        if verdicts.band[0]:
            found.append(f"p-value {p:.4g} lies between {fpr:g} and {self.info.unsure_fpr:g}")
        if verdicts.disagree[0]:
            flagged = at_most(np.array([p, *re_encoded.values()]), fpr)
            others = [name for name, other in zip(re_encoded, flagged[1:], strict=True) if other != flagged[0]]
            found.append(f"re-encoded by {', '.join(others)}, the face would be judged otherwise")
        return tuple(found)

    def _save_pretrained(self, save_directory: Path) -> None:
        from blades_dist.detect.bundle import write_bundle

        write_bundle(save_directory, self)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "Detector":
        from blades_dist.detect.bundle import load_detector

        if not Path(model_id).is_dir():
            model_id = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return load_detector(Path(model_id))


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
