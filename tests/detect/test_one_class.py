import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from toy_detector import unit_rows

from blades_dist.config import OneClassConfig
from blades_dist.detect.one_class import OneClassHead, Whitening, fit_one_class
from blades_dist.detect.whitening import fit_whitening

COVARIANCES = ("full", "tied", "diag", "spherical")


@pytest.mark.parametrize("pca", [None, 1, 5])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_score_equals_scikit_learn(covariance, pca):
    rows = unit_rows(400, 8)
    head = fit_one_class(rows, OneClassConfig(components=3, covariance=covariance, pca=pca, starts=1), seed=0)
    fresh = unit_rows(5000, 8, seed=1)  # more rows than one scoring pass takes
    z = fresh.astype(float)
    if head.whitening:
        z = (z - head.whitening.mean) @ head.whitening.components.T / head.whitening.scale
    oracle = GaussianMixture(3, covariance_type=covariance)
    oracle.weights_, oracle.means_, oracle.precisions_cholesky_ = head.weights, head.means, head.precisions
    np.testing.assert_allclose(head.score(fresh), oracle.score_samples(z), rtol=1e-9, atol=1e-9)
    assert head.score(fresh).dtype == np.float64
    # BIC with scikit-learn's own count of parameters
    oracle.covariances_ = head.precisions
    np.testing.assert_allclose(head.bic(fresh), oracle.bic(z), rtol=1e-9)


def test_one_gaussian_by_hand():
    head = OneClassHead("diag", np.ones(1), np.array([[1.0, 2.0]]), np.array([[2.0, 0.5]]))  # sigma 0.5 and 2
    expected = -0.5 * ((0 - 1) ** 2 / 0.25 + (0 - 2) ** 2 / 4) - np.log(2 * np.pi) - np.log(0.5 * 2)
    assert head.score(np.zeros((1, 2)))[0] == pytest.approx(expected, abs=1e-12)


def test_whitened_training_features_are_white():
    rows = unit_rows(300, 8)
    whitening = fit_whitening(rows.astype(float), 4)
    np.testing.assert_allclose(np.cov(whitening.apply(rows.astype(float)), rowvar=False), np.eye(4), atol=1e-9)
    assert fit_one_class(rows, OneClassConfig(components=1, pca=4), seed=0).dimensions == 8


@pytest.mark.parametrize("pca", [None, 3])
def test_tensors_round_trip(pca):
    head = fit_one_class(unit_rows(200, 6), OneClassConfig(components=2, pca=pca), seed=3)
    again = OneClassHead.from_tensors(head.tensors(), "full")
    rows = unit_rows(50, 6, seed=9)
    assert np.array_equal(head.score(rows), again.score(rows))
    with pytest.raises(ValueError, match="do not fit"):
        OneClassHead.from_tensors(head.tensors(), "diag")
    with pytest.raises(ValueError, match="'means' is missing"):
        OneClassHead.from_tensors({k: v for k, v in head.tensors().items() if k != "means"}, "full")
    with pytest.raises(ValueError, match="'means' is not finite"):
        OneClassHead.from_tensors(head.tensors() | {"means": head.means * np.nan}, "full")


def test_equal_seeds_give_equal_heads():
    rows, config = unit_rows(200, 6), OneClassConfig(components=3)
    first, second = (fit_one_class(rows, config, seed=4) for _ in range(2))
    assert all(np.array_equal(a, second.tensors()[name]) for name, a in first.tensors().items())


def test_refuses_what_the_rows_cannot_support():
    with pytest.raises(ValueError, match=r"54 real faces .* are too few for 10 full Gaussians in 8 .* at least 90"):
        fit_one_class(unit_rows(60, 8), OneClassConfig(components=10), seed=0)
    fit_one_class(unit_rows(60, 8), OneClassConfig(components=10, covariance="diag", starts=1), seed=0)
    with pytest.raises(ValueError, match=r"oc\.pca=9.*at most 8"):
        fit_one_class(unit_rows(60, 8), OneClassConfig(components=1, pca=9), seed=0)
    flat = np.repeat(unit_rows(60, 8)[:, :2], 4, axis=1)
    with pytest.raises(ValueError, match="2 directions only"):
        fit_one_class(flat, OneClassConfig(components=1, pca=3), seed=0)
    with pytest.raises(ValueError, match="finite"):
        fit_one_class(unit_rows(60, 8) * np.nan, OneClassConfig(components=1), seed=0)
    head = OneClassHead("diag", np.ones(1), np.zeros((1, 2)), np.ones((1, 2)), Whitening(*np.ones((3, 2, 2))))
    with pytest.raises(ValueError, match="expected features"):
        head.score(np.zeros((4, 3)))
