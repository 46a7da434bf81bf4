"""From radiance to a raw mosaic: lens, motion, photon and read noise, colour filter array."""

import functools

import cv2
import numpy as np

from blades_dist.simulate.camera import METER_CONSTANT, MID_GREY, Settings
from blades_dist.simulate.head import Points
from blades_dist.simulate.makers import Maker, Pattern
from blades_dist.simulate.scene import FIELD, Light, Scene
from blades_dist.simulate.textures import Image

SENSITIVITY = np.array([0.55, 1.0, 0.65], np.float32)  # of the colour filters to daylight, relative to green
MARGIN = 6  # sensor pixels around the image that are developed and cut off, so that borders look like the rest
SHAKE = 0.012  # radians per second, typical of hand-held cameras


def through_lens(scene: Scene, settings: Settings, rng: np.random.Generator) -> tuple[Image, Points]:
    """The optical image on the sensor, linear, (size + 12, size + 12, 3) with its margin, and the landmarks (5, 2) in
    pixels of the finished image.

    Defocus: a circle of diameter ``(f/N) * |d - s|/d`` millimetres at the face's distance s, for what is at d.
    Distortion: ``r' = r (1 + k r^2)``. Vignetting: ``1 / (1 + v r^2)^2``. Motion: a straight line of the length that
    shake and subject travel while the shutter is open.
    """
    plan = settings.plan
    per_image = scene.alpha.shape[0] / (FIELD * scene.size)
    per_mm = scene.pixels_per_mm * per_image
    pupil = plan.focal / settings.f_number
    behind = scene.distance + scene.background_distance
    far = 0.5 * pupil * (1 - scene.distance / behind) * per_mm
    # Autofocus finds the eyes, give or take a centimetre or two.
    miss = abs(float(rng.normal(0, 14))) * scene.distance / 1500
    near = 0.5 * pupil * miss / scene.distance * per_mm
    # Diffraction and the lens's own softness, which wide apertures and cheap lenses have more of.
    softness = per_image * (0.38 + 0.018 * settings.f_number / plan.body.crop**0.5 + (0.18 if plan.body.phone else 0.0))
    background = cv2.split(disc_blur(np.asarray(cv2.merge(list(scene.background))), far))
    front = cv2.merge([*(scene.foreground * scene.alpha), scene.alpha])
    *planes, cover = cv2.split(disc_blur(np.asarray(front), near))
    open_part = 1 - cover
    merged = cv2.merge([b * open_part + f for b, f in zip(background, planes, strict=True)])
    image = np.asarray(cv2.GaussianBlur(merged, (0, 0), softness))
    image = _motion(image, scene, settings, rng, per_mm)
    return _distort(image, scene, settings)


def disc_blur(image: Image, radius: float) -> Image:
    """Blur with a disc of ``radius`` pixels; large discs are applied to a smaller copy."""
    if radius < 0.35:
        return image
    shrink = max(1, int(radius / 3))
    side = image.shape[0]
    if shrink > 1:
        image = cv2.resize(image, (max(side // shrink, 8),) * 2, interpolation=cv2.INTER_AREA)
    image = cv2.filter2D(image, -1, _disc(round(min(radius / shrink, side) * 8)), borderType=cv2.BORDER_REFLECT_101)
    if shrink > 1:
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
        np.maximum(image, 0, out=image)
    return np.asarray(image)


@functools.lru_cache(256)
def _disc(eighths: int) -> Image:
    radius = eighths / 8
    reach = int(np.ceil(radius))
    line = np.arange(-reach, reach + 1, dtype=np.float32)
    kernel = np.clip(radius + 0.5 - np.hypot(line[None, :], line[:, None]), 0, 1)
    return np.asarray(kernel / kernel.sum(), np.float32)


def motion_length(scene: Scene, settings: Settings, shake: tuple[float, float]) -> tuple[float, float]:
    """Path (x, y) of the image during the exposure, pixels of the finished image."""
    millimetres = [
        settings.time * (angle * SHAKE * scene.distance + speed)
        for angle, speed in zip(shake, scene.subject_speed, strict=True)
    ]
    # A flash freezes most of the picture.
    frozen = 1 / (1 + settings.plan.flash)
    return millimetres[0] * scene.pixels_per_mm * frozen, millimetres[1] * scene.pixels_per_mm * frozen


def _motion(image: Image, scene: Scene, settings: Settings, rng: np.random.Generator, per_mm: float) -> Image:
    shake = (float(rng.normal()), float(rng.normal()))
    x, y = (value * per_mm / scene.pixels_per_mm for value in motion_length(scene, settings, shake))
    length = float(np.hypot(x, y))
    if length < 0.4:
        return image
    length = min(length, 25.0)
    angle = np.arctan2(y, x)
    reach = int(np.ceil(length / 2)) + 1
    line = np.arange(-reach, reach + 1, dtype=np.float32)
    along = line[None, :] * np.cos(angle) + line[:, None] * np.sin(angle)
    across = line[:, None] * np.cos(angle) - line[None, :] * np.sin(angle)
    kernel = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101))


def distortion(settings: Settings) -> float:
    """k of the lens: barrel (negative) for wide lenses, slight pincushion for long ones; zooms have more of it."""
    equivalent = settings.plan.focal * settings.plan.body.crop
    zoom = 1.0 if settings.plan.body.focal[0] != settings.plan.body.focal[1] else 0.6
    return float(zoom * (0.022 - 0.055 * np.clip(45 / equivalent - 0.3, 0, 1.6)))


def vignetting(settings: Settings) -> float:
    """v of the fall-off: strongest wide open and with wide lenses."""
    open_by = settings.plan.widest / settings.f_number
    equivalent = settings.plan.focal * settings.plan.body.crop
    return float(0.03 + 0.20 * open_by**1.5 * np.clip(50 / equivalent, 0.5, 1.6))


def _distort(image: Image, scene: Scene, settings: Settings) -> tuple[Image, Points]:
    size, side = scene.size, image.shape[0]
    k = distortion(settings)
    grid_x, grid_y, square = _grid(size)
    scale = side / (FIELD * size) * size / 2
    factor = scale * (1 + k * square)
    sampled = cv2.remap(
        image,
        grid_x * factor + (side / 2 - 0.5),
        grid_y * factor + (side / 2 - 0.5),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    falloff = 1 / (1 + vignetting(settings) * square) ** 2
    sampled = cv2.multiply(sampled, cv2.merge([falloff] * 3))
    # The map goes from image to scene; its inverse, for the landmarks, by fixed-point steps.
    target = (scene.landmarks - side / 2) / scale
    points = target
    for _ in range(4):
        points = target / (1 + k * (points**2).sum(1, keepdims=True))
    return np.asarray(sampled), np.asarray((points + 1) * (size / 2), np.float32)


@functools.cache
def _grid(size: int) -> tuple[Image, Image, Image]:
    """Coordinates of the sensor's pixels with their margin: -1 to 1 over the image; and their squared radius."""
    line = (np.arange(-MARGIN, size + MARGIN, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = (np.ascontiguousarray(part) for part in np.meshgrid(line, line))
    return x, y, x * x + y * y


def colour_filters(maker: Maker) -> Image:
    """Matrix (3, 3) from linear sRGB radiance to the camera's own channels; rows sum to one, so white stays white."""
    c = maker.crosstalk
    mix = np.array([[1 - c, 0.8 * c, 0.2 * c], [0.45 * c, 1 - c, 0.55 * c], [0.1 * c, 0.9 * c, 1 - c]])
    return mix.astype(np.float32)


def expose_raw(image: Image, settings: Settings, light: Light, rng: np.random.Generator) -> Image:
    """The raw mosaic (side, side), 0 black to 1 saturated, black level subtracted (so noise may be negative).

    Signal: ``0.127 * (lux * radiance / pi) * t * S / (K * N^2)`` of saturation. Noise: Poisson of the electrons
    (Gaussian of equal variance) plus read noise; the number of electrons at saturation falls as 1/ISO.
    """
    s, body = settings, settings.plan.body
    gain = MID_GREY * light.lux / np.pi * s.time * s.iso / (METER_CONSTANT * s.f_number**2)
    channels = cv2.transform(image, colour_filters(s.plan.maker) * (gain * SENSITIVITY[:, None] / SENSITIVITY.max()))
    mosaic = _mosaic(channels, s.plan.maker)
    electrons = body.full_well * body.base_iso / s.iso
    read = (body.read_noise * (body.base_iso / s.iso) ** 0.5 + 1.2) / electrons
    variance = np.maximum(mosaic, 0) * np.float32(1 / electrons) + np.float32(read**2 + (0.25 / 4096) ** 2)
    noisy = mosaic + np.sqrt(variance) * rng.standard_normal(mosaic.shape, dtype=np.float32)
    levels = 16383.0 if not body.phone else 4095.0
    black = 0.06  # the pedestal keeps noise below black before it is subtracted again
    counts = np.rint(np.clip(noisy + black, 0, 1 + black) * np.float32(levels))
    return np.asarray(np.minimum(counts * np.float32(1 / levels) - np.float32(black), 1), np.float32)


def _mosaic(channels: Image, maker: Maker) -> Image:
    if maker.demosaic == "xtrans":
        masks = xtrans_masks(channels.shape[0])
        return np.asarray((channels * masks).sum(2), np.float32)
    mosaic = np.ascontiguousarray(channels[..., 1])
    (red_y, red_x), (blue_y, blue_x) = bayer_sites(maker.pattern)
    mosaic[red_y::2, red_x::2] = channels[red_y::2, red_x::2, 0]
    mosaic[blue_y::2, blue_x::2] = channels[blue_y::2, blue_x::2, 2]
    return mosaic


def bayer_sites(pattern: Pattern) -> tuple[tuple[int, int], tuple[int, int]]:
    """(row, column) of the red and of the blue site in the 2x2 cell."""
    red, blue = pattern.index("R"), pattern.index("B")
    return (red // 2, red % 2), (blue // 2, blue % 2)


@functools.cache
def xtrans_masks(size: int) -> Image:
    """Indicator (size, size, 3) of a 6x6 array with 20 green, 8 red and 8 blue sites, as in X-Trans sensors."""
    rows = ("GBGGRG", "RGRBGB", "GBGGRG", "GRGGBG", "BGBRGR", "GRGGBG")
    cell = np.array([[[letter == c for c in "RGB"] for letter in row] for row in rows], np.float32)
    repeats = -(-size // 6)
    return np.ascontiguousarray(np.tile(cell, (repeats, repeats, 1))[:size, :size])
