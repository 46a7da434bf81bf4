"""Cameras: bodies, optics and image processing of ten groups of makers.

The makers are those of ``blades_dist.tags.MAKES``. Numbers are of the order of real products but are not measured
from them; quantisation tables are drawn from formulae of this project's own, one formula per maker.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Demosaic = Literal["bilinear", "edge_aware", "gradient", "colour_difference", "xtrans"]
Pattern = Literal["RGGB", "BGGR", "GRBG", "GBRG"]


@dataclass(frozen=True)
class Body:
    """One camera model: its sensor and its lens."""

    model: str
    phone: bool
    crop: float  # full-frame diagonal over the sensor's
    base_iso: int
    top_iso: int
    full_well: float  # electrons at saturation at base ISO, per output pixel
    read_noise: float  # electrons at base ISO
    focal: tuple[float, float]  # millimetres, as engraved (not the 35 mm equivalent)
    aperture: tuple[float, float]  # f-number wide open, at the short and at the long end
    modes: bool = True  # has aperture priority, manual and so on


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: there is one of each
class Maker:
    """How one maker's cameras turn a raw mosaic into a JPEG file."""

    group: str  # the name in tags.MAKES
    exif_make: str
    bodies: tuple[Body, ...]
    demosaic: Demosaic
    pattern: Pattern
    crosstalk: float  # how much the colour filters overlap
    hue: float  # twist of the colour matrix, radians in the chroma plane
    contrast: float
    toe: float  # black point of the tone curve
    saturation: float
    luma_denoise: float
    chroma_denoise: float
    sharpen_radius: float  # pixels
    sharpen_amount: float
    halo: float  # limit of over- and undershoot, 8-bit levels
    table_tilt: float  # how fast quantisation steps grow with frequency
    table_cross: float  # diagonal frequencies against straight ones
    table_floor: float
    chroma_ratio: float
    table_scale: tuple[float, float]  # smallest and largest step factor
    subsampling: tuple[float, float, float]  # probability of 4:4:4, 4:2:2, 4:2:0
    metering: dict[int, float] = field(default_factory=dict)  # EXIF code to weight


_PHONE_METERING = {5: 0.55, 2: 0.2, 3: 0.2, 1: 0.05}
_CAMERA_METERING = {5: 0.55, 2: 0.2, 3: 0.15, 1: 0.05, 6: 0.03, 4: 0.02}


def _phone(model: str, focal: float, f_number: float, base: int = 32, top: int = 2500, crop: float = 6.4) -> Body:
    return Body(model, True, crop, base, top, 11000, 3.0, (focal, focal), (f_number, f_number), modes=False)


def _zoom(model: str, crop: float, low: float, high: float, wide: float, tele: float, base: int = 100) -> Body:
    well = 90000 / crop**2
    return Body(model, False, crop, base, 12800 if crop < 1.8 else 6400, well, 5.0, (low, high), (wide, tele))


def _compact(model: str, crop: float, low: float, high: float, wide: float, tele: float) -> Body:
    return Body(model, False, crop, 80, 3200, 14000, 3.5, (low, high), (wide, tele), modes=False)


MAKERS: dict[str, tuple[Maker, ...]] = {
    "Nikon": (
        Maker("Nikon", "NIKON CORPORATION", (
            _zoom("NIKON D7100", 1.5, 18, 105, 3.5, 5.6), _zoom("NIKON D750", 1.0, 24, 120, 4, 4),
            _zoom("NIKON D3200", 1.5, 35, 35, 1.8, 1.8), _zoom("NIKON D610", 1.0, 85, 85, 1.8, 1.8)),
            "gradient", "RGGB", 0.22, 0.02, 1.10, 0.010, 1.02, 0.5, 0.6, 1.0, 0.55, 22,
            0.85, 1.10, 1.0, 1.10, (0.10, 0.24), (0.1, 0.8, 0.1), _CAMERA_METERING),
    ),
    "Apple": (
        Maker("Apple", "Apple", (
            _phone("iPhone 6", 4.15, 2.2), _phone("iPhone 8", 3.99, 1.8, 20),
            _phone("iPhone X", 6.0, 2.4, 16, 2000, 8.6), _phone("iPhone 12", 4.2, 1.6, 32, 3200, 6.1)),
            "edge_aware", "RGGB", 0.30, 0.05, 1.02, 0.004, 1.06, 0.9, 1.6, 0.8, 0.70, 14,
            0.60, 0.95, 1.0, 1.35, (0.12, 0.30), (0.0, 0.0, 1.0), _PHONE_METERING),
    ),
    "FUJIFILM": (
        Maker("FUJIFILM", "FUJIFILM", (
            _zoom("X-T2", 1.5, 18, 55, 2.8, 4, 200), _zoom("X-T20", 1.5, 16, 50, 3.5, 5.6, 200),
            _zoom("X-Pro2", 1.5, 35, 35, 1.4, 1.4, 200), _zoom("X-E2", 1.5, 56, 56, 1.2, 1.2, 200)),
            "xtrans", "RGGB", 0.20, -0.07, 1.22, 0.014, 1.18, 0.8, 0.8, 1.1, 0.50, 18,
            0.70, 1.30, 1.4, 1.00, (0.09, 0.22), (0.2, 0.8, 0.0), _CAMERA_METERING),
    ),
    "Canon": (
        Maker("Canon", "Canon", (
            _zoom("Canon EOS 70D", 1.6, 18, 135, 3.5, 5.6), _zoom("Canon EOS 5D Mark III", 1.0, 24, 105, 4, 4),
            _zoom("Canon EOS 600D", 1.6, 50, 50, 1.8, 1.8), _zoom("Canon EOS 6D", 1.0, 85, 85, 1.8, 1.8),
            _compact("Canon PowerShot S120", 4.6, 5.2, 26, 1.8, 5.7)),
            "colour_difference", "RGGB", 0.26, 0.10, 1.06, 0.006, 1.08, 0.7, 1.0, 1.5, 0.60, 30,
            1.00, 0.90, 0.8, 1.00, (0.08, 0.20), (0.3, 0.6, 0.1), _CAMERA_METERING),
    ),
    "Samsung": (
        Maker("Samsung", "SAMSUNG", (
            _phone("SM-G920F", 4.3, 1.9, 40), _phone("SM-G960F", 4.3, 1.5, 50, 3200, 6.0),
            _phone("SM-A520F", 3.6, 1.9, 50, 2000, 7.4), _phone("GT-I9505", 4.2, 2.2, 50, 1600, 7.2)),
            "edge_aware", "GRBG", 0.32, -0.02, 1.16, 0.010, 1.25, 1.3, 2.2, 1.2, 1.25, 40,
            0.75, 1.15, 1.2, 1.20, (0.10, 0.26), (0.0, 0.1, 0.9), _PHONE_METERING),
    ),
    "Sony": (
        Maker("Sony", "SONY", (
            _zoom("ILCE-6000", 1.5, 16, 50, 3.5, 5.6), _zoom("ILCE-7M2", 1.0, 28, 70, 3.5, 5.6),
            _zoom("ILCE-7RM2", 1.0, 55, 55, 1.8, 1.8), _zoom("ILCE-7M3", 1.0, 85, 85, 1.4, 1.4),
            _compact("DSC-RX100M3", 2.7, 8.8, 25.7, 1.8, 2.8)),
            "gradient", "GBRG", 0.24, -0.12, 1.14, 0.012, 1.10, 1.0, 1.2, 0.7, 0.75, 26,
            1.15, 1.00, 1.0, 1.25, (0.09, 0.24), (0.0, 0.7, 0.3), _CAMERA_METERING),
    ),
    "Panasonic": (
        Maker("Panasonic", "Panasonic", (
            _zoom("DMC-GH4", 2.0, 12, 60, 3.5, 5.6, 200), _zoom("DMC-GX7", 2.0, 14, 42, 3.5, 5.6, 200),
            _zoom("DMC-G7", 2.0, 25, 25, 1.4, 1.4, 200), _compact("DMC-LX100", 2.2, 10.9, 34, 1.7, 2.8),
            _compact("DMC-TZ80", 5.6, 4.3, 60, 3.3, 6.4)),
            "bilinear", "BGGR", 0.25, -0.04, 1.12, 0.008, 1.04, 1.2, 1.4, 0.9, 1.00, 20,
            0.90, 1.20, 0.7, 1.15, (0.12, 0.28), (0.0, 1.0, 0.0), _CAMERA_METERING),
    ),
    "Nokia": (
        Maker("Nokia", "Nokia", (
            _phone("Lumia 1020", 7.2, 2.2, 100, 1600, 3.6), _phone("Lumia 920", 3.9, 2.0, 100, 1600, 7.2),
            _phone("N8-00", 5.9, 2.8, 64, 1200, 4.7), _phone("C5-00", 4.3, 2.8, 64, 800, 8.0)),
            "bilinear", "GRBG", 0.36, 0.14, 0.98, 0.002, 0.94, 0.5, 1.4, 1.4, 1.10, 50,
            0.50, 1.05, 1.6, 1.50, (0.14, 0.34), (0.0, 0.4, 0.6), {1: 0.5, 2: 0.35, 5: 0.15}),
    ),
    "Pentax": (
        Maker("Pentax", "PENTAX", (
            _zoom("PENTAX K-5", 1.5, 18, 135, 3.5, 5.6), _zoom("PENTAX K-3", 1.5, 16, 50, 2.8, 2.8),
            _zoom("PENTAX K-30", 1.5, 43, 43, 1.9, 1.9), _zoom("PENTAX K-x", 1.5, 77, 77, 1.8, 1.8, 200)),
            "edge_aware", "BGGR", 0.18, -0.09, 1.24, 0.004, 1.22, 0.2, 0.4, 0.6, 0.85, 35,
            0.65, 0.85, 0.9, 0.90, (0.08, 0.20), (0.0, 0.9, 0.1), _CAMERA_METERING),
    ),
    "others": (
        Maker("others", "OLYMPUS IMAGING CORP.", (
            _zoom("E-M5", 2.0, 12, 50, 3.5, 6.3, 200), _zoom("E-PL5", 2.0, 45, 45, 1.8, 1.8, 200)),
            "gradient", "RGGB", 0.24, 0.0, 1.18, 0.006, 1.16, 0.9, 1.1, 1.8, 0.70, 24,
            1.25, 0.95, 1.1, 1.05, (0.09, 0.22), (0.0, 0.8, 0.2), _CAMERA_METERING),
        Maker("others", "Google", (_phone("Pixel 3", 4.44, 1.8, 50, 3000, 6.1), _phone("Pixel 5", 4.38, 1.7, 40, 3000)),
            "colour_difference", "RGGB", 0.30, -0.03, 1.28, 0.016, 1.02, 1.6, 2.0, 0.6, 1.30, 18,
            0.55, 1.00, 0.9, 1.10, (0.08, 0.20), (0.0, 0.0, 1.0), _PHONE_METERING),
        Maker("others", "HUAWEI", (_phone("EVA-L09", 4.5, 2.2, 50, 2000, 6.0), _phone("ANE-LX1", 3.8, 2.2, 50, 2000)),
            "bilinear", "RGGB", 0.33, 0.06, 1.08, 0.008, 1.20, 1.8, 2.0, 1.6, 1.40, 30,
            0.80, 0.90, 1.3, 1.30, (0.12, 0.30), (0.0, 0.0, 1.0), _PHONE_METERING),
        Maker("others", "LEICA CAMERA AG", (_zoom("LEICA Q (Typ 116)", 1.0, 28, 28, 1.7, 1.7),
            _zoom("LEICA X2", 1.5, 24, 24, 2.8, 2.8)),
            "colour_difference", "GBRG", 0.16, 0.03, 1.20, 0.012, 0.96, 0.3, 0.5, 0.9, 0.35, 12,
            0.95, 1.05, 0.8, 0.95, (0.06, 0.16), (0.7, 0.3, 0.0), _CAMERA_METERING),
    ),
}  # fmt: skip


def sample_maker(rng: np.random.Generator) -> tuple[Maker, Body]:
    """A maker group uniformly, then one of its makers, then one of its bodies."""
    groups = tuple(MAKERS)
    makers = MAKERS[groups[int(rng.integers(len(groups)))]]
    maker = makers[int(rng.integers(len(makers)))]
    return maker, maker.bodies[int(rng.integers(len(maker.bodies)))]


def quantisation_tables(maker: Maker, scale: float) -> list[list[int]]:
    """Luminance and chrominance tables, 64 entries each in natural order, steps 1 to 255.

    The step at frequency (i, j) is ``scale * 255 * (floor*0.06 + 0.42 * (r/14)**(0.6 + tilt))`` with
    ``r**2 = (i + j)**2 + (cross - 1) * 4 * i * j``, steeper and capped for chrominance.
    """
    i, j = np.mgrid[0:8, 0:8].astype(np.float64)
    radius = np.sqrt(np.maximum((i + j) ** 2 + (maker.table_cross - 1) * 4 * i * j, 0)) / 14
    power = 0.6 + maker.table_tilt
    luma = maker.table_floor * 0.06 + 0.42 * radius**power
    chroma = maker.chroma_ratio * (maker.table_floor * 0.07 + 0.42 * np.minimum(radius * 2.2, 1) ** power)
    tables = (luma * scale * 255, chroma * scale * 255)
    return [np.clip(np.floor(table + 0.5), 1, 255).astype(int).ravel().tolist() for table in tables]
