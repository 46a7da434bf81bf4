"""The evaluate job on small real parts: shards of random textures, random encoders, fitted bundles."""

import contextlib
import csv
import hashlib
import io
import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blades_dist.config import (
    EvaluateConfig,
    ExtractConfig,
    FitConfig,
    ImageTowerConfig,
    ModelConfig,
    RobustnessConfig,
    TextTowerConfig,
)
from blades_dist.data.records import MANIFEST, Manifest, Shard, label_column, shard_schema
from blades_dist.detect.bundle import load_detector
from blades_dist.detect.extract import Request, extract
from blades_dist.detect.fit import fit_detector
from blades_dist.evaluate.inputs import EvaluationError
from blades_dist.evaluate.robustness import robustness
from blades_dist.evaluate.run import evaluate
from blades_dist.models.export import freeze, save_encoder
from blades_dist.models.joint import build_joint_model
from blades_dist.tasks import TAGS, task_set
from tests.evaluate.pages import Page, assert_self_contained

pytestmark = pytest.mark.ray
JOB = Path(__file__).parents[2] / "jobs" / "evaluate.py"
GENERATORS = ("autoencoder", "gan_nearest")


def _row(rng, split, source, index, blur, codec="jpeg"):
    side = int(rng.integers(40, 90))
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(pixels, (0, 0), blur) if blur else pixels
    row = {item.name: None for item in shard_schema()} | {label_column(tag): -1 for tag in TAGS}
    return row | {
        "id": hashlib.sha256(f"{source}{split}{index}".encode()).hexdigest() + "-0",
        "photo": f"{source}{split}{index}",
        "split": split,
        "source": source,
        "path": f"{source}/{index:06d}.jpg",
        "image": cv2.imencode(".png", pixels)[1].tobytes(),
        "width": side,
        "height": side,
        "box": [0.0, 0.0, side / 1.3, side / 1.3],
        "landmarks": [side / 2] * 10,
        "codec": codec,
        "jpeg_quality": float(rng.integers(80, 97)) if codec == "jpeg" else None,
    }


def _write_set(folder, kind, counts, blurs, seed, codec="jpeg"):
    """``counts`` by split, of each source in ``blurs``."""
    rng, shards = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for split, n in counts.items():
        rows = [_row(rng, split, source, i, blur, codec) for source, blur in blurs.items() for i in range(n)]
        name = f"{split}-00000.parquet"
        pq.write_table(pa.Table.from_pylist(rows, shard_schema()), folder / name, row_group_size=32)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        groups = [32] * (len(rows) // 32) + [len(rows) % 32] * bool(len(rows) % 32)
        shards.append(Shard(name=name, split=split, rows=len(rows), row_groups=groups, sha256=digest))
    manifest = Manifest(
        kind=kind,
        shards=shards,
        ordinal_edges={},
        vocabularies={},
        split_seed=0,
        files_seen=sum(s.rows for s in shards),
        faces_seen=sum(s.rows for s in shards),
        rows={s.split: s.rows for s in shards},
        sources={name: sum(counts.values()) for name in blurs},
        quarantine={},
        crop_scale=1.3,
        min_face_px=40,
        locator="haar",
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())


def _save_encoder(folder, seed):
    towers = {"image": ImageTowerConfig(preset="resnet_tiny"), "text": TextTowerConfig(layers=1, width=16, heads=2)}
    model = build_joint_model(ModelConfig(**towers, embed_dim=16, batchnorm="frozen"), task_set(), seed)
    save_encoder(freeze(model, task_set(), 32, {"note": "<untrained> & unescaped"}), folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_cluster):
    root = tmp_path_factory.mktemp("world")
    photographs = {"train": 60, "val": 30, "calibration": 60, "test": 50}
    _write_set(root / "shards", "photographs", photographs, {"camera": 0.0}, seed=0)
    fakes = {"train": 20, "test": 25}
    _write_set(root / "generated", "generated", fakes, dict(zip(GENERATORS, (0.5, 0.3), strict=True)), seed=1)
    for seed, name in enumerate(("main", "other")):
        _save_encoder(root / f"encoder-{name}", seed)
        _fit(root, name, kind="oc", encoder=str(root / f"encoder-{name}"))
    known = {"kind": "bc", "encoder": str(root / "encoder-main"), "generated": root / "generated"}
    _fit(root, "bc", **known, generators=["gan_nearest"])
    _fit(root, "loo", **known, leave_one_out=True)
    run = root / "run"
    run.mkdir()
    names = list(task_set().names)
    (run / "weights.json").write_text(
        json.dumps({"names": names, "history": [[s, [1 + s / 100] * len(names)] for s in range(5)]})
    )
    task = {"accuracy": 0.6, "low": 0.55, "high": 0.65, "majority": 0.4, "n": 100}
    coarse = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 80}
    (run / "validation.json").write_text(json.dumps({"coarse_auc": coarse, "tasks": {"iso": task}}))
    return root


def _fit(root, name, **values):
    oc = {"components": 2, "pca": 4, "starts": 1}
    config = {"shards": root / "shards", "output": root / name, "oc": oc, "bc": {"hidden": 8, "epochs": 5}}
    config["re_encodings"] = ["jpeg75"]
    fit_detector(FitConfig.model_validate(config | values), lambda _: None)


def _config(world, **values):
    detectors = {"main": str(world / "main"), "a <b> & c": str(world / "other"), "bc": str(world / "bc")}
    detectors |= {"loo": str(world / "loo"), "mine": "tests.evaluate.scorers:brightness"}
    known = {"shards": world / "shards", "generated": world / "generated", "output": world / "out", "bootstrap": 200}
    return EvaluateConfig.model_validate({"detectors": detectors, "history": world / "run"} | known | values)


@pytest.fixture(scope="module")
def done(world):
    """The report's folder and what was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        page = evaluate(_config(world))
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
        expected = [cell["value"] for row in rows for cell in row["cells"].values()]
        assert page.values[key] == expected
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


def test_a_planted_container_leak_opens_everything(world, tmp_path, capsys):
    _write_set(tmp_path / "png", "generated", {"test": 30}, {"foreign": 0.4}, seed=2, codec="png")
    page = evaluate(
        _config(
            world,
            detectors={"main": str(world / "main")},
            generated=tmp_path / "png",
            output=tmp_path / "out",
            history=None,
        )
    )
    first = "THE TEST SET LEAKS THROUGH ITS CONTAINER"
    assert capsys.readouterr().out.startswith(first)
    text = page.read_text()
    assert Page(text).text[0].startswith(first) and "<title>LEAK: " in text
    assert (page.parent / "tables.md").read_text().startswith(first)
    assert "Nothing marks them as simulated" in text


def test_a_rerun_replaces_its_own_files_only(world, tmp_path):
    config = _config(world, detectors={"main": str(world / "main")}, output=tmp_path, history=None)
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "weights.png").write_text("of an earlier run")
    evaluate(config)
    first = json.loads((tmp_path / "results.json").read_text())
    evaluate(config)
    second = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "mine.txt").read_text() == "kept" and not (tmp_path / "plots" / "weights.png").exists()
    assert first | {"created": ""} == second | {"created": ""}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": "nowhere"}, "shards: .*manifest.json is missing"),
        ({"shards": "generated"}, "shards: .* holds generated, not photographs"),
        ({"generated": "shards"}, "generated: .* holds photographs, not generated"),
        ({"detectors": {"d": "run"}}, r"detectors\.d: .*no detector folder"),
        ({"history": "main"}, "history: .*weights.json is missing"),
    ],
)
def test_user_errors_name_the_key(world, values, message):
    def path(value):
        return {k: path(v) for k, v in value.items()} if isinstance(value, dict) else world / value

    with pytest.raises(EvaluationError, match=message):
        evaluate(_config(world, **{key: path(value) for key, value in values.items()}))


def test_the_job_ends_with_status_2_and_a_message(world, monkeypatch, capsys):
    keys = {"shards": world / "shards", "generated": world / "nowhere", "output": world / "x"}
    arguments = [f"{key}={value}" for key, value in keys.items()]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"detectors.main={world / 'main'}", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOB), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("evaluate: generated: ")
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
            evaluate(_config(world, detectors={"d": wrong}, output=world / "x"), lambda _: None)


def test_equalising_removes_a_planted_leak_and_recalibrates(world, tmp_path, capsys):
    _write_set(tmp_path / "png", "generated", {"test": 40}, {"foreign": 0.4}, seed=2, codec="png")
    detectors, output = {"main": str(world / "main")}, tmp_path / "out"
    config = _config(world, detectors=detectors, generated=tmp_path / "png", output=output, history=None, equalise=True)
    page = evaluate(config, lambda _: None)
    assert capsys.readouterr().out.startswith("THE TEST SET LEAKS THROUGH ITS CONTAINER")
    results = json.loads((output / "results.json").read_text())
    assert results["audit_before"]["leaking"] == ["foreign"] and results["audit"]["leaking"] == []
    assert "found anew on the calibration photographs" in results["data"]["remarks"][0]
    facts = results["detectors"]["main"]["facts"]
    assert facts["threshold"] != load_detector(world / "main").threshold()
    assert Page(page.read_text()).text[0].startswith("Container audit passed")


def test_robustness_grid(world, tmp_path, capsys):
    config = RobustnessConfig(
        detectors={"main": world / "main"},
        shards=world / "shards",
        generated=world / "generated",
        output=tmp_path,
        rows=["Gaussian blur"],
        limit=40,
        bootstrap=100,
    )
    told = []
    page = robustness(config, told.append)
    assert_self_contained(page.read_text())
    cells = json.loads((tmp_path / "robustness.json").read_text())["cells"]
    assert [cell["perturbation"] for cell in cells] == ["", "blur0.5", "blur1", "blur2", "blur4"]
    assert all(cell["auc"]["n_real"] == 40 for cell in cells)
    # The grid was blurred like its fakes are: what was found by sharpness is found no more.
    assert cells[0]["auc"]["value"] != cells[4]["auc"]["value"]
    again = []
    robustness(config, again.append)
    assert any("features of" in line for line in told) and not any("features of" in line for line in again)
    with pytest.raises(EvaluationError, match="rows: sharpen are not in the grid; it has: JPEG"):
        robustness(config.model_copy(update={"rows": ["sharpen"]}))
