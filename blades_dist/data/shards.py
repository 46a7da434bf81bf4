"""Parts to shards, and putting a finished set in its place: everything appears whole or not at all. No Ray here."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.config import SPLITS
from blades_dist.data.exif import labels
from blades_dist.data.records import (
    MANIFEST,
    QUARANTINE,
    Manifest,
    Shard,
    label_column,
    quarantine_schema,
    shard_schema,
)
from blades_dist.tasks import TAGS

STATE = "ingest.json"  # what the set was made of; not part of its content
_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.parquet")


def pack(
    parts: Sequence[Path], target: Path, split: str, edges: dict[str, tuple[float, float]], rows_per_group: int
) -> Shard:
    """Joins parts, in their order, to one shard, and labels every row; memory is a row group and a part."""
    group_rows = []
    # Crops are compressed already; bounds of a column of them would only swell the footer.
    compression = {item.name: "none" if item.name == "image" else "zstd" for item in shard_schema()}
    with pq.ParquetWriter(
        target, shard_schema(), compression=compression, use_dictionary=["split", "source", "codec"],
        write_statistics=["id", "width"],
    ) as writer:  # fmt: skip
        for table in _groups(parts, rows_per_group):
            writer.write_table(_labelled(table, edges), row_group_size=rows_per_group)
            group_rows.append(len(table))
    return Shard(name=target.name, split=split, rows=sum(group_rows), row_groups=group_rows, sha256=file_sha256(target))


def file_sha256(file: Path) -> str:
    """sha-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_quarantine(rows: list[tuple[str, int | None, str, str]], target: Path) -> None:
    """Writes (path, face, reason, detail) in the order of paths and faces."""
    rows = sorted(rows, key=lambda row: (row[0], -1 if row[1] is None else row[1]))
    names = quarantine_schema().names
    pq.write_table(
        pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], quarantine_schema()), target
    )


def publish(building: Path, output: Path, manifest: Manifest, state: str) -> None:
    """Moves a finished set from ``building`` (a folder within ``output``) into its place.

    The old manifest goes first and the new one comes last: at no moment does one describe shards of another run.
    """
    (output / MANIFEST).unlink(missing_ok=True)
    for old in output.iterdir():
        if _SHARD_NAME.fullmatch(old.name):
            old.unlink()
    for name in (*(shard.name for shard in manifest.shards), QUARANTINE):
        os.replace(building / name, output / name)
    write_text(output / STATE, state)
    write_text(output / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a text file so that readers see the old or the new one, never half of it."""
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(temporary, file)


def _groups(parts: Sequence[Path], rows: int) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    for part in parts:
        pending.append(pq.read_table(part, use_threads=False))
        while sum(map(len, pending)) >= rows:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, rows)
            pending = [joined.slice(rows)]
    rest = pa.concat_tables(pending)
    if len(rest):
        yield rest


def _labelled(table: pa.Table, edges: dict[str, tuple[float, float]]) -> pa.Table:
    raw: dict[str, list[Any]] = {tag: table[f"exif_{tag}"].to_pylist() for tag in TAGS}
    rows = [labels({tag: raw[tag][i] for tag in TAGS}, edges) for i in range(len(table))]
    for tag in TAGS:
        table = table.append_column(label_column(tag), pa.array([row[tag] for row in rows], pa.int8()))
    return table.select(shard_schema().names).cast(shard_schema())
