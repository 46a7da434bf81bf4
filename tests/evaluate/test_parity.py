import numpy as np
import pyarrow as pa
import pytest

from blades_dist.evaluate import parity
from blades_dist.evaluate.metrics import Estimate


def _table(n, seed, codec="jpeg", quality=(80, 96), size=(90, 300)):
    rng = np.random.default_rng(seed)
    side = rng.integers(*size, n)
    return pa.table(
        {
            "codec": [codec] * n,
            "jpeg_quality": pa.array(
                rng.integers(*quality, n).astype(np.float32) if codec == "jpeg" else [None] * n, pa.float32()
            ),
            "width": pa.array(side, pa.int32()),
            "height": pa.array(side, pa.int32()),
        }
    )


def test_an_equal_set_passes():
    found = parity.audit(_table(200, 0), {"a": _table(100, 1), "b": _table(60, 2)}, resamples=200)
    assert found.leaking == []
    assert set(found.container_auc) == {"a", "b", parity.ALL}
    assert found.verdict().startswith("Container audit passed")
    assert "n = 200 photographs" in found.verdict()


def test_constant_containers_are_chance():
    same = {"quality": (90, 91), "size": (128, 129)}
    found = parity.audit(_table(101, 0, **same), {"a": _table(53, 1, **same)}, resamples=200)
    assert found.container_auc["a"].value == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "planted",
    [{"codec": "png"}, {"size": (256, 257)}, {"quality": (60, 81)}],
    ids=["jpeg against png", "one size", "lower quality"],
)
def test_a_planted_leak_is_caught(planted):
    found = parity.audit(_table(200, 0), {"fair": _table(80, 1), "leaky": _table(80, 2, **planted)}, resamples=200)
    assert "leaky" in found.leaking and "fair" not in found.leaking
    assert found.container_auc["leaky"].low > parity.LEAK
    assert found.verdict().startswith("THE TEST SET LEAKS THROUGH ITS CONTAINER")
    assert "leaky" in found.verdict()


def test_a_size_leak_between_photographs_sizes_is_caught():
    """Not a shift to one side: generated sizes lie within the photographs', which no single cut separates."""
    found = parity.audit(_table(200, 0), {"a": _table(100, 1, size=(180, 200))}, resamples=200)
    assert found.leaking == ["a"] and found.certain


def test_too_few_images_are_said_to_be_too_few():
    found = parity.audit(_table(200, 0), {"a": _table(5, 1, codec="png")}, resamples=200)
    assert found.container_auc == {} and found.too_small == ["a"]
    assert "nothing is known" in found.verdict()
    both = parity.audit(_table(200, 0), {"a": _table(5, 1), "b": _table(80, 2)}, resamples=200)
    assert "Too few images to audit: a" in both.verdict()


def test_distributions_side_by_side():
    real = parity.distribution(pa.concat_tables([_table(30, 0, size=(100, 101)), _table(10, 1, codec="png")]))
    assert real.n == 40 and real.codecs == {"jpeg": 30, "png": 10}
    assert real.quantiles["width"][0] <= 100 <= real.quantiles["width"][-1]
    assert parity.distribution(_table(10, 1, codec="png")).quantiles["jpeg_quality"] is None


def test_a_leak_that_may_be_chance_is_said_to_be_one_that_may():
    def found(value, n, m):
        side = parity.distribution(_table(n, 0))
        return parity.Audit(side, {"a": side}, {"a": Estimate(value, value - 0.1, value + 0.1, n, m)})

    assert found(0.63, 300, 50).verdict().startswith("THE TEST SET MAY LEAK THROUGH ITS CONTAINER")
    assert found(0.63, 3000, 500).verdict().startswith("THE TEST SET LEAKS THROUGH ITS CONTAINER")
    assert found(0.75, 300, 50).verdict().startswith("THE TEST SET LEAKS THROUGH ITS CONTAINER")
    assert found(0.59, 3000, 500).verdict().startswith("Container audit passed")
