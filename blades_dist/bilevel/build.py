"""The task weights lambda of a configuration: start values, frozen tasks, and the weighting that moves them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from blades_dist.bilevel.task_weights import Bilevel, DynamicAverage, TaskWeights, Uncertainty
from blades_dist.config import BilevelConfig
from blades_dist.tasks import TaskSet

__all__ = ["TaskWeights", "build_weights"]


def build_weights(config: BilevelConfig, tasks: TaskSet) -> TaskWeights:
    """Task weights at their start; their history begins with it at step 0.

    Raises:
        ValueError: ``initial`` or ``frozen`` do not fit the tasks or the weighting; the message names the key.
    """
    names, start = tasks.names, _start(config, tasks.names)
    if config.weighting == "bilevel":
        return Bilevel(
            names,
            start,
            lr=config.lr,
            eps=config.adam_eps,
            nonnegative=config.nonnegative,
            normalise=config.normalise,
            frozen=_frozen(config, names, start),
        )
    if config.weighting == "uncertainty":
        _refuse(names, start <= 0, "bilevel.initial: weighting uncertainty takes logarithms, > 0 is needed; not so: {}")
        return Uncertainty(names, start, lr=config.lr, eps=config.adam_eps)
    if config.weighting == "dwa":
        return DynamicAverage(names, start, temperature=config.dwa_temperature, window=config.dwa_window)
    return TaskWeights(config.weighting, names, start)


def _start(config: BilevelConfig, names: tuple[str, ...]) -> Tensor:
    """``initial`` as (K,) float64 in task order."""
    initial, wanted = config.initial, f"bilevel.initial: needs exactly the tasks {', '.join(names)}"
    if isinstance(initial, dict):
        if set(initial) != set(names):
            raise ValueError(f"{wanted}; given: {', '.join(initial)}")
        values = [initial[name] for name in names]
    elif isinstance(initial, list):
        if len(initial) != len(names):
            raise ValueError(f"{wanted}, in this order; given: {len(initial)} values for {len(names)} tasks")
        values = initial
    else:
        values = [initial] * len(names)
    start = torch.tensor(values, dtype=torch.float64)
    _refuse(names, ~torch.isfinite(start), "bilevel.initial: not finite: {}")
    if config.nonnegative:
        _refuse(names, start < 0, "bilevel.initial: negative, which needs bilevel.nonnegative=false: {}")
    return start


def _frozen(config: BilevelConfig, names: tuple[str, ...], start: Tensor) -> tuple[str, ...]:
    """The frozen tasks in task order, known to leave something to move."""
    unknown = [name for name in config.frozen if name not in names]
    if unknown:
        raise ValueError(f"bilevel.frozen: no such task: {', '.join(unknown)}; the run has {', '.join(names)}")
    frozen = tuple(name for name in names if name in config.frozen)
    if len(frozen) == len(names):
        raise ValueError("bilevel.frozen: every task is frozen; use bilevel.weighting=fixed")
    if config.normalise:
        free = torch.tensor([name not in frozen for name in names])
        kept = float(start[~free].sum())
        if kept >= len(names):
            raise ValueError(
                f"bilevel.frozen: the frozen weights sum to {kept:g} and leave nothing of the {len(names)} that "
                "bilevel.normalise makes all weights sum to"
            )
        if not bool((start[free] > 0).any()):
            raise ValueError("bilevel.initial: every weight that is not frozen is 0 and cannot be normalised")
    return frozen


def _refuse(names: Iterable[str], bad: Tensor, message: str) -> None:
    """ValueError of ``message`` about the tasks in the mask ``bad`` (K,), if any."""
    found = [name for name, one in zip(names, bad.tolist(), strict=True) if one]
    if found:
        raise ValueError(message.format(", ".join(found)))
