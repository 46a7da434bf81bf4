"""Products in a narrow type on wide parameters, with all parameters narrowed at once.

What autocast does, in a few operations instead of two for each layer: matrix products and convolutions compute in the
narrow type, normalisations keep their own parameters wide, as do embeddings and sums along the text's residual stream.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blades_dist.models.affine import Affine
from blades_dist.models.dual import join, split


class LowPrecision:
    """Lends the ``Affine`` layers below ``module`` narrow copies of their parameters, and sets ``narrow`` of others.

    Layers added later are not seen.
    """

    def __init__(self, module: nn.Module) -> None:
        self.affine = [layer for layer in module.modules() if isinstance(layer, Affine)]
        self.others: list[Any] = [layer for layer in module.modules() if hasattr(layer, "narrow")]

    @contextmanager
    def __call__(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, layers compute in ``dtype``, with gradients and tangents for the parameters of when it began."""
        given = [value for layer in self.affine for value in (layer.weight, layer.bias) if value is not None]
        copies = iter(narrowed(given, dtype))
        for layer in self.affine:
            layer.lent = next(copies), None if layer.bias is None else next(copies)
        for other in self.others:
            other.narrow = dtype
        try:
            yield
        finally:
            for layer in self.affine:
                layer.lent = None
            for other in self.others:
                other.narrow = None


def narrowed(values: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies in ``dtype``, each laid out as it was; differentiable, gradients are in the type of ``values``."""
    pairs = [split(value) for value in values]
    copies = _Narrow.apply(dtype, *(value for value, _ in pairs))
    moving = [tangent for _, tangent in pairs if tangent is not None]
    with torch.no_grad():
        tangents = iter(_cast(moving, [copy for copy, (_, t) in zip(copies, pairs, strict=True) if t is not None]))
    return [
        join(copy, None if tangent is None else next(tangents))
        for copy, (_, tangent) in zip(copies, pairs, strict=True)
    ]


class _Narrow(torch.autograd.Function):
    @staticmethod
    def forward(dtype: torch.dtype, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(_cast(values, [torch.empty_like(value, dtype=dtype) for value in values]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [(i, grad) for i, grad in enumerate(cotangents) if grad is not None]
        wide = _cast([grad for _, grad in there], [ctx.saved_tensors[i] for i, _ in there])
        found: list[Tensor | None] = [None] * len(cotangents)
        for (i, _), value in zip(there, wide, strict=True):
            found[i] = value
        return None, *found


def _cast(values: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """``values`` in the type and layout of ``like``."""
    copies = [torch.empty_like(each) for each in like]
    # On a GPU a list is copied in one go if source and target have equal strides throughout, else one by one.
    pairs = list(zip(copies, values, strict=True))
    alike = [
        (copy, value.as_strided(copy.shape, copy.stride())) for copy, value in pairs if _laid_out_alike(copy, value)
    ]
    if alike:
        torch._foreach_copy_([copy for copy, _ in alike], [value for _, value in alike])
    for copy, value in pairs:
        if not _laid_out_alike(copy, value):
            copy.copy_(value)
    return copies


def _laid_out_alike(one: Tensor, other: Tensor) -> bool:
    """Whether their strides are equal where they mean something: those of a single element are arbitrary."""
    return all(n == 1 or a == b for n, a, b in zip(one.shape, one.stride(), other.stride(), strict=True))
