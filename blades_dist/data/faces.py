"""A face of a photo, the sidecar file that may give it, and the square crop around it. No Ray here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blades_dist.data.decode import Rejected
from blades_dist.data.records import LANDMARKS

SIDECAR_SUFFIX = ".faces.json"
# Where the five landmarks lie in a frontal-face box, as shares of its side.
PROPORTIONS = np.array([(0.31, 0.38), (0.69, 0.38), (0.50, 0.58), (0.34, 0.77), (0.66, 0.77)])
MAX_FACES = 256  # of one sidecar
_MAX_SIDECAR_BYTES = 2**20


@dataclass(frozen=True)
class Face:
    """``box`` (x, y, w, h) and ``landmarks`` (5, 2) float32, both in pixels of the upright photo.

    Landmarks: eye at image left, eye at image right, nose tip, mouth corner at image left, at image right. ``score``
    is the locator's own measure of confidence, where it has one.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float | None = None

    def as_json(self) -> dict[str, Any]:
        """A value that JSON can hold; ``face_from_json`` gives an equal face."""
        return {"box": list(self.box), "landmarks": self.landmarks.tolist(), "score": self.score}


def face_from_json(value: Mapping[str, Any]) -> Face:
    """The face that ``Face.as_json`` made the value of."""
    x, y, w, h = value["box"]
    return Face((x, y, w, h), np.array(value["landmarks"], np.float32).reshape(-1, 2), value["score"])


def frontal(box: tuple[float, float, float, float]) -> Face:
    """The face in a box (x, y, w, h) of which no more is known: landmarks by the proportions of a frontal face."""
    x, y, w, h = box
    return Face(box, (np.array([x, y]) + PROPORTIONS * np.array([w, h])).astype(np.float32))


def whole_picture(width: int, height: int, scale: float) -> Face:
    """The face of a picture that is a crop already: the box is the picture, in pixels; landmarks lie as if its largest
    central square had been cut ``scale`` times as large as a frontal face."""
    side = min(width, height) / scale
    landmarks = frontal(((width - side) / 2, (height - side) / 2, side, side)).landmarks
    return Face((0.0, 0.0, float(width), float(height)), landmarks)


def sidecar_of(image: Path) -> Path:
    """Where the faces of an image file are looked for: ``<stem>.faces.json`` beside it."""
    return image.with_name(image.stem + SIDECAR_SUFFIX)


def parse_sidecar(data: bytes) -> list[Face]:
    """Faces of ``{"faces": [{"box": [x, y, w, h], "landmarks": [[x, y] * 5]}]}``, in its order; pixels after EXIF
    orientation. Whether they lie in their photo is for ``check_inside`` to say.

    Raises:
        Rejected: ``bad_sidecar``, with what is wrong and at which face.
    """
    try:
        if len(data) > _MAX_SIDECAR_BYTES:
            raise ValueError(f"{len(data)} bytes; the limit is {_MAX_SIDECAR_BYTES}")
        content = json.loads(data)
        if not isinstance(content, dict) or not isinstance(content.get("faces"), list):
            raise ValueError('no list "faces"')
        if len(content["faces"]) > MAX_FACES:
            raise ValueError(f"{len(content['faces'])} faces; the limit is {MAX_FACES}")
        return [_face_of(item, f"faces[{i}]") for i, item in enumerate(content["faces"])]
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_sidecar", f"sidecar: {error}"[:200]) from None


def check_inside(faces: Sequence[Face], width: int, height: int) -> None:
    """Checks faces that were given against the size of their upright photo in pixels.

    Raises:
        Rejected: ``bad_sidecar``; the centre of a box lies outside the photo.
    """
    for i, face in enumerate(faces):
        x, y, w, h = face.box
        if not (0 <= x + w / 2 <= width and 0 <= y + h / 2 <= height):
            detail = f"faces[{i}].box has its centre outside the {width} x {height} photo"
            raise Rejected("bad_sidecar", f"sidecar: {detail}")


def scaled(face: Face, across: float, down: float) -> Face:
    """The face in a picture that is ``across`` times as wide and ``down`` times as high."""
    x, y, w, h = face.box
    points = face.landmarks * np.array([across, down])
    return Face((x * across, y * down, w * across, h * down), points.astype(np.float32), face.score)


def crop(rgb: np.ndarray, face: Face, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Square crop of side ``scale * max(w, h)`` around a face's box, and its landmarks (5, 2) in pixels of the crop.

    The square is centred on the box, shifted to stay inside the photo, and no larger than the photo's shorter side.
    Pixels are the photo's, never resampled: the crop is a view of it.
    """
    height, width = rgb.shape[:2]
    x, y, w, h = face.box
    side = max(1, min(round(scale * max(w, h)), height, width))
    left = int(np.clip(round(x + w / 2 - side / 2), 0, width - side))
    top = int(np.clip(round(y + h / 2 - side / 2), 0, height - side))
    return rgb[top : top + side, left : left + side], (face.landmarks - np.array([left, top])).astype(np.float32)


def _face_of(item: Any, where: str) -> Face:
    if not isinstance(item, dict):
        raise ValueError(f"{where} is not an object")
    box = _numbers(item.get("box"), (4,), f"{where}.box")
    points = _numbers(item.get("landmarks"), (LANDMARKS, 2), f"{where}.landmarks")
    x, y, w, h = (float(value) for value in box)
    if w <= 0 or h <= 0:
        raise ValueError(f"{where}.box has no area")
    return Face((x, y, w, h), points.astype(np.float32))


def _numbers(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != shape or not (np.abs(array) < 1e6).all():
        raise ValueError(f"{where} is not {' x '.join(map(str, shape))} pixel coordinates")
    return array
