"""One-class head: a Gaussian mixture over features of real faces; the score is its log-likelihood.

scikit-learn fits; what is kept are plain arrays, and scoring needs nothing but them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from blades_dist.config import OneClassConfig

Covariance = Literal["full", "tied", "diag", "spherical"]
_ROWS_AT_ONCE = 4096  # bounds the memory of one scoring pass to rows x dimensions float64


@dataclass(frozen=True)
class Whitening:
    """z = ((x - mean) @ components.T) / scale: ``mean`` (D,), ``components`` (P, D), ``scale`` (P,), all float64."""

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class OneClassHead:
    """Parameters of a mixture of K Gaussians in P dimensions (P = D without whitening), all float64.

    ``precisions`` are Cholesky factors of the precision matrices as scikit-learn lays them out: full (K, P, P),
    tied (P, P), diag (K, P), spherical (K,).
    """

    covariance: Covariance
    weights: np.ndarray
    means: np.ndarray
    precisions: np.ndarray
    whitening: Whitening | None = None

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
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise ValueError(f"expected features (n, {self.dimensions}), got {features.shape}")
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

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        stored = {"weights": self.weights, "means": self.means, "precisions": self.precisions}
        if self.whitening is not None:
            stored |= {f"whitening.{name}": value for name, value in vars(self.whitening).items()}
        return stored

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: Covariance) -> "OneClassHead":
        """The head of stored parameters.

        Raises:
            ValueError: a parameter is missing, not finite, not float64, or shapes do not fit each other.
        """
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance type {covariance!r}; known: {', '.join(get_args(Covariance))}")
        try:
            whitening = None
            if any(name.startswith("whitening.") for name in tensors):
                whitening = Whitening(*(tensors[f"whitening.{part}"] for part in ("mean", "components", "scale")))
            head = cls(covariance, tensors["weights"], tensors["means"], tensors["precisions"], whitening)
        except KeyError as error:
            raise ValueError(f"mixture parameter {error} is missing") from None
        head._check()
        return head

    def _check(self) -> None:
        for name, value in self.tensors().items():
            if value.dtype != np.float64 or not np.isfinite(value).all():
                raise ValueError(f"mixture parameter {name!r} is not finite float64")
        if self.means.ndim != 2:
            raise ValueError(f"mixture means of shape {self.means.shape}, expected (K, P)")
        k, p = self.means.shape
        shapes = {"full": (k, p, p), "tied": (p, p), "diag": (k, p), "spherical": (k,)}
        fits = self.weights.shape == (k,) and self.precisions.shape == shapes[self.covariance]
        if fits and self.whitening is not None:
            d = self.whitening.mean.shape
            fits = self.whitening.components.shape == (p, *d) and self.whitening.scale.shape == (p,)
        if not fits:
            shown = {name: value.shape for name, value in self.tensors().items()}
            raise ValueError(f"mixture parameters do not fit each other: {shown} for covariance {self.covariance!r}")


def fit_one_class(features: np.ndarray, config: OneClassConfig, seed: int) -> OneClassHead:
    """Mixture of (n, D) features of real faces, fitted by EM in float64.

    The best of ``config.starts`` runs, each begun by k-means with k-means++ seeds.

    Raises:
        ValueError: too few rows for the mixture's size, features that are not finite or vary in too few directions.
    """
    from sklearn.mixture import GaussianMixture

    rows = np.ascontiguousarray(features, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError("features are not a finite (n, D) array: the encoder is damaged or diverged in training")
    _check_size(rows, config)
    whitening = None
    if config.pca is not None:
        whitening = _whitening(rows, config.pca)
        rows = (rows - whitening.mean) @ whitening.components.T / whitening.scale
    mixture = GaussianMixture(
        config.components,
        covariance_type=config.covariance,
        reg_covar=config.regularisation,
        n_init=config.starts,
        init_params="kmeans",
        max_iter=300,
        random_state=seed,
    ).fit(rows)
    return OneClassHead(config.covariance, mixture.weights_, mixture.means_, mixture.precisions_cholesky_, whitening)


def _check_size(rows: np.ndarray, config: OneClassConfig) -> None:
    """Refuses a mixture whose covariances the rows cannot determine; only the ridge would speak then."""
    n, dimensions = rows.shape
    if config.pca is not None and config.pca > min(n - 1, dimensions):
        raise ValueError(
            f"oc.pca={config.pca}: {n} real faces with features of {dimensions} dimensions have at most "
            f"{min(n - 1, dimensions)} principal components; lower oc.pca or ingest more photographs"
        )
    p = config.pca or dimensions
    need = {"full": config.components * (p + 1), "tied": config.components + p}.get(
        config.covariance, 2 * config.components
    )
    if n < need:
        raise ValueError(
            f"{n} real faces are too few for {config.components} {config.covariance} Gaussians in {p} dimensions: "
            f"at least {need} are needed; lower oc.components, set oc.pca to fewer dimensions, take "
            "oc.covariance=tied or diag, or ingest more photographs"
        )


def _whitening(rows: np.ndarray, components: int) -> Whitening:
    """The leading principal axes by the eigenvectors of the covariance; signs fixed, so that refits agree."""
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False).reshape(rows.shape[1], -1))
    values, axes = values[::-1][:components], vectors.T[::-1][:components]
    usable = int((values > 1e-10 * max(values[0], np.finfo(float).tiny)).sum())
    if usable < components:
        raise ValueError(
            f"oc.pca={components}: the features vary in {usable} directions only; set oc.pca to at most {usable}"
        )
    largest = np.abs(axes).argmax(1)
    axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
    return Whitening(mean, np.ascontiguousarray(axes), np.sqrt(values))
