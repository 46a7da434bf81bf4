"""Step 4: photos to rows, a part of some photos at a time."""

import os
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blades_dist.config import IngestConfig
from blades_dist.data.crops import Outcome, Photo, given_column, part_schema, split_of
from blades_dist.data.decode import Rejected
from blades_dist.data.duplicates import perceptual_hash
from blades_dist.data.pipeline.listing import entry_of, source_of
from blades_dist.data.pipeline.workspace import Workspace, digest, photo_digest, write_table
from blades_dist.data.records import label_column
from blades_dist.data.sandbox import PhotoProcess
from blades_dist.files import write_through
from blades_dist.tasks import ABSENT, ORDINAL_TAGS

_BUFFERED = 64 * 2**20  # bytes of images that a part holds in memory, a split
_VALUES = [f"exif_{tag}" for tag in ORDINAL_TAGS]
OUTCOMES = pa.schema(
    [
        *[pa.field(name, pa.string()) for name in ("path", "source", "sha256", "split", "part")],
        *[pa.field(name, pa.int64()) for name in ("faces", "rows", "bytes", "pixels")],
        pa.field("fingerprint", pa.binary()),
        *[pa.field(name, pa.float64()) for name in _VALUES],
        pa.field(
            "rejected",
            pa.list_(
                pa.struct(
                    [pa.field("face", pa.int32()), pa.field("reason", pa.string()), pa.field("detail", pa.string())]
                )
            ),
        ),
    ]
)


def part_key(rows: list[dict[str, Any]], config: IngestConfig) -> str:
    """Name of the part that is made of these rows of a plan."""
    return digest(photo_digest(config), rows)


def crop_part(plan: int, group: int, workspace: Workspace, config: IngestConfig) -> int:
    """Crops a row group of a plan, unless that is done; returns its number of photos.

    A part's file is written before that of its outcomes: whoever finds the latter finds both.
    """
    cv2.setNumThreads(1)
    with pq.ParquetFile(workspace.table("plan", plan)) as planned:
        listed = planned.read_row_group(group).to_pylist()
    key = part_key(listed, config)
    outcomes = workspace.cached("outcomes", key)
    if not outcomes.exists():
        rows: list[dict[str, Any]] = []
        part = workspace.cached("parts", key)
        write_through(part, lambda file: rows.extend(_write_part(listed, key, file, workspace.run, config)))
        write_table(pa.Table.from_pylist(rows, OUTCOMES), outcomes)
    return len(listed)


def gather_outcomes(number: int, workspace: Workspace, config: IngestConfig) -> int:
    """Writes the outcomes of all parts of a plan as one file; returns how many they are."""
    with pq.ParquetFile(workspace.table("plan", number)) as plan:
        keys = [part_key(plan.read_row_group(group).to_pylist(), config) for group in range(plan.num_row_groups)]
    tables = [pq.read_table(workspace.cached("outcomes", key), use_threads=False) for key in keys]
    table = pa.concat_tables([OUTCOMES.empty_table(), *tables])
    write_table(table, workspace.table("outcomes", number), row_group_size=8192)
    return len(table)


def _write_part(
    listed: list[dict[str, Any]], key: str, file: Path, run: str, config: IngestConfig
) -> list[dict[str, Any]]:
    """Writes the faces of the listed photos, one row group or more a split, so that a shard reads its own only; returns
    the row of ``OUTCOMES`` of every photo."""
    waiting: dict[str, list[pa.Table]] = defaultdict(list)
    held: Counter[str] = Counter()
    outcomes: list[dict[str, Any]] = []
    text = config.model_dump_json()
    with pq.ParquetWriter(
        file, part_schema(), compression="none", use_dictionary=False, write_statistics=["split"]
    ) as writer:
        for row in listed:
            split = split_of(row["sha256"], config.split_seed, config.splits)
            photo = Photo(row["path"], row["source"], row["sha256"], split)
            outcome = _outcome(photo, row, run, text)
            outcomes.append(_outcome_row(outcome, photo, key))
            if len(outcome.rows):
                waiting[split].append(outcome.rows)
                held[split] += outcomes[-1]["bytes"]
            if held[split] > _BUFFERED:
                writer.write_table(pa.concat_tables(waiting.pop(split)).combine_chunks())
                held[split] = 0
        for split in sorted(waiting):
            writer.write_table(pa.concat_tables(waiting[split]).combine_chunks())
    return outcomes


def _outcome(photo: Photo, row: dict[str, Any], run: str, config: str) -> Outcome:
    """What becomes of one listed photo; ``config`` is the configuration as JSON, which caches can tell apart."""
    source, entry = source_of(run, row["number"], config), entry_of(row)
    try:
        ready = source.rows(entry)
        if ready is not None:
            return _of_ready_rows(photo, ready)
        data = source.data(entry)
        annotations = source.annotations(entry, data)
    except Rejected as error:
        return Outcome(photo.path, rejected=[(None, error.reason, error.detail)])
    except OSError as error:
        detail = error.strerror or str(error) or type(error).__name__
        return Outcome(photo.path, rejected=[(None, "unreadable", detail)])
    return _photo_process(os.getpid(), config).process(photo, data, annotations)


@lru_cache(maxsize=2)
def _photo_process(pid: int, config: str) -> PhotoProcess:
    """One child a worker process; it ends with it."""
    return PhotoProcess(IngestConfig.model_validate_json(config))


def _of_ready_rows(photo: Photo, ready: pa.Table) -> Outcome:
    """Rows of an earlier ingest, in this one's split. Levels without a value were given by their source then."""
    table = ready.set_column(ready.schema.get_field_index("split"), "split", pa.array([photo.split] * len(ready)))
    for tag in ORDINAL_TAGS:
        label = table[label_column(tag)]
        given = pc.and_(pc.is_null(table[f"exif_{tag}"]), pc.not_equal(label, ABSENT))
        table = table.append_column(given_column(tag), pc.if_else(given, label, pa.scalar(None, pa.int8())))
    table = table.select(part_schema().names).cast(part_schema())
    picture = cv2.imdecode(np.frombuffer(table["image"][0].as_py(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise Rejected("unreadable", "the stored face cannot be decoded, the shard is damaged")
    mark = perceptual_hash(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return Outcome(photo.path, len(table), table, fingerprint=mark, pixels=picture.shape[0] * picture.shape[1])


def _outcome_row(outcome: Outcome, photo: Photo, key: str) -> dict[str, Any]:
    rows = outcome.rows
    values = {name: rows[name][0].as_py() if len(rows) else None for name in _VALUES}
    return {
        "path": photo.path,
        "source": photo.source,
        "sha256": photo.sha256,
        "split": photo.split,
        "part": key,
        "faces": outcome.faces,
        "rows": len(rows),
        "bytes": pc.sum(pc.binary_length(rows["image"])).as_py() or 0,
        "pixels": outcome.pixels,
        "fingerprint": outcome.fingerprint,
        **values,
        "rejected": [dict(zip(("face", "reason", "detail"), item, strict=True)) for item in outcome.rejected],
    }
