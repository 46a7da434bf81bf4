"""A head of each kind from features of real (and, for the binary one, AI) faces, with what is worth telling of it."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from blades_dist.config import FitConfig
from blades_dist.detect.binary import fit_binary
from blades_dist.detect.features import FeatureSet
from blades_dist.detect.heads import Head
from blades_dist.detect.info import Kind
from blades_dist.detect.knn import fit_knn
from blades_dist.detect.mahalanobis import fit_mahalanobis
from blades_dist.detect.one_class import choose, refit
from blades_dist.detect.sweep import fit_sizes
from blades_dist.progress import OnProgress, Say


@dataclass(frozen=True)
class Fitted:
    """A head of a kind, its figures, what a reader must know of them, and how many AI faces of whom it has seen."""

    kind: Kind
    head: Head
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    generated: dict[str, int] = field(default_factory=dict)
    generated_digest: str | None = None


def fit_real(config: FitConfig, real: FeatureSet, say: Say) -> Fitted:
    """A head that sees real faces only, as ``config.kind`` says; the mixture for every other kind.

    Raises:
        ValueError: too few faces for what is asked, or features that are not finite.
    """
    if config.kind == "mahalanobis":
        return Fitted("mahalanobis", *fit_mahalanobis(real.features, config.mahalanobis))
    if config.kind == "knn":
        return Fitted("knn", fit_knn(real.features, config.knn, config.seed))
    return _mixture(config, real, say)


def likelihood_of(config: FitConfig, real: FeatureSet, say: Say) -> np.ndarray:
    """(n,) log-likelihoods of real faces under their own mixture: what pseudo-outliers are chosen by.

    Raises:
        ValueError: as ``fit_real``.
    """
    return _mixture(config, real, say).head.score(real.features)


def fit_with_generated(
    config: FitConfig,
    real: FeatureSet,
    likelihood: np.ndarray,
    generated: FeatureSet,
    digest: str,
    say: Say,
    progress: OnProgress,
) -> Fitted:
    """The perceptron on real faces, ranked by ``likelihood``, and AI faces.

    Raises:
        ValueError: as ``fit_binary``.
    """
    say(f"fitting the perceptron on {len(generated)} AI faces of {len(set(generated.sources))} generators")
    head, training = fit_binary(
        real.features, generated.features, likelihood, config.bc, config.seed, progress, generated.sources
    )
    return Fitted("bc", head, training.figures(), training.notes, dict(Counter(generated.sources)), digest)


def chosen_generators(generated: FeatureSet, names: list[str] | None, where: str) -> FeatureSet:
    """The faces of those generators; all of them for None.

    Raises:
        ValueError: a name that no face has.
    """
    if names is None:
        return generated
    unknown = sorted(set(names) - set(generated.sources))
    if unknown:
        known = ", ".join(sorted(set(generated.sources)))
        raise ValueError(f"generators: {', '.join(unknown)} not in {where}; it has: {known}")
    return generated.where(np.isin(generated.sources, names))


def _mixture(config: FitConfig, real: FeatureSet, say: Say) -> Fitted:
    oc = config.oc
    space = f" in {oc.pca} whitened dimensions" if oc.pca else ""
    sizes = ", ".join(map(str, oc.sizes))
    say(f"fitting mixtures of {sizes} {oc.covariance} Gaussians{space}, {oc.starts} starts each")
    candidates = fit_sizes(real.features, oc.sizes, oc, config.seed, say)
    best = refit(real.features, choose(candidates, oc.choose_by), oc)
    figures = best.figures()
    for fit in candidates if len(candidates) > 1 else []:
        figures |= {f"held_out_log_likelihood_{fit.components}": fit.held_out_log_likelihood}
        figures |= {f"bic_{fit.components}": fit.bic}
    return Fitted("oc", best.head, figures, best.notes)
