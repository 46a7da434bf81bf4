"""Counting what a step of the real model does: products, memory traffic, operations, and what it keeps meanwhile."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from scaling_model import Op
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from blades_dist.bilevel.build import build_weights
from blades_dist.config import BilevelConfig, LossConfig, ModelConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.losses.fidelity import Fidelity, fidelity
from blades_dist.models.dual import forget, remember
from blades_dist.models.joint import JointModel, build_joint_model
from blades_dist.tasks import ABSENT, task_set
from blades_dist.training.sample import Sample
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine

TASKS, LR = task_set(), 1e-5
ROWS = (2, 4)  # two batches tell what grows with the batch from what does not
HALVED = 32  # what sizes must be a multiple of, so that no map is rounded
SIDE = 64  # pixels: a ResNet halves them five times, and all its maps grow with the picture's area
# What torch asks of tensors, or makes without writing: no device operation.
NOTHING = (
    *("::empty", "::new_empty", "::detach", "::_local_scalar_dense", "::_unsafe_view"),
    *("::_has_same_storage_numel", "::is_same_size", "::_efficientzerotensor"),
)
# torch's multi_tensor_apply takes, of a list of tensors, as many as fit into a kernel's arguments: by the number of
# lists, and blocks of 65,536 numbers, 320 at a time.
TENSORS_A_LAUNCH, BLOCKS_A_LAUNCH, BLOCK = (110, 64, 48, 36, 30), 320, 65_536


class Copies(World):
    """Several workers, the others holding what this one holds: their work without their messages."""

    def _reduce(self, own: Tensor) -> Tensor:
        return own.mul_(self.size)

    def gather(self, value: Tensor) -> Tensor:
        return torch.stack([value] * self.size)


@dataclass(frozen=True)
class Entry:
    """One operation as it was seen."""

    name: str
    flops: float
    bytes: float
    launches: int = 1


class Ledger(TorchDispatchMode):
    """Every operation that computes or copies."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, (list, tuple)) else [out]
        if _computes(func) and not self._paused:
            counter = flop_registry.get(func._overloadpacket)
            flops = counter(*args, **(kwargs or {}), out_val=out) if counter else 0
            touched = _bytes([*args, *(kwargs or {}).values(), *results])
            self.entries.append(Entry(func.name(), float(flops), float(touched), _launches(func, args)))
        return out

    def fidelity(self, logits: Tensor, labels: Tensor, *rest: Any) -> Fidelity:
        """The losses as the one kernel that a GPU runs for them."""
        self._paused = True
        try:
            found = fidelity(logits, labels, *rest)
        finally:
            self._paused = False
        moved = _bytes([logits, labels, found.losses, found.gradient])
        self.entries.append(Entry("fidelity", 0.0, float(moved)))
        return found


def _computes(func: Any) -> bool:
    name = func.name()
    if any(part in name for part in NOTHING):
        return False
    returned = [value.alias_info for value in func._schema.returns]
    return not (returned and all(alias is not None and not alias.is_write for alias in returned))  # views do nothing


def _launches(func: Any, args: Any) -> int:
    """Kernels of an operation on CUDA: one, but for those that take lists of tensors."""
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor)]
    if not lists or not any(part in func.name() for part in ("::_foreach", "::_fused")):
        return 1
    blocks = sum(-(-value.numel() // BLOCK) for value in lists[0])
    held = TENSORS_A_LAUNCH[min(len(lists), len(TENSORS_A_LAUNCH)) - 1]
    return max(-(-len(lists[0]) // held), -(-blocks // BLOCKS_A_LAUNCH))


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
    """The operations of the second step (the first makes the optimiser's state) at ``size`` pixels, as functions of the
    batch.

    Counted on pictures of ``SIDE`` and twice as many pixels a side: what an operation does is a constant, plus a part
    for each row, plus a part for each row and pixel.

    Raises:
        ValueError: maps of that size are no whole multiple of those counted.
        RuntimeError: batches or pictures of different sizes take different operations.
    """
    if size % HALVED:
        raise ValueError(f"size: a multiple of {HALVED}, not {size}")
    few, many, large = (
        step_entries(config, rows, side, bf16, world, settings)
        for rows, side in ((ROWS[0], SIDE), (ROWS[1], SIDE), (ROWS[0], 2 * SIDE))
    )
    if not [entry.name for entry in few] == [entry.name for entry in many] == [entry.name for entry in large]:
        raise RuntimeError("batches or pictures of different sizes take different operations")
    area = (size / SIDE) ** 2
    found = []
    for a, b, c in zip(few, many, large, strict=True):
        lines = [_line(getattr(a, of), getattr(b, of), getattr(c, of), area) for of in ("flops", "bytes")]
        fixed, per_row = zip(*lines, strict=True)
        found.append(Op(fixed, per_row, a.launches))
    return found


def _line(few: float, many: float, large: float, area: float) -> tuple[float, float]:
    """What is fixed, and what is of each row at ``area`` times the pixels of the first two counts."""
    slope, pixels = (many - few) / (ROWS[1] - ROWS[0]), (large - few) / (ROWS[0] * 3)  # twice the side: 3 areas more
    return few - ROWS[0] * slope, slope + (area - 1) * pixels


def _users(function: Any) -> list[ModuleType]:
    """The package's modules that have imported a function by its name."""
    modules = [module for name, module in sys.modules.items() if name.startswith("blades_dist.training.")]
    return [module for module in modules if getattr(module, function.__name__, None) is function]


def step_entries(
    config: ModelConfig, rows: int, size: int, bf16: bool, world: World, settings: Mapping[str, object]
) -> list[Entry]:
    """What the second step of a run does, operation by operation, as CUDA would do it: the optimiser on all parameters
    at once, the losses in one kernel."""
    model = build_joint_model(config, TASKS, 0, world).train()
    model.autocast_dtype = torch.bfloat16 if bf16 else None
    step = build_step(model, world, settings)
    train, val = batch(rows, size, 0), batch(rows, size, 1)
    take = partial(step.run, lr=LR, train=[train], val=val if step.weights.learns else None)
    assert isinstance(step.engine, PlainEngine)
    for group in step.engine.optimizer.param_groups:
        if not group["fused"]:
            group["foreach"] = True  # CUDA's default; on a CPU it is a loop over parameters
    take(0)
    ledger = Ledger()
    with ExitStack() as counted:
        for module in _users(fidelity):
            counted.enter_context(patch.object(module, "fidelity", ledger.fidelity))
        counted.enter_context(ledger)
        take(1)
    return ledger.entries


@dataclass(frozen=True)
class Kept:
    """Bytes a row, and whatever the batch is, of what a forward leaves: for its backward, and for forward mode."""

    saved: float
    saved_fixed: float
    remembered: float


def kept(config: ModelConfig, size: int, bf16: bool, world: World) -> Kept:
    """Counted on real forwards of two batches and two sizes of pictures; parameters and buffers are not part of it."""
    few, many, large = (
        _kept(config, side, bf16, world, rows) for rows, side in ((ROWS[0], SIDE), (ROWS[1], SIDE), (ROWS[0], 2 * SIDE))
    )
    area = (size / SIDE) ** 2
    (fixed, saved), (_, remembered) = (_line(*counts, area) for counts in zip(few, many, large, strict=True))
    return Kept(saved, fixed, remembered)


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
