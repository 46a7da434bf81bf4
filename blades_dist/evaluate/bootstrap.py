"""Stratified bootstrap: the same draws of photographs for every generator and for every detector.

``scipy.stats.bootstrap`` resamples each call for itself: it cannot share the photographs, which comparisons of
detectors and means over generators need.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blades_dist.evaluate.ranking import Array, Metric, RocCounts, roc_counts
from blades_dist.evaluate.rates import Estimate, by_head, wilson_bounds

_BLOCK = 100  # resamples drawn from one generator state; part of what a seed means, so a constant


@dataclass(frozen=True)
class BootstrapMetric:
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
        low, high = percentiles(self.replicates[index], confidence)
        if math.isnan(value) or min(n, m) < 2:  # one image says nothing of how others vary
            low = high = math.nan
        elif low == high and value in (0.0, 1.0):
            # Resamples of two separated sets never overlap, which proves nothing. min(n, m) disjoint pairs of one
            # photograph and one generated image were all in order: a binomial of that many trials bounds the rest.
            low, high = wilson_bounds(round(value * min(n, m)), min(n, m), confidence)
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
        return percentiles(self.replicates[self.known].mean(axis=0), confidence)


def bootstrap_metrics(
    metrics: Sequence[Metric],
    real: Array | Sequence[Array],
    generated: Sequence[Array],
    resamples: int = 2000,
    seed: int = 0,
) -> list[BootstrapMetric]:
    """Every metric on (n,) photographs against each of F generators' (m_f,) scores, with a stratified bootstrap.

    ``real`` may hold F arrays instead, the scores of the same photographs in the same order under the head that
    judged that generator. Photographs are drawn with replacement among photographs and each generator's images among
    themselves, so class sizes never change. Equal sizes, ``resamples`` and ``seed`` give equal draws: that is what
    makes ``paired_difference`` paired. Cost: a few passes over resamples x (n + m) integers, per generator.

    Raises:
        ValueError: a score is not finite, or ``real`` does not fit ``generated``.
    """
    generated = [np.asarray(scores, float) for scores in generated]
    heads = [np.asarray(scores, float) for scores in by_head(real)]
    if len(heads) not in (1, len(generated)):
        raise ValueError(f"scores of the photographs under {len(heads)} heads, but {len(generated)} generators")
    own = heads if len(heads) == len(generated) else heads * len(generated)
    n = len(heads[0])
    counters = [RocCounts(*sides) for sides in zip(own, generated, strict=True)]
    values = np.full((len(metrics), len(generated)), np.nan)
    replicates = np.full((len(metrics), len(generated), resamples), np.nan)
    usable = [f for f, scores in enumerate(generated) if n and len(scores)]
    for f in usable:
        steps = roc_counts(own[f], generated[f])
        for i, metric in enumerate(metrics):
            values[i, f] = metric(*steps)[0]
    sizes = tuple(len(scores) for scores in generated)
    for block, photographs, *images in resample_counts(n, sizes, resamples, seed):
        for f in usable:
            steps = counters[f].resample(photographs, images[f])
            for i, metric in enumerate(metrics):
                replicates[i, f, block] = metric(*steps)
    return [BootstrapMetric(values[i], replicates[i], n, sizes) for i in range(len(metrics))]


def paired_difference(first: BootstrapMetric, second: BootstrapMetric, confidence: float = 0.95) -> Estimate:
    """Mean over generators of the first detector minus that of the second, paired: both on the same draws.

    The detectors' images must be the same in the same order, and ``bootstrap_metrics`` called with the same seed.

    Raises:
        ValueError: the two do not rest on the same numbers of images or resamples.
    """
    both = _paired(first, second)
    low, high = both._mean_bounds(confidence)
    if low == high:  # nothing varied, as when both separate all: the widest that the two intervals allow
        a, b = first.mean(confidence), second.mean(confidence)
        low, high = a.low - b.high, a.high - b.low
    value = float(both.values[both.known].mean()) if len(both.known) else math.nan
    return Estimate(value, low, high, first.n_real, sum(first.n_generated))


def paired_difference_p(first: BootstrapMetric, second: BootstrapMetric) -> float:
    """Two-sided p-value of ``paired_difference`` being 0, from the share of resamples on the other side of 0.

    Twice the smaller tail, each counted with one more resample as in Davison and Hinkley (1997, section 4.2), so
    never below 2 / (B + 1); ties with 0 count to both tails. nan where ``paired_difference`` has no interval, and
    where no resample varied: resamples of wholly separated sets say nothing of chance.

    Raises:
        ValueError: as for ``paired_difference``.
    """
    both = _paired(first, second)
    if math.isnan(both._mean_bounds(0.95)[0]):
        return math.nan
    drawn = both.replicates[both.known].mean(axis=0)
    if np.ptp(drawn) == 0:
        return 1.0 if drawn[0] == 0 else math.nan
    tails = [(1 + int(np.sum(side))) / (len(drawn) + 1) for side in (drawn <= 0, drawn >= 0)]
    return min(1.0, 2 * min(tails))


def resample_counts(n: int, sizes: Sequence[int], resamples: int, seed: int) -> Iterator[tuple]:
    """Blocks of a stratified bootstrap: (slice of resamples, (b, n) counts of photographs, (b, m_f) of each generator).

    A count says how often an image is in a resample of its side's size; all integers from ``seed`` alone.
    """
    for start in range(0, resamples, _BLOCK):
        stop = min(start + _BLOCK, resamples)
        counts = [_draw(size, [seed, start, side])[: stop - start] for side, size in enumerate((n, *sizes))]
        yield slice(start, stop), *counts


def percentiles(replicates: Array, confidence: float) -> tuple[float, float]:
    """Equal-tailed interval that holds the share ``confidence`` of (B,) replicates."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def _paired(first: BootstrapMetric, second: BootstrapMetric) -> BootstrapMetric:
    sizes = (first.n_real, first.n_generated, first.replicates.shape)
    if sizes != (second.n_real, second.n_generated, second.replicates.shape):
        raise ValueError("a paired comparison needs both detectors on the same images with the same resamples")
    return replace(first, values=first.values - second.values, replicates=first.replicates - second.replicates)


def _draw(n: int, key: list[int]) -> Array:
    """(_BLOCK, n) counts of how often each of n images is in each resample of size n."""
    if n == 0:
        return np.zeros((_BLOCK, 0), np.int64)
    rows = np.arange(_BLOCK)[:, None] * n
    picked = np.random.default_rng(key).integers(0, n, (_BLOCK, n)) + rows
    return np.bincount(picked.ravel(), minlength=_BLOCK * n).reshape(_BLOCK, n)
