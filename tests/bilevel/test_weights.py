"""Task weights: Adam, projection, history, and a state that survives JSON bitwise."""

import json

import pytest
import torch

from blades_dist.bilevel.weights import build_weights
from blades_dist.config import BilevelConfig
from blades_dist.tasks import task_set

TASKS = task_set()


def test_moves_against_the_hypergradient_and_stays_nonnegative() -> None:
    weights = build_weights(BilevelConfig(lr=0.4), TASKS)
    gradient = torch.ones(len(TASKS), dtype=torch.float64)
    gradient[0] = -1
    for step in range(1, 6):
        weights.step(gradient, step)
    assert weights.value[0] == pytest.approx(3.0)  # Adam moves by lr a step along a constant gradient
    assert torch.equal(weights.value[1:], torch.zeros(len(TASKS) - 1, dtype=torch.float64))
    assert [step for step, _ in weights.history] == [0, 1, 2, 3, 4, 5]


def test_raw_weights_may_turn_negative() -> None:
    weights = build_weights(BilevelConfig(lr=2.0, nonnegative=False), TASKS)
    weights.step(torch.ones(len(TASKS)), 1)
    assert (weights.value < 0).all()


def test_a_resumed_optimiser_goes_on_bitwise() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [1e-6 * torch.randn(len(TASKS), generator=generator, dtype=torch.float64) for _ in range(6)]
    whole, first = (build_weights(BilevelConfig(), TASKS) for _ in range(2))
    for step, gradient in enumerate(gradients):
        whole.step(gradient, step + 1)
        if step < 3:
            first.step(gradient, step + 1)
    second = build_weights(BilevelConfig(), TASKS)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(3, 6):
        second.step(gradients[step], step + 1)
    assert torch.equal(second.value, whole.value)
    assert second.history == whole.history


def test_nonfinite_gradient_changes_nothing_and_names_the_task() -> None:
    weights = build_weights(BilevelConfig(), TASKS)
    gradient = torch.zeros(len(TASKS))
    gradient[TASKS.names.index("make")] = float("nan")
    with pytest.raises(FloatingPointError, match="step 7: hypergradient of make"):
        weights.step(gradient, 7)
    assert torch.equal(weights.value, torch.ones(len(TASKS), dtype=torch.float64))


def test_start_values_by_name_must_be_complete() -> None:
    with pytest.raises(ValueError, match="needs exactly the tasks"):
        build_weights(BilevelConfig(initial={"iso": 1.0}), TASKS)


def test_a_state_of_other_tasks_is_refused() -> None:
    state = build_weights(BilevelConfig(), task_set(flash=True)).state_dict()
    with pytest.raises(ValueError, match="flash"):
        build_weights(BilevelConfig(), TASKS).load_state_dict(state)
