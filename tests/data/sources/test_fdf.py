"""FDF and its label file."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blades_dist.data.sources.base import Annotations, SourceError
from blades_dist.data.sources.factory import open_source
from blades_dist.data.sources.fdf import FdfSource
from blades_dist.tasks import TAGS, vocabulary
from tests.data.sources.layouts import by_path, config, fdf_item, picture, read_elsewhere, write_tree


def label(level: int, make: int = 3, path: str | None = None) -> dict[str, Any]:
    return {
        **({"path": path} if path else {}),
        "EXIF_ordinal": {"ISO": level, "Aperture": 2, "Exposure Time": 1, "Focal Length": -1},
        "EXIF_categorical": {
            "Make": {"cls_label": make, "name": "x"},
            "Metering Mode": {"cls_label": 7},
            "Exposure Mode": {"cls_label": -1},
            "White Balance Mode": {"cls_label": None},
            "Exposure Program": {"cls_label": 0},
        },
    }


def test_faces_and_missing_images(fdf: Path) -> None:
    source = open_source(str(fdf), config(fdf))
    assert isinstance(source, FdfSource)
    entries = by_path(source)
    # In the JSON file's order; then the image that it does not name.
    assert list(entries) == ["images/32/0.png", "images/32/10.png", "fdf_metainfo.json#5 (item 2)", "images/32/1.png"]
    missing = entries.pop("fdf_metainfo.json#5 (item 2)")
    assert missing.problem is not None and missing.problem[0] == "unreadable" and "images/32" in missing.problem[1]
    assert {entry.source for entry in entries.values()} == {"fdf"} and not any(e.problem for e in entries.values())
    data = source.data(entries["images/32/0.png"])
    assert data == picture(0, 32)
    given = source.annotations(entries["images/32/0.png"], data)
    assert given.frame == (1, 1) and given.exif is None and given.levels == {}
    assert given.faces is not None and np.allclose(given.faces[0].box, (0.2, 0.1, 0.6, 0.6))
    # Eyes at image left and right, nose, and a mouth by the proportions of a frontal face.
    shares = np.array([(0.31, 0.38), (0.69, 0.38), (0.5, 0.58), (0.34, 0.77), (0.66, 0.77)])
    assert np.allclose(given.faces[0].landmarks, np.array([0.2, 0.1]) + 0.6 * shares, atol=1e-5)
    assert source.annotations(entries["images/32/1.png"], data) == Annotations()


def test_a_turned_face_keeps_its_mouth_below_the_nose(fdf: Path) -> None:
    item = fdf_item()
    angle = np.deg2rad(70)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = (np.array(item["landmark"]) - 0.5) @ turn + 0.5
    (fdf / "fdf_metainfo.json").write_text(json.dumps({"0": item | {"landmark": points.ravel().tolist()}}))
    source = FdfSource(str(fdf))
    faces = source.annotations(by_path(source)["images/32/0.png"], b"").faces
    upright = np.array([(0.31, 0.38), (0.69, 0.38), (0.5, 0.58), (0.34, 0.77), (0.66, 0.77)]) * 0.6 + [0.2, 0.1]
    assert faces is not None and np.allclose(faces[0].landmarks, (upright - 0.5) @ turn + 0.5, atol=1e-5)


def test_pixel_coordinates_have_no_frame(fdf: Path) -> None:
    item = fdf_item()
    pixels = {name: (np.array(item[name]) * 32).tolist() for name in ("bounding_box", "landmark")}
    (fdf / "fdf_metainfo.json").write_text(json.dumps({"0": item | pixels}))
    source = FdfSource(str(fdf))
    given = source.annotations(by_path(source)["images/32/0.png"], b"")
    assert given.frame is None and given.faces is not None and np.allclose(given.faces[0].box, (6.4, 3.2, 19.2, 19.2))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, "not an object"),
        ({}, "landmark is not a list"),
        (fdf_item() | {"bounding_box": [0.1, 0.1, 0.1, 0.5]}, "empty box"),
        (fdf_item() | {"bounding_box": [0, 1, 2]}, "bounding_box is not 4 finite numbers"),
        (fdf_item() | {"landmark": [["a", 1]] * 7}, "landmark is not a list of numbers"),
        (fdf_item() | {"landmark": [[1, 1]] * 6}, "landmark is not 7 x 2 finite numbers"),
    ],
)
def test_malformed_items_are_entries_with_a_problem(fdf: Path, item: Any, message: str) -> None:
    (fdf / "fdf_metainfo.json").write_text(json.dumps({"0": item, "10": fdf_item()}))
    entries = by_path(FdfSource(str(fdf)))
    problem = entries["images/32/0.png"].problem
    assert problem is not None and problem[0] == "bad_sidecar" and message in problem[1] and "#0" in problem[1]
    assert entries["images/32/10.png"].problem is None


def test_a_key_that_comes_twice_is_told(fdf: Path) -> None:
    item = json.dumps(fdf_item())
    (fdf / "fdf_metainfo.json").write_text(f'{{"0": {item}, "0": {item}, "7": {item}, "7": {item}}}')
    (fdf / "images/32/0.jpg").write_bytes(b"x")
    entries = by_path(FdfSource(str(fdf)))
    problems = [path for path, entry in entries.items() if entry.problem]
    assert problems == [f"fdf_metainfo.json#{name}" for name in ("0 (item 1)", "7 (item 2)", "7 (item 3)")]
    assert list(entries)[-3:] == ["images/32/0.png", "images/32/1.png", "images/32/10.png"]


@pytest.mark.parametrize("first", [0, 1])
def test_labels_become_levels_and_words(fdf: Path, tmp_path: Path, first: int) -> None:
    content = {
        "a": label(first, path="/data/of/authors/images/128/0.png"),
        "10": label(first + 2),
        "1": label(first + 1, make=9),
        "99": label(2),
    }
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(content))
    options = config(fdf, labels=str(labels))
    source = open_source(str(fdf), options)
    entries = by_path(source)
    given = source.annotations(entries["images/32/0.png"], b"")
    assert given.levels == {"iso": 0, "aperture": 2 - first, "exposure_time": 1 - first} and given.faces is not None
    assert given.exif == {tag: None for tag in TAGS} | {
        "make": "Canon",
        "metering_mode": "evaluative",
        "exposure_program": "landscape mode",
    }
    other = source.annotations(entries["images/32/10.png"], b"")
    assert other.levels["iso"] == 2
    unnamed = source.annotations(entries["images/32/1.png"], b"")
    assert unnamed.faces is None and unnamed.levels["iso"] == 1 and unnamed.exif is not None
    assert unnamed.exif["make"] == vocabulary("make")[9]
    assert read_elsewhere(str(fdf), options, entries["images/32/0.png"])[1] == repr(given)


def test_a_changed_label_changes_the_mark(fdf: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"0": label(0), "10": label(1)}))
    before = by_path(FdfSource(str(fdf), labels=str(labels)))
    labels.write_text(json.dumps({"0": label(0), "10": label(2)}))
    after = by_path(FdfSource(str(fdf), labels=str(labels)))
    assert [path for path in after if after[path].mark != before[path].mark] == ["images/32/10.png"]
    os.utime(fdf / "images/32/0.png", ns=(1, 1))
    assert by_path(FdfSource(str(fdf), labels=str(labels)))["images/32/0.png"].mark != after["images/32/0.png"].mark


def test_wrong_labels_are_told(fdf: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"0": label(0, make=10), "10": label(1), "1": {"EXIF_ordinal": {"ISO": "high"}}}))
    entries = by_path(FdfSource(str(fdf), labels=str(labels)))
    for path, message in (("images/32/0.png", "Make has class 10, of 10"), ("images/32/1.png", "not a whole number")):
        problem = entries[path].problem
        assert problem is not None and problem[0] == "bad_sidecar" and message in problem[1]
    assert entries["images/32/10.png"].problem is None
    labels.write_text(json.dumps({"0": label(0), "10": label(4)}))
    with pytest.raises(SourceError, match="levels 0 to 4"):
        list(FdfSource(str(fdf), labels=str(labels)).entries())
    labels.write_text('{"0": ')
    with pytest.raises(SourceError, match=r"labels\.json is damaged"):
        list(FdfSource(str(fdf), labels=str(labels)).entries())


def test_through_uris_and_elsewhere_the_same(fdf: Path, tmp_path: Path) -> None:
    entries = by_path(FdfSource(str(fdf)))
    uri = f"local://{fdf}"
    source = open_source(uri, config(uri, format="fdf"))
    assert list(by_path(source)) == list(entries)
    entry = by_path(source)["images/32/10.png"]
    digest, given = read_elsewhere(uri, config(uri), entry)
    assert given == repr(source.annotations(entry, b"")) and len(digest) == 64
    moved = tmp_path / "metadata.json"
    (fdf / "fdf_metainfo.json").rename(moved)
    assert len(by_path(FdfSource(str(fdf), metadata=str(moved)))) == len(entries)


def test_flat_folders_and_empty_ones(fdf: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "flat", {"0.png": picture(0), "fdf_metainfo.json": json.dumps({"0": fdf_item()}).encode()})
    assert list(by_path(FdfSource(str(tmp_path / "flat")))) == ["0.png"]
    (tmp_path / "flat" / "0.png").unlink()
    with pytest.raises(SourceError, match="no image in"):
        list(FdfSource(str(tmp_path / "flat")).entries())
    with pytest.raises(SourceError, match=r"cannot read .*fdf_metainfo\.json"):
        (fdf / "fdf_metainfo.json").unlink()
        list(FdfSource(str(fdf)).entries())
