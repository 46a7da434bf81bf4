import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

from blades_dist.config import MahalanobisConfig, MixtureConfig
from blades_dist.detect.heads.mahalanobis import MahalanobisHead, fit_mahalanobis
from blades_dist.testing.toy_detector import fitted, unit_rows


@pytest.mark.parametrize("n", [400, 6])  # six faces in eight dimensions: only the shrinkage makes them a density
def test_score_is_the_density_of_ledoit_and_wolfs_gaussian(n):
    rows, fresh = unit_rows(n, 8), unit_rows(5000, 8, seed=1)  # more rows than one scoring pass takes
    head, figures = fit_mahalanobis(rows, MahalanobisConfig())
    oracle = LedoitWolf().fit(rows.astype(float))
    expected = multivariate_normal(oracle.location_, oracle.covariance_).logpdf(fresh)
    np.testing.assert_allclose(head.score(fresh), expected, rtol=1e-9, atol=1e-9)
    assert figures["shrinkage"] == pytest.approx(oracle.shrinkage_)
    assert figures["log_likelihood"] == pytest.approx(head.score(rows).mean())
    assert head.score(fresh).dtype == np.float64 and head.dimensions == 8


def test_shrinkage_as_given():
    rows = unit_rows(300, 5).astype(float)
    covariance = np.cov(rows, rowvar=False, bias=True)
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 5 * np.eye(5)
    head, figures = fit_mahalanobis(rows, MahalanobisConfig(shrinkage=0.3))
    expected = multivariate_normal(rows.mean(0), shrunk).logpdf(rows)
    np.testing.assert_allclose(head.score(rows), expected, rtol=1e-9)
    assert figures["shrinkage"] == 0.3


def test_by_hand_and_order_of_distance():
    head = MahalanobisHead(np.array([1.0, 2.0]), np.diag([2.0, 0.5]))  # sigma 0.5 and 2
    squared = (0 - 1) ** 2 / 0.25 + (0 - 2) ** 2 / 4
    assert head.score(np.zeros((1, 2)))[0] == pytest.approx(-squared / 2 - np.log(2 * np.pi), abs=1e-12)
    far = head.score(np.array([[1.0, 2.0], [1.0, 3.9], [2.0, 2.0]]))
    assert far[0] > far[1] > far[2]


def test_is_a_mixture_of_one_without_shrinkage():
    rows = unit_rows(2000, 5)
    mixture = fitted(MixtureConfig(n_components=1, reg_covar=1e-12), rows, seed=0)
    head, _ = fit_mahalanobis(rows, MahalanobisConfig(shrinkage=0))
    np.testing.assert_allclose(head.score(rows), mixture.score(rows), rtol=1e-6, atol=1e-6)


def test_round_trip_and_refusals():
    rows = unit_rows(100, 4)
    head, _ = fit_mahalanobis(rows, MahalanobisConfig())
    assert np.array_equal(MahalanobisHead.from_tensors(head.tensors()).score(rows), head.score(rows))
    with pytest.raises(ValueError, match="do not fit each other"):
        MahalanobisHead.from_tensors(head.tensors() | {"mean": np.zeros(3)})
    with pytest.raises(ValueError, match="not positive"):
        MahalanobisHead.from_tensors(head.tensors() | {"precision": np.zeros((4, 4))})
    with pytest.raises(ValueError, match="expected features"):
        head.score(np.zeros((2, 3)))
    flat = np.repeat(rows[:, :2], 2, axis=1)
    with pytest.raises(ValueError, match=r"cannot be inverted .* mahalanobis\.shrinkage"):
        fit_mahalanobis(flat - flat.mean(0), MahalanobisConfig(shrinkage=0))
    with pytest.raises(ValueError, match="at least 2"):
        fit_mahalanobis(rows[:1], MahalanobisConfig())
    with pytest.raises(ValueError, match="finite"):
        fit_mahalanobis(rows * np.nan, MahalanobisConfig())
    assert len(head.score(rows[:0])) == 0
