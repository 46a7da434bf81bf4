"""The task weights lambda: their optimiser, projection, history and state."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blades_dist.config import BilevelConfig
from blades_dist.tasks import TaskSet


@dataclass
class TaskWeights:
    """lambda (K,), float64 on the CPU, moved by Adam along hypergradients and projected to >= 0.

    Every rank feeds the same reduced hypergradient, so lambda stays bitwise equal without being sent.
    """

    names: tuple[str, ...]
    value: Tensor
    lr: float
    nonnegative: bool
    history: list[tuple[int, list[float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._optimiser = torch.optim.Adam([self.value], lr=self.lr)

    def step(self, hypergradient: Tensor, at_step: int) -> None:
        """One Adam step along ``hypergradient`` (K,), then the projection; recorded in ``history``.

        Raises:
            FloatingPointError: the hypergradient is not finite; nothing was changed.
        """
        gradient = hypergradient.detach().to(self.value)
        if not bool(torch.isfinite(gradient).all()):
            bad = [name for name, ok in zip(self.names, torch.isfinite(gradient), strict=True) if not ok]
            raise FloatingPointError(f"step {at_step}: hypergradient of {', '.join(bad)} is not finite")
        self.value.grad = gradient
        self._optimiser.step()
        if self.nonnegative:
            self.value.clamp_(min=0)
        self.history.append((at_step, self.value.tolist()))

    def as_dict(self) -> dict[str, float]:
        return dict(zip(self.names, self.value.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, exact: Python prints floats so that they read back bitwise."""
        moments = self._optimiser.state[self.value]
        return {
            "names": list(self.names),
            "value": self.value.tolist(),
            "steps": int(moments["step"]) if moments else 0,
            "exp_avg": moments["exp_avg"].tolist() if moments else None,
            "exp_avg_sq": moments["exp_avg_sq"].tolist() if moments else None,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state is of other tasks."""
        if tuple(state["names"]) != self.names:
            raise ValueError(f"checkpoint weighs tasks {state['names']}, this run has {list(self.names)}")
        self.value.copy_(torch.tensor(state["value"], dtype=self.value.dtype))
        self.history = [(int(step), list(values)) for step, values in state["history"]]
        if state["steps"]:
            self._optimiser.state[self.value] = {
                "step": torch.tensor(float(state["steps"])),
                "exp_avg": torch.tensor(state["exp_avg"], dtype=self.value.dtype),
                "exp_avg_sq": torch.tensor(state["exp_avg_sq"], dtype=self.value.dtype),
            }


def build_weights(config: BilevelConfig, tasks: TaskSet) -> TaskWeights:
    """Start values from the configuration; its history begins with them at step 0.

    Raises:
        ValueError: ``initial`` names a task that the run does not have, or leaves one out.
    """
    if isinstance(config.initial, dict):
        if set(config.initial) != set(tasks.names):
            raise ValueError(
                f"bilevel.initial: needs exactly the tasks {', '.join(tasks.names)}; given: {', '.join(config.initial)}"
            )
        values = [config.initial[name] for name in tasks.names]
    else:
        values = [config.initial] * len(tasks)
    weights = TaskWeights(tasks.names, torch.tensor(values, dtype=torch.float64), config.lr, config.nonnegative)
    weights.history.append((0, values))
    return weights
