"""FFHQ by its JSON file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.factory import open_source
from blades_dist.data.sources.ffhq import FfhqSource
from tests.data.sources.layouts import by_path, config, picture, read_elsewhere, write_tree

VARIANTS = {"in_the_wild": "in-the-wild-images", "image": "images1024x1024", "thumbnail": "thumbnails128x128"}


def points(scale: float) -> list[list[float]]:
    """68 points on a circle around (512, 512), but for those that are used."""
    turn = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    found = np.stack([512 + 200 * np.cos(turn), 512 + 200 * np.sin(turn)], axis=1)
    found[36:42], found[42:48] = (400, 450), (620, 450)
    found[30], found[48], found[54] = (510, 560), (430, 640), (600, 640)
    return (found * scale).tolist()


def item(index: int) -> dict[str, Any]:
    names = {member: f"{folder}/00000/{index:05d}.png" for member, folder in VARIANTS.items()}
    return {
        "category": "training",
        "metadata": {"license": "x"},
        "image": {"file_path": names["image"], "pixel_size": [1024, 1024], "face_landmarks": points(1)},
        "thumbnail": {"file_path": names["thumbnail"], "pixel_size": [128, 128]},
        "in_the_wild": {
            "file_path": names["in_the_wild"],
            "pixel_size": [3000, 2000],
            "face_landmarks": points(2),
            "face_rect": [600, 500, 1400, 1300],
        },
    }


@pytest.fixture
def ffhq(tmp_path: Path) -> Path:
    folder = tmp_path / "ffhq"
    for name in VARIANTS.values():
        write_tree(folder, {f"{name}/00000/{i:05d}.png": picture(i) for i in range(2)})
    (folder / "ffhq-dataset-v2.json").write_text(json.dumps({str(i): item(i) for i in range(3)}))
    return folder


@pytest.mark.parametrize("member", list(VARIANTS))
def test_each_variant_in_its_own_coordinates(ffhq: Path, member: str) -> None:
    for name in list(VARIANTS.values())[: list(VARIANTS).index(member)]:
        shutil.rmtree(ffhq / name)
    source = open_source(str(ffhq), config(ffhq))
    assert isinstance(source, FfhqSource)
    entries = by_path(source)
    first = f"{VARIANTS[member]}/00000/00000.png"
    assert next(iter(entries)) == first and list(entries)[-1] == "ffhq-dataset-v2.json#2 (item 2)"
    assert "00002" in str(entries["ffhq-dataset-v2.json#2 (item 2)"].problem)
    given = source.annotations(entries[first], source.data(entries[first]))
    scale = 2 if member == "in_the_wild" else 1
    expected = np.array([(400, 450), (620, 450), (510, 560), (430, 640), (600, 640)]) * scale
    assert given.faces is not None and np.array_equal(given.faces[0].landmarks, expected)
    assert given.frame == ((3000, 2000) if member == "in_the_wild" else (1024, 1024)) and given.exif is None
    if member == "in_the_wild":
        assert given.faces[0].box == (600, 500, 800, 800)
    else:
        assert np.allclose(given.faces[0].box, (312, 312.2, 400, 399.6), atol=1)
    assert read_elsewhere(str(ffhq), config(ffhq), entries[first])[1] == repr(given)


def test_the_folder_of_images_may_be_named(ffhq: Path) -> None:
    images, metadata = ffhq / "images1024x1024", str(ffhq / "ffhq-dataset-v2.json")
    entries = by_path(open_source(str(images), config(images, format="ffhq", metadata=metadata)))
    assert list(entries)[:2] == ["00000/00000.png", "00000/00001.png"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "no object in_the_wild"),
        ({"in_the_wild": {"pixel_size": [1, 1]}}, "in_the_wild.file_path is missing"),
        (item(0) | {"in_the_wild": item(0)["in_the_wild"] | {"face_landmarks": [[1, 2]]}}, "not 68 x 2"),
        (item(0) | {"in_the_wild": item(0)["in_the_wild"] | {"pixel_size": [0, 5]}}, "not positive"),
        (item(0) | {"in_the_wild": item(0)["in_the_wild"] | {"face_rect": [5, 5, 1, 1]}}, "empty box"),
    ],
)
def test_malformed_items_are_entries_with_a_problem(ffhq: Path, broken: Any, message: str) -> None:
    (ffhq / "ffhq-dataset-v2.json").write_text(json.dumps({"0": broken, "1": item(1)}))
    problems = [entry.problem for entry in FfhqSource(str(ffhq)).entries() if entry.problem]
    assert [problem[0] for problem in problems] == ["bad_sidecar"] and message in problems[0][1]


def test_paths_of_the_json_lead_nowhere_else(ffhq: Path) -> None:
    hostile = item(0)
    hostile["in_the_wild"]["file_path"] = "../../../../etc/passwd"
    (ffhq / "ffhq-dataset-v2.json").write_text(json.dumps({"0": hostile}))
    entries = by_path(FfhqSource(str(ffhq)))
    assert [entry.problem is None for entry in entries.values()] == [False, True, True]


def test_missing_parts_are_told(ffhq: Path) -> None:
    for name in VARIANTS.values():
        shutil.rmtree(ffhq / name)
    with pytest.raises(SourceError, match="holds none of in-the-wild-images"):
        list(FfhqSource(str(ffhq)).entries())
    (ffhq / "ffhq-dataset-v2.json").unlink()
    with pytest.raises(SourceError, match="name it with metadata"):
        FfhqSource(str(ffhq))
