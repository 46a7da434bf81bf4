import itertools
import math
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from blades_dist.evaluate import bootstrap, ranking, rates
from tests.work import lines_run


def _value(metric, real, generated):
    return float(metric(*ranking.roc_counts(np.array(real, float), np.array(generated, float)))[0])


def _auc(real, generated, **options):
    return bootstrap.bootstrap_metrics([ranking.auc], np.array(real, float), [np.array(generated, float)], **options)[0]


@pytest.mark.parametrize(
    ("real", "generated", "expected"),
    [
        ([2, 3], [0, 1], 1.0),
        ([0, 1], [2, 3], 0.0),
        ([1, 1, 1], [1, 1], 0.5),
        ([3, 1], [2, 1], (1 + 1 + 0 + 0.5) / 4),
        ([5], [4], 1.0),
        ([4], [4], 0.5),
    ],
)
def test_auc_by_hand(real, generated, expected):
    assert _value(ranking.auc, real, generated) == pytest.approx(expected, abs=1e-15)


def test_ladder_by_hand():
    false, true = ranking.roc_counts(np.array([3.0, 1.0]), np.array([1.0, 0.0, 2.0]))
    assert false.tolist() == [[0, 0, 1, 1, 2]]
    assert true.tolist() == [[0, 1, 2, 3, 3]]


def test_equal_error_rate_by_hand():
    # Thresholds flag (photographs, generated) of 4 each: (0,0) (0,1) (0,2) (1,2) (1,3) (2,3) (2,4) ...: 1/4 = 1 - 3/4.
    assert _value(ranking.equal_error_rate, [3, 5, 7, 8], [1, 2, 4, 6]) == pytest.approx(0.25)
    assert _value(ranking.equal_error_rate, [1], [0]) == 0
    assert _value(ranking.equal_error_rate, [0, 0], [0, 0]) == pytest.approx(0.5)


def test_tpr_at_fpr_takes_only_thresholds_that_exist():
    real, generated = np.arange(10), [-1, 0, 0.5, 20]
    assert _value(ranking.tpr_at(0.05), real, generated) == 0.25
    assert _value(ranking.tpr_at(0.1), real, generated) == 0.75  # 1 of 10 photographs may be flagged
    assert _value(ranking.tpr_at(1.0), real, generated) == 1.0


@pytest.mark.parametrize(
    "metric", [ranking.auc, ranking.average_precision, ranking.equal_error_rate, ranking.tpr_at(1)]
)
@pytest.mark.parametrize(("real", "generated"), [([], [1, 2]), ([1, 2], []), ([], [])])
def test_missing_class_is_nan_with_n(metric, real, generated):
    found = bootstrap.bootstrap_metrics([metric], np.array(real), [np.array(generated)], resamples=100)[0]
    for estimate in (found.estimate(0), found.mean()):
        assert all(math.isnan(x) for x in (estimate.value, estimate.low, estimate.high))
        assert (estimate.n_real, estimate.n_generated) == (len(real), len(generated))


def test_one_image_has_a_value_and_no_interval():
    for estimate in (_auc([2], [1, 3]).estimate(0), _auc([2], [1, 3]).mean(), _auc([2, 3], [1]).estimate(0)):
        assert not math.isnan(estimate.value)
        assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_not_finite_scores_are_refused():
    with pytest.raises(ValueError, match="finite"):
        _auc([1, math.nan], [2])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(tied, seed):
    rng = np.random.default_rng(seed)
    real, generated = rng.normal(1, 1, rng.integers(5, 300)), rng.normal(0, 1, rng.integers(5, 300))
    if tied:
        real, generated = real.round(1), generated.round(1)
    labels = np.r_[np.zeros(len(real)), np.ones(len(generated))]
    suspicion = -np.r_[real, generated]
    assert _value(ranking.auc, real, generated) == pytest.approx(roc_auc_score(labels, suspicion), abs=1e-12)
    assert _value(ranking.average_precision, real, generated) == pytest.approx(
        average_precision_score(labels, suspicion), abs=1e-12
    )
    fpr, tpr, _ = roc_curve(labels, suspicion, drop_intermediate=False)
    ours = ranking.roc(*ranking.roc_counts(real, generated))
    np.testing.assert_allclose(ours[0][0], fpr, atol=1e-12)
    np.testing.assert_allclose(ours[1][0], tpr, atol=1e-12)


def test_a_resample_equals_the_metric_on_the_drawn_images():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(1, 1, 30).round(1), rng.normal(0, 1, 20).round(1)
    chosen = [ranking.auc, ranking.average_precision, ranking.equal_error_rate, ranking.tpr_at(0.05)]
    found = bootstrap.bootstrap_metrics(chosen, real, [generated], resamples=120, seed=3)
    for b in (0, 57, 119):
        block, row = b // 100 * 100, b % 100
        _, photographs, images = next(d for d in bootstrap.resample_counts(30, (20,), 120, 3) if d[0].start == block)
        w, v = photographs[row], images[row]
        assert w.sum() == 30 and v.sum() == 20
        for metric, ranked in zip(chosen, found, strict=True):
            direct = _value(metric, np.repeat(real, w), np.repeat(generated, v))
            assert ranked.replicates[0, b] == pytest.approx(direct, abs=1e-12)


def test_separated_sets_do_not_claim_certainty():
    estimate = _auc(np.arange(50) + 100, np.arange(40)).estimate(0)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(rates.wilson_bounds(40, 40)[0])
    worst = _auc(np.arange(40), np.arange(50) + 100).estimate(0)
    assert (worst.value, worst.low) == (0.0, 0.0) and worst.high > 0.05
    assert _auc(np.arange(50) + 100, np.arange(40)).mean().low == estimate.low


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(1)
    truth = [0.5 * math.erfc(-shift / 2) for shift in (0.5, 1.0)]  # unit-variance normals shifted apart
    hits = {"one": 0, "mean": 0}
    for trial in range(150):
        ranked = bootstrap.bootstrap_metrics(
            [ranking.auc],
            rng.normal(0, 1, 60),
            [rng.normal(-0.5, 1, 60), rng.normal(-1, 1, 60)],
            resamples=300,
            seed=trial,
        )[0]
        one, mean = ranked.estimate(0), ranked.mean()
        hits["one"] += one.low <= truth[0] <= one.high
        hits["mean"] += mean.low <= np.mean(truth) <= mean.high
    # A binomial of 150 trials at 95% lies in here with probability above 0.998.
    assert all(132 <= count <= 150 for count in hits.values()), hits


def test_mean_resamples_photographs_jointly():
    """Two generators with equal scores: their AUCs share the photographs, so the mean varies more than if apart."""
    rng = np.random.default_rng(2)
    real, many = rng.normal(1, 1, 40), rng.normal(0, 1, 4000)
    ranked = bootstrap.bootstrap_metrics([ranking.auc], real, [many, many], resamples=1000)[0]
    both = np.corrcoef(ranked.replicates)[0, 1]
    assert both > 0.9
    assert ranked.mean().n_generated == 8000


def test_each_generator_may_have_photographs_scored_by_its_own_head():
    rng = np.random.default_rng(20)
    heads, generated = rng.normal(1, 1, (2, 40)), [rng.normal(0, 1, 30), rng.normal(0, 1, 20)]
    both = bootstrap.bootstrap_metrics([ranking.auc], heads, generated, resamples=150, seed=5)[0]
    for f, head in enumerate(heads):  # the same as if every generator had the head for which it is looked at
        alone = bootstrap.bootstrap_metrics([ranking.auc], head, generated, resamples=150, seed=5)[0]
        assert both.values[f] == alone.values[f]
        np.testing.assert_array_equal(both.replicates[f], alone.replicates[f])
    with pytest.raises(ValueError, match="3 heads, but 2 generators"):
        bootstrap.bootstrap_metrics([ranking.auc], rng.normal(0, 1, (3, 40)), generated)
    with pytest.raises(ValueError, match="same photographs"):
        bootstrap.bootstrap_metrics([ranking.auc], [heads[0], heads[1][:-1]], generated)


def test_p_of_a_difference():
    rng = np.random.default_rng(21)
    real, generated = rng.normal(1, 1, 150), rng.normal(0, 1, 150)
    first = _auc(real, generated, resamples=500)
    assert bootstrap.paired_difference_p(first, first) == 1
    noise = _auc(rng.normal(0, 1, 150), rng.normal(0, 1, 150), resamples=500)
    assert (
        bootstrap.paired_difference_p(first, noise)
        == bootstrap.paired_difference_p(noise, first)
        == pytest.approx(2 / 501)
    )
    perfect, reverse = _auc(real + 50, generated), _auc(real - 50, generated)
    assert math.isnan(bootstrap.paired_difference_p(perfect, reverse))  # no resample varies
    assert math.isnan(bootstrap.paired_difference_p(_auc([1], [0]), _auc([0], [1])))


def test_p_of_a_difference_is_seldom_small_when_there_is_none():
    rng, small = np.random.default_rng(22), 0
    for trial in range(120):
        real, generated = rng.normal(1, 1, 60), rng.normal(0, 1, 60)
        pair = [
            _auc(real + rng.normal(0, 0.5, 60), generated + rng.normal(0, 0.5, 60), resamples=200, seed=trial)
            for _ in range(2)
        ]
        small += bootstrap.paired_difference_p(*pair) <= 0.05
    assert small <= 15  # a binomial of 120 trials at 5% stays there with probability above 0.999


def test_difference_is_paired():
    rng = np.random.default_rng(3)
    real, generated = rng.normal(1, 1, 200), rng.normal(0, 1, 200)
    first = _auc(real, generated)
    same = bootstrap.paired_difference(first, _auc(2 * real + 1, 2 * generated + 1))
    assert same.value == 0
    assert same.low < 0 < same.high  # nothing varied, so it falls back on the two intervals
    close = bootstrap.paired_difference(
        first, _auc(real + rng.normal(0, 0.05, 200), generated + rng.normal(0, 0.05, 200))
    )
    alone = first.mean()
    assert close.high - close.low < (alone.high - alone.low) / 3
    with pytest.raises(ValueError, match="same images"):
        bootstrap.paired_difference(first, _auc(real[:-1], generated))


def test_same_seed_same_interval():
    rng = np.random.default_rng(4)
    real, generated = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
    assert _auc(real, generated, seed=7).estimate(0) == _auc(real, generated, seed=7).estimate(0)
    assert _auc(real, generated, seed=7).estimate(0) != _auc(real, generated, seed=8).estimate(0)


def test_two_thousand_resamples_are_computed_in_blocks_not_one_by_one():
    rng = np.random.default_rng(5)
    lines_run(partial(_auc, rng.normal(1, 1, 500), rng.normal(0, 1, 500), resamples=2000), 2000)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(hits, n, low, high):
    assert rates.wilson_bounds(hits, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = rates.wilson_bounds(n - hits, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_of_nothing_and_of_one():
    assert all(math.isnan(x) for x in rates.wilson_bounds(0, 0))
    assert rates.wilson_bounds(1, 1)[0] == pytest.approx(0.2065, abs=5e-5)


def test_confusion_by_hand():
    real, generated = np.array([True, False, False, False]), np.array([True, True, False])
    found = rates.confusion(real, generated)
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(
        {"TNR": 3 / 4, "FPR": 1 / 4, "TPR": 2 / 3, "FNR": 1 / 3, "F1": 2 * 2 / (2 * 2 + 1 + 1)}
    )
    assert found["F1"].value == pytest.approx(f1_score([0] * 4 + [1] * 3, np.r_[real, generated]))
    assert (found["FPR"].n_real, found["FPR"].n_generated) == (4, 0)
    assert all(e.low <= e.value <= e.high for e in found.values())
    empty = rates.confusion(np.array([], bool), generated)
    assert math.isnan(empty["FPR"].value) and math.isnan(empty["F1"].value) and empty["TPR"].value == 2 / 3


def test_f1_interval_stays_open_without_errors():
    found = rates.confusion(np.zeros(30, bool), np.ones(30, bool))["F1"]
    assert found.value == found.high == 1 and 0.8 < found.low < 0.99


def test_balanced_accuracy_by_hand():
    real = np.array([True] + [False] * 9)
    families = [np.array([True, False]), np.array([True, True, True, False])]
    found = rates.balanced_accuracy(real, families)
    assert found.value == pytest.approx((0.9 + (0.5 + 0.75) / 2) / 2)
    assert (found.n_real, found.n_generated) == (10, 6)
    assert rates.balanced_accuracy(real, [*families, np.array([], bool)]) == found
    assert math.isnan(rates.balanced_accuracy(real, []).value)


def test_balanced_accuracy_covers_the_truth():
    rng, hits = np.random.default_rng(6), 0
    for _ in range(400):
        real, families = rng.random(50) < 0.1, [rng.random(40) < 0.6, rng.random(40) < 0.95]
        found = rates.balanced_accuracy(real, families)
        hits += found.low <= (0.9 + 0.775) / 2 <= found.high
    assert 364 <= hits <= 400


def test_exhaustive_small_auc():
    for real in itertools.product(range(3), repeat=3):
        for generated in itertools.product(range(3), repeat=2):
            pairs = [(r > g) + 0.5 * (r == g) for r in real for g in generated]
            assert _value(ranking.auc, real, generated) == pytest.approx(np.mean(pairs), abs=1e-15)
