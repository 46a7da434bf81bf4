"""What this project uses of DeepSpeed that DeepSpeed does not document: all of it, and nothing of it anywhere else.

Seen in DeepSpeed 0.19.8, the version that ``constraints.txt`` pins. ``tests/test_private_interfaces.py`` looks every
one up and fails by its name when a release of DeepSpeed has dropped it; each function says what to use once DeepSpeed
offers it publicly. ``optimizer`` is ZeRO's of stage 1 or 2, ``engine`` what ``deepspeed.initialize`` returns.
"""

from typing import Any

import deepspeed
import torch
from torch import Tensor


def use_gloo_on_cpu() -> None:
    """Keeps collectives on CPUs with gloo: DeepSpeed would compile a shared-memory one at the first start. Public
    replacement: an argument of ``deepspeed.initialize``."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def gradient_norm(optimizer: Any) -> Tensor:
    """Norm of the whole reduced gradient, on its device; NaN where it is not finite, which DeepSpeed marks by -1.

    Public replacement: ``engine.get_global_grad_norm``, once it is there before the step."""
    found = torch.as_tensor(optimizer.scaled_global_norm())
    return torch.where(found >= 0, found, torch.nan)


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser that ZeRO wraps; it holds one flat shard of the moments a parameter group. Public replacement:
    ``safe_get_full_optimizer_state`` for ``step`` too."""
    inner: torch.optim.Optimizer = optimizer.optimizer
    return inner


def restart_accumulation(engine: Any) -> None:
    """Forgets the micro-batches since the last step. Public replacement: ``engine.zero_grad`` that does it."""
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()


def drop_gradients(optimizer: Any) -> None:
    """Forgets the gradients of all micro-batches: what DeepSpeed itself does when it refuses a step after an overflow.
    Public replacement: ``optimizer.zero_grad`` that does it."""
    optimizer.zero_grad(set_to_none=True)
    optimizer.micro_step_id = -1
    for group in list(optimizer.averaged_gradients):
        optimizer.averaged_gradients[group] = None
        optimizer.all_grad_tensors[group] = None


def link_moments(optimizer: Any) -> None:
    """Links moments that were set before the first step to parameters' names, for ``safe_set_full_optimizer_state``;
    ZeRO does so after its first step. Public replacement: a setter that makes moments which are not there yet."""
    optimizer._lazy_init_hp_params_optimizer_state()
