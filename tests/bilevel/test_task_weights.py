"""Each weighting against a naive account of the same formulas, written out here task by task."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from blades_dist.bilevel.build import TaskWeights, build_weights
from blades_dist.config import BilevelConfig
from blades_dist.tasks import task_set

TASKS = task_set()
K = len(TASKS)


def build(**config: Any) -> TaskWeights:
    return build_weights(BilevelConfig.model_validate(config), TASKS)


def random_rows(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adam(gradients: list[float], lr: float, eps: float) -> float:
    """The last of Adam's moves along ``gradients`` (Kingma, Ba 2015, algorithm 1)."""
    m = v = 0.0
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    t = len(gradients)
    return -lr * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + eps)


@pytest.mark.parametrize(("nonnegative", "normalise"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("frozen", [[], ["make", "iso"]])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_bilevel_is_adam_then_projection_then_scaling(
    nonnegative: bool, normalise: bool, frozen: list[str], eps: float
) -> None:
    initial = [0.2 + 0.1 * i for i in range(K)]
    weights = build(initial=initial, lr=0.1, adam_eps=eps, nonnegative=nonnegative, frozen=frozen, normalise=normalise)
    gradients = 1e-3 * random_rows(20)
    gradients[:, 1:4] = gradients[:, 1:4].abs()  # down to 0 and, unprojected, below
    moving = [name not in frozen for name in TASKS.names]
    expected = _scaled(initial, moving) if normalise else list(initial)
    assert weights.value.tolist() == pytest.approx(expected, rel=1e-14)
    for t in range(1, len(gradients) + 1):
        weights.step(gradients[t - 1], t)
        for i in range(K):
            if moving[i]:
                expected[i] += adam(gradients[:t, i].tolist(), 0.1, eps)
                if nonnegative:
                    expected[i] = max(expected[i], 0.0)
        if normalise:
            expected = _scaled(expected, moving)
            assert float(weights.value.sum()) == pytest.approx(K, rel=1e-14)
        assert weights.value.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-14)
        assert all(weights.value[i] == initial[i] for i in range(K) if not moving[i])  # bitwise
    assert [step for step, _ in weights.history] == list(range(21))
    if nonnegative:
        assert min(min(values) for _, values in weights.history) == 0  # the projection had something to do
    else:
        assert (weights.value < 0).any()


def _scaled(values: list[float], moving: list[bool]) -> list[float]:
    kept = sum(value for value, moves in zip(values, moving, strict=True) if not moves)
    total = sum(value for value, moves in zip(values, moving, strict=True) if moves)
    return [value * (K - kept) / total if moves else value for value, moves in zip(values, moving, strict=True)]


def test_bilevel_moves_by_lr_along_a_constant_hypergradient() -> None:
    weights = build(lr=0.4)
    gradient = torch.ones(K, dtype=torch.float64)
    gradient[0] = -1
    for step in range(1, 6):
        weights.step(gradient, step)
    assert weights.learns
    assert weights.value[0] == pytest.approx(3.0)
    assert torch.equal(weights.value[1:], torch.zeros(K - 1, dtype=torch.float64))


def test_a_smaller_adam_eps_lets_small_hypergradients_move_lambda() -> None:
    usual, small = build(), build(adam_eps=1e-15)
    for weights in (usual, small):
        weights.step(torch.full((K,), 1e-9), 1)
    assert 1 - float(usual.value[0]) == pytest.approx(3e-4 / 11, rel=1e-6)
    assert 1 - float(small.value[0]) == pytest.approx(3e-4, rel=1e-5)


@pytest.mark.parametrize("frozen", [[], ["make"]])
def test_weights_that_all_reach_zero_cannot_be_normalised_and_nothing_changes(frozen: list[str]) -> None:
    weights = build(lr=2.0, normalise=True, frozen=frozen)
    digest = weights.digest()
    with pytest.raises(FloatingPointError, match=r"set bilevel\.normalise=false, or a smaller"):
        weights.step(torch.ones(K), 1)
    assert weights.digest() == digest and len(weights.history) == 1
    assert weights.value.tolist() == [1.0] * K


def test_a_frozen_task_ignores_its_hypergradient() -> None:
    one, other = build(frozen=["make"], normalise=True), build(frozen=["make"], normalise=True)
    gradients = random_rows(3)
    for at, gradient in enumerate(gradients, start=1):
        one.step(gradient, at)
        changed = gradient.clone()
        changed[TASKS.names.index("make")] = 1e6
        other.step(changed, at)
    assert one.digest() == other.digest()


def test_uncertainty_descends_its_objective() -> None:
    """The gradient comes from autograd of the stated objective, Adam from torch over s itself."""
    initial = [0.2 + 0.3 * i for i in range(K)]
    weights = build(weighting="uncertainty", initial=initial, lr=0.05, adam_eps=1e-6)
    assert not weights.learns
    s = torch.tensor([-math.log(value) for value in initial], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([s], lr=0.05, eps=1e-6)
    for at, losses in enumerate(random_rows(20).abs(), start=1):
        losses[at % K] = 0  # no label in this batch: no term
        optimiser.zero_grad()
        sum(torch.exp(-s[i]) * losses[i] + s[i] for i in range(K) if losses[i] != 0).backward()
        optimiser.step()
        weights.observe(losses, at)
        torch.testing.assert_close(weights.value, torch.exp(-s.detach()), rtol=1e-12, atol=0)
    assert [step for step, _ in weights.history] == list(range(21))


def test_uncertainty_starts_at_initial_and_ends_at_one_over_the_loss() -> None:
    weights = build(weighting="uncertainty", initial=0.25, lr=0.02)
    assert weights.value.tolist() == pytest.approx([0.25] * K, rel=1e-15)
    losses = torch.linspace(0.2, 2.0, K, dtype=torch.float64)
    for at in range(1, 3000):
        weights.observe(losses, at)
    torch.testing.assert_close(weights.value, 1 / losses, rtol=1e-3, atol=0)


def test_a_task_that_is_never_labelled_keeps_its_uncertainty_weight() -> None:
    weights = build(weighting="uncertainty", lr=0.1)
    losses = torch.full((K,), 0.5)
    losses[3] = 0
    for at in range(1, 50):
        weights.observe(losses, at)
    assert weights.value[3] == 1 and (weights.value[4:] > 1.5).all()


@pytest.mark.parametrize("window", [1, 4])
def test_dwa_against_a_naive_loop(window: int) -> None:
    initial = [1 + 0.1 * i for i in range(K)]
    weights = build(weighting="dwa", initial=initial, dwa_window=window, dwa_temperature=1.5)
    assert not weights.learns
    rows = random_rows(5 * window).abs()
    rows[1, 2] = rows[-1, 3] = 0  # one batch without labels
    rows[2 * window : 3 * window, 5] = 0  # a whole window
    expected, entries = initial, [0]
    for t in range(1, len(rows) + 1):
        weights.observe(rows[t - 1], t)
        if t % window == 0 and t >= 2 * window:
            rates = [
                _rate(rows[t - window : t, i].tolist(), rows[t - 2 * window : t - window, i].tolist()) for i in range(K)
            ]
            powers = [math.exp(rate / 1.5) for rate in rates]
            expected = [K * power / sum(powers) for power in powers]
            entries.append(t)
            if t // window in (3, 4):
                assert rates[5] == 1
        assert weights.value.tolist() == pytest.approx(expected, rel=1e-13)
    assert [step for step, _ in weights.history] == entries
    assert weights.value.sum() == pytest.approx(K)


def _rate(last: list[float], before: list[float]) -> float:
    means = []
    for losses in (last, before):
        seen = [loss for loss in losses if loss != 0]
        if not seen:
            return 1.0
        means.append(sum(seen) / len(seen))
    return min(max(means[0], 1e-3) / max(means[1], 1e-3), 2.0)


@pytest.mark.parametrize(
    ("before", "last", "rate"),
    [(2e-6, 8e-4, 1), (-5e-4, 5e-4, 1), (5e-4, -5e-4, 1), (1e-5, 0.5, 2), (0.5, -1e-4, 2e-3), (0.5, 0.25, 0.5)],
)
def test_dwa_is_not_ruled_by_a_solved_tasks_noise_around_zero(before: float, last: float, rate: float) -> None:
    """Fidelity losses go slightly negative: a ratio of two such means may be anything."""
    weights = build(weighting="dwa", dwa_window=1)
    for at, value in enumerate((before, last), start=1):
        losses = torch.full((K,), 0.3)
        losses[4] = value
        weights.observe(losses, at)
    power = math.exp(rate / 2)
    assert float(weights.value[4]) == pytest.approx(K * power / (power + (K - 1) * math.exp(0.5)), rel=1e-5)
    assert weights.value.sum() == pytest.approx(K)


def test_dwa_gives_more_weight_to_what_falls_slowly() -> None:
    weights = build(weighting="dwa", dwa_window=2)
    for at in range(1, 5):
        losses = torch.full((K,), 1.0 if at <= 2 else 0.5)
        losses[4] = 1.0
        weights.observe(losses, at)
    assert weights.value.argmax() == 4
    assert float(weights.value[4] / weights.value[0]) == pytest.approx(math.exp(0.5 / 2))
