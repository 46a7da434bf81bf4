"""Binary head: a perceptron on frozen features (paper, BC); plain arrays that ``binary`` fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor

from blades_dist.detect.arrays import check_features, checked, shapes

REAL, GENERATED = 0, 1  # columns of the output layer
_LAYERS = ("hidden_weight", "hidden_bias", "out_weight", "out_bias")


@dataclass(frozen=True)
class BinaryHead:
    """Parameters of D -> H -> ReLU -> 2, all float64: ``hidden_weight`` (H, D), ``out_weight`` (2, H).

    ``temperature`` divides the log-odds before they become a probability; 1 changes nothing.
    """

    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    out_weight: np.ndarray
    out_bias: np.ndarray
    temperature: float = 1.0

    @property
    def dimensions(self) -> int:
        """D, the feature width it scores."""
        return int(self.hidden_weight.shape[1])

    def score(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) float64 log-odds of photographic in nats, before the temperature.

        Raises:
            ValueError: features of another width.
        """
        check_features(features, self.dimensions)
        hidden_weight, hidden_bias, out_weight, out_bias = self._copies
        rows = torch.tensor(features, dtype=torch.float64)
        logits = F.linear(F.linear(rows, hidden_weight, hidden_bias).relu(), out_weight, out_bias)
        return (logits[:, REAL] - logits[:, GENERATED]).numpy()

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) float64 probabilities of AI-generated, both kinds taken to be equally frequent."""
        return expit(-np.asarray(scores, np.float64) / self.temperature)

    @cached_property
    def _copies(self) -> list[Tensor]:
        # Matrix products may round differently on memory aligned differently; torch's own is always aligned alike.
        return [torch.tensor(value) for value in self._layers().values()]

    def _layers(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _LAYERS}

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter by name, to be stored; ``from_tensors`` is the inverse."""
        return {**self._layers(), "temperature": np.array([self.temperature])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> "BinaryHead":
        """The head of stored parameters; without ``temperature`` (as older ones are) it is 1.

        Raises:
            ValueError: a parameter is missing, not finite, not float64, or shapes do not fit each other.
        """
        found = checked("perceptron", tensors, _LAYERS, optional=("temperature",))
        temperature = found.pop("temperature", np.ones(1))
        if temperature.shape != (1,) or temperature[0] <= 0:
            raise ValueError(f"perceptron parameter 'temperature' is {temperature}, expected one positive number")
        head = cls(**found, temperature=float(temperature[0]))
        h = head.hidden_weight.shape[0] if head.hidden_weight.ndim == 2 else -1
        if (head.hidden_bias.shape, head.out_weight.shape, head.out_bias.shape) != ((h,), (2, h), (2,)):
            raise ValueError(f"perceptron parameters do not fit each other: {shapes(found)}")
        return head
