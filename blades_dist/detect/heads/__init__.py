"""The one registry of detector heads by kind. A new kind is a file of this folder and a line in ``register`` below;
its section of the configuration, read without torch, stands in ``config.heads`` (or in the same file, for a head of
somebody else's)."""

from collections.abc import Mapping

import numpy as np

from blades_dist.config import FitConfig
from blades_dist.config.heads import SECTIONS
from blades_dist.detect.heads.base import FitData, FitOptions, Fitted, Head
from blades_dist.detect.heads.knn import KnnHead
from blades_dist.detect.heads.linear import LinearHead
from blades_dist.detect.heads.mahalanobis import MahalanobisHead
from blades_dist.detect.heads.mixture import MixtureHead
from blades_dist.detect.heads.perceptron import PerceptronHead

HEADS: dict[str, type[Head]] = {}


def register(*heads: type[Head]) -> None:
    """Makes kinds of head known to bundles, configurations, sweeps, reports and the service.

    Raises:
        ValueError: a kind that is there already.
    """
    for head in heads:
        if head.kind in HEADS:
            raise ValueError(f"head kind {head.kind!r} is registered already, by {HEADS[head.kind].__name__}")
        HEADS[head.kind] = head
        if head.config is not None:
            SECTIONS[head.kind] = head.config


def unregister(kind: str) -> None:
    """Forgets a kind again."""
    HEADS.pop(kind)
    SECTIONS.pop(kind, None)


register(MixtureHead, MahalanobisHead, KnnHead, PerceptronHead, LinearHead)


def head_from_tensors(kind: str, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> Head:
    """The head of stored arrays; ``covariance`` is the type of a mixture's, which its arrays do not tell.

    Raises:
        ValueError: an unknown kind, or arrays that are not those of a head of this kind.
    """
    if kind not in HEADS:
        raise ValueError(f"head kind {kind!r}; known: {', '.join(HEADS)}")
    return HEADS[kind].from_tensors(tensors, covariance)


def fit_head(config: FitConfig, data: FitData, options: FitOptions) -> Fitted:
    """A head of the configured kind.

    Raises:
        ValueError: as ``Head.fit``.
    """
    return HEADS[config.kind].fit(data, config.section(), options)
