"""The evaluate job on small real parts: shards of random textures, random encoders, fitted bundles."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest

from blades_dist.config import ExtractConfig
from blades_dist.detect.detector import load_detector
from blades_dist.detect.extract import Request, extract
from blades_dist.evaluate.inputs import EvaluationError
from blades_dist.evaluate.run import evaluate
from tests.evaluate.pages import Page, assert_self_contained
from tests.evaluate.worlds import GENERATORS, evaluation, write_textures
from tests.jobs import run_job

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def done(world):
    """The report's folder and what was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        page = evaluate(evaluation(world))
    return page.parent, out.getvalue()


def test_every_file_is_there_and_nothing_else(done):
    folder, _ = done
    assert {p.name for p in folder.iterdir()} == {
        *("report.html", "results.json", "tables.md", "tables.csv", "tables.tex", "plots")
    }
    plots = sorted(p.name for p in (folder / "plots").iterdir())
    # Two a detector, and features, weights, all ROC, reliability, p-values.
    assert len(plots) == 2 * 5 + 5 and "weights.png" in plots and "roc-2-a_b_c.png" in plots


def test_numbers_of_the_page_are_those_of_the_json(done):
    folder, _ = done
    page, results = Page((folder / "report.html").read_text()), json.loads((folder / "results.json").read_text())
    for key, rows in results["tables"].items():
        cells = [cell["value"] for row in rows for cell in row["cells"].values()]
        assert page.values[key] == [value for value in cells if value is not None]  # "n/a" on the page
    main = results["detectors"]["main"]
    assert results["tables"]["table2"][-1]["cells"]["main"] == main["ranking"]["AUC"]["mean"]
    lines = list(csv.DictReader((folder / "tables.csv").open()))
    assert [float(x["value"]) for x in lines if x["table"] == "table1"] == page.values["table1"]


def test_numbers_are_those_of_scikit_learn_on_the_detectors_scores(world, done):
    from sklearn.metrics import roc_auc_score

    results = json.loads((done[0] / "results.json").read_text())
    detector = load_detector(world / "main")
    requests = [Request(world / "main", world / name, "test") for name in ("shards", "generated")]
    real, fakes = extract(requests, ExtractConfig(), lambda _: None)
    scores = detector.score(real.features)
    for name in GENERATORS:
        own = detector.score(fakes.where(np.array(fakes.sources) == name).features)
        expected = roc_auc_score(np.r_[np.zeros(len(scores)), np.ones(len(own))], -np.r_[scores, own])
        assert results["detectors"]["main"]["ranking"]["AUC"]["generators"][name]["value"] == pytest.approx(expected)
    fpr = results["detectors"]["main"]["confusion"]["FPR"]
    assert fpr["value"] == pytest.approx(np.mean(scores < detector.threshold())) and fpr["n_real"] == 50


def test_the_page_needs_nothing_but_itself(done):
    assert_self_contained((done[0] / "report.html").read_text())


def test_names_and_provenance_are_escaped(done):
    text = (done[0] / "report.html").read_text()
    assert "a &lt;b&gt; &amp; c" in text and "<b> & c" not in text
    assert "&lt;untrained&gt; &amp; unescaped" in text


def test_the_first_line_is_the_audit(done):
    folder, printed = done
    assert printed.splitlines()[0].startswith("Container audit passed")
    assert Page((folder / "report.html").read_text()).text[0] == printed.splitlines()[0]
    assert (folder / "tables.md").read_text().startswith("Container audit passed")
    assert printed.splitlines()[-1] == f"report: {folder / 'report.html'}"


def test_simulated_data_are_named_so(done):
    folder, printed = done
    for text in (printed, (folder / "tables.md").read_text(), (folder / "report.html").read_text()):
        assert "SIMULATED data" in text and "machinery works" in text


def test_generators_seen_in_training_are_named(done):
    remarks = json.loads((done[0] / "results.json").read_text())["data"]["remarks"]
    assert [r for r in remarks if r.startswith("bc was trained on images of gan_nearest")]
    assert not [r for r in remarks if r.startswith("main")]


def test_pretraining_and_mistakes_are_shown(done):
    page = Page((done[0] / "report.html").read_text())
    joined = " ".join(page.text)
    assert "AUC 0.900 [0.850, 0.950] (n = 80)" in joined and "60.0 [55.0, 65.0]" in joined
    assert "passed, wrongly" in joined or "flagged, rightly" in joined
    thumbnails = [image for image in page.images if image["alt"].startswith("Face from")]
    assert len(thumbnails) == 16


def test_a_planted_container_leak_opens_everything_and_a_rerun_replaces_its_own_files_only(world, tmp_path, capsys):
    plant, output = {"foreign": {"codec": "png"}}, tmp_path / "out"
    write_textures(tmp_path / "png", "generated", {"test": 30}, {"foreign": 0.4}, seed=2, planted=plant)
    detectors = {"main": str(world / "main")}
    config = evaluation(world, detectors=detectors, generated=tmp_path / "png", output=output, history=None)
    (output / "plots").mkdir(parents=True)
    (output / "mine.txt").write_text("kept")
    (output / "plots" / "weights.png").write_text("of an earlier run")
    page = evaluate(config)
    first = "THE TEST SET LEAKS THROUGH ITS CONTAINER"
    assert capsys.readouterr().out.startswith(first)
    text = page.read_text()
    assert Page(text).text[0].startswith(first) and "<title>LEAK: " in text
    assert (output / "tables.md").read_text().startswith(first)
    assert "Nothing marks them as simulated" in text
    results = json.loads((output / "results.json").read_text())
    evaluate(config)
    assert results | {"created": ""} == json.loads((output / "results.json").read_text()) | {"created": ""}
    assert (output / "mine.txt").read_text() == "kept" and not (output / "plots" / "weights.png").exists()
    assert not [p for p in output.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": "nowhere"}, "shards: .*manifest.json is missing"),
        ({"shards": "generated"}, "shards: .* holds generated, not photographs"),
        ({"generated": "shards"}, "generated: .* holds photographs, not generated"),
        ({"detectors": {"d": "run"}}, r"detectors\.d: .*holds neither detector\.json"),
        ({"history": "main"}, "history: .*weights.json is missing"),
    ],
)
def test_user_errors_name_the_key(world, values, message):
    def path(value):
        return {k: str(path(v)) for k, v in value.items()} if isinstance(value, dict) else world / value

    with pytest.raises(EvaluationError, match=message):
        evaluate(evaluation(world, **{key: path(value) for key, value in values.items()}))


def test_the_job_ends_with_status_2_and_a_message(world):
    keys = {"shards": world / "shards", "generated": world / "nowhere", "output": world / "x"}
    ended = run_job("evaluate.py", f"detectors.main={world / 'main'}", *(f"{key}={keys[key]}" for key in keys))
    assert ended.returncode == 2 and ended.stderr.startswith("evaluate: generated: ")
    assert not (world / "x").exists()


def test_leave_one_out_judges_each_generator_by_a_head_that_has_not_seen_it(world, done):
    from sklearn.metrics import roc_auc_score

    results = json.loads((done[0] / "results.json").read_text())["detectors"]["loo"]
    assert results["own_heads"] and "had not seen it" in results["facts"]["note"]
    requests = [Request(world / "main", world / name, "test") for name in ("shards", "generated")]
    real, fakes = extract(requests, ExtractConfig(), lambda _: None)
    for name in GENERATORS:
        head = load_detector(world / "loo" / f"without-{name}")
        assert name not in head.info.training.generated
        own, photographs = head.score(fakes.where(np.array(fakes.sources) == name).features), head.score(real.features)
        truth = np.r_[np.zeros(len(photographs)), np.ones(len(own))]
        expected = roc_auc_score(truth, -np.r_[photographs, own])
        assert results["ranking"]["AUC"]["generators"][name]["value"] == pytest.approx(expected)


def test_a_scorer_of_ones_own_is_calibrated_and_judged(world, done):
    results = json.loads((done[0] / "results.json").read_text())["detectors"]["mine"]
    assert results["facts"]["calibrated_on"] == 60 and results["facts"]["bundle"] == "tests.evaluate.scorers:brightness"
    assert 0 <= results["ranking"]["AUC"]["mean"]["value"] <= 1
    for wrong, message in (
        ("tests.evaluate.scorers:nothing", "has no 'nothing'"),
        ("tests.evaluate.no_module:f", "cannot be imported"),
        ("tests.evaluate.scorers:short", r"returned \(1,\) for"),
    ):
        with pytest.raises(EvaluationError, match=rf"detectors\.d: .*{message}"):
            evaluate(evaluation(world, detectors={"d": wrong}, output=world / "x"), lambda _: None)


def test_equalising_removes_planted_leaks_and_recalibrates(world, tmp_path):
    planted = {"foreign": {"codec": "png"}, "one_size": {"side": 64}}
    blurs = dict.fromkeys(planted, 0.4)
    write_textures(tmp_path / "leaky", "generated", {"test": 40}, blurs, seed=2, planted=planted)
    output = tmp_path / "out"
    given = {"shards": world / "shards", "generated": tmp_path / "leaky", "output": output, "bootstrap": 200}
    arguments = [f"detectors.main={world / 'main'}", *(f"{key}={value}" for key, value in given.items())]
    done = run_job("evaluate.py", *arguments, "--equalise")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("THE TEST SET LEAKS THROUGH ITS CONTAINER")
    results = json.loads((output / "results.json").read_text())
    assert set(planted) <= set(results["audit_before"]["leaking"]) and results["audit"]["leaking"] == []
    assert set(planted) <= set(results["audit"]["container_auc"])
    assert "found anew on the calibration photographs" in results["data"]["remarks"][0]
    facts = results["detectors"]["main"]["facts"]
    assert facts["threshold"] != load_detector(world / "main").threshold()
    assert Page((output / "report.html").read_text()).text[0].startswith("Container audit passed")
