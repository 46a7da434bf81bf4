"""What a file is like apart from what it shows: facts of its header that could give a generator away. No Ray here."""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

NONE = "none"  # this kind of file has no such thing; null in a shard means "not recorded"
UNKNOWN = "unknown"  # it has one, and the header does not tell
_CHROMA = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}


@dataclass(frozen=True)
class Container:
    """``chroma`` as "4:2:0", or ``NONE``; ``jpeg_tables`` a digest of the quantisation tables, 16 hex digits;
    ``bit_depth`` bits a sample; ``pixel_mode`` as Pillow names it (RGB, L, CMYK, RGBA, P ...)."""

    jpeg_tables: str
    chroma: str
    bit_depth: int
    pixel_mode: str
    icc_profile: bool


def container_of(image: Image.Image, data: bytes) -> Container:
    """Facts of an image file of which Pillow has read the header; ``data`` are its bytes."""
    return Container(
        jpeg_tables=tables_digest(image),
        chroma=_chroma(image, data),
        bit_depth=_bits(image, data),
        pixel_mode=image.mode,
        icc_profile=bool(image.info.get("icc_profile")),
    )


def tables_digest(image: Image.Image) -> str:
    """First 16 digits of the sha-256 of all quantisation tables with their numbers; ``NONE`` for other files."""
    tables = getattr(image, "quantization", None)
    if image.format not in ("JPEG", "MPO") or not tables:
        return NONE
    text = ";".join(f"{number}:{','.join(str(int(step)) for step in tables[number])}" for number in sorted(tables))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _chroma(image: Image.Image, data: bytes) -> str:
    """Sampling of colour relative to brightness."""
    if image.format in ("JPEG", "MPO"):
        return _jpeg_chroma(getattr(image, "layer", ()))
    if image.format == "WEBP":  # the lossy kind is 4:2:0 by its specification
        return {b"VP8 ": "4:2:0", b"VP8L": "4:4:4"}.get(_webp_picture(data), UNKNOWN)
    return UNKNOWN if image.format == "HEIF" else NONE


def _jpeg_chroma(layers: Iterable[tuple[int, int, int, int]]) -> str:
    factors = [(layer[1], layer[2]) for layer in layers]
    if len(factors) == 1:
        return "gray"
    if len(factors) < 3 or not all(h and v for h, v in factors):
        return UNKNOWN
    (h, v), (h1, v1) = factors[0], factors[1]
    plain = factors[1] == factors[2] and not h % h1 and not v % v1
    return _CHROMA.get((h // h1, v // v1), UNKNOWN) if plain else " ".join(f"{a}x{b}" for a, b in factors)


def _webp_picture(data: bytes) -> bytes:
    """Name of the chunk that holds the picture."""
    at = 12  # behind RIFF, size and WEBP
    while at + 8 <= len(data) and data[at : at + 4] not in (b"VP8 ", b"VP8L"):
        (size,) = struct.unpack_from("<L", data, at + 4)
        at += 8 + size + size % 2
    return data[at : at + 4]


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits a sample as stored; Pillow gives 16-bit colour as 8 and says nothing of it."""
    if image.format == "PNG":
        return data[24]  # of IHDR, which is always the first chunk
    if image.format == "TIFF":
        found = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        return int(found[0] if isinstance(found, tuple) else found)
    if image.format in ("JPEG", "MPO"):
        return int(getattr(image, "bits", 8))
    return int(image.info.get("bit_depth", 8))


# Luminance table of the JPEG standard (annex K, table K.1), sorted: quality estimates need no zigzag order.
# fmt: off
_LUMINANCE = np.array([
    10, 11, 12, 12, 13, 14, 14, 14, 16, 16, 16, 17, 18, 19, 22, 22, 24, 24, 24, 26, 29, 35,
    37, 40, 40, 49, 51, 51, 55, 55, 56, 56, 57, 58, 60, 61, 62, 64, 64, 68, 69, 72, 77, 78,
    80, 81, 87, 87, 92, 92, 95, 98, 99, 100, 101, 103, 103, 103, 104, 109, 112, 113, 120, 121,
], float)
# fmt: on


def jpeg_quality(image: Image.Image) -> float | None:
    """Quality from 1 to 100 in the scale of the IJG library, from the luminance quantisation table;
    None for other files."""
    tables = getattr(image, "quantization", None)
    if image.format not in ("JPEG", "MPO") or not tables or len(tables.get(0, ())) != 64:
        return None
    table = np.sort(np.asarray(tables[0], float))
    # Steps that the 8-bit table clips at 1 or 255 tell nothing of the scale.
    inner = (table > 1) & (table < 255)
    if not inner.any():
        return 100.0 if table.max() <= 1 else 1.0
    percent = 100 * table[inner].sum() / _LUMINANCE[inner].sum()
    return round(float(np.clip(100 - percent / 2 if percent <= 100 else 5000 / percent, 1, 100)), 1)
