"""Ingest from a folder to shards: everything accounted for, the same bytes every time."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from blades_dist.config import IngestConfig
from blades_dist.data.exif import labels
from blades_dist.data.ingest import ingest
from blades_dist.data.records import (
    QUARANTINE,
    Manifest,
    label_column,
    quarantine_schema,
    read_manifest,
    shard_schema,
)
from blades_dist.data.shards import file_sha256
from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.folder import FolderSource
from blades_dist.tasks import CATEGORICAL_TAGS, ORDINAL_TAGS, TAGS

pytestmark = pytest.mark.ray

Collection = tuple[Path, dict[str, str]]


def config(source: Path, output: Path, **options: Any) -> IngestConfig:
    return IngestConfig.model_validate({"source": source, "output": output, "rows_per_group": 16} | options)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for shard in read_manifest(folder).shards for row in pq.read_table(folder / shard.name).to_pylist()]


@pytest.fixture(scope="module")
def ingested(
    ray_cluster: None, collection: Collection, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    output = tmp_path_factory.mktemp("shards")
    return output, ingest(config(collection[0], output))


def test_every_file_is_accounted_for(ingested: tuple[Path, Manifest], collection: Collection) -> None:
    output, manifest = ingested
    folder, broken = collection
    quarantine = pq.read_table(output / QUARANTINE)
    assert quarantine.schema.equals(quarantine_schema())
    assert {row["path"]: row["reason"] for row in quarantine.to_pylist()} == broken
    assert all(row["detail"] for row in quarantine.to_pylist())
    rows = rows_of(output)
    assert manifest.files_seen == len(list(FolderSource(str(folder)).entries())) == 130 + len(broken)
    assert len(rows) == sum(manifest.rows.values()) == sum(manifest.sources.values()) == 130
    assert manifest.faces_seen == len(rows) + 1  # the one that is too small
    assert sum(manifest.quarantine.values()) == len(broken)
    assert {row["path"] for row in rows} | set(broken) == {file.path for file in FolderSource(str(folder)).entries()}
    assert not (output / ".building").exists()


def test_shards_are_as_the_manifest_says(ingested: tuple[Path, Manifest]) -> None:
    output, manifest = ingested
    for shard in manifest.shards:
        with pq.ParquetFile(output / shard.name) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            assert file.schema_arrow.equals(shard_schema())
        assert (groups, sum(groups)) == (shard.row_groups, shard.rows)
        assert all(rows == 16 for rows in groups[:-1])
        assert file_sha256(output / shard.name) == shard.sha256
    ids = [row["id"] for row in rows_of(output) if row["split"] == "train"]
    assert ids == sorted(ids) and len(set(ids)) == len(ids)


def test_rows_hold_the_photo_unchanged(ingested: tuple[Path, Manifest], collection: Collection) -> None:
    row = next(row for row in rows_of(ingested[0]) if row["path"] == "b_party/photo_003.jpg")
    photo = cv2.imread(str(collection[0] / row["path"]))
    crop = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_UNCHANGED)
    # Box (10, 8, 70, 70) scaled by 1.3 is 91 pixels about (45, 43), shifted into the photo.
    assert (crop == photo[:91, :91]).all()
    assert (row["width"], row["height"], row["box"]) == (91, 91, [10, 8, 70, 70])
    assert row["landmarks"][:4] == [30, 30, 60, 30]
    assert (row["source"], row["codec"], row["exif_iso"], row["exif_make"]) == ("b_party", "jpeg", 400.0, "others")
    assert abs(row["jpeg_quality"] - 90) < 1
    assert (row["source_width"], row["source_height"], row["chroma"], row["bit_depth"]) == (96, 96, "4:2:0", 8)


def test_labels_follow_raw_values_and_edges(ingested: tuple[Path, Manifest]) -> None:
    output, manifest = ingested
    rows = rows_of(output)
    for row in rows:
        expected = labels({tag: row[f"exif_{tag}"] for tag in TAGS}, manifest.ordinal_edges)
        assert {tag: row[label_column(tag)] for tag in TAGS} == expected
    train = [row for row in rows if row["split"] == "train"]
    for tag in ("iso", "aperture", "exposure_time"):
        assert {row[label_column(tag)] for row in train} == {0, 1, 2}
    assert "focal_length" not in manifest.ordinal_edges and set(manifest.vocabularies) == set(TAGS)


def test_again_is_the_same_and_idempotent(
    ingested: tuple[Path, Manifest], collection: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, manifest = ingested
    again = ingest(config(collection[0], tmp_path))
    assert again.digest() == manifest.digest()
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in manifest.shards]
    times = {file: file.stat().st_mtime_ns for file in output.iterdir()}
    capsys.readouterr()
    assert ingest(config(collection[0], output)) == manifest
    assert "up to date" in capsys.readouterr().out
    assert times == {file: file.stat().st_mtime_ns for file in output.iterdir()}


def test_photos_added_later_move_nothing(
    ingested: tuple[Path, Manifest],
    collection: Collection,
    photo_writer: Callable[[Path, int], None],
    tmp_path: Path,
) -> None:
    source, output = tmp_path / "more", tmp_path / "shards"
    shutil.copytree(collection[0], source)
    shutil.copytree(ingested[0], output)
    for index in range(500, 540):
        photo_writer(source / "c_new" / f"{index}.jpg", index)
    manifest = ingest(config(source, output))
    before = {row["id"]: row["split"] for row in rows_of(ingested[0])}
    after = {row["id"]: row["split"] for row in rows_of(output)}
    assert len(after) == 170 and manifest.sources["c_new"] == 40
    assert {name: after[name] for name in before} == before


def test_generated_images_need_no_exif(
    ray_cluster: None, photo_writer: Callable[[Path, int], None], collection: Collection, tmp_path: Path
) -> None:
    source = tmp_path / "generated"
    photo_writer(source / "gan" / "with.jpg", 3)
    (source / "gan" / "plain.jpg").write_bytes((collection[0] / "broken" / "no_exif.jpg").read_bytes())
    shutil.copy(source / "gan" / "with.faces.json", source / "gan" / "plain.faces.json")
    manifest = ingest(config(source, tmp_path / "out", kind="generated", min_tags=0, splits={"test": 1.0}))
    rows = rows_of(tmp_path / "out")
    assert manifest.rows["test"] == 2 and manifest.ordinal_edges == {} and manifest.sources == {"gan": 2}
    assert all(row[label_column(tag)] == -1 for row in rows for tag in ORDINAL_TAGS)
    assert any(row[label_column(tag)] != -1 for row in rows for tag in CATEGORICAL_TAGS)


def test_nothing_usable_is_reported_not_raised(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.jpg").write_text("no image")
    manifest = ingest(config(tmp_path / "in", tmp_path / "out"))
    assert (manifest.shards, manifest.quarantine) == ([], {"unreadable": 1})


def test_wrong_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        ingest(config(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SourceError, match="no image in"):
        ingest(config(tmp_path, tmp_path / "out"))


JOB = Path(__file__).parents[2] / "jobs" / "ingest.py"


def job(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, JOB, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | environment)


def test_job_inspects_one_file(collection: Collection) -> None:
    done = job("--inspect", collection[0] / "b_party" / "photo_003.jpg")
    assert done.returncode == 0 and "would be ingested: yes" in done.stdout and "FNumber" in done.stdout
    done = job("--inspect", collection[0] / "broken" / "truncated.jpg")
    assert done.returncode == 0 and "would be ingested: no: truncated" in done.stdout
    for arguments in (["--inspect"], ["--inspect", collection[0] / "gone.jpg"]):
        done = job(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr and "ingest: " in done.stderr


@pytest.mark.slow
def test_job_writes_the_report(ingested: tuple[Path, Manifest], collection: Collection, tmp_path: Path) -> None:
    output = tmp_path / "set"
    shutil.copytree(ingested[0], output)
    address = ray.get_runtime_context().gcs_address
    done = job(f"source={collection[0]}", f"output={output}", "rows_per_group=16", "--report", RAY_ADDRESS=address)
    assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr
    page = (output / "report.html").read_text()
    assert f"{sum(ingested[1].rows.values())} faces" in page and "not reachable" not in page.split("no_face")[1][:3000]


def test_job_ends_with_a_message_not_a_traceback(tmp_path: Path) -> None:
    done = job(f"source={tmp_path / 'nowhere'}", f"output={tmp_path}")
    assert done.returncode == 2 and "is not a folder" in done.stderr and "Traceback" not in done.stderr
