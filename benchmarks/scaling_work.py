"""Counting what a step of the real model does: products, memory traffic, operations, and what it keeps meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scaling_model import Op
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from blades_dist.bilevel.build import build_weights
from blades_dist.config import BilevelConfig, LossConfig, ModelConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.models.dual import forget, remember
from blades_dist.models.joint import JointModel, build_joint_model
from blades_dist.tasks import ABSENT, task_set
from blades_dist.training.sample import Sample
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine

TASKS, LR = task_set(), 1e-5
ROWS = (2, 4)  # two batches tell what grows with the batch from what does not


class Copies(World):
    """Several workers, the others holding what this one holds: their work without their messages."""

    def _reduce(self, own: Tensor) -> Tensor:
        return own.mul_(self.size)

    def gather(self, value: Tensor) -> Tensor:
        return torch.stack([value] * self.size)


class Ledger(TorchDispatchMode):
    """Every operation that computes or copies: name, floating-point operations, bytes read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, (list, tuple)) else [out]
        if _computes(func):
            counter = flop_registry.get(func._overloadpacket)
            flops = counter(*args, **(kwargs or {}), out_val=out) if counter else 0
            self.entries.append((func.name(), float(flops), float(_bytes([*args, *(kwargs or {}).values(), *results]))))
        return out


def _computes(func: Any) -> bool:
    name = func.name()
    if any(part in name for part in ("::empty", "::new_empty", "::_local_scalar_dense", "::detach")):
        return False
    returned = [value.alias_info for value in func._schema.returns]
    return not (returned and all(alias is not None and not alias.is_write for alias in returned))  # views do nothing


def _bytes(values: list[Any]) -> int:
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, (list, tuple)):
            total += _bytes(list(value))
    return total


def batch(rows: int, size: int, seed: int) -> Sample:
    """Random pictures, and labels of which a fifth is absent."""
    generator = torch.Generator().manual_seed(seed)
    highs = [len(task.classes) for task in TASKS.tasks if task.tag is not None] + [2] * 4
    labels = torch.stack([torch.randint(0, high, (rows,), generator=generator) for high in highs], dim=1)
    labels[:, :-4][torch.rand(rows, len(highs) - 4, generator=generator) < 0.2] = ABSENT
    return Sample(torch.rand(rows, 3, size, size, generator=generator), labels, [])


def build_step(model: JointModel, world: World, settings: Mapping[str, object]) -> BilevelStep:
    """The step that the job takes, on torch's own optimiser."""
    bilevel, train = BilevelConfig.model_validate(dict(settings)), TrainConfig(lr=LR)
    engine = PlainEngine(model, train, world)
    return BilevelStep(engine, TASKS, build_weights(bilevel, TASKS), LossConfig(), bilevel, train, world)


def step_ops(config: ModelConfig, size: int, bf16: bool, world: World, settings: Mapping[str, object]) -> list[Op]:
    """The operations of the second step (the first makes the optimiser's state), as functions of the batch.

    Raises:
        RuntimeError: batches of different sizes take different operations.
    """
    ledgers = []
    for rows in ROWS:
        model = build_joint_model(config, TASKS, 0, world).train()
        model.autocast_dtype = torch.bfloat16 if bf16 else None
        step = build_step(model, world, settings)
        train, val = batch(rows, size, 0), batch(rows, size, 1)
        take = partial(step.run, lr=LR, train=[train], val=val if step.weights.learns else None)
        take(0)
        with Ledger() as ledger:
            take(1)
        ledgers.append(ledger.entries)
    few, many = ledgers
    if [entry[0] for entry in few] != [entry[0] for entry in many]:
        raise RuntimeError("batches of different sizes take different operations")
    return [_line(a[1:], b[1:]) for a, b in zip(few, many, strict=True)]


def _line(few: tuple[float, ...], many: tuple[float, ...]) -> Op:
    slopes = [(b - a) / (ROWS[1] - ROWS[0]) for a, b in zip(few, many, strict=True)]
    starts = [a - ROWS[0] * slope for a, slope in zip(few, slopes, strict=True)]
    return Op((starts[0], starts[1]), (slopes[0], slopes[1]))


@dataclass(frozen=True)
class Kept:
    """Bytes a row, and whatever the batch is, of what a forward leaves: for its backward, and for forward mode."""

    saved: float
    saved_fixed: float
    remembered: float


def kept(config: ModelConfig, size: int, bf16: bool, world: World) -> Kept:
    """Counted on real forwards of two batches; parameters and buffers are not part of it."""
    found = [_kept(config, size, bf16, world, rows) for rows in ROWS]
    span = ROWS[1] - ROWS[0]
    saved, remembered = ((many - few) / span for few, many in zip(*found, strict=True))
    return Kept(saved, found[0][0] - ROWS[0] * saved, remembered)


def _kept(config: ModelConfig, size: int, bf16: bool, world: World, rows: int) -> tuple[int, int]:
    model = build_joint_model(config, TASKS, 0, world).train()
    model.autocast_dtype = torch.bfloat16 if bf16 else None
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    alive = []  # so that no address is used twice while counting

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        alive.append(value)
        return value

    with remember(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        model(batch(rows, size, 0).images)
    remembered = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for layer in model.modules()
        for value in getattr(layer, "remembered", None) or ()
    }
    forget(model)
    return sum(storages.values()), sum(n for at, n in remembered.items() if at not in storages)
