"""What no part of the package knows, made known for the time of a test: adding must need no edit elsewhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from blades_dist.config import HeadConfig
from blades_dist.detect.heads import register, unregister
from blades_dist.detect.heads.arrays import check_features, checked
from blades_dist.detect.heads.base import ArraysModule, FitData, FitOptions, Fitted, Head


class CentroidConfig(HeadConfig):
    """Section of the made-up kind."""

    kind = "centroid"
    search: ClassVar = {"power": {"low": 1.0, "high": 3.0}}
    renamed: ClassVar = {"exponent": "power"}

    power: float = Field(2.0, gt=0, description="of the distance")


@dataclass(frozen=True)
class CentroidHead(Head):
    """Minus a power of the distance to the mean of real faces: ``mean`` (D,) and ``power`` (1,), float64."""

    kind = CentroidConfig.kind
    config = CentroidConfig
    title = "centroid"
    unit = "negative distance to a power"
    sentence = "The mean of features of real faces."

    mean: np.ndarray
    power: np.ndarray

    @classmethod
    def fit(cls, data: FitData, config: CentroidConfig, options: FitOptions) -> Fitted:
        head = cls(data.real.mean(0, dtype=np.float64), np.array([config.power]))
        return Fitted(head, {"power": config.power}, ("this kind is made up",))

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    def score(self, features: np.ndarray) -> np.ndarray:
        check_features(features, self.dimensions)
        return -(np.linalg.norm(features - self.mean, axis=1) ** self.power[0])

    def tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "power": self.power}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> "CentroidHead":
        return cls(**checked("centroid", tensors, ("mean", "power")))

    def onnx(self) -> nn.Module:
        return _Graph(self)


class _Graph(ArraysModule):
    mean: Tensor
    power: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return -((features.double() - self.mean).square().sum(1) ** (self.power / 2))


@contextmanager
def made_up_head() -> Iterator[type[Head]]:
    """``CentroidHead``, registered until the end of the block."""
    register(CentroidHead)
    try:
        yield CentroidHead
    finally:
        unregister(CentroidHead.kind)
