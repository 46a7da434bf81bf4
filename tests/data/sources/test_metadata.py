"""EXIF from JSON as exiftool and Flickr write it."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blades_dist.data.decode import Rejected
from blades_dist.data.exif import Raw
from blades_dist.data.metadata import MAX_JSON_BYTES, exif_of_json
from blades_dist.tags import EXIF_TAGS, Codes, ExifTag
from blades_dist.tasks import TAGS, vocabulary

EXPECTED: Raw = {
    "iso": 400.0,
    "aperture": 2.8,
    "exposure_time": 1 / 250,
    "focal_length": 50.0,
    "make": "Nikon",
    "metering_mode": "multi-segment",
    "exposure_mode": "auto",
    "white_balance": "manual",
    "exposure_program": "aperture priority",
    "flash": "off",
}
PRINTED = {
    "Make": "NIKON CORPORATION",
    "Model": "NIKON D90",
    "ExposureTime": "1/250",
    "FNumber": 2.8,
    "ISO": 400,
    "FocalLength": "50.0 mm",
    "MeteringMode": "Multi-segment",
    "ExposureMode": "Auto",
    "WhiteBalance": "Manual",
    "ExposureProgram": "Aperture-priority AE",
    "Flash": "Off, Did not fire",
}
NUMERIC = PRINTED | {
    "ExposureTime": 0.004,
    "FocalLength": 50,
    "MeteringMode": 5,
    "ExposureMode": 0,
    "WhiteBalance": 1,
    "ExposureProgram": 3,
    "Flash": 16,
}
FLICKR_LABELS = {
    "ExposureTime": "Exposure",
    "FNumber": "Aperture",
    "ISO": "ISO Speed",
    "FocalLength": "Focal Length",
    "MeteringMode": "Metering Mode",
}


# Words of exported JSON, in ``plain`` form, and the codes that they stand for.
# fmt: off
WRITTEN: dict[str, dict[str, int]] = {
    "metering_mode": {
        "unknown": 0, "average": 1, "centerweighted": 2, "centreweighted": 2, "centerweightedaverage": 2,
        "centreweightedaverage": 2, "spot": 3, "multispot": 4, "multisegment": 5, "multizone": 5, "pattern":
        5, "matrix": 5, "partial": 6, "other": 255,
    },
    "exposure_mode": {
        "auto": 0, "autoexposure": 0, "manual": 1, "manualexposure": 1, "autobracket": 2, "autobracketing":
        2,
    },
    "white_balance": {
        "auto": 0, "autowhitebalance": 0, "manual": 1, "manualwhitebalance": 1,
    },
    "exposure_program": {
        "notdefined": 0, "manual": 1, "manualcontrol": 1, "program": 2, "programae": 2, "normalprogram": 2,
        "aperturepriority": 3, "aperturepriorityae": 3, "shutterpriority": 4, "shutterpriorityae": 4,
        "shutterspeedpriority": 4, "shutterspeedpriorityae": 4, "creativeslowspeed": 5, "actionhighspeed":
        6, "portrait": 7, "portraitmode": 7, "landscape": 8, "landscapemode": 8,
    },
    "flash": {
        "offdidnotfire": 0, "offnoflash": 0, "ondidnotfire": 0, "noflashfunction": 0, "autofired": 1,
        "fired": 1, "on": 1, "yes": 1, "true": 1, "off": 0,
    },
}
# fmt: on


def read(content: Any) -> Raw | None:
    return exif_of_json(json.dumps(content).encode())


def flickr(values: dict[str, Any], names: str = "tag") -> list[dict[str, Any]]:
    return [
        {
            "tagspace": "ExifIFD" if name not in ("Make", "Model") else "IFD0",
            "tagspaceid": 0,
            "tag": name if names == "tag" else "",
            "label": FLICKR_LABELS.get(name, name),
            "raw": {"_content": str(value)},
        }
        for name, value in values.items()
    ]


@pytest.mark.parametrize("values", [PRINTED, NUMERIC], ids=["printed", "numeric"])
def test_every_form_says_the_same(values: dict[str, Any]) -> None:
    group = {name: "IFD0" if name in ("Make", "Model") else "ExifIFD" for name in values}
    forms: dict[str, Any] = {
        "exiftool -j": [{"SourceFile": "x.jpg", **values}],
        "an object": values,
        "exiftool -G": [{f"EXIF:{name}": value for name, value in values.items()}],
        "exiftool -G1": [{f"{group[name]}:{name}": value for name, value in values.items()}],
        "exiftool -G0:1": [{f"EXIF:{group[name]}:{name}": value for name, value in values.items()}],
        "exiftool -g": [{"SourceFile": "x.jpg", "EXIF": values, "MakerNotes": {"WhiteBalance": "Daylight"}}],
        "flickr": {"photo": {"id": "1", "exif": flickr(values)}, "stat": "ok"},
        "flickr, labels": {"photo": {"exif": flickr(values, "label")}},
        "flickr, list": flickr(values),
        "flickr, plain raw": [item | {"raw": item["raw"]["_content"]} for item in flickr(values)],
    }
    for name, content in forms.items():
        assert read(content) == EXPECTED, name


@pytest.mark.parametrize(
    ("name", "value", "tag", "expected"),
    [
        ("FNumber", "f/2.8", "aperture", 2.8),
        ("Aperture Value", "F5.6", "aperture", 5.6),
        ("ApertureValue", 2.8, "aperture", 2.8),
        ("FNumber", "28/10", "aperture", 2.8),
        ("FNumber", "1/0", "aperture", None),
        ("FNumber", 500, "aperture", None),
        ("Exposure Time", "1/60 sec", "exposure_time", 1 / 60),
        ("ExposureTime", "0.004 sec (1/250)", "exposure_time", 0.004),
        ("ExposureTime", "30", "exposure_time", 30.0),
        ("ShutterSpeedValue", "1/125", "exposure_time", 1 / 125),
        ("ExposureTime", "undef", "exposure_time", None),
        ("FocalLength", "35.0 mm (35 mm equivalent: 52.0 mm)", "focal_length", 35.0),
        ("FocalLength", "24-70 mm", "focal_length", None),
        ("FocalLengthIn35mmFormat", "52 mm", "focal_length", None),
        ("ISO Speed Ratings", "100, 100", "iso", 100.0),
        ("ISO", [200, 200], "iso", 200.0),
        ("ISO", 65535, "iso", None),
        ("FNumber", [28, 10], "aperture", None),
        ("MeteringMode", "Center-weighted average", "metering_mode", "centerweighted"),
        ("MeteringMode", "Evaluative", "metering_mode", "evaluative"),
        ("MeteringMode", "Other", "metering_mode", "others"),
        ("MeteringMode", "Unheard of", "metering_mode", None),
        ("ExposureMode", "Auto bracket", "exposure_mode", "auto-bracketing"),
        ("ExposureProgram", "Program AE", "exposure_program", "normal program"),
        ("ExposureProgram", "Shutter speed priority AE", "exposure_program", "shutter priority"),
        ("ExposureProgram", "Portrait", "exposure_program", "portrait mode"),
        ("ExposureProgram", "Action (High speed)", "exposure_program", None),
        ("White Balance Mode", "Auto", "white_balance", "auto"),
        ("Flash", "Auto, Fired, Red-eye reduction", "flash", "on"),
        ("Flash", "On, Did not fire", "flash", "off"),
        ("Flash", "No Flash", "flash", "off"),
        ("Flash", 25, "flash", "on"),
        ("Make", "Asahi Optical", "make", "Pentax"),
        ("37378", "95/32", "aperture", 2 ** (95 / 64)),
    ],
)
def test_values_as_people_write_them(name: str, value: Any, tag: str, expected: float | str | None) -> None:
    raw = read({name: value, "Model": "X"})
    assert raw is not None and raw[tag] == expected
    assert [other for other in TAGS if other != tag and raw[other] is not None] == []


def test_camera_exif_wins_over_other_groups() -> None:
    content = {
        "Composite:Aperture": 11,
        "XMP:FNumber": 8,
        "FNumber": 5.6,
        "EXIF:FNumber": 2.8,
        "MakerNotes:ISO": 1,
        "IFD1:Make": "Canon",
        "Nikon:WhiteBalance": "Auto",
    }
    raw = read([content])
    assert raw is not None and raw["aperture"] == 2.8
    assert (raw["iso"], raw["make"], raw["white_balance"]) == (None, None, None)
    content.pop("EXIF:FNumber")
    assert (read([content]) or {})["aperture"] == 5.6
    content.pop("FNumber")
    assert (read([content]) or {})["aperture"] == 8


def test_oldest_flickr_form_names_fields_by_number() -> None:
    items = [
        {"tagspace": "TIFF", "tag": "271", "label": "Manufacturer", "raw": {"_content": "Canon"}},
        {
            "tagspace": "EXIF",
            "tag": 33437,
            "label": "Aperture",
            "raw": {"_content": "90/10"},
            "clean": {"_content": "f/9"},
        },
    ]
    raw = read({"photo": {"exif": items}})
    assert raw is not None and (raw["make"], raw["aperture"]) == ("Canon", 9.0)


@pytest.mark.parametrize("tag", [tag for tag in EXIF_TAGS if isinstance(tag.values, Codes)], ids=lambda tag: tag.name)
def test_words_mean_what_their_codes_do(tag: ExifTag) -> None:
    field, words = tag.fields[0].name, WRITTEN[tag.name]
    for word, code in words.items():
        assert read({field: word, "Model": "X"}) == read({field: code, "Model": "X"}), word
    for name in vocabulary(tag.name):
        assert (read({field: name}) or {})[tag.name] == name
    assert isinstance(tag.values, Codes)
    for pattern, code in tag.values.written_as.items():
        assert any(re.fullmatch(pattern, word) and code == own for word, own in words.items()), pattern


@pytest.mark.parametrize("content", [{}, [], 5, "text", None, {"title": "x", "people": [1]}, {"photo": {"exif": []}}])
def test_other_json_is_no_exif(content: Any) -> None:
    assert read(content) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b'{"FNumber": 2.8',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b" " * (MAX_JSON_BYTES + 1),
        b'[{"FNumber": 2}, {"FNumber": 4}]',
        b'{"ISO": 1' + b"0" * 5000 + b"}",
    ],
)
def test_junk_is_rejected(data: bytes) -> None:
    with pytest.raises(Rejected) as told:
        exif_of_json(data)
    assert told.value.reason == "bad_sidecar" and len(told.value.detail) <= 200


_NAMES = st.sampled_from([*PRINTED, "EXIF:ISO", "37378", "photo", "exif", "tag", "raw", "label", "clean", "EXIF"])
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["1/0", "f/", "9" * 30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=100)
@given(_JSON)
def test_any_json_is_understood_or_rejected(content: Any) -> None:
    try:
        raw = read(content)
    except Rejected as error:
        assert error.reason == "bad_sidecar"
        return
    assert raw is None or (
        set(raw) == set(TAGS) and all(v is None or isinstance(v, (float, str)) for v in raw.values())
    )
