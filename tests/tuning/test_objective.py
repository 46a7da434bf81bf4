"""The objective's terms: what they must not depend on, and what they must."""

from dataclasses import replace

import numpy as np
import pytest

from blades_dist.config import ManipulateConfig
from blades_dist.tuning.config import BaseDetector, Objective, Weights
from blades_dist.tuning.objective import TrialFeatures, balanced, likelihood, mean_terms, score, terms, trial_head

KINDS = [
    {"kind": "oc", "oc": {"n_components": 2, "n_init": 1}},
    {"kind": "oc", "oc": {"n_components": 3, "n_pca_components": 4, "covariance_type": "diag", "n_init": 1}},
    {"kind": "mahalanobis"},
    {"kind": "knn", "knn": {"k": 3}},
]


@pytest.fixture(scope="module")
def faces() -> TrialFeatures:
    own = np.random.default_rng(0)
    spread = np.linspace(1, 0.3, 6)

    def real(n: int) -> np.ndarray:
        centres = own.choice([-2.0, 2.0], (n, 1)) * np.eye(6)[0]
        return (centres + own.normal(size=(n, 6)) * spread).astype(np.float32)

    manipulated = real(150) + np.float32(1.5) * np.eye(6, dtype=np.float32)[5]
    generated = {"a": real(90) + 2, "b": real(90)}
    return TrialFeatures(real(400), real(200), manipulated, 0.8, generated)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_do_not_depend_on_units_of_the_features(faces: TrialFeatures, kind: dict) -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]

    def moved(rows: np.ndarray) -> np.ndarray:
        return (7 * rows @ rotation + 3).astype(np.float32)

    other = replace(faces, fit=moved(faces.fit), held=moved(faces.held), manipulated=moved(faces.manipulated))
    config = BaseDetector.model_validate(kind)
    first, second = (terms(config, own, 0, Objective()) for own in (faces, other))
    if kind["kind"] == "oc" and "n_pca_components" not in kind["oc"]:
        # EM's starts are by k-means, whose distances a rotation keeps; only the tiny ridge has a scale.
        assert first == pytest.approx(second, abs=0.02)
    else:
        assert first == pytest.approx(second, abs=5e-3 if kind["kind"] == "oc" else 1e-3)
    assert all(0 <= value <= 1 for value in first.values())
    if "n_pca_components" not in kind.get("oc", {}):  # which leaves out the direction that these manipulations lie in
        assert first["separation"] > 0.75


def test_likelihood_praises_what_fits_and_not_what_overfits(faces: TrialFeatures) -> None:
    def of(**oc: object) -> float:
        config = BaseDetector.model_validate({"oc": {"n_init": 1, **oc}})
        return likelihood(trial_head(config, faces.fit, 0, threads=1), faces)

    two, many = of(n_components=2), of(n_components=40, covariance_type="full", reg_covar=1e-8)
    assert of(n_components=1) == pytest.approx(0.5, abs=0.01)  # one Gaussian is the reference
    assert two > 0.505, "two clusters are there"
    assert many < 0.5 < two, "40 Gaussians for 400 faces"
    knn = trial_head(BaseDetector.model_validate(KINDS[3]), faces.fit, 0)
    assert likelihood(knn, faces) == 0.5


def test_the_operating_point_counts() -> None:
    own = np.random.default_rng(0)
    real, other = own.normal(size=400), own.normal(size=400) - 2
    assert balanced(real, other, 0.1) > balanced(real, other, 0.005) > 0.5
    assert balanced(real[:20], other, 0.001) == 0.5  # too few photographs: nothing is flagged
    assert balanced(real, real, 0.05) == pytest.approx(0.5, abs=0.02)


def test_score_is_the_weighted_mean() -> None:
    found = {"proxy": 1.0, "separation": 0.5, "likelihood": 0.2, "operating": 0.0}
    weights = Weights(proxy=1, separation=2, likelihood=1, operating=0)
    assert score(found, Objective(weights=weights)) == pytest.approx((1 + 1 + 0.2) / 4)
    assert mean_terms([{"proxy": 0.0}, {"proxy": 1.0}]) == {"proxy": 0.5}


@pytest.mark.parametrize("metric", ["auc", "balanced_accuracy", "tpr"])
def test_the_supervised_objective_is_a_mean_over_generators(faces: TrialFeatures, metric: str) -> None:
    objective = Objective(kind="supervised", metric=metric, reference=ManipulateConfig(photographic_share=0))
    config = BaseDetector.model_validate(KINDS[2])

    def of(**generated: np.ndarray) -> float:
        return score(terms(config, replace(faces, generated=generated), 0, objective), objective)

    a, b = faces.generated["a"], faces.generated["b"]
    assert of(a=a) > of(b=b) + 0.2, "b are photographs"
    assert of(a=a, b=b) == pytest.approx((of(a=a) + of(b=b)) / 2)
