"""What the layers with a forward-mode rule of their own share.

torch's forward mode differentiates operation by operation: a LayerNorm takes some thirty, a convolution with moving
weights computes its result once more. Here a layer splits its inputs into values and tangents, takes the value by
torch's own operations (with their graph, where one is wanted), the tangent by a formula, and joins the two. Outside
forward mode the layers are torch's.

The outer step's pass runs at parameters and rows whose results were computed a moment ago, so layers may keep them
(``remember``) and have only the tangent to compute. The compiler knows neither: a compiled tower remembers nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn


def split(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tensor's value and its forward-mode tangent; None when it has none, or no forward mode is on."""
    primal, tangent = forward_mode.unpack_dual(value)
    return primal, None if tangent is None else tangent.detach()


def join(value: Tensor, tangent: Tensor | None) -> Tensor:
    """The dual tensor of both; ``value`` itself without a tangent."""
    return value if tangent is None else forward_mode.make_dual(value, tangent)


class Remembering(nn.Module):
    """A layer that can keep what a plain forward found for forward-mode passes at the same point."""

    remembering = False
    remembered: tuple[Tensor, ...] | None = None

    def keep(self, *values: Tensor) -> None:
        """Keeps ``values``, if told to remember."""
        if self.remembering:
            self.remembered = tuple(value.detach() for value in values)

    @property
    def known(self) -> tuple[Tensor, ...] | None:
        """What is kept and may stand for a computation: it has no graph, so nothing where one is wanted."""
        return None if torch.is_grad_enabled() else self.remembered


@contextmanager
def remember(module: nn.Module) -> Iterator[None]:
    """Layers keep the results of plain forwards inside, for forward-mode passes at the same point until ``forget``."""
    layers = [layer for layer in module.modules() if isinstance(layer, Remembering)]
    for layer in layers:
        layer.remembering = True
    try:
        yield
    finally:
        for layer in layers:
            layer.remembering = False


def forget(module: nn.Module) -> None:
    """Frees what layers have remembered; after it forward mode computes every result itself."""
    for layer in module.modules():
        if isinstance(layer, Remembering):
            layer.remembered = None
