"""What makes two starts the same run, and what may differ between them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from blades_dist import settings
from blades_dist.config import PretrainConfig
from blades_dist.data.records import read_manifest
from blades_dist.files import write_atomically
from blades_dist.settings import ConfigError, among, flat, validate

CONFIG = "config.yaml"  # in a run folder
# What may differ when a run of the same name goes on: how it is run, not what it computes. Workers and their batch size
# stand here too, because what counts is their product, the global batch.
FREE_KEYS = (
    "name",  # with storage: where the run lies, which may be moved
    "storage",
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
    return among(key, FREE_KEYS)


def write(config: PretrainConfig, folder: Path) -> None:
    """Leaves the resolved configuration and the digest of its data in the run folder."""
    record = {"manifest": read_manifest(config.data.shards).digest(), **config.model_dump(mode="json")}
    write_atomically(folder / CONFIG, yaml.safe_dump(record, sort_keys=False))


def check_same_run(config: PretrainConfig, folder: Path) -> None:
    """Compares with what an earlier start of this name has left in ``folder``, if any.

    Raises:
        ConfigError: it is another run; names every key that differs.
    """
    file = folder / CONFIG
    if not file.is_file():
        return
    record = yaml.safe_load(file.read_text())
    changed = differences(_completed(record), config)
    old, new = record.get("manifest"), read_manifest(config.data.shards).digest()
    if old != new:
        changed.insert(0, f"manifest: {old!r} there, {new!r} now")
    if changed:
        raise ConfigError(
            f"run {config.name!r} exists in {folder} with another configuration; choose another name, "
            "or delete that folder to start anew:\n  " + "\n  ".join(changed)
        )


def read(folder: Path) -> PretrainConfig:
    """The configuration of the run in ``folder``, with the name and the storage that the folder has now.

    Raises:
        ConfigError: there is no run, or it is of a version whose configuration this one does not understand.
    """
    file = folder / CONFIG
    try:
        record = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"{folder} is not the folder of a pretraining run: {CONFIG}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{file} is not the configuration of a run")
    values = {key: value for key, value in record.items() if key != "manifest"}
    place = folder.resolve()
    try:
        return validate(PretrainConfig, values | {"name": place.name, "storage": str(place.parent)})
    except ConfigError as error:
        raise ConfigError(f"{file} is not a configuration that this version can use: {error}") from None


def differences(old: PretrainConfig | dict[str, Any], new: PretrainConfig) -> list[str]:
    """What two configurations of one run may not differ in and do, a line a key."""
    return settings.differences(dict(_compared(old)), dict(_compared(new)))


def _completed(record: dict[str, Any]) -> PretrainConfig | dict[str, Any]:
    """An earlier version's record with the keys that have come since, at their defaults."""
    values = {key: value for key, value in record.items() if key != "manifest"}
    try:
        return PretrainConfig.model_validate(values)
    except ValidationError:
        return values


def _compared(config: PretrainConfig | dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(config, PretrainConfig):
        yield "the global batch (train.batch_size x train.workers)", config.train.global_batch
        config = config.model_dump(mode="json")
    yield from ((key, value) for key, value in flat(config) if not is_free(key))
