"""The loss oracle: naive loops over the formulas, gradients, and the edges."""

import math

import pytest
import torch
from torch import Tensor

from blades_dist.config import LossConfig
from blades_dist.losses import reference
from blades_dist.tasks import task_set
from tests.losses.problems import one_task, random_labels

EPS = reference.EPSILON


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    raised = [math.exp(value - top) for value in values]
    return [value / sum(raised) for value in raised]


def naive_fidelity(probabilities: list[float], target: int) -> float:
    hit = sum(math.sqrt(p * (1.0 if k == target else 0.0) + EPS) for k, p in enumerate(probabilities))
    return 1 - hit


def naive_task(kind: str, logits: Tensor, labels: Tensor, gamma: float, scale: float) -> float:
    rows = [(softmax(z.tolist()), z.tolist(), y) for z, y in zip(logits, labels.tolist(), strict=True)]
    if kind == "ordinal":
        known = [(sum((k + 1) * p for k, p in enumerate(ps)), y[0]) for ps, _, y in rows if y[0] >= 0]
        terms = []
        for i, (e_a, y_a) in enumerate(known):
            for e_b, y_b in known[i + 1 :]:
                p = 0.5 * (1 + math.erf(scale * (e_a - e_b) / math.sqrt(2)))
                t = 0.5 * (1 + (y_a > y_b) - (y_a < y_b))
                terms.append(1 - math.sqrt(p * t + EPS) - math.sqrt((1 - p) * (1 - t) + EPS))
    elif kind == "fine":
        terms = [
            1 - math.sqrt(g / (1 + math.exp(-z)) + EPS) - math.sqrt((1 - g) / (1 + math.exp(z)) + EPS)
            for _, zs, ys in rows
            for z, g in zip(zs, ys, strict=True)
            if g >= 0
        ]
    else:
        power = gamma if kind == "categorical" else 0.0
        terms = [(1 - ps[y[0]]) ** power * naive_fidelity(ps, y[0]) for ps, _, y in rows if y[0] >= 0]
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("rows", [1, 2, 3, 17])
@pytest.mark.parametrize(("gamma", "scale"), [(2.0, 2.0), (1.0, 0.7)])
def test_equals_a_naive_loop(rows: int, gamma: float, scale: float) -> None:
    tasks = task_set()
    logits = 3 * torch.randn(rows, tasks.width, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    labels = random_labels(rows, rows)
    found = reference.task_losses(logits, labels, tasks, LossConfig(gamma=gamma, ranking_scale=scale))
    for i, (task, part) in enumerate(zip(tasks.tasks, reference.label_columns(tasks), strict=True)):
        expected = naive_task(task.kind, logits[:, tasks.columns[task.name]], labels[:, part], gamma, scale)
        assert found[i].item() == pytest.approx(expected, abs=1e-12), task.name


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("kind", ["coarse", "categorical", "fine", "ordinal"])
def test_gradcheck_of_each_loss(kind: str, gamma: float) -> None:
    tasks, config = one_task(kind), LossConfig(gamma=gamma)
    logits = torch.randn(5, tasks.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = random_labels(5, 3, tasks)
    assert torch.autograd.gradcheck(
        lambda z: reference.task_losses(z, labels, tasks, config), (logits.requires_grad_(),)
    )


def test_the_normal_distribution_keeps_its_digits_far_down() -> None:
    x = torch.tensor([-12.0, -6, -3, 0, 3])
    exact = torch.tensor([math.erfc(-value / math.sqrt(2)) / 2 for value in x.tolist()], dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        assert torch.allclose(reference.normal_cdf(x.to(dtype)).double(), exact, rtol=tolerance, atol=0)


def test_pair_slopes_are_the_derivative_of_the_pair_losses() -> None:
    difference = torch.linspace(-4, 4, 101, dtype=torch.float64).requires_grad_()
    for target in (0.0, 0.5, 1.0):
        goal = torch.full_like(difference, target)
        items = reference.pair_items(difference, goal, 1.5)
        (expected,) = torch.autograd.grad(items.sum(), difference)
        same, slopes = reference.pair_items_and_slopes(difference.detach(), goal, 1.5)
        assert torch.equal(same, items) and torch.allclose(slopes, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(size: float) -> None:
    tasks = task_set()
    labels = random_labels(8, 1)
    logits = (torch.randn(8, tasks.width).sign() * size).requires_grad_()
    losses = reference.task_losses(logits, labels, tasks, LossConfig())
    losses.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(losses).all() and torch.isfinite(logits.grad).all()


def test_absent_labels_give_zero_loss_and_gradient() -> None:
    tasks = task_set()
    logits = torch.randn(4, tasks.width, requires_grad=True)
    losses = reference.task_losses(logits, torch.full((4, 13), -1), tasks, LossConfig())
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros(len(tasks)))
    assert logits.grad is not None and not logits.grad.any()
