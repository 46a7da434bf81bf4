"""A whole small sweep, taken up from a ledger as a killed one leaves it; early stopping leaves nothing behind."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from blades_dist.config import IngestConfig
from blades_dist.data.ingest import ingest
from blades_dist.detect.detector import load_detector
from blades_dist.settings import ConfigError
from blades_dist.simulate.dataset import write_generated, write_photographs
from blades_dist.tuning.config import SweepConfig
from blades_dist.tuning.encoders import LEDGER, concurrent_runs, search_encoders
from blades_dist.tuning.ledger import Candidate, Ledger
from blades_dist.tuning.sweep import check, sweep
from tests.tuning.small import config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    write_photographs(root / "photographs", 160, seed=3, size=64)
    write_generated(root / "generated", ["spectral", "diffusion"], 20, seed=3, size=64)
    common = {"min_face_px": 32, "rows_per_group": 8, "near_duplicate_bits": 0}
    splits = {"train": 0.4, "val": 0.2, "calibration": 0.2, "test": 0.2}
    ingest(IngestConfig(source=root / "photographs", output=root / "shards", splits=splits, **common))
    half = {"train": 0.5, "test": 0.5}
    ingest(IngestConfig(source=root / "generated", output=root / "fakes", kind="generated", splits=half, **common))
    return root


@pytest.fixture(scope="module")
def taken_up(folder: Path) -> tuple[SweepConfig, list[str]]:
    """The sweep after its encoder trials: c001 was stopped before a kill, with a mark that no other run can reach."""
    wanted = check(config(folder, folder / "shards", generated=folder / "fakes"))
    ledger = Ledger(wanted.folder / LEDGER)
    ledger.add(Candidate(0, {}))
    ledger.add(Candidate(1, {"train.lr": 1e-3, "bilevel.initial.face_coarse": 1.0}))
    ledger.start(1, 0)
    ledger.report("c001-s0", 2, 1.0)
    ledger.end("c001-s0", "stopped")
    told: list[str] = []
    search_encoders(wanted, told.append)
    return wanted, told


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_run_leaves_no_placement_group_and_no_worker(taken_up: tuple[SweepConfig, list[str]]) -> None:
    wanted, told = taken_up
    runs = Ledger(wanted.folder / LEDGER).runs
    assert {name: run.state for name, run in runs.items()} == {
        "c000-s0": "finished",
        "c001-s0": "stopped",
        "c002-s0": "stopped",
    }, told
    assert runs["c002-s0"].reports[-1][0] == 2 and [step for step, _ in runs["c000-s0"].reports] == [2, 4, 6]
    assert not (wanted.folder / "encoders" / "small-c002-s0" / "encoder").exists()
    end = time.monotonic() + 60
    while (left := _left()) and time.monotonic() < end:
        time.sleep(0.5)
    assert not left


def _left() -> list[str]:
    groups = [name for name, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"]
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    return groups + [name for name in names if "TrainWorker" in name or "TrainController" in name]


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_ends_with_tables_a_page_and_a_bundle(taken_up: tuple[SweepConfig, list[str]]) -> None:
    wanted, _ = taken_up
    told: list[str] = []
    page = sweep(wanted, told.append)
    place = wanted.folder
    assert not any("c000-s0" in line for line in told), "nothing is trained again"
    with (place / "detectors.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 7 and len((place / "detectors" / "c000.jsonl").read_text().splitlines()) == 7
    found = json.loads((place / "sweep.json").read_text())
    scores = [float(row["objective"]) for row in trials if row["objective"]]
    assert found["best"]["score"] == pytest.approx(max(scores))
    default = next(row for row in found["detectors"] if row["number"] == 0)
    measured = json.loads((place / "encoders" / "small-c000-s0" / "objective.json").read_text())
    assert default["values"] == {"kind": "oc", "fpr": 0.05, "oc.n_components": 1}
    assert default["score"] == pytest.approx(measured["score"]), "both levels measure alike"
    first, best = found["comparison"]["contestants"]
    assert first["name"] == "default" and set(first["auc"]) == {"spectral", "diffusion"}
    assert found["comparison"]["differences"][0][0]["value"] == pytest.approx(
        best["mean"]["value"] - first["mean"]["value"]
    )
    assert found["comparison"]["verdict"] in (place / "table.md").read_text()
    for name in ("summary.html", "encoders.csv", "parallel_encoders.png", "parallel_detectors.png", "importance.png"):
        assert (place / name).stat().st_size > 100, name
    text = page.read_text()
    assert "<script" not in text and 'src="http' not in text and found["comparison"]["verdict"] in text
    bundle = load_detector(place / "best")
    assert bundle.info.kind == found["best"]["values"]["kind"] and bundle.info.fpr == found["best"]["values"]["fpr"]
    assert not (place / ".tune").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_detector_trials_go_on_after_a_kill(taken_up: tuple[SweepConfig, list[str]]) -> None:
    wanted, _ = taken_up
    file = wanted.folder / "detectors" / "c000.jsonl"
    if not file.is_file():
        sweep(wanted, lambda _: None)
    before = file.read_text().splitlines()
    file.write_text("\n".join(before[:4]) + "\n" + before[4][:30])  # the fifth was being written
    sweep(wanted, lambda _: None)
    after = file.read_text().splitlines()
    assert after[:4] == before[:4] and len(after) == 7
    assert sorted(json.loads(line)["number"] for line in after) == list(range(7))


@pytest.mark.ray
def test_what_cannot_run_is_refused(folder: Path, tmp_path: Path) -> None:
    base = config(tmp_path, folder / "shards").pretrain.model_dump()
    base["train"] |= {"cpus_per_worker": 8}
    with pytest.raises(ConfigError, match=r"needs 8\.25 CPU for each of 1 workers .* nodes have: 4 CPU"):
        concurrent_runs(config(tmp_path, pretrain=base))
    with pytest.raises(ConfigError, match=r"manifest\.json is missing"):
        check(config(tmp_path, tmp_path / "none"))
    with pytest.raises(ConfigError, match="holds photographs"):
        check(config(tmp_path, folder / "shards", generated=folder / "shards"))
    with pytest.raises(ConfigError, match="support no false-positive rate"):
        check(config(tmp_path, folder / "shards", fit={"fpr": 0.001}))


def test_a_sweep_is_its_configuration(folder: Path, taken_up: tuple[SweepConfig, list[str]]) -> None:
    wanted, _ = taken_up
    (wanted.folder / "config.yaml").exists() or sweep(wanted, lambda _: None)
    check(config(folder, folder / "shards", generated=folder / "fakes", detectors={"trials": 9}))
    with pytest.raises(ConfigError, match=r"another configuration.*\n  pretrain.train.lr: 1e-05 there, 0.1 now"):
        base = config(folder, folder / "shards").pretrain.model_dump()
        base["train"] |= {"lr": 0.1}
        check(config(folder, generated=folder / "fakes", pretrain=base))


def test_the_job_names_a_wrong_key() -> None:
    command = [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--config", str(ROOT / "jobs/configs/demo.yaml")]
    done = subprocess.run([*command, "encoders.candidate=3"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "unknown key 'encoders.candidate'; allowed here: candidates, seeds" in done.stderr
