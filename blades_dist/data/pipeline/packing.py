"""Steps 6 and 7: bin edges and bounds of shards, and the shards themselves."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from blades_dist.config import SPLITS, IngestConfig
from blades_dist.data.pipeline.near_duplicates import dropped
from blades_dist.data.pipeline.workspace import Workspace, digest
from blades_dist.data.records import Shard
from blades_dist.data.shards import file_sha256, shard_name, write_shard
from blades_dist.files import write_atomically, write_through
from blades_dist.tasks import ORDINAL_TAGS

Edges = Mapping[str, tuple[float, float]]


def count_values(number: int, workspace: Workspace) -> dict[str, list[tuple[float, int]]]:
    """Ordinal values of the training rows of one plan, with how often each occurs."""
    first = sum(_outcome_counts(workspace)[:number])
    names = [f"exif_{tag}" for tag in ORDINAL_TAGS]
    table = pq.read_table(workspace.table("outcomes", number), columns=["split", "rows", *names], use_threads=False)
    kept = ~np.isin(first + np.arange(len(table)), dropped(workspace))
    kept &= (table["rows"].to_numpy() > 0) & pc.equal(table["split"], SPLITS[0]).to_numpy(zero_copy_only=False)
    table = table.filter(pa.array(kept))
    found: dict[str, list[tuple[float, int]]] = {}
    for tag, name in zip(ORDINAL_TAGS, names, strict=True):
        counts = table.group_by(name).aggregate([("rows", "sum")])
        pairs = zip(counts[name].to_pylist(), counts["rows_sum"].to_pylist(), strict=True)
        found[tag] = [(value, count) for value, count in pairs if value is not None]
    return found


def merge_counts(parts: Sequence[Mapping[str, Sequence[tuple[float, int]]]]) -> dict[str, Counter[float]]:
    """Sum of what ``count_values`` gave for every plan."""
    merged: dict[str, Counter[float]] = {tag: Counter() for tag in ORDINAL_TAGS}
    for part in parts:
        for tag, counts in part.items():
            for value, count in counts:
                merged[tag][value] += count
    return merged


def plan_shards(workspace: Workspace, mebibytes: int) -> list[dict[str, Any]]:
    """Bounds of the shards: split, number within it, first and last position of their photos.

    A shard ends with the photo that brings its images to ``mebibytes``; what a task held or a worker did has no part
    in it.
    """
    columns = ["split", "rows", "bytes"]
    table = ds.dataset(workspace.folder("outcomes"), format="parquet").to_table(columns=columns)
    used = table["rows"].to_numpy() > 0
    used[dropped(workspace)] = False
    splits = table["split"].combine_chunks().dictionary_encode()
    names, codes = splits.dictionary.to_pylist(), splits.indices.to_numpy(zero_copy_only=False)
    shards: list[dict[str, Any]] = []
    for split in SPLITS:
        positions = np.flatnonzero(used & (codes == names.index(split))) if split in names else np.empty(0, np.int64)
        size = np.cumsum(table["bytes"].to_numpy()[positions])
        start = number = 0
        while start < len(positions):
            target = (size[start - 1] if start else 0) + mebibytes * 2**20
            end = min(int(np.searchsorted(size, target)) + 1, len(positions))
            first, last = int(positions[start]), int(positions[end - 1])
            shards.append({"split": split, "number": number, "first": first, "last": last})
            start, number = end, number + 1
    return shards


def build_shard(bounds: dict[str, Any], workspace: Workspace, config: IngestConfig, edges: Edges) -> dict[str, Any]:
    """Writes one shard into ``config.output`` and returns its entry of the manifest; nothing is written that is there.

    A shard's name ends with the first digits of its hash, so it never takes the place of another set's.
    """
    chosen = _members(bounds, workspace)
    record = workspace.cached(
        "packed", digest(bounds["split"], bounds["number"], chosen, edges, config.rows_per_group), ".json"
    )
    shard = _recorded(record, config.output)
    if shard is None:
        built = workspace.cached("shards", record.stem)
        parts = [(workspace.cached("parts", part), photos) for part, photos in _by_part(chosen)]
        groups: list[int] = []
        write_through(
            built, lambda file: groups.extend(write_shard(parts, file, bounds["split"], edges, config.rows_per_group))
        )
        sha256 = file_sha256(built)
        name = shard_name(bounds["split"], bounds["number"], sha256)
        shard = Shard(name=name, split=bounds["split"], rows=sum(groups), row_groups=groups, sha256=sha256)
        built.replace(config.output / name)
        write_atomically(record, shard.model_dump_json())
    return shard.model_dump()


def _members(bounds: dict[str, Any], workspace: Workspace) -> list[tuple[str, str]]:
    """(part, photo) of a shard, in order."""
    found: list[tuple[str, str]] = []
    gone, first = dropped(workspace), 0
    for number, count in enumerate(_outcome_counts(workspace)):
        if first <= bounds["last"] and bounds["first"] < first + count:
            columns = ["split", "rows", "part", "sha256"]
            table = pq.read_table(workspace.table("outcomes", number), columns=columns, use_threads=False)
            start = max(0, bounds["first"] - first)
            table = table.slice(start, min(count, bounds["last"] + 1 - first) - start)
            positions = first + start + np.arange(len(table))
            kept = ~np.isin(positions, gone) & (table["rows"].to_numpy() > 0)
            kept &= pc.equal(table["split"], bounds["split"]).to_numpy(zero_copy_only=False)
            table = table.filter(pa.array(kept))
            found += zip(table["part"].to_pylist(), table["sha256"].to_pylist(), strict=True)
        first += count
    return found


def _by_part(members: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    for part, group in groupby(members, key=lambda item: item[0]):
        yield part, [photo for _, photo in group]


def _recorded(record: Path, output: Path) -> Shard | None:
    """A shard that was packed before, when it still is what was packed."""
    try:
        shard = Shard.model_validate(json.loads(record.read_text()))
        return shard if file_sha256(output / shard.name) == shard.sha256 else None
    except (OSError, ValueError):
        return None


def _outcome_counts(workspace: Workspace) -> list[int]:
    return [int(pq.read_metadata(file).num_rows) for file in sorted(workspace.folder("outcomes").glob("*.parquet"))]
