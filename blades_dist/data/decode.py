"""Image bytes to 8-bit RGB, every check that can come before decoding done before it. No Ray here.

Used by ingest, predict and serve, so it knows bytes only. Decoding is Pillow's: it refuses a truncated file, where
OpenCV pads it with grey that a detector would take for evidence.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from blades_dist.data.exif import read_orientation

CODECS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp", "TIFF": "tiff"}
_OPENERS = ("JPEG", "PNG", "WEBP", "TIFF")

# Image formats that are recognised only to say so; anything else unknown is "unreadable".
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (4, b"ftyp", "HEIF or AVIF"),
)

# Luminance table of the JPEG standard (annex K, table K.1), sorted: quality estimates need no zigzag order.
# fmt: off
_LUMINANCE = np.array([
    10, 11, 12, 12, 13, 14, 14, 14, 16, 16, 16, 17, 18, 19, 22, 22, 24, 24, 24, 26, 29, 35,
    37, 40, 40, 49, 51, 51, 55, 55, 56, 56, 57, 58, 60, 61, 62, 64, 64, 68, 69, 72, 77, 78,
    80, 81, 87, 87, 92, 92, 95, 98, 99, 100, 101, 103, 103, 103, 104, 109, 112, 113, 120, 121,
], float)
# fmt: on


class Rejected(ValueError):
    """An image (or face) that cannot be used: ``reason`` is one of ``records.REASONS``, the text says what."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class DecodedImage:
    """``rgb`` (H, W, 3) uint8 with the EXIF orientation applied; ``codec`` jpeg, png, webp or tiff."""

    rgb: np.ndarray
    codec: str
    jpeg_quality: float | None


def decode_image(data: bytes, max_pixels: int, max_bytes: int) -> DecodedImage:
    """Decodes one image file. Colour profiles are not applied: the pixels stay what the camera wrote.

    Transparent pixels are laid over white, 16-bit samples lose their low byte, gray and CMYK become RGB, of a
    multi-page TIFF the first page counts. Pillow's own bound of about 179 million pixels holds besides
    ``max_pixels``.

    Raises:
        Rejected: ``empty``, ``too_large`` (bytes or pixels), ``unsupported`` (another image format, an animation, a
            sample type that is not photographic), ``truncated``, or ``unreadable``.
    """
    if not data:
        raise Rejected("empty", "the file has no bytes")
    if len(data) > max_bytes:
        raise Rejected("too_large", f"{len(data)} bytes; the limit is {max_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(data) as image:
            _check_header(image, max_pixels)
            codec, quality = CODECS[str(image.format)], _jpeg_quality(image)
            rgb = _load(image)
    return DecodedImage(_oriented(rgb, read_orientation(data)), codec, quality)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_OPENERS)
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", str(error)) from None
    except UnidentifiedImageError:
        pass
    except Exception as error:  # a parser may fail in any way on hostile bytes
        raise _broken(error) from None
    for offset, magic, name in _OTHER_FORMATS:
        if data[offset : offset + len(magic)] == magic:
            raise Rejected("unsupported", f"{name}; supported are JPEG, PNG, WebP and TIFF")
    if data[:2] == b"\xff\xd8" or data[:8] == b"\x89PNG\r\n\x1a\n"[: len(data)] or data[:4] == b"RIFF":
        raise Rejected("truncated", "the file ends, or breaks, within its header")
    raise Rejected("unreadable", f"not an image: it begins with {data[:8]!r}")


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise Rejected("too_large", f"{width} x {height} pixels; the limit is {max_pixels} in all")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise Rejected("unsupported", "an animation")


def _load(image: Image.Image) -> np.ndarray:
    try:
        image.load()
        return _to_rgb(image)
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", str(error)) from None
    except Exception as error:  # a decoder may fail in any way on hostile bytes
        raise _broken(error) from None


def _broken(error: Exception) -> Rejected:
    text = str(error) or type(error).__name__
    cut = isinstance(error, EOFError) or any(word in text.lower() for word in ("truncat", "unexpected end", "eof"))
    return Rejected("truncated" if cut or isinstance(error, (struct.error, zlib.error)) else "unreadable", text[:200])


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a loaded image of any photographic mode."""
    if image.mode.startswith("I"):  # one channel of 16 bits, in 16 or 32
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        narrow = (gray >> 8).astype(np.uint8)
        return np.repeat(narrow[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBX"):
        raise Rejected("unsupported", f"pixel mode {image.mode}")
    return np.array(image.convert("RGB"))


def _oriented(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned upright; orientations as EXIF numbers them, 1 being upright."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)


def _jpeg_quality(image: Image.Image) -> float | None:
    """Quality from 1 to 100 in the scale of the IJG library, from the luminance quantisation table."""
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
