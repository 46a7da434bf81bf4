"""The whole report from given predictions: four detectors, five generators, one detector with a head a generator."""

import dataclasses
import json

import numpy as np
import pytest

from blades_dist.evaluate import report
from tests.evaluate.pages import Page, assert_self_contained
from tests.evaluate.synthetic import DETECTORS, GENERATORS, make_evaluation


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation(resamples=100)


@pytest.fixture(scope="module")
def text(evaluation):
    return report.to_html(evaluation)


def test_the_page_needs_nothing_but_itself(text):
    page = assert_self_contained(text)
    assert {"results", "audit", "plots", "detectors", "mistakes", "data"} <= {
        t[1:] for t in page.targets if t[0] == "#"
    }


def test_the_first_line_is_the_verdict_of_what_was_evaluated(evaluation, text):
    page = Page(text)
    assert page.text[0] == evaluation.audit.verdict() and page.text[0].startswith("Container audit passed")
    before = [line for line in page.text if line.startswith("Before re-encoding: ")]
    assert len(before) == 1 and "THE TEST SET LEAKS" in before[0]
    assert "SIMULATED data" in page.text[1]


def test_without_re_encoding_one_audit_is_shown(evaluation):
    alone = report.to_html(dataclasses.replace(evaluation, audit_before=None))
    assert "before re-encoding" not in alone.lower() and "re-encoded alike" not in alone
    assert report.results(dataclasses.replace(evaluation, audit_before=None))["audit_before"] is None


def test_numbers_of_the_page_are_those_of_the_json(evaluation, text):
    page = Page(text)
    results = json.loads(json.dumps(report.results(evaluation), allow_nan=False))
    assert results["schema_version"] == 2
    for key, rows in results["tables"].items():
        values = [cell["value"] for row in rows for cell in row["cells"].values()]
        assert page.values[key] == [value for value in values if value is not None]
    assert set(results["tables"]) == {*(f"table{i}" for i in range(1, 7)), "comparison", "paired"}


def test_json_says_what_each_detector_has(evaluation):
    detectors = report.results(evaluation)["detectors"]
    for name, (_, with_p, with_probability, own_heads) in DETECTORS.items():
        found = detectors[name]
        assert (found["p_values"] is not None, found["probability"] is not None) == (with_p, with_probability)
        assert found["own_heads"] == own_heads
        assert set(found["accuracy"]["generators"]) == set(found["unsure"]["generators"]) == set(GENERATORS)
        if with_p:
            assert list(found["p_values"]["fpr"]) == ["0.001", "0.01", "0.05", "0.1"]
        if with_probability:
            assert sum(found["probability"]["bins"]["weight"]) == pytest.approx(1)
    assert report.results(evaluation)["config"]["rate"] is None  # an infinity, which JSON cannot hold


def test_names_and_provenance_are_escaped(text):
    assert "stylegan3 &lt;t&gt;" in text and "bc &lt;leave one out&gt;" in text and "&lt;unescaped&gt;" in text
    assert "<leave" not in text and "<t>" not in text


def test_every_detector_has_its_section_and_plots(evaluation, text):
    assert text.count('<details class="detector"') == len(DETECTORS)
    assert text.count('<details class="detector" open>') == 1
    names = [plot.name for plot in evaluation.plots]
    assert names[:5] == ["roc-all", "reliability", "p-values", "features", "weights"]
    assert len(names) == len(set(names)) == 5 + 2 * len(DETECTORS)
    assert [plot.detector for plot in evaluation.plots[5::2]] == list(DETECTORS)


def test_leave_one_out_and_seen_generators_are_said(text):
    joined = " ".join(Page(text).text)
    assert "Each generator was judged by a head that had not seen it." in joined
    assert "Trained on images of flux." in joined
    assert "BIC -1234.5" in joined
    assert "none that holds for all, nominal false-positive rate 5%, from 999 photographs" in joined


def test_mistakes_are_the_worst_ones(evaluation):
    fakes, photographs = evaluation.passed_fakes, evaluation.doubted_photographs
    pairs = evaluation.assessments["oc"].pairs
    scores = np.concatenate([pair.generated.scores for pair in pairs.values()])
    assert [m.score for m in fakes] == sorted(scores, reverse=True)[:8]
    assert [m.score for m in photographs] == sorted(next(iter(pairs.values())).real.scores)[:8]
    assert {m.source for m in photographs} == {"camera"} and {m.source for m in fakes} <= set(GENERATORS)


def test_a_detector_without_p_values_and_threshold_may_be_the_main_one(evaluation):
    name = "user's scorer"
    alone = dataclasses.replace(
        evaluation,
        assessments={name: evaluation.assessments[name]},
        facts={name: dataclasses.replace(evaluation.facts[name], threshold=None)},
        tables=evaluation.tables[:6],
        plots=(),
        passed_fakes=[
            dataclasses.replace(m, p_value=None, unsure=True, flagged=False) for m in evaluation.passed_fakes
        ],
    )
    page = assert_self_contained(report.to_html(alone))
    joined = " ".join(page.text)
    assert "At its own operating point it flags" in joined and "nominal false-positive rate" not in joined
    assert "unsure" in page.images[0]["alt"]
