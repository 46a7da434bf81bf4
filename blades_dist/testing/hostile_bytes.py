"""What hostile files are made of: sound ones, ones that claim what they do not hold, and where their parts begin."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import piexif
from PIL import Image

RANDOM_SEED = 20


def picture(size: int = 96) -> np.ndarray:
    """(S, S, 3) uint8: soft colours and a little noise, no face."""
    y, x = np.mgrid[:size, :size] / size
    noise = np.random.default_rng(RANDOM_SEED).integers(0, 24, (size, size, 3))
    return (np.stack([200 * x, 200 * y, 200 * (1 - x)], axis=2) + noise).astype(np.uint8)


def exif_block(orientation: int = 1, thumbnail: bytes | None = None) -> bytes:
    values = {
        "0th": {piexif.ImageIFD.Make: b"Canon", piexif.ImageIFD.Orientation: orientation},
        "Exif": {piexif.ExifIFD.ISOSpeedRatings: 400, piexif.ExifIFD.FNumber: (28, 10)},
    }
    return piexif.dump(values | ({"1st": {}, "thumbnail": thumbnail} if thumbnail else {}))


def saved(image: Image.Image | np.ndarray, form: str, exif: bytes | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    exif = exif_block() if exif is None else exif
    if form == "TIFF":  # whose EXIF is its own directory
        orientation = piexif.load(exif)["0th"][piexif.ImageIFD.Orientation]
        image.save(buffer, form, tiffinfo={piexif.ImageIFD.Make: "Canon", 274: orientation}, **options)
    else:
        image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """A PNG of any header and (uncompressed) ``data``."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, interlace))
        + chunk(b"eXIf", exif_block()[6:])
        + chunk(b"IDAT", zlib.compress(data, 9))
        + chunk(b"IEND", b"")
    )


def chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">L", len(payload)) + name + payload + struct.pack(">L", zlib.crc32(name + payload))


def claimed_jpeg(width: int, height: int, **options: Any) -> bytes:
    """A JPEG of a few pixels whose frame header claims others."""
    data = saved(picture(), "JPEG", **options)
    at = max(data.rfind(b"\xff\xc0\0\x11"), data.rfind(b"\xff\xc2\0\x11")) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def claimed_tiff(width: int, height: int, rows: int | None = None, compression: str = "raw") -> bytes:
    """A TIFF of a few pixels whose directory claims others."""
    data = bytearray(saved(picture(), "TIFF", compression=compression))
    (directory,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        (field,) = struct.unpack_from("<H", data, entry)
        claims = {256: width, 257: height, 278: rows or height}
        if field in claims:
            struct.pack_into("<HLL", data, entry + 2, 4, 1, claims[field])
    return bytes(data)


def claimed_webp(width: int, height: int) -> bytes:
    """A lossy WebP of a few pixels whose frame and canvas claim others (at most 16383)."""
    data = bytearray(saved(picture(), "WEBP"))
    at = data.index(b"\x9d\x01\x2a") + 3
    struct.pack_into("<HH", data, at, width, height)
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = struct.pack("<L", width - 1)[:3] + struct.pack("<L", height - 1)[:3]
    return bytes(data)


def text_bomb() -> bytes:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 * 2**20), 9))
    data = saved(picture(), "PNG")
    return data[:33] + text * 3 + data[33:]


def profile_bomb() -> bytes:
    data = saved(picture(), "PNG")
    return data[:33] + chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100 * 2**20), 9)) + data[33:]


def with_exif(block: bytes, jpeg: bytes | None = None) -> bytes:
    plain = saved(picture(), "JPEG", b"") if jpeg is None else jpeg
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + plain[2:]


def jpeg_markers(data: bytes) -> list[int]:
    found, at = [0], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        found.append(at)
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        if data[found[-1] + 1] == 0xDA:  # skip to the marker after the scan
            while at + 1 < len(data) and not (data[at] == 0xFF and data[at + 1] not in (0, *range(0xD0, 0xD8))):
                at += 1
    return found


def png_chunks(data: bytes) -> list[int]:
    found, at = [], 8
    while at + 8 <= len(data):
        found.append(at)
        at += 12 + int(struct.unpack_from(">L", data, at)[0])
    return found


def webp_chunks(data: bytes) -> list[int]:
    found, at = [0], 12
    while at + 8 <= len(data):
        found.append(at)
        size = int(struct.unpack_from("<L", data, at + 4)[0])
        at += 8 + size + size % 2
    return found
