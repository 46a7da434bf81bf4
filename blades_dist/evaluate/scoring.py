"""Features, scores and decisions of detectors on the two sides of a test set."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from blades_dist.config import EvaluateConfig
from blades_dist.detect.bundle import Detector
from blades_dist.detect.features import FeatureSet, extract
from blades_dist.models.export import FrozenEncoder, encoder_digest

SPLIT = "test"


@dataclass(frozen=True)
class Sides:
    """Features of the photographs and of the generated faces under one encoder; ``rows`` by generator."""

    real: FeatureSet
    generated: FeatureSet
    rows: dict[str, np.ndarray]


@dataclass(frozen=True)
class Scored:
    """A detector's scores (larger = more like a photograph) and flags (True = called AI-generated), by side."""

    detector: Detector
    real: np.ndarray
    generated: dict[str, np.ndarray]
    real_flags: np.ndarray
    generated_flags: dict[str, np.ndarray]


def features(config: EvaluateConfig, detectors: Mapping[str, Detector]) -> dict[str, Sides]:
    """Both sides by detector; detectors on one encoder share what it computed.

    Raises:
        FileNotFoundError, ValueError: a shard set is missing, empty or damaged.
    """
    by_encoder: dict[str, Sides] = {}
    found = {}
    for name, detector in detectors.items():
        digest = encoder_digest(config.detectors[name])
        if digest not in by_encoder:
            by_encoder[digest] = _sides(config, detector.encoder, name)
        found[name] = by_encoder[digest]
    return found


def score(detector: Detector, sides: Sides) -> Scored:
    """Scores and decisions at the bundle's own threshold.

    Raises:
        ValueError: a score is not finite.
    """
    real, all_generated = detector.score(sides.real.features), detector.score(sides.generated.features)
    if not (np.isfinite(real).all() and np.isfinite(all_generated).all()):
        raise ValueError("scores that are not finite: the detector's head is damaged")
    generated = {name: all_generated[rows] for name, rows in sides.rows.items()}
    flags = {name: detector.is_generated(scores) for name, scores in generated.items()}
    return Scored(detector, real, generated, detector.is_generated(real), flags)


def _sides(config: EvaluateConfig, encoder: FrozenEncoder, name: str) -> Sides:
    real = extract(encoder, config.shards, SPLIT, config.batch_size, progress=_progress(f"photographs ({name})"))
    generated = extract(
        encoder, config.generated, SPLIT, config.batch_size, progress=_progress(f"generated faces ({name})")
    )
    sources = np.array(generated.sources)
    return Sides(real, generated, {name: np.flatnonzero(sources == name) for name in sorted(set(generated.sources))})


def _progress(what: str, every: float = 2.0) -> Callable[[int, int], None]:
    """Says at most every so many seconds, on the error stream, how far the features are."""
    start = last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate
            print(f"features of {what}: {done}/{total}, {rate:.0f}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    return say
