"""Faces of a photo: from a sidecar file, else located by Haar cascades; and the square crop around one. No Ray here."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blades_dist.data.decode import Rejected
from blades_dist.data.records import LANDMARKS

SIDECAR_SUFFIX = ".faces.json"
LOCATE_SIDE = 1024  # pixels of the longest side at which faces are searched
MAX_FACES = 256  # of one sidecar
_MAX_SIDECAR_BYTES = 2**20

# Where the five landmarks lie in a frontal-face box of the cascade, as shares of its side.
_PROPORTIONS = np.array([(0.31, 0.38), (0.69, 0.38), (0.50, 0.58), (0.34, 0.77), (0.66, 0.77)], np.float32)


@dataclass(frozen=True)
class Face:
    """``box`` (x, y, w, h) and ``landmarks`` (5, 2) float32, both in pixels of the upright photo.

    Landmarks: eye at image left, eye at image right, nose tip, mouth corner at image left, at image right.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray


def sidecar_of(image: Path) -> Path:
    """Where the faces of an image file are looked for: ``<stem>.faces.json`` beside it."""
    return image.with_name(image.stem + SIDECAR_SUFFIX)


def read_sidecar(data: bytes, width: int, height: int) -> list[Face]:
    """Faces of ``{"faces": [{"box": [x, y, w, h], "landmarks": [[x, y] * 5]}]}``, in its order; pixels after EXIF
    orientation of a photo of that width and height.

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
        return [_face_of(item, f"faces[{i}]", width, height) for i, item in enumerate(content["faces"])]
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_sidecar", f"sidecar: {error}"[:200]) from None


def locate(rgb: np.ndarray) -> list[Face]:
    """Frontal faces of an upright photo (H, W, 3) uint8, the largest first, searched at reduced scale.

    Landmarks follow the proportions of a frontal face, turned and scaled to the eyes when the eye cascade finds
    exactly one on each side.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, LOCATE_SIDE / max(height, width))
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) if scale == 1 else _reduced(rgb, scale)
    gray = cv2.equalizeHist(gray)
    with _cascades_lock:
        cascades = _cascades()
        boxes = cascades["face"].detectMultiScale(gray, 1.1, 5, minSize=(24, 24))
        found = [(box, _landmarks(gray, box, cascades["eye"])) for box in np.asarray(boxes, int).reshape(-1, 4)]
    found.sort(key=lambda item: (-item[0][2], item[0][0], item[0][1]))
    return [
        Face((x / scale, y / scale, w / scale, h / scale), (points / scale).astype(np.float32))
        for (x, y, w, h), points in found
    ]


def crop(rgb: np.ndarray, face: Face, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Square crop of side ``scale * max(w, h)`` around a face's box, and its landmarks (5, 2) in pixels of the crop.

    The square is centred on the box, shifted to stay inside the photo, and no larger than the photo's shorter side.
    Pixels are copied, never resampled.
    """
    height, width = rgb.shape[:2]
    x, y, w, h = face.box
    side = max(1, min(round(scale * max(w, h)), height, width))
    left = int(np.clip(round(x + w / 2 - side / 2), 0, width - side))
    top = int(np.clip(round(y + h / 2 - side / 2), 0, height - side))
    pixels = np.ascontiguousarray(rgb[top : top + side, left : left + side])
    return pixels, (face.landmarks - np.array([left, top])).astype(np.float32)


def _face_of(item: Any, where: str, width: int, height: int) -> Face:
    if not isinstance(item, dict):
        raise ValueError(f"{where} is not an object")
    box = _numbers(item.get("box"), (4,), f"{where}.box")
    points = _numbers(item.get("landmarks"), (LANDMARKS, 2), f"{where}.landmarks")
    x, y, w, h = (float(value) for value in box)
    if w <= 0 or h <= 0:
        raise ValueError(f"{where}.box has no area")
    if not (0 <= x + w / 2 <= width and 0 <= y + h / 2 <= height):
        raise ValueError(f"{where}.box has its centre outside the {width} x {height} photo")
    return Face((x, y, w, h), points.astype(np.float32))


def _numbers(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != shape or not (np.abs(array) < 1e6).all():
        raise ValueError(f"{where} is not {' x '.join(map(str, shape))} pixel coordinates")
    return array


def _reduced(rgb: np.ndarray, scale: float) -> np.ndarray:
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def _landmarks(gray: np.ndarray, box: np.ndarray, eyes: Any) -> np.ndarray:
    """(5, 2) pixels of ``gray``."""
    x, y, side = (float(v) for v in box[:3])
    points = np.array([x, y]) + side * _PROPORTIONS
    upper = gray[int(y + 0.15 * side) : int(y + 0.60 * side), int(x) : int(x + side)]
    minimum = max(8, int(0.14 * side))
    found = eyes.detectMultiScale(upper, 1.1, 5, minSize=(minimum, minimum)) if min(upper.shape) > minimum else ()
    centres = [(ex + ew / 2 + int(x), ey + eh / 2 + int(y + 0.15 * side)) for ex, ey, ew, eh in found]
    left = [c for c in centres if c[0] < x + 0.47 * side]
    right = [c for c in centres if c[0] > x + 0.53 * side]
    if len(left) != 1 or len(right) != 1 or abs(right[0][1] - left[0][1]) > 0.25 * side:
        return points
    # The similarity that takes the proportions' eyes to the ones found, in complex numbers.
    z = points[:, 0] + 1j * points[:, 1]
    a, b = complex(*left[0]), complex(*right[0])
    moved = a + (z - z[0]) * (b - a) / (z[1] - z[0])
    return np.stack([moved.real, moved.imag], axis=1)


# Classifiers keep buffers between calls, so one thread of a process uses them at a time.
_cascades_lock = threading.Lock()
_cascades_loaded: dict[str, Any] = {}


def _cascades() -> dict[str, Any]:
    if not _cascades_loaded:
        for name, file in (("face", "haarcascade_frontalface_alt2.xml"), ("eye", "haarcascade_eye.xml")):
            _cascades_loaded[name] = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / file))
    return _cascades_loaded
