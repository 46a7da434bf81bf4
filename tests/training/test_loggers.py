"""Scalars arrive at every logger, real services included, and a run that goes on tells no step twice."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blades_dist.bilevel.build import build_weights
from blades_dist.config import BilevelConfig, PretrainConfig
from blades_dist.settings import ConfigError
from blades_dist.tasks import task_set
from blades_dist.training import loggers
from blades_dist.training.loggers import METRICS, STATE, MetricLogger, check_loggers, open_loggers, read_metrics
from blades_dist.training.prefetch import Waits
from blades_dist.training.progress import Reporter
from blades_dist.training.step import StepResult


def config(folder: Path, *to: str, **sinks: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "name": folder.name,
            "storage": folder.parent,
            "data": {"shards": folder / "shards"},
            "train": {"sinks": {"to": to, **sinks}},
        }
    )


def log(config: PretrainConfig, first: int, last: int, offset: float = 0.0) -> list[str]:
    """Opens the loggers of a run that is at step ``first`` and tells steps first + 1..last, then leaves them."""
    said: list[str] = []
    opened = open_loggers(config, config.storage / config.name, first, said.append)
    for step in range(first + 1, last + 1):
        for logger in opened:
            logger.log(step, {"loss/iso": step + offset, "train/lr": 0.5})
    for logger in opened:
        logger.close()
    return said


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 300.0)  # a loaded machine is no failure
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_resumed_run_has_each_step_once(run: Path) -> None:
    both = config(run, "tensorboard")
    log(both, 0, 5)
    with (run / METRICS).open("a") as file:
        file.write('{"step": 6, "loss/iso": 6')  # what a kill leaves
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5]
    log(both, 3, 6, offset=0.25)
    lines = [json.loads(text) for text in (run / METRICS).read_text().splitlines()]
    assert [(line["step"], line["loss/iso"]) for line in lines] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.25), (5, 5.25), (6, 6.25)
    ]  # fmt: skip
    assert read_metrics(run) == lines
    events = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("loss/iso")
    assert [(event.step, event.value) for event in events] == [(line["step"], line["loss/iso"]) for line in lines]


def test_what_is_not_finite_is_null_in_json(run: Path) -> None:
    (logger,) = open_loggers(config(run), run, 0, pytest.fail)
    logger.log(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    logger.close()
    (line,) = read_metrics(run)
    assert (line["a"], line["b"], line["c"]) == (None, None, 1.0)


def test_the_reporter_hands_one_flat_dictionary_to_its_sinks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = task_set()
    weights = build_weights(BilevelConfig(), tasks)
    losses = torch.arange(float(len(tasks.names)))
    opened = open_loggers(config(run), run, 0, pytest.fail)
    reporter = Reporter(run, 2, 0, 3, 16, tasks.proxy, opened)
    for step in (1, 2, 3):
        outer = (losses + 1, losses + 2) if step == 2 else (None, None)
        reporter.step(step, 0, 0.5, Waits(), StepResult(losses, *outer, gradient_norm=4.0), weights)
    reporter.close()
    second, third = read_metrics(run)
    assert (second["step"], third["step"]) == (2, 3)
    last = tasks.names[-1]
    assert second[f"loss/{last}"] == 10 and second[f"val/{last}"] == 11 and second[f"hypergradient/{last}"] == 12
    assert second["train/lr"] == 0.5 and second["train/gradient_norm"] == 4 and second["lambda/iso"] == 1
    assert f"val/{last}" not in third and "step 3/3" in capsys.readouterr().out


def test_mlflow_is_told_and_resumed_under_one_id(run: Path) -> None:
    mlflow = pytest.importorskip("mlflow.tracking")
    both = config(run, "mlflow", mlflow_experiment="faces")
    assert log(both, 0, 3) == []
    assert log(both, 2, 4, offset=0.25) == []
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("faces").experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert found.data.params["train.lr"] == "1e-05" and found.data.params["data.shards"] == str(run / "shards")
    history = client.get_metric_history(found.info.run_id, "loss/iso")
    # Step 3 stays as the first start told it: what MLflow has it keeps.
    assert [(point.step, point.value) for point in history] == [(1, 1), (2, 2), (3, 3), (4, 4.25)]
    # A run that is not there any more is begun anew, and told everything from where the run is.
    (run / STATE).write_text(json.dumps({"mlflow": {"id": "f" * 32, "told": 4}}))
    assert log(both, 3, 4) == []
    new = json.loads((run / STATE).read_text())["mlflow"]["id"]
    assert new not in ("f" * 32, found.info.run_id)
    assert [point.step for point in client.get_metric_history(new, "loss/iso")] == [4]


def test_wandb_is_told_offline_under_one_id(run: Path) -> None:
    pytest.importorskip("wandb")
    both = config(run, "wandb")
    assert log(both, 0, 5) == []
    assert log(both, 3, 7, offset=0.25) == []
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    parts = [list(wandb_history(file)) for file in files]
    assert sorted(parts) == [
        [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0)],
        [(6, 6.25), (7, 7.25)],
    ]
    assert not list((run / "wandb").rglob("requirements.txt")), "the environment is nobody else's business"


def wandb_history(file: Path) -> Iterator[tuple[int, float]]:
    """Steps and loss of an offline run: protocol buffers in blocks of 32 KiB, as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = Record.FromString(whole), b""
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "loss/iso" in items:
                yield record.history.step.num or int(items["_step"]), float(items["loss/iso"])


def test_a_service_that_fails_does_not_stop_the_run(run: Path) -> None:
    pytest.importorskip("mlflow.tracking")
    unwritable = config(run, "mlflow", mlflow_uri=f"sqlite:///{run / 'none' / 'mlflow.db'}")
    (run / "none").write_text("a file where a folder should be")
    (said,) = log(unwritable, 0, 3)
    assert said.startswith("mlflow is told nothing more by this start (") and "metrics.jsonl has everything" in said
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]


def test_a_service_that_hangs_does_not_keep_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    never, said = threading.Event(), list[str]()

    def hang() -> MetricLogger:
        never.wait(120)
        raise OSError("gone")

    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 0.05)
    logger = loggers.BackgroundLogger("slow", hang, said.append)
    logger.log(1, {"a": 1.0})
    logger.close()
    assert said and "slow has not taken everything" in said[0]
    never.set()


def test_a_missing_package_is_told_with_the_extra_that_has_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_loggers(config(run, "tensorboard"))
    present = {"mlflow": True}
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: present.get(name))
    with pytest.raises(ConfigError, match=r"train.sinks.to: wandb needs wandb; pip install 'blades_dist\[wandb\]'"):
        check_loggers(config(run, "wandb"))
    with pytest.raises(ConfigError, match=r"mlflow needs sqlalchemy, alembic; pip install 'blades_dist\[mlflow\]'"):
        check_loggers(config(run, "mlflow"))
    check_loggers(config(run, "mlflow", mlflow_uri="https://mlflow.example.org"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"to": ["tensorboard", "tensorboard"]}, "each at most once"),
        ({"to": ["neptune"]}, "'tensorboard', 'mlflow' or 'wandb'"),
        ({"mlflow_uri": "/some/folder"}, "on a server or in a database"),
        ({"mlflow_uri": "https://me:secret@mlflow.example.org"}, "set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_sinks_that_cannot_be_are_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig.model_validate({"data": {"shards": tmp_path}, "train": {"sinks": values}})
