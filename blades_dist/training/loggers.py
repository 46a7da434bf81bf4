"""Metric loggers: JSON lines, TensorBoard, and the experiment trackers MLflow and Weights & Biases.

A tracker's package is imported only where it is configured; its run has an ``id`` that a later start finds it by.
"""

import importlib.util
import json
import logging
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from blades_dist import __version__
from blades_dist.config import PretrainConfig
from blades_dist.files import write_atomically
from blades_dist.settings import ConfigError, flat

METRICS = "metrics.jsonl"  # in a run folder
STATE = "sinks.json"  # in a run folder: this run's ids at the trackers, and the last steps logged there
CLOSE_SECONDS = 60.0  # time for a tracker to receive the rest at the end
NEEDED = {"mlflow": ("mlflow",), "wandb": ("wandb",)}

Scalars = Mapping[str, float]
Say = Callable[[str], None]


class MetricLogger(Protocol):
    """A destination of a run's scalars."""

    def log(self, step: int, values: Scalars) -> None:
        """Takes the values after 1-based ``step``; steps do not go back."""

    def close(self) -> None:
        """Flushes and closes."""


def check_loggers(config: PretrainConfig) -> None:
    """Whether the packages of the configured loggers are installed; needs no cluster, imports none of them.

    Raises:
        ConfigError: a package is missing; names the extra to install.
    """
    sinks = config.train.sinks
    for name in sinks.to:
        needed = NEEDED.get(name, ())
        if name == "mlflow" and not (sinks.mlflow_uri or "").startswith("http"):
            needed = (*needed, "sqlalchemy", "alembic")  # for a database without a server before it
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"train.sinks.to: {name} needs {', '.join(missing)}; pip install 'blades_dist[{name}]' here and on "
                f"every host that trains, or leave {name} out"
            )


def open_loggers(config: PretrainConfig, folder: Path, step: int, say: Say) -> list[MetricLogger]:
    """The configured loggers of the run in ``folder``, which continues after ``step`` steps (0: starts).

    What an earlier start has logged beyond ``step`` is dropped where that can be done; what a tracker has already is
    not sent again. The failure of a tracker is reported by ``say``, once, and never stops the training.
    """
    last = read_metrics(folder)[-1:]
    tracked = TrackedRuns(folder, last[0]["step"] if last else 0)
    opened: list[MetricLogger] = [JsonLinesLogger(folder, step)]
    for name in config.train.sinks.to:
        if name == "tensorboard":
            opened.append(TensorBoardLogger(folder, step))
            continue

        make = MlflowLogger if name == "mlflow" else WandbLogger
        opened.append(BackgroundLogger(name, partial(_service_logger, name, make, config, tracked), say))
    return opened


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl`` in order of steps, each step once; a torn last line is left out."""
    steps: dict[int, dict[str, Any]] = {}
    for _, line in _lines(folder / METRICS):
        steps[line["step"]] = steps.get(line["step"], {}) | line
    return [steps[step] for step in sorted(steps)]


class JsonLinesLogger:
    """One line a logged step: ``step``, ``time`` (seconds since 1970) and the scalars; null where not finite."""

    def __init__(self, folder: Path, step: int) -> None:
        file = folder / METRICS
        kept = "".join(text + "\n" for text, line in _lines(file) if line["step"] <= step)
        if not file.is_file() or file.read_bytes() != kept.encode():
            write_atomically(file, kept)
        self._file = file.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, values: Scalars) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **plain}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoardLogger:
    """Events in the run's ``tensorboard/``; a reader leaves out what an earlier start wrote beyond ``step``."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Scalars) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class ResumedLogger:
    """Passes on what comes after ``step``; an earlier start has logged the rest."""

    def __init__(self, logger: MetricLogger, step: int) -> None:
        self._logger, self._step = logger, step

    def log(self, step: int, values: Scalars) -> None:
        if step > self._step:
            self._logger.log(step, values)

    def close(self) -> None:
        self._logger.close()


class BackgroundLogger:
    """A logger that is opened and used in its own thread, so that a slow tracker does not delay a step.

    Its first failure is reported, and nothing more is sent to it; ``metrics.jsonl`` has everything.
    """

    def __init__(self, name: str, start: Callable[[], MetricLogger], say: Say) -> None:
        self._name, self._start, self._say = name, start, say
        self._todo: queue.SimpleQueue[tuple[int, Scalars] | None] = queue.SimpleQueue()
        # A daemon: a service that does not answer must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Scalars) -> None:
        self._todo.put((step, dict(values)))

    def close(self) -> None:
        self._todo.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._say(f"{self._name} has not taken everything within {CLOSE_SECONDS:.0f} s; {METRICS} has it all")

    def _work(self) -> None:
        try:
            logger = self._start()
            while (item := self._todo.get()) is not None:
                logger.log(*item)
            logger.close()
        except Exception as error:  # whatever a service's client raises: training goes on
            reason = " ".join(str(error).split())[:300]
            self._say(
                f"{self._name} is told nothing more by this start ({type(error).__name__}: {reason}); "
                f"{METRICS} has everything"
            )


class TrackedRuns:
    """The id of this run at each tracker and the last step that may have been logged there, in the file ``STATE``.

    ``last`` is the last step that an earlier start has logged.
    """

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self._file = folder, folder / STATE
        self._lock = threading.Lock()  # trackers start in threads
        self._runs: dict[str, dict[str, Any]] = {}
        if self._file.is_file():
            runs = json.loads(self._file.read_text())
            self._runs = {name: run | {"told": max(run["told"], last)} for name, run in runs.items()}
            self._write()

    def id(self, name: str) -> str | None:
        return self._runs[name]["id"] if name in self._runs else None

    def last_step(self, name: str, run: str) -> int:
        """The last step logged to run ``run`` of the tracker ``name``; a new run is recorded."""
        with self._lock:
            if run != self.id(name):
                self._runs[name] = {"id": run, "told": 0}
                self._write()
            return int(self._runs[name]["told"])

    def _write(self) -> None:
        write_atomically(self._file, json.dumps(self._runs, indent=1) + "\n")


def _service_logger(name: str, make: Any, config: PretrainConfig, tracked: TrackedRuns) -> MetricLogger:
    run = make(config, tracked.folder, tracked.id(name))
    return ResumedLogger(run, tracked.last_step(name, run.id))


def _lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of a metrics file; what a kill has left of one is not a line."""
    if not file.is_file():
        return []
    found = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append((text, line))
    return found


_PARAMETERS_A_CALL = 100  # MLflow takes no more
_PARAMETER_LENGTH = 6000


class MlflowLogger:
    """An MLflow run; ``known`` is its id from an earlier start."""

    def __init__(self, config: PretrainConfig, folder: Path, known: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no telemetry
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # not how it makes each table, in a run's log
        sinks = config.train.sinks
        uri = sinks.mlflow_uri or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        if known is not None and self._exists(known):
            self.id = known
            self._client.update_run(known, status="RUNNING")
        else:
            self.id = self._create(config, None if sinks.mlflow_uri else folder.resolve() / "mlflow-artifacts")

    def log(self, step: int, values: Scalars) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self.id)

    def _exists(self, known: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(known).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _create(self, config: PretrainConfig, artifacts: Path | None) -> str:
        from mlflow.entities import Param

        name = config.train.sinks.mlflow_experiment
        found = self._client.get_experiment_by_name(name)
        place = None if artifacts is None else artifacts.as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifact_location=place)
        tags = {"blades_dist.version": __version__, "mlflow.source.name": "blades_dist"}
        run = str(self._client.create_run(experiment, run_name=config.name, tags=tags).info.run_id)
        items = [Param(key, str(value)[:_PARAMETER_LENGTH]) for key, value in parameters(config)]
        for first in range(0, len(items), _PARAMETERS_A_CALL):
            self._client.log_batch(run, params=items[first : first + _PARAMETERS_A_CALL])
        return run


class WandbLogger:
    """A run of Weights & Biases. Offline, each start writes a folder of its own under the same id."""

    def __init__(self, config: PretrainConfig, folder: Path, known: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        sinks = config.train.sinks
        # Not made from the name: two runs of one name would become one in a project that people share.
        self.id = known or uuid.uuid4().hex[:16]
        self._run = wandb.init(
            project=sinks.wandb_project,
            entity=sinks.wandb_entity,
            id=self.id,
            name=config.name,
            dir=str(folder),
            mode=sinks.wandb_mode,
            # Offline there is nothing to ask whether the run exists.
            resume="allow" if sinks.wandb_mode == "online" else None,
            config=dict(parameters(config)),
            # The run's own record says what ran; the machine, the environment and the console stay here.
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )

    def log(self, step: int, values: Scalars) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def parameters(config: PretrainConfig) -> Iterator[tuple[str, Any]]:
    """The configuration by dotted keys."""
    return flat(config.model_dump(mode="json"))
