"""Steps from recorded graphs equal steps as written. Needs a GPU."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from blades_dist.arithmetic import set_precision
from blades_dist.distributed import World
from blades_dist.training.cuda_graphs import RecordedPart
from blades_dist.training.guard import NonFinite
from blades_dist.training.sample import Sample
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine
from tests.problems import LR, build_step, sample, small_model, train_config
from tests.training.test_device_part import ROUTES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

STEPS = 6  # of each kind the first is as written, and the second recorded
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """The same kernels every time, in IEEE fp32: a layer before BatchNorm has almost no gradient of its own, and AdamW
    makes a step of whatever rounding leaves there."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    set_precision("fp32")
    yield
    torch.use_deterministic_algorithms(False)


def to_gpu(part: Sample) -> Sample:
    return Sample(part.images.cuda(), part.labels.cuda(), [f"row-{row}" for row in range(len(part.images))])


def a_step(mode: str, bf16: bool, train: dict[str, Any], values: dict[str, Any]) -> BilevelStep:
    config = train_config(cuda_graphs=mode, **train)
    model = small_model().cuda().train()
    model.autocast_dtype = torch.bfloat16 if bf16 else None
    return build_step(PlainEngine(model, config, World()), World(), config, **values)


def taken(step: BilevelStep, spoilt: int | None = None) -> dict[str, torch.Tensor]:
    """The state after the steps, of which step ``spoilt`` is refused."""
    micro = step.train.accumulate
    for i in range(STEPS):
        train = [to_gpu(sample(micro * i + j, 0, 8, World(), torch.float32)) for j in range(micro)]
        val = to_gpu(sample(i, 1, 8, World(), torch.float32)) if step.wants_validation(i) else None
        if i != spoilt:
            step.run(i, LR * (1 + i), train, val)
            continue
        train[0].images[2, 0, 0, 0] = float("nan")
        with pytest.raises(NonFinite) as caught:
            step.run(i, LR * (1 + i), train, val)
        assert caught.value.ids == ("row-2",)
    module = step.engine.module
    assert isinstance(step.engine, PlainEngine)
    return {**module.state_dict(), **step.engine.optimizer_state(), "lambda": step.weights.value.clone()}


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    wrong = {
        name: float((found[name].double() - value.double()).abs().max())
        for name, value in expected.items()
        if not torch.equal(found[name], value)
    }
    assert not wrong, f"{len(wrong)} of {len(expected)} tensors are not bitwise equal: {wrong}"


def test_steps_as_written_are_repeatable() -> None:
    """What the comparisons below rest on."""
    first, second = (taken(a_step("off", False, {"adam_eps": 1e-3}, {})) for _ in range(2))
    compare(first, second)


@pytest.mark.parametrize("name", ROUTES)
def test_recorded_steps_equal_steps_as_written(name: str) -> None:
    values = {**ROUTES[name][1], "every": 2} if "reuse" in name else ROUTES[name][1]  # then there are two kinds
    expected = taken(a_step("off", False, {"adam_eps": 1e-3}, values))
    step = a_step("on", False, {"adam_eps": 1e-3}, values)
    compare(taken(step), expected)
    assert isinstance(step._device, RecordedPart) and len(step._device._recordings) == 1 + ("every" in values)


def test_accumulated_clipped_and_in_bf16() -> None:
    train = {"adam_eps": 1e-3, "accumulate": 2, "clip_norm": 1.0}
    values = {"reuse_gradient": True, "lookahead": "adamw"}
    compare(taken(a_step("on", False, train, values)), taken(a_step("off", False, train, values)))
    first, second = (taken(a_step(mode, True, {"adam_eps": 1e-3}, {})) for mode in ("on", "off"))
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("reuse", [False, True])
def test_a_refused_step_leaves_no_trace(reuse: bool) -> None:
    """Recorded or not: the step with a pixel that is no number is as if it had not been."""
    values = {"reuse_gradient": reuse}
    results = [taken(a_step(mode, False, {"adam_eps": 1e-3}, values), spoilt=4) for mode in ("on", "off")]
    compare(*results)


@pytest.mark.parametrize("name", ["plain", "exact", "exact, reuse", "alternating"])
@pytest.mark.parametrize("mode", ["off", "on"])
def test_the_host_waits_as_often_as_the_table_says(mode: str, name: str) -> None:
    waits, values = ROUTES[name]
    step = a_step(mode, True, {}, values)
    taken(step)
    train, val = (to_gpu(sample(9, stream, 8, World(), torch.float32)) for stream in (0, 1))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step.run(STEPS, LR, [train], val if step.wants_validation(STEPS) else None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    where = [f"{warning.filename}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message)]
    assert len(where) <= waits, where
