"""Photographs in tar files."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from blades_dist.data.decode import Rejected
from blades_dist.data.sources.base import Annotations, SourceError
from blades_dist.data.sources.factory import open_source
from blades_dist.data.sources.tar_walk import tar_members
from blades_dist.data.sources.webdataset import WebDatasetSource, braces
from tests.data.sources.layouts import by_path, config, picture, read_elsewhere, write_tar

EXIF = b'[{"EXIF:FNumber": 2.8}]'
FACE = {"box": [1, 2, 20, 21], "landmarks": [[5, 6], [15, 6], [10, 11], [6, 16], [14, 16]]}
BOTH = json.dumps({"faces": [FACE], "FNumber": "f/4"}).encode()
LONG = "x" * 150 + "/long.png"


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    first = [("a.json", EXIF), ("a.jpg", picture(0)), ("b.png", picture(1)), ("b.json", BOTH), ("c.cls", b"1")]
    second = [("d/one.v2.png", picture(2)), ("d/one.v2.faces.json", json.dumps({"faces": []}).encode())]
    second += [(LONG, picture(3)), ("ünïcode.webp", picture(4)), ("e.gif", b"GIF89a")]
    write_tar(folder / "t-000.tar", first)
    write_tar(folder / "t-001.tar", second)
    return folder


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_members_are_read_in_place(tars: Path, scheme: str) -> None:
    source = open_source(f"{scheme}{tars}", config(f"{scheme}{tars}"))
    assert isinstance(source, WebDatasetSource)
    entries = by_path(source)
    names = ["t-000.tar/a.jpg", "t-000.tar/b.png", "t-001.tar/d/one.v2.png", f"t-001.tar/{LONG}"]
    assert list(entries) == [*names, "t-001.tar/ünïcode.webp", "t-001.tar/e.gif"]
    for index, name in enumerate([*names, "t-001.tar/ünïcode.webp"]):
        assert source.data(entries[name]) == picture(index) and entries[name].size == len(picture(index))
    given = [source.annotations(entries[name], b"") for name in names]
    assert given[0].exif is not None and given[0].exif["aperture"] == 2.8 and given[0].faces is None
    assert given[1].exif is not None and given[1].exif["aperture"] == 4.0
    assert given[1].faces is not None and given[1].faces[0].box == (1, 2, 20, 21)
    assert given[2] == Annotations(faces=[]) and given[3] == Annotations()
    assert entries["t-001.tar/e.gif"].problem == ("unsupported", ".gif files; supported are JPEG, PNG, WebP and TIFF")
    assert {entry.source for entry in entries.values()} == {"tars"}


def test_patterns_lists_and_single_files(tars: Path) -> None:
    everything = by_path(WebDatasetSource(str(tars)))
    assert by_path(WebDatasetSource(f"{tars}/t-{{000..001}}.tar")) == everything
    assert by_path(WebDatasetSource(f"{tars}/t-00{{0,1}}.tar")) == everything
    assert list(by_path(WebDatasetSource(f"{tars}/t-000.tar"))) == ["t-000.tar/a.jpg", "t-000.tar/b.png"]
    assert {entry.source for entry in WebDatasetSource(f"{tars.parent}/{{tars,none}}/t-000.tar").entries()} >= {"tars"}
    missing = by_path(WebDatasetSource(f"{tars}/t-{{000..003}}.tar"))
    assert [path for path in missing if path not in everything] == ["t-002.tar", "t-003.tar"]
    assert "no such file" in str(missing["t-002.tar"].problem)
    with pytest.raises(SourceError, match="no tar file for"):
        list(WebDatasetSource(f"{tars}/u-{{0..3}}.tar").entries())
    with pytest.raises(SourceError, match="is not a folder"):
        list(WebDatasetSource(f"{tars}/none/u-0.tar").entries())


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert list(braces(pattern)) == names


@pytest.mark.parametrize("pattern", ["{a}.tar", "{3..1}.tar", "{0..9999999}.tar", "{0..9999}{0..9999}.tar", "a{.tar"])
def test_braces_that_mean_nothing_are_told(pattern: str) -> None:
    with pytest.raises(SourceError, match="source: "):
        list(braces(pattern))


def test_every_cut_lists_what_is_whole_and_tells_the_offset(tars: Path) -> None:
    file = tars / "t-000.tar"
    (tars / "t-001.tar").unlink()
    data = file.read_bytes()
    with file.open("rb") as opened:
        ends = {m.name: m.offset + m.size for m in tar_members(opened, len(data))}
    for cut in sorted(
        {0, 1, 511, 512, 513, 1024, *ends.values(), *(end + 1 for end in ends.values()), len(data) - 10_000}
    ):
        file.write_bytes(data[:cut])
        entries = list(WebDatasetSource(str(file)).entries()) if cut else []
        whole = [name for name in ("a.jpg", "b.png") if ends[name] <= cut]
        assert [e.path for e in entries if e.problem is None] == (
            [f"t-000.tar/{name}" for name in whole] if cut else []
        )
        if 0 < cut < max(ends.values()) + 512:
            assert entries[-1].path == "t-000.tar" and entries[-1].problem is not None
            assert entries[-1].problem[0] == "truncated" and "byte" in entries[-1].problem[1], cut


def test_a_damaged_header_is_no_end(tars: Path) -> None:
    file = tars / "t-000.tar"
    data = bytearray(file.read_bytes())
    with file.open("rb") as opened:
        header = next(m for m in tar_members(opened, len(data)) if m.name == "b.png").offset - 512
    data[header + 100] ^= 0xFF
    file.write_bytes(data)
    entries = list(WebDatasetSource(str(file)).entries())
    assert [entry.path for entry in entries] == ["t-000.tar/a.jpg", "t-000.tar"]
    assert f"byte {header}" in str(entries[-1].problem)
    joined = file.parent / "joined.tar"
    joined.write_bytes((tars / "t-001.tar").read_bytes() * 2)
    assert "followed by more data" in str(list(WebDatasetSource(str(joined)).entries())[-1].problem)


def test_headers_cannot_ask_for_memory_or_time(tmp_path: Path) -> None:
    for kind, size in ((tarfile.XHDTYPE, 2**33), (tarfile.GNUTYPE_LONGNAME, -512), (tarfile.REGTYPE, -512)):
        info = tarfile.TarInfo("x.png")
        info.type, info.size = kind, abs(size)
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
        block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        with pytest.raises(Rejected):
            list(tar_members(io.BytesIO(bytes(block) + bytes(2048)), 2560))


def test_names_that_come_twice_links_and_odd_bytes(tmp_path: Path) -> None:
    file = tmp_path / "odd.tar"
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in (("a.png", picture(0)), ("a.png", picture(1)), ("b-\udcff.png", picture(2))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("empty.png"))
    source = WebDatasetSource(str(file))
    entries = by_path(source)
    first, again, odd, linked, empty = entries
    assert (first, linked, empty) == ("odd.tar/a.png", "odd.tar/link.png", "odd.tar/empty.png")
    assert again.startswith("odd.tar/a.png (at byte ") and source.data(entries[again]) == picture(1)
    assert odd == "odd.tar/b-\\xff.png" and source.data(entries[odd]) == picture(2)
    assert entries[linked].problem is not None and entries[empty].size == 0


def test_compressed_tars_and_bad_json_are_told(tars: Path) -> None:
    (tars / "u.tar.gz").write_bytes(b"\x1f\x8b")
    write_tar(tars / "v.tar", [("a.png", picture(0)), ("a.json", b'{"faces": ')])
    source = WebDatasetSource(str(tars))
    entries = by_path(source)
    assert entries["u.tar.gz"].problem is not None and entries["u.tar.gz"].problem[0] == "unsupported"
    with pytest.raises(Rejected) as told:
        source.annotations(entries["v.tar/a.png"], b"")
    assert told.value.reason == "bad_sidecar"
    (tars / "v.tar").write_bytes(b"")
    with pytest.raises(OSError, match="changed while"):
        source.data(entries["v.tar/a.png"])


def test_another_process_reads_the_same(tars: Path) -> None:
    pattern = f"{tars}/t-{{000..001}}.tar"
    source = WebDatasetSource(pattern)
    entry = by_path(source)["t-000.tar/b.png"]
    assert read_elsewhere(pattern, config(pattern), entry)[1] == repr(source.annotations(entry, b""))


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "many.tar", [(f"{i:06d}.png", b"x") for i in range(6_000)], tarfile.GNU_FORMAT)
    entries = WebDatasetSource(str(tmp_path / "many.tar")).entries()
    next(entries)
    tracemalloc.start()
    assert sum(1 for _ in entries) == 5_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
