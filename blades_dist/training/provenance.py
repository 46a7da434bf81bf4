"""Which run this is: what makes two starts the same run, and what ``run.json`` records of code, data and machine."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

import blades_dist
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
    "train.cuda_graphs",
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


RUN = "run.json"  # in a run folder
SCHEMA = 1
PACKAGES = ("ray", "torch", "deepspeed", "transformers", "numpy", "triton", "safetensors", "pyarrow")
_GIT_SECONDS = 20.0
_COMPILED = {".pyc", ".pyo", ".so"}


def describe_run(
    config: PretrainConfig,
    manifest_digest: str,
    *,
    device: torch.device | None = None,
    world_size: int = 1,
    hosts: int = 1,
    step: int = 0,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """One start of a run as plain values: what it computes with, from which code, on what data.

    ``device`` is the one that this process trains on (None: the CPU), ``step`` the steps that were done before this
    start, ``command`` the driver's command line (empty: that of this process).
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "world_size": world_size,
        "hosts": hosts,
        "host": socket.gethostname(),
        "device": device_name(device),
        "command": shlex.join(command or [Path(sys.executable).name, *sys.argv]),
        "versions": versions(),
        "code": describe_code(Path(blades_dist.__file__).parent),
        "manifest": manifest_digest,
        "seed": config.train.seed,
        "deterministic": config.train.deterministic,
        "started_from": None if config.start_from is None else str(config.start_from),
    }


def versions() -> dict[str, str]:
    """Of this package, of Python, of what the numbers depend on, and of CUDA and cuDNN where torch has them."""
    found = {"blades_dist": blades_dist.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return found | ({"cudnn": str(cudnn)} if cudnn else {})


def device_name(device: torch.device | None = None) -> str:
    """The name of a GPU, or of the processor with the threads that torch uses of it."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def describe_code(package: Path) -> dict[str, Any]:
    """Which code ran: ``source``, a digest of the package's files, and of the checkout around it, if there is one,
    ``commit``, ``branch``, ``dirty`` and ``diff``, the SHA-256 of what differs from the commit (None when clean).

    The digest is there without git, too (an installed wheel, the copy that a submitted job runs in), so that two runs
    of the same code can be told to be so.
    """
    return {"source": source_digest(package), **_checkout(package)}


def source_digest(package: Path) -> str:
    """SHA-256 over names and bytes of all files of a package, without what Python makes of them."""
    whole = hashlib.sha256()
    for file in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix not in _COMPILED):
        data = file.read_bytes()
        whole.update(f"{file.relative_to(package).as_posix()}\0{len(data)}\0".encode() + data)
    return whole.hexdigest()


def record_start(folder: Path, start: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says what has changed since the last start of the run in ``folder``, and appends this one to its record."""
    for line in changes(folder, start):
        say(f"not as at the last start: {line}")
    write_record(folder, start)


def write_record(folder: Path, start: dict[str, Any]) -> dict[str, Any]:
    """Appends one start to the record of the run in ``folder``; returns the start with its ``reason``.

    The reason is ``first``, ``from another run`` or ``resumed``. Written whole or not at all. A record that cannot be
    read is no reason not to train: it is kept as ``run.json.damaged`` and a new one begins.
    """
    try:
        starts = read_record(folder)["starts"]
    except FileNotFoundError:
        starts = []
    except ValueError:
        (folder / RUN).replace(folder / f"{RUN}.damaged")
        starts = []
    first = "from another run" if start["started_from"] else "resumed" if start["step"] else "first"
    entry = {"reason": "resumed" if starts else first, **start}
    record = {"schema_version": SCHEMA, "starts": [*starts, entry]}
    write_atomically(folder / RUN, json.dumps(record, indent=1) + "\n")
    return entry


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the run in ``folder``: ``schema_version`` and ``starts``, the earliest first.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a record of this version.
    """
    file = folder / RUN
    try:
        record = json.loads(file.read_bytes())
        known = record["schema_version"] == SCHEMA and all(isinstance(start, dict) for start in record["starts"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no record of a run: {error!r}") from None
    if not known:
        raise ValueError(f"{file} has schema version {record['schema_version']}, this version reads {SCHEMA}")
    return dict(record)


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What differs between two starts, a line each, in words; ``a`` is "there" and ``b`` "now". Empty: nothing that
    results may depend on."""
    lines = [*_code_difference(a["code"], b["code"])]
    old, new = a["versions"], b["versions"]
    lines += [_line(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    for key, words in (
        ("device", "device"),
        ("world_size", "workers"),
        ("hosts", "hosts"),
        ("manifest", "data (manifest digest)"),
        ("seed", "seed"),
        ("deterministic", "deterministic"),
    ):
        lines.append(_line(words, a.get(key), b.get(key)))
    return [line for line in lines if line]


def changes(folder: Path, start: dict[str, Any]) -> list[str]:
    """What has changed since the last start of the run in ``folder``; empty without an earlier one."""
    try:
        starts = read_record(folder)["starts"]
    except (FileNotFoundError, ValueError):
        return []
    return difference(starts[-1], start) if starts else []


def _code_difference(a: dict[str, Any], b: dict[str, Any]) -> Iterable[str]:
    if a["source"] == b["source"]:
        return
    yield f"code: {_code_words(a)} there, {_code_words(b)} now"


def _code_words(code: dict[str, Any]) -> str:
    if not code.get("commit"):
        return f"source {code['source'][:12]}"
    changed = f" with changes {code['diff'][:12]}" if code["dirty"] else ""
    return f"commit {code['commit'][:12]}{changed} (source {code['source'][:12]})"


def _line(words: str, old: Any, new: Any) -> str:
    if old == new:
        return ""
    return f"{words}: {'none' if old is None else old} there, {'none' if new is None else new} now"


def _checkout(package: Path) -> dict[str, Any]:
    inside = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(package, "rev-parse", "HEAD")
    # An environment can lie inside somebody's checkout, whose commit says nothing about the packages installed there.
    if inside is None or commit is None:
        return {"commit": None, "branch": None, "dirty": None, "diff": None}
    branch = _git(package, "rev-parse", "--abbrev-ref", "HEAD") or b""
    status = _git(package, "status", "--porcelain") or b""
    diff = _git(package, "diff", "HEAD", "--binary") or b""
    dirty = bool(status.strip())
    return {
        "commit": commit.decode().strip(),
        "branch": branch.decode().strip(),
        "dirty": dirty,
        "diff": hashlib.sha256(status + b"\0" + diff).hexdigest() if dirty else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None without git, without a checkout, or when it takes too long."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=_GIT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@lru_cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
