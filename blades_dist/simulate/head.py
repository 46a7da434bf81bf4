"""The head in three dimensions: its shape, its pose, how it projects, and how light falls on it.

Head coordinates are millimetres: x to the image's right, y down, z towards the camera, origin in the middle of the
head. The skull is an ellipsoid; nose, brows, lips and the rest are Gaussian bumps on it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from blades_dist.simulate.textures import Image

Points = NDArray[np.floating]


@dataclass(frozen=True)
class HeadShape:
    """Proportions of one face, millimetres unless said otherwise."""

    half_width: float
    half_height: float
    depth: float
    jaw: float  # how much the outline narrows towards the chin, 0 to 0.45
    hairline: float  # y where the forehead meets the hair (negative: above the middle)
    eye_x: float
    eye_y: float
    brow_y: float
    nose_y: float
    nose_width: float
    nose_height: float
    mouth_y: float
    mouth_half: float

    @property
    def chin_y(self) -> float:
        return self.half_height

    def surface(self, x: Points, y: Points) -> Points:
        """z of the skull's ellipsoid at (x, y)."""
        q = (x / self.half_width) ** 2 + (y / (self.half_height * 1.08)) ** 2
        return np.asarray(self.depth * np.sqrt(np.maximum(1 - q, 0.04)), np.float32)


def sample_shape(rng: np.random.Generator) -> HeadShape:
    """Proportions around those of adults (means and spreads as in published anthropometric tables, rounded)."""

    def around(mean: float, spread: float) -> float:
        return float(mean + spread * np.clip(rng.standard_normal(), -2.2, 2.2))

    return HeadShape(
        half_width=around(74, 4.5),
        half_height=around(108, 5),
        depth=around(92, 4),
        jaw=float(rng.uniform(0.12, 0.38)),
        hairline=around(-72, 6),
        eye_x=around(32, 1.8),
        eye_y=around(-8, 2.5),
        brow_y=around(-29, 2.5),
        nose_y=around(32, 3),
        nose_width=around(17, 2.4),
        nose_height=around(19, 3.5),
        mouth_y=around(60, 2.8),
        mouth_half=around(25, 2.6),
    )


@dataclass(frozen=True)
class View:
    """Where a head sits before the camera: ``rotation`` (3, 3), ``centre`` and ``scale`` in canvas pixels."""

    rotation: NDArray[np.floating]
    roll: float
    centre: tuple[float, float]
    scale: float  # pixels per millimetre at the head's middle
    distance: float  # millimetres from the lens to the head's middle

    def project(self, points: Points) -> Points:
        """Head points (n, 3) to canvas pixels (n, 2), in perspective."""
        turned = points @ self.rotation.T
        near = self.scale * self.distance / (self.distance - turned[:, 2:])
        return np.asarray(turned[:, :2] * near + np.array(self.centre, np.float32), np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.floating]:
    """Rotation (3, 3) of a head, radians; roll is applied last, in the image plane."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_x @ about_y, np.float32)


@dataclass(frozen=True)
class Relief:
    """Maps over the canvas: head coordinates, surface normals (in head coordinates) and hollows.

    ``x``, ``y`` are full resolution (side, side); ``flat_x``, ``flat_y`` are the same without the turn of the head
    (for hair and clothes); ``half_x``, ``half_y``, ``normal`` (3, side/2, side/2) and ``openness`` are half
    resolution, since shading is smooth.
    """

    x: Image
    y: Image
    flat_x: Image
    flat_y: Image
    half_x: Image
    half_y: Image
    normal: Image
    openness: Image


def relief(shape: HeadShape, view: View, side: int) -> Relief:
    """Head coordinates and normals at every canvas pixel, by two fixed-point steps of the inverse projection."""
    half = side // 2
    line = (np.arange(half, dtype=np.float32) * 2 + 0.5 - view.centre[0]) / view.scale
    column = (np.arange(half, dtype=np.float32) * 2 + 0.5 - view.centre[1]) / view.scale
    c, s = float(np.cos(view.roll)), float(np.sin(view.roll))
    flat_x = c * line[None, :] + s * column[:, None]
    flat_y = c * column[:, None] - s * line[None, :]
    # Without the roll the rotation's rows say how head coordinates become flat ones.
    level = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32) @ view.rotation
    x, y = flat_x, flat_y
    for _ in range(2):
        z = shape.surface(x, y)
        shrink = 1 - (z * level[2, 2]) / view.distance
        x = (flat_x * shrink - level[0, 2] * z) / level[0, 0]
        y = (flat_y * shrink - level[1, 0] * x - level[1, 2] * z) / level[1, 1]
    normal, openness = _normals(shape, x, y)

    def full(image: Image) -> Image:
        return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR))

    return Relief(full(x), full(y), full(flat_x), full(flat_y), x, y, normal, openness)


def _bumps(shape: HeadShape) -> NDArray[np.floating]:
    """Rows (|x|, y, height, width in x, width in y) of the features, mirrored in x; negative heights are hollows."""
    s = shape
    lip = s.mouth_half * 0.75
    return np.array(
        [
            [s.eye_x, s.brow_y - 2, 5, 20, 8],
            [s.eye_x - 2, s.eye_y - 2, -9, 14, 9],
            [s.eye_x, s.eye_y, 5, 10, 7],
            [0, s.nose_y - 22, s.nose_height * 0.65, s.nose_width * 0.5, 20],
            [0, s.nose_y - 2, s.nose_height, s.nose_width * 0.62, 9],
            [s.nose_width * 0.85, s.nose_y + 3, 7, 5, 5],
            [s.half_width * 0.58, s.nose_y - 12, 8, 17, 14],
            [s.mouth_half + 4, s.mouth_y - 14, -3.5, 6, 14],
            [0, s.mouth_y - 5, 4, lip, 5],
            [0, s.mouth_y + 6, 5, lip * 0.85, 5],
            [0, s.mouth_y + 15, -5, lip * 0.9, 5],
            [0, s.chin_y - 14, 9, 16, 12],
            [s.half_width * 0.88, s.brow_y - 8, -6, 14, 24],
        ],
        np.float32,
    )


def _normals(shape: HeadShape, x: Image, y: Image) -> tuple[Image, Image]:
    a, b = shape.half_width * 1.04, shape.half_height * 1.12
    root = np.sqrt(np.maximum(1 - (x / a) ** 2 - (y / b) ** 2, 0.05)) * (1 / shape.depth)
    slope_x, slope_y = -x / (a * a) / root, -y / (b * b) / root
    mirrored, sign = np.abs(x), np.sign(x)
    hollow = np.zeros_like(x)
    for bump_x, bump_y, tall, wide_x, wide_y in _bumps(shape).tolist():
        # Beyond three widths a bump is nothing, so only its rows are touched.
        rows = _rows_within(y, bump_y - 3 * wide_y, bump_y + 3 * wide_y)
        dx, dy = (mirrored[rows] - bump_x) * (1 / wide_x), (y[rows] - bump_y) * (1 / wide_y)
        height = cv2.exp(-0.5 * (dx * dx + dy * dy)) * tall
        slope_x[rows] -= sign[rows] * height * dx * (1 / wide_x)
        slope_y[rows] -= height * dy * (1 / wide_y)
        if tall < 0:
            hollow[rows] += height
    length = 1 / cv2.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    normal = np.stack([-slope_x * length, -slope_y * length, length]).astype(np.float32)
    return normal, np.asarray(np.clip(1 + 0.028 * hollow, 0.5, 1), np.float32)


def _rows_within(y: Image, low: float, high: float) -> slice:
    """Rows in which ``y``, which grows downwards on the whole, may lie between ``low`` and ``high``."""
    left, right = y[:, 0], y[:, -1]
    start = int(np.searchsorted(np.maximum(left, right), low))
    stop = int(np.searchsorted(np.minimum(left, right), high, side="right"))
    return slice(max(start - 3, 0), max(stop + 3, start + 1))


def outline(shape: HeadShape, count: int = 48) -> Points:
    """The face's silhouette (count, 2) in flat head coordinates."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False, dtype=np.float32)
    cosine, sine = np.cos(angle), np.sin(angle)
    below = np.maximum(sine, 0)
    x = shape.half_width * np.sign(cosine) * np.abs(cosine) ** 0.86 * (1 - shape.jaw * below**2.2)
    return np.asarray(np.stack([x, shape.half_height * sine], 1), np.float32)


def landmarks(shape: HeadShape, view: View, mouth_lift: float) -> Points:
    """Eye, eye, nose tip, mouth corner, mouth corner (left in the image first), canvas pixels (5, 2)."""
    x = np.array([-shape.eye_x, shape.eye_x, 0, -shape.mouth_half, shape.mouth_half], np.float32)
    y = np.array([shape.eye_y] * 2 + [shape.nose_y] + [shape.mouth_y - mouth_lift] * 2, np.float32)
    z = shape.surface(x, y)
    z[2] += shape.nose_height
    return view.project(np.stack([x, y, z], 1))
