"""The population stability index and its alarm."""

import numpy as np
import pytest

from blades_dist.serving.drift import Drift, calibration_histogram, counted, population_stability_index


def test_index_against_a_naive_sum():
    e, o = [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]
    expected = sum((b - a) * np.log(b / a) for a, b in zip(e, o, strict=True))
    assert population_stability_index([20, 30, 50], [4, 4, 2]) == pytest.approx(expected, rel=1e-12)
    assert population_stability_index(o, e) == pytest.approx(expected, rel=1e-12)  # symmetric
    assert population_stability_index([1, 2, 3], [10, 20, 30]) == 0
    assert np.isfinite(population_stability_index([1, 0], [0, 1])) and population_stability_index([1, 0], [0, 1]) > 5
    for bad in (([1], [1, 2]), ([0, 0], [1, 2]), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="histograms"):
            population_stability_index(*bad)


def test_by_chance_it_is_as_large_as_theory_says():
    random, found = np.random.default_rng(0), []
    for _ in range(300):
        calibration, latest = random.normal(size=1000), random.normal(size=500)
        found.append(Drift(calibration, 500, 0.25).add(latest)[0])
    assert np.mean(found) == pytest.approx(9 * (1 / 1000 + 1 / 500), rel=0.15)


def test_the_alarm_is_told_once_a_crossing():
    random = np.random.default_rng(1)
    drift = Drift(random.normal(size=2000), 300, 0.25)
    assert drift.add(random.normal(size=100)) == (None, False)
    index, crossed = drift.add(random.normal(size=200))
    assert index < 0.1 and not crossed
    crossings = [drift.add(random.normal(2, size=50))[1] for _ in range(6)]
    assert sum(crossings) == 1
    assert not any(drift.add(random.normal(size=50))[1] for _ in range(6))
    assert sum(drift.add(random.normal(2, size=50))[1] for _ in range(6)) == 1


def test_scores_that_are_all_alike_have_a_histogram_too():
    for scores in (np.zeros(5), np.array([3.0])):
        histogram = calibration_histogram(scores)
        assert sum(histogram.counts) == len(scores) and histogram.edges == sorted(set(histogram.edges))
        assert Drift(scores, 100, 0.25).add([0.0] * 100)[0] is not None
    assert counted(np.array([-9, 0, 1, 9.0]), np.array([0, 0.5, 1])).tolist() == [2, 2]
