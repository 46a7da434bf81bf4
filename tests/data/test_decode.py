"""The decoder on honest files of every kind, and on hostile ones."""

import io

import numpy as np
import piexif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blades_dist.data import decode as decoding
from blades_dist.data.decode import ImageFile, Rejected, open_image
from blades_dist.data.exif import read_exif
from blades_dist.data.records import REASONS
from tests.data.conftest import encoded, exif_of, pixels_of

LIMITS = {"max_pixels": 10**7, "max_bytes": 10**6}


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(Rejected) as caught:
        open_image(data, **(LIMITS | limits)).pixels()
    assert caught.value.reason in REASONS and caught.value.detail
    return caught.value.reason


def decode(data: bytes) -> ImageFile:
    image = open_image(data, **LIMITS)
    assert image.pixels().dtype == np.uint8 and image.pixels().flags.c_contiguous
    return image


@pytest.mark.parametrize(
    ("name", "codec"), [("jpeg", "jpeg"), ("progressive", "jpeg"), ("png", "png"), ("webp", "webp"), ("tiff", "tiff")]
)
def test_formats(samples: dict[str, bytes], name: str, codec: str) -> None:
    image = decode(samples[name])
    assert (image.pixels().shape, image.codec) == ((64, 64, 3), codec)
    assert (image.jpeg_quality is None) == (codec != "jpeg")
    assert np.abs(image.pixels().astype(int) - decode(samples["png"]).pixels()).mean() < 8


def test_jpeg_quality(samples: dict[str, bytes]) -> None:
    quality = decode(samples["jpeg"]).jpeg_quality
    assert quality is not None and abs(quality - 83) < 1


@pytest.mark.parametrize("name", ["gray", "deep"])
def test_one_channel_becomes_three_equal_ones(samples: dict[str, bytes], name: str) -> None:
    rgb = decode(samples[name]).pixels()
    assert rgb.shape == (64, 64, 3) and (rgb == rgb[..., :1]).all()


def test_sixteen_bits_lose_the_low_byte(samples: dict[str, bytes]) -> None:
    expected = ((np.arange(64 * 64) * 16) >> 8).reshape(64, 64)
    assert (decode(samples["deep"]).pixels()[..., 0] == expected).all()


def test_transparent_pixels_lie_over_white(samples: dict[str, bytes]) -> None:
    rgb = decode(samples["alpha"]).pixels()
    assert (rgb[:32] == 255).all() and (rgb[32:] == decode(samples["png"]).pixels()[32:]).all()


def test_cmyk_keeps_its_colours(samples: dict[str, bytes]) -> None:
    difference = decode(samples["cmyk"]).pixels().astype(int) - decode(samples["png"]).pixels()
    assert np.abs(difference).mean() < 8


def test_orientation_is_applied(samples: dict[str, bytes]) -> None:
    assert (decode(samples["turned"]).pixels() == np.rot90(decode(samples["upright"]).pixels(), -1)).all()


# What is seen at the top left, top right and bottom left of a picture whose stored corners are 1 2 / 3 4.
UPRIGHT = {1: "123", 2: "214", 3: "432", 4: "341", 5: "132", 6: "314", 7: "423", 8: "241"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("strip", [100, 2**20])
def test_all_orientations(form: str, orientation: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", strip)
    stored = np.kron(np.array([[50, 100], [150, 200]], np.uint8), np.ones((16, 24), np.uint8))
    exif = piexif.dump({"0th": {piexif.ImageIFD.Orientation: orientation}})
    image = open_image(encoded(stored, form, exif=exif), 10**6, 10**6)
    rgb = image.pixels()
    assert rgb.shape == (image.height, image.width, 3) == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    corners = [int(rgb[y, x, 0]) for y, x in ((8, 8), (8, -8), (-8, 8))]
    assert "".join(str(round(value / 50)) for value in corners) == UPRIGHT[orientation]


@pytest.mark.parametrize("strip", [1, 1000])
def test_strips_change_nothing(samples: dict[str, bytes], strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: decode(data).pixels() for name, data in samples.items() if "huge" not in name and name != "gif"}
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", strip)
    for name, rgb in whole.items():
        assert (decode(samples[name]).pixels() == rgb).all()
    simple = Image.open(io.BytesIO(samples["cmyk"])).convert("RGB")
    assert (whole["cmyk"] == np.array(simple)).all()


def test_previews_of_large_jpegs() -> None:
    large = np.kron(pixels_of(8, 64)[:32], np.ones((65, 65, 1), np.uint8))  # 2080 x 4160
    exif = piexif.dump({"0th": {piexif.ImageIFD.Orientation: 8}})
    image = open_image(encoded(large, quality=90, exif=exif), 10**8, 10**8)
    picture, factor = image.preview()
    assert (image.width, image.height, factor, picture.shape) == (2080, 4160, 4, (1040, 520, 3))
    down = image.pixels().reshape(1040, 4, 520, 4, 3).mean(axis=(1, 3))
    assert np.abs(picture - down).mean() < 2
    for form, side in (("JPEG", 4095), ("PNG", 5000)):
        small = open_image(encoded(np.zeros((8, side, 3), np.uint8), form), 10**8, 10**8)
        assert small.preview()[1] == 1 and small.preview()[0] is small.pixels()


def test_truncated_previews_are_rejected() -> None:
    data = encoded(np.kron(pixels_of(8, 64), np.ones((64, 64, 1), np.uint8)), quality=90)
    image = open_image(data[: len(data) // 2], 10**8, 10**8)
    with pytest.raises(Rejected) as caught:
        image.preview()
    assert caught.value.reason == "truncated"


def test_heif() -> None:
    data = b"\0\0\0\x1cftypheic" + bytes(100)
    if decoding.heif.plugin() is None:
        assert reason(data) == "unsupported"
        pytest.skip("pillow_heif is not installed, so HEIF files are unsupported")
    assert reason(data) in ("truncated", "unreadable")
    exif = piexif.load(exif_of(7))
    exif["0th"][piexif.ImageIFD.Orientation] = 6
    data = encoded(pixels_of(5, 128)[:, :64].copy(), "HEIF", quality=95, exif=piexif.dump(exif))
    image = open_image(data, 10**6, 10**6)
    assert image.pixels().shape == (64, 128, 3) == (image.height, image.width, 3) and image.codec == "heif"
    assert read_exif(data)["iso"] == 100.0
    for size in (40, 300, len(data) // 2, len(data) - 10):
        assert reason(data[:size]) in ("truncated", "unreadable")


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


@settings(max_examples=100)
@given(damage=st.data())
def test_damaged_files_decode_or_are_rejected(samples: dict[str, bytes], damage: st.DataObject) -> None:
    data = bytearray(samples[damage.draw(st.sampled_from(["jpeg", "progressive", "png", "webp", "tiff", "cmyk"]))])
    for _ in range(damage.draw(st.integers(1, 10))):
        data[damage.draw(st.integers(0, len(data) - 1))] = damage.draw(st.integers(0, 255))
    try:
        decode(bytes(data))
    except Rejected as error:
        assert error.reason in REASONS
