"""Small photographs with EXIF and sidecars, and every kind of broken file."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import piexif
import pytest
from PIL import Image

MAKERS = ("NIKON CORPORATION", "Apple", "Canon", "Unheard Of Cameras")


def exif_of(index: int) -> bytes:
    """EXIF block whose values vary with the index; ISO heavily tied, as in real collections."""
    return piexif.dump(
        {
            "0th": {piexif.ImageIFD.Make: MAKERS[index % len(MAKERS)].encode()},
            "Exif": {
                piexif.ExifIFD.ISOSpeedRatings: (100, 100, 100, 400, 1600)[index % 5],
                piexif.ExifIFD.FNumber: (18 + index % 40, 10),
                piexif.ExifIFD.ExposureTime: (1, 10 + index),
                piexif.ExifIFD.WhiteBalance: index % 2,
            },
        }
    )


def pixels_of(index: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def encoded(pixels: np.ndarray, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def jpeg_of(index: int, size: int = 96, exif: bool = True) -> bytes:
    return encoded(pixels_of(index, size), quality=90, **({"exif": exif_of(index)} if exif else {}))


def write_sidecar(image: Path, side: float = 70.0) -> None:
    face = {"box": [10, 8, side, side], "landmarks": [[30, 30], [60, 30], [45, 45], [35, 60], [55, 60]]}
    image.with_name(image.stem + ".faces.json").write_text(json.dumps({"faces": [face]}))


def write_photo(file: Path, index: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg_of(index))
    write_sidecar(file)


def huge_png(side: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header claims side x side pixels."""

    def chunk(name: bytes, payload: bytes) -> bytes:
        return struct.pack(">L", len(payload)) + name + payload + struct.pack(">L", zlib.crc32(name + payload))

    header = struct.pack(">LLBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def huge_jpeg(side: int = 60_000) -> bytes:
    """A JPEG whose frame header claims side x side pixels."""
    data = jpeg_of(0)
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def write_broken(folder: Path) -> dict[str, str]:
    """One file of every kind that cannot be used; path to the reason expected."""
    folder.mkdir(parents=True, exist_ok=True)
    good = jpeg_of(9001)
    files = {
        "truncated.jpg": (good[: len(good) // 2], "truncated"),
        "text.jpg": (b"this is not an image at all\n" * 9, "unreadable"),
        "zero.jpg": (b"", "empty"),
        "no_face.jpg": (encoded(np.full((200, 200, 3), 90, np.uint8), exif=exif_of(1)), "no_face"),
        "no_exif.jpg": (jpeg_of(9002, exif=False), "no_usable_tag"),
        "huge.png": (huge_png(), "too_large"),
        "huge.jpg": (huge_jpeg(), "too_large"),
        "film.gif": (encoded(pixels_of(3, 32), "GIF"), "unsupported"),
        "gif_named.jpg": (encoded(pixels_of(4, 32), "GIF"), "unsupported"),
        "bad_sidecar.jpg": (jpeg_of(9003), "bad_sidecar"),
        "small_face.jpg": (jpeg_of(9004), "face_too_small"),
        "zz_copy.jpg": (jpeg_of(0), "duplicate"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    write_sidecar(folder / "no_exif.jpg")
    write_sidecar(folder / "small_face.jpg", side=20)
    (folder / "bad_sidecar.faces.json").write_text('{"faces": [{"box": [1, 2, 3]}]}')
    return {f"{folder.name}/{name}": reason for name, (_, reason) in files.items()}


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """130 good photographs of two sources, and a folder of broken files; with the reasons expected."""
    folder = tmp_path_factory.mktemp("collection")
    for index in range(130):
        write_photo(folder / ("a_trip" if index % 3 else "b_party") / f"photo_{index:03d}.jpg", index)
    return folder, write_broken(folder / "broken")


@pytest.fixture(scope="session")
def photo_writer() -> Callable[[Path, int], None]:
    return write_photo


@pytest.fixture(scope="session")
def samples() -> dict[str, bytes]:
    """Image files by what is special about them."""
    rgb = pixels_of(5, 64)
    deep = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    alpha = np.dstack([rgb, np.full((64, 64), 255, np.uint8)])
    alpha[:32, :, 3] = 0
    tall = pixels_of(6, 64)[:, :32]
    return {
        "jpeg": encoded(rgb, quality=83),
        "progressive": encoded(rgb, quality=83, progressive=True),
        "png": encoded(rgb, "PNG"),
        "webp": encoded(rgb, "WEBP", lossless=True),
        "tiff": encoded(rgb, "TIFF"),
        "cmyk": _cmyk(rgb),
        "deep": encoded(deep, "PNG"),
        "gray": encoded(rgb[..., 0]),
        "alpha": encoded(alpha, "PNG"),
        "turned": encoded(tall, quality=95, exif=piexif.dump({"0th": {piexif.ImageIFD.Orientation: 6}})),
        "upright": encoded(tall, quality=95),
        "huge_png": huge_png(),
        "huge_jpeg": huge_jpeg(),
        "gif": encoded(rgb, "GIF"),
        "with_exif": jpeg_of(7),
    }


def _cmyk(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
