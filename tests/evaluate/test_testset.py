"""Test sets as users have them, through the real ingest."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blades_dist.data.records import MANIFEST, read_manifest
from blades_dist.data.shards import verify
from blades_dist.data.sources.base import SourceError
from blades_dist.evaluate.testset import TestsetError, prepare_testset
from tests.data.conftest import encoded, jpeg_of, pixels_of, write_sidecar
from tests.evaluate.small_sets import PNG, write_set

Files = dict[str, bytes]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for s in read_manifest(folder).split("test") for row in pq.read_table(folder / s.name).to_pylist()]


def write(folder: Path, files: Files) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def pictures() -> Files:
    """Photographs with and without EXIF, fakes of two generators; one of each is no square."""
    files = {f"real/{i}.jpg": jpeg_of(i, exif=i < 2) for i in range(4)}
    files["real/wide.png"] = encoded(pixels_of(50, 120)[:100], "PNG")
    files |= {f"fake/{name}/{i}.png": encoded(pixels_of(60 + 9 * i, 80 + 8 * n), "PNG") for n, name in
              enumerate(("gan", "diffusion")) for i in range(3)}  # fmt: skip
    return files


@pytest.mark.ray
def test_a_folder_of_whole_faces(ray_cluster: None, tmp_path: Path) -> None:
    write(tmp_path / "set", pictures())
    write(tmp_path / "set", {"real/broken.jpg": jpeg_of(9)[:900]})
    real, generated = prepare_testset(tmp_path / "set", tmp_path / "out", faces="whole")
    photographs, fakes = rows_of(real), rows_of(generated)
    assert {row["path"] for row in photographs} == {f"{i}.jpg" for i in range(4)} | {"wide.png"}
    assert read_manifest(real).kind == "photographs" and read_manifest(real).quarantine == {"truncated": 1}
    assert read_manifest(generated).sources == {"diffusion": 3, "gan": 3} and not verify(generated)
    assert {row["width"] for row in fakes} == {80, 88} and all(row["codec"] == "png" for row in fakes)
    wide = next(row for row in photographs if row["path"] == "wide.png")
    assert wide["box"] == [0, 0, 120, 100] and (wide["width"], wide["height"]) == (100, 100)
    assert (wide["source_width"], wide["source_height"]) == (120, 100)
    assert (np.array(Image.open(io.BytesIO(wide["image"]))) == pixels_of(50, 120)[:100, 10:110]).all()
    # In the crop: a frontal face of 100 / 1.3 pixels in its middle.
    margin = (100 - 100 / 1.3) / 2
    assert wide["landmarks"][4:6] == pytest.approx([50, margin + 0.58 * 100 / 1.3], abs=1e-3)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")}
    assert prepare_testset(tmp_path / "set", tmp_path / "out", faces="whole") == (real, generated)
    assert times == {file: file.stat().st_mtime_ns for file in times}


@pytest.mark.ray
def test_a_list_with_boxes_and_located_faces(ray_cluster: None, tmp_path: Path) -> None:
    write(tmp_path, pictures())
    lines = ["path,label,generator,x,y,w,h"]
    lines += [f"real/{i}.jpg,real,,10,8,70,70" for i in range(4)]
    lines += [f"fake/gan/{i}.png,fake,gan,5,5,66,66" for i in range(3)] + ["fake/diffusion/0.png,fake,other,,,,"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    real, generated = prepare_testset(tmp_path / "list.csv", tmp_path / "out")
    assert (
        all(row["box"] == [10, 8, 70, 70] and row["width"] == 91 for row in rows_of(real)) and len(rows_of(real)) == 4
    )
    assert read_manifest(generated).sources == {"gan": 3} and read_manifest(generated).quarantine == {"no_face": 1}
    with pytest.raises(TestsetError, match=r"no face of .*list\.csv could be used as photographs: .*face_too_small"):
        prepare_testset(tmp_path / "list.csv", tmp_path / "large", min_face_px=90)
    (tmp_path / "bad.csv").write_text("path,label\n")
    with pytest.raises(SourceError, match="no column generator"):
        prepare_testset(tmp_path / "bad.csv", tmp_path / "bad")


@pytest.mark.ray
def test_sidecars_count_where_faces_are_located(ray_cluster: None, tmp_path: Path) -> None:
    write(tmp_path / "set", pictures())
    for file in (tmp_path / "set").rglob("*.*"):
        write_sidecar(file, side=65)
    real, generated = prepare_testset(tmp_path / "set", tmp_path / "out", crop_scale=1.0)
    assert {row["width"] for row in rows_of(real) + rows_of(generated)} == {65}
    assert read_manifest(real).crop_scale == 1.0


def test_shard_sets_are_taken_as_they_are(tmp_path: Path) -> None:
    write_set(tmp_path / "set" / "real", "photographs", {"camera": {}}, {"test": 3})
    (tmp_path / "set" / "fake").mkdir()
    with pytest.raises(TestsetError, match="is a shard set and the other side is not"):
        prepare_testset(tmp_path / "set", tmp_path / "out")
    (tmp_path / "set" / "fake").rmdir()
    write_set(tmp_path / "set" / "fake", "generated", {"gan": PNG}, {"test": 3})
    found = prepare_testset(tmp_path / "set", tmp_path / "out")
    assert found == (tmp_path / "set" / "real", tmp_path / "set" / "fake") and not (tmp_path / "out").exists()
    assert all((folder / MANIFEST).is_file() for folder in found)


def test_what_is_no_test_set_is_told(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "photos", tmp_path / "list.csv", tmp_path / "nowhere"):
        with pytest.raises(TestsetError, match=r"is no test set: expected a folder with real/ and fake/<generator>/"):
            prepare_testset(path, tmp_path / "out")
