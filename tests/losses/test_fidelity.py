"""The loss op's plain-torch path against the oracle, on one rank and on two, and how a path is chosen."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blades_dist.config import LossConfig
from blades_dist.distributed import World
from blades_dist.losses import fidelity as module
from blades_dist.losses.fidelity import fidelity, fidelity_losses
from blades_dist.tasks import task_set
from blades_dist.testing.gloo import GlooPool
from tests.losses.problems import (
    RETURNED,
    assert_close,
    assert_gradient_close,
    one_task,
    oracle,
    random_labels,
    random_logits,
)

TORCH = LossConfig(kernel="torch")
TASKS = task_set()
KINDS = ["coarse", "categorical", "fine", "ordinal"]


@pytest.mark.parametrize("tile", [1, 40, 10**6])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 33])
def test_equals_the_oracle_however_it_is_tiled(rows: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAIRS_PER_TILE", tile)
    logits, labels = random_logits(rows), random_labels(rows, rows)
    found = fidelity(logits, labels, TASKS, TORCH, World())
    assert found.losses.dtype == found.gradient.dtype == torch.float64
    assert_close(found, oracle(logits, labels, TASKS, TORCH), torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_one_task(kind: str) -> None:
    tasks, config = one_task(kind), LossConfig(kernel="torch", gamma=1.5, ranking_scale=0.7)
    logits, labels = random_logits(9, tasks=tasks), random_labels(9, 1, tasks)
    assert_close(fidelity(logits, labels, tasks, config, World()), oracle(logits, labels, tasks, config), torch.float64)


def test_flash_is_one_more_task() -> None:
    tasks = task_set(flash=True)
    logits, labels = random_logits(9, tasks=tasks), random_labels(9, 1, tasks)
    assert_close(fidelity(logits, labels, tasks, TORCH, World()), oracle(logits, labels, tasks, TORCH), torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_widened(dtype: torch.dtype) -> None:
    logits, labels = random_logits(16, dtype), random_labels(16, 0)
    found = fidelity(logits, labels, TASKS, TORCH, World())
    same = fidelity(logits.float(), labels, TASKS, TORCH, World())
    assert found.losses.dtype == torch.float32 and torch.equal(found.losses, same.losses)
    assert torch.equal(found.gradient, same.gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_op(kind: str) -> None:
    tasks = one_task(kind)
    labels = random_labels(5, 3, tasks)
    logits = (random_logits(5, tasks=tasks) / 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: fidelity_losses(z, labels, tasks, TORCH), (logits,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_upstream_gradients_scale_their_own_task(dtype: torch.dtype) -> None:
    logits, labels = random_logits(12, dtype).requires_grad_(), random_labels(12, 5)
    upstream = torch.randn(len(TASKS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = fidelity_losses(logits, labels, TASKS, TORCH)
    losses.backward(upstream.to(losses))
    assert logits.grad is not None and logits.grad.dtype == dtype
    expected = oracle(logits, labels, TASKS, TORCH).gradient * upstream[torch.tensor(TASKS.task_of_column)]
    assert_gradient_close(logits.grad, expected, RETURNED[dtype])


def test_the_op_refuses_a_second_derivative_and_needs_no_first() -> None:
    labels = random_labels(4, 0)
    assert not fidelity_losses(random_logits(4), labels, TASKS, TORCH).requires_grad
    logits = random_logits(4).requires_grad_()
    losses = fidelity_losses(logits, labels, TASKS, TORCH)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(losses.sum(), logits, create_graph=True)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_no_array_holds_all_pairs() -> None:
    tasks, rows = one_task("ordinal"), 4096
    logits, labels = random_logits(rows, torch.float32, tasks), random_labels(rows, 0, tasks)
    with _Largest() as largest:
        fidelity(logits, labels, tasks, TORCH, World())
    assert rows < largest.elements <= module.PAIRS_PER_TILE < rows * rows


def on_this_rank(rows: int) -> tuple[np.ndarray, np.ndarray]:
    world = World.current()
    part = slice(world.rank * rows // world.size, (world.rank + 1) * rows // world.size)
    found = fidelity(random_logits(rows)[part], random_labels(rows, rows)[part], TASKS, TORCH, world)
    return found.losses.numpy(), found.gradient.numpy()


def test_two_ranks_equal_one_process(two_ranks: GlooPool) -> None:
    (losses, top), (same, bottom) = two_ranks.run(on_this_rank, 16)
    expected = oracle(random_logits(16), random_labels(16, 16), TASKS, TORCH)
    assert np.array_equal(losses, same), "losses must be bitwise equal on all ranks"
    np.testing.assert_allclose(losses, expected.losses, atol=1e-14)
    np.testing.assert_allclose(np.concatenate((top, bottom)), expected.gradient, atol=1e-15)


def test_auto_takes_torch_on_a_cpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    module._announce.cache_clear()
    logits, labels = random_logits(3, torch.float32), random_labels(3, 0)
    with caplog.at_level(logging.INFO, module.__name__):
        for _ in range(2):
            fidelity(logits, labels, TASKS, LossConfig(), World())
    assert [record.getMessage() for record in caplog.records] == [
        "fidelity loss: torch path on cpu (loss.kernel: auto)"
    ]


def test_a_forced_kernel_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    forced = LossConfig(kernel="triton")
    labels = random_labels(3, 0)
    with pytest.raises(ValueError, match="float64"):
        fidelity(random_logits(3), labels, TASKS, forced, World())
    monkeypatch.setattr(module, "_has_triton", lambda: False)
    with pytest.raises(RuntimeError, match="not installed"):
        fidelity(random_logits(3, torch.float32), labels, TASKS, forced, World())


def test_a_kernel_that_cannot_be_built_is_told_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton compiles its launcher on the host: without Python.h each call would fail, in every worker."""
    fused = pytest.importorskip("blades_dist.losses.fused")
    tried = []

    def broken(*_: object) -> None:
        tried.append(1)
        raise RuntimeError("gcc returned 1\nmain.c:2: fatal error: Python.h: No such file or directory\n")

    monkeypatch.setattr(fused, "losses_and_gradient", broken)
    module._kernel_fails.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, module.__name__):
            found = [module._kernel_fails(torch.device("cpu")) for _ in range(2)]
        assert (
            found[0] == found[1] and "Python.h" in str(found[0]) and "python3-dev" in str(found[0]) and len(tried) == 1
        )
        (record,) = caplog.records
        assert "losses take the torch path" in record.getMessage() and "\n" not in record.getMessage()
    finally:
        module._kernel_fails.cache_clear()


def test_the_op_needs_neither_triton_nor_the_heavy_dependencies() -> None:
    code = (
        "import sys\n"
        "absent = ('triton', 'ray', 'deepspeed', 'transformers', 'cv2', 'scipy', 'sklearn')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "from blades_dist.losses.fidelity import World, fidelity\n"
        "from blades_dist.config import LossConfig\n"
        "from blades_dist.tasks import task_set\n"
        "import torch\n"
        "found = fidelity(torch.zeros(2, 50), torch.zeros(2, 13).long(), task_set(), LossConfig(), World())\n"
        "assert found.losses.isfinite().all()\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
