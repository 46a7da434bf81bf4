"""What happens to a face picture between camera and detector, as named steps with a number: ``resize0.5+jpeg75``.

A spec is steps joined by ``+``, done from left to right; "" changes nothing. Pictures are (H, W, 3) uint8 RGB in and
out; ``crop``, ``avatar`` and the platforms' presets may change H and W, nothing else does. docs/robustness.md says what
each step does and where its numbers are from.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

CHROMA_FROM = 90  # JPEG quality from which chroma is kept whole (4:4:4), as many web encoders do; below it 4:2:0
SCREEN_SCALE = 1.25  # pixels of a screen a pixel of the picture: the commonest fractional scaling of desktops
_AVATAR_QUALITY = 85


@dataclass(frozen=True)
class Platform:
    """What a platform does to an upload: longest side at most ``bound`` pixels, then JPEG at ``quality``."""

    bound: int
    quality: int


# Rounded from what users and forensic papers report of ordinary uploads; platforms change them without notice.
PLATFORMS: Mapping[str, Platform] = {
    "whatsapp": Platform(1600, 70),
    "instagram": Platform(1080, 75),
    "x": Platform(2048, 85),
    "facebook": Platform(2048, 80),
    "telegram": Platform(1280, 87),
}

# Rows of the robustness grid. The unchanged picture is no row: every grid is read against it.
GRID: Mapping[str, tuple[str, ...]] = {
    "JPEG": tuple(f"jpeg{q}" for q in (95, 90, 80, 70, 60, 50, 40, 30)),
    "WebP": tuple(f"webp{q}" for q in (90, 75, 60, 45, 30)),
    "down and back": ("resize0.5", "resize0.25", "resize0.125"),
    "Gaussian blur": ("blur0.5", "blur1", "blur2", "blur4"),
    "Gaussian noise": ("noise2", "noise5", "noise10", "noise20"),
    "central crop": ("crop0.95", "crop0.9", "crop0.8", "crop0.7"),
    "gamma": ("gamma0.6", "gamma0.8", "gamma1.25", "gamma1.6"),
    "screenshot": ("screenshot", "jpeg75+screenshot", "screenshot+screenshot"),
    "platform": tuple(PLATFORMS),
    "half size, platform": tuple(f"resize0.5+{name}" for name in PLATFORMS),
    "chain": ("resize0.5+jpeg75", "jpeg90+resize0.5+jpeg60", "whatsapp+screenshot+instagram", "blur1+noise5+jpeg75"),
    "avatar": ("avatar128", "avatar96", "avatar64", "avatar48"),
}


def apply(spec: str, pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """The picture after every step of ``spec``: (H', W', 3) uint8 RGB, never the array that was given.

    Depends on (spec, pixels, seed) alone; ``seed`` (>= 0) matters to noise only.

    Raises:
        ValueError: as ``check_spec``; or the pixels are not (H, W, 3) uint8.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"perturb: a picture is (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}")
    rng = np.random.default_rng(seed)
    result = np.array(pixels)
    for step, value in _parsed(spec):
        result = step.change(result, value, rng)
    return np.ascontiguousarray(result)


def check_spec(spec: str) -> None:
    """Whether ``apply`` knows every step.

    Raises:
        ValueError: a step is unknown or its number is missing, superfluous or out of range; says what is known.
    """
    _parsed(spec)


def jpeg_bytes(pixels: np.ndarray, quality: int) -> bytes:
    """A baseline JPEG file of a picture; chroma at half resolution below quality ``CHROMA_FROM``."""
    return _file(pixels, "JPEG", quality=quality, subsampling="4:4:4" if quality >= CHROMA_FROM else "4:2:0")


def read_back(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file that was written here."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture at another size: area averages downwards, bicubic upwards."""
    if (width, height) == (pixels.shape[1], pixels.shape[0]):
        return pixels
    smaller = width * height < pixels.shape[0] * pixels.shape[1]
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC))


# Steps ---------------------------------------------------------------------------------------------------------------


def _jpeg(pixels: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    return read_back(jpeg_bytes(pixels, int(quality)))


def _webp(pixels: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    return read_back(_file(pixels, "WEBP", quality=int(quality)))


def _resize(pixels: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    small = resized(pixels, max(1, round(width * factor)), max(1, round(height * factor)))
    return resized(small, width, height)


def _blur(pixels: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))


def _noise(pixels: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noisy = pixels + sigma * rng.standard_normal(pixels.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _crop(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    height, width = (max(1, round(n * share)) for n in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _gamma(pixels: np.ndarray, exponent: float, rng: np.random.Generator) -> np.ndarray:
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return table[pixels]


def _screenshot(pixels: np.ndarray, _: float, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    shown = cv2.resize(
        pixels, (round(width * SCREEN_SCALE), round(height * SCREEN_SCALE)), interpolation=cv2.INTER_LINEAR
    )
    return _jpeg(resized(shown, width, height), 90, rng)


def _avatar(pixels: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    return _jpeg(_at_most(pixels, int(side)), _AVATAR_QUALITY, rng)


def _platform(platform: Platform) -> "Change":
    return lambda pixels, _, rng: _jpeg(_at_most(pixels, platform.bound), platform.quality, rng)


def _at_most(pixels: np.ndarray, side: int) -> np.ndarray:
    """Longest side made ``side`` pixels; smaller pictures stay as they are."""
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    return resized(pixels, max(1, round(width * factor)), max(1, round(height * factor)))


def _file(pixels: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, form, **options)
    return buffer.getvalue()


# Specs ---------------------------------------------------------------------------------------------------------------

Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class _Step:
    """``bounds`` of the step's number; None: it takes none."""

    change: Change
    bounds: tuple[float, float] | None = None
    whole: bool = False


_STEPS = {
    "jpeg": _Step(_jpeg, (1, 100), whole=True),
    "webp": _Step(_webp, (1, 100), whole=True),
    "resize": _Step(_resize, (0.01, 1)),
    "blur": _Step(_blur, (0.1, 50)),
    "noise": _Step(_noise, (0.1, 128)),
    "crop": _Step(_crop, (0.1, 1)),
    "gamma": _Step(_gamma, (0.1, 10)),
    "avatar": _Step(_avatar, (8, 1024), whole=True),
    "screenshot": _Step(_screenshot),
    **{name: _Step(_platform(platform)) for name, platform in PLATFORMS.items()},
}
_FORM = re.compile(r"([a-z]+)(\d+(?:\.\d+)?)?")


def _parsed(spec: str) -> list[tuple[_Step, float]]:
    return [_step(part, spec) for part in spec.split("+")] if spec else []


def _step(part: str, spec: str) -> tuple[_Step, float]:
    found = _FORM.fullmatch(part)
    step = _STEPS.get(found[1]) if found else None
    if found is None or step is None:
        raise ValueError(f"perturb: unknown step {part!r} in {spec!r}; known: {_known()}, joined by +")
    if step.bounds is None:
        if found[2] is not None:
            raise ValueError(f"perturb: {found[1]} takes no number, got {part!r} in {spec!r}; known: {_known()}")
        return step, 0.0
    low, high = step.bounds
    value = float(found[2]) if found[2] is not None else float("nan")
    if not low <= value <= high or (step.whole and value != int(value)):
        kind = "a whole number" if step.whole else "a number"
        raise ValueError(f"perturb: {found[1]} takes {kind} from {low:g} to {high:g}, got {part!r} in {spec!r}")
    return step, value


def _known() -> str:
    return ", ".join(name + ("" if step.bounds is None else "N") for name, step in _STEPS.items())
