"""The pretrain job's command line: what becomes of a run's folder and options, and every way to get it wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blades_dist.config import PretrainConfig
from blades_dist.distributed import World
from blades_dist.settings import ConfigError
from blades_dist.training import checkpoint_io
from blades_dist.training.checkpoint_io import Snapshot
from blades_dist.training.cli import continued, read_arguments, resumed
from blades_dist.training.provenance import CONFIG

ROOT = Path(__file__).parents[2]


def make_run(folder: Path, *, epoch: int = 12, checkpoint: bool = True, **values: Any) -> Path:
    """A run folder as a stopped run leaves it."""
    folder.mkdir(parents=True)
    train = {"epochs": 20, **values.pop("train", {})}
    config = PretrainConfig.model_validate(
        {
            "name": folder.name,
            "storage": folder.parent,
            "data": {"shards": folder.parent / "s"},
            "train": train,
            **values,
        }
    )
    record = {"manifest": "abc", **config.model_dump(mode="json")}
    (folder / CONFIG).write_text(yaml.safe_dump(record, sort_keys=False))
    if checkpoint:
        writer = checkpoint_io.Writer(folder / checkpoint_io.FOLDER, World(), torch.device("cpu"), 3)
        progress = {"step": 600, "train": {"epoch": epoch, "rows": 0}}
        writer.begin(Snapshot(600, {"model.w": torch.zeros(3)}, {"progress": progress, "manifest": "abc"}))
        writer.flush()
        writer.close()
    return folder


def test_resume_takes_the_runs_own_configuration(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", train={"lr": 0.5, "workers": 2, "batch_size": 8})
    config = read_arguments(["--resume", str(run)])
    assert (config.name, config.storage, config.train.lr) == ("a", tmp_path, 0.5)
    # How it is run is free, as long as the global batch stays.
    config = read_arguments(["train.workers=4", "--resume", str(run), "train.batch_size=4", "train.log_every=3"])
    assert (config.train.workers, config.train.batch_size, config.train.log_every) == (4, 4, 3)
    assert resumed(run, ["train.sinks.to=[mlflow]"]).train.sinks.to == ("mlflow",)
    assert resumed(run, ["train.lr=0.5"]) == resumed(run), "a value that is the run's own is no change"


def test_resume_finds_a_run_that_was_moved(tmp_path: Path) -> None:
    make_run(tmp_path / "a").rename(tmp_path / "b")
    config = resumed(tmp_path / "b")
    assert (config.name, config.storage) == ("b", tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lr=0.1"], r"another run.*--from:\n  train.lr: 1e-05 there, 0.1 now"),
        (["train.batch_size=7"], r"another run.*\n  the global batch .*: 48 there, 7 now"),
        (["train.deterministic=true"], r"another run.*\n  train.deterministic: False there, True now"),
        (["train.lrr=1"], r"unknown key 'train.lrr'; allowed here: lr, "),
        (["name=b"], "name: --resume takes them from RUN's folder"),
    ],
)
def test_resume_refuses_what_makes_another_run(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        resumed(make_run(tmp_path / "a"), overrides)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    for start in (resumed, lambda run: continued(run, "+5")):
        with pytest.raises(
            ConfigError, match=r"none is not the folder of a pretraining run: config.yaml: No such file"
        ):
            start(tmp_path / "none")
        run = make_run(tmp_path / start.__name__.strip("<>"))
        (run / CONFIG).write_text("name: a\ndata: {shards: s}\ntrain: {lrr: 1}\n")
        with pytest.raises(ConfigError, match=r"config.yaml is not a configuration .*unknown key 'train.lrr'"):
            start(run)
        (run / CONFIG).write_text("[")
        with pytest.raises(ConfigError, match=r"config.yaml is not YAML"):
            start(run)


def test_from_starts_a_new_run_for_more_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "a", train={"max_steps": 600, "lr": 0.5})
    config = read_arguments(["--from", str(run), "--epochs", "+5", "train.lr=0.1"])
    assert (config.name, config.storage, config.start_from) == ("a-2", tmp_path, run)
    assert (config.train.epochs, config.train.max_steps, config.train.lr) == (25, None, 0.1)
    assert "run a-2 starts from a at step 600, to 25 epochs in all" in capsys.readouterr().err
    assert continued(run, "14", ["name=longer"]).train.epochs == 14
    assert continued(run, "+1", ["name=longer", "train.max_steps=700"]).train.max_steps == 700


def test_the_same_command_goes_on_with_the_run_that_it_has_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    begun = make_run(tmp_path / "a-2", train={"epochs": 25}, start_from=run, checkpoint=False)
    assert continued(run, "+5").name == "a-2"
    assert continued(run, "+5", ["name=a-2"]).name == "a-2"
    assert continued(run, "+6").name == "a-3", "another run"
    (begun / "encoder").mkdir()
    assert continued(run, "+5").name == "a-3", "that one is finished"
    make_run(tmp_path / "b-7")
    assert continued(tmp_path / "b-7", "+5").name == "b-8"


@pytest.mark.parametrize("epochs", [None, "five", "+", "-3", "1.5", "+0.5"])
def test_epochs_that_are_none_are_refused(epochs: str | None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--epochs: say how far .*\+5 \(to 25, RUN's 20 and 5 more\)"):
        continued(make_run(tmp_path / "a"), epochs)


def test_from_refuses_what_cannot_be(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for epochs, overrides, message in (
        ("12", [], "RUN has 12 epochs behind it, so that nothing is left of 12"),
        ("+5", ["name=a"], "name: .*a exists and is not this run started from"),
        ("+5", ["train.epochs=9"], "train.epochs: --from and --epochs say them"),
        ("+5", ["trian.lr=9"], "unknown key 'trian'"),
    ):
        with pytest.raises(ConfigError, match=message):
            continued(run, epochs, overrides)
    (run / "encoder").mkdir()
    with pytest.raises(ConfigError, match="RUN has 20 epochs behind it, so that nothing is left of 20"):
        continued(run, "20")
    with pytest.raises(ConfigError, match="neither a checkpoint nor the folder of a run that has one"):
        continued(make_run(tmp_path / "b", checkpoint=False), "+5")
    damaged = make_run(tmp_path / "c")
    (checkpoint_io.saved(damaged / checkpoint_io.FOLDER)[0] / checkpoint_io.INDEX).write_text("{}")
    with pytest.raises(ConfigError, match=r"--from .*no checkpoint in .* is intact"):
        continued(damaged, "+5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "a", "--from", "b"], "give one of the two"),
        (["--resume", "a", "--config", "c.yaml"], "the configuration is that of RUN"),
        (["--resume", "a", "--epochs", "+5"], "--epochs: this is for --from RUN"),
        (["--epochs", "5"], "--epochs: this is for --from RUN"),
    ],
)
def test_options_that_exclude_each_other(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_job_itself_reads_these_options(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    job = [sys.executable, str(ROOT / "jobs" / "pretrain.py")]
    shown = subprocess.run(
        [*job, "--from", str(run), "--epochs", "+5", "--deterministic", "--print-config"],
        capture_output=True,
        text=True,
        check=True,
    )
    config = yaml.safe_load(shown.stdout)["pretrain"]
    assert config["start_from"] == str(run) and config["train"]["deterministic"] is True
    refused = subprocess.run([*job, "--resume", str(tmp_path / "x")], capture_output=True, text=True)
    assert refused.returncode == 2 and "is not the folder of a pretraining run" in refused.stderr
    assert "Traceback" not in refused.stderr
