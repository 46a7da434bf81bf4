"""Finding the faces of a photo: one interface, three locators. No Ray here.

Ingest, predict and serve all come through ``find_faces``, so that a file has the same faces in each of them.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from blades_dist.config import IngestConfig
from blades_dist.data.decode import PREVIEW_SIDE, ImageFile
from blades_dist.data.faces import Face, scaled
from blades_dist.data.locate_haar import HaarLocator
from blades_dist.data.locate_models import LocatorError, MediapipeLocator, YunetLocator

LOCATE_SIDE = PREVIEW_SIDE  # pixels of the longest side at which faces are searched


class Locator(Protocol):
    def find(self, rgb: np.ndarray) -> Sequence[Face]:
        """Faces of an upright picture (H, W, 3) uint8 of at most ``LOCATE_SIDE`` pixels a side, in its pixels."""
        ...


def check_locator(config: IngestConfig) -> None:
    """Loads the configured locator and runs it once, so that a missing model is told before anything begins.

    Raises:
        LocatorError: a library or model file is missing or unusable; the message says where to get it.
    """
    make_locator(config.locator, config.locator_model).find(np.full((64, 64, 3), 128, np.uint8))


def make_locator(name: str, model: Path | None = None) -> Locator:
    """The locator of that name, loaded once in a process.

    Raises:
        LocatorError: as ``check_locator``.
    """
    return _loaded(name, None if model is None else str(model))


def find_faces(image: ImageFile, locator: Locator) -> list[Face]:
    """Faces of an image file in pixels of the upright photo, the largest first.

    Raises:
        Rejected: the photo cannot be decoded.
    """
    picture, factor = image.preview()
    return locate(picture, locator, factor)


def locate(rgb: np.ndarray, locator: Locator, factor: int = 1) -> list[Face]:
    """Faces of an upright picture (H, W, 3) uint8, searched at ``LOCATE_SIDE``, the largest first.

    Boxes and landmarks are in pixels of a photo ``factor`` times as large a side.
    """
    scale = min(1.0, LOCATE_SIDE / max(rgb.shape[:2]))
    if round(min(rgb.shape[:2]) * scale) < 2:  # a line, which cannot be made smaller
        return []
    small = rgb if scale == 1 else cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    with _one_at_a_time:
        faces = locator.find(small)
    if scale != 1 or factor != 1:
        faces = [scaled(face, factor / scale, factor / scale) for face in faces]
    return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box[0], face.box[1]))


# Locators keep buffers between calls, so one thread of a process uses them at a time.
_one_at_a_time = threading.Lock()
_LOCATORS: dict[str, Callable[[str | None], Locator]] = {
    "haar": lambda _: HaarLocator(),
    "yunet": YunetLocator,
    "mediapipe": MediapipeLocator,
}


@cache
def _loaded(name: str, model: str | None) -> Locator:
    if name not in _LOCATORS:
        raise LocatorError(f"locator: {name!r} is unknown; allowed: {', '.join(_LOCATORS)}")
    return _LOCATORS[name](model)
