"""Landmark schemes of published data sets to the five points of ``faces.Face``. No Ray here."""

from typing import Any

import numpy as np

from blades_dist.data.faces import PROPORTIONS

_EYES_NOSE, _MOUTH = PROPORTIONS[:3], PROPORTIONS[3:]


def numbers(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A list of JSON as a float64 array of that shape; a flat list of as many numbers will do.

    Raises:
        ValueError: it is not that many finite numbers; the message names ``where``.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list of numbers")
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{where} is not a list of numbers") from None
    if array.size != np.prod(shape) or array.ndim not in (1, len(shape)) or not np.isfinite(array).all():
        raise ValueError(f"{where} is not {' x '.join(map(str, shape))} finite numbers")
    return array.reshape(shape)


def five_of_coco(points: np.ndarray) -> np.ndarray:
    """(5, 2) from keypoints that begin with nose, right eye, left eye (COCO's order), (3 or more, 2).

    The mouth is not among them: its corners follow from the proportions of a frontal face, carried over by the affine
    map that takes that face's eyes and nose to these.
    """
    left, right = sorted(points[1:3].tolist())  # as the image has them, whichever way the person looks
    known = np.array([left, right, points[0].tolist()])
    ones = np.ones((3, 1))
    affine = np.linalg.solve(np.hstack([_EYES_NOSE, ones]), known)  # (3, 2)
    return np.vstack([known, np.hstack([_MOUTH, np.ones((2, 1))]) @ affine])


def five_of_68(points: np.ndarray) -> np.ndarray:
    """(5, 2) from the 68 points of iBUG 300-W, (68, 2): eye centres, nose tip, mouth corners."""
    eyes = [points[36:42].mean(axis=0), points[42:48].mean(axis=0)]
    return np.stack([*eyes, points[30], points[48], points[54]])


def box_around(points: np.ndarray) -> tuple[float, float, float, float]:
    """(x, y, w, h) of the smallest upright box that holds the points."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right - left), float(bottom - top)


def box_of_corners(value: Any, where: str) -> tuple[float, float, float, float]:
    """(x, y, w, h) of a JSON list [left, top, right, bottom].

    Raises:
        ValueError: it is not four finite numbers, or the box is empty.
    """
    left, top, right, bottom = numbers(value, (4,), where).tolist()
    if right <= left or bottom <= top:
        raise ValueError(f"{where} is an empty box")
    return left, top, right - left, bottom - top
