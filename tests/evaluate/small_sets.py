"""Shard sets of small random faces whose containers differ on purpose."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.data.records import (
    CONTAINER_COLUMNS,
    MANIFEST,
    QUARANTINE,
    Manifest,
    Shard,
    label_column,
    quarantine_schema,
    shard_schema,
)
from blades_dist.data.shards import file_sha256
from blades_dist.tasks import TAGS

JPEG = {"codec": "jpeg", "jpeg_tables": "0123456789abcdef", "chroma": "4:2:0"}
PNG = {"codec": "png", "jpeg_tables": "none", "chroma": "none"}


def row(rng: np.random.Generator, split: str, source: str, index: int, look: Mapping[str, Any]) -> dict[str, Any]:
    """``look``: ``size`` (lowest, highest) pixels a side, ``quality`` likewise, and values of container columns."""
    side = int(rng.integers(*look.get("size", (60, 120))))
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 1)
    facts = JPEG | {name: value for name, value in look.items() if name not in ("size", "quality")}
    photo = hashlib.sha256(f"{source}{split}{index}".encode()).hexdigest()
    known = {
        "id": f"{photo}-0",
        "photo": photo,
        "split": split,
        "source": source,
        "path": f"{source}/{index}.jpg",
        "image": cv2.imencode(".png", pixels)[1].tobytes(),
        "width": side,
        "height": side,
        "box": [9.0, 7.0, side / 1.3, side / 1.3],
        "landmarks": [float(side) / 2] * 8 + [0.0, float(side - 1)],
        "jpeg_quality": float(rng.integers(*look.get("quality", (80, 97)))) if facts["codec"] == "jpeg" else None,
        "source_width": side * 3,
        "source_height": side * 2,
        "bit_depth": 8,
        "pixel_mode": "RGB",
        "icc_profile": False,
    }
    labels = {label_column(tag): -1 for tag in TAGS}
    return dict.fromkeys(shard_schema().names) | labels | known | facts


def write_set(
    folder: Path,
    kind: str,
    looks: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, int],
    seed: int = 0,
    version: int = 2,
) -> Manifest:
    """A set with ``counts`` faces by split of each source in ``looks``; one shard a split, row groups of 16."""
    rng, shards = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for split, n in counts.items():
        rows = [row(rng, split, source, i, look) for source, look in looks.items() for i in range(n)]
        table = pa.Table.from_pylist(rows, shard_schema())
        if version == 1:
            table = table.drop_columns([field.name for field in CONTAINER_COLUMNS])
        name = f"{split}-00000.parquet"
        pq.write_table(table, folder / name, row_group_size=16)
        groups = [min(16, len(rows) - start) for start in range(0, len(rows), 16)]
        digest = file_sha256(folder / name)
        shards.append(Shard(name=name, split=split, rows=len(rows), row_groups=groups, sha256=digest))
    pq.write_table(quarantine_schema().empty_table(), folder / QUARANTINE)
    total = sum(shard.rows for shard in shards)
    manifest = Manifest.model_validate(
        {
            "schema_version": version,
            "kind": kind,
            "shards": [shard.model_dump() for shard in shards],
            "ordinal_edges": {},
            "vocabularies": {},
            "split_seed": 0,
            "locator": "haar",
            "crop_scale": 1.3,
            "min_face_px": 16,
            "files_seen": total,
            "faces_seen": total,
            "rows": {shard.split: shard.rows for shard in shards},
            "sources": dict.fromkeys(looks, sum(counts.values())),
            "quarantine": {},
        }
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return manifest
