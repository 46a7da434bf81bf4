"""Fitting the one-class mixture: EM of scikit-learn in float64, for one size or for several to choose from."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from blades_dist.config import OneClassConfig
from blades_dist.detect.arrays import finite_rows
from blades_dist.detect.mixture import Covariance, OneClassHead
from blades_dist.detect.whitening import Whitening, fit_whitening

__all__ = [
    "Covariance",
    "MixtureFit",
    "OneClassHead",
    "Whitening",
    "choose",
    "fit_mixture",
    "fit_one_class",
    "refit",
    "split_rows",
]


@dataclass(frozen=True)
class MixtureFit:
    """A fitted mixture with what speaks for it; likelihoods are means a face in nats.

    ``bic`` and ``log_likelihood`` are of the rows it was fitted to, ``held_out_log_likelihood`` of the share of the
    training rows kept away from the fit that was compared with other sizes. ``notes`` are warnings to pass on.
    """

    head: OneClassHead
    bic: float
    log_likelihood: float
    held_out_log_likelihood: float
    rows: int
    held_out_rows: int
    iterations: int
    converged: bool
    notes: tuple[str, ...] = ()

    @property
    def components(self) -> int:
        """Number of Gaussians."""
        return len(self.head.weights)

    def figures(self) -> dict[str, float]:
        """The numbers by name; ``converged`` is 1 or 0."""
        own = {name: float(value) for name, value in vars(self).items() if name not in ("head", "notes")}
        return {"components": float(self.components), **own}


def split_rows(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending row numbers (of n) to fit to, and the seeded ``share`` of them held out, at least one."""
    order = np.random.default_rng(seed).permutation(n)
    cut = max(1, round(share * n))
    return np.sort(order[cut:]), np.sort(order[:cut])


def fit_mixture(
    features: np.ndarray, config: OneClassConfig, seed: int, components: int, threads: int | None = None
) -> MixtureFit:
    """Mixture of one size, to be compared with others by ``choose``, fitted by EM in float64.

    A seeded share ``config.held_out`` of the (n, D) features of real faces stays out of the fit (the same faces for
    every size) and gives the held-out likelihood. The best of ``config.starts`` runs, each begun by k-means with
    k-means++ seeds, is kept. BLAS and OpenMP run in ``threads`` (None: as they are); equal seeds give equal fits on
    one machine with equal threads.

    Raises:
        ValueError: too few rows for the mixture's size, features that are not finite or vary in too few directions.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    kept, held = (finite_rows(features[part]) for part in split_rows(len(features), config.held_out, seed))
    _check_size(kept, config, components)
    with threadpool_limits(threads):
        whitening = None if config.pca is None else fit_whitening(kept, config.pca)
        found = _em(kept, whitening, config, components, {"n_init": config.starts, "random_state": seed})
        return replace(found, held_out_log_likelihood=float(found.head.score(held).mean()), held_out_rows=len(held))


def choose(candidates: Sequence[MixtureFit], by: Literal["held_out", "bic"]) -> MixtureFit:
    """The size with the highest held-out likelihood or the lowest BIC; the smaller one of equals.

    Raises:
        ValueError: no candidate.
    """
    if not candidates:
        raise ValueError("no mixture to choose from")
    ordered = sorted(candidates, key=lambda fit: fit.components)
    if by == "bic":
        return min(ordered, key=lambda fit: fit.bic)
    return max(ordered, key=lambda fit: fit.held_out_log_likelihood)


def refit(features: np.ndarray, chosen: MixtureFit, config: OneClassConfig, threads: int | None = None) -> MixtureFit:
    """``chosen`` carried on by EM from where it is, now on all (n, D) features that ``fit_mixture`` was given.

    The whitening and the held-out likelihood stay those of ``chosen``; BIC and likelihood become those of all rows.

    Raises:
        ValueError: as ``fit_mixture``.
    """
    from threadpoolctl import threadpool_limits

    rows = finite_rows(features)
    head, factors = chosen.head, chosen.head.precisions
    square = factors @ factors.swapaxes(-1, -2) if head.covariance in ("full", "tied") else factors**2
    start = {"weights_init": head.weights, "means_init": head.means, "precisions_init": square}
    with threadpool_limits(threads):
        found = _em(rows, head.whitening, config, chosen.components, start)
    return replace(found, held_out_log_likelihood=chosen.held_out_log_likelihood, held_out_rows=chosen.held_out_rows)


def fit_one_class(features: np.ndarray, config: OneClassConfig, seed: int, threads: int | None = None) -> OneClassHead:
    """The head of (n, D) features: every configured size fitted one after another, one chosen, refitted on all rows.

    Raises:
        ValueError: as ``fit_mixture``.
    """
    candidates = [fit_mixture(features, config, seed, size, threads) for size in config.sizes]
    return refit(features, choose(candidates, config.choose_by), config, threads).head


def _em(
    rows: np.ndarray, whitening: Whitening | None, config: OneClassConfig, components: int, begin: dict[str, Any]
) -> MixtureFit:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    inputs = rows if whitening is None else whitening.apply(rows)
    mixture = GaussianMixture(
        components,
        covariance_type=config.covariance,
        reg_covar=config.regularisation,
        init_params="kmeans",
        max_iter=config.iterations,
        **begin,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in the notes instead
        try:
            mixture.fit(inputs)
        except ValueError as error:
            if "ill-defined" not in str(error):
                raise
            raise ValueError(
                f"a covariance of {components} {config.covariance} Gaussians over {len(rows)} real faces collapsed; "
                "raise oc.regularisation, lower oc.components, or set oc.pca to fewer dimensions"
            ) from None
    notes: tuple[str, ...] = ()
    if not mixture.converged_:
        notes = (
            f"EM for {components} {config.covariance} Gaussians had not converged after {mixture.n_iter_} iterations; "
            "raise oc.iterations, or lower oc.components or oc.pca",
        )
    head = OneClassHead(config.covariance, mixture.weights_, mixture.means_, mixture.precisions_cholesky_, whitening)
    total = float(head.score(rows).sum())
    n = len(rows)
    bic = -2 * total + head.parameters * math.log(n)
    return MixtureFit(head, bic, total / n, math.nan, n, 0, int(mixture.n_iter_), bool(mixture.converged_), notes)


def _check_size(rows: np.ndarray, config: OneClassConfig, components: int) -> None:
    """Refuses a mixture whose covariances the rows cannot determine; only the ridge would speak then."""
    n, dimensions = rows.shape
    if config.pca is not None and config.pca > min(n - 1, dimensions):
        raise ValueError(
            f"oc.pca={config.pca}: {n} real faces with features of {dimensions} dimensions have at most "
            f"{min(n - 1, dimensions)} principal components; lower oc.pca or ingest more photographs"
        )
    p = config.pca or dimensions
    need = {"full": components * (p + 1), "tied": components + p}.get(config.covariance, 2 * components)
    if n < need:
        raise ValueError(
            f"{n} real faces (a share of {config.held_out:g} is held out) are too few for {components} "
            f"{config.covariance} Gaussians in {p} dimensions: at least {need} are needed; lower oc.components, "
            "set oc.pca to fewer dimensions, take oc.covariance=tied or diag, or ingest more photographs"
        )
