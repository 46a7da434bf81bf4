"""The loss op against the oracle, on one rank and on two."""

import numpy as np
import pytest
import torch

from blades_dist.bilevel.reduce import World
from blades_dist.config import LossConfig
from blades_dist.losses import reference
from blades_dist.losses.fidelity import fidelity
from blades_dist.tasks import task_set
from tests.gloo import GlooPool
from tests.losses.test_reference import all_labels


def problem(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return 3 * torch.randn(rows, task_set().width, dtype=torch.float64, generator=generator), all_labels(rows, rows)


def oracle(rows: int) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = problem(rows)
    logits.requires_grad_()
    losses = reference.task_losses(logits, labels, task_set(), LossConfig())
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 33])
def test_equals_the_oracle(rows: int) -> None:
    found = fidelity(*problem(rows), task_set(), LossConfig(), World())
    losses, gradient = oracle(rows)
    np.testing.assert_allclose(found.losses, losses, atol=1e-14)
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-15)


def test_half_precision_logits_are_widened() -> None:
    logits, labels = problem(16)
    found = fidelity(logits.bfloat16(), labels, task_set(), LossConfig(), World())
    same = fidelity(logits.bfloat16().float(), labels, task_set(), LossConfig(), World())
    assert found.losses.dtype == torch.float32 and torch.equal(found.losses, same.losses)


def on_this_rank(rows: int) -> tuple[np.ndarray, np.ndarray]:
    world = World.current()
    logits, labels = problem(rows)
    part = slice(world.rank * rows // world.size, (world.rank + 1) * rows // world.size)
    found = fidelity(logits[part], labels[part], task_set(), LossConfig(), world)
    return found.losses.numpy(), found.gradient.numpy()


def test_two_ranks_equal_one_process(two_ranks: GlooPool) -> None:
    (losses, top), (same, bottom) = two_ranks.run(on_this_rank, 16)
    expected, gradient = oracle(16)
    assert np.array_equal(losses, same), "losses must be bitwise equal on all ranks"
    np.testing.assert_allclose(losses, expected, atol=1e-14)
    np.testing.assert_allclose(np.concatenate((top, bottom)), gradient, atol=1e-15)
