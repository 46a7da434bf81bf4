import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from blades_dist.evaluate import paired

SIDE = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12)


def _naive(first, second):
    """DeLong's variance of the AUC difference from all n x m pairs."""
    kernels = []
    for real, generated in (first, second):
        real, generated = real[:, None], generated[None]
        kernels.append((real > generated) + 0.5 * (real == generated))
    gap = kernels[0] - kernels[1]
    variance = gap.mean(axis=1).var(ddof=1) / gap.shape[0] + gap.mean(axis=0).var(ddof=1) / gap.shape[1]
    return gap.mean(), variance


@given(SIDE, SIDE)
@settings(max_examples=120, deadline=None)
def test_delong_equals_the_computation_over_all_pairs(real, generated):
    real, generated = np.array(real, float).T, np.array(generated, float).T
    first, second = (real[0], generated[0]), (real[1], generated[1])
    gap, p = paired.delong(first, second)
    value, variance = _naive(first, second)
    assert gap.value == pytest.approx(value, abs=1e-12)
    if variance < 1e-20:
        assert math.isnan(gap.low) and (p == 1 if abs(value) < 1e-12 else math.isnan(p))
        return
    z = value / math.sqrt(variance)
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=1e-9)
    half = 1.959963984540054 * math.sqrt(variance)
    assert (gap.low, gap.high) == pytest.approx((max(-1, value - half), min(1, value + half)))
    swapped, again = paired.delong(second, first)
    assert swapped.value == pytest.approx(-gap.value) and again == pytest.approx(p)


def test_delong_without_enough_images():
    two, one, none = np.array([1.0, 2.0]), np.array([0.0]), np.zeros(0)
    gap, p = paired.delong((two, one), (-two, one))
    assert gap.value == 1 and math.isnan(gap.low) and math.isnan(p)
    gap, p = paired.delong((two, none), (two, none))
    assert math.isnan(gap.value) and math.isnan(p) and (gap.n_real, gap.n_generated) == (2, 0)
    with pytest.raises(ValueError, match="same images"):
        paired.delong((two, one), (one, one))


def test_delong_keeps_its_level():
    rng, small = np.random.default_rng(0), 0
    for _ in range(300):
        real, generated = rng.normal(1, 1, 50), rng.normal(0, 1, 40)
        pair = [(real + rng.normal(0, 0.5, 50), generated + rng.normal(0, 0.5, 40)) for _ in range(2)]
        small += paired.delong(*pair)[1] <= 0.05
    assert 3 <= small <= 30  # a binomial of 300 trials at 5% lies in there with probability above 0.998


def test_mcnemar_by_hand():
    # Rightly judged by the first alone: one photograph, three generated images; by the second alone: one photograph.
    real = (np.array([False, True, False]), np.array([True, False, False]))
    generated = (np.array([True, True, True, True]), np.array([True, False, False, False]))
    found = paired.mcnemar(real, generated)
    assert (found.first.value, found.second.value) == (4 / 7, 1 / 7)
    assert found.p == pytest.approx(2 * binom.cdf(1, 5, 0.5))
    assert (found.first.n_real, found.first.n_generated) == (3, 4)
    assert found.first.low <= found.first.value <= found.first.high


def test_mcnemar_without_disagreement_or_images():
    flags, none = np.array([True, False]), np.zeros(0, bool)
    assert paired.mcnemar((flags, flags), (flags, flags)).p == 1
    assert math.isnan(paired.mcnemar((none, none), (none, none)).p)
    with pytest.raises(ValueError, match="same images"):
        paired.mcnemar((flags, none), (flags, flags))


def test_holm_by_hand():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.5, math.nan, 0.01])[::2] == pytest.approx([0.5, 0.02])
    assert math.isnan(paired.holm([math.nan])[0]) and paired.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    found = paired.holm(p_values)
    assert all(p <= corrected <= 1 for p, corrected in zip(p_values, found, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()
