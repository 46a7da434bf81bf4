"""What makes two starts the same run, and what may differ between them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from blades_dist.config import PretrainConfig
from blades_dist.data.records import read_manifest
from blades_dist.settings import ConfigError

CONFIG = "config.yaml"  # in a run folder
# What may differ when a run of the same name goes on: how it is run, not what it computes. Workers and their batch size
# stand here too, because what counts is their product, the global batch.
FREE_KEYS = (
    "ray",
    "start_from",
    "train.workers",
    "train.batch_size",
    "train.cpus_per_worker",
    "train.gpu_per_worker",
    "train.threads_per_worker",
    "train.max_failures",
    "train.log_every",
    "train.validate_every",
    "train.validate_rows",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.record_samples",
    "train.guard",
    "train.sinks",
)


def is_free(key: str) -> bool:
    """Whether the dotted ``key`` may change when a run goes on."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def write(config: PretrainConfig, folder: Path) -> None:
    """Leaves the resolved configuration and the digest of its data in the run folder."""
    record = {"manifest": read_manifest(config.data.shards).digest(), **config.model_dump(mode="json")}
    temporary = folder / f".{CONFIG}"
    temporary.write_text(yaml.safe_dump(record, sort_keys=False))
    temporary.replace(folder / CONFIG)


def check_same_run(config: PretrainConfig, folder: Path) -> None:
    """Compares with what an earlier start of this name has left in ``folder``, if any.

    Raises:
        ConfigError: it is another run; names every key that differs.
    """
    file = folder / CONFIG
    if not file.is_file():
        return
    record = yaml.safe_load(file.read_text())
    old = dict(_compared(_completed(record), record.get("manifest")))
    new = dict(_compared(config, read_manifest(config.data.shards).digest()))
    changed = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise ConfigError(
            f"run {config.name!r} exists in {folder} with another configuration; choose another name, "
            "or delete that folder to start anew:\n  " + "\n  ".join(changed)
        )


def _completed(record: dict[str, Any]) -> PretrainConfig | dict[str, Any]:
    """An earlier version's record with the keys that have come since, at their defaults."""
    values = {key: value for key, value in record.items() if key != "manifest"}
    try:
        return PretrainConfig.model_validate(values)
    except ValidationError:
        return values


def _compared(config: PretrainConfig | dict[str, Any], manifest: str | None) -> Iterator[tuple[str, Any]]:
    yield "manifest", manifest
    if isinstance(config, PretrainConfig):
        yield "the global batch (train.batch_size x train.workers)", config.train.global_batch
        config = config.model_dump(mode="json")
    yield from ((key, value) for key, value in _flat(config) if not is_free(key))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
