"""Detection metrics with their uncertainty, on arrays of scores.

Scores are LARGER for what looks MORE LIKE A PHOTOGRAPH; the positive class is "AI-generated". A threshold flags what
scores below it. "Ladder" is the pair of arrays every ranking metric is read from: for the thresholds between no image
flagged and all images flagged, the numbers of flagged photographs (false positives) and flagged generated images (true
positives). Metrics act on the last axis, so that one function serves the data and thousands of resamples of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blades_dist.detect import calibrate

Array = np.ndarray
Metric = Callable[[Array, Array], Array]

_BLOCK = 100  # resamples drawn from one generator state; part of what a seed means, so a constant


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the numbers of images it rests on; nan where it is not defined."""

    value: float
    low: float
    high: float
    n_real: int
    n_generated: int


# Ranking metrics -----------------------------------------------------------------------------------------------------


def ladder(real: Array, generated: Array) -> tuple[Array, Array]:
    """(false positives, true positives), each (U + 1,) for the U distinct scores of (n,) and (m,) finite scores.

    Raises:
        ValueError: a score is not finite.
    """
    return _Ladder(real, generated).climb(np.ones((1, len(real)), int), np.ones((1, len(generated)), int))


def auc(false: Array, true: Array) -> Array:
    """Mann-Whitney P(photograph scores above generated) + P(tie) / 2; nan where a class is missing."""
    area = (np.diff(false) * (true[..., 1:] + true[..., :-1])).sum(-1) / 2
    return _ratio(area, false[..., -1] * true[..., -1].astype(float))


def average_precision(false: Array, true: Array) -> Array:
    """Sum of precision times gained recall over the thresholds, not interpolated; depends on the class ratio."""
    precision = true / np.maximum(true + false, 1)
    gained = (np.diff(true) * precision[..., 1:]).sum(-1)
    return np.where(false[..., -1] > 0, _ratio(gained, true[..., -1]), np.nan)


def equal_error_rate(false: Array, true: Array) -> Array:
    """Rate at which photographs flagged and generated images missed are equally frequent, linear between thresholds."""
    fpr, tpr = roc(false, true)
    gap = fpr + tpr - 1  # from -1 to 1, never falling
    after = (gap >= 0).argmax(-1)[..., None]
    before = np.maximum(after - 1, 0)
    gap_before, gap_after = np.take_along_axis(gap, before, -1), np.take_along_axis(gap, after, -1)
    share = _ratio(-gap_before, gap_after - gap_before)
    fpr_before, fpr_after = np.take_along_axis(fpr, before, -1), np.take_along_axis(fpr, after, -1)
    return (fpr_before + share * (fpr_after - fpr_before))[..., 0]


def tpr_at(level: float) -> Metric:
    """The metric "largest TPR of a threshold whose FPR is at most ``level``"."""

    def metric(false: Array, true: Array) -> Array:
        fpr, tpr = roc(false, true)
        last = (fpr <= level + 1e-12).sum(-1, keepdims=True) - 1
        value = np.take_along_axis(tpr, np.maximum(last, 0), -1)[..., 0]
        return np.where(false[..., -1] > 0, value, np.nan)

    return metric


def roc(false: Array, true: Array) -> tuple[Array, Array]:
    """(FPR, TPR) in 0..1 at every threshold of a ladder; nan where a class is missing."""
    return _ratio(false, false[..., -1:]), _ratio(true, true[..., -1:])


class _Ladder:
    """Sorted scores, from which the ladder of any resample follows by two cumulative sums."""

    def __init__(self, real: Array, generated: Array) -> None:
        if not (np.isfinite(real).all() and np.isfinite(generated).all()):
            raise ValueError("scores must be finite")
        levels = np.unique(np.concatenate([real, generated]))
        self.sides = []
        for scores in (real, generated):
            order = np.argsort(scores, kind="stable")
            self.sides.append((order, np.append(0, np.searchsorted(scores[order], levels, side="right"))))

    def climb(self, *counts: Array) -> tuple[Array, Array]:
        """Ladders (B, U + 1) of resamples given as how often each image was drawn, (B, n) and (B, m)."""
        steps = []
        for (order, ends), drawn in zip(self.sides, counts, strict=True):
            climbed = np.zeros((len(drawn), drawn.shape[1] + 1), np.int64)
            np.cumsum(drawn[:, order], axis=1, out=climbed[:, 1:])
            steps.append(climbed[:, ends])
        return steps[0], steps[1]


# Bootstrap -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """One metric of one detector on every generator, with its resamples.

    ``values`` (F,); ``replicates`` (F, B): the b-th column rests on one draw of the photographs, shared by all
    generators and by every detector evaluated with the same seed on the same images.
    """

    values: Array
    replicates: Array
    n_real: int
    n_generated: tuple[int, ...]

    def estimate(self, index: int, confidence: float = 0.95) -> Estimate:
        """Percentile interval for one generator."""
        n, m, value = self.n_real, self.n_generated[index], float(self.values[index])
        low, high = _percentiles(self.replicates[index], confidence)
        if math.isnan(value) or min(n, m) < 2:  # one image says nothing of how others vary
            low = high = math.nan
        elif low == high and value in (0.0, 1.0):
            # Resamples of two separated sets never overlap, which proves nothing. min(n, m) disjoint pairs of one
            # photograph and one generated image were all in order: a binomial of that many trials bounds the rest.
            low, high = wilson(round(value * min(n, m)), min(n, m), confidence)
        return Estimate(value, low, high, n, m)

    def mean(self, confidence: float = 0.95) -> Estimate:
        """Unweighted mean over the generators that have images, the photographs resampled jointly."""
        low, high = self._mean_bounds(confidence)
        if low == high:  # every part is degenerate: the mean of their bounds
            parts = [self.estimate(int(i), confidence) for i in self.known]
            low, high = float(np.mean([part.low for part in parts])), float(np.mean([part.high for part in parts]))
        value = float(self.values[self.known].mean()) if len(self.known) else math.nan
        return Estimate(value, low, high, self.n_real, sum(self.n_generated))

    @property
    def known(self) -> Array:
        """Indices of the generators for which the metric is defined."""
        return np.flatnonzero(~np.isnan(self.values))

    def _mean_bounds(self, confidence: float) -> tuple[float, float]:
        if not len(self.known) or min(self.n_real, *(self.n_generated[i] for i in self.known)) < 2:
            return math.nan, math.nan
        return _percentiles(self.replicates[self.known].mean(axis=0), confidence)


def rank(
    metrics: Sequence[Metric], real: Array, generated: Sequence[Array], resamples: int = 2000, seed: int = 0
) -> list[Ranked]:
    """Every metric on (n,) photographs against each of F generators' (m_f,) scores, with a stratified bootstrap.

    Photographs are drawn with replacement among photographs and each generator's images among themselves, so class
    sizes never change. Equal sizes, ``resamples`` and ``seed`` give equal draws: that is what makes ``difference``
    a paired comparison. Cost: a few passes over resamples x (n + m) integers, per generator.

    Raises:
        ValueError: a score is not finite.
    """
    real, generated = np.asarray(real, float), [np.asarray(scores, float) for scores in generated]
    ladders = [_Ladder(real, scores) for scores in generated]
    values = np.full((len(metrics), len(generated)), np.nan)
    replicates = np.full((len(metrics), len(generated), resamples), np.nan)
    usable = [f for f, scores in enumerate(generated) if len(real) and len(scores)]
    for f in usable:
        steps = ladder(real, generated[f])
        for i, metric in enumerate(metrics):
            values[i, f] = metric(*steps)[0]
    for start in range(0, resamples, _BLOCK):
        stop = min(start + _BLOCK, resamples)
        drawn = _draw(len(real), [seed, start, 0])[: stop - start]
        for f in usable:
            steps = ladders[f].climb(drawn, _draw(len(generated[f]), [seed, start, f + 1])[: stop - start])
            for i, metric in enumerate(metrics):
                replicates[i, f, start:stop] = metric(*steps)
    sizes = tuple(len(scores) for scores in generated)
    return [Ranked(values[i], replicates[i], len(real), sizes) for i in range(len(metrics))]


def difference(first: Ranked, second: Ranked, confidence: float = 0.95) -> Estimate:
    """Mean over generators of the first detector minus that of the second, paired: both on the same draws.

    The detectors' images must be the same in the same order, and ``rank`` called with the same seed.

    Raises:
        ValueError: the two do not rest on the same numbers of images or resamples.
    """
    sizes = (first.n_real, first.n_generated, first.replicates.shape)
    if sizes != (second.n_real, second.n_generated, second.replicates.shape):
        raise ValueError("a paired comparison needs both detectors on the same images with the same resamples")
    both = replace(first, values=first.values - second.values, replicates=first.replicates - second.replicates)
    low, high = both._mean_bounds(confidence)
    if low == high:  # nothing varied, as when both separate all: the widest that the two intervals allow
        a, b = first.mean(confidence), second.mean(confidence)
        low, high = a.low - b.high, a.high - b.low
    value = float(both.values[both.known].mean()) if len(both.known) else math.nan
    return Estimate(value, low, high, first.n_real, sum(first.n_generated))


def _draw(n: int, key: list[int]) -> Array:
    """(_BLOCK, n) counts of how often each of n images is in each resample of size n."""
    if n == 0:
        return np.zeros((_BLOCK, 0), np.int64)
    rows = np.arange(_BLOCK)[:, None] * n
    picked = np.random.default_rng(key).integers(0, n, (_BLOCK, n)) + rows
    return np.bincount(picked.ravel(), minlength=_BLOCK * n).reshape(_BLOCK, n)


def _percentiles(replicates: Array, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


# Rates at a threshold ------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share, as ``detect.calibrate`` has it; (nan, nan) for n = 0."""
    if n == 0:
        return math.nan, math.nan
    found = calibrate.wilson(hits, n, confidence)
    return found.low, found.high


def rate(hits: int, n: int, of_real: bool, confidence: float = 0.95) -> Estimate:
    """Share of n images of one class with Wilson's interval."""
    low, high = wilson(hits, n, confidence)
    return Estimate(hits / n if n else math.nan, low, high, n if of_real else 0, 0 if of_real else n)


def confusion(real: Array, generated: Array, confidence: float = 0.95, seed: int = 0) -> dict[str, Estimate]:
    """TNR, FPR, TPR, FNR and F1 of flags (n,) and (m,), True = called AI-generated, the positive class.

    F1 depends on the class ratio of the test set. Its interval is the equal-tailed one of the two rates' Jeffreys
    distributions, widened to hold the value itself: unlike a bootstrap it stays open when no error was seen.
    """
    n, m, false, true = len(real), len(generated), int(np.sum(real)), int(np.sum(generated))
    return {
        "TNR": rate(n - false, n, True, confidence),
        "FPR": rate(false, n, True, confidence),
        "TPR": rate(true, m, False, confidence),
        "FNR": rate(m - true, m, False, confidence),
        "F1": _f1(false, n, true, m, confidence, seed),
    }


def _f1(false: int, n: int, true: int, m: int, confidence: float, seed: int) -> Estimate:
    if n == 0 or m == 0:
        return Estimate(math.nan, math.nan, math.nan, n, m)
    rng = np.random.default_rng([seed, n, m])
    tp = m * rng.beta(true + 0.5, m - true + 0.5, 20_000)
    fp = n * rng.beta(false + 0.5, n - false + 0.5, 20_000)
    low, high = _percentiles(2 * tp / (tp + fp + m), confidence)
    value = 2 * true / (true + false + m)
    return Estimate(value, min(low, value), max(high, value), n, m)


def balanced_accuracy(real: Array, generated: Sequence[Array], confidence: float = 0.95) -> Estimate:
    """(TNR + mean of the generators' TPRs) / 2 of flags (n,) and (m_f,), True = called AI-generated.

    Balanced, so that it does not depend on how many images each side has. Interval: the parts' Wilson intervals
    joined by square and add (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    present = [flags for flags in generated if len(flags)]
    total = sum(map(len, present))
    if not len(real) or not present:
        return Estimate(math.nan, math.nan, math.nan, len(real), total)
    parts = [(0.5, rate(int(len(real) - np.sum(real)), len(real), True, confidence))]
    parts += [(0.5 / len(present), rate(int(np.sum(flags)), len(flags), False, confidence)) for flags in present]
    value = sum(weight * part.value for weight, part in parts)
    down = math.sqrt(sum((weight * (part.value - part.low)) ** 2 for weight, part in parts))
    up = math.sqrt(sum((weight * (part.high - part.value)) ** 2 for weight, part in parts))
    return Estimate(value, max(0.0, value - down), min(1.0, value + up), len(real), total)


def _ratio(part: Array, whole: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(part, whole)
