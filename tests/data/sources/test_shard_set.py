"""Shard sets as sources."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blades_dist.data.decode import Rejected
from blades_dist.data.records import CONTAINER_COLUMNS, Manifest, Shard, shard_schema
from blades_dist.data.sources.base import Entry, SourceError
from blades_dist.data.sources.factory import open_source
from blades_dist.data.sources.shard_set import ShardSource
from blades_dist.tasks import TAGS, vocabulary
from tests.data.sources.layouts import by_path, config

FACES = {f"p{i:02d}.jpg": 1 + i % 3 for i in range(20)}


def row(path: str, face: int, split: str) -> dict[str, Any]:
    """A row of every column, whatever the columns are."""
    photo = hashlib.sha256(path.encode()).hexdigest()
    known = {"id": f"{photo}-{face}", "photo": photo, "split": split, "source": "trip", "path": path}
    known["image"] = f"{path}-{face}".encode() * 9
    filled: dict[str, Any] = {}
    for field in shard_schema():
        if pa.types.is_fixed_size_list(field.type):
            filled[field.name] = [float(face)] * field.type.list_size
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            filled[field.name] = 1
        elif pa.types.is_boolean(field.type):
            filled[field.name] = False
        else:
            filled[field.name] = b"x" if pa.types.is_binary(field.type) else "x"
    return filled | known


def write_set(folder: Path, kind: str = "photographs", per_group: int = 4) -> list[dict[str, Any]]:
    """A set of two shards with several row groups, some of which cut a photo's rows in two; returns its rows."""
    folder.mkdir(parents=True)
    shards, rows = [], []
    for split, names in (("train", list(FACES)[:13]), ("val", list(FACES)[13:])):
        names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        mine = [row(name, face, split) for name in names for face in range(FACES[name])]
        name = f"{split}-00000.parquet"
        pq.write_table(pa.Table.from_pylist(mine, shard_schema()), folder / name, row_group_size=per_group)
        groups = [min(per_group, len(mine) - start) for start in range(0, len(mine), per_group)]
        shards.append(Shard(name=name, split=split, rows=len(mine), row_groups=groups, sha256=f"sum of {split}"))
        rows += mine
    manifest = {
        "kind": kind,
        "shards": [shard.model_dump() for shard in shards],
        "ordinal_edges": {},
        "vocabularies": {tag: list(vocabulary(tag)) for tag in TAGS},
        "split_seed": 0,
        "locator": "haar",
        "crop_scale": 1.3,
        "min_face_px": 16,
        "files_seen": len(FACES),
        "faces_seen": len(rows),
        "rows": {},
        "sources": {"trip": len(rows)},
        "quarantine": {},
    }
    (folder / "manifest.json").write_text(Manifest.model_validate(manifest).model_dump_json())
    return rows


def rows_of(source: ShardSource, entries: dict[str, Entry]) -> list[dict[str, Any]]:
    tables = [source.rows(entry) for entry in entries.values()]
    assert all(table.schema.equals(shard_schema()) for table in tables)
    return [item for table in tables for item in table.to_pylist()]


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_photo_is_an_entry_with_all_its_rows(tmp_path: Path, scheme: str) -> None:
    expected = write_set(tmp_path / "set")
    uri = f"{scheme}{tmp_path / 'set'}"
    source = open_source(uri, config(uri))
    assert isinstance(source, ShardSource)
    entries = by_path(source)
    assert set(entries) == set(FACES) and rows_of(source, entries) == expected
    for path, entry in entries.items():
        assert entry.sha256 == hashlib.sha256(path.encode()).hexdigest() and entry.size > 0
        assert entry.source == "trip" and entry.mark.startswith("sum of") and entry.problem is None
    again = open_source(uri, config(uri))
    assert isinstance(again, ShardSource)
    by_hash = dict(sorted(entries.items(), key=lambda item: item[1].sha256))
    found = rows_of(again, by_hash)
    assert sorted(item["id"] for item in found) == sorted(item["id"] for item in expected)
    with pytest.raises(Rejected, match="not photographs"):
        source.data(entries["p00.jpg"])


def test_sets_of_version_1_have_rows_without_container_facts(tmp_path: Path) -> None:
    expected = write_set(tmp_path / "set")
    added = [field.name for field in CONTAINER_COLUMNS]
    for shard in (tmp_path / "set").glob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns(added), shard, row_group_size=4)
    file = tmp_path / "set" / "manifest.json"
    with pytest.raises(SourceError, match="has no column source_width"):  # it claims to be of version 2
        list(ShardSource(str(tmp_path / "set")).entries())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 1}))
    source = ShardSource(str(tmp_path / "set"))
    assert rows_of(source, by_path(source)) == [item | dict.fromkeys(added) for item in expected]


def test_row_groups_are_read_once_in_the_order_of_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "set")
    source = ShardSource(str(tmp_path / "set"))
    entries = sorted(source.entries(), key=lambda entry: entry.sha256)
    opened: list[str] = []
    monkeypatch.setattr(
        source.storage, "open", lambda path: (opened.append(path), (tmp_path / "set" / path).open("rb"))[1]
    )
    for entry in entries:
        source.rows(entry)
    groups = sum(len(shard.row_groups) for shard in source.manifest().shards)
    assert len([name for name in opened if name.endswith(".parquet")]) == groups


def test_several_sets_are_several_sources(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_set(tmp_path / name)
    options = config("x").model_copy(update={"source": (str(tmp_path / "a"), str(tmp_path / "b"))})
    assert [len(list(open_source(uri, options).entries())) for uri in options.source] == [20, 20]


def test_sets_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    with pytest.raises(SourceError, match="holds photographs, not generated; set kind=photographs"):
        list(ShardSource(str(tmp_path / "set"), "generated").entries())
    shard = tmp_path / "set" / "val-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns(["exif_iso", "box"]), shard)
    with pytest.raises(SourceError, match="has no column box, exif_iso"):
        list(ShardSource(str(tmp_path / "set")).entries())
    shard.write_bytes(b"PAR1 and no more")
    with pytest.raises(SourceError, match=r"val-00000\.parquet"):
        list(ShardSource(str(tmp_path / "set")).entries())
    (tmp_path / "set" / "manifest.json").write_text("{}")
    with pytest.raises(SourceError, match="not a manifest that this version reads"):
        list(ShardSource(str(tmp_path / "set")).entries())
    with pytest.raises(SourceError, match="cannot read"):
        list(ShardSource(str(tmp_path)).entries())
