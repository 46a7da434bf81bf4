"""A detector: encoder, head and calibration with the answers they give on face crops, and its folder (a bundle)."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from blades_dist.detect.calibrate import Calibration, Verdict, Verdicts, at_most
from blades_dist.detect.card import model_card
from blades_dist.detect.consistency import ConsistencyCalibration
from blades_dist.detect.heads import head_from_tensors
from blades_dist.detect.heads.base import Head, ProbabilityHead
from blades_dist.detect.info import DetectorInfo, migrate
from blades_dist.models.encoder_info import DESCRIPTION
from blades_dist.models.export import WEIGHTS, FrozenEncoder, load_encoder, save_encoder
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
        return self.head.probability(scores) if isinstance(self.head, ProbabilityHead) else None

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

        An answer must not depend on which faces came with it, and kernels sum in an order that depends on batch and
        threads. So on a CPU every face is computed alone and in one thread, several side by side; on a GPU the encoder
        takes rows in blocks of one size. Heads see one face at a time on both.

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
        answers = [face for part in computed for face in part]
        return [self._answer(*face, rate) for face, rate in zip(answers, rates, strict=True)]

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), "detect", torch.set_num_threads, (1,))

    def _compute(self, crops: Tensor) -> list[tuple[np.ndarray, Tensor]]:
        """(B, V', 3, S, S) to scores (V',) of each face with the logits (C,) of it as it is."""
        features = self.encoder.features(crops.flatten(0, 1).contiguous())
        features = features.unflatten(0, crops.shape[:2])
        logits = self.encoder.logits(features[:, 0]).cpu()
        scores = (self.head.score(rows) for rows in features.cpu().numpy())
        return list(zip(scores, logits, strict=True))

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


INDEX = "detector.json"
HEAD = "head.safetensors"
CARD = "README.md"
FILES = (WEIGHTS, DESCRIPTION, HEAD, CARD)
_SCORES = "calibration.scores"
_RE_ENCODED = "calibration.re_encoded."
_CONSISTENCY = "consistency.log_probability"


def save_detector(folder: Path, detector: Detector) -> DetectorInfo:
    """Writes the bundle and returns its ``info`` with the file digests filled in; an older bundle is replaced.

    Raises:
        ValueError: ``folder`` holds something that is not a detector; nothing is touched then.
    """
    if folder.exists() and not ((folder / INDEX).is_file() or (folder.is_dir() and not any(folder.iterdir()))):
        raise ValueError(f"output: {folder} exists and is no detector folder; choose another or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    info = write_bundle(partial, detector)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return info


def write_bundle(folder: Path, detector: Detector) -> DetectorInfo:
    """The files of a bundle into ``folder`` (made if missing), the index last."""
    info, shape = detector.info, detector.info.preprocessing
    save_encoder(detector.encoder, folder)
    save_file(_arrays(detector), folder / HEAD)
    (folder / CARD).write_text(model_card(info), encoding="utf-8")
    if shape.locator_model is not None and detector.locator_model is not None:
        shutil.copyfile(detector.locator_model, folder / shape.locator_model)
    info = info.model_copy(update={"files": {name: _sha256(folder / name) for name in _files(info)}})
    (folder / INDEX).write_text(json.dumps(info.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return info


def load_detector(folder: Path) -> Detector:
    """The detector of a bundle folder, on the CPU.

    Raises:
        FileNotFoundError: the folder, its index or a file of it is missing.
        ValueError: the folder is something else, of an unknown schema version, damaged or altered.
    """
    info = _read_index(folder)
    for name in _files(info):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"detector {folder} is incomplete: {name} is missing")
        if _sha256(folder / name) != info.files[name]:
            raise ValueError(f"detector {folder} is damaged: the sha-256 of {name} is not the one in {INDEX}")
    encoder = load_encoder(folder)
    head, calibration, consistency = _read_head(folder / HEAD, info)
    model = info.preprocessing.locator_model
    detector = Detector(
        info, encoder, head, calibration, _sha256(folder / INDEX), consistency, folder / model if model else None
    )
    _check_fit(folder, detector)
    return detector


def _files(info: DetectorInfo) -> list[str]:
    model = info.preprocessing.locator_model
    return [*FILES, *([model] if model is not None else [])]


def _arrays(detector: Detector) -> dict[str, np.ndarray]:
    arrays = {f"head.{name}": np.ascontiguousarray(value) for name, value in detector.head.tensors().items()}
    arrays[_SCORES] = detector.calibration.scores
    arrays |= {f"{_RE_ENCODED}{name}": scores for name, scores in detector.calibration.re_encoded.items()}
    if detector.consistency is not None:
        arrays[_CONSISTENCY] = np.ascontiguousarray(detector.consistency.log_probability)
    return arrays


def _read_index(folder: Path) -> DetectorInfo:
    file = folder / INDEX
    if not folder.is_dir():
        raise FileNotFoundError(f"detector folder {folder} does not exist")
    if not file.is_file():
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(
            f"{folder} is no detector folder: {INDEX} is missing (it holds {found}); jobs/fit_detector.py writes one"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: not JSON ({error})") from None
    try:
        info = DetectorInfo.model_validate(migrate(content if isinstance(content, dict) else {}))
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ValueError(f"{file} is not a detector description: {where}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    model = info.preprocessing.locator_model
    if model is not None and Path(model).name != model:
        raise ValueError(f"{file} names {model!r} as its locator's model; expected a file of the bundle")
    if set(info.files) != set(_files(info)):
        raise ValueError(f"{file} lists the files {sorted(info.files)}; expected {sorted(_files(info))}")
    return info


def _read_head(file: Path, info: DetectorInfo) -> tuple[Head, Calibration, ConsistencyCalibration | None]:
    names = info.preprocessing.re_encodings
    try:
        arrays = load_file(file)
        scores = arrays.pop(_SCORES)
        re_encoded = {name: arrays.pop(f"{_RE_ENCODED}{name}") for name in names}
        compared = arrays.pop(_CONSISTENCY) if info.consistency_tags else None
        parameters = {name.removeprefix("head."): value for name, value in arrays.items()}
        head = head_from_tensors(info.kind, parameters, info.covariance)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except KeyError as error:
        raise ValueError(f"{file} has no {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for name, values in {_SCORES: scores, **re_encoded}.items():
        sound = values.dtype == np.float64 and values.ndim == 1 and np.isfinite(values).all()
        if not sound or (np.diff(values) < 0).any():
            raise ValueError(f"{file}: the calibration scores {name} are not ascending finite float64")
    calibration = Calibration(scores, info.fpr, info.unsure_fpr, re_encoded)
    if compared is None:
        return head, calibration, None
    if compared.dtype != np.float64 or compared.ndim != 2 or compared.shape[1] != len(info.consistency_tags):
        raise ValueError(f"{file}: {_CONSISTENCY} is not float64 (n, {len(info.consistency_tags)})")
    return head, calibration, ConsistencyCalibration(info.consistency_tags, compared)


def _check_fit(folder: Path, detector: Detector) -> None:
    """The parts are each sound; this asks whether they are one detector."""
    info, encoder, calibration = detector.info, detector.encoder.info, detector.calibration
    problems = []
    if detector.head.dimensions != encoder.embed_dim:
        problems.append(f"the head takes {detector.head.dimensions} features and the encoder gives {encoder.embed_dim}")
    if info.labels != encoder.classes:
        problems.append("label tables differ from the encoder's")
    for name in ("image_size", "resize"):
        own, other = getattr(info.preprocessing, name), getattr(encoder, name)
        if own != other:
            problems.append(f"{name} {own} is not the encoder's {other}")
    stored = {point.fpr: point.threshold for point in info.operating_points}
    if stored != calibration.thresholds or info.calibration.n != len(calibration.scores):
        problems.append(f"thresholds are not those of the calibration scores in {HEAD}")
    if problems:
        raise ValueError(f"detector {folder} was altered: in {INDEX}, {'; '.join(problems)}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
