"""A detector as a folder: written whole or not at all, checked whole when read, no pickle in it.

``encoder.safetensors`` and ``encoder.json`` (the frozen encoder), ``head.safetensors`` (head parameters and sorted
calibration scores), ``README.md`` (model card), ``detector.json`` (``DetectorInfo`` with the sha-256 of the others).
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

from blades_dist.detect.binary import BinaryHead
from blades_dist.detect.calibrate import Calibration
from blades_dist.detect.card import model_card
from blades_dist.detect.detector import Detector, FaceResult, Head
from blades_dist.detect.info import SCHEMA_VERSION, DetectorInfo
from blades_dist.detect.one_class import OneClassHead
from blades_dist.models.export import DESCRIPTION, WEIGHTS, FrozenEncoder, load_encoder, save_encoder

__all__ = ["Detector", "DetectorInfo", "FaceResult", "load_detector", "save_detector"]

INDEX = "detector.json"
HEAD = "head.safetensors"
CARD = "README.md"
FILES = (WEIGHTS, DESCRIPTION, HEAD, CARD)
_SCORES = "calibration.scores"


def save_detector(
    folder: Path, info: DetectorInfo, encoder: FrozenEncoder, head: Head, calibration: Calibration
) -> DetectorInfo:
    """Writes the bundle and returns its ``info`` with the file digests filled in; an older bundle is replaced.

    Raises:
        ValueError: ``folder`` holds something that is not a detector; nothing is touched then.
    """
    if folder.exists() and not ((folder / INDEX).is_file() or (folder.is_dir() and not any(folder.iterdir()))):
        raise ValueError(f"output: {folder} exists and is no detector folder; choose another or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_encoder(encoder, partial)
    arrays = {f"head.{name}": np.ascontiguousarray(value) for name, value in head.tensors().items()}
    save_file({**arrays, _SCORES: calibration.scores}, partial / HEAD)
    (partial / CARD).write_text(model_card(info), encoding="utf-8")
    info = info.model_copy(update={"files": {name: _sha256(partial / name) for name in FILES}})
    (partial / INDEX).write_text(json.dumps(info.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return info


def load_detector(folder: Path) -> Detector:
    """The detector of a bundle folder, on the CPU.

    Raises:
        FileNotFoundError: the folder, its index or a file of it is missing.
        ValueError: the folder is something else, of another schema version, damaged or altered.
    """
    info = _read_index(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"detector {folder} is incomplete: {name} is missing")
        if _sha256(folder / name) != info.files[name]:
            raise ValueError(f"detector {folder} is damaged: the sha-256 of {name} is not the one in {INDEX}")
    encoder = load_encoder(folder)
    head, calibration = _read_head(folder / HEAD, info)
    _check_fit(folder, info, encoder, head, calibration)
    return Detector(info, encoder, head, calibration, _sha256(folder / INDEX))


def _read_index(folder: Path) -> DetectorInfo:
    file = folder / INDEX
    if not folder.is_dir():
        raise FileNotFoundError(f"detector folder {folder} does not exist")
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no detector folder: {INDEX} is missing; jobs/fit_detector.py writes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: not JSON ({error})") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{file} has schema version {version!r}; this code reads version {SCHEMA_VERSION}")
    try:
        info = DetectorInfo.model_validate(content)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ValueError(f"{file} is not a detector description: {where}") from None
    if set(info.files) != set(FILES):
        raise ValueError(f"{file} lists the files {sorted(info.files)}; expected {sorted(FILES)}")
    return info


def _read_head(file: Path, info: DetectorInfo) -> tuple[Head, Calibration]:
    try:
        arrays = load_file(file)
        scores = arrays.pop(_SCORES)
        parameters = {name.removeprefix("head."): value for name, value in arrays.items()}
        if info.kind == "oc":
            head: Head = OneClassHead.from_tensors(parameters, info.covariance or "full")
        else:
            head = BinaryHead.from_tensors(parameters)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except KeyError as error:
        raise ValueError(f"{file} has no {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if scores.dtype != np.float64 or scores.ndim != 1 or not np.isfinite(scores).all() or (np.diff(scores) < 0).any():
        raise ValueError(f"{file}: {_SCORES} are not ascending finite float64")
    return head, Calibration(scores, info.fpr)


def _check_fit(folder: Path, info: DetectorInfo, encoder: FrozenEncoder, head: Head, calibration: Calibration) -> None:
    """The parts are each sound; this asks whether they are one detector."""
    problems = []
    if head.dimensions != encoder.info.embed_dim:
        problems.append(f"the head takes {head.dimensions} features and the encoder gives {encoder.info.embed_dim}")
    if info.labels != encoder.info.classes:
        problems.append("label tables differ from the encoder's")
    if info.preprocessing.image_size != encoder.info.image_size:
        problems.append(f"image_size {info.preprocessing.image_size} is not the encoder's {encoder.info.image_size}")
    stored = {point.fpr: point.threshold for point in info.operating_points}
    if stored != calibration.thresholds or info.calibration.n != len(calibration.scores):
        problems.append(f"thresholds are not those of the calibration scores in {HEAD}")
    if problems:
        raise ValueError(f"detector {folder} was altered: in {INDEX}, {'; '.join(problems)}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
