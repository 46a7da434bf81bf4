"""Mixture (paper, OC): Gaussians over features of real faces; the score is its log-likelihood.

EM is scikit-learn's in float64, for one size or for several to choose from. What it finds is kept as plain arrays, and
scoring needs nothing but them.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from blades_dist.config import MixtureConfig
from blades_dist.detect.heads.arrays import check_features, checked, finite_rows, shapes
from blades_dist.detect.heads.base import ArraysModule, FitData, FitOptions, Fitted, Head

Covariance = Literal["full", "tied", "diag", "spherical"]
_ROWS_AT_ONCE = 4096  # bounds the memory of one scoring pass to rows x dimensions float64


@dataclass(frozen=True)
class Whitening:
    """z = ((x - mean) @ components.T) / scale: ``mean`` (D,), ``components`` (P, D), ``scale`` (P,), all float64."""

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float64 rows to (n, P)."""
        return ((rows - self.mean) @ self.components.T) / self.scale


@dataclass(frozen=True)
class MixtureHead(Head):
    """Parameters of a mixture of K Gaussians in P dimensions (P = D without whitening), all float64.

    ``precisions`` are Cholesky factors of the precision matrices as scikit-learn lays them out: full (K, P, P),
    tied (P, P), diag (K, P), spherical (K,).
    """

    kind = MixtureConfig.kind
    config = MixtureConfig
    title = "mixture"
    unit = "log-likelihood (nats)"
    sentence = (
        "A Gaussian mixture over features of real faces; it has never seen an AI-generated face. "
        "The score is the log-likelihood in nats."
    )

    covariance: Covariance
    weights: np.ndarray
    means: np.ndarray
    precisions: np.ndarray
    whitening: Whitening | None = None

    @classmethod
    def fit(cls, data: FitData, config: MixtureConfig, options: FitOptions) -> Fitted:
        """The sizes are fitted side by side, one is chosen and carried on with all rows; figures tell of each size."""
        space = f" in {config.n_pca_components} whitened dimensions" if config.n_pca_components else ""
        sizes = ", ".join(map(str, config.sizes))
        options.say(
            f"fitting mixtures of {sizes} {config.covariance_type} Gaussians{space}, {config.n_init} starts each"
        )
        one = partial(_sized, config=config, seed=options.seed)
        largest_first = config.sizes[::-1]  # they take longest: the others fill the time beside them
        fits = options.run(one, data.real, largest_first, options.threads, lambda fit: options.say(fit.line()))[::-1]
        best = refit(data.real, choose(fits, config.choose_by), config, options.threads)
        figures = best.figures()
        for fit in fits if len(fits) > 1 else []:
            figures |= {f"held_out_log_likelihood_{fit.components}": fit.held_out_log_likelihood}
            figures |= {f"bic_{fit.components}": fit.bic}
        return Fitted(best.head, figures, best.notes)

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""
        return int(self.means.shape[1] if self.whitening is None else self.whitening.mean.shape[0])

    @property
    def parameters(self) -> int:
        """Free parameters of the mixture, as BIC counts them."""
        k, p = self.means.shape
        own = {"full": k * p * (p + 1) // 2, "tied": p * (p + 1) // 2, "diag": k * p, "spherical": k}
        return int(own[self.covariance] + k * p + k - 1)

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 log-likelihoods; with whitening the density is that of whitened space.

        Raises:
            ValueError: features of another width.
        """
        check_features(features, self.dimensions)
        rows = torch.tensor(features, dtype=torch.float64)
        parts = [self._log_likelihood(part) for part in rows.split(_ROWS_AT_ONCE)]
        return torch.cat(parts).numpy() if parts else np.empty(0)

    def bic(self, features: np.ndarray) -> float:
        """Bayesian information criterion on (n, D) features; lower is better."""
        n = len(features)
        return float(-2 * self.score(features).sum() + self.parameters * math.log(n))

    @cached_property
    def _copies(self) -> dict[str, Tensor]:
        # Matrix products may round differently on memory aligned differently; torch's own is always aligned alike.
        return {name: torch.tensor(value) for name, value in self.tensors().items()}

    def _log_likelihood(self, rows: Tensor) -> Tensor:
        own = self._copies
        if self.whitening is not None:
            rows = (rows - own["whitening.mean"]) @ own["whitening.components"].T / own["whitening.scale"]
        p = self.means.shape[1]
        columns = []
        for k in range(len(self.weights)):
            factor = own["precisions"] if self.covariance == "tied" else own["precisions"][k]
            centred = rows - own["means"][k]
            if self.covariance in ("full", "tied"):
                distance = (centred @ factor).square().sum(1)
                log_determinant = float(factor.diagonal().log().sum())
            else:
                distance = (centred * factor).square().sum(1)
                log_determinant = float(factor.expand(p).log().sum())
            constant = log_determinant - 0.5 * p * math.log(2 * math.pi) + math.log(self.weights[k])
            columns.append(constant - 0.5 * distance)
        return torch.stack(columns, 1).logsumexp(1)

    def density_rows(self, features: np.ndarray) -> np.ndarray:
        rows = np.asarray(features, np.float64)
        return rows if self.whitening is None else self.whitening.apply(rows)

    def onnx(self) -> nn.Module:
        return _Graph(self)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        stored = {"weights": self.weights, "means": self.means, "precisions": self.precisions}
        if self.whitening is not None:
            stored |= {f"whitening.{name}": value for name, value in vars(self.whitening).items()}
        return stored

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> "MixtureHead":
        """The head of stored parameters; without ``covariance`` it is full.

        Raises:
            ValueError: a parameter is missing, not finite, not float64, or shapes do not fit each other.
        """
        covariance = covariance or "full"
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance type {covariance!r}; known: {', '.join(get_args(Covariance))}")
        names = tuple(f"whitening.{name}" for name in ("mean", "components", "scale"))
        whitened = any(name in tensors for name in names)
        found = checked("mixture", tensors, ("weights", "means", "precisions", *(names if whitened else ())))
        whitening = Whitening(*(found[name] for name in names)) if whitened else None
        head = cls(cast(Covariance, covariance), found["weights"], found["means"], found["precisions"], whitening)
        if not head._fits():
            raise ValueError(f"mixture parameters do not fit each other: {shapes(found)} for covariance {covariance!r}")
        return head

    def _fits(self) -> bool:
        if self.means.ndim != 2:
            return False
        k, p = self.means.shape
        sizes = {"full": (k, p, p), "tied": (p, p), "diag": (k, p), "spherical": (k,)}
        fits = self.weights.shape == (k,) and self.precisions.shape == sizes[self.covariance]
        if fits and self.whitening is not None:
            d = self.whitening.mean.shape
            fits = len(d) == 1 and self.whitening.components.shape == (p, *d) and self.whitening.scale.shape == (p,)
        return fits


@dataclass(frozen=True)
class MixtureFit:
    """A fitted mixture with what speaks for it; likelihoods are means a face in nats.

    ``bic`` and ``log_likelihood`` are of the rows it was fitted to, ``held_out_log_likelihood`` of the share of the
    training rows kept away from the fit that was compared with other sizes. ``notes`` are warnings to pass on.
    """

    head: MixtureHead
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

    def line(self) -> str:
        """What is told of it as soon as it is there."""
        likelihood = f"{self.held_out_log_likelihood:.4f} nats a held-out face"
        return f"{self.components} Gaussians: {likelihood}, BIC {self.bic:.6g}, {self.iterations} iterations"

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
    features: np.ndarray, config: MixtureConfig, seed: int, components: int, threads: int | None = None
) -> MixtureFit:
    """Mixture of one size, to be compared with others by ``choose``, fitted by EM in float64.

    A seeded share ``config.held_out`` of the (n, D) features of real faces stays out of the fit (the same faces for
    every size) and gives the held-out likelihood. The best of ``config.n_init`` runs, each begun by k-means with
    k-means++ seeds, is kept. BLAS and OpenMP run in ``threads`` (None: as they are); equal seeds give equal fits on
    one machine with equal threads.

    Raises:
        ValueError: too few rows for the mixture's size, features that are not finite or vary in too few directions.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    kept, held = (finite_rows(features[part]) for part in split_rows(len(features), config.held_out, seed))
    _check_size(kept, config, components)
    with threadpool_limits(threads):
        whitening = None if config.n_pca_components is None else fit_whitening(kept, config.n_pca_components)
        found = _em(kept, whitening, config, components, {"n_init": config.n_init, "random_state": seed})
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


def refit(features: np.ndarray, chosen: MixtureFit, config: MixtureConfig, threads: int | None = None) -> MixtureFit:
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


def fit_whitening(rows: np.ndarray, components: int) -> Whitening:
    """The leading principal axes of (n, D) float64 rows by scikit-learn's PCA; signs are fixed, so that refits agree.

    Raises:
        ValueError: fewer directions than ``components`` carry variance.
    """
    from sklearn.decomposition import PCA

    mean = rows.mean(0)
    # Centred before, since this solver takes the mean from the rows' second moments, where small variances get lost.
    pca = PCA(components, svd_solver="covariance_eigh").fit(rows - mean)
    values = pca.explained_variance_
    usable = int((values > 1e-10 * max(values[0], np.finfo(float).tiny)).sum())
    if usable < components:
        raise ValueError(
            f"oc.n_pca_components={components}: the features vary in {usable} directions only; set "
            f"oc.n_pca_components to at most {usable}"
        )
    return Whitening(mean + pca.mean_, np.ascontiguousarray(pca.components_), np.sqrt(values))


def _sized(features: np.ndarray, size: int, threads: int | None, config: MixtureConfig, seed: int) -> MixtureFit:
    return fit_mixture(features, config, seed, size, threads)


def _em(
    rows: np.ndarray, whitening: Whitening | None, config: MixtureConfig, components: int, begin: dict[str, Any]
) -> MixtureFit:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    inputs = rows if whitening is None else whitening.apply(rows)
    mixture = GaussianMixture(
        components,
        covariance_type=config.covariance_type,
        reg_covar=config.reg_covar,
        init_params="kmeans",
        max_iter=config.max_iter,
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
                f"a covariance of {components} {config.covariance_type} Gaussians over {len(rows)} real faces "
                "collapsed; raise oc.reg_covar, lower oc.n_components, or set oc.n_pca_components to fewer dimensions"
            ) from None
    notes: tuple[str, ...] = ()
    if not mixture.converged_:
        notes = (
            f"EM for {components} {config.covariance_type} Gaussians had not converged after {mixture.n_iter_} "
            "iterations; raise oc.max_iter, or lower oc.n_components or oc.n_pca_components",
        )
    head = MixtureHead(
        config.covariance_type, mixture.weights_, mixture.means_, mixture.precisions_cholesky_, whitening
    )
    total = float(head.score(rows).sum())
    n = len(rows)
    bic = -2 * total + head.parameters * math.log(n)
    return MixtureFit(head, bic, total / n, math.nan, n, 0, int(mixture.n_iter_), bool(mixture.converged_), notes)


def _check_size(rows: np.ndarray, config: MixtureConfig, components: int) -> None:
    """Refuses a mixture whose covariances the rows cannot determine; only the ridge would speak then."""
    n, dimensions = rows.shape
    if config.n_pca_components is not None and config.n_pca_components > min(n - 1, dimensions):
        raise ValueError(
            f"oc.n_pca_components={config.n_pca_components}: {n} real faces with features of {dimensions} dimensions "
            f"have at most {min(n - 1, dimensions)} principal components; lower oc.n_pca_components or ingest "
            "more photographs"
        )
    p = config.n_pca_components or dimensions
    need = {"full": components * (p + 1), "tied": components + p}.get(config.covariance_type, 2 * components)
    if n < need:
        raise ValueError(
            f"{n} real faces (a share of {config.held_out:g} is held out) are too few for {components} "
            f"{config.covariance_type} Gaussians in {p} dimensions: at least {need} are needed; lower oc.n_components, "
            "set oc.n_pca_components to fewer dimensions, take oc.covariance_type=tied or diag, or ingest more "
            "photographs"
        )


class _Graph(ArraysModule):
    """Log-likelihood of a Gaussian mixture; all components at once."""

    weights: Tensor
    means: Tensor
    precisions: Tensor
    constants: Tensor
    whitening_mean: Tensor
    whitening_components: Tensor
    whitening_scale: Tensor

    def __init__(self, head: MixtureHead) -> None:
        super().__init__(head)
        self.covariance, self.whitens = head.covariance, head.whitening is not None
        p = head.means.shape[1]
        if head.covariance in ("full", "tied"):
            determinants = self.precisions.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (K,), or one for all if tied
        else:
            determinants = self.precisions.reshape(len(head.weights), -1).expand(-1, p).log().sum(1)
        constants = determinants - 0.5 * p * math.log(2 * math.pi) + self.weights.log()
        self.register_buffer("constants", constants[:, None])

    def forward(self, features: Tensor) -> Tensor:
        rows = features.double()
        if self.whitens:
            rows = (rows - self.whitening_mean) @ self.whitening_components.T / self.whitening_scale
        centred = rows[None] - self.means[:, None]  # (K, B, P)
        if self.covariance in ("full", "tied"):
            scaled = centred @ self.precisions
        else:
            scaled = centred * self.precisions.reshape(len(self.means), 1, -1)
        values = self.constants - 0.5 * (scaled * scaled).sum(2)  # (K, B)
        largest = values.amax(0)
        return largest + (values - largest).exp().sum(0).log()
