"""Whether the faces that are judged still look like those the detector was calibrated on. Mathematics; no Ray here."""

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from blades_dist.serving.schema import Histogram

HISTOGRAM_BINS, TAIL = 40, 0.005
DRIFT_BINS = 10
FLOOR = 1e-4  # share that an empty bin is taken for, so that the logarithm exists
_CALM = 0.8  # of the alarm: below it a crossing has ended


def population_stability_index(expected: ArrayLike, observed: ArrayLike) -> float:
    """PSI = sum over bins of (o - e) ln(o / e), of the shares e and o of two histograms on the same bins (Siddiqi,
    Credit Risk Scorecards, 2006); the symmetrised Kullback-Leibler divergence (Jeffreys). 0 where they are equal;
    customary reading: below 0.1 no drift, from 0.25 on drift.

    Of n and m draws of one distribution in k bins it is about (k - 1) (1/n + 1/m) by chance (Yurdakul 2018).

    Raises:
        ValueError: histograms of other lengths, or an empty one.
    """
    e, o = np.asarray(expected, np.float64), np.asarray(observed, np.float64)
    if e.shape != o.shape or e.ndim != 1 or not e.sum() > 0 or not o.sum() > 0:
        raise ValueError(f"expected two histograms on the same bins, neither empty, got {e.shape} and {o.shape}")
    e, o = np.maximum(e / e.sum(), FLOOR), np.maximum(o / o.sum(), FLOOR)
    return float(((o - e) * np.log(o / e)).sum())


def calibration_histogram(scores: np.ndarray) -> Histogram:
    """The ascending calibration scores (n,) in equal bins between their outer quantiles."""
    low, high = (float(edge) for edge in np.quantile(scores, (TAIL, 1 - TAIL)))
    if not low < high:  # all alike
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    return Histogram(edges=edges.tolist(), counts=counted(scores, edges).tolist())


def counted(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(k,) numbers of scores between k + 1 ascending edges; the outermost bins hold the rest as well."""
    index = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(index, minlength=len(edges) - 1)


class Drift:
    """The latest scores against the calibration scores, in bins that hold a tenth of the latter each."""

    def __init__(self, calibration: np.ndarray, window: int, alarm: float) -> None:
        self._edges = np.unique(np.quantile(calibration, np.linspace(0, 1, DRIFT_BINS + 1)))
        if len(self._edges) < 2:
            self._edges = np.array([self._edges[0] - 0.5, self._edges[0] + 0.5])
        self._expected = counted(calibration, self._edges)
        self._latest: deque[float] = deque(maxlen=window)
        self._least, self._alarm, self._above = min(window, 200), alarm, False

    def add(self, scores: Iterable[float]) -> tuple[float | None, bool]:
        """The index after these scores too (None while there are too few), and whether it has just crossed the alarm;
        it can cross again after it has been well below."""
        self._latest.extend(scores)
        if len(self._latest) < self._least:
            return None, False
        index = population_stability_index(self._expected, counted(np.array(self._latest), self._edges))
        crossed = index >= self._alarm and not self._above
        if crossed or index < _CALM * self._alarm:
            self._above = crossed
        return index, crossed
