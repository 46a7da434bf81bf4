"""Perturbations: what they do to a picture, that they repeat, and what they refuse."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from blades_dist import perturb
from blades_dist.perturb import GRID, PLATFORMS, apply, check_spec

SPECS = [spec for row in GRID.values() for spec in row]


def face(height: int = 150, width: int = 120, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return apply("noise3", smooth, seed)


@pytest.mark.parametrize("spec", SPECS)
def test_every_cell_of_the_grid_repeats_and_changes_something(spec: str) -> None:
    check_spec(spec)
    pixels = face()
    before = pixels.copy()
    first, second = apply(spec, pixels, 7), apply(spec, pixels, 7)
    assert (first == second).all() and (pixels == before).all()
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert first.shape != pixels.shape or (first != pixels).any()
    resizing = any(word in spec for word in ("crop", "avatar"))
    assert resizing or first.shape == pixels.shape


def test_nothing_to_do_gives_an_equal_copy() -> None:
    pixels = face()
    for spec in ("", "resize1", "crop1", "gamma1"):
        same = apply(spec, pixels)
        assert (same == pixels).all() and not np.shares_memory(same, pixels)


def test_steps_are_done_from_left_to_right() -> None:
    pixels = face()
    assert (apply("resize0.5+jpeg75", pixels) == apply("jpeg75", apply("resize0.5", pixels))).all()
    assert (apply("resize0.5+jpeg75", pixels) != apply("jpeg75+resize0.5", pixels)).any()


def test_jpeg_is_what_its_number_says() -> None:
    pixels = face()
    for quality, sampling in ((30, 2), (89, 2), (90, 0), (100, 0)):
        image = Image.open(io.BytesIO(perturb.jpeg_bytes(pixels, quality)))
        reference = io.BytesIO()
        Image.fromarray(pixels).save(reference, "JPEG", quality=quality)
        assert image.quantization == Image.open(reference).quantization  # type: ignore[attr-defined]
        assert image.layer[0][1:3] == ((2, 2) if sampling else (1, 1))  # type: ignore[attr-defined]
    errors = [np.abs(apply(f"jpeg{q}", pixels).astype(int) - pixels).mean() for q in (95, 75, 50, 30)]
    assert errors == sorted(errors) and errors[0] < errors[-1]


def test_noise_has_its_deviation_and_its_seed() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    noisy = apply("noise5", gray, 1).astype(float) - 128
    assert abs(noisy.std() - 5) < 0.1 and abs(noisy.mean()) < 0.1
    assert (apply("noise5", gray, 1) != apply("noise5", gray, 2)).any()
    twice = apply("noise5+noise5", gray, 1).astype(float) - 128
    assert abs(twice.std() - 50**0.5) < 0.15  # drawn anew, not the same noise doubled
    assert (apply("jpeg50", gray, 1) == apply("jpeg50", gray, 2)).all()


def test_blur_is_a_gaussian_of_its_sigma() -> None:
    point = np.zeros((61, 61, 3), np.uint8)
    point[30, :] = 255  # a line: its profile is the kernel
    profile = apply("blur4", point)[:, 30, 0].astype(float)
    offsets = np.arange(61) - 30
    assert abs(np.sqrt((profile * offsets**2).sum() / profile.sum()) - 4) < 0.2


def test_gamma_moves_middle_grey_and_keeps_the_ends() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for exponent in (0.6, 1.6):
        changed = apply(f"gamma{exponent}", ramp)[0, :, 0]
        assert changed[0] == 0 and changed[255] == 255
        assert abs(changed[128] - 255 * (128 / 255) ** exponent) <= 0.5


def test_sizes() -> None:
    pixels = face(200, 100)
    assert apply("crop0.5", pixels).shape == (100, 50, 3)
    assert (apply("crop0.5", pixels) == pixels[50:150, 25:75]).all()
    assert apply("avatar48", pixels).shape == (48, 24, 3)
    assert apply("avatar256", pixels).shape == pixels.shape  # never enlarged
    for name, platform in PLATFORMS.items():
        large = apply(name, np.zeros((platform.bound * 2, 40, 3), np.uint8))
        assert large.shape == (platform.bound, 20, 3)
    for spec in SPECS:
        assert min(apply(spec, pixels[:1, :1]).shape[:2]) == 1


def test_down_and_back_loses_what_the_small_picture_cannot_hold() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(apply("resize0.5", stripes)) <= 1
    broad = np.kron(np.eye(2, dtype=np.uint8), np.full((32, 32), 255, np.uint8))[..., None].repeat(3, axis=2)
    assert np.ptp(apply("resize0.125", broad)) == 255


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sharpen2", "unknown step 'sharpen2' in 'sharpen2'; known: jpegN, webpN"),
        ("jpeg75+", "unknown step ''"),
        ("JPEG75", "unknown step 'JPEG75'"),
        ("jpeg", "jpeg takes a whole number from 1 to 100"),
        ("blur1+jpeg0", "got 'jpeg0' in 'blur1[+]jpeg0'"),
        ("jpeg75.5", "whole number"),
        ("resize2", "resize takes a number from 0.01 to 1"),
        ("whatsapp3", "whatsapp takes no number"),
        ("jpeg-5", "unknown step"),
    ],
)
def test_what_cannot_be_done_is_told(spec: str, words: str) -> None:
    for call in (lambda: check_spec(spec), lambda: apply(spec, face())):
        with pytest.raises(ValueError, match=words):
            call()


def test_pixels_that_are_no_picture_are_refused() -> None:
    for pixels in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
            apply("jpeg75", pixels)
