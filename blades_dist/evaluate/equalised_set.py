"""One side of a test set brought to a common size and JPEG quality: rows in, a shard set out."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.data.crops import stored_crop
from blades_dist.data.decode import open_image
from blades_dist.data.read import decoded
from blades_dist.data.records import (
    SCHEMA_VERSION,
    Manifest,
    Shard,
    quarantine_schema,
    shard_schema,
    with_container,
)
from blades_dist.data.shards import file_sha256, publish, shard_name, shard_writer
from blades_dist.perturb import jpeg_bytes, resized


@dataclass(frozen=True)
class Count:
    """Faces of one source in one split: written, and left out because they are smaller than the common side."""

    kind: str
    split: str
    source: str
    kept: int
    left_out: int


@dataclass
class _Tally:
    """What was seen so far: photographs, and (split, source) of the faces written and left out."""

    photos: set[str] = field(default_factory=set)
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    quarantine: list[dict[str, Any]] = field(default_factory=list)


def write_set(
    folder: Path, manifest: Manifest, splits: Sequence[str], target: Path, side: int, quality: int
) -> list[Count]:
    """Writes the splits of a set into the new folder ``target``, every face ``side`` x ``side`` pixels and JPEG of
    ``quality``, with manifest and quarantine.

    Raises:
        ValueError: a split has no face of that size.
    """
    target.mkdir()
    tally, shards = _Tally(), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in splits:
            here: list[Shard] = []
            for old in manifest.split(split):
                groups = _write_shard(folder / old.name, target / "shard.tmp", split, side, quality, tally, pool)
                if groups:
                    here.append(_named(target / "shard.tmp", split, len(here), groups))
            if not here:
                raise ValueError(
                    f"equalise: no {manifest.kind} of split {split!r} in {folder} have crops of {side} pixels or more"
                )
            shards += here
    (target / "shard.tmp").unlink(missing_ok=True)
    pq.write_table(pa.Table.from_pylist(tally.quarantine, quarantine_schema()), target / "quarantine.tmp")
    state = json.dumps({"equalised_from": manifest.digest(), "side": side, "quality": quality}) + "\n"
    publish(target, _manifest_of(manifest, shards, tally), target / "quarantine.tmp", state)
    places = sorted({*tally.kept, *tally.left_out})
    return [Count(manifest.kind, *place, tally.kept[place], tally.left_out[place]) for place in places]


def shorter_sides(table: pa.Table) -> np.ndarray:
    """(n,) pixels of the shorter side of each row's crop."""
    return np.minimum(table["width"].to_numpy(), table["height"].to_numpy())


def _write_shard(
    source: Path, target: Path, split: str, side: int, quality: int, tally: _Tally, pool: ThreadPoolExecutor
) -> list[int]:
    """Rows of each row group written."""
    groups = []
    with shard_writer(target) as writer:
        for table in _row_groups(source):
            tally.photos.update(table["photo"].to_pylist())
            large = shorter_sides(table) >= side
            small, table = table.filter(pa.array(~large)), table.filter(pa.array(large))
            tally.left_out.update((split, source) for source in small["source"].to_pylist())
            tally.kept.update((split, source) for source in table["source"].to_pylist())
            tally.quarantine += [_refused(row, side) for row in small.drop_columns(["image"]).to_pylist()]
            if len(table):
                writer.write_table(_through(table, side, quality, pool))
                groups.append(len(table))
    return groups


def _named(written: Path, split: str, number: int, groups: list[int]) -> Shard:
    sha256 = file_sha256(written)
    shard = Shard(
        name=shard_name(split, number, sha256), split=split, rows=sum(groups), row_groups=groups, sha256=sha256
    )
    written.rename(written.with_name(shard.name))
    return shard


def _manifest_of(manifest: Manifest, shards: list[Shard], tally: _Tally) -> Manifest:
    sources: Counter[str] = Counter()
    for (_, source), count in tally.kept.items():
        sources[source] += count
    left_out = tally.left_out.total()
    changed: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "shards": shards,
        "files_seen": len(tally.photos),
        "faces_seen": tally.kept.total() + left_out,
        "rows": {split: sum(shard.rows for shard in shards if shard.split == split) for split in manifest.rows},
        "sources": dict(sorted(sources.items())),
        "quarantine": {"face_too_small": left_out} if left_out else {},
    }
    return manifest.model_copy(update=changed)


def _row_groups(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            table = with_container(opened.read_row_group(group, use_threads=False))
            yield table.select(shard_schema().names).cast(shard_schema())


def _refused(row: dict[str, Any], side: int) -> dict[str, Any]:
    """A row of the quarantine; the face's number is the end of its id."""
    number = row["id"].rpartition("-")[2]
    detail = f"a crop of {row['width']} x {row['height']} pixels; both sides were brought to {side}"
    face = int(number) if number.isdecimal() else None
    return {"path": row["path"], "face": face, "reason": "face_too_small", "detail": detail}


def _through(table: pa.Table, side: int, quality: int, pool: ThreadPoolExecutor) -> pa.Table:
    """Rows with pictures that went through the common container, and what is recorded of them now."""
    rows = table.select(["id", "image", "landmarks"]).to_pylist()
    changed = list(pool.map(lambda row: _face(row, side, quality), rows))
    for name in changed[0]:
        column = shard_schema().field(name)
        values = pa.array([row[name] for row in changed], column.type)
        table = table.set_column(shard_schema().get_field_index(name), column, values)
    return table


def _face(row: dict[str, Any], side: int, quality: int) -> dict[str, Any]:
    """Changed columns of one row. The file that they describe is the crop's own, of which the face is the whole."""
    pixels = cv2.cvtColor(decoded(np.frombuffer(row["image"], np.uint8), row["id"]), cv2.COLOR_BGR2RGB)
    scale = side / np.array(pixels.shape[1::-1], float)
    points = (np.array(row["landmarks"], float).reshape(-1, 2) + 0.5) * scale - 0.5  # half-integers: pixel centres
    data = jpeg_bytes(resized(pixels, side, side), quality)
    image = open_image(data, side * side, len(data))
    return {
        "image": stored_crop(image.pixels()),
        "width": side,
        "height": side,
        "box": [0.0, 0.0, float(side), float(side)],
        "landmarks": points.ravel().tolist(),
        "codec": image.codec,
        "jpeg_quality": image.jpeg_quality,
        "source_width": side,
        "source_height": side,
        **vars(image.container),
    }
