"""What a source says of an item, as the JSON text of ``Entry.note``. No Ray here."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from blades_dist.data.exif import Raw
from blades_dist.data.faces import Face
from blades_dist.data.sources.base import Annotations
from blades_dist.tasks import TAGS


def face_note(box: tuple[float, float, float, float], landmarks: np.ndarray) -> dict[str, Any]:
    """A face for ``note_of``: box (x, y, w, h) and landmarks (5, 2)."""
    return {"box": [round(v, 6) for v in box], "landmarks": np.round(landmarks, 6).tolist()}


def annotations_of(note: Mapping[str, Any]) -> Annotations:
    """What a note says that has any of: ``faces`` (of ``face_note``), ``frame`` (width, height), ``exif`` (tag to
    value; other tags are absent) and ``levels`` (tag to level)."""
    faces = note.get("faces")
    exif: Raw | None = {tag: note["exif"].get(tag) for tag in TAGS} if "exif" in note else None
    return Annotations(
        faces=None if faces is None else [Face(tuple(f["box"]), np.array(f["landmarks"], np.float32)) for f in faces],
        frame=tuple(note["frame"]) if note.get("frame") else None,
        exif=exif,
        levels=note.get("levels", {}),
    )


def text_of(note: Mapping[str, Any]) -> str:
    """A note as text, the same for the same content; "" for an empty one."""
    return json.dumps(note, sort_keys=True, separators=(",", ":")) if note else ""
