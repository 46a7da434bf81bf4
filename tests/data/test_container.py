"""What is recorded of files apart from their pictures."""

import io

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from blades_dist.data.container import NONE, Container
from blades_dist.data.decode import Rejected, open_image
from tests.data.conftest import encoded, pixels_of

RGB = pixels_of(5, 64)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def container(data: bytes) -> Container:
    return open_image(data, 10**6, 10**7).container


def deep_colour_png() -> bytes:
    """16 bits a sample in three channels, which Pillow cannot write."""
    return bytes(cv2.imencode(".png", RGB.astype(np.uint16) * 257)[1].tobytes())


def test_chroma_of_jpegs() -> None:
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        assert container(encoded(RGB, subsampling=sampling)).chroma == sampling
    assert container(encoded(RGB[..., 0])).chroma == "gray"
    buffer = io.BytesIO()
    Image.fromarray(RGB).convert("CMYK").save(buffer, "JPEG")
    assert container(buffer.getvalue()).chroma == "4:4:4" and container(buffer.getvalue()).pixel_mode == "CMYK"


def test_chroma_of_other_files() -> None:
    assert container(encoded(RGB, "WEBP", quality=80)).chroma == "4:2:0"
    assert container(encoded(RGB, "WEBP", lossless=True)).chroma == "4:4:4"
    assert container(encoded(RGB, "WEBP", lossless=True, icc_profile=ICC)).chroma == "4:4:4"  # not the first chunk
    assert container(encoded(RGB, "PNG")).chroma == container(encoded(RGB, "TIFF")).chroma == NONE


def test_tables_tell_encoders_of_one_quality_apart() -> None:
    ours = container(encoded(RGB, quality=80)).jpeg_tables
    assert ours == container(encoded(pixels_of(6, 80), quality=80, progressive=True)).jpeg_tables
    assert len(ours) == 16 and ours != container(encoded(RGB, quality=81)).jpeg_tables
    tables = Image.open(io.BytesIO(encoded(RGB, quality=80))).quantization  # type: ignore[attr-defined]
    moved = [list(tables[0]), list(tables[1])]
    moved[0][10], moved[0][11] = moved[0][11] + 1, moved[0][10]
    other = encoded(RGB, qtables=moved)
    assert container(other).jpeg_tables != ours
    qualities = [open_image(data, 10**6, 10**6).jpeg_quality for data in (encoded(RGB, quality=80), other)]
    assert abs(qualities[0] - qualities[1]) < 0.2
    assert container(encoded(RGB, "PNG")).jpeg_tables == NONE


def test_bits_mode_and_profile() -> None:
    gray16 = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    assert container(encoded(RGB, "PNG")).bit_depth == container(encoded(RGB)).bit_depth == 8
    assert container(encoded(gray16, "PNG")).bit_depth == container(encoded(gray16, "TIFF")).bit_depth == 16
    assert container(deep_colour_png()).bit_depth == 16 and container(deep_colour_png()).pixel_mode == "RGB"
    assert container(encoded(RGB[..., 0] > 128, "PNG")).bit_depth == 1
    alpha = np.dstack([RGB, RGB[..., 0]])
    assert container(encoded(alpha, "PNG")).pixel_mode == "RGBA" and container(encoded(RGB, "TIFF")).pixel_mode == "RGB"
    for form in ("JPEG", "PNG", "TIFF", "WEBP"):
        assert container(encoded(RGB, form, icc_profile=ICC)).icc_profile
        assert not container(encoded(RGB, form)).icc_profile


@settings(max_examples=100)
@given(damage=st.data())
def test_damaged_headers_give_facts_or_a_reason(samples: dict[str, bytes], damage: st.DataObject) -> None:
    name = damage.draw(st.sampled_from(["jpeg", "progressive", "png", "webp", "tiff", "cmyk", "gray"]))
    data = bytearray(samples[name])
    for _ in range(damage.draw(st.integers(1, 10))):
        data[damage.draw(st.integers(0, min(700, len(data) - 1)))] = damage.draw(st.integers(0, 255))
    try:
        found = container(bytes(data))
    except Rejected:
        return
    assert found.chroma and found.pixel_mode and 1 <= found.bit_depth <= 64
