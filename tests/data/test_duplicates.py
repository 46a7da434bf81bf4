"""Perceptual hashes and the choice among near copies, against brute force."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from blades_dist.config import IngestConfig
from blades_dist.data.duplicates import BANDS, copies, near_pairs, perceptual_hash

BITS = IngestConfig.model_fields["near_duplicate_bits"].default


def distance(a: bytes, b: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())


def photo(index: int) -> np.ndarray:
    """A picture with the spectrum of photographs, amplitude 1/f, 320 x 240."""
    rng = np.random.default_rng(index)
    frequency = np.hypot(np.fft.fftfreq(240)[:, None], np.fft.fftfreq(320)[None])
    spectrum = np.fft.fft2(rng.normal(0, 1, (240, 320, 3)), axes=(0, 1)) / np.maximum(frequency, 1 / 320)[..., None]
    picture = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return np.asarray(np.clip(128 + 50 * picture / picture.std(), 0, 255), np.uint8)


def encoded_again(rgb: np.ndarray, **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


@pytest.mark.parametrize("index", range(20))
def test_copies_are_near_and_other_pictures_far(index: int) -> None:
    rgb = photo(index)
    mark = perceptual_hash(rgb)
    assert len(mark) == 32
    for copy in (
        encoded_again(rgb, format="JPEG", quality=60),
        encoded_again(rgb, format="WEBP", quality=70),
        cv2.resize(rgb, (160, 120), interpolation=cv2.INTER_AREA),
        np.clip(rgb * 0.9 + 8, 0, 255).astype(np.uint8),
    ):
        assert distance(mark, perceptual_hash(copy)) < BITS
    assert distance(mark, perceptual_hash(photo(index + 100))) > 4 * BITS
    assert distance(mark, perceptual_hash(np.ascontiguousarray(rgb[:, ::-1]))) > 4 * BITS


def test_pictures_of_one_colour_and_of_one_pixel_have_a_hash() -> None:
    for shape in ((1, 1, 3), (3000, 1, 3), (64, 64, 3)):
        assert len(perceptual_hash(np.full(shape, 7, np.uint8))) == 32


def planted(count: int, copies_of: int, flips: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    bits = np.unpackbits(hashes[:copies_of], axis=1)
    for row in bits:
        row[rng.choice(256, flips, replace=False)] ^= 1
    return np.concatenate([hashes, np.packbits(bits, axis=1)])


def found_pairs(hashes: np.ndarray, bits: int) -> set[tuple[int, int]]:
    return {tuple(pair) for band in range(BANDS) for pair in near_pairs(hashes, band, bits).tolist()}


@pytest.mark.parametrize("flips", [1, BITS - 1, BITS])
def test_pairs_are_those_of_brute_force(flips: int) -> None:
    hashes = planted(600, 200, flips)
    words = hashes.view(np.uint64)
    different = np.bitwise_count(words[:, None] ^ words[None]).sum(-1)
    a, b = np.nonzero(np.triu(different < BITS, 1))
    expected = set(zip(a.tolist(), b.tolist(), strict=True))
    assert found_pairs(hashes, BITS) == expected
    assert len(expected) == (200 if flips < BITS else 0)


def test_a_degenerate_collection_is_searched_in_parts() -> None:
    rng = np.random.default_rng(6)
    hashes = np.zeros((9000, 32), np.uint8)  # equal in every band but the last four
    hashes[:, 24:] = rng.integers(0, 256, (9000, 8))
    hashes[8999] = hashes[0] ^ np.array([0] * 31 + [1], np.uint8)
    pairs = near_pairs(hashes, 0, 2)
    assert [0, 8999] in pairs.tolist()


def test_of_near_ones_the_best_stays_and_what_is_near_to_none_kept() -> None:
    # 0-1-2 in a chain: 1 goes for 0, 2 is near to 1 only and stays. 3 is better than 4.
    pairs = np.array([[0, 1], [1, 2], [3, 4]])
    assert copies(pairs, np.arange(5)) == {1: 0, 4: 3}
    assert copies(pairs, np.array([1, 0, 2, 4, 3])) == {0: 1, 2: 1, 3: 4}
    assert copies(np.empty((0, 2), np.int64), np.arange(3)) == {}
