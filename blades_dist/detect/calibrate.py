"""From held-out scores of real faces to thresholds, p-values and verdicts that keep their promise.

Split-conformal: a face is flagged as AI-generated at false-positive rate a when its p-value
p = (1 + #{calibration <= score}) / (n + 1) is at most a. If a real face and the n calibration faces are
exchangeable, P(p <= a) <= a over the draw of both, whatever the scores' distribution is.

Re-encodings of a face (``perturb`` specs) are compared with the calibration faces re-encoded alike, so that each has a
p-value of its own with the same guarantee. A face is called AI-generated only where all of them agree: the rate of
photographs called so can but fall.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

STANDARD_FPRS = (0.001, 0.01, 0.05, 0.10)
Verdict = Literal["photographic", "ai_generated", "unsure"]


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


class Verdicts(NamedTuple):
    """Of n faces, each (n,) bool: ``flagged`` as AI-generated, ``unsure`` (never flagged too), and why one is unsure:
    its p-value lies in the ``band`` between two operating points, or re-encodings ``disagree`` with it."""

    flagged: np.ndarray
    unsure: np.ndarray
    band: np.ndarray
    disagree: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """``scores`` (n,) float64 ascending, of real faces that neither encoder nor head saw; ``fpr`` as configured.

    ``re_encoded`` holds the scores of the same faces after each re-encoding, ascending too. Between ``fpr`` and
    ``unsure_fpr`` (None: no such band) a p-value is too small to pass and too large to be flagged.
    """

    scores: np.ndarray
    fpr: float
    unsure_fpr: float | None = None
    re_encoded: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def smallest_fpr(self) -> float:
        """Lowest false-positive rate that n faces can support, 1 / (n + 1)."""
        return 1 / (len(self.scores) + 1)

    @cached_property
    def thresholds(self) -> dict[float, float | None]:
        """Threshold at each standard rate and the configured ones; None where n is too small for the rate."""
        wanted = sorted({*STANDARD_FPRS, self.fpr} | ({self.unsure_fpr} if self.unsure_fpr else set()))
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

    def p_values(self, scores: np.ndarray, re_encoding: str = "") -> np.ndarray:
        """(n,) scores to (n,) float64 conformal p-values; small means: few real faces score so low.

        Raises:
            KeyError: a re-encoding that was not calibrated.
        """
        own = self.re_encoded[re_encoding] if re_encoding else self.scores
        at_most = np.searchsorted(own, np.asarray(scores, np.float64), side="right")
        return (1 + at_most) / (len(own) + 1)

    def is_generated(self, scores: np.ndarray, fpr: float | None = None) -> np.ndarray:
        """(n,) bool: flagged as AI-generated at ``fpr`` by the score alone."""
        return np.asarray(scores, np.float64) < self.threshold(fpr)

    def judge(
        self, scores: np.ndarray, re_encoded: Mapping[str, np.ndarray] | None = None, fpr: float | None = None
    ) -> Verdicts:
        """Verdicts on (n,) scores and on those of the same faces re-encoded; a re-encoding not given has no say."""
        rate = self.fpr if fpr is None else fpr
        p = self.p_values(scores)
        small = at_most(p, rate)
        others = [at_most(self.p_values(values, name), rate) for name, values in (re_encoded or {}).items()]
        disagree = np.zeros(len(p), bool)
        for other in others:
            disagree |= other != small
        band = ~small & at_most(p, max(rate, self.unsure_fpr or 0.0))
        return Verdicts(small & ~disagree, band | disagree, band, disagree)

    def _rank(self, fpr: float) -> int:
        if not 0 < fpr < 1:
            raise ValueError(f"false-positive rate {fpr} is not between 0 and 1")
        # A rate such as 0.07 times 100 lands a hair below the integer it means.
        return min(len(self.scores), math.floor(fpr * (len(self.scores) + 1) + 1e-9))


def at_most(p_values: np.ndarray, rate: float) -> np.ndarray:
    """p <= rate, (n,) bool, where both are the same fraction written in two ways."""
    return np.asarray(p_values) <= rate + 1e-12


def calibrate(
    scores: np.ndarray,
    fpr: float,
    unsure_fpr: float | None = None,
    re_encoded: Mapping[str, np.ndarray] | None = None,
) -> Calibration:
    """Calibration from (n,) scores of held-out real faces, and from those of the same faces re-encoded.

    Raises:
        ValueError: no score, a score that is not finite, too few for ``fpr``, or a band that ends below it.
    """
    own = {name: np.sort(np.asarray(values, np.float64)) for name, values in (re_encoded or {}).items()}
    ordered = np.sort(np.asarray(scores, np.float64))
    for values in (ordered, *own.values()):
        if not len(values) or not np.isfinite(values).all():
            raise ValueError("calibration scores are empty or not finite")
    if unsure_fpr is not None and not fpr <= unsure_fpr < 1:
        raise ValueError(f"unsure_fpr={unsure_fpr}: the unsure band reaches from fpr={fpr} upwards, below 1")
    check_supported(len(ordered), fpr)
    return Calibration(ordered, fpr, unsure_fpr, own)


def check_supported(n: int, fpr: float) -> None:
    """Asks whether n calibration faces can support a false-positive rate.

    Raises:
        ValueError: they cannot; nothing could ever be flagged.
    """
    if fpr * (n + 1) < 1 - 1e-9:
        raise ValueError(
            f"fpr={fpr}: {n} calibration faces support no false-positive rate below {1 / (n + 1):.4g}; ingest at least "
            f"{math.ceil(1 / fpr) - 1} into the calibration split, or raise fpr"
        )


def wilson(count: int, n: int, confidence: float = 0.95) -> Rate:
    """A binomial rate with Wilson's score interval (Wilson 1927); n = 0 gives the interval 0 to 1.

    Raises:
        ValueError: ``count`` outside 0..n.
    """
    if not 0 <= count <= n:
        raise ValueError(f"count {count} outside 0..{n}")
    if n == 0:
        return Rate(count=0, n=0, rate=0.0, low=0.0, high=1.0, confidence=confidence)
    from scipy.stats import binomtest  # half a second that a service which only judges does without

    interval = binomtest(count, n).proportion_ci(confidence, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return Rate(count=count, n=n, rate=count / n, low=low, high=high, confidence=confidence)


def measure(calibration: Calibration, scores: np.ndarray) -> dict[float, Rate]:
    """False-positive rate that each usable threshold gives on (n,) scores of further real faces."""
    return {
        fpr: wilson(int((np.asarray(scores) < threshold).sum()), len(scores))
        for fpr, threshold in calibration.thresholds.items()
        if threshold is not None
    }
