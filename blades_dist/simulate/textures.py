"""Noise textures that scenes cut random pieces from, and the colour of a black body.

Drawing fresh noise for every layer of every scene would cost more than the rest of the renderer, so a few square
tiles are made once a process from a fixed seed; a scene takes a piece at a random place, mirrored at random.
"""

import functools
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]
TextureName = Literal["white", "pores", "blotches", "clouds", "strands", "foliage", "weave"]

_SIDE = 512
_PAD = np.float32(256)


@functools.cache
def _tile(name: TextureName) -> Image:
    """One periodic tile (512, 512), zero mean, unit standard deviation."""
    seeds = {"white": 1, "pores": 2, "blotches": 3, "clouds": 4, "strands": 5, "foliage": 6, "weave": 7}
    tile: Image
    white: Image = np.random.default_rng([20250722, seeds[name]]).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    if name == "white":
        tile = white
    elif name == "pores":
        # Skin relief: cells about two pixels across, sharper on their dark side as real pores are.
        tile = _blur(white, 0.8) * 3 - _blur(white, 2.2) * 4
        tile = np.where(tile < 0, 1.5 * tile, 0.8 * tile) + 0.25 * white
    elif name == "blotches":
        tile = _blur(white, 4) * 8 + _blur(white[::-1], 9) * 18
    elif name == "clouds":
        tile = sum((_blur(np.roll(white, 37 * s, 0), s) * s * s for s in (3, 8, 20)), np.zeros_like(white))
    elif name == "strands":
        # Columns of correlated noise: hair runs along the second axis of the tile.
        tile = _blur(white, 9, 0.5) * 3 + _blur(white[::-1], 22, 0.9) * 4 + _blur(white, 30, 3.5) * 6
    elif name == "foliage":
        tile = np.abs(_blur(white, 2.5)) * 4 - np.abs(_blur(white[::-1], 6)) * 8 + 0.3 * _blur(white, 1) * 2
    else:
        phase = np.arange(_SIDE, dtype=np.float32) * (2 * np.pi / 4)
        tile = np.cos(phase)[:, None] * np.sin(phase / 2)[None, :] + 0.6 * _blur(white, 0.7)
    tile = tile.astype(np.float32)
    tile -= tile.mean()
    return tile / tile.std()


def _blur(image: Image, sigma_x: float, sigma_y: float | None = None) -> Image:
    """Gaussian blur with periodic borders."""
    pad = 96
    wide = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_WRAP)
    wide = cv2.GaussianBlur(wide, (0, 0), sigmaX=sigma_x, sigmaY=sigma_x if sigma_y is None else sigma_y)
    return wide[pad:-pad, pad:-pad].astype(np.float32)


def piece(name: TextureName, rng: np.random.Generator, height: int, width: int) -> Image:
    """A random piece (height, width) of a texture, about zero mean and unit deviation. A view: do not write to it."""
    tile = _tile(name)
    if height > _SIDE or width > _SIDE:
        tile = np.tile(tile, (-(-height // _SIDE), -(-width // _SIDE)))
    top = int(rng.integers(tile.shape[0] - height + 1))
    left = int(rng.integers(tile.shape[1] - width + 1))
    part = tile[top : top + height, left : left + width]
    return part[:, ::-1] if rng.random() < 0.5 else part


def along(name: TextureName, map_x: Image, map_y: Image) -> Image:
    """A texture read at given coordinates (pixels of the tile, periodic); used for hair that flows around a head."""
    return np.asarray(
        cv2.remap(_padded(name), map_x + _PAD, map_y + _PAD, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    )


@functools.cache
def _padded(name: TextureName) -> Image:
    """A tile with a periodic margin: reading inside an image is much faster than wrapping at its border."""
    pad = int(_PAD)
    return np.asarray(cv2.copyMakeBorder(_tile(name), pad, pad, pad, pad, cv2.BORDER_WRAP))


def noise_1d(rng: np.random.Generator, length: int, knots: int) -> Image:
    """A smooth random curve (length,), about unit deviation, from ``knots`` random values."""
    values = rng.standard_normal((1, knots), dtype=np.float32)
    return cv2.resize(values, (length, 1), interpolation=cv2.INTER_CUBIC)[0].astype(np.float32)


@functools.cache
def _black_body(kelvin: int) -> tuple[float, float, float]:
    t = float(kelvin)
    if t < 4000:
        x = -0.2661239e9 / t**3 - 0.2343589e6 / t**2 + 0.8776956e3 / t + 0.179910
    else:
        x = -3.0258469e9 / t**3 + 2.1070379e6 / t**2 + 0.2226347e3 / t + 0.240390
    if t < 2222:
        y = -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683
    elif t < 4000:
        y = -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867
    else:
        y = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
    big_x, big_z = x / y, (1 - x - y) / y
    red = 3.2406 * big_x - 1.5372 - 0.4986 * big_z
    green = -0.9689 * big_x + 1.8758 + 0.0415 * big_z
    blue = 0.0557 * big_x - 0.2040 + 1.0570 * big_z
    return red / green, 1.0, max(blue / green, 0.06)


def black_body(kelvin: float) -> Image:
    """Linear sRGB colour (3,) of a Planckian light, green = 1 (cubic fit of Kim et al., 2002; 1667 to 25000 K)."""
    return np.array(_black_body(10 * round(min(max(kelvin, 1700.0), 20000.0) / 10)), np.float32)
