"""Linear head: one logit of "AI-generated" on frozen features, as CNNDetection and UnivFD have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor

from blades_dist.detect.arrays import check_features, checked, shapes


@dataclass(frozen=True)
class LinearHead:
    """logit = features @ weight + bias, large for AI-generated; ``weight`` (D,) and ``bias`` (1,) are float64."""

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

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) probabilities of AI-generated at the head's temperature."""
        return np.asarray(expit(-np.asarray(scores, np.float64) / self.temperature))

    @cached_property
    def _copies(self) -> tuple[Tensor, Tensor]:
        # Matrix products may round differently on memory aligned differently; torch's own is always aligned alike.
        return torch.tensor(self.weight), torch.tensor(self.bias)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        return {"weight": self.weight, "bias": self.bias, "temperature": np.array([self.temperature])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> "LinearHead":
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
