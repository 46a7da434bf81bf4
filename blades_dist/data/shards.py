"""Parts to shards, putting a finished set in its place, and checking one. No Ray here."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blades_dist.config import SPLITS
from blades_dist.data.crops import given_column, part_schema
from blades_dist.data.exif import labels
from blades_dist.data.records import (
    MANIFEST,
    QUARANTINE,
    Manifest,
    Shard,
    label_column,
    read_manifest,
    shard_schema,
)
from blades_dist.files import write_atomically
from blades_dist.tasks import ABSENT, ORDINAL_TAGS, TAGS

STATE = "ingest.json"  # what the set was made of; not part of its content
_REPEATED = ["split", "source", "codec", "jpeg_tables", "chroma", "pixel_mode"]
_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}(-[0-9a-f]{{8}})?\.parquet")


def shard_name(split: str, number: int, sha256: str) -> str:
    """File name of a shard: two shards of one name are one and the same."""
    return f"{split}-{number:05d}-{sha256[:8]}.parquet"


def write_shard(
    parts: Sequence[tuple[Path, Sequence[str]]],
    target: Path,
    split: str,
    edges: Any,
    rows_per_group: int,
) -> list[int]:
    """Joins the rows of some photos of parts, in their order, to one shard, and labels every row.

    ``parts`` are files with the hashes of the photos wanted from each. Returns the rows of each row group; memory is
    a row group of each kind.
    """
    group_rows = []
    with shard_writer(target) as writer:
        for table in _groups(_chosen(parts, split), rows_per_group):
            writer.write_table(_labelled(table, edges), row_group_size=rows_per_group)
            group_rows.append(len(table))
    return group_rows


def shard_writer(target: Path) -> pq.ParquetWriter:
    """A writer of shard rows; the caller closes it."""
    # Crops are compressed already; bounds of a column of them would only swell the footer.
    compression = {item.name: "none" if item.name == "image" else "zstd" for item in shard_schema()}
    statistics = ["id", "photo", "width"]
    return pq.ParquetWriter(
        target, shard_schema(), compression=compression, use_dictionary=_REPEATED, write_statistics=statistics
    )


def file_sha256(file: Path) -> str:
    """sha-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def publish(output: Path, manifest: Manifest, quarantine: Path, state: str) -> None:
    """Puts the quarantine and then the manifest of a set whose shards are in ``output`` into place.

    A reader finds the old set or the new one, both whole, at every moment; shards of neither go last.
    """
    os.replace(quarantine, output / QUARANTINE)
    write_atomically(output / STATE, state)
    write_atomically(output / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    tidy(output, manifest)


def tidy(output: Path, manifest: Manifest) -> None:
    """Removes shards that the manifest does not name."""
    named = {shard.name for shard in manifest.shards}
    for file in output.iterdir():
        if _SHARD_NAME.fullmatch(file.name) and file.name not in named:
            file.unlink()


def verify(folder: Path) -> list[str]:
    """What is wrong with a set: shards that are missing or are not what the manifest says, counts that differ.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: it is not one of this version.
    """
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [
            problem for found in pool.map(lambda shard: _problems(folder, shard), manifest.shards) for problem in found
        ]
    for split, rows in manifest.rows.items():
        there = sum(shard.rows for shard in manifest.shards if shard.split == split)
        if there != rows:
            problems.append(f"split {split}: the manifest counts {rows} rows, its shards {there}")
    try:
        refused = pq.read_metadata(folder / QUARANTINE).num_rows
        if refused != sum(manifest.quarantine.values()):
            problems.append(f"{QUARANTINE}: {refused} rows, the manifest counts {sum(manifest.quarantine.values())}")
    except (OSError, pa.ArrowException) as error:
        problems.append(f"{QUARANTINE}: cannot be read: {error}")
    return problems


def _problems(folder: Path, shard: Shard) -> Iterator[str]:
    try:
        sha256 = file_sha256(folder / shard.name)
    except OSError as error:
        yield f"{shard.name}: cannot be read: {error.strerror}"
        return
    if sha256 != shard.sha256:
        yield f"{shard.name}: its sha-256 is {sha256}, the manifest says {shard.sha256}"
        return
    with pq.ParquetFile(folder / shard.name) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if groups != shard.row_groups or sum(groups) != shard.rows:
        yield f"{shard.name}: {sum(groups)} rows in {len(groups)} row groups, the manifest says {shard.rows}"


def _chosen(parts: Sequence[tuple[Path, Sequence[str]]], split: str) -> Iterator[pa.Table]:
    for path, photos in parts:
        with pq.ParquetFile(path) as file:
            column = file.schema_arrow.get_field_index("split")
            for group in range(file.num_row_groups):
                bounds = _bounds(file, group, column)
                if bounds is None or bounds == (split, split):
                    table = file.read_row_group(group, use_threads=False)
                    wanted = pc.and_(pc.is_in(table["photo"], pa.array(photos)), pc.equal(table["split"], split))
                    yield table.filter(wanted)


def _bounds(file: pq.ParquetFile, group: int, column: int) -> tuple[str, str] | None:
    found = file.metadata.row_group(group).column(column).statistics
    return (found.min, found.max) if found is not None and found.has_min_max else None


def _groups(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    pending = [part_schema().empty_table()]
    for table in tables:
        pending.append(table)
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
    for tag in ORDINAL_TAGS:
        for row, level in zip(rows, table[given_column(tag)].to_pylist(), strict=True):
            if level is not None and level != ABSENT:
                row[tag] = level
    for tag in TAGS:
        table = table.append_column(label_column(tag), pa.array([row[tag] for row in rows], pa.int8()))
    return table.select(shard_schema().names).cast(shard_schema())
