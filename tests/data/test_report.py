"""The data report: every count of the manifest, nothing hostile, nothing but itself, and the same each time."""

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blades_dist.data.records import MANIFEST, QUARANTINE, Manifest, Shard, quarantine_schema, shard_schema
from blades_dist.data.report import write_report
from blades_dist.data.report_counts import Histogram, count
from blades_dist.data.report_pictures import EXAMPLES, SHEET, Originals, contact_sheet, refused
from blades_dist.tasks import TAGS, vocabulary
from tests.data.conftest import jpeg_of, pixels_of, write_photo

HOSTILE = "<script>alert(1)</script> & \"quotes' {{ 7 * 7 }}.jpg"
SPLITS = {"train": 77, "val": 23, "calibration": 0, "test": 5}
REFUSED = {"unreadable": 19, "no_face": 3, "near_duplicate": 2}
EDGES = {"iso": (150.5, 901.25)}


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def row_of(split: str, number: int) -> dict[str, object]:
    values = {f"label_{tag}": number % (len(vocabulary(tag)) + 1) - 1 for tag in TAGS}
    raw = {"exif_iso": float(100 + number), "exif_exposure_time": 1 / (number + 1)}
    empty = {field.name: None for field in shard_schema()}
    return empty | values | raw | {
        "id": f"{split}{number}", "photo": f"{number}", "split": split, "source": "b" if number % 3 else "a & <b>",
        "path": f"{split}/{number}-{HOSTILE if number == 0 else 'face.jpg'}",
        "image": cv2.imencode(".png", pixels_of(number, 40))[1].tobytes(), "width": 40, "height": 40,
        "box": [0.0] * 4, "landmarks": [20.0] * 10, "codec": "jpeg" if number % 2 else "png",
        "jpeg_quality": 90.0 if number % 2 else None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection that the quarantine speaks of: two photographs, and a file of a hostile name that is none."""
    folder = tmp_path_factory.mktemp("photos")
    write_photo(folder / "trip" / "kept.jpg", 1)
    write_photo(folder / "trip" / "copy.jpg", 1)
    for number in range(3):
        (folder / f"no_face{number}.jpg").write_bytes(jpeg_of(number))
    (folder / HOSTILE.replace("/", "_")).write_bytes(b"junk")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    shards = []
    for split, rows in SPLITS.items():
        if rows:
            table = pa.Table.from_pylist([row_of(split, i) for i in range(rows)], shard_schema())
            pq.write_table(table, folder / f"{split}.parquet", row_group_size=16)
            groups = [16] * (rows // 16) + [rows % 16] * bool(rows % 16)
            digest = hashlib.sha256(split.encode()).hexdigest()
            shards.append(Shard(name=f"{split}.parquet", split=split, rows=rows, row_groups=groups, sha256=digest))
    refused_rows = [(HOSTILE.replace("/", "_"), None, "unreadable", "not an image: <b>")]
    refused_rows += [(f"gone/{i}.jpg", None, "unreadable", "no permission") for i in range(18)]
    refused_rows += [(f"no_face{i}.jpg", None if i else 2, "no_face", "no face was found") for i in range(3)]
    refused_rows += [("trip/copy.jpg", None, "near_duplicate", "shows the same picture as trip/kept.jpg")]
    refused_rows += [("../../etc/passwd", None, "near_duplicate", "shows the same picture as /etc/passwd")]
    names = quarantine_schema().names
    rows_as_dicts = [dict(zip(names, row, strict=True)) for row in refused_rows]
    pq.write_table(pa.Table.from_pylist(rows_as_dicts, quarantine_schema()), folder / QUARANTINE)
    sources = {"b": sum(rows - -(-rows // 3) for rows in SPLITS.values())}
    manifest = Manifest(
        kind="photographs", shards=shards, ordinal_edges=EDGES, vocabularies={}, split_seed=41, locator="haar",
        crop_scale=1.3, min_face_px=64, files_seen=4321, faces_seen=8765, rows=SPLITS,
        sources=sources | {"a & <b>": sum(SPLITS.values()) - sources["b"]}, quarantine=REFUSED,
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, photos: Path) -> str:
    return write_report(folder, sources=[str(photos), "s3://bucket/far"]).read_text()


def numbers(value: object) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def test_it_names_every_count_of_the_manifest(page: str, folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    for shard in content["shards"]:
        shard["row_groups"] = len(shard["row_groups"])
    del content["schema_version"]
    shown = set(re.findall(r"[\d.]+", Page(page).text))
    assert not [n for n in numbers(content) if f"{n:g}" not in shown]
    names = [*SPLITS, *REFUSED, *content["sources"], *(shard["name"] for shard in content["shards"])]
    assert not [name for name in names if name not in Page(page).text]
    assert not [name for tag in TAGS for name in (tag, *vocabulary(tag)) if name not in Page(page).text]


def test_it_escapes_and_needs_nothing_but_itself(page: str) -> None:
    found = Page(page)
    assert not found.all("script") and not found.all("link") and "alert(1)" in found.text
    assert "{{ 7 * 7 }}" in found.text and "a & <b>" in found.text
    for tag in ("img", "source"):
        for attributes in found.all(tag):
            assert str(attributes.get("src") or attributes.get("srcset")).startswith("data:image/")
            assert tag == "source" or attributes["alt"]
    assert "http" not in re.sub(r'"data:[^"]*"', "", page) and "url(" not in page
    assert len(found.all("caption")) == len(found.all("table")) and all("scope" in th for th in found.all("th"))
    assert "prefers-color-scheme: dark" in page


def test_it_is_the_same_each_time(page: str, folder: Path, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "again.html"
    assert write_report(folder, target, [str(photos), "s3://bucket/far"]) == target
    assert target.read_text() == page


def test_quarantined_files_are_shown_where_they_can_be(page: str) -> None:
    alts = [str(image.get("alt")) for image in Page(page).all("img")]
    assert (
        [alt for alt in alts if "no_face" in alt] and "Dropped: trip/copy.jpg" in alts and "Kept: trip/kept.jpg" in alts
    )
    assert page.count("not reachable") >= EXAMPLES - 1 + 2  # files that are gone, and both paths out of the folder
    assert "no picture: unreadable" in page or HOSTILE.replace("/", "_") not in Page(page).text


def test_without_sources_nothing_is_reachable(folder: Path, tmp_path: Path) -> None:
    text = write_report(folder, tmp_path / "page.html").read_text()
    assert "In quarantine as" not in text and "not reachable" in text


def test_a_path_never_leads_out_of_its_folder(photos: Path) -> None:
    (photos.parent / "secret.jpg").write_bytes(jpeg_of(5))
    with Originals([str(photos)]) as originals:
        for path in ("../secret.jpg", str(photos.parent / "secret.jpg"), "trip/../../secret.jpg"):
            assert originals.picture(path, "").why == "not reachable"
        assert originals.picture("trip/kept.jpg", "").jpeg is not None
    with Originals([str(photos), str(photos)]) as originals:
        assert originals.picture("trip/kept.jpg", "").why == "not reachable", "which of the two is not known"


def test_counts_equal_the_rows(folder: Path) -> None:
    counts = count(folder, Manifest.model_validate_json((folder / MANIFEST).read_text()))
    for tag in TAGS:
        for split in ("train", "val", "test"):
            labels = pq.read_table(folder / f"{split}.parquet")[f"label_{tag}"].to_pylist()
            wanted = [labels.count(value) for value in range(len(vocabulary(tag)))] + [labels.count(-1)]
            assert counts.labels[tag][split].tolist() == wanted
    assert counts.raw["iso"].n == 105 and counts.raw["aperture"].n == 0
    assert (counts.raw["iso"].low, counts.raw["iso"].high) == (100, 176)
    assert counts.sources["a & <b>"] == {"train": 26, "val": 8, "test": 2}
    assert counts.codecs["png"] == 39 + 12 + 3 and counts.qualities.n == 105 - 54


def test_a_histogram_keeps_what_lies_beyond_its_bins() -> None:
    found = Histogram(np.array([1.0, 2.0, 3.0, 4.0]))
    found.add(np.array([0.0, 2.5, np.nan, 99.0, 2.0]))
    assert found.counts.tolist() == [1, 2, 1] and found.n == 4 and (found.low, found.high) == (0, 99)
    assert Histogram(np.array([1.0, 2.0])).shown()[1].tolist() == [0]


def test_samples_are_bounded_and_independent_of_order(folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    sheet = contact_sheet(folder, manifest, "train")
    assert len(sheet) == SHEET and len({picture.path for picture in sheet}) == SHEET
    assert len(contact_sheet(folder, manifest, "test")) == 5
    table = pq.read_table(folder / QUARANTINE)
    pq.write_table(table.take(list(range(len(table)))[::-1]), tmp_path / QUARANTINE)
    assert refused(tmp_path) == refused(folder)
    assert refused(folder).counts == REFUSED
