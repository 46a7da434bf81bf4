"""Where an ingest under way keeps its files, and how they are written."""

import hashlib
import json
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.config import IngestConfig
from blades_dist.files import write_through

VERSION = 3  # of what ingest makes of the same files; raised when that changes
# What does not change what becomes of a single photo.
_LATER = {"output", "ray", "ordinal_edges", "rows_per_group", "shard_mebibytes", "near_duplicate_bits"}


@dataclass(frozen=True)
class Workspace:
    """Files of one ingest below ``building``: those of this ``run``, and a cache that the next one may take up."""

    building: Path
    run: str

    @staticmethod
    def fresh(building: Path) -> "Workspace":
        """A workspace with a run of its own: a run before it that still winds down cannot disturb it."""
        return Workspace(building, f"run-{uuid.uuid4().hex[:12]}")

    def table(self, step: str, number: int = 0) -> Path:
        """File ``number`` of a step of this run."""
        return self.building / self.run / step / f"{number:06d}.parquet"

    def folder(self, step: str) -> Path:
        return self.building / self.run / step

    def cached(self, kind: str, key: str, suffix: str = ".parquet") -> Path:
        """A file that depends on nothing but its key."""
        return self.building / "cache" / kind / key[:2] / (key + suffix)


def write_table(table: pa.Table, target: Path, **options: Any) -> None:
    """Writes a Parquet file that appears whole or not at all."""
    write_through(target, lambda file: pq.write_table(table, file, **options))


def digest(*parts: Any) -> str:
    """sha-256, in hexadecimal, of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def config_digest(config: IngestConfig) -> str:
    """Of everything in the configuration that a finished set depends on."""
    return digest(VERSION, config.model_dump(mode="json", exclude={"output", "ray"}), _model_file(config))


def photo_digest(config: IngestConfig) -> str:
    """Of everything in the configuration on which depends what becomes of one photo."""
    return digest(VERSION, config.model_dump(mode="json", exclude=_LATER), _model_file(config))


def _model_file(config: IngestConfig) -> str:
    if config.locator_model is None:
        return ""
    about = config.locator_model.stat()
    return _model_digest(config.locator_model, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)
def _model_digest(file: Path, size: int, modified_ns: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
