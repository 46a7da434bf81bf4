"""BatchNorm's tangent (``batchnorm_ops.batchnorm_tangent``) as one Triton kernel; needs triton, so imported when used.

Each program takes a tile of rows (photographs and positions) by channels of channels-last activations, reads each
element once and writes it once, in fp32 between. Nothing is added up across programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 64, 64


def tangent(
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
    """See ``batchnorm_tangent``; fp32 or narrower. Other layouts than channels-last are copied to it."""
    x, dx = _last(x), _last(dx)
    moved = torch.empty_like(x)
    channels = x.shape[1]
    rows = x.numel() // channels
    columns = (mean, invstd, weight, dweight, dbias, total, along)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS))
    with torch.cuda.device_of(x):
        _kernel[grid](
            x,
            dx,
            x if dshortcut is None else _last(dshortcut),
            x if result is None else _last(result),
            moved,
            *(mean if column is None else column for column in columns),
            rows,
            channels,
            1 / count,
            DWEIGHT=dweight is not None,
            DBIAS=dbias is not None,
            SUMS=total is not None,
            SHORTCUT=dshortcut is not None,
            RELU=result is not None,
            ROWS=ROWS,
            CHANNELS=CHANNELS,
            enable_fp_fusion=True,
        )
    return moved


def _last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last)


@triton.jit(do_not_specialize=["share"])
def _kernel(
    x: tl.tensor,
    dx: tl.tensor,
    dshortcut: tl.tensor,
    result: tl.tensor,
    moved: tl.tensor,
    mean: tl.tensor,
    invstd: tl.tensor,
    weight: tl.tensor,
    dweight: tl.tensor,
    dbias: tl.tensor,
    total: tl.tensor,
    along: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    share: tl.tensor,  # 1 / count
    DWEIGHT: tl.constexpr,
    DBIAS: tl.constexpr,
    SUMS: tl.constexpr,
    SHORTCUT: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    used = channel < channels
    scale = tl.load(invstd + channel, mask=used, other=0.0)
    centre = tl.load(mean + channel, mask=used, other=0.0)
    gain = tl.load(weight + channel, mask=used, other=0.0) * scale
    slope = tl.zeros((CHANNELS,), tl.float32)
    offset = tl.zeros((CHANNELS,), tl.float32)
    if SUMS:
        slope -= gain * share * tl.load(along + channel, mask=used, other=0.0)
        offset -= gain * share * tl.load(total + channel, mask=used, other=0.0)
    if DWEIGHT:
        slope += tl.load(dweight + channel, mask=used, other=0.0)
    if DBIAS:
        offset += tl.load(dbias + channel, mask=used, other=0.0)

    at = row[:, None] * channels + channel[None, :]
    inside = (row < rows)[:, None] & used[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    found = tl.load(dx + at, mask=inside, other=0.0).to(tl.float32) * gain[None, :]
    found += (value - centre[None, :]) * (slope * scale)[None, :] + offset[None, :]
    if SHORTCUT:
        found += tl.load(dshortcut + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        found = tl.where(tl.load(result + at, mask=inside, other=0.0).to(tl.float32) > 0, found, 0.0)
    tl.store(moved + at, found, mask=inside)
