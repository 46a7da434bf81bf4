"""The robustness job on a small world of real parts, and after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from sklearn.metrics import roc_auc_score

from blades_dist.config import ExtractConfig, RobustnessConfig
from blades_dist.detect.detector import load_detector
from blades_dist.detect.extract import Request, extract
from blades_dist.evaluate.inputs import EvaluationError
from blades_dist.evaluate.robustness import robustness
from blades_dist.perturb import GRID
from tests.evaluate.pages import assert_self_contained
from tests.evaluate.worlds import GENERATORS, write_textures

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def _config(world, output, **values):
    known = {"detectors": {"main": world / "main"}, "shards": world / "shards", "generated": world / "generated"}
    known |= {"output": output, "rows": ["Gaussian blur"], "limit": 40, "bootstrap": 100}
    return RobustnessConfig.model_validate(known | values)


def test_robustness_grid(world, tmp_path, capsys):
    config = _config(world, tmp_path, detectors={name: world / name for name in ("main", "bc", "loo")})
    told = []
    page = robustness(config, told.append)
    printed, text = capsys.readouterr().out, page.read_text()
    assert assert_self_contained(text).text[0] == printed.splitlines()[0]
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert found["audit"]["verdict"] == printed.splitlines()[0] and found["audit"]["photographs"]["n"] == 40
    assert found["remarks"][0].startswith("Measured on SIMULATED data")
    assert found["remarks"][1].startswith("bc was trained on images of gan_nearest") and len(found["remarks"]) == 3
    assert found["remarks"][2] == "loo: every generator was judged by a head that had not seen it."
    cells = {(cell["perturbation"], cell["detector"]): cell for cell in found["cells"]}
    specs = ["", "blur0.5", "blur1", "blur2", "blur4"]
    assert list(cells) == [(spec, name) for spec in specs for name in ("main", "bc", "loo")]
    assert all(cell["auc"]["n_real"] == 40 for cell in cells.values())
    # The grid was blurred like its fakes are: what was found by sharpness is found no more.
    assert cells["", "main"]["auc"]["value"] != cells["blur4", "main"]["auc"]["value"]
    assert cells["blur2", "loo"]["auc"]["value"] == pytest.approx(_left_out_auc(world, "blur2"))
    again = []
    robustness(config, again.append)
    assert any("features of" in line for line in told) and not any("features of" in line for line in again)


def _left_out_auc(world, view):
    """Mean over generators of the AUC under the head that has not seen it, the plain way."""
    requests = [Request(world / "main", world / side, "test", view, 40) for side in ("shards", "generated")]
    real, fakes = extract(requests, ExtractConfig(), lambda _: None)
    found = []
    for name in GENERATORS:
        head = load_detector(world / "loo" / f"without-{name}")
        own = head.score(fakes.where(np.array(fakes.sources) == name).features)
        photographs = head.score(real.features)
        truth = np.r_[np.zeros(len(photographs)), np.ones(len(own))]
        found.append(roc_auc_score(truth, -np.r_[photographs, own]))
    return np.mean(found)


def test_what_cannot_be_put_through_the_grid_is_told(world, tmp_path):
    for values, message in (
        ({"rows": ["sharpen"]}, "rows: sharpen are not in the grid; it has: JPEG"),
        ({"detectors": {"d": "tests.evaluate.scorers:brightness"}}, r"detectors\.d: .*is a function"),
        ({"detectors": {"d": world / "run"}}, r"detectors\.d: .*holds neither detector\.json"),
        ({"generated": world / "shards"}, "generated: .* holds photographs, not generated"),
    ):
        with pytest.raises(EvaluationError, match=message):
            robustness(_config(world, tmp_path, **values))


def test_a_killed_grid_goes_on_where_it_was_and_a_leak_opens_it(world, tmp_path, capsys):
    plant, cache, output = {"foreign": {"codec": "png"}}, tmp_path / "features", tmp_path / "out"
    write_textures(tmp_path / "png", "generated", {"test": 50}, {"foreign": 0.4}, seed=2, planted=plant)
    config = _config(world, output, generated=tmp_path / "png", rows=["screenshot"], extract={"cache": cache})
    keys = {"shards": config.shards, "generated": config.generated, "output": output, "extract.cache": cache}
    arguments = [f"detectors.main={world / 'main'}", *(f"{key}={value}" for key, value in keys.items())]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "jobs/robustness.py", *arguments]  # the whole grid
    job = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)
    said = []
    for line in job.stderr:
        said.append(line)
        if "features of" in line:  # the first files are there, most are not
            job.send_signal(signal.SIGKILL)
            break
    job.stderr.close()
    assert job.wait(timeout=60) == -signal.SIGKILL, said
    whole = 2 * 2 * (1 + sum(len(specs) for specs in GRID.values()))  # two sides, as it is and re-encoded
    done = {file: file.stat().st_mtime_ns for file in cache.rglob("*.parquet")}
    assert 0 < len(done) < whole and not output.exists()
    page = robustness(config, lambda _: None)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("THE TEST SET LEAKS THROUGH ITS CONTAINER")
    assert assert_self_contained(page.read_text()).text[0] == first and "<title>LEAK: " in page.read_text()
    assert (output / "robustness.md").read_text().startswith(first)
    cells = json.loads((output / "robustness.json").read_text())["cells"]
    assert [cell["perturbation"] for cell in cells] == ["", *GRID["screenshot"]]
    for file, changed in done.items():
        assert file.stat().st_mtime_ns == changed and pq.read_metadata(file).num_rows == 50
