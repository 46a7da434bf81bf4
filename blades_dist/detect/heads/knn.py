"""Nearest neighbours: how far a face lies from the real faces most like it (Sun et al. 2022, arXiv 2204.06507)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from blades_dist.config import KnnConfig
from blades_dist.detect.heads.arrays import check_features, checked, shapes
from blades_dist.detect.heads.base import ArraysModule, FitData, FitOptions, Fitted, Head

_DISTANCES_AT_ONCE = 2**23  # float64: 64 MiB a block


@dataclass(frozen=True)
class KnnHead(Head):
    """``bank`` (m, D) float32 features of real faces; ``weights`` (k,) float64 of the k ascending distances.

    The k-th distance alone has the weights 0, ..., 0, 1; their mean has 1/k each.
    """

    kind = KnnConfig.kind
    config = KnnConfig
    title = "nearest neighbours"
    unit = "negative distance (feature units)"
    sentence = (
        "Stored features of real faces; it has never seen an AI-generated face. "
        "The score is the negative Euclidean distance to the nearest of them."
    )

    bank: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, data: FitData, config: KnnConfig, options: FitOptions) -> Fitted:
        return Fitted(fit_knn(data.real, config, options.seed))

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""
        return int(self.bank.shape[1])

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 negative Euclidean distances to the nearest of the bank, weighted.

        Every distance is summed on its own, never through a matrix product, whose rounding depends on its size: a
        row's score has the same bits in any company.

        Raises:
            ValueError: features of another width.
        """
        check_features(features, self.dimensions)
        rows = torch.tensor(features, dtype=torch.float64)
        parts = rows.split(max(1, _DISTANCES_AT_ONCE // len(self.bank)))
        return torch.cat([self._score(part) for part in parts]).numpy()

    def _score(self, rows: Tensor) -> Tensor:
        distances = torch.cdist(rows, self._bank, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(len(self.weights), largest=False, sorted=True).values
        total = torch.zeros(len(rows), dtype=torch.float64)
        for weight, column in zip(self.weights.tolist(), nearest.unbind(1), strict=True):
            total += weight * column
        return -total

    @cached_property
    def _bank(self) -> Tensor:
        return torch.tensor(self.bank, dtype=torch.float64)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        return {"bank": self.bank, "weights": self.weights}

    def onnx(self) -> nn.Module:
        return _Graph(self)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> "KnnHead":
        """The head of stored parameters.

        Raises:
            ValueError: a parameter is missing, not finite, of another type, or shapes do not fit each other.
        """
        found = checked("nearest-neighbour", tensors, ("bank", "weights"), dtypes={"bank": np.float32})
        bank, weights = found["bank"], found["weights"]
        if bank.ndim != 2 or weights.ndim != 1 or not 1 <= len(weights) <= len(bank):
            raise ValueError(f"nearest-neighbour parameters do not fit each other: {shapes(found)}")
        if (weights < 0).any():
            raise ValueError("nearest-neighbour parameter 'weights' has negative entries")
        return cls(bank, weights)


def fit_knn(features: np.ndarray, config: KnnConfig, seed: int) -> KnnHead:
    """A seeded sample of at most ``config.bank`` of (n, D) features of real faces, to be compared with.

    Raises:
        ValueError: fewer than ``config.k`` rows, or features that are not finite.
    """
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError("features are not a finite (n, D) array: the encoder is damaged or diverged in training")
    if len(features) < config.k:
        raise ValueError(f"knn.k={config.k}: {len(features)} real faces are fewer; lower knn.k or ingest more")
    taken = np.sort(np.random.default_rng(seed).permutation(len(features))[: config.bank])
    last = np.arange(config.k) == config.k - 1
    weights = np.full(config.k, 1 / config.k) if config.distance == "mean" else last.astype(np.float64)
    return KnnHead(np.ascontiguousarray(features[taken], dtype=np.float32), weights)


class _Graph(ArraysModule):
    """By |x|^2 + |b|^2 - 2 xb, which needs no (B, m, D) of differences; float64 keeps half of its digits where the two
    are close."""

    bank: Tensor
    weights: Tensor

    def forward(self, features: Tensor) -> Tensor:
        rows, bank = features.double(), self.bank.double()
        squares = (rows * rows).sum(1, keepdim=True) + (bank * bank).sum(1) - 2 * rows @ bank.T
        nearest = squares.clamp(min=0).topk(len(self.weights), largest=False, sorted=True).values
        return -(nearest.sqrt() @ self.weights)
