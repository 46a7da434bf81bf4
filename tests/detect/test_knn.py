import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from blades_dist.config import KnnConfig
from blades_dist.detect.heads.knn import KnnHead, fit_knn
from blades_dist.testing.toy_detector import unit_rows


@pytest.mark.parametrize("distance", ["kth", "mean"])
def test_score_equals_scikit_learn(distance):
    rows, fresh = unit_rows(500, 8), unit_rows(300, 8, seed=1)
    head = fit_knn(rows, KnnConfig(k=7, distance=distance), seed=0)
    oracle = NearestNeighbors(n_neighbors=7, algorithm="kd_tree").fit(rows.astype(float))
    distances, _ = oracle.kneighbors(fresh.astype(float))
    expected = -(distances[:, -1] if distance == "kth" else distances.mean(1))
    np.testing.assert_allclose(head.score(fresh), expected, rtol=1e-12)
    assert head.score(fresh).dtype == np.float64 and head.dimensions == 8


def test_by_hand_with_ties():
    bank = np.array([[0, 0], [3, 4], [3, 4], [0, 10]], np.float32)
    at = np.zeros((1, 2))
    assert KnnHead(bank, np.array([0.0, 0, 1])).score(at)[0] == -5
    assert KnnHead(bank, np.full(4, 0.25)).score(at)[0] == -5
    assert KnnHead(bank, np.ones(1)).score(at)[0] == 0


def test_a_row_has_the_same_bits_in_any_company():
    head = fit_knn(unit_rows(4000, 19), KnnConfig(distance="mean"), seed=0)
    fresh = unit_rows(2500, 19, seed=1)  # more than one block
    together, threads = head.score(fresh), torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        alone = np.concatenate([head.score(fresh[i : i + 1]) for i in range(0, 2500, 50)])
        some = np.concatenate([head.score(part) for part in np.array_split(fresh, 7)])
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(together[::50], alone) and np.array_equal(together, some)


def test_bank_is_a_seeded_sample_in_float32():
    rows = unit_rows(300, 4).astype(np.float64)
    config = KnnConfig(k=3, bank=50)
    first, again, other = (fit_knn(rows, config, seed) for seed in (0, 0, 1))
    assert first.bank.shape == (50, 4) and first.bank.dtype == np.float32
    assert np.array_equal(first.bank, again.bank) and not np.array_equal(first.bank, other.bank)
    known = {row.tobytes() for row in rows.astype(np.float32)}
    assert len({row.tobytes() for row in first.bank} & known) == 50
    assert fit_knn(rows, KnnConfig(k=3), seed=0).bank.shape == (300, 4)


def test_round_trip_and_refusals():
    rows = unit_rows(100, 4)
    head = fit_knn(rows, KnnConfig(k=3), seed=0)
    assert np.array_equal(KnnHead.from_tensors(head.tensors()).score(rows), head.score(rows))
    with pytest.raises(ValueError, match="'bank' is not finite float32"):
        KnnHead.from_tensors(head.tensors() | {"bank": head.bank.astype(np.float64)})
    with pytest.raises(ValueError, match="do not fit each other"):
        KnnHead.from_tensors(head.tensors() | {"weights": np.ones(101)})
    with pytest.raises(ValueError, match="negative"):
        KnnHead.from_tensors(head.tensors() | {"weights": -np.ones(3)})
    with pytest.raises(ValueError, match="expected features"):
        head.score(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"knn\.k=10: 5 real faces are fewer"):
        fit_knn(rows[:5], KnnConfig(), seed=0)
    with pytest.raises(ValueError, match="finite"):
        fit_knn(rows * np.nan, KnnConfig(), seed=0)
    with pytest.raises(ValueError, match="k: 9 nearest of a bank of 5"):
        KnnConfig(k=9, bank=5)
    assert len(head.score(rows[:0])) == 0
