import csv
import io
import math

import numpy as np
import pytest

from blades_dist.evaluate import table_formats, tables
from blades_dist.evaluate.assess import assess
from blades_dist.evaluate.predictions import Pair, Predictions
from blades_dist.evaluate.rates import Estimate
from tests.evaluate.synthetic import make_assessments


def _pairs(real, sets, cut=-1.6):
    def predictions(scores):
        return Predictions(scores, scores < cut, (scores >= cut) & (scores < cut + 0.3), None, None)

    shared = predictions(real)
    return {name: Pair(shared, predictions(scores)) for name, scores in sets.items()}


@pytest.fixture(scope="module")
def built():
    rng = np.random.default_rng(0)
    real, sets = rng.normal(0, 1, 80), {"gan_a": rng.normal(-2, 1, 40), "gan|b": rng.normal(-1, 1, 30)}
    main = assess(_pairs(real, sets), resamples=200)
    other = assess(_pairs(-real, {name: -scores for name, scores in sets.items()}), resamples=200)
    return real, sets, {"main": main, "other_one": other}, tables.build_tables({"main": main, "other_one": other})


def test_accuracy_is_balanced_and_the_mean_is_over_generators(built):
    real, sets, assessments, _ = built
    tnr = np.mean(real >= -1.6)
    tprs = {name: np.mean(scores < -1.6) for name, scores in sets.items()}
    accuracy = assessments["main"].accuracy
    for name, tpr in tprs.items():
        assert accuracy[name].value == pytest.approx((tnr + tpr) / 2)
    assert assessments["main"].mean_accuracy.value == pytest.approx((tnr + np.mean(list(tprs.values()))) / 2)
    assert assessments["main"].confusion["TPR"].n_generated == 70


def test_every_number_has_n_and_an_interval(built):
    found = built[3]
    keys = [*(f"table{i}" for i in range(1, 7)), "comparison", "paired"]
    assert [table.key for table in found] == keys
    for table in found:
        for row in table.rows:
            assert len(row.cells) == len(table.columns)
            for cell in row.cells:
                assert cell.n_real + cell.n_generated > 0
                if isinstance(cell, Estimate) and table.key != "table5":
                    assert cell.low <= cell.value <= cell.high
    assert found[1].rows[0].n == "80 + 40" and found[1].rows[-1].n == "80 + 70"


def test_calibration_is_not_available_without_probability_and_p_values(built):
    assert all(math.isnan(cell.value) for row in built[3][4].rows for cell in row.cells)


def test_verdicts_have_their_table(built):
    real, sets, assessments, found = built
    rows = {row.label: row.cells[0].value for row in found[5].rows}
    photographs = np.mean((real >= -1.6) & (real < -1.3))
    assert rows["photographs: unsure"] == pytest.approx(photographs)
    assert rows["photographs: called AI-generated"] == pytest.approx(np.mean(real < -1.6))
    assert rows["gan_a: unsure"] == pytest.approx(np.mean((sets["gan_a"] >= -1.6) & (sets["gan_a"] < -1.3)))
    assert rows["gan_a: called AI-generated"] == pytest.approx(np.mean(sets["gan_a"] < -1.6))
    assert assessments["main"].confusion["TNR"].value == pytest.approx(np.mean(real >= -1.6))
    shares = [np.mean((scores >= -1.6) & (scores < -1.3)) for scores in sets.values()]
    assert assessments["main"].mean_unsure.value == pytest.approx((photographs + np.mean(shares)) / 2)


def test_a_flagged_image_may_be_unsure_and_is_then_not_called_so():
    flagged, unsure = np.array([True, True, False, False]), np.array([True, False, True, False])
    predictions = Predictions(np.zeros(4), flagged, unsure, None, None)
    assert predictions.called.tolist() == [False, True, False, False]
    found = assess({"g": Pair(predictions, predictions)}, 100)
    assert found.detected["g"].value == 0.5 and found.called["g"].value == found.called_photographs.value == 0.25


def test_comparison_is_the_difference_of_the_means(built):
    _, _, assessments, found = built
    first, second, gap, p, corrected, mcnemar, _ = found[-2].rows[0].cells
    assert gap.value == pytest.approx(first.value - second.value)
    assert first == assessments["main"].ranked["AUC"].mean()
    assert gap.low > 0 and p.value == corrected.value == pytest.approx(2 / 201) and mcnemar.value < 0.001


def test_paired_tests_are_per_generator_and_corrected_over_their_column(built):
    rows = built[3][-1].rows
    assert [row.label for row in rows] == ["other_one, gan_a", "other_one, gan|b"]
    p, corrected = ([row.cells[i].value for row in rows] for i in (1, 2))
    assert corrected == pytest.approx([min(1, 2 * min(p)) if x == min(p) else max(p) for x in p])
    areas = [[a.ranked["AUC"].values[0] for a in built[2].values()]]
    assert rows[0].cells[0].value == pytest.approx(areas[0][0] - areas[0][1])


def test_a_head_a_generator_is_said_and_has_no_pooled_mcnemar():
    assessments = make_assessments(resamples=100)
    found = {table.key: table for table in tables.build_tables(assessments)}
    for key in ("table1", "table2", "table3", "table6"):
        assert "bc <leave one out>: each generator was judged by a head that had not seen it" in found[key].note
    by_label = {row.label: row for row in found["comparison"].rows}
    assert math.isnan(by_label["oc against bc <leave one out>"].cells[5].value)
    assert not math.isnan(by_label["oc against user's scorer"].cells[5].value)
    assert len(found["paired"].rows) == 3 * 5
    loo = assessments["bc <leave one out>"]
    rates = [np.mean(pair.real.flagged) for pair in loo.pairs.values()]
    assert loo.confusion["FPR"].value == pytest.approx(np.mean(rates)) and loo.confusion["FPR"].n_real == 120


def test_detectors_on_other_images_are_refused(built):
    rng = np.random.default_rng(0)
    other = assess(_pairs(rng.normal(0, 1, 79), {"gan_a": np.zeros(40), "gan|b": np.zeros(30)}), resamples=100)
    with pytest.raises(ValueError, match="main and other were not measured on the same images"):
        tables.build_tables({"main": built[2]["main"], "other": other})
    with pytest.raises(ValueError, match="no detector"):
        tables.build_tables({})


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="hold no generator"):
        assess({})
    pairs = _pairs(np.zeros(3), {"a": np.zeros(2)}) | _pairs(np.zeros(4), {"b": np.zeros(2)})
    with pytest.raises(ValueError, match="same photographs"):
        assess(pairs)
    one = Predictions(np.zeros(3), np.zeros(3, bool), np.zeros(3, bool), np.ones(3), None)
    with pytest.raises(ValueError, match="p_values for every generator or for none; missing for a"):
        assess(_pairs(np.zeros(3), {"a": np.zeros(2)}) | {"b": Pair(one, one)})


def test_one_detector_needs_no_comparison(built):
    assert len(tables.build_tables({"main": built[2]["main"]})) == 6


def test_csv_holds_the_same_numbers(built):
    found = built[3]
    lines = list(csv.DictReader(io.StringIO(table_formats.by_number(found).to_csv())))
    assert len(lines) == sum(len(t.rows) * len(t.columns) for t in found)
    cell = found[0].rows[0].cells[0]
    assert float(lines[0]["value"]) == cell.value and float(lines[0]["low"]) == cell.low


def test_markdown_escapes_and_aligns(built):
    text = "\n".join(table.to_markdown() for table in built[3])
    assert "gan\\|b" in text
    rows = [line for line in text.splitlines() if line.startswith("| gan\\|b")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def test_latex_escapes(built):
    text = "\n".join(table.to_latex() for table in built[3])
    assert r"$|$measured FPR - nominal$|$" in text and r"FPR at p $\le$ 0.1\%" in text and "≤" not in text
    assert text.isascii()
    assert r"other\_one" in text and r"gan\_a" in text and r"accuracy per generator, \%" in text.lower()


def test_text_is_aligned(built):
    lines = built[3][0].to_text().splitlines()[1:]
    assert len({len(line) for line in lines}) == 1


def test_not_available_is_said():
    nan = math.nan
    assert (
        table_formats.show(table_formats.PValue(nan, 1, 1)) == "n/a"
        and table_formats.show(table_formats.PValue(0.0004, 1, 1)) == "<0.001"
    )
    assert table_formats.show(Estimate(nan, nan, nan, 0, 5)) == "n/a"
    assert table_formats.show(Estimate(0.5, nan, nan, 1, 5)) == "0.500 [n/a]"
    assert table_formats.show(Estimate(0.873, 0.85, 0.901, 9, 9), percent=True) == "87.3 [85.0, 90.1]"
    assert table_formats.show(Estimate(0.02, -0.01, 0.05, 9, 9), signed=True) == "+0.020 [-0.010, +0.050]"


def test_a_generator_without_images_is_shown_and_left_out_of_the_mean():
    rng = np.random.default_rng(1)
    sets = {"a": rng.normal(-1, 1, 20), "empty": np.zeros(0)}
    found = assess(_pairs(rng.normal(0, 1, 20), sets, 0))
    assert found.mean_accuracy.value == found.accuracy["a"].value
    built = tables.build_tables({"d": found})
    text = "\n".join(table.to_text() for table in built)
    assert "n/a" in text and "20 + 0" in text
