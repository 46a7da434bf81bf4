"""One container for both sides: what differed is gone, what was left out is counted."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blades_dist.data.container import tables_digest
from blades_dist.data.records import MANIFEST, QUARANTINE, read_manifest, shard_schema
from blades_dist.data.shards import verify
from blades_dist.evaluate import parity
from blades_dist.evaluate.equalise import BEST_QUALITY, RECORD, common_quality, common_side, equalise
from blades_dist.perturb import apply, jpeg_bytes
from tests.evaluate.small_sets import PNG, write_set

PLANTED = {"png": PNG, "one_size": {"size": (100, 101)}, "encoder": {"quality": (70, 76), "chroma": "4:4:4"}}


def rows_of(folder: Path, split: str = "test") -> list[dict[str, Any]]:
    return [
        row for shard in read_manifest(folder).split(split) for row in pq.read_table(folder / shard.name).to_pylist()
    ]


def pixels_of(row: dict[str, Any]) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(row["image"])))


def audited(real: Path, generated: Path) -> parity.Audit:
    return parity.audit_sets(real, generated, "test", resamples=100)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "real", "photographs", {"camera": {}}, {"calibration": 30, "test": 120})
    write_set(folder / "fake", "generated", PLANTED, {"train": 5, "test": 60}, seed=1)
    return folder / "real", folder / "fake"


def test_planted_leaks_are_caught_before_and_gone_after(sets: tuple[Path, Path], tmp_path: Path) -> None:
    assert set(PLANTED) <= set(audited(*sets).leaking)
    made = equalise(*sets, tmp_path / "out")
    after = audited(made.photographs, made.generated)
    assert set(after.container_auc) == {*PLANTED, parity.ALL} and after.unrecorded == {}
    assert all(estimate.value == pytest.approx(0.5, abs=1e-9) for estimate in after.container_auc.values())


def test_sets_are_whole_and_everything_is_counted(sets: tuple[Path, Path], tmp_path: Path) -> None:
    made = equalise(*sets, tmp_path / "out", real_splits=("calibration", "test"))
    before = {"photographs": rows_of(sets[0]), "generated": rows_of(sets[1])}
    for kind, folder in (("photographs", made.photographs), ("generated", made.generated)):
        manifest, rows = read_manifest(folder), rows_of(folder)
        assert verify(folder) == [] and manifest.kind == kind and manifest.schema_version == 2
        assert {row["width"] for row in rows} == {row["height"] for row in rows} == {made.side}
        mine = [count for count in made.counts if count.kind == kind]
        tested = [count for count in mine if count.split == "test"]
        assert sum(count.kept for count in tested) == len(rows) == manifest.rows["test"]
        assert sum(count.kept + count.left_out for count in tested) == len(before[kind])
        assert all(count.kept >= 0.95 * (count.kept + count.left_out) for count in tested)
        small = {row["path"] for row in before[kind] if row["width"] < made.side}
        quarantine = pq.read_table(folder / QUARANTINE).to_pylist()
        assert small <= {row["path"] for row in quarantine} and all(row["face"] == 0 for row in quarantine)
        assert len(quarantine) == sum(count.left_out for count in mine) == manifest.quarantine["face_too_small"]
        assert {row["id"] for row in rows} == {row["id"] for row in before[kind] if row["path"] not in small}
    assert read_manifest(made.photographs).rows == {"calibration": len(rows_of(made.photographs, "calibration"))} | {
        "test": len(rows_of(made.photographs))
    }
    assert read_manifest(made.generated).rows == {"train": 0, "test": len(rows_of(made.generated))}
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["side"], record["quality"]) == (made.side, made.quality)
    assert sum(count["left_out"] for count in record["counts"]) == sum(count.left_out for count in made.counts) > 0
    assert f"{made.side} x {made.side} pixels, JPEG quality {made.quality}" in made.sentence()


def test_a_row_is_the_face_through_the_common_container(sets: tuple[Path, Path], tmp_path: Path) -> None:
    made = equalise(*sets, tmp_path / "out", side=64, quality=60)
    old = {row["id"]: row for row in rows_of(sets[1])}
    for new in rows_of(made.generated)[::20]:
        pixels = cv2.resize(pixels_of(old[new["id"]]), (64, 64), interpolation=cv2.INTER_AREA)
        data = jpeg_bytes(pixels, 60)
        assert (pixels_of(new) == apply("jpeg60", pixels)).all()
        assert new["jpeg_tables"] == tables_digest(Image.open(io.BytesIO(data))) and new["jpeg_quality"] == 60
        assert (new["codec"], new["chroma"], new["bit_depth"], new["pixel_mode"]) == ("jpeg", "4:2:0", 8, "RGB")
        assert new["source_width"] == new["source_height"] == 64 and new["box"] == [0, 0, 64, 64]
        # The last landmark was the bottom-left pixel's centre.
        edge = 64 / old[new["id"]]["width"] / 2 - 0.5
        assert new["landmarks"][8:] == pytest.approx([edge, 63 - edge], abs=1e-4)
        unchanged = ("photo", "split", "source", "path", "label_iso", "exif_make")
        assert all(new[name] == old[new["id"]][name] for name in unchanged)


def test_it_is_done_once_and_again_when_damaged_or_asked_otherwise(sets: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = equalise(*sets, out)
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    assert equalise(*sets, out) == first
    assert times == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    digests = [read_manifest(folder).digest() for folder in (first.photographs, first.generated)]
    next(first.generated.glob("test-*.parquet")).unlink()
    assert equalise(*sets, out) == first and verify(first.generated) == []
    assert digests == [read_manifest(folder).digest() for folder in (first.photographs, first.generated)]
    other = equalise(*sets, out, quality=50)
    assert other.quality == 50 and read_manifest(other.generated).digest() != digests[1]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_call_leaves_what_was_there(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = equalise(*sets, out)
    damaged = tmp_path / "damaged"
    shutil.copytree(sets[1], damaged)
    shard = next(damaged.glob("test-*.parquet"))
    table = pq.read_table(shard)
    images = table["image"].to_pylist()
    images[-1] = b"no image"
    place = table.schema.get_field_index("image")
    pq.write_table(table.set_column(place, shard_schema().field("image"), [images]), shard, row_group_size=16)
    with pytest.raises(ValueError, match="cannot be decoded, the shard is damaged"):
        equalise(sets[0], damaged, out, quality=40)
    with pytest.raises(ValueError, match="damaged"):
        equalise(sets[0], damaged, tmp_path / "fresh")
    assert equalise(*sets, out) == first and verify(first.photographs) == []
    assert {file.name for file in tmp_path.iterdir()} == {"out", "damaged"}


def test_sets_of_version_1_become_recorded(tmp_path: Path) -> None:
    write_set(tmp_path / "real", "photographs", {"camera": {}}, {"test": 40}, version=1)
    write_set(tmp_path / "fake", "generated", {"png": PNG}, {"test": 40}, seed=1)
    assert len(audited(tmp_path / "real", tmp_path / "fake").unrecorded["png"]) == 7
    made = equalise(tmp_path / "real", tmp_path / "fake", tmp_path / "out")
    assert audited(made.photographs, made.generated).unrecorded == {}


def test_the_common_size_and_quality() -> None:
    real, small = np.arange(100, 200), np.array([50, 60, 70, 80] * 25)
    assert common_side([real], 1.0) == 100 and common_side([real], 0.95) == 105
    assert common_side([real, small], 0.95) == 50 and common_side([real, small], 0.75) == 60
    assert common_side([np.array([64])], 0.95) == 64
    for keep in (0.5, 0.9, 0.95, 0.99):
        assert (real >= common_side([real], keep)).mean() >= keep > (real >= common_side([real], keep) + 2).mean()
    none = np.full(5, np.nan)
    assert common_quality([np.array([90.0, 80.4, 60.0]), none]) == 80
    assert common_quality([np.array([74.9, 74.9]), none]) == 75
    assert common_quality([none]) == common_quality([np.full(3, 99.0), none]) == BEST_QUALITY


def test_what_cannot_be_equalised_is_told(sets: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, options, words in (
        ((sets[1], sets[0], out), {}, "holds generated, not photographs"),
        ((*sets, out), {"splits": ("val",)}, "no rows in split 'val'"),
        ((*sets, out), {"side": 4}, "side is at least 8"),
        ((*sets, out), {"quality": 0}, "quality 1 to 100"),
        ((*sets, out), {"side": 200}, "no photographs of split 'test' in .* 200 pixels"),
        ((*sets, sets[0].parent), {}, "the sets to read lie in"),
        ((*sets, sets[0]), {}, "the sets to read lie in"),
    ):
        with pytest.raises(ValueError, match=words):
            equalise(*arguments, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        equalise(*sets, out)
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        equalise(tmp_path / "nowhere", sets[1], tmp_path / "other")
