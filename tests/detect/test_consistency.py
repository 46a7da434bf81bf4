import json
import math

import numpy as np
import pytest
import torch

from blades_dist.detect.consistency import (
    SMALLEST,
    ConsistencyCalibration,
    calibrate_consistency,
    claimed_labels,
    log_probabilities,
)
from blades_dist.tasks import TAGS, task_set, vocabulary

CLASSES = {task.name: list(task.classes) for task in task_set().tasks}
WIDTH = task_set().width


def test_calibration_holds_the_probability_of_what_each_photograph_claims():
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(40, WIDTH)))
    labels = np.stack([random.integers(-1, len(vocabulary(tag)), 40) for tag in TAGS], 1)
    found = calibrate_consistency(logits, CLASSES, labels, TAGS)
    assert "flash" not in found.tags and set(found.tags) == set(TAGS) - {"flash"}  # the task is switched off
    columns = task_set().columns
    for column, tag in enumerate(found.tags):
        own = torch.softmax(logits[:, columns[tag]], 1).numpy()
        for row in range(40):
            label = labels[row, TAGS.index(tag)]
            value = found.log_probability[row, column]
            assert math.isnan(value) if label < 0 else value == pytest.approx(math.log(own[row, label]))


def test_p_values_by_hand():
    # 20 photographs claim iso, 24 claim make, 19 of them both.
    iso = np.r_[np.arange(-20.0, 0), np.full(5, np.nan)]
    make = np.r_[np.nan, -np.arange(1.0, 25)]
    calibration = ConsistencyCalibration(("iso", "make"), np.stack([iso, make], 1))
    both = calibration.assess({"iso": 1, "make": 3, "white_balance": 0}, {"iso": -15.5, "make": -0.5})
    assert both.tags["iso"].claimed == "medium" and both.tags["make"].claimed == "Canon"
    assert both.tags["iso"].p_value == pytest.approx((1 + 5) / 21) and both.tags["make"].p_value == 1
    assert both.tags["iso"].probability == pytest.approx(math.exp(-15.5))
    means = ((iso + make) / 2)[1:20]
    assert both.compared_with == 19 and both.p_value == pytest.approx((1 + (means <= -8).sum()) / 20)
    assert calibration.assess({"white_balance": 0}, {"white_balance": -1.0}) is None
    assert calibration.assess({"iso": -1}, {"iso": -1.0}) is None


def test_too_few_to_compare_with_give_no_p_value():
    calibration = ConsistencyCalibration(("iso",), np.full((SMALLEST - 1, 1), -1.0))
    found = calibration.assess({"iso": 0}, {"iso": -3.0})
    assert found.p_value is None and found.tags["iso"].p_value is None and found.compared_with == SMALLEST - 1


def test_claims_that_fit_have_uniform_p_values():
    # Faces and calibration photographs alike: P(p <= a) <= a, whatever tags a face happens to claim.
    random = np.random.default_rng(1)

    def draw(n):
        rows = random.normal(size=(n, 3))
        rows[random.random((n, 3)) < 0.3] = np.nan
        return rows[~np.isnan(rows).all(1)]

    calibration = ConsistencyCalibration(("iso", "aperture", "make"), draw(4000))
    small, n = 0, 0
    for row in draw(3000):
        claimed = {tag: 0 for tag, value in zip(calibration.tags, row, strict=True) if not math.isnan(value)}
        found = calibration.assess(claimed, dict(zip(calibration.tags, row, strict=True)))
        small, n = small + (found.p_value <= 0.1), n + 1
    assert small / n == pytest.approx(0.1, abs=0.02)


def test_log_probabilities_and_labels():
    logits = torch.zeros(2, WIDTH)
    found = log_probabilities(logits, CLASSES)
    assert set(found) == set(TAGS) - {"flash"} and torch.allclose(
        found["make"].exp(), torch.full((2, 10), 0.1).double()
    )
    assert log_probabilities(torch.zeros(2, 0), {}) == {}
    claims = claimed_labels({"iso": 800.0, "make": "Canon", "aperture": None}, {"iso": (100.0, 400.0)})
    assert claims == {"iso": 2, "make": vocabulary("make").index("Canon")}
    assert json.dumps(claims)
