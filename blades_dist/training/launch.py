"""Starting, resuming and finishing a pretraining run on Ray Train."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from blades_dist.config import PretrainConfig
from blades_dist.data.order import global_batches
from blades_dist.data.records import read_manifest
from blades_dist.files import alone
from blades_dist.models.encoder_info import DESCRIPTION
from blades_dist.raylocal import require
from blades_dist.settings import ConfigError
from blades_dist.training import checkpoint_io, provenance
from blades_dist.training.entry import STOPPED, pretrain_worker
from blades_dist.training.loggers import check_loggers
from blades_dist.training.stopping import SignalHandler


class RunStoppedError(Exception):
    """The guard has ended a run; its last good state is saved."""


class RunInterruptedError(Exception):
    """A signal has ended a run; the same command goes on. ``number`` is the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def check(config: PretrainConfig) -> PretrainConfig:
    """The configuration with absolute paths, once it is known to fit; needs no cluster.

    Raises:
        ConfigError: the configuration does not fit the data, or the run that has this name already.
    """
    data = config.data.model_copy(update={"shards": _absolute(config.data.shards)})
    start = None if config.start_from is None else _absolute(config.start_from)
    config = config.model_copy(update={"storage": _absolute(config.storage), "data": data, "start_from": start})
    check_loggers(config)
    _check_data(config)
    provenance.check_same_run(config, config.storage / config.name)
    _check_start(config)
    return config


def finished(config: PretrainConfig) -> bool:
    """Whether the run of this name has ended and left its encoder."""
    folder = config.storage / config.name / "encoder"
    if (folder / DESCRIPTION).is_file():
        print(f"run {config.name} is finished; its encoder is in {folder}")
        return True
    return False


def pretrain(config: PretrainConfig) -> Path:
    """Runs, or resumes, the run ``config.name`` of a checked configuration; returns its folder.

    The folder then holds ``encoder/``, ``weights.json`` and ``weights.png`` (the trajectories of lambda),
    ``validation.json``, TensorBoard events and the last checkpoints. SIGTERM and Ctrl-C end the run at a checkpoint.

    Raises:
        ConfigError: the cluster cannot hold the workers, or another process drives this run.
        RunStoppedError: a loss, gradient or task weight was not finite; says where, and what can be done.
        RunInterruptedError: a signal came; the state is saved.
    """
    folder = config.storage / config.name
    check_cluster(config)
    folder.mkdir(parents=True, exist_ok=True)
    refusal = ConfigError(
        f"run {folder.name!r} in {folder.parent} is being driven by another process; wait for it, stop it, or "
        "choose another name"
    )
    with alone(folder, refusal):
        provenance.write(config, folder)
        (folder / STOPPED).unlink(missing_ok=True)
        handler = SignalHandler()
        handler.run(lambda: _fit(config, handler))
        if (folder / STOPPED).is_file():
            raise RunStoppedError(_why(json.loads((folder / STOPPED).read_text()), folder))
        if handler.number is not None and not (folder / "encoder" / DESCRIPTION).is_file():
            at = checkpoint_io.saved(folder / checkpoint_io.FOLDER)
            where = f"checkpoint {at[0]}" if at else "before its first checkpoint"
            raise RunInterruptedError(f"stopped at {where}; the same command goes on from there", handler.number)
    from blades_dist.training.validate import plot_trajectories, summary  # here: matplotlib and the models are heavy

    plot_trajectories(folder)
    print(summary(folder))
    return folder


def build_trainer(
    config: PretrainConfig, callbacks: Sequence[UserCallback] = (), stop_signal: Any = None
) -> TorchTrainer:
    """The Ray Train run of a checked configuration. Its workers find their checkpoints by ``storage`` and ``name``;
    they report ``step``, ``epoch``, ``skipped``, and after a validation ``coarse_auc`` and ``coarse_loss``.

    ``stop_signal`` is a ``stopping.StopSignal``: once it is set, the workers save a checkpoint and end.
    """
    train = config.train
    resources: dict[str, float] = {"CPU": train.cpus_per_worker}
    if train.gpu:
        resources["GPU"] = train.gpu_per_worker
    return TorchTrainer(
        pretrain_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "stop_signal": stop_signal, "command": sys.argv},
        torch_config=TorchConfig(backend="nccl" if train.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=train.resize_seconds,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=str(config.storage),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
        ),
    )


def check_cluster(config: PretrainConfig) -> None:
    """Whether the cluster holds the fewest workers that the run can do with.

    Raises:
        ConfigError: it does not; says what is missing.
    """
    train, workers = config.train, config.train.worker_range[0]
    need, what = {"CPU": workers * train.cpus_per_worker}, f"{workers} workers need"
    require("train.workers", need, what, "use fewer workers, or a smaller train.cpus_per_worker")
    if train.gpu:
        need, remedy = {"GPU": workers * train.gpu_per_worker}, "use fewer workers, more GPUs, or train.gpu=false"
        require("train.gpu", need, what, remedy)


def _fit(config: PretrainConfig, handler: SignalHandler) -> Result:
    """Ray Train restarts lost workers by itself; a lost trainer (its controller actor) is started again here."""
    losses = 0
    while True:
        try:
            return build_trainer(config, stop_signal=handler.stop_signal).fit()
        except RayActorError as error:
            losses += 1
            if handler.number is not None or 0 <= config.train.max_failures < losses:
                raise
            print(f"the trainer was lost ({type(error).__name__}); start {losses + 1} of this run", flush=True)
            time.sleep(1)  # its workers are being ended by Ray


def _why(stopped: dict[str, Any], folder: Path) -> str:
    rows = ", ".join(stopped["ids"]) or "none alone"
    kept = checkpoint_io.path_of(folder / checkpoint_io.FOLDER, stopped["saved_step"])
    return (
        f"step {stopped['step']}: {stopped['what']} of {', '.join(stopped['tasks']) or 'all tasks together'} is not "
        f"finite (samples: {rows}); the state before this step is in {kept}. Resume with "
        "train.guard.nonfinite=skip to leave the step out, or remove these samples, or start anew with a smaller lr"
    )


def _absolute(path: Path) -> Path:
    # `ray job submit --working-dir` runs in a temporary copy, which is deleted with everything written into it.
    if not path.is_absolute() and "runtime_resources" in Path.cwd().parts:
        raise ConfigError(f"{path}: inside a submitted job a path must be absolute (and shared by all nodes)")
    return path.resolve()


def _check_data(config: PretrainConfig) -> None:
    try:
        manifest = read_manifest(config.data.shards)
        global_batches(manifest, config.data.val_split, config.val_batch)
        batches = global_batches(manifest, config.data.train_split, config.train.global_batch, config.train.epochs)
        if config.train.epochs and batches < config.train.accumulate:
            raise ValueError("train.accumulate: the run has fewer micro-batches than one step needs")
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"data.shards: {error}") from None


def _check_start(config: PretrainConfig) -> None:
    if config.start_from is None or checkpoint_io.saved(config.storage / config.name / checkpoint_io.FOLDER):
        return  # a run that has begun goes on from its own checkpoints
    try:
        state = checkpoint_io.verify(checkpoint_io.locate(config.start_from))["state"]
    except (FileNotFoundError, checkpoint_io.DamagedError) as error:
        raise ConfigError(f"start_from: {error}") from None
    if state["manifest"] != read_manifest(config.data.shards).digest():
        raise ConfigError(
            f"start_from: {config.start_from} was trained on other shards than {config.data.shards}, so its place in "
            "their order means nothing here"
        )
