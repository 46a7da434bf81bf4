"""Folders of photographs and what lies beside them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from blades_dist.data import heif
from blades_dist.data.decode import Rejected
from blades_dist.data.sources.base import Annotations, SourceError
from blades_dist.data.sources.folder import FolderSource, image_files
from tests.data.sources.layouts import by_path, config, picture, read_elsewhere, write_tree

FACE = {"box": [1, 2, 20, 21], "landmarks": [[5, 6], [15, 6], [10, 11], [6, 16], [14, 16]]}
FACES = json.dumps({"faces": [FACE]}).encode()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_tree(
        tmp_path / "photos",
        {
            "plain.png": picture(0),
            "trip/both.jpg": picture(1, form="JPEG"),
            "trip/both.faces.json": FACES,
            "trip/both.json": b'[{"EXIF:FNumber": 2.8}]',
            "trip/both.jpg.json": b'[{"EXIF:ISO": 200}]',
            "trip/stem.jpg": picture(2, form="JPEG"),
            "trip/stem.json": b'{"Make": "Canon", "ExposureTime": "1/60 sec"}',
            "trip/other.jpg": picture(3, form="JPEG"),
            "trip/other.jpg.json": b'{"title": "Google keeps such files", "people": []}',
        },
    )
    return tmp_path / "photos"


def test_sources_are_first_level_folders(tmp_path: Path) -> None:
    names = ("top.jpg", "a/one.PNG", "a/deep/two.tiff", "b/three.heic", "b/notes.txt", "b/.jpg")
    write_tree(tmp_path, {name: b"x" for name in names})
    found = [(entry.path, entry.source) for entry in FolderSource(str(tmp_path)).entries()]
    expected = [("a/deep/two.tiff", "a"), ("a/one.PNG", "a"), ("b/three.heic", "b"), ("top.jpg", tmp_path.name)]
    assert found == expected
    assert image_files(tmp_path) == [tmp_path / path for path, _ in expected]


def test_unnameable_and_special_files_are_kept_apart(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / os.fsdecode(b"odd-\xff.jpg")).write_bytes(b"x")
    (tmp_path / "sidecar.jpg").write_bytes(b"x")
    (tmp_path / "sidecar.faces.json").symlink_to(tmp_path / "gone")
    problems = {entry.path: entry.problem for entry in FolderSource(str(tmp_path)).entries()}
    assert problems["pipe.jpg"] == ("unreadable", "not a regular file")
    assert "cannot be examined" in str(problems["dangling.jpg"])
    assert "UTF-8" in str(problems["odd-\\xff.jpg"])
    assert "sidecar.faces.json beside it" in str(problems["sidecar.jpg"])


def test_formats_that_are_not_read_are_told_at_once(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.heic": b"x", "b.gif": b"x", "c.gif": b"", "d.JPG": b"x", "e.avif": b"x"})
    problems = {entry.path: entry.problem for entry in FolderSource(str(tmp_path)).entries()}
    assert problems["b.gif"] == ("unsupported", ".gif files; supported are JPEG, PNG, WebP and TIFF")
    assert problems["c.gif"] is None and problems["d.JPG"] is None and problems["e.avif"] is not None
    assert (problems["a.heic"] is None) == (heif.plugin() is not None)


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_photos_come_with_what_lies_beside_them(photos: Path, scheme: str) -> None:
    source = FolderSource(f"{scheme}{photos}")
    entries = by_path(source)
    assert list(entries) == ["plain.png", "trip/both.jpg", "trip/other.jpg", "trip/stem.jpg"]
    assert {entry.source for entry in entries.values()} == {"photos", "trip"}
    data = source.data(entries["trip/both.jpg"])
    assert data == (photos / "trip/both.jpg").read_bytes() and len(data) == entries["trip/both.jpg"].size
    both = source.annotations(entries["trip/both.jpg"], data)
    assert both.faces is not None and both.faces[0].box == (1, 2, 20, 21) and both.frame is None
    assert np.array_equal(both.faces[0].landmarks, np.array(FACE["landmarks"]))
    assert both.exif is not None and (both.exif["iso"], both.exif["aperture"]) == (200.0, None)
    stem = source.annotations(entries["trip/stem.jpg"], data)
    assert stem.exif is not None and (stem.exif["make"], stem.exif["exposure_time"]) == ("Canon", 1 / 60)
    assert (
        source.annotations(entries["trip/other.jpg"], data)
        == Annotations()
        == source.annotations(entries["plain.png"], data)
    )


def test_a_changed_sidecar_changes_the_mark(photos: Path) -> None:
    before = by_path(FolderSource(str(photos)))
    (photos / "trip" / "both.faces.json").write_bytes(FACES + b" ")
    (photos / "plain.faces.json").write_bytes(FACES)
    os.utime(photos / "trip" / "stem.json", ns=(5, 5))
    after = by_path(FolderSource(str(photos)))
    assert {path for path in after if after[path].mark != before[path].mark} == set(after) - {"trip/other.jpg"}


def test_broken_sidecars_are_rejected(photos: Path) -> None:
    write_tree(photos, {"trip/stem.json": b'{"Make": ', "trip/both.faces.json": b"[]"})
    source = FolderSource(str(photos))
    entries = by_path(source)
    for path in ("trip/stem.jpg", "trip/both.jpg"):
        with pytest.raises(Rejected) as told:
            source.annotations(entries[path], b"")
        assert told.value.reason == "bad_sidecar"
    (photos / "trip" / "stem.json").write_bytes(b" " * (2**22 + 1))
    with pytest.raises(Rejected, match="longer than"):
        source.annotations(by_path(source)["trip/stem.jpg"], b"")
    (photos / "trip" / "stem.json").unlink()
    with pytest.raises(OSError):
        source.annotations(entries["trip/stem.jpg"], b"")


def test_no_images_and_no_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        list(FolderSource(str(tmp_path / "nowhere")).entries())
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SourceError, match="no image in"):
        list(FolderSource(str(tmp_path)).entries())


def test_another_process_reads_the_same(photos: Path) -> None:
    uri = f"local://{photos}"
    source = FolderSource(uri)
    entry = by_path(source)["trip/both.jpg"]
    data = source.data(entry)
    assert read_elsewhere(uri, config(uri), entry)[1] == repr(source.annotations(entry, data))
