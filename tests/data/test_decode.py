"""The decoder on honest files of every kind, and on hostile ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blades_dist.data.decode import DecodedImage, Rejected, decode_image
from blades_dist.data.records import REASONS

LIMITS = {"max_pixels": 10**7, "max_bytes": 10**6}


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(Rejected) as caught:
        decode_image(data, **(LIMITS | limits))
    assert caught.value.reason in REASONS and caught.value.detail
    return caught.value.reason


def decode(data: bytes) -> DecodedImage:
    image = decode_image(data, **LIMITS)
    assert image.rgb.dtype == np.uint8 and image.rgb.flags.c_contiguous
    return image


@pytest.mark.parametrize(
    ("name", "codec"), [("jpeg", "jpeg"), ("progressive", "jpeg"), ("png", "png"), ("webp", "webp"), ("tiff", "tiff")]
)
def test_formats(samples: dict[str, bytes], name: str, codec: str) -> None:
    image = decode(samples[name])
    assert (image.rgb.shape, image.codec) == ((64, 64, 3), codec)
    assert (image.jpeg_quality is None) == (codec != "jpeg")
    assert np.abs(image.rgb.astype(int) - decode(samples["png"]).rgb).mean() < 8


def test_jpeg_quality(samples: dict[str, bytes]) -> None:
    quality = decode(samples["jpeg"]).jpeg_quality
    assert quality is not None and abs(quality - 83) < 1


@pytest.mark.parametrize("name", ["gray", "deep"])
def test_one_channel_becomes_three_equal_ones(samples: dict[str, bytes], name: str) -> None:
    rgb = decode(samples[name]).rgb
    assert rgb.shape == (64, 64, 3) and (rgb == rgb[..., :1]).all()


def test_sixteen_bits_lose_the_low_byte(samples: dict[str, bytes]) -> None:
    expected = ((np.arange(64 * 64) * 16) >> 8).reshape(64, 64)
    assert (decode(samples["deep"]).rgb[..., 0] == expected).all()


def test_transparent_pixels_lie_over_white(samples: dict[str, bytes]) -> None:
    rgb = decode(samples["alpha"]).rgb
    assert (rgb[:32] == 255).all() and (rgb[32:] == decode(samples["png"]).rgb[32:]).all()


def test_cmyk_keeps_its_colours(samples: dict[str, bytes]) -> None:
    difference = decode(samples["cmyk"]).rgb.astype(int) - decode(samples["png"]).rgb
    assert np.abs(difference).mean() < 8


def test_orientation_is_applied(samples: dict[str, bytes]) -> None:
    assert (decode(samples["turned"]).rgb == np.rot90(decode(samples["upright"]).rgb, -1)).all()


def test_checks_before_decoding(samples: dict[str, bytes]) -> None:
    assert reason(b"") == "empty"
    assert reason(samples["png"], max_bytes=100) == "too_large"
    assert reason(samples["png"], max_pixels=64 * 64 - 1) == "too_large"
    assert reason(samples["huge_png"]) == "too_large"
    assert reason(samples["huge_jpeg"]) == "too_large"
    assert reason(samples["gif"]) == "unsupported"
    assert reason(b"just a text that somebody renamed") == "unreadable"


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png", "webp"])
def test_truncated_files_are_rejected_not_padded(samples: dict[str, bytes], name: str) -> None:
    data = samples[name]
    for share in (0.02, 0.3, 0.6, 0.9, 0.97):
        assert reason(data[: int(len(data) * share)]) in ("truncated", "unreadable")


@settings(max_examples=150, deadline=2000)
@given(damage=st.data())
def test_damaged_files_decode_or_are_rejected(samples: dict[str, bytes], damage: st.DataObject) -> None:
    data = bytearray(samples[damage.draw(st.sampled_from(["jpeg", "progressive", "png", "webp", "tiff", "cmyk"]))])
    for _ in range(damage.draw(st.integers(1, 10))):
        data[damage.draw(st.integers(0, len(data) - 1))] = damage.draw(st.integers(0, 255))
    try:
        decode(bytes(data))
    except Rejected as error:
        assert error.reason in REASONS
