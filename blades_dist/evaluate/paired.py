"""Tests of whether two detectors differ on the same images.

Scores are larger for what looks more like a photograph; the first detector's are compared with the second's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest

from blades_dist.evaluate.rates import Estimate, rate

Array = np.ndarray


@dataclass(frozen=True)
class Discordant:
    """Shares of images that one detector alone judged rightly, and McNemar's exact two-sided p-value."""

    first: Estimate
    second: Estimate
    p: float


def delong(first: tuple[Array, Array], second: tuple[Array, Array], confidence: float = 0.95) -> tuple[Estimate, float]:
    """Difference of two correlated AUCs with its normal interval, and its two-sided p-value.

    Each detector as (photographs (n,), generated (m,)), the same images in the same order. DeLong, DeLong and
    Clarke-Pearson (Biometrics 44, 1988), in O((n + m) log(n + m)) by sorting; neither SciPy nor statsmodels nor
    scikit-learn has it. Interval and p-value are nan with
    fewer than two images on a side, and where the AUCs differ without any variation: the normal approximation says
    nothing there.

    Raises:
        ValueError: the two do not rest on the same numbers of images.
    """
    if [len(side) for side in first] != [len(side) for side in second]:
        raise ValueError("DeLong's test needs both detectors on the same images")
    n, m = len(first[0]), len(first[1])
    if not n or not m:
        return Estimate(math.nan, math.nan, math.nan, n, m), math.nan
    gaps = [a - b for a, b in zip(_placements(*first), _placements(*second), strict=True)]
    value = float(gaps[0].mean())
    if min(n, m) < 2:
        return Estimate(value, math.nan, math.nan, n, m), math.nan
    deviation = math.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps))
    if deviation < 1e-12:  # rounding aside, no image is placed differently from the others
        same = abs(value) < 1e-12
        return Estimate(value, math.nan, math.nan, n, m), 1.0 if same else math.nan
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * deviation
    bounds = (max(-1.0, value - half), min(1.0, value + half))
    return Estimate(value, *bounds, n, m), math.erfc(abs(value) / deviation / math.sqrt(2))


def mcnemar(real: tuple[Array, Array], generated: tuple[Array, Array], confidence: float = 0.95) -> Discordant:
    """Exact test on the images that one detector alone judged rightly, from flags (n,) and (m,) of both detectors.

    ``real`` and ``generated`` hold the flags (True = called AI-generated) of the first and of the second detector.
    McNemar (Psychometrika 12, 1947) as a two-sided binomial test: 1 where the two never disagree, nan without images.

    Raises:
        ValueError: the two do not rest on the same numbers of images.
    """
    if len(real[0]) != len(real[1]) or len(generated[0]) != len(generated[1]):
        raise ValueError("McNemar's test needs both detectors on the same images")
    n, m = len(real[0]), len(generated[0])
    right = [
        np.concatenate([~np.asarray(flags, bool), np.asarray(own, bool)])
        for flags, own in zip(real, generated, strict=True)
    ]
    only = [int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))]
    shares = [rate(count, n + m, True, confidence) for count in only]
    first, second = (Estimate(found.value, found.low, found.high, n, m) for found in shares)
    if n + m == 0:
        return Discordant(first, second, math.nan)
    return Discordant(first, second, float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are (Holm, 1979), in the given order; nan stays nan and does not count.

    SciPy has no Holm, and these lines are less than statsmodels with pandas and patsy for one function.
    """
    found = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        found[i] = highest
    return found


def _placements(real: Array, generated: Array) -> tuple[Array, Array]:
    """Of each photograph the share of generated images below it, of each generated image that of photographs above."""
    shares = []
    for scores, others in ((real, np.sort(generated)), (generated, np.sort(real))):
        below, upto = (np.searchsorted(others, scores, side=side) for side in ("left", "right"))
        shares.append((below + upto) / 2 / len(others))
    return shares[0], 1 - shares[1]
