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

from blades_dist.models.batchnorm import BatchNorm2d


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
    """The context of later forwards, entered once per backward: BatchNorm is as still as it was in the first."""

    def __init__(self, layer: nn.Module) -> None:
        self.norms = [each for each in layer.modules() if isinstance(each, BatchNorm2d)]
        self.first = [each.still for each in self.norms]
        self.running = False

    def __enter__(self) -> None:
        self.outside = [each.still for each in self.norms]
        self._enter(True, self.first)

    def __exit__(self, *error: object) -> None:
        self._enter(False, self.outside)

    def _enter(self, running: bool, still: list[bool]) -> None:
        self.running = running
        for each, value in zip(self.norms, still, strict=True):
            each.still = value
