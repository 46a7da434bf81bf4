"""An image file's bytes to one answer a face. The predict job and the service both go through here, so they agree."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from blades_dist.data.credentials import Credentials, read_credentials
from blades_dist.data.decode import ImageFile, Rejected, open_image
from blades_dist.data.exif import Raw, read_exif
from blades_dist.data.faces import Face, check_inside, crop, parse_sidecar, sidecar_of
from blades_dist.data.locate import find_faces, make_locator
from blades_dist.detect.calibrate import Verdict
from blades_dist.detect.consistency import claimed_labels
from blades_dist.detect.detector import Detector, FaceResult, ReadOuts
from blades_dist.detect.info import Kind, Preprocessing
from blades_dist.models.resize import resized
from blades_dist.perturb import apply
from blades_dist.tasks import TASKS, vocabulary

_FILES_AT_ONCE = 16
FacesFrom = Literal["located", "sidecar", "whole image"]


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectorReference(_Report):
    """Which detector answered; ``id`` is the sha-256 of its ``detector.json``."""

    id: str
    kind: Kind
    code_version: str


class ExifClaim(_Report):
    """What the file claims for one tag, the probability that the pixels of this face give to it, and its p-value."""

    claimed: str
    probability: float
    p_value: float | None


class ExifReport(_Report):
    """Whether the pixels of a face fit what its file claims; see ``consistency``. No part of the verdict."""

    tags: dict[str, ExifClaim]
    p_value: float | None
    compared_with: int


class FaceReport(_Report):
    """One face. ``face`` counts from 1; ``box`` (x, y, w, h) and ``landmarks`` (5 x (x, y)) in pixels of the upright
    image; ``exif_consistency`` where the file carries EXIF that the detector knows; the rest as in
    ``detector.FaceResult``."""

    face: int
    box: tuple[float, float, float, float]
    landmarks: list[tuple[float, float]] | None
    verdict: Verdict
    score: float
    probability: float | None
    p_value: float
    re_encoded: dict[str, float]
    threshold: float | None
    fpr: float
    unsure_because: tuple[str, ...]
    read_outs: ReadOuts
    exif_consistency: ExifReport | None


class ImageReport(_Report):
    """One image file. ``width`` and ``height`` in pixels after EXIF orientation; ``bytes`` of the file;
    ``faces_too_small`` were seen and not judged; ``credentials`` where the file has some and they can be read."""

    sha256: str
    bytes: int
    width: int
    height: int
    codec: str
    jpeg_quality: float | None
    faces_from: FacesFrom
    faces_too_small: int
    detector: DetectorReference
    credentials: Credentials | None
    faces: list[FaceReport]


@dataclass(frozen=True)
class Prepared:
    """A decoded file with its ``faces`` and their ``crops`` (n, 1 + V, 3, S, S), each with its V re-encodings, not yet
    judged; ``exif`` as read from it."""

    sha256: str
    size: int
    width: int
    height: int
    codec: str
    jpeg_quality: float | None
    faces_from: FacesFrom
    too_small: int
    faces: list[Face]
    crops: np.ndarray
    exif: Raw
    credentials: Credentials | None


@dataclass(frozen=True)
class Unusable:
    """A file that could not be judged; ``reason`` is one of ``records.REASONS``."""

    reason: str
    detail: str


def prepare(
    data: bytes,
    how: Preprocessing,
    max_pixels: int,
    max_bytes: int,
    sidecar: bytes | None = None,
    whole: bool = False,
    locator_model: Path | None = None,
) -> Prepared:
    """Decodes, finds faces and cuts them out as ingest and training did.

    Faces come from the sidecar's bytes when given, else they are located (``locator_model``: the bundle's file for
    that); with ``whole`` the largest central square of the image is the one face crop.

    Raises:
        Rejected: the file, the sidecar or its faces cannot be used; its reason says why.
    """
    image = open_image(data, max_pixels, max_bytes)
    faces = _faces(image, how, sidecar, whole, locator_model)
    came_from: FacesFrom = "whole image" if whole else "located" if sidecar is None else "sidecar"
    if not faces:
        raise Rejected("no_face", "no face was found")
    large = [face for face in faces if min(face.box[2], face.box[3]) >= how.min_face_px]
    if not large:
        side = max(min(face.box[2], face.box[3]) for face in faces)
        raise Rejected("face_too_small", f"the largest face has {side:.0f} pixels a side; {how.min_face_px} are needed")
    digest = hashlib.sha256(data).hexdigest()
    scale = 1.0 if whole else how.crop_scale
    return Prepared(
        sha256=digest,
        size=len(data),
        width=image.width,
        height=image.height,
        codec=image.codec,
        jpeg_quality=image.jpeg_quality,
        faces_from=came_from,
        too_small=len(faces) - len(large),
        faces=large,
        crops=np.stack([_views(crop(image.pixels(), face, scale)[0], how) for face in large]),
        exif=read_exif(data),
        credentials=read_credentials(data, image.codec),
    )


def report(detector: Detector, prepared: Prepared, results: Sequence[FaceResult]) -> ImageReport:
    """The document of one image; ``results`` are those of its crops, in order."""
    return ImageReport(
        sha256=prepared.sha256,
        bytes=prepared.size,
        width=prepared.width,
        height=prepared.height,
        codec=prepared.codec,
        jpeg_quality=prepared.jpeg_quality,
        faces_from=prepared.faces_from,
        faces_too_small=prepared.too_small,
        detector=reference(detector),
        credentials=prepared.credentials,
        faces=[
            FaceReport(
                face=i,
                box=face.box,
                landmarks=_points(face) if prepared.faces_from != "whole image" else None,
                exif_consistency=exif_report(detector, prepared.exif, result.read_outs),
                **vars(result),
            )
            for i, (face, result) in enumerate(zip(prepared.faces, results, strict=True), 1)
        ],
    )


def exif_report(detector: Detector, exif: Raw, read_outs: ReadOuts) -> ExifReport | None:
    """How well a face's read-outs fit its file's EXIF; None where there is nothing to compare."""
    if detector.consistency is None:
        return None
    claimed = claimed_labels(exif, detector.info.preprocessing.ordinal_edges)
    names = {task.tag: task.name for task in TASKS if task.tag is not None and task.name in read_outs}
    log_probability = {
        tag: math.log(max(read_outs[names[tag]][vocabulary(tag)[label]], 5e-324))
        for tag, label in claimed.items()
        if tag in names
    }
    found = detector.consistency.assess(claimed, log_probability)
    if found is None:
        return None
    tags = {tag: ExifClaim(**vars(claim)) for tag, claim in found.tags.items()}
    return ExifReport(tags=tags, p_value=found.p_value, compared_with=found.compared_with)


def reference(detector: Detector) -> DetectorReference:
    """The detector's identity as answers carry it."""
    return DetectorReference(
        id=detector.id, kind=detector.info.kind, code_version=detector.info.provenance.code_version
    )


def inspect_files(
    detector: Detector,
    files: Sequence[Path],
    max_pixels: int,
    max_bytes: int,
    fpr: float | None = None,
    whole: bool = False,
) -> Iterator[tuple[Path, ImageReport | Unusable]]:
    """An answer for every file, in order; a file that cannot be used does not stop the others."""
    rate = detector.check_fpr(fpr)
    for begin in range(0, len(files), _FILES_AT_ONCE):
        part = files[begin : begin + _FILES_AT_ONCE]
        opened = [_open(file, detector, max_pixels, max_bytes, whole) for file in part]
        usable = [item for item in opened if isinstance(item, Prepared)]
        results = iter(detector.detect(np.concatenate([item.crops for item in usable]), rate) if usable else [])
        for file, item in zip(part, opened, strict=True):
            if isinstance(item, Prepared):
                yield file, report(detector, item, [next(results) for _ in item.faces])
            else:
                yield file, item


def _open(file: Path, detector: Detector, max_pixels: int, max_bytes: int, whole: bool) -> Prepared | Unusable:
    how, model = detector.info.preprocessing, detector.locator_model
    try:
        size = file.stat().st_size
        if size > max_bytes:
            return Unusable("too_large", f"{size} bytes; the limit is {max_bytes}")
        beside = sidecar_of(file)
        sidecar = beside.read_bytes() if beside.is_file() and not whole else None
        return prepare(file.read_bytes(), how, max_pixels, max_bytes, sidecar, whole, model)
    except Rejected as error:
        return Unusable(error.reason, error.detail)
    except OSError as error:
        return Unusable("unreadable", error.strerror or type(error).__name__)


def _faces(
    image: ImageFile, how: Preprocessing, sidecar: bytes | None, whole: bool, locator_model: Path | None
) -> list[Face]:
    if whole:
        return [Face((0.0, 0.0, float(image.width), float(image.height)), np.zeros((0, 2), np.float32))]
    if sidecar is None:
        return find_faces(image, make_locator(how.locator, locator_model))
    faces = parse_sidecar(sidecar)
    check_inside(faces, image.width, image.height)
    return faces


def _views(pixels: np.ndarray, how: Preprocessing) -> np.ndarray:
    """(1 + V, 3, S, S): a crop as a shard's crop comes to the encoder, and so its re-encodings."""
    # Re-encodings have nothing random in them, so the seed is of no consequence.
    seen = [pixels, *(apply(name, pixels, 0) for name in how.re_encodings)]
    return np.stack([resized(view, how.image_size, how.resize) for view in seen])


def _points(face: Face) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in face.landmarks]
