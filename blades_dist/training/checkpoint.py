"""A checkpoint: a folder without pickles, independent of the number of workers.

``model.safetensors`` (parameters and buffers), ``optimizer.safetensors`` (AdamW's moments under the parameters'
names, whole, whatever the ZeRO stage), ``state.json`` (step, stream positions, lambda with its Adam state and history).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blades_dist.data.order import Position

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Skipped:
    """A 0-based step that was left out, and why."""

    step: int
    reason: str


@dataclass(frozen=True)
class Progress:
    """Where a run stands: ``step`` steps taken or skipped, and the streams' positions after them."""

    step: int
    train: Position
    val: Position
    skipped: tuple[Skipped, ...] = ()


class Stateful(Protocol):
    """An engine whose optimiser state can be had and set whole; both calls are collective."""

    module: nn.Module

    def optimizer_state(self) -> dict[str, Tensor]: ...

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None: ...


def save(folder: Path, engine: Stateful, weights: dict[str, Any], progress: Progress, write: bool) -> None:
    """Writes a checkpoint into the empty ``folder``. Every rank calls; the one with ``write`` set writes."""
    optimizer = engine.optimizer_state()
    if not write:
        return
    save_file(_on_cpu(engine.module.state_dict()), folder / MODEL)
    save_file(_on_cpu(optimizer), folder / OPTIMIZER)
    state = {"schema_version": 1, "progress": asdict(progress), "weights": weights}
    (folder / STATE).write_text(json.dumps(state))


def load(folder: Path, engine: Stateful) -> tuple[dict[str, Any], Progress]:
    """Restores parameters, buffers and optimiser; returns the state of lambda and the progress. Every rank calls.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or of another model.
    """
    state = json.loads((folder / STATE).read_text())
    try:
        engine.module.load_state_dict(load_file(folder / MODEL))
    except RuntimeError as error:
        raise ValueError(f"checkpoint {folder} is of another model: {error}") from None
    engine.load_optimizer_state(load_file(folder / OPTIMIZER))
    return state["weights"], TypeAdapter(Progress).validate_python(state["progress"])


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimiser moves, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def adamw_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments as ``moment.name`` and its step count, of an optimiser over whole parameters."""
    state: dict[str, Tensor] = {}
    for name, value in trainable(module).items():
        own = optimizer.state[value]
        if own:
            state["step"] = own["step"].reshape(1)
            state.update({f"{moment}.{name}": own[moment] for moment in MOMENTS})
    return state


def load_adamw_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of ``adamw_state``."""
    for name, value in trainable(module).items():
        if f"{MOMENTS[0]}.{name}" in state:
            own = {moment: state[f"{moment}.{name}"].to(value.device).clone() for moment in MOMENTS}
            optimizer.state[value] = {"step": state["step"].reshape(()).clone(), **own}


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
