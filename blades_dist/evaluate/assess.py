"""Everything that is measured of one detector on one test set."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blades_dist.detect.calibrate import STANDARD_FPRS
from blades_dist.evaluate.bootstrap import BootstrapMetric, bootstrap_metrics
from blades_dist.evaluate.calibration_error import Reliability, measured_fpr, p_value_error, reliability
from blades_dist.evaluate.predictions import Pair, Predictions
from blades_dist.evaluate.ranking import auc, average_precision, equal_error_rate, tpr_at
from blades_dist.evaluate.rates import Estimate, balanced_accuracy, balanced_share, confusion, share

RANKING = {
    "AUC": auc,
    "AP": average_precision,
    "EER": equal_error_rate,
    "TPR at 1% FPR": tpr_at(0.01),
    "TPR at 5% FPR": tpr_at(0.05),
}


@dataclass(frozen=True)
class Assessment:
    """Measurements of one detector; dictionaries without other mention are by generator.

    Attributes:
        pairs: the predictions that were measured.
        ranked: one entry a name of ``RANKING``.
        accuracy, mean_accuracy: balanced, by the score alone; ``detected``: share flagged.
        confusion: TNR, FPR, TPR, FNR, F1 over all generators together.
        unsure, unsure_photographs, mean_unsure: shares that got no verdict; the mean is balanced like accuracy.
        called, called_photographs: shares whose verdict is AI-generated, flagged and not unsure.
        reliability: of the probability; None: the detector has none.
        p_error, fpr: largest |measured FPR - nominal| of the p-values on photographs, and the measured FPR by nominal
            one; None and empty: the detector has no p-values.
    """

    pairs: Mapping[str, Pair]
    ranked: dict[str, BootstrapMetric]
    accuracy: dict[str, Estimate]
    mean_accuracy: Estimate
    detected: dict[str, Estimate]
    confusion: dict[str, Estimate]
    unsure: dict[str, Estimate]
    unsure_photographs: Estimate
    mean_unsure: Estimate
    called: dict[str, Estimate]
    called_photographs: Estimate
    reliability: Reliability | None
    p_error: Estimate | None
    fpr: dict[float, Estimate]

    @property
    def generators(self) -> tuple[str, ...]:
        """Names, in the order of ``BootstrapMetric``."""
        return tuple(self.pairs)

    @property
    def n_real(self) -> int:
        """Number of photographs."""
        return len(next(iter(self.pairs.values())).real)

    @property
    def own_heads(self) -> bool:
        """Whether generators were judged by different heads, as when each was left out of training once."""
        return len(photographs(self.pairs)) > 1


def assess(pairs: Mapping[str, Pair], resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Assessment:
    """Measures a detector's predictions, by generator; the photographs are the same in the same order in every pair.

    Raises:
        ValueError: no generator, pairs with different numbers of photographs, or p-values or probabilities in some
            pairs only.
    """
    _check(pairs)
    real = photographs(pairs)
    images = {name: pair.generated for name, pair in pairs.items()}
    flags, unsure = ([getattr(own, field) for own in images.values()] for field in ("flagged", "unsure"))
    real_flags, real_unsure = [one.flagged for one in real], [one.unsure for one in real]
    ranked = bootstrap_metrics(
        list(RANKING.values()), [one.scores for one in real], [o.scores for o in images.values()], resamples, seed
    )
    p_values = [one.p_values for one in real if one.p_values is not None]
    likely = [one.probability for one in real if one.probability is not None]
    own_likely = [own.probability for own in images.values() if own.probability is not None]
    return Assessment(
        pairs=dict(pairs),
        ranked=dict(zip(RANKING, ranked, strict=True)),
        accuracy={
            name: balanced_accuracy(pair.real.flagged, [pair.generated.flagged], confidence)
            for name, pair in pairs.items()
        },
        mean_accuracy=balanced_accuracy(real_flags, flags, confidence),
        detected={name: share(own.flagged, False, confidence) for name, own in images.items()},
        confusion=confusion(real_flags, np.concatenate(flags), confidence, seed),
        unsure={name: share(own.unsure, False, confidence) for name, own in images.items()},
        unsure_photographs=share(real_unsure, True, confidence),
        mean_unsure=balanced_share(real_unsure, unsure, confidence),
        called={name: share(own.called, False, confidence) for name, own in images.items()},
        called_photographs=share([one.called for one in real], True, confidence),
        reliability=reliability(likely, own_likely, resamples, confidence, seed) if likely else None,
        p_error=p_value_error(p_values, confidence) if p_values else None,
        fpr={level: measured_fpr(p_values, level, confidence) for level in STANDARD_FPRS} if p_values else {},
    )


def photographs(pairs: Mapping[str, Pair]) -> list[Predictions]:
    """Predictions on the photographs: one a generator's head, or a single one where all generators share a head."""
    predictions = [pair.real for pair in pairs.values()]
    shared = all(np.array_equal(one.scores, predictions[0].scores) for one in predictions)
    return predictions[:1] if shared else predictions


def _check(pairs: Mapping[str, Pair]) -> None:
    if not pairs:
        raise ValueError("a detector's predictions hold no generator")
    counts = {name: len(pair.real) for name, pair in pairs.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every pair needs the same photographs, but their numbers differ: {counts}")
    for field in ("p_values", "probability"):
        known = [name for name, pair in pairs.items() if getattr(pair.real, field) is not None]
        if known and len(known) < len(pairs):
            missing = ", ".join(name for name in pairs if name not in known)
            raise ValueError(f"predictions: {field} for every generator or for none; missing for {missing}")
