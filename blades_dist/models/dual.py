"""Layers that carry a forward-mode tangent at the least cost.

torch's own forward mode computes three products for a convolution or matrix product with moving weights: the result
y = W x again, W dx and dW x. The outer step's pass runs at parameters and rows whose result was computed a moment
ago, so layers may remember it (``remember``), which leaves two. Outside forward mode these layers are torch's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.resnet import modeling_resnet
from transformers.pytorch_utils import Conv1D


def split(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tensor's value and its forward-mode tangent; None when it has none, or no forward mode is on."""
    primal, tangent = forward_mode.unpack_dual(value)
    return primal, None if tangent is None else tangent.detach()


class _Affine(nn.Module):
    """``_map(x, weight, bias)``, linear in x and, together, in weight and bias."""

    weight: Any
    bias: Any
    remembering = False
    remembered: Tensor | None = None

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._map(input, self.weight, self.bias)
        x, dx = split(input)
        weight, dweight = split(self.weight)
        bias, dbias = (None, None) if self.bias is None else split(self.bias)
        if dx is None and dweight is None and dbias is None:
            y = self._map(input, self.weight, self.bias)
            if self.remembering:
                self.remembered = y.detach()
            return y
        y = self._value(x, weight, bias)
        with torch.no_grad():
            tangent = torch.zeros_like(y) if dx is None else self._map(dx, weight, None)
            if dweight is not None or dbias is not None:
                moved = torch.zeros_like(weight) if dweight is None else dweight
                tangent += self._map(x, moved, dbias)
        return forward_mode.make_dual(y, tangent)

    def _value(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.remembered is None or torch.is_grad_enabled():
            return self._map(x, weight, bias)
        return self.remembered


class Conv2d(_Affine, nn.Conv2d):
    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class _Matrix(_Affine):
    """A linear layer; ``_matrix`` gives its weight as (outputs, inputs)."""

    def _map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self._matrix(weight), bias)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight

    def _value(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        known = self.remembered
        # Under autocast the product is in another type than what it is made of, which is autocast's own business.
        if known is None or not torch.is_grad_enabled() or known.dtype != x.dtype or known.dtype != weight.dtype:
            return super()._value(x, weight, bias)
        y: Tensor = _Known.apply(x, self._matrix(weight), bias, known)
        return y


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


class _Residual(nn.Module):
    """A residual block whose sum, in forward mode, is a new tensor: torch's in-place sum of duals copies them twice."""

    layer: nn.Module
    shortcut: nn.Module
    activation: nn.Module

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = self.shortcut(hidden_state)
        hidden_state = self.layer(hidden_state)
        if torch.compiler.is_compiling() or split(hidden_state)[1] is None:
            hidden_state += residual
        else:
            hidden_state = hidden_state + residual
        result: Tensor = self.activation(hidden_state)
        return result


class ResNetBasicLayer(_Residual, modeling_resnet.ResNetBasicLayer):
    pass


class ResNetBottleNeckLayer(_Residual, modeling_resnet.ResNetBottleNeckLayer):
    pass


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.Linear: Linear,
    Conv1D: GPT2Linear,
    modeling_resnet.ResNetBasicLayer: ResNetBasicLayer,
    modeling_resnet.ResNetBottleNeckLayer: ResNetBottleNeckLayer,
}


def adapt(module: nn.Module) -> None:
    """Makes every layer of ``KINDS`` below ``module`` ours, in place; parameters and names stay."""
    for layer in module.modules():
        if type(layer) in KINDS:
            layer.__class__ = KINDS[type(layer)]  # as torch's parametrize does: the state is the same, forward is not


@contextmanager
def remember(module: nn.Module) -> Iterator[None]:
    """Layers keep the results of plain forwards inside, for forward-mode passes at the same point until ``forget``."""
    layers = [layer for layer in module.modules() if isinstance(layer, _Affine)]
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
        if isinstance(layer, _Affine):
            layer.remembered = None
