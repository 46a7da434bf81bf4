"""N ranks of batch B equal one process of batch N B: every route, look-ahead and order of a step, and DeepSpeed."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from blades_dist.distributed import World
from blades_dist.testing.gloo import GlooPool
from tests.problems import build_step, plain_steps, small_model, take_steps, train_config

ROWS, STEPS = 8, 3
KEYS = ("losses", "lambda", "parameters", "buffers", "norm")
VARIANTS: dict[str, dict[str, Any]] = {
    "exact sgd": {},
    "exact sgd reused": {"reuse_gradient": True},
    "exact adamw clipped": {"lookahead": "adamw", "train": {"clip_norm": 1.0}},
    "exact adamw reused": {"lookahead": "adamw", "reuse_gradient": True},
    "finite difference": {"route": "finite_difference"},
    "finite difference adamw reused": {"route": "finite_difference", "lookahead": "adamw", "reuse_gradient": True},
    "alternating sgd": {"route": "alternating"},
    "alternating adamw": {"route": "alternating", "lookahead": "adamw"},
    "every second": {"every": 2},
    "half as many validation rows": {"val_batch": ROWS // 2, "reuse_gradient": True},
    "accumulated": {"reuse_gradient": True, "train": {"accumulate": 2, "clip_norm": 1.0}},
    "uncertainty": {"weighting": "uncertainty"},
}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What one process computes, in float64."""
    return {name: plain_steps(ROWS, STEPS, True, **values) for name, values in VARIANTS.items()}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_plain_ranks_equal_one_process(
    ranks: int, name: str, alone: dict[str, dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    pool: GlooPool = request.getfixturevalue({2: "two_ranks", 4: "four_ranks"}[ranks])
    found = pool.run(partial(plain_steps, ROWS, STEPS, True, **VARIANTS[name]))
    for other in found[1:]:
        for key in ("lambda", "parameters", "buffers"):
            assert np.array_equal(found[0][key], other[key]), f"{key} must be bitwise equal on all ranks"
    # A central difference divides the losses' rounding by 2 epsilon / |v|.
    tolerance = 1e-9 if "difference" not in name else 1e-8
    for key in KEYS:
        np.testing.assert_allclose(found[0][key], alone[name][key], rtol=tolerance, atol=tolerance, err_msg=key)


def deepspeed_steps(stage: int, train: dict[str, Any], bilevel: dict[str, Any]) -> dict[str, Any]:
    from blades_dist.training.engine import DeepSpeedEngine

    world = World.current()
    config = train_config(zero_stage=stage, **train)
    engine = DeepSpeedEngine(small_model(world).train(), config, world, ROWS // world.size)
    return take_steps(build_step(engine, world, config, **bilevel), world, 0, STEPS, ROWS, torch.float32)


# Adam's step is the sign of a gradient that is near zero, whatever its size: with the usual epsilon rounding decides
# it. An epsilon at the gradients' own scale makes the step smooth, and the comparison one of the computation.
SMOOTH = {"adam_eps": 1e-2}


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize(
    ("train", "bilevel"),
    [
        ({}, {}),
        ({"clip_norm": 1.0}, {"reuse_gradient": True, "lookahead": "adamw"}),
        ({"accumulate": 2, "clip_norm": 1.0}, {"reuse_gradient": True}),
        ({}, {"route": "alternating", "lookahead": "adamw"}),
    ],
    ids=["exact", "reused, adamw, clipped", "accumulated", "alternating"],
)
def test_deepspeed_ranks_equal_one_process(
    stage: int, train: dict[str, Any], bilevel: dict[str, Any], two_ranks: GlooPool
) -> None:
    train, bilevel = {**SMOOTH, **train}, {**bilevel, "adam_eps": 1e-2}
    alone = plain_steps(ROWS, STEPS, False, train=train, **bilevel)
    found = two_ranks.run(partial(deepspeed_steps, stage, train, bilevel))
    assert np.array_equal(found[0]["lambda"], found[1]["lambda"])
    assert np.array_equal(found[0]["parameters"], found[1]["parameters"])
    start = torch.cat([value.detach().flatten() for value in small_model().parameters()]).double().numpy()
    assert np.abs(alone["parameters"] - start).max() > 1e-4, "the parameters must have moved to be compared"
    for key in ("losses", "lambda", "parameters", "buffers"):
        np.testing.assert_allclose(found[0][key], alone[key], rtol=1e-5, atol=1e-5, err_msg=key)


def local_products(reuse: bool) -> dict[str, Any]:
    """The hypergradient with sync local, and the same from gradients of one task at a time, and the directions."""
    from blades_dist.bilevel.hypergradient import Columns, pull_back
    from blades_dist.training.torch_engine import PlainEngine
    from tests.problems import LR, sample

    world, found = World.current(), {}
    train, val = (sample(0, stream, ROWS, world, torch.float64) for stream in (0, 1))
    for sync in ("exact", "local"):
        engine = PlainEngine(small_model(world).double().train(), train_config(), world)
        step = build_step(engine, world, sync=sync, reuse_gradient=reuse)
        route, seen = step.part.route, []

        def spy(evaluated: Any, params: Any, direction: Any, *rest: Any, route: Any = route, seen: Any = seen) -> Any:
            seen.append((evaluated[0], params, direction))
            return route(evaluated, params, direction, *rest)

        step.part.route = spy
        outer = step.prepare(0, LR, [train], val)
        assert outer.hypergradient is not None
        part, params, direction = seen[0]
        columns: Columns = step.part.columns
        products = []
        for task in range(columns.tasks):
            share = pull_back(part.objective.forward(params), part.found.gradient * (columns.task == task), params)
            own = torch.stack([(share[name] * direction[name]).sum() for name in params]).sum()
            products.append(-LR * world.sum(own))
        found[sync] = {
            "value": outer.hypergradient.numpy(),
            "products": torch.stack(products).numpy(),
            "direction": torch.cat([value.flatten() for value in direction.values()]).numpy(),
        }
    return found


@pytest.mark.parametrize("reuse", [False, True])
def test_local_v_is_n_times_a_ranks_share(reuse: bool, two_ranks: GlooPool) -> None:
    """The estimate is sum_r <g_i^r, N v^r>; over independent batches its mean is <g_i, v>, as E v^r = E v / N."""
    first, second = two_ranks.run(local_products, reuse)
    for found in (first, second):
        for sync in ("exact", "local"):
            np.testing.assert_allclose(found[sync]["value"], found[sync]["products"], rtol=1e-9, atol=1e-18)
    assert np.array_equal(first["local"]["value"], second["local"]["value"])
    assert not np.allclose(first["local"]["direction"], second["local"]["direction"])
    if reuse:  # then both look ahead along the global gradient, to the same point
        mean = (first["local"]["direction"] + second["local"]["direction"]) / 2
        np.testing.assert_allclose(mean, first["exact"]["direction"], rtol=1e-9, atol=1e-15)


def test_local_v_of_one_process_is_exact() -> None:
    both = [plain_steps(ROWS, STEPS, True, sync=sync)["lambda"] for sync in ("exact", "local")]
    assert np.array_equal(*both)
