"""What a detector on an encoder's features is worth, in numbers that can be compared across encoders.

Every term lies in 0..1 and stays as it is when features are shifted, scaled or rotated, and when the detector's score
is: neither a larger encoder nor fewer principal components can win by their units. No Ray here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from blades_dist.config import FitConfig, MahalanobisConfig
from blades_dist.detect.calibrate import calibrate
from blades_dist.detect.heads import fit_head
from blades_dist.detect.heads.base import FitData, FitOptions, Head
from blades_dist.detect.heads.mahalanobis import fit_mahalanobis
from blades_dist.evaluate.ranking import auc, roc_counts
from blades_dist.tuning.config import Objective

Terms = dict[str, float]


@dataclass(frozen=True)
class TrialFeatures:
    """Features (n, D) float32 that a trial may look at.

    ``fit`` is what heads are fitted to, ``held`` and ``manipulated`` are the same validation photographs as they are
    and manipulated, ``proxy`` the AUC of the encoder's coarse task between these two. ``generated`` is the labelled
    validation set of the supervised objective, by generator.
    """

    fit: np.ndarray
    held: np.ndarray
    manipulated: np.ndarray
    proxy: float
    generated: Mapping[str, np.ndarray] = field(default_factory=dict)


def trial_head(config: FitConfig, features: np.ndarray, seed: int, threads: int | None = None) -> Head:
    """The head that ``detect.fitting`` makes of these features, without Ray.

    Raises:
        ValueError: too few rows for what is asked.
    """
    return fit_head(config, FitData(features), FitOptions(seed, threads)).head


def terms(config: FitConfig, faces: TrialFeatures, seed: int, objective: Objective) -> Terms:
    """Every term of the objective for one detector configuration on one encoder's features.

    Raises:
        ValueError: the head cannot be fitted.
    """
    head = trial_head(config, faces.fit, seed, threads=1)
    held, manipulated = head.score(faces.held), head.score(faces.manipulated)
    found = {
        "proxy": faces.proxy,
        "separation": area(held, manipulated),
        "likelihood": likelihood(head, faces),
        "operating": balanced(held, manipulated, config.fpr),
    }
    if objective.kind == "supervised":
        found["supervised"] = _supervised(head, held, faces, config.fpr, objective)
    return found


def score(found: Mapping[str, float], objective: Objective) -> float:
    """One number of the terms: the supervised one, or their weighted mean."""
    if objective.kind == "supervised":
        return found["supervised"]
    weights = objective.weights.model_dump()
    return sum(weight * found[name] for name, weight in weights.items()) / sum(weights.values())


def mean_terms(parts: list[Terms]) -> Terms:
    """Term by term mean over repeated seeds."""
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def area(real: np.ndarray, other: np.ndarray) -> float:
    """AUC: the chance that a photograph scores above one of the others."""
    return float(auc(*roc_counts(np.asarray(real, float), np.asarray(other, float)))[0])


def likelihood(head: Head, faces: TrialFeatures) -> float:
    """Held-out likelihood as 1 / (1 + exp(-x)), x = nats a dimension and held-out face above one shrunk Gaussian.

    A likelihood alone changes with the scale and the number of dimensions. The ratio to a reference that was fitted to
    the same rows in the same (whitened) space does not: the Jacobian is in both. 0.5 is as good as one Gaussian; a
    mixture that overfits falls below. Heads without ``density_rows`` get 0.5, neither praised nor blamed: nearest
    neighbours state no likelihood, and one shrunk Gaussian is the reference itself.
    """
    fit, held = head.density_rows(faces.fit), head.density_rows(faces.held)
    if fit is None or held is None:
        return 0.5
    reference = fit_mahalanobis(fit, MahalanobisConfig(), threads=1)[0]
    gain = float(head.score(faces.held).mean() - reference.score(held).mean()) / fit.shape[1]
    return 1 / (1 + math.exp(-min(50.0, max(-50.0, gain))))


def balanced(real: np.ndarray, other: np.ndarray, fpr: float) -> float:
    """(TPR + 1 - FPR) / 2 at the threshold that calibration at ``fpr`` gives.

    Photographs are split in two halves; each gives the threshold that the other one's rate is measured at.
    """
    parts = []
    for half in (0, 1):
        threshold = _threshold(real[half::2], fpr)
        flagged_real, flagged = (float((scores < threshold).mean()) for scores in (real[1 - half :: 2], other))
        parts.append((flagged + 1 - flagged_real) / 2)
    return float(np.mean(parts))


def _threshold(real: np.ndarray, fpr: float) -> float:
    # Too few photographs for the rate: nothing can be flagged, which is worth a half.
    return calibrate(real, fpr).threshold() if fpr * (len(real) + 1) >= 1 else -math.inf


def _supervised(head: Head, held: np.ndarray, faces: TrialFeatures, fpr: float, objective: Objective) -> float:
    scores = [head.score(features) for features in faces.generated.values()]
    if objective.metric == "auc":
        return float(np.mean([area(held, own) for own in scores]))
    if objective.metric == "tpr":
        threshold = _threshold(held, fpr)
        return float(np.mean([(own < threshold).mean() for own in scores]))
    return float(np.mean([balanced(held, own, fpr) for own in scores]))
