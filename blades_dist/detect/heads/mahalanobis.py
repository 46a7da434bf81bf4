"""One Gaussian over features of real faces, its covariance shrunk towards a multiple of the identity.

The score is its log-likelihood, -d^2 / 2 + constant with d the Mahalanobis distance to the mean: the same order as by
distance, and in the same unit as a mixture's score, so that held-out likelihoods tell what the mixture buys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from blades_dist.config import MahalanobisConfig
from blades_dist.detect.heads.arrays import check_features, checked, finite_rows, shapes
from blades_dist.detect.heads.base import ArraysModule, FitData, FitOptions, Fitted, Head

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class MahalanobisHead(Head):
    """``mean`` (D,) and ``precision`` (D, D), both float64.

    ``precision`` is the factor U of the inverse covariance U U^T, upper triangular with a positive diagonal.
    """

    kind = MahalanobisConfig.kind
    config = MahalanobisConfig
    title = "Mahalanobis"
    unit = "log-likelihood (nats)"
    sentence = (
        "One Gaussian with a shrunk covariance over features of real faces; it has never seen an AI-generated face. "
        "The score is the log-likelihood in nats: minus half the squared Mahalanobis distance, and a constant."
    )

    mean: np.ndarray
    precision: np.ndarray

    @classmethod
    def fit(cls, data: FitData, config: MahalanobisConfig, options: FitOptions) -> Fitted:
        return Fitted(*fit_mahalanobis(data.real, config, options.threads))

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""
        return int(self.mean.shape[0])

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 log-likelihoods in nats.

        Raises:
            ValueError: features of another width.
        """
        check_features(features, self.dimensions)
        mean, factor = self._copies
        constant = float(factor.diagonal().log().sum()) - 0.5 * self.dimensions * math.log(2 * math.pi)
        rows = torch.tensor(features, dtype=torch.float64)
        distance = [((part - mean) @ factor).square().sum(1) for part in rows.split(_ROWS_AT_ONCE)]
        return (constant - 0.5 * torch.cat(distance)).numpy()

    @cached_property
    def _copies(self) -> tuple[Tensor, Tensor]:
        # Matrix products may round differently on memory aligned differently; torch's own is always aligned alike.
        return torch.tensor(self.mean), torch.tensor(self.precision)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        return {"mean": self.mean, "precision": self.precision}

    def onnx(self) -> nn.Module:
        return _Graph(self)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> "MahalanobisHead":
        """The head of stored parameters.

        Raises:
            ValueError: a parameter is missing, not finite, not float64, or shapes do not fit each other.
        """
        found = checked("Gaussian", tensors, ("mean", "precision"))
        mean, precision = found["mean"], found["precision"]
        if mean.ndim != 1 or precision.shape != (len(mean), len(mean)):
            raise ValueError(f"Gaussian parameters do not fit each other: {shapes(found)}")
        if not (precision.diagonal() > 0).all():
            raise ValueError("Gaussian parameter 'precision' has a diagonal that is not positive")
        return cls(mean, precision)


def fit_mahalanobis(
    features: np.ndarray, config: MahalanobisConfig, threads: int | None = None
) -> tuple[MahalanobisHead, dict[str, float]]:
    """One Gaussian of (n, D) features of real faces, with the figures ``shrinkage`` and ``log_likelihood``.

    The covariance is (1 - s) S + s tr(S)/D I of the empirical S; s is ``config.shrinkage`` or, where that is None,
    the estimate of Ledoit and Wolf (2004, "A well-conditioned estimator for large-dimensional covariance matrices").
    ``log_likelihood`` is the mean over these rows in nats. BLAS runs in ``threads`` (None: as it is).

    Raises:
        ValueError: fewer than two rows, features that are not finite, or a covariance that cannot be inverted.
    """
    from scipy.linalg import solve_triangular
    from sklearn.covariance import LedoitWolf, ShrunkCovariance
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = finite_rows(features)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} real faces: a covariance needs at least 2; ingest more photographs")
    with threadpool_limits(threads):
        if config.shrinkage is None:
            estimate = LedoitWolf(store_precision=False).fit(rows)
        else:
            estimate = ShrunkCovariance(store_precision=False, shrinkage=config.shrinkage).fit(rows)
        try:
            lower = np.linalg.cholesky(estimate.covariance_)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the covariance of {len(rows)} real faces in {rows.shape[1]} dimensions cannot be inverted at "
                f"shrinkage {estimate.shrinkage:.3g}; set mahalanobis.shrinkage above 0 or ingest more photographs"
            ) from None
        factor = solve_triangular(lower, np.eye(len(lower)), lower=True).T
        head = MahalanobisHead(estimate.location_, np.ascontiguousarray(factor))
        likelihood = float(head.score(rows).mean())
    shrinkage = estimate.shrinkage_ if config.shrinkage is None else config.shrinkage
    return head, {"shrinkage": float(shrinkage), "log_likelihood": likelihood}


class _Graph(ArraysModule):
    mean: Tensor
    precision: Tensor

    def __init__(self, head: MahalanobisHead) -> None:
        super().__init__(head)
        determinant = float(self.precision.diagonal().log().sum())
        self.constant = determinant - 0.5 * head.dimensions * math.log(2 * math.pi)

    def forward(self, features: Tensor) -> Tensor:
        scaled = (features.double() - self.mean) @ self.precision
        return self.constant - 0.5 * (scaled * scaled).sum(1)
