"""The text tower's layers with forward-mode rules of their own: LayerNorm, GELU and attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.models.clip import modeling_clip
from transformers.models.gpt2 import modeling_gpt2

from blades_dist.models.dual import Remembering, join, split


class LayerNorm(Remembering, nn.LayerNorm):
    """``nn.LayerNorm`` with weight and bias; results are in the type ``narrow``, if set (see ``precision``).

    With n = (x - mean) rstd, whose Jacobian J is symmetric, the tangent is weight J dx + (dweight n + dbias): torch's
    backward without a weight, and its forward with the tangents for parameters.
    """

    narrow: torch.dtype | None = None

    def forward(self, input: Tensor) -> Tensor:
        shape, narrow = list(self.normalized_shape), self.narrow or input.dtype
        if torch.compiler.is_compiling():
            return F.layer_norm(input, shape, self.weight, self.bias, self.eps).to(narrow)
        (x, dx), (weight, dweight), (bias, dbias) = split(input), split(self.weight), split(self.bias)
        if self.known is None:
            y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, self.eps)
            y = y.to(narrow)
        else:
            y, mean, rstd = self.known
        if dx is None and dweight is None and dbias is None:
            self.keep(y, mean, rstd)
            return y
        with torch.no_grad():
            dweight = torch.zeros_like(weight) if dweight is None else dweight
            tangent = torch.native_layer_norm(x, shape, dweight, dbias, self.eps)[0]
            if dx is not None:
                moved = torch.ops.aten.native_layer_norm_backward(
                    dx.to(x.dtype), x, shape, mean, rstd, None, None, [True, False, False]
                )[0]
                tangent.addcmul_(moved, weight)
            tangent = tangent.to(narrow)
        return join(y, tangent)


class Gelu(Remembering, NewGELUActivation):
    """GELU by its tanh approximation, as GPT-2 has it (transformers' ``gelu_new``)."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return F.gelu(input, approximate="tanh")
        x, dx = split(input)
        y = F.gelu(x, approximate="tanh") if self.known is None else self.known[0]
        if dx is None:
            self.keep(y)
            return y
        with torch.no_grad():
            tangent: Tensor = torch.ops.aten.gelu_backward(dx, x, approximate="tanh")
        return join(y, tangent)


class GPT2Attention(Remembering, modeling_gpt2.GPT2Attention):
    """What ``tree_attention`` finds for this layer can be remembered."""


class CLIPAttention(Remembering, modeling_clip.CLIPAttention):
    """What ``tree_attention`` finds for this layer can be remembered."""


def tree_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention over (B, heads, T, width) with ``mask`` (T, T) added to the scores, to (B, T, heads, width).

    Plain matrix products in the parameters' own precision: forward-mode differentiation has no formula for the fused
    kernels, and transformers' own unfused CLIP attention rounds to fp32, which would hide what float64 tests look for.
    """
    batch = query.shape[0]
    if torch.compiler.is_compiling():
        q, k, v = (each.flatten(0, 1) for each in (query, key, value))
        return _heads(_weights(q, k, mask, scaling) @ v, batch), None
    (q, dq), (k, dk), (v, dv) = (split(each.flatten(0, 1)) for each in (query, key, value))
    known = module.known if isinstance(module, Remembering) else None
    if known is None:
        weights = _weights(q, k, mask, scaling)
        y = _heads(weights @ v, batch)
    else:
        weights, y = known
    if dq is None and dk is None and dv is None:
        if isinstance(module, Remembering):
            module.keep(weights, y)
        return y, None
    with torch.no_grad():
        dq, dk, dv = (torch.zeros_like(q) if each is None else each.to(q.dtype) for each in (dq, dk, dv))
        dscores = torch.bmm(dq, k.mT).baddbmm_(q, dk.mT, beta=scaling, alpha=scaling)
        dweights = torch._softmax_backward_data(dscores, weights, -1, weights.dtype)
        tangent = _heads(torch.bmm(dweights, v).baddbmm_(weights, dv), batch)
    return join(y, tangent), None


def _weights(q: Tensor, k: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return torch.baddbmm(mask.to(q.dtype), q, k.mT, alpha=scaling).softmax(-1).to(q.dtype)


def _heads(value: Tensor, batch: int) -> Tensor:
    """(B heads, T, width) to (B, T, heads, width)."""
    return value.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()
