"""The one loss op: K global losses and the unweighted logit gradient of a batch that may span workers.

``fidelity`` is the plain function that the bi-level step calls; ``fidelity_losses`` is the same as an autograd op.
Two paths compute it: ``fused`` (one Triton kernel) and, here, plain torch in tiles of bounded size.
"""

import functools
import importlib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blades_dist.config import LossConfig
from blades_dist.distributed import World
from blades_dist.losses import reference
from blades_dist.tasks import ABSENT, REGIONS, TaskSet, task_set
from blades_dist.triton_host import kernel_failure

# Pairs that the torch path holds at a time; about ten arrays of this many numbers bound its memory. On a CPU larger
# tiles were slower (they leave the cache) and smaller ones no faster.
PAIRS_PER_TILE = 2**18

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fidelity:
    """``losses`` (K,), equal on all ranks, and ``gradient`` (B, C) = d sum_i losses_i / d this rank's logits."""

    losses: Tensor
    gradient: Tensor


def fidelity(logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig, world: World) -> Fidelity:
    """Losses over the global batch (DESIGN section 3) and their gradient, in one pass, in fp32 or wider.

    ``logits`` (B, C) and ``labels`` (B, K - 1 + R) are this rank's rows, B equal on all ranks. Means run over the
    global count of labelled items and ordinal pairs over all ranks' rows. Since every task reads its own columns,
    the gradient of any weighted sum is ``gradient`` with its columns scaled. Two collectives move B x (label columns
    + ordinal tasks) and K floats; a world of one has none. Memory is linear in B.

    Raises:
        ValueError: ``config.kernel`` is triton and the logits are float64.
        RuntimeError: ``config.kernel`` is triton where it cannot run.
    """
    logits = logits.detach()
    if _takes_triton(logits, config.kernel):
        return _fused(logits, labels, tasks, config, world)
    return _tiled(logits, labels, tasks, config, world)


def fidelity_losses(
    logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig, world: World | None = None
) -> Tensor:
    """The K losses (K,) of ``fidelity``, differentiable once with respect to ``logits`` (B, C).

    The backward scales the stored gradient's columns by the upstream gradient of their task. Over several ranks it
    gives the gradient at each rank's own rows, and the upstream gradients must be equal on all ranks.

    Raises:
        RuntimeError: in the backward when it is asked for a graph of itself. Otherwise as ``fidelity``.
    """
    losses: Tensor = _FidelityLosses.apply(logits, labels, tasks, config, world or World())
    return losses


def scale_columns(gradient: Tensor, weights: Tensor, task_of_column: Tensor) -> Tensor:
    """Gradient (B, C) of sum_i weights_i losses_i from the unweighted one: its columns scaled by ``weights`` (K,)."""
    return gradient * weights.to(gradient)[task_of_column]


class _FidelityLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig, world: World) -> Tensor:
        found = fidelity(logits, labels, tasks, config, world)
        ctx.save_for_backward(found.gradient)
        ctx.tasks, ctx.dtype = tasks, logits.dtype
        return found.losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        # once_differentiable would let a second derivative vanish silently where upstream needs no gradient.
        if torch.is_grad_enabled():
            raise RuntimeError("fidelity_losses has no second derivative: its backward cannot have create_graph=True")
        (gradient,) = ctx.saved_tensors
        task_of_column = torch.tensor(ctx.tasks.task_of_column, device=gradient.device)
        return scale_columns(gradient, upstream, task_of_column).to(ctx.dtype), None, None, None, None


def _takes_triton(logits: Tensor, kernel: str) -> bool:
    if kernel == "torch":
        chosen = False
    elif kernel == "auto":
        chosen = logits.is_cuda and logits.dtype != torch.float64 and _kernel_fails(logits.device) is None
    else:
        if logits.dtype == torch.float64:
            raise ValueError("loss.kernel: triton computes in fp32, but the logits are float64; use auto or torch")
        if not _has_triton():
            raise RuntimeError("loss.kernel: triton is not installed; pip install 'blades_dist[gpu]', or use auto")
        from blades_dist.losses import fused

        if not logits.is_cuda and not fused.INTERPRETED:
            raise RuntimeError(
                f"loss.kernel: triton needs logits on a CUDA device, not {logits.device}; use auto or torch (tests run "
                "the kernel on a CPU in Triton's interpreter: TRITON_INTERPRET=1, set before triton is imported)"
            )
        if why := _kernel_fails(logits.device):
            raise RuntimeError(f"loss.kernel: the triton kernel does not run here ({why}); use auto or torch")
        chosen = True
    _announce("triton" if chosen else "torch", kernel, logits.device.type)
    return chosen


@functools.cache
def _has_triton() -> bool:
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


@functools.cache
def _kernel_fails(device: torch.device) -> str | None:
    """Why the kernel cannot run on ``device``, or None."""
    if not _has_triton():
        return "triton is not installed"
    from blades_dist.losses import fused

    tasks, logits = task_set(), torch.zeros(2, task_set().width, device=device)
    labels = torch.zeros(2, len(tasks) - 1 + len(REGIONS), dtype=torch.int64, device=device)

    def run() -> None:
        fused.losses_and_gradient(logits, labels, None, 0, tasks, LossConfig(kernel="triton"))

    return kernel_failure(f"fused loss on {device}", run, "losses take the torch path")


@functools.cache  # Once a process and choice.
def _announce(path: str, kernel: str, device: str) -> None:
    _log.info("fidelity loss: %s path on %s (loss.kernel: %s)", path, device, kernel)


def _fused(logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig, world: World) -> Fidelity:
    from blades_dist.losses import fused

    levels = None
    if world.size > 1:
        labels, levels = _gather(_levels(logits.float(), tasks), labels, world)
    losses, gradient = fused.losses_and_gradient(logits, labels, levels, world.rank * len(logits), tasks, config)
    return Fidelity(world.sum(losses), gradient)


def _tiled(logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig, world: World) -> Fidelity:
    leaf = logits if logits.dtype == torch.float64 else logits.float()
    parts = reference.label_columns(tasks)
    ordinal = [i for i, task in enumerate(tasks.tasks) if task.kind == "ordinal"]
    outputs, sums = [], {}
    with torch.enable_grad():
        leaf = leaf.detach().requires_grad_()
        levels = _levels(leaf, tasks)
        for i, task in enumerate(tasks.tasks):
            if task.kind != "ordinal":
                target = labels[:, parts[i]]
                items = reference.task_items(task, leaf[:, tasks.columns[task.name]], target, config)
                sums[i] = torch.where(target != ABSENT, items, torch.zeros_like(items)).sum()
                outputs.append(sums[i])
    everyones_labels, everyones_levels = _gather(levels.detach(), labels, world)
    scale = 1 / _counts(everyones_labels, tasks).to(leaf.dtype).clamp_min(1)
    cotangents = [scale[i] for i in sums]
    if ordinal:
        pair_sums, slopes = _pair_sums(
            levels.detach(),
            everyones_levels,
            torch.stack([labels[:, parts[i].start] for i in ordinal]).to(leaf.dtype),
            torch.stack([everyones_labels[:, parts[i].start] for i in ordinal]).to(leaf.dtype),
            world.rank * len(leaf),
            config.ranking_scale,
        )
        # A sum holds each pair twice, once from either end, so that its gradient at one end is complete.
        sums |= dict(zip(ordinal, pair_sums / 2, strict=True))
        outputs.append(levels)
        cotangents.append(slopes * scale[ordinal, None])
    (gradient,) = torch.autograd.grad(outputs, leaf, cotangents)
    losses = torch.stack([sums[i].detach() for i in range(len(tasks))]) * scale
    return Fidelity(world.sum(losses), gradient)


def _levels(logits: Tensor, tasks: TaskSet) -> Tensor:
    """Expected levels (ordinal tasks, B)."""
    columns = [tasks.columns[task.name] for task in tasks.tasks if task.kind == "ordinal"]
    levels = [reference.expected_level(logits[:, part]) for part in columns]
    return torch.stack(levels) if levels else logits.new_zeros(0, len(logits))


def _gather(levels: Tensor, labels: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """All ranks' labels (N B, label columns) and expected levels (ordinal tasks, N B), in one message."""
    if world.size == 1:
        return labels, levels
    everyone = world.gather(torch.cat((levels.T, labels.to(levels.dtype)), dim=1)).flatten(0, 1)
    return everyone[:, len(levels) :].to(labels.dtype), everyone[:, : len(levels)].T


def _counts(labels: Tensor, tasks: TaskSet) -> Tensor:
    """How many items each loss is the mean of (K,): labelled ones, or unordered pairs of labelled rows."""
    labelled = (labels != ABSENT).sum(0)
    counts = [labelled[part].sum() for part in reference.label_columns(tasks)]
    return torch.stack(
        [n * (n - 1) // 2 if task.kind == "ordinal" else n for task, n in zip(tasks.tasks, counts, strict=True)]
    )


def _pair_sums(
    levels: Tensor, everyones_levels: Tensor, labels: Tensor, everyones_labels: Tensor, first: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Pair losses of own rows with everyone, summed (tasks,), and the sums' slopes at the own levels (tasks, B).

    ``levels`` and ``labels`` are (tasks, B), everyone's (tasks, N B); own rows are numbers ``first``... of those.
    """
    everyone = torch.arange(everyones_levels.shape[1], device=levels.device)
    own = everyone[first : first + levels.shape[1], None]
    rows = max(1, PAIRS_PER_TILE // max(1, everyones_levels.numel()))
    sums, slopes = levels.new_zeros(len(levels)), torch.empty_like(levels)
    for start in range(0, levels.shape[1], rows):
        part = slice(start, start + rows)
        label, other = labels[:, part, None], everyones_labels[:, None]
        counted = (label != ABSENT) & (other != ABSENT) & (own[part] != everyone)
        items, slope = reference.pair_items_and_slopes(
            levels[:, part, None] - everyones_levels[:, None], reference.pair_target(label, other), scale
        )
        zero = torch.zeros_like(items)
        sums += torch.where(counted, items, zero).sum((1, 2))
        slopes[:, part] = torch.where(counted, slope, zero).sum(2)
    return sums, slopes
