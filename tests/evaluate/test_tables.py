import csv
import io
import math

import numpy as np
import pytest

from blades_dist.evaluate import tables
from blades_dist.evaluate.metrics import Estimate


@pytest.fixture(scope="module")
def built():
    rng = np.random.default_rng(0)
    real, sets = rng.normal(0, 1, 80), {"gan_a": rng.normal(-2, 1, 40), "gan|b": rng.normal(-1, 1, 30)}
    flags = {name: scores < -1.6 for name, scores in sets.items()}
    main = tables.assess(real, sets, real < -1.6, flags, resamples=200)
    other = tables.assess(-real, {n: -s for n, s in sets.items()}, real > 1.6, flags, resamples=200)
    return real, sets, {"main": main, "other_one": other}, tables.build_tables({"main": main, "other_one": other})


def test_accuracy_is_balanced_and_the_mean_is_over_generators(built):
    real, sets, assessments, _ = built
    tnr = np.mean(real >= -1.6)
    tprs = {name: np.mean(scores < -1.6) for name, scores in sets.items()}
    accuracy = assessments["main"].accuracy
    for name, tpr in tprs.items():
        assert accuracy[name].value == pytest.approx((tnr + tpr) / 2)
    assert accuracy["mean"].value == pytest.approx((tnr + np.mean(list(tprs.values()))) / 2)
    assert assessments["main"].confusion["TPR"].n_generated == 70


def test_every_number_has_n_and_an_interval(built):
    found = built[3]
    assert [table.key for table in found] == ["table1", "table2", "table3", "table4", "comparison"]
    for table in found:
        for row in table.rows:
            assert len(row.cells) == len(table.columns)
            for cell in row.cells:
                assert cell.low <= cell.value <= cell.high
                assert cell.n_real + cell.n_generated > 0
    assert found[1].rows[0].images == "80 + 40" and found[1].rows[-1].images == "80 + 70"


def test_comparison_is_the_difference_of_the_means(built):
    _, _, assessments, found = built
    first, second, gap = found[-1].rows[0].cells
    assert gap.value == pytest.approx(first.value - second.value)
    assert first == assessments["main"].ranked["AUC"].mean()
    assert gap.low > 0


def test_one_detector_needs_no_comparison(built):
    assert len(tables.build_tables({"main": built[2]["main"]})) == 4


def test_csv_holds_the_same_numbers(built):
    found = built[3]
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(found))))
    assert len(lines) == sum(len(t.rows) * len(t.columns) for t in found)
    cell = found[0].rows[0].cells[0]
    assert float(lines[0]["value"]) == cell.value and float(lines[0]["low"]) == cell.low


def test_markdown_escapes_and_aligns(built):
    text = tables.to_markdown(built[3])
    assert "gan\\|b" in text
    rows = [line for line in text.splitlines() if line.startswith("| gan\\|b")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def test_latex_escapes(built):
    text = tables.to_latex(built[3])
    assert r"other\_one" in text and r"gan\_a" in text and r"accuracy per generator, \%" in text.lower()


def test_text_is_aligned(built):
    lines = tables.to_text(built[3]).split("\n\n")[0].splitlines()[1:]
    assert len({len(line) for line in lines}) == 1


def test_not_available_is_said():
    nan = math.nan
    assert tables.show(Estimate(nan, nan, nan, 0, 5)) == "n/a"
    assert tables.show(Estimate(0.5, nan, nan, 1, 5)) == "0.500 [n/a]"
    assert tables.show(Estimate(0.873, 0.85, 0.901, 9, 9), percent=True) == "87.3 [85.0, 90.1]"
    assert tables.show(Estimate(0.02, -0.01, 0.05, 9, 9), signed=True) == "+0.020 [-0.010, +0.050]"


def test_a_generator_without_images_is_shown_and_left_out_of_the_mean():
    rng = np.random.default_rng(1)
    sets = {"a": rng.normal(-1, 1, 20), "empty": np.zeros(0)}
    found = tables.assess(rng.normal(0, 1, 20), sets, np.zeros(20, bool), {n: s < 0 for n, s in sets.items()})
    assert found.accuracy["mean"].value == found.accuracy["a"].value
    built = tables.build_tables({"d": found})
    assert "n/a" in tables.to_text(built) and "20 + 0" in tables.to_text(built)
