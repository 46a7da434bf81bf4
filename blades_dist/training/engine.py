"""DeepSpeed around the model: ZeRO 0, 1 or 2 on CPU (gloo) and GPU (NCCL)."""

import logging

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from blades_dist.bilevel.functional import Functional
from blades_dist.bilevel.hypergradient import push_forward
from blades_dist.bilevel.lookahead import AdamW, Params, norm
from blades_dist.config import TrainConfig
from blades_dist.distributed import World
from blades_dist.training import deepspeed_private
from blades_dist.training.checkpoint import MOMENTS, adamw_state, load_adamw_state, trainable
from blades_dist.training.torch_engine import adamw, moments


class DeepSpeedEngine:
    """``Engine`` of training.device_part on DeepSpeed.

    Parameters stay fp32 at every precision: bf16 is autocast inside the model's forward, so the look-ahead
    theta - alpha g is formed on fp32 values (in bf16 a step of 1e-5 would round to nothing).
    """

    def __init__(self, module: nn.Module, config: TrainConfig, world: World, batch_size: int) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed_private.use_gloo_on_cpu()
        self.world, self.stage = world, config.zero_stage
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw(module, config),
            config=deepspeed_config(config, batch_size, sum(value.numel() for value in trainable(module).values())),
            dist_init_required=False,
        )
        self.module = self.engine.module
        self._params = trainable(self.module)
        self._call = Functional(self.engine)
        self._norm: Tensor | None = None
        self._pending = False

    def forward(self, images: Tensor, direction: Params | None = None) -> tuple[Tensor, Tensor | None]:
        """The look-ahead may differentiate the logits as often as it likes; ``backward`` comes last."""
        # DeepSpeed starts its reduction when a cotangent reaches the tensor that its forward returned. The
        # look-ahead differentiates the same graph first, so it gets the tensor beneath that one.
        beneath: list[Tensor] = []

        def split(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            beneath.append(output)
            return output.view_as(output)

        def through_engine(duals: Params) -> Tensor:
            self._watched = self._call({f"module.{name}": value for name, value in duals.items()}, images)
            return beneath[0]

        handle = self.module.register_forward_hook(split)
        try:
            if direction is not None:
                return push_forward(through_engine, dict(self._params), direction)
            self._watched = self.engine(images)
        finally:
            handle.remove()
        return beneath[0], None

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        # DeepSpeed divides by the number of ranks; the cotangent is of the global loss already, and of the mean over
        # micro-batches, which is why DeepSpeed is not to divide by their number.
        total = (self._watched * (cotangent * self.world.size).to(logits.dtype)).sum()
        self._norm = None
        self._end_micro_batch()
        self.engine.backward(total, scale_wrt_gas=False)
        self._pending = True

    def gradient(self) -> Params:
        return {name: safe_get_full_grad(value).view_as(value) for name, value in self._params.items()}

    def gradient_norm(self) -> Tensor:
        if self._norm is None:
            if self.stage == 0:
                self._norm = norm(self.gradient().values())
            else:
                self._norm = deepspeed_private.gradient_norm(self.optimizer)
        return self._norm

    def adamw(self) -> AdamW:
        return moments(dict(self._params), self._inner, self.optimizer_state())

    def step(self, lr: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self._end_micro_batch()

    def discard(self) -> None:
        self._norm, self._pending = None, False
        deepspeed_private.restart_accumulation(self.engine)
        if self.stage == 0:
            self.engine.zero_grad()
            return
        deepspeed_private.drop_gradients(self.optimizer)

    def _end_micro_batch(self) -> None:
        """DeepSpeed wants a ``step`` after every micro-batch; it moves the parameters after the last one only."""
        if self._pending:
            self._pending = False
            self.engine.step()

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's whole moments by parameter name; every rank calls. Empty before the first step."""
        if self.stage == 0:
            return adamw_state(self.module, self.optimizer)
        if not self._inner.state:
            return {}
        state = {
            f"{moment}.{name}": safe_get_full_optimizer_state(value, moment)
            for name, value in self._params.items()
            for moment in MOMENTS
        }
        return {**state, "step": next(iter(self._inner.state.values()))["step"].reshape(1)}

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Sets the moments, and the optimiser's own fp32 copy of the parameters to the module's. Every rank calls."""
        if self.stage == 0:
            load_adamw_state(self.module, self.optimizer, state)
            return
        if state:
            self._make_flat_states()
        for name, value in self._params.items():
            safe_set_full_fp32_param(value, value.detach().clone())
            for moment in MOMENTS if state else ():
                safe_set_full_optimizer_state(value, state[f"{moment}.{name}"].to(value.device), moment)
        for own in self._inner.state.values() if state else ():
            own["step"].copy_(state["step"].reshape(()))

    @property
    def _inner(self) -> torch.optim.Optimizer:
        return self.optimizer if self.stage == 0 else deepspeed_private.torch_optimizer(self.optimizer)

    def _make_flat_states(self) -> None:
        # torch makes the moments at its first step, and only then does ZeRO link them to the parameters' names.
        for group in self._inner.param_groups:
            for flat in group["params"]:
                moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
                device = flat.device if self._inner.defaults.get("fused") else "cpu"
                self._inner.state[flat] = {"step": torch.tensor(0.0, device=device), **moments}
        deepspeed_private.link_moments(self.optimizer)


def deepspeed_config(config: TrainConfig, batch_size: int, parameters: int) -> dict[str, object]:
    """DeepSpeed's own configuration for a training configuration and a model of so many trainable parameters."""
    return {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            # Reduction starts after the backward: the look-ahead's own collectives would interleave with it.
            "overlap_comm": False,
            "reduce_scatter": False,
            # One message; the default of 5e8 would be a buffer of 2 GB, made anew in every backward. Even, as asked.
            "reduce_bucket_size": parameters + parameters % 2,
            "allgather_bucket_size": parameters + parameters % 2,
            # One behind the other, all that come after a scalar would begin where GPU kernels cannot load them.
            "parameter_alignment": True,
            # Every step's norm is known before its optimiser's step; only clipping makes DeepSpeed take it again.
            "compute_grad_norm": config.zero_stage == 0 or bool(config.clip_norm),
        },
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a step
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
