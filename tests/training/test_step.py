"""The bi-level step: two ranks equal one process, DeepSpeed equals plain torch, state stays where it should."""

import pytest
import torch

from blades_dist.distributed import World
from blades_dist.training.torch_engine import PlainEngine
from tests.problems import LR, build_step, plain_steps, sample, small_model, train_config

ROUTES = ["exact", "finite_difference", "alternating"]


def test_an_outer_step_changes_lambda_and_nothing_else() -> None:
    """The engine is asked for a gradient and nothing more: parameters, buffers and generators stay bitwise."""
    for route in ROUTES:
        for reuse in (False, True):
            world = World()
            engine = PlainEngine(small_model().train(), train_config(), world)
            step = build_step(engine, world, route=route, reuse_gradient=reuse)
            train, val = (sample(0, stream, 4, world, torch.float32) for stream in (0, 1))
            with torch.no_grad():  # what the real forward leaves
                other = small_model().train()
                other(train.images)
            random = torch.random.get_rng_state()
            outer = step.prepare(0, LR, [train], val)
            assert outer.hypergradient is not None and outer.hypergradient.abs().min() > 0
            assert torch.equal(torch.random.get_rng_state(), random)
            for name, value in engine.module.state_dict().items():
                torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-6, atol=1e-8)
            assert all(torch.equal(a, b) for a, b in zip(engine.module.parameters(), other.parameters(), strict=True))
            assert (step.weights.value != 1).all()


def test_every_and_fixed_weights() -> None:
    moved = plain_steps(4, 3, False, every=2)["lambda"]
    fixed = plain_steps(4, 3, False, weighting="equal")["lambda"]
    assert (moved != 1).all() and (fixed == 1).all()


def test_lambda_scales_each_tasks_gradient() -> None:
    """A task of weight 0 leaves no trace: training with it equals training without its labels."""
    world = World()
    results = []
    for drop in (False, True):
        engine = PlainEngine(small_model().double().train(), train_config(), world)
        names = build_step(engine, world).tasks.names
        start = {name: 0.0 if name == "make" else 1.0 for name in names}
        step = build_step(engine, world, weighting="fixed", initial=start)
        batch = sample(0, 0, 8, world, torch.float64)
        if drop:
            batch.labels[:, names.index("make")] = -1
        step.run(0, LR, [batch], None)
        results.append(torch.cat([value.detach().flatten() for value in engine.module.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-15)


def test_a_nonfinite_loss_stops_before_anything_moves() -> None:
    world = World()
    engine = PlainEngine(small_model().train(), train_config(), world)
    step = build_step(engine, world)
    train, val = (sample(0, stream, 4, world, torch.float32) for stream in (0, 1))
    train.images[0, 0, 0, 0] = float("nan")
    before = [value.clone() for value in engine.module.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 0: training loss of iso, .* is not finite"):
        step.run(0, LR, [train], val)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
    assert (step.weights.value == 1).all()


def test_manipulation_does_not_depend_on_the_number_of_workers() -> None:
    whole = sample(3, 0, 8, World(), torch.float32)
    halves = [sample(3, 0, 8, World(2, rank), torch.float32) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.images for half in halves]), whole.images)
    assert torch.equal(torch.cat([half.labels for half in halves]), whole.labels)


def test_bf16_autocast_keeps_fp32_parameters_and_points_the_same_way() -> None:
    world = World()
    hypergradients = []
    for dtype in (None, torch.bfloat16):
        model = small_model().train()
        model.autocast_dtype = dtype
        engine = PlainEngine(model, train_config(), world)
        train, val = (sample(0, stream, 16, world, torch.float32) for stream in (0, 1))
        result = build_step(engine, world).run(0, LR, [train], val)
        assert all(value.dtype == torch.float32 for value in model.parameters())
        assert result.hypergradient is not None
        hypergradients.append(result.hypergradient)
    assert torch.cosine_similarity(*hypergradients, dim=0) > 0.95
