import numpy as np
import pytest
from scipy.special import expit

from blades_dist.detect.heads.temperature import HIGHEST, LOWEST, balanced_loss, fit_temperature


def _calibrated(n, seed=0):
    """Log-odds of photographic that are right: a face is AI-generated with probability sigmoid(-score)."""
    random = np.random.default_rng(seed)
    scores = 2 * random.normal(size=n)
    return scores, random.random(n) < expit(-scores)


def test_loss_by_hand():
    scores, generated = np.array([0.0, 2.0, 1.0]), np.array([False, False, True])
    real = (np.log(2) + np.log1p(np.exp(-2.0))) / 2
    assert balanced_loss(scores, generated) == pytest.approx((real + np.log1p(np.exp(1.0))) / 2, abs=1e-14)
    # Targets 3/4 for the two real faces and 2/3 for the one AI face.
    p = expit(scores)
    smooth = -np.mean(0.75 * np.log(p[:2]) + 0.25 * np.log(1 - p[:2]))
    smooth = (smooth - (np.log(1 - p[2]) * 2 / 3 + np.log(p[2]) / 3)) / 2
    assert balanced_loss(scores, generated, smoothing=True) == pytest.approx(smooth, abs=1e-14)


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_recovers_the_factor_of_scores_that_were_right(factor):
    scores, generated = _calibrated(100_000)
    assert fit_temperature(factor * scores, generated) == pytest.approx(factor, rel=0.03)


def test_is_the_minimum_of_a_fine_grid():
    scores, generated = _calibrated(300, seed=1)
    grid = np.geomspace(LOWEST, HIGHEST, 20_001)
    losses = [balanced_loss(scores / t, generated, smoothing=True) for t in grid]
    assert fit_temperature(scores, generated) == pytest.approx(grid[np.argmin(losses)], rel=1e-3)


def test_sides_weigh_the_same():
    scores, generated = _calibrated(20_000, seed=2)
    many = np.concatenate([scores, *[scores[generated]] * 9]), np.concatenate([generated, *[generated[generated]] * 9])
    assert fit_temperature(*many) == pytest.approx(fit_temperature(scores, generated), rel=1e-3)


def test_limits():
    separated = np.repeat([-3.0, 3.0], 50)
    found = fit_temperature(separated, separated < 0)
    assert expit(3 / found) == pytest.approx(51 / 52, abs=1e-4)  # Platt's target, not certainty
    assert fit_temperature(separated, separated > 0) == pytest.approx(HIGHEST, rel=1e-3)
    with pytest.raises(ValueError, match="held-out real and AI"):
        fit_temperature(separated, np.zeros(100, bool))
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.array([np.nan, 1.0]), np.array([True, False]))
