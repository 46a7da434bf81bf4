"""Random logits and labels for the loss tests, and the tolerances they are held to."""

import torch
from torch import Tensor

from blades_dist.config import LossConfig
from blades_dist.losses import reference
from blades_dist.losses.fidelity import Fidelity
from blades_dist.tasks import REGIONS, Task, TaskSet, task_set

# Of logits -> absolute on a loss, and on a gradient over its largest element, both against float64 on equal logits.
# Narrower logits are widened first, so that they lose nothing; what a backward returns is rounded to their type.
# In Triton's interpreter gradients are within 1.5e-6; a GPU's exponential and root are approximations.
LOSS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
GRADIENT = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 5e-6, torch.float16: 5e-6}
RETURNED = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}


def random_logits(rows: int, dtype: torch.dtype = torch.float64, tasks: TaskSet | None = None) -> Tensor:
    """(rows, C); equal for equal ``rows``, but for the rounding to ``dtype``."""
    generator = torch.Generator().manual_seed(rows)
    return (3 * torch.randn(rows, (tasks or task_set()).width, dtype=torch.float64, generator=generator)).to(dtype)


def random_labels(rows: int, seed: int, tasks: TaskSet | None = None) -> Tensor:
    """(rows, K - 1 + R) int64; every label is absent now and then."""
    generator = torch.Generator().manual_seed(seed)
    highs = [high for task in (tasks or task_set()).tasks for high in _highs(task)]
    return torch.stack([torch.randint(-1, high, (rows,), generator=generator) for high in highs], dim=1)


def one_task(kind: str) -> TaskSet:
    """A task set of the first task of a kind."""
    return TaskSet((next(task for task in task_set().tasks if task.kind == kind),))


def oracle(logits: Tensor, labels: Tensor, tasks: TaskSet, config: LossConfig) -> Fidelity:
    """The plain-torch oracle in float64 on the same numbers."""
    leaf = logits.detach().double().cpu().requires_grad_()
    losses = reference.task_losses(leaf, labels.cpu().long(), tasks, config)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return Fidelity(losses.detach(), gradient)


def assert_close(found: Fidelity, expected: Fidelity, dtype: torch.dtype) -> None:
    loss = (found.losses.cpu().double() - expected.losses.cpu()).abs().max().item()
    assert loss <= LOSS[dtype], f"losses differ by {loss:.1e}"
    assert_gradient_close(found.gradient, expected.gradient, GRADIENT[dtype])


def assert_gradient_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found.cpu().double() - expected.cpu()).abs().max().item()
    bound = tolerance * max(expected.abs().max().item(), 1e-30)
    assert error <= bound, f"gradients differ by {error:.1e}, allowed {bound:.1e}"


def _highs(task: Task) -> list[int]:
    return [2] * len(REGIONS) if task.kind == "fine" else [len(task.classes)]
