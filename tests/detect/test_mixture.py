from dataclasses import replace

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_info

from blades_dist.config import MixtureConfig
from blades_dist.detect.heads.mixture import (
    MixtureFit,
    MixtureHead,
    Whitening,
    choose,
    fit_mixture,
    fit_whitening,
    refit,
    split_rows,
)
from blades_dist.testing.toy_detector import fitted, unit_rows

COVARIANCES = ("full", "tied", "diag", "spherical")


@pytest.mark.parametrize("pca", [None, 1, 5])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_score_equals_scikit_learn(covariance, pca):
    rows = unit_rows(400, 8)
    head = fitted(
        MixtureConfig(n_components=3, covariance_type=covariance, n_pca_components=pca, n_init=1), rows, seed=0
    )
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
    head = MixtureHead("diag", np.ones(1), np.array([[1.0, 2.0]]), np.array([[2.0, 0.5]]))  # sigma 0.5 and 2
    expected = -0.5 * ((0 - 1) ** 2 / 0.25 + (0 - 2) ** 2 / 4) - np.log(2 * np.pi) - np.log(0.5 * 2)
    assert head.score(np.zeros((1, 2)))[0] == pytest.approx(expected, abs=1e-12)


def test_whitened_training_features_are_white():
    rows = unit_rows(300, 8)
    whitening = fit_whitening(rows.astype(float), 4)
    np.testing.assert_allclose(np.cov(whitening.apply(rows.astype(float)), rowvar=False), np.eye(4), atol=1e-9)
    assert fitted(MixtureConfig(n_components=1, n_pca_components=4), rows, seed=0).dimensions == 8


@pytest.mark.parametrize(("shift", "dimensions", "kept"), [(0, 8, 4), (0, 40, 40), (1e3, 8, 8), (0, 1, 1)])
def test_whitening_is_by_the_eigenvectors_of_the_covariance(shift, dimensions, kept):
    rows = np.random.default_rng(3).normal(size=(300, dimensions)) * np.linspace(1, 0.01, dimensions) + shift
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False).reshape(dimensions, -1))
    axes = vectors.T[::-1][:kept]
    axes *= np.sign(axes[np.arange(kept), np.abs(axes).argmax(1)])[:, None]
    expected = (rows - rows.mean(0)) @ axes.T / np.sqrt(values[::-1][:kept])
    np.testing.assert_allclose(fit_whitening(rows, kept).apply(rows), expected, atol=1e-9)


@pytest.mark.parametrize("pca", [None, 3])
def test_tensors_round_trip(pca):
    head = fitted(MixtureConfig(n_components=2, n_pca_components=pca), unit_rows(200, 6), seed=3)
    again = MixtureHead.from_tensors(head.tensors(), "full")
    rows = unit_rows(50, 6, seed=9)
    assert np.array_equal(head.score(rows), again.score(rows))
    with pytest.raises(ValueError, match="do not fit"):
        MixtureHead.from_tensors(head.tensors(), "diag")
    with pytest.raises(ValueError, match="'means' is missing"):
        MixtureHead.from_tensors({k: v for k, v in head.tensors().items() if k != "means"}, "full")
    with pytest.raises(ValueError, match="'means' is not finite"):
        MixtureHead.from_tensors(head.tensors() | {"means": head.means * np.nan}, "full")


def test_equal_seeds_give_equal_heads():
    rows, config = unit_rows(200, 6), MixtureConfig(n_components=3)
    first, second = (fitted(config, rows, seed=4) for _ in range(2))
    assert all(np.array_equal(a, second.tensors()[name]) for name, a in first.tensors().items())


def test_refuses_what_the_rows_cannot_support():
    with pytest.raises(ValueError, match=r"54 real faces .* are too few for 10 full Gaussians in 8 .* at least 90"):
        fitted(MixtureConfig(n_components=10), unit_rows(60, 8), seed=0)
    fitted(MixtureConfig(n_components=10, covariance_type="diag", n_init=1), unit_rows(60, 8), seed=0)
    with pytest.raises(ValueError, match=r"oc\.n_pca_components=9.*at most 8"):
        fitted(MixtureConfig(n_components=1, n_pca_components=9), unit_rows(60, 8), seed=0)
    flat = np.repeat(unit_rows(60, 8)[:, :2], 4, axis=1)
    with pytest.raises(ValueError, match="2 directions only"):
        fitted(MixtureConfig(n_components=1, n_pca_components=3), flat, seed=0)
    with pytest.raises(ValueError, match="finite"):
        fitted(MixtureConfig(n_components=1), unit_rows(60, 8) * np.nan, seed=0)
    head = MixtureHead("diag", np.ones(1), np.zeros((1, 2)), np.ones((1, 2)), Whitening(*np.ones((3, 2, 2))))
    with pytest.raises(ValueError, match="expected features"):
        head.score(np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"collapsed; raise oc\.reg_covar"):
        fitted(MixtureConfig(n_components=2, reg_covar=1e-300), flat, seed=0)


def _blobs(n=900, centres=3, dimensions=4, seed=0):
    random = np.random.default_rng(seed)
    middle = 6 * random.normal(size=(centres, dimensions))
    return (middle[random.integers(0, centres, n)] + random.normal(size=(n, dimensions))).astype(np.float32)


def test_figures_are_of_the_rows_they_claim():
    rows, config = _blobs(), MixtureConfig(held_out=0.2)
    fit = fit_mixture(rows, config, seed=5, components=2)
    kept, held = split_rows(900, 0.2, 5)
    assert (fit.rows, fit.held_out_rows, fit.components) == (len(kept), len(held), 2) == (720, 180, 2)
    assert sorted([*kept, *held]) == list(range(900))
    assert fit.held_out_log_likelihood == pytest.approx(fit.head.score(rows[held]).mean(), abs=1e-12)
    assert fit.log_likelihood == pytest.approx(fit.head.score(rows[kept]).mean(), abs=1e-12)
    assert fit.bic == pytest.approx(fit.head.bic(rows[kept]), rel=1e-12)
    assert fit.converged and not fit.notes
    assert fit.figures()["components"] == 2 and fit.figures()["converged"] == 1
    changed = rows.copy()
    changed[held] += 100
    again = fit_mixture(changed, config, seed=5, components=2)
    assert np.array_equal(again.head.means, fit.head.means) and again.held_out_log_likelihood < -100


@pytest.mark.parametrize("by", ["held_out", "bic"])
def test_the_right_size_is_chosen(by):
    config = MixtureConfig(n_components=[6, 1, 3, 2], choose_by=by)
    assert config.sizes == [1, 2, 3, 6]
    candidates = [fit_mixture(_blobs(), config, 0, size) for size in config.sizes]
    assert choose(candidates, by).components == 3
    assert len(fitted(config, _blobs(), seed=0).weights) == 3


def test_choice_by_hand():
    head = MixtureHead("diag", np.ones(1), np.zeros((1, 2)), np.ones((1, 2)))
    two = MixtureHead("diag", np.ones(2) / 2, np.zeros((2, 2)), np.ones((2, 2)))
    small = MixtureFit(head, 10.0, -1.0, -3.0, 9, 1, 4, True)
    large = replace(small, head=two, bic=12.0, held_out_log_likelihood=-2.0)
    assert choose([large, small], "bic") is small and choose([small, large], "held_out") is large
    assert choose([replace(large, bic=10.0), small], "bic") is small
    with pytest.raises(ValueError, match="no mixture"):
        choose([], "bic")


@pytest.mark.parametrize("pca", [None, 3])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_refit_goes_on_from_the_choice_with_all_rows(covariance, pca):
    rows = unit_rows(400, 6)
    config = MixtureConfig(n_components=2, covariance_type=covariance, n_pca_components=pca, n_init=1, held_out=0.3)
    chosen = fit_mixture(rows, config, 0, 2)
    final = refit(rows, chosen, config)
    # EM never lowers the likelihood of the rows it is given; a start from elsewhere could end anywhere.
    assert final.log_likelihood >= chosen.head.score(rows).mean() - 1e-9
    assert final.rows == 400 and final.iterations <= chosen.iterations + 20
    assert not np.array_equal(final.head.means, chosen.head.means)
    np.testing.assert_allclose(final.head.means, chosen.head.means, atol=0.3 * (chosen.head.means.std() + 1))
    assert final.held_out_log_likelihood == chosen.held_out_log_likelihood
    assert final.bic == pytest.approx(final.head.bic(rows))


def test_missing_convergence_is_told(recwarn):
    config = MixtureConfig(n_components=4, max_iter=1, n_init=1)
    fit = fit_mixture(unit_rows(400, 6), config, 0, 4)
    assert not fit.converged and "oc.max_iter" in fit.notes[0] and fit.figures()["converged"] == 0
    assert "not converged after 1 iterations" in refit(unit_rows(400, 6), fit, config).notes[0]
    assert not [warning for warning in recwarn if "onverge" in str(warning.message)]


def test_threads_are_those_asked_for(monkeypatch):
    seen, real = [], GaussianMixture.fit

    def spy(self, rows):
        seen.append({pool["num_threads"] for pool in threadpool_info()})
        return real(self, rows)

    monkeypatch.setattr(GaussianMixture, "fit", spy)
    for threads in (1, 2):
        fitted(MixtureConfig(n_components=1), unit_rows(100, 4), seed=0, threads=threads)
    assert seen == [{1}, {1}, {2}, {2}]


@pytest.mark.parametrize("sizes", [0, [], [1, 1], [0, 2]])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(ValueError, match="each at least 1"):
        MixtureConfig(n_components=sizes)
