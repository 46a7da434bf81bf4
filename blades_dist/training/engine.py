"""DeepSpeed around the model: ZeRO 0, 1 or 2 on CPU (gloo) and GPU (NCCL)."""

import logging
import math

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_fp32_param, safe_set_full_optimizer_state
from torch import Tensor, nn

from blades_dist.bilevel.reduce import World
from blades_dist.config import TrainConfig
from blades_dist.training.checkpoint import MOMENTS, adamw_state, load_adamw_state, trainable
from blades_dist.training.plain import adamw


class DeepSpeedEngine:
    """``Engine`` of training.loop on DeepSpeed.

    Parameters stay fp32 at every precision: bf16 is autocast inside the model's forward, so the look-ahead
    theta - alpha g is formed on fp32 values (in bf16 a step of 1e-5 would round to nothing).
    """

    def __init__(self, module: nn.Module, config: TrainConfig, world: World, batch_size: int) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # On CPUs DeepSpeed would compile a shared-memory collective at the first start; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.world, self.stage = world, config.zero_stage
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw(module, config),
            config=deepspeed_config(config, world, batch_size),
            dist_init_required=False,
        )
        self.module = self.engine.module

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C). The look-ahead may differentiate them as often as it likes; ``backward`` comes last."""
        # DeepSpeed starts its reduction when a cotangent reaches the tensor that its forward returned. The
        # look-ahead differentiates the same graph first, so it gets the tensor beneath that one.
        beneath: list[Tensor] = []

        def split(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            beneath.append(output)
            return output.view_as(output)

        handle = self.module.register_forward_hook(split)
        try:
            self._watched = self.engine(images)
        finally:
            handle.remove()
        return beneath[0]

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        # DeepSpeed divides by the number of ranks; the cotangent is of the global loss already.
        self.engine.backward((self._watched * (cotangent * self.world.size).to(logits.dtype)).sum())

    def step(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else math.nan

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's whole moments by parameter name; every rank calls. Empty before the first step."""
        if self.stage == 0:
            return adamw_state(self.module, self.optimizer)
        if not self._inner.state:
            return {}
        state = {
            f"{moment}.{name}": safe_get_full_optimizer_state(value, moment)
            for name, value in trainable(self.module).items()
            for moment in MOMENTS
        }
        return {**state, "step": next(iter(self._inner.state.values()))["step"].reshape(1)}

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Sets the moments, and the optimiser's own fp32 copy of the parameters to the module's. Every rank calls."""
        if self.stage == 0:
            load_adamw_state(self.module, self.optimizer, state)
            return
        if not state:
            return
        self._make_flat_states()
        for name, value in trainable(self.module).items():
            safe_set_full_fp32_param(value, value.detach().clone())
            for moment in MOMENTS:
                safe_set_full_optimizer_state(value, state[f"{moment}.{name}"].to(value.device), moment)
        for own in self._inner.state.values():
            own["step"].copy_(state["step"].reshape(()))

    @property
    def _inner(self) -> torch.optim.Optimizer:
        # ZeRO's optimiser wraps torch's, which holds one flat shard of the moments a parameter group.
        return self.optimizer.optimizer

    def _make_flat_states(self) -> None:
        # torch makes the moments at its first step, and only then does ZeRO link them to the parameters' names.
        for group in self._inner.param_groups:
            for flat in group["params"]:
                moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
                self._inner.state[flat] = {"step": torch.tensor(0.0), **moments}
        self.optimizer._lazy_init_hp_params_optimizer_state()


def deepspeed_config(config: TrainConfig, world: World, batch_size: int) -> dict[str, object]:
    """DeepSpeed's own configuration for a training configuration."""
    return {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            # Reduction starts after the backward: the look-ahead's own collectives would interleave with it.
            "overlap_comm": False,
            "reduce_scatter": False,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
