"""The engine without DeepSpeed: torch's AdamW on one or many ranks. What DeepSpeed is tested against."""

import torch
from torch import Tensor, nn

from blades_dist.bilevel.reduce import World
from blades_dist.config import TrainConfig
from blades_dist.training.checkpoint import adamw_state, load_adamw_state, trainable


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters with the run's lr and decoupled weight decay."""
    return torch.optim.AdamW(trainable(module).values(), lr=config.lr, weight_decay=config.weight_decay)


class PlainEngine:
    """``Engine`` of training.loop on torch alone."""

    def __init__(self, module: nn.Module, config: TrainConfig, world: World) -> None:
        self.module, self.world, self.clip_norm = module, world, config.clip_norm
        self.optimizer = adamw(module, config)

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        logits.backward(cotangent.to(logits.dtype))

    def step(self, lr: float) -> float:
        params = [value for group in self.optimizer.param_groups for value in group["params"]]
        for value in params:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        for value, total in zip(params, self.world.sum_all([value.grad for value in params]), strict=True):
            value.grad = total
        norm = torch.nn.utils.clip_grad_norm_(params, self.clip_norm or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def optimizer_state(self) -> dict[str, Tensor]:
        return adamw_state(self.module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        load_adamw_state(self.module, self.optimizer, state)
