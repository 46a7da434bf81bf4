"""Activation checkpointing that a bi-level step can use: activations are computed again in the backward pass.

torch's checkpoint alone does not do here. The backward runs after ``functional_call`` has put the live parameters
back, so the second forward must be handed those of the first; and it must neither move BatchNorm statistics again
nor see ``still_statistics`` otherwise than the first did, as the backward may run inside it.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recompute(layer: nn.Module, *inputs: Any) -> Tensor:
    """``layer(*inputs)``, keeping its inputs only; same result, gradients and BatchNorm statistics.

    The graph can be walked any number of times (``retain_graph``). Without gradients, so also in forward-mode
    passes under ``no_grad``, this is a plain call. The layer must not draw random numbers.
    """
    if not torch.is_grad_enabled():
        return layer(*inputs)
    params = dict(layer.named_parameters())  # inside functional_call: those it was given
    second = _Second(layer)

    def forward(*inputs: Any) -> Tensor:
        if not second.running:
            return layer(*inputs)
        buffers = {name: value.clone() for name, value in layer.named_buffers()}  # these move, the layer's do not
        return functional_call(layer, params | buffers, inputs)

    return checkpoint(
        forward, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), second)
    )


class _Second:
    """The context of later forwards, entered once per backward: layers are told what they were told in the first."""

    # BatchNorm's statistics to stand still; the parameters and types of low precision.
    TOLD = "still", "lent", "narrow"

    def __init__(self, layer: nn.Module) -> None:
        self.told = [(each, name) for each in layer.modules() for name in self.TOLD if hasattr(each, name)]
        self.first = self._now()
        self.running = False

    def __enter__(self) -> None:
        self.outside = self._now()
        self._enter(True, self.first)

    def __exit__(self, *error: object) -> None:
        self._enter(False, self.outside)

    def _now(self) -> list[Any]:
        return [getattr(each, name) for each, name in self.told]

    def _enter(self, running: bool, values: list[Any]) -> None:
        self.running = running
        for (each, name), value in zip(self.told, values, strict=True):
            setattr(each, name, value)
