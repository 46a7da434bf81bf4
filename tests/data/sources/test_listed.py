"""CSV lists of real and fake pictures."""

from pathlib import Path

import numpy as np
import pytest

from blades_dist.data.faces import PROPORTIONS
from blades_dist.data.sources.base import Entry, SourceError
from blades_dist.data.sources.factory import detect, open_source
from blades_dist.data.sources.listed import ListSource
from tests.data.sources.layouts import by_path, config, picture, read_elsewhere, write_tree

HEADER = "path,label,generator,x,y,w,h\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    names = ("a/1.png", "a/2.png", "b/1.png", "3.png", "c d,e.png")
    write_tree(tmp_path, {name: picture(i) for i, name in enumerate(names)} | {"4.gif": b"GIF89a"})
    lines = [
        "a/1.png,real,,,,,",
        "b/1.png,fake,gan,2,3,20,24",
        "b/1.png,fake,gan,5,6,10,10",
        "./3.png,real,web,1,1,30,30",
        '"c d,e.png",fake,diffusion,,,,',
        "a/2.png,fake,gan,,,,",
        "gone.png,real,,,,,",
        "nowhere/5.png,real,,,,,",
        "4.gif,real,,,,,",
    ]
    file = tmp_path / "list.csv"
    file.write_text("\ufeff" + HEADER + "\n".join(lines) + "\n")
    return file


def entries(file: Path, kind: str) -> dict[str, Entry]:
    return by_path(ListSource(str(file), kind))


def test_each_side_has_its_rows_under_its_generators(listed: Path) -> None:
    fakes, reals = entries(listed, "generated"), entries(listed, "photographs")
    assert {path: entry.source for path, entry in fakes.items()} == {
        "b/1.png": "gan", "c d,e.png": "diffusion", "a/2.png": "gan"
    }  # fmt: skip
    assert list(reals) == ["a/1.png", "3.png", "gone.png", "nowhere/5.png", "4.gif"]
    assert [entry.source for entry in reals.values()] == ["real", "web", "real", "real", "real"]
    problems = {path: entry.problem for path, entry in reals.items() if entry.problem}
    assert [problem[0] for problem in problems.values()] == ["unreadable", "unreadable", "unsupported"]
    assert set(problems) == {"gone.png", "nowhere/5.png", "4.gif"}


def test_boxes_become_faces_with_proportional_landmarks(listed: Path) -> None:
    source = ListSource(str(listed), "generated")
    found = entries(listed, "generated")
    data = source.data(found["b/1.png"])
    assert data == (listed.parent / "b" / "1.png").read_bytes()
    given = source.annotations(found["b/1.png"], data)
    assert given.faces is not None and [face.box for face in given.faces] == [(2, 3, 20, 24), (5, 6, 10, 10)]
    assert np.allclose(given.faces[0].landmarks, [2, 3] + PROPORTIONS * [20, 24], atol=1e-4)
    assert source.annotations(found["a/2.png"], data).faces is None


def test_it_is_found_by_its_name_and_read_elsewhere(listed: Path) -> None:
    assert detect(str(listed)) == "list"
    options = config(listed, kind="generated", min_tags=0)
    assert isinstance(open_source(str(listed), options), ListSource)
    entry = entries(listed, "generated")["b/1.png"]
    assert "box=(2.0, 3.0, 20.0, 24.0)" in read_elsewhere(str(listed), options, entry)[1]


def test_marks_follow_file_and_box(listed: Path) -> None:
    before = entries(listed, "generated")
    listed.write_text(listed.read_text().replace("5,6,10,10", "5,6,11,10"))
    after = entries(listed, "generated")
    assert {path for path in before if before[path].mark != after[path].mark} == {"b/1.png"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na.png,real\n", "has no column generator"),
        ("", "has no column path, label, generator"),
        (HEADER + "a.png,photo,,,,,\n", "line 2: label 'photo'; allowed: real, fake"),
        (HEADER + "a.png,fake,,,,,\n", "line 2: a fake needs the name"),
        (HEADER + "../a.png,real,,,,,\n", "does not lie below the list's folder"),
        (HEADER + "/a.png,real,,,,,\n", "does not lie below"),
        (HEADER + "a.png,real,,1,2,3,\n", "box 1, 2, 3,  is not four numbers"),
        (HEADER + "a.png,real,,1,2,0,5\n", "has no area"),
        (HEADER + "a.png,real,,1,2,nan,5\n", "has no area"),
        (HEADER + "a.png,real,,,,,\nb.png,real,,,,,\na.png,fake,x,,,,\n", "line 4: a.png was listed in line 2 before"),
        (HEADER + "a.png,real,,,,,\na.png,fake,x,,,,\n", "several labels"),
        (HEADER + "a.png,real,,,,,\na.png,real,,,,,\n", "several rows need a box each"),
        (HEADER + "a,b.png,real,,,,,\n", "line 2: more values than columns"),
        (HEADER + "a.png,fake,x,,,,\n", "no row with label real"),
    ],
)
def test_what_is_wrong_with_a_list_is_told_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    write_tree(tmp_path, {"a.png": picture(0), "b.png": picture(1), "list.csv": text.encode()})
    with pytest.raises(SourceError, match=words):
        entries(tmp_path / "list.csv", "photographs")


def test_a_list_that_is_missing_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        entries(tmp_path / "list.csv", "photographs")
    (tmp_path / "list.csv").write_bytes(HEADER.encode() + b"a\xff.png,real,,,,,\n")
    with pytest.raises(SourceError, match="after line"):
        entries(tmp_path / "list.csv", "photographs")
