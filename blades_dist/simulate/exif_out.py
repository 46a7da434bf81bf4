"""Camera settings as EXIF, and finished pixels as a JPEG file."""

import functools
import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import piexif
from numpy.typing import NDArray
from PIL import Image as PillowImage

from blades_dist.simulate.makers import Maker, quantisation_tables

_LEVELS = 5


@dataclass(frozen=True)
class Container:
    """Everything about a JPEG file but its pixels and its EXIF: tables (two of 64, natural order) and subsampling
    (Pillow's code: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0)."""

    tables: tuple[tuple[int, ...], ...]
    subsampling: int


def sample_container(maker: Maker, rng: np.random.Generator) -> Container:
    """A maker's tables at a random quality of its range, and one of its subsamplings."""
    # Cameras offer few quality levels: a handful of tables a maker, as in real collections.
    level = int(rng.integers(_LEVELS))
    return _container(maker, level, int(rng.choice(3, p=maker.subsampling)))


@functools.cache
def _container(maker: Maker, level: int, subsampling: int) -> Container:
    scale = float(np.geomspace(*maker.table_scale, _LEVELS)[level])
    return Container(tuple(map(tuple, quantisation_tables(maker, scale))), subsampling)


def encode(pixels: NDArray[np.uint8], container: Container, exif: bytes | None = None) -> bytes:
    """JPEG bytes of RGB pixels (h, w, 3), 8 bits."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if exif is None else {"exif": exif}
    tables = [list(table) for table in container.tables]
    PillowImage.fromarray(pixels).save(buffer, "JPEG", qtables=tables, subsampling=container.subsampling, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class ExifSettings:
    """The values that go into EXIF, in EXIF's own codes. ``missing`` names tags that this file does not carry."""

    make: str
    model: str
    iso: int
    f_number: Fraction
    exposure_time: Fraction  # seconds
    focal_length: Fraction  # millimetres
    focal_length_35mm: int
    metering_mode: int
    exposure_mode: int
    white_balance: int
    exposure_program: int
    flash: int
    missing: frozenset[str] = frozenset()


def exif_bytes(settings: ExifSettings) -> bytes:
    """The EXIF block (APP1 payload) of one photograph."""
    s, tags = settings, piexif.ExifIFD
    exif: dict[str, tuple[int, Any]] = {
        "iso": (tags.ISOSpeedRatings, s.iso),
        "f_number": (tags.FNumber, s.f_number.as_integer_ratio()),
        "exposure_time": (tags.ExposureTime, s.exposure_time.as_integer_ratio()),
        "focal_length": (tags.FocalLength, s.focal_length.as_integer_ratio()),
        "focal_length_35mm": (tags.FocalLengthIn35mmFilm, s.focal_length_35mm),
        "metering_mode": (tags.MeteringMode, s.metering_mode),
        "exposure_mode": (tags.ExposureMode, s.exposure_mode),
        "white_balance": (tags.WhiteBalance, s.white_balance),
        "exposure_program": (tags.ExposureProgram, s.exposure_program),
        "flash": (tags.Flash, s.flash),
    }
    zeroth: dict[int, Any] = {piexif.ImageIFD.Orientation: 1}
    if "make" not in s.missing:
        zeroth |= {piexif.ImageIFD.Make: s.make.encode(), piexif.ImageIFD.Model: s.model.encode()}
    kept = {tag: value for name, (tag, value) in exif.items() if name not in s.missing}
    block: bytes = piexif.dump({"0th": zeroth, "Exif": kept})
    return block


TAGS = ("iso", "f_number", "exposure_time", "focal_length", "metering_mode", "exposure_mode", "white_balance",
        "exposure_program", "flash", "make")  # fmt: skip


def sample_missing(rng: np.random.Generator) -> frozenset[str]:
    """Tags that a file lacks: none in 96 of 100, else one to three, as after careless editing."""
    if rng.random() > 0.04:
        return frozenset()
    return frozenset(str(name) for name in rng.choice(TAGS, int(rng.integers(1, 4)), replace=False))
