"""Heads as torch graphs: the arithmetic of their ``score`` in operations that every ONNX runtime has.

One small module a kind, in float64 as the heads themselves: log-likelihoods are in the thousands, and float32 would
leave three decimals of them.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blades_dist.detect.heads import Head
from blades_dist.detect.knn import KnnHead
from blades_dist.detect.linear import LinearHead
from blades_dist.detect.mahalanobis import MahalanobisHead
from blades_dist.detect.mixture import OneClassHead
from blades_dist.detect.perceptron import GENERATED, REAL, BinaryHead


class _Arrays(nn.Module):
    """A head's arrays as buffers, by the head's names with ``_`` for the dots."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        for name, value in head.tensors().items():
            self.register_buffer(name.replace(".", "_"), torch.tensor(value))


class _Mixture(_Arrays):
    """Log-likelihood of a Gaussian mixture; all components at once."""

    weights: Tensor
    means: Tensor
    precisions: Tensor
    constants: Tensor
    whitening_mean: Tensor
    whitening_components: Tensor
    whitening_scale: Tensor

    def __init__(self, head: OneClassHead) -> None:
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


class _Mahalanobis(_Arrays):
    """Log-likelihood of one Gaussian."""

    mean: Tensor
    precision: Tensor

    def __init__(self, head: MahalanobisHead) -> None:
        super().__init__(head)
        determinant = float(self.precision.diagonal().log().sum())
        self.constant = determinant - 0.5 * head.dimensions * math.log(2 * math.pi)

    def forward(self, features: Tensor) -> Tensor:
        scaled = (features.double() - self.mean) @ self.precision
        return self.constant - 0.5 * (scaled * scaled).sum(1)


class _Knn(_Arrays):
    """Negative weighted distance to the nearest rows of the bank.

    By |x|^2 + |b|^2 - 2 xb, which needs no (B, m, D) of differences; float64 keeps half of its digits where the two
    are close.
    """

    bank: Tensor
    weights: Tensor

    def forward(self, features: Tensor) -> Tensor:
        rows, bank = features.double(), self.bank.double()
        squares = (rows * rows).sum(1, keepdim=True) + (bank * bank).sum(1) - 2 * rows @ bank.T
        nearest = squares.clamp(min=0).topk(len(self.weights), largest=False, sorted=True).values
        return -(nearest.sqrt() @ self.weights)


class _Perceptron(_Arrays):
    """Log-odds of photographic of D -> H -> ReLU -> 2."""

    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.linear(features.double(), self.hidden_weight, self.hidden_bias).relu()
        logits = F.linear(hidden, self.out_weight, self.out_bias)
        return logits[:, REAL] - logits[:, GENERATED]


class _Linear(_Arrays):
    """Minus one logit of AI-generated."""

    weight: Tensor
    bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return -(features.double() @ self.weight + self.bias)


# A further kind of head is a module above and a row here.
_GRAPHS: dict[type, Callable[..., nn.Module]] = {
    OneClassHead: _Mixture,
    MahalanobisHead: _Mahalanobis,
    KnnHead: _Knn,
    BinaryHead: _Perceptron,
    LinearHead: _Linear,
}


def head_graph(head: Head) -> nn.Module:
    """A module from (B, D) float32 features to (B,) float64 scores, those of ``head.score`` up to rounding.

    Raises:
        ValueError: a kind of head that has no graph yet.
    """
    if type(head) not in _GRAPHS:
        known = ", ".join(kind.__name__ for kind in _GRAPHS)
        raise ValueError(f"a {type(head).__name__} cannot be exported to ONNX; heads that can: {known}")
    return _GRAPHS[type(head)](head).eval()
