"""Step 8: the quarantine, and counts of everything that was seen."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blades_dist.data.pipeline.near_duplicates import dropped
from blades_dist.data.pipeline.workspace import Workspace
from blades_dist.data.records import quarantine_schema
from blades_dist.files import write_through


def write_quarantine(workspace: Workspace) -> dict[str, Any]:
    """Writes the quarantine of this run; returns counts: ``files`` and ``faces`` by what became of them, ``rows`` a
    split, ``sources``, ``reasons``. Memory is one file of a step."""
    totals: dict[str, Counter[str]] = {name: Counter() for name in ("files", "faces", "rows", "sources", "reasons")}

    def write(file: Path) -> None:
        with pq.ParquetWriter(file, quarantine_schema()) as writer:
            for table in _quarantined(workspace, totals):
                totals["reasons"].update(table["reason"].to_pylist())
                if len(table):
                    writer.write_table(table.cast(quarantine_schema()))

    write_through(quarantine_file(workspace), write)
    return {name: dict(sorted(counts.items())) for name, counts in totals.items()}


def quarantine_file(workspace: Workspace) -> Path:
    return workspace.table("quarantine")


def _quarantined(workspace: Workspace, totals: dict[str, Counter[str]]) -> Iterator[pa.Table]:
    names = quarantine_schema().names
    for file in sorted(workspace.folder("index").glob("*.parquet")):
        table = pq.read_table(file, columns=["path", "reason", "detail"], use_threads=False)
        table = table.filter(pc.is_valid(table["reason"]))
        totals["files"]["refused"] += len(table)
        yield table.add_column(1, "face", pa.nulls(len(table), pa.int32())).select(names)
    for file in sorted(workspace.folder("duplicates").glob("*.parquet")):
        table = pq.read_table(file, use_threads=False)
        totals["files"]["duplicates"] += len(table)
        yield table
    yield from _outcomes(workspace, totals)
    table = pq.read_table(workspace.table("dropped"), use_threads=False)
    totals["files"]["near duplicates"] += len(table)
    detail = pc.binary_join_element_wise("shows the same picture as", table["of"], " ")
    reason = pa.array(["near_duplicate"] * len(table), pa.string())
    yield pa.table([table["path"], pa.nulls(len(table), pa.int32()), reason, detail], schema=quarantine_schema())


def _outcomes(workspace: Workspace, totals: dict[str, Counter[str]]) -> Iterator[pa.Table]:
    gone, first = dropped(workspace), 0
    columns = ["path", "source", "split", "faces", "rows", "rejected"]
    for file in sorted(workspace.folder("outcomes").glob("*.parquet")):
        table = pq.read_table(file, columns=columns, use_threads=False)
        table, first = table.filter(pa.array(~np.isin(first + np.arange(len(table)), gone))), first + len(table)
        written = table.filter(pc.greater(table["rows"], 0))
        totals["files"]["written"] += len(written)
        totals["files"]["unusable"] += len(table) - len(written)
        totals["faces"]["seen"] += pc.sum(table["faces"]).as_py() or 0
        for name, key in (("rows", "split"), ("sources", "source")):
            sums = written.group_by(key).aggregate([("rows", "sum")])
            totals[name].update(dict(zip(sums[key].to_pylist(), sums["rows_sum"].to_pylist(), strict=True)))
        lists = table["rejected"].combine_chunks()
        items = lists.flatten()
        paths = table["path"].take(pc.list_parent_indices(lists))
        refused = pa.table(
            [paths, *(items.field(name) for name in ("face", "reason", "detail"))], quarantine_schema().names
        )
        totals["faces"]["refused"] += len(refused) - refused["face"].null_count
        yield refused
