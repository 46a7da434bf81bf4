import numpy as np
import pytest

from blades_dist.evaluate.predictions import Pair, Predictions, join


def _predictions(n=3, **changed):
    values = {
        "scores": np.arange(n, dtype=float),
        "flagged": np.arange(n) == 0,
        "unsure": np.arange(n) == 1,
        "p_values": np.full(n, 0.5),
        "probability": np.full(n, 0.5),
    }
    return Predictions(**(values | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": [1.0, 2.0, 3.0]}, "scores must be an array of one dimension"),
        ({"scores": np.zeros((3, 1))}, "scores must be an array of one dimension"),
        ({"scores": np.arange(3)}, "scores is int64, not floating point"),
        ({"scores": np.array([0, np.nan, 1])}, r"scores\[1\] is nan, not finite"),
        ({"flagged": np.zeros(2, bool)}, "flagged has 2 entries, scores has 3"),
        ({"flagged": None}, "flagged must be an array"),
        ({"flagged": np.zeros(3)}, "flagged is float64, not bool"),
        ({"p_values": np.array([0.1, np.inf, 0.2])}, r"p_values\[1\] is inf, not finite"),
        ({"p_values": np.array([0.1, 1.5, 0.2])}, "p_values ranges from 0.1 to 1.5, not within 0 to 1"),
        ({"probability": np.array([-0.1, 1, 0.2])}, "probability ranges from -0.1 to 1"),
        ({"probability": np.zeros(4)}, "probability has 4 entries"),
    ],
)
def test_what_is_wrong_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        _predictions(**changed)


def test_any_number_of_images_and_optional_fields():
    assert len(_predictions(0)) == 0 and len(_predictions(1, unsure=np.zeros(1, bool))) == 1
    assert _predictions(p_values=None, probability=None).p_values is None


def test_both_sides_have_the_same_fields():
    with pytest.raises(ValueError, match="p_values of both sides"):
        Pair(_predictions(), _predictions(p_values=None))


def test_join():
    whole = join([_predictions(2), _predictions(3)])
    assert whole.scores.tolist() == [0, 1, 0, 1, 2] and whole.flagged.sum() == whole.unsure.sum() == 2
    assert join([_predictions(2), _predictions(3, probability=None)]).probability is None
    with pytest.raises(ValueError, match="nothing to join"):
        join([])
