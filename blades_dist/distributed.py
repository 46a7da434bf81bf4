"""Collectives of the bi-level step, differentiable in reverse and forward mode.

Convention: every rank differentiates its own rows' share of one global loss; the sum over ranks of what the
ranks obtain is the gradient of the global loss. A ``World`` of one needs no process group at all, so the same
code runs in plain float64 tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The ranks that form one global batch; ``group`` None is the default process group."""

    size: int = 1
    rank: int = 0
    group: Any = None

    @staticmethod
    def current() -> "World":
        """All ranks of the default process group, or a world of one when there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return World()
        return World(dist.get_world_size(), dist.get_rank())

    def sum(self, value: Tensor) -> Tensor:
        """Sum over ranks; bitwise identical on all of them. Not differentiable."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def sum_all(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Sums over ranks of several tensors of one dtype, moved as one message."""
        if self.size == 1:
            return list(values)
        flat = torch.cat([value.detach().reshape(-1) for value in values])
        dist.all_reduce(flat, group=self.group)
        parts = flat.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def gather(self, value: Tensor) -> Tensor:
        """Rank-major stack (N, ...) of every rank's ``value`` (equal shapes).

        Differentiable: backward sums the ranks' cotangents of this rank's slot, forward mode gathers tangents.
        """
        if self.size == 1:
            return value.unsqueeze(0)
        return _Gather.apply(value, self)


def _all_gather(value: Tensor, world: World) -> Tensor:
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world.size)]
    dist.all_gather(parts, value.contiguous(), group=world.group)
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, world: World) -> Tensor:
        return _all_gather(value, world)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, World], output: Tensor) -> None:
        ctx.world = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return ctx.world.sum(cotangent.contiguous())[ctx.world.rank], None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _all_gather(tangent, ctx.world)
