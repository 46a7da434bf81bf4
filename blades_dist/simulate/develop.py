"""From raw mosaic to finished 8-bit pixels: white balance, demosaicing, colour, tone, denoising, sharpening."""

import functools

import cv2
import numpy as np

from blades_dist.simulate.camera import Settings
from blades_dist.simulate.makers import Maker
from blades_dist.simulate.sensor import SENSITIVITY, bayer_sites, colour_filters, xtrans_masks
from blades_dist.simulate.textures import Image

_TO_YCC = np.array([[0.299, 0.587, 0.114], [0.5, -0.418688, -0.081312], [-0.168736, -0.331264, 0.5]], np.float32)
_LEVELS = 4096


def develop(raw: Image, settings: Settings) -> Image:
    """Finished pixels (size, size, 3), float32 in 0..255 before rounding, of a raw mosaic (size, size)."""
    maker = settings.plan.maker
    # A believed light, seen through the maker's filters, becomes white.
    white = colour_filters(maker) @ settings.white_gains * SENSITIVITY
    gains = white.max() / white
    gains *= 1 / gains.min()
    rgb = demosaic(raw, maker, gains)
    np.clip(rgb, 0, 1, out=rgb)
    rgb = cv2.transform(rgb, _colour_matrix(maker, tuple(np.round(settings.white_gains, 3).tolist())))
    table = _tone_table(maker, settings.plan.program)
    # A table look-up on a square-root axis, so that shadows are not posterised.
    position = cv2.sqrt(np.clip(rgb, 0, 1)) * np.float32(_LEVELS - 1) + np.float32(0.5)
    return _finish(table[position.astype(np.int16)], settings)


def demosaic(raw: Image, maker: Maker, gains: Image) -> Image:
    """Full colour (size, size, 3) from a mosaic, white-balanced by ``gains`` (3,) on the way."""
    if maker.demosaic == "xtrans":
        masks = xtrans_masks(raw.shape[0])
        spread = cv2.GaussianBlur(raw[..., None] * masks, (5, 5), 1.1, borderType=cv2.BORDER_REFLECT_101)
        rgb = spread / _xtrans_weights(raw.shape[0])
        rgb += masks * (raw[..., None] - rgb)
        return np.asarray(rgb * gains, np.float32)
    (red_y, red_x), (blue_y, blue_x) = bayer_sites(maker.pattern)
    balanced = raw * np.float32(gains[1])
    balanced[red_y::2, red_x::2] = raw[red_y::2, red_x::2] * gains[0]
    balanced[blue_y::2, blue_x::2] = raw[blue_y::2, blue_x::2] * gains[2]
    if maker.demosaic == "gradient":
        return _gradient_corrected(balanced, maker)
    counts = np.clip(balanced * 32768 + 4096, 0, 65535).astype(np.uint16)
    method = "_EA" if maker.demosaic == "edge_aware" else ""
    code: int = getattr(cv2, f"COLOR_Bayer{maker.pattern}2RGB{method}")
    rgb = (cv2.demosaicing(counts, code).astype(np.float32) - 4096) * np.float32(1 / 32768)
    if maker.demosaic == "colour_difference":
        green = rgb[..., 1]
        red = cv2.medianBlur(np.ascontiguousarray(rgb[..., 0] - green), 3) + green
        blue = cv2.medianBlur(np.ascontiguousarray(rgb[..., 2] - green), 3) + green
        rgb = cv2.merge([red, np.ascontiguousarray(green), blue])
    return np.asarray(rgb)


@functools.cache
def _xtrans_weights(size: int) -> Image:
    return np.asarray(cv2.GaussianBlur(xtrans_masks(size), (5, 5), 1.1, borderType=cv2.BORDER_REFLECT_101))


_CROSS = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8
_ROW = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]) / 8
_DIAGONAL = np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0],
                      [0, 0, -1.5, 0, 0]]) / 8  # fmt: skip


def _gradient_corrected(mosaic: Image, maker: Maker) -> Image:
    """Linear interpolation with a Laplacian correction (Malvar, He and Cutler, 2004)."""
    cross, row, column, diagonal = (
        cv2.filter2D(mosaic, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        for kernel in (_CROSS, _ROW, _ROW.T, _DIAGONAL)
    )
    (ry, rx), (by, bx) = bayer_sites(maker.pattern)
    rgb = np.empty((*mosaic.shape, 3), np.float32)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    green[...] = mosaic
    for y, x in ((ry, rx), (by, bx)):
        green[y::2, x::2] = cross[y::2, x::2]
    for plane, (y, x), (oy, ox) in ((red, (ry, rx), (by, bx)), (blue, (by, bx), (ry, rx))):
        plane[y::2, x::2] = mosaic[y::2, x::2]
        plane[y::2, ox::2] = row[y::2, ox::2]
        plane[oy::2, x::2] = column[oy::2, x::2]
        plane[oy::2, ox::2] = diagonal[oy::2, ox::2]
    return rgb


@functools.lru_cache(512)
def _colour_matrix(maker: Maker, light: tuple[float, ...]) -> Image:
    """Camera channels after white balance to linear sRGB, with the maker's hue."""
    white = np.array(light, np.float32)
    filters = colour_filters(maker)
    # Balance divides by what the filters see of the light, so the inverse has to know the light as well.
    back = np.linalg.inv(filters * white[None, :] / (filters @ white)[:, None])
    grey = np.array([0.2126, 0.7152, 0.0722])
    c, s = np.cos(maker.hue), np.sin(maker.hue)
    # Rotation about the grey axis.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    twist = c * np.eye(3) + s * cross + (1 - c) / 3
    vivid = maker.saturation * np.eye(3) + (1 - maker.saturation) * np.tile(grey, (3, 1))
    return np.asarray(vivid @ twist @ back, np.float32)


@functools.lru_cache(64)
def _tone_table(maker: Maker, program: int) -> Image:
    """sRGB curve with the maker's contrast and black point over a square-root axis (4096,), values 0..255."""
    linear = np.linspace(0, 1, _LEVELS) ** 2
    lifted = np.maximum(linear * 2.1 - maker.toe * 0.5, 0)
    rolled = lifted * (1 + lifted / 2.1**2) / (1 + lifted)  # shoulder that reaches one at saturation
    encoded = np.where(rolled < 0.0031308, 12.92 * rolled, 1.055 * np.maximum(rolled, 1e-9) ** (1 / 2.4) - 0.055)
    contrast = maker.contrast * {7: 0.94, 8: 1.06}.get(program, 1.0)
    bent = encoded + (contrast - 0.82) * 1.7 * encoded * (1 - encoded) * (encoded - 0.42) * 2
    return np.asarray(255 * np.clip(bent, 0, 1), np.float32)


def _finish(rgb: Image, settings: Settings) -> Image:
    """Denoising and sharpening on luminance and colour difference."""
    maker, program = settings.plan.maker, settings.plan.program
    # Cameras know their noise: the more of it, the more they smooth.
    noise = float(np.sqrt(settings.iso / settings.plan.body.base_iso / settings.plan.body.full_well) * 60)
    y, cr, cb = cv2.split(cv2.transform(rgb, _TO_YCC))
    chroma_sigma = 0.25 + 0.75 * maker.chroma_denoise * min(noise, 4) ** 0.5
    saturation = {7: 0.97, 8: 1.08}.get(program, 1.0)
    cr, cb = (cv2.GaussianBlur(plane, (0, 0), chroma_sigma) * np.float32(saturation) for plane in (cr, cb))
    # Coring: small differences from a local mean are taken for noise, large ones for edges.
    smooth = cv2.GaussianBlur(y, (0, 0), 1.0)
    detail = y - smooth
    threshold = np.float32((0.9 * maker.luma_denoise * noise * {7: 1.3, 8: 0.8}.get(program, 1.0)) ** 2)
    energy = detail * detail
    y = smooth + detail * ((energy + 0.25 * threshold) / (energy + threshold + np.float32(1e-6)))
    amount = maker.sharpen_amount * {7: 0.7, 8: 1.25}.get(program, 1.0)
    halo = y - cv2.GaussianBlur(y, (0, 0), maker.sharpen_radius)
    y += np.clip(amount * halo, -maker.halo, maker.halo)
    red = y + np.float32(1.402) * cr
    green = y - np.float32(0.714136) * cr - np.float32(0.344136) * cb
    blue = y + np.float32(1.772) * cb
    return np.asarray(cv2.merge([red, green, blue]))
