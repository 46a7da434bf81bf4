import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, kstest

from blades_dist.config import MixtureConfig
from blades_dist.detect.calibrate import STANDARD_FPRS, Calibration, calibrate, measure, wilson
from blades_dist.testing.toy_detector import fitted


def test_by_hand_with_ties():
    # n + 1 = 10; at 0.2 two calibration scores may be counted with the face itself: k = 2, the second smallest.
    calibration = calibrate(np.array([5.0, 1, 2, 2, 3, 4, 6, 7, 8]), fpr=0.2)
    assert calibration.threshold() == 2
    assert calibration.smallest_fpr == pytest.approx(0.1)
    np.testing.assert_allclose(calibration.p_values(np.array([0.0, 1, 1.5, 2, 2.5, 9])), [0.1, 0.2, 0.2, 0.4, 0.4, 1])
    assert calibration.is_generated(np.array([0.0, 1, 1.5, 2, 2.5])).tolist() == [True, True, True, False, False]
    assert calibration.threshold(0.1) == 1 and calibration.threshold(0.3) == 2 and calibration.threshold(0.45) == 3
    assert calibration.threshold(0.05) == -math.inf and not calibration.supports(0.05)
    assert calibration.thresholds == {0.001: None, 0.01: None, 0.05: None, 0.1: 1.0, 0.2: 2.0}


def test_all_equal_scores_flag_nothing_of_their_kind():
    calibration = calibrate(np.full(99, 3.0), 0.05)
    assert not calibration.is_generated(np.array([3.0]))[0]
    assert calibration.is_generated(np.array([2.9]))[0]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    st.lists(st.integers(-6, 6), min_size=1, max_size=20),
    st.integers(1, 99),
)
def test_threshold_and_p_value_are_one_rule(scores, fresh, percent):
    calibration, fpr, faces = Calibration(np.sort(np.array(scores, float)), 0.05), percent / 100, np.array(fresh, float)
    by_p = calibration.p_values(faces) <= fpr + 1e-12
    assert calibration.is_generated(faces, fpr).tolist() == by_p.tolist()


@pytest.mark.parametrize("draw", ["continuous", "tied"])
@pytest.mark.parametrize(("fpr", "n"), [(0.001, 1200), (0.01, 150), (0.05, 150), (0.10, 150)])
def test_marginal_guarantee_by_simulation(fpr, n, draw):
    # A face and its n calibration faces from one distribution, 20 000 times: P(flagged) <= fpr over both draws.
    random, trials = np.random.default_rng(0), 20_000
    scores = random.standard_t(3, (trials, n + 1))
    if draw == "tied":
        scores = np.round(scores)
    flagged = sum(bool(Calibration(np.sort(row[1:]), fpr).is_generated(row[:1])[0]) for row in scores)
    assert binomtest(flagged, trials, fpr, alternative="greater").pvalue > 1e-4
    if draw == "continuous":  # and not needlessly cautious: floor(fpr (n + 1)) / (n + 1) exactly
        assert binomtest(flagged, trials, math.floor(fpr * (n + 1)) / (n + 1)).pvalue > 1e-4


@pytest.mark.parametrize("fpr", STANDARD_FPRS)
def test_rate_over_calibration_sets_is_the_beta_distribution_it_should_be(fpr):
    # On uniform scores a threshold is itself the probability that a real face is flagged: no test face adds noise.
    n, trials = 1500, 3000
    sets = np.sort(np.random.default_rng(1).random((trials, n)), axis=1)
    rates = np.array([Calibration(row, fpr).threshold() for row in sets])
    k = math.floor(fpr * (n + 1))
    expected = beta(k, n + 1 - k)
    assert expected.mean() == pytest.approx(k / (n + 1)) and k / (n + 1) <= fpr
    assert abs(rates.mean() - k / (n + 1)) < 4 * expected.std() / math.sqrt(trials)
    assert kstest(rates, expected.cdf).pvalue > 1e-4


def _faces(n, seed, dimensions=40):
    """(n, D) clustered unit vectors whose clusters have covariances of their own."""
    fixed, random = np.random.default_rng(7), np.random.default_rng(seed)
    centres = fixed.normal(size=(3, dimensions))
    spread = fixed.normal(size=(3, dimensions, dimensions)) / math.sqrt(dimensions)
    which = random.integers(0, 3, n)
    noise = random.normal(size=(n, dimensions))
    rows = np.empty((n, dimensions))
    for k in range(3):
        rows[which == k] = centres[k] + 0.5 * noise[which == k] @ spread[k]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_held_out_thresholds_keep_the_rate_and_those_of_training_faces_do_not():
    train, fresh = _faces(3000, 0), _faces(20_000, 2)
    head = fitted(MixtureConfig(n_components=3, n_init=1), train, seed=0)
    scores = head.score(fresh)
    # Many calibration faces, so that the fresh ones' binomial interval is nearly all the uncertainty there is.
    held_out = calibrate(head.score(_faces(200_000, 1)), 0.05)
    own = calibrate(head.score(train), 0.05)  # the same rule, on the faces that the mixture was fitted to
    print(f"\nfalse-positive rates on {len(fresh)} fresh real faces")
    print("| nominal | threshold from 200000 held-out faces | threshold from the mixture's own 3000 |\n|---|---|---|")
    for fpr in STANDARD_FPRS:
        kept, broken = (int(calibration.is_generated(scores, fpr).sum()) for calibration in (held_out, own))
        print(f"| {fpr:.1%} | {wilson(kept, len(fresh))} | {wilson(broken, len(fresh))} |")
        assert binomtest(kept, len(fresh), fpr).pvalue > 1e-3
        assert wilson(broken, len(fresh), confidence=0.999).low > fpr and broken > 1.3 * fpr * len(fresh)


def test_refusals():
    with pytest.raises(ValueError, match=r"fpr=0\.01: 50 calibration faces .* at least 99"):
        calibrate(np.arange(50.0), 0.01)
    assert calibrate(np.arange(99.0), 0.01).threshold() == 0
    with pytest.raises(ValueError, match="not finite"):
        calibrate(np.array([1.0, np.nan]), 0.5)
    with pytest.raises(ValueError, match="empty"):
        calibrate(np.empty(0), 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(np.arange(50.0), 0.1).threshold(1.5)


def test_wilson_against_its_formula():
    z = NormalDist().inv_cdf(0.975)
    for count, n in ((0, 10), (1, 38), (5, 10), (10, 10), (37, 1000)):
        rate, p = wilson(count, n), count / n
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        oracle = ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
        assert (rate.low, rate.high) == pytest.approx(oracle, abs=1e-12)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)
    with pytest.raises(ValueError, match="outside"):
        wilson(3, 2)


def test_measured_rates_cover_the_standard_points():
    random = np.random.default_rng(2)
    rates = measure(calibrate(random.normal(size=5000), 0.02), random.normal(size=4000))
    assert set(rates) == {*STANDARD_FPRS, 0.02}
    for fpr, rate in rates.items():
        assert rate.n == 4000 and rate.low < fpr * 1.3 and rate.high > fpr * 0.7
