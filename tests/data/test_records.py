"""The manifest and the schemas."""

from pathlib import Path

import pytest

from blades_dist.data.crops import part_schema, split_of
from blades_dist.data.records import MANIFEST, Manifest, Shard, read_manifest, shard_schema
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
    with pytest.raises(ValueError, match="schema version 1"):
        read_manifest(tmp_path)


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
