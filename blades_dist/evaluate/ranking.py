"""Metrics of how well scores rank.

Scores are LARGER for what looks MORE LIKE A PHOTOGRAPH; the positive class is "AI-generated". A threshold flags what
scores below it. Every metric is read from the counts of a ROC curve: for the thresholds between no image flagged and
all images flagged, the numbers of flagged photographs (false positives) and of flagged generated images (true
positives). Metrics act on the last axis, so that one function serves the data and thousands of resamples of it, which
library functions of two label arrays do not.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Metric = Callable[[Array, Array], Array]


def roc_counts(real: Array, generated: Array) -> tuple[Array, Array]:
    """(false positives, true positives), each (1, U + 1) for the U distinct scores of (n,) and (m,) finite scores.

    Raises:
        ValueError: a score is not finite.
    """
    return RocCounts(real, generated).resample(np.ones((1, len(real)), int), np.ones((1, len(generated)), int))


class RocCounts:
    """Sorted scores, from which the ROC counts of any resample follow by two cumulative sums.

    Raises:
        ValueError: a score is not finite.
    """

    def __init__(self, real: Array, generated: Array) -> None:
        if not (np.isfinite(real).all() and np.isfinite(generated).all()):
            raise ValueError("scores must be finite")
        levels = np.unique(np.concatenate([real, generated]))
        self.sides = []
        for scores in (real, generated):
            order = np.argsort(scores, kind="stable")
            self.sides.append((order, np.append(0, np.searchsorted(scores[order], levels, side="right"))))

    def resample(self, *counts: Array) -> tuple[Array, Array]:
        """ROC counts (B, U + 1) of resamples given as how often each image was drawn, (B, n) and (B, m)."""
        steps = []
        for (order, ends), drawn in zip(self.sides, counts, strict=True):
            flagged = np.zeros((len(drawn), drawn.shape[1] + 1), np.int64)
            np.cumsum(drawn[:, order], axis=1, out=flagged[:, 1:])
            steps.append(flagged[:, ends])
        return steps[0], steps[1]


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
    """(FPR, TPR) in 0..1 at every threshold of ROC counts; nan where a class is missing."""
    return _ratio(false, false[..., -1:]), _ratio(true, true[..., -1:])


def _ratio(part: Array, whole: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(part, whole)
