"""Temperature scaling: one number that turns log-odds into probabilities (Guo et al. 2017, arXiv 1706.04599)."""

import numpy as np
from scipy.optimize import minimize_scalar

LOWEST, HIGHEST = 1e-2, 1e2


def balanced_loss(scores: np.ndarray, generated: np.ndarray, smoothing: bool = False) -> float:
    """Cross-entropy in nats of (n,) log-odds of photographic, real and AI faces weighing half each.

    ``generated`` (n,) bool; nan where a score is not finite. With ``smoothing`` the target of a class of m faces is
    (m + 1) / (m + 2) instead of 1 (Platt 1999, "Probabilistic outputs for support vector machines").
    """
    if not np.isfinite(scores).all():
        return float("nan")
    sides = []
    for margin in (scores[~generated], -scores[generated]):
        sure = (len(margin) + 1) / (len(margin) + 2) if smoothing else 1.0
        sides.append(np.mean(np.logaddexp(0, -margin) * sure + np.logaddexp(0, margin) * (1 - sure)))
    return float(np.mean(sides))


def fit_temperature(scores: np.ndarray, generated: np.ndarray) -> float:
    """T > 0 that makes sigmoid(scores / T) the best class-balanced probabilities of photographic.

    (n,) log-odds of faces that the scoring network was not trained on, and which of them are AI-generated. The
    smoothed targets keep T away from 0 where the two sides are separated; within LOWEST..HIGHEST in any case.

    Raises:
        ValueError: one side has no face, or a score is not finite.
    """
    if generated.all() or not generated.any() or not np.isfinite(scores).all():
        raise ValueError("a temperature needs finite scores of held-out real and AI faces")
    found = minimize_scalar(
        lambda log: balanced_loss(scores / np.exp(log), generated, smoothing=True),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(np.exp(found.x))
