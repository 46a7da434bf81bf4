"""The pretrain job through its entry point: what it refuses, and how it ends when it diverges (kills: test_chaos)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blades_dist.config import IngestConfig, PretrainConfig
from blades_dist.data.ingest import ingest
from blades_dist.settings import ConfigError
from blades_dist.simulate.dataset import write_photographs
from blades_dist.training import checkpoint_io, launch, provenance

ROOT = Path(__file__).parents[2]
STEPS = 8


@pytest.fixture(scope="module")
def shards(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    write_photographs(folder / "photographs", 80, seed=3, size=64)
    splits = {"train": 0.6, "val": 0.4}
    ingest(
        IngestConfig(
            source=folder / "photographs", output=folder / "shards", splits=splits, min_face_px=32, rows_per_group=8
        )
    )
    return folder / "shards"


def start(shards: Path, name: str, **values: object) -> "subprocess.Popen[str]":
    settings = {
        "name": name,
        "storage": shards.parent / "runs",
        "data.shards": shards,
        "data.image_size": 64,
        "model.image.preset": "resnet_tiny",
        "model.text": "{layers: 1, width: 32, heads: 2}",
        "model.embed_dim": 32,
        "train.workers": 2,
        "train.cpus_per_worker": 0.5,
        "train.batch_size": 6,
        "train.max_steps": STEPS,
        "train.checkpoint_every": 2,
        "train.log_every": 1,
        "train.lr": 1e-3,
        "bilevel.lr": 1e-2,
        "ray.num_cpus": 2,
        **values,
    }
    command = [
        sys.executable,
        str(ROOT / "jobs" / "pretrain.py"),
        *(f"{key}={value}" for key, value in settings.items()),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(job: "subprocess.Popen[str]") -> str:
    output = job.communicate(timeout=300)[0]
    assert job.returncode == 0, output
    return output


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_diverges_skips_and_then_stops_at_its_last_good_state(shards: Path) -> None:
    values = {"train.lr": 1e30, "train.accumulate": 2, "bilevel.reuse_gradient": True, "train.max_steps": 4}
    guard = {"train.guard.nonfinite": "skip", "train.guard.max_skips": 1}
    job = start(shards, "diverging", **values, **guard)
    output = job.communicate(timeout=300)[0]
    assert job.returncode == 1, output
    assert "skipped: step 0: validation loss of" in output and "(1 of at most 1)" in output
    assert "pretrain: stopped at step 1: validation loss of" in output and "TrainingFailedError" not in output
    folder = shards.parent / "runs" / "diverging"
    assert json.loads((folder / "stopped.json").read_text())["step"] == 1
    assert not (folder / "encoder").exists()
    saved = checkpoint_io.saved(folder / checkpoint_io.FOLDER)[0]
    assert str(saved) in output, "the message must name the checkpoint"
    tensors, state = checkpoint_io.read(saved)
    assert state["progress"]["step"] == 1 and [step["step"] for step in state["progress"]["skipped"]] == [0]
    assert state["weights"]["value"] == [1.0] * 11
    assert all(value.isfinite().all() for value in tensors.values())


@pytest.mark.ray
def test_what_cannot_run_is_refused_with_the_reason(shards: Path) -> None:
    cases = (
        ({"data.shards": shards / "none"}, "manifest.json is missing"),
        ({"train.batch_size": 64}, "fewer than one global batch of 128"),
        ({"train.cpus_per_worker": 8}, "2 workers need 16 CPU, the cluster has 2"),
    )
    # Side by side: most of a refusal is importing.
    jobs = [start(shards, f"refused-{number}", **values) for number, (values, _) in enumerate(cases)]
    for job, (_, message) in zip(jobs, cases, strict=True):
        output = job.communicate(timeout=240)[0]
        assert job.returncode == 2 and message in output, output
        assert "Traceback" not in output


def test_a_run_is_its_configuration_and_its_data(shards: Path, tmp_path: Path) -> None:
    def values(**train: object) -> PretrainConfig:
        config = {
            "storage": tmp_path,
            "data": {"shards": shards, "image_size": 64},
            "train": {"batch_size": 6, **train},
        }
        return PretrainConfig.model_validate(config)

    launch.check(values())
    (tmp_path / "pretrain").mkdir()
    provenance.write(launch.check(values()), tmp_path / "pretrain")
    launch.check(values(log_every=3))
    with pytest.raises(ConfigError, match=r"another configuration.*\n  train.lr: 1e-05 there, 0.1 now"):
        launch.check(values(lr=0.1))
    manifest = shards / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(before) | {"split_seed": 1}))
    try:
        with pytest.raises(ConfigError, match=r"another configuration.*\n  manifest: "):
            launch.check(values())
    finally:
        manifest.write_text(before)


def test_a_relative_path_in_a_submitted_job_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="must be absolute"):
        launch.check(PretrainConfig.model_validate({"data": {"shards": "shards"}}))
