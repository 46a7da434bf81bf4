"""Convolutions and matrix products: two products for a tangent, and weights that can be lent in a narrower type."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from blades_dist.models.dual import Remembering, join, split


class Affine(Remembering):
    """``_map(x, weight, bias)``, linear in x and, together, in weight and bias.

    ``lent`` (see ``precision``) stands for weight and bias while it is set; inputs are then taken to its type.
    """

    weight: Any
    bias: Any
    lent: tuple[Tensor, Tensor | None] | None = None

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.lent or (self.weight, self.bias)
        if self.lent:
            input = input.to(weight.dtype)
        if torch.compiler.is_compiling():
            return self._map(input, weight, bias)
        x, dx = split(input)
        weight, dweight = split(weight)
        bias, dbias = (None, None) if bias is None else split(bias)
        if dx is None and dweight is None and dbias is None:
            y = self._map(x, weight, bias)
            self.keep(y)
            return y
        y = self._value(x, weight, bias)
        with torch.no_grad():
            tangent = None
            if dweight is not None or dbias is not None:
                tangent = self._map(x, torch.zeros_like(weight) if dweight is None else dweight, dbias)
            if dx is not None:
                tangent = self._map(dx, weight, None) if tangent is None else self._add(tangent, dx, weight)
        return join(y, tangent)

    def _value(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._map(x, weight, bias) if self.known is None else self.known[0]

    def _add(self, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """``total`` + ``_map(x, weight)``; may write into ``total``."""
        return total.add_(self._map(x, weight, None))


class Conv2d(Affine, nn.Conv2d):
    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class _Matrix(Affine):
    """A linear layer; ``_matrix`` gives its weight as (outputs, inputs)."""

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self._matrix(weight), bias)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight

    def _value(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        known = self.remembered
        # Under autocast the product is in another type than what it is made of, which is autocast's own business.
        if not torch.is_grad_enabled() or known is None or not known[0].dtype == x.dtype == weight.dtype:
            return super()._value(x, weight, bias)
        y: Tensor = _Known.apply(x, self._matrix(weight), bias, known[0])
        return y

    def _add(self, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if not total.dtype == x.dtype == weight.dtype:
            return super()._add(total, x, weight)
        total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self._matrix(weight).T)
        return total


class Linear(_Matrix, nn.Linear):
    pass


class GPT2Linear(_Matrix, Conv1D):
    """GPT-2's linear layer, whose weight is (inputs, outputs)."""

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.T


class _Known(torch.autograd.Function):
    """x W^T + b whose value is known already; only the backward computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return known.detach()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = cotangent.flatten(0, -2)
        bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return cotangent @ weight, rows.T @ x.flatten(0, -2), bias, None
