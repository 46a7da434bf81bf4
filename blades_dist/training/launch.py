"""Starting, resuming and finishing a pretraining run on Ray Train."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import ray
import yaml
from pydantic import ValidationError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from blades_dist.config import PretrainConfig
from blades_dist.data.order import global_batches
from blades_dist.data.records import read_manifest
from blades_dist.evaluate.plots import plot_weights
from blades_dist.models.export import DESCRIPTION
from blades_dist.settings import ConfigError
from blades_dist.training.progress import SPEED
from blades_dist.training.worker import STOPPED, pretrain_worker

CONFIG = "config.yaml"
# What may differ when a run of the same name goes on: how it is run, not what it computes.
FREE_KEYS = (
    "ray",
    "train.max_failures",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.guard",
)


class RunStoppedError(Exception):
    """The guard has ended a run; its last good state is saved."""


def check(config: PretrainConfig) -> PretrainConfig:
    """The configuration with absolute paths, once it is known to fit; needs no cluster.

    Raises:
        ConfigError: the configuration does not fit the data, or the run that has this name already.
    """
    data = config.data.model_copy(update={"shards": _absolute(config.data.shards)})
    config = config.model_copy(update={"storage": _absolute(config.storage), "data": data})
    _check_data(config)
    _check_same_run(config, config.storage / config.name)
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
    ``validation.json``, TensorBoard events and the last checkpoints.

    Raises:
        ConfigError: the cluster cannot hold the workers.
        RunStoppedError: a loss, gradient or task weight was not finite; says where, and what can be done.
    """
    folder = config.storage / config.name
    _check_cluster(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(yaml.safe_dump(_identity(config), sort_keys=False))
    (folder / STOPPED).unlink(missing_ok=True)
    result = _trainer(config).fit()
    if (folder / STOPPED).is_file():
        raise RunStoppedError(_why(json.loads((folder / STOPPED).read_text()), result.checkpoint))
    _plot(folder)
    print(summary(folder))
    return folder


def summary(folder: Path) -> str:
    """What a finished run has to say, in a few lines."""
    report = json.loads((folder / "validation.json").read_text())
    weights = json.loads((folder / "weights.json").read_text())
    auc = report["coarse_auc"]
    lines = [
        f"coarse manipulation AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] "
        f"on {auc['n']} validation photographs",
        f"{'task':18}{'accuracy':>10}{'95% interval':>18}{'majority':>10}{'n':>7}{'lambda':>9}",
    ]
    final = dict(zip(weights["names"], weights["history"][-1][1], strict=True))
    for name, row in report["tasks"].items():
        if row["n"]:
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
            lines.append(
                f"{name:18}{row['accuracy']:>10.3f}{interval:>18}{row['majority']:>10.3f}{row['n']:>7}{final[name]:>9.3f}"
            )
    for name in ("face_coarse", "face_fine"):
        lines.append(f"{name:18}{'':45}{final[name]:>9.3f}")
    if (folder / SPEED).is_file():
        speed = json.loads((folder / SPEED).read_text())
        lines.append(
            f"speed since the last start: {speed['images_per_second']:.0f} images/s, "
            f"{speed['data_wait_share']:.1%} of the time waiting for data"
        )
    return "\n".join([*lines, f"run folder: {folder}", f"encoder: {folder / 'encoder'}"])


def _trainer(config: PretrainConfig) -> TorchTrainer:
    train = config.train
    resources: dict[str, float] = {"CPU": train.cpus_per_worker}
    if train.gpu:
        resources["GPU"] = 1
    return TorchTrainer(
        pretrain_worker,
        train_loop_config=config.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if train.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=train.workers, use_gpu=train.gpu, resources_per_worker=resources),
        # The same storage and name is how Ray Train finds the checkpoints of an earlier start.
        run_config=RunConfig(
            name=config.name,
            storage_path=str(config.storage),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=train.keep_checkpoints),
        ),
    )


def _why(stopped: dict[str, Any], saved: Any) -> str:
    rows = ", ".join(stopped["ids"]) or "none alone"
    return (
        f"step {stopped['step']}: {stopped['what']} of {', '.join(stopped['tasks']) or 'all tasks together'} is not "
        f"finite (samples: {rows}); the state before this step is in {saved.path}. Resume with "
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
        for split in (config.data.val_split, config.data.train_split):
            global_batch = config.train.batch_size * config.train.workers
            batches = global_batches(manifest, split, global_batch, config.train.epochs)
        if config.train.epochs and batches < config.train.accumulate:
            raise ValueError("train.accumulate: the run has fewer micro-batches than one step needs")
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"data.shards: {error}") from None


def _check_same_run(config: PretrainConfig, folder: Path) -> None:
    file = folder / CONFIG
    if not file.is_file():
        return
    old, new = dict(_flat(_completed(yaml.safe_load(file.read_text())))), dict(_flat(_identity(config)))
    changed = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE_KEYS)
    ]
    if changed:
        raise ConfigError(
            f"run {config.name!r} exists in {folder} with another configuration; choose another name, "
            "or delete that folder to start anew:\n  " + "\n  ".join(changed)
        )


def _completed(identity: dict[str, Any]) -> dict[str, Any]:
    """An earlier version's record with the keys that have come since, at their defaults."""
    try:
        config = PretrainConfig.model_validate({k: v for k, v in identity.items() if k != "manifest"})
    except ValidationError:
        return identity
    return {"manifest": identity.get("manifest"), **config.model_dump(mode="json")}


def _identity(config: PretrainConfig) -> dict[str, Any]:
    """What makes two starts the same run: the configuration, and the content of the shards it names."""
    return {"manifest": read_manifest(config.data.shards).digest(), **config.model_dump(mode="json")}


def _check_cluster(config: PretrainConfig) -> None:
    have = ray.cluster_resources()
    need = {"CPU": config.train.workers * config.train.cpus_per_worker}
    if config.train.gpu:
        need["GPU"] = config.train.workers
    for name, count in need.items():
        if have.get(name, 0) < count:
            raise ConfigError(
                f"train.workers: {config.train.workers} workers need {count:g} {name}, the cluster has "
                f"{have.get(name, 0):g}; use fewer workers, or a smaller train.cpus_per_worker"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plot(folder: Path) -> None:
    matplotlib.use("Agg")
    weights = json.loads((folder / "weights.json").read_text())
    plot_weights(weights["history"], weights["names"]).savefig(folder / "weights.png", dpi=120)
