"""BatchNorm whose statistics can span all workers, stand still, or be left alone during an outer step.

With n = (x - mean) invstd, where batch statistics move with x, y = weight n + bias has the tangent

    dy = weight J dx + dweight n + dbias,    J dx = invstd (dx - mean(dx) - n mean(n dx)).

J is symmetric, so the backward of synchronised statistics is the same formula; only its two sums go over all workers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blades_dist.distributed import World
from blades_dist.models.batchnorm_ops import batchnorm_sums, batchnorm_tangent
from blades_dist.models.dual import Remembering, join, split

Mode = Literal["sync", "local", "frozen"]
_ALONE = World()


class BatchNorm2d(Remembering, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` (same parameters, buffers and names) with three modes for training.

    ``sync``: batch mean and variance over all workers, as one process with the whole batch has them;
    ``local``: over this worker's rows; ``frozen``: the running statistics, also in training.
    Inputs may be narrower than the parameters; statistics are in the parameters' type and results in the input's.
    Works under ``torch.func.jvp``. Inside ``still_statistics`` the running statistics do not move.
    """

    def __init__(self, channels: int, eps: float, momentum: float, mode: Mode, world: World) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.mode, self.world, self.still = mode, world, False

    def forward(self, input: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """``relu``(norm(input) + shortcut) of (B, C, H, W), both of which are optional."""
        if torch.compiler.is_compiling():
            return _finish(self._normalise(input, self.weight, self.bias)[0], shortcut, relu)
        (x, dx), (weight, dweight), (bias, dbias) = split(input), split(self.weight), split(self.bias)
        other, dother = (None, None) if shortcut is None else split(shortcut)
        if all(tangent is None for tangent in (dx, dweight, dbias, dother)):
            y, moments = self._normalise(x, weight, bias)
            y = _finish(y, other, relu)
            # A ReLU's result is kept by the backward, too; other results are let go.
            self.keep(*moments, *([y] if relu else []))
            return y
        y, mean, invstd = self._value(x, weight, bias, other, relu)
        with torch.no_grad():
            dx, total, along = torch.zeros_like(x) if dx is None else dx, None, None
            if not self._stands:
                total, along = self._spans.sum_all(batchnorm_sums(dx, x, mean, invstd))
            count, result = _count(x, self._spans), y if relu else None
            tangent = batchnorm_tangent(
                x, dx, mean, invstd, weight, dweight, dbias, total, along, count, dother, result
            )
        return join(y, tangent)

    @property
    def _stands(self) -> bool:
        return not self.training or self.mode == "frozen"

    @property
    def _spans(self) -> World:
        """The workers whose rows make the batch statistics."""
        return self.world if self.mode == "sync" else _ALONE

    @property
    def _running(self) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None and self.running_var is not None
        return self.running_mean, self.running_var

    def _value(
        self, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's result and the mean and invstd that it is made with; what is known is not computed again."""
        known = self.known or ()
        if self._stands:
            mean, invstd = self._running[0], torch.rsqrt(self._running[1] + self.eps)
            if known:
                return known[-1], mean, invstd
            return _finish(self._normalise(x, weight, bias)[0], shortcut, relu), mean, invstd
        if len(known) == 3:
            return known[2], known[0], known[1]
        if known:
            mean, invstd = known
            y = _scaled(x, weight, bias, mean, invstd, self.eps)
        else:
            y, (mean, invstd) = self._normalise(x, weight, bias)
        return _finish(y, shortcut, relu), mean, invstd

    def _normalise(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """weight n + bias in the type of x; and the batch's mean and invstd, (C,) each, if n is made with them."""
        if self._stands:
            return F.batch_norm(x, *self._running, weight=weight, bias=bias, eps=self.eps), ()
        momentum = self.momentum or 0.0
        moved = None if self.still else self._running
        if self._spans.size > 1:
            found = _global_statistics(x.detach(), moved, weight.dtype, momentum, self.eps, self.world)
            return _Synchronised.apply(x, weight, bias, *found, self.eps, self.world), found
        moved_mean, moved_var = moved or (None, None)
        if torch.compiler.is_compiling():
            return F.batch_norm(x, moved_mean, moved_var, weight, bias, True, momentum, self.eps), ()
        # What F.batch_norm calls, which then drops the statistics.
        cudnn = torch.backends.cudnn.enabled
        y, mean, invstd, *_ = torch._batch_norm_impl_index(
            x, weight, bias, moved_mean, moved_var, True, momentum, self.eps, cudnn
        )
        return y, (mean, invstd)


class _Synchronised(torch.autograd.Function):
    """weight n + bias with statistics over all workers, which are handed in: their part is in the formula of x."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float, _: World) -> Tensor:
        return _scaled(x, weight, bias, mean, invstd, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, mean, invstd, _, ctx.world = inputs
        ctx.save_for_backward(x, weight, mean, invstd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        total, along = batchnorm_sums(cotangent, x, mean, invstd)
        sums, count = ctx.world.sum_all([total, along]), _count(x, ctx.world)
        dx = batchnorm_tangent(x, cotangent, mean, invstd, weight, None, None, sums[0], sums[1], count)
        return dx, along, total, None, None, None, None


def _global_statistics(
    x: Tensor,
    running: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    momentum: float,
    eps: float,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Mean and invstd in ``dtype`` over all workers, which have equally many rows; moves ``running``, if given."""
    moved_mean, moved_var = running or (None, None)
    if x.is_cuda:
        means, invstds = world.gather(torch.stack(torch.batch_norm_stats(x, eps))).unbind(1)
        counts = torch.full((world.size,), float(_count(x)), dtype=means.dtype, device=x.device)
        found: tuple[Tensor, Tensor] = torch.batch_norm_gather_stats_with_counts(
            x, means, invstds, moved_mean, moved_var, momentum, eps, counts
        )
        return found
    # Means of means are means, and this stays stable in fp32.
    variance, mean = torch.var_mean(x.to(dtype), dim=(0, 2, 3), correction=0)
    means, variances = world.gather(torch.stack((mean, variance))).unbind(1)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    if moved_mean is not None and moved_var is not None:
        count = _count(x, world)
        moved_mean.lerp_(mean, momentum)
        moved_var.lerp_(variance * (count / max(count - 1, 1)), momentum)
    return mean, torch.rsqrt(variance + eps)


def _scaled(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    """weight (x - mean) invstd + bias in the type of x."""
    if x.is_cuda:
        y: Tensor = torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)
        return y
    scale = weight * invstd
    return torch.addcmul((bias - mean * scale)[:, None, None], x, scale[:, None, None]).to(x.dtype)


def _count(x: Tensor, world: World | None = None) -> int:
    """Values of a channel."""
    return x.numel() // x.shape[1] * (world.size if world else 1)


def _finish(y: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """relu(y + shortcut), in place: no backward needs what the normalisation itself gave."""
    if shortcut is not None:
        y += shortcut
    return F.relu(y, inplace=True) if relu else y


def replace_batchnorm(module: nn.Module, mode: Mode, world: World) -> None:
    """Replaces every ``nn.BatchNorm2d`` below ``module`` in place, keeping its parameters and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            new = BatchNorm2d(child.num_features, child.eps, child.momentum or 0.1, mode, world)
            new.load_state_dict(child.state_dict())
            setattr(module, name, new)
        else:
            replace_batchnorm(child, mode, world)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, forwards of ``module`` in training mode leave its BatchNorm buffers bitwise as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm2d)]
    before = [layer.still for layer in layers]
    for layer in layers:
        layer.still = True
    try:
        yield
    finally:
        for layer, still in zip(layers, before, strict=True):
            layer.still = still


def statistics(module: nn.Module) -> Tensor:
    """All running means and variances below ``module``, copied into one vector."""
    return torch.cat([value.flatten() for value in _buffers(module)] or [torch.empty(0)])


def set_statistics(module: nn.Module, values: Tensor) -> None:
    """Puts back what ``statistics`` gave."""
    buffers = _buffers(module)
    for buffer, value in zip(buffers, values.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))


def _buffers(module: nn.Module) -> list[Tensor]:
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm2d)]
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
