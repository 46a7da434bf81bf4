"""The manifest and the schemas."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from blades_dist.data.crops import part_schema, split_of
from blades_dist.data.records import (
    CONTAINER_COLUMNS,
    MANIFEST,
    Manifest,
    Shard,
    read_manifest,
    shard_schema,
    with_container,
)
from blades_dist.tasks import TAGS

SHARES = {"train": 0.7, "val": 0.1, "calibration": 0.1, "test": 0.1}


def manifest(**changed: object) -> Manifest:
    shard = Shard(name="train-00000.parquet", split="train", rows=5, row_groups=[3, 2], sha256="0" * 64)
    values = {
        "kind": "photographs",
        "shards": [shard],
        "ordinal_edges": {"iso": (100.0, 400.0)},
        "vocabularies": {},
        "split_seed": 0,
        "locator": "haar",
        "crop_scale": 1.3,
        "min_face_px": 64,
        "files_seen": 5,
        "faces_seen": 5,
        "rows": {"train": 5},
        "sources": {"here": 5},
        "quarantine": {},
    }
    return Manifest.model_validate(values | changed)


def test_manifest_survives_writing(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(manifest().model_dump_json())
    assert read_manifest(tmp_path) == manifest()
    assert read_manifest(tmp_path).digest() == manifest().digest() != manifest(split_seed=1).digest()


def test_missing_and_foreign_manifests_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ingest\.py"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text('{"schema_version": 99}')
    with pytest.raises(ValueError, match="schema version 1 or 2"):
        read_manifest(tmp_path)


def test_manifests_of_version_1_stay_readable_and_keep_their_digest(tmp_path: Path) -> None:
    old = json.loads(manifest().model_dump_json()) | {"schema_version": 1}
    (tmp_path / MANIFEST).write_text(json.dumps(old))
    found = read_manifest(tmp_path)
    assert found.schema_version == 1 and manifest().schema_version == 2
    text = json.dumps(old, separators=(",", ":"))
    assert found.digest() == hashlib.sha256(text.encode()).hexdigest() != manifest().digest()


def test_rows_of_version_1_lack_container_facts_and_nothing_else() -> None:
    new = {field.name for field in CONTAINER_COLUMNS}
    assert all(field.nullable for field in CONTAINER_COLUMNS)
    empty = pa.Table.from_batches([], pa.schema([field for field in shard_schema() if field.name not in new]))
    filled = with_container(empty)
    assert set(filled.column_names) == set(shard_schema().names) and with_container(filled) is filled
    one = with_container(pa.table({"codec": ["jpeg"], "chroma": ["4:2:0"]}))
    assert one["chroma"].to_pylist() == ["4:2:0"] and one["jpeg_tables"].to_pylist() == [None]


def test_a_split_without_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows in split 'val'"):
        manifest().split("val")


def test_parts_are_shards_without_labels() -> None:
    assert set(shard_schema().names) - set(part_schema().names) == {f"label_{tag}" for tag in TAGS}


def test_splits_follow_their_shares_and_seed() -> None:
    names = [split_of(f"{i:064x}", 0, SHARES) for i in range(5000)]
    for split, share in SHARES.items():
        assert abs(names.count(split) / 5000 - share) < 0.03
    assert names == [split_of(f"{i:064x}", 0, SHARES) for i in range(5000)]
    assert names != [split_of(f"{i:064x}", 1, SHARES) for i in range(5000)]
    assert {split_of(f"{i:064x}", 0, {"train": 0.0, "val": 1.0}) for i in range(100)} == {"val"}
