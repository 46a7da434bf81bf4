"""Shares of images at an operating point, with intervals.

Flags are bool, True = called AI-generated. Where a generator has a head of its own, the photographs were judged once a
head: their rate is the mean over heads. Its interval is that of n images, not of n times the heads: the mean of
dependent decisions varies at most as much as one decision of that rate does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blades_dist.detect import calibrate


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the numbers of images it rests on; nan where it is not defined."""

    value: float
    low: float
    high: float
    n_real: int
    n_generated: int


def by_head(real: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """Predictions on the same photographs: one (n,) array for all generators, or one a generator's own head, as a list.

    Raises:
        ValueError: the arrays differ in length.
    """
    heads = [real] if isinstance(real, np.ndarray) and real.ndim == 1 else [np.asarray(one) for one in real]
    if len({len(one) for one in heads}) > 1:
        raise ValueError(
            f"predictions on the same photographs are needed, got {', '.join(str(len(one)) for one in heads)} of them"
        )
    return heads


Array = np.ndarray


def wilson_bounds(hits: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share, as ``detect.calibrate`` has it; (nan, nan) for n = 0.

    ``hits`` between integers (a mean over heads) gets the bounds of the integers around it.
    """
    if n == 0:
        return math.nan, math.nan
    low, high = (calibrate.wilson(count, n, confidence) for count in (math.floor(hits), math.ceil(hits)))
    return low.low, high.high


def rate(hits: float, n: int, of_real: bool, confidence: float = 0.95) -> Estimate:
    """Share of n images of one class with Wilson's interval."""
    low, high = wilson_bounds(hits, n, confidence)
    return Estimate(hits / n if n else math.nan, low, high, n if of_real else 0, 0 if of_real else n)


def share(marks: Array | Sequence[Array], of_real: bool, confidence: float = 0.95) -> Estimate:
    """Share of marked images in (n,) bool, or in the mean over heads of several such arrays on the same images."""
    heads = by_head(marks)
    return rate(_mean_count(heads), len(heads[0]), of_real, confidence)


def confusion(
    real: Array | Sequence[Array], generated: Array, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """TNR, FPR, TPR, FNR and F1 of flags (n,) (or one such array a head) and (m,), AI-generated = positive.

    F1 depends on the class ratio of the test set. Its interval is the equal-tailed one of the two rates' Jeffreys
    distributions, widened to hold the value itself: unlike a bootstrap it stays open when no error was seen.
    """
    heads = by_head(real)
    n, m, false, true = len(heads[0]), len(generated), _mean_count(heads), int(np.sum(generated))
    return {
        "TNR": rate(n - false, n, True, confidence),
        "FPR": rate(false, n, True, confidence),
        "TPR": rate(true, m, False, confidence),
        "FNR": rate(m - true, m, False, confidence),
        "F1": _f1(false, n, true, m, confidence, seed),
    }


def balanced_accuracy(real: Array | Sequence[Array], generated: Sequence[Array], confidence: float = 0.95) -> Estimate:
    """(TNR + mean of the generators' TPRs) / 2 of flags (n,) (or one such array a head) and (m_f,)."""
    return balanced_share([~np.asarray(flags, bool) for flags in by_head(real)], generated, confidence)


def balanced_share(real: Array | Sequence[Array], generated: Sequence[Array], confidence: float = 0.95) -> Estimate:
    """(share of photographs + mean over generators of their shares) / 2 of marks (n,) and (m_f,).

    Balanced, so that it does not depend on how many images each side has. Interval: the parts' Wilson intervals
    joined by square and add (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    heads, present = by_head(real), [marks for marks in generated if len(marks)]
    n, total = len(heads[0]), sum(map(len, present))
    if not n or not present:
        return Estimate(math.nan, math.nan, math.nan, n, total)
    parts = [(0.5, share(heads, True, confidence))]
    parts += [(0.5 / len(present), share(marks, False, confidence)) for marks in present]
    value = sum(weight * part.value for weight, part in parts)
    down = math.sqrt(sum((weight * (part.value - part.low)) ** 2 for weight, part in parts))
    up = math.sqrt(sum((weight * (part.high - part.value)) ** 2 for weight, part in parts))
    return Estimate(value, max(0.0, value - down), min(1.0, value + up), n, total)


def _mean_count(heads: Sequence[Array]) -> float:
    return float(np.mean([np.sum(marks) for marks in heads]))


def _f1(false: float, n: int, true: int, m: int, confidence: float, seed: int) -> Estimate:
    if n == 0 or m == 0:
        return Estimate(math.nan, math.nan, math.nan, n, m)
    rng = np.random.default_rng([seed, n, m])
    tp = m * rng.beta(true + 0.5, m - true + 0.5, 20_000)
    fp = n * rng.beta(false + 0.5, n - false + 0.5, 20_000)
    tail = (1 - confidence) / 2
    low, high = np.quantile(2 * tp / (tp + fp + m), [tail, 1 - tail])
    value = 2 * true / (true + false + m)
    return Estimate(value, min(float(low), value), max(float(high), value), n, m)
