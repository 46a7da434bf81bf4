"""One photo to rows: decode, EXIF, faces, crops. And parts: the rows of a few photos, on disk. No Ray here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.config import SPLITS, IngestConfig
from blades_dist.data.decode import DecodedImage, Rejected, decode_image
from blades_dist.data.exif import Raw, read_exif
from blades_dist.data.faces import Face, crop, locate, read_sidecar, sidecar_of
from blades_dist.data.records import label_column, shard_schema
from blades_dist.tasks import TAGS, TASKS

# Photographs and the shards made of them are lossless throughout. The cheapest filter and run lengths: twice as fast
# to write and a third faster to read than the best ones, for a quarter more bytes.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB)

# Tags that a default run trains on; an optional one alone does not make a photograph usable.
_COUNTED = tuple(task.tag for task in TASKS if task.tag is not None and not task.optional)

_LABELS = tuple(label_column(tag) for tag in TAGS)


@dataclass(frozen=True)
class Photo:
    """A file that is worth decoding; ``path`` relative to the source folder."""

    path: str
    source: str
    sha256: str
    split: str


@dataclass
class Outcome:
    """What became of one file: faces found in it, rows made of them, and (face or None, reason, detail) of the rest."""

    path: str
    faces: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[tuple[int | None, str, str]] = field(default_factory=list)


def part_schema() -> pa.Schema:
    """Columns of a part: a shard's, without the labels, which need the edges of the whole collection."""
    return pa.schema([item for item in shard_schema() if item.name not in _LABELS])


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


def process_photo(folder: Path, photo: Photo, config: IngestConfig) -> Outcome:
    """Rows of one photo, or why there are none. Whatever is wrong with the file ends up in the outcome."""
    outcome = Outcome(photo.path)
    try:
        _process(folder / photo.path, photo, config, outcome)
    except Rejected as error:
        outcome.rejected.append((None, error.reason, error.detail))
    except OSError as error:
        outcome.rejected.append((None, "unreadable", error.strerror or type(error).__name__))
    except Exception as error:  # one odd file must not end the run of a million; nothing is lost, its name is kept
        outcome.rejected.append((None, "unreadable", f"{type(error).__name__}: {error}"[:200]))
    if any(face is None for face, _, _ in outcome.rejected):
        outcome.faces, outcome.rows, outcome.rejected = 0, [], outcome.rejected[-1:]
    return outcome


def write_part(rows: Sequence[dict[str, Any]], target: Path) -> int:
    """Writes rows, if any, as a part file; returns their images' bytes."""
    if not rows:
        return 0
    pq.write_table(pa.Table.from_pylist(list(rows), part_schema()), target, compression="none", use_dictionary=False)
    return sum(len(row["image"]) for row in rows)


def _process(file: Path, photo: Photo, config: IngestConfig, outcome: Outcome) -> None:
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise Rejected("unreadable", "the file changed while it was being ingested")
    image = decode_image(data, config.max_pixels, config.max_bytes)
    raw = read_exif(data)
    if config.kind == "photographs":
        usable = sum(raw[tag] is not None for tag in _COUNTED)
        if usable < config.min_tags:
            raise Rejected("no_usable_tag", f"{usable} usable EXIF tags; at least {config.min_tags} are needed")
    faces = _faces(file, image.rgb)
    if not faces:
        raise Rejected("no_face", "no face was found")
    outcome.faces = len(faces)
    for index, face in enumerate(faces):
        side = min(face.box[2], face.box[3])
        if side < config.min_face_px:
            detail = f"{side:.0f} pixels; at least {config.min_face_px} are needed"
            outcome.rejected.append((index, "face_too_small", detail))
        else:
            outcome.rows.append(_row(photo, index, face, image, raw, config.crop_scale))


def _faces(file: Path, rgb: np.ndarray) -> list[Face]:
    sidecar = sidecar_of(file)
    if sidecar.is_file():
        return read_sidecar(sidecar.read_bytes(), rgb.shape[1], rgb.shape[0])
    return locate(rgb)


def _row(photo: Photo, index: int, face: Face, image: DecodedImage, raw: Raw, scale: float) -> dict[str, Any]:
    pixels, landmarks = crop(image.rgb, face, scale)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _PNG)
    if not done:
        raise ValueError("the crop could not be encoded")
    return {
        "id": f"{photo.sha256}-{index}",
        "photo": photo.sha256,
        "split": photo.split,
        "source": photo.source,
        "path": photo.path,
        "image": encoded.tobytes(),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "box": list(face.box),
        "landmarks": landmarks.ravel().tolist(),
        "codec": image.codec,
        "jpeg_quality": image.jpeg_quality,
        **{f"exif_{tag}": raw[tag] for tag in TAGS},
    }
