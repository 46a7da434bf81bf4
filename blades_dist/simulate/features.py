"""Eyes, brows, nostrils, mouth, beard and glasses, painted into a head's albedo (reflectance, linear light).

Each feature works in a small window of the canvas with its own coordinates in millimetres, so that it foreshortens
with the head and costs little.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from blades_dist.simulate.head import HeadShape, Relief, View
from blades_dist.simulate.textures import Image, along, piece


@dataclass(frozen=True)
class Person:
    """What a face looks like, apart from its proportions and pose. Colours are linear RGB reflectances."""

    melanin: float  # 0.1 very light to 2.3 very dark
    blood: float  # 0.4 pale to 1.4 ruddy
    age: float  # 0 to 1: wrinkles, blotches, paler lips
    texture: float  # strength of the skin's relief
    freckles: float
    iris: NDArray[np.floating]
    hair: NDArray[np.floating]
    hair_style: str
    hair_volume: float  # millimetres above the skull
    parting: float
    brow_thickness: float
    brow_tilt: float
    beard: float
    lips: float  # fullness
    lipstick: float
    openness: float  # of the eyes, 0.4 to 1.2
    gaze: tuple[float, float]
    smile: float  # -0.3 to 1
    gape: float  # how far the mouth is open, millimetres
    glasses: str
    glasses_colour: NDArray[np.floating]


@dataclass(frozen=True)
class _Window:
    """A piece of the canvas with head-surface millimetres (u, v) about a feature's centre."""

    rows: slice
    columns: slice
    u: Image
    v: Image
    edge: float  # millimetres over which a border fades: one pixel


def _window(
    shape: HeadShape, view: View, side: int, x: float, y: float, half_u: float, half_v: float
) -> _Window | None:
    """The window of what lies within (half_u, half_v) of head point (x, y); None if that faces away or is outside."""
    offsets = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    flat = offsets + np.array([x, y], np.float32)
    points = view.project(np.column_stack([flat, shape.surface(flat[:, 0], flat[:, 1])]))
    basis = (points[1:] - points[0]).T
    determinant = float(basis[0, 0] * basis[1, 1] - basis[0, 1] * basis[1, 0])
    if determinant <= 0.02 * view.scale**2:
        return None  # turned away from the camera
    inverse = np.array([[basis[1, 1], -basis[0, 1]], [-basis[1, 0], basis[0, 0]]], np.float32) / determinant
    reach = np.abs(basis) @ np.array([half_u, half_v], np.float32)
    left, top = (max(int(c - r), 0) for c, r in zip(points[0], reach, strict=True))
    right, bottom = (min(int(c + r) + 2, side) for c, r in zip(points[0], reach, strict=True))
    if right <= left or bottom <= top:
        return None
    px = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - points[0, 0]
    py = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - points[0, 1]
    u = inverse[0, 0] * px + inverse[0, 1] * py
    v = inverse[1, 0] * px + inverse[1, 1] * py
    return _Window(slice(top, bottom), slice(left, right), u, v, 1.1 / view.scale)


def _mask(distance: Image, edge: float) -> Image:
    """1 where ``distance`` (millimetres, positive inside) is well positive, 0 outside, soft over ``edge``."""
    return np.clip(distance / edge + 0.5, 0, 1)


def _rgb(red: float, green: float, blue: float) -> NDArray[np.floating]:
    return np.array([red, green, blue], np.float32)[:, None, None]


def _lay(part: Image, mask: Image, colour: NDArray[np.floating] | np.float32) -> None:
    """Blends ``colour`` (3, 1, 1) or (3, h, w) or a number into planes ``part`` (3, h, w), in place."""
    part += mask * (colour - part)


def paint(
    albedo: Image, gloss: Image, person: Person, shape: HeadShape, view: View, maps: Relief, rng: np.random.Generator
) -> None:
    """Paints all features in place: ``albedo`` (3, side, side) and ``gloss`` (side, side), mirror-like reflection."""
    side = albedo.shape[1]

    def window(x: float, y: float, half_u: float, half_v: float) -> _Window | None:
        return _window(shape, view, side, x, y, half_u, half_v)

    _beard(albedo, person, shape, maps, rng)
    for sign in (-1.0, 1.0):
        if (w := window(sign * shape.eye_x, shape.eye_y, 21, 13)) is not None:
            _eye(albedo[:, w.rows, w.columns], gloss[w.rows, w.columns], w, person, sign, rng)
        if (w := window(sign * shape.eye_x, shape.brow_y, 23, 13)) is not None:
            _brow(albedo[:, w.rows, w.columns], w, person, sign, rng)
    if (w := window(0, shape.nose_y + 6, 24, 12)) is not None:
        _nostrils(albedo[:, w.rows, w.columns], w, shape)
    if (w := window(0, shape.mouth_y, shape.mouth_half + 10, 24 + person.gape)) is not None:
        _mouth(albedo[:, w.rows, w.columns], gloss[w.rows, w.columns], w, person, shape, rng)
    _folds(albedo, person, shape, maps)


def _eye(part: Image, gloss: Image, w: _Window, person: Person, sign: float, rng: np.random.Generator) -> None:
    half = 14.5
    u, v = w.u, w.v + 0.06 * sign * w.u  # outer corners sit a little higher
    arch = np.maximum(1 - (u / half) ** 2, 0)
    upper, lower = -7.2 * person.openness * arch**0.75, 4.2 * person.openness**0.5 * arch
    inside = np.minimum(v - upper, lower - v)
    opening = _mask(inside, w.edge) * _mask(half - np.abs(u), w.edge)
    socket = np.exp(-0.5 * ((u / 15) ** 2 + ((v + 6) / 6) ** 2)) * 0.22
    part *= 1 - socket
    shade = np.clip(0.62 + 0.05 * (v - upper), 0.5, 0.85)
    sclera = shade * _rgb(0.86, 0.78, 0.74)
    iu, iv = u - person.gaze[0], v + 0.6 - person.gaze[1]
    radius = np.sqrt(iu * iu + iv * iv)
    fibres = 1 + 0.3 * np.sin(np.arctan2(iv, iu) * 17 + 3 * float(rng.random()))
    iris = person.iris[:, None, None] * (fibres * np.clip(0.6 + radius / 9, 0, 1.3))
    _lay(sclera, _mask(6.1 - radius, w.edge), iris)
    _lay(sclera, _mask(1.0 - np.abs(radius - 5.9), w.edge) * 0.6, np.float32(0.02))
    _lay(sclera, _mask(2.3 - radius, w.edge), np.float32(0.01))
    _lay(part, opening, sclera)
    lash = person.hair[:, None, None] * 0.25 + 0.005
    near = half + 1.5 - np.abs(u)
    _lay(part, _mask(1.1 - np.abs(v - upper + 0.3), w.edge) * _mask(near, 2) * 0.9, lash)
    _lay(part, _mask(0.5 - np.abs(v - lower), w.edge) * _mask(near, 2) * 0.35, lash)
    crease = _mask(0.6 - np.abs(v - upper + 3.6), w.edge * 1.3) * _mask(near, 3)
    part *= 1 - 0.35 * crease
    bag = np.exp(-0.5 * ((u / 11) ** 2 + ((v - 9) / 1.6) ** 2)) * (0.08 + 0.2 * person.age)
    part *= 1 - bag
    glint = _mask(1.2 - np.hypot(u - person.gaze[0] - 1.8, v + 2.4), w.edge) * opening
    np.maximum(gloss, 0.9 * glint, out=gloss)


def _brow(part: Image, w: _Window, person: Person, sign: float, rng: np.random.Generator) -> None:
    u = w.u * sign  # from the nose outwards
    middle = -4.5 + 0.011 * (u - 4) ** 2 + person.brow_tilt * u * 0.1
    thickness = person.brow_thickness * np.clip(1.2 - (u + 18) / 40, 0.2, 1)
    body = _mask(thickness - np.abs(w.v - middle), 2.2) * _mask(19 - np.abs(u), 4)
    strands = piece("strands", rng, *part.shape[1:])
    density = np.clip(0.75 + 0.28 * strands, 0, 1) * body * (0.95 - 0.25 * person.age)
    _lay(part, density, person.hair[:, None, None] * 0.55)


def _nostrils(part: Image, w: _Window, shape: HeadShape) -> None:
    centre, wide = shape.nose_width * 0.45, shape.nose_width * 0.27
    u, v = np.abs(w.u), w.v
    slanted = v - 0.5 - 0.25 * (u - centre)
    hole = np.exp(-(((u - centre) / wide) ** 2) - (slanted / 1.9) ** 2)
    part *= 1 - 0.78 * hole
    wing = np.abs(np.hypot(u - shape.nose_width * 0.72, v + 3.5) - 5.2)
    part *= 1 - 0.3 * np.clip(1.1 - wing, 0, 1) * (u > shape.nose_width * 0.78)
    under = np.exp(-((w.u / (shape.nose_width * 0.8)) ** 2) - ((v - 3.6) / 2.6) ** 2)
    part *= 1 - 0.22 * under


def _mouth(part: Image, gloss: Image, w: _Window, person: Person, shape: HeadShape, rng: np.random.Generator) -> None:
    half = shape.mouth_half * (1 + 0.1 * person.smile)
    u = w.u
    v = w.v + 5.5 * person.smile * (u / half) ** 2 - 1.5 * person.smile
    arch = np.maximum(1 - (u / half) ** 2, 0)
    gape = person.gape * arch**0.8
    bow = 1 - 0.28 * np.exp(-0.5 * (u / 3.2) ** 2)
    upper = -6.0 * person.lips * arch**0.7 * bow - 0.35 * gape
    lower = 7.5 * person.lips * arch**0.75 + 0.65 * gape
    within = _mask(half - np.abs(u), w.edge)
    base = part.mean(axis=(1, 2), keepdims=True)
    colour = base * _rgb(0.92, 0.58, 0.6) * (1 - 0.12 * person.age)
    colour += person.lipstick * (_rgb(0.42, 0.05, 0.09) - colour)
    grooves = 1 + 0.09 * piece("strands", rng, *part.shape[1:])
    lips = colour * grooves
    _lay(part, _mask(np.minimum(v - upper, lower - v), w.edge * 1.6) * within * 0.85, lips)
    sheen = np.exp(-0.5 * ((u / (half * 0.4)) ** 2 + ((v - lower * 0.55) / 1.6) ** 2)) * 0.12
    np.maximum(gloss, sheen.astype(np.float32) * (0.5 + person.lipstick), out=gloss)
    top, bottom = -0.35 * gape, 0.65 * gape
    hole = _mask(np.minimum(v - top, bottom - v) + 0.6, w.edge) * within
    _lay(part, hole * (0.55 + 0.45 * min(person.gape / 3, 1)), _rgb(0.06, 0.012, 0.012))
    if person.gape > 2.5:
        teeth = _mask(np.minimum(v - top, top + 5.5 + 0.2 * person.gape - v), w.edge) * hole * (np.abs(u) < half * 0.82)
        gaps = 1 - 0.25 * np.clip(1.3 - np.abs((u / 5.6) % 1 - 0.5) * 10, 0, 1)
        tone = gaps * np.clip(1 - np.abs(u) / (half * 1.5), 0.3, 1)
        _lay(part, teeth, tone * _rgb(0.72, 0.68, 0.58))


def _folds(albedo: Image, person: Person, shape: HeadShape, maps: Relief) -> None:
    """Nasolabial folds and forehead lines: deeper with age and smile."""
    depth = 0.08 + 0.2 * person.age + 0.14 * max(person.smile, 0)
    top, bottom = int(albedo.shape[1] * 0.12), int(albedo.shape[1] * 0.88)
    x, y = np.abs(maps.x[top:bottom]), maps.y[top:bottom]
    path = shape.nose_width * 1.05 + 0.32 * (y - shape.nose_y)
    span = _ramp(y, shape.nose_y - 4, shape.nose_y + 4) - _ramp(y, shape.mouth_y - 2, shape.mouth_y + 8)
    fold = np.clip(1 - np.abs(x - path) * 0.45, 0, 1) * span * depth
    if person.age > 0.45:
        wave = np.cos((y + 0.02 * x * x * 0.1) * 0.62) - 0.75
        fold += (
            np.clip(wave * 4, 0, 1)
            * (person.age - 0.4)
            * 0.5
            * (_ramp(y, shape.hairline + 8, shape.hairline + 14) - _ramp(y, shape.brow_y - 14, shape.brow_y - 8))
            * (1 - _ramp(x, 30, 48))
        )
    albedo[:, top:bottom] *= 1 - fold


def _ramp(value: Image, start: float, stop: float) -> Image:
    return np.clip((value - start) * (1 / (stop - start)), 0, 1)


def _beard(albedo: Image, person: Person, shape: HeadShape, maps: Relief, rng: np.random.Generator) -> None:
    if person.beard <= 0:
        return
    top = albedo.shape[1] * 2 // 5
    x, y = np.abs(maps.x[top:]), maps.y[top:]
    cheek = shape.nose_y + 34 - 0.55 * np.maximum(x - 12, 0)
    chin = _ramp(y - cheek, -4, 8)
    lip = np.clip((5.5 - np.abs(y - (shape.mouth_y - 13))) * 0.25, 0, 1) * _ramp(shape.mouth_half + 6 - x, 0, 4)
    mouth = 1 - ((maps.x[top:] / (shape.mouth_half + 3)) ** 2 + ((y - shape.mouth_y) / 9) ** 2)
    region = np.maximum(chin, lip) * (1 - np.clip(mouth * 4, 0, 1))
    stubble = np.clip(0.55 + 0.35 * piece("white", rng, *region.shape), 0, 1)
    if person.beard > 0.5:
        stubble = np.clip(0.8 + 0.2 * along("strands", y * 1.5, x * 2.2), 0, 1)
    _lay(albedo[:, top:], region * stubble * person.beard, person.hair[:, None, None] * 0.8)


def paint_glasses(
    radiance: Image, person: Person, shape: HeadShape, view: View, key: NDArray[np.floating], rng: np.random.Generator
) -> None:
    """Spectacles over the lit face, in place: frames that reflect, lenses that tint and mirror a little."""
    if person.glasses == "none":
        return
    side = radiance.shape[1]
    frame, light = person.glasses_colour[:, None, None], key[:, None, None]
    thick = float(rng.uniform(0.9, 2.6))
    half_u, half_v = float(rng.uniform(20, 25)), float(rng.uniform(14, 21))
    power = 2.0 if person.glasses == "round" else 4.0
    mirror = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.05, 0.3))
    # Frames stand in front of the eyes, so they shift against them as the head turns.
    forward = HeadShape(**{**vars(shape), "depth": shape.depth + 12})
    for sign in (-1.0, 1.0):
        window = _window(forward, view, side, sign * (shape.eye_x + 1), shape.eye_y + 2, half_u + 6, half_v + 6)
        if window is None:
            continue
        part = radiance[:, window.rows, window.columns]
        level = (np.abs(window.u / half_u) ** power + np.abs(window.v / half_v) ** power) ** (1 / power)
        distance = (1 - level) * half_v
        lens = _mask(distance, window.edge)
        if person.glasses == "sun":
            _lay(part, lens * 0.88, frame * 0.1 + 0.01)
        elif mirror:
            streak = np.clip(1 - np.abs(window.u * 0.7 + window.v + 4) / 5, 0, 1)
            _lay(part, lens * streak * mirror, light)
        _lay(part, _mask(thick - np.abs(distance), window.edge), frame * light)
    window = _window(forward, view, side, 0, shape.eye_y - 2, 14, 6)
    if window is not None:
        gap = shape.eye_x + 1 - half_u
        bridge = np.minimum(thick - np.abs(window.v - 0.02 * window.u**2), gap + 1 - np.abs(window.u))
        _lay(radiance[:, window.rows, window.columns], _mask(bridge, window.edge), frame * light)


def shadow_of_head(side: int, view: View, light_x: float) -> Image:
    """A soft shadow (side, side) in 0..1 that the head casts on the wall behind it."""
    mask = np.zeros((side, side), np.uint8)
    centre = (int(view.centre[0] - light_x * 35 * view.scale), int(view.centre[1] + 8 * view.scale))
    cv2.ellipse(mask, centre, (int(80 * view.scale), int(112 * view.scale)), 0, 0, 360, 255, -1, cv2.LINE_AA)
    return cv2.blur(mask, (21, 21)).astype(np.float32) * np.float32(1 / 255)
