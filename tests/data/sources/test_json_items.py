"""Large JSON files item by item."""

import json
import tracemalloc
from pathlib import Path

import pytest

from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.fdf import FdfSource
from blades_dist.data.sources.json_items import json_items
from blades_dist.data.sources.storage import open_storage
from tests.data.sources.layouts import fdf_item, picture, write_tree

ITEMS = {str(i): {"n": [i, i / 4], "text": "é" * (i % 7)} for i in range(3000)}
TEXT = json.dumps(ITEMS).encode()


def test_items_come_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b" \n" + TEXT)
    assert list(json_items(open_storage(str(tmp_path)), "m.json")) == list(ITEMS.items())
    assert list(json_items(open_storage(f"local://{tmp_path}"), "m.json")) == list(ITEMS.items())


@pytest.mark.parametrize("at", [1, 500, 40_000, len(TEXT) - 1])
def test_damage_names_the_place(tmp_path: Path, at: int) -> None:
    for damaged in (TEXT[:at], TEXT[:at] + b"\xff\x00" + TEXT[at + 2 :], TEXT[:at] + b"}}" + TEXT[at + 2 :]):
        (tmp_path / "m.json").write_bytes(damaged)
        got = []
        with pytest.raises(SourceError) as told:
            for key, value in json_items(open_storage(str(tmp_path)), "m.json"):
                got.append((key, value))
        assert got == list(ITEMS.items())[: len(got)]
        words = str(told.value).split()
        low, high = int(words[words.index("bytes") + 1]), int(words[words.index("bytes") + 3].rstrip(","))
        assert low <= at <= high + 2 and high - low <= 2**14 and "m.json" in str(told.value)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"5", b"\x00\x00"])
def test_other_files_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(SourceError, match="does not hold a JSON object"):
        list(json_items(open_storage(str(tmp_path)), "m.json"))
    with pytest.raises(SourceError, match="cannot read"):
        list(json_items(open_storage(str(tmp_path)), "none.json"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    item = json.dumps(fdf_item() | {"photo_title": "t" * 7000})
    with (tmp_path / "fdf_metainfo.json").open("w") as file:
        file.write("{" + ",".join(f'"{i}": {item}' for i in range(3_000)) + "}")
    assert (tmp_path / "fdf_metainfo.json").stat().st_size > 20 * 2**20
    write_tree(tmp_path, {f"images/32/{i}.png": picture(i, 4) for i in range(3)})
    tracemalloc.start()
    entries = FdfSource(str(tmp_path)).entries()
    good = sum(entry.problem is None for entry in entries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert good == 3 and peak < 2 * 2**20
