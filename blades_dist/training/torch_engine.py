"""The engine without DeepSpeed: torch's AdamW on one or many ranks. What DeepSpeed is tested against, and what one
GPU trains with: its device work can be recorded (``cuda_graphs``)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blades_dist.bilevel.functional import Functional
from blades_dist.bilevel.hypergradient import pull_back, push_forward
from blades_dist.bilevel.lookahead import AdamW, Params, clip_coefficient, norm
from blades_dist.config import TrainConfig
from blades_dist.distributed import World
from blades_dist.training.checkpoint import MOMENTS, adamw_state, load_adamw_state, trainable


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters with the run's lr, epsilon and decoupled weight decay; one kernel on CUDA."""
    params = list(trainable(module).values())
    fused = all(value.is_cuda for value in params)
    return torch.optim.AdamW(
        params, lr=config.lr, weight_decay=config.weight_decay, eps=config.adam_eps, fused=fused or None
    )


def moments(params: Params, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> AdamW:
    """AdamW's state from what ``adamw_state`` gives; zeros, and an ``int`` as its step, before the first step."""
    constants = optimizer.param_groups[0]
    first, second = (
        {
            name: state[f"{moment}.{name}"] if f"{moment}.{name}" in state else torch.zeros_like(value)
            for name, value in params.items()
        }
        for moment in MOMENTS
    )
    step = state["step"].reshape(()).to(next(iter(params.values())).device, non_blocking=True) if state else 0
    return AdamW(first, second, step, constants["betas"], constants["eps"])


@dataclass(frozen=True)
class Accumulated:
    """The gradient that backwards have left behind: this rank's share of it, the whole, and that one's norm."""

    share: Params | None = None
    total: Params | None = None
    norm: Tensor | None = None


class PlainEngine:
    """``Engine`` of training.device_part on torch alone."""

    def __init__(self, module: nn.Module, config: TrainConfig, world: World) -> None:
        self.module, self.world, self.clip_norm = module, world, config.clip_norm
        self.optimizer = adamw(module, config)
        self.accumulated = Accumulated()
        self._call = Functional(module)

    def forward(self, images: Tensor, direction: Params | None = None) -> tuple[Tensor, Tensor | None]:
        if direction is None:
            return self.module(images), None
        return push_forward(lambda duals: self._call(duals, images), self._call.params, direction)

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        share, before = pull_back(logits, cotangent, self._call.params), self.accumulated.share
        if before is not None:
            # Not in place: two parameters may have been given one and the same tensor.
            sums = torch._foreach_add(list(before.values()), list(share.values()))
            share = dict(zip(share, sums, strict=True))
        self.accumulated = Accumulated(share)

    def gradient(self) -> Params:
        found = self.accumulated
        if found.total is None:
            share = found.share or {name: torch.zeros_like(value) for name, value in self._call.params.items()}
            total = dict(zip(share, self.world.sum_all(list(share.values())), strict=True))
            self.accumulated = Accumulated(share, total)
            return total
        return found.total

    def gradient_norm(self) -> Tensor:
        total, found = self.gradient(), self.accumulated
        if found.norm is None:
            self.accumulated = Accumulated(found.share, total, norm(total.values()))
            return self.gradient_norm()
        return found.norm

    def adamw(self) -> AdamW:
        return moments(self._call.params, self.optimizer, self.optimizer_state())

    def step(self, lr: float) -> None:
        gradient = list(self.gradient().values())
        if self.clip_norm:
            gradient = list(torch._foreach_mul(gradient, clip_coefficient(self.gradient_norm(), self.clip_norm)))
        for value, each in zip(self._call.params.values(), gradient, strict=True):
            value.grad = each
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        self.optimizer.zero_grad()
        self.accumulated = Accumulated()

    def optimizer_state(self) -> dict[str, Tensor]:
        return adamw_state(self.module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        load_adamw_state(self.module, self.optimizer, state)
