"""Rates, calibration errors and p-values by hand, against scikit-learn, and on many small problems."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score

from blades_dist.evaluate import calibration_error, rates
from blades_dist.evaluate.calibration_error import BINS

FLAGS = st.lists(st.booleans(), min_size=1, max_size=30).map(lambda x: np.array(x, bool))
CHANCES = st.lists(st.floats(0, 1), min_size=2, max_size=30).map(np.array)


@given(FLAGS, FLAGS)
@settings(max_examples=60, deadline=None)
def test_rates_are_those_of_scikit_learn(real, generated):
    truth, called = np.r_[np.zeros(len(real)), np.ones(len(generated))], np.r_[real, generated]
    found = rates.confusion(real, generated)
    assert found["F1"].value == pytest.approx(f1_score(truth, called, zero_division=0))
    accuracy = rates.balanced_accuracy(real, [generated])
    assert accuracy.value == pytest.approx(balanced_accuracy_score(truth, called))
    for estimate in (*found.values(), accuracy):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_rates_of_several_heads_are_their_mean_on_one_set_of_photographs():
    heads = [np.array([True, False, False, False]), np.array([True, True, False, False])]
    found = rates.share(heads, True)
    assert found.value == 1.5 / 4 and found.n_real == 4
    assert (found.low, found.high) == (rates.wilson_bounds(1, 4)[0], rates.wilson_bounds(2, 4)[1])
    generated = np.array([True, False])
    assert rates.confusion(heads, generated)["FPR"] == found
    assert rates.confusion(heads, generated)["F1"].value == pytest.approx(2 * 1 / (2 * 1 + 1.5 + 1))
    assert rates.balanced_accuracy(heads, [generated, generated]).value == pytest.approx((2.5 / 4 + 0.5) / 2)
    with pytest.raises(ValueError, match="same photographs"):
        rates.share([heads[0], heads[1][:2]], True)


def test_balanced_share_by_hand():
    found = rates.balanced_share(np.array([True, False]), [np.array([True]), np.array([False, False])])
    assert found.value == pytest.approx((0.5 + (1 + 0) / 2) / 2)
    assert (found.n_real, found.n_generated) == (2, 3)


def test_expected_calibration_error_by_hand():
    # Weights: photographs 1/4 each, generated 1/2. Bins hold (0.01, 0.02 photographs) and (0.9 generated).
    found = calibration_error.reliability(np.array([0.01, 0.02]), [np.array([0.9])], resamples=100)
    assert found.ece.value == pytest.approx(abs(0.25 * 0.03 - 0) + 0.5 * 0.1)
    assert found.brier.value == pytest.approx(0.25 * (0.01**2 + 0.02**2) + 0.5 * 0.1**2)
    assert found.weight[0] == 0.5 and found.weight[13] == 0.5 and found.weight.sum() == 1
    assert found.observed[0] == 0 and found.observed[13] == 1 and np.isnan(found.observed[5])
    assert math.isnan(found.ece.low) and (found.ece.n_real, found.ece.n_generated) == (2, 1)


def test_probabilities_at_the_ends_have_a_bin():
    found = calibration_error.reliability(np.array([0.0, 1.0]), [np.array([1.0, 0.0])], resamples=100)
    assert found.weight[0] == found.weight[BINS - 1] == 0.5 and found.ece.value == 0.5


@given(CHANCES, CHANCES, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_calibration_does_not_depend_on_the_class_ratio(real, generated, times):
    one = calibration_error.reliability(real, [generated], resamples=100)
    more = calibration_error.reliability(np.tile(real, times), [np.tile(generated, 2 * times)], resamples=100)
    assert more.ece.value == pytest.approx(one.ece.value) and more.brier.value == pytest.approx(one.brier.value)
    truth = np.r_[np.zeros(len(real)), np.ones(len(generated))]
    weights = np.r_[np.full(len(real), 0.5 / len(real)), np.full(len(generated), 0.5 / len(generated))]
    expected = brier_score_loss(truth, np.r_[real, generated], sample_weight=weights)
    assert one.brier.value == pytest.approx(expected)
    assert 0 <= one.ece.low <= one.ece.value <= one.ece.high <= 1


def test_generators_count_alike_and_heads_too():
    rng = np.random.default_rng(0)
    real, sets = rng.random((2, 50)) / 2, [rng.random(400), rng.random(10)]
    found = calibration_error.reliability(real, sets, resamples=100)
    weights = [np.full(100, 0.5 / 100), np.full(400, 0.25 / 400), np.full(10, 0.25 / 10)]
    values, truth = np.concatenate([real.ravel(), *sets]), np.r_[np.zeros(100), np.ones(410)]
    assert found.brier.value == pytest.approx(brier_score_loss(truth, values, sample_weight=np.concatenate(weights)))
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (values >= low) & ((values < low + 1 / BINS) | (low == (BINS - 1) / BINS))
        expected += abs(float(np.sum(np.concatenate(weights)[inside] * (truth - values)[inside])))
    assert found.ece.value == pytest.approx(expected)
    assert calibration_error.reliability(real, [*sets, np.zeros(0)][1:], resamples=100).ece.n_generated == 10
    with pytest.raises(ValueError, match="2 heads, but 3 generators"):
        calibration_error.reliability(real, [*sets, sets[0]])


@pytest.mark.parametrize(("real", "generated"), [([], [0.5]), ([0.5], []), ([], [])])
def test_no_calibration_without_a_side(real, generated):
    found = calibration_error.reliability(np.array(real), [np.array(generated)])
    assert math.isnan(found.ece.value) and math.isnan(found.brier.value)
    assert (found.ece.n_real, found.ece.n_generated) == (len(real), len(generated))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_interval_of_the_calibration_error_covers_the_truth(temperature):
    """Scores of N(1, 1) and N(-1, 1): the true probability is the logistic function of -2 score."""
    rng, hits = np.random.default_rng(1), 0

    def chances(shift, n):
        return 1 / (1 + np.exp(2 * rng.normal(shift, 1, n) / temperature))

    truth = calibration_error.reliability(chances(1, 300_000), [chances(-1, 300_000)], resamples=1).ece.value
    for trial in range(60):
        found = calibration_error.reliability(chances(1, 150), [chances(-1, 150)], resamples=200, seed=trial).ece
        hits += found.low <= truth <= found.high
    assert hits >= 52  # a binomial of 60 trials at 95% stays there with probability above 0.99


def test_p_value_error_by_hand():
    # Shares at most x: 1/2 from 0.2 on, 1 from 0.4 on. Largest distance: 1 - 0.4.
    assert calibration_error.p_value_error(np.array([0.2, 0.4])).value == pytest.approx(0.6)
    assert calibration_error.p_value_error(np.array([1.0, 1.0])).value == 1  # nothing is ever flagged
    one = calibration_error.p_value_error(np.array([0.5]))
    assert (one.value, one.low, one.n_real) == (0.5, 0, 1)
    assert math.isnan(calibration_error.p_value_error(np.array([])).value)


def test_p_value_error_of_exact_p_values_is_within_its_band():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(200):
        hits += calibration_error.p_value_error(rng.random(80)).low == 0
    assert hits >= 180


def test_measured_fpr_counts_rounded_levels():
    p_values = np.arange(1, 101) / 101  # conformal p-values of 100 calibration scores, one each
    assert calibration_error.measured_fpr(p_values, 1 / 101).value == 0.01
    assert calibration_error.measured_fpr(np.array([0.05, 0.1, 0.7]), 0.05) == rates.rate(1, 3, True)
    assert calibration_error.measured_fpr([np.array([0.05, 0.2]), np.array([0.01, 0.02])], 0.05).value == 0.75
