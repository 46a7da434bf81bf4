"""A run at an experiment tracking service: MLflow, Weights & Biases. Imported only where one is configured.

Each of them has an ``id`` that a later start of the run is found by.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blades_dist import __version__
from blades_dist.config import PretrainConfig
from blades_dist.settings import flat
from blades_dist.training.sinks import Scalars

_PARAMETERS_A_CALL = 100  # MLflow takes no more
_PARAMETER_LENGTH = 6000


class MlflowRun:
    """An MLflow run; ``known`` is its id from an earlier start."""

    def __init__(self, config: PretrainConfig, folder: Path, known: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # who trains what is nobody else's business
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

    def scalars(self, step: int, values: Scalars) -> None:
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


class WandbRun:
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

    def scalars(self, step: int, values: Scalars) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def parameters(config: PretrainConfig) -> Iterator[tuple[str, Any]]:
    """The configuration by dotted keys."""
    return flat(config.model_dump(mode="json"))
