"""EXIF reading: tables of values, hostile bytes, makers, labels and tertiles."""

import struct
from typing import Any

import piexif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blades_dist.data import exif
from blades_dist.tasks import CATEGORICAL_TAGS, MAKES, ORDINAL_TAGS, TAGS, vocabulary

E = piexif.ExifIFD
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
    assert exif.normalise_make(written) == expected


def test_ricoh_imaging_makes_pentax_cameras_too() -> None:
    assert exif.normalise_make("RICOH IMAGING COMPANY, LTD.", "PENTAX K-1") == "Pentax"


def test_every_word_is_in_its_vocabulary() -> None:
    tables = {
        "metering_mode": exif.METERING_MODES,
        "exposure_mode": exif.EXPOSURE_MODES,
        "white_balance": exif.WHITE_BALANCES,
        "exposure_program": exif.EXPOSURE_PROGRAMS,
    }
    for tag, words in tables.items():
        assert set(words.values()) <= set(vocabulary(tag))
    assert {name for _, name in exif.MAKE_ALIASES} == set(MAKES)
    assert set(exif.PLAUSIBLE) == set(ORDINAL_TAGS)


@settings(max_examples=300, deadline=1000)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe1\x01\x00Exif\0\0", b"II*\0", b"MM\0*"]))
def test_never_raises_on_any_bytes(data: bytes, opening: bytes) -> None:
    raw = exif.read_exif(opening + data)
    assert tuple(raw) == TAGS
    assert 1 <= exif.read_orientation(opening + data) <= 8


@settings(max_examples=300, deadline=1000)
@given(st.data())
def test_never_raises_on_damaged_exif(draw: st.DataObject) -> None:
    data = bytearray(block(FULL, Orientation=6, Model=b"X" * 20))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    raw = exif.read_exif(bytes(data[: draw.draw(st.integers(0, len(data)))]))
    labels = exif.labels(raw, {tag: (1.0, 2.0) for tag in ORDINAL_TAGS})
    assert all(-1 <= label < len(vocabulary(tag)) for tag, label in labels.items())


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
