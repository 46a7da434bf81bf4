"""One photo to rows: decode, EXIF, faces, crops. No Ray here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from blades_dist.config import SPLITS, IngestConfig
from blades_dist.data.decode import ImageFile, Rejected, open_image
from blades_dist.data.duplicates import perceptual_hash
from blades_dist.data.exif import Raw, read_exif
from blades_dist.data.faces import Face, check_inside, crop, scaled, whole_picture
from blades_dist.data.locate import locate, make_locator
from blades_dist.data.locate_models import LocatorError
from blades_dist.data.records import given_column, no_rows, part_schema
from blades_dist.data.sources.base import Annotations
from blades_dist.tasks import ABSENT, ORDINAL_TAGS, TAGS, TASKS

# Photographs and the shards made of them are lossless throughout. The cheapest filter and run lengths: twice as fast
# to write and a third faster to read than the best ones, for a quarter more bytes.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB)

# Tags that a default run trains on; an optional one alone does not make a photograph usable.
COUNTED_TAGS = tuple(task.tag for task in TASKS if task.tag is not None and not task.optional)


@dataclass(frozen=True)
class Photo:
    """A file that is worth decoding; ``path`` names it in its collection."""

    path: str
    source: str
    sha256: str
    split: str


@dataclass
class Outcome:
    """What became of one file: faces found in it, rows made of them (``part_schema``), and (face or None, reason,
    detail) of the rest. ``fingerprint`` is the perceptual hash of the upright photo, ``pixels`` its width times its
    height; None and 0 when it was rejected before it was decoded. ``found`` are the faces, also those without a row.
    """

    path: str
    faces: int = 0
    rows: pa.Table = field(default_factory=no_rows)
    rejected: list[tuple[int | None, str, str]] = field(default_factory=list)
    fingerprint: bytes | None = None
    pixels: int = 0
    found: list[Face] = field(default_factory=list)


def split_of(sha256: str, seed: int, shares: dict[str, float]) -> str:
    """Split of a photo, from its own bytes and the seed alone: other photos never move it."""
    place = int(hashlib.sha256(f"{seed}:{sha256}".encode()).hexdigest()[:13], 16) / 16**13
    chosen = ""
    for name in SPLITS:
        share = shares.get(name, 0.0)
        if share > 0:
            chosen = name
            if place < share:
                break
            place -= share
    return chosen


def process_photo(photo: Photo, data: bytes, annotations: Annotations, config: IngestConfig) -> Outcome:
    """Rows of one photo, or why there are none. Whatever is wrong with the file ends up in the outcome.

    Raises:
        LocatorError: the configured locator cannot be used, which is no photo's fault.
    """
    outcome = Outcome(photo.path)
    try:
        _process(photo, data, annotations, config, outcome)
    except Rejected as error:
        return _refused(outcome, error.reason, error.detail)
    except LocatorError:
        raise
    except MemoryError:
        return no_memory(outcome)
    except Exception as error:  # one odd file must not end the run of a million; nothing is lost, its name is kept
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            return no_memory(outcome)
        return _refused(outcome, "unreadable", f"{type(error).__name__}: {error}"[:200])
    return outcome


def stored_crop(pixels: np.ndarray) -> bytes:
    """A crop (H, W, 3) uint8 RGB as shards hold it: a PNG file."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _PNG)
    if not done:
        raise ValueError("the crop could not be encoded")
    return np.asarray(encoded).tobytes()


def no_memory(outcome: Outcome) -> Outcome:
    """The outcome of a photo that does not fit into the memory there is."""
    return _refused(outcome, "too_large", "it needs more memory than there is; a larger memory_mebibytes may do")


def _process(photo: Photo, data: bytes, annotations: Annotations, config: IngestConfig, outcome: Outcome) -> None:
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise Rejected("unreadable", "the file changed while it was being ingested")
    image = open_image(data, config.max_pixels, config.max_bytes)
    raw = _merged(annotations, data)
    if config.kind == "photographs":  # before decoding, which is most of the work
        usable = sum(raw[tag] is not None or annotations.levels.get(tag, ABSENT) != ABSENT for tag in COUNTED_TAGS)
        if usable < config.min_tags:
            raise Rejected("no_usable_tag", f"{usable} usable EXIF tags; at least {config.min_tags} are needed")
    picture, factor = image.preview()
    outcome.fingerprint, outcome.pixels = perceptual_hash(picture), image.width * image.height
    if config.faces == "whole":
        outcome.found = [whole_picture(image.width, image.height, config.crop_scale)]
    elif annotations.faces is not None:
        outcome.found = _given_faces(annotations.faces, annotations.frame, image)
    else:
        outcome.found = locate(picture, make_locator(config.locator, config.locator_model), factor)
    del picture
    outcome.faces = len(outcome.found)
    if not outcome.found:
        raise Rejected("no_face", "no face was found")
    rows = []
    for index, face in enumerate(outcome.found):
        side = min(face.box[2], face.box[3])
        if side < config.min_face_px:
            detail = f"{side:.0f} pixels; at least {config.min_face_px} are needed"
            outcome.rejected.append((index, "face_too_small", detail))
        else:
            rows.append(_row(photo, index, face, image, config.crop_scale) | _tag_columns(raw, annotations))
    if rows:
        outcome.rows = pa.Table.from_pylist(rows, part_schema())


def _refused(outcome: Outcome, reason: str, detail: str) -> Outcome:
    """The outcome of a file that is out as a whole; what is known of its pixels stays."""
    return Outcome(
        outcome.path,
        rejected=[(None, reason, detail)],
        fingerprint=outcome.fingerprint,
        pixels=outcome.pixels,
        found=outcome.found,
    )


def _merged(annotations: Annotations, data: bytes) -> Raw:
    """Per tag what the source says, else what the file itself says."""
    said = annotations.exif or {}
    own: Raw = {} if all(said.get(tag) is not None for tag in TAGS) else read_exif(data)
    return {tag: said[tag] if said.get(tag) is not None else own[tag] for tag in TAGS}


def _given_faces(faces: Sequence[Face], frame: tuple[float, float] | None, image: ImageFile) -> list[Face]:
    if frame is not None:
        faces = [scaled(face, image.width / frame[0], image.height / frame[1]) for face in faces]
    check_inside(faces, image.width, image.height)
    return list(faces)


def _row(photo: Photo, index: int, face: Face, image: ImageFile, scale: float) -> dict[str, Any]:
    pixels, landmarks = crop(image.pixels(), face, scale)
    return {
        "id": f"{photo.sha256}-{index}",
        "photo": photo.sha256,
        "split": photo.split,
        "source": photo.source,
        "path": photo.path,
        "image": stored_crop(pixels),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "box": list(face.box),
        "landmarks": landmarks.ravel().tolist(),
        "codec": image.codec,
        "jpeg_quality": image.jpeg_quality,
        "source_width": image.width,
        "source_height": image.height,
        **vars(image.container),
    }


def _tag_columns(raw: Raw, annotations: Annotations) -> dict[str, Any]:
    values = {f"exif_{tag}": raw[tag] for tag in TAGS}
    levels = {tag: level for tag, level in annotations.levels.items() if level != ABSENT}
    return values | {given_column(tag): levels.get(tag) for tag in ORDINAL_TAGS}
