"""The one-logit head of imported detectors."""

import numpy as np
import pytest

from blades_dist.detect.heads.linear import LinearHead

HEAD = LinearHead(np.array([1.0, -2.0, 0.5]), np.array([0.25]), temperature=2.0)


def test_scores_and_probabilities_by_hand() -> None:
    features = np.array([[1, 0, 0], [0, 1, 2]], np.float32)
    scores = HEAD.score(features)
    assert scores.tolist() == [-1.25, 0.75] and scores.dtype == np.float64
    assert HEAD.probability(scores) == pytest.approx([1 / (1 + np.exp(-0.625)), 1 / (1 + np.exp(0.375))])
    assert HEAD.probability(np.array([-1e4, 1e4])).tolist() == [1.0, 0.0]
    assert HEAD.score(np.empty((0, 3), np.float32)).shape == (0,)
    with pytest.raises(ValueError, match=r"expected features \(n, 3\)"):
        HEAD.score(features[:, :2])


def test_what_is_stored_comes_back() -> None:
    back = LinearHead.from_tensors(HEAD.tensors())
    assert back.dimensions == 3 and back.temperature == 2.0
    assert np.array_equal(back.weight, HEAD.weight) and np.array_equal(back.bias, HEAD.bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "'bias' is missing"),
        ({"weight": np.array([1.0, np.nan, 0.0])}, "'weight' is not finite"),
        ({"weight": np.ones(3, np.float32)}, "'weight' is not finite float64"),
        ({"weight": np.ones((1, 3))}, "do not fit each other"),
        ({"bias": np.ones(2)}, "do not fit each other"),
        ({"temperature": np.zeros(1)}, "expected one positive number"),
        ({"temperature": np.ones(2)}, "expected one positive number"),
    ],
)
def test_damaged_parameters_are_named(change: dict[str, np.ndarray | None], message: str) -> None:
    changed = {name: value for name, value in {**HEAD.tensors(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        LinearHead.from_tensors(changed)
