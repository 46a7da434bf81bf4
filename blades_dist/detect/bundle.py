"""A detector as a folder: written whole or not at all, checked whole when read, no pickle in it.

``encoder.safetensors`` and ``encoder.json`` (the frozen encoder), ``head.safetensors`` (head parameters, sorted
calibration scores, and what EXIF consistency is measured against), ``README.md`` (model card), ``detector.json``
(``DetectorInfo`` with the sha-256 of the others), and the model file of a face locator that needs one.
The digests catch damage and files of another bundle; they are no signature against a forger.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from blades_dist.detect.calibrate import Calibration
from blades_dist.detect.card import model_card
from blades_dist.detect.consistency import ConsistencyCalibration
from blades_dist.detect.detector import Detector, FaceResult
from blades_dist.detect.heads import Head, head_from_tensors
from blades_dist.detect.info import DetectorInfo, migrate
from blades_dist.models.export import DESCRIPTION, WEIGHTS, load_encoder, save_encoder

__all__ = ["Detector", "DetectorInfo", "FaceResult", "load_detector", "save_detector", "write_bundle"]

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
