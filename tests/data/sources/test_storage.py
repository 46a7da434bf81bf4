"""Listing and reading, here and behind URIs."""

import os
from pathlib import Path

import fsspec
import pytest

from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.storage import absolute, below, open_beside, open_storage, printable
from tests.data.sources.layouts import write_tree

FILES = {
    "b.txt": b"bb",
    "a/x.jpg": b"0123456789",
    "a/deep/y.jpg": b"y",
    "a-b.jpg": b"first",
    "a.jpg": b"",
    "z/one two.JPG": b"z",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "tree", FILES)
    return tmp_path / "tree"


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_every_route_gives_the_same(tree: Path, scheme: str) -> None:
    storage, plain = open_storage(f"{scheme}{tree}"), open_storage(str(tree))
    items, expected = list(storage.walk()), list(plain.walk())
    assert [(item.path, item.size) for item in items] == [(item.path, item.size) for item in expected]
    # fsspec keeps times as floating-point seconds.
    assert all(abs(int(item.mark) - int(same.mark)) < 1000 for item, same in zip(items, expected, strict=True))
    assert storage.name == plain.name == "tree"
    assert [item.path for item in storage.walk()] == sorted(FILES)
    assert [item.path for item in storage.walk((".jpg",))] == sorted(set(FILES) - {"b.txt"})
    assert storage.read("a/x.jpg") == FILES["a/x.jpg"] and storage.read("a/x.jpg", 3) == b"3456789"
    assert storage.read("a/x.jpg", 3, 4) == b"3456" and storage.read("a/x.jpg", 8, 100) == b"89"
    assert storage.exists("a/x.jpg") and storage.exists("a") and not storage.exists("a/none.jpg")
    with storage.open("a/x.jpg") as file:
        file.seek(-2, os.SEEK_END)
        assert file.read() == b"89"
    with pytest.raises(OSError):
        storage.read("a/none.jpg")


def test_object_stores_without_times_have_no_mark() -> None:
    fsspec.filesystem("memory").pipe({f"/coll/{name}": data for name, data in FILES.items()})
    storage = open_storage("memory://coll")
    assert storage.name == "coll"
    assert {item.path: (item.size, item.mark) for item in storage.walk()} == {n: (len(d), "") for n, d in FILES.items()}
    assert storage.read("a/x.jpg", 3, 4) == b"3456"


def test_a_written_file_has_another_mark(tree: Path) -> None:
    storage = open_storage(str(tree))
    before = {item.path: item.mark for item in storage.walk()}
    os.utime(tree / "a" / "x.jpg", ns=(1, 1))
    assert {item.path for item in storage.walk() if item.mark != before[item.path]} == {"a/x.jpg"}


def test_special_files_links_and_names(tree: Path) -> None:
    os.mkfifo(tree / "pipe.jpg")
    (tree / "dangling.jpg").symlink_to(tree / "gone")
    (tree / "linked").symlink_to(tree / "a")
    (tree / "good-link.jpg").symlink_to(tree / "a" / "x.jpg")
    (tree / os.fsdecode(b"odd-\xff.jpg")).write_bytes(b"x")
    found = {item.path: item.problem for item in open_storage(str(tree)).walk((".jpg",))}
    assert list(found) == sorted(found) and not any(path.startswith("linked") for path in found)
    assert found["pipe.jpg"] == "not a regular file" and found["good-link.jpg"] is None
    assert "cannot be examined" in str(found["dangling.jpg"]) and "UTF-8" in str(found["odd-\\xff.jpg"])


def test_a_folder_that_vanishes_is_told(tree: Path) -> None:
    walk = open_storage(str(tree)).walk()
    assert next(walk).path == "a-b.jpg"
    for name in ("z/one two.JPG", "z"):
        (tree / name).rmdir() if name == "z" else (tree / name).unlink()
    last = list(walk)[-1]
    assert last.path == "z/" and "cannot be listed" in str(last.problem)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/no/such/folder", "is not a folder"),
        ("file:///no/such/folder", "is not a folder"),
        ("file://elsewhere/folder", "three slashes"),
        ("local:///no/such/folder", "is not a folder"),
        ("nosuch://x/y", "nosuch.*possible are"),
        ("abfs://container/x", "not installed here.*every node"),
    ],
)
def test_what_cannot_be_opened_says_what_to_do(uri: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list(open_storage(uri).walk())


def test_hadoop_without_java_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nonexistent")
    with pytest.raises(SourceError) as told:
        list(open_storage("hdfs://namenode.invalid/x").walk())
    assert "JAVA_HOME" in str(told.value) and "\n" not in str(told.value)


def test_paths_and_uris_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x/y") == str(tmp_path / "x" / "y") and absolute("s3://b/p") == "s3://b/p"
    assert absolute("file:///a%20b") == "/a b"
    assert below("s3://b/p?region=eu", "m.json") == "s3://b/p/m.json?region=eu" and below("/x/", "m") == "/x/m"
    for uri, root, name in (
        ("s3://b/p/m.json?region=eu", "s3://b/p?region=eu", "m.json"),
        ("m.json", ".", "m.json"),
        ("/m.json", "/", "m.json"),
        ("a/m.json", "a", "m.json"),
    ):
        storage, found = open_beside(uri)
        assert (storage.uri, found) == (root, name)
    assert printable("ä\udcff") == "ä\\xff" and printable("\ud800") == "\\ud800"
