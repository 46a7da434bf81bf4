"""The one registry of head kinds: how each is read back, and what its score is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from blades_dist.detect.knn import KnnHead
from blades_dist.detect.linear import LinearHead
from blades_dist.detect.mahalanobis import MahalanobisHead
from blades_dist.detect.mixture import Covariance, OneClassHead
from blades_dist.detect.perceptron import BinaryHead


class Head(Protocol):
    """A decision on frozen features; larger scores are more like a photograph."""

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 scores; ValueError for another width."""

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored."""


@runtime_checkable
class ProbabilityHead(Head, Protocol):
    """A head that has seen AI faces and states a probability."""

    @property
    def temperature(self) -> float:
        """Divides the score before it becomes a probability."""

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) float64 probabilities of AI-generated."""


@dataclass(frozen=True)
class Kind:
    """One kind of head: ``read`` takes stored arrays (and the covariance type, where it has one).

    ``unit`` labels an axis of scores; ``sentence`` describes the head in a model card.
    """

    title: str
    unit: str
    sentence: str
    read: Callable[[Mapping[str, np.ndarray], Covariance | None], Head]


HEADS: dict[str, Kind] = {
    "oc": Kind(
        "mixture",
        "log-likelihood (nats)",
        "A Gaussian mixture over features of real faces; it has never seen an AI-generated face. "
        "The score is the log-likelihood in nats.",
        lambda tensors, covariance: OneClassHead.from_tensors(tensors, covariance or "full"),
    ),
    "mahalanobis": Kind(
        "Mahalanobis",
        "log-likelihood (nats)",
        "One Gaussian with a shrunk covariance over features of real faces; it has never seen an AI-generated face. "
        "The score is the log-likelihood in nats: minus half the squared Mahalanobis distance, and a constant.",
        lambda tensors, _: MahalanobisHead.from_tensors(tensors),
    ),
    "knn": Kind(
        "nearest neighbours",
        "negative distance (feature units)",
        "Stored features of real faces; it has never seen an AI-generated face. "
        "The score is the negative Euclidean distance to the nearest of them.",
        lambda tensors, _: KnnHead.from_tensors(tensors),
    ),
    "bc": Kind(
        "perceptron",
        "log-odds of photographic (nats)",
        "A perceptron with one hidden layer, trained on features of real and of AI-generated faces. "
        "The score is the log-odds of photographic in nats, before the temperature that probabilities use.",
        lambda tensors, _: BinaryHead.from_tensors(tensors),
    ),
    "linear": Kind(
        "linear",
        "log-odds of photographic (nats)",
        "One logit of AI-generated, trained elsewhere on real and AI-generated images and imported. "
        "The score is its negative, the log-odds of photographic in nats.",
        lambda tensors, _: LinearHead.from_tensors(tensors),
    ),
}


def head_from_tensors(kind: str, tensors: Mapping[str, np.ndarray], covariance: Covariance | None = None) -> Head:
    """The head of stored arrays.

    Raises:
        ValueError: an unknown kind, or arrays that are not those of a head of this kind.
    """
    if kind not in HEADS:
        raise ValueError(f"head kind {kind!r}; known: {', '.join(HEADS)}")
    return HEADS[kind].read(tensors, covariance)
