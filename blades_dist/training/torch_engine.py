"""The engine without DeepSpeed: torch's AdamW on one or many ranks. What DeepSpeed is tested against."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blades_dist.bilevel.hypergradient import push_forward
from blades_dist.bilevel.lookahead import AdamW, Params, norm
from blades_dist.config import TrainConfig
from blades_dist.distributed import World
from blades_dist.training.checkpoint import MOMENTS, adamw_state, load_adamw_state, trainable


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters with the run's lr, epsilon and decoupled weight decay."""
    return torch.optim.AdamW(
        trainable(module).values(), lr=config.lr, weight_decay=config.weight_decay, eps=config.adam_eps
    )


def moments(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> AdamW:
    """AdamW's state from what ``adamw_state`` gives; zeros before the first step."""
    constants = optimizer.param_groups[0]
    first, second = (
        {name: state.get(f"{moment}.{name}", torch.zeros_like(value)) for name, value in trainable(module).items()}
        for moment in MOMENTS
    )
    return AdamW(first, second, int(state["step"]) if state else 0, constants["betas"], constants["eps"])


class PlainEngine:
    """``Engine`` of training.loop on torch alone."""

    def __init__(self, module: nn.Module, config: TrainConfig, world: World) -> None:
        self.module, self.world, self.clip_norm = module, world, config.clip_norm
        self.optimizer = adamw(module, config)
        self._total: Params | None = None
        self._norm = 0.0

    def forward(self, images: Tensor, direction: Params | None = None) -> tuple[Tensor, Tensor | None]:
        if direction is None:
            return self.module(images), None
        return push_forward(lambda duals: functional_call(self.module, duals, (images,)), self._params(), direction)

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        logits.backward(cotangent.to(logits.dtype))
        self._total = None

    def gradient(self) -> Params:
        if self._total is None:
            shares = {
                name: torch.zeros_like(value) if value.grad is None else value.grad
                for name, value in self._params().items()
            }
            self._total = dict(zip(shares, self.world.sum_all(list(shares.values())), strict=True))
            self._norm = float(norm(self._total.values()))
        return self._total

    def gradient_norm(self) -> float:
        self.gradient()
        return self._norm

    def adamw(self) -> AdamW:
        return moments(self.module, self.optimizer, self.optimizer_state())

    def step(self, lr: float) -> None:
        total = self.gradient()
        for name, value in self._params().items():
            value.grad = total[name]
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self._params().values(), self.clip_norm, torch.tensor(self._norm, dtype=torch.float64)
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        self.optimizer.zero_grad()
        self._total = None

    def optimizer_state(self) -> dict[str, Tensor]:
        return adamw_state(self.module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        load_adamw_state(self.module, self.optimizer, state)

    def _params(self) -> Params:
        return dict(trainable(self.module))
