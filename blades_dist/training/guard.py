"""What stops a step: losses, gradients or task weights that are not finite, and who brought them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blades_dist.bilevel.build import TaskWeights
from blades_dist.bilevel.hypergradient import Columns
from blades_dist.distributed import World
from blades_dist.models.batchnorm import still_statistics
from blades_dist.training.sample import Sample

ID_BYTES = 96  # an id is a sha-256 in hexadecimal and the face's number
SHOWN = 8


class NonFinite(FloatingPointError):
    """A step was refused, on all ranks alike, before any state changed.

    ``tasks`` and ``ids`` name the tasks and samples of all ranks that give such values on their own; either is empty
    when none does (the fault then lies in what the samples share: a parameter, or the sum over the batch). ``reason``
    is said instead where the fault is known and no sample's.
    """

    def __init__(self, step: int, what: str, tasks: Sequence[str], ids: Sequence[str], reason: str = "") -> None:
        self.step, self.what, self.tasks, self.ids, self.reason = step, what, tuple(tasks), tuple(ids), reason
        if reason:
            super().__init__(f"step {step}: {what}: {reason}; no state was changed")
            return
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        rows = f"samples {', '.join(ids[:SHOWN])}{more}" if ids else "no sample gives such values on its own"
        super().__init__(
            f"step {step}: {what} of {', '.join(tasks) or 'all tasks together'} is not finite; {rows}; "
            "no state was changed"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # for Ray, which sends exceptions between processes
        return NonFinite, (self.step, self.what, self.tasks, self.ids, self.reason)


@dataclass(frozen=True)
class Culprits:
    """``tasks`` (K,) bool and ``ids``, both over all ranks."""

    tasks: list[bool]
    ids: list[str]


def find_culprits(
    module: nn.Module, sample: Sample, cotangent: Tensor | None, columns: Columns, world: World
) -> Culprits:
    """Which rows, and with a logit ``cotangent`` (B, C) which tasks, give values that are not finite on their own.

    Every rank calls. Rows are judged in evaluation mode, since batch statistics spread one bad row over the batch.
    Takes a pass for each row, and more for the bad ones; runs only after a step has failed.
    """
    training = module.training
    module.eval()
    try:
        with still_statistics(module), torch.enable_grad():
            tasks, rows = _judge(module, sample, cotangent, columns)
    finally:
        module.train(training)
    everyones = world.sum(tasks.float()) > 0
    flags, names = world.gather(rows.float()), world.gather(_encode(sample, rows.device))
    ids = [_decode(name) for name, bad in zip(names.flatten(0, 1), flags.flatten().tolist(), strict=True) if bad]
    return Culprits(everyones.tolist(), ids)


def check_equal(weights: TaskWeights, world: World, device: torch.device, step: int) -> None:
    """Gathers a digest of everything that determines lambda's future; every rank calls.

    Raises:
        RuntimeError: the ranks do not hold bitwise equal weights.
    """
    everyones = world.gather(torch.tensor([weights.digest()], device=device)).flatten()
    if not bool((everyones == everyones[0]).all()):
        other = [rank for rank, digest in enumerate(everyones.tolist()) if digest != everyones[0]]
        raise RuntimeError(
            f"step {step}: lambda on rank {', '.join(map(str, other))} differs from rank 0's; nothing of this is "
            "saved, resume from the last checkpoint"
        )


def _judge(module: nn.Module, sample: Sample, cotangent: Tensor | None, columns: Columns) -> tuple[Tensor, Tensor]:
    images = sample.images
    logits = module(images)
    rows = ~(images.isfinite().flatten(1).all(1) & logits.isfinite().all(1))
    tasks = torch.zeros(columns.tasks, dtype=torch.bool, device=logits.device)
    if cotangent is None:
        return tasks, rows
    rows |= ~cotangent.isfinite().all(1)
    tasks |= columns.sum((~cotangent.isfinite()).float()) > 0
    for row in (~rows).nonzero().flatten().tolist():
        # Alone in its batch: a zero cotangent would not keep another row's infinite derivative out (0 x inf).
        part, own = images[row : row + 1], cotangent[row : row + 1]
        if not _explodes(module, part, own):
            continue
        rows[row] = True
        if not _explodes(module, part, torch.zeros_like(own)):  # else no task alone is to blame
            for task in range(columns.tasks):
                tasks[task] |= _explodes(module, part, own * (columns.task == task))
    return tasks, rows


def _explodes(module: nn.Module, images: Tensor, cotangent: Tensor) -> bool:
    """Whether the parameter gradient is not finite."""
    params = [value for value in module.parameters() if value.requires_grad]
    logits = module(images)
    found = torch.autograd.grad(logits, params, cotangent.to(logits.dtype), allow_unused=True, materialize_grads=True)
    return not all(bool(value.isfinite().all()) for value in found)


def _encode(sample: Sample, device: torch.device) -> Tensor:
    """(B, ID_BYTES) uint8; rows without an id are numbered."""
    ids = sample.ids or [f"row {row}" for row in range(len(sample.images))]
    data = b"".join(name.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0") for name in ids)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(len(ids), ID_BYTES).to(device)


def _decode(name: Tensor) -> str:
    return bytes(name.tolist()).rstrip(b"\0").decode(errors="replace")
