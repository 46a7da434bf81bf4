"""The virtual inner step against torch's optimisers, and its adjoint against automatic differentiation."""

import pytest
import torch
from torch import Tensor

from blades_dist.bilevel.lookahead import AdamW, Params, adamw_lookahead, sgd_lookahead

LR, DECAY = 0.1, 0.03
SHAPES = {"a": (3, 2), "b": (5,)}


def random_params(seed: int, dtype: torch.dtype = torch.float64) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def state_after(steps: int, params: Params) -> tuple[AdamW, torch.optim.AdamW]:
    """The state of a torch optimiser that has taken ``steps`` steps on ``params``, in place."""
    optimizer = torch.optim.AdamW(params.values(), lr=LR, weight_decay=DECAY)
    for step in range(steps):
        for value, gradient in zip(params.values(), random_params(100 + step).values(), strict=True):
            value.grad = gradient
        optimizer.step()
    zero = {name: torch.zeros_like(value) for name, value in params.items()}
    own = [optimizer.state[value] for value in params.values()] if steps else []
    first = {name: each["exp_avg"].clone() for name, each in zip(params, own, strict=True)} if steps else zero
    second = {name: each["exp_avg_sq"].clone() for name, each in zip(params, own, strict=True)} if steps else zero
    return AdamW(first, second, steps, (0.9, 0.999), 1e-8), optimizer


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_adamw_point_is_torchs_step(steps: int, clip: float) -> None:
    params = random_params(0)
    state, optimizer = state_after(steps, params)
    gradient = random_params(1)
    ahead = adamw_lookahead(params, gradient, LR, DECAY, state, clip)
    for value, part in zip(params.values(), gradient.values(), strict=True):
        value.grad = part.clone()
    torch.nn.utils.clip_grad_norm_(params.values(), clip or float("inf"))
    optimizer.step()
    for name, value in params.items():
        torch.testing.assert_close(ahead.point[name], value, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_sgd_point_is_torchs_step(clip: float) -> None:
    params, gradient = random_params(0), random_params(1)
    ahead = sgd_lookahead(params, gradient, LR, DECAY, clip)
    for value, part in zip(params.values(), gradient.values(), strict=True):
        value.grad = part.clone()
    torch.nn.utils.clip_grad_norm_(params.values(), clip or float("inf"))
    torch.optim.SGD(params.values(), lr=LR, weight_decay=DECAY).step()
    for name, value in params.items():
        torch.testing.assert_close(ahead.point[name], value, rtol=1e-13, atol=1e-15)


def flat(params: Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


def unflat(vector: Tensor) -> Params:
    parts = vector.split([torch.Size(shape).numel() for shape in SHAPES.values()])
    return {name: part.view(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("kind", ["sgd", "adamw first step", "adamw"])
def test_adjoint_is_the_transposed_jacobian(kind: str, clip: float) -> None:
    """-lr P = d theta' / d g, where the update is written out here for autograd."""
    params = random_params(0)
    state, _ = state_after(0 if "first" in kind else 4, params)
    gradient, v = random_params(1), random_params(2)

    def update(g: Tensor) -> Tensor:
        g = g * torch.clamp(clip / (g.norm() + 1e-6), max=1) if clip else g
        if kind == "sgd":
            return g
        t = state.step + 1
        m = (0.9 * flat(state.exp_avg) + 0.1 * g) / (1 - 0.9**t)
        s = (0.999 * flat(state.exp_avg_sq) + 0.001 * g * g) / (1 - 0.999**t)
        return m / (s.sqrt() + state.eps)

    jacobian = torch.autograd.functional.jacobian(update, flat(gradient))
    if kind == "sgd":
        ahead = sgd_lookahead(params, gradient, LR, DECAY, clip)
    else:
        ahead = adamw_lookahead(params, gradient, LR, DECAY, state, clip)
    found = flat(ahead.adjoint(v))
    # Autograd's own quotient rule cancels at the first step; what is left of its digits bounds the comparison.
    scale = {"adamw first step": 1e-8}.get(kind, 0)
    torch.testing.assert_close(found, jacobian.T @ flat(v), rtol=1e-9, atol=scale)


def test_the_first_step_keeps_its_digits_in_fp32() -> None:
    """u = g / (|g| + eps): du/dg = eps / (|g| + eps)^2, far below the rounding of the quotient rule's terms."""
    gradient = {name: value.float() for name, value in random_params(1).items()}
    zero = {name: torch.zeros_like(value) for name, value in gradient.items()}
    ones = {name: torch.ones_like(value) for name, value in gradient.items()}
    ahead = adamw_lookahead(gradient, gradient, LR, DECAY, AdamW(zero, zero, 0, (0.9, 0.999), 1e-8))
    size = flat(gradient).double().abs()
    torch.testing.assert_close(flat(ahead.adjoint(ones)).double(), 1e-8 / (size + 1e-8) ** 2, rtol=1e-4, atol=0)


def test_parameters_that_never_had_a_gradient_stay_finite() -> None:
    zero = {"a": torch.zeros(3)}
    for steps in (0, 3):
        ahead = adamw_lookahead(zero, zero, LR, DECAY, AdamW(zero, zero, steps, (0.9, 0.999), 1e-8), 1.0)
        assert ahead.point["a"].eq(0).all() and ahead.adjoint({"a": torch.ones(3)})["a"].isfinite().all()
