import numpy as np
import pytest

from blades_dist.config import KnnConfig, MahalanobisConfig, MixtureConfig, PerceptronConfig
from blades_dist.detect.heads import HEADS, head_from_tensors
from blades_dist.detect.heads.base import ProbabilityHead
from blades_dist.detect.heads.knn import fit_knn
from blades_dist.detect.heads.linear import LinearHead
from blades_dist.detect.heads.mahalanobis import fit_mahalanobis
from blades_dist.detect.heads.perceptron import fit_perceptron
from blades_dist.testing.toy_detector import fitted, unit_rows


@pytest.fixture(scope="module")
def heads():
    rows = unit_rows(150, 6)
    mixture = fitted(MixtureConfig(n_components=2, n_pca_components=4, covariance_type="tied", n_init=1), rows, seed=0)
    perceptron, _ = fit_perceptron(
        rows, rows[:40] + 1, mixture.score(rows), PerceptronConfig(hidden=8, epochs=2), seed=0
    )
    return {
        "oc": mixture,
        "mahalanobis": fit_mahalanobis(rows, MahalanobisConfig())[0],
        "knn": fit_knn(rows, KnnConfig(k=3), seed=0),
        "bc": perceptron,
        "linear": LinearHead(np.linspace(-1, 1, 6), np.array([0.5]), 2.0),
    }


KINDS = ["oc", "mahalanobis", "knn", "bc", "linear"]


def test_every_registered_kind_is_tested_here():
    assert list(HEADS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_what_it_wrote(heads, kind):
    head, fresh = heads[kind], unit_rows(20, 6, seed=3)
    again = head_from_tensors(kind, head.tensors(), "tied")
    assert type(again) is type(head) and again.dimensions == 6
    assert np.array_equal(again.score(fresh), head.score(fresh))
    assert isinstance(head, ProbabilityHead) == (kind in ("bc", "linear"))
    assert HEADS[kind].sentence.endswith(".") and HEADS[kind].unit


@pytest.mark.parametrize("kind", KINDS[:-1])  # the linear head's own words are tested with it
def test_every_kind_says_which_array_is_damaged(heads, kind):
    tensors = heads[kind].tensors()
    for name, value in tensors.items():
        if name != "temperature":
            with pytest.raises(ValueError, match=f"{name!r} is missing"):
                head_from_tensors(kind, {k: v for k, v in tensors.items() if k != name}, "tied")
        broken = value.copy()
        broken.flat[-1] = np.nan
        for wrong in (broken, value.astype(np.float16)):
            with pytest.raises(ValueError, match=f"{name!r} is not finite"):
                head_from_tensors(kind, tensors | {name: wrong}, "tied")
        with pytest.raises(ValueError, match=r"do not fit|expected one positive"):
            head_from_tensors(kind, tensors | {name: np.zeros((2, 2, 2, 2), value.dtype)}, "tied")
    with pytest.raises(ValueError, match="has no parameter 'extra'"):
        head_from_tensors(kind, tensors | {"extra": np.zeros(1)}, "tied")


def test_arrays_of_another_kind(heads):
    with pytest.raises(ValueError, match="'bank' is missing"):
        head_from_tensors("knn", heads["mahalanobis"].tensors())
    with pytest.raises(ValueError, match="head kind 'svm'; known: oc, mahalanobis, knn, bc, linear"):
        head_from_tensors("svm", heads["oc"].tensors())
