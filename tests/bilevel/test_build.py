"""Task weights, whatever moves them: start values, states that survive JSON bitwise, going back, digests, errors."""

import json
import math
from typing import Any

import pytest
import torch

from blades_dist.bilevel.build import TaskWeights, build_weights
from blades_dist.config import BilevelConfig
from blades_dist.tasks import task_set

TASKS = task_set()
K = len(TASKS)
MOVING: dict[str, dict[str, Any]] = {
    "plain": {},
    "whole": {"normalise": True, "frozen": ["make", "iso"], "initial": [0.5] + [1.5] * (K - 1), "adam_eps": 1e-12},
    "raw": {"nonnegative": False, "initial": 1e-4},
    "uncertainty": {"weighting": "uncertainty", "initial": 0.3},
    "dwa": {"weighting": "dwa", "dwa_window": 3},
}
STILL: dict[str, dict[str, Any]] = {"equal": {"weighting": "equal"}, "fixed": {"weighting": "fixed", "initial": 0.7}}


def build(**config: Any) -> TaskWeights:
    return build_weights(BilevelConfig.model_validate(config), TASKS)


def advance(weights: TaskWeights, first: int, last: int) -> None:
    """Steps first..last - 1 as a training loop takes them, on numbers that depend on the step alone."""
    for at in range(first, last):
        generator = torch.Generator().manual_seed(at)
        gradient = 1e-6 * torch.randn(K, generator=generator, dtype=torch.float64)
        losses = torch.rand(K, generator=generator)
        losses[at % K] = 0
        if weights.learns:
            weights.step(gradient, at + 1)
        weights.observe(losses, at + 1)


def same(one: TaskWeights, other: TaskWeights) -> bool:
    """Bitwise: JSON text is the same only for the same bits."""
    return json.dumps(one.state_dict()) == json.dumps(other.state_dict()) and one.digest() == other.digest()


@pytest.mark.parametrize("config", [*MOVING.values(), *STILL.values()], ids=[*MOVING, *STILL])
@pytest.mark.parametrize("at", [0, 1, 5, 6])
def test_a_resumed_state_goes_on_bitwise(config: dict[str, Any], at: int) -> None:
    whole, first, second = build(**config), build(**config), build(**config)
    advance(whole, 0, 11)
    advance(first, 0, at)
    advance(second, 20, 23)  # what was there before is replaced wholly
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert same(first, second)
    advance(second, at, 11)
    assert same(whole, second) and torch.equal(whole.value, second.value)
    assert second.history == whole.history


@pytest.mark.parametrize("config", [*MOVING.values(), *STILL.values()], ids=[*MOVING, *STILL])
@pytest.mark.parametrize("at", [0, 1, 5, 6])
def test_restore_undoes_everything_bitwise(config: dict[str, Any], at: int) -> None:
    weights, untouched = build(**config), build(**config)
    advance(weights, 0, at)
    advance(untouched, 0, at)
    value, snapshot = weights.value, weights.snapshot()
    for _ in range(2):  # a snapshot can be used again
        advance(weights, at, at + 5)
        weights.restore(snapshot)
        assert same(weights, untouched) and weights.value is value
    advance(weights, at, 11)
    advance(untouched, at, 11)
    assert same(weights, untouched)


@pytest.mark.parametrize("config", MOVING.values(), ids=MOVING)
def test_the_digest_tells_any_bit_of_the_state(config: dict[str, Any]) -> None:
    weights = build(**config)
    advance(weights, 0, 8)
    state = weights.state_dict()
    assert 0 <= weights.digest() < 2**63
    seen = {weights.digest()}
    for changed in _neighbours(state):
        other = build(**config)
        other.load_state_dict(changed)
        seen.add(other.digest())
    numbers = [value for key, value in state.items() if key not in ("weighting", "names", "frozen", "history")]
    assert len(seen) == 1 + sum(len(value) if isinstance(value, list) else 1 for value in numbers)
    # How lambda came there does not matter for where it goes.
    other = build(**config)
    other.load_state_dict({**state, "history": state["history"][:2]})
    assert other.digest() == weights.digest()


def _neighbours(state: dict[str, Any]) -> list[dict[str, Any]]:
    """``state`` with one number changed by the least possible, for every number that lambda's future depends on."""
    found = []
    for key, value in state.items():
        if isinstance(value, int):
            found.append({**state, key: value + 1})
        elif isinstance(value, list) and key not in ("names", "frozen", "history"):
            for i, number in enumerate(value):
                found.append({**state, key: [*value[:i], math.nextafter(number, math.inf), *value[i + 1 :]]})
    return found


@pytest.mark.parametrize("config", MOVING.values(), ids=MOVING)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_change_nothing_and_name_the_task(config: dict[str, Any], bad: float) -> None:
    weights, untouched = build(**config), build(**config)
    advance(weights, 0, 4)
    advance(untouched, 0, 4)
    numbers = torch.zeros(K)
    numbers[TASKS.names.index("make")] = bad  # refused of a frozen task too
    what = "hypergradient" if weights.learns else "train loss"
    with pytest.raises(FloatingPointError, match=f"step 7: {what} of make is not finite"):
        (weights.step if weights.learns else weights.observe)(numbers, 7)
    assert same(weights, untouched)


@pytest.mark.parametrize("config", MOVING.values(), ids=MOVING)
def test_finite_numbers_that_overflow_within_change_nothing(config: dict[str, Any]) -> None:
    weights = build(**config)
    move = weights.step if weights.learns else weights.observe
    digest, history = weights.digest(), list(weights.history)
    with pytest.raises(FloatingPointError, match=r"step \d: .*overflowed"):
        for at in range(1, 8):
            digest, history = weights.digest(), list(weights.history)
            # Squares of it overflow, and so does a sum of two.
            move(torch.full((K,), 1.5e308, dtype=torch.float64), at)
    assert weights.digest() == digest and weights.history == history


@pytest.mark.parametrize("config", [*STILL.values()], ids=[*STILL])
def test_weights_that_stay_put(config: dict[str, Any]) -> None:
    weights = build(**config)
    start = weights.value.clone()
    weights.observe(torch.full((K,), math.nan), 1)  # not looked at
    assert torch.equal(weights.value, start) and weights.history == [(0, start.tolist())]
    assert not weights.learns
    with pytest.raises(RuntimeError, match="no outer steps"):
        weights.step(torch.zeros(K), 1)


@pytest.mark.parametrize("config", [*MOVING.values()], ids=[*MOVING])
def test_any_dtype_is_taken_and_a_wrong_shape_is_not(config: dict[str, Any]) -> None:
    weights, narrow = build(**config), build(**config)
    for one, dtype in ((weights, torch.float64), (narrow, torch.bfloat16)):
        move = one.step if one.learns else one.observe
        for at in range(1, 7):
            move((torch.arange(K) + at).to(dtype), at)
        with pytest.raises(ValueError, match="1,"):
            move(torch.ones(1), 7)
    assert same(weights, narrow) and narrow.value.dtype == torch.float64


def test_the_report_holds_the_extremes_of_the_whole_trajectory() -> None:
    weights = build(lr=0.4, frozen=["make"])
    for at, sign in enumerate([1, 1] + [-1] * 12, start=1):
        weights.step(torch.full((K,), float(sign)), at)
    report = json.loads(json.dumps(weights.report()))
    values = [values[0] for _, values in weights.history]
    assert report["names"] == list(TASKS.names) and report["weighting"] == "bilevel" and report["moves"] == 14
    assert report["frozen"] == ["make"] and report["normalise"] is False
    assert report["start"]["iso"] == 1 and report["final"]["iso"] == values[-1]
    assert report["min"]["iso"] == min(values) < 1 < max(values) == report["max"]["iso"]
    assert {report[key]["make"] for key in ("start", "final", "min", "max")} == {1}


def test_start_values_by_name_by_order_or_for_all() -> None:
    values = [1 + i / 8 for i in range(K)]
    by_name = build(weighting="fixed", initial=dict(reversed(list(zip(TASKS.names, values, strict=True)))))
    assert by_name.value.tolist() == build(weighting="fixed", initial=values).value.tolist() == values
    assert build(weighting="fixed", initial=3).value.tolist() == [3.0] * K
    assert by_name.as_dict() == dict(zip(TASKS.names, values, strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"initial": {"iso": 1.0}}, "initial: needs exactly the tasks iso, .*given: iso$"),
        ({"initial": [1.0, 2.0]}, "initial: needs exactly the tasks iso, .*in this order; given: 2 values for 11"),
        ({"initial": math.nan}, "initial: not finite: iso"),
        ({"initial": [1.0] * (K - 1) + [-1.0]}, "initial: negative, .*nonnegative=false: face_fine$"),
        ({"initial": [0.0] + [1.0] * (K - 1), "weighting": "uncertainty"}, "initial: .*> 0 is needed; not so: iso$"),
        ({"frozen": ["iso", "flash"]}, "frozen: no such task: flash; the run has iso"),
        ({"frozen": list(TASKS.names)}, "frozen: every task is frozen; use bilevel.weighting=fixed"),
        ({"frozen": ["iso"], "normalise": True, "initial": 11.0}, "frozen: the frozen weights sum to 11 and leave"),
        ({"frozen": ["iso"], "normalise": True, "initial": [1.0] + [0.0] * (K - 1)}, "initial: every weight that is"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**config)


def test_a_state_of_another_kind_is_refused_with_both_kinds_said() -> None:
    with_flash = build_weights(BilevelConfig(), task_set(flash=True)).state_dict()
    with pytest.raises(ValueError, match=r"checkpoint has .*flash.*; this run has .*tasks iso"):
        build().load_state_dict(with_flash)
    with pytest.raises(ValueError, match=r"checkpoint has weighting bilevel .*; this run has weighting dwa "):
        build(weighting="dwa").load_state_dict(build().state_dict())
    with pytest.raises(ValueError, match=r"checkpoint has .*, frozen: make; this run has "):
        build().load_state_dict(build(frozen=["make"]).state_dict())


def test_a_state_from_before_there_was_a_choice_is_a_bilevel_one() -> None:
    weights, second = build(), build()
    advance(weights, 0, 3)
    state = {key: value for key, value in weights.state_dict().items() if key not in ("weighting", "frozen")}
    assert set(state) == {"names", "value", "steps", "exp_avg", "exp_avg_sq", "history"}
    second.load_state_dict(state)
    assert same(weights, second)
    with pytest.raises(ValueError, match="weighting bilevel"):
        build(weighting="fixed").load_state_dict(state)


def test_a_state_is_not_changed_by_what_comes_after() -> None:
    weights = build()
    state = weights.state_dict()
    before = json.dumps(state)
    advance(weights, 0, 3)
    assert json.dumps(state) == before
