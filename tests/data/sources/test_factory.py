"""Which source a path or URI becomes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from blades_dist.data.sources.base import Source, SourceError
from blades_dist.data.sources.factory import detect, open_source, settled
from blades_dist.data.sources.fdf import FdfSource
from blades_dist.data.sources.ffhq import FfhqSource
from blades_dist.data.sources.folder import FolderSource
from blades_dist.data.sources.shard_set import ShardSource
from blades_dist.data.sources.webdataset import WebDatasetSource
from tests.data.sources.layouts import REPOSITORY, config, write_tar, write_tree


@pytest.mark.parametrize(
    ("files", "form", "kind"),
    [
        (["a.jpg", "b/c.png"], "folder", FolderSource),
        (["notes.txt", "b/c.png"], "folder", FolderSource),
        (["manifest.json", "a.jpg"], "folder", FolderSource),
        (["manifest.json", "quarantine.parquet"], "shards", ShardSource),
        (["fdf_metainfo.json", "images/0.png"], "fdf", FdfSource),
        (["ffhq-dataset-v2.json", "images1024x1024/0.png"], "ffhq", FfhqSource),
        (["a.tar", "README.md"], "webdataset", WebDatasetSource),
    ],
)
def test_formats_are_found_by_what_a_folder_holds(
    tmp_path: Path, files: list[str], form: str, kind: type[Source]
) -> None:
    write_tree(tmp_path, {name: b"x" for name in files})
    for uri in (str(tmp_path), f"file://{tmp_path}", f"local://{tmp_path}"):
        assert detect(uri) == form
        assert type(open_source(uri, config(uri))) is kind
        assert type(open_source(uri, config(uri, format=form))) is kind


def test_tars_are_found_by_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", [])
    for uri in (f"{tmp_path}/a-0.tar", f"{tmp_path}/a-{{0..3}}.tar", "s3://bucket/a-{000..127}.tar?region=eu"):
        assert type(open_source(uri, config(uri))) is WebDatasetSource


def test_workers_get_a_settled_configuration(fdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fdf.parent)
    options = settled(config("fdf", labels="l.json"))
    assert (options.source, options.format) == ((str(fdf),), "fdf")
    assert (options.metadata, options.labels) == (None, str(fdf.parent / "l.json"))
    write_tree(fdf.parent, {"photos/a.jpg": b"x"})
    both = config("x").model_copy(update={"source": ("fdf", "photos")})
    found = settled(both)
    assert found.format == "auto" and [type(open_source(uri, found)) for uri in found.source] == [
        FdfSource,
        FolderSource,
    ]


def test_doubt_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": b"x", "b.tar": b"x"})
    with pytest.raises(SourceError, match="both tar files and images"):
        open_source(str(tmp_path), config(tmp_path))
    assert type(open_source(str(tmp_path), config(tmp_path, format="folder"))) is FolderSource
    with pytest.raises(SourceError, match="is not a folder"):
        open_source(str(tmp_path / "none"), config(tmp_path))
    with pytest.raises(SourceError, match="metadata: format folder has no such file"):
        open_source(str(tmp_path), config(tmp_path, format="folder", metadata="x.json"))
    with pytest.raises(SourceError, match="labels: format ffhq has no such file"):
        open_source(str(tmp_path), config(tmp_path, format="ffhq", labels="x.json"))


def test_sources_import_no_ray() -> None:
    code = "import sys; import blades_dist.data.sources.factory; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "sources.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    ast.parse(example)
    names: dict[str, type[Source]] = {}
    exec(example, names)
    write_tree(tmp_path, {"photos.csv": b"path,iso\na.jpg,400\nb.jpg,\nc.jpg,x\n", "a.jpg": b"1", "b.jpg": b"22"})
    source = names["CsvSource"](str(tmp_path))  # type: ignore[call-arg]
    entries = {entry.path: entry for entry in source.entries()}
    assert [entry.problem is None for entry in entries.values()] == [True, True, False]
    assert source.data(entries["b.jpg"]) == b"22"
    given = source.annotations(entries["a.jpg"], b"1")
    assert given.exif is not None and given.exif["iso"] == 400.0
