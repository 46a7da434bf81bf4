"""Fidelity losses in plain torch: the oracle that every faster path is tested against.

All are 1 - sum of sqrt(p * p_hat) with EPSILON inside the root (BLADES section 3; FRank, SIGIR 2007),
averaged over the items that carry a label; with no such item they are zero with zero gradient.
"""

import math

import torch
from torch import Tensor

from blades_dist.config import LossConfig
from blades_dist.tasks import ABSENT, REGIONS, Task, TaskSet

EPSILON = 1e-8


def task_losses(logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig) -> Tensor:
    """The K losses of a batch. ``logits`` (B, C), ``labels`` (B, K - 1 + R) as ``label_columns`` lays them out."""
    parts = zip(tasks.tasks, label_columns(tasks), strict=True)
    return torch.stack([_task_loss(t, logits[:, tasks.columns[t.name]], labels[:, part], config) for t, part in parts])


def label_columns(tasks: TaskSet) -> list[slice]:
    """For every task its columns of the label matrix: one column each, but one per region for the fine task."""
    parts, start = [], 0
    for task in tasks.tasks:
        width = len(REGIONS) if task.kind == "fine" else 1
        parts.append(slice(start, start + width))
        start += width
    return parts


def coarse_items(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - sqrt(p_y) of each face. ``logits`` (B, 2), ``labels`` (B,) in {-1, 0, 1}; (B,), anything at -1."""
    return 1 - _fidelity(_probability(logits, labels), logits.shape[-1])


def categorical_items(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal fidelity (1 - p_y)^gamma (1 - sqrt(p_y)). ``logits`` (B, n), ``labels`` (B,); (B,), anything at -1."""
    probability = _probability(logits, labels)
    return (1 - probability) ** gamma * (1 - _fidelity(probability, logits.shape[-1]))


def fine_items(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - sqrt(p g) - sqrt((1 - p)(1 - g)) of each face and region. Both (B, R); (B, R), anything at -1."""
    target = labels.clamp_min(0).to(logits.dtype)
    # sigmoid(-x) rather than 1 - sigmoid(x): exact for large x.
    hit = (logits.sigmoid() * target + EPSILON).sqrt()
    return 1 - hit - ((-logits).sigmoid() * (1 - target) + EPSILON).sqrt()


def task_items(task: Task, logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Item losses of a task that is not ordinal, in the shape of its ``labels`` (B, 1) or (B, R); anything at -1."""
    if task.kind == "categorical":
        return categorical_items(logits, labels[:, 0], config.gamma)[:, None]
    if task.kind == "coarse":
        return coarse_items(logits, labels[:, 0])[:, None]
    return fine_items(logits, labels)


def expected_level(logits: Tensor) -> Tensor:
    """Mean ordinal level under the softmax, in 1..n. ``logits`` (B, n) to (B,)."""
    levels = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device)
    return logits.softmax(-1) @ levels


def pair_items(difference: Tensor, target: Tensor, scale: float = 2.0) -> Tensor:
    """Fidelity loss of p = Phi(scale * difference) against ``target`` = P(a above b); elementwise."""
    above = (normal_cdf(scale * difference) * target + EPSILON).sqrt()
    below = (normal_cdf(-scale * difference) * (1 - target) + EPSILON).sqrt()
    return 1 - above - below


def pair_items_and_slopes(difference: Tensor, target: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """``pair_items`` and their derivative with respect to ``difference``, without a graph; elementwise.

    The slope is scale/2 * phi(x) ((1 - t) / sqrt(q (1 - t) + eps) - t / sqrt(p t + eps)) with x = scale * difference,
    p = Phi(x), q = Phi(-x) and phi the normal density.
    """
    x = scale * difference
    above = (normal_cdf(x) * target + EPSILON).sqrt()
    below = (normal_cdf(-x) * (1 - target) + EPSILON).sqrt()
    density = (x.square() * -0.5).exp() / math.sqrt(2 * math.pi)
    return 1 - above - below, scale / 2 * density * ((1 - target) / below - target / above)


def normal_cdf(x: Tensor) -> Tensor:
    """Phi(x), elementwise. torch.special.ndtr is 1 + erf, which has no correct digit left in fp32 at x = -6."""
    return 0.5 * torch.special.erfc(x * -math.sqrt(0.5))


def pair_target(a: Tensor, b: Tensor) -> Tensor:
    """P(level a above level b): 1, 1/2 at a tie, or 0."""
    return 0.5 * (1 + torch.sign(a - b))


def ordinal_loss(logits: Tensor, labels: Tensor, scale: float = 2.0) -> Tensor:
    """Mean pair loss over all unordered pairs of labelled samples. ``logits`` (B, n), ``labels`` (B,) or -1."""
    present = labels != ABSENT
    level, label = expected_level(logits)[present], labels[present].to(logits.dtype)
    a, b = torch.triu_indices(len(level), len(level), 1, device=logits.device)
    if len(a) == 0:
        return logits.sum() * 0
    return pair_items(level[a] - level[b], pair_target(label[a], label[b]), scale).mean()


def _task_loss(task: Task, logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    if task.kind == "ordinal":
        return ordinal_loss(logits, labels[:, 0], config.ranking_scale)
    items = task_items(task, logits, labels, config)
    present = labels != ABSENT
    return torch.where(present, items, torch.zeros_like(items)).sum() / present.sum().clamp_min(1)


def _probability(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(-1).gather(-1, labels.clamp_min(0)[:, None]).squeeze(-1)


def _fidelity(probability: Tensor, classes: int) -> Tensor:
    # The sum runs over every class: those with target 0 add sqrt(EPSILON) each, as in the released code.
    return (probability + EPSILON).sqrt() + (classes - 1) * EPSILON**0.5
