"""transformers' ResNet layers, with BatchNorm, the sum with the shortcut and the ReLU behind them as one layer."""

from typing import Any

from torch import Tensor, nn
from transformers.models.resnet import modeling_resnet

from blades_dist.models.batchnorm import BatchNorm2d


class ResNetConvLayer(modeling_resnet.ResNetConvLayer):
    def forward(self, input: Tensor) -> Tensor:
        return _finish(self, self.convolution(input), None, self.activation)


class _Residual(nn.Module):
    """A residual block, whose last layer has no activation of its own: the block's comes after the sum."""

    layer: nn.Sequential
    shortcut: nn.Module
    activation: nn.Module

    def forward(self, hidden_state: Tensor) -> Tensor:
        shortcut = self.shortcut(hidden_state)
        last: Any
        *first, last = self.layer
        for layer in first:
            hidden_state = layer(hidden_state)
        return _finish(last, last.convolution(hidden_state), shortcut, self.activation)


class ResNetBasicLayer(_Residual, modeling_resnet.ResNetBasicLayer):
    pass


class ResNetBottleNeckLayer(_Residual, modeling_resnet.ResNetBottleNeckLayer):
    pass


def _finish(layer: Any, hidden: Tensor, shortcut: Tensor | None, activation: nn.Module) -> Tensor:
    """activation(norm(hidden) + shortcut)"""
    norm, result = layer.normalization, hidden
    if isinstance(norm, BatchNorm2d) and isinstance(activation, nn.ReLU | nn.Identity):
        result = norm(hidden, shortcut, isinstance(activation, nn.ReLU))
    else:
        result = norm(hidden)
        result = activation(result if shortcut is None else result + shortcut)
    return result
