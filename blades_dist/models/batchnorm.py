"""BatchNorm whose statistics can span all workers, stand still, or be left alone during an outer step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blades_dist.distributed import World
from blades_dist.models.dual import split

Mode = Literal["sync", "local", "frozen"]


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` (same parameters, buffers and names) with three modes for training.

    ``sync``: batch mean and variance over all workers, as one process with the whole batch has them;
    ``local``: over this worker's rows; ``frozen``: the running statistics, also in training.
    Works under ``torch.func.jvp``. Inside ``still_statistics`` the running statistics do not move.
    """

    def __init__(self, channels: int, eps: float, momentum: float, mode: Mode, world: World) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.mode, self.world, self.still = mode, world, False

    def forward(self, input: Tensor) -> Tensor:
        # Of a half-precision input torch's batch_norm makes a half-precision value with an fp32 tangent, which the
        # next convolution refuses: normalised in the parameters' type, cast back explicitly.
        return self._normalise(input.to(self.weight.dtype)).to(input.dtype)

    def _normalise(self, input: Tensor) -> Tensor:
        if not self.training or self.mode == "frozen":
            running = (self.running_mean, self.running_var)
            return F.batch_norm(input, *running, self.weight, self.bias, False, 0.0, self.eps)
        if self.mode == "local" or self.world.size == 1:
            if not torch.compiler.is_compiling() and split(input)[1] is not None:
                settings = (*self._running, self.momentum or 0.0, self.eps)
                return _WithTangent.apply(input, self.weight, self.bias, *settings)[0]
            return F.batch_norm(input, *self._running, self.weight, self.bias, True, self.momentum or 0.0, self.eps)
        mean, variance, count = self._global_moments(input)
        if not self.still:
            self._move(mean, variance, count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return input * scale[:, None, None] + shift[:, None, None]

    @property
    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.still else (self.running_mean, self.running_var)

    def _global_moments(self, input: Tensor) -> tuple[Tensor, Tensor, int]:
        # Every worker has the same number of rows, so means of means are means (and this stays stable in fp32).
        variance, mean = torch.var_mean(input, dim=(0, 2, 3), correction=0)
        means, variances = self.world.gather(torch.stack((mean, variance))).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        return mean, variance, input.numel() // input.shape[1] * self.world.size

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        unbiased = variance.detach() * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class _WithTangent(torch.autograd.Function):
    """Batch normalisation whose tangent takes three passes over the activations; torch's own takes a dozen.

    Not ``make_dual`` as in ``dual``: that gives a view, and residual blocks add to this result in place.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm(
            x, weight, bias, mean, var, True, momentum, eps
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, weight, *_, ctx.eps = inputs
        _, mean, scale = output
        ctx.mark_non_differentiable(mean, scale)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.save_for_forward(x, weight, mean, scale)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*_pull(ctx, cotangent, [True, True, True]), None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dweight: Tensor | None, dbias: Tensor | None, *_: Any) -> tuple[Tensor, None, None]:
        x, weight, mean, scale = ctx.saved_tensors
        with torch.no_grad():
            # y = weight n + bias with n = (x - mean) scale; mean and scale move with x. Sums of dx n and dx, then one
            # affine combination of dx and x.
            along, total = _pull(ctx, dx, [False, True, True])[1:]
            count, gain = x.numel() // x.shape[1], weight * scale
            slope = scale * ((0 if dweight is None else dweight) - gain * along / count)
            offset = (0 if dbias is None else dbias) - gain * total / count - mean * slope
            moved = torch.addcmul(offset[:, None, None], x, slope[:, None, None])
            moved.addcmul_(dx, gain[:, None, None])
        return moved, None, None


def _pull(ctx: Any, cotangent: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, mean, scale = ctx.saved_tensors
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        cotangent, x, weight, None, None, mean, scale, True, ctx.eps, wanted
    )
    return found


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
