"""Every route against differentiating through the look-ahead, on the joint model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from blades_dist.bilevel.hypergradient import ROUTES, Columns, TrainForward, push_forward
from blades_dist.bilevel.lookahead import AdamW, Params
from blades_dist.config import LossConfig
from blades_dist.distributed import World
from blades_dist.losses.reference import task_losses
from blades_dist.models.batchnorm import still_statistics
from blades_dist.tasks import task_set
from blades_dist.training.sample import Sample
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine
from tests.problems import LR, build_step, sample, small_model, train_config

TASKS = task_set()
ROWS = 6


def warm_step(dtype: torch.dtype, train: dict[str, Any], **bilevel: Any) -> tuple[BilevelStep, list[Sample], Sample]:
    """A step on a model that has taken two, so that AdamW's moments and lambda are no trivial ones; its batches."""
    world, config = World(), train_config(**train)
    engine = PlainEngine(small_model(world).to(dtype).train(), config, world)
    step = build_step(engine, world, config, **bilevel)
    for i in range(2):
        batches = [sample(10 * i + j, 0, ROWS, world, dtype) for j in range(config.accumulate)]
        step.run(i, LR, batches, sample(i, 1, ROWS, world, dtype))
    return (
        step,
        [sample(50 + j, 0, ROWS, world, dtype) for j in range(config.accumulate)],
        sample(9, 1, ROWS, world, dtype),
    )


def differentiate_through(step: BilevelStep, train: list[Sample], val: Sample) -> tuple[Tensor, Tensor]:
    """d l_coarse(theta') / d lambda with the look-ahead written out and a graph through all of it; and l_coarse."""
    model, config = step.engine.module, step.train
    params = dict(model.named_parameters())
    weights = step.weights.value.to(next(iter(params.values()))).clone().requires_grad_()

    def losses(at: Params, part: Sample) -> Tensor:
        with still_statistics(model):
            return task_losses(functional_call(model, at, (part.images,)), part.labels, TASKS, LossConfig())

    total = torch.stack([losses(params, part) for part in train]).mean(0)
    gradient = dict(
        zip(params, torch.autograd.grad(weights @ total, list(params.values()), create_graph=True), strict=True)
    )
    if config.clip_norm:
        size = torch.cat([value.flatten() for value in gradient.values()]).norm()
        factor = torch.clamp(config.clip_norm / (size + 1e-6), max=1)
        gradient = {name: value * factor for name, value in gradient.items()}
    if step.bilevel.lookahead == "adamw":
        gradient = adamw_update(gradient, step.engine.adamw())
    ahead = {name: value - LR * (gradient[name] + config.weight_decay * value) for name, value in params.items()}
    outer = losses(ahead, val)[TASKS.proxy]
    return torch.autograd.grad(outer, weights)[0], outer.detach()


def adamw_update(gradient: Params, state: AdamW) -> Params:
    (b1, b2), t = state.betas, float(state.step) + 1  # AdamW counts in fp32, in which 1 - b2^t would be computed
    update = {}
    for name, g in gradient.items():
        m = (b1 * state.exp_avg[name] + (1 - b1) * g) / (1 - b1**t)
        s = (b2 * state.exp_avg_sq[name] + (1 - b2) * g * g) / (1 - b2**t)
        some = s > 0  # the root of zero has no derivative that autograd could use
        update[name] = m / (torch.where(some, torch.where(some, s, 1).sqrt(), 0) + state.eps)
    return update


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("lookahead", ["sgd", "adamw"])
def test_exact_equals_differentiating_through_the_lookahead(lookahead: str, clip: float, reuse: bool) -> None:
    step, train, val = warm_step(torch.float64, {"clip_norm": clip}, lookahead=lookahead, reuse_gradient=reuse)
    assert (train[0].labels == -1).any(), "missing labels must be part of this test"
    expected, outer = differentiate_through(step, train, val)
    found = step.probe(LR, train, val)
    if clip:
        again = step.run(2, LR, train, val)
        assert again.gradient_norm > clip, "the gradient must be clipped in this test"
    assert float((found.hypergradient - expected).norm() / expected.norm()) < 1e-9
    torch.testing.assert_close(found.val_losses[TASKS.proxy], outer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("lookahead", ["sgd", "adamw"])
def test_accumulated_micro_batches_are_one_inner_step(lookahead: str) -> None:
    values = {"accumulate": 3, "clip_norm": 1.0}
    step, train, val = warm_step(torch.float64, values, lookahead=lookahead, reuse_gradient=True)
    expected, _ = differentiate_through(step, train, val)
    found = step.probe(LR, train, val)
    assert len(train) == 3
    assert float((found.hypergradient - expected).norm() / expected.norm()) < 1e-9


def in_fp32(step: BilevelStep, **bilevel: Any) -> BilevelStep:
    """The same state in fp32: parameters, moments and lambda rounded, not taken there by steps of its own."""
    world = World()
    engine = PlainEngine(small_model(world).train(), step.train, world)
    engine.module.load_state_dict(step.engine.module.state_dict())
    assert isinstance(step.engine, PlainEngine)
    engine.load_optimizer_state({name: value.float() for name, value in step.engine.optimizer_state().items()})
    other = build_step(engine, world, step.train, **bilevel)
    other.weights.load_state_dict(step.weights.state_dict())
    return other


@pytest.mark.parametrize(
    ("lookahead", "adam_eps", "epsilon"),
    # AdamW's derivative is largest where gradients are nearly zero. With its usual epsilon of 1e-8 the direction is
    # mostly such parameters, along which losses hardly differ: a difference of fp32 losses is then noise.
    [("sgd", 1e-8, 5e-4), ("adamw", 1e-4, 3e-3)],
)
def test_exact_and_finite_difference_in_fp32(lookahead: str, adam_eps: float, epsilon: float) -> None:
    step, train, val = warm_step(torch.float64, {"adam_eps": adam_eps}, lookahead=lookahead)
    expected = step.probe(LR, train, val)
    for route, tolerance in (("exact", 2e-5), ("finite_difference", 1e-3)):
        other = in_fp32(step, lookahead=lookahead, route=route, epsilon=epsilon)
        samples = [Sample(part.images.float(), part.labels, part.ids) for part in (*train, val)]
        found = other.probe(LR, samples[:-1], samples[-1])
        assert found.hypergradient.dtype == torch.float32
        error = float((found.hypergradient.double() - expected.hypergradient).norm() / expected.hypergradient.norm())
        print(f"{route} {lookahead} fp32: {error:.1e}")
        assert error < tolerance


def test_alternating_is_exact_in_v_at_the_present_parameters() -> None:
    """Its products are those of ``exact`` along the v that it takes; only where v is taken differs."""
    step, train, val = warm_step(torch.float64, {}, route="alternating")
    with step.part._aside():
        direction = step.part.present_point(val).direction
    other, _, _ = warm_step(torch.float64, {}, route="alternating")
    found = other.probe(LR, train, val)
    logits = step.engine.forward(train[0].images)[0]
    with still_statistics(step.engine.module):
        objective = step.part.objective(train[0])
        forwards = [TrainForward(objective, logits, objective.loss(logits))]
        expected = -LR * ROUTES["exact"](forwards, step.part.params, direction, step.part.columns, World())
    torch.testing.assert_close(found.hypergradient, expected, rtol=1e-9, atol=0)


def test_alternating_needs_a_forward_in_forward_mode() -> None:
    step, train, _ = warm_step(torch.float64, {})
    objective, logits = step.part.objective(train[0]), torch.zeros(ROWS, TASKS.width)
    part = TrainForward(objective, logits, objective.loss(logits))
    with pytest.raises(ValueError, match="in forward mode"):
        ROUTES["alternating"]([part], {}, {}, Columns.of(TASKS), World())


def test_push_forward_agrees_with_a_central_difference_and_keeps_the_graph() -> None:
    model = small_model().double().train()
    images = sample(0, 0, ROWS, World(), torch.float64).images
    params = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    along = {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in params.items()}

    def forward(at: Params) -> Tensor:
        with still_statistics(model):
            return functional_call(model, at, (images,))

    logits, tangent = push_forward(forward, params, along)
    h = 1e-9  # small beside the distance to the next kink of a ReLU
    with torch.no_grad():
        up, down = (forward({name: params[name] + sign * h * along[name] for name in params}) for sign in (1, -1))
    torch.testing.assert_close(tangent, (up - down) / (2 * h), rtol=1e-4, atol=1e-4)
    assert not tangent.requires_grad
    cotangent = torch.randn_like(logits)
    found = torch.autograd.grad(logits, list(params.values()), cotangent)
    expected = torch.autograd.grad(forward(params), list(params.values()), cotangent)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
