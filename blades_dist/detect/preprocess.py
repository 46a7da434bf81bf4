"""An image file's bytes to face crops as an encoder wants them: the part of an answer that hostile bytes can reach.

It knows no detector and loads no torch (but for the float resizes), so that a small bounded process can do it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from blades_dist.data.credentials import Credentials, read_credentials
from blades_dist.data.decode import ImageFile, Rejected, open_image
from blades_dist.data.exif import Raw, read_exif
from blades_dist.data.faces import Face, check_inside, crop, parse_sidecar
from blades_dist.data.locate import find_faces, make_locator
from blades_dist.detect.info import Preprocessing
from blades_dist.models.resize import resized
from blades_dist.perturb import apply

FacesFrom = Literal["located", "sidecar", "whole image"]


@dataclass(frozen=True)
class PreprocessedImage:
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


def preprocess(
    data: bytes,
    how: Preprocessing,
    max_pixels: int,
    max_bytes: int,
    sidecar: bytes | None = None,
    whole: bool = False,
    locator_model: Path | None = None,
) -> PreprocessedImage:
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
    return PreprocessedImage(
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
