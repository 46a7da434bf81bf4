"""HEIF files, where ``pillow_heif`` is installed; it is not a dependency, and without it they are ``unsupported``."""

import importlib
import io
from functools import cache
from typing import Any

SUFFIXES = (".heic", ".heif")
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def is_heif(data: bytes) -> bool:
    """Whether the file says of itself that it is HEIF (AVIF is not: another codec)."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS


@cache
def plugin() -> Any | None:
    """The ``pillow_heif`` module, made known to Pillow under the format name HEIF; None where it is not installed."""
    try:
        module = importlib.import_module("pillow_heif")
    except ImportError:
        return None
    # Thumbnails and depth maps would be decoded for nothing.
    module.register_heif_opener(thumbnails=False, depth_images=False, decode_threads=1)
    return module


def exif_of(data: bytes) -> bytes | None:
    """The EXIF block of a HEIF file, or None. Its orientation is not to be applied: the decoder turns the picture."""
    module = plugin()
    if module is None:
        return None
    try:
        exif = module.open_heif(io.BytesIO(data), thumbnails=False).info.get("exif")
    except Exception:  # a parser may fail in any way on hostile bytes
        return None
    return bytes(exif) if exif else None
