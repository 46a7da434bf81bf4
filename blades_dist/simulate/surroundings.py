"""What is around a face: backgrounds at many distances, neck and clothes, ears, and hair."""

import cv2
import numpy as np
from numpy.typing import NDArray

from blades_dist.simulate.features import Person
from blades_dist.simulate.head import HeadShape, Points, Relief, View, outline
from blades_dist.simulate.textures import Image, along, noise_1d, piece

_SHIFT = 4  # fractional bits of OpenCV's polygon coordinates


def polygon_mask(side: int, points: Points) -> Image:
    """Anti-aliased mask (side, side) in 0..1 of a polygon (n, 2) in pixels."""
    mask = np.zeros((side, side), np.uint8)
    fixed = np.round(points * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, _SHIFT)
    return np.multiply(mask, np.float32(1 / 255), dtype=np.float32)


def lay(image: Image, mask: Image, colour: NDArray[np.floating] | Image) -> None:
    """Blends ``colour`` (3,) or (3, h, w) into ``image`` (3, h, w) in place with weights ``mask`` (h, w)."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size:
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        colour = colour[:, None, None] if colour.ndim == 1 else colour[:, span]
        part = image[:, span]
        part += mask[span] * (colour - part)


def sample_background(rng: np.random.Generator, kind_of_light: str) -> tuple[str, float]:
    """A kind of background and its distance behind the face in millimetres, as they go with a light."""
    if kind_of_light in ("sun", "shade"):
        kind = str(rng.choice(["foliage", "street", "gradient", "wall"], p=[0.4, 0.3, 0.2, 0.1]))
    elif kind_of_light == "night":
        kind = str(rng.choice(["lights", "room", "wall"], p=[0.55, 0.3, 0.15]))
    else:
        kind = str(rng.choice(["wall", "gradient", "room", "lights"], p=[0.35, 0.2, 0.4, 0.05]))
    low, high = {"wall": (200, 2000), "gradient": (500, 4000), "room": (800, 4000)}.get(kind, (2000, 15000))
    return kind, float(np.exp(rng.uniform(np.log(low), np.log(high))))


def background(kind: str, side: int, rng: np.random.Generator) -> Image:
    """A background's radiance (3, side, side), relative to a white surface in the key light."""
    colour = _muted(rng)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    tilt = rng.uniform(-0.45, 0.45, 2).astype(np.float32)
    field = 1 + tilt[0] * ramp[None, :] + tilt[1] * ramp[:, None]
    if kind == "wall":
        texture = str(rng.choice(["white", "clouds", "weave", "pores"]))
        field = field * (1 + rng.uniform(0.02, 0.12) * piece(texture, rng, side, side))  # type: ignore[arg-type]
        image = _coloured(field, colour)
        if rng.random() < 0.35:
            step = rng.uniform(0.04, 0.2) * side
            lines = (np.arange(side, dtype=np.float32) % step) < max(1.5, 0.01 * side)
            image[:, lines] *= rng.uniform(0.4, 0.8)
    elif kind == "gradient":
        other = _muted(rng)
        weight = np.clip(0.5 + 0.5 * field - 0.5, 0, 1)
        image = _coloured(weight, colour) + _coloured(1 - weight, other)
    elif kind == "foliage":
        leaves = piece("foliage", rng, side, side)
        green = np.array([0.16, 0.26, 0.07], np.float32) * rng.uniform(0.6, 1.5, 3).astype(np.float32)
        image = _coloured(np.clip(0.55 + 0.4 * leaves, 0.03, 3) * field, green)
        sky = np.clip(piece("clouds", rng, side, side) - rng.uniform(0.3, 2.0) - ramp[:, None], 0, 1)
        lay(image, sky, np.array([0.75, 0.9, 1.15], np.float32))
    else:
        image = _coloured(field * (1 + 0.05 * piece("clouds", rng, side, side)), colour)
        dim = 0.25 if kind == "lights" else 1.0
        image *= dim
        _clutter(image, rng, dim)
        if kind == "lights":
            _lamps(image, rng)
    return np.maximum(image, 0.002)


def _muted(rng: np.random.Generator) -> NDArray[np.floating]:
    """A reflectance of a painted or printed surface: any lightness, mostly low saturation."""
    grey = np.exp(rng.uniform(np.log(0.05), np.log(0.8)))
    return np.clip(grey * np.exp(rng.normal(0, 0.25, 3)), 0.02, 0.9).astype(np.float32)


def _coloured(field: Image, colour: NDArray[np.floating]) -> Image:
    return np.asarray(field.astype(np.float32, copy=False) * colour[:, None, None], np.float32)


def _clutter(image: Image, rng: np.random.Generator, dim: float) -> None:
    """Furniture, windows, people far away: boxes and blobs, some with texture."""
    side = image.shape[1]
    for _ in range(int(rng.integers(5, 14))):
        x, y = rng.uniform(-0.1, 1, 2) * side
        w, h = rng.uniform(0.06, 0.45, 2) * side
        left, top, right, bottom = max(int(x), 0), max(int(y), 0), min(int(x + w), side), min(int(y + h), side)
        if right <= left or bottom <= top:
            continue
        colour = _muted(rng) * dim
        if rng.random() < 0.3:
            angle = rng.uniform(0, 180)
            for plane, value in zip(image, colour.tolist(), strict=True):
                cv2.ellipse(plane, (int(x), int(y)), (int(w / 2), int(h / 2)), angle, 0, 360, value, -1)
        else:
            texture = 1 + 0.12 * piece("clouds", rng, bottom - top, right - left)
            image[:, top:bottom, left:right] = _coloured(texture, colour)


def _lamps(image: Image, rng: np.random.Generator) -> None:
    side = image.shape[1]
    for _ in range(int(rng.integers(6, 28))):
        warm = np.array([1.0, rng.uniform(0.45, 0.95), rng.uniform(0.1, 0.8)], np.float32)
        colour = warm * np.exp(rng.uniform(0.5, 3.2))
        centre = rng.integers(0, side, 2)
        radius = max(1, int(side * rng.uniform(0.004, 0.012)))
        for plane, value in zip(image, colour.tolist(), strict=True):
            cv2.circle(plane, (int(centre[0]), int(centre[1])), radius, value, -1)


def neck_and_clothes(
    albedo: Image,
    alpha: Image,
    person: Person,
    skin: NDArray[np.floating],
    shape: HeadShape,
    view: View,
    rng: np.random.Generator,
) -> None:
    """Paints neck, shoulders and ears under the face, in place, and adds them to ``alpha``."""
    side = albedo.shape[1]
    slope = float(rng.uniform(0.1, 0.3))
    neck = shape.half_width * float(rng.uniform(0.6, 0.78))
    collar = shape.chin_y + float(rng.uniform(18, 42))
    half = np.array([[-neck, 40], [neck, 40], [neck * 1.05, 190], [-neck * 1.05, 190]], np.float32)
    mask = polygon_mask(side, _flat_to_canvas(view, half))
    lay(albedo, mask, skin * 0.55)
    np.maximum(alpha, mask, out=alpha)
    width = float(rng.uniform(150, 210))
    top = collar + rng.uniform(-4, 10)
    shoulders = np.array(
        [[-width, top + slope * 200], [-neck, top - 12], [-neck * 0.5, collar + 16], [0, collar + rng.uniform(15, 40)],
         [neck * 0.5, collar + 16], [neck, top - 12], [width, top + slope * 200], [width, 300], [-width, 300]],
        np.float32,
    )  # fmt: skip
    mask = polygon_mask(side, _flat_to_canvas(view, shoulders))
    first = int(np.argmax(mask.any(axis=1)))
    fabric = 1 + rng.uniform(0.04, 0.2) * piece("weave", rng, side - first, side)
    fabric = fabric + rng.uniform(0, 0.25) * piece("clouds", rng, side - first, side)
    lay(albedo[:, first:], mask[first:], _coloured(np.maximum(fabric, 0.2), _muted(rng)))
    np.maximum(alpha, mask, out=alpha)
    for sign in (-1.0, 1.0):
        angle = np.linspace(0, 2 * np.pi, 20, dtype=np.float32)
        ear = np.stack(
            [sign * (shape.half_width + 3) + 9 * np.cos(angle), 8 + 27 * np.sin(angle), np.full(20, -8, np.float32)], 1
        )
        mask = polygon_mask(side, view.project(ear.astype(np.float32)))
        lay(albedo, mask, skin * np.array([0.85, 0.72, 0.7], np.float32))
        np.maximum(alpha, mask, out=alpha)


def _flat_to_canvas(view: View, points: Points) -> Points:
    c, s = np.cos(view.roll), np.sin(view.roll)
    turn = np.array([[c, s], [-s, c]], np.float32)
    return np.asarray(points @ turn * view.scale + np.array(view.centre, np.float32), np.float32)


def face_mask(shape: HeadShape, view: View, side: int, yaw: float) -> Image:
    """The face's silhouette (side, side) in 0..1. Turning moves the jaw with the chin, which lies in front."""
    points = outline(shape)
    points[:, 0] += 20 * np.sin(yaw) * np.clip(points[:, 1] / shape.half_height, 0, 1) ** 1.5
    return polygon_mask(side, _flat_to_canvas(view, points))


def hair_back(albedo: Image, alpha: Image, person: Person, shape: HeadShape, maps: Relief) -> None:
    """Long hair that falls behind face and neck, in place."""
    if person.hair_style not in ("long", "fringe", "wavy"):
        return
    x, y = maps.flat_x, maps.flat_y
    wave = 4 * np.sin(y * 0.09) if person.hair_style == "wavy" else 0.0
    width = shape.half_width + person.hair_volume * (0.75 + 0.004 * y) + wave
    length = 60 + 5 * person.hair_volume
    inside = np.minimum(np.minimum(width - np.abs(x), length - y + 0.3 * np.abs(x)), y + 40)
    mask = np.clip(inside * 0.5, 0, 1)
    strands = along("strands", y * np.float32(0.9), x * np.float32(1.9) + np.float32(2) * wave)
    lay(albedo, mask, _coloured(np.clip(0.62 + 0.34 * strands, 0.06, 2), person.hair))
    np.maximum(alpha, mask, out=alpha)


def hair_front(
    albedo: Image, alpha: Image, gloss: Image, person: Person, shape: HeadShape, maps: Relief, rng: np.random.Generator
) -> None:
    """Hair over the skull, in place: everything above a hairline, out to the hair's volume, strands from the crown."""
    style = person.hair_style
    if style == "bald":
        return
    side = albedo.shape[1]
    # Rows below the jaw hold no hair of this layer, whatever the style.
    low = int(np.searchsorted(maps.flat_y[:, side // 2], 75)) if style in ("long", "wavy", "fringe") else int(
        np.searchsorted(np.minimum(maps.flat_y[:, 0], maps.flat_y[:, -1]), 32)
    )  # fmt: skip
    rows = slice(0, low)
    x, y, head_y = maps.flat_x[rows], maps.flat_y[rows], maps.y[rows]
    volume = person.hair_volume
    across, up = (shape.half_width + 0.55 * volume), (shape.half_height + volume)
    above = np.minimum(y, 0) * (1 / up)
    rim = 1 - np.sqrt((x * (1 / across)) ** 2 + above * above)
    angle = cv2.phase(x, y + np.float32(1e-3))
    ragged = noise_1d(rng, 360, 60)
    curl = 7.0 if style == "curly" else 2.0
    outer = rim * across + curl * ragged[(angle * (359 / (2 * np.pi))).astype(np.int16)]
    side_x = np.abs(x - person.parting) * (1 / shape.half_width)
    line = _hairline(style, shape, side_x)
    radius = np.float32(0.7) * np.sqrt(x * x + y * y)
    flow = along("strands", angle * np.float32(95) + x * np.float32(0.35), radius)
    if style == "curly":
        flow = 0.4 * flow + 0.9 * along("foliage", x * np.float32(1.3) + 60, y * np.float32(1.3))
    jag = 5.0 if style == "fringe" else 2.5
    inside = np.minimum(outer, line - head_y + jag * flow)
    if style in ("short", "buzz", "parted", "curly"):
        inside = np.minimum(inside, 28 - y)  # sideburns end at the ears
    mask = np.clip(inside * (0.35 if style != "buzz" else 0.12) + 0.5, 0, 1)
    if style == "buzz":
        mask = mask * np.clip(0.68 + 0.2 * piece("white", rng, *mask.shape), 0, 1)
    shine = cv2.exp(-0.5 * ((y + 0.72 * shape.half_height) * (1 / 16)) ** 2)
    lay(albedo[:, rows], mask, _coloured(np.clip(0.66 + 0.33 * flow, 0.06, 2.2), person.hair))
    glossy = gloss[rows]
    glossy *= 1 - mask
    glossy += np.maximum(mask * shine * (0.05 + 0.05 * flow), 0)
    np.maximum(alpha[rows], mask, out=alpha[rows])


def _hairline(style: str, shape: HeadShape, across: Image) -> Image:
    """y (millimetres) below which a style leaves the face free, over the distance from the parting."""
    square, top = across * across, shape.hairline
    if style == "buzz":
        return top + 2 + 36 * square * square
    if style == "short":
        return top - 2 + 40 * square * across
    if style == "curly":
        return top + 38 * square * across
    if style == "parted":
        return top - 6 + 48 * across * np.sqrt(across)
    if style == "fringe":
        return shape.brow_y - 14 + 6 * across + 95 * np.sqrt(np.maximum(across - 0.75, 0))
    if style == "long":
        return top - 8 + 58 * square
    return top - 4 + 62 * square


def stray_hairs(radiance: Image, alpha: Image, person: Person, view: View, rng: np.random.Generator) -> None:
    """Single hairs that leave the outline, in place: thin enough that only a sharp photograph keeps them."""
    if person.hair_style in ("bald", "buzz"):
        return
    side = radiance.shape[1]
    mask = np.zeros((side, side), np.uint8)
    count = int(rng.integers(8, 36))
    start = rng.uniform(-np.pi, 0, count)
    reach = rng.uniform(0.85, 1.2, (count, 1)) + np.linspace(0, 1, 4) * rng.uniform(-0.1, 0.22, (count, 1))
    bend = start[:, None] + np.linspace(0, 1, 4) * rng.normal(0, 0.3, (count, 1))
    radius = (88 + 0.8 * person.hair_volume) * view.scale
    xs = view.centre[0] + radius * reach * np.cos(bend)
    ys = view.centre[1] + 1.18 * radius * reach * np.sin(bend)
    lines = np.round(np.stack([xs, ys], -1) * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(mask, list(lines), False, 150, 1, cv2.LINE_AA, _SHIFT)
    weight = mask.astype(np.float32) * np.float32(1 / 255)
    lay(radiance, weight, person.hair * 0.7)
    np.maximum(alpha, weight, out=alpha)
