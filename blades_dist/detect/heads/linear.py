"""Linear head: one logit of "AI-generated" on frozen features, as CNNDetection and UnivFD have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blades_dist.detect.heads.arrays import check_features, checked, shapes
from blades_dist.detect.heads.base import ArraysModule, ProbabilityHead


@dataclass(frozen=True)
class LinearHead(ProbabilityHead):
    """logit = features @ weight + bias, large for AI-generated; ``weight`` (D,) and ``bias`` (1,) are float64."""

    kind = "linear"
    title = "linear"
    unit = "log-odds of photographic (nats)"
    sentence = (
        "One logit of AI-generated, trained elsewhere on real and AI-generated images and imported. "
        "The score is its negative, the log-odds of photographic in nats."
    )

    weight: np.ndarray
    bias: np.ndarray
    temperature: float = 1.0

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""
        return int(self.weight.shape[0])

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 log-odds of photographic, which is minus the logit.

        Raises:
            ValueError: features of another width.
        """
        check_features(features, self.dimensions)
        weight, bias = self._copies
        return -F.linear(torch.tensor(features, dtype=torch.float64), weight[None], bias)[:, 0].numpy()

    @cached_property
    def _copies(self) -> tuple[Tensor, Tensor]:
        # Matrix products may round differently on memory aligned differently; torch's own is always aligned alike.
        return torch.tensor(self.weight), torch.tensor(self.bias)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        return {"weight": self.weight, "bias": self.bias, "temperature": np.array([self.temperature])}

    def onnx(self) -> nn.Module:
        return _Graph(self)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], covariance: str | None = None) -> "LinearHead":
        """The head of stored parameters.

        Raises:
            ValueError: a parameter is missing, not finite, not float64, of another shape, or no temperature.
        """
        found = checked("linear head", tensors, ("weight", "bias", "temperature"))
        temperature = found["temperature"]
        if found["weight"].ndim != 1 or not found["weight"].size or found["bias"].shape != (1,):
            raise ValueError(f"linear head parameters do not fit each other: {shapes(found)}")
        if temperature.shape != (1,) or temperature[0] <= 0:
            raise ValueError(f"linear head parameter 'temperature' is {temperature}, expected one positive number")
        return cls(found["weight"], found["bias"], float(temperature[0]))


class _Graph(ArraysModule):
    weight: Tensor
    bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return -(features.double() @ self.weight + self.bias)
