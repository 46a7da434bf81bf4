"""EXIF reading: tables of values, hostile bytes, makers, labels and tertiles."""

import struct
from pathlib import Path
from typing import Any

import piexif
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blades_dist.data import exif, exif_document
from blades_dist.data.exif_reader import EXIF_DIRECTORY, FIELD_NAMES, FOCAL_LENGTH_35MM, read_fields
from blades_dist.tags import EXIF_TAGS, MAKES, Codes, Names, plain
from blades_dist.tasks import CATEGORICAL_TAGS, TAGS

E = piexif.ExifIFD
MAKERS = next(tag.values for tag in EXIF_TAGS if isinstance(tag.values, Names))
FULL = {
    E.ISOSpeedRatings: 400,
    E.FNumber: (28, 10),
    E.ExposureTime: (1, 125),
    E.FocalLength: (50, 1),
    E.MeteringMode: 5,
    E.ExposureMode: 1,
    E.WhiteBalance: 1,
    E.ExposureProgram: 3,
    E.Flash: 25,
}


def block(values: dict[int, Any], make: bytes | None = b"Canon", **main: Any) -> bytes:
    """A JPEG of nothing but an EXIF segment."""
    first = {getattr(piexif.ImageIFD, name): value for name, value in main.items()}
    payload = piexif.dump({"0th": first | ({piexif.ImageIFD.Make: make} if make else {}), "Exif": values})
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + b"\xff\xd9"


def test_all_tags() -> None:
    assert exif.read_exif(block(FULL)) == {
        "iso": 400.0,
        "aperture": 2.8,
        "exposure_time": 1 / 125,
        "focal_length": 50.0,
        "make": "Canon",
        "metering_mode": "multi-segment",
        "exposure_mode": "manual",
        "white_balance": "manual",
        "exposure_program": "aperture priority",
        "flash": "on",
    }


@pytest.mark.parametrize(
    ("tag", "key", "value", "expected"),
    [
        ("iso", E.ISOSpeedRatings, 0, None),
        ("iso", E.ISOSpeedRatings, 65535, None),
        ("aperture", E.FNumber, (0, 1), None),
        ("aperture", E.FNumber, (28, 0), None),
        ("aperture", E.FNumber, (4_000_000_000, 1), None),
        ("exposure_time", E.ExposureTime, (1_000_000_000, 1), None),
        ("exposure_time", E.ExposureTime, (0, 0), None),
        ("exposure_time", E.ExposureTime, (30, 1), 30.0),
        ("focal_length", E.FocalLength, (0, 1), None),
        ("focal_length", E.FocalLength, (425, 100), 4.25),
        ("metering_mode", E.MeteringMode, 1, "average"),
        ("metering_mode", E.MeteringMode, 2, "centerweighted"),
        ("metering_mode", E.MeteringMode, 3, "spot"),
        ("metering_mode", E.MeteringMode, 4, "multi-spot"),
        ("metering_mode", E.MeteringMode, 6, "partial"),
        ("metering_mode", E.MeteringMode, 0, "others"),
        ("metering_mode", E.MeteringMode, 255, "others"),
        ("metering_mode", E.MeteringMode, 77, "others"),
        ("exposure_mode", E.ExposureMode, 0, "auto"),
        ("exposure_mode", E.ExposureMode, 2, "auto-bracketing"),
        ("exposure_mode", E.ExposureMode, 9, None),
        ("white_balance", E.WhiteBalance, 0, "auto"),
        ("white_balance", E.WhiteBalance, 4, None),
        ("exposure_program", E.ExposureProgram, 0, None),
        ("exposure_program", E.ExposureProgram, 1, "manual control"),
        ("exposure_program", E.ExposureProgram, 2, "normal program"),
        ("exposure_program", E.ExposureProgram, 4, "shutter priority"),
        ("exposure_program", E.ExposureProgram, 7, "portrait mode"),
        ("exposure_program", E.ExposureProgram, 8, "landscape mode"),
        ("flash", E.Flash, 0, "off"),
        ("flash", E.Flash, 16, "off"),
        ("flash", E.Flash, 1, "on"),
    ],
)
def test_values(tag: str, key: int, value: Any, expected: float | str | None) -> None:
    assert exif.read_exif(block(FULL | {key: value}))[tag] == expected


def test_apex_and_later_iso_tags_stand_in() -> None:
    raw = exif.read_exif(
        block(
            {
                E.ApertureValue: (4, 1),
                E.ShutterSpeedValue: (7, 1),
                E.ISOSpeedRatings: 65535,
                E.RecommendedExposureIndex: 102400,
            }
        )
    )
    assert (raw["aperture"], raw["exposure_time"], raw["iso"]) == (4.0, 1 / 128, 102400.0)


def test_no_exif_is_all_absent() -> None:
    assert set(exif.read_exif(b"\xff\xd8\xff\xd9").values()) == {None}
    assert exif.read_orientation(b"") == 1


@pytest.mark.parametrize("orientation", range(11))
def test_orientation(orientation: int) -> None:
    expected = orientation if 1 <= orientation <= 8 else 1
    assert exif.read_orientation(block({}, Orientation=orientation)) == expected


@pytest.mark.parametrize("name", ["png", "webp", "tiff"])
def test_every_container(name: str) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    payload = piexif.dump({"0th": {piexif.ImageIFD.Make: b"SONY"}, "Exif": FULL})
    Image.new("RGB", (8, 8)).save(buffer, name, exif=payload)
    raw = exif.read_exif(buffer.getvalue())
    assert (raw["make"], raw["iso"]) == ("Sony", 400.0)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("NIKON CORPORATION", "Nikon"),
        ("NIKON", "Nikon"),
        ("Apple", "Apple"),
        ("FUJIFILM", "FUJIFILM"),
        ("FUJI PHOTO FILM CO., LTD.", "FUJIFILM"),
        ("Canon", "Canon"),
        ("Canon Inc.", "Canon"),
        ("SAMSUNG", "Samsung"),
        ("SAMSUNG TECHWIN CO., LTD.", "Samsung"),
        ("SONY", "Sony"),
        ("Sony Ericsson", "others"),
        ("Panasonic", "Panasonic"),
        ("Nokia", "Nokia"),
        ("HMD Global", "Nokia"),
        ("PENTAX Corporation", "Pentax"),
        ("Asahi Optical Co.,Ltd", "Pentax"),
        ("RICOH IMAGING COMPANY, LTD.", "others"),
        ("OLYMPUS IMAGING CORP.", "others"),
        ("Applesauce", "others"),
        ("  \0", None),
        ("", None),
        (None, None),
        (3.0, None),
    ],
)
def test_makers(written: object, expected: str | None) -> None:
    assert exif.class_of_name(MAKERS, written) == expected


def test_ricoh_imaging_makes_pentax_cameras_too() -> None:
    assert exif.class_of_name(MAKERS, "RICOH IMAGING COMPANY, LTD.", "PENTAX K-1") == "Pentax"


def test_every_class_that_a_row_reads_is_one_of_its_tag() -> None:
    for tag in EXIF_TAGS:
        if isinstance(tag.values, Codes):
            other = set() if tag.values.other is None else {tag.values.other}
            assert set(tag.values.classes.values()) | other <= set(tag.classes)
    assert {name for _, name in MAKERS.openings} == set(MAKES)
    assert {name for *_, name in MAKERS.qualified} | {MAKERS.other} <= set(MAKES)


def test_no_two_rows_share_a_field_or_a_name() -> None:
    fields = [field for tag in EXIF_TAGS for field in tag.fields]
    for named in (
        [tag.name for tag in EXIF_TAGS],
        [tag.words for tag in EXIF_TAGS],
        [field.number for field in fields],
        [name for tag in EXIF_TAGS for name in tag.released_as],
    ):
        assert len(set(named)) == len(named)
    assert {field.number for field in fields} < set(FIELD_NAMES)
    for field in fields:
        assert all(name == plain(name) for name in field.exported_as) and (field.apex is None or not field.exported_as)


def test_no_alias_is_hidden_by_an_earlier_one() -> None:
    for opening, name in MAKERS.openings:
        assert exif.class_of_name(MAKERS, opening) == exif.class_of_name(MAKERS, opening.upper() + " Corp.") == name


def test_the_page_is_the_one_of_these_tables() -> None:
    page = Path(__file__).parents[2] / "docs" / "exif.md"
    assert page.read_text() == exif_document.document(), "run python -m blades_dist.data.exif_document > docs/exif.md"


def test_the_equivalent_focal_length_is_none() -> None:
    data = block({E.FocalLengthIn35mmFilm: 50})
    assert exif.read_exif(data)["focal_length"] is None
    assert read_fields(data)[FOCAL_LENGTH_35MM] == 50.0


def raw_block(entries: list[tuple[int, int, int, bytes]], order: str = "<", sub_order: str | None = None) -> bytes:
    """A TIFF block of an EXIF directory alone; ``entries`` are (field, type, count, value), longer values outlying."""
    inner = sub_order or order
    main = struct.pack(order + "HHHLLL", 1, EXIF_DIRECTORY, 4, 1, 26, 0)
    outlying, directory = b"", struct.pack(inner + "H", len(entries))
    begin = 26 + 2 + 12 * len(entries) + 4
    for field, kind, count, value in entries:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(inner + "L", begin + len(outlying))
        outlying += value if len(value) > 4 else b""
        directory += struct.pack(inner + "HHL", field, kind, count) + place
    letters = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return letters + struct.pack(order + "L", 8) + main + directory + b"\0\0\0\0" + outlying


@pytest.mark.parametrize(
    ("tag", "field", "kind", "count", "value", "expected"),
    [
        ("iso", E.ISOSpeedRatings, 4, 1, struct.pack("<L", 102400), 102400.0),
        ("iso", E.ISOSpeedRatings, 12, 1, struct.pack("<d", 200.0), 200.0),
        ("iso", E.ISOSpeedRatings, 2, 4, b"400\0", 400.0),
        ("iso", E.ISOSpeedRatings, 2, 4, b"hi\0\0", None),
        ("iso", E.ISOSpeedRatings, 3, 3, struct.pack("<HHH", 320, 0, 0), 320.0),
        ("iso", E.ISOSpeedRatings, 3, 0, struct.pack("<H", 320), None),
        ("iso", E.ISOSpeedRatings, 99, 1, struct.pack("<H", 320), None),
        ("iso", E.ISOSpeedRatings, 8, 1, struct.pack("<h", -100), None),
        ("aperture", E.FNumber, 10, 1, struct.pack("<ll", -28, -10), 2.8),
        ("aperture", E.FNumber, 10, 1, struct.pack("<ll", -28, 10), None),
        ("aperture", E.FNumber, 3, 1, struct.pack("<H", 4), 4.0),
        ("aperture", E.FNumber, 11, 1, struct.pack("<f", float("inf")), None),
        ("aperture", E.ApertureValue, 10, 1, struct.pack("<ll", 6, 1), 8.0),
        ("aperture", E.ApertureValue, 10, 1, struct.pack("<ll", 600, 1), None),
        ("exposure_time", E.ExposureTime, 2, 6, b"1/125\0", 1 / 125),
        ("exposure_time", E.ExposureTime, 2, 4, b"1/0\0", None),
        ("exposure_time", E.ShutterSpeedValue, 10, 1, struct.pack("<ll", -3, 1), 8.0),
        ("focal_length", E.FocalLength, 5, 1, struct.pack("<LL", 2**32 - 1, 1), None),
        ("make", piexif.ImageIFD.Make, 7, 5, b"Canon", "Canon"),
        ("make", piexif.ImageIFD.Make, 1, 6, b"SONY\0\0", "Sony"),
        ("make", piexif.ImageIFD.Make, 129, 6, b"Nikon\0", "Nikon"),
        ("make", piexif.ImageIFD.Make, 2, 3, b"7\0\0", "others"),
        ("make", piexif.ImageIFD.Make, 3, 1, struct.pack("<H", 7), None),
        ("flash", E.Flash, 5, 1, struct.pack("<LL", 3, 2), None),
        ("white_balance", E.WhiteBalance, 2, 2, b"1\0", "manual"),
    ],
)
def test_types_and_counts_that_writers_get_wrong(
    tag: str, field: int, kind: int, count: int, value: bytes, expected: float | str | None
) -> None:
    assert exif.read_exif(raw_block([(field, kind, count, value)]))[tag] == expected


@pytest.mark.parametrize(("order", "sub_order"), [("<", ">"), (">", "<"), ("<", "<"), (">", ">")])
def test_a_directory_in_the_other_byte_order(order: str, sub_order: str) -> None:
    data = raw_block([(E.ISOSpeedRatings, 3, 1, struct.pack(sub_order + "H", 400))], order, sub_order)
    assert exif.read_exif(data)["iso"] == 400.0


def test_the_magic_number_outweighs_the_letters() -> None:
    data = raw_block([(E.ISOSpeedRatings, 3, 1, struct.pack(">H", 400))], ">")
    assert exif.read_exif(b"II" + data[2:])["iso"] == 400.0
    assert exif.read_exif(b"II\x13\x37" + data[4:])["iso"] is None


def test_directories_that_point_at_themselves_and_nowhere() -> None:
    loop = b"II*\0" + struct.pack("<LH", 8, 1) + struct.pack("<HHLLL", EXIF_DIRECTORY, 4, 1, 8, 8)
    for pointer in (8, 0, 7, 2**32 - 1):
        assert set(exif.read_exif(loop[:-8] + struct.pack("<LL", pointer, 8)).values()) == {None}


def test_reasons() -> None:
    found = exif.explain({E.FNumber: 0.0, E.ApertureValue: 4.0, E.ISOSpeedRatings: 65535.0})
    assert found["aperture"] == exif.Reading(4.0, E.ApertureValue, 4.0)
    assert found["iso"].value is None and (found["iso"].field, found["iso"].stored) == (E.ISOSpeedRatings, 65535.0)
    assert "does not fit" in found["iso"].why and found["make"].why == "no Make"
    assert exif.interpret({E.ISOSpeedRatings: 400, piexif.ImageIFD.Make: "NIKON"})["iso"] == 400.0
    assert exif.number(10**400) is None and exif.number(True) is None and exif.number("1e5") is None


def test_claims_of_four_gigabytes_cost_nothing() -> None:
    entry = struct.pack("<HHLL", 0x010F, 2, 2**32 - 1, 8) + struct.pack("<HHLL", 0x8827, 3, 2**32 - 1, 2**32 - 1)
    raw = exif.read_exif(b"II*\0" + struct.pack("<LH", 8, 65535) + entry * 100)
    assert raw["iso"] is None


def test_labels() -> None:
    edges = {"iso": (100.0, 400.0)}
    levels = [exif.labels({"iso": iso}, edges)["iso"] for iso in (50.0, 100.0, 101.0, 400.0, 401.0, None)]
    assert levels == [0, 0, 1, 1, 2, -1]
    found = exif.labels({"aperture": 2.8, "make": "Canon", "flash": "on"}, edges)
    assert (found["aperture"], found["make"], found["flash"]) == (-1, MAKES.index("Canon"), 1)
    assert tuple(found) == TAGS and all(found[tag] == -1 for tag in CATEGORICAL_TAGS if tag not in ("make", "flash"))


def test_tertiles_of_untied_values() -> None:
    assert exif.tertile_edges(float(i) for i in range(1, 301)) == (100.0, 200.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([5.0], (5.0, 5.0)),
        ([1.0, 2.0], (1.0, 1.0)),
        ([1.0] * 98 + [2.0, 3.0], (1.0, 2.0)),
        ([1.0, 2.0] + [3.0] * 98, (1.0, 2.0)),
        ([1.0] + [2.0] * 98 + [3.0], (1.0, 2.0)),
    ],
)
def test_tertiles_of_ties(values: list[float], expected: tuple[float, float] | None) -> None:
    assert exif.tertile_edges(values) == expected


@given(st.lists(st.sampled_from([50.0, 100.0, 200.0, 400.0, 800.0, 6400.0]), min_size=1, max_size=60))
def test_tertiles_use_every_level(values: list[float]) -> None:
    edges = exif.tertile_edges(values)
    assert edges is not None
    levels = {exif.labels({"iso": value}, {"iso": edges})["iso"] for value in values}
    assert len(levels) == min(3, len(set(values)))
