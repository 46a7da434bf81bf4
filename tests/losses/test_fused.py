"""The Triton kernel against the oracle in float64: in Triton's interpreter without a GPU, compiled with one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is in the dev and gpu extras")
tl = triton.language

from blades_dist.config import LossConfig  # noqa: E402
from blades_dist.distributed import World  # noqa: E402
from blades_dist.losses import formulas, fused, reference  # noqa: E402
from blades_dist.losses.fidelity import Fidelity, fidelity, fidelity_losses  # noqa: E402
from blades_dist.tasks import TaskSet, task_set  # noqa: E402
from blades_dist.testing.gloo import GlooPool  # noqa: E402
from tests.losses.problems import (  # noqa: E402
    RETURNED,
    assert_close,
    assert_gradient_close,
    one_task,
    oracle,
    random_labels,
    random_logits,
)

KERNEL = LossConfig(kernel="triton")
TASKS = task_set()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter takes seconds for large batches of every task: one of each kind then.
KINDS = TaskSet(tuple(one_task(kind).tasks[0] for kind in ("coarse", "ordinal", "categorical", "fine")))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def kernel(logits: Tensor, labels: Tensor, tasks: TaskSet = TASKS, config: LossConfig = KERNEL) -> Fidelity:
    return fidelity(logits.to(DEVICE), labels.to(DEVICE), tasks, config, World())


def check(rows: int, dtype: torch.dtype, tasks: TaskSet = TASKS, config: LossConfig = KERNEL) -> None:
    logits, labels = random_logits(rows, dtype, tasks), random_labels(rows, rows, tasks)
    found = kernel(logits, labels, tasks, config)
    assert found.losses.dtype == found.gradient.dtype == torch.float32
    assert_close(found, oracle(logits, labels, tasks, config), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 31, 64])
def test_equals_the_oracle(rows: int, dtype: torch.dtype) -> None:
    check(rows, dtype)


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [(100, torch.float16), (255, torch.bfloat16), (256, torch.float32), (513, torch.float32), (1000, torch.bfloat16)],
)
def test_equals_the_oracle_on_large_batches(rows: int, dtype: torch.dtype) -> None:
    check(rows, dtype, KINDS if rows < 500 else one_task("ordinal"))


@pytest.mark.parametrize(("gamma", "scale"), [(0.0, 0.5), (1.0, 1.0), (1.5, 2.0), (3.0, 8.0)])
def test_exponent_and_scale(gamma: float, scale: float) -> None:
    check(20, torch.float32, KINDS, LossConfig(kernel="triton", gamma=gamma, ranking_scale=scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upstream_gradients_scale_their_own_task(dtype: torch.dtype) -> None:
    logits, labels = random_logits(21, dtype), random_labels(21, 5)
    leaf = logits.to(DEVICE).requires_grad_()
    upstream = torch.randn(len(TASKS), generator=torch.Generator().manual_seed(1))
    fidelity_losses(leaf, labels.to(DEVICE), TASKS, KERNEL).backward(upstream.to(DEVICE))
    assert leaf.grad is not None and leaf.grad.dtype == dtype
    expected = oracle(logits, labels, TASKS, KERNEL).gradient * upstream.double()[torch.tensor(TASKS.task_of_column)]
    assert_gradient_close(leaf.grad, expected, RETURNED[dtype])


@pytest.mark.parametrize("rows", [5, 40])
def test_tasks_without_a_label_or_a_pair_are_exactly_zero(rows: int) -> None:
    logits, labels = random_logits(rows, torch.float32), random_labels(rows, 2)
    labels[:, 1::2] = -1
    labels[1:, 0] = -1  # one labelled row makes no pair
    found = kernel(logits, labels)
    assert_close(found, oracle(logits, labels, TASKS, KERNEL), torch.float32)
    assert not found.losses[[0, 1, 3]].any() and not found.gradient[:, :6].any()
    nothing = kernel(logits, torch.full_like(labels, -1))
    assert not nothing.losses.any() and not nothing.gradient.any()


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_extreme_logits(size: float) -> None:
    logits, labels = random_logits(20, torch.float32).sign() * size, random_labels(20, 1)
    found = kernel(logits, labels)
    assert found.losses.isfinite().all() and found.gradient.isfinite().all()
    assert_close(found, oracle(logits, labels, TASKS, KERNEL), torch.float32)


@pytest.mark.parametrize("config", [KERNEL, LossConfig(kernel="torch")])
def test_a_logit_that_is_not_a_number_shows_where_it_is_labelled(config: LossConfig) -> None:
    logits, labels = random_logits(20, torch.float32), random_labels(20, 1).clamp_min(0)
    logits[7, TASKS.columns["make"].start] = logits[3, 0] = float("nan")
    assert kernel(logits, labels, TASKS, config).losses.isnan().nonzero().flatten().tolist() == [0, 4]
    labels[7, 4] = labels[3, 0] = -1
    assert kernel(logits, labels, TASKS, config).losses.isfinite().all()


@pytest.mark.parametrize("config", [KERNEL, LossConfig(kernel="torch")])
def test_an_empty_batch_is_zero(config: LossConfig) -> None:
    found = kernel(random_logits(0, torch.float32), random_labels(0, 1), TASKS, config)
    assert found.gradient.shape == (0, TASKS.width) and torch.equal(found.losses.cpu(), torch.zeros(len(TASKS)))


def test_strides_and_label_types_do_not_matter() -> None:
    logits, labels = random_logits(20, torch.float32), random_labels(20, 1)
    expected = kernel(logits, labels)
    wide = torch.stack((logits, -logits), dim=2)[:, :, 0]
    tall = logits.T.contiguous().T
    for same in (wide, tall):
        assert same.stride() != logits.stride()
        for other in (labels.int(), labels.to(torch.int8), labels.T.contiguous().T):
            found = kernel(same, other)
            assert torch.equal(found.losses, expected.losses) and torch.equal(found.gradient, expected.gradient)


@pytest.mark.parametrize("rows", [16, 70])  # one row block writes the loss, several add up their shares
def test_equal_inputs_give_equal_bits(rows: int) -> None:
    logits, labels = random_logits(rows, torch.float32, KINDS), random_labels(rows, 1, KINDS)
    first, second = (kernel(logits, labels, KINDS) for _ in range(2))
    assert torch.equal(first.losses, second.losses) and torch.equal(first.gradient, second.gradient)


def test_rows_of_a_gathered_batch() -> None:
    logits, labels = random_logits(50, torch.float32).to(DEVICE), random_labels(50, 4).to(DEVICE)
    columns = [TASKS.columns[task.name] for task in TASKS.tasks if task.kind == "ordinal"]
    levels = torch.stack([reference.expected_level(logits[:, part]) for part in columns])
    parts = [
        fused.losses_and_gradient(logits[first:last], labels, levels, first, TASKS, KERNEL)
        for first, last in ((0, 40), (40, 50))
    ]
    losses, gradients = zip(*parts, strict=True)
    found = Fidelity(torch.stack(losses).sum(0), torch.cat(gradients))
    assert_close(found, oracle(logits, labels, TASKS, KERNEL), torch.float32)


def on_this_rank(rows: int) -> tuple[np.ndarray, np.ndarray]:
    os.environ["TRITON_INTERPRET"] = "1"  # before this rank first imports the kernel
    world = World.current()
    part = slice(world.rank * rows // world.size, (world.rank + 1) * rows // world.size)
    logits, labels = random_logits(rows, torch.float32), random_labels(rows, rows)
    found = fidelity(logits[part], labels[part], TASKS, KERNEL, world)
    return found.losses.numpy(), found.gradient.numpy()


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks without a GPU need the interpreter")
def test_two_ranks_equal_one_process(two_ranks: GlooPool) -> None:
    (losses, top), (same, bottom) = two_ranks.run(on_this_rank, 38)
    assert np.array_equal(losses, same), "losses must be bitwise equal on all ranks"
    found = Fidelity(torch.from_numpy(losses), torch.from_numpy(np.concatenate((top, bottom))))
    logits = random_logits(38, torch.float32)
    assert_close(found, oracle(logits, random_labels(38, 38), TASKS, KERNEL), torch.float32)


@triton.jit
def _tails(u, tail, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, COUNT)
    value, _ = formulas.normal_tail(tl.load(u + at))
    tl.store(tail + at, value)


def test_the_normal_tail_keeps_its_digits() -> None:
    u = torch.linspace(0, 13, 4096, device=DEVICE)
    tail = torch.empty_like(u)
    _tails[(1,)](u, tail, COUNT=4096)
    error = (tail.double() / reference.normal_cdf(-u.double()) - 1).abs()
    # The exponential's argument grows as u^2, and its rounding with it.
    assert (error <= 5e-7 + 1.2e-7 * u.double().square()).all(), error.max()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from blades_dist.losses.fused import _kernel
names = _kernel.arg_names
for arch, gathered, logits in ((80, False, "*fp32"), (90, False, "*bf16"), (90, True, "*fp16")):
    fixed = dict(GAMMA=2.0, GATHERED=gathered, ROWS=32, COLUMNS=16, NARROW=4, PARTNERS=64)
    types = dict.fromkeys(names, "i32") | dict.fromkeys(("levels", "gradient", "losses", "shares"), "*fp32")
    types |= dict(logits=logits, labels="*i64", arrived="*i32", table="*i32", scale="fp32")
    types |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(_kernel, types, {(names.index(name),): value for name, value in fixed.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True})
    assert "atom.global.gpu.acq_rel" in compiled.asm["ptx"]
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="triton's compiler is there on Linux")
def test_compiles_for_cuda_without_a_device(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_batch_on_a_gpu(dtype: torch.dtype) -> None:
    logits, labels = random_logits(8192, dtype).cuda(), random_labels(8192, 0).cuda()
    expected = fidelity(logits.double(), labels, TASKS, LossConfig(kernel="torch"), World())
    kernel(logits, labels)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = kernel(logits, labels)
    used = torch.cuda.max_memory_allocated() - before
    assert_close(found, Fidelity(expected.losses, expected.gradient), dtype)
    assert used <= 4 * (logits.nbytes + found.gradient.nbytes), "memory must be linear in the batch"


@pytest.mark.gpu
@needs_gpu
def test_auto_takes_the_kernel_on_a_gpu() -> None:
    logits, labels = random_logits(48, torch.bfloat16).cuda(), random_labels(48, 0).cuda()
    found, forced = (fidelity(logits, labels, TASKS, config, World()) for config in (LossConfig(), KERNEL))
    assert torch.equal(found.losses, forced.losses) and torch.equal(found.gradient, forced.gradient)
