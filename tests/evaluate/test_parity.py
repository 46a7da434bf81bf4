import numpy as np
import pyarrow as pa
import pytest

from blades_dist.evaluate import parity
from blades_dist.evaluate.parity import folds_of
from blades_dist.evaluate.rates import Estimate


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


def _recorded(n, seed, tables=40, bits=8, faces=1, source=(600, 5000), **options):
    """As shards of version 2: many encoders' tables, cameras' sizes, ``faces`` of each photograph."""
    rng = np.random.default_rng(seed + 1000)
    photo = np.arange(n) // faces
    kinds = rng.zipf(1.3, n) % tables if isinstance(tables, int) else np.full(n, tables)
    facts = {
        "photo": [f"{seed}-{i}" for i in photo],
        "jpeg_tables": [f"{kind}" for kind in kinds[photo]],
        "chroma": np.where(kinds[photo] % 3 > 0, "4:2:0", "4:4:4").tolist()
        if isinstance(tables, int)
        else ["4:2:0"] * n,
        "bit_depth": pa.array([bits] * n, pa.int8()),
        "pixel_mode": ["RGB"] * n,
        "icc_profile": (rng.random(n) < 0.3)[photo].tolist(),
        "source_width": pa.array(rng.integers(*source, n)[photo], pa.int32()),
        "source_height": pa.array(rng.integers(*source, n)[photo], pa.int32()),
    }
    table = _table(n, seed, **options)
    for name, values in facts.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


@pytest.mark.parametrize("seed", range(3))
def test_equal_containers_with_many_tables_and_faces_a_photograph_pass(seed):
    """What could be memorised: a photograph's own size, and tables that few files share."""
    real = _recorded(240, 10 * seed, faces=4)
    found = parity.audit(real, {"a": _recorded(120, 10 * seed + 1)}, resamples=200)
    assert found.unrecorded == {} and not found.certain
    assert abs(found.container_auc["a"].value - 0.5) < 0.11
    assert "Not recorded" not in found.verdict() and found.not_audited == parity.NOT_AUDITED


@pytest.mark.parametrize(
    "planted",
    [{"tables": 0, "quality": (80, 96)}, {"bits": 16}, {"source": (1024, 1025)}],
    ids=["one encoder's tables at the same qualities", "16 bits", "one source size"],
)
def test_a_planted_leak_in_what_version_2_records_is_caught(planted):
    if "tables" in planted:
        planted = planted | {"tables": "encoder of the generator"}
    found = parity.audit(_recorded(200, 0), {"fair": _recorded(80, 1), "leaky": _recorded(80, 2, **planted)}, 200)
    assert "leaky" in found.leaking and "fair" not in found.leaking and found.certain
    assert found.container_auc["leaky"].low > 0.9


def test_what_one_side_did_not_record_is_no_leak_and_is_said():
    """Shards of version 1 beside those of version 2; also rows of both in one set."""
    old, new = _table(150, 0), _recorded(100, 1)
    for real, generated in ((old, new), (new, old), (parity.with_container(old), new)):
        found = parity.audit(real, {"a": generated}, resamples=200)
        assert found.leaking == [] and "jpeg_tables" in found.unrecorded["a"] and len(found.unrecorded["a"]) == 7
        assert "not audited: width of the source picture" in found.verdict() and "ingest again" in found.verdict()
        assert len(found.not_audited) == len(parity.NOT_AUDITED) + 1
    half = new.set_column(new.schema.get_field_index("chroma"), "chroma", pa.array(["4:2:0"] * 50 + [None] * 50))
    found = parity.audit(_recorded(150, 0), {"a": half, "b": new}, resamples=200)
    assert found.unrecorded == {"a": ("chroma",), parity.ALL: ("chroma",)} and "chroma subsampling" in found.verdict()


def test_counts_name_the_frequent_values_and_sum_to_all():
    side = parity.distribution(_recorded(400, 0))
    assert set(side.counts) == {"jpeg_tables", "chroma", "bit_depth", "pixel_mode", "icc_profile"}
    assert all(sum(counts.values()) == 400 for counts in side.counts.values())
    assert side.counts["bit_depth"] == {"8": 400} and set(side.counts["icc_profile"]) == {"yes", "no"}
    assert len(side.counts["jpeg_tables"]) == parity.SHOWN and list(side.counts["jpeg_tables"])[-1].endswith(" others")
    assert side.quantiles["source_width"][0] >= 600
    assert parity.distribution(_table(10, 0)).counts == {}


def test_faces_of_one_photograph_never_meet_in_fit_and_score():
    table = _recorded(230, 0, faces=7)
    folds = folds_of(parity._complete(table), np.random.default_rng(0))
    photos = np.array(table["photo"].to_pylist())
    assert all(len(set(folds[photos == photo])) == 1 for photo in set(photos))
    assert np.bincount(folds, minlength=5).min() >= 35


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
