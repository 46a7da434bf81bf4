"""Whether probabilities and p-values mean what they say.

Probabilities are of AI-generated. Images are weighted so that both sides count one half, and each generator the same
within its side: the error does not depend on how many images a test set happens to have of which kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blades_dist.evaluate.bootstrap import percentiles, resample_counts
from blades_dist.evaluate.rates import Estimate, by_head, share

Array = np.ndarray
BINS = 15  # equal widths


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed shares of AI-generated images; arrays (BINS,), nan where no image falls.

    Attributes:
        predicted: mean probability of the images in each bin.
        observed, low, high: weighted share of generated images among them, with a bootstrap interval.
        weight: share of all weight in each bin; sums to 1.
        ece: expected calibration error, the weighted mean of |observed - predicted|.
        brier: weighted mean of (probability - truth) squared.
    """

    predicted: Array
    observed: Array
    low: Array
    high: Array
    weight: Array
    ece: Estimate
    brier: Estimate


def reliability(
    real: Array | Sequence[Array],
    generated: Sequence[Array],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Reliability:
    """Calibration of probabilities (n,) of photographs (or one such array a generator's head) and (m_f,) of images.

    Bins of equal width (Naeini et al., AAAI 2015; Guo et al., ICML 2017). The error of a sample exceeds that of the
    population, because bins are off by chance too, and the errors of resamples exceed it once more. So the upper bound
    of ``ece`` is that of the basic bootstrap, and the lower one is the value less what the bins of a resample are off
    from those of the sample (triangle inequality): 0 unless chance alone does not explain the value. Generators
    without images do not count.

    Raises:
        ValueError: numbers of heads and generators that do not fit.
    """
    heads = by_head(real)
    if len(heads) not in (1, len(generated)):
        raise ValueError(f"probabilities under {len(heads)} heads, but {len(generated)} generators")
    n, kept = len(heads[0]), [f for f, images in enumerate(generated) if len(images)]
    heads = [heads[f] for f in kept] if len(heads) > 1 else heads
    images = [np.asarray(generated[f], float) for f in kept]
    total = sum(map(len, images))
    if not n or not images:
        empty, nothing = np.full(BINS, np.nan), Estimate(math.nan, math.nan, math.nan, n, total)
        return Reliability(empty, empty, empty, empty, empty, nothing, nothing)
    photographs = np.sum([_sums(np.asarray(head, float), 0, 0.5 / n / len(heads)) for head in heads], axis=0)
    rows = [photographs, *(_sums(own, 1, 0.5 / len(own) / len(images)) for own in images)]
    total_sums = np.sum([part.sum(axis=0) for part in rows], axis=0)[None]
    value = _read(total_sums)
    replicates: list[Array] = []
    for _, *counts in resample_counts(n, [len(own) for own in images], resamples, seed):
        replicates.append(sum(drawn @ part for drawn, part in zip(counts, rows, strict=True)))
    resampled = np.concatenate(replicates)
    drawn = _read(resampled)
    low, high = _intervals(drawn[1], confidence)
    ece, brier = float(value[3][0]), float(value[4][0])
    chance = percentiles(_read(resampled - total_sums)[3], confidence)[1]
    upper = 2 * ece - percentiles(drawn[3], confidence)[0]
    bounds = (max(0.0, ece - chance), min(1.0, max(ece, upper)))
    alone = min(n, *map(len, images)) < 2  # one image says nothing of how others vary
    none = (math.nan, math.nan)
    return Reliability(
        predicted=value[0][0],
        observed=value[1][0],
        low=low,
        high=high,
        weight=value[2][0],
        ece=Estimate(ece, *(none if alone else bounds), n, total),
        brier=Estimate(brier, *(none if alone else percentiles(drawn[4], confidence)), n, total),
    )


def p_value_error(p_values: Array | Sequence[Array], confidence: float = 0.95) -> Estimate:
    """Largest |measured FPR - nominal FPR| over all nominal rates, of p-values (n,) of photographs.

    The Kolmogorov-Smirnov distance from uniform. Interval: the band that holds a whole distribution function with that
    confidence (Dvoretzky, Kiefer and Wolfowitz, with Massart's constant, 1990). Several arrays, one a head on the same
    photographs, are pooled; the band is that of n photographs.
    """
    heads = by_head(p_values)
    n = len(heads[0])
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    ordered = np.sort(np.concatenate(heads))
    levels = np.unique(ordered)
    upto, below = (np.searchsorted(ordered, levels, side=side) / len(ordered) for side in ("right", "left"))
    value = float(np.maximum(np.abs(upto - levels), np.abs(below - levels)).max())
    band = math.sqrt(math.log(2 / (1 - confidence)) / (2 * n))
    return Estimate(value, max(0.0, value - band), min(1.0, value + band), n, 0)


def measured_fpr(p_values: Array | Sequence[Array], nominal: float, confidence: float = 0.95) -> Estimate:
    """Share of photographs with p-value at most ``nominal``, with Wilson's interval; mean over heads if several."""
    # Nominal rates and p-values k / (n + 1) are rounded apart.
    return share([np.asarray(head) <= nominal + 1e-9 for head in by_head(p_values)], True, confidence)


def _sums(probability: Array, truth: int, weight: float) -> Array:
    """(n, 3 BINS + 1): what each image adds to the bins' weight, weighted probability, generated weight; to Brier."""
    bins = np.clip((probability * BINS).astype(int), 0, BINS - 1)
    inside = weight * np.eye(BINS)[bins]
    brier = weight * (probability - truth) ** 2
    return np.concatenate([inside, inside * probability[:, None], inside * truth, brier[:, None]], axis=1)


def _read(sums: Array) -> tuple[Array, Array, Array, Array, Array]:
    """(B, 3 BINS + 1) to predicted, observed and weight (B, BINS), expected calibration error and Brier score (B,)."""
    weight, predicted, generated = (sums[:, i * BINS : (i + 1) * BINS] for i in range(3))
    inhabited = np.where(weight > 0, weight, np.nan)
    error = np.abs(generated - predicted).sum(axis=1)
    return predicted / inhabited, generated / inhabited, weight, error, sums[:, -1]


def _intervals(observed: Array, confidence: float) -> tuple[Array, Array]:
    """Percentile interval a bin of (B, BINS), over the resamples in which the bin holds images."""
    bounds = np.full((2, observed.shape[1]), np.nan)
    for i, column in enumerate(observed.T):
        known = column[~np.isnan(column)]
        if len(known):
            bounds[:, i] = percentiles(known, confidence)
    return bounds[0], bounds[1]
