"""Taking a photograph: what a photographer and a camera choose, given a scene.

``plan_shot`` chooses what is decided before light is measured (program, lens, distance, flash); ``expose`` measures
the rendered scene and sets aperture, time and ISO as the program says. The choices are joint: a dark room leads to a
wide aperture, a long time and a high ISO, a bright beach to the opposite, and who turns the dial to manual misses
the right exposure more often than a camera does.
"""

import functools
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from blades_dist.simulate.exif_out import ExifSettings, sample_missing
from blades_dist.simulate.makers import Body, Maker
from blades_dist.simulate.scene import Light, Scene, colour_of_light
from blades_dist.simulate.textures import Image, black_body

METER_CONSTANT = 12.5  # K of N^2/t = L S / K, candela per square metre
MID_GREY = 0.127  # of saturation, where the meter puts what it measures
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
# fmt: off
_F_NUMBERS = (1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.5, 2.8, 3.2, 3.5, 4.0, 4.5, 5.0, 5.6, 6.3, 7.1, 8.0, 9.0, 10.0, 11.0,
              13.0, 14.0, 16.0, 18.0, 20.0, 22.0)
_ISOS = (20, 25, 32, 40, 50, 64, 80, 100, 125, 160, 200, 250, 320, 400, 500, 640, 800, 1000, 1250, 1600, 2000, 2500,
         3200, 4000, 5000, 6400, 8000, 10000, 12800)
_PER_SECOND = (2, 2.5, 3, 4, 5, 6, 8, 10, 13, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 160, 200, 250, 320, 400, 500,
               640, 800, 1000, 1250, 1600, 2000, 2500, 3200, 4000, 5000, 6400, 8000)
# fmt: on


@dataclass(frozen=True)
class ShotPlan:
    """A shot before metering. EXIF codes where EXIF has them."""

    maker: Maker
    body: Body
    program: int
    exposure_mode: int
    metering: int
    white_balance: int
    preset_kelvin: float  # of a manual white balance
    focal: float  # millimetres
    distance: float  # millimetres to the face
    widest: float  # smallest f-number at this focal length
    flash: float  # over the scene's light, 0 for none
    bracket: float  # exposure compensation, stops


@dataclass(frozen=True)
class Settings:
    """A shot after metering: all that the picture depends on, with the values that EXIF will state."""

    plan: ShotPlan
    iso: int
    f_number: float
    time: float  # seconds
    white_gains: Image  # (3,): what the camera believes the light's colour is, to be divided out
    exif: ExifSettings


def plan_shot(maker: Maker, body: Body, light: Light, rng: np.random.Generator) -> ShotPlan:
    """Chooses program, lens, distance, metering, white balance and flash for a scene in this light."""
    program, mode = _program(body, rng)
    low, high = body.focal
    focal = low if low == high else float(round(np.exp(rng.uniform(np.log(low), np.log(high))), 1))
    share = 0.0 if high == low else np.log(focal / low) / np.log(high / low)
    widest = body.aperture[0] + (body.aperture[1] - body.aperture[0]) * float(share)
    equivalent = focal * body.crop
    distance = float(np.clip(equivalent * rng.uniform(11, 24), 320, 4500))
    dark = light.lux < 150
    with_flash = rng.random() < (0.4 if dark else 0.04 if light.kind != "sun" else 0.07)
    flash = 0.0
    if with_flash:
        flash = float(np.clip(rng.uniform(40, 250) / light.lux * (1500 / distance) ** 0.5, 0.3, 6)) if dark else 0.4
    manual_wb = rng.random() < (0.28 if body.modes else 0.07)
    codes, weights = zip(*maker.metering.items(), strict=True)
    return ShotPlan(
        maker=maker,
        body=body,
        program=program,
        exposure_mode=mode,
        metering=int(rng.choice(codes, p=np.array(weights) / sum(weights))),
        white_balance=int(manual_wb),
        preset_kelvin=_preset(light, rng),
        focal=focal,
        distance=distance,
        widest=widest,
        flash=flash,
        bracket=float(rng.choice([-1.0, 0.0, 1.0])) if mode == 2 else 0.0,
    )


def _program(body: Body, rng: np.random.Generator) -> tuple[int, int]:
    """EXIF ExposureProgram and ExposureMode."""
    if body.phone:
        return int(rng.choice([2, 0], p=[0.94, 0.06])), 0
    if not body.modes:
        return int(rng.choice([2, 7, 8], p=[0.7, 0.2, 0.1])), 0
    program = int(rng.choice([2, 3, 1, 4, 7, 8], p=[0.27, 0.29, 0.16, 0.12, 0.1, 0.06]))
    if program == 1:
        return program, 1
    return program, 2 if rng.random() < 0.06 else 0


def _preset(light: Light, rng: np.random.Generator) -> float:
    """The preset a person sets: the one nearest to the light, or one left over from the last place."""
    presets = np.array([2850.0, 3800.0, 5200.0, 6000.0, 7000.0])
    if rng.random() < 0.15:
        return float(rng.choice(presets))
    return float(presets[np.argmin(np.abs(1 / presets - 1 / light.kelvin))])


def expose(plan: ShotPlan, scene: Scene, light: Light, rng: np.random.Generator) -> Settings:
    """Measures the scene and chooses aperture, exposure time and ISO."""
    luminance = light.lux * meter(scene, plan.metering, rng) / np.pi
    needed = luminance / METER_CONSTANT * 2.0**-plan.bracket  # N^2 / (t S)
    if plan.program == 1:
        needed *= 2.0 ** float(rng.normal(0, 0.55))
    f_number, time, iso = _choose(plan, needed, light, rng)
    iso = min(_ISOS, key=lambda value: abs(np.log(value / iso))) if not plan.body.phone else round(iso)
    f_number = plan.widest if plan.body.phone else _nearest_f(f_number, plan.widest)
    # Time is the last to be set, so it takes up what the rounding of the others left.
    if plan.program not in (1, 4):
        time = f_number**2 / (needed * iso)
    fraction = _time_fraction(min(max(time, 1 / 8000), 0.5), plan.body.phone)
    aperture = Fraction(round(f_number * 10), 10)
    tags: dict[str, int | Fraction | str] = {
        "iso": iso,
        "aperture": aperture,
        "exposure_time": fraction,
        "focal_length": Fraction(round(plan.focal * 100), 100),
        "metering_mode": plan.metering,
        "exposure_mode": plan.exposure_mode,
        "white_balance": plan.white_balance,
        "exposure_program": plan.program,
        "flash": _flash_code(plan),
        "make": plan.maker.exif_make,
    }
    exif = ExifSettings(tags, plan.body.model, round(plan.focal * plan.body.crop), sample_missing(tags, rng))
    gains = _white_balance(plan, light, rng)
    return Settings(plan, iso, float(aperture), float(fraction), gains, exif)


def _flash_code(plan: ShotPlan) -> int:
    """EXIF's Flash: bit 0 fired; bits 3 and 4 whether that was forced (1), forbidden (2) or left to the camera (3)."""
    automatic = plan.program in (0, 2, 7)
    if plan.flash:
        return 25 if automatic else 9
    return 24 if automatic else 16


def _choose(plan: ShotPlan, needed: float, light: Light, rng: np.random.Generator) -> tuple[float, float, float]:
    """F-number, time and ISO with N^2 / (t S) = needed as nearly as the program allows."""
    body, widest = plan.body, plan.widest
    steady = 1 / 60 if plan.flash else 1 / max(plan.focal * body.crop, 50) * float(rng.uniform(0.6, 1.2))
    slowest = max(steady, 1 / 60) * float(rng.uniform(1.5, 5))
    preferred = {3: widest * float(rng.choice([1.0, 1.0, 1.26, 1.6, 2.5])), 7: widest, 8: max(8.0, widest)}
    f_number = widest if body.phone else preferred.get(plan.program, _program_aperture(needed, widest, body))
    f_number = min(max(f_number, widest), 22.0 if body.modes else 8.0)
    if plan.program == 4:
        time = 1 / float(rng.choice([15, 30, 60, 125, 250, 500, 1000], p=[0.08, 0.17, 0.2, 0.25, 0.15, 0.1, 0.05]))
        f_number = float(np.clip(np.sqrt(needed * time * body.base_iso), widest, 16))
        return f_number, time, float(np.clip(f_number**2 / (needed * time), body.base_iso, body.top_iso))
    if plan.program == 1 or (body.modes and plan.program == 3 and rng.random() < 0.35):
        # ISO set by hand, by the kind of place.
        by_place = {"night": (800, 1600, 3200, 6400), "indoor": (400, 800, 1600), "shade": (100, 200, 400)}
        iso = float(rng.choice(by_place.get(light.kind, (100, 200))))
        iso = min(max(iso, body.base_iso), body.top_iso)
        f_number = widest * float(rng.choice([1.0, 1.26, 1.6, 2.2]))
        return f_number, min(f_number**2 / (needed * iso), 0.25), iso
    iso = float(body.base_iso)
    if f_number**2 / (needed * iso) > steady:
        iso = min(f_number**2 / (needed * steady), body.top_iso * float(rng.uniform(0.35, 1)))
    if f_number**2 / (needed * iso) > slowest:
        f_number = max(widest, f_number * 0.7)
        iso = min(max(f_number**2 / (needed * slowest), body.base_iso), body.top_iso)
    return f_number, f_number**2 / (needed * iso), iso


def _program_aperture(needed: float, widest: float, body: Body) -> float:
    """The program line: open in the dark, about f/8 in the sun."""
    at_sixtieth = np.sqrt(needed * body.base_iso / 60)
    return float(np.clip(widest * max(at_sixtieth / widest, 1) ** 0.55, widest, 11))


def _nearest_f(value: float, widest: float) -> float:
    allowed = [f for f in _F_NUMBERS if f >= widest - 0.05] or [_F_NUMBERS[-1]]
    return min(allowed, key=lambda f: abs(np.log(f / value)))


def _time_fraction(seconds: float, phone: bool) -> Fraction:
    """Seconds as cameras write them: 1/n, in third stops for cameras with dials."""
    if not phone:
        seconds = 1 / min(_PER_SECOND, key=lambda n: abs(np.log(n * seconds)))
    return Fraction(1, round(1 / seconds)) if seconds < 0.3 else Fraction(round(seconds * 10), 10)


def meter(scene: Scene, mode: int, rng: np.random.Generator) -> float:
    """Relative luminance that a metering mode finds, such that it will become mid-grey.

    Modes are EXIF's: 1 average, 2 centre-weighted, 3 spot, 4 multi-spot, 5 multi-segment, 6 partial.
    """
    front, back = (_LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b for r, g, b in (scene.foreground, scene.background))
    small = cv2.resize(back + scene.alpha * (front - back), (24, 24), interpolation=cv2.INTER_AREA)
    average = float(small.mean())
    if mode == 1:
        return average
    if mode == 4:
        spots = small.ravel()[rng.integers(0, small.size, 5)]
        return float(np.exp(np.log(np.maximum(spots, 1e-3)).mean()))
    if mode in (2, 3, 6):
        return float((small * _weights(mode)).sum())
    # Multi-segment: knows that faces are lighter than grey and that lamps and sky should not rule.
    face = float((small * _weights(6)).sum())
    tempered = float(np.minimum(small, 3 * np.median(small)).mean())
    return face**0.55 * tempered**0.45 * 0.92


@functools.cache
def _weights(mode: int) -> Image:
    line = np.linspace(-1, 1, 24, dtype=np.float32)
    square = line[None, :] ** 2 + line[:, None] ** 2
    width = {2: 0.55, 3: 0.13, 6: 0.3}[mode]
    weights = np.exp(-0.5 * square / width**2)
    return np.asarray(weights / weights.sum(), np.float32)


def _white_balance(plan: ShotPlan, light: Light, rng: np.random.Generator) -> Image:
    """The camera's belief about the light's colour (3,), green 1."""
    if plan.white_balance:
        believed = black_body(plan.preset_kelvin)
    else:
        true = (colour_of_light(light) + plan.flash * black_body(5600)) / (1 + plan.flash)
        # Automatic balance leaves some of the warmth of warm light, and errs a little.
        believed = true ** float(rng.uniform(0.78, 1.0)) * np.exp(rng.normal(0, 0.035, 3)).astype(np.float32)
    return np.asarray(believed / believed[1], np.float32)
