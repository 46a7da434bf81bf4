"""Steps that are not finite: refused on all ranks, with names, and without a trace."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blades_dist.bilevel.build import build_weights
from blades_dist.bilevel.hypergradient import Columns
from blades_dist.config import BilevelConfig
from blades_dist.distributed import World
from blades_dist.tasks import task_set
from blades_dist.testing.gloo import GlooPool
from blades_dist.training.guard import NonFinite, check_equal, find_culprits
from blades_dist.training.sample import Sample
from tests.problems import LR, build_step, sample, small_model, train_config

ROWS = 8
TASKS = task_set()


def named(part: Sample, world: World) -> Sample:
    return replace(part, ids=[f"photo-{world.rank}-{row}" for row in range(len(part.images))])


def refused_steps(stage: int | None, fault: str, bad: bool, reuse: bool) -> dict[str, Any]:
    """Steps 0 and 2, and between them, if ``bad``, a step 1 with a fault on the last rank; and what it said."""
    world, config = World.current(), train_config(zero_stage=stage or 0, accumulate=2 if reuse else 1)
    model = small_model(world).train()
    if stage is None:
        from blades_dist.training.torch_engine import PlainEngine

        engine: Any = PlainEngine(model, config, world)
    else:
        from blades_dist.training.engine import DeepSpeedEngine

        engine = DeepSpeedEngine(model, config, world, ROWS // world.size)
    step = build_step(engine, world, config, reuse_gradient=reuse)
    refusal = None
    for i in (0, 1, 2) if bad else (0, 2):
        train = [named(sample(2 * i + j, 0, ROWS, world, torch.float32), world) for j in range(config.accumulate)]
        val = named(sample(i, 1, ROWS, world, torch.float32), world)
        if i != 1:
            step.run(i, LR, train, val)
            continue
        handle = None
        if world.rank == world.size - 1:
            if fault == "pixel":
                train[-1].images[2, 0, 0, 0] = float("nan")
            elif fault == "validation pixel":
                val.images[1, 0, 0, 0] = float("inf")
            else:
                handle = next(model.image.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        with pytest.raises(NonFinite) as caught:
            step.run(i, LR, train, val)
        refusal = (caught.value.step, caught.value.what, caught.value.tasks, caught.value.ids)
        if handle:
            handle.remove()
    return {
        "refusal": refusal,
        "parameters": torch.cat([value.detach().flatten() for value in model.parameters()]).numpy(),
        "buffers": torch.cat([value.flatten() for value in model.buffers()]).numpy(),
        "lambda": step.weights.state_dict(),
    }


@pytest.fixture(scope="module")
def undisturbed(two_ranks: GlooPool) -> Callable[[int | None, bool], list[dict[str, Any]]]:
    """What the steps give without a fault, computed once for every (stage, reuse)."""
    return cache(lambda stage, reuse: two_ranks.run(refused_steps, stage, "", False, reuse))


@pytest.mark.parametrize("fault", ["pixel", "validation pixel", "gradient"])
@pytest.mark.parametrize(("stage", "reuse"), [(None, False), (None, True), (0, False), (1, True), (2, False)])
def test_a_refused_step_leaves_no_trace(
    fault: str, stage: int | None, reuse: bool, two_ranks: GlooPool, undisturbed: Callable[..., list[dict[str, Any]]]
) -> None:
    after = two_ranks.run(refused_steps, stage, fault, True, reuse)
    for with_fault, without in zip(after, undisturbed(stage, reuse), strict=True):
        assert with_fault["refusal"] == after[0]["refusal"], "all ranks must say the same"
        for key in ("parameters", "buffers"):
            assert np.array_equal(with_fault[key], without[key]), key
        assert with_fault["lambda"]["value"] == without["lambda"]["value"]
        assert with_fault["lambda"]["exp_avg_sq"] == without["lambda"]["exp_avg_sq"]
        assert [step for step, _ in with_fault["lambda"]["history"]] == [0, 1, 3]
    step, what, tasks, ids = after[0]["refusal"]
    assert step == 1
    if fault == "gradient":
        # Every row of that rank passes through the broken layer.
        assert what == "gradient" and set(ids) == {f"photo-1-{row}" for row in range(ROWS // 2)}
    else:
        assert ids == (("photo-1-2",) if fault == "pixel" else ("photo-1-1",))
        assert what == ("training loss" if fault == "pixel" else "validation loss")
        assert "face_coarse" in tasks


class Overflowing(nn.Module):
    """Logits of ``columns`` are pixel x scale, a huge number times a tiny one: their gradient can overflow alone."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((TASKS.width,), 1e-37))
        self.columns = columns

    def forward(self, images: Tensor) -> Tensor:
        pixels = torch.zeros(len(images), TASKS.width)
        pixels[:, self.columns] = images[:, 0, 0, :1]
        return pixels * self.scale


def test_culprits_of_a_gradient_are_found_by_task_and_row() -> None:
    images = torch.rand(5, 3, 8, 8)
    images[3, 0, 0, 0] = 1e37
    part = Sample(images, torch.zeros(5, 13, dtype=torch.long), [f"face-{row}" for row in range(5)])
    model, cotangent = Overflowing(TASKS.columns["make"]), torch.full((5, TASKS.width), 1e3)
    found = find_culprits(model, part, cotangent, Columns.of(TASKS), World())
    assert found.ids == ["face-3"]
    assert [name for name, bad in zip(TASKS.names, found.tasks, strict=True) if bad] == ["make"]


def test_the_message_says_what_where_and_survives_rays_transport() -> None:
    error = NonFinite(7, "gradient", ["make"], [f"id{i}" for i in range(12)])
    assert str(error).startswith("step 7: gradient of make is not finite; samples id0, id1")
    assert "and 4 more" in str(error) and "no state was changed" in str(error)
    assert "no sample gives such values on its own" in str(NonFinite(0, "gradient", [], []))
    again = pickle.loads(pickle.dumps(error))  # what Ray does with an exception between its processes
    assert (again.step, again.tasks, again.ids) == (7, ("make",), error.ids)


def unequal(spoil: bool) -> str:
    world = World.current()
    weights = build_weights(BilevelConfig(), TASKS)
    if spoil and world.rank == 1:
        weights.value[3] += 1e-15 * 4
    try:
        check_equal(weights, world, torch.device("cpu"), 12)
    except RuntimeError as error:
        return str(error)
    return ""


def test_unequal_lambda_is_noticed_on_all_ranks(two_ranks: GlooPool) -> None:
    assert two_ranks.run(unequal, False) == ["", ""]
    said = two_ranks.run(unequal, True)
    assert said[0] == said[1] and said[0].startswith("step 12: lambda on rank 1 differs from rank 0's")
