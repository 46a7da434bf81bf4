"""Camera settings as EXIF, and finished pixels as a JPEG file."""

import functools
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import piexif
from numpy.typing import NDArray
from PIL import Image as PillowImage

from blades_dist.simulate.makers import Maker, quantisation_tables
from blades_dist.tags import EXIF_TAGS

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
    """What goes into EXIF. ``tags`` are the stored values by the names of ``tags.EXIF_TAGS``: codes, fractions in the
    tag's unit, and the maker's name, whose field the ``model`` goes with. ``missing`` names tags that this file does
    not carry; the 35 mm equivalent (millimetres) is always there."""

    tags: Mapping[str, int | Fraction | str]
    model: str
    focal_length_35mm: int
    missing: frozenset[str] = frozenset()


def exif_bytes(settings: ExifSettings) -> bytes:
    """The EXIF block (APP1 payload) of one photograph; each tag is stored in the first field of its row."""
    main: dict[int, Any] = {piexif.ImageIFD.Orientation: 1}
    exif: dict[int, Any] = {piexif.ExifIFD.FocalLengthIn35mmFilm: settings.focal_length_35mm}
    for tag in EXIF_TAGS:
        if tag.name not in settings.tags or tag.name in settings.missing:
            continue
        field, value = tag.fields[0].number, settings.tags[tag.name]
        if isinstance(value, str):
            main |= {field: value.encode(), piexif.ImageIFD.Model: settings.model.encode()}
        else:
            exif[field] = value.as_integer_ratio() if isinstance(value, Fraction) else value
    block: bytes = piexif.dump({"0th": main, "Exif": exif})
    return block


def sample_missing(tags: Iterable[str], rng: np.random.Generator) -> frozenset[str]:
    """Which of these tags a file lacks: none in 96 of 100, else one to three, as after careless editing."""
    if rng.random() > 0.04:
        return frozenset()
    return frozenset(str(name) for name in rng.choice(list(tags), int(rng.integers(1, 4)), replace=False))
