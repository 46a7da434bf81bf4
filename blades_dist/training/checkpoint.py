"""What a checkpoint holds, without pickles and for any number of workers; ``checkpoint_io`` keeps it on disk.

Tensors by name: ``model.*`` (parameters and buffers), ``optimizer.*`` (AdamW's moments under the parameters' names,
whole, whatever the ZeRO stage), and where workers' buffers differ (BatchNorm over each worker's own rows) also
``buffers.RANK.*``. Each worker keeps a share of about equal size. The state beside them: step, stream positions, lambda
with its optimiser and history.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from blades_dist.data.order import Position
from blades_dist.distributed import World
from blades_dist.models.batchnorm import BatchNorm2d
from blades_dist.training.checkpoint_io import Snapshot

MODEL, OPTIMIZER, BUFFERS = "model.", "optimizer.", "buffers."
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


def snapshot(
    engine: Stateful, weights: dict[str, Any], progress: Progress, world: World, manifest: str = ""
) -> Snapshot:
    """The run as it is now, on shards with the digest ``manifest``; training may go on at once. Every rank calls."""
    whole = {MODEL + name: value for name, value in engine.module.state_dict().items()}
    whole |= {OPTIMIZER + name: value for name, value in engine.optimizer_state().items()}
    own = {name: whole[name] for name in shares(whole, world.size)[world.rank]}
    if world.size > 1 and _has_local_statistics(engine.module):
        own |= {f"{BUFFERS}{world.rank}.{name}": value for name, value in engine.module.named_buffers()}
    tensors = _copies(own)
    state = {"progress": asdict(progress), "weights": weights, "manifest": manifest, "world_size": world.size}
    return Snapshot(progress.step, tensors, state)


def restore(
    tensors: Mapping[str, Tensor], state: dict[str, Any], engine: Stateful, world: World
) -> tuple[dict[str, Any], Progress]:
    """Sets parameters, buffers and optimiser; returns the state of lambda and the progress. Every rank calls.

    Raises:
        ValueError: the tensors are of another model.
    """
    model = _under(MODEL, tensors)
    # Buffers of another number of workers have no owner: then all go on from the first's, as in a new group.
    if state["world_size"] == world.size:
        model |= _under(f"{BUFFERS}{world.rank}.", tensors)
    try:
        engine.module.load_state_dict(model)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is of another model: {error}") from None
    engine.load_optimizer_state(_under(OPTIMIZER, tensors))
    return state["weights"], TypeAdapter(Progress).validate_python(state["progress"])


def shares(tensors: Mapping[str, Tensor], ranks: int) -> list[list[str]]:
    """Which rank keeps which tensors: every name once, about equal numbers of bytes, the same on every rank."""
    parts: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(tensors, key=lambda name: (-tensors[name].numel() * tensors[name].element_size(), name)):
        rank = loads.index(min(loads))
        parts[rank].append(name)
        loads[rank] += tensors[name].numel() * tensors[name].element_size()
    return parts


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


@torch.no_grad()
def load_adamw_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of ``adamw_state``, from any device; states of an optimiser that is not fused fit one that is."""
    for name, value in trainable(module).items():
        if f"{MOMENTS[0]}.{name}" in state:
            # Laid out as the parameter is, and the count where the optimiser keeps it: a fused one wants both so.
            own = {moment: torch.empty_like(value).copy_(state[f"{moment}.{name}"]) for moment in MOMENTS}
            device = value.device if optimizer.defaults.get("fused") else "cpu"
            step = state["step"].reshape(()).to(device, torch.float32, copy=True)
            optimizer.state[value] = {"step": step, **own}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU. From a GPU all are under way at once, into pinned memory (which is what torch takes
    for a copy that does not block), and are waited for once."""
    found = {name: value.detach().contiguous() for name, value in tensors.items()}
    found = {name: value.to("cpu", copy=True, non_blocking=True) for name, value in found.items()}
    for device in {value.device for value in tensors.values() if value.is_cuda}:
        torch.cuda.synchronize(device)
    return found


def _has_local_statistics(module: nn.Module) -> bool:
    return any(isinstance(layer, BatchNorm2d) and layer.mode == "local" for layer in module.modules())


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
