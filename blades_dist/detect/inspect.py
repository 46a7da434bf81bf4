"""An image file's bytes to one answer a face. The predict job and the service both go through here, so they agree."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from blades_dist.data.decode import ImageFile, Rejected, open_image
from blades_dist.data.faces import Face, check_inside, crop, parse_sidecar, sidecar_of
from blades_dist.data.locate import find_faces, make_locator
from blades_dist.data.read import decode_face
from blades_dist.detect.detector import Detector, FaceResult, Verdict
from blades_dist.detect.info import Preprocessing

_FILES_AT_ONCE = 16
FacesFrom = Literal["located", "sidecar", "whole image"]


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectorReference(_Report):
    """Which detector answered; ``id`` is the sha-256 of its ``detector.json``."""

    id: str
    kind: Literal["oc", "bc"]
    code_version: str


class FaceReport(_Report):
    """One face. ``face`` counts from 1; ``box`` (x, y, w, h) and ``landmarks`` (5 x (x, y)) in pixels of the upright
    image; the rest as in ``detector.FaceResult``."""

    face: int
    box: tuple[float, float, float, float]
    landmarks: list[tuple[float, float]] | None
    verdict: Verdict
    score: float
    p_value: float
    threshold: float | None
    fpr: float
    read_outs: dict[str, dict[str, float]]


class ImageReport(_Report):
    """One image file. ``width`` and ``height`` in pixels after EXIF orientation; ``bytes`` of the file;
    ``faces_too_small`` were seen and not judged."""

    sha256: str
    bytes: int
    width: int
    height: int
    codec: str
    jpeg_quality: float | None
    faces_from: FacesFrom
    faces_too_small: int
    detector: DetectorReference
    faces: list[FaceReport]


@dataclass(frozen=True)
class Prepared:
    """A decoded file with its ``faces`` and their ``crops`` (n, 3, S, S) uint8, not yet judged."""

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


@dataclass(frozen=True)
class Unusable:
    """A file that could not be judged; ``reason`` is one of ``records.REASONS``."""

    reason: str
    detail: str


def prepare(
    data: bytes, how: Preprocessing, max_pixels: int, max_bytes: int, sidecar: bytes | None = None, whole: bool = False
) -> Prepared:
    """Decodes, finds faces and cuts them out as ingest and training did.

    Faces come from the sidecar's bytes when given, else they are located; with ``whole`` the largest central square
    of the image is the one face crop.

    Raises:
        Rejected: the file, the sidecar or its faces cannot be used; its reason says why.
    """
    image = open_image(data, max_pixels, max_bytes)
    width, height = image.width, image.height
    faces = _faces(image, how, sidecar, whole)
    came_from: FacesFrom = "whole image" if whole else "located" if sidecar is None else "sidecar"
    if not faces:
        raise Rejected("no_face", "no face was found")
    large = [face for face in faces if min(face.box[2], face.box[3]) >= how.min_face_px]
    if not large:
        side = max(min(face.box[2], face.box[3]) for face in faces)
        raise Rejected("face_too_small", f"the largest face has {side:.0f} pixels a side; {how.min_face_px} are needed")
    crops = np.empty((len(large), 3, how.image_size, how.image_size), np.uint8)
    for face, target in zip(large, crops, strict=True):
        pixels, _ = crop(image.pixels(), face, 1.0 if whole else how.crop_scale)
        _resize(pixels, target)
    digest = hashlib.sha256(data).hexdigest()
    small = len(faces) - len(large)
    return Prepared(digest, len(data), width, height, image.codec, image.jpeg_quality, came_from, small, large, crops)


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
        faces=[
            FaceReport(
                face=i,
                box=face.box,
                landmarks=_points(face) if prepared.faces_from != "whole image" else None,
                **vars(result),
            )
            for i, (face, result) in enumerate(zip(prepared.faces, results, strict=True), 1)
        ],
    )


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
        opened = [_open(file, detector.info.preprocessing, max_pixels, max_bytes, whole) for file in part]
        usable = [item for item in opened if isinstance(item, Prepared)]
        results = iter(detector.detect(np.concatenate([item.crops for item in usable]), rate) if usable else [])
        for file, item in zip(part, opened, strict=True):
            if isinstance(item, Prepared):
                yield file, report(detector, item, [next(results) for _ in item.faces])
            else:
                yield file, item


def _open(file: Path, how: Preprocessing, max_pixels: int, max_bytes: int, whole: bool) -> Prepared | Unusable:
    try:
        size = file.stat().st_size
        if size > max_bytes:
            return Unusable("too_large", f"{size} bytes; the limit is {max_bytes}")
        beside = sidecar_of(file)
        sidecar = beside.read_bytes() if beside.is_file() and not whole else None
        return prepare(file.read_bytes(), how, max_pixels, max_bytes, sidecar, whole)
    except Rejected as error:
        return Unusable(error.reason, error.detail)
    except OSError as error:
        return Unusable("unreadable", error.strerror or type(error).__name__)


def _faces(image: ImageFile, how: Preprocessing, sidecar: bytes | None, whole: bool) -> list[Face]:
    if whole:
        return [Face((0.0, 0.0, float(image.width), float(image.height)), np.zeros((0, 2), np.float32))]
    if sidecar is None:
        return find_faces(image, make_locator(how.locator))
    faces = parse_sidecar(sidecar)
    check_inside(faces, image.width, image.height)
    return faces


def _resize(pixels: np.ndarray, target: np.ndarray) -> None:
    """Into ``target`` (3, S, S) exactly as a shard's crop: through the same function, which takes encoded pixels."""
    # Lossless, and hardly more than a copy.
    done, encoded = cv2.imencode(".bmp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not done:
        raise Rejected("unreadable", "the crop could not be handed on")
    decode_face(encoded, target)


def _points(face: Face) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in face.landmarks]
