"""One-class head: a Gaussian mixture over features of real faces; the score is its log-likelihood.

Plain arrays; ``one_class`` fits them, and scoring needs nothing but them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from blades_dist.detect.arrays import check_features, checked, shapes
from blades_dist.detect.whitening import Whitening

Covariance = Literal["full", "tied", "diag", "spherical"]
_ROWS_AT_ONCE = 4096  # bounds the memory of one scoring pass to rows x dimensions float64


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
        names = tuple(f"whitening.{name}" for name in ("mean", "components", "scale"))
        whitened = any(name in tensors for name in names)
        found = checked("mixture", tensors, ("weights", "means", "precisions", *(names if whitened else ())))
        whitening = Whitening(*(found[name] for name in names)) if whitened else None
        head = cls(covariance, found["weights"], found["means"], found["precisions"], whitening)
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
