"""The one loss op: K global losses and the unweighted logit gradient of a batch that may span workers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blades_dist.bilevel.reduce import World
from blades_dist.config import LossConfig
from blades_dist.losses import reference
from blades_dist.tasks import ABSENT, TaskSet


@dataclass(frozen=True)
class Fidelity:
    """``losses`` (K,), equal on all ranks, and ``gradient`` (B, C) = d sum_i losses_i / d this rank's logits."""

    losses: Tensor
    gradient: Tensor


def fidelity(logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig, world: World) -> Fidelity:
    """Losses over the global batch (DESIGN section 3) and their gradient, in one pass, in fp32 or wider.

    ``logits`` (B, C) and ``labels`` (B, K - 1 + R) are this rank's rows. Means run over the global count of
    labelled items and ordinal pairs over all ranks' rows. Since every task reads its own columns, the gradient of
    any weighted sum is ``gradient`` with its columns scaled. Two collectives move (2 x ordinal tasks) x B and 2K
    floats.
    """
    wide = logits.detach()
    wide = wide if wide.dtype == torch.float64 else wide.float()
    with torch.enable_grad():
        leaf = wide.requires_grad_()
        sums, counts = _sums(leaf, labels, tasks, config, world)
        total, count = world.sum_all([sums.detach(), counts])
        scale = torch.where(count > 0, 1 / count.clamp_min(1), torch.zeros_like(count))
        (gradient,) = torch.autograd.grad(sums @ scale, leaf)
    # An ordinal sum holds each pair twice, once from either end, so that its gradient at one end is complete.
    halves = torch.tensor([0.5 if task.kind == "ordinal" else 1.0 for task in tasks.tasks]).to(total)
    return Fidelity(total * scale * halves, gradient)


def _sums(leaf: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig, world: World) -> tuple[Tensor, Tensor]:
    """Per task the sum over this rank's items and the count to divide by, each (K,)."""
    ranked = _rankings(leaf, labels, tasks, world)
    sums, counts = [], []
    for task, part in zip(tasks.tasks, reference.label_columns(tasks), strict=True):
        target = labels[:, part]
        present = target != ABSENT
        if task.kind == "ordinal":
            level, everyone, everyones_label = ranked[task.name]
            mine = target.to(leaf.dtype)
            items = reference.pair_items(
                level[:, None] - everyone, reference.pair_target(mine, everyones_label), config.ranking_scale
            )
            present = present & (everyones_label != ABSENT) & _others(leaf, world)
            # Unordered pairs: each is counted from both ends.
            count = present.sum() / 2
        else:
            items = reference.task_items(task, leaf[:, tasks.columns[task.name]], target, config)
            count = present.sum()
        sums.append(torch.where(present, items, torch.zeros_like(items)).sum())
        counts.append(count.to(leaf.dtype))
    return torch.stack(sums), torch.stack(counts)


def _rankings(leaf: Tensor, labels: Tensor, tasks: TaskSet, world: World) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Per ordinal task: own expected levels (B,), and all ranks' levels and labels (N B,), the latter constant."""
    parts = zip(tasks.tasks, reference.label_columns(tasks), strict=True)
    ordinal = [(task, part.start) for task, part in parts if task.kind == "ordinal"]
    if not ordinal:
        return {}
    levels = torch.stack([reference.expected_level(leaf[:, tasks.columns[task.name]]) for task, _ in ordinal])
    own = torch.stack((levels.detach(), labels[:, [column for _, column in ordinal]].T.to(leaf.dtype)))
    everyone = world.gather(own).permute(1, 2, 0, 3).flatten(2)  # (2, ordinal tasks, N B)
    return {task.name: (levels[i], everyone[0, i], everyone[1, i]) for i, (task, _) in enumerate(ordinal)}


def _others(leaf: Tensor, world: World) -> Tensor:
    """(B, N B) mask that is False where a row would be paired with itself."""
    rows = torch.arange(len(leaf), device=leaf.device) + world.rank * len(leaf)
    return rows[:, None] != torch.arange(world.size * len(leaf), device=leaf.device)
