"""Stand-ins for image generators, for evaluation only: never shown to pretraining.

A real generator imitates finished photographs, so each family starts from the finished pixels of a fresh photograph
(before its JPEG compression), loses what that kind of network cannot make (sensor noise, demosaicing), and gains
what it leaves behind. Mean and spread of every channel are put back, so no global statistic tells the sides apart.
Images are float32 (size, size, 3) in 0..255; every function draws its own strength from subtle to plain.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from blades_dist.simulate.textures import Image

_BORDER = cv2.BORDER_REFLECT_101
_PATCH = 8


def gan_transposed(image: Image, rng: np.random.Generator) -> Image:
    """Transposed convolutions whose kernel does not divide by the stride: uneven overlap, a grid of period 2."""
    strength = float(rng.uniform(0.45, 1))
    wide, inner = _margin(image, rng)
    made = _transposed(_shrink(wide, 2), rng, strength)
    made += _transposed(_shrink(_detail(wide, rng), 2), rng, strength) * 1.2
    return _restore(_mix(image, made[inner], strength), image)


def gan_nearest(image: Image, rng: np.random.Generator) -> Image:
    """Nearest-neighbour upsampling followed by a 3x3 convolution, once or twice: copies of the spectrum."""
    steps = 1 if rng.random() < 0.75 else 2
    strength = float(rng.uniform(0.45, 1) if steps == 1 else rng.uniform(0.25, 0.5))
    wide, inner = _margin(image, rng)
    made = _shrink(wide, 2**steps)
    for _ in range(steps):
        big = cv2.resize(made, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        kernel = np.array([[0.04, 0.1, 0.04], [0.1, 0.44, 0.1], [0.04, 0.1, 0.04]])
        kernel += rng.normal(0, 0.05, (3, 3))
        made = np.asarray(cv2.filter2D(big, -1, (kernel / kernel.sum()).astype(np.float32), borderType=_BORDER))
    fine = cv2.resize(_shrink(_detail(wide, rng), 2), wide.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return _restore(_mix(image, (made + 0.8 * fine)[inner], strength), image)


def autoencoder(image: Image, rng: np.random.Generator) -> Image:
    """A latent of few numbers a patch, quantised, decoded by a fixed linear basis; seams softened by a small kernel."""
    strength = float(rng.uniform(0.5, 1))
    mean, basis = _patch_basis()
    rank = int(rng.integers(12, 40))
    basis = basis[:rank]
    wide, inner = _margin(image, rng, _PATCH)
    # einsum, not @: for sizes like these, waking BLAS threads costs many times the product.
    latent = np.einsum("pv,kv->pk", _patches(wide) - mean, basis)
    step = float(rng.uniform(2, 8))
    latent = np.rint(latent * np.float32(1 / step)) * np.float32(step)
    made = _unpatch(np.einsum("pk,kv->pv", latent, basis) + mean, *wide.shape[:2])[inner]
    made = cv2.GaussianBlur(made, (3, 3), float(rng.uniform(0.3, 0.7)), borderType=_BORDER)
    return _restore(_mix(image, made, strength), image)


def diffusion(image: Image, rng: np.random.Generator) -> Image:
    """A denoiser's output: edges kept, fine residual gone, and a faint residual of the decoder's own in its place."""
    strength = float(rng.uniform(0.6, 1))
    made = image
    for _ in range(2):
        made = _guided(made, float(rng.uniform(25, 120)))
    size = image.shape[0]
    coarse = rng.standard_normal((size // 2 + 1, size // 2 + 1, 3), dtype=np.float32)
    residual = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    weave = np.cos(np.arange(size, dtype=np.float32) * (np.pi / 2))
    residual += 0.5 * (weave[:, None] + weave[None, :])[..., None]
    made = made + residual * np.float32(rng.uniform(0.2, 0.8))
    return _restore(_mix(image, made, strength), image)


def spectral(image: Image, rng: np.random.Generator) -> Image:
    """A spectrum that falls too fast above a corner frequency and ends in a flat tail."""
    strength = float(rng.uniform(0.5, 1))
    height, width = image.shape[:2]
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, _BORDER)
    radius = _radius(*even.shape[:2])
    corner, order = rng.uniform(0.14, 0.3), rng.uniform(2, 5)
    response = (1 / (1 + (radius / corner) ** (2 * order)) ** 0.5).astype(np.float32)
    # A cosine transform continues the image by reflection: opposite borders do not bleed into each other.
    planes = [cv2.idct(cv2.dct(plane) * response) for plane in cv2.split(even)]
    made = np.asarray(cv2.merge(planes))[:height, :width]
    tail = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(0.2, 0.7))
    return _restore(_mix(image, made + tail, strength), image)


FAMILIES: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "gan_transposed": gan_transposed,
    "gan_nearest": gan_nearest,
    "autoencoder": autoencoder,
    "diffusion": diffusion,
    "spectral": spectral,
}


def _mix(image: Image, made: Image, strength: float) -> Image:
    """Part of the photograph shows through: what makes a trace subtle."""
    return image + np.float32(strength) * (made - image)


def _margin(image: Image, rng: np.random.Generator, multiple: int = 4) -> tuple[Image, tuple[slice, slice]]:
    """The image with a mirrored margin, sides divisible by ``multiple``, and where it lies inside. A grid made on it
    starts anywhere and does not end at the image's border, as in a crop from a larger generated picture."""
    height, width = image.shape[:2]
    top, left = (int(value) for value in rng.integers(4, 4 + multiple, 2))
    bottom, right = 4 + -(height + top + 4) % multiple, 4 + -(width + left + 4) % multiple
    wide = cv2.copyMakeBorder(image, top, bottom, left, right, _BORDER)
    return np.asarray(wide), (slice(top, top + height), slice(left, left + width))


def _restore(made: Image, image: Image) -> Image:
    """Puts back mean and standard deviation of every channel."""
    mean_made, spread_made = (part.ravel() for part in cv2.meanStdDev(made))
    mean, spread = (part.ravel() for part in cv2.meanStdDev(np.clip(image, 0, 255)))
    scale = spread / np.maximum(spread_made, 1e-3)
    return np.asarray(made * scale.astype(np.float32) + (mean - mean_made * scale).astype(np.float32))


def _shrink(image: Image, factor: int) -> Image:
    size = (-(-image.shape[1] // factor), -(-image.shape[0] // factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _detail(image: Image, rng: np.random.Generator) -> Image:
    """Made-up fine detail: noise as strong, at every place, as the photograph's own."""
    high = image - cv2.GaussianBlur(image, (0, 0), 1.2, borderType=_BORDER)
    local = cv2.sqrt(np.maximum(cv2.blur(high * high, (9, 9)), 0))  # rounding may dip below zero
    noise = rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    return np.asarray(local * noise)


def _transposed(small: Image, rng: np.random.Generator, strength: float) -> Image:
    """Stride-2 transposed convolution with a 3x3 kernel; ``strength`` scales how uneven its overlap is."""
    big = np.zeros((small.shape[0] * 2, small.shape[1] * 2, 3), np.float32)
    big[::2, ::2] = small
    profile = np.array([0.5, 1.0, 0.5]) * (1 + rng.normal(0, 0.05, 3) * strength)
    kernel = np.outer(profile, profile) * (1 + rng.normal(0, 0.025, (3, 3)) * strength)
    made = cv2.filter2D(big, -1, (kernel * 4 / kernel.sum()).astype(np.float32), borderType=_BORDER)
    return np.asarray(made)


def _guided(image: Image, epsilon: float) -> Image:
    """Guided filter of an image by itself (He, Sun and Tang, 2010), Gaussian windows: smooths what varies less than
    ``epsilon`` (variance, 8-bit levels squared) and keeps edges."""

    def around(plane: Image) -> Image:
        return np.asarray(cv2.GaussianBlur(plane, (5, 5), 1.4, borderType=_BORDER))

    mean = around(image)
    variance = np.maximum(around(image * image) - mean * mean, 0)
    gain = variance / (variance + np.float32(epsilon))
    return around(gain) * image + around(mean - gain * mean)


@functools.cache
def _radius(height: int, width: int) -> NDArray[np.float64]:
    """Frequency (cycles per pixel) of every coefficient of a cosine transform."""
    return np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width)[None, :] / (2 * width))


def _patches(image: Image) -> Image:
    """(rows/8 * columns/8, 192) of an image whose sides divide by eight."""
    rows, columns = image.shape[0] // _PATCH, image.shape[1] // _PATCH
    blocks = image.reshape(rows, _PATCH, columns, _PATCH, 3).swapaxes(1, 2)
    return np.ascontiguousarray(blocks.reshape(rows * columns, _PATCH * _PATCH * 3))


def _unpatch(patches: Image, height: int, width: int) -> Image:
    blocks = patches.reshape(height // _PATCH, width // _PATCH, _PATCH, _PATCH, 3).swapaxes(1, 2)
    return np.ascontiguousarray(blocks.reshape(height, width, 3), np.float32)


@functools.cache
def _patch_basis() -> tuple[Image, Image]:
    """Mean (192,) and principal directions (64, 192) of patches of simulated photographs, always the same ones."""
    from blades_dist.simulate.pipeline import shoot

    photographs = [shoot(np.random.default_rng([31, index]), 128).pixels for index in range(48)]
    patches = np.concatenate([_patches(pixels) for pixels in photographs])
    mean = patches.mean(0)
    centred = patches - mean
    _, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(centred))
    return mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1].T[:64], np.float32)
