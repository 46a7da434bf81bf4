"""Image bytes to upright 8-bit RGB, every check that can come before decoding done before it. No Ray here.

Used by ingest, predict and serve, so it knows bytes only. Decoding is Pillow's: it refuses a truncated file, where
OpenCV pads it with grey that a detector would take for evidence. Memory: a decoded photo is copied into its upright
array strip by strip, so that at most Pillow's 4 and the result's 3 bytes a pixel exist at once.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, UnidentifiedImageError

from blades_dist.data import heif
from blades_dist.data.container import Container, container_of, jpeg_quality
from blades_dist.data.exif import read_orientation

# (offset, magic, name)
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


def other_format(data: bytes) -> str | None:
    """Name of the format of an image file that is not supported; None for everything that is not recognised."""
    return next((name for offset, magic, name in _OTHER_FORMATS if data[offset : offset + len(magic)] == magic), None)


CODECS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp", "TIFF": "tiff", "HEIF": "heif"}
PREVIEW_SIDE = 1024  # pixels of the longest side of a preview, at least
_OPENERS = ("JPEG", "PNG", "WEBP", "TIFF")
_STRIP_PIXELS = 2**20


class Rejected(ValueError):
    """An image (or face) that cannot be used: ``reason`` is one of ``records.REASONS``, the text says what."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass
class ImageFile:
    """An image file that has passed every check before decoding; ``width`` and ``height`` in pixels, upright.

    Its methods raise Rejected: ``truncated``, ``unreadable``, ``unsupported`` (a sample type that is not photographic),
    or ``too_large`` (there is not enough memory).
    """

    data: bytes
    width: int
    height: int
    orientation: int
    codec: str  # a value of ``CODECS``
    jpeg_quality: float | None
    container: Container
    _rgb: np.ndarray | None = field(default=None, repr=False)

    def pixels(self) -> np.ndarray:
        """The whole photo: (H, W, 3) uint8, upright; kept for the next call.

        Colour profiles are not applied: the pixels stay what the camera wrote. Transparent pixels are laid over white,
        16-bit samples lose their low byte, gray and CMYK become RGB, of a multi-page TIFF the first page counts.
        """
        if self._rgb is None:
            self._rgb, _ = self._decode(None)
        return self._rgb

    def preview(self) -> tuple[np.ndarray, int]:
        """What faces are located on: an upright picture, and how many pixels of the photo a pixel's side stands for.

        Of a JPEG at least four times as long as a preview, the decoder makes it 2, 4 or 8 times smaller at a fraction
        of the time and memory; of everything else it is the whole photo.
        """
        longest = max(self.width, self.height)
        if self.codec != "jpeg" or longest < 4 * PREVIEW_SIDE:
            return self.pixels(), 1
        return self._decode(PREVIEW_SIDE / longest)

    def _decode(self, scale: float | None) -> tuple[np.ndarray, int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(self.data) as image:
                full = image.size
                if scale is not None:
                    image.draft(None, (max(1, int(full[0] * scale)), max(1, int(full[1] * scale))))
                factor = round(max(full) / max(image.size))
                return _load(image, self.orientation), factor


def open_image(data: bytes, max_pixels: int, max_bytes: int) -> ImageFile:
    """Checks one image file and reads its header.

    Pillow's own bound of about 179 million pixels holds besides ``max_pixels``.

    Raises:
        Rejected: ``empty``, ``too_large`` (bytes or pixels), ``unsupported`` (another image format, an animation),
            ``truncated``, or ``unreadable``.
    """
    if not data:
        raise Rejected("empty", "the file has no bytes")
    if len(data) > max_bytes:
        raise Rejected("too_large", f"{len(data)} bytes; the limit is {max_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Rejected("too_large", f"{width} x {height} pixels; the limit is {max_pixels} in all")
            if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
                raise Rejected("unsupported", "an animation")
            # Pillow itself turns a TIFF upright when it is loaded, and says its upright size before.
            orientation = 1 if image.format == "TIFF" else read_orientation(data)
            size = (height, width) if orientation >= 5 else (width, height)
            codec, container = CODECS[str(image.format)], _container(image, data)
            return ImageFile(data, *size, orientation, codec, jpeg_quality(image), container)


def _open(data: bytes) -> Image.Image:
    as_heif = heif.is_heif(data) and heif.plugin() is not None
    try:
        return Image.open(io.BytesIO(data), formats=("HEIF",) if as_heif else _OPENERS)
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", str(error)) from None
    except UnidentifiedImageError:
        pass
    except Exception as error:  # a parser may fail in any way on hostile bytes
        raise _broken(error) from None
    other = None if as_heif else other_format(data)
    if other is not None:
        raise Rejected("unsupported", f"{other}; supported are JPEG, PNG, WebP and TIFF")
    if as_heif or data[:2] == b"\xff\xd8" or data[:8] == b"\x89PNG\r\n\x1a\n"[: len(data)] or data[:4] == b"RIFF":
        raise Rejected("truncated", "the file ends, or breaks, within its header")
    raise Rejected("unreadable", f"not an image: it begins with {data[:8]!r}")


def _container(image: Image.Image, data: bytes) -> Container:
    try:
        return container_of(image, data)
    except Exception as error:  # headers may hold anything
        raise _broken(error) from None


def _load(image: Image.Image, orientation: int) -> np.ndarray:
    """(H, W, 3) uint8 of an image that is not loaded yet, turned upright."""
    expected = image.size
    try:
        image.load()
        if image.size != expected:
            raise Rejected("unreadable", f"the header says {expected} pixels, the picture has {image.size}")
        width, height = expected
        rgb = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
        stored = _as_stored(rgb, orientation)
        rows = max(1, _STRIP_PIXELS // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            stored[top:bottom] = _to_rgb(image.crop((0, top, width, bottom)))
        return rgb
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", str(error)) from None
    except Exception as error:  # a decoder may fail in any way on hostile bytes
        raise _broken(error) from None


def _broken(error: Exception) -> Rejected:
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return Rejected("too_large", "it needs more memory to decode than there is")
    cut = isinstance(error, EOFError) or any(word in text.lower() for word in ("truncat", "unexpected end", "eof"))
    return Rejected("truncated" if cut or isinstance(error, (struct.error, zlib.error)) else "unreadable", text[:200])


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) or (H, W, 1) uint8 of a loaded image of any photographic mode."""
    if image.mode.startswith("I"):  # one channel of 16 bits, in 16 or 32
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return (gray >> 8).astype(np.uint8)[..., None]
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBX"):
        raise Rejected("unsupported", f"pixel mode {image.mode}")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _as_stored(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an upright array in which the pixels lie as the file stores them; orientation as EXIF numbers it."""
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb.transpose(1, 0, 2) if orientation >= 5 else rgb
