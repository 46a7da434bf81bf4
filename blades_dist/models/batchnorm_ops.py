"""What BatchNorm computes beside torch's own kernels, as operations of the dispatcher: Triton on CUDA, torch elsewhere.

``batchnorm_sums`` are the two sums of a tangent (or cotangent) dx that its batch statistics need; ``batchnorm_tangent``
is the one pass over the activations that makes a layer's tangent of them. Both are without derivatives of their own.
"""

import functools
import importlib.util

import torch
from torch import Tensor

from blades_dist.triton_host import kernel_failure

_LIBRARY = torch.library.Library("blades", "FRAGMENT")
_LIBRARY.define("batchnorm_sums(Tensor dx, Tensor x, Tensor mean, Tensor invstd) -> (Tensor, Tensor)")
_LIBRARY.define(
    "batchnorm_tangent(Tensor x, Tensor dx, Tensor mean, Tensor invstd, Tensor weight, Tensor? dweight, Tensor? dbias, "
    "Tensor? total, Tensor? along, float count, Tensor? dshortcut, Tensor? result) -> Tensor"
)


def batchnorm_sums(dx: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over all but the channels of dx and of n dx, n = (x - mean) invstd; both (C,) in the type of ``mean``."""
    found: tuple[Tensor, Tensor] = torch.ops.blades.batchnorm_sums(dx, x, mean, invstd)
    return found


def batchnorm_tangent(
    x: Tensor,
    dx: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    total: Tensor | None = None,
    along: Tensor | None = None,
    count: float = 1.0,
    dshortcut: Tensor | None = None,
    result: Tensor | None = None,
) -> Tensor:
    """weight invstd (dx - total / count - n along / count) + dweight n + dbias + dshortcut, zero where ``result`` is.

    x, dx, dshortcut, result and what is returned are (B, C, H, W) of one type, the others (C,) in that of ``mean``.
    ``total`` and ``along`` are the ``batchnorm_sums`` of all ``count`` values a channel; None where statistics stand.
    ``result`` is the layer's own, behind a ReLU; None without one.
    """
    found: Tensor = torch.ops.blades.batchnorm_tangent(
        x, dx, mean, invstd, weight, dweight, dbias, total, along, count, dshortcut, result
    )
    return found


def _sums(dx: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    # torch's backward by weight and bias; the weight, ``mean`` here, tells it the type and plays no part in them.
    _, along, total = torch.ops.aten.native_batch_norm_backward(
        dx, x, mean, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return total, along


def _sums_cuda(dx: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    # One kernel with a fixed order of summation; its fourth and third results are the plain sum and the other.
    total, _, along, _ = torch.batch_norm_backward_reduce(_like(dx, x), x, mean, invstd, mean, True, True, False)
    return total, along


def _tangent(
    x: Tensor,
    dx: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
    total: Tensor | None,
    along: Tensor | None,
    count: float,
    dshortcut: Tensor | None,
    result: Tensor | None,
) -> Tensor:
    gain, slope, offset = weight * invstd, torch.zeros_like(mean), torch.zeros_like(mean)
    if total is not None and along is not None:
        slope, offset = -gain * along / count, -gain * total / count
    if dweight is not None:
        slope = slope + dweight
    if dbias is not None:
        offset = offset + dbias
    slope = slope * invstd
    moved = torch.addcmul((offset - mean * slope)[:, None, None], x, slope[:, None, None])
    moved.addcmul_(dx, gain[:, None, None])
    if dshortcut is not None:
        moved += dshortcut
    moved = moved.to(x.dtype)
    if result is None:
        return moved
    masked: Tensor = torch.ops.aten.threshold_backward(moved, result, 0)
    return masked


def _tangent_cuda(x: Tensor, *args: object) -> Tensor:
    if x.dtype == torch.float64 or not _triton(x.device):
        return _tangent(x, *args)  # type: ignore[arg-type]
    from blades_dist.models.batchnorm_kernel import tangent

    return tangent(x, *args)  # type: ignore[arg-type]


def _sums_meta(dx: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(mean)


def _tangent_meta(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


@functools.cache
def _triton(device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    from blades_dist.models.batchnorm_kernel import tangent

    x, channel = torch.zeros(1, 4, 2, 2, device=device), torch.ones(4, device=device)

    def run() -> None:
        tangent(x, x, channel, channel, channel, None, None, None, None, 1.0, None, None)

    return kernel_failure(f"BatchNorm tangent on {device}", run, "outer steps take the torch path") is None


def _like(value: Tensor, x: Tensor) -> Tensor:
    """``value`` laid out as ``x``, which the kernels read side by side."""
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return value.contiguous(memory_format=layout)


_LIBRARY.impl("batchnorm_sums", _sums, "CPU")
_LIBRARY.impl("batchnorm_sums", _sums_cuda, "CUDA")
_LIBRARY.impl("batchnorm_sums", _sums_meta, "Meta")
_LIBRARY.impl("batchnorm_tangent", _tangent, "CPU")
_LIBRARY.impl("batchnorm_tangent", _tangent_cuda, "CUDA")
_LIBRARY.impl("batchnorm_tangent", _tangent_meta, "Meta")
