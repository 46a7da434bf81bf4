"""From held-out scores of real faces to thresholds and p-values that keep their promise.

Split-conformal: a face is flagged as AI-generated at false-positive rate a when its p-value
p = (1 + #{calibration <= score}) / (n + 1) is at most a. If a real face and the n calibration faces are
exchangeable, P(p <= a) <= a over the draw of both, whatever the scores' distribution is.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

STANDARD_FPRS = (0.001, 0.01, 0.05, 0.10)


class Rate(BaseModel):
    """``count`` of ``n`` with its Wilson score interval at ``confidence``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    n: int
    rate: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        interval = f"{self.confidence:.0%} interval {self.low:.2%} to {self.high:.2%}"
        return f"{self.rate:.2%} ({self.count} of {self.n}; {interval})"


@dataclass(frozen=True)
class Calibration:
    """``scores`` (n,) float64 ascending, of real faces that neither encoder nor head saw; ``fpr`` as configured."""

    scores: np.ndarray
    fpr: float

    @property
    def smallest_fpr(self) -> float:
        """Lowest false-positive rate that n faces can support, 1 / (n + 1)."""
        return 1 / (len(self.scores) + 1)

    @cached_property
    def thresholds(self) -> dict[float, float | None]:
        """Threshold at each standard rate and the configured one; None where n is too small for the rate."""
        wanted = sorted({*STANDARD_FPRS, self.fpr})
        return {fpr: self.threshold(fpr) if self.supports(fpr) else None for fpr in wanted}

    def supports(self, fpr: float) -> bool:
        """Whether anything could be flagged at this rate."""
        return self._rank(fpr) >= 1

    def threshold(self, fpr: float | None = None) -> float:
        """A score below it is flagged at ``fpr`` (None: the configured rate); -inf below ``smallest_fpr``.

        p <= fpr means that at most k - 1 calibration scores are <= the score, k = floor(fpr (n + 1)): the score is
        below the k-th smallest one.

        Raises:
            ValueError: a rate outside (0, 1).
        """
        rank = self._rank(self.fpr if fpr is None else fpr)
        return float(self.scores[rank - 1]) if rank else -math.inf

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) float64 conformal p-values; small means: few real faces score so low."""
        at_most = np.searchsorted(self.scores, np.asarray(scores, np.float64), side="right")
        return (1 + at_most) / (len(self.scores) + 1)

    def is_generated(self, scores: np.ndarray, fpr: float | None = None) -> np.ndarray:
        """(n,) bool: flagged as AI-generated at ``fpr``."""
        return np.asarray(scores, np.float64) < self.threshold(fpr)

    def _rank(self, fpr: float) -> int:
        if not 0 < fpr < 1:
            raise ValueError(f"false-positive rate {fpr} is not between 0 and 1")
        # A rate such as 0.07 times 100 lands a hair below the integer it means.
        return min(len(self.scores), math.floor(fpr * (len(self.scores) + 1) + 1e-9))


def calibrate(scores: np.ndarray, fpr: float) -> Calibration:
    """Calibration from (n,) scores of held-out real faces.

    Raises:
        ValueError: no score, a score that is not finite, or too few for ``fpr``.
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    if not len(ordered) or not np.isfinite(ordered).all():
        raise ValueError("calibration scores are empty or not finite")
    calibration = Calibration(ordered, fpr)
    if not calibration.supports(fpr):
        raise ValueError(
            f"fpr={fpr}: {len(ordered)} calibration faces support no false-positive rate below "
            f"{calibration.smallest_fpr:.4g}; ingest at least {math.ceil(1 / fpr) - 1} into the calibration split, "
            "or raise fpr"
        )
    return calibration


def wilson(count: int, n: int, confidence: float = 0.95) -> Rate:
    """A binomial rate with Wilson's score interval (Wilson 1927); n = 0 gives the interval 0 to 1.

    Raises:
        ValueError: ``count`` outside 0..n.
    """
    if not 0 <= count <= n:
        raise ValueError(f"count {count} outside 0..{n}")
    if n == 0:
        return Rate(count=0, n=0, rate=0.0, low=0.0, high=1.0, confidence=confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == n else min(1.0, centre + half)
    return Rate(count=count, n=n, rate=p, low=low, high=high, confidence=confidence)


def measure(calibration: Calibration, scores: np.ndarray) -> dict[float, Rate]:
    """False-positive rate that each usable threshold gives on (n,) scores of further real faces."""
    return {
        fpr: wilson(int((np.asarray(scores) < threshold).sum()), len(scores))
        for fpr, threshold in calibration.thresholds.items()
        if threshold is not None
    }
